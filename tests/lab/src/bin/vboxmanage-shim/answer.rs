//! What the real VBoxManage says of machines, with the state that only the shim knows.

use std::ffi::OsString;
use std::io::Write;
use std::process::Output;

use crate::machine::{Machine, State};
use crate::{Result, real};

/// `showvminfo`, for programs and for people.
pub fn showvminfo(words: &[OsString]) -> Result<u8> {
    let mut output = real::hear(words)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if let Some(uuid) = uuid(&said)
        && let Some((state, since)) = Machine::of(uuid)?.state()?
    {
        output.stdout = with_state(&said, state, &since).into_bytes();
    }
    pass_on(&output)
}

/// `list runningvms`: of all machines those whose QEMU runs.
pub fn runningvms() -> Result<u8> {
    let mut output = real::hear(&["list", "vms"])?;
    let mut running = Vec::new();
    for machine in Machine::all()? {
        if machine.alive()? {
            running.push(format!("{{{}}}", machine.uuid()));
        }
    }
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    output.stdout = said
        .split_inclusive('\n')
        .filter(|line| {
            let machine = line.starts_with('"');
            !machine
                || running
                    .iter()
                    .any(|uuid| line.trim_end().ends_with(uuid.as_str()))
        })
        .collect::<String>()
        .into_bytes();
    pass_on(&output)
}

/// Writes what a call of the real VBoxManage wrote, and returns its exit code.
pub fn pass_on(output: &Output) -> Result<u8> {
    std::io::stdout().write_all(&output.stdout)?;
    std::io::stderr().write_all(&output.stderr)?;
    Ok(real::code(output.status))
}

fn uuid(said: &str) -> Option<&str> {
    said.lines().find_map(|line| {
        let value = line
            .strip_prefix("UUID=\"")
            .map(|value| value.trim_end_matches('"'))
            .or_else(|| line.strip_prefix("UUID:"))?;
        Some(value.trim())
    })
}

/// The answer with another state. A saved one is the real VBoxManage's own.
fn with_state(said: &str, state: State, since: &str) -> String {
    let mut text = String::with_capacity(said.len());
    let mut saved = false;
    // Only the first of each: further down are words of the user's.
    let (mut state_done, mut since_done) = (false, false);
    for line in said.split_inclusive('\n') {
        if !state_done && let Some(old) = line.strip_prefix("VMState=") {
            state_done = true;
            saved = old.trim_end() == "\"saved\"";
            if !saved {
                text.push_str(&format!("VMState=\"{}\"\n", state.word()));
                continue;
            }
        } else if !since_done && line.starts_with("VMStateChangeTime=") {
            since_done = true;
            if !saved {
                text.push_str(&format!("VMStateChangeTime=\"{since}\"\n"));
                continue;
            }
        } else if !state_done && let Some(old) = line.strip_prefix("State:") {
            state_done = true;
            if !old.trim_start().starts_with("saved") {
                text.push_str(&format!(
                    "{:<29}{} (since {since})\n",
                    "State:",
                    state.words()
                ));
                continue;
            }
        }
        text.push_str(line);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = include_str!("showvminfo.txt");

    #[test]
    fn only_the_state_is_another() {
        let text = with_state(SAID, State::Running, "2026-01-02T03:04:05.000000000");
        assert!(text.contains("\nVMState=\"running\"\nVMStateChangeTime=\"2026-01-02T"));
        let changed = SAID
            .lines()
            .zip(text.lines())
            .filter(|(old, new)| old != new);
        assert_eq!(changed.count(), 2);
        assert_eq!(uuid(SAID), Some("11111111-2222-4333-8444-555555555501"));
    }

    #[test]
    fn a_saved_state_is_the_real_ones() {
        let saved = SAID.replace("VMState=\"poweroff\"", "VMState=\"saved\"");
        assert_eq!(with_state(&saved, State::PoweredOff, "x"), saved);
    }

    #[test]
    fn people_read_it_too() {
        let text = with_state(
            "UUID:    x\nState:                       powered off (since y)\nState: mine\n",
            State::Paused,
            "z",
        );
        assert_eq!(
            text,
            "UUID:    x\nState:                       paused (since z)\nState: mine\n"
        );
    }
}
