//! The driver against a real libvirtd, which has to be `qemu:///system`: what every driver promises.
//!
//! Run through `tests/lab/with-libvirt --hosts 2`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU8, Ordering};

use forge_driver::conformance::{self, Bench};
use forge_driver::{
    BaseImage, Claim, Driver, DriverHome, Kind, Mac, Network, Nic, Power, Seed, Spec, State,
};
use forge_libvirt::{AccelChoice, Choice, Config, LibvirtDriver};
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
        conformance::empty_image(folder.path());
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
            owner: self.network.owner,
            runtime: self.folder.path().join("run"),
            assets: forge_driver::assets::Assets::default(),
            token: forge_driver::Token::default(),
        }
    }

    /// The same, with another configuration.
    fn with(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// How the volumes of its base images begin.
    fn base(&self) -> String {
        let owner = self.network.owner.simple().to_string();
        format!("forge-base-{}", &owner[..8])
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
            nic: self.config.network.own().then(|| Nic {
                network,
                address: [octets[0], octets[1], octets[2], last].into(),
                mac: Mac::of(claim, 1),
            }),
            outer_mac: Mac::of(claim, 0),
            forwards: Vec::new(),
        }
    }

    fn network(&self) -> Option<Network> {
        self.config.network.own().then(|| self.network.clone())
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
    five_at_once_have_five_addresses,
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
    let base = store.base();
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

#[tokio::test(flavor = "multi_thread")]
async fn a_large_disk_costs_no_more_than_a_small_one() {
    let sized = |bytes: u64| Store::new().with(|config| config.disk_bytes = bytes);
    let (small, large) = (sized(20 << 30), sized(200 << 30));
    let allocated = |claim| {
        let disk = pool().join(format!("forge-{claim}.qcow2"));
        std::fs::metadata(disk).expect("a disk").blocks() * 512
    };
    conformance::a_large_disk_costs_no_more_than_a_small_one(&small, &large, &allocated).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_was_removed_comes_back_with_its_leases() {
    let store = Store::new();
    let driver = store.driver();
    let spec = store.spec();
    let made = driver.create(&spec).await.expect("made");
    driver
        .set_power(spec.claim, Power::Kill)
        .await
        .expect("off");
    let network = store.network.id.to_string();
    said(&["net-destroy", &network]);
    said(&["net-undefine", &network]);
    driver.set_power(spec.claim, Power::On).await.expect("on");
    let text = said(&["net-dumpxml", &network]);
    let address = made.endpoints.ssh.ip().to_string();
    assert!(text.contains(&address), "{address}: {text}");
    // So does a machine under another name.
    said(&["destroy", &spec.claim.to_string()]);
    said(&["domrename", &spec.claim.to_string(), "other"]);
    let seen = driver.observe(&[spec.claim]).await.expect("observed");
    assert_eq!(seen[0].state, State::Stopped);
    driver.destroy(spec.claim).await.expect("destroyed");
    assert!(!said(&["net-list", "--all", "--uuid"]).contains(&network));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_that_somebody_saved_paused_or_undefined_is_no_dead_end() {
    let store = Store::new();
    let (driver, spec) = (store.driver(), store.spec());
    let id = spec.claim.to_string();
    let state = async || {
        let seen = driver.observe(&[spec.claim]).await;
        seen.expect("observed")[0].state
    };
    driver.create(&spec).await.expect("made");
    said(&["managedsave", &id]);
    assert_eq!(state().await, State::Saved);
    driver
        .set_power(spec.claim, Power::Kill)
        .await
        .expect("off");
    assert_eq!(state().await, State::Stopped);
    driver.set_power(spec.claim, Power::On).await.expect("on");
    said(&["suspend", &id]);
    assert_eq!(state().await, State::Paused);
    driver
        .set_power(spec.claim, Power::Shutdown)
        .await
        .expect("asked");
    assert_eq!(state().await, State::Running);
    // It runs on, and is gone as soon as it is off.
    said(&["undefine", &id]);
    driver.destroy(spec.claim).await.expect("destroyed");
    assert_eq!(store.count(spec.claim), 0);
    assert!(!said(&["vol-list", "default"]).contains(&id));
}

/// A network of somebody else's, with libvirt's server on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_named_network_is_started_and_gives_fixed_addresses() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let text = "<network><name>lan</name><forward mode='nat'/><ip address='10.98.0.1' prefix='29'>\
        <dhcp><range start='10.98.0.2' end='10.98.0.6'/></dhcp></ip></network>";
    std::fs::write(file.path(), text).expect("written");
    said(&["net-define", &file.path().to_string_lossy()]);
    let named = |name: &str| {
        let network = name.parse().expect("a network");
        Store::new().with(|config| config.network = network)
    };
    let missing = named("nolan");
    let error = missing
        .driver()
        .check(&[missing.spec()])
        .await
        .expect_err("there is none");
    assert_eq!(error.kind(), Kind::Precheck);
    assert!(error.deepest_hint().expect("a hint").contains("`lan`"));
    conformance::five_at_once_have_five_addresses(&named("lan")).await;

    let store = named("lan");
    assert_eq!(store.config.network, Choice::Named("lan".into()));
    let (driver, spec) = (store.driver(), store.spec());
    let made = driver.create(&spec).await.expect("made");
    let entry = format!("ip='{}'", made.endpoints.ssh.ip());
    assert!(said(&["net-dumpxml", "lan"]).contains(&entry));
    driver
        .set_power(spec.claim, Power::Kill)
        .await
        .expect("off");
    driver.set_power(spec.claim, Power::On).await.expect("on");
    let seen = driver.observe(&[spec.claim]).await.expect("observed");
    assert_eq!(seen[0].instance.as_ref(), Some(&made));

    // Another store with an image of the same name takes only its own along.
    let theirs = named("lan");
    let other = theirs.spec();
    theirs.driver().create(&other).await.expect("made");
    let gone = theirs.driver().destroy(other.claim).await;
    gone.expect("destroyed");
    let left = said(&["vol-list", "default"]);
    assert!(left.contains(&store.base()) && !left.contains(&theirs.base()));
    driver.destroy(spec.claim).await.expect("destroyed");
    assert!(!said(&["net-dumpxml", "lan"]).contains("<host"));
    said(&["net-destroy", "lan"]);
    said(&["net-undefine", "lan"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_full_is_told_and_gone_on_with() {
    let folder = tempfile::tempdir().expect("a folder");
    let target = folder.path().to_string_lossy().into_owned();
    let mount = |options: &str| {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs", &target])
            .status()
            .expect("mount");
        assert!(mounted.success());
    };
    mount("size=128k");
    said(&["pool-define-as", "narrow", "dir", "--target", &target]);
    let store = Store::new().with(|config| config.pool = "narrow".into());
    let (driver, spec) = (store.driver(), store.spec());
    let error = driver
        .check(std::slice::from_ref(&spec))
        .await
        .expect_err("too full");
    assert_eq!(error.kind(), Kind::Precheck);
    assert!(error.message().contains("too full"), "{}", error.line());
    let error = driver.create(&spec).await.expect_err("too full");
    assert_eq!(error.kind(), Kind::Io, "{}", error.line());
    mount("remount,size=64m");
    driver.create(&spec).await.expect("gone on with");
    driver.destroy(spec.claim).await.expect("destroyed");
    assert_eq!(said(&["vol-list", "narrow"]).trim(), "");
    said(&["pool-destroy", "narrow"]);
    said(&["pool-undefine", "narrow"]);
    let unmounted = Command::new("umount").arg(&target).status();
    assert!(unmounted.expect("umount").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_base_image_is_told() {
    let store = Store::new();
    let spec = store.spec();
    std::fs::write(&spec.image.disk, b"no disk at all").expect("written");
    let driver = store.driver();
    let error = driver.create(&spec).await.expect_err("damaged");
    assert!(error.line().contains("qcow2"), "{}", error.line());
    assert_eq!(store.count(spec.claim), 0);
    driver.destroy(spec.claim).await.expect("destroyed");
    let left = said(&["vol-list", "default"]);
    assert!(!left.contains(&spec.claim.to_string()), "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_was_changed_is_brought_again() {
    let store = Store::new();
    let (driver, spec) = (store.driver(), store.spec());
    driver.create(&spec).await.expect("made");
    let base = only(&pool(), &store.base());
    let whole = std::fs::read(&base).expect("the volume");
    for damage in [
        // Cut short, of the same length and another content, and gone.
        (|base: &Path, _: &[u8]| std::fs::write(base, b"short")) as fn(&Path, &[u8]) -> _,
        |base, whole| std::fs::write(base, vec![7; whole.len()]),
        |base, _| std::fs::remove_file(base),
    ] {
        damage(&base, &whole).expect("damaged");
        driver
            .set_power(spec.claim, Power::Kill)
            .await
            .expect("off");
        let error = driver.set_power(spec.claim, Power::On).await;
        let hint = error
            .expect_err("no base")
            .deepest_hint()
            .map(str::to_owned);
        assert!(hint.expect("a hint").contains("brings it again"));
        let other = store.spec();
        driver.create(&other).await.expect("made");
        assert!(std::fs::read(&base).expect("the volume") == whole);
        driver.set_power(spec.claim, Power::On).await.expect("on");
        driver.destroy(other.claim).await.expect("destroyed");
    }
    driver.destroy(spec.claim).await.expect("destroyed");
    assert!(!base.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_stopped_or_without_its_folder_is_told_or_started() {
    let folder = tempfile::tempdir().expect("a folder");
    let target = folder.path().join("disks");
    let path = target.to_string_lossy().into_owned();
    said(&["pool-define-as", "resting", "dir", "--target", &path]);
    let store = Store::new().with(|config| config.pool = "resting".into());
    let (driver, spec) = (store.driver(), store.spec());
    driver
        .check(std::slice::from_ref(&spec))
        .await
        .expect("nobody knows what it has room for");
    let error = driver.create(&spec).await.expect_err("no folder");
    assert!(error.deepest_hint().expect("a hint").contains("pool-build"));
    driver.destroy(spec.claim).await.expect("nothing was in it");
    std::fs::create_dir(&target).expect("mkdir");
    let spec = store.spec();
    driver.create(&spec).await.expect("made");
    driver
        .set_power(spec.claim, Power::Kill)
        .await
        .expect("off");
    said(&["pool-destroy", "resting"]);
    driver.set_power(spec.claim, Power::On).await.expect("on");
    driver.destroy(spec.claim).await.expect("destroyed");
    assert_eq!(said(&["vol-list", "resting"]).trim(), "");
    said(&["pool-destroy", "resting"]);
    said(&["pool-undefine", "resting"]);
}

/// The folder of the pool on the other host.
fn far_pool() -> PathBuf {
    let folder = std::env::var_os("FORGE_LIBVIRT_FOLDER").expect("run by with-libvirt");
    Path::new(&folder).join("2/lib/images")
}

fn only(folder: &Path, prefix: &str) -> PathBuf {
    let found = std::fs::read_dir(folder)
        .expect("a folder")
        .flatten()
        .map(|entry| entry.path());
    let mut found: Vec<PathBuf> = found
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().contains(prefix))
        })
        .collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_to_another_host_goes_on_where_it_was_cut_off() {
    let there = "qemu+ssh://10.199.0.2/system";
    let store = Store::new().with(|config| config.uri = there.parse().expect("a daemon"));
    let (driver, spec) = (store.driver(), store.spec());
    // More than two pieces, none like another.
    let mut bytes = std::fs::read(&spec.image.disk).expect("the image");
    bytes.extend((0_u32..20 << 20).flat_map(u32::to_le_bytes));
    std::fs::write(&spec.image.disk, &bytes).expect("written");
    driver
        .check(std::slice::from_ref(&spec))
        .await
        .expect("the check passes");
    driver.create(&spec).await.expect("made");
    let base = only(&far_pool(), &store.base());
    assert!(std::fs::read(&base).expect("the volume") == bytes);

    // As a cut in the second piece would have left it.
    let notes = only(&store.home().dir.join("bases"), "10.199.0.2");
    let note = only(&notes, "default.forge-base");
    let text = std::fs::read_to_string(&note).expect("the note");
    let piece: u64 = 32 << 20;
    let cut = text.replace(
        &format!("\"arrived\": {}", bytes.len()),
        &format!("\"arrived\": {piece}"),
    );
    assert_ne!(cut, text);
    std::fs::write(&note, cut).expect("written");
    let mut torn = bytes.clone();
    torn[(piece as usize)..].fill(7);
    // What had arrived is not sent again.
    torn[1 << 20] ^= 1;
    std::fs::write(&base, &torn).expect("written");
    let other = store.spec();
    driver.create(&other).await.expect("made");
    let after = std::fs::read(&base).expect("the volume");
    torn[(piece as usize)..].copy_from_slice(&bytes[(piece as usize)..]);
    assert!(after == torn);

    let seen = driver
        .observe(&[spec.claim, other.claim])
        .await
        .expect("observed");
    assert!(seen.iter().all(|seen| seen.state == State::Running));
    assert_eq!(driver.console(spec.claim), None);
    let console = far_pool().join(format!("forge-{}.log", spec.claim));
    std::fs::write(console, "it booted\n").expect("written");
    let read = driver.read_console(spec.claim).await.expect("read");
    assert_eq!(read.as_deref(), Some(&b"it booted\n"[..]));
    for spec in [&spec, &other] {
        driver.destroy(spec.claim).await.expect("destroyed");
    }
    assert!(!base.exists());
}
