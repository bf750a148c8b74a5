//! How an engine is installed and upgraded in each family of distributions, by stand-ins for its tools.

use super::engine::Machine;
use super::*;

/// The words that each family's tool is told: to install, to install what is named, and to upgrade.
#[tokio::test]
async fn each_family_installs_and_upgrades_by_its_own_tool() {
    let hold = "mask --runtime -q docker.service docker.socket";
    let free = "unmask --runtime -q docker.service docker.socket";
    let apt = "apt-get -q update";
    for (family, os, tools, install, named, upgrade) in [
        (
            "debian",
            "ID=ubuntu\nID_LIKE=debian\n",
            &["apt-get", "apt-cache", "dpkg-query"][..],
            format!(
                "{hold}, {apt}, apt-cache --names-only search ^docker-cli$, apt-get -q -s --no-install-recommends install docker.io docker-cli, apt-get -q -y --no-install-recommends -o Dpkg::Options::=--force-confold install docker.io docker-cli, {free}"
            ),
            "install a b, ".to_owned() + free,
            format!(
                "{hold}, {apt}, apt-get -q -y --only-upgrade -o Dpkg::Options::=--force-confold install docker.io docker-cli, {free}"
            ),
        ),
        (
            "fedora",
            "ID=rocky\nID_LIKE='rhel centos fedora'\n",
            &["dnf", "rpm"],
            format!("dnf -q list --available docker-ce, {hold}, dnf -y install docker-ce, {free}"),
            format!("{hold}, dnf -y install a b, {free}"),
            format!("{hold}, dnf -y --refresh upgrade docker-ce docker-ce-cli, {free}"),
        ),
        (
            "fedora",
            "ID=fedora\n",
            &["dnf", "rpm"],
            format!(
                "dnf -q list --available moby-engine, {hold}, dnf -y install moby-engine, {free}"
            ),
            format!("{hold}, dnf -y install a b, {free}"),
            format!("{hold}, dnf -y --refresh upgrade docker-ce docker-ce-cli, {free}"),
        ),
        (
            "suse",
            "ID=opensuse-leap\n",
            &["zypper", "rpm"],
            format!("{hold}, zypper --non-interactive install --no-recommends docker, {free}"),
            format!("{hold}, zypper --non-interactive install --no-recommends a b, {free}"),
            format!(
                "{hold}, zypper --non-interactive refresh, zypper --non-interactive update docker-ce docker-ce-cli, {free}"
            ),
        ),
        (
            "alpine",
            "ID=alpine\n",
            &["apk"],
            "apk --wait 300 --update-cache add docker".to_owned(),
            "apk --wait 300 --update-cache add a b".to_owned(),
            "apk --wait 300 --update-cache upgrade docker docker-engine".to_owned(),
        ),
        (
            "arch",
            "ID=manjaro\nID_LIKE=arch\n",
            &["pacman"],
            "pacman -S --noconfirm --needed docker".to_owned(),
            "pacman -S --noconfirm --needed a b".to_owned(),
            "pacman -S --noconfirm --needed docker containerd".to_owned(),
        ),
    ] {
        let machine = Machine::bare(os, tools);
        assert_eq!(machine.look(false).await.os.family(), Some(family), "{os}");
        // What is asked about: which packages there are.
        machine.write("state/apt-cache", "echo docker-cli - the client\n");
        machine.write(
            "state/dpkg-query",
            "case $4 in docker.io | docker-cli) echo installed ;; *) exit 1 ;; esac\n",
        );
        machine.write(
            "state/rpm",
            "case $2 in docker-ce | docker-ce-cli) ;; *) exit 1 ;; esac\n",
        );
        machine.write("state/apk", "case $*  in *'info -e docker' | *'info -e docker-engine' | *add* | *upgrade*) ;; *) exit 1 ;; esac\n");
        machine.write(
            "state/pacman",
            "case $* in '-Q docker' | '-Q containerd' | -S*) ;; *) exit 1 ;; esac\n",
        );
        let asked = |calls: String| {
            let words: Vec<&str> = calls
                .split(", ")
                .filter(|call| {
                    !["dpkg-query", "rpm -q", "apk info", "pacman -Q"]
                        .iter()
                        .any(|question| call.starts_with(question))
                })
                .collect();
            words.join(", ")
        };
        assert_eq!(machine.look(false).await.engine, None, "{family}");
        let report = machine.install(family, &[], "").await.expect(family);
        assert_eq!(asked(machine.calls()), install, "{family}");
        assert_eq!(report.outputs["installed"], "Docker version 2.0, build x");
        assert!(machine.look(false).await.engine.is_some(), "{family}");
        let again = machine.install(family, &[], "").await.expect(family);
        assert_eq!(
            (again.changed(), asked(machine.calls())),
            (0, String::new()),
            "{family}"
        );
        machine.install(family, &[], "today").await.expect(family);
        assert_eq!(asked(machine.calls()), upgrade, "{family}");
        machine.install(family, &[], "today").await.expect(family);
        assert_eq!(
            asked(machine.calls()),
            "",
            "{family}: asked for once, done once"
        );
        fs::remove_file(machine.lab.path("stand-ins/dockerd")).expect("removed");
        machine
            .install(family, &["a", "b"], "")
            .await
            .expect(family);
        let calls = asked(machine.calls());
        assert!(calls.ends_with(&named), "{family}: {calls}");
    }
}

