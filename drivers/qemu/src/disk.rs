//! The disk of one machine: a qcow2 overlay over the base image.

use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use forge_driver::{BaseImage, Context, Kind, Result, atomic, process};
use tokio::process::Command;

/// How long qemu-img may take; an overlay is a few hundred kilobytes, whatever its virtual size.
const DEADLINE: Duration = Duration::from_secs(60);

/// How long it may take to copy all that a disk holds, compressed.
const COPY_DEADLINE: Duration = Duration::from_secs(4 * 3600);

/// The program that makes disks, from the folder of the QEMU program that the user chose if there is
/// one, so that the two are of one version.
pub(crate) fn tool(binary: &Path) -> PathBuf {
    let beside = binary.with_file_name("qemu-img");
    if binary.components().count() > 1 && process::which(&beside).is_some() {
        return beside;
    }
    "qemu-img".into()
}

/// Makes the overlay `disk` of `bytes` over `image`, unless it is there. It appears whole: made under
/// another name, then renamed. The path of the base inside it is relative, so that a store can move.
///
/// # Errors
/// What qemu-img reports.
pub(crate) async fn make(binary: &Path, disk: &Path, image: &BaseImage, bytes: u64) -> Result<()> {
    if disk.exists() {
        return Ok(());
    }
    let folder = disk.parent().unwrap_or(Path::new("/"));
    let base = relative(folder, &image.disk)?;
    let unfinished = folder.join(".new-disk.qcow2");
    let mut command = Command::new(tool(binary));
    command
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .arg(&base)
        .arg(&unfinished)
        .arg(bytes.max(image.size).to_string());
    process::run(command, None, DEADLINE)
        .await?
        .success("`qemu-img create`")
        .map_err(|error| error.context(format!("failed to make the disk `{}`", disk.display())))?;
    let private = PermissionsExt::from_mode(0o600);
    fs::set_permissions(&unfinished, private)
        .and_then(|()| fs::File::open(&unfinished)?.sync_all())
        .and_then(|()| fs::rename(&unfinished, disk))
        .map_err(|error| {
            atomic::full(
                error,
                &format!("failed to make the disk `{}`", disk.display()),
            )
        })?;
    atomic::sync_folder(folder)
}

/// Writes all that `disk` and its base hold to `copy`, compressed, with no base and no path inside. What an earlier copy
/// that was cut off has left is overwritten.
///
/// # Errors
/// What qemu-img reports.
pub(crate) async fn flatten(binary: &Path, disk: &Path, copy: &Path) -> Result<()> {
    let failed = || format!("failed to copy the disk `{}`", disk.display());
    // Made here, so that nobody else can read it from the first byte on.
    private(copy).map_err(|error| atomic::full(error, &failed()))?;
    let mut command = Command::new(tool(binary));
    command
        .args(["convert", "-q", "-c", "-f", "qcow2", "-O", "qcow2"])
        .args([disk, copy]);
    let done = process::run(command, None, COPY_DEADLINE)
        .await?
        .success("`qemu-img convert`")
        .map_err(|error| error.context(failed()));
    if done.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(copy);
    }
    done.map(drop)
}

fn private(file: &Path) -> std::io::Result<()> {
    let made = fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(file)?;
    made.set_permissions(fs::Permissions::from_mode(0o600))
}

/// Moves a disk that was copied elsewhere to where the machine's own lies.
///
/// # Errors
/// What the file system reports.
pub(crate) fn take(copy: &Path, disk: &Path) -> Result<()> {
    let taken = fs::set_permissions(copy, fs::Permissions::from_mode(0o600))
        .and_then(|()| fs::File::open(copy)?.sync_all())
        .and_then(|()| fs::rename(copy, disk));
    taken.map_err(|error| {
        atomic::full(
            error,
            &format!("failed to make the disk `{}`", disk.display()),
        )
    })?;
    disk.parent().map_or(Ok(()), atomic::sync_folder)
}

/// The path that leads from `folder` to `file`, both of which exist.
fn relative(folder: &Path, file: &Path) -> Result<PathBuf> {
    let real = |path: &Path| {
        fs::canonicalize(path).or_fail(Kind::NotFound, || {
            format!("failed to find `{}`", path.display())
        })
    };
    Ok(between(&real(folder)?, &real(file)?))
}

fn between(folder: &Path, file: &Path) -> PathBuf {
    let from: Vec<Component<'_>> = folder.components().collect();
    let to: Vec<Component<'_>> = file.components().collect();
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = from[common..].iter().map(|_| Component::ParentDir);
    up.chain(to[common..].iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_the_base_image_is_relative() {
        let way = between(
            Path::new("/h/.forge/drivers/qemu/c"),
            Path::new("/h/.forge/images/i/disk.qcow2"),
        );
        assert_eq!(way, Path::new("../../../images/i/disk.qcow2"));
        assert_eq!(between(Path::new("/a"), Path::new("/a/b")), Path::new("b"));
    }
}
