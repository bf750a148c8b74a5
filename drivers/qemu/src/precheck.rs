//! What can be known before anything is touched.

use std::time::Duration;

use forge_driver::{Error, Kind, Result, process};
use tokio::process::Command;

use crate::disk;
use crate::options::Config;

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

/// What a quick look at this host tells about the driver: the programs are there, or which is not.
///
/// # Errors
/// What is missing, in a few words.
pub fn ready() -> std::result::Result<&'static str, String> {
    programs(&Config::default())
        .map(|()| "QEMU is installed")
        .map_err(|error| error.message().to_owned())
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
}
