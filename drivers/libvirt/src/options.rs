//! What a user can choose, and what it is resolved to.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::{ArgMatches, Args, ValueEnum};
use forge_driver::options::{self, Origin, Origins};
use forge_driver::{Error, Kind, Result};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::former::Former;
use crate::network::Choice;
use crate::uri::Uri;
use crate::zones;

/// What a user can choose about machines of this driver. Every field may be absent, so that flags,
/// environment and file can be told from defaults.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[command(next_help_heading = "Driver libvirt")]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Make machines at this libvirt: `qemu:///system`, `qemu:///session` or
    /// `qemu+ssh://[USER@]HOST[:PORT]/system`; several, or `z1=URI` and `z2=URI`, are the zones of a cluster
    /// [default: qemu:///system]
    ///
    /// SSH has to lead there without a question, and the host's key has to be known already. A session daemon
    /// has no rights on networks: it needs `--libvirt-network bridge:NAME`.
    #[arg(
        id = "libvirt_uri",
        long = "libvirt-uri",
        value_name = "[ZONE=]URI",
        value_delimiter = ',',
        env = "FORGE_LIBVIRT_URI",
        hide_env_values = true
    )]
    pub uri: Vec<String>,
    /// Give each machine this much memory, in MiB [default: 1024]
    #[arg(
        id = "libvirt_memory",
        long = "libvirt-memory",
        alias = "kvm-memory",
        value_name = "MIB",
        env = "FORGE_LIBVIRT_MEMORY",
        hide_env_values = true
    )]
    pub memory: Option<u32>,
    /// Give each machine this many processors [default: 1]
    #[arg(
        id = "libvirt_cpus",
        long = "libvirt-cpus",
        alias = "kvm-cpu-count",
        value_name = "N",
        env = "FORGE_LIBVIRT_CPUS",
        hide_env_values = true
    )]
    pub cpus: Option<u16>,
    /// Give each machine a disk of this size, in GiB or with a unit (M, G, T); it takes space only as it fills [default: 20G]
    #[arg(
        id = "libvirt_disk_size",
        long = "libvirt-disk-size",
        value_name = "SIZE",
        env = "FORGE_LIBVIRT_DISK_SIZE",
        hide_env_values = true
    )]
    pub disk_size: Option<String>,
    /// Choose how guests run; `auto` tries KVM with a guest and falls back to emulation [default: auto]
    #[arg(
        id = "libvirt_accel",
        long = "libvirt-accel",
        value_name = "NAME",
        env = "FORGE_LIBVIRT_ACCEL",
        hide_env_values = true
    )]
    pub accel: Option<AccelChoice>,
    /// Keep disks in this storage pool; `default` is made when there is none [default: default]
    #[arg(
        id = "libvirt_pool",
        long = "libvirt-pool",
        value_name = "POOL",
        env = "FORGE_LIBVIRT_POOL",
        hide_env_values = true
    )]
    pub pool: Option<String>,
    /// Put machines on this network: `forge` (one that forge makes, with NAT), `routed` (one that forge makes,
    /// without NAT, for other hosts and several libvirts), the name of a network of that libvirt such as `default`, or `bridge:NAME` [default: forge]
    ///
    /// The hosts of a routed network, and what else is to reach its machines, need a route to the range of each
    /// zone through the host that the zone is on. A named network is started when it is stopped; where libvirt's
    /// DHCP server is on it, each machine gets a lease of its own that never changes. On a bridge a server of
    /// the bridge's network gives out the addresses, and forge learns them from leases, from the guest's agent
    /// (forge's own image has none), or from the table of neighbours of the bridge's host, which knows those that have spoken to it.
    #[arg(
        id = "libvirt_network",
        long = "libvirt-network",
        alias = "kvm-network",
        value_name = "NETWORK",
        env = "FORGE_LIBVIRT_NETWORK",
        hide_env_values = true
    )]
    pub network: Option<String>,
    /// Use this range for the network that forge makes; the second zone of several libvirts takes the range after
    /// it, and so on [default: 10.133.8.0/24]
    #[arg(
        id = "libvirt_network_cidr",
        long = "libvirt-network-cidr",
        value_name = "CIDR",
        env = "FORGE_LIBVIRT_NETWORK_CIDR",
        hide_env_values = true
    )]
    pub network_cidr: Option<Ipv4Net>,
    /// Start machines with their host [default: no]
    #[arg(
        id = "libvirt_autostart",
        long = "libvirt-autostart",
        value_name = "WHETHER",
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        env = "FORGE_LIBVIRT_AUTOSTART",
        hide_env_values = true
    )]
    pub autostart: Option<bool>,
    /// Run this virsh program, a name or a path [default: virsh]
    #[arg(
        id = "libvirt_virsh",
        long = "libvirt-virsh",
        value_name = "PROGRAM",
        env = "FORGE_LIBVIRT_VIRSH",
        hide_env_values = true
    )]
    pub virsh: Option<PathBuf>,
    /// What docker-machine's plugin for KVM had besides.
    #[command(flatten)]
    #[serde(skip)]
    pub former: Former,
}

