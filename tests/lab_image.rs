//! The image, made by a plain user through kills, and booted by its own bootloader under both firmwares.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use forge_lab::{Dice, Listened, Steps, Store, User, run, wait};

const FORGE: &str = env!("CARGO_BIN_EXE_forge");
const PATIENCE: Duration = Duration::from_secs(300);

/// Where the build is killed: the step that has begun, and the milliseconds after which it mostly is over.
const KILLS: [(&str, u64); 6] = [
    ("building the base image", 1500),
    ("package lists", 3000),
    ("unpacking the base", 3000),
    ("installing packages", 3000),
    ("installing packages", 12_000),
    ("root file system", 2500),
];

/// UEFI's code and its variables, by the names that distributions give them.
const UEFI: [(&str, &str); 2] = [
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    (
        "/usr/share/OVMF/OVMF_CODE.fd",
        "/usr/share/OVMF/OVMF_VARS.fd",
    ),
];

#[test]
fn lab_an_image_made_without_root_boots_by_itself() {
    let mut steps = Steps::new("image");
    let mut dice = Dice::new();
    let user = User::plain();
    let id = user.id();
    assert_ne!(id, 0);
    let store = Store::of(user, FORGE);

    let mut killed = Vec::new();
    for (step, span) in KILLS {
        let after = dice.below(span);
        steps.step(&format!("a build, killed {after} ms into `{step}`"));
        kill_at(&store, step, after);
        killed.push(format!("image build  {after:>5} ms into `{step}`"));
        assert_eq!(
            store.json(&["image", "ls"]),
            serde_json::json!([]),
            "half an image is none"
        );
    }
    steps.step("a build, interrupted by Ctrl-C");
    let mut build = started(&store, "installing packages");
    assert_eq!(build.interrupt_after(Duration::from_secs(2)), Some(130));
    assert_eq!(store.json(&["image", "ls"]), serde_json::json!([]));

    steps.step("the same command again makes one whole image");
    let built = store.json(&["image", "build"]);
    assert_eq!(built["changed"], 1);
    let listed = store.json(&["image", "ls"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    store.ok(&["image", "verify"]);
    assert_eq!(store.json(&["image", "build"])["changed"], 0);
    let left: Vec<String> = fs::read_dir(store.home().join("images"))
        .expect("images")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| name.starts_with('.'))
        .collect();
    assert_eq!(
        left,
        Vec::<String>::new(),
        "nothing is left of the builds that were killed"
    );
    let strewn: Vec<String> = fs::read_dir("/tmp")
        .expect("a folder")
        .flatten()
        .filter(|entry| entry.metadata().is_ok_and(|meta| meta.uid() == id))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("mmdebstrap"))
        .collect();
    assert_eq!(strewn, Vec::<String>::new(), "left in /tmp");
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    assert!(
        !mounts.contains(&*store.home().to_string_lossy()),
        "{mounts}"
    );
    assert!(store.processes().is_empty(), "{:?}", store.processes());
    for kill in &killed {
        steps.note(kill);
    }

    steps.step("a machine of a plain user");
    store.ok(&["create", "u1"]);
    assert_eq!(
        store.ssh("u1", "hostname; docker version -f '{{.Server.Os}}'"),
        "u1\nlinux"
    );
    let process = store.process("u1");
    let owner = fs::metadata(format!("/proc/{}", process.pid))
        .expect("it runs")
        .uid();
    assert_eq!(owner, id, "it runs as the user");
    store.ok(&["stop", "u1"]);

    let folder = tempfile::tempdir().expect("a folder");
    steps.step("its disk under UEFI");
    let line = Boot::new(&store, folder.path(), true).answers(&store);
    assert!(line.contains("efi"), "{line}");
    steps.step("its disk under BIOS, on an IDE controller");
    let line = Boot::new(&store, folder.path(), false).answers(&store);
    assert!(line.contains("bios"), "{line}");
    store.ok(&["rm", "-y", "u1"]);
}

/// Builds until `step` has begun, waits, and kills forge alone.
fn kill_at(store: &Store, step: &str, after: u64) {
    assert!(
        started(store, step).kill_after(Duration::from_millis(after)),
        "it still builds"
    );
}

/// A build that has come to this step.
fn started(store: &Store, step: &str) -> Listened {
    let mut build = Listened::start(&mut store.command(&["image", "build"]), PATIENCE);
    loop {
        let event = build.event().expect("the build comes to that step");
        if event["step"]
            .as_str()
            .is_some_and(|shown| shown.starts_with(step))
        {
            return build;
        }
    }
}

/// A machine's disk, booted by hand: no kernel is given, the firmware has to find one.
struct Boot {
    child: Child,
}

impl Boot {
    fn new(store: &Store, folder: &Path, uefi: bool) -> Self {
        let machine = store.machine("u1");
        let disk = store
            .home()
            .join("drivers/qemu")
            .join(store.claim("u1"))
            .join("disk.qcow2");
        // An overlay: the machine's own disk stays as it is.
        let overlay = folder.join(format!("boot-{uefi}.qcow2"));
        run(
            Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
                .arg(&disk)
                .arg(&overlay),
            b"",
            PATIENCE,
        )
        .ok();
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-m",
            "1024",
        ]);
        command.arg("-drive").arg(format!(
            "if=none,id=disk,format=qcow2,cache=unsafe,file={}",
            overlay.display()
        ));
        command
            .arg("-serial")
            .arg(format!("file:{}", folder.join("console").display()));
        let forward = machine["placement"]["ssh"]["host"]
            .as_str()
            .expect("an address");
        command
            .arg("-netdev")
            .arg(format!("user,id=outer,hostfwd=tcp:{forward}-:22"));
        let mac = machine["placement"]["outer_mac"]
            .as_str()
            .expect("an address");
        command
            .arg("-device")
            .arg(format!("virtio-net-pci,netdev=outer,romfile=,mac={mac}"));
        if uefi {
            let (code, variables) = UEFI
                .into_iter()
                .find(|(code, _)| Path::new(code).exists())
                .expect("UEFI for virtual machines is installed (package ovmf)");
            let own = folder.join("variables.fd");
            fs::copy(variables, &own).expect("a copy");
            command.args(["-machine", "q35", "-device", "virtio-blk-pci,drive=disk"]);
            command
                .arg("-drive")
                .arg(format!("if=pflash,format=raw,readonly=on,file={code}"));
            command
                .arg("-drive")
                .arg(format!("if=pflash,format=raw,file={}", own.display()));
        } else {
            // The controller that VirtualBox has, too (PIIX): Debian's cloud kernel has no driver for AHCI.
            command.args(["-machine", "pc", "-device", "ide-hd,drive=disk,bus=ide.0"]);
        }
        Self {
            child: command.stdin(Stdio::null()).spawn().expect("QEMU starts"),
        }
    }

    /// What the machine says of its firmware and of how its kernel came to run.
    fn answers(&self, store: &Store) -> String {
        let question =
            "test -d /sys/firmware/efi && echo efi || echo bios; cat /proc/cmdline; hostname";
        let line = wait(
            "SSH answers, with the recorded key, to ours",
            PATIENCE,
            || {
                let said = store.ssh_with("u1", question, b"");
                (said.code == 0)
                    .then(|| said.text())
                    .ok_or_else(|| said.to_string())
            },
        );
        assert!(
            line.contains("BOOT_IMAGE=/vmlinuz") && line.ends_with("u1"),
            "{line}"
        );
        line
    }
}

impl Drop for Boot {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
