use serde_json::json;

use super::*;

/// Debian's unit of the package docker.io 20.10, without its comments.
const DEBIAN: &str = "\
/lib/systemd/system/docker.service:[Unit]
/lib/systemd/system/docker.service:Requires=docker.socket
/lib/systemd/system/docker.service:
/lib/systemd/system/docker.service:[Service]
/lib/systemd/system/docker.service:Type=notify
/lib/systemd/system/docker.service:# the default is not to use systemd for cgroups
/lib/systemd/system/docker.service:EnvironmentFile=-/etc/default/docker
/lib/systemd/system/docker.service:ExecStart=/usr/sbin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock $DOCKER_OPTS
/lib/systemd/system/docker.service:ExecReload=/bin/kill -s HUP $MAINPID
/lib/systemd/system/docker.service:KillMode=process
/etc/os-release:ID=debian
/etc/os-release:PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"
";
/// Docker's own, of the package docker-ce.
const DOCKER_CE: &str = "\
/usr/lib/systemd/system/docker.service:[Service]
/usr/lib/systemd/system/docker.service:Type=notify
/usr/lib/systemd/system/docker.service:ExecStart=/usr/bin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock
/usr/lib/systemd/system/docker.service:KillMode=process
/etc/os-release:ID=ubuntu
/etc/os-release:ID_LIKE=debian
";
/// openSUSE's.
const SUSE: &str = "\
/usr/lib/systemd/system/docker.service:[Service]
/usr/lib/systemd/system/docker.service:EnvironmentFile=/etc/sysconfig/docker
/usr/lib/systemd/system/docker.service:Type=notify
/usr/lib/systemd/system/docker.service:ExecStart=/usr/bin/dockerd --add-runtime oci=/usr/sbin/docker-runc $DOCKER_NETWORK_OPTIONS $DOCKER_OPTS
/usr/lib/systemd/system/docker.service:KillMode=process
/etc/sysconfig/docker:DOCKER_OPTS=\"\"
/etc/os-release:ID=\"opensuse-leap\"
/etc/os-release:ID_LIKE=\"suse opensuse\"
";
/// Fedora's, of the package moby-engine.
const FEDORA: &str = "\
/usr/lib/systemd/system/docker.service:[Service]
/usr/lib/systemd/system/docker.service:EnvironmentFile=-/etc/sysconfig/docker
/usr/lib/systemd/system/docker.service:ExecStart=/usr/bin/dockerd \\
/usr/lib/systemd/system/docker.service:          --host=fd:// \\
/usr/lib/systemd/system/docker.service:          --exec-opt native.cgroupdriver=systemd \\
/usr/lib/systemd/system/docker.service:          $OPTIONS
/etc/sysconfig/docker:OPTIONS=\"--selinux-enabled --log-driver=journald --live-restore\"
";

fn found(unit: &str, more: &str) -> Found {
    Found::read(&format!(
        "init systemd\nengine /usr/bin/dockerd\n{unit}{more}"
    ))
    .expect("found")
}

/// A line of `daemon.json`, as it is found.
fn daemon(value: &Value) -> String {
    format!("/etc/docker/daemon.json:{value}\n")
}

fn terms() -> Terms {
    Terms {
        listen: ([192, 0, 2, 7], 2376).into(),
        defaults: Map::new(),
        past: Vec::new(),
    }
}

/// forge's own machines.
fn ours() -> Terms {
    let text = include_str!("../../templates/docker/daemon.json.tera");
    Terms {
        defaults: serde_json::from_str(text).expect("JSON"),
        ..terms()
    }
}

/// Options, each as `what value`.
fn wish(options: &[&str]) -> EngineOptions {
    let mut wished = EngineOptions::default();
    for option in options {
        let (what, value) = option.split_once(' ').expect("two words");
        let value = value.to_owned();
        match what {
            "opt" => wished.opts.push(value),
            "env" => wished.env.push(value),
            "label" => wished.labels.push(value),
            "insecure" => wished.insecure_registries.push(value),
            "mirror" => wished.mirrors.push(value),
            "storage" => wished.storage_driver = Some(value),
            _ => panic!("{what}"),
        }
    }
    wished
}

