//! The provider made of folders against what every driver promises: it stands for a real one in the tests
//! of resumption only as far as it passes what the real ones pass.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};

use forge_driver::conformance::Bench;
use forge_driver::fake::{FakeDriver, Knob, Provider};
use forge_driver::{
    BaseImage, Claim, Driver, Forward, Kind, Mac, Network, Nic, Power, Seed, Spec, State,
};
use uuid::Uuid;

/// The last byte of the address that is given next.
static GIVEN: AtomicU8 = AtomicU8::new(11);

struct Folder {
    folder: tempfile::TempDir,
    network: Network,
}

impl Folder {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder"),
            network: Network {
                id: Uuid::new_v4(),
                cidr: "10.133.7.0/24".parse().expect("a range"),
                owner: Uuid::new_v4(),
            },
        }
    }

    fn provider(&self) -> Provider {
        Provider::at(self.folder.path())
    }
}

impl Bench for Folder {
    fn open(&self) -> Box<dyn Driver> {
        Box::new(FakeDriver::listening(self.folder.path()).expect("opens"))
    }

    fn spec(&self) -> Spec {
        let claim = Claim::random();
        let bytes = claim.bytes();
        // An address of its own, so that tests do not meet at a port.
        let ip = IpAddr::V4(Ipv4Addr::new(
            127,
            160 | (bytes[0] & 0x1f),
            bytes[1],
            bytes[2].clamp(1, 254),
        ));
        let forward = |guest: u16, port: u16| Forward {
            guest,
            host: SocketAddr::new(ip, port),
        };
        Spec {
            claim,
            name: "n1".into(),
            image: BaseImage {
                disk: PathBuf::from("none"),
                kernel: None,
                size: 1 << 20,
            },
            seed: Seed {
                user_data: format!("#cloud-config\n# forge-seed 1\n# {claim}\n"),
                meta_data: "instance-id: n1\n".into(),
                network_config: "version: 2\n".into(),
            },
            nic: Some(Nic {
                network: self.network.clone(),
                address: Ipv4Addr::new(10, 133, 7, GIVEN.fetch_add(1, Ordering::SeqCst)),
                mac: Mac::of(claim, 1),
            }),
            outer_mac: Mac::of(claim, 0),
            forwards: vec![forward(22, 2222), forward(2376, 2376)],
        }
    }

    fn network(&self) -> Option<Network> {
        Some(self.network.clone())
    }

    fn count(&self, claim: Claim) -> usize {
        let vms = self.provider().vms().expect("listed");
        vms.iter().filter(|vm| vm.claim == claim).count()
    }

    fn seed(&self, claim: Claim) -> Option<Vec<u8>> {
        std::fs::read(self.provider().folder(claim).join("seed")).ok()
    }

    fn usurp(&self, claim: Claim) {
        let record = self.provider().folder(claim).join("vm.json");
        let text = std::fs::read_to_string(&record).expect("a record");
        std::fs::write(
            record,
            text.replace(&claim.to_string(), &Claim::random().to_string()),
        )
        .expect("write");
    }
}

forge_driver::conforms!(
    Folder::new();
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

#[tokio::test(flavor = "multi_thread")]
async fn every_create_is_on_the_list_and_nothing_is_left_of_what_was_removed() {
    let bench = Folder::new();
    let driver = bench.open();
    driver.ensure_shared(&bench.network).await.expect("up");
    let (one, two) = (bench.spec(), bench.spec());
    for spec in [&one, &one, &two] {
        driver.create(spec).await.expect("made");
    }
    let provider = bench.provider();
    assert_eq!(
        provider.creates(),
        [&one, &two].map(|spec| (spec.claim.to_string(), "n1".to_owned()))
    );
    assert_eq!(provider.vms().expect("listed").len(), 2);
    driver.release_shared(&bench.network).await.expect("in use");
    assert_eq!(
        provider.networks().expect("listed"),
        [bench.network.id.to_string()]
    );
    for spec in [&one, &two] {
        driver.destroy(spec.claim).await.expect("removed");
    }
    driver.release_shared(&bench.network).await.expect("down");
    assert!(provider.networks().expect("listed").is_empty());
    assert!(provider.vms().expect("listed").is_empty());
    assert_eq!(provider.creates().len(), 2, "the list keeps what was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn knobs_change_what_they_are_named_for() {
    let bench = Folder::new();
    let driver = bench.open();
    let spec = bench.spec();
    driver.create(&spec).await.expect("made");
    let turn =
        |knob: Knob| std::fs::write(bench.folder.path().join(knob.file()), "").expect("turned");
    turn(Knob::DeafToShutdown);
    driver
        .set_power(spec.claim, Power::Shutdown)
        .await
        .expect("asked");
    let seen = driver.observe(&[spec.claim]).await.expect("observed");
    assert_eq!(seen[0].state, State::Running);
    turn(Knob::Down);
    let error = driver.observe(&[spec.claim]).await.expect_err("down");
    assert_eq!(error.kind(), Kind::Unavailable);
}
