//! What the tests with real machines share: stores of their own, commands with deadlines, an image that
//! is built once, and a way out that leaves nothing behind.

mod cache;
pub mod engine;
mod listened;
pub mod old;
pub mod openrc;
pub mod openssh;
mod processes;
pub mod readme;
mod run;
mod steps;
mod store;
mod user;

pub use listened::Listened;
pub use processes::{Found, machines_of, processes_of};
pub use run::{Ran, run, run_inside};
pub use steps::{Steps, wait};
pub use store::Store;
pub use user::User;

/// A small generator of pseudo-random numbers (xorshift64*), so that a seed repeats a run.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The seed of `FORGE_LAB_SEED`, else one of the moment; printed, so that a run can be repeated.
    pub fn new() -> Self {
        let seed = std::env::var("FORGE_LAB_SEED")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| {
                let now = std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .unwrap_or_default();
                u64::from(now.subsec_nanos()) ^ now.as_secs()
            })
            .max(1);
        eprintln!("FORGE_LAB_SEED={seed}");
        Self(seed)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound.max(1)
    }
}

impl Default for Dice {
    fn default() -> Self {
        Self::new()
    }
}

/// A script for a host with an engine: one image out of what is there, and two containers of it. Of these `once` is not
/// started again by anybody.
pub const TWO_CONTAINERS: &str = r#"mkdir -p /tmp/tiny/bin /tmp/tiny/lib64 /tmp/tiny/lib/x86_64-linux-gnu
cp /bin/sleep /tmp/tiny/bin/
cp -L /lib/*/libc.so.6 /tmp/tiny/lib/x86_64-linux-gnu/
cp -L /lib64/ld-linux-x86-64.so.2 /tmp/tiny/lib64/
tar -C /tmp/tiny -c . | docker import - tiny >/dev/null
docker run -d --name once --restart=no tiny /bin/sleep 100000 >/dev/null
docker run -d --name always --restart=always tiny /bin/sleep 100000 >/dev/null
"#;

/// A JSON text.
#[track_caller]
pub fn text(value: &serde_json::Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("no text: {value}"))
        .to_owned()
}

/// Asserts that a summary of `cluster up` tells of three nodes that are ready, one of them the leader.
#[track_caller]
pub fn three_with_a_leader(summary: &serde_json::Value) {
    let nodes = summary["nodes"].as_array().expect("nodes");
    assert_eq!(nodes.len(), 3, "{summary}");
    assert!(
        nodes.iter().all(|node| node["health"] == "ready"),
        "{summary}"
    );
    let leaders = nodes.iter().filter(|node| node["manager"] == "leader");
    assert_eq!(leaders.count(), 1, "{summary}");
}
