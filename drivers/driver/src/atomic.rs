//! Files that are there whole or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::error::{Context, Error, Kind, Result};

/// Replaces `path` with `contents`, so that a reader or a crash sees the old file or the new one,
/// never a part: temporary file beside it, fsync, rename, fsync of the folder.
///
/// `mode` is the file's permission bits from the first moment on.
///
/// # Errors
/// What the file system reports; the old file is then untouched.
pub fn write(path: &Path, contents: &[u8], mode: u32) -> Result<()> {
    let failed = || format!("failed to write `{}`", path.display());
    let folder = path
        .parent()
        .ok_or_else(|| Error::new(Kind::Io, failed()))?;
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(fs::Permissions::from_mode(mode))
        .tempfile_in(folder)
        .map_err(|error| full(error, &failed()))?;
    file.write_all(contents)
        .and_then(|()| {
            file.as_file()
                .set_permissions(fs::Permissions::from_mode(mode))
        })
        .and_then(|()| file.as_file().sync_all())
        .map_err(|error| full(error, &failed()))?;
    file.persist(path)
        .map_err(|error| full(error.error, &failed()))?;
    sync_folder(folder)
}

/// Replaces `path` with a value as indented JSON, for the owner alone, as [`write()`] does. `what` is what it is,
/// for the error.
///
/// # Errors
/// As [`write()`]; [`Kind::Invalid`] when the value has no JSON.
pub fn write_json(path: &Path, value: &impl serde::Serialize, what: &str) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)
        .or_fail(Kind::Invalid, || format!("failed to write {what}"))?;
    text.push(b'\n');
    write(path, &text, 0o600)
}

/// The outcome of a removal of `path`: one that found nothing is as good.
///
/// # Errors
/// What the file system reported otherwise.
pub fn gone(removed: std::io::Result<()>, path: &Path) -> Result<()> {
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(full(
            error,
            &format!("failed to remove `{}`", path.display()),
        )),
        _ => Ok(()),
    }
}

/// Makes renames and removals inside `folder` durable.
///
/// # Errors
/// What the file system reports.
pub fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|file| file.sync_all())
        .or_fail(Kind::Io, || {
            format!("failed to sync the folder `{}`", folder.display())
        })
}

/// Makes `folder` and what is missing above it, for the owner alone (0700).
///
/// # Errors
/// What the file system reports.
pub fn private_folder(folder: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| {
            full(
                error,
                &format!("failed to make the folder `{}`", folder.display()),
            )
        })
}

/// Explains an error of the file system; a full disk gets its own hint.
pub fn full(error: std::io::Error, message: &str) -> Error {
    let hint = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            Some("free some space, then run the same command again: it goes on where it stopped")
        }
        std::io::ErrorKind::PermissionDenied => Some(
            "the store must belong to the user who runs forge; see `ls -ld` of the folder, or set FORGE_HOME",
        ),
        _ => None,
    };
    let error = Error::new(Kind::Io, message).because(error);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_replaces_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("record.json");
        write(&path, b"one", 0o600).expect("first");
        write(&path, b"two", 0o600).expect("second");
        assert_eq!(fs::read(&path).expect("read"), b"two");
        assert_eq!(
            fs::metadata(&path).expect("stat").permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error =
            write(Path::new("/nonexistent/x/record.json"), b"", 0o600).expect_err("no folder");
        assert_eq!(
            error.message(),
            "failed to write `/nonexistent/x/record.json`"
        );
    }
}
