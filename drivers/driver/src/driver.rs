//! The trait that every provider implements.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use ipnet::Ipv4Net;
use uuid::Uuid;

use crate::assets::Assets;
use crate::claim::Claim;
use crate::error::{Context, Error, Kind, Result};
use crate::instance::{Instance, Observation, Power};
use crate::secret::Secret;
use crate::spec::{Forward, Network, Spec};

/// A provider of machines: a handful of verbs, each safe to repeat.
///
/// Guarantees that every implementation gives and the conformance suite checks:
///
/// * Everything is found by claim. The claim is the VM's own UUID and is verified before every
///   change of power and before destruction; a foreign VM with the same name is never touched.
/// * `create` for a claim that exists returns it; there are never two VMs of one claim, also when the
///   process was killed at any line.
/// * `destroy` of what is gone succeeds.
/// * No method waits for a guest. Polling and deadlines are the caller's.
#[async_trait]
pub trait Driver: Send + Sync {
    /// The name of the driver on the command line.
    fn id(&self) -> &'static str;

    /// What the caller has to allocate for each machine.
    fn wants(&self) -> Wants;

    /// Says, before anything is touched, why these machines could not be created here.
    ///
    /// # Errors
    /// [`crate::error::Kind::Precheck`] with what is missing and how to get it.
    async fn check(&self, specs: &[Spec]) -> Result<()>;

    /// Reports what is there for each claim, in the order asked, in one call for any number.
    ///
    /// # Errors
    /// When the provider cannot be asked. That a machine is absent is an answer, not an error; and where one of
    /// several hosts cannot be asked, its machines alone have no answer ([`Observation::trouble`]).
    async fn observe(&self, claims: &[Claim]) -> Result<Vec<Observation>>;

    /// Every machine that this driver keeps for this store, with the name that it was made under: what is
    /// there although its record is lost.
    ///
    /// # Errors
    /// When the provider cannot be asked.
    async fn list(&self) -> Result<Vec<(Claim, String)>>;

    /// Makes the machine and starts it, or returns the one that carries the claim already (started
    /// when an earlier call was cut off between making and starting).
    ///
    /// # Errors
    /// What the provider refused, and why.
    async fn create(&self, spec: &Spec) -> Result<Instance>;

    /// Requests a change of power. Already there: succeeds.
    ///
    /// # Errors
    /// When nothing carries the claim, or the provider refuses.
    async fn set_power(&self, claim: Claim, power: Power) -> Result<()>;

    /// Makes exactly these ports reachable from the host, besides those of the endpoints: on a running
    /// machine at once, and again at each start.
    ///
    /// # Errors
    /// [`crate::error::Kind::Conflict`] when a port is taken, naming its owner.
    async fn forward(&self, claim: Claim, forwards: &[Forward]) -> Result<()>;

    /// Overwrites the first-boot seed, so that no key that was on it can be read again.
    ///
    /// # Errors
    /// When the medium cannot be written.
    async fn blank_seed(&self, claim: Claim) -> Result<()>;

    /// Removes the machine and everything made for it. Gone already: succeeds.
    ///
    /// # Errors
    /// When something could not be removed; repeating is safe.
    async fn destroy(&self, claim: Claim) -> Result<()>;

    /// Writes the disk of a machine that is switched off, whole and in need of no other, to a file of the driver's own.
    /// The caller removes that file.
    ///
    /// # Errors
    /// [`Kind::Refused`] when this driver has no disk to give, [`Kind::Conflict`] when the machine runs.
    async fn pack(&self, claim: Claim) -> Result<PathBuf> {
        Err(Error::new(
            Kind::Refused,
            format!(
                "the driver `{}` gives no disk away, also not that of {claim}",
                self.id()
            ),
        ))
    }

