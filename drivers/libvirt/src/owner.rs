//! Whose the base images at a daemon are.

use std::fs;
use std::path::Path;

use forge_driver::{Claim, Context, Error, Kind, Result, atomic, hold};
use serde::{Deserialize, Serialize};

const FORMAT: u32 = 1;

/// `owner.json`: what the volumes of this store's images carry in their names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    format: u32,
    id: Claim,
}

/// A short name for this store that no other has: stores that use the same image at one daemon each have a volume
/// of their own of it, and take away no other's.
///
/// # Errors
/// When it cannot be kept, or is damaged.
pub(crate) async fn of(home: &Path) -> Result<String> {
    atomic::private_folder(home)?;
    // Commands that begin at the same time on a fresh store have to agree.
    let _work = hold::work(home).await?;
    let file = home.join("owner.json");
    let id = match fs::read(&file) {
        Ok(text) => read(&file, &text)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let owner = Owner {
                format: FORMAT,
                id: Claim::random(),
            };
            atomic::write_json(&file, &owner, "whose images these are")?;
            owner.id
        }
        Err(error) => {
            return Err(error).or_fail(Kind::Io, || format!("failed to read `{}`", file.display()));
        }
    };
    Ok(id.to_string().chars().take(8).collect())
}

fn read(file: &Path, text: &[u8]) -> Result<Claim> {
    serde_json::from_slice::<Owner>(text)
        .ok()
        .filter(|owner| owner.format == FORMAT)
        .map(|owner| owner.id)
        .ok_or_else(|| {
            Error::new(
                Kind::Corrupt,
                format!("`{}` is damaged, or of a newer forge", file.display()),
            )
            .hint("remove it: new machines then bring their base image anew")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_store_keeps_its_name_and_others_have_another() {
        let (one, two) = (tempfile::tempdir(), tempfile::tempdir());
        let (one, two) = (one.expect("a folder"), two.expect("a folder"));
        let (a, b) = tokio::join!(of(one.path()), of(one.path()));
        let name = a.expect("a name");
        assert_eq!(b.expect("a name"), name);
        assert_eq!(name.len(), 8);
        assert_ne!(of(two.path()).await.expect("a name"), name);
        fs::write(one.path().join("owner.json"), "{").expect("written");
        let error = of(one.path()).await.expect_err("damaged");
        assert_eq!(error.kind(), Kind::Corrupt);
    }
}
