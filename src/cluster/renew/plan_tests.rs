use super::*;
use crate::cluster::zones::Zone;

fn node(name: &str, manager: Option<Manager>) -> Node {
    Node {
        id: format!("id-{name}"),
        hostname: name.to_owned(),
        address: String::new(),
        health: Health::Ready,
        availability: Availability::Active,
        wants_manager: manager.is_some(),
        manager,
        zone: Some(Zone(1)),
    }
}

fn task(service: &str, node: &str) -> Task {
    Task {
        service: service.to_owned(),
        node: format!("id-{node}"),
        replicated: true,
        running: true,
        constraints: Vec::new(),
        container: format!("{service}-on-{node}"),
        replaced: true,
        grace: None,
        job: false,
    }
}

/// So many tasks of each service run, and move.
fn shares(services: &[(&str, usize)]) -> BTreeMap<String, Share> {
    let share = |running| Share {
        running,
        moves: true,
        here: BTreeSet::new(),
    };
    services
        .iter()
        .map(|(service, running)| ((*service).to_owned(), share(*running)))
        .collect()
}

fn all(nodes: &[Node]) -> BTreeMap<String, String> {
    nodes
        .iter()
        .map(|node| (node.id.clone(), node.hostname.clone()))
        .collect()
}

/// Three managers, the second of which leads, and two workers.
fn five() -> Vec<Node> {
    vec![
        node("m1", Some(Manager::Reachable)),
        node("m2", Some(Manager::Leader)),
        node("m3", Some(Manager::Reachable)),
        node("w1", None),
        node("w2", None),
    ]
}

#[test]
fn workers_come_first_and_the_leader_last() {
    let nodes = five();
    let order = |wanted: &BTreeMap<String, String>| -> Vec<String> {
        let turns = plan(&nodes, &[], wanted).expect("a plan");
        turns.into_iter().map(|turn| turn.machine).collect()
    };
    assert_eq!(order(&all(&nodes)), ["w1", "w2", "m1", "m3", "m2"]);
    let some = BTreeMap::from([
        ("id-m2".to_owned(), "m2".to_owned()),
        ("id-w2".to_owned(), "w2".to_owned()),
        ("id-gone".to_owned(), "gone".to_owned()),
    ]);
    assert_eq!(order(&some), ["w2", "m2"]);
}

#[test]
fn a_node_is_drained_where_its_tasks_have_somewhere_to_go() {
    let nodes = five();
    let mut pinned = task("db", "w1");
    pinned.constraints = vec!["node.hostname==w1".to_owned()];
    let mut everywhere = task("agent", "w1");
    everywhere.replicated = false;
    let tasks = [task("web", "w1"), task("web", "w2"), pinned, everywhere];
    let turns = plan(&nodes, &tasks, &all(&nodes)).expect("a plan");
    let (first, second) = (&turns[0], &turns[1]);
    assert!(first.drain && !first.no_quorum);
    assert_eq!((first.moves, first.stops), (1, 2));
    assert_eq!(
        first.to_string(),
        "w1 (worker): drained, 1 task moves to other nodes; its engine restarts, and 2 tasks with it; then it is active again"
    );
    assert_eq!((second.drain, second.moves, second.stops), (true, 1, 0));
    // Without tasks there is nothing to drain.
    assert_eq!(turns[2].to_string(), "m1 (manager): its engine restarts");
    assert!(!turns[2].drain);
}

#[test]
fn constraints_say_where_a_task_may_go() {
    let nodes = [
        node("m1", Some(Manager::Leader)),
        node("w1", None),
        node("w2", None),
    ];
    let drains = |constraint: &str, nodes: &[Node]| {
        let mut task = task("web", "w1");
        task.constraints = vec![constraint.to_owned()];
        let wanted = BTreeMap::from([("id-w1".to_owned(), "w1".to_owned())]);
        plan(nodes, &[task], &wanted).expect("a plan")[0].drain
    };
    for (constraint, expected) in [
        ("node.role == manager", true),
        ("node.role!=worker", true),
        ("node.hostname == W2", true),
        ("node.hostname==w1", false),
        ("node.id == id-w1", false),
        ("node.labels.zone==z1", true),
        ("node.labels.zone==z2", false),
        ("node.labels.disk==ssd", true),
    ] {
        assert_eq!(drains(constraint, &nodes), expected, "{constraint}");
    }
    // Nobody is there to take it.
    let mut alone = nodes.to_vec();
    alone[0].availability = Availability::Drain;
    alone[2].health = Health::Down;
    assert!(!drains("node.role!=nothing", &alone));
}

