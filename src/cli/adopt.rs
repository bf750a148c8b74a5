//! `forge create` of hosts and engines that are there already.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{ArgMatches, FromArgMatches};
use forge::credentials::Credentials;
use forge::engine_options::EngineOptions;
use forge::machine::access::Connection;
use forge::machine::adopt::{self, Adopting, Met, Plan, Root, Route, Said};
use forge::machine::create::{self, Wish};
use forge::machine::{Adopted, Forge, Record, SSH_KEY, SshAccess, Stage, relocate};
use forge::remote::{Guest, WithPassword};
use forge::secret::Secret;
use forge::store::lock::acquire_machines;
use forge_driver::{Error, Fact, Kind, Result};
use forge_generic::Options;
use serde_json::{Value, json};

use super::ask::{self, Person};
use super::create::{Chosen, Wished, concluded};
use super::rm::confirm;
use super::{Outcome, Session, report};

/// Refuses a machine that `docker` has no way to: one behind another host.
///
/// # Errors
/// [`Kind::Unavailable`] with the tunnel that leads there.
pub fn direct(record: &Record) -> Result<()> {
    let jump = record
        .adopted
        .as_ref()
        .and_then(|adopted| adopted.jump.as_ref());
    let (Some(jump), Some(here)) = (jump, record.tunnel()) else {
        return Ok(());
    };
    let (name, port) = (&record.name, record.endpoints()?.engine.port());
    Err(Error::new(
        Kind::Unavailable,
        format!("machine `{name}` is behind `{}`, and `docker` does not go through there", jump.host),
    )
    .hint(format!("`forge ssh {name} -N -L {here}:{port}:127.0.0.1:{port}` leads there from here; then `docker --tlsverify -H tcp://{here}:{port}`, with DOCKER_CERT_PATH the machine's folder")))
}

/// The file that holds what `sudo` asks for.
const SUDO: &str = "FORGE_SUDO_PASSWORD_FILE";

/// How a host is adopted.
#[derive(Clone, Copy)]
pub struct Manner {
    /// Only what would change is shown.
    pub dry_run: bool,
    /// Nothing is asked about the engine.
    pub yes: bool,
}

/// Adopts the one host, or notes the one engine, that the options name.
pub async fn create(
    session: &Session,
    chosen: Chosen,
    matches: &ArgMatches,
    names: &[String],
    wished: &Wished,
    manner: Manner,
) -> Result<Outcome> {
    let [name] = names else {
        return Err(Error::new(
            Kind::Usage,
            format!("one host is named for {} machines", names.len()),
        )
        .hint("adopt one host after the other, each by a name of its own"));
    };
    if !wished.publish.is_empty() || chosen.image.is_some() {
        let option = if wished.publish.is_empty() {
            "image"
        } else {
            "publish"
        };
        return Err(Error::new(
            Kind::Usage,
            format!(
                "`--{option}` is for machines that forge makes, and `{}` makes none",
                chosen.driver.id
            ),
        ));
    }
    let begun = begun(session, name)?;
    session.say("Running pre-create checks...");
    let done = match chosen.driver.id {
        "none" if manner.dry_run => return Ok(Outcome::Done),
        "none" => note(session, chosen, name, wished).await?,
        _ => match adopt(session, chosen, matches, name, begun, wished, manner).await? {
            Some(done) => done,
            // As for `cluster up --dry-run`.
            None => return Ok(Outcome::Code(2)),
        },
    };
    concluded(session, vec![(name.clone(), done)])
}

/// What an earlier command has left of this machine.
fn begun(session: &Session, name: &str) -> Result<Option<Record>> {
    let Some(store) = session.existing()? else {
        return Ok(None);
    };
    let found = Record::find(&store, name)?;
    if found
        .as_ref()
        .is_some_and(|found| found.stage == Stage::Ready && !found.leaving)
    {
        return Err(
            Error::new(Kind::Exists, format!("machine `{name}` already exists"))
                .hint("`forge ls` shows the machines; use another name")
                .fact(Fact::Exists(name.to_owned())),
        );
    }
    Ok(found)
}

/// An engine that is known by its URL.
async fn note(
    session: &Session,
    chosen: Chosen,
    name: &str,
    wished: &Wished,
) -> Result<Result<usize>> {
    if wished.engine != EngineOptions::default() || !wished.sans.is_empty() {
        return Err(Error::new(
            Kind::Usage,
            "options of the engine are for machines whose engine forge sets up, and of `none` only the URL is known",
        )
        .hint("the driver `generic` adopts a host that answers SSH"));
    }
    let config: forge_none::Config = understood(&chosen.resolved.0)?;
    let address = forge_driver::locate(&config.host).await?;
    let is_name = config.host.parse::<std::net::IpAddr>().is_err();
    let mut wish = chosen.wish(name, "", wished);
    wish.adopting = Some(Adopting {
        ssh: SocketAddr::new(address, forge_driver::SSH_PORT),
        engine_port: config.port,
        access: access(String::new(), Vec::new(), Vec::new()),
        adopted: Some(Adopted {
            name: is_name.then(|| config.host.clone()),
            host: config.host,
            alias: None,
            jump: None,
            sudo_password: false,
        }),
    });
    let (forge, drawing) = session.worker("create")?;
    let work = async {
        let names = [name.to_owned()];
        let _locks = acquire_machines(&forge.store, &names, forge.patience, &forge.events).await?;
        let record = create::claim(&forge, &wish).await?;
        Ok(adopt::note(&forge.of(name), record).await.map(|_| 1))
    };
    let done = work.await;
    drawing.finish(forge).await;
    done
}