fn file(settings: &Settings) -> Value {
    serde_json::from_str(&settings.daemon).expect("JSON")
}

fn flags(settings: &Settings) -> String {
    let Started::Systemd { environment, .. } = &settings.start else {
        panic!("not systemd");
    };
    environment[0].clone()
}

const GUARDED: &str = "--tlsverify --tlscacert=/etc/docker/tls/ca.pem --tlscert=/etc/docker/tls/server.pem --tlskey=/etc/docker/tls/server-key.pem";

#[test]
fn options_go_where_nothing_says_them_already() {
    let tls = json!({
        "tlsverify": true, "tlscacert": "/etc/docker/tls/ca.pem", "tlscert": "/etc/docker/tls/server.pem",
        "tlskey": "/etc/docker/tls/server-key.pem",
    });
    let with_tls = |mut value: Value| {
        let object = value.as_object_mut().expect("an object");
        object.extend(tls.as_object().expect("an object").clone());
        value
    };
    let port = format!("-H tcp://0.0.0.0:2376 {GUARDED}");
    let socket = format!("-H unix:///var/run/docker.sock {port}");
    // What is found, what is wished, and what becomes of the file and of the flags.
    let table: Vec<(String, &[&str], Value, String)> = vec![
        (DEBIAN.into(), &[], json!({}), port.clone()),
        (DOCKER_CE.into(), &[], json!({}), port.clone()),
        (SUSE.into(), &[], json!({}), socket.clone()),
        (FEDORA.into(), &[], json!({}), port.clone()),
        (
            DEBIAN.into(),
            &[
                "opt log-level=debug",
                "opt live-restore",
                "label a=b",
                "insecure r:5000",
                "mirror https://m",
                "storage overlay2",
            ],
            json!({"log-level": "debug", "live-restore": true, "labels": ["a=b"], "insecure-registries": ["r:5000"], "registry-mirrors": ["https://m"], "storage-driver": "overlay2"}),
            port.clone(),
        ),
        // What others wrote stays; lists grow, labels and values are replaced.
        (
            DEBIAN.to_owned()
                + &daemon(
                    &json!({"labels": ["a=x", "c=d"], "mtu": 1400, "log-level": "info", "registry-mirrors": ["https://o"]}),
                ),
            &["label a=b", "opt log-level=debug", "mirror https://m"],
            json!({"labels": ["a=b", "c=d"], "mtu": 1400, "log-level": "debug", "registry-mirrors": ["https://o", "https://m"]}),
            port.clone(),
        ),
        // Hosts in the file: forge's goes there, and its guard with it.
        (
            SUSE.to_owned() + &daemon(&json!({"hosts": ["unix:///run/docker.sock"]})),
            &[],
            with_tls(json!({"hosts": ["unix:///run/docker.sock", "tcp://0.0.0.0:2376"]})),
            String::new(),
        ),
        // It listens there already.
        (
            SUSE.to_owned() + &daemon(&json!({"hosts": ["tcp://10.0.0.1:2376"]})),
            &[],
            with_tls(json!({"hosts": ["tcp://10.0.0.1:2376"]})),
            String::new(),
        ),
        // TLS in the file, of others: it is forge's to say, at the same place.
        (
            DEBIAN.to_owned() + &daemon(&json!({"tlscacert": "/etc/ca.pem"})),
            &[],
            with_tls(json!({})),
            "-H tcp://0.0.0.0:2376".into(),
        ),
        // A flag that says the same is enough.
        (
            FEDORA.into(),
            &["opt live-restore", "opt log-driver=journald"],
            json!({}),
            port.clone(),
        ),
        // Where others of its kind are flags, it is one too.
        (
            SUSE.into(),
            &["opt add-runtime=x=/bin/x"],
            json!({}),
            format!("{socket} --add-runtime=x=/bin/x"),
        ),
        (
            DEBIAN.to_owned() + "/etc/default/docker:DOCKER_OPTS=\"--label c=d\"\n",
            &["label a=b", "label c=d"],
            json!({}),
            format!("{port} --label=a=b"),
        ),
        // Another log driver takes the other's options away.
        (
            DEBIAN.to_owned()
                + &daemon(&json!({"log-driver": "json-file", "log-opts": {"max-size": "1m"}})),
            &["opt log-driver=journald"],
            json!({"log-driver": "journald"}),
            port.clone(),
        ),
        (
            DEBIAN.to_owned()
                + &daemon(&json!({"log-driver": "json-file", "log-opts": {"max-size": "1m"}})),
            &["opt log-opt=max-file=2"],
            json!({"log-driver": "json-file", "log-opts": {"max-size": "1m", "max-file": "2"}}),
            port.clone(),
        ),
        // Somebody's drop-in that replaces the command line.
        (
            DEBIAN.to_owned()
                + "/etc/systemd/system/docker.service.d/own.conf:[Service]\n/etc/systemd/system/docker.service.d/own.conf:ExecStart=\n/etc/systemd/system/docker.service.d/own.conf:ExecStart=/opt/dockerd -H unix:///x --dns 1.1.1.1\n",
            &["opt dns=2.2.2.2"],
            json!({}),
            format!("{port} --dns=2.2.2.2"),
        ),
    ];
    for (there, options, expected_file, expected_flags) in table {
        let settings = merge(&found(&there, ""), &wish(options), &terms())
            .unwrap_or_else(|error| panic!("{options:?}: {}\n{there}", error.line()));
        assert_eq!(file(&settings), expected_file, "{options:?}\n{there}");
        assert_eq!(
            flags(&settings),
            format!("FORGE_ENGINE_FLAGS=\"{expected_flags}\""),
            "{options:?}\n{there}"
        );
    }
}

