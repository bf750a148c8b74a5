//! `config.json` of docker-machine, version 3, as far as it leads to the machine.
//!
//! Names are those of docker/machine at b170508: `Host` in libmachine/host/host.go, `BaseDriver` in
//! libmachine/drivers/base.go, `Options` in libmachine/engine and libmachine/auth.

use std::fs;
use std::path::{Path, PathBuf};

use forge_driver::{ENGINE_PORT, Error, Kind, Result, SSH_PORT};
use serde_json::{Map, Value};

use super::secrets;
use crate::engine_options::{EngineOptions, Install};
use crate::secret::Secret;
use crate::store::LARGEST_FOREIGN;

/// The version of the format that is read.
const VERSION: u64 = 3;

/// The fields of every driver, which say where things are: records have them in their own way.
const OF_ALL: [&str; 9] = [
    "IPAddress",
    "MachineName",
    "SSHUser",
    "SSHPort",
    "SSHKeyPath",
    "StorePath",
    "SwarmMaster",
    "SwarmHost",
    "SwarmDiscovery",
];

/// A machine, as docker-machine remembers it.
#[derive(Clone, Debug)]
pub struct Foreign {
    /// The driver that made it.
    pub driver: String,
    /// The name or address at which SSH is entered, and the port; `None` for one that has no SSH.
    pub ssh: Option<(String, u16)>,
    /// The user of SSH.
    pub user: String,
    /// Where the engine is; an empty name is an address that is not known while the machine is off.
    pub engine: (String, u16),
    /// The private SSH key, where there is one.
    pub key: Option<PathBuf>,
    /// The CA that its engine trusts, the client's certificate and its key.
    pub client: [PathBuf; 3],
    /// The engine's own certificate and its key.
    pub server: [PathBuf; 2],
    /// What the engine was told.
    pub engine_options: EngineOptions,
    /// What the certificate carries besides the machine's own names.
    pub sans: Vec<String>,
    /// The driver's own fields, without secrets and without paths of this computer.
    pub fields: Map<String, Value>,
    /// The secrets among them, by their names.
    pub secrets: Vec<(String, Secret)>,
}

/// Reads the configuration of the machine in `folder`, in the store of docker-machine's at `root`.
///
/// # Errors
/// [`Kind::Invalid`] when it is of another version, [`Kind::Corrupt`] when it is not what it should be.
pub fn read(root: &Path, folder: &Path) -> Result<Foreign> {
    let path = folder.join("config.json");
    let failed = |kind| Error::new(kind, format!("`{}` cannot be read", path.display()));
    let found = fs::metadata(&path).map_err(|error| failed(Kind::Corrupt).because(error))?;
    if !found.is_file() || found.len() > LARGEST_FOREIGN {
        return Err(failed(Kind::Corrupt).because("it is no configuration of a machine"));
    }
    let text = fs::read(&path).map_err(|error| failed(Kind::Io).because(error))?;
    let mut whole: Value =
        serde_json::from_slice(&text).map_err(|error| failed(Kind::Corrupt).because(error))?;
    match whole.get("ConfigVersion").map(Value::as_u64) {
        Some(Some(VERSION)) => {}
        // The first versions had no number.
        None if whole.get("DriverName").is_some() => return Err(earlier(&path, 0)),
        Some(Some(version)) if version < VERSION => return Err(earlier(&path, version)),
        Some(Some(version)) => {
            return Err(failed(Kind::Invalid)
                .because(format!("it has version {version} of docker-machine's format, whose last one known here is {VERSION}")));
        }
        _ => return Err(failed(Kind::Corrupt).because("it names no version of its format")),
    }
    let driver = text_of(&whole, "DriverName").ok_or_else(|| {
        failed(Kind::Corrupt).because("it does not say which driver made the machine")
    })?;
    let Some(Value::Object(fields)) = whole.get_mut("Driver").map(Value::take) else {
        return Err(failed(Kind::Corrupt).because("it has no `Driver`"));
    };
    understood(root, folder, driver, fields, &whole["HostOptions"])
        .map_err(|error| failed(error.kind()).because(error.line()))
}

fn earlier(path: &Path, version: u64) -> Error {
    Error::new(
        Kind::Invalid,
        format!(
            "`{}` has version {version} of docker-machine's format, and version {VERSION} is imported",
            path.display()
        ),
    )
    .hint("docker-machine 0.16 writes it anew when it is asked for the machine, as by `docker-machine inspect`")
}

