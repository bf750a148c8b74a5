//! What `forge export` writes: a tar archive, sealed by a passphrase ([`crate::seal`]).
//!
//! ```text
//! manifest.json               what there is
//! certs/NAME                  the certificate authority of the store, and the client pair
//! machines/MACHINE/NAME       the record of a machine, its keys and certificates
//! clusters/CLUSTER/NAME       the record of a cluster
//! drivers/DRIVER/CLAIM/NAME   what a driver remembers of a machine that stays where it is
//! disks/CLAIM                 the disk of a machine that moves
//! ```
//!
//! Small files come first, disks last. No name holds a path of the store that it came from.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use forge_driver::{Claim, Context, Error, Kind, Result, atomic};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::seal::{Opened, Sealer};

/// Its first word.
pub const WHAT: &str = "forge-export";
/// The format of the manifest.
const FORMAT: u32 = 1;
/// The first file.
const MANIFEST: &str = "manifest.json";
/// The folder of disks.
const DISKS: &str = "disks";
/// All small files together are no larger.
const SMALL: u64 = 64 << 20;
/// There are no more of them.
const FILES: usize = 200_000;

/// The first file of an archive: what there is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// This archive.
    pub id: Uuid,
    /// The store that it came from.
    pub store: Uuid,
    /// The machines, by name.
    pub machines: Vec<Item>,
    /// The clusters, by name.
    pub clusters: Vec<String>,
}

/// One machine of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub claim: Claim,
    /// The size of its disk as it is in the archive, when it comes along.
    pub disk: Option<u64>,
}

impl Manifest {
    /// That of a new archive.
    pub fn new(store: Uuid, machines: Vec<Item>, clusters: Vec<String>) -> Self {
        Self {
            format: FORMAT,
            id: Uuid::new_v4(),
            store,
            machines,
            clusters,
        }
    }
}

/// A small file: its bytes and its mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Small {
    /// What it holds.
    pub bytes: Vec<u8>,
    /// Its permission bits: no others than the owner may write it.
    pub mode: u32,
}

/// Small files by their path in the archive.
pub type Smalls = BTreeMap<String, Small>;

/// Writes an archive.
pub struct Writer<W: Write> {
    tar: tar::Builder<Sealer<W>>,
    /// The bytes of its small files so far …
    held: u64,
    /// … and how many they are.
    files: usize,
}

fn failed() -> String {
    "failed to write the archive".to_owned()
}

/// Takes an error that this program's own streams wrapped for those of a library out again.
pub(super) fn unwrapped(error: std::io::Error, message: &str) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) => atomic::full(error, message),
    }
}

impl<W: Write> Writer<W> {
    /// Begins with the manifest.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn new(out: Sealer<W>, manifest: &Manifest) -> Result<Self> {
        let mut writer = Self {
            tar: tar::Builder::new(out),
            held: 0,
            files: 0,
        };
        let text = serde_json::to_vec_pretty(manifest).or_fail(Kind::Invalid, failed)?;
        writer.small(
            MANIFEST,
            &Small {
                bytes: text,
                mode: 0o600,
            },
        )?;
        Ok(writer)
    }

    /// Adds a small file: one that will be read again.
    ///
    /// # Errors
    /// [`Kind::Refused`] for a name or an amount that no reader takes; what the file system reports.
    pub fn small(&mut self, path: &str, file: &Small) -> Result<()> {
        let refused = |why: String| Err(Error::new(Kind::Refused, failed()).because(why));
        if !plain(path) {
            return refused(format!("`{}` {ODD}", path.escape_debug()));
        }
        self.held += file.bytes.len() as u64;
        self.files += 1;
        if self.held > SMALL || self.files > FILES {
            return refused(format!(
                "records, keys and what drivers remember are more than {} MiB or {FILES} files together: name fewer machines",
                SMALL >> 20
            ));
        }
        self.add(path, file.bytes.len() as u64, file.mode, &file.bytes[..])
    }

    /// Adds the disk of a machine.
    ///
    /// # Errors
    /// What the file system reports; when the file is shorter than it was.
    pub fn disk(&mut self, claim: Claim, size: u64, disk: impl Read) -> Result<()> {
        self.add(&format!("{DISKS}/{claim}"), size, 0o600, disk)
    }

    fn add(&mut self, path: &str, size: u64, mode: u32, from: impl Read) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(mode);
        header.set_size(size);
        let mut from = Interruptible::of(from.take(size));
        self.tar
            .append_data(&mut header, path, &mut from)
            .map_err(|error| unwrapped(error, &failed()))?;
        if from.read == size {
            return Ok(());
        }
        Err(Error::new(Kind::Io, failed())
            .because(format!("`{path}` became shorter while it was read")))
    }

    /// Ends the archive, and gives back what it was written to.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn finish(self) -> Result<W> {
        let sealer = self.tar.into_inner();
        sealer
            .map_err(|error| unwrapped(error, &failed()))?
            .finish()
    }
}

