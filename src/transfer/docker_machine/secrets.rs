//! What of a driver's fields nobody may read.
//!
//! docker-machine kept a driver's tokens and passwords in its `config.json` as they are. Which fields those are only the
//! driver knows, so they are found by the names that its known drivers gave them, and besides by what such names have
//! in common: a field too many is out of sight, one too few would be open to all who see a record.

use serde_json::{Map, Value};

use crate::secret::Secret;

/// The secret fields of docker-machine's drivers (docker/machine at b170508, `drivers/*`) and of drivers of others.
const KNOWN: [(&str, &[&str]); 14] = [
    ("amazonec2", &["AccessKey", "SecretKey", "SessionToken"]),
    ("azure", &["ClientSecret"]),
    ("digitalocean", &["AccessToken"]),
    ("exoscale", &["APIKey", "APISecretKey"]),
    ("hetzner", &["AccessToken"]),
    ("linode", &["APIToken", "RootPassword"]),
    (
        "openstack",
        &["Password", "ApplicationCredentialSecret", "UserId"],
    ),
    ("packet", &["ApiKey"]),
    ("rackspace", &["APIKey", "Password"]),
    ("scaleway", &["Token", "SecretKey"]),
    ("softlayer", &["ApiKey", "ApiUser"]),
    ("vmwarefusion", &["SSHPassword"]),
    ("vmwarevcloudair", &["UserPassword"]),
    ("vmwarevsphere", &["Username", "Password"]),
];

/// What the names of such fields have in common, in small letters and without `_` and `-`.
const COMMON: [&str; 9] = [
    "token",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "apikey",
    "accesskey",
    "privatekey",
    "credential",
];

/// The ends of names of fields that tell where something is, not what it is.
const WHERE: [&str; 3] = ["path", "file", "url"];

/// Takes the secrets out of the fields of a driver: each by its name, with a dot between those of fields that lie in
/// each other.
pub fn take_out(driver: &str, fields: &mut Map<String, Value>) -> Vec<(String, Secret)> {
    let known = KNOWN
        .iter()
        .find(|(id, _)| *id == driver)
        .map_or(&[][..], |(_, names)| names);
    let mut taken = Vec::new();
    walk(known, "", fields, &mut taken);
    taken
}

/// What stands before the names of secrets that an engine was told.
pub const OF_ENGINE: &str = "Engine.";

/// Takes the secrets out of what an engine was told: passwords in addresses, as that of a proxy, and variables whose names
/// say what they are.
pub fn take_out_of_engine(options: &mut Value) -> Vec<(String, Secret)> {
    let mut taken = Vec::new();
    for name in [
        "ArbitraryFlags",
        "Env",
        "InsecureRegistry",
        "InstallURL",
        "Labels",
        "RegistryMirror",
    ] {
        let Some(value) = options.get_mut(name) else {
            continue;
        };
        let at = format!("{OF_ENGINE}{name}");
        let named = |word: &str| ["ArbitraryFlags", "Env"].contains(&name) && names_a_secret(word);
        match value {
            Value::String(text) if is_secret(text) => {
                taken.push((at, Secret::new(text.as_str())));
                *value = Value::Null;
            }
            Value::Array(words) => {
                let mut number = 0;
                words.retain(|word| {
                    number += 1;
                    let secret = word.as_str().filter(|word| is_secret(word) || named(word));
                    taken.extend(secret.map(|word| (format!("{at}.{number}"), Secret::new(word))));
                    secret.is_none()
                });
            }
            _ => {}
        }
    }
    taken
}

/// Whether any of the names in `NAME=VALUE` or `FLAG=NAME=VALUE` is that of a secret.
fn names_a_secret(word: &str) -> bool {
    let mut rest = word;
    while let Some((name, value)) = rest.split_once('=') {
        if is_common(name) && !value.is_empty() {
            return true;
        }
        rest = value;
    }
    false
}

fn walk(
    known: &[&str],
    above: &str,
    fields: &mut Map<String, Value>,
    taken: &mut Vec<(String, Secret)>,
) {
    fields.retain(|name, value| {
        let at = match above {
            "" => name.clone(),
            above => format!("{above}.{name}"),
        };
        let named = known.contains(&name.as_str()) || is_common(name);
        keep(known, &at, named, value, taken)
    });
}

/// Whether a value stays; what is secret in it is gone then.
fn keep(
    known: &[&str],
    at: &str,
    named: bool,
    value: &mut Value,
    taken: &mut Vec<(String, Secret)>,
) -> bool {
    match value {
        Value::Null | Value::Bool(_) => true,
        Value::Number(number) if named => {
            taken.push((at.to_owned(), Secret::new(number.to_string())));
            false
        }
        Value::Number(_) => true,
        Value::String(text) if !text.is_empty() && (named || is_secret(text)) => {
            taken.push((at.to_owned(), Secret::new(text.as_str())));
            false
        }
        Value::String(_) => true,
        Value::Array(values) => {
            let mut number = 0;
            values.retain_mut(|value| {
                number += 1;
                keep(known, &format!("{at}.{number}"), named, value, taken)
            });
            true
        }
        Value::Object(fields) if named => {
            fields.retain(|name, value| keep(known, &format!("{at}.{name}"), true, value, taken));
            true
        }
        Value::Object(fields) => {
            walk(known, at, fields, taken);
            true
        }
    }
}

