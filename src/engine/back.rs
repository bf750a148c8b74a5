//! The way back: what an engine's configuration would be without forge, on a host that is not forge's.
//!
//! Two texts are noted on such a host: what others have written, and what forge wrote last. What differs from the latter
//! was changed since then, by others, and stays.

use forge_driver::Result;
use serde_json::{Map, Value};

use super::found::Found;
use super::settings::text;

/// The key, and the flag, that keeps containers while an engine restarts.
pub(super) const LIVE_RESTORE: &str = "live-restore";

/// What `daemon.json` is to be when forge leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// As it is: forge never wrote it, or somebody has removed it since.
    Stays,
    /// The copy of what was there; none where there is no copy.
    Copy,
    /// This: others have changed it since forge wrote it.
    Text(String),
}

/// The texts of `daemon.json` on the way back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Back {
    /// What it is, with containers that outlive the engine.
    pub before: String,
    /// What it is to be, with containers that outlive the engine.
    pub during: String,
    /// What it is to be, with containers that end with the engine.
    pub after: String,
    /// What it is to be has containers outlive the engine anyway.
    pub live_restore: bool,
    /// What it is to be.
    pub end: End,
}

/// The way back from what is found.
///
/// # Errors
/// When a configuration there cannot be read.
pub fn of(found: &Found) -> Result<Back> {
    let (is, was) = (found.configuration()?, without_forge(found)?);
    let in_file = was.get(LIVE_RESTORE) == Some(&Value::Bool(true));
    let end = match (&found.daemon, &found.written) {
        (None, _) | (_, None) => End::Stays,
        _ if was == found.theirs()? => End::Copy,
        _ => End::Text(text(&was)),
    };
    Ok(Back {
        before: with_live_restore(found, &is, true),
        during: with_live_restore(found, &was, true),
        after: with_live_restore(found, &was, false),
        live_restore: flag(found).unwrap_or(in_file),
        end,
    })
}

/// What a flag says of whether containers outlive the engine; `None` where none does.
pub(super) fn flag(found: &Found) -> Option<bool> {
    let flag = found.flags.iter().find(|flag| flag.name == LIVE_RESTORE)?;
    Some(flag.value == "true")
}

/// The text of a configuration which says whether containers outlive the engine. Where a flag says it the file does not:
/// the engine starts with one of them alone.
pub(super) fn with_live_restore(found: &Found, file: &Map<String, Value>, whether: bool) -> String {
    let mut file = file.clone();
    if flag(found).is_none() {
        file.insert(LIVE_RESTORE.to_owned(), whether.into());
    }
    text(&file)
}

/// The configuration without what forge wrote into it.
///
/// # Errors
/// When a configuration there cannot be read.
pub fn without_forge(found: &Found) -> Result<Map<String, Value>> {
    let is = found.configuration()?;
    let written = found.written()?;
    if written.is_empty() {
        return Ok(is);
    }
    let written: Vec<&Map<String, Value>> = written.iter().collect();
    Ok(without(&found.theirs()?, &written, &is))
}

