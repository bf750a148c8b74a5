//! What a trial of an accelerator shows: a kernel is booted without a disk, and has to come as far as
//! finding none.

use std::time::Duration;

use crate::process::tail;

/// How a trial ended.
#[derive(Debug)]
pub enum Ended {
    /// By itself, without an error.
    Well,
    /// With this error.
    Badly(String),
    /// Not within its deadline.
    Never,
}

/// What a trial says about the accelerator: it works when the kernel ran until it missed its root
/// file system, and for no other reason.
///
/// `said` is what the kernel wrote to its console.
#[must_use]
pub fn judge(said: &str, ended: &Ended, deadline: Duration) -> (bool, String) {
    let panic = said.lines().find_map(|line| {
        line.split_once("Kernel panic - not syncing: ")
            .map(|(_, why)| why.trim())
    });
    let reached_the_disk = panic.is_some_and(|why| why.starts_with("VFS:"));
    let last = tail(said, 1);
    match (ended, panic) {
        (_, Some(_)) if reached_the_disk => (true, "a trial kernel booted".into()),
        (Ended::Badly(why), _) => (false, format!("a trial kernel did not boot: {why}")),
        (_, Some(why)) => (false, format!("a trial kernel did not boot: {why}")),
        (Ended::Never, None) if last.is_empty() => (
            false,
            format!(
                "a trial kernel said nothing within {} s",
                deadline.as_secs()
            ),
        ),
        (Ended::Never, None) => (
            false,
            format!(
                "a trial kernel hung for {} s; its last words: {last}",
                deadline.as_secs()
            ),
        ),
        (Ended::Well, None) => (
            false,
            "a trial kernel ended before it looked for a disk".into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(8);
    const PANIC: &str = "[    0.000000] Linux version 6.1\n[    0.5] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n";

    #[test]
    fn a_kernel_that_misses_its_disk_has_booted() {
        assert!(judge(PANIC, &Ended::Well, DEADLINE).0);
        assert!(
            judge(PANIC, &Ended::Never, DEADLINE).0,
            "it came far enough, whatever happened to the reboot"
        );
    }

    #[test]
    fn anything_else_has_not() {
        let (works, why) = judge(
            "[    0.0] Linux version 6.1\n[    0.1] x2apic\n",
            &Ended::Never,
            DEADLINE,
        );
        assert!(!works && why.contains("x2apic"), "{why}");
        assert!(!judge("", &Ended::Never, DEADLINE).0);
        assert!(!judge("", &Ended::Well, DEADLINE).0);
        let (works, why) = judge(
            "",
            &Ended::Badly("QEMU ended with signal 6: kvm_buf_set_msrs".into()),
            DEADLINE,
        );
        assert!(!works && why.contains("kvm_buf_set_msrs"), "{why}");
        assert!(
            !judge(
                "Kernel panic - not syncing: Fatal exception",
                &Ended::Well,
                DEADLINE
            )
            .0
        );
    }
}
