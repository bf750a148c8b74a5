//! What VirtualBox refuses while a machine runs. The real VBoxManage believes that it is off.

use std::ffi::OsString;

use serde_json::json;

use crate::machine::Machine;
use crate::qmp::Qmp;
use crate::{Result, disks, network, real, vm};

/// The machine that is meant, when its QEMU runs.
pub fn running(given: &str) -> Result<Option<Machine>> {
    let mut any = false;
    for machine in Machine::all()? {
        any |= machine.alive()?;
    }
    if !any {
        return Ok(None);
    }
    let Some(uuid) = vm::uuid_of(given)? else {
        return Ok(None);
    };
    let machine = Machine::of(&uuid)?;
    Ok(machine.alive()?.then_some(machine))
}

/// Says why in the words of the real one, with the code that belongs to them.
pub fn refuse(text: &str, code: &str) -> Result<u8> {
    eprintln!("VBoxManage: error: {text}");
    eprintln!(
        "VBoxManage: error: Details: code {code}, component MachineWrap, interface IMachine, callee nsISupports"
    );
    Ok(1)
}

/// The code of an object that is locked.
pub const LOCKED: &str = "VBOX_E_INVALID_OBJECT_STATE (0x80bb0007)";
/// The code of a machine that cannot do this now.
pub const STATE: &str = "VBOX_E_INVALID_VM_STATE (0x80bb0002)";

fn locked(machine: &Machine) -> Result<u8> {
    let name = machine.name();
    refuse(
        &format!("The machine '{name}' is already locked for a session (or being unlocked)"),
        LOCKED,
    )
}

/// `modifyvm`, `storagectl` and others that change a machine.
pub fn modify(words: &[OsString], given: &str) -> Result<u8> {
    match running(given)? {
        Some(machine) => locked(&machine),
        None => real::exec(words),
    }
}

/// `unregistervm`: what guests wrote to the media of the machine goes with them.
pub fn unregister(words: &[OsString], given: &str, options: &[&str]) -> Result<u8> {
    if let Some(machine) = running(given)? {
        let name = machine.name();
        return refuse(
            &format!("Cannot unregister the machine '{name}' while it is locked"),
            LOCKED,
        );
    }
    let uuid = vm::uuid_of(given)?;
    let code = real::tell(words)?;
    if let Some(uuid) = uuid
        && code == 0
    {
        // What is still there when the process that watched over it was killed.
        network::detach(&uuid)?;
        let machine = Machine::of(&uuid)?;
        if options.iter().any(|option| option.starts_with("--delete")) {
            for medium in machine.media() {
                disks::forget(&medium)?;
            }
            disks::tidy()?;
        }
        if machine.folder.exists() {
            std::fs::remove_dir_all(machine.folder)?;
        }
    }
    Ok(code)
}

/// `closemedium --delete`: what guests wrote to the medium goes with it.
pub fn close(words: &[OsString], given: &[&str]) -> Result<u8> {
    let code = real::tell(words)?;
    if code == 0 && given.contains(&"--delete") {
        for word in given {
            disks::forget(word)?;
        }
    }
    Ok(code)
}

/// `modifymedium` of a medium in use.
pub fn medium(words: &[OsString], given: &[&str]) -> Result<u8> {
    for machine in Machine::all()? {
        if machine.alive()?
            && let Some(medium) = machine
                .media()
                .iter()
                .find(|one| given.contains(&one.as_str()))
        {
            return refuse(
                &format!("Medium '{medium}' is locked for writing by another task"),
                LOCKED,
            );
        }
    }
    real::exec(words)
}

/// `storageattach`: the disc in a drive may be changed at any time, everything else only while the machine is off.
pub fn attach(words: &[OsString], given: &str, options: &[&str]) -> Result<u8> {
    let Some(machine) = running(given)? else {
        return real::exec(words);
    };
    let get = |key: &str| {
        let mut all = options.iter();
        while let Some(word) = all.next() {
            match word.split_once('=') {
                Some((name, value)) if name == key => return Some(value),
                None if *word == key => return all.next().copied(),
                _ => {}
            }
        }
        None
    };
    let place = format!(
        "{}-{}-{}",
        get("--storagectl").unwrap_or_default(),
        get("--port").unwrap_or("0"),
        get("--device").unwrap_or("0")
    );
    let record = machine.record().unwrap_or_default();
    let (Some(device), Some(medium)) = (record["drives"][&place].as_str(), get("--medium")) else {
        return locked(&machine);
    };
    if medium == "none" {
        return locked(&machine);
    }
    let code = real::tell(words)?;
    if code == 0 {
        let mut qmp = Qmp::open(&machine.socket())?;
        if medium == "emptydrive" {
            qmp.execute("eject", &json!({ "id": device, "force": true }))?;
        } else {
            qmp.execute(
                "blockdev-change-medium",
                &json!({ "id": device, "filename": medium, "format": "raw", "force": true }),
            )?;
        }
    }
    Ok(code)
}
