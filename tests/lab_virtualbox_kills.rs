//! Kills at every call of VBoxManage: forge is killed before it, or while it goes on alone; then the same command
//! again, or a removal. There is never a machine that forge does not know, never two of one, and in the end nothing.
//!
//! The machines are the real VBoxManage's; their disks are empty, so nobody waits for a boot. Needs root, for name
//! spaces (`tests/lab/with-virtualbox`).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use forge_lab::{Ran, Steps, Store, run};

const FORGE: &str = env!("CARGO_BIN_EXE_forge");
const WRAPPER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/with-virtualbox");

/// How long all of it may take.
const DEADLINE: Duration = Duration::from_secs(1800);

/// How long one command may.
const PATIENCE: Duration = Duration::from_secs(120);

/// What `kill -9` ends a process with, and what `abort` does.
const KILLED: i32 = 128 + 9;
const ABORTED: i32 = 128 + 6;

/// Where a creation is over for the driver: nobody waits for the guest here.
const MADE: &str = "1 after driver.create";

#[test]
fn lab_virtualbox_kills() {
    if std::env::var_os("FORGE_VIRTUALBOX_INSIDE").is_some() {
        return inside();
    }
    forge_lab::run_inside(FORGE, &[WRAPPER], "lab_virtualbox_kills", DEADLINE);
}

/// When forge is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// Before the call, which is not made.
    Before,
    /// Before the call, which is made some time later: by a program that nobody waits for any more.
    Late,
}

/// A VBoxManage that notes every call and kills the forge that makes the chosen one, and a converter of images that
/// does so once when it is told to.
struct Gun {
    folder: tempfile::TempDir,
}

impl Gun {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let real = |program: &str| {
            let look = format!("command -v {program}");
            run(Command::new("sh").args(["-c", &look]), b"", PATIENCE)
                .ok()
                .text()
        };
        let here = folder.path().display();
        let converter = format!(
            "#!/bin/sh\n\
             if rm '{here}/convert' 2>/dev/null; then kill -KILL \"$(cat '{here}/pid')\"; sleep 1; fi\n\
             exec '{}' \"$@\"\n",
            real("qemu-img")
        );
        let real = real("VBoxManage");
        let script = format!(
            "#!/bin/sh\n\
             number=$(($(wc -l <'{here}/calls') + 1))\n\
             printf '%s\\n' \"$*\" | tr '\\n' ' ' >>'{here}/calls'\n\
             echo >>'{here}/calls'\n\
             case \"$(cat '{here}/aim')\" in\n\
             \"Before $number\") kill -KILL \"$(cat '{here}/pid')\"; exit 1 ;;\n\
             \"Late $number\") kill -KILL \"$(cat '{here}/pid')\"; sleep 0.4 ;;\n\
             esac\n\
             exec '{real}' \"$@\"\n"
        );
        for (name, script) in [("VBoxManage", script), ("qemu-img", converter)] {
            let file = folder.path().join(name);
            fs::write(&file, script).expect("written");
            fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).expect("chmod");
        }
        Self { folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a command of forge's through this program, killed at a call when one is chosen, aborted at a point when
    /// one is named.
    fn forge(&self, store: &Store, words: &str, kill: Option<(When, usize)>, point: &str) -> Ran {
        fs::write(self.file("calls"), "").expect("written");
        let aim = kill.map_or(String::new(), |(when, number)| format!("{when:?} {number}"));
        fs::write(self.file("aim"), aim).expect("written");
        let words: Vec<&str> = words.split(' ').collect();
        let forge = store.command(&words);
        // Its process is known before it begins.
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ >\"$1\"; shift; exec \"$@\"", "sh"]);
        command.arg(self.file("pid")).arg(forge.get_program());
        command.args(forge.get_args());
        for (name, value) in forge.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let path = std::env::var("PATH").expect("a path");
        command
            .env("PATH", format!("{}:{path}", self.folder.path().display()))
            .env("FORGE_ABORT_AT", point);
        run(&mut command, b"", PATIENCE)
    }

    /// The calls of the last command.
    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.file("calls")).expect("calls");
        text.lines().map(str::to_owned).collect()
    }
}

fn manage(words: &str) -> String {
    let words: Vec<&str> = words.split(' ').collect();
    run(Command::new("VBoxManage").args(&words), b"", PATIENCE)
        .ok()
        .text()
}

/// The machines of a list.
fn machines(list: &str) -> Vec<String> {
    let text = manage(list);
    let lines = text.lines().filter(|line| line.starts_with('"'));
    lines.map(str::to_owned).collect()
}

/// A call that changes nothing.
fn asks(call: &str) -> bool {
    ["--version", "list ", "showvminfo "]
        .iter()
        .any(|word| call.starts_with(word))
}

/// The run takes as long as it takes.
fn long() -> bool {
    std::env::var_os("FORGE_LAB_KILLS").is_some()
}

