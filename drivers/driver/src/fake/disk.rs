//! The "disk" of a machine of the provider: the files of its guest, in one.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Provider;
use crate::{Claim, Context, Error, Instance, Kind, Result, Spec, atomic};

/// Each file by its path, with its mode.
type Files = BTreeMap<PathBuf, (u32, Vec<u8>)>;

/// Writes the files of a machine that is off to one file in its folder.
pub(super) fn pack(provider: &Provider, claim: Claim) -> Result<PathBuf> {
    let _lock = provider.lock()?;
    let (vm, folder) = (provider.must(claim)?, provider.folder(claim));
    if vm.on {
        return Err(Error::new(
            Kind::Conflict,
            format!(
                "machine `{}` runs: its disk changes while it is read",
                vm.name
            ),
        )
        .hint(format!("stop it first: `forge stop {}`", vm.name)));
    }
    let failed = || format!("failed to pack `{}`", folder.display());
    let root = folder.join("root");
    let (mut files, mut folders) = (Files::new(), vec![root.clone()]);
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).or_fail(Kind::Io, failed)? {
            let path = entry.or_fail(Kind::Io, failed)?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let mode = fs::metadata(&path).or_fail(Kind::Io, failed)?;
            let bytes = fs::read(&path).or_fail(Kind::Io, failed)?;
            let name = path.strip_prefix(&root).or_fail(Kind::Invalid, failed)?;
            files.insert(name.to_owned(), (mode.permissions().mode(), bytes));
        }
    }
    let packed = folder.join(".packed");
    let text = serde_json::to_vec(&files).or_fail(Kind::Invalid, failed)?;
    atomic::write(&packed, &text, 0o600)?;
    Ok(packed)
}

/// Makes a machine that is off of the file that its files came in.
pub(super) fn unpack(provider: &Provider, spec: &Spec) -> Result<Instance> {
    let _lock = provider.lock()?;
    if provider.find(spec.claim)?.is_some() {
        return Err(Error::new(
            Kind::Exists,
            format!("there is a machine with the claim {}", spec.claim),
        ));
    }
    let vm = provider.make(spec)?;
    fill(&spec.image.disk, &provider.folder(spec.claim))?;
    vm.instance()
}

/// Puts files where they belong, and removes the one that they came in.
fn fill(disk: &Path, folder: &Path) -> Result<()> {
    let failed = || format!("failed to unpack `{}`", disk.display());
    let text = fs::read(disk).or_fail(Kind::Io, failed)?;
    let files: Files = serde_json::from_slice(&text).or_fail(Kind::Corrupt, failed)?;
    for (name, (mode, bytes)) in files {
        let path = folder.join("root").join(name);
        atomic::private_folder(path.parent().unwrap_or(folder))?;
        atomic::write(&path, &bytes, mode & 0o7777)?;
    }
    fs::remove_file(disk).or_fail(Kind::Io, failed)
}
