//! The driver against real QEMU: what this driver alone promises.

mod bench;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bench::Store;
use forge_driver::conformance::Bench;
use forge_driver::{Claim, Driver, Kind, Power, Spec, State};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn switch_process() {
    bench::maybe_switch();
}

async fn made(store: &Store) -> Spec {
    let driver = store.driver();
    driver
        .ensure_shared(&store.network)
        .await
        .expect("the network comes up");
    let spec = store.spec();
    driver.create(&spec).await.expect("made");
    spec
}

async fn state(store: &Store, claim: Claim) -> State {
    store.driver().observe(&[claim]).await.expect("observed")[0].state
}

fn process(store: &Store, claim: Claim) -> Pid {
    let text = fs::read_to_string(store.folder(claim).join("vm.pid")).expect("a process id");
    Pid::from_raw(text.trim().parse().expect("a number")).expect("a process id")
}

/// The folder of the network's sockets.
fn segment(store: &Store) -> PathBuf {
    fs::read_dir(store.home().runtime)
        .expect("a runtime folder")
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.is_dir())
        .expect("a network")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("stat").permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_the_owner_s_alone() {
    let store = Store::new();
    let spec = made(&store).await;
    for folder in [
        store.home().dir,
        store.folder(spec.claim),
        store.home().runtime,
        segment(&store),
    ] {
        assert_eq!(mode(&folder), 0o700, "{}", folder.display());
    }
    for name in [
        "disk.qcow2",
        "seed.iso",
        "vm.json",
        "vm.lock",
        "console.log",
    ] {
        assert_eq!(mode(&store.folder(spec.claim).join(name)), 0o600, "{name}");
    }
    for folder in [store.home().runtime, segment(&store)] {
        for entry in fs::read_dir(folder)
            .expect("list")
            .flatten()
            .filter(|entry| !entry.path().is_dir())
        {
            assert_eq!(mode(&entry.path()), 0o600, "{}", entry.path().display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_does_not_answer_is_an_error_and_can_be_killed() {
    let store = Store::new();
    let spec = made(&store).await;
    kill_process(process(&store, spec.claim), Signal::STOP).expect("stopped");
    assert_eq!(state(&store, spec.claim).await, State::Error);
    store
        .driver()
        .set_power(spec.claim, Power::Kill)
        .await
        .expect("killed");
    assert_eq!(store.count(spec.claim), 0);
    assert_eq!(state(&store, spec.claim).await, State::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_process_was_killed_starts_again() {
    let store = Store::new();
    let spec = made(&store).await;
    kill_process(process(&store, spec.claim), Signal::KILL).expect("killed");
    while state(&store, spec.claim).await != State::Stopped {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    store
        .driver()
        .set_power(spec.claim, Power::On)
        .await
        .expect("on, whatever the process left behind");
    assert_eq!(state(&store, spec.claim).await, State::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_was_cut_off_is_finished() {
    let store = Store::new();
    let spec = store.spec();
    fs::create_dir_all(store.folder(spec.claim)).expect("mkdir");
    fs::write(
        store.folder(spec.claim).join(".new-disk.qcow2"),
        "half a disk",
    )
    .expect("write");
    fs::write(store.folder(spec.claim).join("seed.iso"), "half a seed").expect("write");
    assert_eq!(state(&store, spec.claim).await, State::Absent);
    let driver = store.driver();
    driver
        .ensure_shared(&store.network)
        .await
        .expect("the network comes up");
    driver.create(&spec).await.expect("made");
    assert_eq!(state(&store, spec.claim).await, State::Running);
    assert!(store.seed(spec.claim).expect("a seed").len() > 30_000);
    assert!(!store.folder(spec.claim).join(".new-disk.qcow2").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_switch_comes_back_with_the_next_look() {
    let store = Store::new();
    let spec = made(&store).await;
    let segment = segment(&store);
    let machine = process(&store, spec.claim);
    let switches = || {
        bench::pids_with(&segment)
            .into_iter()
            .filter(|pid| *pid != machine)
            .collect::<Vec<_>>()
    };
    let [switch] = switches()[..] else {
        panic!("one switch, not {:?}", switches())
    };
    kill_process(switch, Signal::KILL).expect("killed");
    // A process that ends has no command line any more while its sockets are still bound.
    let bound = || {
        std::os::unix::net::UnixDatagram::unbound()
            .and_then(|probe| probe.connect(segment.join("switch")))
            .is_ok()
    };
    while bound() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(state(&store, spec.claim).await, State::Running);
    let after = switches();
    assert!(after.len() == 1 && after[0] != switch, "{after:?}");
    store
        .driver()
        .release_shared(&store.network)
        .await
        .expect("left alone");
    assert!(segment.join("switch").exists(), "a machine needs it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_on_a_taken_port_names_the_owner_and_starts_nothing() {
    let store = Store::new();
    let spec = made(&store).await;
    let driver = store.driver();
    driver
        .set_power(spec.claim, Power::Kill)
        .await
        .expect("off");
    let listener = TcpListener::bind(spec.forwards[0].host).expect("free now");
    let error = driver
        .set_power(spec.claim, Power::On)
        .await
        .expect_err("taken");
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(
        error
            .line()
            .contains(&format!("process {}", std::process::id())),
        "{}",
        error.line()
    );
    assert_eq!(state(&store, spec.claim).await, State::Stopped);
    drop(listener);
    driver.set_power(spec.claim, Power::On).await.expect("on");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_qemu_refuses_reaches_the_user() {
    let mut store = Store::new();
    store.config.cpu_model = Some("no-such-cpu".into());
    let spec = store.spec();
    let error = store
        .driver()
        .create(&spec)
        .await
        .expect_err("no such model");
    assert!(error.line().contains("no-such-cpu"), "{}", error.line());
    assert!(error.deepest_hint().is_some());
    store.driver().destroy(spec.claim).await.expect("removed");
    assert!(!store.folder(spec.claim).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_moved_starts_its_machines() {
    let store = Store::new();
    let spec = made(&store).await;
    store
        .driver()
        .set_power(spec.claim, Power::Kill)
        .await
        .expect("off");
    let record = fs::read_to_string(store.folder(spec.claim).join("vm.json")).expect("a record");
    assert!(
        !record.contains(store.root.to_str().expect("text")),
        "no path of the store in {record}"
    );
    let moved = store.root.join("elsewhere");
    fs::create_dir(&moved).expect("mkdir");
    for name in ["images", "drivers"] {
        fs::rename(store.root.join(name), moved.join(name)).expect("moved");
    }
    let mut there = store.with_disks_of(1 << 30);
    there.root = moved;
    there
        .driver()
        .set_power(spec.claim, Power::On)
        .await
        .expect("on");
    assert_eq!(state(&there, spec.claim).await, State::Running);
}
