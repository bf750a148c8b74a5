//! Several things at once: how they end, and how several failures become one error.

use std::sync::Arc;

use forge_driver::{Error, Kind, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};

/// Room for so many tasks at once; the others wait for their turn.
#[derive(Clone, Debug)]
pub struct Room(Arc<Semaphore>);

impl Room {
    /// For this many.
    pub fn of(count: usize) -> Self {
        Self(Arc::new(Semaphore::new(count)))
    }

    /// A task's turn, until it is dropped. Never closed: without one the work would only start sooner.
    pub async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        self.0.clone().acquire_owned().await.ok()
    }
}

/// The error of a task that panicked or was dropped.
pub fn broke_off(error: JoinError) -> Error {
    Error::new(Kind::Failed, "a task of forge broke off").because(error)
}

/// What all tasks came to, sorted by name.
///
/// # Errors
/// When one of them broke off; the others are dropped then.
pub async fn all<T: 'static>(mut tasks: JoinSet<(String, T)>) -> Result<Vec<(String, T)>> {
    let mut done = Vec::with_capacity(tasks.len());
    while let Some(joined) = tasks.join_next().await {
        done.push(joined.map_err(broke_off)?);
    }
    done.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(done)
}

/// One error ends a command: the first failure, which tells of the others. `None` when nothing failed.
pub fn first_of(failures: impl IntoIterator<Item = Error>) -> Option<Error> {
    failures.into_iter().reduce(|first, next| {
        let line = next.line();
        first.context(format!("several machines failed; another: {line}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_error_tells_of_all() {
        assert!(first_of([]).is_none());
        let failed = |what: &str| Error::new(Kind::Timeout, what.to_owned());
        let one = first_of([failed("a")]).expect("one");
        assert_eq!((one.kind(), one.message()), (Kind::Timeout, "a"));
        let two = first_of([failed("a"), failed("b")]).expect("two");
        assert_eq!(two.message(), "several machines failed; another: b");
        assert_eq!(two.causes(), ["a"]);
    }

    #[tokio::test]
    async fn what_tasks_came_to_is_sorted() {
        let mut tasks = JoinSet::new();
        for name in ["n2", "n1"] {
            tasks.spawn(async move { (name.to_owned(), ()) });
        }
        let done = all(tasks).await.expect("all ended");
        assert_eq!(done, [("n1".to_owned(), ()), ("n2".to_owned(), ())]);
    }
}
