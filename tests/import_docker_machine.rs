//! A store of docker-machine's, taken over: its machines are reached, nothing of it is changed, and no secret of it gets
//! into a record.

mod common;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use common::points::{ABORTED, aborted, each, points};
use common::{Lab, files};
use forge_lab::old::{OldStore, Sshd, engine};
use forge_lab::openssh::user;
use serde_json::json;

const TOKEN: &str = "dop_v1_0123456789abcdef";
const AWS: &str = "wJalrXUtnFEMIbPxRfiCYEXAMPLEKEY";

const PROXY: &str = "of-the-proxy";

/// An address that no other test has.
fn address() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::SeqCst);
    let pid = std::process::id();
    format!("127.{}.{}.{number}", 80 + pid / 250 % 40, 1 + pid % 250)
}

fn at(host: &str, port: u16) -> SocketAddr {
    SocketAddr::new(host.parse().expect("an address"), port)
}

fn store(lab: &Lab) -> OldStore {
    OldStore::at(&lab.folder().join("old"))
}

/// A `VBoxManage` that knows one machine, whose state is a file of this folder.
fn vboxmanage(folder: &Path, id: &str, settings: &Path, ssh: u16, ip: &str) -> PathBuf {
    let text = format!(
        "#!/bin/sh\nstate={0}/state\n[ -e $state ] || echo poweroff >$state\necho \"$*\" >>{0}/calls\ncase \"$*\" in\n\
         'list vms') echo '\"v1\" {{{id}}}' ;;\n\
         showvminfo*) echo 'UUID=\"{id}\"'; echo \"VMState=\\\"$(cat $state)\\\"\"; echo 'CfgFile=\"{1}\"'\n\
         echo 'Forwarding(0)=\"ssh,tcp,127.0.0.1,{ssh},,22\"'; echo 'hostonlyadapter2=\"vboxnet0\"'; echo 'macaddress2=\"080027C0FFEE\"' ;;\n\
         'dhcpserver findlease --interface=vboxnet0 --mac-address=08:00:27:c0:ff:ee') echo 'IP Address:  {ip}' ;;\n\
         startvm*) echo running >$state ;;\n\
         'controlvm {id} acpipowerbutton' | 'controlvm {id} poweroff') echo poweroff >$state ;;\n\
         *) echo \"VBoxManage: error: what is $*\" >&2; exit 2 ;;\nesac\n",
        folder.display(),
        settings.display(),
    );
    fs::write(folder.join("script"), text).expect("written");
    // By a child: a file that this process has open for writing cannot be run by another thread's child.
    let made = Command::new("sh")
        .args([
            "-c",
            "mkdir $1/bin && install -m 755 $1/script $1/bin/VBoxManage",
            "sh",
        ])
        .arg(folder)
        .status()
        .expect("sh");
    assert!(made.success());
    folder.join("bin")
}

fn path_with(bin: &Path) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{}:{path}", bin.display())
}

/// No secret, and no path of the old store, is anywhere in the new one.
fn no_secret(lab: &Lab, root: &str) {
    for (path, bytes) in lab.files() {
        let text = String::from_utf8_lossy(&bytes);
        for secret in [TOKEN, AWS, "AKIAEXAMPLE", PROXY, root] {
            let logged = secret == root && path.starts_with(lab.home.join("logs"));
            assert!(
                logged || !text.contains(secret),
                "{secret} in {}",
                path.display()
            );
        }
    }
}

