//! What a user wishes of a machine's engine.

use serde::{Deserialize, Serialize};

use crate::engine::keys;

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

impl EngineOptions {
    /// These options and `more`: what is said again of the same thing takes the place of what was said before. Where the
    /// engine comes from stays, since there is one.
    #[must_use]
    pub fn with(mut self, more: &Self) -> Self {
        for opt in &more.opts {
            let subject = |opt: &str| {
                let (flag, value) = opt.split_once('=').unwrap_or((opt, "true"));
                let (key, form) = keys::of(keys::long(flag.trim_start_matches('-')));
                (key.to_owned(), keys::subject(form, value).to_owned())
            };
            put(&mut self.opts, opt, subject);
        }
        let name = |word: &str| {
            word.split_once('=')
                .map_or(word, |(name, _)| name)
                .to_owned()
        };
        for word in &more.env {
            put(&mut self.env, word, name);
        }
        for label in &more.labels {
            put(&mut self.labels, label, name);
        }
        for registry in &more.insecure_registries {
            put(&mut self.insecure_registries, registry, str::to_owned);
        }
        for mirror in &more.mirrors {
            put(&mut self.mirrors, mirror, str::to_owned);
        }
        if more.storage_driver.is_some() {
            self.storage_driver.clone_from(&more.storage_driver);
        }
        self
    }
}

/// Puts a word in the place of the one with the same subject, or behind all.
fn put<S: PartialEq>(words: &mut Vec<String>, word: &str, subject: impl Fn(&str) -> S) {
    match words
        .iter_mut()
        .find(|found| subject(found) == subject(word))
    {
        Some(found) => word.clone_into(found),
        None => words.push(word.to_owned()),
    }
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

    #[test]
    fn what_is_said_again_takes_the_place_of_what_was_said_before() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let before = EngineOptions {
            opts: words(&[
                "log-level=info",
                "dns=1.1.1.1",
                "live-restore",
                "exec-opt=a=1",
            ]),
            env: words(&["A=1"]),
            labels: words(&["a=b", "c=d"]),
            mirrors: words(&["https://m"]),
            storage_driver: Some("overlay2".into()),
            install: Install::None,
            ..EngineOptions::default()
        };
        let more = EngineOptions {
            opts: words(&[
                "-l=debug",
                "dns=2.2.2.2",
                "live-restore=false",
                "exec-opt=a=2",
            ]),
            env: words(&["A=2", "B=3"]),
            labels: words(&["a=x"]),
            mirrors: words(&["https://m", "https://o"]),
            ..EngineOptions::default()
        };
        let after = EngineOptions {
            opts: words(&[
                "-l=debug",
                "dns=1.1.1.1",
                "live-restore=false",
                "exec-opt=a=2",
                "dns=2.2.2.2",
            ]),
            env: words(&["A=2", "B=3"]),
            labels: words(&["a=x", "c=d"]),
            mirrors: words(&["https://m", "https://o"]),
            storage_driver: Some("overlay2".into()),
            install: Install::None,
            ..EngineOptions::default()
        };
        assert_eq!(before.clone().with(&more), after);
        assert_eq!(before.clone().with(&EngineOptions::default()), before);
    }
}
