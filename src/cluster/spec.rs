//! A cluster, wished.

use std::fmt;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use forge_driver::{Error, Kind, Result};

use super::zones::{self, Place, Places, Role};

/// The cluster that is meant when none is named.
pub const DEFAULT_NAME: &str = "default";

/// The longest label of a host name (RFC 1035, 2.3.4); machine names become host names.
const LONGEST_HOSTNAME: usize = 63;

/// A name whose machines (`NAME-m1`, `NAME-w1` …) have valid host names.
///
/// Lower case letters, digits and hyphens, beginning and ending with a letter or a digit. That is
/// narrower than what docker-machine takes for a machine (`^[a-zA-Z0-9][a-zA-Z0-9\-\.]*$`): DNS and
/// some file systems fold case, so that two names would be one, and a dot would cut the host name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName(String);

impl ClusterName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of one of its machines.
    #[must_use]
    pub fn machine(&self, role: Role, index: u32) -> String {
        format!("{}-{}{index}", self.0, role.letter())
    }

    /// The role and number of a machine, when the name is that of one of this cluster's machines.
    #[must_use]
    pub fn parse_machine(&self, machine: &str) -> Option<(Role, u32)> {
        let rest = machine.strip_prefix(self.as_str())?.strip_prefix('-')?;
        let role = match rest.chars().next()? {
            'm' => Role::Manager,
            'w' => Role::Worker,
            _ => return None,
        };
        let index = rest[1..].parse().ok()?;
        (self.machine(role, index) == machine).then_some((role, index))
    }
}

impl FromStr for ClusterName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |reason: &str| {
            Error::new(
                Kind::Usage,
                format!("`{}` is not a name for a cluster", text.escape_debug()),
            )
            .because(reason.to_owned())
            .hint("use lower case letters, digits and hyphens, such as `prod-2`")
        };
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if text.is_empty() {
            return Err(refused("it is empty"));
        }
        if let Some(wrong) = text.chars().find(|&c| !plain(c) && c != '-') {
            return Err(refused(&format!("it holds `{}`", wrong.escape_debug())));
        }
        if !text.starts_with(plain) || !text.ends_with(plain) {
            return Err(refused("it begins or ends with a hyphen"));
        }
        let name = Self(text.to_owned());
        let longest = name.machine(Role::Worker, zones::MOST_MACHINES).len();
        if longest > LONGEST_HOSTNAME {
            return Err(refused(&format!(
                "it is {} characters too long: the names of its machines are host names of at most {LONGEST_HOSTNAME}",
                longest - LONGEST_HOSTNAME,
            )));
        }
        Ok(name)
    }
}

impl TryFrom<String> for ClusterName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|error: Error| error.line())
    }
}

impl From<ClusterName> for String {
    fn from(name: ClusterName) -> Self {
        name.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A swarm, wished: how many machines, over how many zones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSpec {
    /// Its name.
    pub name: ClusterName,
    /// How many managers; odd.
    pub managers: u32,
    /// How many workers.
    pub workers: u32,
    /// How many zones they are spread over.
    pub zones: u32,
    /// Whether managers are kept free of tasks. Off: managers run tasks, and what an operator set by
    /// hand stays.
    #[serde(default)]
    pub drain_managers: bool,
    /// The range of overlay networks, instead of the first free one of [`super::pool::CANDIDATES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_pool: Option<Ipv4Net>,
}

impl ClusterSpec {
    /// This wish, found sound.
    ///
    /// # Errors
    /// [`Kind::Usage`] when the numbers make no sense together.
    pub fn check(&self) -> Result<Places> {
        self.places(&[])
    }

    /// Where the machines go, those in `existing` staying where they are.
    ///
    /// # Errors
    /// Those of [`zones::extend`], and [`Kind::Usage`] when the managers are to run no tasks and
    /// nobody else could.
    pub fn places(&self, existing: &[Place]) -> Result<Places> {
        let places = zones::extend(existing, self.managers, self.workers, self.zones)?;
        if self.drain_managers && self.workers == 0 {
            return Err(Error::new(
                Kind::Usage,
                "managers can only be drained where there are workers",
            )
            .because("every node would refuse tasks")
            .hint("ask for workers (`--workers 2`), or leave out `--drain-managers`"));
        }
        Ok(places)
    }

    /// The name of the machine at `place`.
    #[must_use]
    pub fn machine(&self, place: Place) -> String {
        self.name.machine(place.role, place.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(managers: u32, workers: u32, zones: u32) -> ClusterSpec {
        ClusterSpec {
            name: DEFAULT_NAME.parse().expect("a name"),
            managers,
            workers,
            zones,
            drain_managers: false,
            address_pool: None,
        }
    }

    #[test]
    fn names_that_make_host_names_are_taken() {
        for text in ["default", "a", "9", "prod-2", "a--b"] {
            assert_eq!(text.parse::<ClusterName>().expect("a name").as_str(), text);
        }
        let longest = "x".repeat(57);
        let name = longest.parse::<ClusterName>().expect("just fits");
        assert_eq!(name.machine(Role::Worker, 1000).len(), 63);
    }

    #[test]
    fn other_names_are_refused_with_the_reason() {
        for (text, reason) in [
            ("", "it is empty"),
            ("Prod", "it holds `P`"),
            ("a.b", "it holds `.`"),
            ("../x", "it holds `.`"),
            ("a_b", "it holds `_`"),
            ("a b", "it holds ` `"),
            ("a\n", "it holds `\\n`"),
            ("-a", "it begins or ends with a hyphen"),
            ("a-", "it begins or ends with a hyphen"),
        ] {
            let error = text.parse::<ClusterName>().expect_err(text);
            assert_eq!(error.kind(), Kind::Usage);
            assert_eq!(error.causes(), [reason], "{text:?}");
        }
        let error = "x".repeat(58).parse::<ClusterName>().expect_err("too long");
        assert!(
            error.causes()[0].starts_with("it is 1 characters too long"),
            "{:?}",
            error.causes()
        );
    }

    #[test]
    fn machine_names_are_recognised_both_ways() {
        let name: ClusterName = "prod-m1".parse().expect("a name");
        assert_eq!(name.machine(Role::Manager, 2), "prod-m1-m2");
        assert_eq!(name.parse_machine("prod-m1-m2"), Some((Role::Manager, 2)));
        assert_eq!(name.parse_machine("prod-m1-w10"), Some((Role::Worker, 10)));
        for other in [
            "prod-m1",
            "prod-m1-m02",
            "prod-m1-m",
            "prod-m1-x1",
            "prod-m1-m+1",
            "other-m1",
            "prod-m1-mé",
        ] {
            assert_eq!(name.parse_machine(other), None, "{other}");
        }
    }

    #[test]
    fn draining_needs_workers() {
        let mut spec = spec(3, 0, 1);
        spec.drain_managers = true;
        assert_eq!(spec.check().expect_err("nobody works").kind(), Kind::Usage);
        spec.workers = 1;
        assert_eq!(spec.check().expect("sound").nodes.len(), 4);
    }

    #[test]
    fn a_spec_survives_its_json_and_a_bad_name_in_it_is_refused() {
        let text = serde_json::to_string(&spec(3, 2, 2)).expect("json");
        assert_eq!(
            text,
            r#"{"name":"default","managers":3,"workers":2,"zones":2,"drain_managers":false}"#
        );
        assert_eq!(
            serde_json::from_str::<ClusterSpec>(&text).expect("back"),
            spec(3, 2, 2)
        );
        assert!(serde_json::from_str::<ClusterSpec>(&text.replace("default\"", "../x\"")).is_err());
    }
}
