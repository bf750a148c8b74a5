//! Whether the certificates of a store and of its machines belong together, and let clients in.

use std::fs;

use forge::ca::belong_together;
use forge::secret::Secret;

use super::Lab;

/// A file of the store.
#[track_caller]
pub fn read(lab: &Lab, path: &str) -> String {
    fs::read_to_string(lab.home.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Whether the CA signed the certificate.
pub fn signed_by(certificate: &str, ca: &str) -> bool {
    let (_, ca) = x509_parser::pem::parse_x509_pem(ca.as_bytes()).expect("pem");
    let ca = ca.parse_x509().expect("x509");
    let (_, leaf) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()).expect("pem");
    let leaf = leaf.parse_x509().expect("x509");
    leaf.issuer() == ca.subject() && leaf.verify_signature(Some(ca.public_key())).is_ok()
}

/// What is wrong with the store's CA and client pair, and with the files of these machines: nothing, where one CA signed
/// all of them and each certificate has its key.
pub fn amiss(lab: &Lab, machines: &[&str]) -> Vec<String> {
    let mut amiss = Vec::new();
    let mut note = |fine: bool, what: String| {
        if !fine {
            amiss.push(what);
        }
    };
    let together = |certificate: &str, key: &str| {
        belong_together(&read(lab, certificate), &Secret::new(read(lab, key))).expect("parsed")
    };
    let ca = read(lab, "certs/ca.pem");
    for (certificate, key) in [("ca", "ca-key"), ("cert", "key")] {
        let paths = [certificate, key].map(|name| format!("certs/{name}.pem"));
        note(together(&paths[0], &paths[1]), format!("{paths:?}"));
    }
    note(
        signed_by(&read(lab, "certs/cert.pem"), &ca),
        "the client pair is of another CA".to_owned(),
    );
    for machine in machines {
        let file = |name: &str| format!("machines/{machine}/{name}");
        note(
            read(lab, &file("ca.pem")) == ca,
            format!("{machine}: another CA"),
        );
        for (certificate, key) in [("cert.pem", "key.pem"), ("server.pem", "server-key.pem")] {
            note(
                together(&file(certificate), &file(key)),
                format!("{machine}: {certificate} and {key}"),
            );
            note(
                signed_by(&read(lab, &file(certificate)), &ca),
                format!("{machine}: {certificate} is of another CA"),
            );
        }
    }
    amiss
}

/// The machines whose engines answer over TLS to whom shows what lies in the machine's folder.
pub fn answering(lab: &Lab) -> Vec<String> {
    lab.forge("ls --json")
        .ok()
        .json()
        .as_array()
        .expect("a list")
        .iter()
        .filter(|machine| machine["engine"].is_string())
        .map(|machine| machine["name"].as_str().expect("a name").to_owned())
        .collect()
}
