//! What `showvminfo --machinereadable` and `list` say.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use forge_driver::{Claim, Forward, Result, State};

use crate::manage::{Manage, garbled};

/// One machine, as VirtualBox has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Info {
    /// Its power state.
    pub(crate) state: State,
    /// The file with its settings.
    pub(crate) settings: PathBuf,
    /// The rules by which NAT leads to it, by name.
    pub(crate) forwards: BTreeMap<String, Forward>,
    /// Everything else, by VirtualBox's keys.
    pub(crate) values: BTreeMap<String, String>,
}

/// What is registered under a UUID.
///
/// # Errors
/// When VirtualBox cannot be asked, or says nonsense.
pub(crate) async fn find(manage: &Manage, claim: Claim) -> Result<Option<Info>> {
    let there = machines(manage).await?;
    if !there.iter().any(|machine| machine.id == claim.to_string()) {
        return Ok(None);
    }
    show(manage, claim).await
}

/// What is registered under a UUID that was listed; `None` when it has gone since.
///
/// # Errors
/// When VirtualBox cannot be asked, or says nonsense.
pub(crate) async fn show(manage: &Manage, claim: Claim) -> Result<Option<Info>> {
    let id = claim.to_string();
    let words = ["showvminfo", &id, "--machinereadable"];
    match manage.call(&words).await {
        Ok(text) => parse(&text).map(Some).ok_or_else(|| garbled(&words, &text)),
        Err(error) => {
            let left = machines(manage).await?;
            if left.iter().any(|machine| machine.id == id) {
                Err(error)
            } else {
                Ok(None)
            }
        }
    }
}

/// A line of `list vms`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// The name; `<inaccessible>` for one whose settings cannot be read.
    pub(crate) name: String,
    /// The UUID.
    pub(crate) id: String,
}

/// All machines of this user.
///
/// # Errors
/// When VirtualBox cannot be asked, or says nonsense.
pub(crate) async fn machines(manage: &Manage) -> Result<Vec<Listed>> {
    let words = ["list", "vms"];
    let text = manage.call(&words).await?;
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| listed(line).ok_or_else(|| garbled(&words, &text)))
        .collect()
}

/// A name in quotes, which may hold anything, and a UUID in braces.
fn listed(line: &str) -> Option<Listed> {
    let (name, id) = line.trim().rsplit_once(' ')?;
    let id = id.strip_prefix('{')?.strip_suffix('}')?;
    id.parse::<uuid::Uuid>().ok()?;
    Some(Listed {
        name: name.strip_prefix('"')?.strip_suffix('"')?.to_owned(),
        id: id.to_owned(),
    })
}

/// Reads lines of `key=value`, where both may be in quotes.
fn parse(text: &str) -> Option<Info> {
    let mut values = BTreeMap::new();
    let mut forwards = BTreeMap::new();
    for line in text.lines() {
        let Some((key, value)) = entry(line) else {
            // Descriptions run over several lines.
            continue;
        };
        if key.starts_with("Forwarding(") {
            if let Some((name, forward)) = rule(&value) {
                forwards.insert(name, forward);
            }
        } else {
            values.entry(key).or_insert(value);
        }
    }
    values.get("UUID")?;
    Some(Info {
        state: state(values.get("VMState")?)?,
        settings: values.get("CfgFile")?.into(),
        forwards,
        values,
    })
}

fn entry(line: &str) -> Option<(String, String)> {
    let (key, rest) = match line.strip_prefix('"') {
        Some(quoted) => quoted.split_once("\"=")?,
        None => line.split_once('=')?,
    };
    Some((key.to_owned(), unquoted(rest)))
}

fn unquoted(value: &str) -> String {
    let inner = value
        .strip_prefix('"')
        .and_then(|value| value.strip_suffix('"'));
    match inner {
        Some(inner) => inner.replace("\\\"", "\"").replace("\\\\", "\\"),
        None => value.to_owned(),
    }
}

/// The states of `MachineState` (<https://www.virtualbox.org/sdkref/>), as VBoxManage spells them.
fn state(word: &str) -> Option<State> {
    Some(match word {
        "poweroff" | "aborted" => State::Stopped,
        "saved" | "aborted-saved" => State::Saved,
        "running" | "teleporting" | "livesnapshotting" | "onlinesnapshotting" => State::Running,
        "paused" | "teleportingpausedvm" => State::Paused,
        "gurumeditation" | "inaccessible" => State::Error,
        "starting" | "restoring" | "teleportingin" => State::Starting,
        "stopping" | "saving" => State::Stopping,
        // Snapshots and settings at work on a machine that is off.
        "deletingsnapshot"
        | "restoringsnapshot"
        | "settingup"
        | "offlinesnapshotting"
        | "deletingsnapshotpaused"
        | "deletingsnapshotlive"
        | "deletingsnapshotlivepaused"
        | "snapshotting" => State::Stopping,
        _ => return None,
    })
}

/// A rule of NAT: `name,tcp,host address,host port,guest address,guest port`. What forge does not make is left out.
fn rule(text: &str) -> Option<(String, Forward)> {
    let parts: Vec<&str> = text.split(',').collect();
    let [name, "tcp", host, port, _, guest] = parts[..] else {
        return None;
    };
    let host = if host.is_empty() { "0.0.0.0" } else { host };
    Some((
        name.to_owned(),
        Forward {
            guest: guest.parse().ok()?,
            host: SocketAddr::new(host.parse().ok()?, port.parse().ok()?),
        },
    ))
}

/// What the names of forge's rules begin with.
const RULE: &str = "forge-";

