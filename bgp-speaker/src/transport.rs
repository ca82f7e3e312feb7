//! What the TCP connections of a neighbour are made with: TTLs.
use crate::config::{Global, PeerConfig};

/// How packets travel between a neighbour and us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transport {
    /// TTL or hop limit of our packets.
    pub ttl: u8,
    /// Packets of the neighbour that arrive with a smaller TTL or hop limit are dropped by the kernel (GTSM, RFC 5082
    /// section 3); 0: none are.
    pub min_ttl: u8,
}

impl Transport {
    /// As a neighbour is configured.
    pub(crate) fn new(config: &PeerConfig, global: &Global) -> Self {
        let ttl = match (config.ttl_security_hops, config.multihop_ttl) {
            (Some(_), _) => u8::MAX,
            (None, Some(ttl)) => ttl,
            (None, None) if config.asn.is_internal(global.asn) => 64,
            (None, None) => 1,
        };
        // A neighbour one link away is no router away: its packets come as they left.
        let min_ttl = config.ttl_security_hops.map_or(0, |hops| u8::MAX - hops.saturating_sub(1));
        Transport { ttl, min_ttl }
    }
}
