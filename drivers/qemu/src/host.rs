//! What the host is, decided when forge is built.

use std::path::Path;

/// A processor architecture that guests and host share: nothing foreign is emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arch {
    X86_64,
    Aarch64,
}

/// The operating system that QEMU runs on, as far as it decides the accelerator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Os {
    Linux,
    Mac,
    Other,
}

/// This host's architecture.
pub(crate) const ARCH: Arch = if cfg!(target_arch = "aarch64") {
    Arch::Aarch64
} else {
    Arch::X86_64
};

/// This host's operating system.
pub(crate) const OS: Os = if cfg!(target_os = "linux") {
    Os::Linux
} else if cfg!(target_os = "macos") {
    Os::Mac
} else {
    Os::Other
};

impl Arch {
    /// The QEMU program for guests of this architecture.
    pub(crate) fn binary(self) -> &'static str {
        match self {
            Self::X86_64 => "qemu-system-x86_64",
            Self::Aarch64 => "qemu-system-aarch64",
        }
    }

    /// The machine type taken by default.
    pub(crate) fn machine(self) -> &'static str {
        match self {
            Self::X86_64 => "q35",
            Self::Aarch64 => "virt",
        }
    }

    /// The name of the first serial port in a guest's kernel.
    pub(crate) fn serial(self) -> &'static str {
        match self {
            Self::X86_64 => "ttyS0",
            Self::Aarch64 => "ttyAMA0",
        }
    }

    /// The firmware files to look for, most likely first; the machine type's own serves when empty.
    /// `virt` has none: Debian ships one in qemu-efi-aarch64, Homebrew within QEMU's data directory.
    pub(crate) fn firmware(self) -> &'static [&'static str] {
        match self {
            Self::X86_64 => &[],
            Self::Aarch64 => &[
                "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd",
                "/usr/share/AAVMF/AAVMF_CODE.fd",
                "/usr/share/edk2/aarch64/QEMU_EFI.fd",
                "/opt/homebrew/share/qemu/edk2-aarch64-code.fd",
                "/usr/local/share/qemu/edk2-aarch64-code.fd",
            ],
        }
    }

    /// The Debian packages that bring QEMU for this architecture, without graphics.
    pub(crate) fn packages(self) -> Vec<&'static str> {
        match self {
            Self::X86_64 => vec!["qemu-system-x86"],
            Self::Aarch64 => vec!["qemu-system-arm", "qemu-efi-aarch64"],
        }
    }
}

/// The host's memory in MiB, in all and free for new programs; `None` where it cannot be told.
pub(crate) fn memory() -> Option<(u64, u64)> {
    meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// Reads `MemTotal` and `MemAvailable` (proc_meminfo(5)), which are in KiB.
fn meminfo(text: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| rest.trim_start_matches(':').split_whitespace().next())
            .and_then(|number| number.parse::<u64>().ok())
            .map(|kib| kib / 1024)
    };
    Some((field("MemTotal")?, field("MemAvailable")?))
}

/// The bytes that this user may still write below `folder`.
pub(crate) fn free_space(folder: &Path) -> std::io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_mib() {
        let text = "MemTotal:       24610000 kB\nMemFree:  1 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(meminfo(text), Some((24033, 2)));
        assert_eq!(meminfo("MemTotal: 1 kB\n"), None);
    }
}