/// A reader that ends when the user interrupts: disks are large.
pub(super) struct Interruptible<R> {
    from: R,
    read: u64,
}

impl<R: Read> Interruptible<R> {
    pub(super) fn of(from: R) -> Self {
        Self { from, read: 0 }
    }
}

impl<R: Read> Read for Interruptible<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        crate::interrupt::check().map_err(std::io::Error::other)?;
        let count = self.from.read(into)?;
        self.read += count as u64;
        Ok(count)
    }
}

/// A file of the store as an archive has it.
///
/// # Errors
/// What the file system reports.
pub fn read_small(path: &Path) -> Result<Small> {
    let failed = || format!("failed to read `{}`", path.display());
    let mut file = File::open(path).or_fail(Kind::Io, failed)?;
    let mode = |found: Metadata| found.permissions().mode() & 0o644 | 0o600;
    let mode = mode(file.metadata().or_fail(Kind::Io, failed)?);
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).or_fail(Kind::Io, failed)?;
    Ok(Small { bytes, mode })
}

/// What `read` does with each disk.
pub type TakeDisk<'a> = &'a mut dyn FnMut(Claim, &mut dyn Read) -> Result<()>;

/// Reads an archive: the manifest, then all small files, and where disks are wanted each of them to the end.
///
/// # Errors
/// [`Kind::Corrupt`] for an archive that no forge wrote; what `disk` reports.
pub fn read<R: Read>(
    opened: Opened<R>,
    mut disk: Option<TakeDisk<'_>>,
) -> Result<(Manifest, Smalls)> {
    let mut archive = tar::Archive::new(opened);
    let broken = |error: std::io::Error| unwrapped(error, "the archive is not what it should be");
    let mut manifest: Option<Manifest> = None;
    let (mut smalls, mut held) = (Smalls::new(), 0);
    let mut disks = false;
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path = entry.path().map_err(broken)?;
        let path = path
            .to_str()
            .filter(|path| plain(path) && entry.header().entry_type().is_file())
            .ok_or_else(|| strange(&path.to_string_lossy()))?
            .to_owned();
        let claim = path
            .strip_prefix(DISKS)
            .and_then(|rest| rest.strip_prefix('/')?.parse::<Claim>().ok());
        match (&manifest, claim) {
            (None, None) if path == MANIFEST => {
                let file = take(&mut entry, &path, &mut held)?;
                manifest = Some(understood(&file.bytes)?);
            }
            (None, _) => return Err(strange(&path)),
            (Some(known), Some(claim)) => {
                let Some(disk) = &mut disk else {
                    break;
                };
                disks = true;
                let expected = known.machines.iter().any(|item| {
                    item.claim == claim && item.disk.is_some_and(|size| size == entry.size())
                });
                if !expected {
                    return Err(strange(&path));
                }
                disk(claim, &mut entry)?;
            }
            (Some(_), None) => {
                if disks || smalls.len() >= FILES {
                    return Err(strange(&path));
                }
                let file = take(&mut entry, &path, &mut held)?;
                smalls.insert(path, file);
            }
        }
    }
    let manifest = manifest.ok_or_else(|| strange(MANIFEST))?;
    Ok((manifest, smalls))
}

fn understood(text: &[u8]) -> Result<Manifest> {
    let value: serde_json::Value =
        serde_json::from_slice(text).or_fail(Kind::Corrupt, || strange(MANIFEST).line())?;
    let format = value["format"].as_u64().unwrap_or_default();
    if format > u64::from(FORMAT) {
        return Err(Error::new(
            Kind::Newer,
            format!("the archive has format {format}, and this forge knows {FORMAT}"),
        )
        .hint("a newer forge wrote it: use that version"));
    }
    serde_json::from_value(value).or_fail(Kind::Corrupt, || strange(MANIFEST).line())
}

fn take(entry: &mut impl Read, path: &str, held: &mut u64) -> Result<Small> {
    let mut bytes = Vec::new();
    let left = SMALL.saturating_sub(*held);
    entry
        .take(left + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| unwrapped(error, "failed to read the archive"))?;
    *held += bytes.len() as u64;
    if *held > SMALL {
        return Err(strange(path).because("its small files are larger than 64 MiB"));
    }
    let open = path.ends_with(".pub") || path.ends_with(".pem") && !path.ends_with("key.pem");
    Ok(Small {
        bytes,
        mode: if open { 0o644 } else { 0o600 },
    })
}

/// What is said of a name that is not plain.
pub(super) const ODD: &str =
    "has a name with a blank, a backslash or something else that is not plain";

/// Whether each part of a path is a plain name: none leads elsewhere, none is hidden.
pub(super) fn plain(path: &str) -> bool {
    path.len() <= 512
        && path.split('/').count() <= 4
        && path.split('/').all(|part| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_ascii_graphic() && c != '\\')
        })
}

