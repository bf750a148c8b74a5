//! Stores as docker-machine left them behind, made here, and what their machines are: an engine that answers over TLS, a real
//! OpenSSH server.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Child;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

use super::engine::{answer, config};
use super::openssh::{fingerprint, key, key_with, serve, user};

/// A store of docker-machine's, with an authority of its own.
pub struct OldStore {
    /// Where it lies.
    pub root: PathBuf,
    ca: (String, String),
    client: (String, String),
}

impl OldStore {
    /// One without machines.
    pub fn at(root: &Path) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).expect("a CA").pem();
        let store = Self {
            root: root.to_owned(),
            client: issue(
                &ca,
                &key.serialize_pem(),
                &[],
                ExtendedKeyUsagePurpose::ClientAuth,
                0,
            ),
            ca: (ca, key.serialize_pem()),
        };
        for (name, text) in [
            ("ca.pem", &store.ca.0),
            ("ca-key.pem", &store.ca.1),
            ("cert.pem", &store.client.0),
            ("key.pem", &store.client.1),
        ] {
            store.put(&format!("certs/{name}"), text);
        }
        store
    }

    /// Writes a file of it.
    pub fn put(&self, path: &str, text: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("mkdir");
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
    }

    /// A certificate for an engine that answers to `names`. It began `age` days ago, and ended when that is more than it
    /// lives.
    pub fn issue(&self, names: &[&str], age: i64) -> Issued {
        let usage = ExtendedKeyUsagePurpose::ServerAuth;
        Issued {
            ca: self.ca.0.clone(),
            server: issue(&self.ca.0, &self.ca.1, names, usage, age),
        }
    }

    /// A machine whose engine has a certificate of its own, as by [`OldStore::issue`].
    pub fn machine(
        &self,
        name: &str,
        driver: &str,
        fields: &Value,
        names: &[&str],
        age: i64,
    ) -> Issued {
        let issued = self.issue(names, age);
        self.machine_with(name, driver, fields, &issued);
        issued
    }

    /// A machine in the shape of docker-machine 0.16, whose engine has this certificate.
    pub fn machine_with(&self, name: &str, driver: &str, fields: &Value, issued: &Issued) {
        let folder = self.root.join("machines").join(name);
        let at = |path: &str| self.root.join(path).display().to_string();
        let mut whole = json!({
            "IPAddress": "", "MachineName": name, "SSHUser": user(), "SSHPort": 22,
            "SSHKeyPath": folder.join("id_rsa"), "StorePath": self.root, "SwarmMaster": false,
            "SwarmHost": "tcp://0.0.0.0:3376", "SwarmDiscovery": "",
        });
        for (field, value) in fields.as_object().expect("fields") {
            whole[field] = value.clone();
        }
        let config = json!({
            "ConfigVersion": 3,
            "Driver": whole,
            "DriverName": driver,
            "HostOptions": {
                "Driver": "", "Memory": 0, "Disk": 0,
                "EngineOptions": {
                    "ArbitraryFlags": [], "Dns": null, "GraphDir": "", "Env": [], "Ipv6": false,
                    "InsecureRegistry": [], "Labels": [format!("made={driver}")], "LogLevel": "", "StorageDriver": "",
                    "SelinuxEnabled": false, "TlsVerify": true, "RegistryMirror": [],
                    "InstallURL": "https://get.docker.com",
                },
                "SwarmOptions": {
                    "IsSwarm": false, "Address": "", "Discovery": "", "Agent": false, "Master": false,
                    "Host": "tcp://0.0.0.0:3376", "Image": "swarm:latest", "Strategy": "spread", "Heartbeat": 0,
                    "Overcommit": 0, "ArbitraryFlags": [], "ArbitraryJoinFlags": [], "Env": null, "IsExperimental": false,
                },
                "AuthOptions": {
                    "CertDir": at("certs"), "CaCertPath": at("certs/ca.pem"), "CaPrivateKeyPath": at("certs/ca-key.pem"),
                    "CaCertRemotePath": "", "ServerCertPath": folder.join("server.pem"),
                    "ServerKeyPath": folder.join("server-key.pem"), "ClientKeyPath": at("certs/key.pem"),
                    "ServerCertRemotePath": "", "ServerKeyRemotePath": "", "ClientCertPath": at("certs/cert.pem"),
                    "ServerCertSANs": [], "StorePath": folder,
                },
            },
            "Name": name,
        });
        let text = serde_json::to_string_pretty(&config).expect("JSON");
        for (file, text) in [
            ("config.json", &text),
            ("ca.pem", &self.ca.0),
            ("cert.pem", &self.client.0),
            ("key.pem", &self.client.1),
            ("server.pem", &issued.server.0),
            ("server-key.pem", &issued.server.1),
        ] {
            self.put(&format!("machines/{name}/{file}"), text);
        }
    }

    /// So many machines, `m0` and on, whose even ones answer: at 127.98.0.0/16, all by the one certificate that is
    /// returned; the others are at 127.99.0.0/16. There are some of every kind: hosts with SSH, and mere addresses.
    pub fn many(&self, machines: usize) -> Issued {
        let host = |number: usize| {
            let net = if number.is_multiple_of(2) { 98 } else { 99 };
            format!("127.{net}.{}.{}", number / 200, number % 200 + 1)
        };
        let names: Vec<String> = (0..machines).step_by(2).map(host).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let issued = self.issue(&names, 10);
        for number in 0..machines {
            let at = host(number);
            let (driver, fields) = if number.is_multiple_of(3) {
                ("none", json!({"URL": format!("tcp://{at}:2376")}))
            } else {
                ("generic", json!({"IPAddress": at}))
            };
            self.machine_with(&format!("m{number}"), driver, &fields, &issued);
        }
        issued
    }

    /// The key of a machine, as docker-machine made it, and its public half.
    pub fn key(&self, name: &str) -> String {
        let path = self.root.join("machines").join(name).join("id_rsa");
        key_with(&path, "rsa", &["-N", "", "-m", "PEM"]);
        let text = fs::read_to_string(&path).expect("the key");
        assert!(
            text.starts_with("-----BEGIN RSA PRIVATE KEY-----"),
            "{text}"
        );
        fs::read_to_string(path.with_extension("pub")).expect("its public half")
    }
}

