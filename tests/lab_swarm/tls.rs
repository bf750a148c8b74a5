//! The engine's port: who may enter, and what the certificate names.

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use forge_lab::{Store, text};

use crate::{NODES, curl};

pub fn tls(store: &Store, other: &Store) {
    // Somebody else's certificate, as another store would have one.
    let foreign = other.home().join("certs");
    make_authority(&foreign);
    for node in NODES {
        let variables = store.json(&["env", node]);
        let address = store.ip(node);
        let host = text(&variables["DOCKER_HOST"]);
        assert_eq!(host, format!("tcp://{address}:2376"));
        let url = format!("https://{address}:2376/version");
        let folder = PathBuf::from(text(&variables["DOCKER_CERT_PATH"]));
        let mode = folder
            .join("key.pem")
            .metadata()
            .expect("a key")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let file = |folder: &Path, name: &str| folder.join(name).display().to_string();
        let (ca, cert, key) = (
            file(&folder, "ca.pem"),
            file(&folder, "cert.pem"),
            file(&folder, "key.pem"),
        );
        let version = curl(&["--cacert", &ca, "--cert", &cert, "--key", &key, &url]).ok();
        assert_eq!(version.json()["Os"], "linux", "{version}");
        let without = curl(&["--cacert", &ca, &url]);
        assert_ne!(without.code, 0, "no certificate is no entry: {without}");
        let strange = curl(&[
            "--cacert",
            &ca,
            "--cert",
            &file(&foreign, "cert.pem"),
            "--key",
            &file(&foreign, "key.pem"),
            &url,
        ]);
        assert_ne!(
            strange.code, 0,
            "another store's certificate is no entry: {strange}"
        );
        // The certificate that is shown, not the one that was recorded.
        let shown = curl(&[
            "-k",
            "-o",
            "/dev/null",
            "-w",
            "%{certs}",
            "--cert",
            &cert,
            "--key",
            &key,
            &url,
        ])
        .ok();
        let names = names_in(shown.text().as_bytes());
        assert!(
            names.contains(&address)
                && names.contains(&store.inner_ip(node))
                && names.contains(&node.to_owned()),
            "{names:?}"
        );
        assert!(
            !names.contains(&"127.0.0.1".to_owned()) && !names.contains(&"localhost".to_owned()),
            "{names:?}"
        );
        let recorded = names_in(&std::fs::read(folder.join("server.pem")).expect("a certificate"));
        assert_eq!(names, recorded);
    }
    // An old shell does not drive another machine: its certificate names another address.
    let first = store.json(&["env", NODES[0]]);
    let folder = text(&first["DOCKER_CERT_PATH"]);
    let wrong = curl(&[
        "--cacert",
        &format!("{folder}/ca.pem"),
        "--cert",
        &format!("{folder}/cert.pem"),
        "--key",
        &format!("{folder}/key.pem"),
        "--connect-to",
        &format!("{}:2376:{}:2376", store.ip(NODES[0]), store.ip(NODES[1])),
        &format!("https://{}:2376/version", store.ip(NODES[0])),
    ]);
    assert_ne!(wrong.code, 0, "{wrong}");
}

/// A client certificate of an authority that no machine knows.
fn make_authority(folder: &Path) {
    std::fs::create_dir_all(folder).expect("mkdir");
    let mut parameters = rcgen::CertificateParams::new(Vec::<String>::new()).expect("parameters");
    parameters
        .distinguished_name
        .push(rcgen::DnType::CommonName, "another store");
    parameters.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = parameters.self_signed(&key).expect("a certificate");
    std::fs::write(folder.join("cert.pem"), certificate.pem()).expect("write");
    std::fs::write(folder.join("key.pem"), key.serialize_pem()).expect("write");
}

/// The names and addresses in the first certificate of a PEM text, sorted.
fn names_in(pem: &[u8]) -> Vec<String> {
    use x509_parser::extensions::GeneralName;
    let start = pem
        .windows(10)
        .position(|part| part == b"-----BEGIN")
        .expect("a certificate");
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem[start..]).expect("PEM");
    let certificate = pem.parse_x509().expect("a certificate");
    let names = certificate
        .subject_alternative_name()
        .expect("sound")
        .expect("names");
    let mut all: Vec<String> = names
        .value
        .general_names
        .iter()
        .map(|name| match name {
            GeneralName::DNSName(name) => (*name).to_owned(),
            GeneralName::IPAddress([a, b, c, d]) => Ipv4Addr::new(*a, *b, *c, *d).to_string(),
            other => panic!("{other}"),
        })
        .collect();
    all.sort();
    all
}
