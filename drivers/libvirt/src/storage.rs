//! Volumes in a storage pool: for each machine an overlay of the base image, a seed and a console.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use forge_driver::{Context, Error, Kind, Result, Seed, atomic, host, seed};

use crate::uri::Uri;
use crate::virsh::{Virsh, field};
use crate::vm::Vm;

/// The pool that forge makes when it is asked for and not there, where libvirt's own tools make it.
const DEFAULT: &str = "default";
const SYSTEM_TARGET: &str = "/var/lib/libvirt/images";

/// The folder of the pool `default`, where forge may make it: for a user's own daemon in the user's folder
/// (<https://libvirt.org/drvqemu.html#location-of-configuration-files>), which is known on this host only.
fn default_target(uri: &Uri) -> Option<PathBuf> {
    match (uri.session(), uri.over_ssh()) {
        (false, _) => Some(PathBuf::from(SYSTEM_TARGET)),
        (true, false) => {
            let data = std::env::var_os("XDG_DATA_HOME")
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
                .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/share")))?;
            Some(data.join("libvirt/images"))
        }
        (true, true) => None,
    }
}

/// One storage pool.
pub(crate) struct Pool<'a> {
    pub(crate) virsh: &'a Virsh,
    pub(crate) name: &'a str,
}

/// What the daemon says of a pool.
pub(crate) struct Seen {
    /// The folder that its volumes lie in.
    pub(crate) target: PathBuf,
    /// Bytes that may still be written; unknown while the pool is stopped.
    pub(crate) available: Option<u64>,
}

