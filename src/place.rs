//! A machine's place in a cluster: its role and its zone.

use std::fmt;
use std::str::FromStr;

use forge_driver::{Error, Kind, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a machine does in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Takes part in the consensus and, unless drained, runs tasks.
    Manager,
    /// Runs tasks.
    Worker,
}

impl Role {
    /// The letter in machine names: `NAME-m1`, `NAME-w1`.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::Manager => 'm',
            Self::Worker => 'w',
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Manager => "manager",
            Self::Worker => "worker",
        })
    }
}

/// A zone, counted from 1 and shown as `z1`, `z2` …
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Zone(pub u32);

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("z{}", self.0))
    }
}

impl FromStr for Zone {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.strip_prefix('z')
            .filter(|digits| !digits.starts_with(['0', '+']))
            .and_then(|digits| digits.parse().ok())
            .map(Self)
            .ok_or_else(|| {
                Error::new(
                    Kind::Invalid,
                    format!("`{text}` is not a zone: zones are `z1`, `z2` …"),
                )
            })
    }
}

impl Serialize for Zone {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Zone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(|error: Error| serde::de::Error::custom(error.message()))
    }
}
