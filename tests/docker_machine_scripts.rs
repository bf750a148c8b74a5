//! Scripts as docker-machine's users wrote them, run from their first line to their last under a link of its name, with
//! all that they print. A program in the place of `docker` prints what it was told and where it was led.

mod common;

use std::fs;

use common::{Ended, Lab};

/// What stands for `docker`: it prints its words; for `info`, where it was led.
const DOCKER: &str = r#"#!/bin/sh
case $1 in
info) echo "docker at ${DOCKER_HOST:-nowhere}, tls ${DOCKER_TLS_VERIFY:-off}, machine ${DOCKER_MACHINE_NAME:-none}" ;;
swarm)
    case $2 in
    join-token) echo SWMTKN-1-x ;;
    *) echo "docker $* [${DOCKER_MACHINE_NAME:-none}]" ;;
    esac ;;
*) echo "docker $*" ;;
esac
"#;

/// Runs a script in a store that docker-machine's own variable names.
fn script(lab: &Lab, text: &str) -> Ended {
    let docker = lab.folder().join("bin/docker");
    if !docker.exists() {
        // By a child: a program that this process has open for writing cannot be started.
        let write =
            format!("mkdir -p bin && cat >bin/docker <<'EOF'\n{DOCKER}EOF\nchmod +x bin/docker");
        lab.bash(&write).ok();
    }
    lab.bash(text)
        .without("FORGE_HOME")
        .env("MACHINE_STORAGE_PATH", &lab.home)
        .env("SHELL", "/bin/bash")
        .run()
}

/// Runs a script to its end, and asserts all that it prints. `IP(n)` stands for the address of machine `n`.
#[track_caller]
fn prints(lab: &Lab, text: &str, expected: &str) {
    let ended = script(lab, text);
    let mut said = ended.stdout.clone();
    let machines = fs::read_dir(lab.home.join("machines")).expect("machines");
    for name in machines.map(|entry| entry.expect("an entry").file_name()) {
        let name = name.to_string_lossy();
        said = said.replace(&lab.address(&name), &format!("IP({name})"));
    }
    assert_eq!(
        (said.as_str(), ended.stderr.as_str(), ended.code),
        (expected, "", 0),
        "{text}"
    );
}

/// What `create` prints.
fn created(name: &str) -> String {
    format!(
        "Running pre-create checks...\nCreating machine...\nDocker is up and running!\nTo see how to connect your Docker Client to the Docker Engine running on this virtual machine, run: docker-machine env {name}\n"
    )
}

const REMOVAL: &str =
    "WARNING: This action will delete both local reference and remote instance.\n";

#[test]
fn a_swarm_is_made_in_a_loop_over_names() {
    let lab = Lab::new();
    let text = r#"
        set -e
        NODES="manager1 worker1 worker2"
        for node in $NODES; do
            docker-machine create -d fake $node > /dev/null
        done
        docker-machine ls -q

        eval $(docker-machine env manager1)
        docker swarm init --advertise-addr $(docker-machine ip manager1)
        TOKEN=$(docker swarm join-token -q worker)
        for node in worker1 worker2; do
            eval "$(docker-machine env --shell bash $node)"
            docker swarm join --token "$TOKEN" $(docker-machine ip manager1):2377
        done
        docker-machine active
        docker info

        eval $(docker-machine env -u)
        docker info
        docker-machine active 2>/dev/null || echo "rc=$?"
        docker $(docker-machine config manager1) node ls
    "#;
    prints(
        &lab,
        text,
        "manager1\nworker1\nworker2\n\
        docker swarm init --advertise-addr IP(manager1) [manager1]\n\
        docker swarm join --token SWMTKN-1-x IP(manager1):2377 [worker1]\n\
        docker swarm join --token SWMTKN-1-x IP(manager1):2377 [worker2]\n\
        worker2\n\
        docker at tcp://IP(worker2):2376, tls 1, machine worker2\n\
        docker at nowhere, tls off, machine none\n\
        rc=1\n\
        docker --tlsverify --tlscacert=\"HOME/machines/manager1/ca.pem\" --tlscert=\"HOME/machines/manager1/cert.pem\" --tlskey=\"HOME/machines/manager1/key.pem\" -H=tcp://IP(manager1):2376 node ls\n",
    );
}

