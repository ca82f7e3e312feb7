//! What the speaker is asked for: who it is, whom it talks to, what it announces. Whole sets, compared with
//! what is in force.
use crate::{InterfaceName, PeerId, transport::Md5Key, validate};
pub use crate::{
    bfd::BfdStatus,
    seen::{ErrorStatus, LocalRestartStatus, MessageCounts, PrefixCounts},
    status::{AddPathStatus, GracefulRestartStatus, PeerStatus, RouteStatus},
    wire::AddPath,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// Autonomous system number, 1 to 4294967295 (RFC 6793); 0 is refused (RFC 7607).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Asn(pub u32);

/// AS of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerAsn {
    /// This one.
    Is(Asn),
    /// Any but ours, as its OPEN says.
    External,
}

impl PeerAsn {
    /// Whether the neighbour is of our AS.
    pub fn is_internal(self, own: Asn) -> bool {
        self == PeerAsn::Is(own)
    }

    /// Whether a neighbour that says to be of the AS `said` is the one that is meant.
    pub fn admits(self, said: Asn, own: Asn) -> bool {
        match self {
            PeerAsn::Is(asn) => said == asn,
            PeerAsn::External => said != own,
        }
    }
}

/// The speaker itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Global {
    /// Our AS.
    pub asn: Asn,
    /// BGP identifier (RFC 4271 section 4.2, RFC 6286): not 0.0.0.0.
    pub router_id: Ipv4Addr,
    /// Where to accept connections; empty: dial only.
    pub listen: BTreeSet<SocketAddr>,
}

/// Address family (RFC 4760): AFI 1 or 2, SAFI 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// AFI 1, SAFI 1.
    #[serde(rename = "ipv4-unicast")]
    Ipv4Unicast,
    /// AFI 2, SAFI 1.
    #[serde(rename = "ipv6-unicast")]
    Ipv6Unicast,
}

impl Family {
    /// All of them.
    pub const ALL: [Family; 2] = [Family::Ipv4Unicast, Family::Ipv6Unicast];
}

impl fmt::Display for Family {
    /// `ipv4-unicast`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Ipv4Unicast => "ipv4-unicast",
            Family::Ipv6Unicast => "ipv6-unicast",
        })
    }
}

/// One neighbour. Peers are identified by [`PeerConfig::id`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// Address of the neighbour; `::` of an unnumbered one, whose link-local address is learned.
    pub address: IpAddr,
    /// The neighbour is unnumbered: it is whoever is at the other end of this interface; none: it is known by its
    /// address.
    pub interface: Option<InterfaceName>,
    /// AS of the neighbour. Equal to ours: internal.
    pub asn: PeerAsn,
    /// TCP port of the neighbour.
    pub port: u16,
    /// The neighbour is not dialled: it has to.
    pub passive: bool,
    /// Address to dial from; none: the kernel chooses.
    pub local_address: Option<IpAddr>,
    /// Timers.
    pub timers: Timers,
    /// Families to negotiate; not empty.
    pub families: BTreeSet<Family>,
    /// TTL of our packets for a neighbour that is not on the link (`ebgpMultihop.ttl`); none: 1 for external
    /// peers, 64 for internal ones.
    pub multihop_ttl: Option<u8>,
    /// The neighbour is so many links away, 1 to 254, and packets from further away are dropped (GTSM, RFC 5082);
    /// ours leave with a TTL of 255. Not together with `multihop_ttl`.
    pub ttl_security_hops: Option<u8>,
    /// Key of the TCP MD5 signature (RFC 2385); none: segments are not signed. A change does not end a session: it goes
    /// on if the neighbour's key changes, too, before the hold time is over.
    pub md5: Option<Md5Key>,
    /// More prefixes than this (of several paths each counts) from the peer end the session (Cease, subcode 1, RFC 4486).
    pub max_prefixes: Option<u32>,
    /// For so many seconds the peer stays down then; it comes back at once when `max_prefixes` changes.
    pub max_prefixes_restart_seconds: u32,
    /// The peer is shut down, and is told so with this text (RFC 9003), 0 to 255 octets; none: it is not.
    pub shutdown: Option<String>,
    /// Which prefixes are taken in; empty: none. A prefix matches an entry that contains it.
    pub accept: Vec<IpNet>,
    /// Which of these are taken in nevertheless.
    pub import: ImportFilter,
    /// Whether what is taken in goes into the kernel's routing table, if it is the best or as good as that.
    pub install: bool,
    /// Whether learned routes are passed on to this peer.
    pub export_learned: bool,
    /// What the peer is told otherwise, by family; none: as it is.
    pub export: BTreeMap<Family, ExportPolicy>,
    /// Graceful restart (RFC 4724, RFC 8538): how long the peer shall keep our routes while we are away, seconds, 0 to
    /// 4095; none: the capability names no family, and routes of neither side outlive a session.
    pub graceful_restart: Option<u16>,
    /// Long-lived graceful restart (RFC 9494): for how many seconds more, 0 to 16777215, the peer shall keep our routes of a
    /// family as the last choice; 0 or none: not offered. Beside `graceful_restart` only.
    pub long_lived_seconds: BTreeMap<Family, u32>,
    /// Whether several paths of a prefix are told and taken (RFC 7911), in all families. Told are all that may be used:
    /// one of our own, and what others told where `export_learned` says so.
    pub add_path: AddPath,
    /// What we are to an external neighbour (RFC 9234): route leaks are neither taken in nor made; none: nothing is
    /// known of that.
    pub role: Option<LocalRole>,
    /// How the path to the peer is watched; none: it is not.
    pub bfd: Option<Bfd>,
}

