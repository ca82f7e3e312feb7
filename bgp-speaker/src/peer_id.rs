//! What a neighbour is known by: its address, the interface at whose other end it is, or the range that it comes from.
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

/// A neighbour. In text and in JSON its address, the name of the interface, or the prefix of the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum PeerId {
    /// Who has this address.
    Address(IpAddr),
    /// Who is at the other end of this link, whatever its address: an unnumbered peer.
    Interface(InterfaceName),
    /// Whoever comes from these addresses: all members of a range together. Each of them is known by its address.
    Range(IpNet),
}

impl PeerId {
    /// Of an end of a connection.
    pub(crate) fn of(end: SocketAddr) -> Self {
        PeerId::Address(end.ip().to_canonical())
    }
}

impl From<IpAddr> for PeerId {
    fn from(address: IpAddr) -> Self {
        PeerId::Address(address)
    }
}

impl From<InterfaceName> for PeerId {
    fn from(interface: InterfaceName) -> Self {
        PeerId::Interface(interface)
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerId::Address(address) => address.fmt(f),
            PeerId::Interface(interface) => interface.fmt(f),
            PeerId::Range(prefix) => prefix.fmt(f),
        }
    }
}

impl From<PeerId> for String {
    fn from(id: PeerId) -> Self {
        id.to_string()
    }
}

impl FromStr for PeerId {
    type Err = InterfaceNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address = || text.parse().map(PeerId::Address).ok();
        let range = || text.parse().map(PeerId::Range).ok();
        address().or_else(range).map_or_else(|| text.parse().map(PeerId::Interface), Ok)
    }
}

impl TryFrom<String> for PeerId {
    type Error = InterfaceNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Name of a network interface: 1 to 15 octets of ASCII, without spaces, slashes and colons, and not `.` or `..`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct InterfaceName {
    /// The rest is 0.
    octets: [u8; 15],
}

impl InterfaceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        let length = self.octets.iter().position(|octet| *octet == 0).unwrap_or(self.octets.len());
        // It was made from text.
        str::from_utf8(&self.octets[..length]).unwrap_or_default()
    }
}

impl FromStr for InterfaceName {
    type Err = InterfaceNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = |octet: u8| octet.is_ascii_graphic() && !matches!(octet, b'/' | b':');
        if !(1..=15).contains(&text.len()) || matches!(text, "." | "..") || !text.bytes().all(fits) {
            return Err(InterfaceNameError);
        }
        let mut octets = [0; 15];
        octets[..text.len()].copy_from_slice(text.as_bytes());
        Ok(InterfaceName { octets })
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for InterfaceName {
    type Error = InterfaceNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// No interface can have this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no name of an interface: 1 to 15 letters, digits and signs, without spaces, slashes and colons")]
pub struct InterfaceNameError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_interfaces() {
        for name in ["eth0", "a", "br-0123456789ab", "eth0.100", "vrf@2"] {
            assert_eq!(name.parse::<InterfaceName>().unwrap().to_string(), name);
        }
        for name in ["", ".", "..", "a b", "a/b", "eth0:1", "br-0123456789abc", "ä"] {
            assert_eq!(name.parse::<InterfaceName>(), Err(InterfaceNameError), "{name:?}");
        }
    }

    #[test]
    fn text_and_back() {
        for (text, id) in [
            ("10.0.0.1", PeerId::Address([10, 0, 0, 1].into())),
            ("fe80::1", PeerId::Address("fe80::1".parse().unwrap())),
            ("eth0", PeerId::Interface("eth0".parse().unwrap())),
            ("10.0.0.0/24", PeerId::Range("10.0.0.0/24".parse().unwrap())),
        ] {
            assert_eq!((id.to_string().as_str(), text.parse()), (text, Ok(id)));
        }
    }
}
