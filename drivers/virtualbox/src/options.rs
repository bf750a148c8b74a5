//! What a user can choose, and what it is resolved to.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::builder::ArgPredicate;
use clap::{ArgMatches, Args, Command, ValueEnum};
use forge_driver::options::{self, Origin, Origins};
use forge_driver::{Error, Kind, Result};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::former::Former;
use crate::lan::{self, Lan};

/// What a user can choose about machines of this driver. Every field may be absent, so that flags,
/// environment and file can be told from defaults.
///
/// Names and units are those that docker-machine gave the driver of the same name, where it had them.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[command(next_help_heading = "Driver virtualbox")]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Give each machine this much memory, in MiB [default: 1024]
    #[arg(
        id = "virtualbox_memory",
        long = "virtualbox-memory",
        value_name = "MIB",
        env = "FORGE_VIRTUALBOX_MEMORY",
        hide_env_values = true
    )]
    pub memory: Option<u32>,
    /// Give each machine this many processors; -1 for as many as this host has [default: 1]
    #[arg(
        id = "virtualbox_cpu_count",
        long = "virtualbox-cpu-count",
        visible_alias = "virtualbox-cpus",
        value_name = "N",
        allow_negative_numbers = true,
        env = "FORGE_VIRTUALBOX_CPU_COUNT",
        hide_env_values = true
    )]
    pub cpu_count: Option<i16>,
    /// Give each machine a disk of this size, in MiB or with a unit (G, T), at least that of the base image; it takes space only as it fills [default: 20G]
    #[arg(
        id = "virtualbox_disk_size",
        long = "virtualbox-disk-size",
        value_name = "SIZE",
        env = "FORGE_VIRTUALBOX_DISK_SIZE",
        hide_env_values = true
    )]
    pub disk_size: Option<String>,
    /// Put the second interface on this internal network [default: one of the store's own]
    #[arg(
        id = "virtualbox_intnet",
        long = "virtualbox-intnet",
        value_name = "NAME",
        env = "FORGE_VIRTUALBOX_INTNET",
        hide_env_values = true
    )]
    pub intnet: Option<String>,
    /// Use this range on the internal network; VirtualBox's DHCP server gives each machine a fixed address in it [default: 10.133.7.0/24]
    #[arg(
        id = "virtualbox_intnet_cidr",
        long = "virtualbox-intnet-cidr",
        value_name = "CIDR",
        env = "FORGE_VIRTUALBOX_INTNET_CIDR",
        hide_env_values = true
    )]
    pub intnet_cidr: Option<Ipv4Net>,
    /// Put the second interface on a host-only network instead, where this host has this address, and reach machines there
    #[arg(
        id = "virtualbox_hostonly_cidr",
        long = "virtualbox-hostonly-cidr",
        value_name = "ADDRESS/PREFIX",
        env = "FORGE_VIRTUALBOX_HOSTONLY_CIDR",
        hide_env_values = true
    )]
    pub hostonly_cidr: Option<Ipv4Net>,
    /// Run no DHCP server on the host-only network: machines are told their addresses by the seed [default: no]
    #[arg(
        id = "virtualbox_hostonly_no_dhcp",
        long = "virtualbox-hostonly-no-dhcp",
        value_name = "WHETHER",
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        env = "FORGE_VIRTUALBOX_HOSTONLY_NO_DHCP",
        hide_env_values = true
    )]
    pub hostonly_no_dhcp: Option<bool>,
    /// Choose the network card of the second interface; images for clouds, and forge's own, drive virtio alone [default: virtio]
    #[arg(
        id = "virtualbox_hostonly_nictype",
        long = "virtualbox-hostonly-nictype",
        visible_alias = "virtualbox-intnet-nictype",
        value_name = "TYPE",
        env = "FORGE_VIRTUALBOX_HOSTONLY_NICTYPE",
        hide_env_values = true
    )]
    pub hostonly_nictype: Option<NicType>,
    /// Choose what the second interface hears of others' traffic [default: deny]
    #[arg(
        id = "virtualbox_hostonly_nicpromisc",
        long = "virtualbox-hostonly-nicpromisc",
        value_name = "POLICY",
        env = "FORGE_VIRTUALBOX_HOSTONLY_NICPROMISC",
        hide_env_values = true
    )]
    pub hostonly_nicpromisc: Option<Promiscuous>,
    /// Choose the network card of the first interface, which leads out through NAT; as for the second [default: virtio]
    #[arg(
        id = "virtualbox_nat_nictype",
        long = "virtualbox-nat-nictype",
        value_name = "TYPE",
        env = "FORGE_VIRTUALBOX_NAT_NICTYPE",
        hide_env_values = true
    )]
    pub nat_nictype: Option<NicType>,
    /// Let this host's resolver answer the machines' questions for names [default: no]
    #[arg(
        id = "virtualbox_host_dns_resolver",
        long = "virtualbox-host-dns-resolver",
        value_name = "WHETHER",
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        env = "FORGE_VIRTUALBOX_HOST_DNS_RESOLVER",
        hide_env_values = true
    )]
    pub host_dns_resolver: Option<bool>,
    /// Hand machines the name servers of this host instead of standing between them [default: no]
    #[arg(
        id = "virtualbox_no_dns_proxy",
        long = "virtualbox-no-dns-proxy",
        value_name = "WHETHER",
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        env = "FORGE_VIRTUALBOX_NO_DNS_PROXY",
        hide_env_values = true
    )]
    pub no_dns_proxy: Option<bool>,
    /// Choose the firmware that machines start by [default: bios]
    #[arg(
        id = "virtualbox_firmware",
        long = "virtualbox-firmware",
        value_name = "NAME",
        env = "FORGE_VIRTUALBOX_FIRMWARE",
        hide_env_values = true
    )]
    pub firmware: Option<Firmware>,
    /// Choose how machines show themselves [default: headless]
    #[arg(
        id = "virtualbox_ui_type",
        long = "virtualbox-ui-type",
        value_name = "TYPE",
        env = "FORGE_VIRTUALBOX_UI_TYPE",
        hide_env_values = true
    )]
    pub ui_type: Option<UiType>,
    /// Run this VBoxManage program, a name or a path [default: VBoxManage]
    #[arg(
        id = "virtualbox_vboxmanage",
        long = "virtualbox-vboxmanage",
        value_name = "PROGRAM",
        env = "FORGE_VIRTUALBOX_VBOXMANAGE",
        hide_env_values = true
    )]
    pub vboxmanage: Option<PathBuf>,
    /// What docker-machine had besides.
    #[command(flatten)]
    #[serde(skip)]
    pub former: Former,
}

