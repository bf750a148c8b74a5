//! What can be known before anything is touched.

use forge_driver::host::{self, DISK_NEED};
use forge_driver::{Error, Kind, Result, Spec, process};
use roxmltree::Document;

use crate::domain;
use crate::network::{self, Choice};
use crate::options::Config;
use crate::storage::Pool;
use crate::virsh::{Virsh, field};

/// These machines can be made at this daemon.
///
/// # Errors
/// [`Kind::Precheck`] with what is missing and how to get it.
pub(crate) async fn check(config: &Config, virsh: &Virsh, specs: &[Spec]) -> Result<()> {
    if process::which(&config.virsh).is_none() {
        return Err(Error::new(
            Kind::Precheck,
            format!("`{}`, which speaks to libvirt, is not installed", config.virsh.display()),
        )
        .hint("install it: Debian's package is `libvirt-clients`, the daemon's `libvirt-daemon-system`"));
    }
    asked(config, virsh, specs)
        .await
        .map_err(|error| error.of_kind(Kind::Precheck))
}

/// The oldest libvirt that knows all that is asked of it: `virsh undefine --checkpoints-metadata`
/// (<https://libvirt.org/news.html#v5-6-0-2019-08-05>).
const OLDEST: (u32, u32) = (5, 6);

/// virsh and the daemon are not too old.
///
/// # Errors
/// [`Kind::Precheck`] with what is; [`Kind::Invalid`] when the answer is none of virsh's.
fn recent(text: &str, virsh: &Virsh) -> Result<()> {
    for (what, line) in [
        ("`virsh`", "Using library: libvirt "),
        ("the daemon", "Running against daemon: "),
    ] {
        let told = text.lines().find_map(|found| found.strip_prefix(line));
        let mut numbers = told
            .unwrap_or_default()
            .split('.')
            .map(|part| part.trim().parse::<u32>());
        let (Some(told), Some(Ok(major)), Some(Ok(minor))) = (told, numbers.next(), numbers.next())
        else {
            return Err(Error::new(
                Kind::Invalid,
                format!("the version of libvirt at `{}` cannot be told", virsh.uri()),
            )
            .because(format!(
                "`virsh version --daemon` printed: {}",
                process::tail(text, 5)
            ))
            .hint("is `--libvirt-virsh` the program of libvirt?"));
        };
        if (major, minor) < OLDEST {
            return Err(Error::new(
                Kind::Precheck,
                format!(
                    "{what} of libvirt at `{}` is {}, and forge needs {}.{} or later",
                    virsh.uri(),
                    told.trim(),
                    OLDEST.0,
                    OLDEST.1
                ),
            )
            .hint("install a later libvirt there"));
        }
    }
    Ok(())
}

async fn asked(config: &Config, virsh: &Virsh, specs: &[Spec]) -> Result<()> {
    recent(&virsh.call(&["version", "--daemon"]).await?, virsh)?;
    let pool = Pool {
        virsh,
        name: &config.pool,
    };
    let seen = pool.check().await?;
    let need = DISK_NEED.saturating_mul(specs.len() as u64);
    if let Some(available) = seen.and_then(|seen| seen.available)
        && available < need
    {
        return Err(Error::new(
            Kind::Precheck,
            format!(
                "the storage pool `{}` is too full: {} machines need {} MiB to begin with, and {} MiB are free",
                config.pool,
                specs.len(),
                need >> 20,
                available >> 20
            ),
        )
        .hint("free some space in it, or choose another with `--libvirt-pool`"));
    }
    if !specs.is_empty() {
        let text = virsh.call(&["nodeinfo"]).await?;
        memory(config, specs.len(), total(&text), virsh)?;
    }
    for spec in specs {
        host::image_is_there(&spec.image)?;
        domain::check_name(virsh, &spec.name, spec.claim).await?;
    }
    match &config.network {
        Choice::Named(name) => named(config, virsh, name).await,
        Choice::Bridge(name) => bridge(virsh, name),
        own => match specs.iter().find_map(|spec| spec.nic.as_ref()) {
            Some(nic) => network::check(virsh, &nic.network, own).await,
            None => Ok(()),
        },
    }
}

/// The memory of the host in MiB, as `virsh nodeinfo` has it.
fn total(text: &str) -> Option<u64> {
    let kib: u64 = field(text, "Memory size")?
        .split_whitespace()
        .next()?
        .parse()
        .ok()?;
    Some(kib >> 10)
}

/// The machines fit into the memory of the daemon's host.
fn memory(config: &Config, machines: usize, total: Option<u64>, virsh: &Virsh) -> Result<()> {
    let host = format!("the host of `{}`", virsh.uri());
    host::memory_for("libvirt", config.memory_mib, machines, &host, total)
}

