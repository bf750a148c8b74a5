//! The driver `virtualbox`: machines of VirtualBox 6.1 and later, by `VBoxManage`.
//!
//! What a machine needs is on disk before VirtualBox is asked. Its UUID is the claim, and its settings lie in the
//! machine's own folder: one of that UUID whose settings lie elsewhere is nobody's business here.
//!
//! A machine has two interfaces. The first leads out through NAT; its address there is the same for all machines
//! and is told to nobody. The second is on an internal network, where VirtualBox's DHCP server gives each machine
//! an address of its own and the host reaches machines through forwarded ports, or on a host-only network, where
//! the host reaches them directly.
//!
//! Machines that another program made can be handed over (`Adopted`): they keep all that they have.
//!
//! It knows no records, no SSH, no playbooks and no terminal.

mod adopted;
mod disk;
mod doctor;
mod driver;
mod former;
mod hostonly;
mod info;
mod lan;
mod machine;
mod manage;
mod network;
mod options;
mod server;
mod vm;

pub use adopted::{Adopted, Seen};
pub use doctor::{findings, ready};
pub use driver::VirtualBoxDriver;
pub use former::Former;
pub use lan::Lan;
pub use options::{Config, Firmware, NicType, Options, Promiscuous, UiType, as_docker_machine};
