//! Machines that another program made and forge took over. They are reached at their addresses; of those of VirtualBox
//! the power is forge's to switch, too. None is ever made here, and none is removed at its provider.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use super::access::PAUSE;
use super::{Forge, Record, live, reach};
use crate::interrupt;
use async_trait::async_trait;
use forge_driver::{
    Claim, Driver, DriverHome, ENGINE_PORT, Error, Forward, Instance, Kind, Network, Observation,
    Power, Result, Spec, State, Wants, locate,
};
use forge_virtualbox::Adopted;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// The name of the driver of such machines.
pub const ID: &str = "imported";

/// Where a machine came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// The driver of docker-machine's that made it.
    pub driver: String,
    /// What that driver remembered, without secrets and without paths.
    pub fields: Map<String, Value>,
    /// Its fields that are secret, and the names under which they are kept; those without one are not.
    pub secrets: BTreeMap<String, Option<String>>,
    /// What tells this machine from others of its name: the same for every copy of the store that it came from.
    pub source: String,
    /// When it was taken over.
    pub at: Timestamp,
    /// Its engine shows a certificate of this store's: forge has set it up as that of an adopted host.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub certified: bool,
}

/// So many numbers of a machine are named, of all that its driver kept.
const NUMBERS: usize = 3;

impl Imported {
    /// What is left of a machine when it is removed here.
    pub fn left(&self, record: &Record) -> String {
        let name = &record.name;
        if record.config["virtualbox"] == true {
            return format!(
                "the virtual machine of `{name}` is left: `VBoxManage unregistervm {} --delete` removes it with its disk",
                record.claim
            );
        }
        let numbers: Vec<String> = self
            .fields
            .iter()
            .filter(|(field, _)| field.ends_with("ID") || field.ends_with("Id"))
            .filter_map(|(field, value)| match value {
                Value::String(text) if !text.is_empty() => Some(format!("{field} {text}")),
                Value::Number(number) if number.as_u64() != Some(0) => {
                    Some(format!("{field} {number}"))
                }
                _ => None,
            })
            .take(NUMBERS)
            .collect();
        let known = match numbers.as_slice() {
            [] => String::new(),
            numbers => format!(" ({})", numbers.join(", ")),
        };
        match self.driver.as_str() {
            "none" | "generic" => {
                format!("the host of `{name}` is left as it is")
            }
            driver => format!(
                "the machine of `{name}` at `{driver}` is left{known}: it is removed there, and may cost money until then"
            ),
        }
    }
}

/// How the driver finds one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Its name or address; empty where VirtualBox tells it.
    pub host: String,
    /// The port of SSH, where it has one.
    pub ssh: Option<u16>,
    /// The port of its engine.
    pub engine: u16,
    /// The claim is the UUID of a machine of VirtualBox's.
    pub virtualbox: bool,
}

impl Config {
    /// What tells its host from those of others.
    pub fn host(&self) -> String {
        match self.ssh {
            _ if self.virtualbox => "VBoxManage".to_owned(),
            Some(ssh) => format!("{}:{ssh}:{}", self.host, self.engine),
            None => format!("{}:{}", self.host, self.engine),
        }
    }
}

/// The driver.
pub struct Elsewhere {
    config: Config,
    virtualbox: Adopted,
}

/// A host that does not answer within this time is silent; whoever waits for less gives up before.
const SILENT: Duration = Duration::from_secs(30);
/// Where the engine's port is closed by a firewall, SSH is tried besides after this time.
const HEAD_START: Duration = Duration::from_millis(300);

impl Elsewhere {
    /// The driver for machines of one host.
    pub fn open(config: Config, home: &DriverHome) -> Self {
        Self {
            config,
            virtualbox: Adopted::open(home),
        }
    }

    /// The machine at an address.
    async fn at_an_address(&self) -> Result<(State, Option<Instance>, Option<String>)> {
        let Config {
            host, ssh, engine, ..
        } = &self.config;
        let ip = match locate(host).await {
            Ok(ip) => ip,
            Err(error) => return Ok((State::Error, None, Some(error.line()))),
        };
        let instance = Instance::at(ip, ssh.unwrap_or_default(), *engine);
        let ports = [Some(*engine), *ssh];
        let silent = || {
            Error::new(
                Kind::Timeout,
                format!("{host} does not answer within {} s", SILENT.as_secs()),
            )
        };
        match timeout(SILENT, any_open(ip, ports)).await {
            Err(_) => Err(silent()),
            Ok(Ok(())) => Ok((State::Running, Some(instance), None)),
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
                Ok((State::Stopped, Some(instance), None))
            }
            Ok(Err(error)) if error.kind() == ErrorKind::TimedOut => Err(silent()),
            Ok(Err(error)) => {
                let trouble = format!("{host} cannot be reached: {error}");
                Ok((State::Stopped, Some(instance), Some(trouble)))
            }
        }
    }

    async fn of_virtualbox(
        &self,
        claim: Claim,
    ) -> Result<(State, Option<Instance>, Option<String>)> {
        let Some(seen) = self.virtualbox.look(claim).await? else {
            return Ok((State::Absent, None, None));
        };
        // Both come with the machine: while one is not known, what was recorded is as good as anything.
        let instance = seen.ssh.zip(seen.address).map(|(ssh, address)| {
            let mut instance = Instance::at(address, 0, ENGINE_PORT);
            instance.endpoints.ssh = ssh;
            instance
        });
        Ok((seen.state, instance, None))
    }
}

