//! A host without systemd, in earnest: OpenRC starts its engine, by the script of Debian's package (as on Devuan) and
//! then by a supervised service that reads /etc/conf.d (as on Alpine and Gentoo). It is adopted and left.

use forge_lab::openrc::{OpenRc, SSH_PORT};
use forge_lab::{Steps, Store, TWO_CONTAINERS};

const FORGE: &str = env!("CARGO_BIN_EXE_forge");

/// The engine, with a configuration of its own.
const ENGINE: &str = r#"set -e
mkdir -p /etc/docker
echo '{"labels": ["room=7"]}' >/etc/docker/daemon.json
rc-service docker restart >/dev/null
tries=0
until docker version >/dev/null 2>&1 || [ $tries -gt 60 ]; do tries=$((tries + 1)); sleep 1; done
"#;

/// The service as Alpine and Gentoo have it takes the place of the package's script.
const SUPERVISED: &str = r#"set -e
rc-service docker stop >/dev/null
rm -f /etc/default/docker
mkdir -p /etc/conf.d
printf '# what the engine is started with\nDOCKER_OPTS="--log-level=warn"\nDOCKERD_BINARY=/usr/sbin/dockerd\n' >/etc/conf.d/docker
cat >/etc/init.d/docker <<'SERVICE'
#!/sbin/openrc-run
supervisor=supervise-daemon
command="${DOCKERD_BINARY:-/usr/bin/dockerd}"
command_args="${DOCKER_OPTS}"
output_log="/var/log/${RC_SVCNAME}.log"
error_log="/var/log/${RC_SVCNAME}.log"
retry="TERM/60/KILL/10"
depend() {
	need networking
	after second-disk
}
SERVICE
chmod 755 /etc/init.d/docker
# What OpenRC remembers is of the script that was there before.
rc-service docker zap >/dev/null
rc-service docker start >/dev/null
tries=0
until docker version >/dev/null 2>&1 || [ $tries -gt 60 ]; do tries=$((tries + 1)); sleep 1; done
docker start once always >/dev/null
"#;

/// All that has to be the same afterwards.
const FACTS: &str = r#"docker inspect -f '{{.Name}} {{.State.Pid}} {{.State.StartedAt}} {{.RestartCount}}' once always
docker info -f '{{.Driver}} {{.ServerVersion}} {{.Images}} {{.LiveRestoreEnabled}}'
hostname
cat /etc/docker/daemon.json
"#;

/// Besides, what is the same once the host was left.
const FILES: &str = r#"find /etc/docker /etc/conf.d /etc/default/docker /etc/init.d/docker /var/lib/forge 2>/dev/null | sort
sha256sum /etc/conf.d/docker /etc/default/docker /etc/init.d/docker 2>/dev/null
cat ~root/.ssh/authorized_keys
rc-update show default
docker info -f '{{.Labels}}'
grep -c ':0948 ' /proc/net/tcp6 || :
"#;

#[test]
fn lab_a_host_with_openrc_is_adopted_and_left_as_it_was() {
    let mut steps = Steps::new("a host with OpenRC");
    steps.step("boots");
    let host = OpenRc::boot();
    let init = host.sh("ps -o comm= -p 1; rc-status --runlevel; [ ! -d /run/systemd ]");
    assert_eq!(init, "init\ndefault");
    steps.step("its containers run");
    host.sh(&format!("{ENGINE}{TWO_CONTAINERS}"));
    for (how, conf, before) in [
        (
            "by the script of Debian's package",
            "/etc/default/docker",
            "",
        ),
        ("supervised", "/etc/conf.d/docker", SUPERVISED),
    ] {
        steps.step(how);
        host.sh(before);
        adopted_and_left(&mut steps, &host, conf);
    }
    steps.step("restarted");
    let store = Store::empty(FORGE);
    adopt(&store, &host);
    let boot = "cat /proc/sys/kernel/random/boot_id";
    let earlier = host.sh(boot);
    store.ok(&["restart", "n1"]);
    assert_ne!(host.sh(boot), earlier, "the host itself");
    assert!(
        store.ok(&["ls"]).contains(" v"),
        "its engine answers over TLS"
    );
    let running = "docker ps --format '{{.Names}}'";
    assert_eq!(store.ssh("n1", running), "always");
    store.ok(&["rm", "-y", "n1"]);
}

fn adopt(store: &Store, host: &OpenRc) {
    store.ok(&words(host).iter().map(String::as_str).collect::<Vec<_>>());
}

fn words(host: &OpenRc) -> Vec<String> {
    let (key, print) = (host.key().display().to_string(), host.fingerprint());
    [
        "create",
        "--driver",
        "generic",
        "--generic-ip-address",
        host.address(),
        "--generic-ssh-port",
        SSH_PORT,
        "--generic-ssh-user",
        "root",
        "--generic-ssh-key",
        &key,
        "--generic-ssh-config",
        "none",
        "--generic-host-key",
        &print,
        "n1",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn adopted_and_left(steps: &mut Steps, host: &OpenRc, conf: &str) {
    let store = Store::empty(FORGE);
    let (facts, files) = (host.sh(FACTS), host.sh(FILES));
    assert!(!facts.contains("/once 0 "), "both run: {facts}");
    let mut dry = words(host);
    dry.push("--dry-run".to_owned());
    let dry = store.run(&dry.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(dry.code, 2, "{dry}");
    assert!(
        dry.err.contains("the 2 containers that run, run on"),
        "{dry}"
    );
    assert!(dry.err.contains(conf), "{dry}");
    assert_eq!(host.sh(FILES), files, "nothing was changed");
    steps.step("… adopted");
    adopt(&store, host);
    let same = "images, containers and their PIDs, host name, storage driver";
    assert_eq!(host.sh(FACTS), facts, "{same}");
    assert!(host.sh(&format!("cat {conf}")).contains("tlsverify"));
    assert!(
        store.ok(&["ls"]).contains(" v"),
        "its engine answers over TLS"
    );
    let again = store.run(&["provision", "n1"]).ok();
    assert!(again.err.contains("nothing to change"), "{again}");
    let said = store.ssh("n1", "docker run --rm tiny /bin/sleep 0 && echo ran");
    assert_eq!(said, "ran");
    steps.step("… another certificate");
    store.ok(&["regenerate-certs", "-f", "n1"]);
    assert_eq!(host.sh(FACTS), facts, "{same}");
    assert!(
        store.ok(&["ls"]).contains(" v"),
        "its engine answers over TLS"
    );
    steps.step("… left");
    store.ok(&["rm", "-y", "n1"]);
    assert_eq!(
        (host.sh(FACTS), host.sh(FILES)),
        (facts, files),
        "as it was"
    );
}