impl Pool<'_> {
    /// The pool is there, or can be made.
    ///
    /// # Errors
    /// [`Kind::Precheck`] with the pools that there are.
    pub(crate) async fn check(&self) -> Result<Option<Seen>> {
        let pools = self.virsh.call(&["pool-list", "--all", "--name"]).await?;
        let names: Vec<&str> = pools
            .lines()
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .collect();
        if names.contains(&self.name) {
            let mut seen = self.look().await?;
            if !self.active().await? {
                // libvirt then says 0; a folder of this host tells it itself.
                let here = !self.virsh.uri().over_ssh();
                seen.available = here.then(|| host::free_space(&seen.target).ok()).flatten();
            }
            return Ok(Some(seen));
        }
        if self.name == DEFAULT && default_target(self.virsh.uri()).is_some() {
            return Ok(None);
        }
        Err(Error::new(
            Kind::Precheck,
            format!(
                "libvirt at `{}` has no storage pool `{}`",
                self.virsh.uri(),
                self.name
            ),
        )
        .hint(if default_target(self.virsh.uri()).is_none() && names.is_empty() {
            "make one there: `virsh pool-define-as default dir --target FOLDER`, `virsh pool-build default`".to_owned()
        } else if names.is_empty() {
            "there is none yet; without `--libvirt-pool` forge makes the pool `default`".to_owned()
        } else {
            format!("there are `{}`", names.join("`, `"))
        }))
    }

    /// The pool is there and started.
    ///
    /// # Errors
    /// When it is not there, or cannot be started.
    pub(crate) async fn ensure(&self) -> Result<Seen> {
        let there = self
            .check()
            .await
            .map_err(|error| error.of_kind(Kind::NotFound))?;
        if let Some(seen) = there {
            return self.start(seen).await;
        }
        let target = default_target(self.virsh.uri()).unwrap_or_default();
        let target = target.to_string_lossy();
        let words = ["pool-define-as", DEFAULT, "dir", "--target", &target];
        match self.virsh.call(&words).await {
            // Another command was faster.
            Err(error) if error.kind() != Kind::Exists => return Err(error),
            _ => {}
        }
        let seen = self.look().await?;
        self.start(seen).await
    }

    /// Starts a pool that is there. Started already: succeeds.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) async fn start(&self, seen: Seen) -> Result<Seen> {
        if self.active().await? {
            return Ok(seen);
        }
        // Also when the command that defined it did not come so far. What is there stays.
        let steps: &[&str] = if self.name == DEFAULT
            && default_target(self.virsh.uri()).is_some_and(|target| target == seen.target)
        {
            &["pool-build", "pool-autostart", "pool-start"]
        } else {
            &["pool-start"]
        };
        let mut outcome = Ok(());
        for step in steps {
            let done = self.virsh.call(&[step, self.name]).await.map(drop);
            outcome = outcome.and(done);
        }
        // Another command may have been faster with any of them.
        if !self.active().await? {
            outcome.map_err(|error| {
                if error.deepest_hint().is_some() {
                    return error;
                }
                error.hint(format!(
                    "is the folder `{}` of the pool `{}` there? `virsh pool-build {}` makes it",
                    seen.target.display(),
                    self.name,
                    self.name
                ))
            })?;
        }
        self.look().await
    }

    /// Whether the pool is there and started.
    pub(crate) async fn active(&self) -> Result<bool> {
        self.virsh.lists(&["pool-list", "--name"], self.name).await
    }

    async fn look(&self) -> Result<Seen> {
        let text = self.virsh.call(&["pool-dumpxml", self.name]).await?;
        seen(&text).ok_or_else(|| {
            Error::new(
                Kind::Invalid,
                format!(
                    "the storage pool `{}` has no folder that forge could use",
                    self.name
                ),
            )
            .hint("choose a pool of the type `dir` with `--libvirt-pool`")
        })
    }

    /// The names of the volumes.
    async fn volumes(&self) -> Result<Vec<String>> {
        let text = self.virsh.call(&["vol-list", "--pool", self.name]).await?;
        // Name and path, in columns.
        Ok(text
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .map(str::to_owned)
            .collect())
    }

    /// Whether the pool has this volume.
    pub(crate) async fn has(&self, name: &str) -> Result<bool> {
        Ok(self.volumes().await?.iter().any(|volume| volume == name))
    }

    /// The overlay of a machine, unless it is there.
    ///
    /// # Errors
    /// What libvirt said.
    pub(crate) async fn disk(&self, vm: &Vm, bytes: u64) -> Result<()> {
        let disk = vm.disk();
        if self.volumes().await?.contains(&disk) {
            return Ok(());
        }
        let bytes = bytes.to_string();
        let words = [
            "vol-create-as",
            self.name,
            &disk,
            &bytes,
            "--format",
            "qcow2",
            "--backing-vol",
            &vm.base,
            "--backing-vol-format",
            "qcow2",
        ];
        self.virsh.call(&words).await.map(drop)
    }

    /// Writes the seed of a machine. `folder` is the machine's own: a copy lies there for a moment.
    ///
    /// # Errors
    /// What libvirt said.
    pub(crate) async fn seed(&self, vm: &Vm, seed: &Seed, folder: &Path) -> Result<()> {
        self.write(&vm.seed(), &seed::image(seed)?, folder).await
    }

    /// Overwrites the seed of a machine with zeros.
    ///
    /// # Errors
    /// What libvirt said.
    pub(crate) async fn blank(&self, vm: &Vm, folder: &Path) -> Result<()> {
        let name = vm.seed();
        let text = self
            .virsh
            .call(&["vol-info", &name, "--pool", self.name, "--bytes"])
            .await?;
        let size = capacity(&text).ok_or_else(|| {
            Error::new(
                Kind::Invalid,
                format!("the size of the seed `{name}` cannot be told"),
            )
            .because(text.clone())
        })?;
        self.write(&name, &vec![0; size], folder).await
    }

    async fn write(&self, name: &str, bytes: &[u8], folder: &Path) -> Result<()> {
        if !self.has(name).await? {
            self.create(name, bytes.len() as u64).await?;
        }
        let copy = Copy::new(folder.join(".upload"), bytes)?;
        let file = copy.0.to_string_lossy();
        self.virsh
            .call(&["vol-upload", name, &file, "--pool", self.name])
            .await
            .map(drop)
    }

    /// An empty file that a guest's serial port is written to. It is a volume from the beginning: a pool is not
    /// told of files while something is uploaded to it.
    ///
    /// # Errors
    /// What libvirt said.
    pub(crate) async fn console(&self, name: &str) -> Result<()> {
        if self.has(name).await? {
            return Ok(());
        }
        self.create(name, 0).await
    }

    /// Brings a file to the pool as the volume `name`, which is not there yet.
    ///
    /// # Errors
    /// What libvirt said.
    pub(crate) async fn bring(&self, name: &str, file: &Path) -> Result<()> {
        let size = fs::metadata(file)
            .or_fail(Kind::NotFound, || {
                format!("failed to find `{}`", file.display())
            })?
            .len();
        self.create(name, size).await?;
        let file = file.to_string_lossy();
        self.virsh
            .transfer(&["vol-upload", name, &file, "--pool", self.name])
            .await
            .map(drop)
    }

    /// A volume of so many bytes, taken as they are.
    pub(crate) async fn create(&self, name: &str, bytes: u64) -> Result<()> {
        let bytes = bytes.to_string();
        let words = [
            "vol-create-as",
            self.name,
            name,
            &bytes,
            "--format",
            "raw",
            "--allocation",
            "0",
        ];
        self.virsh.call(&words).await.map(drop)
    }

    /// What a file that a guest wrote holds; empty when there is none.
    pub(crate) async fn read(&self, name: &str, folder: &Path) -> Result<Vec<u8>> {
        if !self.has(name).await? {
            return Ok(Vec::new());
        }
        // Others may read it at the same time.
        let copy = Copy::new(
            folder.join(format!(".download-{}", std::process::id())),
            b"",
        )?;
        let file = copy.0.to_string_lossy();
        self.virsh
            .call(&["vol-download", name, &file, "--pool", self.name])
            .await?;
        fs::read(&copy.0).or_fail(Kind::Io, || format!("failed to read `{name}`"))
    }

    /// Removes everything of a machine.
    ///
    /// # Errors
    /// What libvirt said. Gone already: succeeds.
    pub(crate) async fn remove(&self, vm: &Vm) -> Result<()> {
        let there = self.volumes().await?;
        for name in [vm.disk(), vm.seed(), vm.console()] {
            if there.contains(&name) {
                self.take(&name).await?;
            }
        }
        Ok(())
    }

    /// Removes a volume. Gone already: succeeds.
    ///
    /// # Errors
    /// What libvirt said.
    pub(crate) async fn delete(&self, name: &str) -> Result<()> {
        if !self.has(name).await? {
            return Ok(());
        }
        self.take(name).await
    }

    /// Removes a volume that was there a moment ago.
    async fn take(&self, name: &str) -> Result<()> {
        let words = ["vol-delete", name, "--pool", self.name];
        match self.virsh.call(&words).await {
            Err(error) if error.kind() != Kind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// A file that is gone when this is dropped.
pub(crate) struct Copy(PathBuf);

impl Copy {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn new(path: PathBuf, bytes: &[u8]) -> Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let failed = |error| atomic::full(error, &format!("failed to write `{}`", path.display()));
        fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(bytes))
            .map_err(failed)?;
        Ok(Self(path))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // What cannot be removed goes with the machine's folder.
        let _ = fs::remove_file(&self.0);
    }
}

