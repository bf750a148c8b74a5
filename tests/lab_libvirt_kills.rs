//! forge is killed at every call of virsh, while a machine of the driver `libvirt` is made, switched and removed, at
//! the libvirtd of this host and at that of another: the same command goes on, and in the end nothing is left.
//!
//! The base image is an empty disk: what is made are real domains, which nobody waits for.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use forge_lab::{Dice, Ran, Steps, Store};

const FORGE: &str = env!("CARGO_BIN_EXE_forge");
const WRAPPER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/with-libvirt");
/// The folder of a `virsh` that kills.
const KILLING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/killing");

/// How long all of it may take.
const DEADLINE: Duration = Duration::from_secs(1800);
/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What SIGKILL and `abort` end a process with.
const KILLED: i32 = 128 + 9;
const ABORTED: i32 = 128 + 6;

/// So many machines are tormented at the same time, each in a store of its own.
const LANES: usize = 4;

/// A command, and how it ends: nobody waits for a guest.
type Words = (&'static str, i32);
const CREATE: Words = ("create", ABORTED);
const STOP: Words = ("stop", ABORTED);
const START: Words = ("start", 1);
const KILL: Words = ("kill", 0);
const RM: Words = ("rm", 0);

/// Every thirteenth kill; which ones differs from run to run.
#[test]
fn lab_libvirt_kills() {
    scenario("lab_libvirt_kills", 13);
}

/// Every call with both outcomes.
#[test]
fn lab_libvirt_all_kills() {
    scenario("lab_libvirt_all_kills", 1);
}

fn scenario(name: &str, step: usize) {
    if std::env::var_os("FORGE_LIBVIRT_INSIDE").is_none() {
        return forge_lab::run_inside(FORGE, &[WRAPPER, "--hosts", "2"], name, DEADLINE);
    }
    let mut steps = Steps::new(name);
    let mut dice = Dice::new();
    for uri in ["qemu:///system", "qemu+ssh://10.199.0.2/system"] {
        steps.step(&format!("killed at every call of virsh, at {uri}"));
        let host = Host { uri };
        let lane = Lane::new(&host, 0);
        let mut calls = Vec::new();
        for words in [CREATE, STOP, KILL, START] {
            lane.provisioned();
            calls.push((words, lane.calls(words)));
        }
        lane.provisioned();
        let rm = lane.calls(RM);
        drop(lane);
        let counts: Vec<usize> = calls.iter().map(|(_, calls)| calls.len()).collect();
        steps.note(&format!("calls: {counts:?}, and {} of rm", rm.len()));
        let create = kills(counts[0], step, &mut dice);
        let power: Vec<(Words, String)> = calls[1..]
            .iter()
            .flat_map(|(words, calls)| {
                kills(calls.len(), step, &mut dice)
                    .into_iter()
                    .map(|at| (*words, at))
            })
            .collect();
        let leave = kills(rm.len(), step, &mut dice);
        let last = create.len().max(power.len()).max(leave.len());
        let (next, hits) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for number in 1..=LANES {
                let (host, next, hits) = (&host, &next, &hits);
                let (create, power, leave) = (&create, &power, &leave);
                scope.spawn(move || {
                    let lane = Lane::new(host, number);
                    loop {
                        let index = next.fetch_add(1, Ordering::SeqCst);
                        if index >= last {
                            return;
                        }
                        let (words, at) = &power[index % power.len()];
                        let killed = lane.life(
                            &create[index % create.len()],
                            (*words, at),
                            &leave[index % leave.len()],
                        );
                        hits.fetch_add(killed, Ordering::SeqCst);
                    }
                });
            }
        });
        let hits = hits.into_inner();
        assert!(hits * 3 >= last * 3 * 2, "{hits} kills of {last} machines");
        steps.note(&format!("{last} machines, {hits} kills"));
        host.is_empty();
    }
}

/// The kills of a command that makes so many calls: every `step`th of them.
fn kills(calls: usize, step: usize, dice: &mut Dice) -> Vec<String> {
    let first = usize::try_from(dice.below(step as u64)).expect("a small number") % (2 * calls);
    (1..=calls)
        .flat_map(|call| ["before", "after"].map(|outcome| format!("{call} {outcome}")))
        .skip(first)
        .step_by(step)
        .collect()
}

struct Host {
    uri: &'static str,
}

impl Host {
    fn virsh(&self, words: &[&str]) -> String {
        let mut command = Command::new("virsh");
        command.args(["--quiet", "--connect", self.uri]).args(words);
        forge_lab::run(&mut command, b"", PATIENCE).ok().text()
    }

    fn is_empty(&self) {
        for words in [
            &["list", "--all", "--name"][..],
            &["net-list", "--all", "--name"],
            &["vol-list", "default"],
        ] {
            assert_eq!(self.virsh(words), "", "{words:?}");
        }
    }
}

/// One machine after another, in one store.
struct Lane<'a> {
    host: &'a Host,
    store: Store,
    name: String,
    range: String,
}

