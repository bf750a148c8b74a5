//! Several machines as one swarm: wished, planned, formed, and checked by asking it.

mod api;
pub mod down;
mod forming;
pub mod look;
pub mod node;
pub mod peers;
pub mod plan;
pub mod pool;
pub mod probe;
pub mod record;
pub mod renew;
pub mod responder;
pub mod spec;
pub mod status;
pub mod swarm;
pub mod up;
pub mod zones;
