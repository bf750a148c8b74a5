//! A distribution's own cloud image: downloaded, its checksum verified, its format checked.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use forge_driver::{Context, Error, Kind, Result, atomic, process};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::interval;

use super::download::{self, Patience};
use crate::interrupt;

use super::{Checksum, DISK, Draft, FirstBoot, Image, ImageKind, Images, Progress, check_name};

const INFO_DEADLINE: Duration = Duration::from_secs(30);

/// A cloud image somewhere.
#[derive(Clone, Debug)]
pub struct PullSource {
    /// The visible name that it gets here.
    pub name: String,
    /// Where the qcow2 file is.
    pub url: String,
    /// What it has to hash to.
    pub sum: Sum,
    /// How long the whole may take.
    pub deadline: Duration,
    /// The pause before the second attempt; it grows with each.
    pub pause: Duration,
}

/// Where the checksum of an image comes from.
#[derive(Clone, Debug)]
pub enum Sum {
    /// It is known.
    Given(Checksum),
    /// From the file SHA512SUMS or SHA256SUMS in the folder of the image.
    Beside,
}

impl PullSource {
    /// The image at `url`, whose checksum is `sum`, or published beside it.
    pub fn new(name: impl Into<String>, url: impl Into<String>, sum: Option<Checksum>) -> Self {
        Self {
            name: name.into(),
            url: url.into(),
            sum: sum.map_or(Sum::Beside, Sum::Given),
            deadline: Duration::from_secs(4 * 3600),
            pause: Duration::from_secs(1),
        }
    }
}

/// The images that are known by name, on the servers of their distributions.
const CATALOGUE: &[(&str, &str)] = &[
    (
        "debian-12",
        "https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-genericcloud-amd64.qcow2",
    ),
    (
        "ubuntu-24.04",
        "https://cloud-images.ubuntu.com/releases/24.04/release/ubuntu-24.04-server-cloudimg-amd64.img",
    ),
];

/// The source of an image that is known by name.
///
/// # Errors
/// [`Kind::NotFound`], with the names that are known.
pub fn catalogue(name: &str) -> Result<PullSource> {
    CATALOGUE
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(name, url)| PullSource::new(*name, *url, None))
        .ok_or_else(|| {
            let known: Vec<&str> = CATALOGUE.iter().map(|(name, _)| *name).collect();
            Error::new(
                Kind::NotFound,
                format!("no cloud image is known as `{name}`"),
            )
            .hint(format!(
                "known are {}; any other by its address",
                known.join(", ")
            ))
        })
}