/// A network card that VirtualBox has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum NicType {
    /// The paravirtual one, which Linux drives with the least work.
    #[default]
    #[serde(rename = "virtio")]
    #[value(name = "virtio")]
    Virtio,
    /// Intel PRO/1000 MT Desktop.
    #[serde(rename = "82540EM")]
    #[value(name = "82540EM")]
    I82540em,
    /// Intel PRO/1000 T Server.
    #[serde(rename = "82543GC")]
    #[value(name = "82543GC")]
    I82543gc,
    /// Intel PRO/1000 MT Server.
    #[serde(rename = "82545EM")]
    #[value(name = "82545EM")]
    I82545em,
    /// AMD `PCnet` PCI II.
    #[serde(rename = "Am79C970A")]
    #[value(name = "Am79C970A")]
    Am79c970a,
    /// AMD `PCnet` FAST III.
    #[serde(rename = "Am79C973")]
    #[value(name = "Am79C973")]
    Am79c973,
}

/// What a network card hears of others' traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Promiscuous {
    /// Nothing.
    #[default]
    Deny,
    /// That between machines.
    AllowVms,
    /// Everything.
    AllowAll,
}

/// The firmware of a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// VirtualBox's BIOS.
    #[default]
    Bios,
    /// Its UEFI.
    Efi,
}

/// How a machine shows itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum UiType {
    /// Not at all.
    #[default]
    Headless,
    /// In a window.
    Gui,
    /// In a window that may be closed while the machine runs on.
    Separate,
    /// In a bare window.
    Sdl,
}

/// What VBoxManage calls a choice.
pub(crate) fn word(value: impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map(|possible| possible.get_name().to_owned())
        .unwrap_or_default()
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
    /// What the second interface is on.
    pub lan: Lan,
    /// The card of the second interface.
    pub lan_nic: NicType,
    /// What it hears of others' traffic.
    pub promiscuous: Promiscuous,
    /// The card of the first interface.
    pub nat_nic: NicType,
    /// The host's resolver answers for machines.
    pub host_resolver: bool,
    /// VirtualBox stands between machines and the host's name servers.
    pub dns_proxy: bool,
    /// The firmware.
    pub firmware: Firmware,
    /// How machines show themselves.
    pub ui: UiType,
    /// The VBoxManage program.
    pub vboxmanage: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            memory_mib: 1024,
            cpus: 1,
            disk_bytes: 20 << 30,
            lan: Lan::Internal {
                name: None,
                cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 133, 7, 0), 24),
            },
            lan_nic: NicType::default(),
            promiscuous: Promiscuous::default(),
            nat_nic: NicType::default(),
            host_resolver: false,
            dns_proxy: true,
            firmware: Firmware::default(),
            ui: UiType::default(),
            vboxmanage: "VBoxManage".into(),
        }
    }
}

