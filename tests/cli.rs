//! What the commands say, to the letter: standard output, standard error and exit code.

mod common;

use common::{Lab, subcommands};
use forge_driver::fake::Knob;

const NONE_YET: &str = "error: there is nothing here yet: no machine, no cluster, no image\nhint: `forge create n1` makes a machine, `forge cluster up` a cluster; FORGE_HOME says where they are looked for\n";
const NO_X: &str = "error: machine `x` does not exist\nhint: `forge ls` shows the machines; `forge create` makes one\n";

/// A store with the machine `n1`, ready.
fn made() -> Lab {
    let lab = Lab::new();
    lab.forge("create n1").ok();
    lab
}

#[test]
fn every_command_has_help_on_standard_output() {
    let lab = Lab::bare();
    let top = lab.forge("--help").ok();
    assert!(
        top.stdout
            .contains("Exit codes: 0 done, 1 failed, 2 wrong usage, or a plan that has changes")
    );
    assert_eq!(top.stderr, "");
    let mut commands: Vec<String> = subcommands(&top.stdout);
    assert!(commands.len() >= 20, "{commands:?}");
    for group in ["cluster", "image"] {
        let help = lab.forge(&format!("{group} --help")).ok();
        commands.extend(
            subcommands(&help.stdout)
                .into_iter()
                .map(|name| format!("{group} {name}")),
        );
    }
    for (command, words) in [
        ("create", "Create machines: "),
        ("cluster up", "Form a cluster, "),
    ] {
        let help = lab.forge(&format!("{command} --help")).ok();
        assert!(help.stdout.starts_with(words), "{command}: {}", help.stdout);
    }
    for command in commands {
        let help = lab.forge(&format!("{command} --help")).ok();
        assert_eq!(help.stderr, "", "{command}");
        assert!(
            help.stdout.contains("Exit codes: 0 done, 1 failed"),
            "{command}: {}",
            help.stdout
        );
        assert!(
            help.stdout.contains(&format!("Usage: forge {command}")),
            "{command}: {}",
            help.stdout
        );
    }
    assert!(!lab.home.exists(), "help makes no store");
}

#[test]
fn the_version_is_one_line() {
    let lab = Lab::bare();
    let line = format!("forge {}\n", env!("CARGO_PKG_VERSION"));
    lab.forge("--version").says(0, &line, "");
}

#[test]
fn no_words_show_the_help_and_fail() {
    let ended = Lab::bare().forge("").run().code(2);
    assert_eq!(ended.stdout, "");
    assert!(ended.stderr.contains("Usage: forge [OPTIONS] <COMMAND>"));
}

