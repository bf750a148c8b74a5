//! A machine's certificate, made anew before it ends.
//!
//! ```text
//! new pair beside the old one → intent in the record → on the machine, engine restarted → proved from outside
//!   → what clients use is replaced → record
//! ```
//!
//! Until the proof the files that clients use are the old ones. A kill anywhere leaves the intent, and whoever makes the
//! machine a container host the next time goes on with the very pair that was begun.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use forge_driver::atomic::NewFile;
use forge_driver::{Error, Kind, Result};

use super::access::Connection;
use super::tls::{CA, CLIENT, CLIENT_KEY, ClientFiles, SERVER, SERVER_KEY, read};
use super::{Forge, Record, Stage, Tls, access, create, provision, tls};
use crate::ca::{self, Authority};
use crate::cluster;
use crate::secret::Secret;
use crate::store::lock::{Guarded, try_acquire};
use crate::store::{self, Store, write_file, write_files};

/// The server's certificate that is on its way to the machine.
const NEXT_SERVER: &str = "next-server.pem";
/// Its key.
const NEXT_SERVER_KEY: &str = "next-server-key.pem";

/// What a machine and its clients are to have.
pub struct Papers {
    /// Whom clients trust and what they show, once the machine has the rest.
    pub client: ClientFiles,
    /// The server's certificate, PEM.
    pub server: String,
    /// The server's key, PEM.
    pub server_key: Secret,
    /// They are not those that clients use.
    pub fresh: bool,
}

/// What the machine is to have: what it has, while that serves; else new ones, or those that were begun. The record is
/// saved as needed. The caller holds the machine's lock.
///
/// # Errors
/// When its address is not known yet, or files cannot be read or written.
pub fn papers(forge: &Forge, record: Record, authority: &Authority) -> Result<(Record, Papers)> {
    let names = record.certificate_names()?;
    let serves = |tls: &Tls| !ca::due(tls.expires) && carries(tls, &names, &record);
    if let Some(tls) = &record.renewing
        && serves(tls)
        && tls.authority == authority.fingerprint()
        && let Some((server, server_key)) =
            pair(&forge.store, &record.name, NEXT_SERVER, NEXT_SERVER_KEY)?
    {
        let papers = Papers {
            client: ClientFiles::of(authority),
            server,
            server_key,
            fresh: true,
        };
        return Ok((record, papers));
    }
    if record.renewing.is_none()
        && let Some(tls) = &record.tls
        && serves(tls)
        && let Some(client) = client(&forge.store, &record.name, tls, authority)?
        && let Some((server, server_key)) = pair(&forge.store, &record.name, SERVER, SERVER_KEY)?
    {
        let papers = Papers {
            client,
            server,
            server_key,
            fresh: false,
        };
        return Ok((record, papers));
    }
    issue(forge, record, authority)
}

/// Whether a certificate still carries what it has to. Clients that go by a stable name do not mind that it has the
/// address of before in the place of the one of now.
fn carries(tls: &Tls, names: &[String], record: &Record) -> bool {
    let missing: Vec<&String> = names
        .iter()
        .filter(|name| !tls.names.contains(name))
        .collect();
    let more: Vec<&String> = tls
        .names
        .iter()
        .filter(|name| !names.contains(name))
        .collect();
    match (missing.as_slice(), more.as_slice()) {
        ([], []) => true,
        ([now], [before]) => {
            let address = record.endpoints().map(|at| at.engine.ip().to_string());
            record.stable_name().is_some()
                && address.is_ok_and(|address| address == **now)
                && before.parse::<IpAddr>().is_ok()
        }
        _ => false,
    }
}

/// New papers, whatever those of now are worth, unless new ones are on their way already. The caller holds the machine's
/// lock.
///
/// # Errors
/// As [`papers`].
fn begin(forge: &Forge, record: Record, authority: &Authority) -> Result<Record> {
    access::enterable(&record)?;
    if record.renewing.is_some() {
        return papers(forge, record, authority).map(|(record, _)| record);
    }
    issue(forge, record, authority).map(|(record, _)| record)
}

