//! What the reconcile loop acts on, as traits: each takes whole sets and compares them with what its target holds.
//! The real ones are here; tests bring fakes that fail on request.
use crate::{
    health::Checks,
    host,
    observed::{Check, FilterCounters, Health, NodeInfo, Targets},
};
use bgp_speaker::PeerId;
use bgp_speaker::config::{BmpStation, ConfigError, Global, PeerConfig, PeerRange, Route};
use lb_bpf::{
    DirtySlots, FlowEvent, Installed,
    service::{Desired, Endpoint, ServiceKey},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    future::Future,
    num::NonZeroU32,
    sync::Arc,
};
use tokio::sync::watch;

/// The packet path of this node.
pub trait Datapath: Send {
    /// Why it did not work.
    type Error: Error + Send;
    /// What reads the events of packets.
    type Events: Events;

    /// What it holds: after a restart, what the process before left.
    fn installed(&self) -> Arc<Installed>;
    /// Adds and changes; takes no frontend away. Returns what of `desired` it holds, and nothing that pruning takes away.
    fn install(
        &mut self,
        desired: &Desired,
    ) -> impl Future<Output = Result<Arc<Installed>, Self::Error>> + Send;
    /// Takes away what the last `install` did not name.
    fn prune(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send;
    /// Returns when `install` may have something to do although nothing else is desired. Can be cancelled.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
    /// Bounded housekeeping, every few seconds.
    fn sweep(&mut self) -> Result<(), Self::Error>;
    /// What its packet filters counted.
    fn filter_counters(&self) -> Result<FilterCounters, Self::Error>;
    /// Of the services that have any, the slots that are dirty now.
    fn dirty_slots(&self) -> Result<BTreeMap<ServiceKey, DirtySlots>, Self::Error>;
    /// A reader of the events of packets, beside it; one at a time.
    fn events(&self) -> Result<Self::Events, Self::Error>;
    /// Reports one packet in so many, and all that are dropped or begin a flow; none: reports nothing.
    fn set_sampling(&mut self, one_in: Option<NonZeroU32>) -> Result<(), Self::Error>;
}

/// Reads what became of packets.
pub trait Events: Send {
    /// Why it did not work.
    type Error: Error + Send;

    /// The next events, at least one. Can be cancelled.
    fn next(&mut self) -> impl Future<Output = Result<Vec<FlowEvent>, Self::Error>> + Send;
}

/// The BGP speaker of this node.
pub trait Speaker: Send {
    /// Why it did not work.
    type Error: Error + Send;

    /// Who it is.
    fn set_global(&self, global: Global) -> impl Future<Output = Result<(), Self::Error>> + Send;
    /// Whom it talks to: the whole set.
    fn set_peers(&self, peers: Vec<PeerConfig>) -> impl Future<Output = Result<(), Self::Error>> + Send;
    /// Who may come by himself: the whole set.
    fn set_ranges(&self, ranges: Vec<PeerRange>) -> impl Future<Output = Result<(), Self::Error>> + Send;
    /// Who is told what they tell: the whole set.
    fn set_stations(&self, stations: Vec<BmpStation>)
    -> impl Future<Output = Result<(), Self::Error>> + Send;
    /// What it announces: the whole set.
    fn set_routes(&self, routes: Vec<Route>) -> impl Future<Output = Result<(), Self::Error>> + Send;
    /// The last set of routes is all that there is to announce: what peers keep of the process before may go.
    fn routes_complete(&self) -> impl Future<Output = ()> + Send;
    /// Returns when the peers have been told of the last set of routes, as far as that can be known.
    fn flushed(&self) -> impl Future<Output = ()> + Send;
    /// Peers whose session is established.
    fn established(&self) -> impl Future<Output = BTreeSet<PeerId>> + Send;
    /// Changes with every change of a session's state.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// The health checks of this node.
pub trait Checker: Send {
    /// What is checked: the whole set. Checks that are in it already go on undisturbed.
    fn set_targets(&mut self, targets: &Targets);
    /// The next changes of health, at least one. Can be cancelled.
    fn results(&mut self) -> impl Future<Output = Vec<CheckResult>> + Send;
}

/// A change of health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckResult {
    /// How the endpoint was checked.
    pub check: Check,
    /// The endpoint.
    pub endpoint: Endpoint,
    /// What it is now.
    pub health: Health,
}

/// The machine and its clock.
pub trait Host: Send {
    /// The node as it is now.
    fn node(&mut self) -> NodeInfo;
    /// Seconds since the epoch.
    fn now(&self) -> u64;
}

/// This machine.
#[derive(Debug)]
pub struct ThisHost {
    node: NodeInfo,
}

impl ThisHost {
    /// This machine under the name of a node.
    pub fn new(node_name: impl Into<String>) -> Self {
        ThisHost { node: NodeInfo { name: node_name.into(), addresses: BTreeSet::new(), gateway: None } }
    }
}

impl Host for ThisHost {
    fn node(&mut self) -> NodeInfo {
        match host::addresses() {
            Ok(addresses) => self.node.addresses = addresses,
            // The addresses of before are more likely than none.
            Err(error) => tracing::warn!(%error, "reading the addresses of the node"),
        }
        match host::default_gateway() {
            // While there is none, sessions to the one before end by themselves if they must.
            Ok(gateway) => self.node.gateway = gateway.or(self.node.gateway),
            Err(error) => tracing::warn!(%error, "reading the default route of the node"),
        }
        self.node.clone()
    }

