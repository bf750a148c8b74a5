//! The suite that every driver has to pass: what the trait [`Driver`] promises, asked of the real one.
//!
//! A driver's tests implement [`Bench`] and call each function once. They panic with what was broken.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::{Claim, Driver, Forward, Kind, Network, Power, Spec, State};

/// How long a machine may take to change its state.
const DEADLINE: Duration = Duration::from_secs(60);

/// What the suite needs to know about one driver. Everything that is opened on one bench shares one
/// store, as the commands of a user do.
pub trait Bench: Sync {
    /// A new instance of the driver, which knows nothing of earlier ones.
    fn open(&self) -> Box<dyn Driver>;

    /// A wish for a machine that does not exist yet. Its guest need not come up.
    fn spec(&self) -> Spec;

    /// The network that these machines are on, if they are on one.
    fn network(&self) -> Option<Network>;

    /// How many machines carry the claim, counted without the driver.
    fn count(&self, claim: Claim) -> usize;

    /// The bytes of the machine's seed, read without the driver; `None` where it is not readable.
    fn seed(&self, claim: Claim) -> Option<Vec<u8>>;

    /// Makes what lies under this claim belong to another machine, without the driver.
    fn usurp(&self, claim: Claim);
}

async fn made(bench: &dyn Bench, driver: &dyn Driver) -> Spec {
    let spec = bench.spec();
    driver
        .check(std::slice::from_ref(&spec))
        .await
        .expect("the check passes");
    if let Some(network) = bench.network() {
        driver
            .ensure_shared(&network)
            .await
            .expect("the network comes up");
    }
    driver.create(&spec).await.expect("the machine is made");
    spec
}

async fn state(driver: &dyn Driver, claim: Claim) -> State {
    driver.observe(&[claim]).await.expect("observed")[0].state
}

async fn reaches(driver: &dyn Driver, claim: Claim, wished: State) {
    let until = Instant::now() + DEADLINE;
    loop {
        let state = state(driver, claim).await;
        if state == wished {
            return;
        }
        assert!(
            Instant::now() < until,
            "the machine is {state}, not {wished}"
        );
        sleep(Duration::from_millis(50)).await;
    }
}

/// Puts an image that is an empty disk of 64 MiB into a store: `images/empty`. Machines of it are made and started, and
/// never answer.
pub fn empty_image(store: &Path) {
    let image = store.join("images/empty");
    std::fs::create_dir_all(&image).expect("mkdir");
    let made = std::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(image.join("disk.qcow2"))
        .arg("64M")
        .status()
        .expect("qemu-img is installed");
    assert!(made.success());
}

/// What one instance made, another finds by claim, with the same endpoints and hardware.
pub async fn a_claim_is_found_by_another_instance(bench: &dyn Bench) {
    let first = bench.open();
    let spec = made(bench, &*first).await;
    reaches(&*first, spec.claim, State::Running).await;
    let one = first.observe(&[spec.claim]).await.expect("observed");
    let two = bench.open().observe(&[spec.claim]).await.expect("observed");
    assert_eq!(two[0].state, State::Running);
    assert_eq!(one[0].instance, two[0].instance);
    assert!(
        two[0].instance.is_some(),
        "a machine that is there is described"
    );
    first.destroy(spec.claim).await.expect("destroyed");
}

/// A second `create` returns the machine of the first; two at once make one as well.
pub async fn creating_twice_makes_one(bench: &dyn Bench) {
    let (one, two) = (bench.open(), bench.open());
    let spec = bench.spec();
    if let Some(network) = bench.network() {
        one.ensure_shared(&network)
            .await
            .expect("the network comes up");
    }
    let (a, b) = tokio::join!(one.create(&spec), two.create(&spec));
    assert_eq!(a.expect("made"), b.expect("made"));
    let again = bench.open().create(&spec).await.expect("there already");
    assert_eq!(bench.count(spec.claim), 1);
    let seen = one
        .observe(&[spec.claim])
        .await
        .expect("observed")
        .remove(0);
    assert_eq!(seen.instance.expect("there"), again);
    one.destroy(spec.claim).await.expect("destroyed");
}