fn is_common(name: &str) -> bool {
    let name: String = name
        .to_lowercase()
        .chars()
        .filter(|c| !matches!(c, '_' | '-'))
        .collect();
    COMMON.iter().any(|common| name.contains(common))
        && !WHERE.iter().any(|end| name.ends_with(end))
}

/// Whether a text is secret whatever its field is called: a private key, or an address with a password in it.
fn is_secret(text: &str) -> bool {
    let password = || {
        let (_, rest) = text.split_once("://")?;
        let authority = rest.split(['/', '?', '#']).next()?;
        let (user, _) = authority.rsplit_once('@')?;
        user.split_once(':')
            .filter(|(_, password)| !password.is_empty())
    };
    text.contains("PRIVATE KEY-----") || password().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn split(driver: &str, mut fields: Value) -> (Value, Vec<(String, String)>) {
        let taken = take_out(driver, fields.as_object_mut().expect("an object"))
            .into_iter()
            .map(|(name, secret)| (name, secret.expose().to_owned()))
            .collect();
        (fields, taken)
    }

    #[test]
    fn what_an_engine_was_told_loses_its_passwords_alone() {
        let mut options = json!({
            "Env": ["HTTP_PROXY=http://me:s3cret@proxy:3128", "NO_PROXY=localhost", "HUB_TOKEN=t0k3n", "HTTPS_PROXY=http://proxy:3128"],
            "InstallURL": "https://me:s3cret@mirror.example/docker.sh",
            "RegistryMirror": ["https://mirror.example", "https://me:s3cret@other.example"],
            "Labels": ["a=b"], "InsecureRegistry": null, "ArbitraryFlags": ["debug=true", "log-opt=splunk-token=XYZ"], "TlsVerify": true,
        });
        let mut taken: Vec<(String, String)> = take_out_of_engine(&mut options)
            .into_iter()
            .map(|(name, secret)| (name, secret.expose().to_owned()))
            .collect();
        taken.sort();
        assert_eq!(
            options,
            json!({
                "Env": ["NO_PROXY=localhost", "HTTPS_PROXY=http://proxy:3128"], "InstallURL": null,
                "RegistryMirror": ["https://mirror.example"], "Labels": ["a=b"], "InsecureRegistry": null,
                "ArbitraryFlags": ["debug=true"], "TlsVerify": true,
            })
        );
        assert_eq!(
            taken,
            [
                pair("Engine.ArbitraryFlags.2", "log-opt=splunk-token=XYZ"),
                pair("Engine.Env.1", "HTTP_PROXY=http://me:s3cret@proxy:3128"),
                pair("Engine.Env.3", "HUB_TOKEN=t0k3n"),
                pair(
                    "Engine.InstallURL",
                    "https://me:s3cret@mirror.example/docker.sh"
                ),
                pair("Engine.RegistryMirror.2", "https://me:s3cret@other.example"),
            ]
        );
    }

    fn pair(name: &str, secret: &str) -> (String, String) {
        (name.to_owned(), secret.to_owned())
    }

    #[test]
    fn the_token_of_a_known_driver_is_taken_and_nothing_else() {
        let (left, taken) = split(
            "digitalocean",
            json!({"AccessToken": "s3cr3t", "Region": "nyc3", "SSHKeyID": 7, "SSHKeyFingerprint": "aa:bb", "IPv6": false}),
        );
        assert_eq!(taken, [pair("AccessToken", "s3cr3t")]);
        assert_eq!(
            left,
            json!({"Region": "nyc3", "SSHKeyID": 7, "SSHKeyFingerprint": "aa:bb", "IPv6": false})
        );
        let (left, taken) = split(
            "amazonec2",
            json!({"AccessKey": "AK", "SecretKey": "SK", "SessionToken": "", "KeyName": "k", "SSHPrivateKeyPath": "/x"}),
        );
        assert_eq!(taken, [pair("AccessKey", "AK"), pair("SecretKey", "SK")]);
        assert_eq!(
            left,
            json!({"SessionToken": "", "KeyName": "k", "SSHPrivateKeyPath": "/x"})
        );
    }

    #[test]
    fn an_unknown_driver_s_are_known_by_their_names_and_by_what_they_are() {
        let (left, taken) = split(
            "cloud-of-tomorrow",
            json!({
                "Api_Key": "k",
                "RootPassword": "p",
                "PasswordFile": "pw.txt",
                "UsePrivateToken": true,
                "Pin": 1,
                "TokenNumber": 1234,
                "Client": {"User": "u", "api-key": "n", "Endpoint": "https://api.example"},
                "Proxy": "http://me:pw@proxy.example:3128/",
                "Plain": "http://proxy.example:3128/a@b",
                "Extra": ["-----BEGIN RSA PRIVATE KEY-----\nx", "plain"],
                "Credentials": {"user": "x", "pass": "y"},
            }),
        );
        let names: Vec<&str> = taken.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "Api_Key",
                "Client.api-key",
                "Credentials.pass",
                "Credentials.user",
                "Extra.1",
                "Proxy",
                "RootPassword",
                "TokenNumber"
            ]
        );
        assert_eq!(
            left,
            json!({
                "PasswordFile": "pw.txt",
                "UsePrivateToken": true,
                "Pin": 1,
                "Client": {"User": "u", "Endpoint": "https://api.example"},
                "Plain": "http://proxy.example:3128/a@b",
                "Extra": ["plain"],
                "Credentials": {},
            })
        );
    }
}
