//! Records: JSON files with a format number.

use std::fs;
use std::path::Path;

use forge_driver::atomic::{self, NewFile};
use forge_driver::{Context, Error, Kind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The format of the records that this forge writes. Newer ones are refused: a forge that does not know all fields
/// would drop some when it saves.
pub const FORMAT: u64 = 2;

/// The oldest format that is read. Its records lack fields that have defaults since; they are of the format
/// [`FORMAT`] once they are saved.
const OLDEST: u64 = 1;

/// Reads a record; `None` when there is no file.
///
/// # Errors
/// [`Kind::Newer`] when a newer forge wrote it, [`Kind::Corrupt`] when it is not what it should be:
/// the file is left as it is.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(
                Error::new(Kind::Io, format!("failed to read `{}`", path.display())).because(error),
            );
        }
    };
    parse(path, &text).map(Some)
}

/// Reads a record that `text` holds; `path` is where it belongs.
///
/// # Errors
/// As [`read_json`].
pub fn parse<T: DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T> {
    let corrupt = |error: serde_json::Error| {
        Error::new(Kind::Corrupt, format!("`{}` is damaged", path.display()))
            .because(error)
            .hint("put the file back from a backup; forge leaves it as it is")
    };
    let mut value: Map<String, Value> = serde_json::from_slice(text).map_err(corrupt)?;
    let format = value.remove("format").and_then(|format| format.as_u64());
    match format {
        Some(OLDEST..=FORMAT) => {}
        Some(newer) if newer > FORMAT => {
            return Err(Error::new(
                Kind::Newer,
                format!(
                    "`{}` has format {newer}, and this forge knows formats up to {FORMAT}",
                    path.display()
                ),
            )
            .hint(
                "a newer forge wrote it: install that version, or set FORGE_HOME to another folder",
            ));
        }
        _ => {
            return Err(
                Error::new(Kind::Corrupt, format!("`{}` is damaged", path.display()))
                    .because("it has no format number")
                    .hint("put the file back from a backup; forge leaves it as it is"),
            );
        }
    }
    serde_json::from_value(Value::Object(value)).map_err(corrupt)
}

/// Writes a record, whole, for the owner alone.
///
/// # Errors
/// What the file system reports; the old record is then untouched.
pub fn write_json<T: Serialize>(path: &Path, record: &T) -> Result<()> {
    write_file(path, &json(path, record)?, 0o600)
}

/// The record that is to be written to `path`, as text.
///
/// # Errors
/// [`Kind::Invalid`] when it has none.
pub fn json<T: Serialize>(path: &Path, record: &T) -> Result<Vec<u8>> {
    let failed = || format!("failed to write `{}`", path.display());
    let value = serde_json::to_value(record).or_fail(Kind::Invalid, failed)?;
    let mut whole = Map::new();
    whole.insert("format".to_owned(), FORMAT.into());
    if let Value::Object(fields) = value {
        whole.extend(fields);
    }
    let mut text = serde_json::to_vec_pretty(&whole).or_fail(Kind::Invalid, failed)?;
    text.push(b'\n');
    Ok(text)
}

/// Writes a file of the store, whole. Every one of them is written here, or by [`write_files`].
///
/// # Errors
/// What the file system reports; the old file is then untouched.
pub fn write_file(path: &Path, contents: &[u8], mode: u32) -> Result<()> {
    crate::fault::point(&format!("before saving {}", file_name(path)));
    atomic::write(path, contents, mode)?;
    crate::fault::point(&format!("after saving {}", file_name(path)));
    Ok(())
}

/// Writes several files of one folder of the store together, as [`atomic::write_all`] does.
///
/// # Errors
/// What the file system reports; while the first file is the old one, so are the others.
pub fn write_files(folder: &Path, files: &[NewFile]) -> Result<()> {
    let Some(first) = files.first() else {
        return Ok(());
    };
    crate::fault::point(&format!("before saving {}", first.name));
    atomic::write_all(folder, files, |name| {
        crate::fault::point(&format!("before renaming {name}"));
    })?;
    crate::fault::point(&format!("after saving {}", first.name));
    Ok(())
}

/// Removes a file; gone already succeeds.
///
/// # Errors
/// What the file system reports.
pub fn remove_file(path: &Path) -> Result<()> {
    crate::fault::point(&format!("before removing {}", file_name(path)));
    atomic::gone(fs::remove_file(path), path)?;
    crate::fault::point(&format!("after removing {}", file_name(path)));
    Ok(())
}

/// Removes the folder of a record with everything in it (also the half of a write that was cut off), the
/// record last: while anything is left, it is listed. Gone already: succeeds.
///
/// # Errors
/// What the file system reports.
pub fn forget(folder: &Path, record: &str) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(
                Error::new(Kind::Io, format!("failed to list `{}`", folder.display()))
                    .because(error),
            );
        }
    };
    for entry in entries.flatten() {
        if entry.file_name() != record {
            remove_file(&entry.path())?;
        }
    }
    remove_file(&folder.join(record))?;
    atomic::gone(fs::remove_dir(folder), folder)?;
    folder.parent().map_or(Ok(()), atomic::sync_folder)
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Thing {
        name: String,
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("thing.json");
        assert_eq!(read_json::<Thing>(&path).expect("none"), None);
        let thing = Thing { name: "n1".into() };
        write_json(&path, &thing).expect("write");
        assert_eq!(read_json(&path).expect("read"), Some(thing));
        assert!(
            fs::read_to_string(&path)
                .expect("text")
                .contains("\"format\": 2")
        );
    }

    #[test]
    fn a_record_of_the_first_format_is_read_and_written_in_this_one() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("thing.json");
        fs::write(&path, "{\"format\":1,\"name\":\"n1\"}").expect("write");
        let thing: Thing = read_json(&path).expect("read").expect("there");
        assert_eq!(thing.name, "n1");
        write_json(&path, &thing).expect("write");
        let text = fs::read_to_string(&path).expect("text");
        assert!(text.contains("\"format\": 2"), "{text}");
    }

    #[test]
    fn damage_is_told_apart_from_a_newer_format() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("thing.json");
        for (text, kind) in [
            ("", Kind::Corrupt),
            ("{\"format\":1,\"nam", Kind::Corrupt),
            ("{\"name\":\"x\"}", Kind::Corrupt),
            ("{\"format\":1}", Kind::Corrupt),
            ("{\"format\":0,\"name\":\"x\"}", Kind::Corrupt),
            ("{\"format\":3,\"name\":\"x\"}", Kind::Newer),
        ] {
            fs::write(&path, text).expect("write");
            let error = read_json::<Thing>(&path).expect_err(text);
            assert_eq!(error.kind(), kind, "{text}");
            assert!(error.message().contains("thing.json"), "{text}");
            assert_eq!(fs::read_to_string(&path).expect("still there"), text);
        }
    }
}
