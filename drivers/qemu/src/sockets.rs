//! Where sockets lie: short paths in a folder that is the user's alone.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use forge_driver::{Claim, Context, Error, Kind, Result, atomic};
use uuid::Uuid;

/// The longest path of a unix socket: `sun_path` less its closing zero (unix(7): 108 bytes on Linux,
/// 104 on macOS).
const LIMIT: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// The sockets of one store's machines.
#[derive(Clone, Debug)]
pub(crate) struct Sockets {
    dir: PathBuf,
}

impl Sockets {
    /// The sockets below `runtime`, which is made by [`Self::prepare`] only.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when the paths would be longer than a socket's may be.
    pub(crate) fn new(runtime: &Path) -> Result<Self> {
        let sockets = Self {
            dir: runtime.to_owned(),
        };
        let longest = sockets.port(Uuid::nil(), Claim::random());
        let over = longest.as_os_str().as_bytes().len().saturating_sub(LIMIT);
        if over > 0 {
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "the path of the folder for sockets, `{}`, is {over} bytes too long",
                    runtime.display()
                ),
            )
            .hint("set XDG_RUNTIME_DIR to a shorter path"));
        }
        Ok(sockets)
    }

    /// The control socket of one machine.
    pub(crate) fn qmp(&self, claim: Claim) -> PathBuf {
        self.dir.join(format!("{}.qmp", simple(claim)))
    }

    /// The folder of one network: its switch, and a port for each running machine.
    pub(crate) fn network(&self, network: Uuid) -> PathBuf {
        let id = network.simple().to_string();
        self.dir.join(format!("net-{}", &id[..16]))
    }

    /// The socket that a machine's interface on that network is bound to.
    pub(crate) fn port(&self, network: Uuid, claim: Claim) -> PathBuf {
        self.network(network)
            .join(format!("{PORT}{}", simple(claim)))
    }

    /// Makes the folder. One that others could have prepared is refused: whoever owns it could stand
    /// in for a machine.
    ///
    /// # Errors
    /// [`Kind::Refused`] when it belongs to somebody else or is open to others.
    pub(crate) fn prepare(&self) -> Result<()> {
        private(&self.dir)
    }
}

/// What the names of ports begin with.
pub(crate) const PORT: &str = "port-";

/// Makes `folder` with mode 0700, or makes sure that the one there is the user's alone.
pub(crate) fn private(folder: &Path) -> Result<()> {
    atomic::private_folder(folder)?;
    let meta = folder.symlink_metadata().or_fail(Kind::Io, || {
        format!("failed to look at `{}`", folder.display())
    })?;
    let me = rustix::process::geteuid().as_raw();
    if !meta.is_dir() || meta.uid() != me || meta.permissions().mode() & 0o077 != 0 {
        return Err(Error::new(
            Kind::Refused,
            format!(
                "the folder `{}` is not private: it must be a folder of your own with mode 0700",
                folder.display()
            ),
        )
        .hint("remove it, or set XDG_RUNTIME_DIR to a folder of your own"));
    }
    Ok(())
}

fn simple(claim: Claim) -> String {
    Uuid::from_bytes(*claim.bytes()).simple().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_no_socket_can_have_is_refused() {
        let fits = LIMIT - (1 + 4 + 16) - (1 + PORT.len() + 32);
        let runtime = |length: usize| PathBuf::from(format!("/{}", "r".repeat(length - 1)));
        assert!(Sockets::new(&runtime(fits)).is_ok());
        let error = Sockets::new(&runtime(fits + 1)).expect_err("too long");
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(
            error.message().contains("1 bytes too long"),
            "{}",
            error.message()
        );
    }

    #[test]
    fn an_open_folder_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let open = folder.path().join("open");
        std::fs::create_dir(&open).expect("mkdir");
        std::fs::set_permissions(&open, PermissionsExt::from_mode(0o755)).expect("chmod");
        assert_eq!(private(&open).expect_err("open").kind(), Kind::Refused);
        let link = folder.path().join("link");
        std::fs::set_permissions(&open, PermissionsExt::from_mode(0o700)).expect("chmod");
        std::os::unix::fs::symlink(&open, &link).expect("link");
        assert_eq!(private(&link).expect_err("link").kind(), Kind::Refused);
        private(&folder.path().join("new/deeper")).expect("made");
    }
}
