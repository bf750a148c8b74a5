//! A Debian image from packages, made without root: mmdebstrap, mke2fs and GRUB inside name spaces that
//! end with the build, so that nothing stays mounted however it ends.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forge_driver::{Context, Error, Kind, Result, atomic, process};
use serde_json::json;
use tera::Tera;
use tokio::process::Command;
use tokio::time::interval;
use uuid::Uuid;

use crate::interrupt;

use super::{
    DISK, Draft, FirstBoot, INITRD, Image, ImageKind, Images, KERNEL, Progress, check_name, mirrors,
};

/// The name of the image that is built when none is given.
pub const DEFAULT_NAME: &str = "forge-debian-12";

/// The root file system is found by its label by both kinds of boot. One serial console: what is
/// written there is what a failed boot shows.
const CMDLINE: &str = "root=LABEL=forge-root rw console=ttyS0 quiet";
const WORK: &str = ".build-";
const CLEANING: Duration = Duration::from_secs(120);

/// What is put into the image besides packages: the template, its place, its permissions. None of them
/// has anything to fill in.
const OVERLAY: &[(&str, &str, u32)] = &[
    (
        "image/cloud.cfg",
        "etc/cloud/cloud.cfg.d/90_forge.cfg",
        0o644,
    ),
    (
        "image/default.network",
        "etc/systemd/network/90-default.network",
        0o644,
    ),
    (
        "image/forge-grow.service",
        "etc/systemd/system/forge-grow.service",
        0o644,
    ),
    ("image/forge-grow.sh", "usr/lib/forge/grow", 0o755),
    (
        "image/forge-seed.service",
        "etc/systemd/system/forge-seed.service",
        0o644,
    ),
    ("image/forge-seed.sh", "usr/lib/forge/seed", 0o755),
    ("image/fstab", "etc/fstab", 0o644),
    ("image/grub.cfg", "boot/grub/grub.cfg", 0o644),
    (
        "image/initramfs-dev.sh",
        "etc/initramfs-tools/scripts/init-bottom/forge",
        0o755,
    ),
    (
        "image/initramfs-drivers.sh",
        "etc/initramfs-tools/scripts/init-top/forge",
        0o755,
    ),
    (
        "image/initramfs-hook.sh",
        "etc/initramfs-tools/hooks/forge",
        0o755,
    ),
    (
        "image/initramfs.conf",
        "etc/initramfs-tools/conf.d/forge",
        0o644,
    ),
    (
        "image/journald.conf",
        "etc/systemd/journald.conf.d/forge.conf",
        0o644,
    ),
    ("image/modprobe.conf", "etc/modprobe.d/forge.conf", 0o644),
    (
        "image/resolved.conf",
        "etc/systemd/resolved.conf.d/forge.conf",
        0o644,
    ),
    (
        "image/ssh.conf",
        "etc/systemd/system/ssh.service.d/forge.conf",
        0o644,
    ),
    ("image/sshd.conf", "etc/ssh/sshd_config.d/forge.conf", 0o644),
    ("image/sudoers", "etc/sudoers.d/90-forge", 0o440),
    // What every provisioning would put there: the first one finds it done, and systemd has read it.
    (
        "image/10-forge.conf",
        "etc/systemd/system/docker.service.d/10-forge.conf",
        0o644,
    ),
    ("docker/daemon.json.tera", "etc/docker/daemon.json", 0o644),
    (
        "kernel/modules.conf.tera",
        "etc/modules-load.d/forge.conf",
        0o644,
    ),
    (
        "kernel/sysctl.conf.tera",
        "etc/sysctl.d/99-forge.conf",
        0o644,
    ),
];

/// The steps that the script reports, in their order.
const STEPS: &[&str] = &[
    "package lists",
    "unpacking the base",
    "installing packages",
    "settings",
    "root file system",
    "bootloader",
    "disk",
];

/// What to build.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The visible name.
    pub name: String,
    /// The suite of Debian.
    pub suite: String,
    /// The mirror that packages come from; else those of the host's own apt sources for that suite, else
    /// Debian's.
    pub mirror: Option<String>,
    /// The size that a machine sees when it asks for none, in bytes. The file takes what is in it.
    pub size: u64,
    /// How long the whole may take.
    pub deadline: Duration,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self {
            name: DEFAULT_NAME.to_owned(),
            suite: "bookworm".to_owned(),
            mirror: None,
            size: 20 << 30,
            deadline: Duration::from_secs(1800),
        }
    }
}

