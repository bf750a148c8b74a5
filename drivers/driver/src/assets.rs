//! Templates and playbooks, embedded in the binary; a folder may stand in for any of them.

use std::fs;
use std::path::PathBuf;

use include_dir::{Dir, include_dir};

use crate::error::{Context, Error, Kind, Result};

static TEMPLATES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../templates");
static PLAYBOOKS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../playbooks");

/// Where templates and playbooks are read from.
#[derive(Clone, Debug, Default)]
pub struct Assets {
    /// A folder with `templates/` and `playbooks/`; a file in it replaces the embedded one.
    over: Option<PathBuf>,
}

impl Assets {
    /// The embedded files, each replaced by its namesake below `over` where there is one.
    #[must_use]
    pub fn new(over: Option<PathBuf>) -> Self {
        Self { over }
    }

    /// The text of `templates/…` or `playbooks/…`.
    ///
    /// # Errors
    /// When there is no such file, or the one that replaces it cannot be read.
    pub fn read(&self, path: &str) -> Result<String> {
        if let Some(over) = &self.over {
            let file = over.join(path);
            match fs::read_to_string(&file) {
                Ok(text) => return Ok(text),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error)
                        .or_fail(Kind::Io, || format!("failed to read `{}`", file.display()));
                }
            }
        }
        let embedded = match path.split_once('/') {
            Some(("templates", rest)) => TEMPLATES.get_file(rest),
            Some(("playbooks", rest)) => PLAYBOOKS.get_file(rest),
            _ => None,
        };
        embedded
            .and_then(|file| file.contents_utf8())
            .map(str::to_owned)
            .ok_or_else(|| {
                Error::new(
                    Kind::NotFound,
                    format!("there is no file `{path}` among the templates and playbooks"),
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_the_folder_replaces_the_embedded_one() {
        let folder = tempfile::tempdir().expect("folder");
        fs::create_dir(folder.path().join("templates")).expect("mkdir");
        fs::write(folder.path().join("templates/x.tera"), "mine").expect("write");
        let assets = Assets::new(Some(folder.path().to_owned()));
        assert_eq!(assets.read("templates/x.tera").expect("found"), "mine");
    }

    #[test]
    fn an_unknown_file_is_an_error() {
        let error = Assets::default()
            .read("templates/nothing")
            .expect_err("none");
        assert_eq!(error.kind(), Kind::NotFound);
    }
}