#[test]
fn words_that_make_no_sense_end_with_2_and_touch_nothing() {
    let lab = Lab::bare();
    for (words, stderr) in [
        (
            "create --driver vmware x",
            "error: there is no driver `vmware`\nhint: the drivers are `qemu`, `libvirt`, `virtualbox`, `generic`, `none`, `fake`\n",
        ),
        (
            "create Bad_Name",
            "error: `Bad_Name` cannot be the name of a machine\nhint: a name has 1 to 63 letters, digits, `-` or `.`, and starts and ends with a letter or digit\n",
        ),
        (
            "create ../x",
            "error: `../x` cannot be the name of a machine\nhint: a name has 1 to 63 letters, digits, `-` or `.`, and starts and ends with a letter or digit\n",
        ),
        ("create a a", "error: the name `a` is given twice\n"),
        ("create a A", "error: the name `A` is given twice\n"),
        (
            "create --no-such-flag x",
            "error: unexpected argument '--no-such-flag' found\n\n  tip: to pass '--no-such-flag' as a value, use '-- --no-such-flag'\n\nUsage: forge create [OPTIONS] [NAMES]...\n\nFor more information, try '--help'.\n",
        ),
        (
            "frob",
            "error: unrecognized subcommand 'frob'\n\nUsage: forge [OPTIONS] <COMMAND>\n\nFor more information, try '--help'.\n",
        ),
        (
            "create --timeout 0 x",
            "error: invalid value '0' for '--timeout <SECONDS>': 0 is not in 1..=86400\n\nFor more information, try '--help'.\n",
        ),
        (
            "env -u n1",
            "error: expected no machine name when the -u flag is present\n",
        ),
        (
            "cluster up Bad --dry-run",
            "error: `Bad` is not a name for a cluster\ncaused by: it holds `B`\nhint: use lower case letters, digits and hyphens, such as `prod-2`\n",
        ),
        (
            "cluster up --managers 0",
            "error: a cluster needs at least one manager\nhint: ask for `--managers 1`, or for `--managers 3` to survive the loss of one\n",
        ),
        (
            "cluster up --managers 2",
            "error: 2 managers are refused: the number must be odd\ncaused by: 2 managers need 2 for a quorum and survive the loss of 0, as 1 already does\nhint: ask for `--managers 1` or `--managers 3`\n",
        ),
        (
            "cluster up --managers 4",
            "error: 4 managers are refused: the number must be odd\ncaused by: 4 managers need 3 for a quorum and survive the loss of 1, as 3 already do\nhint: ask for `--managers 3` or `--managers 5`\n",
        ),
        (
            "cluster up --managers 3 --zones 5",
            "error: 5 zones are more than the 3 machines: some would stand empty\nhint: ask for `--zones 3` or fewer, or for more machines\n",
        ),
        (
            "cluster up --driver libvirt --zones 3 --libvirt-uri z1=qemu:///system --libvirt-uri z2=qemu+ssh://h/system --libvirt-network routed",
            "error: 3 zones are wished, and 2 hosts are named for them\nhint: each host is a zone: leave out `--zones`, or name as many\n",
        ),
        (
            "cluster up --driver libvirt --libvirt-uri qemu:///system --libvirt-uri qemu+ssh://h/system --dry-run",
            "error: machines of several libvirts cannot reach each other through the NAT of each\ncaused by: a connection from one network of the kind `forge` into another has no way in\nhint: `--libvirt-network routed` gives each zone a range of its own, which the hosts need routes for; `--libvirt-network bridge:NAME` uses a bridge of the hosts that joins them\n",
        ),
        (
            "create --driver libvirt --libvirt-uri qemu:///system,qemu+ssh://h/system --libvirt-network routed",
            "error: 2 hosts are named, and a machine is made at one\nhint: several hosts are the zones of a cluster: `forge cluster up`\n",
        ),
    ] {
        lab.forge(words).says(2, "", stderr);
    }
    let many = lab
        .forge("cluster up --driver qemu --managers 255 --dry-run")
        .run()
        .code(2);
    assert!(
        many.stderr.starts_with(
            "error: 255 machines do not fit into the network 10.133.7.0/24, which has room for 253"
        ),
        "{}",
        many.stderr
    );
    assert!(!lab.home.exists(), "no store was made");
}

#[test]
fn without_a_store_there_are_no_machines_and_none_is_made() {
    let lab = Lab::bare();
    for words in [
        "env",
        "ssh n1",
        "ip",
        "url n1",
        "status n1",
        "inspect n1",
        "start n1",
        "stop n1",
        "restart n1",
        "kill n1",
        "provision n1",
        "publish n1",
        "publish n1 80",
        "logs n1",
        "ssh-config n1",
        "rm n1",
        "rm -y n1",
        "image rm x -y",
        "image verify",
        "cluster status",
        "cluster down -y",
        "cluster env",
        "cluster ssh",
    ] {
        lab.forge(words).says(1, "", NONE_YET);
    }
    lab.forge("ls").says(
        0,
        "NAME   ACTIVE   DRIVER   STATE   URL   CLUSTER   DOCKER   ERRORS\n",
        "",
    );
    lab.forge("ls -q").says(0, "", "");
    lab.forge("ls --json").says(0, "[]\n", "");
    lab.forge("cluster ls -q").says(0, "", "");
    lab.forge("cluster ls --json").says(0, "[]\n", "");
    lab.forge("image ls --json").says(0, "[]\n", "");
    lab.forge("rm -f n1").says(0, "", "");
    lab.forge("cluster down -f").says(0, "", "");
    for (words, shown) in [
        ("create -p 0 n1", "`0`"),
        ("create -p 70000 n1", "`70000`"),
        ("create -p 80:80:80 n1", "`80:80:80`"),
        ("create -p 53/udp n1", "`53/udp`"),
        ("publish n1 0", "`0`"),
        ("cluster publish default http", "`http`"),
    ] {
        let hint = "hint: write PORT, or HOSTPORT:PORT; ports are 1 to 65535\n";
        let text = format!("error: {shown} is not a port to publish\n{hint}");
        lab.forge(words).says(2, "", &text);
    }
    for words in ["image build --name A", "image build --mirror banana"] {
        lab.forge(words).run().code(2);
    }
    assert!(!lab.home.exists(), "no store was made");
}

