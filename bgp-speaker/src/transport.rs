//! What the TCP connections of a neighbour are made with: TTLs, and the key that signs their segments.
use crate::config::{Global, PeerConfig};
use std::fmt;

/// How packets travel between a neighbour and us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transport {
    /// TTL or hop limit of our packets.
    pub ttl: u8,
    /// Packets of the neighbour that arrive with a smaller TTL or hop limit are dropped by the kernel (GTSM, RFC 5082
    /// section 3); 0: none are.
    pub min_ttl: u8,
    /// Segments without a signature by this key are dropped by the kernel (RFC 2385); none: those with one are.
    pub md5: Option<Md5Key>,
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
        Transport { ttl, min_ttl, md5: config.md5.clone() }
    }
}

/// Key of the TCP MD5 signature (RFC 2385). It is a secret: `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Md5Key(Box<[u8]>);

impl Md5Key {
    /// Most octets of a key (`TCP_MD5SIG_MAXKEYLEN` of linux/tcp.h).
    pub const MAX_LENGTH: usize = 80;

    /// A key of 1 to 80 octets.
    ///
    /// # Errors
    /// It has more, or none.
    pub fn new(octets: impl Into<Box<[u8]>>) -> Result<Self, Md5KeyError> {
        let octets = octets.into();
        if (1..=Self::MAX_LENGTH).contains(&octets.len()) {
            Ok(Md5Key(octets))
        } else {
            Err(Md5KeyError(octets.len()))
        }
    }

    /// The octets.
    #[cfg(feature = "net")]
    pub(crate) fn octets(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Md5Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Md5Key(..)")
    }
}

/// A key of so many octets cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is {0} octets long: must be 1 to 80")]
pub struct Md5KeyError(usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_a_length_and_are_not_shown() {
        let key = |length| Md5Key::new(vec![b's'; length]);
        assert_eq!(key(0).unwrap_err().to_string(), "is 0 octets long: must be 1 to 80");
        assert_eq!(key(81).unwrap_err().to_string(), "is 81 octets long: must be 1 to 80");
        assert_eq!(format!("{:?}", key(80).unwrap()), "Md5Key(..)");
    }
}