/// How guests run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum AccelChoice {
    /// KVM when a guest boots under it, else emulation.
    #[default]
    Auto,
    /// KVM.
    Kvm,
    /// QEMU's emulation.
    Qemu,
}

/// What a machine is made with: every default applied. It alone is recorded. It holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The daemon.
    pub uri: Uri,
    /// The daemon of each zone of a cluster, where there are several; a machine has one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<Uri>,
    /// Its network has to lead to those of other daemons.
    #[serde(default)]
    pub joined: bool,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u16,
    /// Virtual size of the disk in bytes.
    pub disk_bytes: u64,
    /// How guests run, as asked for.
    pub accel: AccelChoice,
    /// The storage pool.
    pub pool: String,
    /// The network that machines are on.
    #[serde(default)]
    pub network: Choice,
    /// The range of forge's network.
    pub network_cidr: Ipv4Net,
    /// Machines start with their host.
    pub autostart: bool,
    /// The virsh program.
    pub virsh: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            uri: Uri::default(),
            zones: Vec::new(),
            joined: false,
            memory_mib: 1024,
            cpus: 1,
            disk_bytes: 20 << 30,
            accel: AccelChoice::Auto,
            pool: "default".into(),
            network: Choice::default(),
            network_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 133, 8, 0), 24),
            autostart: false,
            virsh: "virsh".into(),
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
        let origins = [
            ("libvirt-uri", !options.uri.is_empty()),
            ("libvirt-memory", options.memory.is_some()),
            ("libvirt-cpus", options.cpus.is_some()),
            ("libvirt-disk-size", options.disk_size.is_some()),
            ("libvirt-accel", options.accel.is_some()),
            ("libvirt-pool", options.pool.is_some()),
            ("libvirt-network", options.network.is_some()),
            ("libvirt-network-cidr", options.network_cidr.is_some()),
            ("libvirt-autostart", options.autostart.is_some()),
            ("libvirt-virsh", options.virsh.is_some()),
        ]
        .into_iter()
        .map(|(flag, given)| (flag, Origin::of(matches, flag, given)))
        .collect();
        let default = Self::default();
        let former = options.former.disk_bytes()?;
        let uris = zones::uris(&options.uri)?;
        let config = Self {
            uri: uris.first().cloned().unwrap_or(default.uri),
            joined: uris.len() > 1,
            zones: if uris.len() > 1 { uris } else { Vec::new() },
            memory_mib: options.memory.unwrap_or(default.memory_mib),
            cpus: options.cpus.unwrap_or(default.cpus),
            disk_bytes: match &options.disk_size {
                Some(text) => options::size("--libvirt-disk-size", text)?,
                None => former.unwrap_or(default.disk_bytes),
            },
            accel: options.accel.unwrap_or(default.accel),
            pool: options.pool.clone().unwrap_or(default.pool),
            network: match &options.network {
                Some(text) => text.parse()?,
                None => default.network,
            },
            network_cidr: options.network_cidr.unwrap_or(default.network_cidr),
            autostart: options.autostart.unwrap_or(default.autostart),
            virsh: options.virsh.clone().unwrap_or(default.virsh),
        };
        config.sane()?;
        Ok((config, origins))
    }

    fn sane(&self) -> Result<()> {
        let usage = |message: String| Err(Error::new(Kind::Usage, message));
        zones::check(self)?;
        options::hardware("libvirt", self.memory_mib, self.cpus, self.disk_bytes)?;
        if self.pool.is_empty()
            || self.pool.starts_with('-')
            || self.pool.contains(char::is_whitespace)
        {
            return usage(format!("`--libvirt-pool {}` is not a name", self.pool));
        }
        if self.virsh.as_os_str().is_empty() {
            return usage("`--libvirt-virsh` is empty".into());
        }
        options::private_range("--libvirt-network-cidr", self.network_cidr)
    }

    /// The range between machines, where forge chooses their addresses.
    #[must_use]
    pub fn range(&self) -> Option<Ipv4Net> {
        self.network.own().then_some(self.network_cidr)
    }

    /// Machines are on a network of somebody's, and whether other hosts reach them there is for its daemon to say.
    #[must_use]
    pub fn of_a_named_network(&self) -> bool {
        matches!(self.network, Choice::Named(_))
    }

    /// What the machines of each zone are made with: one of them, whatever the zone, where there is one daemon.
    #[must_use]
    pub fn sites(&self) -> Vec<Self> {
        zones::sites(self)
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
        forge_driver::conformance::names_carry_the_prefix(Whole::command(), "libvirt");
    }

    #[test]
    fn the_options_of_docker_machines_plugin_are_taken() {
        let (config, origins) = resolved(&[
            "--kvm-memory",
            "2048",
            "--kvm-cpu-count",
            "2",
            "--kvm-disk-size",
            "30000",
            "--kvm-network",
            "default",
            "--kvm-cache-mode",
            "none",
            "--kvm-io-mode",
            "threads",
        ])
        .expect("fine");
        assert_eq!(config.memory_mib, 2048);
        assert_eq!(config.cpus, 2);
        assert_eq!(config.disk_bytes, 30_000 << 20);
        assert_eq!(config.network, Choice::Named("default".into()));
        assert_eq!(origins["libvirt-memory"], Origin::Flag);
        let error = resolved(&["--kvm-boot2docker-url", "x"]).expect_err("refused");
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.deepest_hint().is_some());
    }

    #[test]
    fn every_option_arrives_with_its_origin() {
        let (config, origins) = resolved(&[
            "--libvirt-uri",
            "qemu:///system",
            "--libvirt-memory",
            "2048",
            "--libvirt-cpus",
            "2",
            "--libvirt-disk-size",
            "40",
            "--libvirt-accel",
            "qemu",
            "--libvirt-pool",
            "fast",
            "--libvirt-network",
            "routed",
            "--libvirt-network-cidr",
            "10.9.0.0/24",
            "--libvirt-autostart",
            "--libvirt-virsh",
            "/opt/virsh",
        ])
        .expect("fine");
        assert_eq!(
            config,
            Config {
                uri: Uri::default(),
                zones: Vec::new(),
                joined: false,
                memory_mib: 2048,
                cpus: 2,
                disk_bytes: 40 << 30,
                accel: AccelChoice::Qemu,
                pool: "fast".into(),
                network: Choice::Routed,
                network_cidr: "10.9.0.0/24".parse().expect("a range"),
                autostart: true,
                virsh: "/opt/virsh".into(),
            }
        );
        assert!(
            origins.values().all(|origin| *origin == Origin::Flag),
            "{origins:?}"
        );
        let (config, origins) = resolved(&[]).expect("fine");
        assert_eq!(config, Config::default());
        assert!(origins.values().all(|origin| *origin == Origin::Default));
    }

    #[test]
    fn nonsense_is_refused_with_its_name() {
        for words in [
            ["--libvirt-uri", "xen:///"],
            ["--libvirt-uri", ""],
            ["--libvirt-network", "a b"],
            ["--libvirt-memory", "5"],
            ["--libvirt-cpus", "0"],
            ["--libvirt-disk-size", "1M"],
            ["--libvirt-pool", "two words"],
            ["--libvirt-network-cidr", "10.133.8.5/24"],
            ["--libvirt-network-cidr", "8.8.8.0/24"],
        ] {
            let error = resolved(&words).expect_err("nonsense");
            assert_eq!(error.kind(), Kind::Usage, "{words:?}");
            assert!(error.message().contains(words[0]), "{}", error.message());
        }
    }
}
