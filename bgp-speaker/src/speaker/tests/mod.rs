//! Whole speakers in virtual time.
mod bfd;
mod fib;
mod handover;
mod histories;
mod long_lived;
mod monitor;
mod restart;
mod sessions;
mod sim;
mod slow;
mod unnumbered;
mod virtual_time;

use crate::config::{
    Asn, Family, Global, LocalRole, PeerAsn, PeerConfig, Role, Route, RouteAttributes, Timers,
};
use std::net::{IpAddr, Ipv4Addr};

/// The speaker at 10.0.0.`host`.
fn global(host: u8, asn: u32) -> Global {
    Global { asn: Asn(asn), router_id: Ipv4Addr::new(10, 0, 0, host), listen: [].into() }
}

fn address(host: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, host])
}

/// A neighbour that is told everything and of which everything is accepted.
fn peer(host: u8, asn: u32) -> PeerConfig {
    PeerConfig {
        timers: Timers { hold_seconds: 9, keepalive_seconds: 3, connect_retry_seconds: 2 },
        families: Family::ALL.into(),
        max_prefixes_restart_seconds: 60,
        accept: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
        export_learned: true,
        ..PeerConfig::new(address(host), PeerAsn::Is(Asn(asn)))
    }
}

fn route(prefix: &str, med: u32) -> Route {
    Route {
        prefix: prefix.parse().unwrap(),
        attributes: RouteAttributes { med: Some(med), ..RouteAttributes::default() },
        peers: None,
    }
}
