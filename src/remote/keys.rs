//! SSH keys: ours, made here, and the host keys that are accepted.

use std::fs::File;
use std::io::Read;

use forge_driver::{Context, Error, Kind, Result};
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::{Algorithm, HashAlg, PrivateKey, PublicKey};
use serde::{Deserialize, Serialize};

use crate::secret::Secret;

/// An ed25519 key pair in OpenSSH's text forms.
#[derive(Clone, Debug)]
pub struct KeyPair {
    /// The private half, without a passphrase.
    pub private_openssh: Secret,
    /// The public half: `ssh-ed25519 AAAA… comment`.
    pub public_openssh: String,
}

/// Makes an ed25519 key pair from the operating system's random numbers.
///
/// # Errors
/// When there are none, or `comment` has more than one line.
pub fn generate_key(comment: &str) -> Result<KeyPair> {
    let failed = || "failed to make an SSH key".to_owned();
    if comment.contains(['\n', '\r']) {
        return Err(
            Error::new(Kind::Invalid, failed()).because("the comment has more than one line")
        );
    }
    let mut seed = [0_u8; 32];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut seed))
        .or_fail(Kind::Io, failed)?;
    let mut key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
    key.set_comment(comment);
    let private = key
        .to_openssh(LineEnding::LF)
        .or_fail(Kind::Failed, failed)?;
    let public = key
        .public_key()
        .to_openssh()
        .or_fail(Kind::Failed, failed)?;
    Ok(KeyPair {
        private_openssh: Secret::new(private.as_str()),
        public_openssh: public,
    })
}

/// The fingerprint of a public key, as `ssh-keygen -l` prints it (`SHA256:…`).
///
/// # Errors
/// When `public_openssh` is not a public key in OpenSSH's form.
pub fn fingerprint(public_openssh: &str) -> Result<String> {
    Ok(parse(public_openssh)?
        .fingerprint(HashAlg::Sha256)
        .to_string())
}

/// Reads a public key in OpenSSH's form; the comment is dropped.
pub(super) fn parse(public_openssh: &str) -> Result<PublicKey> {
    let mut key = PublicKey::from_openssh(public_openssh.trim()).or_fail(Kind::Invalid, || {
        format!("`{}` is not an SSH public key", public_openssh.trim())
    })?;
    key.set_comment("");
    Ok(key)
}

/// The OpenSSH form of a key, without a comment, so that equal keys have equal texts.
pub(super) fn text(key: &PublicKey) -> String {
    let mut key = key.clone();
    key.set_comment("");
    key.to_openssh().unwrap_or_default().trim().to_owned()
}

/// The host keys that are accepted from one machine: exactly these, no others.
///
/// A list rather than one key, because while a machine changes its key both are accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct HostKeys(Vec<String>);

impl HostKeys {
    /// The list of these keys (`ssh-ed25519 AAAA…`), without comments and doubles.
    ///
    /// # Errors
    /// As [`HostKeys::accept`].
    pub fn new<K: AsRef<str>>(keys: impl IntoIterator<Item = K>) -> Result<Self> {
        let mut list = Self::default();
        for key in keys {
            list.accept(key.as_ref())?;
        }
        Ok(list)
    }