#[test]
fn a_machine_that_does_not_exist_is_told_by_name() {
    let lab = made();
    for words in [
        "env x",
        "ssh x",
        "ip x",
        "url x",
        "status x",
        "inspect x",
        "publish x",
        "logs x",
        "ssh-config x",
    ] {
        lab.forge(words).says(1, "", NO_X);
    }
    for words in [
        "start x",
        "stop x",
        "restart x",
        "kill x",
        "provision x",
        "publish x 80",
        "rm -y x",
    ] {
        lab.forge(words).says(1, "", &format!("{NO_X}log: LOG\n"));
    }
    lab.forge("rm -f x").says(0, "", "");
}

#[test]
fn create_tells_its_steps_on_standard_error_alone() {
    let lab = Lab::new();
    lab.forge("create n1").says(
        0,
        "",
        "n1: starting the virtual machine\nn1: connecting\nn1: first contact\nn1: provisioning\nn1: ready, engine 0.0.0\n",
    );
    lab.forge("create n1").says(
        1,
        "",
        "error: machine `n1` already exists\nhint: `forge ls` shows the machines; use another name\nlog: LOG\n",
    );
}

#[test]
fn create_in_json_is_a_line_an_event_and_a_summary() {
    let lab = Lab::new();
    let ended = lab.forge("create --json n1 n2").ok();
    assert_eq!(ended.stderr, "");
    for line in ended.stdout.lines() {
        let event: serde_json::Value = serde_json::from_str(line).expect("JSON in every line");
        assert!(event["event"].is_string(), "{line}");
    }
    let summary = ended.summary();
    assert_eq!(summary["event"], "summary");
    assert!(summary["changed"].as_u64().expect("a number") > 0);
    assert_eq!(
        summary["machines"],
        serde_json::json!([{"name": "n1", "ok": true, "error": null}, {"name": "n2", "ok": true, "error": null}])
    );
}

#[test]
fn lists_have_a_table_names_and_json() {
    let lab = made();
    lab.forge("create n10 n2").ok();
    lab.forge("stop n2").ok();
    let at = |name: &str| format!("tcp://{}:2376", lab.address(name));
    lab.forge("ls -q").says(0, "n1\nn2\nn10\n", "");
    let width = at("n1").len().max(at("n10").len());
    let row = |name: &str, state: &str, url: &str, engine: &str| {
        let line = format!("{name:<4}   -        fake     {state:<7}   {url:<width$}   ");
        format!("{line}          {engine}").trim_end().to_owned()
    };
    let heading = format!(
        "NAME   ACTIVE   DRIVER   STATE     {:<width$}   CLUSTER   DOCKER   ERRORS\n",
        "URL"
    );
    let table = format!(
        "{heading}{}\n{}\n{}\n",
        row("n1", "Running", &at("n1"), "v0.0.0"),
        row("n2", "Stopped", "", ""),
        row("n10", "Running", &at("n10"), "v0.0.0"),
    );
    lab.forge("ls").says(0, &table, "");
    let active = lab
        .forge("ls --json")
        .env("DOCKER_HOST", at("n10"))
        .ok()
        .json();
    assert_eq!(
        active[0],
        serde_json::json!({"name": "n1", "driver": "fake", "state": "Running", "stage": "ready", "url": at("n1"),
            "ip": lab.address("n1"), "active": false, "member": null, "engine": "0.0.0", "error": ""})
    );
    assert_eq!(
        (&active[1]["state"], &active[1]["url"]),
        (&"Stopped".into(), &"".into())
    );
    assert_eq!(active[2]["active"], true);
}

