//! `--tls-ca-cert` and the like: a CA and a client pair that a store takes as its own, as docker-machine took them.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use clap::{ArgMatches, Args};
use forge::ca::Given;
use forge::event::Events;
use forge::secret::Secret;
use forge::store::Store;
use forge_driver::{Error, Kind, Result};

use super::Session;

/// Files with a CA and a client pair.
#[derive(Args, Clone)]
pub struct TlsFiles {
    /// Take this certificate as the CA of a store that has none yet
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "MACHINE_TLS_CA_CERT",
        hide_env_values = true,
        hide_short_help = true
    )]
    tls_ca_cert: Option<OsString>,
    /// The key of that CA
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "MACHINE_TLS_CA_KEY",
        hide_env_values = true,
        hide_short_help = true
    )]
    tls_ca_key: Option<OsString>,
    /// Take this certificate as that of the clients of a store that has none yet
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "MACHINE_TLS_CLIENT_CERT",
        hide_env_values = true,
        hide_short_help = true
    )]
    tls_client_cert: Option<OsString>,
    /// The key of that certificate
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "MACHINE_TLS_CLIENT_KEY",
        hide_env_values = true,
        hide_short_help = true
    )]
    tls_client_key: Option<OsString>,
}

impl TlsFiles {
    /// Whether any is named; an empty variable names none.
    fn any(&self) -> bool {
        [
            &self.tls_ca_cert,
            &self.tls_ca_key,
            &self.tls_client_cert,
            &self.tls_client_key,
        ]
        .into_iter()
        .flatten()
        .any(|path| !path.is_empty())
    }

    /// What was given, as far as it is not the store's own place for it; `None` when that is nothing.
    fn given(&self, certs: &Path) -> Result<Option<Given>> {
        // An empty variable says nothing. The store's own file may be yet to come.
        let said = |path: &OsString, own: &str| {
            let whole = std::path::absolute(path).unwrap_or_default();
            !path.is_empty() && whole != certs.join(own)
        };
        let read = |path: &Option<OsString>, own: &str| {
            let path = path.as_ref().filter(|path| said(path, own));
            path.map(|path| file(path.as_ref())).transpose()
        };
        let ca = read(&self.tls_ca_cert, "ca.pem")?;
        let ca_key = read(&self.tls_ca_key, "ca-key.pem")?;
        let client = read(&self.tls_client_cert, "cert.pem")?;
        let client_key = read(&self.tls_client_key, "key.pem")?;
        if [&ca, &ca_key, &client, &client_key]
            .iter()
            .all(|file| file.is_none())
        {
            return Ok(None);
        }
        Given::new(
            ca,
            ca_key.map(Secret::new),
            client,
            client_key.map(Secret::new),
        )
        .map(Some)
    }
}

fn file(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => Kind::NotFound,
            _ => Kind::Io,
        };
        Error::new(kind, format!("failed to read `{}`", path.display()))
            .because(error)
            .hint("`--tls-…` and MACHINE_TLS_… name files that are there; forge makes a CA of its own without them")
    })
}

/// Makes what the files hold the store's where the command makes machines and the store has none; refuses files with
/// anything but what the store has.
///
/// # Errors
/// Whatever is wrong with the files, before a store is made.
pub async fn settle(session: &Session, matches: &ArgMatches) -> Result<()> {
    let files = &session.global.tls;
    // A command that needs no store needs no place for one.
    if !files.any() {
        return Ok(());
    }
    let root = session.root()?;
    let Some(given) = files.given(&root.join("certs"))? else {
        return Ok(());
    };
    let existing = Store::existing(&root)?;
    let there = match &existing {
        Some(store) => given.is_in(store)?,
        None => false,
    };
    if there || !makes_machines(matches) {
        return Ok(());
    }
    let store = match existing {
        Some(store) => store,
        None => {
            given.is_whole()?;
            Store::open(&root)?
        }
    };
    given
        .adopt(&store, session.patience(), &Events::silent())
        .await
}

/// Whether the command may be the first to need a CA.
fn makes_machines(matches: &ArgMatches) -> bool {
    let dry =
        |matches: &ArgMatches| matches!(matches.try_get_one::<bool>("dry_run"), Ok(Some(true)));
    match matches.subcommand() {
        Some(("create", create)) => !dry(create),
        Some(("cluster", cluster)) => {
            matches!(cluster.subcommand(), Some(("up", up)) if !dry(up))
        }
        _ => false,
    }
}
