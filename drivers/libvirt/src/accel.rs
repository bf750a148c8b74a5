//! How guests run: KVM when a guest boots under it, tried, never inferred.

use std::fs;
use std::path::Path;
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

/// `accelerator.json`: what a trial showed, for as long as daemon and QEMU are the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Tried {
    format: u32,
    uri: Uri,
    versions: String,
    works: bool,
    reason: String,
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
    let notes = home.join("trials").join(config.uri.folder());
    atomic::private_folder(&notes)?;
    // Commands that start together try once.
    let _work = hold::work(&notes).await?;
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
    let name = format!("forge-trial-{}", Claim::random());
    let log = format!("{name}.log");
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
    pool.delete(&name).await?;
    pool.delete(&log).await?;
    Ok(judge(&said, &ended, DEADLINE))
}
