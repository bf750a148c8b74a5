//! The machines that a command line names.

use std::collections::BTreeSet;

use forge::machine::{Record, record};
use forge::store::Store;
use forge_driver::{Error, Fact, Kind, Result};

use super::DEFAULT_MACHINE;
use super::outcome::conclude;

/// The names given, or the machine `default`.
pub fn or_default(names: Vec<String>) -> Vec<String> {
    if names.is_empty() {
        vec![DEFAULT_MACHINE.to_owned()]
    } else {
        names
    }
}

/// Each name once, in the order given.
pub fn distinct(names: Vec<String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    names
        .into_iter()
        .filter(|name| seen.insert(name.clone()))
        .collect()
}

/// Refuses names that cannot be machines', and names given twice.
///
/// # Errors
/// [`Kind::Usage`]
pub fn check_names(names: &[String]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for name in names {
        record::check_name(name).map_err(|error| error.fact(Fact::BadName))?;
        if !seen.insert(name.to_lowercase()) {
            return Err(Error::new(
                Kind::Usage,
                format!("the name `{name}` is given twice"),
            ));
        }
    }
    Ok(())
}

/// The records of these machines, in this order; each that is not there is told.
///
/// # Errors
/// When one is not there, or cannot be read.
pub fn records(store: &Store, names: &[String]) -> Result<Vec<Record>> {
    let mut found = Vec::with_capacity(names.len());
    let mut missing = Vec::new();
    for name in names {
        match Record::load(store, name) {
            Ok(record) => found.push(record),
            Err(error) => missing.push((name.clone(), Err(error))),
        }
    }
    conclude::<()>(missing)?;
    Ok(found)
}