#[test]
fn where_a_machine_is_told_in_one_line_each() {
    let lab = made();
    let ip = lab.address("n1");
    lab.forge("ip n1").says(0, &format!("{ip}\n"), "");
    lab.forge("url n1")
        .says(0, &format!("tcp://{ip}:2376\n"), "");
    lab.forge("status n1").says(0, "Running\n", "");
    assert_eq!(
        lab.forge("status --json n1").ok().json(),
        serde_json::json!([{"name": "n1", "state": "Running", "stage": "ready"}])
    );
    assert_eq!(
        lab.forge("url --json n1").ok().json(),
        serde_json::json!([{"name": "n1", "url": format!("tcp://{ip}:2376")}])
    );
    let known = lab.forge("ip --json n1").ok().json();
    assert_eq!(known[0]["engine"], format!("{ip}:2376"));
    lab.forge("stop n1").ok();
    lab.forge("status n1").says(0, "Stopped\n", "");
    lab.forge("url n1").says(
        1,
        "",
        "error: machine `n1` is not running: it is Stopped\nhint: `forge start n1` starts it\n",
    );
    lab.forge("ip n1").says(0, &format!("{ip}\n"), "");
}

#[test]
fn env_speaks_every_shell() {
    let lab = made();
    let host = format!("tcp://{}:2376", lab.address("n1"));
    let path = "HOME/machines/n1";
    let how = "Run this command to configure your shell: ";
    let posix = format!(
        "export DOCKER_TLS_VERIFY=\"1\"\nexport DOCKER_HOST=\"{host}\"\nexport DOCKER_CERT_PATH=\"{path}\"\nexport DOCKER_MACHINE_NAME=\"n1\"\n# {how}\n# eval $(forge env n1)\n"
    );
    lab.forge("env n1").says(0, &posix, "");
    for shell in ["bash", "zsh", "sh", "dash", "ksh"] {
        let line = format!("env --shell {shell} n1");
        let text = posix.replace("env n1", &line);
        lab.forge(&line).says(0, &text, "");
    }
    let fish = format!(
        "set -gx DOCKER_TLS_VERIFY \"1\";\nset -gx DOCKER_HOST \"{host}\";\nset -gx DOCKER_CERT_PATH \"{path}\";\nset -gx DOCKER_MACHINE_NAME \"n1\";\n# {how}\n# eval (forge env n1)\n"
    );
    lab.forge("env n1")
        .env("SHELL", "/usr/bin/fish")
        .says(0, &fish, "");
    lab.forge("env --shell powershell n1").says(
        0,
        &format!(
            "$Env:DOCKER_TLS_VERIFY = \"1\"\n$Env:DOCKER_HOST = \"{host}\"\n$Env:DOCKER_CERT_PATH = \"{path}\"\n$Env:DOCKER_MACHINE_NAME = \"n1\"\n# {how}\n# & forge env --shell powershell n1 | Invoke-Expression\n"
        ),
        "",
    );
    lab.forge("env --shell cmd n1").says(
        0,
        &format!(
            "SET DOCKER_TLS_VERIFY=1\nSET DOCKER_HOST={host}\nSET DOCKER_CERT_PATH={path}\nSET DOCKER_MACHINE_NAME=n1\nREM {how}\nREM \t@FOR /f \"tokens=*\" %i IN ('forge env --shell cmd n1') DO @%i\n"
        ),
        "",
    );
    lab.forge("env --shell tcsh n1").says(
        0,
        &format!(
            "setenv DOCKER_TLS_VERIFY \"1\";\nsetenv DOCKER_HOST \"{host}\";\nsetenv DOCKER_CERT_PATH \"{path}\";\nsetenv DOCKER_MACHINE_NAME \"n1\";\n: {how}\n: eval `forge env --shell tcsh n1`\n"
        ),
        "",
    );
    lab.forge("env --shell emacs n1").says(
        0,
        &format!(
            "(setenv \"DOCKER_TLS_VERIFY\" \"1\")\n(setenv \"DOCKER_HOST\" \"{host}\")\n(setenv \"DOCKER_CERT_PATH\" \"{path}\")\n(setenv \"DOCKER_MACHINE_NAME\" \"n1\")\n;; {how}\n;; (with-temp-buffer (shell-command \"forge env --shell emacs n1\" (current-buffer)) (eval-buffer))\n"
        ),
        "",
    );
    lab.forge("env -u --shell bash").says(
        0,
        &format!("unset DOCKER_TLS_VERIFY\nunset DOCKER_HOST\nunset DOCKER_CERT_PATH\nunset DOCKER_MACHINE_NAME\n# {how}\n# eval $(forge env -u --shell bash)\n"),
        "",
    );
    assert_eq!(lab.forge("env --json n1").ok().json()["DOCKER_HOST"], host);
    let proxied = lab
        .forge("env --no-proxy n1")
        .env("NO_PROXY", "a.example")
        .ok();
    assert!(proxied.stdout.contains(&format!(
        "export NO_PROXY=\"a.example,{}\"\n",
        lab.address("n1")
    )));
}

