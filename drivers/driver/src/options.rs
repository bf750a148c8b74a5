//! What the options of every driver share: where a value came from, and how a size is written.

use std::collections::BTreeMap;
use std::str::FromStr;

use clap::ArgMatches;
use clap::parser::ValueSource;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// A flag, or a file that stands for one.
    Flag,
    /// The environment.
    Env,
}

/// Where each value of a configuration came from, by the name of the flag without its dashes.
pub type Origins = BTreeMap<&'static str, Origin>;

impl Origin {
    /// Where the value of `flag` came from, whose id is its name with underscores. `matches` are those that
    /// the options were parsed from; without them a value that was `given` counts as a flag.
    #[must_use]
    pub fn of(matches: Option<&ArgMatches>, flag: &str, given: bool) -> Self {
        let id = flag.replace('-', "_");
        let from_env = matches
            .filter(|matches| matches.try_contains_id(&id).unwrap_or(false))
            .and_then(|matches| matches.value_source(&id))
            == Some(ValueSource::EnvVariable);
        match (given, from_env) {
            (false, _) => Self::Default,
            (true, true) => Self::Env,
            (true, false) => Self::Flag,
        }
    }
}

/// A size in bytes, as `flag` has it: a number of GiB, or a number with a unit, all powers of 1024.
///
/// # Errors
/// [`Kind::Usage`] when it is none.
pub fn size(flag: &str, text: &str) -> Result<u64> {
    let malformed = || {
        Error::new(Kind::Usage, format!("`{flag} {text}` is not a size"))
            .hint("give GiB (`20`) or a unit (`512M`, `20G`, `1T`)")
    };
    let trimmed = text.trim();
    let digits = trimmed
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let factor = match unit
        .strip_suffix("ib")
        .or(unit.strip_suffix('b'))
        .unwrap_or(&unit)
    {
        "m" => MIB,
        "" | "g" => GIB,
        "t" => GIB << 10,
        _ => return Err(malformed()),
    };
    u64::from_str(number)
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("20", 20 * GIB),
            ("20G", 20 * GIB),
            ("20GiB", 20 * GIB),
            ("512m", 512 * MIB),
            ("1 TB", GIB << 10),
        ] {
            assert_eq!(size("--disk", text).expect(text), bytes, "{text}");
        }
        for text in [
            "",
            "G",
            "-1",
            "1.5G",
            "20X",
            "99999999999999999999",
            "99999999999T",
        ] {
            assert_eq!(
                size("--disk", text).expect_err(text).kind(),
                Kind::Usage,
                "{text}"
            );
        }
    }
}
