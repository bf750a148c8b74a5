//! A store in a folder of its own, real QEMU, and disks that need not boot.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use forge_driver::conformance::Bench;
use forge_driver::{BaseImage, Claim, Driver, DriverHome, Forward, Mac, Network, Nic, Seed, Spec};
use forge_qemu::{AccelChoice, Config, QemuDriver};
use rustix::process::{Pid, Signal, kill_process};
use uuid::Uuid;

/// The last byte of the address that is given next.
static GIVEN: AtomicU8 = AtomicU8::new(11);

/// One store. Whatever still runs in it is ended when it goes.
pub struct Store {
    pub root: PathBuf,
    pub config: Config,
    pub network: Network,
    _folder: Option<tempfile::TempDir>,
}

impl Store {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().to_owned();
        std::fs::create_dir(root.join("images")).expect("mkdir");
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(root.join("images/empty.qcow2"))
            .arg("64M")
            .status()
            .expect("qemu-img is installed: `forge doctor --fix`");
        assert!(made.success());
        let config = Config {
            memory_mib: 128,
            disk_bytes: 1 << 30,
            accel: AccelChoice::Tcg,
            ..Config::default()
        };
        let network = Network {
            id: Uuid::new_v4(),
            cidr: config.network_cidr,
            owner: Uuid::new_v4(),
        };
        Self {
            root,
            config,
            network,
            _folder: Some(folder),
        }
    }

    /// The same store with disks of another size.
    pub fn with_disks_of(&self, bytes: u64) -> Self {
        Self {
            root: self.root.clone(),
            config: Config {
                disk_bytes: bytes,
                ..self.config.clone()
            },
            network: self.network.clone(),
            _folder: None,
        }
    }

    pub fn home(&self) -> DriverHome {
        DriverHome {
            dir: self.root.join("drivers/qemu"),
            store: self.root.clone(),
            owner: Uuid::nil(),
            runtime: self.root.join("run"),
            assets: forge_driver::assets::Assets::default(),
            token: forge_driver::Token::default(),
        }
    }

    pub fn folder(&self, claim: Claim) -> PathBuf {
        self.home().dir.join(claim.to_string())
    }

    pub fn driver(&self) -> QemuDriver {
        // This very test program runs the switch: it is started with the name of one test.
        let program = std::env::current_exe().expect("this program");
        let command: Vec<OsString> =
            vec![program.into(), "--exact".into(), "switch_process".into()];
        QemuDriver::with_switch(self.config.clone(), self.home(), command).expect("opens")
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if self._folder.is_none() {
            return;
        }
        for pid in pids_with(&self.root) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// What the test `switch_process` does: the switch's work when a driver started it, nothing otherwise.
pub fn maybe_switch() {
    let last = std::env::args_os().next_back().map(PathBuf::from);
    if let Some(folder) = last.filter(|last| last.is_absolute() && last.is_dir()) {
        forge_qemu::run_switch(&folder).expect("switches");
    }
}

/// The processes that name something below `path` on their command line.
pub fn pids_with(path: &Path) -> Vec<Pid> {
    pids(&|line| {
        line.windows(path.as_os_str().len())
            .any(|part| part == path.as_os_str().as_encoded_bytes())
    })
}

pub fn pids(wanted: &dyn Fn(&[u8]) -> bool) -> Vec<Pid> {
    std::fs::read_dir("/proc")
        .expect("proc")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| wanted(&line)))
        .filter_map(Pid::from_raw)
        .filter(|pid| *pid != rustix::process::getpid())
        .collect()
}

impl Bench for Store {
    fn open(&self) -> Box<dyn Driver> {
        Box::new(self.driver())
    }

    fn spec(&self) -> Spec {
        let claim = Claim::random();
        let bytes = claim.bytes();
        // An address of its own, so that tests do not meet at a port.
        let ip = IpAddr::V4(Ipv4Addr::new(
            127,
            200 | (bytes[0] & 0x1f),
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
                disk: self.root.join("images/empty.qcow2"),
                kernel: None,
                size: 64 << 20,
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
        let word = format!("-uuid\0{claim}\0");
        pids(&|line| line.windows(word.len()).any(|part| part == word.as_bytes())).len()
    }

    fn seed(&self, claim: Claim) -> Option<Vec<u8>> {
        std::fs::read(self.folder(claim).join("seed.iso")).ok()
    }

    fn usurp(&self, claim: Claim) {
        let record = self.folder(claim).join("vm.json");
        let text = std::fs::read_to_string(&record).expect("a record");
        std::fs::write(
            record,
            text.replace(&claim.to_string(), &Claim::random().to_string()),
        )
        .expect("write");
    }
}
