//! What a user can say of an engine.

use std::net::Ipv6Addr;

use clap::{ArgMatches, Args};
use forge_driver::options::{Origin, Origins};
use forge_driver::{ENGINE_PORT, Error, Kind, Result};
use serde::{Deserialize, Serialize};

/// Where engines without TLS listen, by the register of ports: <https://www.iana.org/assignments/service-names-port-numbers>,
/// `docker`, beside 2376, `docker-s`.
const PLAIN_PORT: u16 = 2375;

/// The URL of a machine that is a name alone: scripts and test suites written for docker-machine make such ones.
const NOWHERE: &str = "none";

/// What a user can say of an engine that is there already.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Driver none")]
pub struct Options {
    /// Find the engine at this URL: over TLS, or in the clear at port 2375; `none`: a name with nothing behind it
    #[arg(
        id = "url",
        long = "url",
        value_name = "tcp://HOST:PORT",
        env = "FORGE_NONE_URL",
        hide_env_values = true
    )]
    pub url: Option<String>,
}

/// Where an engine is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its URL.
    pub url: String,
    /// The host in it; empty where nothing is behind the machine.
    pub host: String,
    /// The port in it.
    pub port: u16,
    /// It speaks TLS.
    pub tls: bool,
}

impl Config {
    /// Whether there is no engine: the machine is a name alone.
    #[must_use]
    pub fn nowhere(&self) -> bool {
        self.host.is_empty()
    }

    /// What the options come to, and where each value came from.
    ///
    /// # Errors
    /// [`Kind::Usage`] when there is no URL, or it is none of an engine.
    pub fn resolve(options: &Options, matches: Option<&ArgMatches>) -> Result<(Self, Origins)> {
        let url = options
            .url
            .clone()
            .filter(|url| !url.is_empty())
            .ok_or_else(|| {
                Error::new(
                    Kind::Usage,
                    "the driver `none` has to be told where the engine is: `--url` is missing",
                )
                .hint("`--url tcp://192.0.2.10:2376`")
            })?;
        let origins = [("url", Origin::of(matches, "url", true))].into();
        if url == NOWHERE {
            let config = Self {
                url,
                host: String::new(),
                port: ENGINE_PORT,
                tls: true,
            };
            return Ok((config, origins));
        }
        let wrong = || Error::new(Kind::Usage, format!("`--url {url}` is not tcp://HOST:PORT"));
        let rest = url.strip_prefix("tcp://").ok_or_else(wrong)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[') {
            Some(six) => {
                let (host, port) = six.split_once(']').ok_or_else(wrong)?;
                host.parse::<Ipv6Addr>().map_err(|_| wrong())?;
                (host, port.strip_prefix(':'))
            }
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let port = match port {
            None => ENGINE_PORT,
            Some(port) => port
                .parse()
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(wrong)?,
        };
        let named = !host.is_empty()
            && host
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-._:".contains(c));
        if !named {
            return Err(wrong());
        }
        let config = Self {
            host: host.to_owned(),
            port,
            tls: port != PLAIN_PORT,
            url: url.clone(),
        };
        Ok((config, origins))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(url: &str) -> Result<Config> {
        let options = Options {
            url: Some(url.to_owned()),
        };
        Config::resolve(&options, None).map(|(config, _)| config)
    }

    #[test]
    fn a_url_leads_to_a_host_and_a_port() {
        for (url, host, port, tls) in [
            ("tcp://n1.example:2376", "n1.example", 2376, true),
            ("tcp://192.0.2.1", "192.0.2.1", 2376, true),
            ("tcp://[2001:db8::1]:2377", "2001:db8::1", 2377, true),
            ("tcp://192.0.2.1:2375/", "192.0.2.1", 2375, false),
        ] {
            let config = resolve(url).expect(url);
            assert_eq!(
                (config.host.as_str(), config.port, config.tls),
                (host, port, tls)
            );
            assert_eq!(config.url, url);
        }
    }

    #[test]
    fn a_machine_may_be_a_name_alone() {
        let config = resolve("none").expect("none");
        assert!(config.nowhere());
        assert_eq!(config.url, "none");
        assert!(!resolve("tcp://none").expect("a host").nowhere());
    }

    #[test]
    fn what_is_no_url_of_an_engine_is_refused() {
        for url in [
            "",
            "n1",
            "http://n1:2376",
            "tcp://",
            "tcp://n1:0",
            "tcp://n1:x",
            "tcp://a b",
            "tcp://[::1",
            "tcp://u@n1",
        ] {
            assert_eq!(resolve(url).expect_err(url).kind(), Kind::Usage, "{url}");
        }
    }
}
