//! The packet filter of the machines, and that it leaves the engine's rules alone.

use std::time::Duration;

use forge_lab::{Store, wait};

use crate::NODES;

pub fn firewall(store: &Store) {
    let target = NODES[1];
    let inner = store.inner_ip(target);
    let (peer, stranger) = (store.inner_ip(NODES[0]), store.inner_ip("x1"));
    assert_eq!(
        open_ports(store, NODES[0], &inner),
        [22, 2376, 2377, 7946],
        "from a peer"
    );
    assert_eq!(
        open_ports(store, "x1", &inner),
        [22, 2376],
        "from a stranger"
    );
    // UDP has no answer to wait for: a table of the test's own counts before and behind the filter.
    let mut table =
        "add table inet labcount\ndelete table inet labcount\ntable inet labcount {\n".to_owned();
    for (chain, priority) in [("before", "- 10"), ("behind", "+ 10")] {
        table.push_str(&format!(
            "chain {chain} {{ type filter hook input priority filter {priority}; policy accept;\n"
        ));
        for source in [&peer, &stranger] {
            for port in [4789, 7946] {
                table.push_str(&format!("ip saddr {source} udp dport {port} counter\n"));
            }
            table.push_str(&format!("ip saddr {source} meta l4proto esp counter\n"));
        }
        table.push_str("}\n");
    }
    table.push('}');
    store
        .ssh_with(target, "sudo nft -f -", table.as_bytes())
        .ok()
        .text();
    let esp = format!(
        "sudo python3 -c 'import socket; s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 50); s.sendto(b\"x\" * 32, (\"{inner}\", 0))'"
    );
    for machine in [NODES[0], "x1"] {
        store.ssh(
            machine,
            &format!("for p in 4789 7946; do echo hello >/dev/udp/{inner}/$p; done; {esp}"),
        );
    }
    let chain =
        |name: &str| store.ssh(target, &format!("sudo nft list chain inet labcount {name}"));
    let counted = |text: &str, source: &str| -> Vec<bool> {
        text.lines()
            .filter(|line| line.contains(&format!("saddr {source} ")))
            .map(|line| !line.contains("packets 0 "))
            .collect()
    };
    wait("the datagrams have come", Duration::from_secs(10), || {
        let before = chain("before");
        let all = [counted(&before, &peer), counted(&before, &stranger)].concat();
        (all == [true; 6]).then_some(()).ok_or(before)
    });
    let behind = chain("behind");
    assert_eq!(counted(&behind, &peer), [true; 3], "from a peer: {behind}");
    assert_eq!(
        counted(&behind, &stranger),
        [false; 3],
        "from a stranger: {behind}"
    );
    store.ssh(target, "sudo nft delete table inet labcount");
}

/// Which of these TCP ports of `target` accept connections from `machine`.
fn open_ports(store: &Store, machine: &str, target: &str) -> Vec<u16> {
    let ports = "22 2376 2377 7946";
    let line = format!(
        "for p in {ports}; do timeout 4 bash -c \"</dev/tcp/{target}/$p\" 2>/dev/null && echo $p; done; true"
    );
    store
        .ssh(machine, &line)
        .lines()
        .map(|line| line.parse().expect("a port"))
        .collect()
}

/// The packet filter of everybody but forge, without counters, in an order of its own.
pub fn docker_rules(store: &Store, machine: &str) -> Vec<String> {
    let text = store.ssh(
        machine,
        "sudo iptables-save; sudo ip6tables-save; sudo nft list tables | grep -v 'inet forge\\|inet filter'; sudo ipvsadm-save -n 2>/dev/null; true",
    );
    let mut rules: Vec<String> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(" [").next().unwrap_or_default().to_owned())
        .collect();
    rules.sort();
    assert!(
        rules.iter().any(|rule| rule.contains("DOCKER")),
        "{rules:?}"
    );
    rules
}

pub fn forge_table(store: &Store, machine: &str) {
    let table = store.ssh(machine, "sudo nft list table inet forge");
    assert!(
        table.contains("policy drop") && table.contains("2376"),
        "{table}"
    );
}

/// The management ports are open to a peer, and to nobody else.
pub fn between(store: &Store, peer: &str, stranger: &str, target: &str) {
    assert_eq!(
        open_ports(store, peer, &store.inner_ip(target)),
        [22, 2376, 2377, 7946],
        "from a peer"
    );
    closed_to_strangers(store, stranger, target);
}

fn closed_to_strangers(store: &Store, stranger: &str, target: &str) {
    assert_eq!(
        open_ports(store, stranger, &store.inner_ip(target)),
        [22, 2376]
    );
}

/// The engine's rules are the same without our table, with it, and after restarts of all three.
pub fn restarts(store: &Store, machine: &str) -> Vec<String> {
    let with = docker_rules(store, machine);
    store.ssh(machine, "sudo systemctl stop forge-firewall");
    let gone = store.ssh_with(machine, "sudo nft list table inet forge", b"");
    assert_ne!(gone.code, 0, "stopped, it filters nothing");
    assert_eq!(
        docker_rules(store, machine),
        with,
        "before the table is loaded"
    );
    store.ssh(machine, "sudo systemctl start forge-firewall");
    assert_eq!(
        docker_rules(store, machine),
        with,
        "after the table is loaded"
    );
    forge_table(store, machine);
    store.ssh(machine, "sudo systemctl restart nftables");
    forge_table(store, machine);
    store.ssh(machine, "sudo systemctl restart docker");
    forge_table(store, machine);
    rules_again(store, machine, &with);
    store.ssh(
        machine,
        "sudo systemctl stop nftables; sudo systemctl start nftables",
    );
    forge_table(store, machine);
    store.ssh(machine, "sudo systemctl restart docker");
    rules_again(store, machine, &with);
    with
}

/// Waits until the engine's rules are these again.
fn rules_again(store: &Store, machine: &str, with: &[String]) {
    wait(
        "the engine has its rules again",
        Duration::from_secs(60),
        || {
            let now = docker_rules(store, machine);
            (now == *with)
                .then_some(())
                .ok_or_else(|| differences(with, &now))
        },
    );
}

fn differences(before: &[String], now: &[String]) -> String {
    let mut lines: Vec<String> = before
        .iter()
        .filter(|rule| !now.contains(rule))
        .map(|rule| format!("- {rule}"))
        .collect();
    lines.extend(
        now.iter()
            .filter(|rule| !before.contains(rule))
            .map(|rule| format!("+ {rule}")),
    );
    lines.join("\n")
}
