//! The user's wish to stop: the first Ctrl-C lets the step under way end and be saved, the second one
//! leaves at once.
//!
//! A signal is addressed to the whole process, so the wish is one flag for the whole process.

use std::sync::atomic::{AtomicBool, Ordering};

use forge_driver::{Error, Kind, Result};

static WISHED: AtomicBool = AtomicBool::new(false);

static PASSED_ON: AtomicBool = AtomicBool::new(false);

/// From now on signals are for what runs on a machine, and say nothing of this program.
pub fn pass_on() {
    PASSED_ON.store(true, Ordering::SeqCst);
}

/// Whether [`pass_on`] was called.
pub fn passed_on() -> bool {
    PASSED_ON.load(Ordering::SeqCst)
}

/// Notes the wish. Whether it was noted before.
pub fn request() -> bool {
    WISHED.swap(true, Ordering::SeqCst)
}

/// Between two steps, and inside every wait: ends the work when the user wished so.
///
/// # Errors
/// [`Kind::Interrupted`] after [`request`].
pub fn check() -> Result<()> {
    if WISHED.load(Ordering::SeqCst) {
        return Err(Error::new(
            Kind::Interrupted,
            "interrupted; everything done so far is saved",
        )
        .hint("run the same command again: it goes on where it stopped"));
    }
    Ok(())
}