impl PeerConfig {
    /// A neighbour with all at its default: port 179, IPv4 unicast, nothing taken in, nothing learned passed on, and nothing
    /// of what has to be asked for.
    pub fn new(address: IpAddr, asn: PeerAsn) -> Self {
        PeerConfig {
            address,
            interface: None,
            asn,
            port: 179,
            passive: false,
            local_address: None,
            timers: Timers::default(),
            families: [Family::Ipv4Unicast].into(),
            multihop_ttl: None,
            ttl_security_hops: None,
            md5: None,
            max_prefixes: None,
            max_prefixes_restart_seconds: MAX_PREFIXES_RESTART_SECONDS,
            shutdown: None,
            accept: Vec::new(),
            import: ImportFilter::default(),
            install: false,
            export_learned: false,
            export: BTreeMap::new(),
            graceful_restart: None,
            long_lived_seconds: BTreeMap::new(),
            add_path: AddPath::default(),
            role: None,
            bfd: None,
        }
    }

    /// The neighbour at the other end of an interface, with all else at its default.
    pub fn unnumbered(interface: InterfaceName, asn: PeerAsn) -> Self {
        PeerConfig { interface: Some(interface), ..PeerConfig::new(Ipv6Addr::UNSPECIFIED.into(), asn) }
    }

    /// What the neighbour is known by.
    pub fn id(&self) -> PeerId {
        self.interface.map_or(PeerId::Address(self.address), PeerId::Interface)
    }

    /// Families that are kept as the last choice, and for how many seconds.
    pub(crate) fn long_lived(&self) -> impl Iterator<Item = (Family, u32)> {
        let offered = self.long_lived_seconds.iter().filter(|(family, seconds)| {
            self.graceful_restart.is_some() && **seconds > 0 && self.families.contains(family)
        });
        offered.map(|(family, seconds)| (*family, *seconds))
    }
}

/// What two neighbours are to each other (RFC 9234 section 3), seen from one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the RFC's")]
pub enum Role {
    Provider = 0,
    RouteServer = 1,
    RouteServerClient = 2,
    Customer = 3,
    Peer = 4,
}

impl Role {
    /// The role of a number on the wire.
    pub fn from_code(code: u8) -> Option<Self> {
        use Role::*;
        [Provider, RouteServer, RouteServerClient, Customer, Peer]
            .into_iter()
            .find(|role| *role as u8 == code)
    }

    /// What the other side must be.
    pub fn counterpart(self) -> Self {
        match self {
            Role::Provider => Role::Customer,
            Role::RouteServer => Role::RouteServerClient,
            Role::RouteServerClient => Role::RouteServer,
            Role::Customer => Role::Provider,
            Role::Peer => Role::Peer,
        }
    }
}

/// Our role towards a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalRole {
    /// What we are.
    pub local: Role,
    /// A neighbour that does not say what it is gets no session.
    pub strict: bool,
}

/// Bidirectional forwarding detection (RFC 5880): when the path to the peer fails, the session ends at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bfd {
    /// We want to send no faster, milliseconds, 10 to 3600000.
    pub min_tx_millis: u32,
    /// We can receive no faster, milliseconds, 10 to 3600000.
    pub min_rx_millis: u32,
    /// So many of our packets may be missed before the peer takes the path for dead, 1 to 255.
    pub multiplier: u8,
}

/// What is not taken in although it is accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportFilter {
    /// Prefixes that one of these contains.
    pub deny: Vec<IpNet>,
    /// Routes that have none of these communities, standard (RFC 1997) and large (RFC 8092) ones together; where there
    /// are none of them, communities do not matter.
    pub communities: BTreeSet<u32>,
    /// See `communities`.
    pub large_communities: BTreeSet<(u32, u32, u32)>,
}

/// Changes to the routes that a peer is told, learned ones and our own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportPolicy {
    /// To internal peers, too, learned routes have our address as the next hop. To external ones all have.
    pub next_hop_self: bool,
    /// The peer is to look for other ways: GRACEFUL_SHUTDOWN is added, and to internal peers LOCAL_PREF is 0 (RFC 8326
    /// section 4).
    pub graceful_shutdown: bool,
    /// How many times our AS is prepended more, 0 to 16, to external peers only.
    pub prepend: u8,
    /// MULTI_EXIT_DISC; none: that of the route.
    pub med: Option<u32>,
    /// LOCAL_PREF, to internal peers only; none: that of the route.
    pub local_pref: Option<u32>,
    /// Standard communities that are added.
    pub communities: BTreeSet<u32>,
    /// Large communities that are added.
    pub large_communities: BTreeSet<(u32, u32, u32)>,
}

