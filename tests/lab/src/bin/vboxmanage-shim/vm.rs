//! What the real VBoxManage says that a machine is.

use std::path::PathBuf;

use crate::{Result, real};

/// A machine as `showvminfo --machinereadable` describes it, as far as QEMU has to know.
#[derive(Debug, Default, PartialEq)]
pub struct Vm {
    pub uuid: String,
    pub hardware: String,
    pub name: String,
    pub state: String,
    pub memory: u64,
    pub cpus: u32,
    pub efi: bool,
    pub ich9: bool,
    pub screen: bool,
    pub utc: bool,
    pub boot: Vec<String>,
    pub controllers: Vec<Controller>,
    pub nics: Vec<Nic>,
    pub uarts: Vec<Uart>,
    pub logs: PathBuf,
    pub snapshots: PathBuf,
}

#[derive(Debug, PartialEq)]
pub struct Controller {
    pub name: String,
    pub kind: String,
    pub slots: Vec<Slot>,
}

/// What is attached to one place of a controller.
#[derive(Debug, PartialEq)]
pub struct Slot {
    pub port: u32,
    pub device: u32,
    pub dvd: bool,
    /// The path and the UUID; an empty drive has none.
    pub medium: Option<(PathBuf, String)>,
}

#[derive(Debug, PartialEq)]
pub struct Nic {
    pub slot: u32,
    pub model: String,
    pub mac: String,
    pub connected: bool,
    pub net: Net,
}

#[derive(Debug, PartialEq)]
pub enum Net {
    Nat { cidr: String, rules: Vec<Rule> },
    Internal(String),
    HostOnly(String),
    Nothing,
    Unknown(String),
}

/// A forwarded port: `ssh,tcp,127.0.0.1,2201,,22`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub name: String,
    pub protocol: String,
    pub host: String,
    pub host_port: u16,
    pub guest: String,
    pub guest_port: u16,
}

#[derive(Debug, PartialEq)]
pub enum Uart {
    Off,
    Disconnected,
    File(PathBuf),
    Server(PathBuf),
}

impl Rule {
    pub fn parse(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split(',').collect();
        let [name, protocol, host, host_port, guest, guest_port] = parts.as_slice() else {
            return Err(format!("not a forwarded port: {text}").into());
        };
        Ok(Self {
            name: (*name).to_owned(),
            protocol: (*protocol).to_owned(),
            host: (*host).to_owned(),
            host_port: host_port.parse()?,
            guest: (*guest).to_owned(),
            guest_port: guest_port.parse()?,
        })
    }

    /// The half of the rule that names the host's port, as QEMU writes it.
    pub fn outside(&self) -> String {
        format!("{}:{}:{}", self.protocol, self.host, self.host_port)
    }

    /// The rule as QEMU writes it.
    pub fn forward(&self) -> String {
        format!("{}-{}:{}", self.outside(), self.guest, self.guest_port)
    }
}

