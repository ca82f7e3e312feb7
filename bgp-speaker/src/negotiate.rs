//! Our OPEN, and what it and the peer's make together (RFC 4271 sections 4.2 and 6.2, RFC 5492).
use crate::{
    config::{Family, Global, PeerConfig},
    fsm::SessionTimers,
    wire::{AfiSafi, Capability, Context, MAX_LENGTH, Notification, Open, Reason},
};
use std::{collections::BTreeSet, net::Ipv4Addr};

/// What both sides agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Negotiated {
    /// How UPDATEs are written.
    pub(crate) context: Context,
    /// Hold time and keepalives.
    pub(crate) timers: SessionTimers,
    /// The peer sends its routes again when asked (RFC 2918).
    pub(crate) route_refresh: bool,
    /// It understands where a refresh begins and ends (RFC 7313).
    pub(crate) enhanced_refresh: bool,
    /// The peer's BGP identifier.
    pub(crate) router_id: Ipv4Addr,
}

/// The OPEN that we send.
pub(crate) fn open(global: &Global, peer: &PeerConfig) -> Open {
    let mut capabilities: Vec<_> =
        peer.families.iter().map(|&family| Capability::MultiProtocol(family.into())).collect();
    capabilities.extend([
        Capability::RouteRefresh,
        Capability::EnhancedRouteRefresh,
        Capability::FourOctetAs(global.asn),
    ]);
    // Over IPv4 there is an IPv4 next hop already.
    if peer.address.is_ipv6() && peer.families.contains(&Family::Ipv4Unicast) {
        capabilities.push(extended_next_hop());
    }
    Open {
        asn: global.asn,
        hold_seconds: peer.timers.hold_seconds,
        router_id: global.router_id,
        capabilities,
    }
}

/// Judges the peer's OPEN. What it says about version, hold times of 1 and 2 and optional parameters the decoder
/// has judged.
pub(crate) fn negotiate(global: &Global, peer: &PeerConfig, open: &Open) -> Result<Negotiated, Notification> {
    let internal = peer.asn.is_internal(global.asn);
    if !peer.asn.admits(open.asn, global.asn) {
        return Err(Reason::BAD_PEER_AS.into());
    }
    // RFC 6286 section 2.2: the identifier is unique within an AS only.
    if internal && open.router_id == global.router_id {
        return Err(Reason::BAD_BGP_IDENTIFIER.into());
    }
    let offered: Vec<AfiSafi> = open
        .capabilities
        .iter()
        .filter_map(|capability| match capability {
            Capability::MultiProtocol(family) => Some(*family),
            _ => None,
        })
        .collect();
    // A speaker without multiprotocol extensions carries IPv4 unicast (RFC 4760 section 1).
    let offered: BTreeSet<Family> = if offered.is_empty() {
        [Family::Ipv4Unicast].into()
    } else {
        offered.into_iter().filter_map(AfiSafi::family).collect()
    };
    let families: BTreeSet<Family> = peer.families.intersection(&offered).copied().collect();
    if families.is_empty() {
        return Err(Notification::new(Reason::UNSUPPORTED_CAPABILITY, wanted(&peer.families)));
    }
    let has = |wanted: &Capability| open.capabilities.contains(wanted);
    Ok(Negotiated {
        context: Context {
            four_octet_as: open
                .capabilities
                .iter()
                .any(|capability| matches!(capability, Capability::FourOctetAs(_))),
            internal,
            extended_next_hop: peer.address.is_ipv6()
                && open.capabilities.iter().any(offers_extended_next_hop),
            families,
            max_length: MAX_LENGTH,
        },
        timers: SessionTimers::negotiate(&peer.timers, open.hold_seconds),
        route_refresh: has(&Capability::RouteRefresh) || has(&Capability::EnhancedRouteRefresh),
        enhanced_refresh: has(&Capability::EnhancedRouteRefresh),
        router_id: open.router_id,
    })
}

/// IPv4 routes with IPv6 next hops (RFC 8950).
fn extended_next_hop() -> Capability {
    Capability::ExtendedNextHop(vec![(Family::Ipv4Unicast.into(), AfiSafi::from(Family::Ipv6Unicast).afi)])
}

fn offers_extended_next_hop(capability: &Capability) -> bool {
    match (capability, extended_next_hop()) {
        (Capability::ExtendedNextHop(theirs), Capability::ExtendedNextHop(ours)) => {
            ours.iter().all(|wanted| theirs.contains(wanted))
        }
        _ => false,
    }
}

/// The capabilities that the peer lacks, as they stand in an OPEN (RFC 5492 section 5).
fn wanted(families: &BTreeSet<Family>) -> Vec<u8> {
    families
        .iter()
        .flat_map(|&family| {
            let AfiSafi { afi, safi } = family.into();
            let [high, low] = afi.to_be_bytes();
            [1, 4, high, low, 0, safi]
        })
        .collect()
}