/// Whether a rule is one of forge's.
pub(crate) fn is_rule_name(name: &str) -> bool {
    name.starts_with(RULE)
}

/// The rule of a forward: its name tells the host's side, which is one machine's alone.
pub(crate) fn rule_of(forward: &Forward) -> (String, String) {
    let name = format!("{RULE}{}-{}", forward.host.ip(), forward.host.port());
    let text = format!(
        "{name},tcp,{},{},,{}",
        forward.host.ip(),
        forward.host.port(),
        forward.guest
    );
    (name, text)
}

/// Blocks of `Key: value` lines that begin with the key `first`, as `list` prints them.
pub(crate) fn blocks(text: &str, first: &str) -> Vec<Vec<(String, String)>> {
    let mut blocks: Vec<Vec<(String, String)>> = Vec::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
        if key == first && !line.starts_with(' ') {
            blocks.push(Vec::new());
        }
        if let Some(block) = blocks.last_mut() {
            block.push((key, value));
        }
    }
    blocks
}

/// The first value of a key in a block.
pub(crate) fn value<'a>(block: &'a [(String, String)], key: &str) -> Option<&'a str> {
    block
        .iter()
        .find(|(name, _)| name == key)
        .map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "name=\"n1\"\nUUID=\"11111111-2222-4333-8444-555555555501\"\n\
        CfgFile=\"/h/a \\\"b\\\"/n1.vbox\"\nmemory=1024\nVMState=\"running\"\n\
        description=\"one\nVMState=two\"\nForwarding(0)=\"forge-127.133.7.101-2222,tcp,127.133.7.101,2222,,22\"\n\
        Forwarding(1)=\"dns,udp,,53,,53\"\n\"SATA-0-0\"=\"/h/disk.vdi\"\n";

    #[test]
    fn a_machine_is_read() {
        let info = parse(SHOWN).expect("a machine");
        assert_eq!(info.state, State::Running);
        assert_eq!(info.settings, PathBuf::from("/h/a \"b\"/n1.vbox"));
        let forward = Forward {
            guest: 22,
            host: "127.133.7.101:2222".parse().expect("an address"),
        };
        let (name, text) = rule_of(&forward);
        assert_eq!(info.forwards, BTreeMap::from([(name, forward)]));
        assert_eq!(rule(&text).expect("a rule").1, forward);
    }

    #[test]
    fn every_version_from_6_1_on_is_read() {
        // 6.1 tells neither of a chipset's IOMMU nor of a TPM; 7.0 has `aborted-saved`; 7.1 names the platform first.
        let first = "name=\"n1\"\ngroups=\"/\"\n";
        let last = "CfgFile=\"/h/vm/n1/n1.vbox\"\nUUID=\"11111111-2222-4333-8444-555555555501\"\n";
        let devices = "storagecontrollername0=\"IDE\"\n\"IDE-0-0\"=\"/h/disk.vdi\"\n\"IDE-0-1\"=\"none\"\nnatnet1=\"nat\"\n\
            macaddress1=\"080027AABB01\"\ncableconnected1=\"on\"\nnic1=\"nat\"\nnictype1=\"virtio\"\n\
            Forwarding(0)=\"forge-127.133.7.101-2222,tcp,127.133.7.101,2222,,22\"\nintnet2=\"forge\"\n\
            macaddress2=\"080027AABB02\"\ncableconnected2=\"on\"\nnic2=\"intnet\"\nnic3=\"none\"\n";
        for (version, own, word, state) in [
            ("6.1", "hwvirtex=\"on\"\n", "aborted", State::Stopped),
            (
                "7.0",
                "iommu=\"none\"\ntpm_type=\"None\"\n",
                "aborted-saved",
                State::Saved,
            ),
            (
                "7.1",
                "platformArchitecture=\"x86\"\ncpuexecutioncap=100\n",
                "running",
                State::Running,
            ),
            (
                "7.2",
                "platformArchitecture=\"x86\"\nfirmware=\"EFI\"\n",
                "paused",
                State::Paused,
            ),
        ] {
            let text = format!("{first}{last}{own}VMState=\"{word}\"\n{devices}");
            let info = parse(&text).unwrap_or_else(|| panic!("{version}"));
            assert_eq!(info.state, state, "{version}");
            assert_eq!(info.forwards.len(), 1, "{version}");
            let value = |key: &str| info.values.get(key).map(String::as_str);
            assert_eq!(value("IDE-0-0"), Some("/h/disk.vdi"), "{version}");
            assert_eq!(value("intnet2"), Some("forge"), "{version}");
            assert_eq!(value("macaddress2"), Some("080027AABB02"), "{version}");
        }
    }

    #[test]
    fn nonsense_is_no_machine() {
        for text in [
            "",
            "hello",
            "UUID=\"x\"\nCfgFile=\"y\"\nVMState=\"dancing\"",
            "UUID=\"x\"\nVMState=\"running\"",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn lists_are_read() {
        assert_eq!(
            listed("\"a \"b\" c\" {11111111-2222-4333-8444-555555555501}"),
            Some(Listed {
                name: "a \"b\" c".into(),
                id: "11111111-2222-4333-8444-555555555501".into(),
            })
        );
        assert_eq!(listed("garbage"), None);
        let text = "NetworkName:  one\nDhcpd IP:   10.0.0.1\nGlobal Configuration:\n    minLeaseTime: default\n\nNetworkName: two\n";
        let found = blocks(text, "NetworkName");
        assert_eq!(found.len(), 2);
        assert_eq!(value(&found[0], "Dhcpd IP"), Some("10.0.0.1"));
        assert_eq!(value(&found[1], "Dhcpd IP"), None);
    }
}
