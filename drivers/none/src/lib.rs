//! The driver `none`: engines that are there already, known by their URL and nothing else.
//!
//! Nobody logs in there and nothing is changed: what trusts whom is its owner's business. forge answers where the engine
//! is, and asks it over TLS with the files in the machine's folder.

mod driver;
mod options;

pub use driver::NoneDriver;
pub use options::{Config, Options};