/// Reads the description of a pool (<https://libvirt.org/formatstorage.html>).
fn seen(text: &str) -> Option<Seen> {
    let document = roxmltree::Document::parse(text).ok()?;
    if document.root_element().attribute("type") != Some("dir") {
        return None;
    }
    let of = |name: &str| document.descendants().find(|node| node.has_tag_name(name));
    let target = of("target")?
        .children()
        .find(|node| node.has_tag_name("path"))?
        .text()?;
    Some(Seen {
        target: target.trim().into(),
        available: of("available")
            .and_then(|node| node.text())
            .and_then(|text| text.trim().parse().ok()),
    })
}

/// The line `Capacity:` of `vol-info --bytes`.
fn capacity(text: &str) -> Option<usize> {
    field(text, "Capacity")?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_s_description_is_read() {
        let found = seen(
            "<pool type='dir'><name>p</name><available unit='bytes'>42</available>\
             <target><path>/var/lib/x</path></target></pool>",
        )
        .expect("a pool");
        assert_eq!(found.target, Path::new("/var/lib/x"));
        assert_eq!(found.available, Some(42));
        assert!(seen("<pool type='rbd'><name>p</name></pool>").is_none());
        assert!(seen("garbage").is_none());
    }

    #[test]
    fn a_volume_s_size_is_read() {
        let text = "Name:           s.iso\nType:           file\nCapacity:       376832 bytes\nAllocation:     376832 bytes\n";
        assert_eq!(capacity(text), Some(376_832));
        assert_eq!(capacity("nonsense"), None);
    }
}
