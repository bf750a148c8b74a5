//! What this host has for the driver.

use forge_driver::{DriverHome, Finding, KernelFiles, process};

use crate::accel::{accelerator, version};
use crate::disk;
use crate::host;
use crate::options::Config;
use crate::precheck;

/// Everything that decides whether, and how well, machines run here: programs, accelerator, memory and
/// disk. A trial of the accelerator that has not been made yet is made when there is a kernel for it.
pub async fn findings(
    config: &Config,
    home: &DriverHome,
    kernel: Option<&KernelFiles>,
) -> Vec<Finding> {
    let mut found = vec![program(&config.binary, &host::ARCH.packages(), true).await];
    found.push(program(&disk::tool(&config.binary), &["qemu-utils"], false).await);
    if !host::ARCH.firmware().is_empty() {
        found.push(firmware());
    }
    if found[0].ok {
        let accel = accelerator(config, home, kernel).await;
        found.push(Finding {
            what: "accelerator".into(),
            ok: true,
            detail: format!("{}: {}", accel.name, accel.reason),
            packages: Vec::new(),
        });
    }
    if let Some((total, available)) = forge_driver::host::memory() {
        let machines = available / u64::from(config.memory_mib.max(1));
        found.push(Finding {
            what: "memory".into(),
            ok: machines > 0,
            detail: format!(
                "{available} of {total} MiB available: room for {machines} machines of {} MiB",
                config.memory_mib
            ),
            packages: Vec::new(),
        });
    }
    found.push(space(home));
    found
}

async fn program(
    path: &std::path::Path,
    packages: &[&'static str],
    check_version: bool,
) -> Finding {
    let what = format!("`{}`", path.display());
    let missing = |detail: String| Finding {
        what: what.clone(),
        ok: false,
        detail,
        packages: packages.to_vec(),
    };
    if process::which(path).is_none() {
        return missing("not installed".into());
    }
    match version(path).await {
        Ok(line) => match precheck::new_enough(&line) {
            Err(error) if check_version => missing(error.line()),
            _ => Finding {
                what,
                ok: true,
                detail: line,
                packages: Vec::new(),
            },
        },
        Err(error) => missing(error.line()),
    }
}

fn firmware() -> Finding {
    let found = host::ARCH
        .firmware()
        .iter()
        .find(|file| std::path::Path::new(file).is_file());
    Finding {
        what: "firmware".into(),
        ok: found.is_some(),
        detail: found.map_or("not installed".into(), |file| (*file).to_owned()),
        packages: if found.is_some() {
            Vec::new()
        } else {
            vec!["qemu-efi-aarch64"]
        },
    }
}

fn space(home: &DriverHome) -> Finding {
    let outcome = forge_driver::host::space_for(&home.dir, 1);
    let folder = home
        .dir
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(&home.dir);
    let free = forge_driver::host::free_space(folder)
        .map_or("unknown".into(), |free| format!("{} MiB free", free >> 20));
    Finding {
        what: "disk".into(),
        ok: outcome.is_ok(),
        detail: free,
        packages: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_missing_is_named_with_its_package() {
        let folder = tempfile::tempdir().expect("folder");
        let home = DriverHome {
            dir: folder.path().join("drivers/qemu"),
            store: folder.path().to_owned(),
            owner: uuid::Uuid::nil(),
            runtime: folder.path().join("run"),
            assets: forge_driver::assets::Assets::default(),
            token: forge_driver::Token::default(),
        };
        let config = Config {
            binary: "/nonexistent/qemu".into(),
            ..Config::default()
        };
        let found = findings(&config, &home, None).await;
        assert!(!found[0].ok);
        assert_eq!(found[0].packages, host::ARCH.packages());
        assert!(
            !found.iter().any(|finding| finding.what == "accelerator"),
            "it cannot be tried"
        );
        assert!(
            found
                .iter()
                .any(|finding| finding.what == "disk" && finding.ok)
        );
    }
}
