//! `startvm`: what the real VBoxManage says that the machine is becomes a QEMU.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_setfd};
use serde_json::json;

use crate::guard::{self, LOCKED};
use crate::machine::{Machine, State};
use crate::qemu::{self, Parts, Plan};
use crate::qmp::Qmp;
use crate::vm::{self, Net, Vm};
use crate::{Result, control, disks, network, real};

/// QEMU answers within this.
const ANSWER: Duration = Duration::from_secs(60);

/// `startvm GIVEN… --type headless`
pub fn start(given: &[&str]) -> Result<u8> {
    let mut kind = "gui";
    let mut machines = Vec::new();
    let mut words = given.iter();
    while let Some(word) = words.next() {
        match *word {
            "--type" | "-type" => kind = words.next().copied().unwrap_or_default(),
            other => match other.strip_prefix("--type=") {
                Some(value) => kind = value,
                None if other.starts_with('-') => {
                    return Err(format!("the lab does not know `startvm {other}`").into());
                }
                None => machines.push(other),
            },
        }
    }
    if kind != "headless" {
        return Err(format!("the lab starts machines of type headless, not {kind}").into());
    }
    let mut code = 0;
    for machine in machines {
        code = code.max(one(machine)?);
    }
    Ok(code)
}

fn one(given: &str) -> Result<u8> {
    let output = real::hear(&["showvminfo", given, "--machinereadable"])?;
    if !output.status.success() {
        return real::tell(&["startvm", given, "--type", "headless"]);
    }
    let vm = vm::parse(&String::from_utf8_lossy(&output.stdout))?;
    let machine = Machine::of(&vm.uuid)?;
    let Some(lock) = machine.lock()? else {
        return guard::refuse(
            &format!(
                "The machine '{}' is already locked by a session (or being locked or unlocked)",
                vm.name
            ),
            LOCKED,
        );
    };
    println!("Waiting for VM \"{given}\" to power on...");
    match boot(vm, &machine, &lock) {
        Ok(()) => {
            println!("VM \"{given}\" has been successfully started.");
            Ok(0)
        }
        Err(error) => {
            network::detach(&machine.uuid())?;
            guard::refuse(&error.to_string(), "NS_ERROR_FAILURE (0x80004005)")
        }
    }
}

fn boot(mut vm: Vm, machine: &Machine, lock: &File) -> Result<()> {
    let saved = vm.state == "saved";
    fs::create_dir_all(&vm.logs)?;
    let log = File::create(vm.logs.join("VBox.log"))?;
    leave_out_taken_ports(&mut vm, &log)?;
    let media: Vec<String> = vm
        .controllers
        .iter()
        .flat_map(|controller| &controller.slots)
        .filter(|slot| !slot.dvd)
        .filter_map(|slot| slot.medium.as_ref())
        .flat_map(|(path, uuid)| [path.display().to_string(), uuid.clone()])
        .collect();
    // Written down first, so that what is made for the media goes with the machine.
    let mut record = json!({ "name": vm.name, "media": media, "logs": vm.logs });
    machine.save(&record)?;
    let vars = machine.folder.join("vars.qcow2");
    if vm.efi && !vars.exists() {
        let (_, template) = qemu::firmware()?;
        let aside = machine.folder.join("vars.new");
        disks::run(
            Command::new("qemu-img")
                .args(["convert", "-f", "raw", "-O", "qcow2"])
                .arg(template)
                .arg(&aside),
        )?;
        fs::rename(aside, &vars)?;
    }
    let plan = Plan::of(
        &vm,
        &Parts {
            socket: &machine.socket(),
            overlays: &disks::overlay,
            vars: vm.efi.then_some(vars.as_path()),
            stopped: saved,
        },
    )?;
    network::attach(&vm.uuid, &vm.nics)?;
    let drives: serde_json::Map<String, serde_json::Value> = plan
        .drives
        .iter()
        .map(|(place, name)| (place.clone(), name.as_str().into()))
        .collect();
    record["qemu"] = json!(plan.words);
    record["nodes"] = json!(plan.nodes);
    record["drives"] = json!(drives);
    machine.save(&record)?;
    machine.enter(State::Running)?;
    let _ = fs::remove_file(machine.socket());
    // Those two processes alone inherit the lock: a daemon would hold it on.
    fcntl_setfd(lock, FdFlags::empty())?;
    let watcher = Command::new(std::env::current_exe()?)
        .arg("--supervise")
        .arg(&machine.folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn();
    fcntl_setfd(lock, FdFlags::CLOEXEC)?;
    let mut watcher = watcher?;
    let mut qmp = answer(machine, &mut watcher, &vm)?;
    if saved {
        control::load(&mut qmp, &plan.nodes)?;
    }
    for nic in vm.nics.iter().filter(|nic| !nic.connected) {
        let name = format!("net{}", nic.slot);
        qmp.execute("set_link", &json!({ "name": name, "up": false }))?;
    }
    if saved {
        // The real VBoxManage takes it for off again, and removes its file.
        real::ask(&["discardstate", &vm.uuid])?;
    }
    Ok(())
}

/// The connection to a QEMU that runs.
fn answer(machine: &Machine, watcher: &mut Child, vm: &Vm) -> Result<Qmp> {
    let until = Instant::now() + ANSWER;
    loop {
        if let Ok(qmp) = Qmp::open(&machine.socket()) {
            return Ok(qmp);
        }
        if watcher.try_wait()?.is_some() {
            let said = fs::read_to_string(vm.logs.join("VBox.log")).unwrap_or_default();
            return Err(format!(
                "The virtual machine '{}' has terminated unexpectedly during startup with exit code 1 (0x1)\n{}",
                vm.name,
                said.trim()
            )
            .into());
        }
        if Instant::now() > until {
            return Err(format!("QEMU does not start the machine '{}'", vm.name).into());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// As with VirtualBox a machine starts without the forwarded ports that somebody else has; its log says so.
fn leave_out_taken_ports(vm: &mut Vm, mut log: &File) -> Result<()> {
    for nic in &mut vm.nics {
        let Net::Nat { rules, .. } = &mut nic.net else {
            continue;
        };
        let mut taken = Vec::new();
        rules.retain(|rule| {
            let host = if rule.host.is_empty() {
                "0.0.0.0"
            } else {
                &rule.host
            };
            let place = (host, rule.host_port);
            let free = match rule.protocol.as_str() {
                "udp" => UdpSocket::bind(place).is_ok(),
                _ => TcpListener::bind(place).is_ok(),
            };
            if !free {
                taken.push(rule.outside());
            }
            free
        });
        for place in taken {
            writeln!(log, "NAT: failed to redirect {place}")?;
        }
    }
    Ok(())
}

/// Adds a line to the log of a machine that runs.
pub fn log(machine: &Machine, line: &str) {
    let record = machine.record().unwrap_or_default();
    let folder = record["logs"].as_str().unwrap_or_default();
    let file = OpenOptions::new()
        .append(true)
        .open(std::path::Path::new(folder).join("VBox.log"));
    if let Ok(mut file) = file {
        let _ = writeln!(file, "{line}");
    }
}