fn issue(forge: &Forge, mut record: Record, authority: &Authority) -> Result<(Record, Papers)> {
    let folder = forge.store.machine_dir(&record.name);
    let issued = authority.issue(&record.certificate_names()?)?;
    let client = ClientFiles::of(authority);
    // Of a machine that nobody has talked with yet there is nothing to keep.
    let first = record.tls.is_none() && record.stage < Stage::Ready;
    let (certificate, key) = if first {
        (SERVER, SERVER_KEY)
    } else {
        (NEXT_SERVER, NEXT_SERVER_KEY)
    };
    if first {
        keep(&folder, &client)?;
    }
    write_file(&folder.join(key), issued.key.expose().as_bytes(), 0o600)?;
    write_file(
        &folder.join(certificate),
        issued.certificate.as_bytes(),
        0o644,
    )?;
    if first {
        record.tls = Some(issued.facts);
    } else {
        record.renewing = Some(issued.facts);
    }
    record.save(&forge.store)?;
    let papers = Papers {
        client,
        server: issued.certificate,
        server_key: issued.key,
        fresh: !first,
    };
    Ok((record, papers))
}

/// Replaces what clients use by what the machine was proved to have. The caller holds the machine's lock.
///
/// # Errors
/// When files cannot be written.
pub fn settle(forge: &Forge, mut record: Record, papers: &Papers) -> Result<Record> {
    if !papers.fresh {
        return Ok(record);
    }
    let folder = forge.store.machine_dir(&record.name);
    let client = &papers.client;
    let files = [
        (CLIENT_KEY, client.client_key.expose(), 0o600),
        (CLIENT, client.client.as_str(), 0o644),
        (CA, client.ca.as_str(), 0o644),
        (SERVER_KEY, papers.server_key.expose(), 0o600),
        (SERVER, papers.server.as_str(), 0o644),
    ]
    .map(|(name, text, mode)| NewFile {
        name: name.to_owned(),
        contents: text.as_bytes().to_vec(),
        mode,
    });
    write_files(&folder, &files)?;
    record.tls = record.renewing.take().or(record.tls);
    if let Some(imported) = &mut record.imported {
        imported.certified = true;
    }
    record.save(&forge.store)?;
    tidy(&folder)?;
    Ok(record)
}

/// Removes what a renewal that is over has left.
fn tidy(folder: &Path) -> Result<()> {
    [NEXT_SERVER, NEXT_SERVER_KEY]
        .iter()
        .map(|name| folder.join(name))
        .filter(|path| path.exists())
        .try_for_each(|path| store::remove_file(&path))
}

/// What clients of a machine with this certificate are to use: the store's files for one of the store's CA, which are
/// put there when they are others; its own for one that came from elsewhere. `None` when it has to move to the store's CA.
fn client(
    store: &Store,
    name: &str,
    tls: &Tls,
    authority: &Authority,
) -> Result<Option<ClientFiles>> {
    if tls.authority == authority.fingerprint() {
        let files = ClientFiles::of(authority);
        let folder = store.machine_dir(name);
        keep(&folder, &files)?;
        tidy(&folder)?;
        return Ok(Some(files));
    }
    let Ok(files) = ClientFiles::beside(store, name) else {
        return Ok(None);
    };
    let own = tls.authority == ca::fingerprint(&files.ca)
        && !ca::rotation::gives_way(store, &files.ca)?
        && !ca::due(ca::ends(&files.client)?)
        && !ca::due(ca::ends(&files.ca)?);
    Ok(own.then_some(files))
}

/// Puts the files there that are not there as they should be.
fn keep(folder: &Path, files: &ClientFiles) -> Result<()> {
    for (name, text, mode) in [
        (CA, files.ca.as_str(), 0o644),
        (CLIENT_KEY, files.client_key.expose(), 0o600),
        (CLIENT, files.client.as_str(), 0o644),
    ] {
        let path = folder.join(name);
        if !fs::read_to_string(&path).is_ok_and(|found| found == text) {
            write_file(&path, text.as_bytes(), mode)?;
        }
    }
    Ok(())
}

