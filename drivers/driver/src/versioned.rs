//! Records of drivers carry the number of their format.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Kind, Result};

/// Reads the record that `text` holds, when its field `format` is at most `newest`. `what` is what it
/// should be, for the error.
///
/// # Errors
/// [`Kind::Newer`] for a later format, [`Kind::Corrupt`] for anything else that does not fit.
pub fn parse<T: DeserializeOwned>(text: &[u8], newest: u32, what: &str) -> Result<T> {
    #[derive(Deserialize)]
    struct Versioned {
        format: u32,
    }
    let corrupt =
        |error: serde_json::Error| Error::new(Kind::Corrupt, format!("not {what}")).because(error);
    let Versioned { format } = serde_json::from_slice(text).map_err(corrupt)?;
    if format > newest {
        return Err(Error::new(
            Kind::Newer,
            format!("format {format} is newer than this forge, which knows {newest}"),
        )
        .hint("use the forge that made this machine, or a newer one"));
    }
    serde_json::from_slice(text).map_err(corrupt)
}