#[test]
fn machines_of_docker_machine_work_after_an_import_and_their_store_is_as_it_was() {
    let lab = Lab::bare();
    let old = store(&lab);
    let [g, n, d, v] = [(); 4].map(|()| address());
    // A host with a key of its own, one that is only an address, a droplet with its token, and one of Amazon's that is off.
    let generic = old.machine(
        "g1",
        "generic",
        &json!({"IPAddress": g, "SSHPort": 2222, "EnginePort": 2377, "SSHKey": "/x/key"}),
        &[&g],
        10,
    );
    engine(at(&g, 2377), &generic);
    let sshd = Sshd::start(at(&g, 2222), &old.key("g1"));
    let none = old.machine(
        "n1",
        "none",
        &json!({"URL": format!("tcp://{n}:2376")}),
        &[&n],
        10,
    );
    engine(at(&n, 2376), &none);
    let droplet = old.machine(
        "do1",
        "digitalocean",
        &json!({"IPAddress": d, "AccessToken": TOKEN, "DropletID": 3_164_494, "Region": "nyc3"}),
        &[&d],
        10,
    );
    engine(at(&d, 2376), &droplet);
    old.key("do1");
    // Its engine was told a proxy with its password, and a mirror.
    let path = old.root.join("machines/do1/config.json");
    let mut told: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON");
    let engine_told = &mut told["HostOptions"]["EngineOptions"];
    engine_told["Env"] = json!([
        format!("HTTP_PROXY=http://me:{PROXY}@proxy:3128"),
        "NO_PROXY=localhost"
    ]);
    engine_told["RegistryMirror"] = json!([format!("https://me:{PROXY}@mirror.example")]);
    engine_told["InstallURL"] = json!(format!("https://me:{PROXY}@mirror.example/docker.sh"));
    fs::write(&path, told.to_string()).expect("written");
    let gone = address();
    old.machine("ec2", "amazonec2", &json!({"IPAddress": gone, "AccessKey": "AKIAEXAMPLE", "SecretKey": AWS, "InstanceId": "i-0a1b2c", "PrivateIPAddress": "10.0.0.7"}), &[&gone], 1100);
    // Somebody has vouched for its key before.
    let trusted =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIpMNUYbZH2ZqGFVuG2VnsVxUC1lDyCQpNzHJVWjvkVT";
    fs::create_dir(lab.folder().join(".ssh")).expect("mkdir");
    fs::write(
        lab.folder().join(".ssh/known_hosts"),
        format!("{gone} {trusted}\n"),
    )
    .expect("written");
    // VirtualBox's, which is off: its address is known to nobody.
    let boot2docker = old.machine("v1", "virtualbox", &json!({"IPAddress": "", "SSHPort": 35719, "SSHUser": "docker", "VBoxManager": {}, "Memory": 1024, "HostOnlyCIDR": "192.168.99.1/24"}), &[&v], 10);
    engine(at(&v, 2376), &boot2docker);
    old.key("v1");
    let id = "5d1a6bd6-3ef4-4a3e-9b0c-3a1f6e1f0c11";
    let bin = vboxmanage(
        lab.folder(),
        id,
        &old.root.join("machines/v1/v1/v1.vbox"),
        35719,
        &v,
    );
    let path = path_with(&bin);
    // Two that cannot be imported.
    old.put("machines/bad/config.json", "{\"ConfigVersion\": 3, \"Driv");
    old.put(
        "machines/early/config.json",
        "{\"ConfigVersion\": 1, \"DriverName\": \"none\"}",
    );
    let before = files(&old.root);
    let root = old.root.display().to_string();

    let words = format!("import docker-machine {root}");
    let done = lab.forge(&words).env("PATH", &path).run().code(1);
    for name in ["g1", "n1", "do1", "ec2", "v1"] {
        assert!(
            done.stderr.contains(&format!("{name}: imported\n")),
            "{name}: {}",
            done.stderr
        );
    }
    for said in [
        "failed to import machine `bad`",
        "failed to import machine `early`",
        "has version 1 of docker-machine's format",
        "warning: ec2: the certificate of its engine ended on ",
        "--host-key do1=SHA256:",
        "warning: do1: its engine was told secrets, which its record leaves out (Env.1, InstallURL, RegistryMirror.1)",
    ] {
        assert!(done.stderr.contains(said), "{said}: {}", done.stderr);
    }
    assert_eq!(files(&old.root), before, "nothing is changed there");

    // They are what they were, by docker-machine's names.
    let listed = lab
        .words(&[
            "ls",
            "-t",
            "5",
            "-f",
            "{{.Name}} {{.DriverName}} {{.State}} {{.URL}} {{.DockerVersion}}",
        ])
        .env("PATH", &path)
        .ok();
    assert_eq!(
        listed.stdout,
        format!(
            "do1 digitalocean Running tcp://{d}:2376 v20.10.24\nec2 amazonec2 Stopped  \ng1 generic Running tcp://{g}:2377 v20.10.24\nn1 none Running tcp://{n}:2376 v20.10.24\nv1 virtualbox Stopped  \n"
        ),
        "{}",
        listed.stderr
    );
    lab.words(&[
        "ls",
        "-q",
        "--filter",
        "driver=digitalocean",
        "--filter",
        "label=made=digitalocean",
    ])
    .says(0, "do1\n", "");
    lab.words(&["inspect", "-f", "{{.DriverName}} {{.Driver.IPAddress}} {{.Driver.SSHPort}} {{.HostOptions.EngineOptions.Labels}}", "g1"])
        .says(0, &format!("generic {g} 2222 [made=generic]\n"), "");
    let env = lab.forge("env --shell bash do1").ok().stdout;
    assert!(
        env.contains(&format!("DOCKER_HOST=\"tcp://{d}:2376\"")),
        "{env}"
    );
    assert!(
        env.contains("DOCKER_CERT_PATH=\"HOME/machines/do1\""),
        "{env}"
    );
    for file in ["ca.pem", "cert.pem", "key.pem", "id_rsa"] {
        let read = |root: &Path| fs::read(root.join("machines/do1").join(file)).expect("a file");
        assert_eq!(read(&lab.home), read(&old.root), "{file}");
    }

    // No secret, and no path of the old store, is anywhere in the new one.
    no_secret(&lab, &root);
    for words in ["inspect do1", "ls --json"] {
        let shown = lab.forge(words).env("PATH", &path).ok().stdout;
        assert!(
            !shown.contains(PROXY) && shown.contains("do1"),
            "{words}: {shown}"
        );
    }
    assert_eq!(
        lab.record("do1")["engine"]["env"],
        json!(["NO_PROXY=localhost"])
    );
    assert_eq!(
        lab.record("do1")["imported"]["fields"],
        json!({"DropletID": 3_164_494, "Region": "nyc3"})
    );

    // SSH is refused until somebody vouches for the key.
    let refused = lab.forge("ssh g1 true").run();
    assert_ne!(refused.code, 0, "{}", refused.stderr);
    for said in [
        "no host key of machine `g1` is trusted yet",
        "g1 --host-key g1=SHA256:",
    ] {
        assert!(refused.stderr.contains(said), "{said}: {}", refused.stderr);
    }
    let wrong = format!("SHA256:{}", "A".repeat(43));
    let other = lab
        .forge(&format!("{words} g1 --host-key g1={wrong}"))
        .run()
        .code(1);
    assert!(
        other
            .stderr
            .contains("shows another host key than the one that was named"),
        "{}",
        other.stderr
    );
    assert!(other.stderr.contains(&sshd.fingerprint), "{}", other.stderr);
    lab.forge(&format!("{words} g1 --host-key g1={}", sshd.fingerprint))
        .says(0, "", "g1: importing\ng1: its host key is trusted now\n");
    let known = fs::read_to_string(lab.home.join("machines/g1/known_hosts")).expect("known_hosts");
    assert!(
        known.starts_with(&format!("[{g}]:2222 ssh-ed25519 ")),
        "{known}"
    );
    // The key that docker-machine made opens it.
    let entered = Command::new("ssh")
        .args([
            "-F",
            "none",
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            "IdentitiesOnly=yes",
            "-p",
            "2222",
            "-o",
        ])
        .arg(format!(
            "UserKnownHostsFile={}",
            lab.home.join("machines/g1/known_hosts").display()
        ))
        .arg("-i")
        .arg(lab.home.join("machines/g1/id_rsa"))
        .arg(format!("{}@{g}", user()))
        .arg("exit 42")
        .status()
        .expect("ssh");
    assert_eq!(entered.code(), Some(42));
    for words in ["ssh g1 exit 42", "--native-ssh ssh g1 exit 42"] {
        lab.forge(words).run().code(42);
    }
    assert_eq!(lab.record("ec2")["ssh"]["accept"], json!([trusted]));
    let nobody = lab.forge("ssh n1 true").run();
    assert_ne!(nobody.code, 0);
    assert!(
        nobody.stderr.contains("nobody logs in there"),
        "{}",
        nobody.stderr
    );

    // Again: nothing to change, for the same reasons.
    let again = lab
        .forge(&format!("{words} --json"))
        .env("PATH", &path)
        .run()
        .code(1);
    let nothing = "{\"changed\":0,\"event\":\"summary\"";
    assert!(again.stdout.contains(nothing), "{}", again.stdout);

    // Nobody could be asked for a passphrase; now somebody can, and they go to where credentials are.
    assert!(
        done.stderr
            .contains("secrets stay where docker-machine kept them"),
        "{}",
        done.stderr
    );
    let phrase = lab.folder().join("phrase");
    fs::write(&phrase, "correct horse battery\n").expect("written");
    fs::set_permissions(&phrase, fs::Permissions::from_mode(0o600)).expect("chmod");
    let kept = lab
        .forge(&words)
        .env("PATH", &path)
        .env("FORGE_PASSPHRASE_FILE", &phrase)
        .run()
        .code(1);
    let said = "secrets are kept as `amazonec2/AccessKey` (sealed file), `amazonec2/SecretKey` (sealed file), `digitalocean` (sealed file), `digitalocean/Engine.Env.1` (sealed file), `digitalocean/Engine.InstallURL` (sealed file), `digitalocean/Engine.RegistryMirror.1` (sealed file)\n";
    assert!(kept.stderr.contains(said), "{}", kept.stderr);
    let names = lab.forge("credentials ls").ok().stdout;
    assert!(
        names.contains("digitalocean") && names.contains("amazonec2/SecretKey"),
        "{names}"
    );
    no_secret(&lab, &root);

    // VirtualBox's power is forge's; no other's is.
    let switched = lab.forge("start v1").env("PATH", &path).ok();
    assert!(
        switched.stderr.contains("v1: running\n"),
        "{}",
        switched.stderr
    );
    let url = lab.forge("url v1").env("PATH", &path).run();
    assert_eq!(url.stdout, format!("tcp://{v}:2376\n"), "{}", url.stderr);
    lab.forge("kill v1").env("PATH", &path).ok();
    let stopped = lab.forge("stop do1").run().code(1);
    assert!(
        stopped
            .stderr
            .contains("the power of this machine is not forge's"),
        "{}",
        stopped.stderr
    );
    let provisioned = lab.forge("provision n1").run().code(1);
    let nobody = "known by its URL alone";
    assert!(
        provisioned.stderr.contains(nobody),
        "{}",
        provisioned.stderr
    );
    let renewed = lab.forge("regenerate-certs -f n1").run();
    assert_ne!(renewed.code, 0);
    assert!(renewed.stderr.contains(nobody), "{}", renewed.stderr);

    // What goes is what forge has of it.
    let removed = lab.forge("rm -y do1 v1 n1").env("PATH", &path).ok();
    for said in [
        "the machine of `do1` at `digitalocean` is left (DropletID 3164494)",
        &format!("the virtual machine of `v1` is left: `VBoxManage unregistervm {id} --delete`"),
        "the host of `n1` is left as it is",
    ] {
        assert!(removed.stderr.contains(said), "{said}: {}", removed.stderr);
    }
    assert_eq!(lab.forge("ls -q").ok().stdout, "ec2\ng1\n");
    assert_eq!(files(&old.root), before);
    let calls = fs::read_to_string(lab.folder().join("calls")).expect("calls");
    assert!(!calls.contains("unregistervm"), "{calls}");
}