impl BuildOptions {
    /// Refuses what cannot be built, before anything is touched.
    ///
    /// # Errors
    /// [`Kind::Usage`]
    pub fn check(&self) -> Result<()> {
        check_name(&self.name)?;
        let gibibytes = self.size >> 30;
        if !(4..=16_384).contains(&gibibytes) || !self.size.is_multiple_of(1 << 20) {
            return Err(Error::new(
                Kind::Usage,
                format!("a disk of {} bytes is out of range", self.size),
            )
            .hint("give whole mebibytes, from 4 GiB to 16 TiB"));
        }
        if self.suite.is_empty() || !self.suite.bytes().all(|byte| byte.is_ascii_lowercase()) {
            return Err(Error::new(
                Kind::Usage,
                format!("`{}` is not a suite of Debian", self.suite),
            ));
        }
        if let Some(mirror) = &self.mirror {
            let rest = mirror
                .strip_prefix("http://")
                .or_else(|| mirror.strip_prefix("https://"));
            let plain = rest.is_some_and(|rest| {
                !rest.is_empty()
                    && rest.bytes().all(|byte| byte.is_ascii_graphic())
                    && !rest.contains(['@', '[', ']'])
            });
            if !plain {
                return Err(Error::new(
                    Kind::Usage,
                    "the mirror is not an address that can be used",
                )
                .hint("give `http://HOST/debian` or `https://HOST/debian`, without a user name"));
            }
        }
        Ok(())
    }
}

impl Images {
    /// Builds an image and puts it into the store. The caller holds the lock of images, which the tools
    /// inherit: when forge is killed, a successor waits until they are gone, then removes what they left.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] when a tool is missing, [`Kind::Failed`] with the end of its output,
    /// [`Kind::Timeout`]. The store is then as before.
    pub async fn build(
        &self,
        options: &BuildOptions,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Image> {
        options.check()?;
        atomic::private_folder(&self.root)?;
        clear(&self.root, WORK).await?;
        let work = self.root.join(format!("{WORK}{}", Uuid::new_v4().simple()));
        atomic::private_folder(&work)?;
        let sources = self.sources(options)?;
        let made = self.make(options, &work, &sources, progress).await;
        let image = match made {
            Ok(()) => {
                progress(Progress {
                    step: "checksums".to_owned(),
                    done: None,
                    total: None,
                });
                let draft = Draft {
                    name: options.name.clone(),
                    kind: ImageKind::Built,
                    first_boot: FirstBoot::ForgeSeed,
                    size: options.size,
                    cmdline: Some(CMDLINE.to_owned()),
                    provenance: sources,
                };
                self.keep(&work, draft).await
            }
            Err(error) => Err(error),
        };
        if image.is_err() {
            // The first error is the one to report.
            let _ = remove(&work).await;
        }
        image
            .map_err(|error| error.context(format!("failed to build the image `{}`", options.name)))
    }

    async fn keep(&self, work: &Path, draft: Draft) -> Result<Image> {
        for entry in fs::read_dir(work)
            .or_fail(Kind::Io, || format!("failed to list `{}`", work.display()))?
        {
            let path = entry
                .or_fail(Kind::Io, || format!("failed to list `{}`", work.display()))?
                .path();
            let kept = [DISK, KERNEL, INITRD, "manifest"];
            if path
                .file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| kept.contains(&name))
            {
                // Read only: an overlay that is opened wrongly cannot write into what others lie over.
                fs::set_permissions(&path, fs::Permissions::from_mode(0o400))
                    .or_fail(Kind::Io, || {
                        format!("failed to protect `{}`", path.display())
                    })?;
            } else {
                remove(&path).await?;
            }
        }
        let (images, work) = (self.clone(), work.to_owned());
        tokio::task::spawn_blocking(move || images.admit(&work, draft))
            .await
            .or_fail(Kind::Failed, || {
                "the work on the image was cut off".to_owned()
            })?
    }