#[test]
fn contradictions_are_errors_that_name_both() {
    let fedora = FEDORA.to_owned();
    let in_swarm = DEBIAN.to_owned() + "swarm active\n";
    let used = DEBIAN.to_owned() + "storage overlay2\n";
    for (there, options, one, other) in [
        (
            &fedora,
            &["opt log-driver=json-file"][..],
            "--engine-opt log-driver=json-file",
            "--log-driver=journald",
        ),
        (
            &fedora,
            &["opt live-restore=false"],
            "--engine-opt live-restore=false",
            "--live-restore=true",
        ),
        (
            &fedora,
            &["opt exec-opt=native.cgroupdriver=cgroupfs"],
            "cgroupfs",
            "--exec-opt=native.cgroupdriver=systemd",
        ),
        (
            &in_swarm,
            &["opt live-restore"],
            "--engine-opt live-restore",
            "swarm",
        ),
        (
            &used,
            &["storage btrfs"],
            "--engine-storage-driver btrfs",
            "`overlay2`",
        ),
        (
            &used,
            &["opt storage-driver=btrfs"],
            "--engine-opt storage-driver=btrfs",
            "`overlay2`",
        ),
        (
            &used,
            &["label a=b", "label a=c"],
            "--engine-label a=b",
            "--engine-label a=c",
        ),
        (
            &used,
            &["label a=b", "opt label=a=c"],
            "--engine-label a=b",
            "--engine-opt label=a=c",
        ),
        (
            &used,
            &["opt mtu=1", "opt mtu=2"],
            "--engine-opt mtu=1",
            "--engine-opt mtu=2",
        ),
        (
            &used,
            &["storage overlay2", "opt storage-driver=btrfs"],
            "--engine-storage-driver overlay2",
            "--engine-opt storage-driver=btrfs",
        ),
        (
            &used,
            &["opt host=tcp://x"],
            "--engine-opt host=tcp://x",
            "forge decides",
        ),
        (
            &used,
            &["opt tlsverify=false"],
            "--engine-opt tlsverify=false",
            "forge decides",
        ),
        (&used, &["label a"], "--engine-label a", "NAME=VALUE"),
        (
            &used,
            &["mirror m.example"],
            "--engine-registry-mirror m.example",
            "URL",
        ),
        (
            &used,
            &["env 1=2"],
            "--engine-env 1=2",
            "name of a variable",
        ),
        (&used, &["env A"], "--engine-env A", "NAME=VALUE"),
        (&used, &["env A=1", "env A=2"], "--engine-env A=2", "twice"),
        (
            &used,
            &["opt a b=c"],
            "--engine-opt a b=c",
            "makes no sense",
        ),
        (&used, &["opt ="], "--engine-opt =", "makes no sense"),
        (
            &used,
            &["insecure a\nb"],
            "--engine-insecure-registry a\\nb",
            "makes no sense",
        ),
    ] {
        let error = merge(&found(there, ""), &wish(options), &terms()).expect_err(one);
        let line = error.line();
        assert!(
            line.contains(one) && line.contains(other),
            "{options:?}: {line}"
        );
    }
    let flagged =
        DEBIAN.to_owned() + "/etc/default/docker:DOCKER_OPTS=\"--tlsverify --tlscacert=/x\"\n";
    let error = merge(&found(&flagged, ""), &wish(&[]), &terms()).expect_err("TLS");
    assert!(
        error.line().contains("`--tlscacert=/x`"),
        "{}",
        error.line()
    );
    // The same storage driver is none other.
    merge(&found(&used, ""), &wish(&["storage overlay2"]), &terms()).expect("the same");
}

