//! Fairlead's controller: what users declare, what this node should have, and the loop that brings it there.
//! Without the feature `runtime` this is the pure core.
pub mod api;
pub mod by_name;
pub mod declared;
pub mod desired;
pub mod fault;
mod fnv;
pub mod import;
pub mod mcs;
pub mod neighbours;
pub mod object;
pub mod observed;
mod shared;
pub mod status;
pub mod validate;

#[cfg(feature = "runtime")]
pub mod appliers;
#[cfg(feature = "runtime")]
pub mod capabilities;
#[cfg(feature = "runtime")]
pub mod cli;
#[cfg(feature = "runtime")]
pub mod client;
#[cfg(feature = "runtime")]
pub mod cluster;
#[cfg(feature = "runtime")]
pub mod demo;
#[cfg(feature = "runtime")]
pub mod flows;
#[cfg(feature = "runtime")]
pub mod health;
#[cfg(feature = "runtime")]
pub mod host;
#[cfg(feature = "runtime")]
pub mod reconcile;
#[cfg(feature = "runtime")]
pub mod serve;
#[cfg(feature = "runtime")]
pub mod standalone;
#[cfg(feature = "runtime")]
pub mod store;
#[cfg(feature = "runtime")]
pub mod succession;
#[cfg(feature = "runtime")]
pub mod telemetry;
#[cfg(feature = "runtime")]
mod trouble;