/// The UUID of a machine given by UUID or by name; nothing when the real VBoxManage knows none.
pub fn uuid_of(given: &str) -> Result<Option<String>> {
    let plain = given.trim_start_matches('{').trim_end_matches('}');
    if plain.len() == 36 && plain.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit()) {
        return Ok(Some(plain.to_ascii_lowercase()));
    }
    let output = real::hear(&["showvminfo", given, "--machinereadable"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    let found = pairs(&text).into_iter().find(|(key, _)| key == "UUID");
    Ok(found.map(|(_, uuid)| uuid))
}

/// The machine that the real VBoxManage describes so.
pub fn parse(text: &str) -> Result<Vm> {
    let all = pairs(text);
    let get = |key: &str| all.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
    let need = |key: &str| get(key).ok_or_else(|| format!("no `{key}` in showvminfo"));
    let mut vm = Vm {
        uuid: need("UUID")?.to_owned(),
        hardware: need("hardwareuuid")?.to_owned(),
        name: need("name")?.to_owned(),
        state: need("VMState")?.to_owned(),
        memory: need("memory")?.parse()?,
        cpus: need("cpus")?.parse()?,
        efi: need("firmware")?.starts_with("EFI"),
        ich9: need("chipset")? == "ich9",
        screen: get("graphicscontroller") != Some("null"),
        utc: get("rtcuseutc") == Some("on"),
        logs: need("LogFldr")?.into(),
        snapshots: need("SnapFldr")?.into(),
        ..Vm::default()
    };
    vm.boot = (1..=4)
        .filter_map(|place| get(&format!("boot{place}")))
        .map(str::to_owned)
        .collect();
    for index in 0.. {
        let Some(name) = get(&format!("storagecontrollername{index}")) else {
            break;
        };
        vm.controllers.push(Controller {
            name: name.to_owned(),
            kind: need(&format!("storagecontrollertype{index}"))?.to_owned(),
            slots: slots(&all, name),
        });
    }
    vm.nics = nics(&all)?;
    for place in 1..=4 {
        vm.uarts.push(match get(&format!("uartmode{place}")) {
            _ if get(&format!("uart{place}")).is_none_or(|place| place == "off") => Uart::Off,
            Some(mode) => match mode.split_once(',') {
                Some(("file", path)) => Uart::File(path.into()),
                Some(("server", path)) => Uart::Server(path.into()),
                Some(_) => return Err(format!("no such serial port in the lab: {mode}").into()),
                None => Uart::Disconnected,
            },
            None => Uart::Disconnected,
        });
    }
    Ok(vm)
}

fn slots(all: &[(String, String)], controller: &str) -> Vec<Slot> {
    let mut found = Vec::new();
    for (key, value) in all {
        let Some(place) = key
            .strip_prefix(controller)
            .and_then(|key| key.strip_prefix('-'))
        else {
            continue;
        };
        let Some((port, device)) = place.split_once('-') else {
            continue;
        };
        let (Ok(port), Ok(device)) = (port.parse(), device.parse()) else {
            continue;
        };
        if value == "none" {
            continue;
        }
        let word = |word: &str| {
            let key = format!("{controller}-{word}-{port}-{device}");
            all.iter()
                .find(|(k, _)| *k == key)
                .map(|(_, value)| value.clone())
        };
        found.push(Slot {
            port,
            device,
            dvd: word("IsEjected").is_some(),
            medium: word("ImageUUID").map(|uuid| (value.into(), uuid)),
        });
    }
    found
}

fn nics(all: &[(String, String)]) -> Result<Vec<Nic>> {
    let mut found: Vec<Nic> = Vec::new();
    for (key, value) in all {
        // A rule does not say whose it is: it stands behind its adapter.
        if key.starts_with("Forwarding(") {
            if let Some(Nic {
                net: Net::Nat { rules, .. },
                ..
            }) = found.last_mut()
            {
                rules.push(Rule::parse(value)?);
            }
            continue;
        }
        let Some(slot) = key.strip_prefix("nic").and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        if value == "none" {
            continue;
        }
        let get = |word: &str| {
            let key = format!("{word}{slot}");
            all.iter()
                .find(|(k, _)| *k == key)
                .map(|(_, value)| value.clone())
        };
        let net = match value.as_str() {
            "nat" => Net::Nat {
                // The default range of each adapter (VirtualBox's manual, "Configuring the Address of a NAT Network Interface").
                cidr: get("natnet")
                    .filter(|net| net != "nat")
                    .unwrap_or_else(|| format!("10.0.{}.0/24", slot + 1)),
                rules: Vec::new(),
            },
            "intnet" => Net::Internal(get("intnet").unwrap_or_default()),
            "hostonly" => Net::HostOnly(get("hostonlyadapter").unwrap_or_default()),
            "null" => Net::Nothing,
            other => Net::Unknown(other.to_owned()),
        };
        let mac = get("macaddress").unwrap_or_default();
        found.push(Nic {
            slot,
            model: get("nictype").unwrap_or_default(),
            mac: colons(&mac),
            connected: get("cableconnected").as_deref() != Some("off"),
            net,
        });
    }
    Ok(found)
}

fn colons(mac: &str) -> String {
    let bytes: Vec<&str> = (0..mac.len() / 2)
        .filter_map(|n| mac.get(2 * n..2 * n + 2))
        .collect();
    bytes.join(":").to_ascii_lowercase()
}

/// The keys and values of a machine-readable answer. A value in quotes may go over several lines.
pub fn pairs(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let (key, value) = match line.strip_prefix('"') {
            Some(quoted) => match quoted.split_once("\"=") {
                Some((key, value)) => (key, value),
                None => continue,
            },
            None => match line.split_once('=') {
                Some((key, value)) if !key.contains(char::is_whitespace) => (key, value),
                _ => continue,
            },
        };
        let Some(begun) = value.strip_prefix('"') else {
            found.push((key.to_owned(), value.to_owned()));
            continue;
        };
        let mut whole = begun.to_owned();
        while !closed(&whole) {
            let Some(more) = lines.next() else { break };
            whole.push('\n');
            whole.push_str(more);
        }
        let inner = whole.strip_suffix('"').unwrap_or(&whole);
        found.push((
            key.to_owned(),
            inner.replace("\\\"", "\"").replace("\\\\", "\\"),
        ));
    }
    found
}

fn closed(value: &str) -> bool {
    value.strip_suffix('"').is_some_and(|rest| {
        let escapes = rest.bytes().rev().take_while(|b| *b == b'\\').count();
        escapes.is_multiple_of(2)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = include_str!("showvminfo.txt");

    #[test]
    fn a_machine_is_what_the_real_one_says() {
        let vm = parse(SAID).expect("a machine");
        assert_eq!(vm.uuid, "11111111-2222-4333-8444-555555555501");
        assert_eq!((vm.memory, vm.cpus), (1024, 2));
        assert!(vm.efi && vm.ich9 && vm.utc && !vm.screen);
        assert_eq!(vm.state, "poweroff");
        let [sata] = vm.controllers.as_slice() else {
            panic!("{:?}", vm.controllers);
        };
        assert_eq!(sata.kind, "IntelAhci");
        assert_eq!(
            sata.slots.iter().map(|slot| slot.dvd).collect::<Vec<_>>(),
            [false, true]
        );
        let [outer, inner] = vm.nics.as_slice() else {
            panic!("{:?}", vm.nics);
        };
        assert_eq!(outer.mac, "08:00:27:aa:bb:01");
        let Net::Nat { cidr, rules } = &outer.net else {
            panic!("{outer:?}");
        };
        assert_eq!(cidr, "10.0.2.0/24");
        assert_eq!(rules[0].forward(), "tcp:127.0.0.1:2201-:22");
        assert_eq!(inner.net, Net::Internal("forge".to_owned()));
        assert_eq!(vm.uarts[0], Uart::File("/vms/n1/console.log".into()));
        assert_eq!(vm.uarts[1], Uart::Off);
    }

    #[test]
    fn values_go_over_lines_and_keep_their_quotes() {
        let all = pairs(SAID);
        let description = all.iter().find(|(key, _)| key == "description");
        assert_eq!(
            description.map(|(_, value)| value.as_str()),
            Some("forge claim x\nsecond line = \"q\"")
        );
        assert_eq!(
            all.last().map(|(key, _)| key.as_str()),
            Some("GuestMemoryBalloon")
        );
    }
}