fn understood(
    root: &Path,
    folder: &Path,
    driver: String,
    mut fields: Map<String, Value>,
    options: &Value,
) -> Result<Foreign> {
    let word = |name: &str| {
        let word = fields.get(name).and_then(Value::as_str).unwrap_or_default();
        word.trim().to_owned()
    };
    let port = |name: &str, usual: u16| match fields.get(name).and_then(Value::as_u64) {
        None | Some(0) => Ok(usual),
        Some(port) => u16::try_from(port).map_err(|_| {
            Error::new(
                Kind::Corrupt,
                format!("`{name}` is {port}, which is no port"),
            )
        }),
    };
    let address = word("IPAddress");
    let entered = port("SSHPort", SSH_PORT)?;
    let (ssh, engine) = match driver.as_str() {
        "none" => (None, tcp(&word("URL"))?),
        // SSH comes in through a port of this host (drivers/virtualbox/virtualbox.go, `GetSSHHostname`). The engine's
        // address is that of an interface whose server gives it anew.
        "virtualbox" => (
            Some(("127.0.0.1".to_owned(), entered)),
            (address, ENGINE_PORT),
        ),
        _ if address.is_empty() => {
            return Err(Error::new(
                Kind::Unavailable,
                "it holds no address of the machine: docker-machine learns it when the machine is started",
            ));
        }
        _ => {
            let engine = port("EnginePort", ENGINE_PORT)?;
            (Some((address.clone(), entered)), (address, engine))
        }
    };
    let user = Some(word("SSHUser")).filter(|user| !user.is_empty());
    let key = key(folder, &word("SSHKeyPath"));
    let mut secrets = secrets::take_out(&driver, &mut fields);
    let mut engine_told = options["EngineOptions"].clone();
    secrets.extend(secrets::take_out_of_engine(&mut engine_told));
    fields.retain(|name, value| !OF_ALL.contains(&name.as_str()) && !is_path(value));
    Ok(Foreign {
        ssh,
        engine,
        user: user.unwrap_or_else(|| "root".to_owned()),
        key,
        client: client(root, folder),
        server: ["server.pem", "server-key.pem"].map(|name| folder.join(name)),
        engine_options: engine_options(&engine_told),
        sans: words(&options["AuthOptions"]["ServerCertSANs"]),
        driver,
        fields,
        secrets,
    })
}

/// The address of an engine that was given as a URL.
fn tcp(url: &str) -> Result<(String, u16)> {
    let wrong = || {
        Error::new(
            Kind::Invalid,
            format!("its URL `{url}` is not `tcp://HOST:PORT`"),
        )
    };
    let rest = url.strip_prefix("tcp://").ok_or_else(wrong)?;
    let (host, port) = rest
        .trim_end_matches('/')
        .rsplit_once(':')
        .ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() || host.contains(['/', '@']) {
        return Err(wrong());
    }
    Ok((host.to_owned(), port.parse().map_err(|_| wrong())?))
}

/// The key beside the configuration, else the one that it names, wherever the store was moved to.
fn key(folder: &Path, named: &str) -> Option<PathBuf> {
    let beside = folder.join("id_rsa");
    let elsewhere = Path::new(named);
    if beside.is_file() {
        return Some(beside);
    }
    let same = elsewhere.file_name().map(|name| folder.join(name));
    [same, Some(elsewhere.to_owned())]
        .into_iter()
        .flatten()
        .find(|path| !path.as_os_str().is_empty() && path.is_file())
}

/// The client's files: the machine's own, else those of its store, of which they are copies.
fn client(root: &Path, folder: &Path) -> [PathBuf; 3] {
    let names = ["ca.pem", "cert.pem", "key.pem"];
    let own = names.map(|name| folder.join(name));
    if own.iter().all(|path| path.is_file()) {
        return own;
    }
    names.map(|name| root.join("certs").join(name))
}

fn engine_options(options: &Value) -> EngineOptions {
    let url = text_of(options, "InstallURL");
    EngineOptions {
        opts: words(&options["ArbitraryFlags"]),
        env: words(&options["Env"]),
        labels: words(&options["Labels"]),
        insecure_registries: words(&options["InsecureRegistry"]),
        mirrors: words(&options["RegistryMirror"]),
        storage_driver: text_of(options, "StorageDriver"),
        // What everybody had who said nothing (commands/create.go, `--engine-install-url`).
        install: match url.as_deref() {
            None | Some("https://get.docker.com") => Install::Distribution,
            Some("none") => Install::None,
            Some(url) => Install::Url(url.to_owned()),
        },
    }
}

/// A list of words; `null`, which Go writes for an empty one, is none.
fn words(value: &Value) -> Vec<String> {
    let all = value.as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter()
        .filter_map(|word| word.as_str().map(str::to_owned))
        .collect()
}

fn text_of(value: &Value, name: &str) -> Option<String> {
    let text = value.get(name)?.as_str()?;
    (!text.is_empty()).then(|| text.to_owned())
}