/// Where a command of these calls is killed: at every other one that changes something, before and within by turns; in
/// the long run at all of them, in both ways.
fn places(calls: &[String]) -> Vec<(When, usize)> {
    let numbered = calls.iter().zip(1..);
    if long() {
        return numbered
            .flat_map(|(_, number)| [(When::Before, number), (When::Late, number)])
            .collect();
    }
    let changing = numbered.filter(|(call, _)| !asks(call));
    let ways = [When::Late, When::Before].into_iter().cycle();
    ways.zip(changing.step_by(2).map(|(_, number)| number))
        .collect()
}

/// Whether a command was killed. One that had less to do than at first never comes to its call, and ends as `usual`.
fn hit(ran: &Ran, usual: i32, at: &str) -> bool {
    assert!([KILLED, usual].contains(&ran.code), "{at}: {ran}");
    ran.code == KILLED
}

/// Most of the kills of a command happened.
fn mostly(hits: usize, places: usize, words: &str) {
    assert!(hits * 3 >= places * 2, "{words}: {hits} of {places} kills");
}

/// What VirtualBox has is what forge lists.
fn known(store: &Store, at: &str) {
    let listed = store.json(&["ls"]);
    let listed = listed.as_array().expect("a list");
    for line in machines("list vms") {
        let known = listed.iter().any(|machine| {
            let name = machine["name"].as_str().unwrap_or_default();
            line.ends_with(&format!("{{{}}}", store.claim(name)))
        });
        assert!(known, "{at}: forge does not know {line}");
    }
}

/// Nothing is left of any machine: not in VirtualBox, not in the store.
fn nothing(store: &Store, at: &str) {
    assert_eq!(store.ok(&["ls", "-q"]), "", "{at}");
    assert_eq!(machines("list vms"), [""; 0], "{at}");
    for list in ["hdds", "dvds"] {
        let left = manage(&format!("list {list}"));
        assert!(!left.contains("Location:"), "{at}: {left}");
    }
    let interfaces = manage("list hostonlyifs");
    assert!(!interfaces.contains("vboxnet"), "{at}: {interfaces}");
    let servers = manage("list dhcpservers");
    let servers: Vec<&str> = servers
        .lines()
        .filter_map(|line| Some(line.strip_prefix("NetworkName:")?.trim()))
        .filter(|name| !name.starts_with("HostInterfaceNetworking"))
        .collect();
    assert_eq!(servers, [""; 0], "{at}");
    let left = |folder: &Path| -> Vec<String> {
        fs::read_dir(folder)
            .map(|all| all.flatten().collect::<Vec<_>>())
            .unwrap_or_default()
            .iter()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    };
    let driver = store.home().join("drivers/virtualbox");
    let mut folders = left(&driver);
    folders.retain(|name| !["bases", "networks"].contains(&name.as_str()));
    assert_eq!(folders, [""; 0], "{at}");
    assert_eq!(left(&driver.join("networks")), [""; 0], "{at}");
    assert_eq!(left(&store.home().join("machines")), [""; 0], "{at}");
}

const CREATE: &str = "create --driver virtualbox k1";
const RM: &str = "rm -f k1";

fn inside() {
    let mut steps = Steps::new("virtualbox: kills");
    let store = Store::blank(FORGE);
    let gun = Gun::new();
    steps.step("the base image is converted by a program that goes on alone");
    fs::write(gun.file("convert"), "").expect("written");
    gun.forge(&store, CREATE, None, MADE).exits(KILLED);
    assert!(!gun.file("convert").exists());
    gun.forge(&store, CREATE, None, MADE).exits(ABORTED);
    gun.forge(&store, RM, None, "").ok();
    nothing(&store, "at first");

    steps.step("create");
    gun.forge(&store, CREATE, None, MADE).exits(ABORTED);
    let places_of_create = places(&gun.calls());
    gun.forge(&store, RM, None, "").ok();
    let removal = gun.calls();
    nothing(&store, "undisturbed");
    let mut hits = 0;
    for (round, (when, number)) in places_of_create.iter().enumerate() {
        let killed = gun.forge(&store, CREATE, Some((*when, *number)), MADE);
        let call = gun.calls().last().cloned().unwrap_or_default();
        let at = format!("`create` killed {when:?} {number}, `{call}`");
        hits += usize::from(hit(&killed, ABORTED, &at));
        // Every second one of each way is removed at once.
        if round % 4 < 2 {
            let again = gun.forge(&store, CREATE, None, MADE);
            assert_eq!(again.code, ABORTED, "{at}: {again}");
            let id = format!("{{{}}}", store.claim("k1"));
            for list in ["list vms", "list runningvms"] {
                let there = machines(list);
                assert!(
                    there.len() == 1 && there[0].ends_with(&id),
                    "{at}: {there:?}"
                );
            }
        }
        known(&store, &at);
        let removed = gun.forge(&store, RM, None, "");
        assert_eq!(removed.code, 0, "{at}: {removed}");
        nothing(&store, &at);
    }
    mostly(hits, places_of_create.len(), "create");
    steps.note(&format!("{hits} kills"));

    steps.step("rm");
    let mut places_of_removal = places(&removal);
    if !long() {
        places_of_removal.retain(|(when, _)| *when == When::Late);
    }
    let mut hits = 0;
    for (when, number) in &places_of_removal {
        gun.forge(&store, CREATE, None, MADE).exits(ABORTED);
        let killed = gun.forge(&store, RM, Some((*when, *number)), "");
        let call = gun.calls().last().cloned().unwrap_or_default();
        let at = format!("`rm` killed {when:?} {number}, `{call}`");
        hits += usize::from(hit(&killed, 0, &at));
        known(&store, &at);
        let removed = gun.forge(&store, RM, None, "");
        assert_eq!(removed.code, 0, "{at}: {removed}");
        nothing(&store, &at);
    }
    mostly(hits, places_of_removal.len(), "rm");
    steps.note(&format!("{hits} kills"));
    off_and_on(&mut steps, &store, &gun);
    host_only(&mut steps, &store, &gun);
}

