//! Where the outer source of IPIP comes from. By default it is this host's address, the same for all flows. Many network
//! cards spread tunnelled packets over their queues by the outer addresses alone, so that all flows to a backend come to one of its
//! processors; a prefix to take sources from gives each flow another one.
use ipnet::IpNet;
use std::{net::IpAddr, str::FromStr};

/// A prefix that the sources of flows are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelSource {
    /// Its first address.
    pub first: IpAddr,
    /// How many of the last bits are the flow's, 0 to 16.
    pub bits: u8,
}

impl From<IpNet> for TunnelSource {
    /// The first addresses of the prefix, 65536 at most.
    fn from(prefix: IpNet) -> Self {
        let host_bits = prefix.max_prefix_len() - prefix.prefix_len();
        TunnelSource { first: prefix.network(), bits: host_bits.min(16) }
    }
}

/// The prefixes, one for each family of outer headers. As a text they stand with commas between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelSources {
    v4: Option<TunnelSource>,
    v6: Option<TunnelSource>,
}

impl TunnelSources {
    /// What the sources of packets to a backend with this address are taken from.
    pub fn towards(&self, backend: IpAddr) -> Option<TunnelSource> {
        if backend.is_ipv4() { self.v4 } else { self.v6 }
    }
}

/// Why a text names no prefixes: one sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSources {
    /// A part is no prefix.
    #[error("{0:?} is no prefix such as 198.51.100.0/24")]
    NoPrefix(String),
    /// There are two prefixes of one family.
    #[error("{0} is the second prefix of its family: one for IPv4 and one for IPv6 are possible")]
    Second(IpNet),
    /// No host may have these addresses.
    #[error("{0} is not a prefix of unicast addresses")]
    NotUnicast(IpNet),
}

impl FromStr for TunnelSources {
    type Err = BadSources;

    fn from_str(text: &str) -> Result<Self, BadSources> {
        let mut sources = TunnelSources::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let prefix: IpNet = part.parse().map_err(|_| BadSources::NoPrefix(part.to_owned()))?;
            let first = prefix.network();
            if first.is_multicast() || first.is_loopback() || prefix.prefix_len() == 0 {
                return Err(BadSources::NotUnicast(prefix));
            }
            let place = if first.is_ipv4() { &mut sources.v4 } else { &mut sources.v6 };
            if place.replace(prefix.into()).is_some() {
                return Err(BadSources::Second(prefix));
            }
        }
        Ok(sources)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_prefix_of_each_family() {
        let sources: TunnelSources = "198.51.100.77/24,2001:db8:5::/64".parse().unwrap();
        let of = |backend: &str| {
            sources.towards(backend.parse().unwrap()).map(|it| (it.first.to_string(), it.bits))
        };
        assert_eq!(of("10.0.0.1"), Some(("198.51.100.0".to_owned(), 8)));
        assert_eq!(of("fd00::1"), Some(("2001:db8:5::".to_owned(), 16)));
        assert_eq!("".parse(), Ok(TunnelSources::default()));
        let only: TunnelSources = "198.51.100.1/32".parse().unwrap();
        assert_eq!(only.towards("10.0.0.1".parse().unwrap()).unwrap().bits, 0);
        assert_eq!(only.towards("fd00::1".parse().unwrap()), None);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let error = |text: &str| text.parse::<TunnelSources>().unwrap_err().to_string();
        assert_eq!(error("198.51.100.1"), "\"198.51.100.1\" is no prefix such as 198.51.100.0/24");
        assert_eq!(
            error("10.0.0.0/8,10.1.0.0/16"),
            "10.1.0.0/16 is the second prefix of its family: one for IPv4 and one for IPv6 are possible"
        );
        for bad in ["224.0.0.0/8", "127.0.0.0/8", "0.0.0.0/0", "::1/128", "ff00::/8"] {
            assert!(error(bad).ends_with("is not a prefix of unicast addresses"), "{bad}");
        }
    }
}