/// Waits until the engine of such a machine, started when it is off, answers over TLS. It is entered by nobody: its host
/// key may not be known. The caller holds its lock.
///
/// # Errors
/// When its power is not forge's to switch, or it does not come up in time.
pub(super) async fn start(forge: &Forge, driver: &dyn Driver, record: &Record) -> Result<()> {
    let deadline = Instant::now() + forge.patience;
    reach::awake(forge, driver, record).await?;
    let record = reach::located(forge, driver, record.clone(), deadline).await?;
    forge
        .events
        .step(
            "connecting",
            "an engine that answers over TLS",
            Some(deadline),
        )
        .await;
    loop {
        match live::engine(forge, &record).await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(error) => forge.events.trouble(&error).await,
        }
        interrupt::check()?;
        sleep(PAUSE).await;
    }
}

/// No address, as it is recorded.
pub const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Whether one of these ports accepts connections: the first at once, the others a moment later or when it does not.
async fn any_open(ip: IpAddr, ports: [Option<u16>; 2]) -> std::io::Result<()> {
    let [first, second] = ports
        .map(|port| port.map(|port| async move { TcpStream::connect((ip, port)).await.map(drop) }));
    let none = || std::io::Error::from(ErrorKind::ConnectionRefused);
    let (Some(first), second) = (first, second) else {
        return Err(none());
    };
    let Some(second) = second else {
        return first.await;
    };
    tokio::pin!(first, second);
    tokio::select! {
        done = &mut first => {
            return match done {
                Ok(()) => Ok(()),
                Err(_) => second.await,
            };
        }
        () = sleep(HEAD_START) => {}
    }
    tokio::select! {
        done = &mut first => if done.is_ok() { done } else { second.await },
        done = &mut second => if done.is_ok() { done } else { first.await },
    }
}

fn not_ours(what: &str) -> Error {
    Error::new(
        Kind::Refused,
        format!("{what} is not forge's: it was imported from docker-machine"),
    )
}

#[async_trait]
impl Driver for Elsewhere {
    fn id(&self) -> &'static str {
        ID
    }

    fn wants(&self) -> Wants {
        Wants {
            leased: true,
            ..Wants::default()
        }
    }

    async fn check(&self, _: &[Spec]) -> Result<()> {
        Err(Error::new(
            Kind::Precheck,
            "no machine is made by the driver `imported`",
        )
        .hint("`forge import docker-machine` takes machines over; `--driver` names a driver that makes them"))
    }

    async fn observe(&self, claims: &[Claim]) -> Result<Vec<Observation>> {
        let mut seen = Vec::with_capacity(claims.len());
        let mut same = None;
        for claim in claims {
            let (state, instance, trouble) = if self.config.virtualbox {
                self.of_virtualbox(*claim).await?
            } else {
                // Machines with one configuration are one.
                match &same {
                    Some(known) => Clone::clone(known),
                    None => same.insert(self.at_an_address().await?).clone(),
                }
            };
            seen.push(Observation {
                claim: *claim,
                state,
                network: None,
                instance,
                trouble,
            });
        }
        Ok(seen)
    }

    async fn list(&self) -> Result<Vec<(Claim, String)>> {
        Ok(Vec::new())
    }

    async fn create(&self, _: &Spec) -> Result<Instance> {
        Err(not_ours("the making of this machine"))
    }

    async fn set_power(&self, claim: Claim, power: Power) -> Result<()> {
        if self.config.virtualbox {
            return self.virtualbox.set_power(claim, power).await;
        }
        Err(not_ours("the power of this machine")
            .hint("switch it where it was made; `forge ls` shows when it answers"))
    }

    async fn forward(&self, _: Claim, forwards: &[Forward]) -> Result<()> {
        match forwards {
            [] => Ok(()),
            _ => Err(not_ours("the network of this machine")),
        }
    }

    async fn blank_seed(&self, _: Claim) -> Result<()> {
        Ok(())
    }

    async fn destroy(&self, _: Claim) -> Result<()> {
        Ok(())
    }

    async fn ensure_shared(&self, _: &Network) -> Result<()> {
        Ok(())
    }

    async fn release_shared(&self, _: &Network) -> Result<()> {
        Ok(())
    }

    fn console(&self, _: Claim) -> Option<PathBuf> {
        None
    }
}
