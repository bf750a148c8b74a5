//! Kills at real machines: `kill -9` of forge in every stage of a cluster's making, and the same command
//! again. In the end everything works, and there is one machine, one process and one swarm of each.

use std::collections::BTreeMap;
use std::time::Duration;

use forge_lab::{Dice, Listened, Steps, Store};
use serde_json::Value;

const FORGE: &str = env!("CARGO_BIN_EXE_forge");
/// So many kills in each stage, unless `FORGE_LAB_KILLS` says another number.
const KILLS: usize = 5;
/// So many clusters are made at most: one that is whole has no stage left to be killed in.
const CLUSTERS: usize = 4;

/// A stage, the step that begins it, and the milliseconds after which it is mostly over.
const STAGES: [(&str, &str, u64); 5] = [
    ("create", "starting the virtual machine", 900),
    ("first contact", "first contact", 1500),
    ("provisioning", "provisioning", 5000),
    ("init", "founding the swarm", 1200),
    ("join", "joining the swarm", 2500),
];

#[test]
fn lab_kills_in_every_stage() {
    let mut steps = Steps::new("kills");
    let mut dice = Dice::new();
    let each = std::env::var("FORGE_LAB_KILLS").map_or(KILLS, |text| {
        text.parse().expect("FORGE_LAB_KILLS is a number")
    });
    let store = Store::new(FORGE);
    let mut table: Vec<Kill> = Vec::new();
    let mut clusters = Vec::new();
    while !missing(&table, each).is_empty() {
        let name = format!("k{}", clusters.len() + 1);
        assert!(
            clusters.len() < CLUSTERS,
            "after {CLUSTERS} clusters: {table:?}"
        );
        steps.step(&format!(
            "cluster {name}: killed and gone on with until it is whole"
        ));
        let done = torment(&store, &name, &mut dice, &mut table, each);
        clusters.push((name, done));
    }
    steps.step("everything works");
    let mut inner = Vec::new();
    for (name, id) in &clusters {
        let again = store.json(&words(name));
        assert_eq!(again["changed"], 0, "{again}");
        assert_eq!(again["cluster_id"].as_str(), Some(id.as_str()));
        let status = store.json(&["cluster", "status", name]);
        assert_eq!(status["trouble"], serde_json::json!([]), "{status}");
        let machines = machines(name);
        for machine in &machines {
            store.process(machine);
            inner.push(store.inner_ip(machine));
        }
        // The swarm has these nodes and no stale ones.
        let nodes = store.ssh(
            &format!("{name}-m1"),
            "docker node ls --format '{{.Hostname}} {{.Status}}' | sort",
        );
        let wanted: Vec<String> = machines.iter().map(|one| format!("{one} Ready")).collect();
        assert_eq!(nodes, wanted.join("\n"));
    }
    assert_eq!(store.ok(&["ls", "-q"]).lines().count(), inner.len());
    let all = inner.len();
    inner.sort();
    inner.dedup();
    assert_eq!(inner.len(), all, "no two machines share an address");
    leftovers(&store, all);
    for kill in &table {
        steps.note(&format!(
            "{:14} {:>5} ms after its beginning, of {}",
            kill.stage, kill.after, kill.cluster
        ));
    }
    steps.note(&format!("{} kills", table.len()));
    steps.step("a member that is removed is let in no more");
    let (manager, worker) = (
        format!("{}-m1", clusters[0].0),
        format!("{}-w1", clusters[0].0),
    );
    let address = store.inner_ip(&worker);
    let set = "sudo nft list set inet forge peers";
    assert!(store.ssh(&manager, set).contains(&address));
    store.ok(&["rm", "-f", &worker]);
    assert!(!store.ssh(&manager, set).contains(&address));

    steps.step("all of it goes");
    for (name, _) in &clusters {
        store.ok(&["cluster", "down", "-y", name]);
    }
    assert_eq!(store.left(), Vec::<String>::new());
}

#[derive(Debug)]
struct Kill {
    stage: &'static str,
    cluster: String,
    after: u64,
}