#[test]
fn env_prints_nothing_for_eval_when_it_fails() {
    let lab = made();
    lab.forge("stop n1").ok();
    lab.forge("env n1").says(
        1,
        "",
        "error: machine `n1` is not running: it is Stopped\nhint: `forge start n1` starts it\n",
    );
    lab.turn(Knob::SilentSsh, true);
    lab.forge("create n2 --timeout 1").run().code(1);
    lab.forge("env n2").says(
        1,
        "",
        "error: the creation of machine `n2` did not end: it is launched\nhint: `forge create --driver fake n2` goes on with it; `forge rm n2` removes it\n",
    );
    lab.turn(Knob::Down, true);
    let down = lab.forge("env n1").run().code(1);
    assert_eq!(down.stdout, "");
    assert!(
        down.stderr.contains("the provider is down"),
        "{}",
        down.stderr
    );
}

#[test]
fn ssh_config_is_a_section_for_plain_ssh() {
    let lab = made();
    let record = lab.record("n1");
    let port = record["instance"]["endpoints"]["ssh"]
        .as_str()
        .and_then(|address| address.rsplit(':').next())
        .expect("a port")
        .to_owned();
    let ip = lab.address("n1");
    let text = format!(
        "Host n1\n  HostName {ip}\n  Port {port}\n  User forge\n  IdentityFile \"HOME/machines/n1/id_ed25519\"\n  IdentitiesOnly yes\n  PreferredAuthentications publickey\n  UserKnownHostsFile \"HOME/machines/n1/known_hosts\"\n  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n\n"
    );
    lab.forge("ssh-config n1").says(0, &text, "");
    lab.forge("ssh-config").says(0, &text, "");
    let known =
        std::fs::read_to_string(lab.home.join("machines/n1/known_hosts")).expect("known_hosts");
    let key = record["ssh"]["own_host_key"].as_str().expect("a key");
    assert!(
        known.contains(&ip) && known.trim_end().ends_with(key),
        "{known}"
    );
    let json = lab.forge("ssh-config --json").ok().json();
    assert_eq!(json[0]["user"], "forge");
}

#[test]
fn publish_says_where_each_port_is_reached() {
    let lab = made();
    let ip = lab.address("n1");
    lab.forge("publish n1 18080")
        .says(0, &format!("n1 18080 -> {ip}:18080\n"), "");
    lab.forge("publish n1 19000:18081")
        .says(0, &format!("n1 18081 -> {ip}:19000\n"), "");
    lab.forge("publish n1").says(
        0,
        &format!("n1 18080 -> {ip}:18080\nn1 18081 -> {ip}:19000\n"),
        "",
    );
    assert_eq!(
        lab.forge("publish n1 --json").ok().json()[0],
        serde_json::json!({"machine": "n1", "port": 18080, "address": format!("{ip}:18080")})
    );
    for words in ["publish n1 0", "publish n1 65536", "publish n1 http"] {
        let port = words.rsplit(' ').next().expect("a word");
        lab.forge(words).says(
            2,
            "",
            &format!("error: `{port}` is not a port to publish\nhint: write PORT, or HOSTPORT:PORT; ports are 1 to 65535\n"),
        );
    }
    lab.forge("publish n1 --remove 18080")
        .says(0, &format!("n1 18081 -> {ip}:19000\n"), "");
    let held =
        std::net::TcpListener::bind((ip.parse::<std::net::Ipv4Addr>().expect("IPv4"), 18090))
            .expect("a port");
    let taken = lab.forge("publish n1 18090").run().code(1);
    assert_eq!(taken.stdout, "");
    assert!(
        taken
            .stderr
            .contains(&format!("port 18090 of {ip} is taken")),
        "{}",
        taken.stderr
    );
    assert!(
        taken
            .stderr
            .contains(&format!("process {} listens there", std::process::id())),
        "{}",
        taken.stderr
    );
    drop(held);
    assert_eq!(
        lab.record("n1")["published"]
            .as_array()
            .expect("a list")
            .len(),
        1,
        "nothing was recorded"
    );
}

