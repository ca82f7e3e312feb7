//! Fairlead's datapath, seen from user space: what the services are ([`service`]), how a change of them becomes
//! changes of the kernel's maps, and with the feature `loader` the [`Datapath`] that makes them.
#[cfg(feature = "loader")]
mod attach;
#[cfg(feature = "loader")]
mod bpffs;
#[cfg(feature = "loader")]
pub mod datapath;
#[cfg(feature = "loader")]
mod error;
#[cfg(feature = "loader")]
pub mod events;
pub mod filter;
pub mod ids;
#[cfg(feature = "loader")]
mod interfaces;
#[cfg(feature = "loader")]
mod loader;
#[cfg(feature = "loader")]
mod lock;
#[cfg(feature = "loader")]
mod loopback;
pub mod maglev;
pub mod maps;
#[cfg(feature = "loader")]
mod migrate;
#[cfg(feature = "loader")]
mod netdev;
#[cfg(feature = "loader")]
mod next_hop;
#[cfg(feature = "loader")]
mod object;
#[cfg(feature = "loader")]
mod port_watch;
pub mod ports;
pub mod service;
pub mod state;
pub mod status;
pub mod trace;
pub mod tunnel_source;

#[cfg(feature = "loader")]
pub use datapath::{Datapath, Observer, Options};
#[cfg(feature = "loader")]
pub use error::DatapathError;
#[cfg(feature = "loader")]
pub use events::Events;
pub use lb_bpf_common as abi;
pub use maps::Sizes;
#[cfg(feature = "loader")]
pub use object::OBJECT;
pub use status::{
    Counter, Counters, DirtySlots, FlowEvent, Installed, InstalledService, InterfaceStatus, SweepReport,
    XdpMode,
};
pub use tunnel_source::TunnelSources;
