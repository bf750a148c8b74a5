//! The points at which the binary under test aborts, as a kill would end it there.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Ended, Lab};

/// What `abort` ends a process with.
pub const ABORTED: i32 = 128 + 6;

/// Does `work` with each number from 1 to `last`, on several threads; all failures are told.
pub fn each(last: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(1);
    let failed = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(4, |count| count.get() * 2);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    if number > last {
                        return;
                    }
                    let done =
                        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(number)));
                    if let Err(panic) = done {
                        let text = panic
                            .downcast_ref::<String>()
                            .cloned()
                            .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
                        failed
                            .lock()
                            .expect("the list")
                            .push((number, text.unwrap_or_default()));
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().expect("the list");
    failed.sort();
    let texts: Vec<String> = failed
        .iter()
        .map(|(number, text)| format!("{number}: {text}"))
        .collect();
    assert!(
        texts.is_empty(),
        "{} failed\n{}",
        texts.len(),
        texts.join("\n\n")
    );
}

/// The names of the points that a command passes, in order.
pub fn points(lab: &Lab, words: &str) -> Vec<String> {
    let list = lab.folder().join("points");
    lab.forge(words).env("FORGE_POINTS", &list).ok();
    let points = fs::read_to_string(&list)
        .expect("the binary has its points: build it with the feature `lab`")
        .lines()
        .map(|line| line.split_once(' ').expect("a number").1.to_owned())
        .collect();
    fs::remove_file(list).expect("removed");
    points
}

/// The same points, each with which of its name it is: `2 before saving machine.json`. So it is found again
/// where several machines are worked on at the same time.
pub fn counted(names: &[String]) -> Vec<String> {
    names
        .iter()
        .enumerate()
        .map(|(index, name)| {
            let nth = names[..=index]
                .iter()
                .filter(|other| *other == name)
                .count();
            format!("{nth} {name}")
        })
        .collect()
}

/// The command, aborted at this point: its number, or its name with which of that name it is.
pub fn aborted(lab: &Lab, words: &str, at: impl ToString) -> Ended {
    lab.forge(words).env("FORGE_ABORT_AT", at.to_string()).run()
}
