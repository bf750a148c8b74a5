//! Options of docker-machine's plugin for KVM (docker-machine-kvm, `kvm.go`), whose machines were libvirt's. Those that have a
//! like here are other names of it; here are the rest. No help text shows them.

use clap::Args;
use forge_driver::{Error, Kind, Result};

/// What the plugin had besides.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct Former {
    /// Give each machine a disk of this size, in MiB
    #[arg(
        id = "libvirt_kvm_disk_size",
        long = "libvirt-kvm-disk-size",
        alias = "kvm-disk-size",
        env = "FORGE_LIBVIRT_KVM_DISK_SIZE",
        hide_env_values = true,
        hide = true
    )]
    disk_size: Option<u32>,
    /// Start machines from this medium
    #[arg(
        id = "libvirt_kvm_boot2docker_url",
        long = "libvirt-kvm-boot2docker-url",
        alias = "kvm-boot2docker-url",
        env = "FORGE_LIBVIRT_KVM_BOOT2DOCKER_URL",
        hide_env_values = true,
        hide = true
    )]
    boot2docker_url: Option<String>,
    /// Cache disks so
    #[arg(
        id = "libvirt_kvm_cache_mode",
        long = "libvirt-kvm-cache-mode",
        alias = "kvm-cache-mode",
        env = "FORGE_LIBVIRT_KVM_CACHE_MODE",
        hide_env_values = true,
        hide = true
    )]
    cache_mode: Option<String>,
    /// Write to disks so
    #[arg(
        id = "libvirt_kvm_io_mode",
        long = "libvirt-kvm-io-mode",
        alias = "kvm-io-mode",
        env = "FORGE_LIBVIRT_KVM_IO_MODE",
        hide_env_values = true,
        hide = true
    )]
    io_mode: Option<String>,
}

/// The options that are taken and change nothing: their ids, the names that their users know, and why.
pub const WITHOUT_EFFECT: [(&str, &str, &str); 2] = [
    ("libvirt_kvm_cache_mode", "--kvm-cache-mode", CACHING),
    ("libvirt_kvm_io_mode", "--kvm-io-mode", CACHING),
];

const CACHING: &str = "libvirt decides how disks are cached and written";

impl Former {
    /// The size of the disk in bytes, where it was said in the plugin's way.
    ///
    /// # Errors
    /// [`Kind::Usage`] for what forge does not do.
    pub(crate) fn disk_bytes(&self) -> Result<Option<u64>> {
        if self.boot2docker_url.is_some() {
            return Err(Error::new(
                Kind::Usage,
                "`--kvm-boot2docker-url` cannot be followed: machines of forge have a disk with a base image, and no boot2docker",
            )
            .hint("`forge image build` or `forge image pull` makes a base image, `--image` names it"));
        }
        Ok(self.disk_size.map(|mib| u64::from(mib) << 20))
    }
}
