//! `controlvm`: the commands that a running machine takes, over QEMU's machine protocol.

use std::ffi::OsString;
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::guard::{self, STATE};
use crate::machine::{Machine, State};
use crate::qmp::Qmp;
use crate::vm::{Net, Rule};
use crate::{Result, real, vm};

const END: Duration = Duration::from_secs(30);
/// The name of the snapshot in the overlays of a machine whose state is saved.
const SNAPSHOT: &str = "saved";

/// Hands a command to the running machine. Of one that is off the real VBoxManage says so.
pub fn control(words: &[OsString], given: &str, action: &[&str]) -> Result<u8> {
    let Some(machine) = guard::running(given)? else {
        return real::exec(words);
    };
    let state = machine.running()?.unwrap_or(State::PoweredOff);
    let invalid = |must: &str| {
        let words = match state {
            State::Running => "Running",
            State::Paused => "Paused",
            State::PoweredOff | State::Aborted => "Stopping",
        };
        guard::refuse(
            &format!("Invalid machine state: {words} (must be {must})"),
            STATE,
        )
    };
    let mut qmp = Qmp::open(&machine.socket())?;
    match action {
        ["acpipowerbutton"] if state != State::Running => {
            return invalid("Running, Teleporting or LiveSnapshotting");
        }
        ["acpipowerbutton"] => {
            qmp.execute("system_powerdown", &json!({}))?;
        }
        ["poweroff"] => {
            eprint!("0%...");
            quit(qmp, &machine)?;
            eprintln!("10%...20%...30%...40%...50%...60%...70%...80%...90%...100%");
        }
        ["reset"] if state != State::Running => {
            return invalid("Running, Teleporting or LiveSnapshotting");
        }
        ["reset"] => {
            qmp.execute("system_reset", &json!({}))?;
        }
        ["pause"] if state != State::Running => {
            return invalid("Running, Teleporting or LiveSnapshotting");
        }
        ["pause"] => {
            qmp.execute("stop", &json!({}))?;
            machine.enter(State::Paused)?;
        }
        ["resume"] if state != State::Paused => return invalid("Paused"),
        ["resume"] => {
            qmp.execute("cont", &json!({}))?;
            machine.enter(State::Running)?;
        }
        ["savestate"] => return save(qmp, &machine),
        [word, rest @ ..] if word.starts_with("natpf") => {
            return forward(&mut qmp, &machine, word, rest);
        }
        [word, up @ ("on" | "off")] if word.starts_with("setlinkstate") => {
            let slot = word.trim_start_matches("setlinkstate");
            let up = *up == "on";
            qmp.execute(
                "set_link",
                &json!({ "name": format!("net{slot}"), "up": up }),
            )?;
        }
        _ => return Err(format!("the lab does not know `controlvm {}`", action.join(" ")).into()),
    }
    Ok(0)
}

fn quit(mut qmp: Qmp, machine: &Machine) -> Result<()> {
    // QEMU may be gone before its answer is.
    let _ = qmp.execute("quit", &json!({}));
    drop(qmp);
    machine.wait(END)
}

/// Saves the state into the overlays; the real VBoxManage adopts it, so that all it says of the machine from
/// then on is its own.
fn save(mut qmp: Qmp, machine: &Machine) -> Result<u8> {
    let record = machine.record().unwrap_or_default();
    let nodes = record["nodes"].clone();
    let first = nodes[0]
        .as_str()
        .ok_or("a machine without disks cannot be saved")?;
    qmp.execute("stop", &json!({}))?;
    eprint!("0%...");
    let _ = qmp.job(
        "snapshot-delete",
        json!({ "tag": SNAPSHOT, "devices": nodes }),
    );
    qmp.job(
        "snapshot-save",
        json!({ "tag": SNAPSHOT, "vmstate": first, "devices": nodes }),
    )?;
    quit(qmp, machine)?;
    let uuid = machine.uuid();
    let vm = vm::parse(&real::ask(&["showvminfo", &uuid, "--machinereadable"])?)?;
    fs::create_dir_all(&vm.snapshots)?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let file = vm.snapshots.join(format!("{}.sav", since.as_nanos()));
    fs::write(&file, "")?;
    let output = real::hear(&["adoptstate".as_ref(), uuid.as_ref(), file.as_os_str()])?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("adoptstate: {}", said.trim()).into());
    }
    eprintln!("10%...20%...30%...40%...50%...60%...70%...80%...90%...100%");
    Ok(0)
}

/// Goes on from the state that [`save`] left. The machine was started without running.
pub fn load(qmp: &mut Qmp, nodes: &[String]) -> Result<()> {
    let first = nodes
        .first()
        .ok_or("a machine without disks has no state")?;
    qmp.job(
        "snapshot-load",
        json!({ "tag": SNAPSHOT, "vmstate": first, "devices": nodes }),
    )?;
    qmp.execute("cont", &json!({}))?;
    Ok(())
}

/// `natpf1 RULE` and `natpf1 delete NAME`: the real VBoxManage checks and keeps the rule, QEMU follows it.
fn forward(qmp: &mut Qmp, machine: &Machine, word: &str, rest: &[&str]) -> Result<u8> {
    let uuid = machine.uuid();
    let slot: u32 = word.trim_start_matches("natpf").parse()?;
    let option = format!("--natpf{slot}");
    let mut words = vec!["modifyvm", &uuid, &option];
    words.extend(rest);
    let line = match rest {
        ["delete", name] => {
            let vm = vm::parse(&real::ask(&["showvminfo", &uuid, "--machinereadable"])?)?;
            let rules = vm
                .nics
                .iter()
                .filter(|nic| nic.slot == slot)
                .flat_map(|nic| match &nic.net {
                    Net::Nat { rules, .. } => rules.as_slice(),
                    _ => &[],
                });
            let known = rules.into_iter().find(|rule| rule.name == *name);
            known.map(|rule| format!("hostfwd_remove net{slot} {}", rule.outside()))
        }
        [rule] => Some(format!(
            "hostfwd_add net{slot} {}",
            Rule::parse(rule)?.forward()
        )),
        _ => None,
    };
    let code = real::tell(&words)?;
    if let Some(line) = line
        && code == 0
    {
        // As with VirtualBox a port that somebody else has is no error of the call.
        let said = qmp.monitor(&line)?;
        if !said.is_empty() && !said.contains("removed") {
            crate::boot::log(machine, &format!("NAT: {line}: {said}"));
        }
    }
    Ok(code)
}
