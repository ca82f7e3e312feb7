//! Our addresses on the interface of a session: the next hops of what we announce there.
use crate::{config::Family, wire::NextHop};
use ipnet::IpNet;
use nix::{
    ifaddrs::{InterfaceAddress, getifaddrs},
    net::if_::if_indextoname,
    sys::socket::SockaddrStorage,
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

/// Next-hop self by family for a session whose local address this is. The family of the session has that
/// address; the other one a global address of the same interface, if there is one.
pub(super) fn next_hops(local: SocketAddr) -> BTreeMap<Family, NextHop> {
    let all: Vec<Address> = match getifaddrs() {
        Ok(addresses) => addresses.filter_map(Address::new).collect(),
        Err(error) => {
            tracing::warn!(%error, "interface addresses unknown");
            Vec::new()
        }
    };
    // The same link-local address may be on several interfaces.
    let interface = match local {
        SocketAddr::V6(local) => {
            if_indextoname(local.scope_id()).ok().and_then(|name| name.into_string().ok())
        }
        SocketAddr::V4(_) => None,
    };
    let all: Vec<Address> =
        all.into_iter().filter(|of| interface.as_ref().is_none_or(|name| *name == of.interface)).collect();
    select(local.ip(), &all)
}

/// Whether an address is of a network on one of our interfaces.
pub(super) fn on_link(address: IpAddr) -> bool {
    let covers = |of: InterfaceAddress| {
        let network = match (ip(of.address)?, ip(of.netmask)?) {
            (IpAddr::V4(own), IpAddr::V4(mask)) => IpNet::with_netmask(own.into(), mask.into()),
            (IpAddr::V6(own), IpAddr::V6(mask)) => IpNet::with_netmask(own.into(), mask.into()),
            _ => return None,
        };
        Some(network.ok()?.contains(&address))
    };
    getifaddrs().is_ok_and(|mut all| all.any(|of| covers(of) == Some(true)))
}

fn ip(storage: Option<SockaddrStorage>) -> Option<IpAddr> {
    let storage = storage?;
    let v4 = storage.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| storage.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

/// An address of an interface.
struct Address {
    interface: String,
    address: IpAddr,
    /// Of a whole network and not of a host alone, as the address of a service would be.
    network: bool,
}

impl Address {
    fn new(of: InterfaceAddress) -> Option<Self> {
        let network = match ip(of.netmask) {
            Some(IpAddr::V4(mask)) => mask.to_bits() != u32::MAX,
            Some(IpAddr::V6(mask)) => mask.to_bits() != u128::MAX,
            None => false,
        };
        Some(Address { interface: of.interface_name, address: ip(of.address)?, network })
    }
}

fn select(local: IpAddr, all: &[Address]) -> BTreeMap<Family, NextHop> {
    let interfaces: Vec<&str> =
        all.iter().filter(|entry| entry.address == local).map(|entry| entry.interface.as_str()).collect();
    let global = |v6: bool| {
        let fits = |entry: &&Address| {
            interfaces.contains(&entry.interface.as_str())
                && entry.address.is_ipv6() == v6
                && is_global(entry.address)
        };
        // The lowest address, so that it is always the same one.
        all.iter().filter(fits).min_by_key(|entry| (!entry.network, entry.address)).map(|entry| entry.address)
    };
    let link_local = match local {
        IpAddr::V6(local) if local.is_unicast_link_local() => Some(local),
        _ => None,
    };
    let of = |v6: bool| {
        let own = (local.is_ipv6() == v6).then_some(local);
        match link_local.filter(|_| v6) {
            // A link-local session: the global address with the link-local one beside it (RFC 2545 section 3).
            Some(link_local) => Some(NextHop {
                address: global(true).unwrap_or(IpAddr::V6(link_local)),
                link_local: global(true).map(|_| link_local),
            }),
            None => own.or_else(|| global(v6)).map(NextHop::from),
        }
    };
    let families = [(Family::Ipv4Unicast, false), (Family::Ipv6Unicast, true)];
    families.into_iter().filter_map(|(family, v6)| Some((family, of(v6)?))).collect()
}

fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_unicast_link_local() && address != Ipv6Addr::LOCALHOST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> Vec<Address> {
        [
            ("lo", "127.0.0.1", true),
            ("lo", "::1", false),
            ("eth0", "198.18.0.2", true),
            ("eth0", "10.0.0.1", false),
            ("eth0", "fe80::2", true),
            ("eth0", "fd00:18::1", false),
            ("eth0", "fd00:18::3", true),
            ("eth0", "fd00:18::2", true),
            ("eth1", "198.18.1.2", true),
        ]
        .map(|(interface, address, network)| Address {
            interface: interface.to_owned(),
            address: address.parse().unwrap(),
            network,
        })
        .into()
    }

    fn selected(local: &str) -> [Option<String>; 2] {
        let next_hops = select(local.parse().unwrap(), &addresses());
        Family::ALL.map(|family| {
            let next_hop = next_hops.get(&family)?;
            let link_local = next_hop.link_local.map(|address| format!(" {address}")).unwrap_or_default();
            Some(format!("{}{link_local}", next_hop.address))
        })
    }

    #[test]
    fn both_families_of_the_interface_of_the_session() {
        assert_eq!(selected("198.18.0.2").map(Option::unwrap), ["198.18.0.2", "fd00:18::2"]);
        assert_eq!(selected("fd00:18::3").map(Option::unwrap), ["198.18.0.2", "fd00:18::3"]);
        assert_eq!(selected("fe80::2").map(Option::unwrap), ["198.18.0.2", "fd00:18::2 fe80::2"]);
        assert_eq!(selected("198.18.1.2"), [Some("198.18.1.2".to_owned()), None]);
        assert_eq!(selected("127.0.0.1"), [Some("127.0.0.1".to_owned()), None]);
    }
}