/// A machine that is switched off and on again by commands that are killed, while what it needs was taken away.
fn off_and_on(steps: &mut Steps, store: &Store, gun: &Gun) {
    steps.step("off and on");
    gun.forge(store, CREATE, None, MADE).exits(ABORTED);
    let id = store.claim("k1");
    let running = || machines("list runningvms").len();
    gun.forge(store, "kill k1", None, "").ok();
    let of_kill = places(&gun.calls());
    let bare = || {
        let network = manage("list dhcpservers");
        let network = network
            .lines()
            .filter_map(|line| Some(line.strip_prefix("NetworkName:")?.trim()))
            .find(|name| name.starts_with("forge-"));
        if let Some(network) = network {
            manage(&format!("dhcpserver remove --network {network}"));
        }
        manage(&format!("modifyvm {id} --nic2 none"));
    };
    bare();
    gun.forge(store, CREATE, None, MADE).exits(ABORTED);
    let of_start = places(&gun.calls());
    let mut hits = 0;
    for (when, number) in &of_kill {
        let killed = gun.forge(store, "kill k1", Some((*when, *number)), "");
        hits += usize::from(hit(&killed, 0, &format!("{when:?} {number}")));
        known(store, "kill");
        gun.forge(store, "kill k1", None, "").ok();
        assert_eq!(running(), 0);
        gun.forge(store, CREATE, None, MADE).exits(ABORTED);
        assert_eq!(running(), 1);
    }
    gun.forge(store, "kill k1", None, "").ok();
    for (when, number) in &of_start {
        bare();
        let killed = gun.forge(store, CREATE, Some((*when, *number)), MADE);
        hits += usize::from(hit(&killed, ABORTED, &format!("{when:?} {number}")));
        known(store, "start");
        let again = gun.forge(store, CREATE, None, MADE);
        assert_eq!(again.code, ABORTED, "{when:?} {number}: {again}");
        assert_eq!(running(), 1);
        let leases = manage("list dhcpservers");
        assert!(leases.contains(&format!("VM NIC: {id} slot 1")), "{leases}");
        gun.forge(store, "kill k1", None, "").ok();
    }
    gun.forge(store, RM, None, "").ok();
    nothing(store, "off and on");
    mostly(hits, of_kill.len() + of_start.len(), "off and on");
    steps.note(&format!("{hits} kills"));
}

/// Host-only interfaces have names that VirtualBox chooses: what a killed command made is found again, and no second one
/// is made.
fn host_only(steps: &mut Steps, store: &Store, gun: &Gun) {
    steps.step("host-only interfaces");
    let create = format!("{CREATE} --virtualbox-hostonly-cidr 192.168.57.1/24");
    gun.forge(store, &create, None, MADE).exits(ABORTED);
    let about = |calls: Vec<String>| -> Vec<usize> {
        let numbered = calls.into_iter().zip(1..);
        let ours = numbered.filter(|(call, _)| call.starts_with("hostonlyif "));
        ours.map(|(_, number)| number).collect()
    };
    let making = about(gun.calls());
    gun.forge(store, RM, None, "").ok();
    let removing = about(gun.calls());
    assert_eq!((making.len(), removing.len()), (2, 1));
    nothing(store, "host-only");
    for (number, words) in making
        .iter()
        .map(|number| (number, create.as_str()))
        .chain(removing.iter().map(|number| (number, RM)))
    {
        let ways = [When::Before, When::Late];
        // One way of each, by turns.
        let ways = if long() {
            &ways[..]
        } else {
            &ways[number % 2..][..1]
        };
        for &when in ways {
            let at = format!("`{words}` killed {when:?} {number}");
            if words == RM {
                gun.forge(store, &create, None, MADE).exits(ABORTED);
                let killed = gun.forge(store, RM, Some((when, *number)), "");
                assert_eq!(killed.code, KILLED, "{at}: {killed}");
            } else {
                let killed = gun.forge(store, &create, Some((when, *number)), MADE);
                assert_eq!(killed.code, KILLED, "{at}: {killed}");
                let again = gun.forge(store, &create, None, MADE);
                assert_eq!(again.code, ABORTED, "{at}: {again}");
                let there = manage("list hostonlyifs");
                let names = there.lines().filter(|line| line.starts_with("Name:"));
                assert_eq!(names.count(), 1, "{at}: {there}");
            }
            known(store, &at);
            gun.forge(store, RM, None, "").ok();
            nothing(store, &at);
        }
    }
}
