//! How guests run: KVM when a guest boots under it, tried, never inferred.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forge_driver::assets::Assets;
use forge_driver::trial::{Ended, judge};
use forge_driver::{Claim, KernelFiles, Kind, Result, atomic, hold};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::domain::{ARCH, MACHINE, render};
use crate::options::{AccelChoice, Config};
use crate::storage::Pool;
use crate::uri::Uri;
use crate::virsh::Virsh;

/// How long a kernel may take under KVM until it finds no disk.
const DEADLINE: Duration = Duration::from_secs(8);

const FORMAT: u32 = 1;

/// The file that tells of a trial before it begins.
const BEGUN: &str = "begun.json";

/// `accelerator.json`: what a trial showed, for as long as daemon and QEMU are the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Tried {
    format: u32,
    uri: Uri,
    versions: String,
    works: bool,
    reason: String,
}

/// `begun.json`: a trial that is running, or that was cut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Begun {
    format: u32,
    /// The name of its domain and of its kernel.
    name: String,
    /// The pool that its files lie in.
    pool: String,
}

impl Begun {
    fn log(&self) -> String {
        format!("{}.log", self.name)
    }
}

/// Where it is noted what was tried at a daemon.
fn notes(home: &Path, uri: &Uri) -> PathBuf {
    home.join("trials").join(uri.folder())
}

/// Removes what a trial that was cut off left at a daemon. Nothing left: succeeds.
///
/// # Errors
/// What libvirt said.
pub(crate) async fn sweep(virsh: &Virsh, home: &Path) -> Result<()> {
    let notes = notes(home, virsh.uri());
    if !notes.join(BEGUN).exists() {
        return Ok(());
    }
    // Waits for one that runs.
    let _work = hold::work(&notes).await?;
    clear(virsh, &notes).await
}

/// The caller holds the folder of the notes.
async fn clear(virsh: &Virsh, notes: &Path) -> Result<()> {
    let file = notes.join(BEGUN);
    let begun = fs::read(&file)
        .ok()
        .and_then(|text| serde_json::from_slice::<Begun>(&text).ok())
        .filter(|begun| begun.format == FORMAT);
    if let Some(begun) = begun {
        if virsh.lists(&["list", "--name"], &begun.name).await? {
            // It may end by itself in this moment, and then nothing of it is left.
            let _ = virsh.call(&["destroy", &begun.name]).await;
        }
        let pool = Pool {
            virsh,
            name: &begun.pool,
        };
        if virsh.lists(&["pool-list", "--name"], &begun.pool).await? {
            pool.delete(&begun.name).await?;
            pool.delete(&begun.log()).await?;
        } else if virsh
            .lists(&["pool-list", "--all", "--name"], &begun.pool)
            .await?
        {
            // Stopped: what lies in it is for the next one to remove. Of a pool that is gone nothing is asked.
            return Ok(());
        }
    }
    atomic::gone(fs::remove_file(&file), &file)
}

/// The kind of domain that machines get: `kvm` or `qemu`.
///
/// # Errors
/// When the daemon cannot be asked. That a guest does not boot under KVM is an answer.
pub(crate) async fn virt(
    virsh: &Virsh,
    assets: &Assets,
    config: &Config,
    kernel: Option<&KernelFiles>,
    home: &Path,
) -> Result<&'static str> {
    match config.accel {
        AccelChoice::Kvm => return Ok("kvm"),
        AccelChoice::Qemu => return Ok("qemu"),
        AccelChoice::Auto => {}
    }
    let offered = virsh.call(&["domcapabilities", "--virttype", "kvm"]).await;
    if let Err(error) = offered {
        return match error.kind() {
            Kind::Unavailable | Kind::Timeout => Err(error),
            _ => Ok("qemu"),
        };
    }
    let Some(kernel) = kernel else {
        return Ok("qemu");
    };
    // Of each daemon its own: one host boots what another does not.
    let notes = notes(home, &config.uri);
    atomic::private_folder(&notes)?;
    // Commands that start together try once.
    let _work = hold::work(&notes).await?;
    clear(virsh, &notes).await?;
    let versions = format!(
        "{} {}",
        virsh.call(&["hostname"]).await?.trim(),
        virsh.call(&["version", "--daemon"]).await?.trim()
    );
    let file = notes.join("accelerator.json");
    let known = fs::read(&file)
        .ok()
        .and_then(|text| serde_json::from_slice::<Tried>(&text).ok())
        .filter(|tried| {
            tried.format == FORMAT && tried.uri == config.uri && tried.versions == versions
        });
    let works = match known {
        Some(tried) => tried.works,
        None => {
            let (works, reason) = boot(virsh, assets, config, kernel, &notes).await?;
            let tried = Tried {
                format: FORMAT,
                uri: config.uri.clone(),
                versions,
                works,
                reason,
            };
            atomic::write_json(&file, &tried, "the trial's result")?;
            works
        }
    };
    Ok(if works { "kvm" } else { "qemu" })
}

/// Boots `kernel` without a disk: it has to come as far as finding none.
async fn boot(
    virsh: &Virsh,
    assets: &Assets,
    config: &Config,
    kernel: &KernelFiles,
    folder: &Path,
) -> Result<(bool, String)> {
    let pool = Pool {
        virsh,
        name: &config.pool,
    };
    let target = pool.ensure().await?.target;
    let begun = Begun {
        format: FORMAT,
        name: format!("forge-trial-{}", Claim::random()),
        pool: config.pool.clone(),
    };
    atomic::write_json(&folder.join(BEGUN), &begun, "a trial that begins")?;
    let (name, log) = (begun.name.clone(), begun.log());
    pool.bring(&name, &kernel.kernel).await?;
    pool.console(&log).await?;
    let document = render(
        assets,
        "templates/libvirt/trial.xml.tera",
        json!({
            "name": name,
            "arch": ARCH,
            "machine": MACHINE,
            "kernel": target.join(&name),
            "console": target.join(&log),
        }),
    )?;
    let ended = match virsh.feed(&["create", "/dev/stdin"], &document).await {
        Err(error) => Ended::Badly(error.line()),
        Ok(_) => {
            let until = Instant::now() + DEADLINE;
            loop {
                if !virsh.lists(&["list", "--name"], &name).await? {
                    break Ended::Well;
                }
                if Instant::now() > until {
                    // It may have ended in this moment.
                    let _ = virsh.call(&["destroy", &name]).await;
                    break Ended::Never;
                }
                sleep(Duration::from_millis(300)).await;
            }
        }
    };
    let said = pool.read(&log, folder).await?;
    clear(virsh, folder).await?;
    Ok(judge(&String::from_utf8_lossy(&said), &ended, DEADLINE))
}
