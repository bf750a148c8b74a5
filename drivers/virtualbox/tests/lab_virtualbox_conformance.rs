//! The driver against the real VBoxManage: what every driver promises.
//!
//! Run through `tests/lab/with-virtualbox`, which says what is real there and what is not.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use forge_driver::conformance::Bench;
use forge_driver::{
    BaseImage, Claim, Driver, DriverHome, Forward, Kind, Mac, Network, Nic, Power, Seed, Spec,
    State,
};
use forge_virtualbox::{Config, Lan, VirtualBoxDriver};
use uuid::Uuid;

/// One store, on a network of its own.
struct Store {
    folder: tempfile::TempDir,
    config: Config,
    network: Network,
    given: AtomicU8,
}

/// Loopback addresses of one host must not be shared by two machines, nor ranges by two networks.
static STORES: AtomicU8 = AtomicU8::new(1);

impl Store {
    fn new() -> Self {
        Self::on(|third| Lan::Internal {
            name: None,
            cidr: format!("10.99.{third}.0/24").parse().expect("a range"),
        })
    }

    fn on(lan: impl FnOnce(u8) -> Lan) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        forge_driver::conformance::empty_image(folder.path());
        let third = STORES.fetch_add(1, Ordering::SeqCst);
        let config = Config {
            memory_mib: 128,
            disk_bytes: 1 << 30,
            lan: lan(third),
            ..Config::default()
        };
        let network = Network {
            id: Uuid::new_v4(),
            cidr: config.network_cidr(),
            owner: Uuid::new_v4(),
        };
        Self {
            folder,
            config,
            network,
            given: AtomicU8::new(100),
        }
    }

    fn home(&self) -> DriverHome {
        DriverHome {
            dir: self.folder.path().join("drivers/virtualbox"),
            store: self.folder.path().to_owned(),
            owner: Uuid::nil(),
            runtime: self.folder.path().join("run/store"),
            assets: forge_driver::assets::Assets::default(),
            token: forge_driver::Token::default(),
        }
    }

    fn driver(&self) -> VirtualBoxDriver {
        VirtualBoxDriver::open(self.config.clone(), self.home())
    }

    fn file(&self, claim: Claim, name: &str) -> PathBuf {
        self.home().dir.join(claim.to_string()).join(name)
    }
}