#[test]
fn a_dry_run_shows_what_would_be_imported_and_leaves_no_store() {
    let lab = Lab::bare();
    let old = store(&lab);
    old.machine(
        "n2",
        "none",
        &json!({"URL": "tcp://127.66.1.2:2376"}),
        &[],
        1,
    );
    old.machine(
        "n10",
        "none",
        &json!({"URL": "tcp://127.66.1.3:2376"}),
        &[],
        1,
    );
    let words = format!("import docker-machine {} --dry-run", old.root.display());
    lab.forge(&words).says(
        2,
        "NAME   DRIVER   ENGINE                  CHANGE\nn2     none     tcp://127.66.1.2:2376   import\nn10    none     tcp://127.66.1.3:2376   import\n",
        "",
    );
    let one = lab
        .forge(&format!("{words} --json n10"))
        .run()
        .code(2)
        .json();
    assert_eq!(
        one,
        json!([{"name": "n10", "driver": "none", "engine": "tcp://127.66.1.3:2376", "change": "import"}])
    );
    assert!(!lab.home.exists());
}

#[test]
fn the_usual_place_is_the_one_that_docker_machine_had() {
    let lab = Lab::bare();
    let old = OldStore::at(&lab.folder().join(".docker/machine"));
    old.machine(
        "n1",
        "none",
        &json!({"URL": "tcp://127.66.1.4:2376"}),
        &[],
        1,
    );
    lab.forge("import docker-machine").ok();
    assert_eq!(lab.forge("ls -q").ok().stdout, "n1\n");
    // Under the other name, too; and with `~/.docker/machine` as its store, nothing is done in it.
    lab.forge("status n1").called("docker-machine").ok();
    let there = lab
        .forge("import docker-machine")
        .env("FORGE_HOME", &old.root)
        .run()
        .code(1);
    assert!(
        there.stderr.contains("is a store of docker-machine"),
        "{}",
        there.stderr
    );
}

