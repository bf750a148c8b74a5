//! Files that are there whole or not at all.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Context, Error, Kind, Result};

/// What a file that [`write_all()`] has not renamed yet is called.
const UNFINISHED: &str = ".next-";

/// A file that is written together with others of its folder.
pub struct NewFile {
    /// Its name.
    pub name: String,
    /// All that it holds.
    pub contents: Vec<u8>,
    /// Its permission bits from the first moment on.
    pub mode: u32,
}

/// Replaces `path` with `contents`, so that a reader or a crash sees the old file or the new one,
/// never a part: temporary file beside it, fsync, rename, fsync of the folder.
///
/// `mode` is the file's permission bits from the first moment on.
///
/// # Errors
/// What the file system reports; the old file is then untouched.
pub fn write(path: &Path, contents: &[u8], mode: u32) -> Result<()> {
    let folder = path
        .parent()
        .ok_or_else(|| Error::new(Kind::Io, failed(path)))?;
    let file = aside(folder, ".new-", path, contents, mode)?;
    file.persist(path)
        .map_err(|error| full(error.error, &failed(path)))?;
    sync_folder(folder)
}

/// Replaces several files of `folder` together. Each is there whole or not at all, as with [`write()`]; all are
/// written aside before any is renamed; and the first is durable before another changes, so it alone decides whether
/// the write has happened. One that was cut off behind it shows as [`unfinished()`].
///
/// `before` hears the name of each file before it is renamed. The caller keeps others from writing there.
///
/// # Errors
/// What the file system reports. Nothing has changed when the first file could not be replaced.
pub fn write_all(folder: &Path, files: &[NewFile], before: impl Fn(&str)) -> Result<()> {
    let mut written = VecDeque::with_capacity(files.len());
    for file in files {
        let path = folder.join(&file.name);
        let temporary = aside(folder, UNFINISHED, &path, &file.contents, file.mode)?;
        written.push_back((temporary, path, &file.name));
    }
    let mut decided = false;
    while let Some((temporary, path, name)) = written.pop_front() {
        before(name);
        temporary
            .persist(&path)
            .map_err(|error| full(error.error, &failed(&path)))?;
        // From here on what is not renamed is the trace that tells of it.
        for (temporary, ..) in &mut written {
            temporary.disable_cleanup(true);
        }
        if !decided || written.is_empty() {
            sync_folder(folder)?;
        }
        decided = true;
    }
    Ok(())
}

/// What a [`write_all()`] that was cut off has left in `folder`; nothing where there is no such folder. The caller
/// keeps others from writing there.
///
/// # Errors
/// When the folder cannot be listed.
pub fn unfinished(folder: &Path) -> Result<Vec<PathBuf>> {
    use std::io::ErrorKind;
    let listed = || format!("failed to list `{}`", folder.display());
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error).or_fail(Kind::Io, listed),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.or_fail(Kind::Io, listed)?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// A temporary file in `folder` with what `path` is to hold, on disk.
fn aside(
    folder: &Path,
    prefix: &str,
    path: &Path,
    contents: &[u8],
    mode: u32,
) -> Result<NamedTempFile> {
    let permissions = || fs::Permissions::from_mode(mode);
    let mut file = tempfile::Builder::new()
        .prefix(prefix)
        .permissions(permissions())
        .tempfile_in(folder)
        .map_err(|error| full(error, &failed(path)))?;
    file.write_all(contents)
        .and_then(|()| file.as_file().set_permissions(permissions()))
        .and_then(|()| file.as_file().sync_all())
        .map_err(|error| full(error, &failed(path)))?;
    Ok(file)
}

fn failed(path: &Path) -> String {
    format!("failed to write `{}`", path.display())
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

    fn file(name: &str, text: &str) -> NewFile {
        NewFile {
            name: name.to_owned(),
            contents: text.as_bytes().to_vec(),
            mode: 0o600,
        }
    }

    /// The contents of all files of the folder, by name.
    fn contents(folder: &Path) -> Vec<(String, String)> {
        let mut files: Vec<_> = fs::read_dir(folder)
            .expect("list")
            .map(|entry| {
                let path = entry.expect("entry").path();
                let name = path.file_name().expect("name").to_string_lossy();
                (name.into_owned(), fs::read_to_string(&path).expect("read"))
            })
            .collect();
        files.sort();
        files
    }

    #[test]
    fn files_that_are_written_together_are_all_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path();
        fs::write(path.join("b"), "old").expect("write");
        write_all(path, &[file("a", "1"), file("b", "2")], |_| ()).expect("written");
        let pairs = [("a", "1"), ("b", "2")].map(|(name, text)| (name.to_owned(), text.to_owned()));
        assert_eq!(contents(path), pairs);
        let mode = fs::metadata(path.join("b")).expect("stat").permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        write_all(path, &[], |_| ()).expect("nothing to do");
        assert_eq!(contents(path), pairs);
    }

    #[test]
    fn a_write_of_several_that_is_cut_off_leaves_each_whole_and_tells() {
        let names = ["a", "b", "c"];
        for (done, cut) in names.iter().enumerate() {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path();
            for name in names {
                fs::write(path.join(name), "old").expect("write");
            }
            let files = names.map(|name| file(name, "new"));
            let ended = std::panic::catch_unwind(|| {
                write_all(path, &files, |name| assert_ne!(name, *cut, "cut off here"))
            });
            assert!(ended.is_err(), "cut off before {cut}");
            for (index, name) in names.iter().enumerate() {
                let holds = fs::read_to_string(path.join(name)).expect("read");
                assert_eq!(holds, if index < done { "new" } else { "old" }, "{name}");
            }
            let left = unfinished(path).expect("listed");
            // Before the first is renamed nothing has happened.
            assert_eq!(left.is_empty(), done == 0, "cut off before {cut}: {left:?}");
        }
    }

    #[test]
    fn where_no_folder_is_nothing_is_unfinished() {
        let file = NamedTempFile::new().expect("a file");
        for path in [Path::new("/nonexistent/x"), file.path()] {
            assert!(unfinished(path).expect("nothing").is_empty());
        }
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