/// Five made at the same time are five machines, each with addresses of its own, and they run.
pub async fn five_at_once_have_five_addresses(bench: &dyn Bench) {
    let driver = bench.open();
    let specs: [Spec; 5] = std::array::from_fn(|_| bench.spec());
    driver.check(&specs).await.expect("the check passes");
    if let Some(network) = bench.network() {
        driver
            .ensure_shared(&network)
            .await
            .expect("the network comes up");
    }
    let [a, b, c, d, e] = &specs;
    let made = tokio::join!(
        driver.create(a),
        driver.create(b),
        driver.create(c),
        driver.create(d),
        driver.create(e)
    );
    let made = [made.0, made.1, made.2, made.3, made.4].map(|made| made.expect("made").endpoints);
    let distinct = |addresses: Vec<String>| addresses.into_iter().collect::<BTreeSet<_>>().len();
    for addresses in [
        made.iter().map(|at| at.ssh.to_string()).collect(),
        made.iter().map(|at| at.engine.to_string()).collect(),
    ] {
        assert_eq!(distinct(addresses), 5, "{made:?}");
    }
    let between: Vec<String> = made
        .iter()
        .filter_map(|at| Some(at.cluster?.to_string()))
        .collect();
    assert_eq!(distinct(between.clone()), between.len(), "{made:?}");
    for spec in &specs {
        reaches(&*driver, spec.claim, State::Running).await;
        assert_eq!(bench.count(spec.claim), 1);
    }
    for spec in &specs {
        driver.destroy(spec.claim).await.expect("destroyed");
    }
}

/// Nothing is left after `destroy`, and destroying what is gone, or never was, succeeds.
pub async fn destroying_twice_succeeds(bench: &dyn Bench) {
    let driver = bench.open();
    let spec = made(bench, &*driver).await;
    driver.destroy(spec.claim).await.expect("destroyed");
    assert_eq!(bench.count(spec.claim), 0);
    assert_eq!(bench.seed(spec.claim), None, "the seed is gone as well");
    assert_eq!(state(&*driver, spec.claim).await, State::Absent);
    driver.destroy(spec.claim).await.expect("gone already");
    driver.destroy(Claim::random()).await.expect("never was");
    if let Some(network) = bench.network() {
        driver.release_shared(&network).await.expect("released");
        driver
            .release_shared(&network)
            .await
            .expect("released already");
    }
}

/// Power goes on and off, each twice; a request about what is not there is an error.
pub async fn power_goes_on_and_off(bench: &dyn Bench) {
    let driver = bench.open();
    let spec = made(bench, &*driver).await;
    let before = driver
        .observe(&[spec.claim])
        .await
        .expect("observed")
        .remove(0)
        .instance;
    driver
        .set_power(spec.claim, Power::On)
        .await
        .expect("on already");
    driver
        .set_power(spec.claim, Power::Shutdown)
        .await
        .expect("asked");
    for _ in 0..2 {
        driver
            .set_power(spec.claim, Power::Kill)
            .await
            .expect("off");
        reaches(&*driver, spec.claim, State::Stopped).await;
    }
    driver
        .set_power(spec.claim, Power::Shutdown)
        .await
        .expect("off already");
    let other = bench.open();
    other.set_power(spec.claim, Power::On).await.expect("on");
    reaches(&*other, spec.claim, State::Running).await;
    assert_eq!(bench.count(spec.claim), 1);
    let after = other
        .observe(&[spec.claim])
        .await
        .expect("observed")
        .remove(0)
        .instance;
    assert_eq!(before, after, "a machine comes back as it was");
    driver.destroy(spec.claim).await.expect("destroyed");
    for power in [Power::On, Power::Shutdown, Power::Kill] {
        let error = driver
            .set_power(Claim::random(), power)
            .await
            .expect_err("nobody there");
        assert_eq!(error.kind(), Kind::NotFound);
    }
}

