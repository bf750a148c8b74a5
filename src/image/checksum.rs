//! Checksums: of files, and as distributions publish them.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use forge_driver::{Context, Error, Kind, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256, Sha512};

/// What a file has to hash to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checksum {
    /// SHA-256, in lower-case hexadecimal.
    Sha256(String),
    /// SHA-512, in lower-case hexadecimal.
    Sha512(String),
}

impl Checksum {
    /// The algorithm and the digest of `path`, computed the same way as this one was.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn of_same_kind(&self, path: &Path) -> Result<Self> {
        Ok(match self {
            Self::Sha256(_) => Self::Sha256(digest::<Sha256>(path)?),
            Self::Sha512(_) => Self::Sha512(digest::<Sha512>(path)?),
        })
    }

    /// The digest of the file called `name` in the text of a SHA256SUMS or SHA512SUMS file.
    ///
    /// A line is the digest, then a space, then a space or `*`, then the name (GNU coreutils manual, 6.5).
    pub fn find(sums: &str, name: &str) -> Option<Self> {
        sums.lines().find_map(|line| {
            let (digest, rest) = line.trim_end().split_once(char::is_whitespace)?;
            let file = rest.trim_start_matches([' ', '\t', '*']);
            let file = file.strip_prefix("./").unwrap_or(file);
            (file == name).then(|| digest.parse().ok()).flatten()
        })
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(digest) => write!(f, "sha256:{digest}"),
            Self::Sha512(digest) => write!(f, "sha512:{digest}"),
        }
    }
}

impl FromStr for Checksum {
    type Err = Error;

    /// Reads `sha256:…`, `sha512:…` or the bare digest, told apart by its length.
    fn from_str(text: &str) -> Result<Self> {
        let (algorithm, digest) = text.split_once(':').unwrap_or(("", text));
        let digest = digest.to_ascii_lowercase();
        let hexadecimal = digest.bytes().all(|byte| byte.is_ascii_hexdigit());
        match (algorithm, digest.len()) {
            ("" | "sha256", 64) if hexadecimal => Ok(Self::Sha256(digest)),
            ("" | "sha512", 128) if hexadecimal => Ok(Self::Sha512(digest)),
            _ => Err(
                Error::new(Kind::Invalid, format!("`{text}` is not a checksum"))
                    .hint("give the 64 digits of a SHA-256 or the 128 of a SHA-512"),
            ),
        }
    }
}

/// The SHA-256 of a file.
pub(super) fn sha256(path: &Path) -> Result<String> {
    digest::<Sha256>(path)
}

fn digest<D: Digest>(path: &Path) -> Result<String> {
    let failed = || format!("failed to read `{}`", path.display());
    let mut file = File::open(path).or_fail(Kind::Io, failed)?;
    let mut hash = D::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer).or_fail(Kind::Io, failed)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_known_digest_comes_out() {
        let file = tempfile::NamedTempFile::new().expect("file");
        assert_eq!(sha256(file.path()).expect("reads"), EMPTY);
        let long = Checksum::Sha512(String::new())
            .of_same_kind(file.path())
            .expect("reads");
        assert!(
            long.to_string().starts_with("sha512:cf83e1357eefb8bd"),
            "{long}"
        );
    }

    #[test]
    fn sums_are_found_by_name_in_both_forms() {
        let sums = format!(
            "{}  other.img\n{EMPTY} *disk.img\n{EMPTY}  ./dotted.img\n",
            "0".repeat(64)
        );
        assert_eq!(
            Checksum::find(&sums, "disk.img"),
            Some(Checksum::Sha256(EMPTY.into()))
        );
        assert_eq!(
            Checksum::find(&sums, "dotted.img"),
            Some(Checksum::Sha256(EMPTY.into()))
        );
        assert_eq!(Checksum::find(&sums, "isk.img"), None);
        assert_eq!(Checksum::find("garbage\n\n", "disk.img"), None);
    }

    #[test]
    fn a_malformed_checksum_is_refused() {
        for text in [
            "",
            "sha256:",
            "md5:0123",
            &EMPTY[1..],
            &format!("sha512:{EMPTY}"),
            &"g".repeat(64),
        ] {
            assert_eq!(
                text.parse::<Checksum>().expect_err(text).kind(),
                Kind::Invalid
            );
        }
        assert_eq!(
            EMPTY
                .to_uppercase()
                .parse::<Checksum>()
                .expect("reads")
                .to_string(),
            format!("sha256:{EMPTY}")
        );
    }
}
