//! What a driver reports: one machine, observed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::claim::Claim;

/// One machine, as its provider has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Where it is reached. Nobody guesses from a list of addresses.
    pub endpoints: Endpoints,
    /// What was made for it so far, so that a reader can find it by hand.
    pub artefacts: Vec<Artefact>,
    /// The exact hardware (machine type, CPU model, accelerator, hardware addresses), by name:
    /// what a saved running state needs to be loaded again.
    pub hardware: BTreeMap<String, String>,
}

impl Instance {
    /// A host at an address, of which no more is known than these ports.
    #[must_use]
    pub fn at(address: IpAddr, ssh: u16, engine: u16) -> Self {
        Self {
            endpoints: Endpoints {
                ssh: SocketAddr::new(address, ssh),
                engine: SocketAddr::new(address, engine),
                cluster: None,
                data: None,
                public: None,
            },
            artefacts: Vec::new(),
            hardware: BTreeMap::new(),
        }
    }

    /// Whether its addresses are known.
    #[must_use]
    pub fn located(&self) -> bool {
        !self.endpoints.ssh.ip().is_unspecified()
    }
}

/// Typed addresses of one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// SSH, as reached from here. Its address is 0.0.0.0 (and that of the engine) while nobody knows it yet: a
    /// server of the network gives it to the guest, and later observations tell it.
    pub ssh: SocketAddr,
    /// The engine's TLS port, as reached from here.
    pub engine: SocketAddr,
    /// What a cluster advertises: the address on the network between the machines.
    pub cluster: Option<IpAddr>,
    /// What overlay traffic uses, where it differs from `cluster`.
    pub data: Option<IpAddr>,
    /// An address that others can reach.
    pub public: Option<IpAddr>,
}

/// Something that exists because of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artefact {
    /// `disk`, `seed`, `process` …
    pub kind: String,
    /// The provider's id, or a path relative to the driver's directory.
    pub id: String,
}

/// The power state of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing carries the claim.
    Absent,
    /// It runs.
    Running,
    /// Its processors are halted, its memory is kept.
    Paused,
    /// Its running state lies on disk.
    Saved,
    /// It is off; its disk is there.
    Stopped,
    /// It is on its way down.
    Stopping,
    /// It is on its way up.
    Starting,
    /// The provider reports an error.
    Error,
    /// It has none: it is a name with nothing behind it.
    None,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Absent => "Absent",
            Self::Running => "Running",
            Self::Paused => "Paused",
            Self::Saved => "Saved",
            Self::Stopped => "Stopped",
            Self::Stopping => "Stopping",
            Self::Starting => "Starting",
            Self::Error => "Error",
            Self::None => "None",
        })
    }
}

/// The answer for one claim.
#[derive(Clone, Debug)]
pub struct Observation {
    /// Which one.
    pub claim: Claim,
    /// Its power state.
    pub state: State,
    /// Whether its guest has switched its network on: before that nobody can answer. `None` where the
    /// provider cannot tell.
    pub network: Option<bool>,
    /// What is there; `None` when the state is [`State::Absent`].
    pub instance: Option<Instance>,
    /// Why nothing can be said of it, on one line; the state is then [`State::Error`].
    pub trouble: Option<String>,
}

/// A wished change of power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// On, with everything that was recorded (ports, addresses).
    On,
    /// Ask the guest to shut down (ACPI). Returns when the request is made, not when it is off.
    Shutdown,
    /// Off, at once.
    Kill,
}
