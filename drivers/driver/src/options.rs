//! What the options of every driver share: where a value came from, and how a size is written.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::str::FromStr;

use clap::ArgMatches;
use clap::parser::ValueSource;
use ipnet::Ipv4Net;
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
        let source = matches
            .filter(|matches| matches.try_contains_id(&id).unwrap_or(false))
            .and_then(|matches| matches.value_source(&id));
        match (given, source) {
            (false, _) | (true, Some(ValueSource::DefaultValue)) => Self::Default,
            (true, Some(ValueSource::EnvVariable)) => Self::Env,
            (true, _) => Self::Flag,
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

/// Refuses hardware that no machine can have, as the flags of the driver with this `prefix` have it: memory in
/// MiB, processors, and the size of the disk in bytes.
///
/// # Errors
/// [`Kind::Usage`] with the range.
pub fn hardware(prefix: &str, memory_mib: u32, cpus: u16, disk_bytes: u64) -> Result<()> {
    let usage = |message: String| Err(Error::new(Kind::Usage, message));
    if !(128..=(16 << 20)).contains(&memory_mib) {
        return usage(format!(
            "`--{prefix}-memory {memory_mib}` is out of range: it is in MiB, from 128 to 16777216"
        ));
    }
    if !(1..=255).contains(&cpus) {
        return usage(format!(
            "`--{prefix}-cpus {cpus}` is out of range: 1 to 255"
        ));
    }
    if !(64 * MIB..=64 << 40).contains(&disk_bytes) {
        return usage(format!(
            "`--{prefix}-disk-size` is out of range: 64M to 64T"
        ));
    }
    Ok(())
}

/// Refuses what cannot be a network between machines, as `flag` has it.
///
/// # Errors
/// [`Kind::Usage`] for an address, a range too small or too large, and one that is not private.
pub fn private_range(flag: &str, net: Ipv4Net) -> Result<()> {
    let usage = |message: String| Error::new(Kind::Usage, message);
    if net.addr() != net.network() {
        return Err(usage(format!("`{flag} {net}` is an address, not a range"))
            .hint(format!("did you mean `{}`?", net.trunc())));
    }
    if !(8..=29).contains(&net.prefix_len()) {
        return Err(usage(format!(
            "`{flag} {net}` must have a prefix from /8 to /29"
        )));
    }
    if !net.addr().is_private() && !shared_space(net) {
        return Err(usage(format!(
            "`{flag} {net}` is not private: take a range from 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10"
        )));
    }
    Ok(())
}

/// RFC 6598's range, which is nobody's public address either.
fn shared_space(net: Ipv4Net) -> bool {
    Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10).contains(&net)
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
