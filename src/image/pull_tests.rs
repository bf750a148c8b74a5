use forge_driver::assets::Assets;

use super::super::testing::{Reply, Server};
use super::*;

fn images() -> (tempfile::TempDir, Images) {
    let folder = tempfile::tempdir().expect("folder");
    let images = Images::new(folder.path().join("images"), Assets::default());
    (folder, images)
}

/// The bytes of a disk that `qemu-img create` makes with these words.
async fn disk(folder: &Path, words: &[&str]) -> Vec<u8> {
    let path = folder.join("made");
    let mut command = Command::new("qemu-img");
    command
        .args(["create", "-q"])
        .args(words)
        .arg(&path)
        .arg("64M");
    process::run(command, None, INFO_DEADLINE)
        .await
        .expect("runs")
        .success("`qemu-img`")
        .expect("makes a disk");
    fs::read(path).expect("read")
}

fn source(server: &Server, sum: Option<Checksum>) -> PullSource {
    PullSource {
        pause: Duration::from_millis(1),
        ..PullSource::new("cloud", server.url("some/disk.img"), sum)
    }
}

fn sum_of(bytes: &[u8]) -> Checksum {
    let file = tempfile::NamedTempFile::new().expect("file");
    fs::write(file.path(), bytes).expect("write");
    Checksum::Sha256(String::new())
        .of_same_kind(file.path())
        .expect("digest")
}

fn digits(sum: &Checksum) -> String {
    sum.to_string().split_once(':').expect("form").1.to_owned()
}

#[tokio::test]
async fn an_image_comes_with_the_checksum_beside_it_after_a_cut() {
    let (folder, images) = images();
    let bytes = disk(folder.path(), &["-f", "qcow2"]).await;
    let sum = sum_of(&bytes);
    let sums = format!(
        "{} *other.img\n{} *disk.img\n",
        "0".repeat(64),
        digits(&sum)
    );
    let server = Server::start(vec![
        Reply::status("404 Not Found"),
        Reply::whole(sums.as_bytes(), None),
        Reply::cut(&bytes, 1000, Some("\"v1\"")),
        Reply::rest(&bytes, 1000, Some("\"v1\"")),
    ]);
    let image = images
        .pull(&source(&server, None), &|_| {})
        .await
        .expect("pulled");
    assert!(server.requests()[1].starts_with("get /some/sha256sums "));
    assert_eq!(image.size, 64 << 20);
    assert_eq!(image.first_boot, FirstBoot::CloudInit);
    assert_eq!(format!("sha256:{}", image.sha256()), sum.to_string());
    assert_eq!(images.find("cloud").expect("found"), image);
    assert!(images.base(&image).kernel.is_none());
    let left: Vec<_> = fs::read_dir(folder.path().join("images"))
        .expect("list")
        .collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[tokio::test]
async fn a_wrong_checksum_is_refused_and_the_file_removed() {
    let (folder, images) = images();
    let server = Server::start(vec![Reply::whole(b"something else", None)]);
    let error = images
        .pull(&source(&server, Some(sum_of(b"wanted"))), &|_| {})
        .await
        .expect_err("wrong");
    assert_eq!(error.kind(), Kind::Refused);
    assert!(
        error.causes()[0].contains(&sum_of(b"wanted").to_string()),
        "{:?}",
        error.causes()
    );
    for entry in fs::read_dir(folder.path().join("images")).expect("list") {
        let work = entry.expect("entry").path();
        assert_eq!(
            fs::read_dir(&work).expect("list").count(),
            0,
            "{}",
            work.display()
        );
    }
    assert!(images.list().expect("none").is_empty());
}

#[tokio::test]
async fn a_disk_over_another_file_is_refused() {
    let (folder, images) = images();
    fs::write(folder.path().join("secret"), vec![0; 1 << 16]).expect("write");
    let backing = folder.path().join("secret");
    let bytes = disk(
        folder.path(),
        &[
            "-f",
            "qcow2",
            "-F",
            "raw",
            "-b",
            backing.to_str().expect("text"),
        ],
    )
    .await;
    let server = Server::start(vec![Reply::whole(&bytes, None)]);
    let error = images
        .pull(&source(&server, Some(sum_of(&bytes))), &|_| {})
        .await
        .expect_err("backing file");
    assert_eq!(error.kind(), Kind::Refused);
    assert_eq!(error.causes(), ["it has a backing file"]);
    assert!(images.list().expect("none").is_empty());
}

#[tokio::test]
async fn other_formats_are_refused() {
    let (_folder, images) = images();
    let bytes = vec![7; 4096];
    let server = Server::start(vec![Reply::whole(&bytes, None)]);
    let error = images
        .pull(&source(&server, Some(sum_of(&bytes))), &|_| {})
        .await
        .expect_err("raw");
    assert_eq!(error.causes(), ["its format is raw"]);
}

#[tokio::test]
async fn an_image_without_a_checksum_is_refused() {
    let (_folder, images) = images();
    let server = Server::start(vec![
        Reply::status("404 Not Found"),
        Reply::status("404 Not Found"),
    ]);
    let error = images
        .pull(&source(&server, None), &|_| {})
        .await
        .expect_err("no sums");
    assert_eq!(error.kind(), Kind::NotFound);
    let open = PullSource::new("cloud", "http://cloud.example/disk.img", None);
    assert_eq!(
        images
            .pull(&open, &|_| {})
            .await
            .expect_err("plain http")
            .kind(),
        Kind::Refused
    );
}

#[tokio::test]
async fn addresses_with_a_password_are_refused_unread() {
    let (_folder, images) = images();
    let source = PullSource::new("cloud", "https://me:word@cloud.example/disk.img", None);
    let error = images
        .pull(&source, &|_| {})
        .await
        .expect_err("credentials");
    assert!(!error.line().contains("word@"), "{}", error.line());
}

#[test]
fn the_catalogue_names_what_it_knows() {
    assert!(
        catalogue("debian-12")
            .expect("known")
            .url
            .starts_with("https://")
    );
    let error = catalogue("plan9").expect_err("unknown");
    assert_eq!(
        error.deepest_hint(),
        Some("known are debian-12, ubuntu-24.04; any other by its address")
    );
}