/// The options' defaults for a command that goes by the name docker-machine: the second interface is on a host-only
/// network, so that a machine's address is one that this host reaches. Its range is one of those in which VirtualBox
/// makes such networks today, and not the one of VirtualBox's own first network, which others use.
#[must_use]
pub fn as_docker_machine(command: Command) -> Command {
    command.mut_arg("virtualbox_hostonly_cidr", |argument| {
        argument.default_value("192.168.60.1/24").default_value_ifs(
            ["virtualbox_intnet", "virtualbox_intnet_cidr"]
                .map(|internal| (internal, ArgPredicate::IsPresent, None::<&str>)),
        )
    })
}

impl Config {
    /// Applies the defaults, and says of each value where it came from. `matches` are those that the
    /// options were parsed from; without them every value present counts as a flag.
    ///
    /// # Errors
    /// [`Kind::Usage`] for values that make no sense, whatever the host.
    pub fn resolve(options: &Options, matches: Option<&ArgMatches>) -> Result<(Self, Origins)> {
        options.former.check()?;
        let origins = [
            ("virtualbox-memory", options.memory.is_some()),
            ("virtualbox-cpu-count", options.cpu_count.is_some()),
            ("virtualbox-disk-size", options.disk_size.is_some()),
            ("virtualbox-intnet", options.intnet.is_some()),
            ("virtualbox-intnet-cidr", options.intnet_cidr.is_some()),
            ("virtualbox-hostonly-cidr", options.hostonly_cidr.is_some()),
            (
                "virtualbox-hostonly-no-dhcp",
                options.hostonly_no_dhcp.is_some(),
            ),
            (
                "virtualbox-hostonly-nictype",
                options.hostonly_nictype.is_some(),
            ),
            (
                "virtualbox-hostonly-nicpromisc",
                options.hostonly_nicpromisc.is_some(),
            ),
            ("virtualbox-nat-nictype", options.nat_nictype.is_some()),
            (
                "virtualbox-host-dns-resolver",
                options.host_dns_resolver.is_some(),
            ),
            ("virtualbox-no-dns-proxy", options.no_dns_proxy.is_some()),
            ("virtualbox-firmware", options.firmware.is_some()),
            ("virtualbox-ui-type", options.ui_type.is_some()),
            ("virtualbox-vboxmanage", options.vboxmanage.is_some()),
        ]
        .into_iter()
        .map(|(flag, given)| (flag, Origin::of(matches, flag, given)))
        .collect();
        let default = Self::default();
        let config = Self {
            memory_mib: options.memory.unwrap_or(default.memory_mib),
            cpus: match options.cpu_count {
                Some(count) => processors(count)?,
                None => default.cpus,
            },
            disk_bytes: match &options.disk_size {
                Some(text) => disk_size(text)?,
                None => default.disk_bytes,
            },
            lan: chosen(options)?.unwrap_or(default.lan),
            lan_nic: options.hostonly_nictype.unwrap_or(default.lan_nic),
            promiscuous: options.hostonly_nicpromisc.unwrap_or(default.promiscuous),
            nat_nic: options.nat_nictype.unwrap_or(default.nat_nic),
            host_resolver: options.host_dns_resolver.unwrap_or(default.host_resolver),
            dns_proxy: options
                .no_dns_proxy
                .map_or(default.dns_proxy, |without| !without),
            firmware: options.firmware.unwrap_or(default.firmware),
            ui: options.ui_type.unwrap_or(default.ui),
            vboxmanage: options.vboxmanage.clone().unwrap_or(default.vboxmanage),
        };
        config.sane()?;
        Ok((config, origins))
    }

    /// The range of the network between machines.
    #[must_use]
    pub fn network_cidr(&self) -> Ipv4Net {
        self.lan.cidr()
    }

    fn sane(&self) -> Result<()> {
        options::hardware("virtualbox", self.memory_mib, self.cpus, self.disk_bytes).map_err(
            |error| {
                error.hint(
                    "a plain `--virtualbox-disk-size` is in MiB, as it was for docker-machine: 20 GiB is `20G`",
                )
            },
        )?;
        if self.vboxmanage.as_os_str().is_empty() {
            return Err(Error::new(
                Kind::Usage,
                "`--virtualbox-vboxmanage` is empty",
            ));
        }
        self.lan.sane()
    }
}

