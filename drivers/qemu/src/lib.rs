//! The driver `qemu`: virtual machines run by QEMU itself, without a daemon and without root.
//!
//! Everything about one machine lies in one folder of the driver's directory: disk, seed, console and
//! `vm.json`, which alone says how to start it again. The process is controlled through QMP, is found
//! by the claim that is its UUID, and holds a lock for as long as it lives.
//!
//! A machine has two interfaces: one leads out through QEMU's user-mode network, with ports forwarded
//! from the host; the other leads to a network between the machines, whose switch is a small process
//! of forge's own ([`run_switch`]).
//!
//! It knows no records, no SSH, no playbooks and no terminal.

mod accel;
mod arguments;
mod disk;
mod doctor;
mod driver;
mod folder;
mod host;
mod launch;
mod network;
mod options;
mod ports;
mod power;
mod precheck;
mod qmp;
mod sockets;
mod switch;
mod vm;

pub use accel::{Accel, accelerator};
pub use doctor::findings;
pub use driver::QemuDriver;
pub use options::{AccelChoice, Config, DiskCache, Options};
pub use precheck::ready;
pub use switch::run_switch;