/// Each of apt's locks, whoever meets it: the lists' (which apt itself never waits for), then dpkg's.
#[tokio::test]
async fn a_lock_that_another_program_holds_is_waited_for_and_its_holder_named() {
    let machine = Machine::bare(
        "ID=debian\n",
        &["apt-get", "apt-cache", "dpkg-query", "sleep"],
    );
    machine.write(
        "state/dpkg-query",
        "case $4 in docker.io) echo installed ;; *) exit 1 ;; esac\n",
    );
    let held = |lock: &str, word: &str| {
        format!(
            "case \" $* \" in *' -s '*) ;; *' {word} '*)\n  if [ -e DIR/state/held-{word} ]; then\n    rm DIR/state/held-{word}\n    echo 'E: Could not get lock {lock}. It is held by process 7 (unattended-upgr)'\n    exit 100\n  fi ;;\nesac\n"
        )
    };
    let dir = machine.lab.folder.path().display().to_string();
    let script =
        held("/var/lib/apt/lists/lock", "update") + &held("/var/lib/dpkg/lock-frontend", "install");
    machine.write("state/apt-get", &script.replace("DIR", &dir));
    for (asked, step) in [
        ("", "the container engine is installed"),
        ("today", "the newest engine"),
    ] {
        machine.write("state/held-update", "");
        machine.write("state/held-install", "");
        machine
            .install("debian", &[], asked)
            .await
            .expect("in the end");
        assert!(machine.look(false).await.engine.is_some());
        assert_eq!(
            std::mem::take(&mut *machine.waits.lock().expect("the list")),
            ["apt/lists/lock", "dpkg/lock-frontend"].map(|lock| format!(
                "{step}: another program holds the lock /var/lib/{lock}. It is held by process 7 (unattended-upgr)"
            ))
        );
    }
    // What is none of a lock's is not tried again.
    machine.write(
        "state/apt-get",
        "echo E: Unable to locate package; exit 100\n",
    );
    machine.calls();
    let error = machine
        .install("debian", &[], "tomorrow")
        .await
        .expect_err("no such package");
    assert!(
        error.line().contains("Unable to locate"),
        "{}",
        error.line()
    );
    assert_eq!(machine.calls().matches("apt-get").count(), 1);
}

#[tokio::test]
async fn a_newest_engine_of_lists_that_may_be_old_is_told() {
    let machine = Machine::bare("ID=debian\n", &["apt-get", "dpkg-query"]);
    machine.write("state/dpkg-query", "echo installed\n");
    machine.stand_in("engine", "");
    for name in ["docker", "dockerd"] {
        machine.stand_in(name, "echo Docker version 2.0, build x");
    }
    let waits = async |asked: &str| {
        machine.install("debian", &[], asked).await.expect("done");
        std::mem::take(&mut *machine.waits.lock().expect("the list"))
    };
    assert_eq!(waits("today").await, Vec::<String>::new());
    machine.write(
        "state/apt-get",
        "case $* in *update*) echo 'W: Failed to fetch http://a.example/InRelease  Temporary failure resolving' ;; esac\n",
    );
    assert_eq!(
        waits("tomorrow").await,
        [
            "the newest engine: not all mirrors of packages can be reached; the newest is what the lists that are there know of"
        ]
    );
}

#[tokio::test]
async fn what_no_repository_has_is_told() {
    let machine = Machine::bare("ID=almalinux\nID_LIKE='rhel centos fedora'\n", &["dnf"]);
    machine.stand_in("sleep", "");
    machine.write("state/dnf", "exit 1\n");
    let error = machine
        .install("fedora", &[], "")
        .await
        .expect_err("nothing to install");
    assert!(
        error.line().contains(
            "no repository of this machine has a container engine (docker-ce moby-engine)"
        ),
        "{}",
        error.line()
    );
}

