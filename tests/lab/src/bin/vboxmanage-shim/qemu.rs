//! QEMU's words for a machine.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::vm::{Controller, Net, Nic, Slot, Uart, Vm};
use crate::{Result, network};

/// The firmware of Debian's package `ovmf`: code and variables.
const FIRMWARE: &[(&str, &str)] = &[
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    (
        "/usr/share/OVMF/OVMF_CODE.fd",
        "/usr/share/OVMF/OVMF_VARS.fd",
    ),
];

/// The first pair of UEFI code and variables that is installed.
pub fn firmware() -> Result<(&'static Path, &'static Path)> {
    let found = FIRMWARE.iter().find(|(code, _)| Path::new(code).exists());
    let (code, vars) = found.ok_or("the package `ovmf` is not installed")?;
    Ok((Path::new(code), Path::new(vars)))
}

/// What a machine is started with.
#[derive(Debug, Default)]
pub struct Plan {
    /// The program and its arguments.
    pub words: Vec<String>,
    /// The nodes that guests write to, which a saved state is made of.
    pub nodes: Vec<String>,
    /// The drives whose disc can be changed: their place and QEMU's name of them.
    pub drives: Vec<(String, String)>,
}

/// What is made beforehand.
pub struct Parts<'a> {
    pub socket: &'a Path,
    /// The overlay of a medium.
    pub overlays: &'a dyn Fn(&str) -> Result<PathBuf>,
    /// The variables of UEFI, when that is the firmware.
    pub vars: Option<&'a Path>,
    /// Whether it waits, for a state to go on from.
    pub stopped: bool,
}

impl Plan {
    fn add(&mut self, words: &[&str]) {
        self.words
            .extend(words.iter().map(|word| (*word).to_owned()));
    }

    fn json(&mut self, option: &str, value: &Value) {
        self.add(&[option, &value.to_string()]);
    }

    /// The words for this machine.
    pub fn of(vm: &Vm, parts: &Parts<'_>) -> Result<Self> {
        let mut plan = Self::default();
        let machine = if vm.ich9 { "q35" } else { "pc" };
        plan.add(&["qemu-system-x86_64", "-name", &vm.name.replace(',', ",,")]);
        plan.add(&["-uuid", &vm.hardware, "-nodefaults", "-no-user-config"]);
        plan.add(&[
            "-display",
            "none",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
        ]);
        plan.add(&["-m", &vm.memory.to_string(), "-smp", &vm.cpus.to_string()]);
        plan.add(&["-rtc", if vm.utc { "base=utc" } else { "base=localtime" }]);
        // What VirtualBox's machines say of themselves.
        plan.add(&[
            "-smbios",
            "type=1,manufacturer=innotek GmbH,product=VirtualBox,version=1.2",
        ]);
        plan.add(&["-vga", if vm.screen { "std" } else { "none" }]);
        let socket = parts.socket.display();
        plan.add(&["-qmp", &format!("unix:{socket},server=on,wait=off")]);
        match parts.vars {
            None => plan.add(&["-machine", machine]),
            Some(vars) => {
                let (code, _) = firmware()?;
                plan.json(
                    "-blockdev",
                    &json!({ "node-name": "code", "driver": "raw", "read-only": true,
                             "file": { "driver": "file", "filename": code } }),
                );
                plan.overlay("vars", vars);
                plan.add(&["-machine", &format!("{machine},pflash0=code,pflash1=vars")]);
            }
        }
        for (number, controller) in vm.controllers.iter().enumerate() {
            plan.controller(vm, number, controller, parts)?;
        }
        // The variables come last: a saved state lies in the first.
        plan.nodes.reverse();
        for nic in &vm.nics {
            plan.nic(vm, nic)?;
        }
        for (number, uart) in vm.uarts.iter().enumerate() {
            plan.uart(number, uart);
        }
        if parts.stopped {
            plan.add(&["-S"]);
        }
        Ok(plan)
    }

    fn overlay(&mut self, node: &str, path: &Path) {
        self.json(
            "-blockdev",
            &json!({ "node-name": node, "driver": "qcow2",
                     "cache": { "direct": false, "no-flush": true },
                     "file": { "driver": "file", "filename": path,
                               "cache": { "direct": false, "no-flush": true } } }),
        );
        self.nodes.push(node.to_owned());
    }

    fn controller(
        &mut self,
        vm: &Vm,
        number: usize,
        controller: &Controller,
        parts: &Parts<'_>,
    ) -> Result<()> {
        let id = format!("c{number}");
        let kind = controller.kind.as_str();
        match kind {
            "IntelAhci" => self.json("-device", &json!({ "driver": "ahci", "id": id })),
            "VirtioSCSI" => self.json("-device", &json!({ "driver": "virtio-scsi-pci", "id": id })),
            // The board `pc` has one.
            "PIIX3" | "PIIX4" | "ICH6" if !vm.ich9 => {}
            "PIIX3" | "PIIX4" | "ICH6" => {
                self.json("-device", &json!({ "driver": "piix4-ide", "id": id }));
            }
            _ if controller.slots.is_empty() => return Ok(()),
            other => return Err(format!("no such controller in the lab: {other}").into()),
        }
        for slot in &controller.slots {
            self.slot(vm, &id, controller, slot, parts)?;
        }
        Ok(())
    }