/// Answers come in the order asked, one for each claim, also for those that nothing carries.
pub async fn observations_come_in_the_order_asked(bench: &dyn Bench) {
    let driver = bench.open();
    let spec = made(bench, &*driver).await;
    let mut claims: Vec<Claim> = (0..40).map(|_| Claim::random()).collect();
    claims.insert(17, spec.claim);
    let answers = driver.observe(&claims).await.expect("observed");
    assert_eq!(
        answers
            .iter()
            .map(|answer| answer.claim)
            .collect::<Vec<_>>(),
        claims
    );
    let there: BTreeSet<Claim> = answers
        .iter()
        .filter(|answer| answer.state != State::Absent)
        .map(|answer| answer.claim)
        .collect();
    assert_eq!(there, BTreeSet::from([spec.claim]));
    assert!(
        answers
            .iter()
            .all(|answer| (answer.state == State::Absent) == answer.instance.is_none())
    );
    assert!(driver.observe(&[]).await.expect("nothing asked").is_empty());
    driver.destroy(spec.claim).await.expect("destroyed");
}

/// Published ports are exactly those asked for last, at once and after a stop; a port that is taken is
/// a conflict, and changes nothing.
pub async fn forwards_are_exact_and_come_back(bench: &dyn Bench) {
    let driver = bench.open();
    if !driver.wants().forwards {
        return;
    }
    let spec = made(bench, &*driver).await;
    let ip = spec
        .forwards
        .first()
        .expect("endpoints are forwarded")
        .host
        .ip();
    let forward = |guest: u16| Forward {
        guest,
        host: SocketAddr::new(ip, 20000 + guest),
    };
    driver
        .forward(spec.claim, &[forward(80), forward(81)])
        .await
        .expect("published");
    assert!(listens(forward(80)) && listens(forward(81)));
    driver
        .forward(spec.claim, &[forward(81), forward(82)])
        .await
        .expect("published");
    driver
        .forward(spec.claim, &[forward(81), forward(82)])
        .await
        .expect("there already");
    assert!(!listens(forward(80)) && listens(forward(81)) && listens(forward(82)));

    let held = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    let taken = Forward {
        guest: 90,
        host: held.local_addr().expect("its address"),
    };
    let error = driver
        .forward(spec.claim, &[forward(83), taken])
        .await
        .expect_err("taken");
    assert_eq!(error.kind(), Kind::Conflict);
    if cfg!(target_os = "linux") {
        assert!(
            error.line().contains(&std::process::id().to_string()),
            "the owner is named: {}",
            error.line()
        );
    }
    assert!(listens(forward(81)) && !listens(forward(83)));

    driver
        .set_power(spec.claim, Power::Kill)
        .await
        .expect("off");
    assert!(!listens(forward(81)));
    bench
        .open()
        .set_power(spec.claim, Power::On)
        .await
        .expect("on");
    assert!(!listens(forward(80)) && listens(forward(81)) && listens(forward(82)));
    assert!(
        spec.forwards.iter().all(|forward| listens(*forward)),
        "the endpoints are untouched"
    );
    driver.forward(spec.claim, &[]).await.expect("taken back");
    assert!(!listens(forward(81)) && !listens(forward(82)));
    driver.destroy(spec.claim).await.expect("destroyed");
}

fn listens(forward: Forward) -> bool {
    TcpStream::connect_timeout(&forward.host, Duration::from_secs(5)).is_ok()
}