    fn now(&self) -> u64 {
        host::now()
    }
}

impl Datapath for lb_bpf::Datapath {
    type Error = lb_bpf::DatapathError;
    type Events = lb_bpf::Events;

    fn installed(&self) -> Arc<Installed> {
        lb_bpf::Datapath::installed(self)
    }

    async fn install(&mut self, desired: &Desired) -> Result<Arc<Installed>, Self::Error> {
        lb_bpf::Datapath::install(self, desired).await
    }

    async fn prune(&mut self) -> Result<(), Self::Error> {
        lb_bpf::Datapath::prune(self).await
    }

    async fn changed(&mut self) {
        lb_bpf::Datapath::changed(self).await;
    }

    fn sweep(&mut self) -> Result<(), Self::Error> {
        let report = lb_bpf::Datapath::sweep(self)?;
        tracing::trace!(?report, "swept");
        Ok(())
    }

    fn filter_counters(&self) -> Result<FilterCounters, Self::Error> {
        lb_bpf::Datapath::filter_counters(self)
    }

    fn dirty_slots(&self) -> Result<BTreeMap<ServiceKey, DirtySlots>, Self::Error> {
        lb_bpf::Datapath::dirty_slots(self)
    }

    fn events(&self) -> Result<lb_bpf::Events, Self::Error> {
        lb_bpf::Datapath::events(self)
    }

    fn set_sampling(&mut self, one_in: Option<NonZeroU32>) -> Result<(), Self::Error> {
        lb_bpf::Datapath::set_sampling(self, one_in)
    }
}

impl Events for lb_bpf::Events {
    type Error = lb_bpf::DatapathError;

    async fn next(&mut self) -> Result<Vec<FlowEvent>, Self::Error> {
        lb_bpf::Events::next(self).await
    }
}

impl Speaker for bgp_speaker::Handle {
    type Error = ConfigError;

    async fn set_global(&self, global: Global) -> Result<(), Self::Error> {
        bgp_speaker::Handle::set_global(self, global).await
    }

    async fn set_peers(&self, peers: Vec<PeerConfig>) -> Result<(), Self::Error> {
        bgp_speaker::Handle::set_peers(self, peers).await
    }

    async fn set_ranges(&self, ranges: Vec<PeerRange>) -> Result<(), Self::Error> {
        bgp_speaker::Handle::set_ranges(self, ranges).await
    }

    async fn set_stations(&self, stations: Vec<BmpStation>) -> Result<(), Self::Error> {
        bgp_speaker::Handle::set_stations(self, stations).await
    }

    async fn set_routes(&self, routes: Vec<Route>) -> Result<(), Self::Error> {
        bgp_speaker::Handle::set_routes(self, routes).await
    }

    async fn routes_complete(&self) {
        bgp_speaker::Handle::routes_complete(self).await;
    }

    async fn flushed(&self) {
        bgp_speaker::Handle::flushed(self).await;
    }

    async fn established(&self) -> BTreeSet<PeerId> {
        let peers = self.peers().await;
        peers.into_iter().filter(|peer| peer.state == "Established").map(|peer| peer.id()).collect()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        bgp_speaker::Handle::changes(self)
    }
}

impl Checker for Checks {
    fn set_targets(&mut self, targets: &Targets) {
        Checks::set_targets(self, targets);
    }

    async fn results(&mut self) -> Vec<CheckResult> {
        Checks::results(self).await
    }
}
