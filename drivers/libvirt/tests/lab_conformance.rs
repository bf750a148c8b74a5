//! The driver against a real libvirtd, which has to be `qemu:///system`: what every driver promises.
//!
//! Run through `tests/lab/with-libvirt`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU8, Ordering};

use forge_driver::conformance::Bench;
use forge_driver::{BaseImage, Claim, Driver, DriverHome, Mac, Network, Nic, Seed, Spec};
use forge_libvirt::{AccelChoice, Config, LibvirtDriver};
use uuid::Uuid;

/// One store, on a network of its own.
struct Store {
    folder: tempfile::TempDir,
    config: Config,
    network: Network,
    given: AtomicU8,
}

/// Networks of one daemon must not overlap.
static NETWORKS: AtomicU8 = AtomicU8::new(1);

impl Store {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let image = folder.path().join("images/empty");
        std::fs::create_dir_all(&image).expect("mkdir");
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(image.join("disk.qcow2"))
            .arg("64M")
            .status()
            .expect("qemu-img is installed");
        assert!(made.success());
        let third = NETWORKS.fetch_add(1, Ordering::SeqCst);
        let config = Config {
            memory_mib: 128,
            disk_bytes: 1 << 30,
            accel: AccelChoice::Qemu,
            network_cidr: format!("10.99.{third}.0/24").parse().expect("a range"),
            ..Config::default()
        };
        let network = Network {
            id: Uuid::new_v4(),
            cidr: config.network_cidr,
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
            dir: self.folder.path().join("drivers/libvirt"),
            store: self.folder.path().to_owned(),
            runtime: self.folder.path().join("run"),
            assets: forge_driver::assets::Assets::default(),
        }
    }

    fn driver(&self) -> LibvirtDriver {
        LibvirtDriver::open(self.config.clone(), self.home())
    }
}

fn virsh(words: &[&str]) -> Output {
    Command::new("virsh")
        .args(["--quiet", "--connect", "qemu:///system"])
        .args(words)
        .env("LC_ALL", "C")
        .output()
        .expect("virsh is installed")
}

fn said(words: &[&str]) -> String {
    let output = virsh(words);
    assert!(
        output.status.success(),
        "{words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// The folder of the pool that the driver makes.
fn pool() -> PathBuf {
    Path::new("/var/lib/libvirt/images").to_owned()
}

impl Bench for Store {
    fn open(&self) -> Box<dyn Driver> {
        Box::new(self.driver())
    }

    fn spec(&self) -> Spec {
        let claim = Claim::random();
        let last = self.given.fetch_add(1, Ordering::SeqCst);
        let network = self.network.clone();
        let octets = network.cidr.network().octets();
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
                address: [octets[0], octets[1], octets[2], last].into(),
                mac: Mac::of(claim, 1),
            }),
            outer_mac: Mac::of(claim, 0),
            forwards: Vec::new(),
        }
    }

    fn network(&self) -> Option<Network> {
        Some(self.network.clone())
    }

    fn count(&self, claim: Claim) -> usize {
        said(&["list", "--all", "--uuid"])
            .lines()
            .filter(|line| line.trim() == claim.to_string())
            .count()
    }

    fn seed(&self, claim: Claim) -> Option<Vec<u8>> {
        std::fs::read(pool().join(format!("forge-{claim}-seed.iso"))).ok()
    }

    fn usurp(&self, claim: Claim) {
        let namespace = "https://github.com/forge-cluster/forge/libvirt/1";
        let mark = format!("<machine claim='{}'/>", Claim::random());
        let id = claim.to_string();
        said(&[
            "metadata", &id, namespace, "--key", "forge", "--set", &mark, "--config",
        ]);
    }
}

forge_driver::conforms!(
    Store::new();
    a_claim_is_found_by_another_instance,
    creating_twice_makes_one,
    destroying_twice_succeeds,
    power_goes_on_and_off,
    observations_come_in_the_order_asked,
    forwards_are_exact_and_come_back,
    a_foreign_machine_is_refused,
    a_blanked_seed_holds_nothing,
);

#[tokio::test(flavor = "multi_thread")]
async fn machines_that_leave_together_take_their_base_along() {
    let store = Store::new();
    let driver = store.driver();
    let specs = [store.spec(), store.spec(), store.spec()];
    for spec in &specs {
        driver.create(spec).await.expect("made");
    }
    let base = format!(
        "forge-base-{}",
        &store.network.owner.simple().to_string()[..8]
    );
    assert!(said(&["vol-list", "default"]).contains(&base));
    let [one, two, three] = specs.map(|spec| spec.claim);
    let (a, b, c) = tokio::join!(
        driver.destroy(one),
        driver.destroy(two),
        driver.destroy(three)
    );
    a.and(b).and(c).expect("destroyed");
    assert!(!said(&["vol-list", "default"]).contains(&base));
    driver
        .release_shared(&store.network)
        .await
        .expect("released");
}
