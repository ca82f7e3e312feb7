//! What an operator is shown of peers and routes.
use crate::{
    InterfaceName, PeerId,
    bfd::BfdStatus,
    config::{Asn, Family, Timers},
    seen::{ErrorStatus, LocalRestartStatus, MessageCounts, PrefixCounts},
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

/// What an operator asks about a peer. JSON keys are camelCase and stable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// Address of the neighbour; of an unnumbered one as it was learned, and `::` before.
    pub address: IpAddr,
    /// The interface at whose other end an unnumbered neighbour is.
    #[serde(default)]
    pub interface: Option<InterfaceName>,
    /// AS of the neighbour as configured; of any external one, that of its OPEN, and 0 before.
    pub asn: Asn,
    /// Our AS.
    pub local_asn: Asn,
    /// Our BGP identifier; none: we have none yet.
    #[serde(default)]
    pub local_router_id: Option<Ipv4Addr>,
    /// BGP identifier of the neighbour, once its OPEN has come.
    pub router_id: Option<Ipv4Addr>,
    /// Our address of the connection.
    pub local_address: Option<IpAddr>,
    /// Name of the state, RFC 4271 section 8.2.2: `Idle` … `Established`.
    pub state: String,
    /// Seconds in this state.
    pub since_seconds: u64,
    /// How often the session was established.
    pub established_count: u64,
    /// How often an established session ended.
    #[serde(default)]
    pub flap_count: u64,
    /// Seconds until something is due: a keepalive, the end of the hold time, another attempt; none: nothing is.
    #[serde(default)]
    pub deadline_seconds: Option<u64>,
    /// Negotiated families.
    pub families: BTreeSet<Family>,
    /// Families of which several paths of a prefix go each way (RFC 7911).
    #[serde(default)]
    pub add_path: AddPathStatus,
    /// Negotiated hold time, seconds.
    pub hold_seconds: Option<u16>,
    /// Negotiated keepalive interval, seconds.
    pub keepalive_seconds: Option<u16>,
    /// What we propose, as configured.
    #[serde(default)]
    pub local_timers: Timers,
    /// Hold time that the neighbour proposes, seconds, once its OPEN has come.
    #[serde(default)]
    pub remote_hold_seconds: Option<u16>,
    /// Names of the capabilities that the neighbour sent.
    pub capabilities: Vec<String>,
    /// Names of the capabilities that it was sent.
    #[serde(default)]
    pub capabilities_sent: Vec<String>,
    /// Prefixes accepted from the peer; of several paths each counts.
    pub prefixes_received: u64,
    /// Prefixes announced to the peer; of several paths each counts.
    pub prefixes_sent: u64,
    /// Prefixes by family; of those that are configured.
    #[serde(default)]
    pub prefixes: BTreeMap<Family, PrefixCounts>,
    /// Messages received.
    pub messages_received: u64,
    /// The same by type.
    #[serde(default)]
    pub received_by_type: MessageCounts,
    /// Messages sent.
    pub messages_sent: u64,
    /// The same by type.
    #[serde(default)]
    pub sent_by_type: MessageCounts,
    /// Where graceful restart stands: `Disabled` (one side does not offer it), `Ready`, `Helping` (routes of a session that is
    /// gone are kept for it), `Restarting` (we were, and are not done).
    #[serde(default)]
    pub restart_state: String,
    /// Graceful restart as we offer it; none: we do not.
    #[serde(default)]
    pub local_restart: Option<LocalRestartStatus>,
    /// Graceful restart, if both sides offered it.
    pub graceful_restart: Option<GracefulRestartStatus>,
    /// The last error of the session, in words: direction, code and subcode by name.
    pub last_error: Option<String>,
    /// The same in its parts.
    #[serde(default)]
    pub last_error_detail: Option<ErrorStatus>,
    /// How the path to the peer is; none: it is not watched.
    #[serde(default)]
    pub bfd: Option<BfdStatus>,
}

/// Families of which several paths of a prefix were negotiated (RFC 7911).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddPathStatus {
    /// We tell several.
    pub send: BTreeSet<Family>,
    /// The peer tells several.
    pub receive: BTreeSet<Family>,
}

impl PeerStatus {
    /// What the neighbour is known by.
    pub fn id(&self) -> PeerId {
        self.interface.map_or(PeerId::Address(self.address), PeerId::Interface)
    }
}

/// What an operator asks about graceful restart with a peer (RFC 4724).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GracefulRestartStatus {
    /// How long the peer says to be away at most, seconds: so long its routes are kept.
    pub restart_seconds: u16,
    /// Its OPEN said that it has just restarted (R).
    #[serde(default)]
    pub restarting: bool,
    /// A NOTIFICATION ends the session gracefully, too (RFC 8538).
    pub notification: bool,
    /// Families whose routes are kept while the peer is away.
    pub families: BTreeSet<Family>,
    /// For how long they are kept after that, as the last choice, seconds, of the family for which that is longest; 0:
    /// they are not (RFC 9494).
    #[serde(default)]
    pub long_lived_seconds: u32,
    /// The same of each family that is.
    #[serde(default)]
    pub long_lived: BTreeMap<Family, u32>,
    /// Prefixes that are kept of a session that is gone, until the peer confirms them.
    pub stale_prefixes: u64,
    /// Those of them that are the last choice by now.
    #[serde(default)]
    pub long_lived_prefixes: u64,
    /// Seconds until the first of these are withdrawn, or become the last choice; none: there are none.
    pub stale_seconds: Option<u64>,
    /// Families of which the peer has told all its routes (End-of-RIB) in this session.
    pub end_of_rib: BTreeSet<Family>,
}

/// A row of `routes`. JSON keys are camelCase and stable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteStatus {
    /// `adj-in`, `loc` or `adj-out`.
    pub table: String,
    /// The peer; none for routes of our own in `loc`.
    pub peer: Option<PeerId>,
    /// The destination.
    pub prefix: IpNet,
    /// Path identifier (RFC 7911): the peer's, or in `adj-out` ours; none: none were negotiated.
    pub path_id: Option<u32>,
    /// Next hop.
    pub next_hop: Option<IpAddr>,
    /// AS path in words, `65001 65002 {65003}`.
    pub as_path: String,
    /// `IGP`, `EGP` or `INCOMPLETE`.
    pub origin: String,
    /// LOCAL_PREF.
    pub local_pref: Option<u32>,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// Standard and large communities, `65010:100`, `65010:1:2`, well-known ones by name.
    pub communities: Vec<String>,
    /// Whether it is the best route of its prefix.
    pub best: bool,
    /// Why it is, or is not, the best.
    pub reason: Option<String>,
}
