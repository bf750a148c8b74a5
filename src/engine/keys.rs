//! The engine's flags and the keys of its configuration file.
//!
//! <https://docs.docker.com/reference/cli/dockerd/>: a flag that may be given often has a key with a name of its own and a
//! value of another shape; all others have the key that they are called by.

use serde_json::{Map, Number, Value, json};

/// The shape of a key's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One value: a truth or a number where it looks like one.
    One,
    /// One value, a text whatever it looks like.
    Text,
    /// A list.
    List,
    /// A list of `name=value`, each name once.
    Named,
    /// An object of texts.
    Texts,
    /// An object of truths.
    Truths,
    /// An object of limits: `nofile=1024:2048` is its soft and its hard value.
    Limits,
    /// An object of runtimes: `name=path`.
    Runtimes,
    /// A list of objects: `base=10.0.0.0/8,size=24`.
    Pools,
    /// A text in the object `proxies`.
    Proxy,
}

/// Flags whose key is called otherwise or is not a plain value.
const KEYS: &[(&str, &str, Form)] = &[
    ("add-runtime", "runtimes", Form::Runtimes),
    (
        "allow-nondistributable-artifacts",
        "allow-nondistributable-artifacts",
        Form::List,
    ),
    ("authorization-plugin", "authorization-plugins", Form::List),
    ("cdi-spec-dir", "cdi-spec-dirs", Form::List),
    ("cluster-store-opt", "cluster-store-opts", Form::Texts),
    ("data-root", "data-root", Form::Text),
    ("default-address-pool", "default-address-pools", Form::Pools),
    ("default-shm-size", "default-shm-size", Form::Text),
    ("default-ulimit", "default-ulimits", Form::Limits),
    ("dns", "dns", Form::List),
    ("dns-opt", "dns-opts", Form::List),
    ("dns-search", "dns-search", Form::List),
    ("exec-opt", "exec-opts", Form::Named),
    ("feature", "features", Form::Truths),
    ("group", "group", Form::Text),
    ("host", "hosts", Form::List),
    ("http-proxy", "http-proxy", Form::Proxy),
    ("https-proxy", "https-proxy", Form::Proxy),
    ("insecure-registry", "insecure-registries", Form::List),
    ("label", "labels", Form::Named),
    ("log-opt", "log-opts", Form::Texts),
    ("no-proxy", "no-proxy", Form::Proxy),
    (
        "node-generic-resource",
        "node-generic-resources",
        Form::List,
    ),
    ("registry-mirror", "registry-mirrors", Form::List),
    ("storage-opt", "storage-opts", Form::Named),
    ("userns-remap", "userns-remap", Form::Text),
];

/// The object that proxies are in.
const PROXIES: &str = "proxies";

/// Flags of one letter, and an old name.
const SHORT: &[(&str, &str)] = &[
    ("D", "debug"),
    ("G", "group"),
    ("H", "host"),
    ("g", "data-root"),
    ("graph", "data-root"),
    ("l", "log-level"),
    ("p", "pidfile"),
    ("s", "storage-driver"),
];

/// Flags that take no value as the next word.
const SWITCHES: &[&str] = &[
    "debug",
    "experimental",
    "icc",
    "init",
    "ip-forward",
    "ip-forward-no-drop",
    "ip-masq",
    "ip6tables",
    "iptables",
    "ipv6",
    "live-restore",
    "no-new-privileges",
    "raw-logs",
    "rootless",
    "selinux-enabled",
    "tls",
    "tlsverify",
    "userland-proxy",
    "validate",
    "allow-direct-routing",
    "bridge-accept-fwmark",
];

/// A flag as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// Its long name.
    pub name: String,
    /// Its value; `true` for a switch.
    pub value: String,
}

impl Flag {
    /// The flags among the words of a command line.
    pub fn all(words: &[String]) -> Vec<Self> {
        let mut flags = Vec::new();
        let mut words = words.iter().peekable();
        while let Some(word) = words.next() {
            let Some(rest) = word.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
                continue;
            };
            let (name, value) = match rest.strip_prefix('-') {
                Some(rest) => match rest.split_once('=') {
                    Some((name, value)) => (long(name), Some(value.to_owned())),
                    None => (long(rest), None),
                },
                // A letter, and what is joined to it is its value.
                None => {
                    let end = rest.chars().next().map_or(0, char::len_utf8);
                    let joined = rest[end..].trim_start_matches('=');
                    let value = (!joined.is_empty()).then(|| joined.to_owned());
                    (long(&rest[..end]), value)
                }
            };
            let value = value.unwrap_or_else(|| {
                if SWITCHES.contains(&name) {
                    return "true".to_owned();
                }
                let next = words.next_if(|next| !next.starts_with('-'));
                next.cloned().unwrap_or_else(|| "true".to_owned())
            });
            flags.push(Self {
                name: name.to_owned(),
                value,
            });
        }
        flags
    }

    /// As it is written on a command line.
    pub fn text(&self) -> String {
        format!("--{}={}", self.name, self.value)
    }

    /// Whether it decides who may talk to the engine, and where: that is for forge to say.
    pub fn opens(&self) -> bool {
        ["host", "tls", "tlsverify", "tlscacert", "tlscert", "tlskey"].contains(&self.name.as_str())
    }
}