#[test]
fn the_unit_keeps_its_own_words() {
    for (there, words, keeps) in [
        (
            DEBIAN,
            "/usr/sbin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock $DOCKER_OPTS",
            false,
        ),
        (
            DOCKER_CE,
            "/usr/bin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock",
            false,
        ),
        (
            SUSE,
            "/usr/bin/dockerd --add-runtime oci=/usr/sbin/docker-runc $DOCKER_NETWORK_OPTIONS $DOCKER_OPTS",
            false,
        ),
        // It says nothing of what a stop ends, so a stop would end containers.
        (
            FEDORA,
            "/usr/bin/dockerd --host=fd:// --exec-opt native.cgroupdriver=systemd $OPTIONS",
            true,
        ),
    ] {
        let settings =
            merge(&found(there, ""), &wish(&["env A=b \"c\" $d"]), &terms()).expect("merged");
        let Started::Systemd {
            line,
            keep,
            machine,
            environment,
        } = settings.start
        else {
            panic!("not systemd");
        };
        assert_eq!((line.as_str(), keep, machine), (words, keeps, false));
        assert_eq!(environment[1..], ["A=\"b \\\"c\\\" \\$d\""]);
    }
}

#[test]
fn the_start_of_docker_machine_gives_way_and_what_it_said_stays() {
    let there = DOCKER_CE.to_owned()
        + "/etc/systemd/system/docker.service.d/10-machine.conf:[Service]\n/etc/systemd/system/docker.service.d/10-machine.conf:ExecStart=\n/etc/systemd/system/docker.service.d/10-machine.conf:ExecStart=/usr/bin/dockerd -H tcp://0.0.0.0:2376 -H unix:///var/run/docker.sock --storage-driver overlay2 --tlsverify --tlscacert /etc/docker/ca.pem --tlscert /etc/docker/server.pem --tlskey /etc/docker/server-key.pem --label provider=generic \n";
    let settings = merge(&found(&there, ""), &wish(&[]), &terms()).expect("merged");
    let Started::Systemd { line, machine, .. } = &settings.start else {
        panic!("not systemd");
    };
    assert_eq!(
        line,
        "/usr/bin/dockerd --storage-driver=overlay2 --label=provider=generic"
    );
    assert!(machine);
    assert_eq!(
        flags(&settings),
        format!(
            "FORGE_ENGINE_FLAGS=\"-H unix:///var/run/docker.sock -H tcp://0.0.0.0:2376 {GUARDED}\""
        )
    );
}

