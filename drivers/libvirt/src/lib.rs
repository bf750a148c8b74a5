//! The driver `libvirt`: domains of a libvirt daemon, here or on another host.
//!
//! libvirt is spoken to through `virsh`, so forge itself starts on a machine that has no libvirt. What a
//! machine needs is on disk before the daemon is asked; the domain's UUID is the claim, and its metadata
//! say so once more: a domain that does not is nobody's business here.
//!
//! A machine has one interface, on a network that forge makes: NAT or the host's routes lead out of it, and the
//! network's DHCP server gives each machine an address of its own, fixed by its hardware address. The host
//! reaches it there.
//!
//! It knows no records, no SSH, no playbooks and no terminal.

mod accel;
mod address;
mod apart;
mod base;
mod check;
mod doctor;
mod domain;
mod driver;
mod former;
mod lease;
mod look;
mod network;
mod options;
mod ssh;
mod storage;
mod uri;
mod virsh;
mod vm;
mod zones;

pub use doctor::{findings, ready};
pub use driver::LibvirtDriver;
pub use former::WITHOUT_EFFECT;
pub use network::Choice;
pub use options::{AccelChoice, Config, Options};
pub use uri::Uri;
