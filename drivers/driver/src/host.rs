//! What this host has, and whether it is enough for machines that are to run on it.

use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::ports;
use crate::spec::{BaseImage, Forward, Spec};

/// What one machine writes to its disk before anybody uses it, roughly: first boot and engine. In bytes.
pub const DISK_NEED: u64 = 512 << 20;

/// The host's memory in MiB, in all and free for new programs; `None` where it cannot be told.
pub fn memory() -> Option<(u64, u64)> {
    meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// Reads `MemTotal` and `MemAvailable` (proc_meminfo(5)), which are in KiB.
fn meminfo(text: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| rest.trim_start_matches(':').split_whitespace().next())
            .and_then(|number| number.parse::<u64>().ok())
            .map(|kib| kib / 1024)
    };
    Some((field("MemTotal")?, field("MemAvailable")?))
}

/// The bytes that this user may still write below `folder`.
///
/// # Errors
/// When the file system cannot be asked.
pub fn free_space(folder: &Path) -> std::io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// This host's memory in MiB in all; `None` where it cannot be told.
pub fn total_memory() -> Option<u64> {
    memory().map(|(total, _)| total)
}

/// The machines fit into the memory of the `host`, each with so many MiB of the `total`. What is free now says little: a
/// host's caches give way. `prefix` is that of the driver's options.
///
/// # Errors
/// [`Kind::Precheck`] with both numbers.
pub fn memory_for(
    prefix: &str,
    each_mib: u32,
    machines: usize,
    host: &str,
    total: Option<u64>,
) -> Result<()> {
    let Some(total) = total else {
        return Ok(());
    };
    let wanted = u64::from(each_mib).saturating_mul(machines as u64);
    if wanted <= total {
        return Ok(());
    }
    Err(Error::new(
        Kind::Precheck,
        format!("{machines} machines of {each_mib} MiB need {wanted} MiB of memory, and {host} has {total} MiB in all"),
    )
    .hint(format!("give them less with `--{prefix}-memory`, or make fewer")))
}

/// The disk that `folder`, which may not exist yet, is to lie on has room for the beginnings of the machines.
///
/// # Errors
/// [`Kind::Precheck`] with both numbers.
pub fn space_for(folder: &Path, machines: usize) -> Result<()> {
    let folder = folder
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let Ok(free) = free_space(folder) else {
        return Ok(());
    };
    room(folder, machines, free)
}

fn room(folder: &Path, machines: usize, free: u64) -> Result<()> {
    let need = DISK_NEED.saturating_mul(machines as u64);
    if free >= need {
        return Ok(());
    }
    Err(Error::new(
        Kind::Precheck,
        format!(
            "the disk with `{}` is too full: {machines} machines need {} MiB to begin with, and {} MiB are free",
            folder.display(),
            need >> 20,
            free >> 20
        ),
    )
    .hint("free some space, or set FORGE_HOME to a folder on another disk"))
}

/// The base image is there.
///
/// # Errors
/// [`Kind::Precheck`] when not.
pub fn image_is_there(image: &BaseImage) -> Result<()> {
    if image.disk.is_file() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Precheck,
        format!("the base image `{}` is missing", image.disk.display()),
    )
    .hint("run `forge image ls` to see what there is, `forge image build` to make one"))
}

/// The base image is there, and a disk of `bytes` has room for it; `flag` is the option that sizes disks.
///
/// # Errors
/// [`Kind::Precheck`] when not.
pub fn holds_image(flag: &str, bytes: u64, image: &BaseImage) -> Result<()> {
    image_is_there(image)?;
    if bytes >= image.size {
        return Ok(());
    }
    Err(Error::new(
        Kind::Precheck,
        format!(
            "a disk of {} MiB is smaller than the base image, which needs {} MiB",
            bytes >> 20,
            image.size >> 20
        ),
    )
    .hint(format!(
        "give at least `{flag} {}G`",
        image.size.div_ceil(1 << 30)
    )))
}

/// Every port of the host that these machines are reached at is free, and none is wished for twice.
///
/// # Errors
/// [`Kind::Conflict`], naming the owner of a port that is taken.
pub fn forwards_of(specs: &[Spec]) -> Result<()> {
    let all: Vec<Forward> = specs
        .iter()
        .flat_map(|spec| spec.forwards.iter().copied())
        .collect();
    let mut seen = std::collections::HashSet::new();
    for forward in &all {
        if !seen.insert(forward.host) {
            return Err(Error::new(
                Kind::Conflict,
                format!("`{}` is wished for twice", forward.host),
            ));
        }
    }
    ports::free(&all)
}

#[cfg(test)]
mod tests {
    use crate::claim::Claim;
    use crate::spec::{Mac, Seed};

    use super::*;

    #[test]
    fn memory_is_read_in_mib() {
        let text = "MemTotal:       24610000 kB\nMemFree:  1 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(meminfo(text), Some((24033, 2)));
        assert_eq!(meminfo("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn more_memory_than_there_is_is_refused() {
        memory_for("qemu", 4096, 2, "this host", Some(8192)).expect("fits");
        let error = memory_for("qemu", 4096, 3, "this host", Some(8192)).expect_err("too much");
        assert!(error.message().contains("12288 MiB"), "{}", error.message());
        assert!(
            error
                .deepest_hint()
                .is_some_and(|hint| hint.contains("`--qemu-memory`"))
        );
        memory_for("qemu", 4096, 3, "this host", None).expect("nobody knows");
    }

    #[test]
    fn a_full_disk_is_seen_early() {
        room(Path::new("/d"), 2, 1 << 30).expect("fits");
        let error = room(Path::new("/d"), 3, 1 << 30).expect_err("full");
        assert_eq!(error.kind(), Kind::Precheck);
        assert!(
            error.message().contains("1536 MiB") && error.message().contains("1024 MiB"),
            "{}",
            error.message()
        );
    }

    #[test]
    fn a_port_wished_for_twice_is_refused() {
        let claim = Claim::random();
        let spec = Spec {
            claim,
            name: "n1".into(),
            image: BaseImage {
                disk: "/nonexistent".into(),
                kernel: None,
                size: 0,
            },
            seed: Seed {
                user_data: String::new(),
                meta_data: String::new(),
                network_config: String::new(),
            },
            nic: None,
            outer_mac: Mac::of(claim, 0),
            forwards: vec![Forward {
                guest: 22,
                host: "127.99.0.1:2222".parse().expect("an address"),
            }],
        };
        let error = forwards_of(&[spec.clone(), spec]).expect_err("twice");
        assert_eq!(error.kind(), Kind::Conflict);
    }

    #[test]
    fn a_disk_smaller_than_its_image_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let image = BaseImage {
            disk: file.path().to_owned(),
            kernel: None,
            size: 8 << 30,
        };
        holds_image("--qemu-disk-size", 8 << 30, &image).expect("fits");
        let error = holds_image("--qemu-disk-size", 4 << 30, &image).expect_err("too small");
        assert_eq!(error.kind(), Kind::Precheck);
        assert_eq!(
            error.deepest_hint(),
            Some("give at least `--qemu-disk-size 8G`")
        );
        let none = BaseImage {
            disk: "/nonexistent".into(),
            ..image
        };
        assert_eq!(
            holds_image("--qemu-disk-size", 8 << 30, &none)
                .expect_err("missing")
                .kind(),
            Kind::Precheck
        );
    }
}