/// A host that answers SSH.
async fn adopt(
    session: &Session,
    chosen: Chosen,
    matches: &ArgMatches,
    name: &str,
    begun: Option<Record>,
    wished: &Wished,
    manner: Manner,
) -> Result<Option<Result<usize>>> {
    let options = Options::from_arg_matches(matches).map_err(|error| {
        Error::new(Kind::Usage, "the options of the driver cannot be read").because(error)
    })?;
    let config: forge_generic::Config = understood(&chosen.resolved.0)?;
    let said = Said {
        host: config.host.clone(),
        user: options.ssh_user.clone(),
        port: options.ssh_port,
        key: options.ssh_key.clone(),
        config: options.ssh_config.clone(),
        usual: Some(adopt::ROOT),
    };
    let route = Route::settle(config, said).await?;
    // Later on it has a key of forge's, and its user does not log in again.
    let ours = begun.as_ref().map(|begun| begun.claim);
    let met = match begun.filter(|begun| begun.stage > Stage::Claimed) {
        Some(_) => None,
        None => Some(
            adopt::meet(
                &route,
                &options.host_key,
                &Person::default(),
                session.patience(),
            )
            .await?,
        ),
    };
    let mut wish = chosen.wish(name, "", wished);
    wish.config = serde_json::to_value(&route.config).map_err(|error| {
        Error::new(Kind::Invalid, "the configuration cannot be recorded").because(error)
    })?;
    let mut password = None;
    let mut connection = None;
    if let Some(met) = met {
        let root = adopt::root(&*met.guest, session.patience()).await?;
        let asks = root == Root::Password;
        let mut guest: Arc<dyn Guest> = met.guest.clone();
        if asks {
            let secret = sudo(session, name, &options).await?;
            guest =
                Arc::new(WithPassword::checked(guest, secret.clone(), session.patience()).await?);
            password = Some(secret);
        }
        let (port, user) = (route.config.engine_port, route.config.ssh_user.as_deref());
        let looking = session.passing()?;
        let (found, facts) = adopt::look(&looking.forge, &*guest, port).await?;
        let plan = Plan::of(
            (&found, &facts),
            ours,
            user.unwrap_or_default(),
            SocketAddr::new(met.address.ip(), port),
            &wished.engine,
        )?;
        show(session, name, &route.config.host, &plan);
        if manner.dry_run {
            return Ok(None);
        }
        connection = Some(Connection {
            guest,
            host_key: met.guest.host_key().to_owned(),
        });
        wish.adopting = Some(adopting(&route, met, asks));
        // Its other name here is told before anything is asked.
        if let Some(store) = session.existing()? {
            adopt::only_once(&store, &wish)?;
        }
        if plan.of_others && !manner.yes {
            confirm(&format!(
                "Take `{}` from the other store of forge's that has adopted it?",
                route.config.host
            ))?;
        }
        if plan.takes_over && !manner.yes {
            confirm(&format!(
                "Take over what listens at port {port} of `{}`?",
                route.config.host
            ))?;
        }
    } else if manner.dry_run {
        return Err(Error::new(
            Kind::Usage,
            format!("the adoption of machine `{name}` has begun already"),
        )
        .hint("the same command without `--dry-run` goes on with it"));
    }
    // Nothing is drawn while somebody is asked.
    let sudo = match password {
        Some(password) => Arc::new([(name.to_owned(), password)].into()),
        None if session.existing()?.is_some() => {
            let file = options.sudo_password_file.as_ref();
            passwords(&session.reader()?, &[name.to_owned()], file).await?
        }
        None => Arc::default(),
    };
    let (mut forge, drawing) = session.worker("create")?;
    forge.sudo = sudo;
    let done = bring_up(&forge, &wish, connection).await;
    drawing.finish(forge).await;
    done.map(Some)
}

/// Shows what is about to change, before anything does.
fn show(session: &Session, name: &str, host: &str, plan: &Plan) {
    if session.json() {
        let event = json!({"event": "plan", "machine": name, "host": host, "plan": plan});
        println!("{event}");
        return;
    }
    report::note(&format!("adopting `{host}` as machine `{name}`"));
    for line in &plan.stays {
        report::note(&format!("  stays    {line}"));
    }
    for line in &plan.changes {
        report::note(&format!("  changes  {line}"));
    }
}

async fn bring_up(
    forge: &Forge,
    wish: &Wish,
    connection: Option<Connection>,
) -> Result<Result<usize>> {
    let names = [wish.name.clone()];
    let _locks = acquire_machines(&forge.store, &names, forge.patience, &forge.events).await?;
    let record = create::claim(forge, wish).await?;
    let up = create::bring_up(&forge.of(&wish.name), record, connection, &[]).await;
    Ok(up.map(|up| up.changed))
}