/// A certificate and its key, when both are there and belong together.
fn pair(
    store: &Store,
    name: &str,
    certificate: &str,
    key: &str,
) -> Result<Option<(String, Secret)>> {
    let (Ok(certificate), Ok(key)) = (read(store, name, certificate), read(store, name, key))
    else {
        return Ok(None);
    };
    let key = Secret::new(key);
    Ok(ca::belong_together(&certificate, &key)?.then_some((certificate, key)))
}

/// Gives the clients of a machine the store's client pair where theirs is near its end: the machine has to hear nothing
/// of it. Left to a later command while another one works on the machine.
///
/// # Errors
/// When the lock of the CA is not had, or files cannot be read or written.
async fn refresh_client(forge: &Forge, record: &Record) -> Result<()> {
    let Ok(files) = ClientFiles::beside(&forge.store, &record.name) else {
        return Ok(());
    };
    let due = |text: &str| ca::ends(text).is_ok_and(ca::due);
    if !due(&files.client) || due(&files.ca) || record.renewing.is_some() {
        return Ok(());
    }
    let Some(_lock) = try_acquire(&forge.store, &Guarded::Machine(record.name.clone()))? else {
        return Ok(());
    };
    let authority = ca::ensure(&forge.store, forge.patience, &forge.events).await?;
    if authority.ca == files.ca {
        keep(
            &forge.store.machine_dir(&record.name),
            &ClientFiles::of(&authority),
        )?;
        provision::follow(forge, record).await;
    }
    Ok(())
}

/// Sees to it that clients of a machine are let in as long as that can be done without the machine: they get the store's
/// client pair where theirs is near its end. What is left to be told of.
///
/// # Errors
/// [`Kind::Unavailable`] with the command that helps when a certificate has ended.
pub async fn lasting(forge: &Forge, record: &Record) -> Result<Option<String>> {
    // What keeps the files from being written counts only where they do not serve any more.
    let refreshed = refresh_client(forge, record).await;
    let name = &record.name;
    match tls::ending(&forge.store, record) {
        Some(ending) if ending.over() => {
            refreshed?;
            Err(Error::new(
                Kind::Unavailable,
                format!("the engine of machine `{name}` lets nobody in: {ending}"),
            )
            .hint(ending.remedy(name)))
        }
        Some(ending) => Ok(Some(format!(
            "machine `{name}`: {ending}; {}",
            ending.remedy(name)
        ))),
        None if record.renewing.is_some() => Ok(Some(format!(
            "machine `{name}`: its certificate is being made anew, or that was cut off; `forge regenerate-certs {name}` goes on"
        ))),
        None => Ok(None),
    }
}

/// Which certificates are left as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// None.
    Nothing,
    /// Those of the CA that signs from now on: what was cut off goes on.
    OfTheNewAuthority,
}

/// Makes the certificate of a machine that is on anew, and what differs from what forge makes of machines besides.
/// Whether anything was changed. The caller holds the machine's lock; `open` is a connection that it has already.
///
/// # Errors
/// What failed; clients use what they have until the new certificate is proved.
pub async fn machine(
    forge: &Forge,
    record: Record,
    open: Option<Connection>,
    keep: Keep,
) -> Result<bool> {
    let name = record.name.clone();
    let work = async {
        let authority = ca::ensure(&forge.store, forge.patience, &forge.events).await?;
        let on_it = record
            .tls
            .as_ref()
            .is_some_and(|tls| tls.authority == authority.fingerprint());
        let peers = cluster::record::peers(&forge.store, &record)?;
        let record = if keep == Keep::OfTheNewAuthority && on_it {
            record
        } else {
            begin(forge, record, &authority)?
        };
        let up = create::bring_up(forge, record, open, &peers).await?;
        Ok::<_, Error>(up.changed > 0)
    };
    work.await
        .map_err(|error| error.context(format!("failed to make the certificate of `{name}` anew")))
}