#[test]
fn what_docker_machine_said_counts_on_once_its_start_is_put_aside() {
    let there = DOCKER_CE.to_owned()
        + "/var/lib/forge/before/10-machine.conf:[Service]\n/var/lib/forge/before/10-machine.conf:ExecStart=/usr/bin/dockerd -H tcp://0.0.0.0:2376 --storage-driver overlay2 --tlsverify --label provider=generic\n/var/lib/forge/before/10-machine.conf:Environment=\"HTTP_PROXY=http://p:1\" \"B=of old\" \n";
    let wished = EngineOptions {
        env: vec!["B=of now".to_owned()],
        ..EngineOptions::default()
    };
    let settings = merge(&found(&there, ""), &wished, &terms()).expect("merged");
    let Started::Systemd {
        line,
        machine,
        environment,
        ..
    } = &settings.start
    else {
        panic!("not systemd");
    };
    assert_eq!(
        line,
        "/usr/bin/dockerd --storage-driver=overlay2 --label=provider=generic"
    );
    assert!(!machine, "there is nothing to put aside any more");
    assert_eq!(
        environment[1..],
        ["B=\"of now\"", "HTTP_PROXY=\"http://p:1\""]
    );
}

#[test]
fn what_is_there_already_is_not_written_again() {
    let text = "{ \"mtu\":  1400 }";
    let there = DEBIAN.to_owned() + "/etc/docker/daemon.json:" + text + "\n";
    let settings = merge(&found(&there, ""), &wish(&["opt mtu=1400"]), &terms()).expect("merged");
    assert!(!settings.daemon_changes);
    assert!(settings.before.contains("\"live-restore\": true") && settings.before.contains("1400"));
    assert!(!settings.live_restore);
    // Where a restart was cut off, its note counts, and the file is written.
    let cut = there + "/var/lib/forge/daemon.json:{\"mtu\": 1500}\n";
    let settings = merge(&found(&cut, ""), &wish(&[]), &terms()).expect("merged");
    assert!(settings.daemon_changes);
    assert_eq!(file(&settings), json!({"mtu": 1500}));
}

#[test]
fn forge_s_own_machines_get_defaults_where_nobody_says_otherwise() {
    let default = file(&merge(&found(DEBIAN, ""), &wish(&[]), &ours()).expect("merged"));
    assert_eq!(
        default,
        json!({"log-driver": "json-file", "log-opts": {"max-file": "3", "max-size": "10m"}})
    );
    for (there, options, expected) in [
        (
            DEBIAN.to_owned() + &daemon(&default),
            &["label a=b"][..],
            json!({"log-driver": "json-file", "log-opts": {"max-file": "3", "max-size": "10m"}, "labels": ["a=b"]}),
        ),
        (
            DEBIAN.to_owned() + &daemon(&default),
            &["opt log-driver=local"],
            json!({"log-driver": "local"}),
        ),
        (
            DEBIAN.to_owned(),
            &["opt log-driver=local"],
            json!({"log-driver": "local"}),
        ),
        (
            DEBIAN.to_owned() + &daemon(&json!({"log-driver": "local"})),
            &[],
            json!({"log-driver": "local"}),
        ),
        (FEDORA.to_owned(), &[], json!({})),
    ] {
        let merged = merge(&found(&there, ""), &wish(options), &ours()).expect("merged");
        assert_eq!(file(&merged), expected, "{options:?}");
    }
}

