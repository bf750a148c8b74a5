//! What a user wishes of a machine's engine.

use serde::{Deserialize, Serialize};

/// What the engine of one machine is to be told, in the words of the user and in their order. All empty means: as
/// the distribution has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineOptions {
    /// Flags without their dashes, `live-restore` or `log-level=debug`.
    pub opts: Vec<String>,
    /// Variables of the engine's process, `NAME=VALUE`.
    pub env: Vec<String>,
    /// Labels of the engine, `key=value`.
    pub labels: Vec<String>,
    /// Registries that are spoken to without TLS, or without looking at their certificate.
    pub insecure_registries: Vec<String>,
    /// Mirrors of the public registry, by their URLs.
    pub mirrors: Vec<String>,
    /// The storage driver; `None` leaves it to the engine.
    pub storage_driver: Option<String>,
    /// Where the engine comes from, on a machine that has none.
    pub install: Install,
}

/// Where an engine comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Install {
    /// The distribution's own packages.
    #[default]
    Distribution,
    /// These packages.
    Packages(Vec<String>),
    /// A script that is fetched from there and run.
    Url(String),
    /// Nowhere: the machine has one, or it is an error.
    None,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_said_is_left_to_the_distribution() {
        let options: EngineOptions = serde_json::from_str("{}").expect("an empty object");
        assert_eq!(options, EngineOptions::default());
        assert_eq!(options.install, Install::Distribution);
    }

    #[test]
    fn options_come_back_as_they_were() {
        for install in [
            Install::Distribution,
            Install::Packages(vec!["docker-ce".into(), "docker-ce-cli".into()]),
            Install::Url("https://get.example/engine.sh".into()),
            Install::None,
        ] {
            let options = EngineOptions {
                opts: vec!["log-level=debug".into()],
                env: vec!["HTTP_PROXY=http://proxy.example:3128".into()],
                labels: vec!["zone=z1".into()],
                insecure_registries: vec!["registry.example:5000".into()],
                mirrors: vec!["https://mirror.example".into()],
                storage_driver: Some("overlay2".into()),
                install,
            };
            let text = serde_json::to_string(&options).expect("JSON");
            assert_eq!(
                serde_json::from_str::<EngineOptions>(&text).expect("options"),
                options
            );
        }
    }
}