/// Whether a value is a path of the computer that docker-machine ran on: no record holds one.
fn is_path(value: &Value) -> bool {
    value
        .as_str()
        .is_some_and(|text| text.starts_with('/') || text.contains(":\\"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn in_a_store(config: &Value) -> (tempfile::TempDir, Result<Foreign>) {
        let root = tempfile::tempdir().expect("folder");
        let folder = root.path().join("machines/n1");
        fs::create_dir_all(&folder).expect("mkdir");
        fs::write(folder.join("config.json"), config.to_string()).expect("write");
        fs::write(folder.join("id_rsa"), "a key").expect("write");
        let read = read(root.path(), &folder);
        (root, read)
    }

    fn config(driver: &str, fields: &Value) -> Value {
        json!({"ConfigVersion": 3, "DriverName": driver, "Name": "n1", "Driver": fields,
            "HostOptions": {"EngineOptions": {"Labels": ["a=b"], "Env": null, "InstallURL": "https://get.docker.com"},
                "AuthOptions": {"ServerCertSANs": ["x.example"]}}})
    }

    fn parsed(driver: &str, fields: &Value) -> Foreign {
        in_a_store(&config(driver, fields)).1.expect(driver)
    }

    #[test]
    fn a_machine_leads_to_its_address() {
        let found = parsed(
            "digitalocean",
            &json!({"IPAddress": "192.0.2.7", "SSHUser": "core", "SSHPort": 2222, "AccessToken": "t0k3n",
                "StorePath": "/old", "SSHKeyPath": "/old/machines/n1/id_rsa", "UserDataFile": "/old/x", "Region": "nyc3"}),
        );
        assert_eq!(found.ssh, Some(("192.0.2.7".to_owned(), 2222)));
        assert_eq!(found.engine, ("192.0.2.7".to_owned(), 2376));
        assert_eq!(found.user, "core");
        assert!(found.key.expect("a key").ends_with("machines/n1/id_rsa"));
        assert_eq!(Value::Object(found.fields), json!({"Region": "nyc3"}));
        assert_eq!(found.secrets.len(), 1);
        assert_eq!(found.engine_options.labels, ["a=b"]);
        assert_eq!(found.engine_options.install, Install::Distribution);
        assert_eq!(found.sans, ["x.example"]);
    }

    #[test]
    fn drivers_differ_in_where_their_machines_are() {
        let generic = parsed(
            "generic",
            &json!({"IPAddress": "h.example", "SSHPort": 0, "EnginePort": 2377, "SSHUser": ""}),
        );
        assert_eq!(generic.ssh, Some(("h.example".to_owned(), 22)));
        assert_eq!(generic.engine, ("h.example".to_owned(), 2377));
        assert_eq!(generic.user, "root");
        let none = parsed("none", &json!({"URL": "tcp://192.0.2.8:2375"}));
        assert_eq!(
            (none.ssh, none.engine),
            (None, ("192.0.2.8".to_owned(), 2375))
        );
        let off = parsed("virtualbox", &json!({"IPAddress": "", "SSHPort": 35719}));
        assert_eq!(off.ssh, Some(("127.0.0.1".to_owned(), 35719)));
        assert_eq!(off.engine, (String::new(), 2376));
    }

    #[test]
    fn what_cannot_be_imported_is_told_apart() {
        let cases = [
            (
                json!({"ConfigVersion": 1, "DriverName": "generic"}),
                Kind::Invalid,
                "version 1",
            ),
            (json!({"DriverName": "generic"}), Kind::Invalid, "version 0"),
            (json!({"ConfigVersion": 4}), Kind::Invalid, "version 4"),
            (json!({"ConfigVersion": "x"}), Kind::Corrupt, "no version"),
            (json!([]), Kind::Corrupt, "no version"),
            (json!({"ConfigVersion": 3}), Kind::Corrupt, "which driver"),
            (
                json!({"ConfigVersion": 3, "DriverName": "x"}),
                Kind::Corrupt,
                "no `Driver`",
            ),
            (
                config("digitalocean", &json!({"IPAddress": ""})),
                Kind::Unavailable,
                "no address",
            ),
            (
                config("none", &json!({"URL": "unix:///var/run/docker.sock"})),
                Kind::Invalid,
                "tcp://HOST:PORT",
            ),
            (
                config("generic", &json!({"IPAddress": "h", "SSHPort": 70000})),
                Kind::Corrupt,
                "no port",
            ),
        ];
        for (config, kind, why) in cases {
            let error = in_a_store(&config).1.expect_err(why);
            assert_eq!(error.kind(), kind, "{config}");
            assert!(error.line().contains(why), "{}", error.line());
        }
        let (root, _) = in_a_store(&json!({}));
        let folder = root.path().join("machines/n1");
        fs::write(folder.join("config.json"), "{\"ConfigVersion\": 3,").expect("write");
        assert_eq!(
            read(root.path(), &folder).expect_err("cut off").kind(),
            Kind::Corrupt
        );
    }
}