#[test]
fn a_removal_wants_an_answer_or_the_word() {
    let lab = made();
    let asks = "Remove n1 and all data on their disks? [y/N] ";
    lab.forge("rm n1").says(
        2,
        "",
        &format!("{asks}\nerror: nothing was changed: there was no answer\nhint: give `--yes` when that is what you want\n"),
    );
    for answer in ["n\n", "\n", "nay\n", "y n\n"] {
        lab.forge("rm n1").given(answer).says(
            1,
            "",
            &format!("{asks}\nerror: nothing was changed: the answer was not yes\n"),
        );
    }
    lab.forge("ls -q").says(0, "n1\n", "");
    lab.forge("rm -y n1")
        .says(0, "", "n1: removing\nn1: removed\n");
    lab.forge("ls -q").says(0, "", "");
    for answer in ["y\n", "Yes"] {
        lab.forge("create n1").ok();
        lab.forge("rm n1").given(answer).says(
            0,
            "",
            &format!("{asks}\nn1: removing\nn1: removed\n"),
        );
    }
}

#[test]
fn a_plan_is_shown_to_the_letter_and_touches_nothing() {
    let lab = Lab::bare();
    // The pool depends on the networks of this host, so it is named.
    let plan = "\
cluster `default`

  zone  managers               workers  when it is lost
  z1    default-m1 default-m3  -        stops: 1 of 3 managers left, 2 needed
  z2    default-m2             -        goes on: 2 of 3 managers left

quorum: 2 of 3 managers, 1 may be lost
note: the zones are only labels: all machines run on this one host, and losing it loses every zone
warning: losing zone `z1` stops the cluster: 1 of 3 managers would be left, 2 are needed; one of two zones always holds a quorum, so two zones give no tolerance: ask for 3 zones

steps:
   1. create `default-m1` (manager, zone `z1`)
   2. create `default-m2` (manager, zone `z2`)
   3. create `default-m3` (manager, zone `z1`)
   4. found the swarm on `default-m1`, its networks from `192.168.240.0/20`
   5. join `default-m2` as manager
   6. join `default-m3` as manager
   7. label `default-m1` with `zone=z1`
   8. label `default-m2` with `zone=z2`
   9. label `default-m3` with `zone=z1`
  10. rotate the join tokens
";
    let words = "cluster up --managers 3 --zones 2 --address-pool 192.168.240.0/20 --dry-run";
    lab.forge(words).says(2, plan, "");
    let json = lab.forge(&format!("{words} --json")).run().code(2).json();
    assert_eq!(
        (&json["event"], &json["changed"]),
        (&"plan".into(), &true.into())
    );
    assert!(!lab.home.exists(), "no store was made");
    assert!(lab.provider.calls().is_empty(), "no provider was asked");
}

#[test]
fn a_plan_shows_which_zone_is_which_host() {
    let lab = Lab::bare();
    let words = "cluster up --driver libvirt --managers 3 --address-pool 192.168.240.0/20 --dry-run \
        --libvirt-uri z2=qemu+ssh://me@host2:22/system --libvirt-uri z1=qemu:///system --libvirt-network routed";
    let plan = lab.forge(words).run().code(2).stdout;
    let table = "
  zone                                   managers               workers  when it is lost
  z1 at `qemu:///system`                 default-m1 default-m3  -        stops: 1 of 3 managers left, 2 needed
  z2 at `qemu+ssh://me@host2:22/system`  default-m2             -        goes on: 2 of 3 managers left
";
    assert!(plan.contains(table), "{plan}");
    assert!(!plan.contains("only labels"), "{plan}");
    let json = lab.forge(&format!("{words} --json")).run().code(2).json();
    assert_eq!(
        json["plan"]["zones"][1]["at"],
        "qemu+ssh://me@host2:22/system"
    );
    assert!(!lab.home.exists(), "no store was made");
}

#[test]
fn a_command_without_a_store_needs_no_home() {
    let lab = Lab::bare();
    let folder = lab.folder().join("man");
    for words in [
        "version".to_owned(),
        "completions bash".to_owned(),
        format!("man {}", folder.display()),
    ] {
        lab.forge(&words).without("HOME").without("FORGE_HOME").ok();
    }
    assert!(folder.join("forge.1").exists());
    let ended = lab
        .forge("ls")
        .without("HOME")
        .without("FORGE_HOME")
        .run()
        .code(2);
    assert!(
        ended
            .stderr
            .starts_with("error: there is no HOME to keep a store in\n"),
        "{}",
        ended.stderr
    );
}