/// The long name of a flag.
pub fn long(name: &str) -> &str {
    SHORT
        .iter()
        .find(|(short, _)| *short == name)
        .map_or(name, |(_, long)| long)
}

/// The key of a flag, and the shape of its value.
pub fn of(flag: &str) -> (&str, Form) {
    KEYS.iter()
        .find(|(name, _, _)| *name == flag)
        .map_or((flag, Form::One), |(_, key, form)| (key, *form))
}

/// The part of a value that is to be there once: its name, or the whole.
pub fn subject(form: Form, value: &str) -> &str {
    match form {
        Form::One | Form::Text | Form::Proxy => "",
        Form::List | Form::Pools => value,
        Form::Named | Form::Texts | Form::Truths | Form::Limits | Form::Runtimes => {
            value.split_once('=').map_or(value, |(name, _)| name)
        }
    }
}

/// The value of a flag that has one value, as JSON.
pub fn one(form: Form, value: &str) -> Value {
    match (form, value, value.parse::<Number>()) {
        (Form::Text | Form::Proxy, ..) => value.into(),
        (_, "true", _) => true.into(),
        (_, "false", _) => false.into(),
        (_, _, Ok(number)) => Value::Number(number),
        _ => value.into(),
    }
}

/// Puts a flag's value into a configuration, in place of one of the same subject.
///
/// # Errors
/// Why the value is none for this flag.
pub fn put(
    file: &mut Map<String, Value>,
    key: &str,
    form: Form,
    value: &str,
) -> Result<(), String> {
    let pair = || {
        value
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| "it has to be `NAME=VALUE`".to_owned())
    };
    match form {
        Form::One | Form::Text => {
            file.insert(key.to_owned(), one(form, value));
        }
        Form::Proxy => {
            object(file, PROXIES)?.insert(key.to_owned(), value.into());
        }
        Form::List => {
            let list = list(file, key)?;
            if !list.iter().any(|found| found == value) {
                list.push(value.into());
            }
        }
        Form::Named => {
            let (name, _) = pair()?;
            let list = list(file, key)?;
            let same = |found: &Value| {
                found
                    .as_str()
                    .is_some_and(|found| subject(form, found) == name)
            };
            match list.iter_mut().find(|found| same(found)) {
                Some(found) => *found = value.into(),
                None => list.push(value.into()),
            }
        }
        Form::Texts => {
            let (name, value) = pair()?;
            object(file, key)?.insert(name.to_owned(), value.into());
        }
        Form::Truths => {
            let (name, value) = value.split_once('=').unwrap_or((value, "true"));
            let truth = value
                .parse::<bool>()
                .map_err(|_| format!("`{value}` is neither true nor false"))?;
            object(file, key)?.insert(name.to_owned(), truth.into());
        }
        Form::Limits => {
            let (name, value) = pair()?;
            let (soft, hard) = value.split_once(':').unwrap_or((value, value));
            let number = |text: &str| {
                text.parse::<i64>()
                    .map_err(|_| format!("`{text}` is no limit"))
            };
            let limit = json!({"Name": name, "Soft": number(soft)?, "Hard": number(hard)?});
            object(file, key)?.insert(name.to_owned(), limit);
        }
        Form::Runtimes => {
            let (name, path) = pair()?;
            object(file, key)?.insert(name.to_owned(), json!({ "path": path }));
        }
        Form::Pools => {
            let mut pool = Map::new();
            for part in value.split(',') {
                let (name, value) = part
                    .split_once('=')
                    .ok_or_else(|| "it has to be `base=RANGE,size=BITS`".to_owned())?;
                pool.insert(name.to_owned(), one(Form::One, value));
            }
            let pool = Value::Object(pool);
            let list = list(file, key)?;
            if !list.contains(&pool) {
                list.push(pool);
            }
        }
    }
    Ok(())
}

