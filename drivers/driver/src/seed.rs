//! The NoCloud medium: an ISO 9660 image with the volume label `cidata`.

use std::fs::OpenOptions;
use std::io::{Cursor, Write};
use std::path::Path;
use std::sync::Arc;

use hadris_iso::read::PathSeparator;
use hadris_iso::rrip::RripOptions;
use hadris_iso::write::options::{BaseIsoLevel, CreationFeatures, IsoFormatOptions};
use hadris_iso::write::{File, InputFiles, IsoImageWriter};

use crate::atomic;
use crate::error::{Error, Kind, Result};
use crate::spec::Seed;

/// The label by which the guest finds it
/// (<https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html>).
const LABEL: &str = "cidata";

/// The medium as bytes. The names are Rock Ridge's: ISO 9660's own know neither lower case nor dashes.
///
/// # Errors
/// When it cannot be put together.
pub fn image(seed: &Seed) -> Result<Vec<u8>> {
    let file = |name: &str, contents: &str| File::File {
        name: Arc::new(name.to_owned()),
        contents: contents.as_bytes().to_vec(),
    };
    let files = InputFiles {
        path_separator: PathSeparator::ForwardSlash,
        files: vec![
            file("meta-data", &seed.meta_data),
            file("network-config", &seed.network_config),
            file("user-data", &seed.user_data),
        ],
    };
    let options = IsoFormatOptions {
        volume_name: LABEL.into(),
        system_id: None,
        volume_set_id: None,
        publisher_id: None,
        preparer_id: None,
        application_id: None,
        sector_size: 2048,
        path_separator: PathSeparator::ForwardSlash,
        features: CreationFeatures {
            filenames: BaseIsoLevel::Level1 {
                supports_lowercase: false,
                supports_rrip: true,
            },
            long_filenames: false,
            joliet: None,
            rock_ridge: Some(RripOptions::default()),
            el_torito: None,
            ..CreationFeatures::default()
        },
        strict_charset: false,
    };
    let mut medium = Cursor::new(Vec::new());
    IsoImageWriter::create(&mut medium, files, options).map_err(|error| {
        Error::new(Kind::Failed, "failed to make the seed").because(error.to_string())
    })?;
    Ok(medium.into_inner())
}

/// Overwrites the medium at `path` in place with zeros, and waits until they are on the disk. The file
/// stays, and a running machine stays attached to it: its hardware does not change.
///
/// # Errors
/// What the file system reports.
pub fn blank(path: &Path) -> Result<()> {
    let failed = |error| {
        atomic::full(
            error,
            &format!("failed to blank the seed `{}`", path.display()),
        )
    };
    let mut file = OpenOptions::new().write(true).open(path).map_err(failed)?;
    let mut left = file.metadata().map_err(failed)?.len();
    let zeros = [0; 4096];
    while left > 0 {
        let count = usize::try_from(left)
            .unwrap_or(zeros.len())
            .min(zeros.len());
        file.write_all(&zeros[..count]).map_err(failed)?;
        left -= count as u64;
    }
    file.sync_all().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed() -> Seed {
        Seed {
            user_data: format!("#cloud-config\n# forge-seed 1\n{}", "x".repeat(5000)),
            meta_data: "instance-id: n1\n".into(),
            network_config: "version: 2\n".into(),
        }
    }

    #[test]
    fn the_medium_carries_label_names_and_contents() {
        let bytes = image(&seed()).expect("made");
        // ECMA-119, 8.4: the primary volume descriptor is sector 16, its label 32 bytes at offset 40.
        let descriptor = &bytes[16 * 2048..];
        assert_eq!(&descriptor[..6], b"\x01CD001");
        assert_eq!(
            std::str::from_utf8(&descriptor[40..72])
                .expect("text")
                .trim_end(),
            LABEL
        );
        for name in ["user-data", "meta-data", "network-config"] {
            let found = bytes
                .windows(name.len() + 5)
                .any(|window| window[..2] == *b"NM" && window[5..] == *name.as_bytes());
            assert!(found, "{name} has no Rock Ridge name");
        }
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains(&seed().user_data));
    }

    #[test]
    fn a_blanked_medium_holds_nothing_and_keeps_its_length() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("seed.iso");
        let bytes = image(&seed()).expect("made");
        std::fs::write(&path, &bytes).expect("write");
        blank(&path).expect("blanked");
        blank(&path).expect("again");
        assert_eq!(std::fs::read(&path).expect("read"), vec![0; bytes.len()]);
    }
}