/// The stages that were not killed in often enough, in their order.
fn missing(table: &[Kill], each: usize) -> Vec<(&'static str, &'static str, u64)> {
    STAGES
        .into_iter()
        .filter(|(stage, _, _)| table.iter().filter(|kill| kill.stage == *stage).count() < each)
        .collect()
}

/// The first cluster has managers that join, the others are small.
fn managers(name: &str) -> &'static str {
    if name == "k1" { "3" } else { "1" }
}

fn words(name: &str) -> [&str; 7] {
    let managers = managers(name);
    [
        "cluster",
        "up",
        name,
        "--managers",
        managers,
        "--workers",
        "1",
    ]
}

/// The machines of a cluster, sorted.
fn machines(name: &str) -> Vec<String> {
    let count: u32 = managers(name).parse().expect("a number");
    (1..=count)
        .map(|number| format!("{name}-m{number}"))
        .chain([format!("{name}-w1")])
        .collect()
}

/// Runs `cluster up` until it ends by itself, killing it in the stages that are still to be killed in.
/// The id of the swarm.
fn torment(
    store: &Store,
    name: &str,
    dice: &mut Dice,
    table: &mut Vec<Kill>,
    each: usize,
) -> String {
    let mut id = None;
    for _ in 0..60 {
        match run(store, name, &missing(table, each), dice) {
            Ended::Killed { stage, after } => {
                table.push(Kill {
                    stage,
                    cluster: name.to_owned(),
                    after,
                });
                // What is on disk is read by everybody, and holds what it held.
                store.json(&["ls"]);
                let listed = store.json(&["cluster", "ls"]);
                for cluster in listed.as_array().expect("a list") {
                    let seen = cluster["cluster_id"].as_str().map(str::to_owned);
                    if cluster["name"] == name && seen.is_some() {
                        let known = id.get_or_insert_with(|| seen.clone());
                        assert_eq!(*known, seen, "one swarm, once and for all");
                    }
                }
            }
            Ended::Whole(summary) => {
                let now = summary["cluster_id"].as_str().expect("an id").to_owned();
                if let Some(Some(known)) = id {
                    assert_eq!(known, now, "one swarm, once and for all");
                }
                return now;
            }
        }
    }
    panic!("cluster {name} is not whole after 60 runs: {table:?}");
}

/// Processes of the store that are neither its machines nor the switch between them.
fn leftovers(store: &Store, machines: usize) {
    let mut counts: BTreeMap<bool, Vec<String>> = BTreeMap::new();
    for found in store.processes() {
        let machine = found.words.iter().any(|word| word == "-uuid");
        counts.entry(machine).or_default().push(found.to_string());
    }
    assert_eq!(
        counts.get(&true).map(Vec::len),
        Some(machines),
        "{counts:?}"
    );
    assert_eq!(
        counts.get(&false).map(Vec::len),
        Some(1),
        "the switch alone: {counts:?}"
    );
}

/// Whether a step is a mere look at a machine that was finished earlier: every run provisions again.
fn ready(store: &Store, event: &Value) -> bool {
    let machine = event["machine"].as_str().unwrap_or_default();
    let record = store
        .home()
        .join("machines")
        .join(machine)
        .join("machine.json");
    event["step"] == "provisioning"
        && std::fs::read_to_string(record).is_ok_and(|text| text.contains("\"ready\""))
}

enum Ended {
    Killed { stage: &'static str, after: u64 },
    Whole(Value),
}

/// Runs the command once, until it ends or is killed in one of the stages that are `wanted`.
fn run(store: &Store, name: &str, wanted: &[(&'static str, &str, u64)], dice: &mut Dice) -> Ended {
    let mut up = Listened::start(&mut store.command(&words(name)), Duration::from_secs(420));
    let mut last = Value::Null;
    while let Some(event) = up.event() {
        let begun = |step: &str| event["event"] == "step" && event["step"] == step;
        let stage = wanted.iter().find(|(_, step, _)| begun(step));
        if let Some((stage, _, span)) = stage.filter(|_| !ready(store, &event)) {
            let after = dice.below(*span);
            if up.kill_after(Duration::from_millis(after)) {
                return Ended::Killed { stage, after };
            }
        }
        last = event;
    }
    Ended::Whole(last)
}
