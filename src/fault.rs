//! Named points at which a test build can abort the process, as `kill -9` would.
//!
//! A release build has none: [`point`] is empty without the feature `lab`.

/// Passes the point `name`. In a build with the feature `lab` the process aborts here when
/// `FORGE_ABORT_AT` is the ordinal number of this point, or its name and which of that name it is
/// (`2 before saving machine.json`); and every point passed is appended to the file that
/// `FORGE_POINTS` names.
///
/// Where several machines are worked on at the same time, what passes at a number differs from run to
/// run, and only the name tells.
#[cfg(feature = "lab")]
pub fn point(name: &str) {
    use std::io::Write;
    use std::sync::{Mutex, PoisonError};

    static PASSED: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let (number, nth) = {
        let mut passed = PASSED.lock().unwrap_or_else(PoisonError::into_inner);
        passed.push(name.to_owned());
        let nth = passed.iter().filter(|other| *other == name).count();
        (passed.len(), nth)
    };
    if let Some(path) = std::env::var_os("FORGE_POINTS")
        && let Ok(mut file) = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
    {
        // In one piece: several tasks write. The list is the test's own evidence; without it the test fails,
        // so nothing is lost here.
        let _ = file.write_all(format!("{number} {name}\n").as_bytes());
    }
    if std::env::var("FORGE_ABORT_AT")
        .is_ok_and(|at| at == number.to_string() || at == format!("{nth} {name}"))
    {
        std::process::abort();
    }
}

/// Passes the point `name`: nothing happens in this build.
#[cfg(not(feature = "lab"))]
pub fn point(_name: &str) {}
