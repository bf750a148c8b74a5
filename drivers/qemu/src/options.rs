//! What a user can choose, and what it is resolved to.

use std::path::PathBuf;

use clap::{ArgMatches, Args, ValueEnum};
use forge_driver::options::{self, Origin, Origins};
use forge_driver::{Error, Kind, Result};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::host;
use crate::network::NAT;

const GIB: u64 = 1 << 30;

/// What a user can choose about machines of this driver. Every field may be absent, so that flags,
/// environment and file can be told from defaults.
///
/// Ids, flags and variables are written out with the driver's prefix: clap cannot prefix a flattened
/// struct, and equal names of two drivers panic at start.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[command(next_help_heading = "Driver qemu")]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Give each machine this much memory, in MiB [default: 1024]
    #[arg(
        id = "qemu_memory",
        long = "qemu-memory",
        value_name = "MIB",
        env = "FORGE_QEMU_MEMORY",
        hide_env_values = true
    )]
    pub memory: Option<u32>,
    /// Give each machine this many processors [default: 1]
    #[arg(
        id = "qemu_cpus",
        long = "qemu-cpus",
        value_name = "N",
        env = "FORGE_QEMU_CPUS",
        hide_env_values = true
    )]
    pub cpus: Option<u16>,
    /// Give each machine a disk of this size, in GiB or with a unit (M, G, T); it takes space on the host only as it fills [default: 20G]
    #[arg(
        id = "qemu_disk_size",
        long = "qemu-disk-size",
        value_name = "SIZE",
        env = "FORGE_QEMU_DISK_SIZE",
        hide_env_values = true
    )]
    pub disk_size: Option<String>,
    /// Choose the accelerator; `auto` tries the host's own and falls back to `tcg`, which works everywhere and is slow [default: auto]
    #[arg(
        id = "qemu_accel",
        long = "qemu-accel",
        value_name = "NAME",
        env = "FORGE_QEMU_ACCEL",
        hide_env_values = true
    )]
    pub accel: Option<AccelChoice>,
    /// Choose QEMU's machine type; the exact version is recorded when the machine is made [default: q35; virt on aarch64]
    #[arg(
        id = "qemu_machine",
        long = "qemu-machine",
        value_name = "TYPE",
        env = "FORGE_QEMU_MACHINE",
        hide_env_values = true
    )]
    pub machine: Option<String>,
    /// Choose QEMU's CPU model [default: max under tcg, else host]
    #[arg(
        id = "qemu_cpu_model",
        long = "qemu-cpu-model",
        value_name = "MODEL",
        env = "FORGE_QEMU_CPU_MODEL",
        hide_env_values = true
    )]
    pub cpu_model: Option<String>,
    /// Choose how the host caches disk writes; `unsafe` is for machines that may be lost [default: writeback]
    #[arg(
        id = "qemu_disk_cache",
        long = "qemu-disk-cache",
        value_name = "MODE",
        env = "FORGE_QEMU_DISK_CACHE",
        hide_env_values = true
    )]
    pub disk_cache: Option<DiskCache>,
    /// Use this range for the network between the machines [default: 10.133.7.0/24]
    #[arg(
        id = "qemu_network_cidr",
        long = "qemu-network-cidr",
        value_name = "CIDR",
        env = "FORGE_QEMU_NETWORK_CIDR",
        hide_env_values = true
    )]
    pub network_cidr: Option<Ipv4Net>,
    /// Run this QEMU program, a name or a path [default: qemu-system-x86_64; qemu-system-aarch64 there]
    #[arg(
        id = "qemu_binary",
        long = "qemu-binary",
        value_name = "PROGRAM",
        env = "FORGE_QEMU_BINARY",
        hide_env_values = true
    )]
    pub binary: Option<PathBuf>,
}

/// The accelerator that a user may ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum AccelChoice {
    /// The host's own when it boots a guest here, else `tcg`.
    #[default]
    Auto,
    /// Linux's KVM.
    Kvm,
    /// macOS's Hypervisor framework.
    Hvf,
    /// Emulation.
    Tcg,
}

/// How the host caches a machine's disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DiskCache {
    /// Through the host's page cache; a guest's flush reaches the medium.
    #[default]
    Writeback,
    /// Past the host's page cache; a guest's flush reaches the medium.
    None,
    /// Flushes are ignored: a crash of the host may ruin the disk.
    Unsafe,
}

/// What a machine is made with: every default applied. It alone is recorded. It holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u16,
    /// Virtual size of the disk in bytes.
    pub disk_bytes: u64,
    /// The accelerator that was asked for.
    pub accel: AccelChoice,
    /// The machine type, possibly an alias.
    pub machine: String,
    /// The CPU model; `None` leaves it to the accelerator.
    pub cpu_model: Option<String>,
    /// Cache mode of the disk.
    pub disk_cache: DiskCache,
    /// The range of the network between the machines.
    pub network_cidr: Ipv4Net,
    /// The QEMU program.
    pub binary: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            memory_mib: 1024,
            cpus: 1,
            disk_bytes: 20 * GIB,
            accel: AccelChoice::Auto,
            machine: host::ARCH.machine().into(),
            cpu_model: None,
            disk_cache: DiskCache::Writeback,
            network_cidr: Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 133, 7, 0), 24),
            binary: host::ARCH.binary().into(),
        }
    }
}