/// What the second interface is on, when anything was said about it.
fn chosen(options: &Options) -> Result<Option<Lan>> {
    let internal = [
        ("--virtualbox-intnet", options.intnet.is_some()),
        ("--virtualbox-intnet-cidr", options.intnet_cidr.is_some()),
    ]
    .into_iter()
    .find(|(_, given)| *given);
    match (options.hostonly_cidr, internal) {
        (Some(_), Some((flag, _))) => Err(Error::new(
            Kind::Usage,
            format!("`--virtualbox-hostonly-cidr` and `{flag}` exclude each other"),
        )
        .hint("the second interface of a machine is on a host-only network or on an internal one")),
        (Some(cidr), None) => Ok(Some(Lan::host_only(
            cidr,
            !options.hostonly_no_dhcp.unwrap_or(false),
        ))),
        (None, _) if options.hostonly_no_dhcp == Some(true) => Err(Error::new(
            Kind::Usage,
            "`--virtualbox-hostonly-no-dhcp` is about host-only networks, and this machine is on an internal one",
        )
        .hint("say `--virtualbox-hostonly-cidr 192.168.56.1/24`, too")),
        (None, None) => Ok(None),
        (None, Some(_)) => Ok(Some(Lan::Internal {
            name: options.intnet.clone(),
            cidr: options.intnet_cidr.unwrap_or(lan::INTERNAL),
        })),
    }
}

/// Processors as docker-machine counts them: -1 is all that this host has.
fn processors(count: i16) -> Result<u16> {
    if count == -1 {
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        return Ok(u16::try_from(all).unwrap_or(255).min(255));
    }
    u16::try_from(count)
        .ok()
        .filter(|count| (1..=255).contains(count))
        .ok_or_else(|| {
            Error::new(
                Kind::Usage,
                format!(
                    "`--virtualbox-cpu-count {count}` is out of range: 1 to 255, or -1 for all"
                ),
            )
        })
}

