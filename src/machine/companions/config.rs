//! `config.json`, as docker-machine had it: version 3 of its shape.
//!
//! Names and their order are those of docker/machine at b170508: `Host` and `Options` in libmachine/host/host.go,
//! `BaseDriver` in libmachine/drivers/base.go, and the `Options` of libmachine/engine, libmachine/swarm and
//! libmachine/auth.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::engine_options::{EngineOptions, Install};
use crate::machine::Record;
use crate::store::Store;

use super::ID_RSA;

/// What docker-machine would have written of this machine. It holds no secret, no list in it is `null`, and its paths are
/// those of the store where it is now.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Config {
    config_version: u32,
    driver: Driver,
    driver_name: String,
    host_options: HostOptions,
    name: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Driver {
    #[serde(rename = "IPAddress")]
    ip_address: String,
    machine_name: String,
    #[serde(rename = "SSHUser")]
    ssh_user: String,
    #[serde(rename = "SSHPort")]
    ssh_port: u16,
    #[serde(rename = "SSHKeyPath")]
    ssh_key_path: String,
    store_path: String,
    swarm_master: bool,
    swarm_host: &'static str,
    swarm_discovery: &'static str,
    /// What scripts read of single drivers.
    #[serde(flatten)]
    own: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct HostOptions {
    driver: &'static str,
    memory: u64,
    disk: u64,
    engine_options: Engine,
    swarm_options: Swarm,
    auth_options: Auth,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Engine {
    arbitrary_flags: Vec<String>,
    dns: Vec<String>,
    graph_dir: &'static str,
    env: Vec<String>,
    ipv6: bool,
    insecure_registry: Vec<String>,
    labels: Vec<String>,
    log_level: &'static str,
    storage_driver: String,
    selinux_enabled: bool,
    tls_verify: bool,
    registry_mirror: Vec<String>,
    #[serde(rename = "InstallURL")]
    install_url: String,
}

/// The swarm before swarm mode, which no machine of forge's is in.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Swarm {
    is_swarm: bool,
    address: &'static str,
    discovery: &'static str,
    agent: bool,
    master: bool,
    host: &'static str,
    image: &'static str,
    strategy: &'static str,
    heartbeat: u64,
    overcommit: u64,
    arbitrary_flags: Vec<String>,
    arbitrary_join_flags: Vec<String>,
    env: Vec<String>,
    is_experimental: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Auth {
    cert_dir: String,
    ca_cert_path: String,
    ca_private_key_path: String,
    ca_cert_remote_path: &'static str,
    server_cert_path: String,
    server_key_path: String,
    client_key_path: String,
    server_cert_remote_path: &'static str,
    server_key_remote_path: &'static str,
    client_cert_path: String,
    #[serde(rename = "ServerCertSANs")]
    server_cert_sans: Vec<String>,
    store_path: String,
}

/// What `--swarm-host` was when nobody said anything.
const SWARM_HOST: &str = "tcp://0.0.0.0:3376";

impl Config {
    /// What follows from the record, in this store.
    pub fn of(record: &Record, store: &Store) -> Self {
        let (certs, folder) = (store.certs_dir(), store.machine_dir(&record.name));
        let endpoints = record.endpoints().ok();
        let at = |path: &Path| path.display().to_string();
        Self {
            config_version: 3,
            driver: Driver {
                ip_address: endpoints
                    .as_ref()
                    .map(|endpoints| endpoints.engine.ip().to_string())
                    .unwrap_or_default(),
                machine_name: record.name.clone(),
                ssh_user: record.ssh.user.clone(),
                ssh_port: endpoints
                    .as_ref()
                    .map_or(forge_driver::SSH_PORT, |endpoints| endpoints.ssh.port()),
                ssh_key_path: at(&folder.join(ID_RSA)),
                store_path: at(store.root()),
                swarm_master: false,
                swarm_host: SWARM_HOST,
                swarm_discovery: "",
                own: own(record),
            },
            driver_name: record.made_by().to_owned(),
            host_options: HostOptions {
                driver: "",
                memory: 0,
                disk: 0,
                engine_options: engine(&record.engine),
                swarm_options: swarm(),
                auth_options: Auth {
                    cert_dir: at(&certs),
                    ca_cert_path: at(&certs.join("ca.pem")),
                    ca_private_key_path: at(&certs.join("ca-key.pem")),
                    ca_cert_remote_path: "",
                    server_cert_path: at(&folder.join("server.pem")),
                    server_key_path: at(&folder.join("server-key.pem")),
                    client_key_path: at(&certs.join("key.pem")),
                    server_cert_remote_path: "",
                    server_key_remote_path: "",
                    client_cert_path: at(&certs.join("cert.pem")),
                    server_cert_sans: record.sans.clone(),
                    store_path: at(&folder),
                },
            },
            name: record.name.clone(),
        }
    }

    /// The text of the file: indented by four blanks, as docker-machine did it.
    pub(super) fn text(&self) -> serde_json::Result<Vec<u8>> {
        let mut text = Vec::new();
        let indented = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        let mut writer = serde_json::Serializer::with_formatter(&mut text, indented);
        self.serialize(&mut writer)?;
        text.push(b'\n');
        Ok(text)
    }
}

/// The fields of single drivers that scripts read, as far as this machine has them: named one by one, so that
/// nothing else of a configuration gets out.
fn own(record: &Record) -> Map<String, Value> {
    let mut own = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            own.insert(name.to_owned(), value);
        }
    };
    let config = |name: &str| record.config.get(name);
    put("CPU", config("cpus").cloned());
    put("Memory", config("memory_mib").cloned());
    // In MiB, as `--virtualbox-disk-size` was.
    let disk = config("disk_bytes").and_then(Value::as_u64);
    put("DiskSize", disk.map(|bytes| (bytes >> 20).into()));
    put("HostOnlyCIDR", host_only(&record.config).map(Value::from));
    let private = record.address().map(|address| address.to_string());
    put("PrivateIPAddress", private.map(Value::from));
    // Of the driver `none`.
    put("URL", config("url").cloned());
    let engine = record.endpoints().ok().map(|at| at.engine.port());
    put("EnginePort", engine.map(Value::from));
    own
}

