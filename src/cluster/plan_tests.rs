use super::super::node::Manager;
use super::*;

const ID: &str = "t6akojmrrklp7c0sgw2n9tpqo";

fn spec(managers: u32, workers: u32, zones: u32) -> ClusterSpec {
    ClusterSpec {
        name: "prod".parse().expect("a name"),
        managers,
        workers,
        zones,
        drain_managers: false,
        address_pool: None,
    }
}

fn pool() -> Ipv4Net {
    "10.208.0.0/12".parse().expect("a network")
}

fn member(node: &str, manager: bool) -> Membership {
    Membership {
        local: LocalState::Active,
        node_id: node.to_owned(),
        manager,
        cluster_id: manager.then(|| ID.to_owned()),
        error: String::new(),
    }
}

fn node(place: Place, spec: &ClusterSpec) -> Node {
    let machine = spec.machine(place);
    Node {
        id: format!("id-{machine}"),
        hostname: machine,
        address: String::new(),
        health: Health::Ready,
        availability: Availability::Active,
        wants_manager: place.role == Role::Manager,
        manager: (place.role == Role::Manager).then_some(Manager::Reachable),
        zone: Some(place.zone),
    }
}

/// Everything as `spec` wishes.
fn complete(spec: &ClusterSpec) -> Observed {
    let places = spec.check().expect("sound").nodes;
    let machine = |&place: &Place| Machine {
        place,
        made: Made::Ready,
        state: State::Running,
        membership: Some(member(
            &format!("id-{}", spec.machine(place)),
            place.role == Role::Manager,
        )),
    };
    Observed {
        cluster_id: Some(ID.to_owned()),
        machines: places.iter().map(machine).collect(),
        nodes: places.iter().map(|&place| node(place, spec)).collect(),
        hosts: Vec::new(),
    }
}

fn steps(spec: &ClusterSpec, observed: &Observed) -> Vec<String> {
    let plan = plan(spec, observed, pool()).expect("a plan");
    plan.actions.iter().map(ToString::to_string).collect()
}

#[test]
fn fresh() {
    let spec = spec(3, 1, 2);
    let plan = plan(&spec, &Observed::default(), pool()).expect("a plan");
    assert!(plan.changed());
    assert_eq!(
        plan.to_string(),
        "\
cluster `prod`

  zone  managers         workers  when it is lost
  z1    prod-m1 prod-m3  -        stops: 1 of 3 managers left, 2 needed
  z2    prod-m2          prod-w1  goes on: 2 of 3 managers left

quorum: 2 of 3 managers, 1 may be lost
note: the zones are only labels: all machines run on this one host, and losing it loses every zone
warning: losing zone `z1` stops the cluster: 1 of 3 managers would be left, 2 are needed; \
one of two zones always holds a quorum, so two zones give no tolerance: ask for 3 zones

steps:
   1. create `prod-m1` (manager, zone `z1`)
   2. create `prod-m2` (manager, zone `z2`)
   3. create `prod-m3` (manager, zone `z1`)
   4. create `prod-w1` (worker, zone `z2`)
   5. found the swarm on `prod-m1`, its networks from `10.208.0.0/12`
   6. join `prod-m2` as manager
   7. join `prod-m3` as manager
   8. join `prod-w1` as worker
   9. label `prod-m1` with `zone=z1`
  10. label `prod-m2` with `zone=z2`
  11. label `prod-m3` with `zone=z1`
  12. label `prod-w1` with `zone=z2`
  13. rotate the join tokens
"
    );
}

#[test]
fn complete_needs_nothing() {
    for spec in [spec(1, 0, 1), spec(3, 2, 2), spec(5, 4, 3)] {
        let plan = plan(&spec, &complete(&spec), pool()).expect("a plan");
        assert!(!plan.changed(), "{:?}", plan.actions);
        assert!(plan.to_string().ends_with("\nnothing to do\n"));
    }
}

#[test]
fn half_done_goes_on_where_it_stopped() {
    let spec = spec(3, 1, 1);
    let mut observed = complete(&spec);
    // Cut off after the second manager joined: its label, the third join and the worker are missing.
    observed.nodes.truncate(2);
    observed.nodes[1].zone = None;
    observed.machines[2].membership = Some(Membership::default());
    observed.machines[3].made = Made::Partly;
    observed.machines[3].membership = None;
    assert_eq!(
        steps(&spec, &observed),
        [
            "go on creating `prod-w1` (worker, zone `z1`)",
            "join `prod-m3` as manager",
            "join `prod-w1` as worker",
            "label `prod-m2` with `zone=z1`",
            "label `prod-m3` with `zone=z1`",
            "label `prod-w1` with `zone=z1`",
            "rotate the join tokens",
        ]
    );
}

