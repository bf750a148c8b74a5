//! The image that scenarios start from: built once, kept outside the checkout.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::run::run;

/// The folder that outlives the tests, and the lock of what is made in it.
pub(crate) fn locked() -> (PathBuf, File) {
    let cache = std::env::var_os("FORGE_LAB_CACHE")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("XDG_CACHE_HOME")?).join("forge-lab")))
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/forge-lab")))
        .expect("FORGE_LAB_CACHE or HOME is set");
    fs::create_dir_all(&cache).expect("the folder of the cache");
    let lock = File::create(cache.join("lock")).expect("the lock of the cache");
    lock.lock().expect("the lock of the cache");
    (cache, lock)
}

/// A folder `images` with the default image in it. It is built when what it is made of has changed
/// since, or when there is none: a store of its own, so a build that was cut off is gone on with.
pub(crate) fn images(program: &Path) -> PathBuf {
    let (cache, _lock) = locked();
    let home = cache.join(format!("image-{:016x}", ingredients()));
    if !home.join("complete").exists() {
        // What older sources made serves nobody any more.
        for entry in fs::read_dir(&cache).expect("the cache").flatten() {
            if entry.file_name().to_string_lossy().starts_with("image-") && entry.path() != home {
                fs::remove_dir_all(entry.path()).expect("an old image goes");
            }
        }
        eprintln!("building the image of the lab (about a minute, once)");
        let built = run(
            Command::new(program)
                .args(["image", "build"])
                .env("FORGE_HOME", &home),
            b"",
            Duration::from_secs(900),
        )
        .ok();
        eprintln!("{}", built.text());
        fs::write(home.join("complete"), "").expect("a mark");
    }
    home.join("images")
}

/// Puts the image into a store: by links where that can be, its times kept.
pub(crate) fn stock(program: &Path, home: &Path) {
    let from = images(program);
    for how in ["-al", "-a"] {
        let copied = Command::new("cp")
            .arg(how)
            .arg(&from)
            .arg(home)
            .output()
            .expect("cp");
        if copied.status.success() {
            return;
        }
        fs::remove_dir_all(home.join("images")).ok();
    }
    panic!("the image cannot be copied from {}", from.display());
}

/// Puts an image into a store that holds nothing.
pub(crate) fn blank(home: &Path) {
    let id = "forge-debian-12-empty";
    let folder = home.join("images").join(id);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .expect("mkdir");
    let disk = folder.join("disk.qcow2");
    let size = 64_u64 << 20;
    let mut make = Command::new("qemu-img");
    make.args(["create", "-q", "-f", "qcow2"])
        .arg(&disk)
        .arg(size.to_string());
    run(&mut make, b"", Duration::from_secs(20)).ok();
    let sum = run(
        Command::new("sha256sum").arg(&disk),
        b"",
        Duration::from_secs(20),
    )
    .ok()
    .text();
    let meta = fs::metadata(&disk).expect("the disk");
    let record = serde_json::json!({
        "format": 1,
        "id": id,
        "name": "forge-debian-12",
        "kind": "built",
        "first_boot": "forge-seed",
        "size": size,
        "cmdline": null,
        "created": "2026-01-01T00:00:00Z",
        "provenance": [],
        "files": [{
            "name": "disk.qcow2",
            "length": meta.len(),
            "changed": i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
            "sha256": sum.split(' ').next(),
        }],
    });
    fs::write(folder.join("image.json"), record.to_string()).expect("the record of the image");
}

/// A number for everything that goes into an image.
fn ingredients() -> u64 {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut paths: Vec<PathBuf> = ["image", "docker", "kernel"]
        .iter()
        .flat_map(|area| fs::read_dir(top.join("templates").join(area)).expect("templates"))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.extend([
        top.join("src/image/build.rs"),
        top.join("src/image/record.rs"),
    ]);
    paths.sort();
    let mut hasher = DefaultHasher::new();
    for path in paths {
        path.file_name().hash(&mut hasher);
        fs::read(&path)
            .expect("a part of the image")
            .hash(&mut hasher);
    }
    hasher.finish()
}
