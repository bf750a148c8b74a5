//! The ways in: `forge ssh`, plain ssh and scp, logs; and what must not be seen there.

use std::process::Command;
use std::time::Duration;

use forge_lab::{Store, run};

use crate::{NODES, SAID};

pub fn ssh(store: &Store) {
    let node = NODES[0];
    assert_eq!(store.ssh_with(node, "exit 42", b"").code, 42);
    assert_eq!(store.ssh_with(node, "kill -TERM $$", b"").code, 143);
    assert_eq!(store.ok(&["ssh", node, "--", "uname", "-s"]), "Linux");
    let both = store.ssh_with(node, "echo out; echo err >&2", b"");
    assert_eq!((both.text(), both.err.trim()), ("out".to_owned(), "err"));
    // Every byte, in an order that no terminal would leave alone, a mebibyte both ways.
    let bytes: Vec<u8> = (0..1_u32 << 20)
        .map(|i| u8::try_from(i.wrapping_mul(2_654_435_761) >> 24).unwrap_or(0))
        .collect();
    let echoed = store.ssh_with(node, "cat", &bytes).ok();
    assert!(echoed.out == bytes, "{} bytes came back", echoed.out.len());
    let nobody = store.run(&["ssh", "nobody", "true"]);
    assert_eq!(nobody.code, 1, "{nobody}");
    assert!(nobody.err.contains("`nobody` does not exist"), "{nobody}");
}

pub fn plain_ssh(store: &Store) {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("config");
    std::fs::write(&config, store.ok(&["ssh-config"])).expect("write");
    let config = config.display().to_string();
    let plain = |program: &str, words: &[&str]| {
        run(
            Command::new(program)
                .args(["-F", &config, "-o", "BatchMode=yes"])
                .args(words),
            b"",
            Duration::from_secs(60),
        )
    };
    for node in NODES {
        assert_eq!(plain("ssh", &[node, "hostname"]).ok().text(), node);
    }
    let file = folder.path().join("file");
    std::fs::write(&file, SAID).expect("write");
    let remote = format!("{}:/tmp/copied", NODES[0]);
    plain("scp", &["-q", &file.display().to_string(), &remote])
        .ok()
        .text();
    let back = folder.path().join("back");
    plain("scp", &["-q", &remote, &back.display().to_string()])
        .ok()
        .text();
    assert_eq!(std::fs::read_to_string(&back).expect("copied"), SAID);
    // Another machine's key under this name is refused: the addresses change places.
    let text = std::fs::read_to_string(&config).expect("config");
    let swapped = text.replacen(
        &format!("HostName {}", store.ip(NODES[0])),
        &format!("HostName {}", store.ip(NODES[1])),
        1,
    );
    std::fs::write(&config, swapped).expect("write");
    assert_ne!(plain("ssh", &[NODES[0], "hostname"]).code, 0);
}

pub fn logs(store: &Store) {
    let all = store.ok(&["logs", NODES[1]]);
    for part in [
        "== console ==",
        "== first boot ==",
        "== engine ==",
        "forge-root: clean",
        "this is default-m2",
        "API listen on",
    ] {
        assert!(all.contains(part), "`{part}` in {all}");
    }
}

pub fn tokens(store: &Store) {
    let found = run(
        Command::new("grep")
            .args(["-rla", "SWMTKN", "--exclude-dir=images"])
            .arg(store.home()),
        b"",
        Duration::from_secs(120),
    );
    assert_eq!(
        (found.code, found.text()),
        (1, String::new()),
        "a token in the store: {found}"
    );
    for node in NODES {
        let journal = store.ssh_with(
            node,
            "sudo journalctl --no-pager -o verbose -a | grep -c 'SWM[T]KN'",
            b"",
        );
        assert_eq!(journal.text(), "0", "a token in the journal of {node}");
        let files = store.ssh(node, "sudo grep -rlaI 'SWM[T]KN' /etc /home /root /tmp /var/tmp /run /var/lib/forge 2>/dev/null; true");
        assert_eq!(files, "", "a token in a file of {node}");
    }
}
