//! Fresh stores in which many processes create machines at once.

use super::certificates::{amiss, answering};
use super::{Lab, Running};

/// So many processes at once on one store.
const PROCESSES: usize = 8;

/// Makes so many stores, one after another. What is inconsistent in any of them.
pub fn inconsistent(stores: usize) -> Vec<String> {
    let mut found = Vec::new();
    for number in 1..=stores {
        let lab = Lab::new();
        let names: Vec<String> = (1..=PROCESSES).map(|index| format!("p{index}")).collect();
        let running: Vec<Running> = names
            .iter()
            .map(|name| lab.forge(&format!("create {name}")).start())
            .collect();
        for running in running {
            running.wait(&lab).code(0);
        }
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        found.extend(
            amiss(&lab, &all)
                .into_iter()
                .map(|what| format!("store {number}: {what}")),
        );
        let answering = answering(&lab);
        if answering != names {
            found.push(format!("store {number}: only {answering:?} answer"));
        }
    }
    found
}