#[test]
fn a_swarm_founded_but_not_recorded_is_found() {
    let spec = spec(1, 0, 1);
    let mut observed = complete(&spec);
    observed.cluster_id = None;
    assert_eq!(steps(&spec, &observed), Vec::<String>::new());
    // Not even when the quorum is lost, so that no manager reports the id.
    observed.machines[0]
        .membership
        .as_mut()
        .expect("a member")
        .cluster_id = None;
    assert_eq!(steps(&spec, &observed), Vec::<String>::new());
}

#[test]
fn different_swarms_are_refused_with_both_shown() {
    let spec = spec(3, 0, 1);
    let mut observed = complete(&spec);
    observed.machines[1]
        .membership
        .as_mut()
        .expect("a member")
        .cluster_id = Some("other".to_owned());
    let error = plan(&spec, &observed, pool()).expect_err("conflict");
    assert_eq!(error.kind(), Kind::Conflict);
    let cause = &error.causes()[0];
    assert!(cause.contains(&format!("`prod-m1` says `{ID}`")), "{cause}");
    assert!(cause.contains("`prod-m2` says `other`"), "{cause}");
    assert!(
        cause.contains(&format!("the record says `{ID}`")),
        "{cause}"
    );
}

#[test]
fn a_stopped_machine_is_started_and_nothing_else() {
    let spec = spec(3, 0, 1);
    let mut observed = complete(&spec);
    observed.machines[1].state = State::Stopped;
    observed.machines[1].membership = None;
    observed.nodes[1].health = Health::Down;
    observed.nodes[1].manager = Some(Manager::Unreachable);
    assert_eq!(steps(&spec, &observed), ["start `prod-m2`"]);
}

#[test]
fn all_stopped_is_no_reason_for_a_second_swarm() {
    let spec = spec(3, 0, 1);
    let mut observed = complete(&spec);
    observed.nodes.clear();
    for machine in &mut observed.machines {
        machine.state = State::Stopped;
        machine.membership = None;
    }
    assert_eq!(
        steps(&spec, &observed),
        ["start `prod-m1`", "start `prod-m2`", "start `prod-m3`"]
    );
}

#[test]
fn the_lost_first_machine_joins_the_others() {
    let spec = spec(3, 0, 1);
    let mut observed = complete(&spec);
    observed.machines.remove(0);
    observed.nodes[0].health = Health::Down;
    observed.nodes[0].manager = Some(Manager::Unreachable);
    let expected = [
        "create `prod-m1` (manager, zone `z1`)",
        "drop the entry `id-prod-m1` of the lost `prod-m1`",
        "join `prod-m1` as manager",
        "label `prod-m1` with `zone=z1`",
        "rotate the join tokens",
    ];
    assert_eq!(steps(&spec, &observed), expected);
    // Also when the record of the id was lost with it.
    observed.cluster_id = None;
    assert_eq!(steps(&spec, &observed), expected);
    // And when it has been made anew already.
    let place = Place {
        role: Role::Manager,
        index: 1,
        zone: Zone(1),
    };
    observed.machines.push(Machine {
        place,
        made: Made::Ready,
        state: State::Running,
        membership: Some(Membership::default()),
    });
    assert_eq!(steps(&spec, &observed), expected[1..]);
}

#[test]
fn a_recorded_swarm_that_is_nowhere_is_not_founded_again() {
    let spec = spec(1, 0, 1);
    let mut observed = complete(&spec);
    observed.nodes.clear();
    observed.machines[0].membership = Some(Membership::default());
    let error = plan(&spec, &observed, pool()).expect_err("refused");
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.message().contains(ID), "{}", error.message());
    observed.machines.clear();
    assert_eq!(
        plan(&spec, &observed, pool()).expect_err("refused").kind(),
        Kind::Conflict
    );
}