#[tokio::test]
async fn a_script_is_run_when_all_of_it_came() {
    let machine = Machine::bare("ID=plan9\n", &["curl"]);
    assert_eq!(machine.look(false).await.os.family(), None);
    // The name of the file is the one behind `-o`.
    machine.write("state/curl", "while [ \"$1\" != -o ]; do shift; done\n[ ! -e DIR/state/gone ] || { echo 'curl: (22) 404'; exit 22; }\necho DIR/stand-ins/engine >\"$2\"\n".replace("DIR", &machine.lab.folder.path().display().to_string()).as_str());
    machine.write("state/gone", "");
    let vars = Vars::new().with("url", "https://x.example/engine.sh");
    let error = machine
        .play("engine/url", &vars, &Secrets::new())
        .await
        .expect_err("gone");
    assert!(
        error.line().contains("404")
            && error
                .line()
                .contains("cannot be had: https://x.example/engine.sh"),
        "{}",
        error.line()
    );
    fs::remove_file(machine.lab.path("state/gone")).expect("removed");
    machine
        .play("engine/url", &vars, &Secrets::new())
        .await
        .expect("installed");
    assert!(machine.look(false).await.engine.is_some());
}

/// The tool for packages says no to whatever is to be installed; how often it was asked.
async fn refused(family: &str, os: &str, tools: &[&str], says: &[(&str, &str)]) -> (String, usize) {
    let machine = Machine::bare(os, tools);
    for tool in tools {
        // What is refused installs nothing.
        machine.stand_in(
            tool,
            &format!("echo {tool} \"$@\" >>DIR/state/calls\n. DIR/state/{tool}"),
        );
        machine.write(&format!("state/{tool}"), "");
    }
    for (tool, text) in says {
        machine.write(&format!("state/{tool}"), text);
    }
    machine.stand_in("sleep", "");
    let error = machine
        .install(family, &["mistyped"], "")
        .await
        .expect_err(family);
    let asked = |call: &&str| {
        [" install", " add", " -S"]
            .iter()
            .any(|word| call.contains(word))
    };
    (
        error.line(),
        machine.calls().split(", ").filter(asked).count(),
    )
}

#[tokio::test]
async fn what_no_package_is_called_is_told_at_once() {
    for (family, os, tools, says, words) in [
        (
            "debian",
            "ID=debian\n",
            &["apt-get", "apt-cache"][..],
            (
                "apt-get",
                "case $* in *' -s '*) echo E: Unable to locate package mistyped >&2; exit 100 ;; esac\n",
            ),
            "Unable to locate package mistyped",
        ),
        (
            "fedora",
            "ID=fedora\n",
            &["dnf"],
            ("dnf", "echo No match for argument: mistyped >&2; exit 1\n"),
            "dnf knows not all packages of mistyped",
        ),
        (
            "suse",
            "ID=opensuse-leap\n",
            &["zypper"],
            ("zypper", "exit 104\n"),
            "zypper knows no package of the name mistyped",
        ),
        (
            "alpine",
            "ID=alpine\n",
            &["apk"],
            (
                "apk",
                "echo fetch https://a.example/APKINDEX.tar.gz; echo '  mistyped (no such package):'; exit 1\n",
            ),
            "apk cannot install mistyped",
        ),
        (
            "arch",
            "ID=arch\n",
            &["pacman"],
            ("pacman", "exit 1\n"),
            "`pacman -Syu` brings the whole system up to date",
        ),
    ] {
        let (line, asked) = refused(family, os, tools, &[says]).await;
        assert!(line.contains(words), "{family}: {line}");
        assert_eq!(asked, 1, "{family}: {line}");
    }
}

/// What could not be looked up may be there all the same: the network may come back.
#[tokio::test]
async fn a_network_that_is_not_there_is_no_missing_package() {
    for (family, os, tools, says) in [
        (
            "debian",
            "ID=debian\n",
            &["apt-get", "apt-cache"][..],
            (
                "apt-get",
                "case $* in *' -s '*) echo E: Unable to locate package mistyped >&2; exit 100 ;; *update*) echo 'W: Failed to fetch http://a.example/InRelease  Temporary failure resolving' >&2 ;; esac\n",
            ),
        ),
        (
            "fedora",
            "ID=fedora\n",
            &["dnf"],
            (
                "dnf",
                "echo 'Error: Failed to download metadata for repo'; echo No match for argument: mistyped; exit 1\n",
            ),
        ),
        (
            "suse",
            "ID=opensuse-leap\n",
            &["zypper"],
            (
                "zypper",
                "echo \"Warning: Skipping repository 'x' because of the above error.\"; exit 104\n",
            ),
        ),
        (
            "alpine",
            "ID=alpine\n",
            &["apk"],
            (
                "apk",
                "echo 'WARNING: fetching https://a.example/main: temporary error (try again later)'; echo '  mistyped (no such package):'; exit 1\n",
            ),
        ),
    ] {
        let machine = until_slept(os, tools, says);
        machine
            .install(family, &["mistyped"], "")
            .await
            .expect(family);
        let calls = machine.calls();
        let asked = calls.split(", ").filter(|call| call.ends_with("mistyped"));
        // Debian's tool is asked what it would do, first of all.
        assert_eq!(
            asked.count(),
            if family == "debian" { 3 } else { 2 },
            "{family}: {calls}"
        );
    }
    // Nor is there no engine in any repository.
    let says = (
        "dnf",
        "echo 'Curl error (6): Could not resolve hostname'; exit 1\n",
    );
    let machine = until_slept("ID=rocky\n", &["dnf"], says);
    machine.install("fedora", &[], "").await.expect("installed");
}