    fn slot(
        &mut self,
        vm: &Vm,
        id: &str,
        controller: &Controller,
        slot: &Slot,
        parts: &Parts<'_>,
    ) -> Result<()> {
        let (port, unit) = (slot.port, slot.device);
        let node = format!("{id}p{port}d{unit}");
        let name = format!("{node}-drive");
        let scsi = controller.kind == "VirtioSCSI";
        let mut device = match controller.kind.as_str() {
            "IntelAhci" => json!({ "bus": format!("{id}.{port}") }),
            "VirtioSCSI" => json!({ "bus": format!("{id}.0"), "scsi-id": port }),
            _ if vm.ich9 => json!({ "bus": format!("{id}.{port}"), "unit": unit }),
            _ => json!({ "bus": format!("ide.{port}"), "unit": unit }),
        };
        device["id"] = name.as_str().into();
        device["driver"] = match (scsi, slot.dvd) {
            (true, true) => "scsi-cd",
            (true, false) => "scsi-hd",
            (false, true) => "ide-cd",
            (false, false) => "ide-hd",
        }
        .into();
        match &slot.medium {
            Some((path, _)) if slot.dvd => {
                self.json(
                    "-blockdev",
                    &json!({ "node-name": node, "driver": "raw", "read-only": true,
                             "file": { "driver": "file", "filename": path } }),
                );
                device["drive"] = node.into();
            }
            Some((_, uuid)) => {
                let overlay = (parts.overlays)(uuid)?;
                self.overlay(&node, &overlay);
                device["drive"] = node.into();
                device["serial"] = serial(uuid).into();
                if !scsi {
                    device["model"] = "VBOX HARDDISK".into();
                }
            }
            None => {}
        }
        let kind = if slot.dvd { "dvd" } else { "disk" };
        if let Some(place) = vm.boot.iter().position(|word| word == kind) {
            // Those of one kind come in the order of their places.
            let order = self
                .words
                .iter()
                .filter(|word| word.contains("\"bootindex\""))
                .count();
            device["bootindex"] = (place * 100 + order).into();
        }
        self.json("-device", &device);
        if slot.dvd {
            self.drives
                .push((format!("{}-{port}-{unit}", controller.name), name));
        }
        Ok(())
    }

    fn nic(&mut self, vm: &Vm, nic: &Nic) -> Result<()> {
        let id = format!("net{}", nic.slot);
        let backend = match &nic.net {
            Net::Nat { cidr, rules } => {
                let mut words = format!("user,id={id},net={cidr}");
                for rule in rules {
                    words.push_str(&format!(",hostfwd={}", rule.forward()));
                }
                words
            }
            Net::Internal(_) | Net::HostOnly(_) => {
                let tap = network::tap(&vm.uuid, nic.slot);
                format!("tap,id={id},ifname={tap},script=no,downscript=no")
            }
            Net::Nothing => format!("hubport,id={id},hubid={}", nic.slot),
            Net::Unknown(other) => {
                return Err(format!("no such network in the lab: {other}").into());
            }
        };
        let model = match nic.model.as_str() {
            "virtio" => "virtio-net-pci",
            "82540EM" => "e1000",
            "82543GC" => "e1000-82544gc",
            "82545EM" => "e1000-82545em",
            "Am79C970A" | "Am79C973" => "pcnet",
            other => return Err(format!("no such adapter in the lab: {other}").into()),
        };
        self.add(&["-netdev", &backend]);
        self.json(
            "-device",
            &json!({ "driver": model, "netdev": id, "id": format!("{id}-nic"), "mac": nic.mac, "romfile": "" }),
        );
        Ok(())
    }

    fn uart(&mut self, number: usize, uart: &Uart) {
        let backend = match uart {
            Uart::Off => return,
            Uart::Disconnected => format!("null,id=uart{number}"),
            // Emptied at every start, as VirtualBox does it.
            Uart::File(path) => format!("file,id=uart{number},path={}", commas(path)),
            Uart::Server(path) => {
                format!(
                    "socket,id=uart{number},path={},server=on,wait=off",
                    commas(path)
                )
            }
        };
        self.add(&["-chardev", &backend]);
        let chardev = format!("uart{number}");
        self.json(
            "-device",
            &json!({ "driver": "isa-serial", "index": number, "chardev": chardev }),
        );
    }
}

/// The serial number that VirtualBox gives a disk: the first and the last word of the medium's UUID.
fn serial(uuid: &str) -> String {
    let plain = uuid.replace('-', "");
    let last: Vec<&str> = (12..16)
        .rev()
        .filter_map(|n| plain.get(2 * n..2 * n + 2))
        .collect();
    format!("VB{}-{}", plain.get(..8).unwrap_or_default(), last.concat())
}

fn commas(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm;

    #[test]
    fn a_machine_boots_from_its_own_disk() {
        let vm = vm::parse(include_str!("showvminfo.txt")).expect("a machine");
        let parts = Parts {
            socket: Path::new("/run/x.qmp"),
            overlays: &|uuid| Ok(format!("/media/{uuid}.qcow2").into()),
            vars: None,
            stopped: false,
        };
        let plan = Plan::of(&vm, &parts).expect("a plan");
        let line = plan.words.join(" ");
        assert!(!line.contains("-kernel"), "{line}");
        assert!(line.contains("-machine q35"), "{line}");
        assert!(line.contains("-m 1024 -smp 2"), "{line}");
        assert!(line.contains("hostfwd=tcp:127.0.0.1:2201-:22"), "{line}");
        assert!(line.contains("08:00:27:aa:bb:02"), "{line}");
        assert!(line.contains("path=/vms/n1/console.log"), "{line}");
        assert!(
            line.contains("/media/7619d736-") || line.contains("/media/"),
            "{line}"
        );
        assert_eq!(plan.nodes, ["c0p0d0"]);
        assert_eq!(
            plan.drives,
            [("SATA-1-0".to_owned(), "c0p1d0-drive".to_owned())]
        );
    }

    #[test]
    fn a_disk_has_the_serial_number_of_its_medium() {
        assert_eq!(
            serial("7619d736-d8dd-40e2-940b-94e88c800fef"),
            "VB7619d736-ef0f808c"
        );
    }
}