#[test]
fn the_quorum_is_checked() {
    let mut nodes = five();
    assert!(!may_restart(&nodes, &nodes[0]).expect("two are left"));
    nodes[2].manager = Some(Manager::Unreachable);
    let refused = may_restart(&nodes, &nodes[0]).expect_err("one would be left");
    assert_eq!(refused.kind(), Kind::Refused);
    assert_eq!(
        refused.causes(),
        ["2 of 3 managers take part, 1 without it, and 2 are needed"]
    );
    // A worker takes nothing away, and neither does one that is lost already.
    assert!(!may_restart(&nodes, &nodes[3]).expect("a worker"));
    assert!(!may_restart(&nodes, &nodes[2]).expect("lost already"));
    nodes[1].manager = Some(Manager::Unreachable);
    may_restart(&nodes, &nodes[3]).expect_err("nobody decides");
    // Of one or two nothing else can be had.
    let one = [node("m1", Some(Manager::Leader))];
    assert!(may_restart(&one, &one[0]).expect("alone"));
    let turns = plan(&one, &[task("web", "m1")], &all(&one)).expect("a plan");
    assert_eq!(
        turns[0].to_string(),
        "m1 (manager): its engine restarts, and 1 task with it; meanwhile the managers decide nothing"
    );
    let two = [
        node("m1", Some(Manager::Leader)),
        node("m2", Some(Manager::Reachable)),
    ];
    assert!(may_restart(&two, &two[1]).expect("both are there"));
}

#[test]
fn a_drain_is_over_when_as_many_run_elsewhere() {
    let services = shares(&[("web", 1)]);
    let wait = |tasks: &[Task]| still_there(tasks, "id-w1", &services);
    assert_eq!(wait(&[task("web", "w2"), task("db", "w1")]), None);
    assert_eq!(
        wait(&[task("web", "w1"), task("web", "w2")]).expect("one"),
        "1 of its tasks are still there"
    );
    let mut starting = task("web", "w2");
    starting.running = false;
    assert_eq!(
        wait(&[starting.clone()]).expect("one"),
        "1 of its tasks do not run elsewhere yet"
    );
    // One that did not run before either is not waited for, nor one that is wished no longer.
    assert_eq!(wait(&[starting, task("web", "w2")]), None);
    assert_eq!(wait(&[]), None);
}

#[test]
fn what_an_engine_took_down_is_waited_for() {
    let nodes = five();
    let mut everywhere = [
        task("agent", "w1"),
        task("agent", "w2"),
        task("agent", "m1"),
    ];
    for task in &mut everywhere {
        task.replicated = false;
    }
    let mut tasks = vec![task("web", "w1"), task("web", "w1"), task("web", "m2")];
    tasks.extend(everywhere);
    let wanted = BTreeMap::from([("id-w1".to_owned(), "w1".to_owned())]);
    let services = plan(&nodes, &tasks, &wanted)
        .expect("a plan")
        .remove(0)
        .services;
    assert_eq!(services.len(), 2);
    let back = |tasks: &[Task], service: &str| is_back(tasks, "id-w1", service, &services[service]);
    // Its managers have not heard yet that it went down.
    assert!(!back(&tasks, "agent"));
    // It is none of those that move, and is gone while its node is drained.
    let mut now = vec![task("web", "m1"), task("web", "m2"), task("web", "m2")];
    now.extend(tasks[4..].to_vec());
    assert_eq!(still_there(&now, "id-w1", &services), None);
    assert!(back(&now, "web") && !back(&now, "agent"));
    let mut again = task("agent", "w1");
    again.container = "another".to_owned();
    again.running = false;
    now.push(again);
    assert!(!back(&now, "agent"), "it starts");
    now[5].running = true;
    assert!(back(&now, "agent"));
    now.remove(0);
    assert!(back(&now, "web"), "scaled down meanwhile");
    now[0].running = false;
    assert!(!back(&now, "web"));
    assert!(back(&now[..2], "agent"), "removed meanwhile");
}