#[test]
fn a_machine_is_brought_to_a_state_by_comparing_words() {
    let lab = Lab::new();
    let text = r#"
        set -u
        name=dev
        ensure() {
            state=$(docker-machine status $name 2>/dev/null)
            case "$state" in
                Running) echo "$name is up" ;;
                "") docker-machine create --driver fake $name ;;
                Stopped|Saved) docker-machine start $name ;;
                *) echo "unexpected: $state"; return 1 ;;
            esac
        }
        if [ "$(docker-machine status $name 2>&1)" != Running ]; then
            echo "not there yet"
        fi
        ensure && ensure
        docker-machine stop $name
        [ "$(docker-machine status $name)" = "Stopped" ] && echo stopped
        docker-machine url $name 2>&1
        ensure
        until docker-machine env $name >/dev/null 2>&1; do sleep 1; done
        url=$(docker-machine url $name)
        echo "${url#tcp://}"
        docker-machine restart $name
        docker-machine kill $name
        ensure > /dev/null
        if docker-machine ls | grep "^$name " | grep -q Running; then echo listed; fi
    "#;
    let expected = format!(
        "not there yet\n{}dev is up\n\
        Stopping \"dev\"...\nMachine \"dev\" was stopped.\nstopped\nHost is not running\n\
        Starting \"dev\"...\nMachine \"dev\" was started.\nStarted machines may have new IP addresses. You may need to re-run the `docker-machine env` command.\n\
        IP(dev):2376\n\
        Restarting \"dev\"...\nRestarted machines may have new IP addresses. You may need to re-run the `docker-machine env` command.\n\
        Killing \"dev\"...\nMachine \"dev\" was killed.\n\
        listed\n",
        created("dev")
    );
    prints(&lab, text, &expected);
}

#[test]
fn all_machines_are_gone_through_by_the_names_that_ls_prints() {
    let lab = Lab::new();
    let text = r#"
        set -eo pipefail
        for i in 1 2 10; do docker-machine create -d fake web$i >/dev/null; done
        docker-machine create -driver=fake db >/dev/null

        echo "-- names"
        docker-machine ls -q
        docker-machine ls -q --filter name=web
        docker-machine ls --filter driver=fake --filter "name=^d" --quiet

        echo "-- stop"
        for m in $(docker-machine ls -q --filter name=web); do docker-machine stop $m; done
        docker-machine ls --filter state=Running --format '{{.Name}} {{.URL}}'
        docker-machine ls --filter state=Stopped -f '{{.Name}}:{{.State}}'
        docker-machine ls -q --filter "state=Running" | xargs -n 1 docker-machine ip

        echo "-- table"
        docker-machine ls --format "table {{.Name}}\t{{.DriverName}}\t{{.State}}"
        docker-machine ls | awk 'NR>1 && $4=="Running" {print $1, $5}'
        docker-machine ls | head -1

        echo "-- start"
        docker-machine start $(docker-machine ls -q --filter state=Stopped) | sort
        docker-machine ls -q | while read m; do echo "$m $(docker-machine status $m)"; done

        echo "-- rm"
        docker-machine rm -f $(docker-machine ls -q) | sort
        docker-machine ls -q | wc -l
    "#;
    // Afterwards no machine is there whose address could be named.
    let ended = script(&lab, text);
    let said = regex::Regex::new(r"127\.\d+\.\d+\.\d+")
        .expect("a pattern")
        .replace_all(&ended.stdout, "IP")
        .into_owned();
    let stopped = |name: &str| format!("Stopping \"{name}\"...\nMachine \"{name}\" was stopped.\n");
    let expected = format!(
        "-- names\ndb\nweb1\nweb2\nweb10\nweb1\nweb2\nweb10\ndb\n\
        -- stop\n{}{}{}db tcp://IP:2376\nweb1:Stopped\nweb2:Stopped\nweb10:Stopped\nIP\n\
        -- table\nNAME    DRIVER   STATE\ndb      fake     Running\nweb1    fake     Stopped\nweb2    fake     Stopped\nweb10   fake     Stopped\n\
        db tcp://IP:2376\n\
        NAME    ACTIVE   DRIVER   STATE     URL                         SWARM   DOCKER    ERRORS\n\
        -- start\nMachine \"web1\" was started.\nMachine \"web10\" was started.\nMachine \"web2\" was started.\nStarted machines may have new IP addresses. You may need to re-run the `docker-machine env` command.\nStarting \"web1\"...\nStarting \"web10\"...\nStarting \"web2\"...\n\
        db Running\nweb1 Running\nweb2 Running\nweb10 Running\n\
        -- rm\nAbout to remove db, web1, web2, web10\nSuccessfully removed db\nSuccessfully removed web1\nSuccessfully removed web10\nSuccessfully removed web2\n{REMOVAL}0\n",
        stopped("web1"),
        stopped("web2"),
        stopped("web10"),
    );
    // The width of a column of URLs is that of the longest address.
    let columns = |text: &str| -> Vec<String> {
        let squeezed = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        squeezed.collect()
    };
    assert_eq!(
        (columns(&said), ended.stderr.as_str(), ended.code),
        (columns(&expected), "", 0)
    );
    let table = "NAME    DRIVER   STATE\ndb      fake     Running\nweb1    fake     Stopped\n";
    assert!(said.contains(table), "{said}");
}

