//! Values that must not be seen.

pub use forge_driver::Secret;
