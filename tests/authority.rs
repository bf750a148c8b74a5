//! A CA and a client pair that come from elsewhere: as docker-machine's global options named them, with keys as it made
//! them.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Lab, Run};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// The options, and the files that they name.
const FILES: [(&str, &str); 4] = [
    ("--tls-ca-cert", "ca.pem"),
    ("--tls-ca-key", "ca-key.pem"),
    ("--tls-client-cert", "cert.pem"),
    ("--tls-client-key", "key.pem"),
];

/// A key as docker-machine made them: RSA of 2048 bits, in the file in the form of PKCS#1.
fn rsa(path: &Path) -> KeyPair {
    let keygen = |words: &[&str]| {
        let done = Command::new("ssh-keygen").args(words).arg(path).output();
        let done = done.expect("ssh-keygen starts");
        assert!(done.status.success(), "{done:?}");
    };
    keygen(&[
        "-q", "-t", "rsa", "-b", "2048", "-N", "", "-m", "PKCS8", "-f",
    ]);
    let text = fs::read_to_string(path).expect("a key");
    keygen(&["-q", "-p", "-P", "", "-N", "", "-m", "PEM", "-f"]);
    let pkcs1 = fs::read_to_string(path).expect("a key");
    assert!(
        pkcs1.starts_with("-----BEGIN RSA PRIVATE KEY-----"),
        "its form"
    );
    KeyPair::from_pem(&text).expect("a key")
}

/// A key that is made in no time.
fn ecdsa(path: &Path) -> KeyPair {
    let key = KeyPair::generate().expect("a key");
    fs::write(path, key.serialize_pem()).expect("written");
    key
}

/// A CA and a client pair in `folder`, with the names that docker-machine gave: an organization alone. The CA ends in
/// the year given.
fn foreign(folder: &Path, ends: i32, key: impl Fn(&Path) -> KeyPair) {
    fs::create_dir_all(folder).expect("a folder");
    let mut ca = CertificateParams::default();
    ca.distinguished_name = rcgen::DistinguishedName::new();
    ca.distinguished_name
        .push(DnType::OrganizationName, "somebody");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
    ];
    ca.not_before = date_time_ymd(2015, 1, 1);
    ca.not_after = date_time_ymd(ends, 1, 1);
    let ca_key = key(&folder.join("ca-key.pem"));
    let signed = ca.self_signed(&ca_key).expect("signed");
    // Other programs write the certificate in words above it.
    let text = format!("Certificate:\n    Data:\n{}", signed.pem());
    fs::write(folder.join("ca.pem"), &text).expect("written");
    let mut client = CertificateParams::default();
    client.distinguished_name = rcgen::DistinguishedName::new();
    client
        .distinguished_name
        .push(DnType::OrganizationName, "somebody.<bootstrap>");
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    client.not_before = date_time_ymd(2015, 1, 1);
    client.not_after = date_time_ymd(2040, 1, 1);
    let client_key = key(&folder.join("key.pem"));
    let issuer = Issuer::from_ca_cert_pem(&signed.pem(), ca_key).expect("an issuer");
    let signed = client.signed_by(&client_key, &issuer).expect("signed");
    fs::write(folder.join("cert.pem"), signed.pem()).expect("written");
}

/// The options that name the files in `folder` whose names are listed.
fn options(folder: &Path, files: &[&str]) -> String {
    let named = FILES.iter().filter(|(_, file)| files.contains(file));
    let words = named.map(|(option, file)| format!("{option} {}", folder.join(file).display()));
    words.collect::<Vec<_>>().join(" ")
}

const ALL: [&str; 4] = ["ca.pem", "ca-key.pem", "cert.pem", "key.pem"];

fn certificate(path: PathBuf) -> String {
    let text = fs::read_to_string(path).expect("a certificate");
    let from = text.find("-----BEGIN").expect("PEM");
    text[from..].replace("\r\n", "\n")
}