/// `is` without what any of `written` has more than `theirs`: a value that is still a written one is theirs again, of lists
/// and maps each entry for itself. Done twice it comes to the same.
fn without(
    theirs: &Map<String, Value>,
    written: &[&Map<String, Value>],
    is: &Map<String, Value>,
) -> Map<String, Value> {
    let mut all = is.clone();
    let keys = written.iter().flat_map(|written| written.keys());
    for key in keys.chain(theirs.keys()) {
        let (their, now) = (theirs.get(key), is.get(key));
        let wrote: Vec<Option<&Value>> = written.iter().map(|written| written.get(key)).collect();
        let lists: Vec<_> = wrote
            .iter()
            .filter_map(|wrote| wrote.and_then(Value::as_array))
            .collect();
        let maps: Vec<_> = wrote
            .iter()
            .filter_map(|wrote| wrote.and_then(Value::as_object))
            .collect();
        let left = match now {
            now if wrote.contains(&now) => their.cloned(),
            Some(Value::Array(now)) if !lists.is_empty() => {
                let their = their.and_then(Value::as_array);
                let ours = |entry: &&Value| {
                    lists.iter().any(|list| list.contains(entry))
                        && !their.is_some_and(|their| their.contains(entry))
                };
                let left: Vec<Value> = now.iter().filter(|entry| !ours(entry)).cloned().collect();
                (!left.is_empty() || their.is_some()).then_some(Value::Array(left))
            }
            Some(Value::Object(now)) if !maps.is_empty() => {
                let their = their.and_then(Value::as_object);
                let left = without(&their.cloned().unwrap_or_default(), &maps, now);
                (!left.is_empty() || their.is_some()).then_some(Value::Object(left))
            }
            now => now.cloned(),
        };
        match left {
            Some(value) => all.insert(key.clone(), value),
            None => all.remove(key),
        };
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn left(theirs: &Value, written: &Value, is: &Value) -> Value {
        let map = |value: &Value| value.as_object().expect("an object").clone();
        let (theirs, written, is) = (map(theirs), map(written), map(is));
        let once = without(&theirs, &[&written], &is);
        assert_eq!(without(&once, &[&written], &is), once, "once is enough");
        Value::Object(once)
    }

    #[test]
    fn what_others_changed_since_stays_and_what_is_forges_goes() {
        for (theirs, written, is, expected) in [
            // As it was left.
            (
                json!({}),
                json!({"labels": ["a"]}),
                json!({"labels": ["a"]}),
                json!({}),
            ),
            (
                json!({"mtu": 1}),
                json!({"mtu": 2}),
                json!({"mtu": 2}),
                json!({"mtu": 1}),
            ),
            // Keys, entries of lists and entries of maps that came later.
            (
                json!({}),
                json!({"labels": ["a"]}),
                json!({"labels": ["a"], "data-root": "/srv/docker"}),
                json!({"data-root": "/srv/docker"}),
            ),
            (
                json!({"labels": ["x"]}),
                json!({"labels": ["x", "a"]}),
                json!({"labels": ["x", "a", "y"]}),
                json!({"labels": ["x", "y"]}),
            ),
            (
                json!({}),
                json!({"log-opts": {"max-size": "1m"}}),
                json!({"log-opts": {"max-size": "1m", "max-file": "2"}}),
                json!({"log-opts": {"max-file": "2"}}),
            ),
            // What others took away or changed.
            (
                json!({"mtu": 1}),
                json!({"mtu": 1, "debug": true}),
                json!({"debug": true}),
                json!({}),
            ),
            (
                json!({"mtu": 1}),
                json!({"mtu": 2}),
                json!({"mtu": 3}),
                json!({"mtu": 3}),
            ),
            (json!({}), json!({"labels": ["a"]}), json!({}), json!({})),
            // What forge took away and nobody touched comes back.
            (
                json!({"log-opts": {"a": "b"}}),
                json!({}),
                json!({}),
                json!({"log-opts": {"a": "b"}}),
            ),
        ] {
            assert_eq!(
                left(&theirs, &written, &is),
                expected,
                "{theirs} {written} {is}"
            );
        }
    }

    #[test]
    fn what_forge_wrote_before_is_forges_too_where_a_run_was_cut_off() {
        let map = |value: Value| value.as_object().expect("an object").clone();
        let last = map(json!({"debug": true, "mtu": 2, "labels": ["b"], "log-opts": {"a": "2"}}));
        let formerly = map(json!({"mtu": 1, "labels": ["a"], "log-opts": {"a": "1"}}));
        let is = map(json!({"mtu": 1, "labels": ["a", "x"], "log-opts": {"a": "1", "b": "1"}}));
        let theirs = map(json!({"mtu": 0}));
        let left = without(&theirs, &[&last, &formerly], &is);
        assert_eq!(
            Value::Object(left),
            json!({"mtu": 0, "labels": ["x"], "log-opts": {"b": "1"}})
        );
    }

    fn found(text: &str) -> Found {
        Found::read(&format!("init systemd\n{text}")).expect("found")
    }

    #[test]
    fn the_way_back_leads_to_what_others_wrote() {
        let theirs = "/var/lib/forge/before/etc_docker_daemon.json:{\"debug\": true}\n";
        let written = "/var/lib/forge/before/written.json:{\"debug\": true, \"labels\": [\"a\"]}\n";
        let is = "/etc/docker/daemon.json:{\"debug\": true, \"labels\": [\"a\"]}\n";
        let back = of(&found(&format!("{theirs}{written}{is}"))).expect("a way");
        assert_eq!(back.end, End::Copy);
        let json = |text: &str| -> Value { serde_json::from_str(text).expect("JSON") };
        assert_eq!(
            json(&back.before),
            json!({"debug": true, "labels": ["a"], "live-restore": true})
        );
        assert_eq!(
            json(&back.during),
            json!({"debug": true, "live-restore": true})
        );
        assert_eq!(
            json(&back.after),
            json!({"debug": true, "live-restore": false})
        );
        assert!(!back.live_restore);
        let end = |text: &str| of(&found(text)).expect("a way").end;
        // Never written by forge; written by nobody; removed by others; changed by others.
        assert_eq!(
            end("/etc/docker/daemon.json:{\"data-root\": \"/srv\"}\n"),
            End::Stays
        );
        assert_eq!(end(""), End::Stays);
        assert_eq!(end(&format!("{theirs}{written}")), End::Stays);
        let is = "/etc/docker/daemon.json:{\"labels\": [\"a\"], \"data-root\": \"/srv\"}\n";
        let End::Text(text) = end(&format!("{theirs}{written}{is}")) else {
            panic!("a text");
        };
        assert_eq!(json(&text), json!({"data-root": "/srv"}));
    }
}
