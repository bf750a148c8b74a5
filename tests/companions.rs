//! What lies beside a machine's record for other programs follows from the record alone, wherever the store is.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::Lab;
use serde_json::Value;

/// Where a file of machine `n1` is.
fn file(lab: &Lab, name: &str) -> PathBuf {
    lab.home.join("machines/n1").join(name)
}

fn read(lab: &Lab, name: &str) -> String {
    fs::read_to_string(file(lab, name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn config(lab: &Lab) -> Value {
    serde_json::from_str(&read(lab, "config.json")).expect("JSON")
}

fn made() -> Lab {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    lab
}

/// docker-machine's, with the values that forge has for them.
const CONFIG: &str = r#"{
    "ConfigVersion": 3,
    "Driver": {
        "IPAddress": "ADDRESS",
        "MachineName": "n1",
        "SSHUser": "forge",
        "SSHPort": PORT,
        "SSHKeyPath": "HOME/machines/n1/id_rsa",
        "StorePath": "HOME",
        "SwarmMaster": false,
        "SwarmHost": "tcp://0.0.0.0:3376",
        "SwarmDiscovery": "",
        "EnginePort": 2376,
        "PrivateIPAddress": "PRIVATE"
    },
    "DriverName": "fake",
    "HostOptions": {
        "Driver": "",
        "Memory": 0,
        "Disk": 0,
        "EngineOptions": {
            "ArbitraryFlags": [],
            "Dns": [],
            "GraphDir": "",
            "Env": [],
            "Ipv6": false,
            "InsecureRegistry": [],
            "Labels": [],
            "LogLevel": "",
            "StorageDriver": "",
            "SelinuxEnabled": false,
            "TlsVerify": true,
            "RegistryMirror": [],
            "InstallURL": ""
        },
        "SwarmOptions": {
            "IsSwarm": false,
            "Address": "",
            "Discovery": "",
            "Agent": false,
            "Master": false,
            "Host": "tcp://0.0.0.0:3376",
            "Image": "swarm:latest",
            "Strategy": "spread",
            "Heartbeat": 0,
            "Overcommit": 0,
            "ArbitraryFlags": [],
            "ArbitraryJoinFlags": [],
            "Env": [],
            "IsExperimental": false
        },
        "AuthOptions": {
            "CertDir": "HOME/certs",
            "CaCertPath": "HOME/certs/ca.pem",
            "CaPrivateKeyPath": "HOME/certs/ca-key.pem",
            "CaCertRemotePath": "",
            "ServerCertPath": "HOME/machines/n1/server.pem",
            "ServerKeyPath": "HOME/machines/n1/server-key.pem",
            "ClientKeyPath": "HOME/certs/key.pem",
            "ServerCertRemotePath": "",
            "ServerKeyRemotePath": "",
            "ClientCertPath": "HOME/certs/cert.pem",
            "ServerCertSANs": [],
            "StorePath": "HOME/machines/n1"
        }
    },
    "Name": "n1"
}
"#;

#[test]
fn a_machine_has_what_docker_machine_had() {
    let lab = made();
    let record = lab.record("n1");
    let endpoint = |name: &str| -> std::net::SocketAddr {
        let text = record["instance"]["endpoints"][name].as_str();
        text.expect("an endpoint").parse().expect("an address")
    };
    let golden = CONFIG
        .replace("ADDRESS", &lab.address("n1"))
        .replace("PORT", &endpoint("ssh").port().to_string())
        .replace(
            "PRIVATE",
            record["placement"]["nic"]["address"].as_str().expect("one"),
        )
        .replace("HOME", &lab.home.display().to_string());
    assert_eq!(read(&lab, "config.json"), golden);
    assert_eq!(read(&lab, "id_rsa"), read(&lab, "id_ed25519"));
    assert_eq!(read(&lab, "id_rsa.pub"), read(&lab, "id_ed25519.pub"));
    let own = record["ssh"]["own_host_key"].as_str().expect("a key");
    let known = read(&lab, "known_hosts");
    assert!(
        known.contains(&lab.address("n1")) && known.ends_with(&format!(" {own}\n")),
        "{known}"
    );
    assert_eq!(known.lines().count(), 1, "the first key is gone: {known}");
    for (name, mode) in [
        ("config.json", 0o600),
        ("id_rsa", 0o600),
        ("id_rsa.pub", 0o644),
        ("known_hosts", 0o600),
    ] {
        let found = fs::metadata(file(&lab, name)).expect(name).permissions();
        assert_eq!(found.mode() & 0o7777, mode, "{name}");
    }
    assert!(!read(&lab, "config.json").contains("PRIVATE KEY"));
}

#[test]
fn companions_are_never_read() {
    let lab = made();
    let commands = [
        "ls",
        "ip n1",
        "url n1",
        "inspect n1",
        "ssh-config n1",
        "env n1",
    ];
    let said = commands.map(|words| lab.forge(words).ok().stdout);
    for name in ["config.json", "id_rsa", "id_rsa.pub"] {
        fs::write(file(&lab, name), "{\"ConfigVersion\": 3, ").expect("damaged");
    }
    assert_eq!(commands.map(|words| lab.forge(words).ok().stdout), said);
    lab.forge("provision n1").ok();
    for name in ["config.json", "id_rsa", "id_rsa.pub"] {
        fs::remove_file(file(&lab, name)).expect("removed");
    }
    assert_eq!(commands.map(|words| lab.forge(words).ok().stdout), said);
    // They come back with the next save.
    lab.forge("publish n1 18080").ok();
    assert_eq!(config(&lab)["Name"], "n1");
    assert_eq!(read(&lab, "id_rsa"), read(&lab, "id_ed25519"));
}

#[test]
fn a_store_that_was_moved_has_its_new_paths_with_the_next_changing_command() {
    let mut lab = made();
    let (old, new) = (lab.home.clone(), lab.folder().join("elsewhere"));
    fs::rename(&old, &new).expect("moved");
    lab.home = new.clone();
    let at = |path: &Path| path.display().to_string();
    // Who only asks changes nothing.
    lab.forge("env n1").ok();
    assert_eq!(config(&lab)["Driver"]["StorePath"], at(&old));
    // Another machine's command is a changing one, too.
    lab.forge("create n2").ok();
    let text = read(&lab, "config.json");
    assert!(!text.contains(&at(&old)), "{text}");
    assert_eq!(config(&lab)["Driver"]["StorePath"], at(&new));
    assert_eq!(
        config(&lab)["Driver"]["SSHKeyPath"],
        at(&new.join("machines/n1/id_rsa"))
    );
    // Once is enough.
    fs::remove_file(file(&lab, "config.json")).expect("removed");
    lab.forge("stop n2").ok();
    assert!(!file(&lab, "config.json").exists());
    // Nothing that forge goes by holds a path of the store.
    for (path, bytes) in lab.files() {
        let text = String::from_utf8_lossy(&bytes);
        let inside = [&old, &new].iter().any(|home| text.contains(&at(home)));
        let name = path.file_name().expect("a name").to_string_lossy();
        let logged = path.parent().is_some_and(|folder| folder.ends_with("logs"));
        assert!(
            !inside || name == "config.json" || logged,
            "{}",
            path.display()
        );
    }
}

#[test]
fn machines_of_an_earlier_forge_get_companions_with_the_first_changing_command() {
    let lab = made();
    let mut record = lab.record("n1");
    let fields = record.as_object_mut().expect("a record");
    fields.insert("format".into(), 1.into());
    for name in ["engine", "sans"] {
        fields.remove(name).expect(name);
    }
    let ssh = fields["ssh"].as_object_mut().expect("an object");
    ssh.remove("key").expect("a key");
    let before = record.to_string();
    fs::write(file(&lab, "machine.json"), &before).expect("as it was");
    for name in ["config.json", "id_rsa", "id_rsa.pub", "known_hosts"] {
        fs::remove_file(file(&lab, name)).expect(name);
    }
    fs::remove_file(lab.home.join("companions.root")).expect("removed");

    for words in ["ls", "env n1", "inspect n1"] {
        lab.forge(words).ok();
    }
    assert_eq!(read(&lab, "machine.json"), before, "reading writes nothing");
    lab.forge("create n2").ok();
    assert_eq!(lab.record("n1")["format"], 2);
    assert_eq!(lab.record("n1")["ssh"]["key"], "id_ed25519");
    assert_eq!(config(&lab)["Driver"]["IPAddress"], lab.address("n1"));
    assert!(file(&lab, "known_hosts").exists());
    lab.forge("provision n1").ok();
}

#[test]
fn a_record_that_cannot_be_read_keeps_no_other_machine_from_its_companions() {
    let lab = made();
    lab.forge("create n2").ok();
    let damaged = lab.home.join("machines/n2/machine.json");
    fs::write(&damaged, "{").expect("damaged");
    // A copy by hand: what lies in it is another machine's.
    let copy = lab.home.join("machines/n3");
    fs::create_dir(&copy).expect("mkdir");
    fs::copy(file(&lab, "machine.json"), copy.join("machine.json")).expect("copied");
    fs::remove_file(lab.home.join("companions.root")).expect("removed");
    fs::remove_file(file(&lab, "config.json")).expect("removed");
    let before = read(&lab, "machine.json");
    lab.forge("stop n1").ok();
    assert_eq!(config(&lab)["Name"], "n1");
    assert_eq!(read(&lab, "machine.json"), before);
    assert_eq!(fs::read_to_string(&damaged).expect("read"), "{");
    assert!(!copy.join("config.json").exists());
    assert!(lab.home.join("companions.root").exists());
}

#[test]
fn a_machine_whose_key_is_lost_is_removed_all_the_same() {
    let lab = made();
    fs::remove_file(file(&lab, "id_ed25519")).expect("removed");
    fs::remove_file(file(&lab, "id_rsa")).expect("removed");
    lab.forge("publish n1 18080").ok();
    assert!(!file(&lab, "id_rsa").exists(), "there is nothing to copy");
    lab.forge("rm -y n1").ok();
    lab.provider_is_empty("after the removal");
    assert!(!lab.home.join("machines/n1").exists());
}
