//! A machine moves into another store with its disk: what was on it is there, and it is reached at another address.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use forge_lab::{Steps, Store, run};
use serde_json::Value;

const FORGE: &str = env!("CARGO_BIN_EXE_forge");
/// Copying a disk takes a minute, where two processors emulate others.
const PATIENCE: Duration = Duration::from_secs(900);

fn knowing(store: &Store, path: &Path, words: &[&str]) -> Command {
    let mut command = store.command(words);
    command.env("FORGE_PASSPHRASE_FILE", path);
    command
}

#[test]
fn lab_a_machine_moves_with_its_disk() {
    let mut steps = Steps::new("moving");
    steps.step("a machine with a file on its disk, and an image in its engine");
    let here = Store::new(FORGE);
    here.ok(&["create", "n1"]);
    here.ssh(
        "n1",
        "echo moved >keep && tar -c keep | docker import - kept:1 >/dev/null && sync",
    );
    let claim = here.claim("n1");
    let ids = "cat /etc/machine-id; docker info -f '{{.ID}}'; docker images -q kept:1; cat keep";
    let before = here.ssh("n1", ids);
    here.ok(&["stop", "n1"]);

    steps.step("its export, and its import into a store without an image");
    let folder = tempfile::tempdir().expect("a folder");
    let passphrase = folder.path().join("passphrase");
    fs::write(&passphrase, "several words in a row").expect("written");
    fs::set_permissions(&passphrase, fs::Permissions::from_mode(0o600)).expect("closed");
    let file = folder.path().join("n1.forge");
    let out = file.display().to_string();
    run(
        &mut knowing(
            &here,
            &passphrase,
            &["export", "n1", "--with-disk", "-o", &out],
        ),
        b"",
        PATIENCE,
    )
    .ok();
    let size = fs::metadata(&file).expect("a file").len();
    steps.note(&format!("{} MiB", size >> 20));
    let there = Store::empty(FORGE);
    run(
        &mut knowing(&there, &passphrase, &["import", &out]),
        b"",
        PATIENCE,
    )
    .ok();

    steps.step("it has no base and knows no path");
    let folder = there.home().join("drivers/qemu").join(&claim);
    let disk = folder.join("disk.qcow2");
    let mut command = Command::new("qemu-img");
    command.args(["info", "--output=json"]).arg(&disk);
    let info = run(&mut command, b"", PATIENCE).ok().text();
    let info: Value = serde_json::from_str(&info).expect("JSON");
    assert!(info["backing-filename"].is_null(), "{info}");
    for path in [
        folder.join("vm.json"),
        there.home().join("machines/n1/machine.json"),
    ] {
        let text = fs::read_to_string(&path).expect("a record");
        assert!(
            !text.contains(&here.home().display().to_string()),
            "{}",
            path.display()
        );
        assert!(
            !text.contains(&there.home().display().to_string()),
            "{}",
            path.display()
        );
    }

    steps.step("it starts at another address, and is what it was");
    there.ok(&["start", "n1"]);
    assert_eq!(there.ssh("n1", ids), before);
    assert_ne!(there.ip("n1"), here.ip("n1"));
    assert_eq!(there.inner_ip("n1"), here.inner_ip("n1"));
    there.ok(&["env", "n1"]);
    let names = there.machine("n1")["tls"]["names"].to_string();
    assert!(names.contains(&there.ip("n1")), "{names}");
    there.ok(&["rm", "-y", "n1"]);
    here.ok(&["rm", "-y", "n1"]);
}