#[test]
fn what_is_no_store_and_names_that_clash_are_errors() {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    let record = fs::read(lab.home.join("machines/n1/machine.json")).expect("a record");
    let old = store(&lab);
    old.machine(
        "n1",
        "none",
        &json!({"URL": "tcp://127.66.1.5:2376"}),
        &[],
        1,
    );
    old.machine(
        "under_score",
        "none",
        &json!({"URL": "tcp://127.66.1.6:2376"}),
        &[],
        1,
    );
    let root = old.root.display().to_string();
    let clash = lab
        .forge(&format!("import docker-machine {root}"))
        .run()
        .code(1);
    for said in [
        "there is another machine `n1` in the store already",
        "machine `under_score` cannot keep its name",
    ] {
        assert!(clash.stderr.contains(said), "{said}: {}", clash.stderr);
    }
    assert_eq!(
        fs::read(lab.home.join("machines/n1/machine.json")).expect("a record"),
        record
    );
    for (words, why) in [
        (
            "import docker-machine HOME/images".to_owned(),
            "is no store of docker-machine's",
        ),
        (
            "import docker-machine HOME".to_owned(),
            "is a store of forge's",
        ),
        (
            format!("import docker-machine {root} n9"),
            "has no machine `n9`",
        ),
        (
            format!("import docker-machine {root} --host-key n9=SHA256:x"),
            "`--host-key` names machine `n9`",
        ),
        (
            format!("import docker-machine {root} --host-key n1"),
            "`n1` is not `NAME=SHA256:…`",
        ),
    ] {
        let words = words.replace("HOME", &lab.home.display().to_string());
        let ended = lab.forge(&words).run();
        assert_ne!(ended.code, 0, "{words}");
        assert!(ended.stderr.contains(why), "{words}: {}", ended.stderr);
    }
}