fn adopting(route: &Route, met: Met, sudo_password: bool) -> Adopting {
    let user = route.config.ssh_user.clone().unwrap_or_default();
    Adopting {
        ssh: met.address,
        engine_port: route.config.engine_port,
        access: access(user, met.accept, met.authorities),
        adopted: Some(Adopted {
            sudo_password,
            ..met.adopted
        }),
    }
}

fn access(user: String, accept: Vec<String>, authorities: Vec<String>) -> SshAccess {
    SshAccess {
        user,
        key: SSH_KEY.to_owned(),
        first_host_key: None,
        own_host_key: None,
        accept,
        authorities,
    }
}

/// What `sudo` asks for on a host that is adopted.
async fn sudo(session: &Session, name: &str, options: &Options) -> Result<Secret> {
    if options.sudo_password_stdin {
        return ask::first_line(None);
    }
    if let Some(path) = &options.sudo_password_file {
        return ask::first_line(Some(path));
    }
    let store = session.existing()?;
    let kept = store.map(|store| session.credentials(&store, session.passphrases()));
    password(kept.as_ref(), name).await
}

/// What `sudo` asks for on a machine: what is kept for it, else what is typed.
async fn password(kept: Option<&Credentials>, name: &str) -> Result<Secret> {
    let mut unasked = None;
    if let Some(kept) = kept {
        let found = kept.find(&credential(name)).await?;
        if let Some(secret) = found.secret {
            return Ok(secret);
        }
        unasked = found.without_keyring;
    }
    let question = format!("What `sudo` asks for on `{name}`: ");
    ask::hidden(question, None)
        .await
        .map_err(|error| match error.kind() {
            Kind::Unavailable => match unasked {
                None => no_password(name),
                Some(why) => no_password(name).because(format!("the keyring was not asked: {why}")),
            },
            _ => error.context(format!("failed to read what `sudo` asks for on `{name}`")),
        })
}

/// The name under which a machine's password is kept.
fn credential(name: &str) -> String {
    format!("sudo/{name}")
}

fn no_password(name: &str) -> Error {
    Error::new(
        Kind::Unavailable,
        "`sudo` asks for a password there, and there is no terminal to ask for it",
    )
    .hint(format!(
        "`--generic-sudo-password-file FILE` ({SUDO}), `--generic-sudo-password-stdin`, `forge credentials set {}`, or let `sudo` ask for none: `USER ALL=(ALL) NOPASSWD: ALL`",
        credential(name)
    ))
}

/// What `sudo` asks for on those of these machines where it asks.
///
/// # Errors
/// When it is not to be had.
pub async fn passwords(
    forge: &Forge,
    names: &[String],
    file: Option<&PathBuf>,
) -> Result<Arc<BTreeMap<String, Secret>>> {
    let mut passwords = BTreeMap::new();
    for name in names {
        // What is wrong with a record, the command itself tells.
        let Ok(Some(record)) = Record::find(&forge.store, name) else {
            continue;
        };
        if passwords.contains_key(name) || record.adopted.is_none_or(|host| !host.sudo_password) {
            continue;
        }
        let variable = || std::env::var_os(SUDO).filter(|path| !path.is_empty());
        let path = file.cloned().or_else(|| variable().map(PathBuf::from));
        let password = match path {
            Some(path) => ask::first_line(Some(&path))?,
            None => password(Some(&forge.credentials), name).await?,
        };
        passwords.insert(name.clone(), password);
    }
    Ok(Arc::new(passwords))
}

/// The same, and one whose password is not to be had keeps no other from being worked on: that is told.
///
/// # Errors
/// [`Kind::Interrupted`] alone.
pub async fn passwords_there(
    forge: &Forge,
    names: &[String],
) -> Result<Arc<BTreeMap<String, Secret>>> {
    let mut all = BTreeMap::new();
    for name in names {
        match passwords(forge, std::slice::from_ref(name), None).await {
            Ok(found) => all.extend(Arc::unwrap_or_clone(found)),
            Err(error) if error.kind() == Kind::Interrupted => return Err(error),
            Err(error) => report::note(&format!("warning: machine `{name}`: {}", error.line())),
        }
    }
    Ok(Arc::new(all))
}

/// The record of a machine that is on, whose certificate carries the address that clients go by: made anew where it does
/// not, by whoever may do that there.
///
/// # Errors
/// As [`relocate::certified`]; when what `sudo` asks for is not to be had.
pub async fn certified(forge: &Forge, record: Record) -> Result<Record> {
    if record.placement.decided() || relocate::named(&record) {
        return Ok(record);
    }
    let sudo = passwords(forge, std::slice::from_ref(&record.name), None).await?;
    let forge = Forge {
        sudo,
        ..forge.clone()
    };
    relocate::certified(&forge, record).await
}

fn understood<T: serde::de::DeserializeOwned>(config: &Value) -> Result<T> {
    serde_json::from_value(config.clone()).map_err(|error| {
        Error::new(Kind::Invalid, "the options of the driver make no sense").because(error)
    })
}