#[test]
fn the_image_has_what_the_first_provisioning_would_write() {
    let settings = merge(&found(DEBIAN, ""), &wish(&[]), &ours()).expect("merged");
    let template = include_str!("../../templates/docker/daemon.json.tera");
    assert_eq!(settings.daemon, template);
    let Started::Systemd { line, keep, .. } = settings.start else {
        panic!("not systemd");
    };
    let context = tera::Context::from_value(json!({"line": line, "keep": keep})).expect("values");
    let drop_in = include_str!("../../templates/docker/10-forge.conf.tera");
    assert_eq!(
        tera::Tera::one_off(drop_in, &context, false).expect("rendered"),
        include_str!("../../templates/image/10-forge.conf")
    );
}

#[test]
fn a_service_of_openrc_reads_forge_s_part_behind_its_own() {
    let text = "init openrc\nengine /usr/bin/dockerd\nconf /etc/conf.d/docker\n/etc/conf.d/docker:# any other random options\n/etc/conf.d/docker:DOCKER_OPTS=\"--dns 1.1.1.1\"\n/etc/os-release:ID=alpine\n";
    let first = merge(
        &Found::read(text).expect("found"),
        &wish(&["env A=b c"]),
        &terms(),
    )
    .expect("merged");
    let Started::OpenRc {
        path,
        text: written,
    } = &first.start
    else {
        panic!("not OpenRC");
    };
    assert_eq!(path, "/etc/conf.d/docker");
    assert_eq!(
        written,
        &format!(
            "# any other random options\nDOCKER_OPTS=\"--dns 1.1.1.1\"\n{BEGIN}\nDOCKER_OPTS=\"$DOCKER_OPTS -H unix:///var/run/docker.sock -H tcp://0.0.0.0:2376 {GUARDED}\"\nexport A='b c'\n{END}\n"
        )
    );
    // What forge wrote is not taken for the machine's own.
    let again: String = written
        .lines()
        .map(|line| format!("/etc/conf.d/docker:{line}\n"))
        .collect();
    let found =
        Found::read(&format!("init openrc\nconf /etc/conf.d/docker\n{again}")).expect("found");
    let second = merge(&found, &wish(&["env A=b c"]), &terms()).expect("merged");
    assert_eq!(first.start, second.start);
}

#[test]
fn what_is_not_wished_any_more_is_taken_back() {
    let there = DEBIAN.to_owned()
        + &daemon(
            &json!({"labels": ["a=b", "own=1"], "mtu": 1400, "log-opts": {"max-size": "1m"}, "dns": ["1.1.1.1"], "debug": true}),
        );
    let past = wish(&[
        "label a=b",
        "opt mtu=1400",
        "opt log-opt=max-size=1m",
        "opt dns=1.1.1.1",
        "opt debug=false",
    ]);
    let terms = Terms {
        past: vec![past],
        ..terms()
    };
    let merged = |options: &[&str]| {
        file(&merge(&found(&there, ""), &wish(options), &terms).expect("merged"))
    };
    assert_eq!(merged(&[]), json!({"labels": ["own=1"], "debug": true}));
    assert_eq!(
        merged(&["label a=c", "opt mtu=1400"]),
        json!({"labels": ["own=1", "a=c"], "mtu": 1400, "debug": true})
    );
}

#[test]
fn what_cannot_be_read_is_told() {
    let error =
        Found::read("init systemd\n/etc/docker/daemon.json:{\"a\": }\n").expect_err("no JSON");
    assert!(
        error.line().contains("`/etc/docker/daemon.json`"),
        "{}",
        error.line()
    );
    let nothing = Found::read("init systemd\nengine /snap/bin/dockerd\n").expect("found");
    let error = merge(&nothing, &wish(&[]), &terms()).expect_err("no unit");
    assert_eq!(error.message(), "nothing was found that starts the engine");
}

