//! Stopping a machine's process, verified to be that machine's.

use std::fs;
use std::time::Duration;

use forge_driver::{Claim, Error, Kind, Result, State};
use serde_json::Value;

use crate::folder::Folder;
use crate::qmp::Qmp;
use crate::sockets::Sockets;

/// How long QEMU may take to end when it is told to, and when the kernel ends it.
const QUIT_DEADLINE: Duration = Duration::from_secs(5);
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// What QEMU's run state (QAPI `RunState`) means to us.
pub(crate) fn state(status: &str) -> State {
    match status {
        "running" => State::Running,
        "paused" | "suspended" | "debug" | "save-vm" | "finish-migrate" | "postmigrate" => {
            State::Paused
        }
        "prelaunch" | "inmigrate" | "restore-vm" => State::Starting,
        "shutdown" => State::Stopping,
        _ => State::Error,
    }
}

/// Lets a paused machine go on.
pub(crate) async fn resume(folder: &Folder, sockets: &Sockets) -> Result<()> {
    let mut qmp = Qmp::open(&sockets.qmp(folder.claim()), folder.claim()).await?;
    if qmp.status().await? != "running" {
        qmp.execute("cont", Value::Null).await?;
    }
    Ok(())
}

/// Asks the guest to shut down, as the power button does.
pub(crate) async fn shutdown(folder: &Folder, sockets: &Sockets) -> Result<()> {
    if !folder.running()? {
        return Ok(());
    }
    let asked = async {
        let mut qmp = Qmp::open(&sockets.qmp(folder.claim()), folder.claim()).await?;
        qmp.execute("system_powerdown", Value::Null).await
    }
    .await;
    match asked {
        // It may have ended between the two looks.
        Err(_) if !folder.running()? => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Ends the machine at once. When its control socket does not answer, the process is killed, after
/// its command line was seen to carry the claim.
///
/// # Errors
/// [`Kind::Refused`] when what runs is another machine; [`Kind::Timeout`] when it does not end.
pub(crate) async fn kill(folder: &Folder, sockets: &Sockets) -> Result<()> {
    if !folder.running()? {
        return Ok(());
    }
    let told = async {
        Qmp::open(&sockets.qmp(folder.claim()), folder.claim())
            .await?
            .quit()
            .await
    }
    .await;
    match told {
        Err(error) if error.kind() == Kind::Refused => return Err(error),
        Ok(()) if folder.stopped_within(QUIT_DEADLINE).await? => return Ok(()),
        _ => {}
    }
    if !folder.running()? {
        return Ok(());
    }
    let pid = kill_process(folder)?;
    if folder.stopped_within(KILL_DEADLINE).await? {
        return Ok(());
    }
    Err(Error::new(
        Kind::Timeout,
        format!(
            "process {pid} of the virtual machine `{}` does not end",
            folder.claim()
        ),
    ))
}

fn kill_process(folder: &Folder) -> Result<i32> {
    let unknown = || {
        Error::new(
            Kind::Failed,
            format!(
                "the process of the virtual machine `{}` does not answer and cannot be found",
                folder.claim()
            ),
        )
        .hint(format!("look for it with `pgrep -f {}`", folder.claim()))
    };
    let pid = fs::read_to_string(folder.pid())
        .ok()
        .and_then(|text| text.trim().parse::<i32>().ok())
        .and_then(rustix::process::Pid::from_raw)
        .ok_or_else(unknown)?;
    signal(pid, folder.claim()).map_err(|error| unknown().because(error))?;
    Ok(pid.as_raw_nonzero().get())
}

/// Kills the process, which is the one whose command line was read: a descriptor of it is held in
/// between, so that its number cannot have passed on to another.
#[cfg(target_os = "linux")]
fn signal(pid: rustix::process::Pid, claim: Claim) -> Result<(), std::io::Error> {
    use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
    let handle = pidfd_open(pid, PidfdFlags::empty())?;
    let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()))?;
    if !carries(&line, claim) {
        return Err(std::io::Error::other("another process has its number now"));
    }
    Ok(pidfd_send_signal(&handle, Signal::KILL)?)
}

/// Kills the process after its command line was read. Without process descriptors the two are not
/// one step; the lock that the machine's process holds makes a mistake all but impossible.
#[cfg(not(target_os = "linux"))]
fn signal(pid: rustix::process::Pid, claim: Claim) -> Result<(), std::io::Error> {
    let number = pid.as_raw_nonzero().to_string();
    let output = std::process::Command::new("ps")
        .args(["-ww", "-o", "command=", "-p", &number])
        .output()?;
    let words: Vec<u8> = output
        .stdout
        .iter()
        .map(|byte| if byte.is_ascii_whitespace() { 0 } else { *byte })
        .collect();
    if !carries(&words, claim) {
        return Err(std::io::Error::other("another process has its number now"));
    }
    Ok(rustix::process::kill_process(
        pid,
        rustix::process::Signal::KILL,
    )?)
}

/// A command line, its words ended by zeros, names this claim as the machine's UUID.
fn carries(line: &[u8], claim: Claim) -> bool {
    let claim = claim.to_string();
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    words
        .windows(2)
        .any(|pair| pair[0] == b"-uuid" && pair[1] == claim.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_uuid_word() {
        let claim = Claim::random();
        let line = format!("qemu\0-name\0x\0-uuid\0{claim}\0-m\0");
        assert!(carries(line.as_bytes(), claim));
        assert!(!carries(line.as_bytes(), Claim::random()));
        assert!(!carries(format!("vi\0{claim}\0").as_bytes(), claim));
    }

    #[test]
    fn run_states_are_mapped() {
        assert_eq!(state("running"), State::Running);
        assert_eq!(state("paused"), State::Paused);
        assert_eq!(state("io-error"), State::Error);
        assert_eq!(state("internal-error"), State::Error);
        assert_eq!(state("shutdown"), State::Stopping);
    }
}
