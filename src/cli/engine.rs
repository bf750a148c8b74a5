//! What `create` and `provision` say of a machine's engine and of its certificate, in docker-machine's words.

use std::cmp::Ordering;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args};
use forge::engine::settings;
use forge::engine_options::{EngineOptions, Install};
use forge_driver::{Error, Kind, Result};

/// What an engine is to be told.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Engine")]
pub struct Options {
    /// Give the engine this flag, without its dashes (repeatable): live-restore, log-level=debug
    #[arg(long = "engine-opt", value_name = "FLAG[=VALUE]")]
    opts: Vec<String>,
    /// Set this variable for the engine's process (repeatable)
    #[arg(long = "engine-env", value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Give the engine this label (repeatable)
    #[arg(long = "engine-label", value_name = "NAME=VALUE")]
    labels: Vec<String>,
    /// Let the engine speak to this registry without TLS, or without looking at its certificate (repeatable)
    #[arg(long = "engine-insecure-registry", value_name = "HOST[:PORT]")]
    insecure_registries: Vec<String>,
    /// Let the engine ask this mirror of the public registry first (repeatable) [env: ENGINE_REGISTRY_MIRROR]
    #[arg(
        long = "engine-registry-mirror",
        value_name = "URL",
        env = "FORGE_ENGINE_REGISTRY_MIRROR",
        hide_env_values = true,
        value_delimiter = ','
    )]
    mirrors: Vec<String>,
    /// Keep images and containers with this storage driver; fixed as soon as there are any [default: the engine's choice]
    #[arg(
        long = "engine-storage-driver",
        value_name = "NAME",
        env = "FORGE_ENGINE_STORAGE_DRIVER",
        hide_env_values = true
    )]
    storage_driver: Option<String>,
    /// Let the engine's certificate carry this name or address too (repeatable)
    #[arg(long = "tls-san", value_name = "NAME")]
    sans: Vec<String>,
}

/// Where an engine comes from.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Engine")]
pub struct Source {
    /// Where there is no engine, download this script and run it; `none` for an error instead [env: MACHINE_DOCKER_INSTALL_URL] [default: the distribution's packages]
    #[arg(
        id = "engine_install_url",
        long = "engine-install-url",
        value_name = "URL",
        env = "FORGE_ENGINE_INSTALL_URL",
        hide_env_values = true
    )]
    url: Option<String>,
    /// Where there is no engine, install these packages, by the distribution's own tool
    #[arg(
        id = "engine_packages",
        long = "engine-packages",
        value_name = "NAME,…",
        env = "FORGE_ENGINE_PACKAGES",
        hide_env_values = true,
        value_delimiter = ','
    )]
    packages: Vec<String>,
}

impl Options {
    /// With what is on the command line alone: of machines that are there neither variables nor settings say anything.
    pub fn said(mut self, matches: &ArgMatches) -> Self {
        let typed = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        for (id, values) in [
            ("opts", &mut self.opts),
            ("env", &mut self.env),
            ("labels", &mut self.labels),
            ("insecure_registries", &mut self.insecure_registries),
            ("mirrors", &mut self.mirrors),
            ("sans", &mut self.sans),
        ] {
            if !typed(id) {
                values.clear();
            }
        }
        if !typed("storage_driver") {
            self.storage_driver = None;
        }
        self
    }

    /// With docker-machine's variable, where nothing is said of mirrors.
    pub fn with_variables(mut self) -> Self {
        if said(&self.mirrors).is_empty() {
            let theirs = variable("ENGINE_REGISTRY_MIRROR").unwrap_or_default();
            self.mirrors = theirs.split(',').map(str::to_owned).collect();
        }
        self
    }

    /// The options, and the names for the certificate.
    ///
    /// # Errors
    /// [`Kind::Usage`] when they contradict each other or make no sense.
    pub fn wished(&self) -> Result<(EngineOptions, Vec<String>)> {
        let wished = EngineOptions {
            opts: self.opts.clone(),
            env: self.env.clone(),
            labels: self.labels.clone(),
            insecure_registries: self.insecure_registries.clone(),
            mirrors: said(&self.mirrors),
            storage_driver: self.storage_driver.clone().filter(|name| !name.is_empty()),
            install: Install::default(),
        };
        settings::check(&wished)?;
        for name in &self.sans {
            san(name)?;
        }
        Ok((wished, self.sans.clone()))
    }
}

impl Source {
    /// Whether the command line says it.
    pub fn is_said(&self, matches: &ArgMatches) -> bool {
        ["engine_install_url", "engine_packages"]
            .iter()
            .any(|id| matches.value_source(id) == Some(ValueSource::CommandLine))
    }

    /// Where an engine is to come from. A flag counts before a variable, that before a setting.
    ///
    /// # Errors
    /// [`Kind::Usage`] when it is said twice, or is no URL.
    pub fn wished(&self, matches: &ArgMatches) -> Result<Install> {
        let mut packages = said(&self.packages);
        let mut url = self.url.clone().filter(|url| !url.is_empty());
        let source = |id: &str| matches.value_source(id);
        let both = url.is_some() && !packages.is_empty();
        match source("engine_install_url").cmp(&source("engine_packages")) {
            Ordering::Greater if both => packages.clear(),
            Ordering::Less if both => url = None,
            _ => {}
        }
        if url.is_some() && !packages.is_empty() {
            return Err(Error::new(
                Kind::Usage,
                "an engine comes from packages or from a script, and both are wished",
            )
            .hint("leave out `--engine-packages` or `--engine-install-url`"));
        }
        if !packages.is_empty() {
            let plain = |name: &String| {
                name.bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"+-._:=~/".contains(&byte))
                    && !name.starts_with('-')
            };
            return match packages.iter().find(|name| !plain(name)) {
                None => Ok(Install::Packages(packages)),
                Some(name) => Err(Error::new(
                    Kind::Usage,
                    format!("`{}` is not the name of a package", name.escape_debug()),
                )),
            };
        }
        match url.or_else(|| variable("MACHINE_DOCKER_INSTALL_URL")) {
            None => Ok(Install::Distribution),
            Some(url) if url == "none" => Ok(Install::None),
            Some(url)
                if (url.starts_with("https://") || url.starts_with("http://"))
                    && url.bytes().all(|byte| byte.is_ascii_graphic()) =>
            {
                Ok(Install::Url(url))
            }
            Some(url) => Err(Error::new(
                Kind::Usage,
                format!("`{}` is not the URL of a script", url.escape_debug()),
            )
            .hint("give `https://…`, `http://…` or `none`")),
        }
    }
}

/// Values that are not empty: an empty variable says nothing.
fn said(values: &[String]) -> Vec<String> {
    values
        .iter()
        .filter(|value| !value.is_empty())
        .cloned()
        .collect()
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Refuses what cannot stand in a certificate: neither an address nor a name of DNS, the first label of which may be
/// `*`.
fn san(name: &str) -> Result<()> {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let dns = name.strip_prefix("*.").unwrap_or(name);
    let sound =
        name.parse::<std::net::IpAddr>().is_ok() || (dns.len() <= 253 && dns.split('.').all(label));
    if sound {
        return Ok(());
    }
    Err(Error::new(
        Kind::Usage,
        format!(
            "`--tls-san {}` is neither a name nor an address",
            name.escape_debug()
        ),
    ))
}
