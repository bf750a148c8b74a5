//! The one list of all drivers.

use std::collections::BTreeMap;
use std::sync::Arc;

use clap::{Args, FromArgMatches};
use forge_driver::options::Origins;
use forge_driver::{Error, Kind, Result};
use serde_json::Value;

use super::{Entry, Site, Travel, home};
#[cfg(feature = "lab")]
use crate::credentials::TokenOption;
use crate::machine::access::{Access, Network as NetworkAccess};
use crate::machine::imported;
#[cfg(feature = "lab")]
use crate::secret::Secret;
use crate::store::Store;

/// All drivers; the first is the default.
pub fn all() -> &'static [Entry] {
    &[
        Entry {
            id: "qemu",
            about: "virtual machines run by QEMU itself: no daemon, no root",
            augment: |command| forge_qemu::Options::augment_args(command),
            as_docker_machine: |command| command,
            without_effect: &[],
            resolve: |matches| {
                let options =
                    forge_qemu::Options::from_arg_matches(matches).map_err(options_lost)?;
                let (config, origins) = forge_qemu::Config::resolve(&options, Some(matches))?;
                Ok((recorded(&config)?, texts(origins)))
            },
            token: None,
            default: || recorded(&forge_qemu::Config::default()),
            network: |config| {
                Ok(Some(
                    understood::<forge_qemu::Config>("qemu", config)?.network_cidr,
                ))
            },
            sites: |_| Ok(Vec::new()),
            travel: |_| Ok(Travel::Disk),
            access: over_network,
            adopts: false,
            open: |config, home| {
                let config: forge_qemu::Config = understood("qemu", config)?;
                Ok(Arc::new(forge_qemu::QemuDriver::open(config, home)?))
            },
            ready: forge_qemu::ready,
            findings: |forge, config| {
                Box::pin(async move {
                    // The accelerator is tried with the kernel of a base image, when there is one.
                    let kernel = forge.images().any_kernel();
                    let (config, home) = (understood("qemu", config)?, home(forge, "qemu")?);
                    Ok(forge_qemu::findings(&config, &home, kernel.as_ref()).await)
                })
            },
        },
        Entry {
            id: "libvirt",
            about: "domains of libvirt, on this host or others, on networks that this host reaches directly",
            augment: |command| forge_libvirt::Options::augment_args(command),
            as_docker_machine: |command| command,
            without_effect: &forge_libvirt::WITHOUT_EFFECT,
            resolve: |matches| {
                let options =
                    forge_libvirt::Options::from_arg_matches(matches).map_err(options_lost)?;
                let (config, origins) = forge_libvirt::Config::resolve(&options, Some(matches))?;
                Ok((recorded(&config)?, texts(origins)))
            },
            token: None,
            default: || recorded(&forge_libvirt::Config::default()),
            network: |config| Ok(understood::<forge_libvirt::Config>("libvirt", config)?.range()),
            sites: |config| {
                let config: forge_libvirt::Config = understood("libvirt", config)?;
                let site = |config: &forge_libvirt::Config| {
                    Ok(Site {
                        at: config.uri.to_string(),
                        network: config.range(),
                        config: recorded(config)?,
                        asked: config.of_a_named_network(),
                    })
                };
                config.sites().iter().map(site).collect()
            },
            travel: |config| {
                let config: forge_libvirt::Config = understood("libvirt", config)?;
                Ok(if config.uri.over_ssh() {
                    Travel::Records
                } else {
                    Travel::Never(
                        "its disk lies in a pool of the libvirt on this host, which keeps it; a machine of a libvirt that is reached by SSH travels",
                    )
                })
            },
            access: over_network,
            adopts: false,
            open: |config, home| {
                let config: forge_libvirt::Config = understood("libvirt", config)?;
                Ok(Arc::new(forge_libvirt::LibvirtDriver::open(config, home)))
            },
            ready: forge_libvirt::ready,
            findings: |forge, config| {
                Box::pin(async move {
                    let (config, home) = (understood("libvirt", config)?, home(forge, "libvirt")?);
                    Ok(forge_libvirt::findings(&config, &home).await)
                })
            },
        },
        Entry {
            id: "virtualbox",
            about: "machines of VirtualBox, with NAT and an internal or a host-only network",
            augment: |command| forge_virtualbox::Options::augment_args(command),
            as_docker_machine: forge_virtualbox::as_docker_machine,
            without_effect: &[],
            resolve: |matches| {
                let options =
                    forge_virtualbox::Options::from_arg_matches(matches).map_err(options_lost)?;
                let (config, origins) = forge_virtualbox::Config::resolve(&options, Some(matches))?;
                Ok((recorded(&config)?, texts(origins)))
            },
            token: None,
            default: || recorded(&forge_virtualbox::Config::default()),
            network: |config| {
                Ok(Some(
                    understood::<forge_virtualbox::Config>("virtualbox", config)?.network_cidr(),
                ))
            },
            sites: |_| Ok(Vec::new()),
            travel: |_| {
                Ok(Travel::Never(
                    "its disks are registered with the VirtualBox on this host, which keeps them; `VBoxManage export` copies them",
                ))
            },
            access: over_network,
            adopts: false,
            open: |config, home| {
                let config: forge_virtualbox::Config = understood("virtualbox", config)?;
                Ok(Arc::new(forge_virtualbox::VirtualBoxDriver::open(
                    config, home,
                )))
            },
            ready: forge_virtualbox::ready,
            findings: |forge, config| {
                Box::pin(async move {
                    let (config, home) = (
                        understood("virtualbox", config)?,
                        home(forge, "virtualbox")?,
                    );
                    Ok(forge_virtualbox::findings(&config, &home).await)
                })
            },
        },
        Entry {
            id: "generic",
            about: "hosts that are there already and answer SSH: adopted, and left as they were",
            augment: |command| forge_generic::Options::augment_args(command),
            as_docker_machine: |command| command,
            without_effect: &[],
            resolve: |matches| {
                let options =
                    forge_generic::Options::from_arg_matches(matches).map_err(options_lost)?;
                let (config, origins) = forge_generic::Config::resolve(&options, Some(matches))?;
                Ok((recorded(&config)?, texts(origins)))
            },
            token: None,
            default: || {
                let nowhere = forge_generic::Options {
                    ip_address: Some("localhost".to_owned()),
                    ..forge_generic::Options::default()
                };
                recorded(&forge_generic::Config::resolve(&nowhere, None)?.0)
            },
            network: |_| Ok(None),
            // Each host is asked for itself.
            sites: |config| {
                let known: forge_generic::Config = understood("generic", config)?;
                let at = format!("{}:{}:{}", known.target(), known.port(), known.engine_port);
                Ok(vec![site(at, config)])
            },
            travel: |config| {
                let known: forge_generic::Config = understood("generic", config)?;
                // Behind another host a loopback address is that of the other.
                Ok(match known.jump {
                    Some(_) => Travel::Records,
                    None => over_the_network(known.target()),
                })
            },
            access: over_network,
            adopts: true,
            open: |config, _| {
                let config: forge_generic::Config = understood("generic", config)?;
                Ok(Arc::new(forge_generic::GenericDriver::open(config)))
            },
            ready: || Err("`generic` has to be named".to_owned()),
            findings: |_, _| Box::pin(async { Ok(Vec::new()) }),
        },
        Entry {
            id: "none",
            about: "engines that are there already, known by their URL",
            augment: |command| forge_none::Options::augment_args(command),
            as_docker_machine: |command| command,
            without_effect: &[],
            resolve: |matches| {
                let options =
                    forge_none::Options::from_arg_matches(matches).map_err(options_lost)?;
                let (config, origins) = forge_none::Config::resolve(&options, Some(matches))?;
                Ok((recorded(&config)?, texts(origins)))
            },
            token: None,
            default: || {
                let nowhere = forge_none::Options {
                    url: Some("tcp://localhost".to_owned()),
                };
                recorded(&forge_none::Config::resolve(&nowhere, None)?.0)
            },
            network: |_| Ok(None),
            sites: |config| {
                let known: forge_none::Config = understood("none", config)?;
                Ok(vec![site(known.url, config)])
            },
            travel: |config| {
                let known: forge_none::Config = understood("none", config)?;
                Ok(over_the_network(&known.host))
            },
            access: over_network,
            adopts: true,
            open: |config, _| {
                let config: forge_none::Config = understood("none", config)?;
                Ok(Arc::new(forge_none::NoneDriver::open(config)))
            },
            ready: || Err("`none` has to be named".to_owned()),
            findings: |_, _| Box::pin(async { Ok(Vec::new()) }),
        },
        // Last of those that users meet: no command makes machines with it.
        Entry {
            id: imported::ID,
            about: "machines that docker-machine made, taken over by `forge import docker-machine`",
            augment: |command| command,
            as_docker_machine: |command| command,
            without_effect: &[],
            resolve: |_| Ok((Value::Null, BTreeMap::new())),
            token: None,
            default: || Ok(Value::Null),
            network: |_| Ok(None),
            sites: |config| {
                if config.is_null() {
                    return Ok(Vec::new());
                }
                let known: imported::Config = understood(imported::ID, config)?;
                Ok(vec![Site {
                    at: known.host(),
                    config: config.clone(),
                    network: None,
                    asked: false,
                }])
            },
            travel: |config| {
                let known: imported::Config = understood(imported::ID, config)?;
                Ok(if known.virtualbox {
                    Travel::Never("it is a machine of the VirtualBox on this host")
                } else {
                    over_the_network(&known.host)
                })
            },
            access: over_network,
            adopts: false,
            open: |config, home| {
                let config = if config.is_null() {
                    imported::Config::default()
                } else {
                    understood(imported::ID, config)?
                };
                Ok(Arc::new(imported::Elsewhere::open(config, &home)))
            },
            ready: || Err("machines come to it by an import".to_owned()),
            findings: |_, _| Box::pin(async { Ok(Vec::new()) }),
        },
        #[cfg(feature = "lab")]
        Entry {
            id: "fake",
            about: "folders that stand for machines, for tests of forge itself",
            augment: |command| forge_driver::fake::Options::augment_args(command),
            as_docker_machine: |command| command,
            without_effect: &[],
            resolve: |_| Ok((serde_json::json!({}), BTreeMap::new())),
            token: Some(TokenOption {
                flag: "fake_token",
                variable: "FAKE_TOKEN",
                file: || {
                    let found = forge_driver::fake::token_file()?;
                    Ok(found.map(|(token, _)| Secret::new(token)))
                },
            }),
            default: || Ok(serde_json::json!({})),
            network: |_| Ok(None),
            // A test writes the host of a machine into its record.
            sites: |config| {
                let host = config.get("host").and_then(Value::as_str);
                let site = |at: &str| Site {
                    at: at.to_owned(),
                    config: config.clone(),
                    network: None,
                    asked: false,
                };
                Ok(host.map(site).into_iter().collect())
            },
            adopts: false,
            // A test writes into its record what of a machine travels.
            travel: |config| {
                Ok(match config.get("travel").and_then(Value::as_str) {
                    Some("records") => Travel::Records,
                    Some("never") => Travel::Never("it is bound to this host"),
                    _ => Travel::Disk,
                })
            },
            access: |store| {
                Arc::new(crate::machine::fake::FakeAccess {
                    store: store.clone(),
                })
            },
            open: |_, home| Ok(Arc::new(forge_driver::fake::FakeDriver::open(home)?)),
            ready: || Err("it is for tests of forge itself".to_owned()),
            findings: |_, _| Box::pin(async { Ok(Vec::new()) }),
        },
    ]
}

