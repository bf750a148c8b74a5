//! The process that stands for VirtualBox's own of a running machine: it starts QEMU, waits for its end and
//! writes down how it ended.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::machine::{Machine, State};
use crate::{Result, network};

/// Runs the machine of this folder to its end. Both processes hold its lock, which they inherited.
pub fn run(folder: &Path) -> Result<u8> {
    let machine = Machine::at(folder);
    let record = machine.record().ok_or("no record")?;
    let words = record["qemu"].as_array().cloned().unwrap_or_default();
    let mut words = words.iter().filter_map(|word| word.as_str());
    let ended = Command::new(words.next().ok_or("no program")?)
        .args(words)
        .stdin(Stdio::null())
        .status()?;
    network::detach(&machine.uuid())?;
    let _ = std::fs::remove_file(machine.socket());
    // A guest that switches itself off and `poweroff` end with 0. A process that is killed is what
    // VirtualBox calls aborted.
    machine.enter(if ended.success() {
        State::PoweredOff
    } else {
        State::Aborted
    })?;
    Ok(0)
}