#[test]
fn what_is_kept_of_a_machine_is_read_out_for_other_programs() {
    let lab = Lab::new();
    let text = r#"
        set -eu
        docker-machine create -d fake n1 >/dev/null
        IP=$(docker-machine inspect -f '{{.Driver.IPAddress}}' n1)
        [ "$IP" = "$(docker-machine ip n1)" ] && echo "same address"
        KEY=$(docker-machine inspect --format '{{.Driver.SSHKeyPath}}' n1)
        [ -f "$KEY" ] && ls -l "$KEY" | cut -c1-10
        head -1 "$KEY" | grep -c 'PRIVATE KEY'
        docker-machine inspect -f '{{.Driver.SSHUser}}@{{.Driver.MachineName}}' n1
        docker-machine inspect -f '{{.DriverName}} {{.HostOptions.EngineOptions.TlsVerify}} {{.HostOptions.SwarmOptions.Master}}' n1
        docker-machine inspect -f '{{json .HostOptions.EngineOptions.Labels}}' n1
        CERTS=$(docker-machine inspect --format '{{.HostOptions.AuthOptions.StorePath}}' n1)
        (cd "$CERTS" && ls ca.pem cert.pem key.pem server.pem server-key.pem config.json id_rsa id_rsa.pub)
        ls "$MACHINE_STORAGE_PATH/certs"
        docker-machine env n1 | grep DOCKER_HOST | cut -d= -f2 | tr -d '"'
        docker-machine inspect n1 | grep -c '"ConfigVersion": 3,'
        docker-machine inspect n1 | grep '"MachineName"' | tr -d ' ",'
        grep -c '"DriverName": "fake"' "$MACHINE_STORAGE_PATH/machines/n1/config.json"
    "#;
    prints(
        &lab,
        text,
        "same address\n-rw-------\n1\nforge@n1\nfake true false\n[]\n\
        ca.pem\ncert.pem\nconfig.json\nid_rsa\nid_rsa.pub\nkey.pem\nserver-key.pem\nserver.pem\n\
        ca-key.pem\nca.pem\ncert.pem\nkey.pem\n\
        tcp://IP(n1):2376\n1\nMachineName:n1\n1\n",
    );
    // With jq, where there is one.
    let text = r#"
        set -eu
        command -v jq >/dev/null || { echo "no jq"; exit; }
        docker-machine inspect n1 | jq -r '.Driver.IPAddress, .Name, .DriverName, .ConfigVersion'
        docker-machine inspect n1 | jq -c '[.HostOptions.EngineOptions.RegistryMirror, .HostOptions.SwarmOptions.IsSwarm]'
        jq -r '.Driver | "\(.SSHUser) \(.SSHPort | type)"' "$MACHINE_STORAGE_PATH"/machines/*/config.json
        for m in $(docker-machine ls -q); do
            docker-machine inspect "$m" | jq -r '.HostOptions.AuthOptions.ServerCertPath' | sed "s#^$MACHINE_STORAGE_PATH#STORE#"
        done
    "#;
    let ended = script(&lab, text);
    let ip = lab.address("n1");
    let with_jq =
        format!("{ip}\nn1\nfake\n3\n[[],false]\nforge number\nSTORE/machines/n1/server.pem\n");
    assert!(
        [with_jq.as_str(), "no jq\n"].contains(&ended.stdout.as_str()),
        "{}",
        ended.stdout
    );
    assert_eq!((ended.stderr.as_str(), ended.code), ("", 0));
}

#[test]
fn what_fails_fails_as_scripts_expect_it() {
    let lab = Lab::new();
    let text = r#"
        try() { "$@" 2>&1; echo "rc=$?"; }
        docker-machine create -d fake n1 >/dev/null
        try docker-machine create -d fake n1
        try docker-machine ip nope
        try docker-machine stop
        try docker-machine start n1
        try docker-machine status nope
        try docker-machine rm nope < /dev/null
        if docker-machine inspect nope >/dev/null 2>&1; then echo there; else echo "not there"; fi
        docker-machine inspect n1 >/dev/null && echo there
        eval "$(docker-machine env nope 2>/dev/null)" && echo "host: ${DOCKER_HOST:-none}"
        env=$(docker-machine env nope 2>/dev/null) || echo "env failed: $?"
        try docker-machine rm -y nope
        echo y | docker-machine rm n1
        docker-machine ls -q
        try docker-machine frobnicate
        docker-machine --version | sed -n 's/.*version \([0-9]*\.[0-9]*\).*/\1/p'
        [ "$(printf '%s\n' 0.12.0 "$(docker-machine -v | awk '{print $3}' | tr -d ,)" | sort -V | head -1)" = 0.12.0 ] && echo "new enough"
    "#;
    let missing = "Docker machine \"nope\" does not exist. Use \"docker-machine ls\" to list machines. Use \"docker-machine create\" to add a new one.\n";
    let expected = format!(
        "Docker machine \"n1\" already exists\nrc=1\n\
        {missing}rc=1\n\
        Error: No machine name(s) specified and no \"default\" machine exists\nrc=1\n\
        Starting \"n1\"...\nMachine \"n1\" is already running.\nrc=1\n\
        {missing}rc=1\n\
        About to remove nope\n{REMOVAL}Are you sure? (y/n): rc=0\n\
        not there\nthere\nhost: none\nenv failed: 1\n\
        About to remove nope\n{REMOVAL}Error removing host \"nope\": {missing}rc=1\n\
        About to remove n1\n{REMOVAL}Are you sure? (y/n): Successfully removed n1\n\
        docker-machine: 'frobnicate' is not a docker-machine command. See 'docker-machine --help'.\nrc=1\n\
        0.16\nnew enough\n"
    );
    prints(&lab, text, &expected);
}

#[test]
fn the_machine_that_is_not_named_is_the_one_called_default() {
    let lab = Lab::new();
    let text = r#"
        set -e
        docker-machine create --driver fake default >/dev/null
        eval "$(docker-machine env)"
        docker info
        docker-machine active
        docker-machine ip
        docker-machine url
        docker-machine status
        docker-machine inspect -f '{{.Name}}'
        docker-machine config | tail -1
        docker-machine stop
        docker-machine start > /dev/null
        docker-machine restart > /dev/null
        docker-machine ls -f '{{.Name}} {{.Active}} {{.ActiveHost}}'
        docker-machine kill
        docker-machine ls -f '{{.Name}} {{.Active}} [{{.URL}}]'
    "#;
    prints(
        &lab,
        text,
        "docker at tcp://IP(default):2376, tls 1, machine default\ndefault\nIP(default)\ntcp://IP(default):2376\nRunning\ndefault\n-H=tcp://IP(default):2376\n\
        Stopping \"default\"...\nMachine \"default\" was stopped.\n\
        default * true\n\
        Killing \"default\"...\nMachine \"default\" was killed.\n\
        default - []\n",
    );
}
