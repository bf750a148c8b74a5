//! `forge image …`

use clap::{Args, Subcommand};
use forge::image::{
    BuildOptions, Checksum, DEFAULT_NAME, Image as Base, ImageKind, Images, PullSource, catalogue,
};
use forge::machine::{Forge, Record};
use forge::store::lock::{Guarded, acquire};
use forge_driver::{Error, Kind, Result};
use serde_json::json;
use tokio::time::Instant;

use super::table::table;
use super::{Outcome, Session, report};

/// What can be done with base images.
#[derive(Subcommand)]
pub enum Image {
    Build(Build),
    Pull(Pull),
    Ls(Ls),
    Verify(Verify),
    Rm(Rm),
}

impl Image {
    /// Runs the subcommand.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        match self {
            Self::Build(command) => command.run(session).await,
            Self::Pull(command) => command.run(session).await,
            Self::Ls(command) => command.run(session),
            Self::Verify(command) => command.run(session),
            Self::Rm(command) => command.run(session).await,
        }
    }
}

/// Build the base image from packages: Debian 12 with kernel, SSH server, cloud-init and container engine
///
/// Needs no root. An image that is there already stays; machines keep the one they were made from.
#[derive(Args)]
pub struct Build {
    /// Name it
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
    /// Take packages from this Debian mirror [default: the host's own, else Debian's]
    #[arg(
        long,
        value_name = "URL",
        env = "FORGE_IMAGE_MIRROR",
        hide_env_values = true
    )]
    mirror: Option<String>,
    /// Build also when there is an image of that name
    #[arg(long)]
    again: bool,
}

impl Build {
    async fn run(self, session: &Session) -> Result<Outcome> {
        let options = BuildOptions {
            name: self.name,
            mirror: self.mirror,
            ..BuildOptions::default()
        };
        options.check()?;
        let (forge, drawing) = session.worker("image-build")?;
        let done = build(&forge, &options, self.again).await;
        drawing.finish(forge).await;
        let (image, changed) = done?;
        tell(session, &image, changed);
        Ok(Outcome::Done)
    }
}

/// Download a distribution's cloud image, checksum verified, resumed when it was cut off
#[derive(Args)]
pub struct Pull {
    /// A known name (debian-12, ubuntu-24.04), or the URL of a qcow2 file
    source: String,
    /// Name it [default: the known name, or the name of the file]
    #[arg(long)]
    name: Option<String>,
    /// Expect this checksum: sha256:HEX or sha512:HEX [default: from SHA256SUMS or SHA512SUMS beside it]
    #[arg(long, value_name = "SUM")]
    checksum: Option<String>,
}

impl Pull {
    async fn run(self, session: &Session) -> Result<Outcome> {
        let checksum = self
            .checksum
            .as_deref()
            .map(str::parse::<Checksum>)
            .transpose()?;
        let source = if self.source.contains("://") {
            let file = self.source.rsplit('/').next().unwrap_or_default();
            let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
            PullSource::new(
                self.name.unwrap_or_else(|| stem.to_owned()),
                &self.source,
                checksum,
            )
        } else {
            let mut known = catalogue(&self.source)?;
            if let Some(name) = self.name {
                known.name = name;
            }
            if let Some(checksum) = checksum {
                known.sum = forge::image::Sum::Given(checksum);
            }
            known
        };
        let (forge, drawing) = session.worker("image-pull")?;
        let done = async {
            let _lock =
                acquire(&forge.store, &Guarded::Image, forge.patience, &forge.events).await?;
            let events = forge.events.clone();
            forge
                .images()
                .pull(&source, &move |progress| events.progress(&shown(&progress)))
                .await
        }
        .await;
        drawing.finish(forge).await;
        tell(session, &done?, true);
        Ok(Outcome::Done)
    }
}

fn tell(session: &Session, image: &Base, changed: bool) {
    if session.json() {
        println!(
            "{}",
            json!({"event": "summary", "image": image.id, "changed": usize::from(changed)})
        );
    } else {
        println!("{}", image.id);
        if !changed {
            report::note("nothing to change: `--again` builds a new one");
        }
    }
}

/// List base images
#[derive(Args)]
pub struct Ls {
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
}