    /// Makes the machine of `spec` of a disk that [`Driver::pack`] wrote elsewhere, and leaves it switched off: its guest
    /// has booted before, and reads no seed any more. `spec.image.disk` is that disk, which the machine takes.
    ///
    /// # Errors
    /// [`Kind::Exists`] when something carries the claim already; what the provider refused, and why.
    async fn unpack(&self, spec: &Spec) -> Result<Instance> {
        Err(Error::new(
            Kind::Refused,
            format!(
                "the driver `{}` takes no disk, also not that of {}",
                self.id(),
                spec.claim
            ),
        ))
    }

    /// Brings up what machines share on this network. Up already: succeeds.
    ///
    /// # Errors
    /// When it overlaps something foreign, both shown.
    async fn ensure_shared(&self, network: &Network) -> Result<()>;

    /// Takes down what machines shared on this network, when no machine uses it any more.
    ///
    /// # Errors
    /// When it could not be taken down; repeating is safe.
    async fn release_shared(&self, network: &Network) -> Result<()>;

    /// The file that the machine's serial console is written to, if there is one here.
    fn console(&self, claim: Claim) -> Option<PathBuf>;

    /// What the machine has written to its serial console, also where that lies on another host; `None` when
    /// nobody keeps it. A console that nothing was written to yet is empty.
    ///
    /// # Errors
    /// When it cannot be read.
    async fn read_console(&self, claim: Claim) -> Result<Option<Vec<u8>>> {
        let Some(path) = self.console(claim) else {
            return Ok(None);
        };
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Some(Vec::new())),
            Err(error) => {
                Err(error).or_fail(Kind::Io, || format!("failed to read `{}`", path.display()))
            }
        }
    }
}

/// What has to be allocated for a machine before its driver is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// The host forwards ports to the machine: it needs host addresses and ports.
    pub forwards: bool,
    /// The machine has an interface on an internal network of this range: it needs an address there.
    pub network: Option<Ipv4Net>,
    /// That network leads out as well, and its own server gives the machine its address: there is no other
    /// interface. Without a range (`network`) that address is not the caller's choice: the instance tells it, as
    /// soon as it is known.
    pub leased: bool,
    /// That network leads nowhere, and its own server gives the machine its address: the seed tells it none.
    pub served: bool,
    /// Addresses of that network that no machine may have: its server's, the host's.
    pub kept: Vec<Ipv4Addr>,
    /// Its machines are there before forge, and stay: no image, no seed, no power of forge's.
    pub adopts: bool,
}

/// Where a driver keeps what is its own.
#[derive(Clone, Debug)]
pub struct DriverHome {
    /// A directory of this driver's in the store: disks, launch files, consoles. One folder a claim.
    pub dir: PathBuf,
    /// The store's folder: paths inside overlays are relative, and lead to its `images/`.
    pub store: PathBuf,
    /// The store's id: what lies at a provider outside the store is told apart from other stores' by it.
    pub owner: Uuid,
    /// A short directory for sockets (mode 0700). It does not survive a reboot of the host.
    pub runtime: PathBuf,
    /// Templates, as the user may have replaced them.
    pub assets: Assets,
    /// The token that the provider asks for, where it asks for one.
    pub token: Token,
}

/// Whoever finds the token of a driver.
#[async_trait]
pub trait Tokens: fmt::Debug + Send + Sync {
    /// The token.
    ///
    /// # Errors
    /// When there is none, or the place that has it cannot be opened.
    async fn token(&self) -> Result<Secret>;
}

/// The token that a provider asks for. It is looked for when a call needs it and no sooner, so that what works without
/// the provider also works without its token. A driver keeps it nowhere.
#[derive(Clone, Debug, Default)]
pub struct Token(Option<Arc<dyn Tokens>>);

impl Token {
    /// Found by `tokens`.
    pub fn of(tokens: Arc<dyn Tokens>) -> Self {
        Self(Some(tokens))
    }

    /// The token itself.
    ///
    /// # Errors
    /// What [`Tokens::token`] reports.
    pub async fn get(&self) -> Result<Secret> {
        match &self.0 {
            Some(tokens) => tokens.token().await,
            None => Err(Error::new(
                Kind::Unavailable,
                "this driver was given no token",
            )),
        }
    }
}
