//! The trial of the accelerator, with a real kernel: the one that `FORGE_LAB_KERNEL` names.

use std::time::{Duration, Instant};

use forge_driver::{DriverHome, KernelFiles};
use forge_qemu::{AccelChoice, Config, accelerator};

fn home(root: &std::path::Path) -> DriverHome {
    DriverHome {
        dir: root.join("drivers/qemu"),
        store: root.to_owned(),
        owner: uuid::Uuid::nil(),
        runtime: root.join("run"),
        assets: forge_driver::assets::Assets::default(),
        token: forge_driver::Token::default(),
    }
}

#[tokio::test]
async fn a_trial_ends_and_is_made_once() {
    let Some(kernel) = std::env::var_os("FORGE_LAB_KERNEL") else {
        eprintln!(
            "NOT TRIED: set FORGE_LAB_KERNEL to a kernel image to try the accelerator of this host"
        );
        return;
    };
    let root = tempfile::tempdir().expect("a folder");
    let home = home(root.path());
    let kernel = KernelFiles {
        kernel: kernel.into(),
        initrd: "/dev/null".into(),
        cmdline: String::new(),
    };
    let config = Config {
        accel: AccelChoice::Auto,
        ..Config::default()
    };
    let started = Instant::now();
    let (one, two) = tokio::join!(
        accelerator(&config, &home, Some(&kernel)),
        accelerator(&config, &home, Some(&kernel))
    );
    eprintln!(
        "{}: {} (after {:?})",
        one.name,
        one.reason,
        started.elapsed()
    );
    assert_eq!(one, two, "commands that start together try once");
    let memory = home.dir.join("accelerator.json");
    assert_eq!(
        memory.exists(),
        one.tried,
        "a trial, and nothing else, is remembered"
    );
    if !one.tried {
        return;
    }
    assert!(
        one.name == "tcg" || one.reason == "a trial kernel booted",
        "{one:?}"
    );
    let written = memory
        .metadata()
        .and_then(|meta| meta.modified())
        .expect("a time");
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(
        accelerator(&config, &home, None).await,
        one,
        "it needs no kernel any more"
    );
    assert_eq!(
        memory
            .metadata()
            .and_then(|meta| meta.modified())
            .expect("a time"),
        written
    );
}

#[tokio::test]
async fn what_was_asked_for_is_not_tried() {
    let root = tempfile::tempdir().expect("a folder");
    let config = Config {
        accel: AccelChoice::Tcg,
        ..Config::default()
    };
    let accel = accelerator(&config, &home(root.path()), None).await;
    assert_eq!((accel.name.as_str(), accel.tried), ("tcg", false));
    assert!(!home(root.path()).dir.exists(), "nothing is remembered");
}
