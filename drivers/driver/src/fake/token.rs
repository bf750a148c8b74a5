//! The token that the provider may ask for, and the places where a driver of a cloud has one.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::{Context, Error, Kind, Result, Secret, Token};

/// The options of a command that makes machines of this provider.
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// Show the provider this token
    #[arg(
        long = "fake-token",
        id = "fake_token",
        value_name = "TOKEN",
        env = "FAKE_TOKEN",
        hide_env_values = true
    )]
    pub token: Option<Secret>,
}

/// The token in the provider's own configuration file, and where that is.
///
/// # Errors
/// When it cannot be read.
pub fn token_file() -> Result<Option<(String, PathBuf)>> {
    let Some(home) = std::env::var_os("HOME") else {
        return Ok(None);
    };
    let path = PathBuf::from(home).join(".config/fake/token");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some((text.trim().to_owned(), path))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(error).or_fail(Kind::Io, || format!("failed to read `{}`", path.display()))
        }
    }
}

/// Refuses a call without the token that the provider at `root` asks for.
pub(super) async fn admit(root: &Path, token: &Token) -> Result<()> {
    let Ok(wanted) = fs::read_to_string(root.join("token")) else {
        return Ok(());
    };
    if token.get().await?.expose() == wanted.trim() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Refused,
        "the provider does not accept the token",
    ))
}
