//! Two stores of one user with the same defaults at the same time, and three processes that create at once
//! in a fresh one: every machine works, and no frame crosses.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use forge_lab::{Ran, Steps, Store, wait};

const FORGE: &str = env!("CARGO_BIN_EXE_forge");
const PATIENCE: Duration = Duration::from_secs(120);

/// Listens on the inner network for everything but the machine's own frames; prints the source of each.
const LISTEN: &str = r#"
import socket, sys
mac = sys.argv[1]
name = next(n for _, n in socket.if_nameindex()
            if open('/sys/class/net/%s/address' % n).read().strip() == mac)
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind((name, 0))
print('listening', flush=True)
while True:
    frame, where = s.recvfrom(2048)
    if where[2] != 4:
        print(frame[6:12].hex(':'), flush=True)
"#;

/// Sends broadcasts, multicasts, and frames to a hardware address on the inner network.
const SHOUT: &str = r#"
import socket, sys, time
mac, other = sys.argv[1], sys.argv[2]
name = next(n for _, n in socket.if_nameindex()
            if open('/sys/class/net/%s/address' % n).read().strip() == mac)
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind((name, 0))
source = bytes.fromhex(mac.replace(':', ''))
for _ in range(20):
    for to in ('ff:ff:ff:ff:ff:ff', '01:00:5e:00:00:01', other):
        s.send(bytes.fromhex(to.replace(':', '')) + source + b'\x88\xb5' + b'forge' * 20)
    time.sleep(0.2)
"#;

#[test]
fn lab_two_stores_and_three_creators() {
    let mut steps = Steps::new("two stores");
    steps.step("two fresh stores: three creators in one, one in the other, all at once");
    let (one, two) = (Store::new(FORGE), Store::new(FORGE));
    let made: Vec<Ran> = thread::scope(|scope| {
        let all = [(&one, "n1"), (&one, "n2"), (&one, "n3"), (&two, "n1")]
            .map(|(store, name)| scope.spawn(move || store.run(&["create", name])));
        all.into_iter()
            .map(|running| running.join().expect("runs"))
            .collect()
    });
    for ran in made {
        assert_eq!(ran.code, 0, "{ran}");
    }
    steps.step("every machine works, by one authority for each store");
    let mut addresses = Vec::new();
    for (store, name) in [(&one, "n1"), (&one, "n2"), (&one, "n3"), (&two, "n1")] {
        assert_eq!(
            store.ssh(name, "hostname; docker version -f '{{.Server.Os}}'"),
            format!("{name}\nlinux")
        );
        store.process(name);
        addresses.push(store.ip(name));
    }
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 4, "{addresses:?}");
    let authority = |store: &Store, name: &str| {
        std::fs::read(store.home().join("machines").join(name).join("ca.pem"))
            .expect("an authority")
    };
    assert_eq!(authority(&one, "n1"), authority(&one, "n2"));
    assert_eq!(authority(&one, "n1"), authority(&one, "n3"));
    assert_ne!(authority(&one, "n1"), authority(&two, "n1"));

    steps.step("the same range in both, and sockets that are the user's alone");
    assert_eq!(
        one.inner_ip("n1")
            .rsplit_once('.')
            .map(|(net, _)| net.to_owned()),
        Some("10.133.7".to_owned())
    );
    assert_eq!(
        two.inner_ip("n1")
            .rsplit_once('.')
            .map(|(net, _)| net.to_owned()),
        Some("10.133.7".to_owned())
    );
    let (first, second) = (
        one.runtime().expect("a folder"),
        two.runtime().expect("a folder"),
    );
    assert_ne!(first, second);
    assert_eq!(
        private(&first) + private(&second),
        4 + 3 + 1 + 1 + 1,
        "a control socket and a port for each machine, two switches"
    );

    steps.step("no frame of one reaches the other");
    let mac = |store: &Store, name: &str| {
        store.machine(name)["placement"]["nic"]["mac"]
            .as_str()
            .expect("an address")
            .to_owned()
    };
    let (loud, same, foreign) = (mac(&one, "n1"), mac(&one, "n2"), mac(&two, "n1"));
    assert_ne!(loud, foreign);
    listen(&one, "n2", &same);
    listen(&two, "n1", &foreign);
    // To the address of the other store's machine, too, as if the segment were shared.
    one.ssh_with(
        "n1",
        &format!("sudo python3 - {loud} {foreign}"),
        SHOUT.as_bytes(),
    )
    .ok();
    let target = two.inner_ip("n1");
    one.ssh(
        "n1",
        &format!("ping -c 2 -W 1 {target} >/dev/null 2>&1; true"),
    );
    wait("its own segment hears it", PATIENCE, || {
        let heard = one.ssh("n2", "cat heard");
        heard.contains(&loud).then_some(()).ok_or(heard)
    });
    assert_eq!(
        two.ssh("n1", "cat heard"),
        "listening",
        "frames of {loud} came across"
    );

    steps.step("one store goes, the other stays");
    assert_eq!(one.clear(), Vec::<String>::new());
    assert_eq!(two.ssh("n1", "hostname"), "n1");
}

/// A machine listens from now on, and writes what it hears to the file `heard`.
fn listen(store: &Store, name: &str, mac: &str) {
    store
        .ssh_with(name, "cat > listen.py", LISTEN.as_bytes())
        .ok();
    store.ssh(
        name,
        &format!("sudo setsid python3 listen.py {mac} > heard 2>&1 < /dev/null &"),
    );
    wait("it listens", PATIENCE, || {
        let heard = store.ssh(name, "cat heard");
        heard.contains("listening").then_some(()).ok_or(heard)
    });
}

/// Everything in a folder of sockets is closed to others. How many sockets there are.
fn private(folder: &Path) -> usize {
    let mut sockets = 0;
    let mode = |path: &Path| {
        path.symlink_metadata()
            .expect("it is there")
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode(folder), 0o700, "{}", folder.display());
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let kind = path.symlink_metadata().expect("it is there").file_type();
        if kind.is_dir() {
            sockets += private(&path);
        } else {
            assert_eq!(mode(&path), 0o600, "{}", path.display());
            sockets += usize::from(kind.is_socket());
        }
    }
    sockets
}