/// A tool for packages says this until the step is tried again.
fn until_slept(os: &str, tools: &[&str], (tool, says): (&str, &str)) -> Machine {
    let mut machine = Machine::bare(os, tools);
    machine.patient = true;
    machine.stand_in("sleep", ": >DIR/state/back");
    let dir = machine.lab.folder.path().display().to_string();
    machine.write(
        &format!("state/{tool}"),
        &format!("[ -e {dir}/state/back ] || {{\n{says}}}\n"),
    );
    machine
}

#[tokio::test]
async fn the_lock_of_pacman_is_waited_for() {
    let machine = Machine::bare("ID=arch\n", &["pacman"]);
    let dir = machine.lab.folder.path().display().to_string();
    fs::create_dir_all(machine.lab.path("var/lib/pacman")).expect("a folder");
    machine.write("var/lib/pacman/db.lck", "");
    machine.stand_in("sleep", "rm -f DIR/var/lib/pacman/db.lck");
    machine.stand_in(
        "pacman",
        "echo pacman >>DIR/state/calls\n[ ! -e DIR/var/lib/pacman/db.lck ] || exit 1\n. DIR/stand-ins/engine",
    );
    machine.install("arch", &[], "").await.expect("installed");
    assert_eq!(machine.calls(), "pacman, pacman", "{dir}");
}

#[tokio::test]
async fn zypper_says_what_it_did_by_codes_that_are_no_failures() {
    let machine = Machine::bare("ID=opensuse-leap\n", &["zypper", "rpm"]);
    for code in [102, 107] {
        let machine = Machine::bare("ID=opensuse-leap\n", &["zypper", "rpm"]);
        machine.write("state/zypper", &format!("exit {code}\n"));
        machine.install("suse", &[], "").await.expect("installed");
        machine
            .install("suse", &[], "today")
            .await
            .expect("upgraded");
        assert!(machine.calls().contains("zypper --non-interactive update"));
    }
    // A signal ended it.
    machine.write("state/zypper", "exit 105\n");
    machine.stand_in("sleep", "");
    machine
        .install("suse", &[], "")
        .await
        .expect_err("not installed");
}

#[tokio::test]
async fn yum_is_told_what_it_understands() {
    let machine = Machine::bare("ID=amzn\n", &["yum", "rpm"]);
    machine.write(
        "state/yum",
        "case $* in *--available* | *--refresh*) echo no such option; exit 2 ;; esac\n",
    );
    machine.install("fedora", &[], "").await.expect("installed");
    machine
        .install("fedora", &[], "today")
        .await
        .expect("upgraded");
    let calls = machine.calls();
    assert!(
        calls.contains("yum -q list available docker") && calls.contains("yum -y upgrade"),
        "{calls}"
    );
}

/// A mask of forge's goes with the step that put it there, and what a kill left goes with the next restart.
#[tokio::test]
async fn a_mask_does_not_outlive_the_step_that_needs_it() {
    let free = "unmask --runtime -q docker.service docker.socket";
    for signal in ["TERM", "HUP", "INT", "KILL"] {
        let machine = Machine::bare("ID=opensuse-leap\n", &["zypper"]);
        // Its parent hands on what it says; the step is the parent of that.
        machine.stand_in(
            "zypper",
            &format!("kill -{signal} $(cut -d ' ' -f 4 /proc/$PPID/stat)\nsleep 0.2"),
        );
        machine.install("suse", &[], "").await.expect_err(signal);
        let calls = machine.calls();
        assert_eq!(calls.ends_with(free), signal != "KILL", "{signal}: {calls}");
        for (name, text) in [
            ("docker", "exit 1"),
            ("dockerd", ""),
            ("ln", "exec /bin/ln \"$@\""),
        ] {
            machine.stand_in(name, text);
        }
        let vars = Vars::new()
            .with("user", "")
            .with("certificate", "C")
            .with("ca", "CA")
            .with("line", "/usr/sbin/dockerd");
        let secrets = Secrets::new().with("server_key", "K");
        machine
            .play("docker", &vars, &secrets)
            .await
            .expect("restarted");
        let calls = machine.calls();
        assert_eq!(calls.contains(free), signal == "KILL", "{signal}: {calls}");
    }
}
