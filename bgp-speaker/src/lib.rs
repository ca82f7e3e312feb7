//! A small, correct BGP speaker. Without the feature `net` this is the pure core: time, randomness and bytes
//! come in, bytes and facts go out.
pub mod bfd;
mod bmp;
pub mod config;
mod connection;
mod decision;
pub mod fib;
pub mod fsm;
pub mod ndp;
mod negotiate;
#[cfg(feature = "net")]
mod net;
mod peer;
mod peer_id;
mod policy;
pub mod random;
mod rib;
mod seen;
mod sent;
pub mod speaker;
mod status;
mod transport;
mod update_queue;
mod validate;
pub mod wire;

pub use connection::{ConnectionId, Endpoints};
#[cfg(feature = "net")]
pub use net::{HandOver, Handle, RoutePages, Succession, spawn, spawn_restarted, spawn_successor};
pub use peer_id::{InterfaceName, InterfaceNameError, PeerId};
pub use transport::{Md5Key, Md5KeyError, Transport};

/// Time since a moment of the driver's choice; it never goes back.
pub type Time = std::time::Duration;