fn strange(path: &str) -> Error {
    Error::new(
        Kind::Corrupt,
        format!(
            "the archive is not what it should be: `{}` has no place in it",
            path.escape_debug()
        ),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::seal::Sealed;

    const PASSPHRASE: &str = "a passphrase";

    fn item(claim: Claim, disk: Option<u64>) -> Item {
        Item {
            name: "n1".to_owned(),
            claim,
            disk,
        }
    }

    fn begun(items: Vec<Item>) -> Writer<Vec<u8>> {
        let sealer = Sealer::new(Vec::new(), WHAT, &Value::Null, &PASSPHRASE.into());
        let manifest = Manifest::new(Uuid::nil(), items, Vec::new());
        Writer::new(sealer.expect("begun"), &manifest).expect("begun")
    }

    fn small(text: &str) -> Small {
        Small {
            bytes: text.as_bytes().to_vec(),
            mode: 0o600,
        }
    }

    type Case<'a> = &'a dyn Fn(&mut Writer<Vec<u8>>) -> Result<()>;
    type Disks = BTreeMap<Claim, Vec<u8>>;

    fn read_all(archive: &[u8]) -> Result<(Manifest, Smalls, Disks)> {
        let sealed = Sealed::read(archive, WHAT)?;
        let key = sealed.key(&PASSPHRASE.into())?;
        let mut disks = Disks::new();
        let (manifest, smalls) = read(
            sealed.unlock(&key)?,
            Some(&mut |claim, from| {
                let mut bytes = Vec::new();
                from.read_to_end(&mut bytes).or_fail(Kind::Io, failed)?;
                disks.insert(claim, bytes);
                Ok(())
            }),
        )?;
        Ok((manifest, smalls, disks))
    }

    #[test]
    fn an_archive_comes_back_whole() {
        let claim = Claim::random();
        let mut writer = begun(vec![item(claim, Some(5))]);
        let long = format!("machines/{}/machine.json", "n".repeat(63));
        writer.small(&long, &small("{}")).expect("added");
        writer
            .small("machines/n1/server.pem", &small("x"))
            .expect("added");
        writer.disk(claim, 5, &b"bytes"[..]).expect("added");
        let (manifest, smalls, disks) = read_all(&writer.finish().expect("ended")).expect("read");
        assert_eq!(manifest.machines, [item(claim, Some(5))]);
        assert_eq!(smalls[&long], small("{}"));
        assert_eq!(smalls["machines/n1/server.pem"].mode, 0o644);
        assert_eq!(disks, Disks::from([(claim, b"bytes".to_vec())]));
    }

    #[test]
    fn what_has_no_place_in_it_is_refused() {
        let (claim, other) = (Claim::random(), Claim::random());
        let cases: [Case<'_>; 5] = [
            &|writer| writer.add("machines/n1/.hidden", 1, 0o600, &b"x"[..]),
            &|writer| writer.add("machines/n1/a/b/c", 1, 0o600, &b"x"[..]),
            &|writer| writer.disk(other, 1, &b"x"[..]),
            &|writer| writer.disk(claim, 2, &b"xy"[..]),
            &|writer| {
                writer.disk(claim, 1, &b"x"[..])?;
                writer.small("machines/n1/late", &small("x"))
            },
        ];
        for (index, case) in cases.iter().enumerate() {
            let mut writer = begun(vec![item(claim, Some(1))]);
            case(&mut writer).expect("added");
            let error = read_all(&writer.finish().expect("ended")).expect_err("strange");
            assert_eq!(error.kind(), Kind::Corrupt, "{index}: {error}");
        }
        for path in ["", "/etc/passwd", "../x", "a//b", "a/..", "a/b\n", "ä"] {
            assert!(!plain(path), "{path}");
        }
    }

    #[test]
    fn what_could_not_be_read_again_is_not_written() {
        let claim = Claim::random();
        for path in ["machines/n1/a b", "machines/n1/\u{e4}", "machines/n1/a\\b"] {
            let refused = begun(vec![item(claim, None)]).small(path, &small("x"));
            assert_eq!(refused.expect_err(path).kind(), Kind::Refused, "{path}");
        }
        let mut writer = begun(vec![item(claim, None)]);
        let large = Small {
            bytes: vec![0; 16 << 20],
            mode: 0o600,
        };
        let mut written = 0;
        let refused = loop {
            match writer.small(&format!("machines/n1/{written}"), &large) {
                Ok(()) => written += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(
            (refused.kind(), written),
            (Kind::Refused, 3),
            "with the manifest a fourth is too much"
        );
        writer.files = FILES;
        let refused = writer.small("machines/n1/one", &small(""));
        assert_eq!(refused.expect_err("too many").kind(), Kind::Refused);
    }

    #[test]
    fn a_disk_that_became_shorter_is_told() {
        let claim = Claim::random();
        let mut writer = begun(vec![item(claim, Some(10))]);
        let done = writer.disk(claim, 10, &b"short"[..]);
        let error = done.expect_err("the archive would not be whole");
        assert_eq!(error.causes().len(), 1);
    }
}