/// A place that is one machine's alone.
fn site(at: String, config: &Value) -> Site {
    Site {
        at,
        config: config.clone(),
        network: None,
        asked: false,
    }
}

/// What travels of a host that is there already: it is reached wherever from, unless its name means another one there.
fn over_the_network(host: &str) -> Travel {
    let plain = host.trim_end_matches('.').to_ascii_lowercase();
    let here = match plain.parse::<std::net::IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback() || ip.is_unspecified(),
        Err(_) => plain == "localhost" || plain.ends_with(".localhost"),
    };
    if here {
        Travel::Never("it is this host: elsewhere its address leads to another one")
    } else {
        Travel::Records
    }
}

/// The way to machines that answer on the network.
fn over_network(store: &Store) -> Arc<dyn Access> {
    Arc::new(NetworkAccess {
        store: store.clone(),
    })
}

/// Where each value came from, as it is recorded.
fn texts(origins: Origins) -> BTreeMap<String, String> {
    origins
        .into_iter()
        .map(|(name, origin)| (name.to_owned(), format!("{origin:?}").to_lowercase()))
        .collect()
}

/// That the options of a driver, which were parsed, cannot be read.
pub(super) fn options_lost(error: clap::Error) -> Error {
    Error::new(Kind::Usage, "the options of the driver cannot be read").because(error)
}