/// Neighbours that are known by the range of their addresses: each is there from its first connection to the end of its
/// session, and is never dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRange {
    /// Their addresses, without host bits. Of ranges that overlap the longest prefix counts; a [`PeerConfig`] of an
    /// address counts before all.
    pub prefix: IpNet,
    /// At most so many of them at a time, 1 to 10000; one that is too many is a stranger.
    pub limit: u16,
    /// What each of them is; its address does not count.
    pub peer: PeerConfig,
}

impl PeerRange {
    /// All of them, as in [`Route::peers`].
    pub fn id(&self) -> PeerId {
        PeerId::Range(self.prefix)
    }

    /// The neighbour of the range with this address.
    pub(crate) fn member(&self, address: IpAddr) -> PeerConfig {
        PeerConfig { address, passive: true, ..self.peer.clone() }
    }
}

/// Default of [`PeerConfig::max_prefixes_restart_seconds`]: long enough for a peer not to flap.
pub const MAX_PREFIXES_RESTART_SECONDS: u32 = 300;

/// A station that is told what peers tell (BMP, RFC 7854).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BmpStation {
    /// Where it listens.
    pub station: SocketAddr,
    /// Time between statistics in seconds, 0 to 86400; 0: there are none.
    pub stats_seconds: u32,
}

/// Timers of a session (RFC 4271 section 10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timers {
    /// Proposed hold time in seconds: 0, or 3 to 65535.
    pub hold_seconds: u16,
    /// Keepalive interval in seconds, at most a third of the negotiated hold time.
    pub keepalive_seconds: u16,
    /// First delay between connection attempts in seconds, 1 to 65535; doubled, with jitter, up to 8 times as
    /// long while attempts fail.
    pub connect_retry_seconds: u16,
}

impl Default for Timers {
    fn default() -> Self {
        Timers { hold_seconds: 90, keepalive_seconds: 30, connect_retry_seconds: 5 }
    }
}

/// One route to announce.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The destination, without host bits.
    pub prefix: IpNet,
    /// Its attributes.
    pub attributes: RouteAttributes,
    /// Peers that hear of it, of a range [all](PeerRange::id); none: all.
    pub peers: Option<BTreeSet<PeerId>>,
}

/// Attributes of an announced route.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteAttributes {
    /// Next hop; none: the session's local address of the route's family (next-hop self).
    pub next_hop: Option<IpAddr>,
    /// Standard communities (RFC 1997).
    pub communities: BTreeSet<u32>,
    /// Large communities (RFC 8092): global administrator, two local parts.
    pub large_communities: BTreeSet<(u32, u32, u32)>,
    /// LOCAL_PREF, to internal peers only; none: 100.
    pub local_pref: Option<u32>,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// How many times our AS is prepended more, 0 to 16.
    pub prepend: u8,
    /// Link bandwidth, octets per second (draft-ietf-idr-link-bandwidth): the share of traffic that we want beside
    /// others who announce the prefix. Transitive to external peers, who would not get it otherwise.
    pub link_bandwidth: Option<u64>,
}

/// State of a session (RFC 4271 section 8.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[expect(missing_docs, reason = "the names are the RFC's")]
pub enum State {
    Idle,
    Connect,
    Active,
    OpenSent,
    OpenConfirm,
    Established,
}

/// A configuration that makes no sense; it changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {field}: {reason}")]
pub struct ConfigError {
    /// What is wrong: `global`, `peer 10.0.0.1`, `route 10.0.0.0/8`.
    pub object: String,
    /// The field of it.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

impl ConfigError {
    pub(crate) fn new(object: impl Into<String>, field: &str, reason: impl Into<String>) -> Self {
        ConfigError { object: object.into(), field: field.to_owned(), reason: reason.into() }
    }
}

/// Whether all of it makes sense together: what a speaker would refuse of it, but for what only the kernel can say.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(
    global: &Global,
    peers: &[PeerConfig],
    ranges: &[PeerRange],
    routes: &[Route],
    stations: &[BmpStation],
) -> Result<(), ConfigError> {
    validate::global(global)?;
    validate::ranges(ranges, Some(global))?;
    validate::peers(peers, Some(global))?;
    validate::routes(routes)?;
    validate::stations(stations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_external_peer_is_of_any_as_but_ours() {
        let (own, other) = (Asn(65000), Asn(65001));
        for (peer, is_internal, admits_own, admits_other) in [
            (PeerAsn::External, false, false, true),
            (PeerAsn::Is(own), true, true, false),
            (PeerAsn::Is(other), false, false, true),
        ] {
            assert_eq!(peer.is_internal(own), is_internal, "{peer:?}");
            assert_eq!(
                (peer.admits(own, own), peer.admits(other, own)),
                (admits_own, admits_other),
                "{peer:?}"
            );
        }
        assert!(!PeerAsn::Is(other).admits(Asn(65002), own));
    }
}
