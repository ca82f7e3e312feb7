//! The datapath of one host: brings the kernel's maps to what is desired.
use crate::{
    maps::{MapError, Sizes},
    service::{Desired, Frontend, ServiceKey},
    status::{Counters, Installed, SweepReport},
};
use std::{io, path::PathBuf};

/// Where the datapath lives and where it is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Directory in a BPF file system that is this datapath's own; the version of the layout is appended. For
    /// example `/sys/fs/bpf/fairlead/NODE`. Dots in it become underscores: the kernel allows none.
    pub pin_dir: PathBuf,
    /// Names of the interfaces whose packets are balanced.
    pub interfaces: Vec<String>,
    /// Sizes of the maps when they are made.
    pub sizes: Sizes,
}

/// The kernel's datapath. It stays pinned and goes on forwarding when this value is dropped or its process ends.
#[derive(Debug)]
pub struct Datapath {
    options: Options,
}

impl Datapath {
    /// Loads the program, adopts the maps that are pinned or makes them, and attaches to the interfaces; on those
    /// that have the program of a process before, it is replaced atomically.
    pub async fn open(options: Options) -> Result<Self, DatapathError> {
        Ok(Datapath { options })
    }

    /// What the maps hold, right after [`Datapath::open`] too: what the process before left.
    pub fn installed(&self) -> Installed {
        Installed::default()
    }

    /// Adds and changes what `desired` asks for. It never takes a frontend away: see [`Datapath::prune`].
    /// On an error that the desired set causes, nothing has changed.
    pub async fn install(&mut self, desired: &Desired) -> Result<Installed, DatapathError> {
        Err(DatapathError::NotThere { path: self.options.pin_dir.clone(), services: desired.services.len() })
    }

    /// Removes what the last [`Datapath::install`] did not name.
    pub async fn prune(&mut self) -> Result<(), DatapathError> {
        Ok(())
    }

    /// Returns when a route, neighbour or link that matters has changed: time to call [`Datapath::install`]
    /// again. May be cancelled and called again.
    pub async fn changed(&mut self) {
        std::future::pending().await
    }

    /// Ages flows, ends learning windows and drains, gives back what is no longer used. To be called every few
    /// seconds; the work of one call is bounded.
    pub fn sweep(&mut self) -> Result<SweepReport, DatapathError> {
        Ok(SweepReport::default())
    }

    /// Packets by service and backend, and by verdict.
    pub fn counters(&self) -> Result<Counters, DatapathError> {
        Ok(Counters::default())
    }

    /// All maps as sorted text, one entry a line.
    pub fn dump(&self) -> Result<String, DatapathError> {
        Ok(String::new())
    }

    /// Detaches from all interfaces and removes everything that is pinned. Forwarding ends.
    pub async fn detach(self) -> Result<(), DatapathError> {
        Ok(())
    }
}

/// Why the datapath could not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatapathError {
    /// Until the datapath lands.
    #[error("{}: no datapath yet for {services} services", path.display())]
    NotThere {
        /// The pin directory.
        path: PathBuf,
        /// How many were asked for.
        services: usize,
    },
    /// Only root (or CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN) may.
    #[error("the datapath needs root (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN): {0}")]
    NotPermitted(io::Error),
    /// There is no such interface.
    #[error("interface {0}: does not exist")]
    NoInterface(String),
    /// Another XDP program has the interface.
    #[error("interface {0}: another XDP program is attached; detach it first (ip link set dev {0} xdp off)")]
    InterfaceBusy(String),
    /// Two services want the same frontend.
    #[error("frontend {}:{} is claimed by {first} and {second}", frontend.address, frontend.port)]
    FrontendTwice {
        /// The frontend.
        frontend: Frontend,
        /// The first service.
        first: ServiceKey,
        /// The second service.
        second: ServiceKey,
    },
    /// A map is too small.
    #[error("map {map} is full: {needed} entries are needed, {available} are free")]
    Full {
        /// Name of the map.
        map: &'static str,
        /// Entries that are needed.
        needed: u64,
        /// Entries that are free.
        available: u64,
    },
    /// The kernel refused an operation on a map.
    #[error(transparent)]
    Map(#[from] MapError),
}