#[test]
fn a_job_that_runs_is_stopped_and_waited_for_by_nobody() {
    let mut job = task("batch", "w1");
    job.job = true;
    let wanted = BTreeMap::from([("id-w1".to_owned(), "w1".to_owned())]);
    let turns = plan(&five(), &[job], &wanted).expect("a plan");
    assert!(!turns[0].drain && turns[0].services.is_empty());
    assert_eq!(
        turns[0].to_string(),
        "w1 (worker): its engine restarts, and 1 task with it"
    );
}

#[test]
fn one_of_several_goes_ahead_where_none_runs_elsewhere() {
    let nodes = five();
    let turn = |tasks: &[Task]| {
        let wanted = BTreeMap::from([("id-w1".to_owned(), "w1".to_owned())]);
        plan(&nodes, tasks, &wanted).expect("a plan").remove(0)
    };
    let both = [task("web", "w1"), task("web", "w1")];
    let first = turn(&both);
    assert_eq!(first.ahead, both[..1]);
    assert_eq!(first.silent, 0);
    // Another that only starts answers nobody.
    let mut starting = task("web", "w2");
    starting.running = false;
    let tasks = [both[0].clone(), both[1].clone(), starting.clone()];
    assert_eq!(turn(&tasks).ahead.len(), 1);
    starting.running = true;
    let tasks = [both[0].clone(), both[1].clone(), starting];
    assert_eq!(turn(&tasks).ahead, []);
    // Stopped alone, some would not be started again.
    let mut once = both.clone();
    for task in &mut once {
        task.replaced = false;
    }
    let silent = turn(&once);
    assert_eq!((silent.ahead.len(), silent.silent), (0, 1));
    let single = turn(&both[..1]);
    assert_eq!((single.ahead.len(), single.silent), (0, 1));
    assert_eq!(
        single.to_string(),
        "w1 (worker): drained, 1 task moves to other nodes; 1 service is silent until it runs there; its engine restarts; then it is active again"
    );
}

#[test]
fn tasks_are_read_as_the_engine_lists_them() {
    let tasks = parse_tasks(
        r#"[{"ID":"t1","ServiceID":"s1","Slot":2,"NodeID":"n1","DesiredState":"running",
             "Status":{"State":"running","ContainerStatus":{"ContainerID":"c1"}},
             "Spec":{"Placement":{"Constraints":["node.role==worker"]},"RestartPolicy":{"Condition":"any","MaxAttempts":0}}},
            {"ID":"t2","ServiceID":"s2","NodeID":"n1","Status":{"State":"preparing"},
             "Spec":{"Placement":{},"RestartPolicy":{"Condition":"on-failure"}}},
            {"ID":"t3","ServiceID":"s1","Slot":1,"Status":{"State":"pending","Err":"no suitable node"},
             "Spec":{"RestartPolicy":{"MaxAttempts":3},"ContainerSpec":{"StopGracePeriod":90000000000}}},
            {"ID":"t4","ServiceID":"s4","Slot":1,"DesiredState":"complete","Status":{"State":"running"}},
            {"ID":"t5","ServiceID":"s4","Slot":2,"DesiredState":"complete","Status":{"State":"complete"}}]"#,
    )
    .expect("read");
    assert_eq!(tasks.len(), 4, "what has come to its end is none any more");
    assert!(tasks[3].job && !tasks[2].job);
    assert_eq!(tasks[2].grace, Some(Duration::from_secs(90)));
    assert_eq!(tasks[0].grace, None);
    assert!(tasks[0].replicated && tasks[0].running && !tasks[1].replicated);
    assert_eq!(tasks[0].constraints, ["node.role==worker"]);
    assert_eq!(tasks[0].container, "c1");
    assert_eq!(
        tasks.iter().map(|task| task.replaced).collect::<Vec<_>>(),
        [true, false, false, true]
    );
    assert_eq!((tasks[2].node.as_str(), tasks[2].running), ("", false));
    assert_eq!(
        parse_tasks("{}").expect_err("no list").kind(),
        Kind::Invalid
    );
}
