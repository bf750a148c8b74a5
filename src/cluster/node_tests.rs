use super::*;

fn manager(id: &str, part: Manager) -> Node {
    Node {
        id: id.to_owned(),
        hostname: format!("host-{id}"),
        address: String::new(),
        health: if part == Manager::Unreachable {
            Health::Down
        } else {
            Health::Ready
        },
        availability: Availability::Active,
        wants_manager: true,
        manager: Some(part),
        zone: None,
    }
}

#[test]
fn membership_is_read() {
    let none = parse_membership(
        r#"{"ID":"X","Swarm":{"NodeID":"","NodeAddr":"","LocalNodeState":"inactive","ControlAvailable":false,"Error":"","RemoteManagers":null}}"#,
    )
    .expect("read");
    assert_eq!(none, Membership::default());
    assert!(!none.belongs());
    let leader = parse_membership(
        r#"{"Swarm":{"NodeID":"gab","NodeAddr":"10.133.7.101","LocalNodeState":"active","ControlAvailable":true,"Error":"","Cluster":{"ID":"t6a","Version":{"Index":10}}}}"#,
    )
    .expect("read");
    assert!(leader.belongs() && leader.manager);
    assert_eq!(leader.cluster_id.as_deref(), Some("t6a"));
    for text in [
        "",
        "{}",
        "null x",
        r#"{"Swarm":{"LocalNodeState":"dancing"}}"#,
    ] {
        assert_eq!(
            parse_membership(text).expect_err(text).kind(),
            Kind::Invalid
        );
    }
}

#[test]
fn a_refusal_is_told_in_the_engines_words() {
    let error =
        parse_nodes(r#"{"message":"This node is not a swarm manager."}"#).expect_err("refused");
    assert_eq!(error.kind(), Kind::Failed);
    assert_eq!(
        error.line(),
        "the engine does not tell the nodes of its swarm: This node is not a swarm manager."
    );
}

#[test]
fn a_first_join_under_way_is_no_membership_yet() {
    let parse = |swarm: &str| parse_membership(&format!(r#"{{"Swarm":{swarm}}}"#)).expect("read");
    assert!(!parse(r#"{"NodeID":"","LocalNodeState":"pending"}"#).belongs());
    assert!(parse(r#"{"NodeID":"abc","LocalNodeState":"pending"}"#).belongs());
    assert!(parse(r#"{"LocalNodeState":"locked"}"#).belongs());
}

#[test]
fn nodes_are_read_and_sorted() {
    let text = r#"[
{"ID":"b","Description":{"Hostname":"x-w1"},"Spec":{"Labels":{},"Role":"worker","Availability":"drain"},"Status":{"State":"down","Addr":"10.0.0.2"}},
{"ID":"a","Description":{"Hostname":"x-m1"},"Spec":{"Labels":{"zone":"z2"},"Role":"manager","Availability":"active"},"Status":{"State":"ready","Addr":"10.0.0.1"},"ManagerStatus":{"Leader":true,"Reachability":"reachable","Addr":"10.0.0.1:2377"}},
{"ID":"c","Description":{"Hostname":"x-m2"},"Spec":{"Role":"manager","Availability":"active"},"Status":{"State":"unknown"},"ManagerStatus":{"Reachability":"unreachable"}}
]"#;
    let nodes = parse_nodes(text).expect("read");
    let names: Vec<&str> = nodes.iter().map(|node| node.hostname.as_str()).collect();
    assert_eq!(names, ["x-m1", "x-m2", "x-w1"]);
    assert_eq!(nodes[0].manager, Some(Manager::Leader));
    assert_eq!(nodes[0].zone, Some(Zone(2)));
    assert!(nodes[0].healthy());
    assert_eq!(nodes[1].manager, Some(Manager::Unreachable));
    assert!(!nodes[1].healthy() && !nodes[2].healthy());
    assert_eq!(nodes[2].availability, Availability::Drain);
    assert_eq!(
        consensus(&nodes),
        Consensus {
            managers: 2,
            reachable: 1,
            needed: 2,
            leader: true
        }
    );
    assert_eq!(
        parse_nodes(r#"[{"ID":"a"}]"#).expect_err("no node").kind(),
        Kind::Invalid
    );
}

#[test]
fn a_manager_is_removed_only_with_a_quorum_before_and_after() {
    use Manager::{Leader, Reachable, Unreachable};
    let swarm = |parts: &[Manager]| -> Vec<Node> {
        parts
            .iter()
            .enumerate()
            .map(|(index, &part)| manager(&index.to_string(), part))
            .collect()
    };
    // The last number is the node that is taken out.
    for (parts, id, allowed) in [
        (&[Leader, Reachable, Reachable][..], "2", true),
        (&[Leader, Reachable, Unreachable], "2", true),
        (&[Leader, Reachable, Unreachable], "1", false),
        (&[Leader, Unreachable, Unreachable], "2", false),
        (&[Leader, Reachable], "1", true),
        (&[Leader, Unreachable], "1", false),
        (&[Leader], "0", false),
        (
            &[Leader, Reachable, Reachable, Unreachable, Unreachable],
            "2",
            false,
        ),
        (
            &[Leader, Reachable, Reachable, Unreachable, Unreachable],
            "4",
            true,
        ),
    ] {
        assert_eq!(
            may_remove(&swarm(parts), id).is_ok(),
            allowed,
            "{parts:?} without {id}"
        );
    }
    let error = may_remove(&swarm(&[Leader, Reachable, Unreachable]), "1").expect_err("refused");
    assert_eq!(error.kind(), Kind::Refused);
    assert_eq!(
        error.causes(),
        ["without it 1 of 2 managers are reachable, and the quorum needs 2"]
    );
    assert_eq!(
        may_remove(&[], "x").expect_err("unknown").kind(),
        Kind::NotFound
    );
    let mut worker = manager("w", Reachable);
    worker.manager = None;
    assert!(may_remove(&[worker], "w").is_ok());
}
