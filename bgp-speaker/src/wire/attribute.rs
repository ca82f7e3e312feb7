//! Path attributes (RFC 4271 section 5) as a value: what a route says about itself, whatever its family.
use super::{
    AsPath, Community, ExtendedCommunity, LargeCommunity,
    rules::{AGGREGATOR, COMMUNITIES, EXTENDED_COMMUNITIES, LARGE_COMMUNITIES, OTC},
};
use crate::config::Asn;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The attributes of a route but for its next hop, which belongs to a family and is in
/// [`Reach`](super::Reach).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attributes {
    /// ORIGIN.
    pub origin: Origin,
    /// AS_PATH; AS4_PATH (RFC 6793) is merged into it.
    pub as_path: AsPath,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// LOCAL_PREF: to and from internal peers only.
    pub local_pref: Option<u32>,
    /// ATOMIC_AGGREGATE.
    pub atomic_aggregate: bool,
    /// AGGREGATOR; AS4_AGGREGATOR is merged into it.
    pub aggregator: Option<Aggregator>,
    /// COMMUNITIES (RFC 1997).
    pub communities: BTreeSet<Community>,
    /// ORIGINATOR_ID (RFC 4456): from internal peers only.
    pub originator_id: Option<Ipv4Addr>,
    /// CLUSTER_LIST (RFC 4456): from internal peers only.
    pub cluster_list: Vec<Ipv4Addr>,
    /// EXTENDED COMMUNITIES (RFC 4360).
    pub extended_communities: BTreeSet<ExtendedCommunity>,
    /// LARGE COMMUNITIES (RFC 8092).
    pub large_communities: BTreeSet<LargeCommunity>,
    /// Only to Customer (RFC 9234): the AS that told the route to a customer or a peer.
    pub otc: Option<Asn>,
    /// Optional transitive attributes that this speaker does not know, by type code. Who passes them on sets
    /// [`PARTIAL`](Unknown::PARTIAL) (RFC 4271 section 5). Those that are not transitive end here.
    pub unknown: BTreeMap<u8, Unknown>,
    /// Which of the known attributes above came with [`PARTIAL`](Unknown::PARTIAL), which nobody may take away
    /// again (RFC 4271 section 5).
    pub partial: Partial,
}

/// Types of known attributes that some speaker on the way did not know: only those that are optional and transitive
/// can be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partial(u8);

impl Partial {
    /// Adds a type; nothing happens if it is one that never has the flag.
    pub fn insert(&mut self, code: u8) {
        self.0 |= Self::bit(code);
    }

    /// Whether the type is among them.
    pub fn contains(self, code: u8) -> bool {
        self.0 & Self::bit(code) != 0
    }

    /// AS4_PATH and AS4_AGGREGATOR are made anew and not here.
    fn bit(code: u8) -> u8 {
        match code {
            AGGREGATOR => 1,
            COMMUNITIES => 2,
            EXTENDED_COMMUNITIES => 4,
            LARGE_COMMUNITIES => 8,
            OTC => 16,
            _ => 0,
        }
    }
}

/// ORIGIN (RFC 4271 section 5.1.1). The smaller is the better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are the RFC's")]
pub enum Origin {
    #[default]
    Igp,
    Egp,
    Incomplete,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Igp => "IGP",
            Origin::Egp => "EGP",
            Origin::Incomplete => "INCOMPLETE",
        })
    }
}

/// AGGREGATOR (RFC 4271 section 5.1.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Aggregator {
    /// AS of the aggregating speaker.
    pub asn: Asn,
    /// Its address.
    pub address: Ipv4Addr,
}

/// An attribute of a type that this speaker does not know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unknown {
    /// Attribute Flags as received, without the Extended Length bit, which is a matter of encoding.
    pub flags: u8,
    /// The value.
    pub value: Box<[u8]>,
}

impl Unknown {
    /// The flag that says that some speaker on the way did not know the attribute.
    pub const PARTIAL: u8 = 0x20;
}

/// Where to send packets for a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// The address.
    pub address: IpAddr,
    /// Link-local address beside a global IPv6 one (RFC 2545 section 3).
    pub link_local: Option<Ipv6Addr>,
}

impl From<IpAddr> for NextHop {
    fn from(address: IpAddr) -> Self {
        NextHop { address, link_local: None }
    }
}