/// What carries another claim is neither touched nor taken for ours.
pub async fn a_foreign_machine_is_refused(bench: &dyn Bench) {
    let driver = bench.open();
    let spec = made(bench, &*driver).await;
    driver
        .set_power(spec.claim, Power::Kill)
        .await
        .expect("off");
    reaches(&*driver, spec.claim, State::Stopped).await;
    let before = bench.seed(spec.claim);
    bench.usurp(spec.claim);
    assert_eq!(state(&*driver, spec.claim).await, State::Absent);
    assert_eq!(
        driver.create(&spec).await.expect_err("not ours").kind(),
        Kind::Refused
    );
    assert_eq!(
        driver
            .set_power(spec.claim, Power::On)
            .await
            .expect_err("not ours")
            .kind(),
        Kind::Refused
    );
    assert_eq!(
        driver
            .blank_seed(spec.claim)
            .await
            .expect_err("not ours")
            .kind(),
        Kind::Refused
    );
    assert_eq!(
        driver
            .destroy(spec.claim)
            .await
            .expect_err("not ours")
            .kind(),
        Kind::Refused
    );
    assert_eq!(bench.seed(spec.claim), before, "nothing was touched");
}

/// After `blank_seed` nothing of the seed can be read any more, and the machine runs and starts on.
pub async fn a_blanked_seed_holds_nothing(bench: &dyn Bench) {
    let driver = bench.open();
    let spec = made(bench, &*driver).await;
    let holds = |bytes: &[u8]| {
        let wanted = spec.seed.user_data.as_bytes();
        bytes.windows(wanted.len()).any(|window| window == wanted)
    };
    if let Some(bytes) = bench.seed(spec.claim) {
        assert!(holds(&bytes), "the seed is there at first");
    }
    for _ in 0..2 {
        driver.blank_seed(spec.claim).await.expect("blanked");
        if let Some(bytes) = bench.seed(spec.claim) {
            assert!(
                bytes.iter().all(|byte| *byte == 0),
                "something is left of the seed"
            );
        }
    }
    reaches(&*driver, spec.claim, State::Running).await;
    driver
        .set_power(spec.claim, Power::Kill)
        .await
        .expect("off");
    driver.set_power(spec.claim, Power::On).await.expect("on");
    driver.create(&spec).await.expect("there already");
    if let Some(bytes) = bench.seed(spec.claim) {
        assert!(!holds(&bytes), "no later start restores it");
    }
    driver.destroy(spec.claim).await.expect("destroyed");
}

/// A large disk takes no more room than a small one. `allocated` measures the machine's disk in bytes
/// of the medium; the drivers differ in nothing but the size of the disk.
pub async fn a_large_disk_costs_no_more_than_a_small_one(
    small: &dyn Bench,
    large: &dyn Bench,
    allocated: &(dyn Fn(Claim) -> u64 + Sync),
) {
    let mut sizes = Vec::new();
    for bench in [small, large] {
        let driver = bench.open();
        let spec = made(bench, &*driver).await;
        driver
            .set_power(spec.claim, Power::Kill)
            .await
            .expect("off");
        reaches(&*driver, spec.claim, State::Stopped).await;
        sizes.push(allocated(spec.claim));
        driver.destroy(spec.claim).await.expect("destroyed");
    }
    assert!(sizes[1] <= sizes[0] + (1 << 20), "{sizes:?}");
}

/// The options of a driver hold together as a command, and each carries the driver's name: its id, its flag and
/// its environment variable, whose value is not shown.
pub fn names_carry_the_prefix(command: clap::Command, driver: &str) {
    command.clone().debug_assert();
    let id = format!("{driver}_");
    let flag = format!("{driver}-");
    let variable = format!("FORGE_{}_", driver.to_ascii_uppercase());
    for argument in command.get_arguments() {
        let name = argument.get_id().as_str();
        assert!(name.starts_with(&id), "{name}");
        assert!(
            argument
                .get_long()
                .is_some_and(|long| long.starts_with(&flag)),
            "{name}"
        );
        let env = argument.get_env().expect("an environment variable");
        assert!(env.to_string_lossy().starts_with(&variable), "{name}");
        assert!(argument.is_hide_env_values_set(), "{name}");
    }
}

/// A test for each function of the suite that is named, each on a bench of its own.
#[macro_export]
macro_rules! conforms {
    ($bench:expr; $($name:ident),+ $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            $crate::conformance::$name(&$bench).await;
        })+
    };
}