fn said(words: &[&str]) -> String {
    let output = Command::new("VBoxManage")
        .args(words)
        .output()
        .expect("VBoxManage is there");
    assert!(
        output.status.success(),
        "{words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

impl Bench for Store {
    fn open(&self) -> Box<dyn Driver> {
        Box::new(self.driver())
    }

    fn spec(&self) -> Spec {
        let claim = Claim::random();
        let last = self.given.fetch_add(1, Ordering::SeqCst);
        let network = self.network.clone();
        let [a, b, third, _] = network.cidr.network().octets();
        let host = Ipv4Addr::new(127, 99, third, last);
        let forward = |guest: u16, port: u16| Forward {
            guest,
            host: SocketAddr::from((host, port)),
        };
        let internal = matches!(self.config.lan, Lan::Internal { .. });
        Spec {
            claim,
            name: format!("n-{claim}"),
            image: BaseImage {
                disk: self.folder.path().join("images/empty/disk.qcow2"),
                kernel: None,
                size: 64 << 20,
            },
            seed: Seed {
                user_data: format!("#cloud-config\n# PRIVATE {claim}\n"),
                meta_data: "instance-id: x\n".into(),
                network_config: "version: 2\n".into(),
            },
            nic: Some(Nic {
                network,
                address: [a, b, third, last].into(),
                mac: Mac::of(claim, 1),
            }),
            outer_mac: Mac::of(claim, 0),
            forwards: if internal {
                vec![forward(22, 2222), forward(2376, 2376)]
            } else {
                Vec::new()
            },
        }
    }

    fn network(&self) -> Option<Network> {
        Some(self.network.clone())
    }

    fn count(&self, claim: Claim) -> usize {
        let id = format!("{{{claim}}}");
        said(&["list", "vms"])
            .lines()
            .filter(|line| line.ends_with(&id))
            .count()
    }

    fn seed(&self, claim: Claim) -> Option<Vec<u8>> {
        std::fs::read(self.file(claim, "seed.iso")).ok()
    }

    fn usurp(&self, claim: Claim) {
        let id = claim.to_string();
        said(&["unregistervm", &id]);
        let elsewhere = self.folder.path().join("theirs");
        let folder = elsewhere.to_str().expect("text");
        let make = ["createvm", "--name", "theirs", "--uuid", &id, "--register"];
        said(&[&make[..], &["--basefolder", folder]].concat());
    }
}

forge_driver::conforms!(
    Store::new();
    a_claim_is_found_by_another_instance,
    creating_twice_makes_one,
    five_at_once_have_five_addresses,
    destroying_twice_succeeds,
    power_goes_on_and_off,
    observations_come_in_the_order_asked,
    forwards_are_exact_and_come_back,
    a_foreign_machine_is_refused,
    a_blanked_seed_holds_nothing,
);

/// What VirtualBox knows that lies in this store.
fn known(store: &Store) -> Vec<String> {
    let folder = store.folder.path().to_string_lossy().into_owned();
    let mut known = Vec::new();
    for list in ["hdds", "dvds"] {
        known.extend(
            said(&["list", list])
                .lines()
                .filter(|line| line.starts_with("Location:") && line.contains(&folder))
                .map(str::to_owned),
        );
    }
    let network = format!("forge-{}", &store.network.id.simple().to_string()[..8]);
    known.extend(
        said(&["list", "dhcpservers"])
            .lines()
            .filter(|line| line.contains(&network))
            .map(str::to_owned),
    );
    known
}

#[tokio::test(flavor = "multi_thread")]
async fn each_has_a_lease_and_the_last_takes_all_along() {
    let store = Store::new();
    let driver = store.driver();
    let specs: Vec<Spec> = (0..3).map(|_| store.spec()).collect();
    for made in futures_util::future::join_all(specs.iter().map(|spec| driver.create(spec))).await {
        made.expect("made");
    }
    // Each has a fixed lease of its own, and the base is there once.
    let leases = said(&["list", "dhcpservers"]);
    for spec in &specs {
        let nic = spec.nic.as_ref().expect("a place");
        assert!(leases.contains(&format!("VM NIC: {} slot 1", spec.claim)));
        assert!(leases.contains(&nic.address.to_string()));
    }
    let bases = known(&store)
        .into_iter()
        .filter(|line| line.contains("/bases/"));
    assert_eq!(bases.count(), 1);
    let gone = specs.iter().map(|spec| driver.destroy(spec.claim));
    for done in futures_util::future::join_all(gone).await {
        done.expect("destroyed");
    }
    driver
        .release_shared(&store.network)
        .await
        .expect("released");
    assert_eq!(known(&store), Vec::<String>::new());
    let base = store.home().dir.join("bases/empty.vdi");
    assert!(base.exists(), "what was converted serves the next machine");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_disk_costs_no_more_than_a_small_one() {
    let (small, mut large) = (Store::new(), Store::new());
    large.config.disk_bytes = 200 << 30;
    let allocated = |claim: Claim| {
        use std::os::unix::fs::MetadataExt;
        let file = [&small, &large]
            .map(|store| store.file(claim, "disk.vdi"))
            .into_iter()
            .find(|file| file.exists())
            .expect("a disk");
        std::fs::metadata(file).expect("stat").blocks() * 512
    };
    forge_driver::conformance::a_large_disk_costs_no_more_than_a_small_one(
        &small, &large, &allocated,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_call_that_was_cut_off_left_is_built_over() {
    let store = Store::new();
    let driver = store.driver();
    let spec = store.spec();
    driver.create(&spec).await.expect("made");
    driver
        .set_power(spec.claim, Power::Kill)
        .await
        .expect("off");
    // As it is when the call ended before its last save: VirtualBox has parts, the record knows of no whole machine.
    let record = store.file(spec.claim, "box.json");
    let text = std::fs::read_to_string(&record).expect("the record");
    let unfinished = text.replace("\"whole\": true", "\"whole\": false");
    assert_ne!(text, unfinished);
    let id = spec.claim.to_string();
    for (left, words) in [
        ("all of it", None),
        (
            "a machine without its controller",
            Some(["storagectl", &id, "--name", "IDE", "--remove"]),
        ),
        (
            "a disk that is attached to nothing",
            Some(["unregistervm", &id, "", "", ""]),
        ),
    ] {
        std::fs::write(&record, &unfinished).expect("written");
        if let Some(words) = words {
            let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
            said(&words);
        }
        driver
            .create(&spec)
            .await
            .unwrap_or_else(|error| panic!("{left}: {}", error.line()));
        assert_eq!(store.count(spec.claim), 1, "{left}");
        driver
            .set_power(spec.claim, Power::Kill)
            .await
            .expect("off");
    }
    driver.destroy(spec.claim).await.expect("destroyed");
    driver
        .release_shared(&store.network)
        .await
        .expect("released");
    assert_eq!(known(&store), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_behind_forge_s_back_is_told_and_removed() {
    let store = Store::new();
    let driver = store.driver();
    let observed = |claim: Claim| {
        let driver = store.driver();
        async move { driver.observe(&[claim]).await.expect("observed")[0].state }
    };

    // The machine itself.
    let spec = store.spec();
    driver.create(&spec).await.expect("made");
    driver
        .set_power(spec.claim, Power::Kill)
        .await
        .expect("off");
    said(&["unregistervm", &spec.claim.to_string()]);
    assert_eq!(observed(spec.claim).await, State::Absent);
    let error = driver.create(&spec).await.expect_err("it was whole");
    assert_eq!(error.kind(), Kind::NotFound);
    driver.destroy(spec.claim).await.expect("destroyed");

    // Its base image.
    let (spec, other) = (store.spec(), store.spec());
    driver.create(&spec).await.expect("made");
    driver.create(&other).await.expect("made");
    for claim in [spec.claim, other.claim] {
        driver.set_power(claim, Power::Kill).await.expect("off");
    }
    std::fs::remove_file(store.home().dir.join("bases/empty.vdi")).expect("removed");
    let error = driver.set_power(spec.claim, Power::On).await;
    let error = error.expect_err("without its base");
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(
        error.message().contains("/bases/empty.vdi`, is gone"),
        "{}",
        error.line()
    );
    for claim in [spec.claim, other.claim] {
        driver.destroy(claim).await.expect("destroyed");
    }
    driver
        .release_shared(&store.network)
        .await
        .expect("released");
    assert_eq!(known(&store), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_hand_did_to_a_machine_is_told_and_mended() {
    let store = Store::new();
    let driver = store.driver();
    let spec = store.spec();
    driver.create(&spec).await.expect("made");
    let id = spec.claim.to_string();
    let state = || async { driver.observe(&[spec.claim]).await.expect("observed")[0].state };
    for power in [Power::Shutdown, Power::On] {
        said(&["controlvm", &id, "pause"]);
        assert_eq!(state().await, State::Paused);
        driver.set_power(spec.claim, power).await.expect("asked");
        assert_eq!(state().await, State::Running, "{power:?}");
    }
    said(&["controlvm", &id, "savestate"]);
    assert_eq!(state().await, State::Saved);
    driver.create(&spec).await.expect("goes on");
    assert_eq!(state().await, State::Running);

    // Off at once is off, whatever was saved.
    said(&["controlvm", &id, "savestate"]);
    driver
        .set_power(spec.claim, Power::Kill)
        .await
        .expect("off");
    assert_eq!(state().await, State::Stopped);

    // Renamed, off its networks, without its disk, one of its ports and the server.
    let network = format!("forge-{}", &store.network.id.simple().to_string()[..8]);
    let rule = format!("forge-{}-2222", spec.forwards[0].host.ip());
    said(&["modifyvm", &id, "--natpf1", "delete", &rule]);
    said(&[
        "modifyvm", &id, "--name", "other", "--nic1", "none", "--nic2", "none",
    ]);
    let slot = ["--storagectl", "IDE", "--port", "0", "--device", "0"];
    said(&[&["storageattach", &id][..], &slot, &["--medium", "none"]].concat());
    said(&["dhcpserver", "remove", "--network", &network]);
    driver
        .set_power(spec.claim, Power::On)
        .await
        .expect("mended");
    assert_eq!(state().await, State::Running);
    let shown = said(&["showvminfo", &id, "--machinereadable"]);
    for line in [
        format!("intnet2=\"{network}\""),
        "nic1=\"nat\"".to_owned(),
        "nic2=\"intnet\"".to_owned(),
        format!("=\"{rule},tcp,"),
        format!(
            "\"IDE-0-0\"=\"{}\"",
            store.file(spec.claim, "disk.vdi").display()
        ),
    ] {
        assert!(shown.contains(&line), "{line} in {shown}");
    }
    let leases = said(&["list", "dhcpservers"]);
    assert!(leases.contains(&format!("VM NIC: {id} slot 1")), "{leases}");

    // A snapshot was taken, what was written since is kept, and its state is saved: it goes all the same.
    driver
        .set_power(spec.claim, Power::Kill)
        .await
        .expect("off");
    said(&["snapshot", &id, "take", "theirs"]);
    let disk = || {
        let shown = said(&["showvminfo", &id, "--machinereadable"]);
        let mut lines = shown.lines();
        let line = lines.find(|line| line.starts_with("\"IDE-0-0\""));
        line.expect("a disk").to_owned()
    };
    let since = disk();
    assert!(since.contains("/Snapshots/"), "{since}");
    driver.set_power(spec.claim, Power::On).await.expect("on");
    assert_eq!(disk(), since);
    said(&["controlvm", &id, "savestate"]);
    driver.destroy(spec.claim).await.expect("destroyed");

    // Its disk is lost.
    let lost = store.spec();
    driver.create(&lost).await.expect("made");
    driver
        .set_power(lost.claim, Power::Kill)
        .await
        .expect("off");
    std::fs::remove_file(store.file(lost.claim, "disk.vdi")).expect("removed");
    let error = driver.set_power(lost.claim, Power::On).await;
    let error = error.expect_err("without its disk");
    assert_eq!(error.kind(), Kind::Corrupt);
    driver.destroy(lost.claim).await.expect("destroyed");
    driver
        .release_shared(&store.network)
        .await
        .expect("released");
    assert_eq!(known(&store), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_only_interface_is_made_again_and_somebody_else_s_is_left_alone() {
    let store = Store::on(|_| Lan::HostOnly {
        host: Ipv4Addr::new(192, 168, 58, 1),
        cidr: "192.168.58.0/24".parse().expect("a range"),
        dhcp: true,
    });
    let driver = store.driver();
    let spec = store.spec();
    driver.create(&spec).await.expect("made");
    driver
        .set_power(spec.claim, Power::Kill)
        .await
        .expect("off");
    let interface = || {
        let text = said(&["list", "hostonlyifs"]);
        let name = text.lines().find_map(|line| line.strip_prefix("Name:"));
        (name.unwrap_or_default().trim().to_owned(), text)
    };
    said(&["hostonlyif", "remove", &interface().0]);
    driver
        .set_power(spec.claim, Power::On)
        .await
        .expect("mended");
    let (name, text) = interface();
    assert!(text.contains("192.168.58.1\n"), "{text}");
    let shown = said(&["showvminfo", &spec.claim.to_string(), "--machinereadable"]);
    assert!(
        shown.contains(&format!("hostonlyadapter2=\"{name}\"")),
        "{shown}"
    );
    driver.destroy(spec.claim).await.expect("destroyed");

    // Somebody took it for something else.
    let theirs = ["--ip", "192.168.59.1", "--netmask", "255.255.255.0"];
    said(&[&["hostonlyif", "ipconfig", &name][..], &theirs].concat());
    driver
        .release_shared(&store.network)
        .await
        .expect("released");
    let (_, text) = interface();
    assert!(text.contains("192.168.59.1\n"), "{text}");
    let servers = said(&["list", "dhcpservers"]);
    assert!(!servers.contains("192.168.58.99"), "{servers}");
    said(&["hostonlyif", "remove", &name]);
    assert_eq!(known(&store), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_are_reused_when_equal_and_refused_when_not() {
    let store = Store::on(|third| Lan::Internal {
        name: Some(format!("given-{third}")),
        cidr: format!("10.99.{third}.0/24").parse().expect("a range"),
    });
    let Lan::Internal {
        name: Some(name),
        cidr,
    } = &store.config.lan
    else {
        panic!("an internal network");
    };
    let third = cidr.network().octets()[2];
    let server = |verb: &str, last: u8| {
        let ip = |last: u8| format!("10.99.{third}.{last}");
        said(&[
            "dhcpserver",
            verb,
            "--network",
            name,
            "--server-ip",
            &ip(last),
            "--netmask",
            "255.255.255.0",
            "--lower-ip",
            &ip(100),
            "--upper-ip",
            &ip(200),
            "--enable",
        ]);
    };
    server("add", 98);
    let driver = store.driver();
    let spec = store.spec();
    let error = driver
        .check(std::slice::from_ref(&spec))
        .await
        .expect_err("another server");
    assert_eq!(error.kind(), Kind::Precheck);
    assert!(
        error.message().contains(".98") && error.message().contains(".99"),
        "{}",
        error.line()
    );
    server("modify", 99);
    let disable = ["dhcpserver", "modify", "--network", name, "--disable"];
    said(&disable);
    let refused = driver.check(std::slice::from_ref(&spec)).await;
    let refused = refused.expect_err("a server that is switched off");
    assert!(
        refused.message().contains(", disabled instead of"),
        "{}",
        refused.line()
    );
    let error = driver
        .ensure_shared(&store.network)
        .await
        .expect_err("the same");
    assert_eq!(error.message(), refused.message());
    server("modify", 99);
    driver
        .check(std::slice::from_ref(&spec))
        .await
        .expect("equal");
    driver.create(&spec).await.expect("made");

    // An address that somebody gave away there.
    let taken = store.spec();
    let address = taken.nic.as_ref().expect("a place").address.to_string();
    let modify = [
        "dhcpserver",
        "modify",
        "--network",
        name,
        "--mac-address",
        "080027000001",
    ];
    said(&[&modify[..], &["--fixed-address", &address]].concat());
    let error = driver.create(&taken).await.expect_err("given away");
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.message().contains(&address), "{}", error.line());

    for claim in [spec.claim, taken.claim] {
        driver.destroy(claim).await.expect("destroyed");
    }
    driver
        .release_shared(&store.network)
        .await
        .expect("released");
    let left = said(&["list", "dhcpservers"]);
    assert!(left.contains(name), "it was there before: {left}");
    said(&["dhcpserver", "remove", "--network", name]);

    let mut overlapping = Store::new();
    let wide = Network {
        id: Uuid::new_v4(),
        cidr: "10.98.0.0/16".parse().expect("a range"),
        owner: Uuid::new_v4(),
    };
    overlapping.config.lan = Lan::Internal {
        name: None,
        cidr: wide.cidr,
    };
    overlapping.network = wide;
    let dhcp = ["--server-ip", "10.98.5.1", "--netmask", "255.255.255.0"];
    let range = [
        "--lower-ip",
        "10.98.5.2",
        "--upper-ip",
        "10.98.5.9",
        "--enable",
    ];
    said(
        &[
            &["dhcpserver", "add", "--network", "wide-test"],
            &dhcp[..],
            &range[..],
        ]
        .concat(),
    );
    let error = overlapping
        .driver()
        .check(&[overlapping.spec()])
        .await
        .expect_err("overlaps");
    said(&["dhcpserver", "remove", "--network", "wide-test"]);
    assert!(
        error.message().contains("10.98.0.0/16") && error.message().contains("`wide-test`"),
        "{}",
        error.line()
    );
}