fn recorded(config: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(config).map_err(|error| {
        Error::new(Kind::Invalid, "the configuration cannot be recorded").because(error)
    })
}

fn understood<T: serde::de::DeserializeOwned>(id: &str, config: &Value) -> Result<T> {
    serde_json::from_value(config.clone()).map_err(|error| {
        Error::new(
            Kind::Corrupt,
            format!("the recorded configuration is not one of the driver `{id}`"),
        )
        .because(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_does_not_travel() {
        for here in [
            "localhost",
            "LocalHost.",
            "n1.localhost",
            "127.0.0.1",
            "127.3.2.1",
            "::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
        ] {
            assert!(matches!(over_the_network(here), Travel::Never(_)), "{here}");
        }
        for other in [
            "n1.example",
            "localhost.example",
            "192.0.2.1",
            "2001:db8::1",
        ] {
            assert_eq!(over_the_network(other), Travel::Records, "{other}");
        }
        let travels = |driver: &str, config: Value| {
            let entry = super::super::find(driver).expect(driver);
            (entry.travel)(&config).expect(driver) == Travel::Records
        };
        let generic = |host: &str, hostname: Option<&str>, jump: bool| {
            let jump = jump.then(
                || serde_json::json!({"host": "bastion.example", "user": null, "port": null}),
            );
            let config = serde_json::json!({"host": host, "hostname": hostname, "ssh_user": null, "ssh_port": null, "engine_port": 2376, "jump": jump});
            travels("generic", config)
        };
        assert!(generic("n1.example", None, false));
        assert!(!generic("n1", Some("127.0.0.1"), false));
        assert!(generic("127.0.0.1", None, true));
        for (host, goes) in [("192.0.2.1", true), ("127.0.0.1", false)] {
            let config = serde_json::json!({"url": format!("tcp://{host}:2376"), "host": host, "port": 2376, "tls": true});
            assert_eq!(travels("none", config), goes, "{host}");
            let config =
                serde_json::json!({"host": host, "ssh": 22, "engine": 2376, "virtualbox": false});
            assert_eq!(travels(imported::ID, config), goes, "{host}");
        }
    }
}