/// A size in bytes: a plain number is in MiB, as docker-machine has it for this driver.
fn disk_size(text: &str) -> Result<u64> {
    let flag = "--virtualbox-disk-size";
    if !text.is_empty() && text.chars().all(|c| c.is_ascii_digit()) {
        return options::size(flag, &format!("{text}M"));
    }
    options::size(flag, text)
        .map_err(|error| error.hint("give MiB (`20000`) or a unit (`512M`, `20G`, `1T`)"))
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
        forge_driver::conformance::names_carry_the_prefix(Whole::command(), "virtualbox");
    }

    #[test]
    fn every_option_arrives_with_its_origin() {
        let (config, origins) = resolved(&[
            "--virtualbox-memory",
            "2048",
            "--virtualbox-cpus",
            "2",
            "--virtualbox-disk-size",
            "40G",
            "--virtualbox-hostonly-cidr",
            "192.168.57.1/24",
            "--virtualbox-hostonly-no-dhcp",
            "--virtualbox-hostonly-nictype",
            "82540EM",
            "--virtualbox-hostonly-nicpromisc",
            "allow-vms",
            "--virtualbox-nat-nictype",
            "Am79C973",
            "--virtualbox-host-dns-resolver",
            "--virtualbox-no-dns-proxy",
            "--virtualbox-firmware",
            "efi",
            "--virtualbox-ui-type",
            "gui",
            "--virtualbox-vboxmanage",
            "/opt/VBoxManage",
        ])
        .expect("fine");
        assert_eq!(
            config,
            Config {
                memory_mib: 2048,
                cpus: 2,
                disk_bytes: 40 << 30,
                lan: Lan::HostOnly {
                    host: Ipv4Addr::new(192, 168, 57, 1),
                    cidr: "192.168.57.0/24".parse().expect("a range"),
                    dhcp: false,
                },
                lan_nic: NicType::I82540em,
                promiscuous: Promiscuous::AllowVms,
                nat_nic: NicType::Am79c973,
                host_resolver: true,
                dns_proxy: false,
                firmware: Firmware::Efi,
                ui: UiType::Gui,
                vboxmanage: "/opt/VBoxManage".into(),
            }
        );
        let of_intnet = |(flag, _): &(&&str, &Origin)| flag.contains("intnet");
        assert!(
            origins
                .iter()
                .all(|entry| (*entry.1 == Origin::Flag) != of_intnet(&entry)),
            "{origins:?}"
        );
        let (config, origins) = resolved(&[]).expect("fine");
        assert_eq!(config, Config::default());
        assert!(origins.values().all(|origin| *origin == Origin::Default));
    }

    #[test]
    fn an_internal_network_has_a_name_and_a_range() {
        let (config, _) = resolved(&["--virtualbox-intnet", "forge"]).expect("fine");
        assert_eq!(
            config.lan,
            Lan::Internal {
                name: Some("forge".into()),
                cidr: lan::INTERNAL
            }
        );
        let (config, _) = resolved(&["--virtualbox-intnet-cidr", "10.9.0.0/24"]).expect("fine");
        assert_eq!(
            config.lan,
            Lan::Internal {
                name: None,
                cidr: "10.9.0.0/24".parse().expect("a range")
            }
        );
    }

    #[test]
    fn sizes_and_processors_are_counted_as_docker_machine_does() {
        let (config, _) = resolved(&["--virtualbox-disk-size", "20000"]).expect("fine");
        assert_eq!(config.disk_bytes, 20_000 << 20);
        let (config, _) = resolved(&["--virtualbox-cpu-count", "-1"]).expect("fine");
        assert!(config.cpus >= 1);
        let error = resolved(&["--virtualbox-disk-size", "20"]).expect_err("20 MiB");
        assert!(
            error
                .deepest_hint()
                .is_some_and(|hint| hint.contains("`20G`"))
        );
    }

    #[test]
    fn under_the_name_docker_machine_the_default_is_a_host_only_network() {
        let resolved = |words: &[&str]| {
            let all = [&["docker-machine"], words].concat();
            let matches = as_docker_machine(Whole::command())
                .try_get_matches_from(all)
                .expect("parses");
            let whole = Whole::from_arg_matches(&matches).expect("fits");
            Config::resolve(&whole.options, Some(&matches)).expect("makes sense")
        };
        let (config, origins) = resolved(&[]);
        let cidr = "192.168.60.1/24".parse().expect("a range");
        assert_eq!(config.lan, Lan::host_only(cidr, true));
        assert_eq!(origins["virtualbox-hostonly-cidr"], Origin::Default);
        let (config, _) = resolved(&["--virtualbox-hostonly-no-dhcp"]);
        assert_eq!(config.lan, Lan::host_only(cidr, false));
        let (config, _) = resolved(&["--virtualbox-intnet", "forge"]);
        assert!(matches!(config.lan, Lan::Internal { .. }), "{config:?}");
    }

    #[test]
    fn what_docker_machine_had_besides_is_taken_or_refused_with_a_way_out() {
        let words = ["--virtualbox-no-share", "--virtualbox-no-vtx-check=true"];
        let (config, _) = resolved(&words).expect("nothing to do");
        assert_eq!(config, Config::default());
        for words in [
            ["--virtualbox-share-folder", "/home:home"],
            ["--virtualbox-boot2docker-url", "https://example.org/x.iso"],
            ["--virtualbox-import-boot2docker-vm", "boot2docker-vm"],
        ] {
            let error = resolved(&words).expect_err("not done");
            assert_eq!(error.kind(), Kind::Usage);
            assert!(error.message().contains(words[0]), "{}", error.message());
            assert!(error.deepest_hint().is_some(), "{}", error.message());
        }
    }

    #[test]
    fn nonsense_is_refused_with_its_name() {
        for words in [
            &["--virtualbox-memory", "5"][..],
            &["--virtualbox-cpu-count", "0"],
            &["--virtualbox-cpu-count", "-2"],
            &["--virtualbox-disk-size", "big"],
            &["--virtualbox-intnet", "two words"],
            &["--virtualbox-intnet", ""],
            &["--virtualbox-intnet-cidr", "10.133.7.5/24"],
            &["--virtualbox-intnet-cidr", "10.0.2.0/24"],
            &["--virtualbox-intnet-cidr", "10.133.7.0/30"],
            &["--virtualbox-hostonly-cidr", "8.8.8.1/24"],
            &["--virtualbox-hostonly-cidr", "192.168.56.255/24"],
            &["--virtualbox-hostonly-no-dhcp"],
            &[
                "--virtualbox-hostonly-cidr",
                "192.168.56.1/24",
                "--virtualbox-intnet",
                "x",
            ],
        ] {
            let error = resolved(words).expect_err("nonsense");
            assert_eq!(error.kind(), Kind::Usage, "{words:?}");
            assert!(error.message().contains(words[0]), "{}", error.message());
        }
    }
}