impl<'a> Lane<'a> {
    fn new(host: &'a Host, number: usize) -> Self {
        let store = Store::blank(FORGE);
        Self {
            host,
            store,
            name: format!("n{number}"),
            range: format!("10.133.{}.0/24", 100 + number),
        }
    }

    fn command(&self, (verb, _): Words) -> Command {
        let mut command = self.store.command(&[verb, &self.name]);
        match verb {
            "create" => command.env("FORGE_ABORT_AT", "1 after driver.create"),
            "stop" => command.env("FORGE_ABORT_AT", "1 after driver.set_power"),
            "start" => command.env("FORGE_TIMEOUT", "2"),
            "rm" => command.arg("-y"),
            _ => &mut command,
        };
        if verb == "create" {
            command.args(["--driver", "libvirt", "--libvirt-uri", self.host.uri]);
            command.args(["--libvirt-accel", "qemu", "--libvirt-network", "routed"]);
            command.args(["--libvirt-memory", "128", "--libvirt-autostart"]);
            command.args(["--libvirt-network-cidr", &self.range]);
        }
        let path = std::env::var("PATH").unwrap_or_default();
        let calls = self.list();
        // Of an earlier command.
        let _ = fs::remove_file(&calls);
        command
            .env("PATH", format!("{KILLING}:{path}"))
            .env("FORGE_KILL_CALLS", calls)
            .env("FORGE_KILL_AT", "0");
        command
    }

    fn list(&self) -> std::path::PathBuf {
        self.store.home().join("calls")
    }

    /// Runs a command to the point where it has done its work.
    fn whole(&self, words: Words) -> Ran {
        let ran = forge_lab::run(&mut self.command(words), b"", PATIENCE);
        ran.exits(words.1)
    }

    /// The calls that a command makes, which nothing cuts off.
    fn calls(&self, words: Words) -> Vec<String> {
        self.whole(words);
        let text = fs::read_to_string(self.list()).expect("calls of virsh");
        text.lines().map(str::to_owned).collect()
    }

    /// A machine that is there counts as provisioned, so that it can be started.
    fn provisioned(&self) {
        let path = self
            .store
            .home()
            .join("machines")
            .join(&self.name)
            .join("machine.json");
        let Ok(text) = fs::read_to_string(&path) else {
            return;
        };
        fs::write(&path, text.replace("\"claimed\"", "\"ready\"")).expect("the record");
    }

    /// Kills a command at a call; `forge ls` works, and the same command goes on. So many kills there were: one, or none
    /// of a command that needed fewer calls.
    fn killed(&self, words: Words, at: &str) -> usize {
        let mut command = self.command(words);
        command.env("FORGE_KILL_AT", at);
        let ran = forge_lab::run(&mut command, b"", PATIENCE);
        // A command that was gone on with may need fewer calls.
        if ran.code != KILLED {
            ran.exits(words.1);
            return 0;
        }
        self.store.ok(&["ls"]);
        if words != RM || self.store.ok(&["ls", "-q"]) == self.name {
            self.whole(words);
        }
        1
    }

    /// A machine that is made, switched and removed, killed in each. The number of kills.
    fn life(&self, create: &str, power: (Words, &str), leave: &str) -> usize {
        let mut kills = self.killed(CREATE, create);
        let claim = self.store.claim(&self.name);
        let made = self.host.virsh(&["list", "--all", "--uuid"]);
        assert_eq!(made.matches(&claim).count(), 1, "{create}: {made}");
        let info = self.host.virsh(&["dominfo", &claim]);
        for line in ["running", "enable"] {
            assert!(info.contains(line), "{create}: {info}");
        }
        self.provisioned();
        let (words, at) = power;
        if words == START {
            self.whole(KILL);
        }
        kills += self.killed(words, at);
        let state = self.host.virsh(&["domstate", &claim]);
        let wanted = if words == KILL { "shut off" } else { "running" };
        assert_eq!(state, wanted, "{} {at}", words.0);
        kills += self.killed(RM, leave);
        assert_eq!(self.store.ok(&["ls", "-q"]), "", "{leave}");
        for list in [&["list", "--all", "--uuid"][..], &["vol-list", "default"]] {
            let left = self.host.virsh(list);
            assert!(!left.contains(&claim), "{leave}: {left}");
        }
        self.forgotten(leave);
        kills
    }

    /// The store knows of no machine, base image or address any more.
    fn forgotten(&self, at: &str) {
        let driver = self.store.home().join("drivers/libvirt");
        for entry in fs::read_dir(&driver)
            .expect("the driver's folder")
            .flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            assert!(
                ["ssh", "bases", "networks", "trials"].contains(&name.as_str()),
                "{at}: {name}"
            );
        }
        let notes = files(&driver.join("bases"));
        assert_eq!(notes, Vec::<String>::new(), "{at}");
    }
}

fn files(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .flatten()
        .flat_map(|entry| {
            if entry.path().is_dir() {
                files(&entry.path())
            } else {
                vec![entry.path().display().to_string()]
            }
        })
        .collect()
}
