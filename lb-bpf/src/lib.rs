//! Fairlead's datapath, seen from user space: what the services are ([`service`]), and with the feature
//! `loader` the `Datapath` that brings the kernel's maps there.
#[cfg(feature = "loader")]
mod object;
pub mod service;

pub use lb_bpf_common as abi;
#[cfg(feature = "loader")]
pub use object::OBJECT;