    /// Accepts one more key. The machines that forge makes have ed25519 keys; others' may have what OpenSSH still
    /// signs with by default (OpenSSH 8.8 dropped DSA and signatures with SHA-1; an RSA key here signs with SHA-2).
    ///
    /// # Errors
    /// When it is not an ed25519, ECDSA or RSA public key in OpenSSH's form.
    pub fn accept(&mut self, key: &str) -> Result<()> {
        let key = parse(key)?;
        if !matches!(
            key.algorithm(),
            Algorithm::Ed25519 | Algorithm::Ecdsa { .. } | Algorithm::Rsa { .. }
        ) {
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "a host key of type `{}` is not accepted, only ed25519, ECDSA and RSA",
                    key.algorithm()
                ),
            ));
        }
        let key = text(&key);
        if !self.0.contains(&key) {
            self.0.push(key);
        }
        Ok(())
    }

    /// Leaves `key` as the only one that is accepted.
    ///
    /// # Errors
    /// As [`HostKeys::accept`].
    pub fn only(key: &str) -> Result<Self> {
        Self::new([key])
    }

    /// The keys, in the order in which they were accepted.
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }

    /// Lines for a `known_hosts` file: every key under the names of `host`.
    pub fn known_hosts(&self, hosts: &[&str], port: u16) -> String {
        self.lines("", hosts, port)
    }

    /// Lines for a `known_hosts` file: every key as an authority that may certify `hosts`.
    pub fn authorities(&self, hosts: &[&str], port: u16) -> String {
        self.lines("@cert-authority ", hosts, port)
    }

    fn lines(&self, marker: &str, hosts: &[&str], port: u16) -> String {
        let names: Vec<String> = hosts.iter().map(|host| known_as(host, port)).collect();
        self.0
            .iter()
            .map(|key| format!("{marker}{} {key}\n", names.join(",")))
            .collect()
    }
}

/// The name of a server in a `known_hosts` file: with a port other than 22 it is `[host]:port` (sshd(8),
/// "SSH_KNOWN_HOSTS FILE FORMAT").
pub(crate) fn known_as(host: &str, port: u16) -> String {
    if port == 22 {
        host.to_owned()
    } else {
        format!("[{host}]:{port}")
    }
}

impl TryFrom<Vec<String>> for HostKeys {
    type Error = Error;

    fn try_from(keys: Vec<String>) -> Result<Self> {
        Self::new(keys)
    }
}

impl From<HostKeys> for Vec<String> {
    fn from(keys: HostKeys) -> Self {
        keys.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_pair_is_whole_and_new_each_time() {
        let pair = generate_key("forge n1").expect("a key");
        let private =
            PrivateKey::from_openssh(pair.private_openssh.expose()).expect("private half");
        assert_eq!(
            private.public_key().to_openssh().expect("text"),
            pair.public_openssh
        );
        assert!(pair.public_openssh.starts_with("ssh-ed25519 "));
        assert!(pair.public_openssh.ends_with(" forge n1"));
        assert_ne!(
            generate_key("x").expect("a key").public_openssh,
            pair.public_openssh
        );
        assert!(!format!("{pair:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_comment_of_two_lines_is_refused() {
        assert_eq!(
            generate_key("a\nb").expect_err("refused").kind(),
            Kind::Invalid
        );
    }

    #[test]
    fn equal_keys_are_kept_once_and_survive_a_record() {
        let one = generate_key("one").expect("key").public_openssh;
        let two = generate_key("two").expect("key").public_openssh;
        let keys =
            HostKeys::new([&one, &two, &one.replace(" one", " other comment")]).expect("list");
        assert_eq!(keys.as_slice().len(), 2);
        let json = serde_json::to_string(&keys).expect("json");
        assert_eq!(serde_json::from_str::<HostKeys>(&json).expect("list"), keys);
        assert!(
            keys.known_hosts(&["127.133.7.1", "n1"], 2222)
                .starts_with("[127.133.7.1]:2222,[n1]:2222 ssh-ed25519 ")
        );
        assert!(serde_json::from_str::<HostKeys>("[\"ssh-ed25519 nonsense\"]").is_err());
    }

    #[test]
    fn keys_of_foreign_hosts_are_kept_and_old_ones_refused() {
        let ecdsa = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBHwf2HMM5TRXvo2SQJjsNkiDD5KqiiNjrGVv3UUh+mMT5RHxiRtOnlqvjhQtBq0VpmpCV/PwUdhOig4vkbqAcEc=";
        let keys = HostKeys::only(ecdsa).expect("ECDSA");
        assert_eq!(
            keys.authorities(&["n1"], 22),
            format!("@cert-authority n1 {ecdsa}\n")
        );
        // A security key signs logins, no server.
        let error = HostKeys::only("sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIJoAeUA49pVwI/NJHX8aX1s5+8/+QTE6ZpPYkQn3RDNVAAAABHNzaDo=")
            .expect_err("no host key");
        assert!(error.message().contains("sk-ssh-ed25519"), "{error}");
    }
}
