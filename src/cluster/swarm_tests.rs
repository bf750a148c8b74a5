use super::super::node::Availability;
use super::*;

fn listed(id: &str, health: Health, manager: Option<Manager>) -> Node {
    Node {
        id: id.to_owned(),
        hostname: id.to_owned(),
        address: String::new(),
        health,
        availability: Availability::Active,
        wants_manager: manager.is_some(),
        manager,
        zone: None,
    }
}

fn expected(id: &str, role: Role) -> Expected<'_> {
    Expected {
        machine: id,
        node_id: id,
        role,
    }
}

#[test]
fn the_list_of_nodes_decides_what_is_missing() {
    let (m1, w1) = (expected("m1", Role::Manager), expected("w1", Role::Worker));
    let leader = listed("m1", Health::Ready, Some(Manager::Leader));
    let worker = listed("w1", Health::Ready, None);
    assert_eq!(missing(&[leader.clone(), worker.clone()], &[m1, w1]), None);
    assert_eq!(
        missing(std::slice::from_ref(&leader), &[m1, w1]).as_deref(),
        Some("`w1` is not listed")
    );
    let down = listed("w1", Health::Down, None);
    assert_eq!(
        missing(&[leader.clone(), down], &[m1, w1]).as_deref(),
        Some("`w1` is down")
    );
    let demoted = listed("m1", Health::Ready, None);
    assert_eq!(
        missing(&[demoted], &[m1]).as_deref(),
        Some("`m1` is no manager yet")
    );
    let apart = listed("m1", Health::Ready, Some(Manager::Unreachable));
    assert_eq!(
        missing(&[apart], &[m1]).as_deref(),
        Some("manager `m1` is unreachable")
    );
    let headless = listed("m1", Health::Ready, Some(Manager::Reachable));
    assert_eq!(
        missing(&[headless], &[m1]).as_deref(),
        Some("no manager leads")
    );
    let gone = listed("m9", Health::Down, Some(Manager::Unreachable));
    assert_eq!(
        missing(&[leader, worker, gone], &[m1, w1]).as_deref(),
        Some("1 of 2 managers are reachable, 2 are needed")
    );
}

#[test]
fn every_playbook_compiles_with_the_variables_it_is_given() {
    let assets = Assets::default();
    let vars = |pairs: &[(&str, Value)]| {
        pairs
            .iter()
            .fold(Vars::new(), |vars, (name, value)| vars.with(name, value))
    };
    let one = serde_json::json!(["abc"]);
    for (name, vars) in [
        (
            "init",
            vars(&[
                ("address", "10.0.0.1".into()),
                ("data_address", "10.0.0.1".into()),
                ("pool", "10.208.0.0/12".into()),
            ]),
        ),
        (
            "join",
            vars(&[
                ("address", "10.0.0.1".into()),
                ("data_address", "10.0.0.1".into()),
                ("managers", one.clone()),
            ]),
        ),
        (
            "availability",
            vars(&[("nodes", one), ("availability", "drain".into())]),
        ),
        (
            "role",
            vars(&[("node", "abc".into()), ("role", "worker".into())]),
        ),
        ("leave", Vars::new()),
        (
            "remove",
            vars(&[("node", "abc".into()), ("force", true.into())]),
        ),
        ("ingress", vars(&[("subnet", "10.208.0.0/24".into())])),
    ] {
        let book = playbook::load(&assets, &format!("swarm/{name}")).expect(name);
        let secrets = Secrets::new().with("token", "SWMTKN-1-x");
        playbook::compile(&[(&book, &vars)], &secrets, false).expect(name);
    }
}
