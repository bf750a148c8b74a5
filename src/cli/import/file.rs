//! `forge import FILE`

use std::path::Path;

use forge::credentials::{Ask, Passphrases};
use forge::transfer::import::{self, Imported};
use forge_driver::Result;
use serde_json::json;

use crate::cli::credentials::Passphrase;
use crate::cli::{Outcome, Session, absolute, report};

/// Imports what `forge export` wrote.
pub async fn from_file(session: &Session, file: &Path, passphrase: Passphrase) -> Result<Outcome> {
    let what = format!("`{}`", file.display());
    let typed = passphrase.typed();
    let verified = import::verify(&absolute(file)?, || typed.passphrase(&what, Ask::Open))?;
    let (forge, drawing) = session.worker("import")?;
    let done = import::import(&forge, &verified).await;
    drawing.finish(forge).await;
    tell(session, &done?);
    Ok(Outcome::Done)
}

fn tell(session: &Session, done: &Imported) {
    if session.json() {
        let machines: Vec<_> = done
            .machines
            .iter()
            .map(|(name, disk)| json!({"name": name, "disk": disk}))
            .collect();
        println!(
            "{}",
            json!({"event": "summary", "machines": machines, "there": done.there, "clusters": done.clusters})
        );
        return;
    }
    for name in &done.there {
        report::note(&format!("{name}: it was here already"));
    }
    let stopped: Vec<&str> = done
        .machines
        .iter()
        .filter(|(_, disk)| *disk)
        .map(|(name, _)| &**name)
        .collect();
    if !stopped.is_empty() {
        report::note(&format!(
            "`forge start {}` starts what came with a disk, and gives it a certificate for its new address",
            stopped.join(" ")
        ));
    }
    if !done.strangers.is_empty() {
        report::note(&format!(
            "`forge regenerate-certs {}` gives them certificates of this store's authority",
            done.strangers.join(" ")
        ));
    }
}