    async fn make(
        &self,
        options: &BuildOptions,
        work: &Path,
        sources: &[String],
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<()> {
        self.lay_out(options, work, sources)?;
        let mut command = namespaces();
        command.args(["sh", "build.sh"]).current_dir(work);
        let run = process::run(command, None, options.deadline);
        tokio::pin!(run);
        let mut tick = interval(Duration::from_millis(250));
        let mut shown = String::new();
        loop {
            tokio::select! {
                done = &mut run => {
                    done?.success("the build script")?;
                    return Ok(());
                }
                _ = tick.tick() => {
                    // The tools end with the future that runs them.
                    interrupt::check()?;
                    let step = fs::read_to_string(work.join("progress")).unwrap_or_default().trim().to_owned();
                    if step != shown && !step.is_empty() {
                        progress(Progress {
                            done: STEPS.iter().position(|known| *known == step).map(|at| at as u64),
                            total: Some(STEPS.len() as u64),
                            step: step.clone(),
                        });
                        shown = step;
                    }
                }
            }
        }
    }

    /// Writes what the script reads: its parts, the files of the image, and the few values.
    fn lay_out(&self, options: &BuildOptions, work: &Path, sources: &[String]) -> Result<()> {
        let template = |name: &str| self.assets.read(&format!("templates/{name}"));
        let put = |path: PathBuf, text: &str, mode: u32| -> Result<()> {
            let failed = || format!("failed to write `{}`", path.display());
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).map_err(|error| atomic::full(error, &failed()))?;
            }
            fs::write(&path, text)
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)))
                .map_err(|error| atomic::full(error, &failed()))
        };
        for (name, place, mode) in OVERLAY {
            put(work.join("overlay").join(place), &template(name)?, *mode)?;
        }
        let overlay = work.join("overlay");
        put(overlay.join("var/lib/forge/.keep"), "", 0o644)?;
        for folder in folders(&overlay)? {
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))
                .or_fail(Kind::Io, || {
                    format!("failed to write `{}`", folder.display())
                })?;
        }
        let guest = self.guest_sources(&options.suite)?;
        put(work.join("sources.list"), &guest, 0o644)?;
        put(work.join("mirrors"), &(sources.join("\n") + "\n"), 0o644)?;
        for name in ["build.sh", "customize.sh"] {
            put(work.join(name), &template(&format!("image/{name}"))?, 0o644)?;
        }
        put(
            work.join("packages"),
            &packages(&template("image/packages.txt")?),
            0o644,
        )?;
        put(work.join("suite"), &options.suite, 0o644)?;
        put(work.join("size"), &options.size.to_string(), 0o644)?;
        put(work.join("uuid"), &Uuid::new_v4().to_string(), 0o644)
    }

    fn guest_sources(&self, suite: &str) -> Result<String> {
        let path = "templates/image/sources.list.tera";
        let context = tera::Context::from_value(json!({ "suite": suite }))
            .or_fail(Kind::Invalid, || format!("failed to render `{path}`"))?;
        Tera::one_off(&self.assets.read(path)?, &context, false)
            .or_fail(Kind::Invalid, || format!("failed to render `{path}`"))
    }

    fn sources(&self, options: &BuildOptions) -> Result<Vec<String>> {
        if let Some(mirror) = &options.mirror {
            return Ok(mirrors::of_mirror(mirror, &options.suite));
        }
        let host = mirrors::of_host(Path::new("/etc/apt"), &options.suite);
        if !host.is_empty() {
            return Ok(host);
        }
        let guest = self.guest_sources(&options.suite)?;
        Ok(guest
            .lines()
            .filter(|line| line.starts_with("deb "))
            .map(str::to_owned)
            .collect())
    }
}

/// One package a line, comments and empty lines left out.
fn packages(text: &str) -> String {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// All folders below and with `root`.
fn folders(root: &Path) -> Result<Vec<PathBuf>> {
    let mut all = vec![root.to_owned()];
    let mut next = 0;
    while let Some(folder) = all.get(next).cloned() {
        next += 1;
        let failed = || format!("failed to list `{}`", folder.display());
        for entry in fs::read_dir(&folder).or_fail(Kind::Io, failed)? {
            let path = entry.or_fail(Kind::Io, failed)?.path();
            if path.is_dir() && !path.is_symlink() {
                all.push(path);
            }
        }
    }
    Ok(all)
}

/// The name spaces that an image is made in: mounts and processes, which both end with the build; for a
/// plain user one of users besides, in which the user is root and the subordinate ids are the others.
pub(crate) fn namespaces() -> Command {
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user", "--map-auto"]);
    }
    command.args(["--mount", "--pid", "--fork", "--kill-child"]);
    command
}

