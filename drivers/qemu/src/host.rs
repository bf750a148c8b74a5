//! What the host is, decided when forge is built.

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
