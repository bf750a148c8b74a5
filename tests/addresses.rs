//! A machine whose address has changed is found again by the next command, whichever it is.

mod common;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use common::Lab;
use common::certificates::{amiss, answering};
use common::sshd::Sshd;
use forge_driver::fake::Knob;

/// A store with the machine `n1`, whose address a server of its network gives.
fn made() -> Lab {
    let lab = Lab::new();
    lab.turn(Knob::Leased, true);
    lab.forge("create n1").ok();
    lab
}

/// Gives it another address.
fn moved(lab: &Lab, last: u8) -> String {
    // Other runs have others.
    let run = u8::try_from(std::process::id() % 250).expect("small");
    let address = IpAddr::from(Ipv4Addr::new(127, 78, run, last));
    let claim = lab.provider.vms().expect("the provider")[0].claim;
    lab.provider.move_to(claim, address).expect("moved");
    address.to_string()
}

/// The recorded address.
fn address(lab: &Lab) -> String {
    let endpoints = &lab.record("n1")["instance"]["endpoints"];
    let at: SocketAddr = endpoints["engine"]
        .as_str()
        .expect("one")
        .parse()
        .expect("one");
    at.ip().to_string()
}

/// What the record and what lies beside it say.
#[track_caller]
fn recorded(lab: &Lab, address: &str) {
    let endpoints = &lab.record("n1")["instance"]["endpoints"];
    assert_eq!(endpoints["ssh"], format!("{address}:2222"));
    assert_eq!(endpoints["engine"], format!("{address}:2376"));
    let beside = |name: &str| {
        std::fs::read_to_string(lab.home.join("machines/n1").join(name)).expect("a companion")
    };
    assert!(beside("config.json").contains(&format!("\"IPAddress\": \"{address}\"")));
    assert!(beside("known_hosts").starts_with(&format!("[{address}]:2222 ")));
}

/// The machine was never switched off and on.
#[track_caller]
fn ran_on(lab: &Lab) {
    assert_eq!(lab.provider.vms().expect("the provider")[0].starts, 1);
}

#[test]
fn point_03_after_a_restart_with_another_address_docker_is_led_to_the_machine() {
    let lab = made();
    recorded(&lab, &address(&lab));
    lab.forge("stop n1").ok();
    let address = moved(&lab, 20);
    lab.forge("start n1").ok();
    let env = lab.forge("env n1 --shell bash").ok();
    assert!(
        env.stdout
            .contains(&format!("export DOCKER_HOST=\"tcp://{address}:2376\"\n")),
        "{}",
        env.stdout
    );
    recorded(&lab, &address);
    assert_eq!(
        lab.record("n1")["tls"]["names"],
        serde_json::json!([address, "n1"])
    );
    assert_eq!(amiss(&lab, &["n1"]), Vec::<String>::new());
    assert_eq!(answering(&lab), ["n1"]);
}

#[test]
fn point_03_whichever_command_is_next_finds_a_machine_that_runs() {
    let lab = made();
    for (last, words) in [
        (21, "env n1"),
        (22, "config n1"),
        (23, "url n1"),
        (24, "ip n1"),
        (25, "ls"),
        (26, "version n1"),
    ] {
        let address = moved(&lab, last);
        let said = lab.forge(words).ok();
        assert!(
            said.stdout.contains(&address) || words == "version n1",
            "{words}: {}",
            said.stdout
        );
        recorded(&lab, &address);
    }
    lab.forge("env n1").ok();
    ran_on(&lab);
    // Where the certificate serves, it stays.
    let names = lab.record("n1")["tls"].clone();
    lab.forge("env n1").ok();
    assert_eq!(lab.record("n1")["tls"], names);
}

#[test]
fn a_list_tells_of_a_certificate_that_does_not_carry_the_address() {
    let lab = made();
    let address = moved(&lab, 30);
    let listed = lab.forge("ls").ok().stdout;
    assert!(
        listed.contains(&format!("tcp://{address}:2376")),
        "{listed}"
    );
    assert!(
        listed.contains(
            "its certificate does not carry its new address: `forge env n1` makes it anew"
        ),
        "{listed}"
    );
    lab.forge("env n1").ok();
    let listed = lab.forge("ls").ok().stdout;
    assert!(!listed.contains("certificate"), "{listed}");
}

#[test]
fn an_address_that_answers_asks_no_provider() {
    let lab = made();
    let asked = lab.provider.calls().len();
    let said = lab.forge("ip n1").ok();
    let address = address(&lab);
    assert_eq!(said.stdout, format!("{address}\n"));
    assert_eq!(lab.provider.calls().len(), asked);
    // Nobody can say where it is: what is recorded is what there is.
    moved(&lab, 40);
    lab.turn(Knob::Down, true);
    assert_eq!(lab.forge("ip n1").ok().stdout, format!("{address}\n"));
}

#[test]
fn point_03_ssh_finds_it_by_both_ways() {
    let lab = Lab::new();
    lab.turn(Knob::Leased, true);
    let mut sshd = Sshd::of(&lab, "n1");
    let asked = lab.provider.calls().len();
    lab.forge("ssh n1 echo here").says(0, "here\n", "");
    assert_eq!(lab.provider.calls().len(), asked, "no provider is asked");
    for (last, option) in [(61, ""), (62, "-T")] {
        let address = moved(&lab, last);
        sshd.move_to(format!("{address}:2222").parse().expect("an address"));
        lab.forge(&format!("ssh n1 {option} echo here"))
            .says(0, "here\n", "");
        recorded(&lab, &address);
    }
}

#[test]
fn two_commands_at_once_make_one_certificate() {
    let lab = made();
    let address = moved(&lab, 50);
    let running: Vec<_> = (0..4).map(|_| lab.forge("env n1").start()).collect();
    for running in running {
        let ended = running.wait(&lab).code(0);
        assert!(ended.stdout.contains(&address), "{}", ended.stdout);
    }
    assert_eq!(amiss(&lab, &["n1"]), Vec::<String>::new());
    recorded(&lab, &address);
}
