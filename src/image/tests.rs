use std::fs;

use super::*;

fn images() -> (tempfile::TempDir, Images) {
    let folder = tempfile::tempdir().expect("folder");
    let images = Images::new(folder.path().to_owned(), Assets::default());
    (folder, images)
}

fn admit(images: &Images, root: &Path, name: &str, contents: &str) -> Image {
    let work = root.join(".build-test");
    fs::create_dir(&work).expect("mkdir");
    fs::write(work.join(DISK), contents).expect("disk");
    fs::write(work.join(KERNEL), "kernel").expect("kernel");
    fs::write(work.join(INITRD), "initrd").expect("initrd");
    let draft = Draft {
        name: name.to_owned(),
        kind: ImageKind::Built,
        first_boot: FirstBoot::ForgeSeed,
        size: 1 << 30,
        cmdline: Some("quiet".into()),
        provenance: vec!["deb x y main".into()],
    };
    images.admit(&work, draft).expect("admits")
}

#[test]
fn an_image_is_found_by_id_and_the_newest_by_name() {
    let (folder, images) = images();
    assert!(images.list().expect("empty").is_empty());
    let old = admit(&images, folder.path(), "base", "one");
    let new = admit(&images, folder.path(), "base", "two");
    assert_eq!(images.find("base").expect("by name"), new);
    assert_eq!(images.find(&old.id).expect("by id"), old);
    assert_eq!(images.list().expect("both").len(), 2);
    assert_eq!(
        images.find("other").expect_err("none").kind(),
        Kind::NotFound
    );
    let base = images.base(&new);
    assert!(base.disk.is_file());
    assert_eq!(base.kernel.expect("kernel").cmdline, "quiet");
}

#[test]
fn the_same_contents_are_one_image() {
    let (folder, images) = images();
    let first = admit(&images, folder.path(), "base", "one");
    assert_eq!(admit(&images, folder.path(), "base", "one"), first);
    assert!(!folder.path().join(".build-test").exists());
}

#[test]
fn a_damaged_file_is_an_error_that_names_it() {
    let (folder, images) = images();
    let image = admit(&images, folder.path(), "base", "one");
    let disk = folder.path().join(&image.id).join(DISK);
    fs::write(&disk, "longer").expect("write");
    let error = images.find("base").expect_err("length");
    assert_eq!(error.kind(), Kind::Corrupt);
    assert_eq!(error.causes(), ["`disk.qcow2` has 6 bytes instead of 3"]);
    fs::write(&disk, "eno").expect("write");
    let changed = std::time::SystemTime::UNIX_EPOCH;
    fs::File::options()
        .write(true)
        .open(&disk)
        .and_then(|file| file.set_modified(changed))
        .expect("touch");
    assert_eq!(
        images.find("base").expect_err("contents").causes(),
        ["the contents of `disk.qcow2` have changed"]
    );
    fs::remove_file(&disk).expect("rm");
    assert_eq!(
        images.find("base").expect_err("missing").causes(),
        ["`disk.qcow2` is missing"]
    );
}

#[test]
fn a_copied_store_is_read_through_and_good() {
    let (folder, images) = images();
    let image = admit(&images, folder.path(), "base", "one");
    let disk = folder.path().join(&image.id).join(DISK);
    let changed = std::time::SystemTime::UNIX_EPOCH;
    fs::File::options()
        .write(true)
        .open(disk)
        .and_then(|file| file.set_modified(changed))
        .expect("touch");
    images.find("base").expect("the contents are the same");
    images.verify(&image).expect("the contents are the same");
}

#[test]
fn damaged_and_newer_records_are_refused_and_can_be_removed() {
    let (folder, images) = images();
    let image = admit(&images, folder.path(), "base", "one");
    let record = folder.path().join(&image.id).join(RECORD);
    let text = fs::read_to_string(&record).expect("read");
    fs::write(&record, text.replace("\"format\": 2", "\"format\": 3")).expect("write");
    assert_eq!(images.find("base").expect_err("newer").kind(), Kind::Newer);
    fs::write(&record, "{").expect("write");
    assert_eq!(images.list().expect_err("damaged").kind(), Kind::Corrupt);
    images.remove(&image.id).expect("removes");
    assert!(images.list().expect("empty").is_empty());
}

#[test]
fn work_that_is_not_complete_is_no_image() {
    let (folder, images) = images();
    fs::create_dir(folder.path().join(".build-x")).expect("mkdir");
    fs::create_dir(folder.path().join("empty")).expect("mkdir");
    assert!(images.list().expect("none").is_empty());
}

#[test]
fn names_are_words() {
    check_name("debian-12.1").expect("a word");
    for name in ["", ".x", "-x", "a/b", "A", "ä", &"x".repeat(65)] {
        assert_eq!(check_name(name).expect_err(name).kind(), Kind::Usage);
    }
}