/// The named network is there, and other hosts reach it where they have to.
async fn named(config: &Config, virsh: &Virsh, name: &str) -> Result<()> {
    let all = virsh.call(&["net-list", "--all", "--name"]).await?;
    let names: Vec<&str> = all
        .lines()
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect();
    if !names.contains(&name) {
        return Err(Error::new(
            Kind::Precheck,
            format!("libvirt at `{}` has no network `{name}`", virsh.uri()),
        )
        .hint(if names.is_empty() {
            "there is none; without `--libvirt-network` forge makes one".to_owned()
        } else {
            format!("there are `{}`", names.join("`, `"))
        }));
    }
    let text = virsh.call(&["net-dumpxml", name]).await?;
    leads_out(config, virsh, name, &text)
}

fn leads_out(config: &Config, virsh: &Virsh, name: &str, description: &str) -> Result<()> {
    let Ok(document) = Document::parse(description) else {
        return Ok(());
    };
    let mode = network::mode(&document);
    let from_afar = config.joined || virsh.uri().over_ssh();
    if !from_afar || !matches!(mode.as_str(), "nat" | "isolated") {
        return Ok(());
    }
    Err(Error::new(
        Kind::Precheck,
        format!(
            "the network `{name}` of libvirt at `{}` is of the kind `{mode}`: other hosts cannot reach its machines",
            virsh.uri()
        ),
    )
    .hint("use `--libvirt-network routed`, a network of the kind `route`, or `--libvirt-network bridge:NAME`"))
}

/// The bridge is there, as far as can be seen from here: the list of interfaces (proc_pid_net(5)) is that of this
/// process's own network, which /sys need not be.
fn bridge(virsh: &Virsh, name: &str) -> Result<()> {
    let Ok(list) = std::fs::read_to_string("/proc/net/dev") else {
        return Ok(());
    };
    let named = |line: &str| line.trim_start().split(':').next() == Some(name);
    if virsh.uri().over_ssh() || list.lines().any(named) {
        return Ok(());
    }
    Err(
        Error::new(Kind::Precheck, format!("this host has no bridge `{name}`"))
            .hint("`ip link show type bridge` lists those that it has"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here(config: &Config) -> Virsh {
        let nowhere = std::path::PathBuf::from("/nonexistent");
        let home = forge_driver::DriverHome {
            dir: nowhere.clone(),
            store: nowhere.clone(),
            owner: uuid::Uuid::nil(),
            runtime: nowhere,
            assets: forge_driver::assets::Assets::default(),
            token: forge_driver::Token::default(),
        };
        Virsh::new(config, &home)
    }

    #[test]
    fn more_memory_than_the_host_has_is_refused() {
        let text = "CPU model:           x86_64\nMemory size:         8152000 KiB\n";
        assert_eq!(total(text), Some(7960));
        assert_eq!(total("garbage"), None);
        let config = Config {
            memory_mib: 4096,
            ..Config::default()
        };
        memory(&config, 1, Some(7960), &here(&config)).expect("fits");
        memory(&config, 9, None, &here(&config)).expect("nobody knows");
        let error = memory(&config, 2, Some(7960), &here(&config)).expect_err("too much");
        assert!(error.message().contains("8192 MiB"), "{}", error.message());
    }

    #[test]
    fn a_libvirt_that_is_too_old_is_told() {
        let virsh = here(&Config::default());
        let text = |library: &str, daemon: &str| {
            format!(
                "Compiled against library: libvirt 9.0.0\nUsing library: libvirt {library}\nUsing API: QEMU 9.0.0\nRunning hypervisor: QEMU 10.0.2\nRunning against daemon: {daemon}\n"
            )
        };
        recent(&text("9.0.0", "5.6.0"), &virsh).expect("fine");
        for (library, daemon, what) in [
            ("5.0.0", "9.0.0", "`virsh` of"),
            ("9.0.0", "4.10.0", "the daemon of"),
        ] {
            let error = recent(&text(library, daemon), &virsh).expect_err("too old");
            assert_eq!(error.kind(), Kind::Precheck);
            assert!(error.message().starts_with(what), "{}", error.message());
        }
        for garbage in ["", "<html>", "Running against daemon: x\n"] {
            let error = recent(garbage, &virsh).expect_err("garbage");
            assert_eq!(error.kind(), Kind::Invalid);
        }
    }

    #[test]
    fn nat_leads_nowhere_between_several_daemons() {
        let nat = "<network><name>default</name><forward mode='nat'/></network>";
        let mut config = Config::default();
        leads_out(&config, &here(&config), "default", nat).expect("one daemon");
        let far = Config {
            uri: "qemu+ssh://h/system".parse().expect("a daemon"),
            ..Config::default()
        };
        leads_out(&far, &here(&far), "default", nat).expect_err("no way in");
        config.joined = true;
        let error = leads_out(&config, &here(&config), "default", nat).expect_err("no way in");
        assert!(error.deepest_hint().expect("a hint").contains("routed"));
        let route = nat.replace("'nat'", "'route'");
        leads_out(&config, &here(&config), "default", &route).expect("routed");
    }

    #[test]
    fn a_bridge_that_is_not_there_is_told() {
        let config = Config::default();
        let error = bridge(&here(&config), "nobr0").expect_err("none");
        assert!(error.message().contains("nobr0"));
        bridge(&here(&config), "lo").expect("an interface of this host");
    }
}