#[test]
fn a_store_takes_the_ca_and_the_client_pair_that_it_is_given_and_no_other() {
    let lab = Lab::new();
    let theirs = lab.folder().join("theirs");
    foreign(&theirs, 2040, rsa);
    let given = options(&theirs, &ALL);
    // Several at once: one takes it, the others find it.
    let running: Vec<_> = ["n1", "n2"]
        .map(|name| lab.forge(&format!("{given} create {name}")).start())
        .into();
    for running in running {
        running.wait(&lab).code(0);
    }
    for (file, own) in [("ca.pem", "ca.pem"), ("cert.pem", "cert.pem")] {
        let own = certificate(lab.home.join("certs").join(own));
        assert_eq!(own, certificate(theirs.join(file)), "{file}");
    }
    for file in ["ca-key.pem", "key.pem"] {
        let path = lab.home.join("certs").join(file);
        let text = fs::read_to_string(&path).expect("a key");
        assert!(text.starts_with("-----BEGIN PRIVATE KEY-----"), "{file}");
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    // The engine's certificate is signed by that CA, and the client's is accepted by the engine.
    lab.forge("config n1").ok();
    lab.forge("version n2").says(0, "0.0.0\n", "");

    // The same again is no other; the environment says it as well as the line.
    let as_variables = |mut run: Run<'_>| {
        for (option, file) in FILES {
            let name = format!("MACHINE_{}", option[2..].to_uppercase().replace('-', "_"));
            run = run.env(&name, theirs.join(file));
        }
        run.ok();
    };
    as_variables(lab.forge("create n3"));
    as_variables(lab.forge("ls -q").called("docker-machine"));
    lab.forge(&format!("{} ip n1", options(&theirs, &["ca.pem"])))
        .ok();
    lab.forge("ls -q").env("MACHINE_TLS_CA_CERT", "").ok();

    let others = lab.folder().join("others");
    foreign(&others, 2040, ecdsa);
    let before = lab.files();
    for (files, what) in [
        (&ALL[..], "CA"),
        (&ALL[..2], "CA"),
        (&ALL[2..], "client pair"),
    ] {
        for words in ["create n4", "ls -q", "env n1"] {
            let line = format!("{} {words}", options(&others, files));
            for program in ["forge", "docker-machine"] {
                let ended = lab.forge(&line).called(program).run().code(1);
                assert_eq!(ended.stdout, "", "{line}");
                let says = format!("the {what} that is given is another than that of the store, ");
                assert!(ended.stderr.contains(&says), "{}", ended.stderr);
            }
        }
    }
    assert_eq!(lab.files(), before);
}

#[test]
fn what_makes_no_sense_is_refused_before_there_is_a_store() {
    let lab = Lab::bare();
    let folder = lab.folder().join("good");
    foreign(&folder, 2040, ecdsa);
    let ended_folder = lab.folder().join("ended");
    foreign(&ended_folder, 2020, ecdsa);
    let mixed = lab.folder().join("mixed");
    fs::create_dir(&mixed).expect("a folder");
    for (from, file) in [
        (&folder, "ca.pem"),
        (&ended_folder, "ca-key.pem"),
        (&ended_folder, "cert.pem"),
        (&ended_folder, "key.pem"),
    ] {
        fs::copy(from.join(file), mixed.join(file)).expect("copied");
    }
    fs::write(mixed.join("nonsense"), "nothing").expect("written");
    let at = |name: &str| mixed.join(name).display().to_string();
    for (given, says) in [
        (options(&mixed, &ALL[..2]), "do not belong together"),
        (
            format!(
                "{} {}",
                options(&folder, &ALL[..2]),
                options(&mixed, &ALL[2..])
            ),
            "was not signed by the CA",
        ),
        (options(&ended_folder, &ALL[..2]), "and not now"),
        (
            options(&folder, &["ca-key.pem"]),
            "the key of the CA is given without its certificate",
        ),
        (
            format!(
                "--tls-ca-cert {} --tls-ca-key {}",
                at("cert.pem"),
                at("key.pem")
            ),
            "as that of a CA is none",
        ),
        (
            format!("--tls-ca-cert {}", at("nonsense")),
            "holds none (PEM)",
        ),
        (
            format!(
                "--tls-ca-cert {} --tls-ca-key {}",
                at("ca.pem"),
                at("nonsense")
            ),
            "none that can be used",
        ),
        (format!("--tls-ca-cert {}", at("missing")), "failed to read"),
    ] {
        let ended = lab.forge(&format!("{given} create n1")).run();
        assert_ne!(ended.code, 0, "{given}");
        assert_eq!(ended.stdout, "", "{given}");
        assert!(ended.stderr.contains(says), "{given}: {}", ended.stderr);
        assert!(!ended.stderr.contains("PRIVATE KEY"), "{}", ended.stderr);
        assert!(!lab.home.exists(), "{given}: a store was made");
    }
    // What only asks makes no store of it.
    lab.forge(&format!("{} ls -q", options(&folder, &ALL)))
        .says(0, "", "");
    assert!(!lab.home.exists());
    // A CA without its key serves a store that has it, and no other.
    let ended = lab
        .forge(&format!("{} create n1", options(&folder, &["ca.pem"])))
        .run()
        .code(1);
    assert!(
        ended.stderr.contains("given without its key"),
        "{}",
        ended.stderr
    );
    assert!(!lab.home.exists());
}

#[test]
fn tokens_of_docker_machines_own_services_mean_nothing_and_are_known_by_that_name_alone() {
    let lab = Lab::new();
    for option in ["--github-api-token", "--bugsnag-api-token"] {
        let line = format!("{option} hunter2 create n1");
        lab.forge(&line).called("docker-machine").ok();
        lab.forge(&line).run().code(2);
        lab.forge("rm -y n1").ok();
    }
    assert!(!lab.logged().contains("hunter2"));
    for (path, bytes) in lab.files() {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(!text.contains("hunter2"), "{}", path.display());
    }
}