/// A folder, with all that is in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("mkdir");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("copied");
        }
    }
}

#[test]
fn an_import_goes_on_from_every_point() {
    let made = Lab::bare();
    let old = store(&made);
    for (name, number) in [("n1", 7), ("n2", 8)] {
        let fields = json!({"IPAddress": format!("127.66.1.{number}"), "AccessToken": TOKEN});
        old.machine(name, "digitalocean", &fields, &[], 1);
        old.key(name);
    }
    let prepare = || {
        let lab = Lab::bare();
        copy(&old.root, &lab.folder().join("old"));
        lab
    };
    let words = |lab: &Lab| {
        format!(
            "import docker-machine {}",
            lab.folder().join("old").display()
        )
    };
    let first = prepare();
    let names = points(&first, &words(&first));
    assert!(names.len() > 20, "{names:?}");
    each(names.len(), |number| {
        let lab = prepare();
        let before = files(&lab.folder().join("old"));
        let (words, at) = (words(&lab), &names[number - 1]);
        let ended = aborted(&lab, &words, number);
        assert_eq!(ended.code, ABORTED, "{at}: {}", ended.stderr);
        lab.forge("ls -q").ok();
        lab.forge(&words).ok();
        assert_eq!(lab.forge("ls -q").ok().stdout, "n1\nn2\n", "{at}");
        for name in ["n1", "n2"] {
            let read = |root: &Path, file: &str| {
                fs::read(root.join("machines").join(name).join(file)).expect(file)
            };
            for file in ["id_rsa", "id_rsa.pub", "ca.pem", "cert.pem", "key.pem"] {
                assert_eq!(
                    read(&lab.home, file),
                    read(&lab.folder().join("old"), file),
                    "{at}"
                );
            }
            let left = fs::read_dir(lab.home.join("machines").join(name)).expect("a folder");
            let hidden = left
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().starts_with('.'));
            assert_eq!(hidden.count(), 0, "{at}: something is left");
        }
        assert_eq!(files(&lab.folder().join("old")), before, "{at}");
        let done = lab.forge(&format!("{words} --json")).ok();
        assert_eq!(done.summary()["changed"], 0, "{at}");
    });
}