impl Config {
    /// Applies the defaults, and says of each value where it came from. `matches` are those that the
    /// options were parsed from; without them every value present counts as a flag.
    ///
    /// # Errors
    /// [`Kind::Usage`] for values that make no sense, whatever the host.
    pub fn resolve(options: &Options, matches: Option<&ArgMatches>) -> Result<(Self, Origins)> {
        let mut origins = Origins::new();
        let mut note = |flag: &'static str, given: bool| {
            origins.insert(flag, Origin::of(matches, flag, given));
        };
        note("qemu-memory", options.memory.is_some());
        note("qemu-cpus", options.cpus.is_some());
        note("qemu-disk-size", options.disk_size.is_some());
        note("qemu-accel", options.accel.is_some());
        note("qemu-machine", options.machine.is_some());
        note("qemu-cpu-model", options.cpu_model.is_some());
        note("qemu-disk-cache", options.disk_cache.is_some());
        note("qemu-network-cidr", options.network_cidr.is_some());
        note("qemu-binary", options.binary.is_some());

        let default = Self::default();
        let config = Self {
            memory_mib: options.memory.unwrap_or(default.memory_mib),
            cpus: options.cpus.unwrap_or(default.cpus),
            disk_bytes: match &options.disk_size {
                Some(text) => options::size("--qemu-disk-size", text)?,
                None => default.disk_bytes,
            },
            accel: options.accel.unwrap_or(default.accel),
            machine: options.machine.clone().unwrap_or(default.machine),
            cpu_model: options.cpu_model.clone(),
            disk_cache: options.disk_cache.unwrap_or(default.disk_cache),
            network_cidr: options.network_cidr.unwrap_or(default.network_cidr),
            binary: options.binary.clone().unwrap_or(default.binary),
        };
        config.sane()?;
        Ok((config, origins))
    }

    fn sane(&self) -> Result<()> {
        let usage = |message: String| Err(Error::new(Kind::Usage, message));
        options::hardware("qemu", self.memory_mib, self.cpus, self.disk_bytes)?;
        for (flag, text) in [
            ("--qemu-machine", Some(self.machine.as_str())),
            ("--qemu-cpu-model", self.cpu_model.as_deref()),
        ] {
            let Some(text) = text else { continue };
            if text.is_empty()
                || text.starts_with(['-', '?'])
                || text.chars().any(char::is_whitespace)
                || text.starts_with("help")
            {
                return usage(format!("`{flag} {text}` is not a name"));
            }
        }
        if self.binary.as_os_str().is_empty() {
            return usage("`--qemu-binary` is empty".into());
        }
        let net = self.network_cidr;
        options::private_range("--qemu-network-cidr", net)?;
        if net.contains(&NAT) || NAT.contains(&net) {
            return usage(format!(
                "`--qemu-network-cidr {net}` overlaps {NAT}, through which every machine of this driver reaches the outside"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches, Parser};

    use super::*;

    #[derive(Parser)]
    struct Whole {
        #[command(flatten)]
        options: Options,
    }

    fn resolved(words: &[&str]) -> Result<(Config, Origins)> {
        let mut all = vec!["forge"];
        all.extend(words);
        let matches = Whole::command().try_get_matches_from(all).expect("parses");
        let whole = Whole::from_arg_matches(&matches).expect("fits");
        Config::resolve(&whole.options, Some(&matches))
    }

    #[test]
    fn the_command_holds_together_and_every_name_carries_the_prefix() {
        forge_driver::conformance::names_carry_the_prefix(Whole::command(), "qemu");
    }

    #[test]
    fn defaults_are_applied_and_told_from_flags() {
        let (config, origins) = resolved(&["--qemu-memory", "2048"]).expect("fine");
        assert_eq!(
            config,
            Config {
                memory_mib: 2048,
                ..Config::default()
            }
        );
        assert_eq!(origins["qemu-memory"], Origin::Flag);
        assert_eq!(origins["qemu-cpus"], Origin::Default);
        assert_eq!(
            origins.len(),
            Whole::command()
                .get_arguments()
                .filter(|a| a.get_id() != "help")
                .count()
        );
    }

    #[test]
    fn the_help_names_the_defaults_that_are_applied() {
        let help = Whole::command().render_long_help().to_string();
        for word in [
            "[default: 1024]",
            "[default: 1]",
            "[default: 20G]",
            "[default: auto]",
            "[default: writeback]",
            "[default: 10.133.7.0/24]",
        ] {
            assert!(help.contains(word), "{word} in {help}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_its_name() {
        for words in [
            ["--qemu-memory", "5"],
            ["--qemu-cpus", "0"],
            ["--qemu-disk-size", "1M"],
            ["--qemu-network-cidr", "10.133.7.5/24"],
            ["--qemu-network-cidr", "10.0.2.0/25"],
            ["--qemu-network-cidr", "10.0.0.0/8"],
            ["--qemu-network-cidr", "8.8.8.0/24"],
            ["--qemu-network-cidr", "10.1.1.0/30"],
            ["--qemu-machine", "help"],
            ["--qemu-cpu-model", "a b"],
        ] {
            let error = resolved(&words).expect_err(words[1]);
            assert_eq!(error.kind(), Kind::Usage);
            assert!(error.message().contains(words[0]), "{}", error.message());
        }
    }
}