/// Removes what an earlier build left in `root`, whose name starts with `prefix`.
async fn clear(root: &Path, prefix: &str) -> Result<()> {
    let failed = || format!("failed to list `{}`", root.display());
    for entry in fs::read_dir(root).or_fail(Kind::Io, failed)? {
        let entry = entry.or_fail(Kind::Io, failed)?;
        let name = entry.file_name();
        let left = name
            .to_str()
            .is_some_and(|name| name.starts_with(prefix) || name.starts_with(".removed-"));
        if left {
            remove(&entry.path()).await?;
        }
    }
    Ok(())
}

/// Removes a file or folder of a build. Files inside may belong to subordinate ids of the user, which
/// only their own name space may remove.
async fn remove(path: &Path) -> Result<()> {
    let failed = || format!("failed to remove `{}`", path.display());
    let plain = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    match plain {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            let mut command = namespaces();
            command
                .args(["rm", "-rf", "--one-file-system", "--"])
                .arg(path);
            process::run(command, None, CLEANING)
                .await?
                .success("`rm`")
                .map_err(|error| error.context(failed()))?;
            Ok(())
        }
        plain => plain.or_fail(Kind::Io, failed),
    }
}

#[cfg(test)]
mod tests {
    use forge_driver::assets::Assets;

    use super::*;

    #[test]
    fn everything_the_script_reads_is_laid_out() {
        let folder = tempfile::tempdir().expect("folder");
        let images = Images::new(folder.path().to_owned(), Assets::default());
        let options = BuildOptions {
            mirror: Some("http://near.example/debian".into()),
            ..BuildOptions::default()
        };
        let sources = images.sources(&options).expect("sources");
        images
            .lay_out(&options, folder.path(), &sources)
            .expect("lays out");
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).expect(name);
        assert!(read("mirrors").starts_with("deb http://near.example/debian bookworm main\n"));
        assert!(read("sources.list").contains("deb http://deb.debian.org/debian bookworm main\n"));
        assert!(read("packages").lines().any(|line| line == "docker.io"));
        assert_eq!(read("size"), (20_u64 << 30).to_string());
        let agent = folder.path().join("overlay/usr/lib/forge/seed");
        assert_eq!(
            fs::metadata(agent).expect("agent").permissions().mode() & 0o777,
            0o755
        );
        assert!(folder.path().join("overlay/var/lib/forge").is_dir());
        for (_, place, _) in OVERLAY {
            let text = read(&format!("overlay/{place}"));
            assert!(
                !text.contains("{{") && !text.contains("{%"),
                "{place} is whole"
            );
        }
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        let good = BuildOptions::default();
        good.check().expect("good");
        for bad in [
            BuildOptions {
                size: 1 << 20,
                ..good.clone()
            },
            BuildOptions {
                size: (20 << 30) + 1,
                ..good.clone()
            },
            BuildOptions {
                name: "../x".into(),
                ..good.clone()
            },
            BuildOptions {
                suite: "book worm".into(),
                ..good.clone()
            },
            BuildOptions {
                mirror: Some("http://user:word@near.example/debian".into()),
                ..good.clone()
            },
            BuildOptions {
                mirror: Some("http://near.example/debian\ndeb x".into()),
                ..good.clone()
            },
            BuildOptions {
                mirror: Some("[trusted=yes] http://near.example/debian".into()),
                ..good.clone()
            },
        ] {
            let error = bad.check().expect_err("bad");
            assert_eq!(error.kind(), Kind::Usage);
            assert!(!error.line().contains("word@"), "{}", error.line());
        }
    }

    #[tokio::test]
    async fn what_a_killed_build_left_is_removed_and_images_stay() {
        let folder = tempfile::tempdir().expect("folder");
        for name in [".build-1/root/etc", ".removed-x", "kept", ".pull-1"] {
            fs::create_dir_all(folder.path().join(name)).expect("mkdir");
        }
        clear(folder.path(), WORK).await.expect("clears");
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .expect("list")
            .map(|entry| {
                entry
                    .expect("entry")
                    .file_name()
                    .into_string()
                    .expect("text")
            })
            .collect();
        left.sort();
        assert_eq!(left, [".pull-1", "kept"]);
    }

    #[test]
    fn comments_are_no_packages() {
        assert_eq!(packages("# why\nsudo\n\n  curl \n"), "sudo\ncurl\n");
    }
}