/// Ends the download when the one who waits for it goes away.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Images {
    /// Downloads a cloud image and puts it into the store. What was downloaded before a kill or a cut is
    /// used; what has a wrong checksum is removed. The caller holds the lock of images.
    ///
    /// # Errors
    /// [`Kind::Refused`] when the checksum is wrong or the file is not a self-contained qcow2 image;
    /// [`Kind::Unavailable`] or [`Kind::NotFound`] with what the server said.
    pub async fn pull(
        &self,
        source: &PullSource,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Image> {
        check_name(&source.name)?;
        if !(source.url.starts_with("https://") || source.url.starts_with("http://"))
            || credentials(&source.url)
        {
            return Err(
                Error::new(Kind::Invalid, "the address of the image cannot be used")
                    .hint("give `https://HOST/PATH`, without a user name"),
            );
        }
        if source.url.starts_with("http://")
            && matches!(source.sum, Sum::Beside)
            && !loopback(&source.url)
        {
            return Err(Error::new(
                Kind::Refused,
                format!(
                    "`{}` is not protected, nor is a checksum beside it",
                    source.url
                ),
            )
            .hint("give the checksum, or an https address"));
        }
        atomic::private_folder(&self.root)?;
        let digest = Sha256::digest(source.url.as_bytes());
        let tag: String = digest
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        // One folder for each address, so that another download does not take this one's part.
        let work = self.root.join(format!(".pull-{tag}"));
        atomic::private_folder(&work)?;
        let sum = self.fetch(source, &work, progress).await?;
        progress(Progress {
            step: "checking the image".to_owned(),
            done: None,
            total: None,
        });
        let size = match inspect(&work.join(DISK)).await {
            Ok(size) => size,
            Err(error) => {
                fs::remove_dir_all(&work).or_fail(Kind::Io, || {
                    format!("failed to remove `{}`", work.display())
                })?;
                return Err(error.context(format!("refused the image from `{}`", source.url)));
            }
        };
        let draft = Draft {
            name: source.name.clone(),
            kind: ImageKind::Downloaded,
            first_boot: FirstBoot::CloudInit,
            size,
            cmdline: None,
            provenance: vec![source.url.clone(), sum.to_string()],
        };
        let images = self.clone();
        tokio::task::spawn_blocking(move || images.admit(&work, draft))
            .await
            .or_fail(Kind::Failed, || {
                "the work on the image was cut off".to_owned()
            })?
    }

    /// Downloads to `work` and verifies; the checksum that it has.
    async fn fetch(
        &self,
        source: &PullSource,
        work: &Path,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Checksum> {
        let cancelled = Arc::new(AtomicBool::new(false));
        let guard = CancelOnDrop(cancelled.clone());
        let (report, mut reports) = mpsc::channel(16);
        let (source, work) = (source.clone(), work.to_owned());
        let task = tokio::task::spawn_blocking(move || {
            fetch_blocking(&source, &work, &cancelled, &report)
        });
        let mut tick = interval(Duration::from_millis(250));
        loop {
            tokio::select! {
                next = reports.recv() => match next {
                    Some(next) => progress(next),
                    None => break,
                },
                _ = tick.tick() => if interrupt::check().is_err() {
                    guard.0.store(true, Ordering::Relaxed);
                },
            }
        }
        let done = task
            .await
            .or_fail(Kind::Failed, || "the download was cut off".to_owned())?;
        drop(guard);
        interrupt::check()?;
        done
    }
}

fn fetch_blocking(
    source: &PullSource,
    work: &Path,
    cancelled: &AtomicBool,
    report: &mpsc::Sender<Progress>,
) -> Result<Checksum> {
    let patience = Patience {
        pause: source.pause,
        until: Instant::now() + source.deadline,
    };
    let agent = download::agent(&source.url);
    let say = |step: &str, done, total| {
        // A report that nobody is ready for is one too many.
        let _ = report.try_send(Progress {
            step: step.to_owned(),
            done,
            total,
        });
    };
    say("checksum", None, None);
    let sum = match &source.sum {
        Sum::Given(sum) => sum.clone(),
        Sum::Beside => beside(&agent, &source.url, patience, cancelled)?,
    };
    let (part, state, disk) = (work.join("part"), work.join("part.json"), work.join(DISK));
    if !disk.exists() {
        download::file(
            &agent,
            &source.url,
            &part,
            &state,
            patience,
            cancelled,
            &|done, total| {
                say("downloading", Some(done), total);
            },
        )?;
        fs::rename(&part, &disk).or_fail(Kind::Io, || {
            format!("failed to rename `{}`", part.display())
        })?;
    }
    say("verifying the checksum", None, None);
    let found = sum.of_same_kind(&disk)?;
    // What does not belong to an image, and what must not be used, goes.
    for gone in [Some(&state), (found != sum).then_some(&disk)]
        .into_iter()
        .flatten()
    {
        if gone.exists() {
            fs::remove_file(gone).or_fail(Kind::Io, || {
                format!("failed to remove `{}`", gone.display())
            })?;
        }
    }
    if found != sum {
        return Err(Error::new(Kind::Refused, format!("what `{}` sent has a wrong checksum", source.url))
            .because(format!("it is {found}, expected {sum}"))
            .hint("it was removed; when it happens again, the server has a bad file or someone changes it on its way"));
    }
    Ok(sum)
}

fn beside(
    agent: &ureq::Agent,
    url: &str,
    patience: Patience,
    cancelled: &AtomicBool,
) -> Result<Checksum> {
    let plain = url.split(['?', '#']).next().unwrap_or(url);
    let (folder, name) = plain.rsplit_once('/').unwrap_or((plain, ""));
    for sums in ["SHA512SUMS", "SHA256SUMS"] {
        if let Some(text) = download::text(agent, &format!("{folder}/{sums}"), patience, cancelled)?
            && let Some(sum) = Checksum::find(&text, name)
        {
            return Ok(sum);
        }
    }
    Err(Error::new(
        Kind::NotFound,
        format!("no checksum of `{name}` lies beside it in `{folder}`"),
    )
    .because("neither SHA512SUMS nor SHA256SUMS names it")
    .hint("give the checksum"))
}

/// The virtual size of a disk that stands alone. A backing file or an external data file would make
/// another file of this host readable inside the machine, so both are refused, and so is every format
/// but qcow2 (a guest could otherwise write a header of another format into a raw disk).
async fn inspect(disk: &Path) -> Result<u64> {
    let mut command = Command::new("qemu-img");
    command.args(["info", "--output=json"]).arg(disk);
    let output = process::run(command, None, INFO_DEADLINE)
        .await?
        .success("`qemu-img info`")?;
    let info: Value = serde_json::from_slice(&output.stdout).or_fail(Kind::Failed, || {
        "`qemu-img info` printed no JSON".to_owned()
    })?;
    let refuse = |why: String| {
        Err(Error::new(Kind::Refused, why).hint("only qcow2 images that stand alone are taken"))
    };
    let format = info["format"].as_str().unwrap_or("unknown");
    if format != "qcow2" {
        return refuse(format!("its format is {format}"));
    }
    if info.get("backing-filename").is_some() || info.get("full-backing-filename").is_some() {
        return refuse("it has a backing file".to_owned());
    }
    let data = &info["format-specific"]["data"];
    if data.get("data-file").is_some() {
        return refuse("its data are in another file".to_owned());
    }
    if data["corrupt"].as_bool() == Some(true) || info.get("encrypted").is_some() {
        return refuse("it is encrypted or marked as damaged".to_owned());
    }
    info["virtual-size"]
        .as_u64()
        .filter(|size| *size > 0)
        .ok_or_else(|| Error::new(Kind::Refused, "it has no size"))
}

fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}

fn credentials(url: &str) -> bool {
    authority(url).contains('@')
}

fn loopback(url: &str) -> bool {
    let host = authority(url)
        .rsplit_once(':')
        .map_or(authority(url), |(host, _)| host);
    host.parse::<std::net::Ipv4Addr>()
        .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
#[path = "pull_tests.rs"]
mod tests;