/// What an engine is started with.
pub struct Issued {
    ca: String,
    server: (String, String),
}

fn issue(
    ca: &str,
    ca_key: &str,
    names: &[&str],
    usage: ExtendedKeyUsagePurpose,
    age: i64,
) -> (String, String) {
    let issuer = KeyPair::from_pem(ca_key).expect("the CA's key");
    let issuer = Issuer::from_ca_cert_pem(ca, issuer).expect("the CA");
    let key = KeyPair::generate().expect("a key");
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.extended_key_usages = vec![usage];
    let begun =
        time::OffsetDateTime::from(std::time::SystemTime::now()) - time::Duration::days(age + 1);
    params.not_before = begun;
    // As long as docker-machine's lived (libmachine/cert/bootstrap.go).
    params.not_after = begun + time::Duration::days(1080);
    let certificate = params.signed_by(&key, &issuer).expect("signed");
    (certificate.pem(), key.serialize_pem())
}

/// An engine that lets in who shows a certificate of its CA. It ends with the test.
pub fn engine(at: SocketAddr, issued: &Issued) {
    let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
    let key = PrivateKeyDer::from_pem_slice(issued.server.1.as_bytes()).expect("a key");
    let config =
        config(certificate(&issued.ca), certificate(&issued.server.0), key).expect("they fit");
    let listener = TcpListener::bind(at).expect("a port");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let config = config.clone();
            std::thread::spawn(move || answer(config, stream));
        }
    });
}

/// An OpenSSH server that lets one key in.
pub struct Sshd {
    _folder: tempfile::TempDir,
    child: Child,
    /// The fingerprint of its host key.
    pub fingerprint: String,
}

impl Sshd {
    /// Starts it and waits until it listens.
    pub fn start(at: SocketAddr, authorized: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let host = folder.path().join("host");
        key(&host, "ed25519", "");
        fs::write(folder.path().join("authorized_keys"), authorized).expect("written");
        Self {
            child: serve(folder.path(), at, ""),
            fingerprint: fingerprint(&host),
            _folder: folder,
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
