//! cloud-init reads the same seed: a machine whose first boot is left to it, as in a distribution's own
//! image, comes up like one that forge's own reader set up.

use std::fs;
use std::path::Path;

use forge_lab::{Steps, Store};

const FORGE: &str = env!("CARGO_BIN_EXE_forge");

/// By this line forge's images know a seed that is not cloud-init's to read.
const MARK: &str = "# forge-seed 1\n";

#[test]
fn lab_cloud_init_reads_the_same_seed() {
    let mut steps = Steps::new("cloud-init");
    let store = Store::new(FORGE);
    let seed = Path::new(env!("CARGO_MANIFEST_DIR")).join("templates/seed/user-data.tera");
    let text = fs::read_to_string(seed).expect("the seed's template");
    assert_eq!(text.matches(MARK).count(), 1);
    let folder = tempfile::tempdir().expect("a folder");
    let below = folder.path().join("templates/seed");
    fs::create_dir_all(&below).expect("mkdir");
    fs::write(below.join("user-data.tera"), text.replace(MARK, "")).expect("write");

    steps.step("a machine whose seed is cloud-init's to read");
    let own = folder.path().display().to_string();
    store.ok(&["--templates-dir", &own, "create", "n1"]);

    steps.step("cloud-init did it, and came to its end");
    let result = store.ssh("n1", "cat /run/cloud-init/result.json");
    assert!(
        result.contains("NoCloud") && result.contains(r#""errors": []"#),
        "{result}"
    );
    assert_eq!(
        store.ssh("n1", "systemctl --failed --no-legend --plain"),
        ""
    );
    assert_eq!(
        store.ssh("n1", "hostname; id -un; sudo -n true && docker ps -q"),
        "n1\nforge"
    );
    let inner = store.inner_ip("n1");
    let addresses = store.ssh("n1", "ip -4 -o addr");
    assert!(addresses.contains(&format!(" {inner}/24 ")), "{addresses}");

    steps.step("nothing of the first contact is left");
    assert_eq!(
        store.ssh(
            "n1",
            "sudo sh -c \"grep -rlaE -- '-----BEGIN [A-Z ]*PRIVATE KEY-----' /etc /var/lib/cloud /run | sort -u\""
        ),
        "/etc/docker/tls/server-key.pem\n/etc/ssh/ssh_host_ed25519_key"
    );
    let key = store.ssh("n1", "cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub");
    assert_eq!(store.machine("n1")["ssh"]["own_host_key"], key.as_str());

    steps.step("no later boot runs it again");
    store.ok(&["restart", "n1"]);
    assert_eq!(
        store.ssh(
            "n1",
            "test -e /run/cloud-init/result.json || echo none; hostname; cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub"
        ),
        format!("none\nn1\n{key}")
    );
    let addresses = store.ssh("n1", "ip -4 -o addr");
    assert!(addresses.contains(&format!(" {inner}/24 ")), "{addresses}");
}