impl Ls {
    fn run(self, session: &Session) -> Result<Outcome> {
        let images = match session.existing()? {
            Some(store) => Images::new(store.images_dir(), session.assets()).list()?,
            None => Vec::new(),
        };
        if session.json() {
            println!("{}", json!(images));
            return Ok(Outcome::Done);
        }
        if self.quiet {
            for image in images {
                println!("{}", image.id);
            }
            return Ok(Outcome::Done);
        }
        let rows: Vec<Vec<String>> = images
            .iter()
            .map(|image| {
                let bytes: u64 = image.files.iter().map(|file| file.length).sum();
                vec![
                    image.name.clone(),
                    image.id.clone(),
                    match image.kind {
                        ImageKind::Built => "built",
                        ImageKind::Downloaded => "downloaded",
                    }
                    .to_owned(),
                    format!("{} MiB", bytes >> 20),
                    format!("{} GiB", image.size >> 30),
                    image.created.strftime("%Y-%m-%d %H:%M").to_string(),
                ]
            })
            .collect();
        print!(
            "{}",
            table(&["NAME", "ID", "KIND", "ON DISK", "SIZE", "CREATED"], &rows)
        );
        Ok(Outcome::Done)
    }
}

/// Read a base image through and compare it with its checksums
#[derive(Args)]
pub struct Verify {
    /// Name or id
    #[arg(default_value = DEFAULT_NAME)]
    name: String,
}

impl Verify {
    fn run(self, session: &Session) -> Result<Outcome> {
        let forge = session.reader()?;
        let images = forge.images();
        let image = images.find(&self.name)?;
        images.verify(&image)?;
        if session.json() {
            println!("{}", json!({"image": image.id, "whole": true}));
        } else {
            println!("{} is whole", image.id);
        }
        Ok(Outcome::Done)
    }
}

/// Remove base images that no machine uses
#[derive(Args)]
pub struct Rm {
    /// Names or ids
    #[arg(required = true)]
    names: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl Rm {
    async fn run(self, session: &Session) -> Result<Outcome> {
        session.reader()?;
        if !self.yes {
            super::ask::confirm(&format!("Remove {}?", self.names.join(", ")))?;
        }
        let (forge, drawing) = session.worker("image-rm")?;
        let done = remove(&forge, &self.names).await;
        drawing.finish(forge).await;
        done?;
        if session.json() {
            println!(
                "{}",
                json!({"event": "summary", "changed": self.names.len()})
            );
        }
        Ok(Outcome::Done)
    }
}

async fn remove(forge: &Forge, names: &[String]) -> Result<()> {
    let _lock = acquire(&forge.store, &Guarded::Image, forge.patience, &forge.events).await?;
    let images = forge.images();
    for name in names {
        let id = images
            .list()?
            .into_iter()
            .find(|image| image.id == *name || image.name == *name)
            .map(|image| image.id);
        for (machine, record) in Record::all(&forge.store)? {
            let uses = match record {
                Ok(record) => id.as_ref() == Some(&record.image),
                // What cannot be read may use it.
                Err(_) => true,
            };
            if uses {
                return Err(Error::new(
                    Kind::Conflict,
                    format!("the image `{name}` is in use by machine `{machine}`"),
                )
                .hint(format!("remove the machine first: `forge rm {machine}`")));
            }
        }
        images.remove(name)?;
    }
    Ok(())
}

/// The id of the image that new machines start from; the default one is built when it is missing.
///
/// # Errors
/// When an image was asked for that is not there, or building fails.
pub async fn for_machines(forge: &Forge, wished: Option<&str>) -> Result<String> {
    let images = forge.images();
    match wished {
        Some(name) => images.find(name).map(|image| image.id),
        None => match images.find(DEFAULT_NAME) {
            Ok(image) => Ok(image.id),
            Err(error) if error.kind() == Kind::NotFound => {
                build(forge, &BuildOptions::default(), false)
                    .await
                    .map(|(image, _)| image.id)
            }
            Err(error) => Err(error),
        },
    }
}

/// Builds an image under the lock of images, unless there is one of that name. Whether it was built.
async fn build(forge: &Forge, options: &BuildOptions, again: bool) -> Result<(Base, bool)> {
    let _lock = acquire(&forge.store, &Guarded::Image, forge.patience, &forge.events).await?;
    let images = forge.images();
    if !again {
        match images.find(&options.name) {
            Ok(image) => return Ok((image, false)),
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let end = Instant::now() + options.deadline;
    forge
        .events
        .step("building the base image", "its packages", Some(end))
        .await;
    let events = forge.events.clone();
    let image = images
        .build(options, &move |progress| events.progress(&shown(&progress)))
        .await?;
    Ok((image, true))
}

fn shown(progress: &forge::image::Progress) -> String {
    match (progress.done, progress.total) {
        (Some(done), Some(total)) if total > 0 => {
            format!("{} ({} %)", progress.step, done.saturating_mul(100) / total)
        }
        (Some(done), _) => format!("{} ({} MiB)", progress.step, done >> 20),
        _ => progress.step.clone(),
    }
}
