//! Our OPEN, and what it and the peer's make together (RFC 4271 sections 4.2 and 6.2, RFC 5492).
use crate::{
    config::{Family, Global, LocalRole, PeerConfig},
    fsm::SessionTimers,
    wire::{
        AddPath, AfiSafi, Capability, Context, GracefulRestart, LongLived, MAX_EXTENDED_LENGTH, MAX_LENGTH,
        Notification, Open, Reason,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

/// What our OPEN says about the life before this one (RFC 4724 section 3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Start {
    /// There was none, or nothing is left of it.
    #[default]
    Cold,
    /// It was a moment ago, and its routes are still forwarded.
    Restarted,
    /// It is this one.
    Running,
}

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
    /// What the peer says about its restarts, if both sides offered that; `notification` if both said so.
    pub(crate) graceful_restart: Option<GracefulRestart>,
    /// The peer keeps stale routes as the last choice (RFC 9494): it may hear of them.
    pub(crate) knows_long_lived: bool,
    /// What it says about its own, of families of which both sides offered that.
    pub(crate) long_lived: BTreeMap<Family, LongLived>,
    /// The peer's BGP identifier.
    pub(crate) router_id: Ipv4Addr,
}

/// The OPEN that we send.
pub(crate) fn open(global: &Global, peer: &PeerConfig, start: Start) -> Open {
    let mut capabilities: Vec<_> =
        peer.families.iter().map(|&family| Capability::MultiProtocol(family.into())).collect();
    capabilities.extend([
        Capability::RouteRefresh,
        Capability::EnhancedRouteRefresh,
        Capability::ExtendedMessage,
        Capability::FourOctetAs(global.asn),
    ]);
    capabilities.extend(peer.role.map(|role| Capability::Role(role.local as u8)));
    // Without families it still says that End-of-RIB will come (RFC 4724 section 4), and makes FRR 8.4 say its own, before
    // which it answers no ROUTE-REFRESH.
    let kept = peer.families.iter().filter(|_| peer.graceful_restart.is_some());
    capabilities.push(Capability::GracefulRestart(GracefulRestart {
        restarting: start == Start::Restarted,
        notification: peer.graceful_restart.is_some(),
        seconds: peer.graceful_restart.unwrap_or(0),
        families: kept.map(|&family| (family.into(), start != Start::Cold)).collect(),
    }));
    let long_lived = peer.long_lived().map(|(family, seconds)| LongLived {
        family: family.into(),
        forwarding: start != Start::Cold,
        seconds,
    });
    let long_lived: Vec<LongLived> = long_lived.collect();
    if !long_lived.is_empty() {
        capabilities.push(Capability::LongLivedGracefulRestart(long_lived));
    }
    if peer.add_path != AddPath::default() {
        let families = peer.families.iter().map(|&family| (family.into(), peer.add_path));
        capabilities.push(Capability::AddPath(families.collect()));
    }
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
    if let Some(role) = peer.role {
        check_role(role, open)?;
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
    let long_lived = long_lived(open);
    let takes = |theirs: AddPath| peer.add_path.send && theirs.receive;
    let tells = |theirs: AddPath| peer.add_path.receive && theirs.send;
    Ok(Negotiated {
        context: Context {
            four_octet_as: open
                .capabilities
                .iter()
                .any(|capability| matches!(capability, Capability::FourOctetAs(_))),
            internal,
            extended_next_hop: peer.address.is_ipv6()
                && open.capabilities.iter().any(offers_extended_next_hop),
            add_path_send: add_path(&families, open, takes),
            add_path_receive: add_path(&families, open, tells),
            families,
            max_length: if has(&Capability::ExtendedMessage) { MAX_EXTENDED_LENGTH } else { MAX_LENGTH },
        },
        timers: SessionTimers::negotiate(&peer.timers, open.hold_seconds),
        route_refresh: has(&Capability::RouteRefresh) || has(&Capability::EnhancedRouteRefresh),
        enhanced_refresh: has(&Capability::EnhancedRouteRefresh),
        // Of several the last one counts (RFC 4724 section 3).
        graceful_restart: open.capabilities.iter().rev().find_map(|capability| match capability {
            Capability::GracefulRestart(restart) if peer.graceful_restart.is_some() => Some(restart.clone()),
            _ => None,
        }),
        knows_long_lived: long_lived.is_some(),
        long_lived: long_lived
            .into_iter()
            .flatten()
            .filter(|(said, _)| peer.long_lived().any(|(ours, _)| ours == *said))
            .collect(),
        router_id: open.router_id,
    })
}

/// What the peer says about routes that are long stale: nothing if it says nothing about graceful restart (RFC 9494
/// section 4.5).
fn long_lived(open: &Open) -> Option<BTreeMap<Family, LongLived>> {
    let restarts =
        open.capabilities.iter().any(|capability| matches!(capability, Capability::GracefulRestart(_)));
    let said = open.capabilities.iter().rev().find_map(|capability| match capability {
        Capability::LongLivedGracefulRestart(families) if restarts => Some(families),
        _ => None,
    })?;
    Some(said.iter().filter_map(|said| Some((said.family.family()?, *said))).collect())
}

/// Families of which several paths go one way. A family counts where it is named first.
fn add_path(families: &BTreeSet<Family>, open: &Open, goes: impl Fn(AddPath) -> bool) -> BTreeSet<Family> {
    let all = || {
        open.capabilities.iter().filter_map(|capability| match capability {
            Capability::AddPath(families) => Some(families),
            _ => None,
        })
    };
    let said = |family| all().flatten().find(|(named, _)| named.family() == Some(family));
    let goes = |family: &Family| said(*family).is_some_and(|(_, theirs)| goes(*theirs));
    families.iter().copied().filter(goes).collect()
}

/// RFC 9234 section 4.2: the peer says once what it is, or often the same; where it says nothing, we need not insist.
fn check_role(ours: LocalRole, open: &Open) -> Result<(), Notification> {
    let mut said = open.capabilities.iter().filter_map(|capability| match capability {
        Capability::Role(code) => Some(*code),
        _ => None,
    });
    let wanted = ours.local.counterpart() as u8;
    let matches = match said.next() {
        Some(first) => first == wanted && said.all(|code| code == wanted),
        None => !ours.strict,
    };
    if matches { Ok(()) } else { Err(Reason::ROLE_MISMATCH.into()) }
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
