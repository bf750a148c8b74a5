//! The disks of machines: what a guest writes goes into an overlay of the medium, which is the shim's own.
//!
//! QEMU reads VDI and VMDK, but no VDI that has a parent. Differencing media that VirtualBox makes without a
//! running machine are empty, so an overlay of the same size over the medium that they come from is the same
//! disk. It lasts for as long as the medium does. The medium without parents is copied once, because QEMU
//! saves no state of a machine with other formats than its own beneath.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Result, real};

struct Medium {
    parent: Option<String>,
    location: PathBuf,
    format: String,
}

/// The overlay of a medium: made when there is none, grown when the medium has grown.
pub fn overlay(uuid: &str) -> Result<PathBuf> {
    let folder = real::state()?.join("media");
    fs::create_dir_all(&folder)?;
    // Machines that start together may come from one medium.
    let lock = File::create(folder.join("lock"))?;
    lock.lock()?;
    written(&folder, uuid)
}

fn written(folder: &Path, uuid: &str) -> Result<PathBuf> {
    let path = folder.join(format!("{uuid}.qcow2"));
    let medium = medium(uuid)?;
    let size = size(&medium)?;
    if !path.exists() {
        let beneath = match &medium.parent {
            None => copy(folder, uuid, &medium)?,
            Some(parent) => {
                empty(&medium)?;
                beneath(folder, parent)?
            }
        };
        let aside = folder.join(format!("{uuid}.new"));
        run(Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
            .arg(beneath)
            .arg(&aside)
            .arg(size.to_string()))?;
        fs::rename(aside, &path)?;
    } else if virtual_size(&path)? < size {
        run(Command::new("qemu-img")
            .args(["resize", "-q", "-f", "qcow2"])
            .arg(&path)
            .arg(size.to_string()))?;
    }
    note(folder, &path, &medium)?;
    Ok(path)
}

/// What a child of this medium begins with.
fn beneath(folder: &Path, uuid: &str) -> Result<PathBuf> {
    let medium = medium(uuid)?;
    if medium.parent.is_none() && !folder.join(format!("{uuid}.qcow2")).exists() {
        return copy(folder, uuid, &medium);
    }
    written(folder, uuid)
}

/// A medium without parents in the one format in which QEMU saves the state of a running machine.
fn copy(folder: &Path, uuid: &str, medium: &Medium) -> Result<PathBuf> {
    let path = folder.join(format!("{uuid}-base.qcow2"));
    if !path.exists() {
        let aside = folder.join(format!("{uuid}-base.new"));
        run(Command::new("qemu-img")
            .args(["convert", "-U", "-f", &medium.format, "-O", "qcow2"])
            .arg(&medium.location)
            .arg(&aside))?;
        fs::rename(aside, &path)?;
    }
    note(folder, &path, medium)?;
    Ok(path)
}

/// Notes whose file it is, so that it goes with the medium.
fn note(folder: &Path, path: &Path, medium: &Medium) -> Result<()> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let location = medium.location.display().to_string();
    fs::write(folder.join(format!("{name}.path")), location)?;
    Ok(())
}

/// Forgets what guests wrote to a medium that is gone, given by its UUID or its path.
pub fn forget(given: &str) -> Result<()> {
    forget_those(|name, location| name.trim_end_matches("-base") == given || location == given)
}

/// Forgets the copies of media whose files are gone.
pub fn tidy() -> Result<()> {
    forget_those(|name, location| name.ends_with("-base") && !Path::new(location).exists())
}

fn forget_those(gone: impl Fn(&str, &str) -> bool) -> Result<()> {
    let folder = real::state()?.join("media");
    let Ok(entries) = fs::read_dir(&folder) else {
        return Ok(());
    };
    for note in entries.flatten().map(|entry| entry.path()) {
        let name = note.file_name().unwrap_or_default().to_string_lossy();
        let Some(name) = name.strip_suffix(".path") else {
            continue;
        };
        if gone(name, &fs::read_to_string(&note)?) {
            fs::remove_file(folder.join(format!("{name}.qcow2")))?;
            fs::remove_file(&note)?;
        }
    }
    Ok(())
}

fn medium(uuid: &str) -> Result<Medium> {
    let said = real::ask(&["showmediuminfo", "disk", uuid])?;
    let get = |key: &str| {
        let mut lines = said.lines();
        lines
            .find_map(|line| line.strip_prefix(key))
            .map(|value| value.trim().to_owned())
            .ok_or_else(|| format!("no `{key}` in showmediuminfo {uuid}"))
    };
    Ok(Medium {
        parent: Some(get("Parent UUID:")?).filter(|parent| parent != "base"),
        location: get("Location:")?.into(),
        format: match get("Storage format:")?.to_ascii_lowercase().as_str() {
            "vhd" => "vpc".to_owned(),
            other => other.to_owned(),
        },
    })
}

/// The size that a guest sees. It is read from the file, because the list rounds it.
fn size(medium: &Medium) -> Result<u64> {
    match vdi(&medium.location)? {
        Some(header) => Ok(header.size),
        None => virtual_size(&medium.location),
    }
}

/// Refuses a differencing medium that holds anything: QEMU could not read it.
fn empty(medium: &Medium) -> Result<()> {
    let holds = match vdi(&medium.location)? {
        Some(header) => header.allocated != 0,
        None => {
            let map = run(Command::new("qemu-img")
                .args(["map", "--output=json"])
                .arg(&medium.location))?;
            let map: serde_json::Value = serde_json::from_slice(&map)?;
            map.as_array()
                .is_none_or(|all| all.iter().any(|part| part["data"] == true))
        }
    };
    if holds {
        let path = medium.location.display();
        return Err(format!("the lab cannot read what is in the differencing image {path}").into());
    }
    Ok(())
}

struct Vdi {
    size: u64,
    allocated: u32,
}

/// The header of a VDI, version 1.1 (VirtualBox: src/VBox/Storage/VDICore.h).
fn vdi(path: &Path) -> Result<Option<Vdi>> {
    let mut header = [0; 400];
    File::open(path)?.read_exact_at(&mut header, 0)?;
    if header[64..68] != 0xbeda_107f_u32.to_le_bytes() {
        return Ok(None);
    }
    Ok(Some(Vdi {
        size: u64::from_le_bytes(header[368..376].try_into()?),
        allocated: u32::from_le_bytes(header[388..392].try_into()?),
    }))
}

fn virtual_size(path: &Path) -> Result<u64> {
    // Shared, because a machine may run on it.
    let said = run(Command::new("qemu-img")
        .args(["info", "-U", "--output=json"])
        .arg(path))?;
    let said: serde_json::Value = serde_json::from_slice(&said)?;
    let size = said["virtual-size"].as_u64();
    Ok(size.ok_or_else(|| format!("no size of {}", path.display()))?)
}

/// What a command that must succeed writes.
pub fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}", said.trim()).into())
}
