//! Options that docker-machine's driver of the same name had and that mean nothing here: those that switched something off
//! which forge does not do are taken, the others are refused with what serves instead.

use clap::Args;
use forge_driver::{Error, Kind, Result};

/// Options of docker-machine's that no help text shows.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct Former {
    /// Share no folder with machines
    #[arg(
        id = "virtualbox_no_share",
        long = "virtualbox-no-share",
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        env = "FORGE_VIRTUALBOX_NO_SHARE",
        hide_env_values = true,
        hide = true
    )]
    no_share: Option<bool>,
    /// Do not look whether the processor can run virtual machines
    #[arg(
        id = "virtualbox_no_vtx_check",
        long = "virtualbox-no-vtx-check",
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        env = "FORGE_VIRTUALBOX_NO_VTX_CHECK",
        hide_env_values = true,
        hide = true
    )]
    no_vtx_check: Option<bool>,
    /// Share this folder with machines
    #[arg(
        id = "virtualbox_share_folder",
        long = "virtualbox-share-folder",
        env = "FORGE_VIRTUALBOX_SHARE_FOLDER",
        hide_env_values = true,
        hide = true
    )]
    share_folder: Option<String>,
    /// Start machines from this medium
    #[arg(
        id = "virtualbox_boot2docker_url",
        long = "virtualbox-boot2docker-url",
        env = "FORGE_VIRTUALBOX_BOOT2DOCKER_URL",
        hide_env_values = true,
        hide = true
    )]
    boot2docker_url: Option<String>,
    /// Make the machine from this one
    #[arg(
        id = "virtualbox_import_boot2docker_vm",
        long = "virtualbox-import-boot2docker-vm",
        env = "FORGE_VIRTUALBOX_IMPORT_BOOT2DOCKER_VM",
        hide_env_values = true,
        hide = true
    )]
    import_boot2docker_vm: Option<String>,
}

impl Former {
    /// Refuses what forge does not do.
    ///
    /// # Errors
    /// [`Kind::Usage`] with what to use instead.
    pub(crate) fn check(&self) -> Result<()> {
        let images =
            "`forge image build` or `forge image pull` makes a base image, `--image` names it";
        let folders = "`forge ssh-config` serves sshfs and rsync";
        for (flag, given, why, instead) in [
            (
                "--virtualbox-share-folder",
                self.share_folder.is_some(),
                "forge shares no folder of this host with machines",
                folders,
            ),
            (
                "--virtualbox-no-share=false",
                self.no_share == Some(false),
                "forge shares no folder of this host with machines",
                folders,
            ),
            (
                "--virtualbox-boot2docker-url",
                self.boot2docker_url.is_some(),
                "machines of forge have a disk with a base image, and no boot2docker",
                images,
            ),
            (
                "--virtualbox-import-boot2docker-vm",
                self.import_boot2docker_vm.is_some(),
                "forge makes no machine from another one",
                images,
            ),
        ] {
            if given {
                return Err(
                    Error::new(Kind::Usage, format!("`{flag}` cannot be followed: {why}"))
                        .hint(instead),
                );
            }
        }
        Ok(())
    }
}
