//! `forge create` of hosts and engines that are there already.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use clap::{ArgMatches, FromArgMatches};
use forge::engine_options::EngineOptions;
use forge::machine::access::Connection;
use forge::machine::adopt::{self, Adopting, Glance, Met, Plan, Root, Route, Said};
use forge::machine::create::{self, Wish};
use forge::machine::{Adopted, Forge, Record, SSH_KEY, SshAccess, Stage};
use forge::remote::{Guest, WithPassword};
use forge::secret::Secret;
use forge::store::lock::acquire_machines;
use forge_driver::{Error, Fact, Kind, Result};
use forge_generic::Options;
use serde_json::{Value, json};

use super::ask::{self, Person, confirm};
use super::create::{Chosen, Wished, concluded};
use super::sudo::password;
use super::{Outcome, Session, passphrase, report};

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
    let address = if config.nowhere() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        forge_driver::locate(&config.host).await?
    };
    let is_name = !config.nowhere() && config.host.parse::<std::net::IpAddr>().is_err();
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
    let asked_before = begun
        .as_ref()
        .and_then(|begun| begun.adopted.as_ref())
        .is_some_and(|host| host.sudo_password);
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
    let mut glance = None;
    if let Some(met) = met {
        let mut guest: Arc<dyn Guest> = met.guest.clone();
        let (port, user) = (route.config.engine_port, route.config.ssh_user.as_deref());
        let looking = session.passing()?;
        let (found, facts) = match adopt::look(&looking.forge, &*guest, port).await {
            Ok(looked) => looked,
            Err(error) => match adopt::root(&*guest, session.patience()).await? {
                Root::Free => return Err(error),
                Root::Password => {
                    let secret = sudo(session, name, &options).await?;
                    let checked = WithPassword::checked(guest, secret.clone(), session.patience());
                    guest = Arc::new(checked.await?);
                    password = Some(secret);
                    adopt::look(&looking.forge, &*guest, port).await?
                }
            },
        };
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
        wish.adopting = Some(adopting(&route, met, password.is_some()));
        // Its other name here is told before anything is asked.
        if let Some(store) = session.existing()? {
            adopt::only_once(&store, &wish)?;
        }
        let waits = (plan.of_others || plan.takes_over) && !manner.yes;
        glance = Some(Glance::of(found, &facts)).filter(|_| !waits);
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
    let passwords = match password {
        Some(password) => [(name.to_owned(), password)].into(),
        None if asked_before => [(name.to_owned(), sudo(session, name, &options).await?)].into(),
        None => BTreeMap::new(),
    };
    let (mut forge, drawing) = session.worker("create")?;
    forge.sudo = Arc::new(passwords);
    let done = bring_up(&forge, &wish, connection, glance).await;
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
    glance: Option<Glance>,
) -> Result<Result<usize>> {
    let names = [wish.name.clone()];
    let _locks = acquire_machines(&forge.store, &names, forge.patience, &forge.events).await?;
    let record = create::claim(forge, wish).await?;
    let up = adopt::bring_up(&forge.of(&wish.name), record, connection, glance).await;
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
        let typed = ask::line()?.unwrap_or_default();
        return passphrase::first_line(&typed, "password", "standard input");
    }
    if let Some(path) = &options.sudo_password_file {
        return passphrase::from_file(path, "password");
    }
    let store = session.existing()?;
    let kept = store.map(|store| session.credentials(&store, session.passphrases()));
    password(kept.as_ref(), name).await
}

fn understood<T: serde::de::DeserializeOwned>(config: &Value) -> Result<T> {
    serde_json::from_value(config.clone()).map_err(|error| {
        Error::new(Kind::Invalid, "the options of the driver make no sense").because(error)
    })
}
