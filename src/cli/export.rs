//! `forge export`

use std::path::PathBuf;

use clap::Args;
use forge::credentials::{Ask, Passphrases};
use forge::transfer::export::{self, Exported, Wish};
use forge_driver::{Error, Kind, Result};
use serde_json::json;

use super::credentials::Passphrase;
use super::{Outcome, Session, absolute, report};

/// Write machines into a file that a passphrase seals, for `forge import` elsewhere
///
/// It holds their records, keys and certificates, and the certificate authority of this store. Disks that lie in the store
/// come along with `--with-disk`, while their machines are stopped. What could not work elsewhere is refused. Here nothing
/// changes.
#[derive(Args)]
pub struct Export {
    /// The machines
    #[arg(conflicts_with = "all")]
    names: Vec<String>,
    /// All machines and clusters of this store
    #[arg(long)]
    all: bool,
    /// The file to make
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Copy disks, too
    #[arg(long)]
    with_disk: bool,
    #[command(flatten)]
    passphrase: Passphrase,
}

impl Export {
    /// Exports.
    pub async fn run(self, session: &Session) -> Result<Outcome> {
        if self.names.is_empty() && !self.all {
            return Err(Error::new(Kind::Usage, "no machine is named")
                .hint("name machines, or take `--all`"));
        }
        let wish = Wish {
            names: self.names,
            with_disk: self.with_disk,
            out: absolute(&self.output)?,
        };
        let chosen = export::choose(&session.reader()?, &wish).await?;
        let what = format!("`{}`", self.output.display());
        let passphrase = self.passphrase.typed().passphrase(&what, Ask::New)?;
        let (forge, drawing) = session.worker("export")?;
        let done = export::write(&forge, &wish, chosen, &passphrase).await;
        drawing.finish(forge).await;
        tell(session, &self.output, &done?);
        Ok(Outcome::Done)
    }
}

fn tell(session: &Session, path: &std::path::Path, done: &Exported) {
    if session.json() {
        let machines: Vec<_> = done
            .machines
            .iter()
            .map(|(name, disk)| json!({"name": name, "disk": disk}))
            .collect();
        let left: Vec<_> = done
            .left
            .iter()
            .map(|(path, why)| json!({"file": path, "why": why}))
            .collect();
        println!(
            "{}",
            json!({"event": "summary", "file": path, "bytes": done.bytes, "machines": machines, "clusters": done.clusters, "left": left})
        );
        return;
    }
    for (name, disk) in &done.machines {
        let how = if *disk {
            "its disk comes along"
        } else {
            "it stays where it is, and will be reached there"
        };
        report::note(&format!("{name}: {how}"));
    }
    for (path, why) in &done.left {
        report::note(&format!(
            "warning: `{}` is left out: it {why}",
            path.display()
        ));
    }
    report::note(&format!(
        "{} holds the keys of these machines: the passphrase alone keeps others out",
        path.display()
    ));
}