/// Takes a flag's value out of a configuration, where it is there with exactly this value.
pub fn take(file: &mut Map<String, Value>, key: &str, form: Form, value: &str) {
    let mut wished = Map::new();
    if put(&mut wished, key, form, value).is_err() {
        return;
    }
    for (name, value) in wished {
        let empty = match (file.get_mut(&name), &value) {
            (Some(Value::Array(found)), Value::Array(gone)) => {
                found.retain(|value| !gone.contains(value));
                found.is_empty()
            }
            (Some(Value::Object(found)), Value::Object(gone)) => {
                found.retain(|name, value| gone.get(name) != Some(value));
                found.is_empty()
            }
            (Some(found), value) => *found == *value,
            (None, _) => false,
        };
        if empty {
            file.remove(&name);
        }
    }
}

fn list<'a>(file: &'a mut Map<String, Value>, key: &str) -> Result<&'a mut Vec<Value>, String> {
    let entry = file.entry(key).or_insert_with(|| json!([]));
    entry
        .as_array_mut()
        .ok_or_else(|| format!("`{key}` is no list in daemon.json"))
}

fn object<'a>(
    file: &'a mut Map<String, Value>,
    key: &str,
) -> Result<&'a mut Map<String, Value>, String> {
    let entry = file.entry(key).or_insert_with(|| json!({}));
    entry
        .as_object_mut()
        .ok_or_else(|| format!("`{key}` is no object in daemon.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(line: &str) -> Vec<String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        Flag::all(&words).iter().map(Flag::text).collect()
    }

    #[test]
    fn flags_are_read_in_every_way_that_they_are_written() {
        assert_eq!(
            flags(
                "/usr/bin/dockerd -H fd:// --live-restore -D --label a=b --mtu=1400 -l debug --selinux-enabled --icc=false -H=unix:///x"
            ),
            [
                "--host=fd://",
                "--live-restore=true",
                "--debug=true",
                "--label=a=b",
                "--mtu=1400",
                "--log-level=debug",
                "--selinux-enabled=true",
                "--icc=false",
                "--host=unix:///x",
            ]
        );
        assert_eq!(
            flags("dockerd --unheard-of --also"),
            ["--unheard-of=true", "--also=true"]
        );
    }

    #[test]
    fn values_take_the_shape_that_the_engine_reads() {
        let file = |flag: &str, values: &[&str]| {
            let (key, form) = of(flag);
            let mut file = Map::new();
            for value in values {
                put(&mut file, key, form, value).expect(value);
            }
            Value::Object(file)
        };
        for (flag, values, expected) in [
            ("log-level", &["debug"][..], json!({"log-level": "debug"})),
            ("live-restore", &["true"], json!({"live-restore": true})),
            ("mtu", &["1400"], json!({"mtu": 1400})),
            ("group", &["1000"], json!({"group": "1000"})),
            (
                "label",
                &["a=b", "c=d", "a=e"],
                json!({"labels": ["a=e", "c=d"]}),
            ),
            ("dns", &["1.1.1.1", "1.1.1.1"], json!({"dns": ["1.1.1.1"]})),
            (
                "log-opt",
                &["max-size=10m"],
                json!({"log-opts": {"max-size": "10m"}}),
            ),
            (
                "default-ulimit",
                &["nofile=1:2", "core=0"],
                json!({"default-ulimits": {"nofile": {"Name": "nofile", "Soft": 1, "Hard": 2}, "core": {"Name": "core", "Soft": 0, "Hard": 0}}}),
            ),
            (
                "add-runtime",
                &["oci=/usr/sbin/runc"],
                json!({"runtimes": {"oci": {"path": "/usr/sbin/runc"}}}),
            ),
            (
                "default-address-pool",
                &["base=10.0.0.0/8,size=24"],
                json!({"default-address-pools": [{"base": "10.0.0.0/8", "size": 24}]}),
            ),
            (
                "feature",
                &["containerd-snapshotter=true"],
                json!({"features": {"containerd-snapshotter": true}}),
            ),
            (
                "http-proxy",
                &["http://p:1"],
                json!({"proxies": {"http-proxy": "http://p:1"}}),
            ),
        ] {
            assert_eq!(file(flag, values), expected, "{flag}");
        }
        let mut file = Map::new();
        for (flag, value) in [
            ("label", "a"),
            ("label", "=b"),
            ("default-ulimit", "nofile=many"),
            ("feature", "x=maybe"),
            ("default-address-pool", "10.0.0.0/8"),
        ] {
            let (key, form) = of(flag);
            assert!(put(&mut file, key, form, value).is_err(), "{flag} {value}");
        }
        let mut odd = Map::from_iter([("labels".to_owned(), json!("a=b"))]);
        let (key, form) = of("label");
        assert!(put(&mut odd, key, form, "c=d").is_err());
    }
}