#[test]
fn shrinking_destroys_nothing_and_says_what_is_left_over() {
    let wide = spec(5, 1, 1);
    let plan = plan(&spec(3, 0, 1), &complete(&wide), pool()).expect("a plan");
    assert!(!plan.changed(), "{:?}", plan.actions);
    assert_eq!(plan.surplus, ["prod-m4", "prod-m5", "prod-w1"]);
    assert!(
        plan.warnings[0].starts_with("`prod-m4`, `prod-m5`, `prod-w1` are not wished"),
        "{:?}",
        plan.warnings
    );
}

#[test]
fn zones_that_are_hosts_are_told_as_such() {
    let mut observed = Observed {
        hosts: vec!["qemu:///system".into(), "qemu+ssh://host2/system".into()],
        ..Observed::default()
    };
    let spec = spec(3, 0, 2);
    let two = plan(&spec, &observed, pool()).expect("a plan");
    assert_eq!(two.notes, Vec::<String>::new());
    assert_eq!(two.zones[1].at.as_deref(), Some("qemu+ssh://host2/system"));
    let text = two.to_string();
    assert!(text.contains("z1 at `qemu:///system`"), "{text}");
    observed.hosts.pop();
    let one = plan(&spec, &observed, pool()).expect("a plan");
    assert_eq!(
        one.notes,
        [
            "the zones are only labels: all machines run at `qemu:///system`, and losing it loses every zone"
        ]
    );
    assert_eq!(one.zones[0].at, None);
}

#[test]
fn growing_adds_and_leaves_the_rest() {
    let mut observed = complete(&spec(3, 0, 3));
    observed.hosts = ["a", "b", "c"].map(str::to_owned).to_vec();
    let plan = plan(&spec(3, 1, 3), &observed, pool()).expect("a plan");
    let steps: Vec<String> = plan.actions.iter().map(ToString::to_string).collect();
    assert_eq!(
        steps,
        [
            "create `prod-w1` (worker, zone `z1`)",
            "join `prod-w1` as worker",
            "label `prod-w1` with `zone=z1`",
            "rotate the join tokens",
        ]
    );
    assert_eq!(plan.notes, Vec::<String>::new());
}

#[test]
fn managers_are_drained_only_when_asked() {
    let mut spec = spec(1, 1, 1);
    let mut observed = complete(&spec);
    observed.nodes[0].availability = Availability::Drain;
    assert_eq!(steps(&spec, &observed), Vec::<String>::new());
    spec.drain_managers = true;
    assert_eq!(steps(&spec, &observed), Vec::<String>::new());
    observed.nodes[0].availability = Availability::Active;
    assert_eq!(steps(&spec, &observed), ["keep tasks off `prod-m1`"]);
}

#[test]
fn a_manager_that_was_demoted_is_promoted_and_the_opposite_is_left_to_the_operator() {
    let spec = spec(3, 1, 1);
    let mut observed = complete(&spec);
    observed.machines[2].membership = Some(member("id-prod-m3", false));
    observed.nodes[2].manager = None;
    observed.machines[3].membership = Some(member("id-prod-w1", true));
    let plan = plan(&spec, &observed, pool()).expect("a plan");
    assert_eq!(
        plan.actions,
        [Action::Promote {
            machine: "prod-m3".to_owned()
        }]
    );
    assert_eq!(
        plan.warnings,
        ["`prod-w1` is a worker by name and a manager in the swarm: it counts for the quorum"]
    );
}

#[test]
fn a_machine_that_the_managers_dropped_is_named() {
    let spec = spec(1, 1, 1);
    let mut observed = complete(&spec);
    observed.nodes.pop();
    let plan = plan(&spec, &observed, pool()).expect("a plan");
    assert!(!plan.changed(), "{:?}", plan.actions);
    assert!(
        plan.warnings[0].starts_with("`prod-w1` takes itself for a member"),
        "{:?}",
        plan.warnings
    );
}

#[test]
fn a_plan_in_json_names_its_actions() {
    let plan = plan(&spec(1, 0, 1), &Observed::default(), pool()).expect("a plan");
    let value = serde_json::to_value(&plan).expect("json");
    assert_eq!(value["actions"][0]["action"], "create");
    assert_eq!(value["actions"][1]["action"], "init");
    assert_eq!(value["actions"][1]["pool"], "10.208.0.0/12");
    assert_eq!(value["quorum"]["needed"], 1);
    assert_eq!(value["zones"][0]["zone"], "z1");
}