#[test]
fn a_distribution_is_known_by_what_it_is_and_by_what_it_is_derived_from() {
    for (id, like, family) in [
        ("debian", "", Some("debian")),
        ("ubuntu", "debian", Some("debian")),
        ("zorin", "ubuntu debian", Some("debian")),
        ("fedora", "", Some("fedora")),
        ("rocky", "rhel centos fedora", Some("fedora")),
        ("amzn", "centos rhel fedora", Some("fedora")),
        ("opensuse-leap", "suse opensuse", Some("suse")),
        ("opensuse-tumbleweed", "", Some("suse")),
        ("sles", "suse", Some("suse")),
        ("alpine", "", Some("alpine")),
        ("arch", "", Some("arch")),
        ("endeavouros", "arch", Some("arch")),
        ("plan9", "", None),
    ] {
        let found = Found::read(&format!(
            "/etc/os-release:ID={id}\n/etc/os-release:ID_LIKE=\"{like}\"\n"
        ));
        assert_eq!(found.expect("found").os.family(), family, "{id}");
    }
}

#[test]
fn files_count_over_the_unit_wherever_they_stand_and_an_empty_value_takes_back() {
    let unit = |lines: &[&str]| -> String {
        let path = "/lib/systemd/system/docker.service";
        let lines = ["[Service]"].iter().chain(lines);
        lines.map(|line| format!("{path}:{line}\n")).collect()
    };
    let flags = |lines: &[&str], more: &str| -> Vec<String> {
        let found = found(&unit(lines), more);
        found.flags.iter().map(Flag::text).collect()
    };
    let file = "/etc/my.env:OPTS=--debug\n";
    let start = "ExecStart=/usr/bin/dockerd $OPTS";
    assert_eq!(
        flags(
            &[
                "EnvironmentFile=-/etc/my.env",
                "Environment=OPTS=--icc=false",
                start
            ],
            file
        ),
        ["--debug=true"]
    );
    assert_eq!(
        flags(
            &[
                "EnvironmentFile=/etc/my.env",
                "EnvironmentFile=",
                "Environment=OPTS=--icc=false",
                start
            ],
            file
        ),
        ["--icc=false"]
    );
    assert_eq!(
        flags(&["Environment=OPTS=--icc=false", "Environment=", start], ""),
        [""; 0]
    );
    // A pattern is not followed: what its files say is not known, where it matters.
    let text = |start: &str| {
        format!(
            "init systemd\n{}",
            unit(&["EnvironmentFile=/etc/docker/*.env", start])
        )
    };
    let error = Found::read(&text(start)).expect_err("a pattern");
    assert!(
        error.line().contains("EnvironmentFile=/etc/docker/*.env"),
        "{}",
        error.line()
    );
    Found::read(&text("ExecStart=/usr/bin/dockerd -H fd://")).expect("no variable");
}

#[test]
fn an_engine_at_an_address_of_the_sixth_version_listens_there() {
    let terms = Terms {
        listen: "[2001:db8::7]:2376".parse().expect("an address"),
        ..terms()
    };
    let settings = merge(&found(DEBIAN, ""), &wish(&[]), &terms).expect("merged");
    let flags = flags(&settings);
    assert!(flags.contains("-H tcp://[::]:2376"), "{flags}");
}

#[test]
fn what_a_shell_would_run_is_no_flag() {
    let there = "init openrc\nengine /usr/bin/dockerd\nconf /etc/conf.d/docker\n/etc/conf.d/docker:DOCKER_OPTS=\"--label a=b\"\n";
    let found = Found::read(there).expect("found");
    let error = merge(&found, &wish(&["label x=`id`"]), &terms()).expect_err("a command");
    let line = error.line();
    assert!(line.contains("blanks or quotes"), "{line}");
}

/// The engine does not start with what is said twice.
#[test]
fn a_flag_that_keeps_containers_is_not_said_again_for_a_restart() {
    let there = FEDORA.replace("--live-restore\"", "--live-restore --debug\"");
    let settings = merge(&found(&there, ""), &wish(&["label a=b"]), &terms()).expect("merged");
    for text in [&settings.before, &settings.during, &settings.after] {
        assert!(!text.contains("live-restore"), "{text}");
    }
    assert!(settings.live_restore && settings.had_it);
}