/// This host's address on a host-only network of VirtualBox's, and its prefix, as `--virtualbox-hostonly-cidr`
/// was given.
fn host_only(config: &Value) -> Option<String> {
    let lan = config.get("lan").filter(|lan| lan["kind"] == "host-only")?;
    let (_, prefix) = lan["cidr"].as_str()?.split_once('/')?;
    Some(format!("{}/{prefix}", lan["host"].as_str()?))
}

fn engine(options: &EngineOptions) -> Engine {
    Engine {
        arbitrary_flags: options.opts.clone(),
        dns: Vec::new(),
        graph_dir: "",
        env: options.env.clone(),
        ipv6: false,
        insecure_registry: options.insecure_registries.clone(),
        labels: options.labels.clone(),
        log_level: "",
        storage_driver: options.storage_driver.clone().unwrap_or_default(),
        selinux_enabled: false,
        tls_verify: true,
        registry_mirror: options.mirrors.clone(),
        install_url: match &options.install {
            Install::Url(url) => url.clone(),
            Install::None => "none".to_owned(),
            Install::Distribution | Install::Packages(_) => String::new(),
        },
    }
}

fn swarm() -> Swarm {
    Swarm {
        is_swarm: false,
        address: "",
        discovery: "",
        agent: false,
        master: false,
        host: SWARM_HOST,
        image: "swarm:latest",
        strategy: "spread",
        heartbeat: 0,
        overcommit: 0,
        arbitrary_flags: Vec::new(),
        arbitrary_join_flags: Vec::new(),
        env: Vec::new(),
        is_experimental: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_host_only_network_is_shown_as_it_was_given() {
        let lan = json!({"lan": {"kind": "host-only", "host": "192.168.60.1", "cidr": "192.168.60.0/24", "dhcp": true}});
        assert_eq!(host_only(&lan).as_deref(), Some("192.168.60.1/24"));
        let internal = json!({"lan": {"kind": "internal", "name": null, "cidr": "10.133.7.0/24"}});
        for config in [internal, json!({}), Value::Null] {
            assert_eq!(host_only(&config), None, "{config}");
        }
    }

    #[test]
    fn the_engine_of_others_is_shown_in_their_words() {
        let shown = |install| {
            engine(&EngineOptions {
                install,
                ..EngineOptions::default()
            })
            .install_url
        };
        assert_eq!(shown(Install::Url("https://x/y".into())), "https://x/y");
        assert_eq!(shown(Install::None), "none");
        assert_eq!(shown(Install::Packages(vec!["docker-ce".into()])), "");
        let options = EngineOptions {
            labels: vec!["a=b".into()],
            storage_driver: Some("overlay2".into()),
            ..EngineOptions::default()
        };
        let json = serde_json::to_value(engine(&options)).expect("JSON");
        assert_eq!(json["Labels"], json!(["a=b"]));
        assert_eq!(json["StorageDriver"], "overlay2");
        assert_eq!(json["Dns"], json!([]));
    }
}
