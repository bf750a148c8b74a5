//! What can be known before anything is touched.

use std::path::Path;
use std::time::Duration;

use forge_driver::{DriverHome, Error, Forward, Kind, Result, Spec, process};
use tokio::process::Command;

use crate::disk;
use crate::host;
use crate::options::Config;
use crate::ports;

/// What one machine writes to its disk before anybody uses it, roughly: first boot and engine.
const DISK_NEED: u64 = 512 << 20;

/// A program says what it knows within this time.
const ANSWER: Duration = Duration::from_secs(20);

/// The oldest QEMU with datagram network backends (<https://wiki.qemu.org/ChangeLog/7.2>).
pub(crate) const OLDEST: (u32, u32) = (7, 2);

/// Both programs are there.
pub(crate) fn programs(config: &Config) -> Result<()> {
    for (program, what) in [
        (config.binary.as_path(), "runs virtual machines"),
        (disk::tool(&config.binary).as_path(), "makes their disks"),
    ] {
        if process::which(program).is_none() {
            return Err(Error::new(
                Kind::Precheck,
                format!("`{}`, which {what}, is not installed", program.display()),
            )
            .hint("run `forge doctor --fix` to install what is missing"));
        }
    }
    Ok(())
}

/// The version in a program's first line: `QEMU emulator version 10.0.2 (…)`.
pub(crate) fn parse_version(line: &str) -> Option<(u32, u32)> {
    let mut numbers = line
        .split("version ")
        .nth(1)?
        .split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// This QEMU knows what is asked of it.
pub(crate) fn new_enough(line: &str) -> Result<()> {
    match parse_version(line) {
        Some(version) if version < OLDEST => Err(Error::new(
            Kind::Precheck,
            format!(
                "QEMU {}.{} is too old: {}.{} is the oldest that will do",
                version.0, version.1, OLDEST.0, OLDEST.1
            ),
        )
        .hint("install a newer one and name it with `--qemu-binary`")),
        _ => Ok(()),
    }
}

/// This QEMU knows the machine type, where another one than usual is wished.
pub(crate) async fn machine_type(config: &Config) -> Result<()> {
    if config.machine == Config::default().machine {
        return Ok(());
    }
    let mut command = Command::new(&config.binary);
    command.args(["-machine", "help"]);
    let known = process::run(command, None, ANSWER).await?.text();
    let wished = config.machine.split(',').next().unwrap_or_default();
    if known
        .lines()
        .any(|line| line.split_whitespace().next() == Some(wished))
    {
        return Ok(());
    }
    Err(Error::new(
        Kind::Precheck,
        format!(
            "`{}` knows no machine type `{wished}`",
            config.binary.display()
        ),
    )
    .hint(format!(
        "`{} -machine help` lists those that it knows",
        config.binary.display()
    )))
}

/// The machines fit into the host's memory.
pub(crate) fn memory(config: &Config, machines: u64, host: Option<(u64, u64)>) -> Result<()> {
    let Some((total, _)) = host else {
        return Ok(());
    };
    let wanted = u64::from(config.memory_mib).saturating_mul(machines);
    if wanted <= total {
        return Ok(());
    }
    Err(Error::new(
        Kind::Precheck,
        format!("{machines} machines of {} MiB need {wanted} MiB of memory, and this host has {total} MiB in all", config.memory_mib),
    )
    .hint("give them less with `--qemu-memory`, or make fewer"))
}

/// The disk that the machines lie on has room for their beginnings.
pub(crate) fn space(home: &DriverHome, machines: u64) -> Result<()> {
    let folder = existing(&home.dir);
    let Ok(free) = host::free_space(folder) else {
        return Ok(());
    };
    room(folder, machines, free)
}

fn room(folder: &Path, machines: u64, free: u64) -> Result<()> {
    let need = DISK_NEED.saturating_mul(machines);
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

fn existing(folder: &Path) -> &Path {
    folder
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"))
}

/// Every port is free, and none is wished for twice.
pub(crate) fn forwards(specs: &[Spec]) -> Result<()> {
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
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        assert_eq!(
            parse_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"),
            Some((10, 0))
        );
        assert_eq!(parse_version("nonsense"), None);
        assert_eq!(
            new_enough("QEMU emulator version 6.2.0")
                .expect_err("old")
                .kind(),
            Kind::Precheck
        );
        new_enough("QEMU emulator version 7.2.19").expect("new enough");
        new_enough("a build of my own").expect("taken at its word");
    }

    #[test]
    fn a_missing_program_is_a_failed_check_with_a_way_out() {
        let config = Config {
            binary: "no-such-qemu".into(),
            ..Config::default()
        };
        let error = programs(&config).expect_err("missing");
        assert_eq!(error.kind(), Kind::Precheck);
        assert!(error.message().contains("no-such-qemu"));
        assert!(
            error
                .deepest_hint()
                .is_some_and(|hint| hint.contains("forge doctor --fix"))
        );
    }

    #[test]
    fn more_memory_than_there_is_is_refused() {
        let config = Config {
            memory_mib: 4096,
            ..Config::default()
        };
        memory(&config, 2, Some((8192, 100))).expect("fits");
        let error = memory(&config, 3, Some((8192, 100))).expect_err("too much");
        assert!(error.message().contains("12288 MiB"), "{}", error.message());
        memory(&config, 3, None).expect("nobody knows");
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
        let spec = crate::vm::tests::spec();
        let error = forwards(&[spec.clone(), spec]).expect_err("twice");
        assert_eq!(error.kind(), Kind::Conflict);
    }
}
