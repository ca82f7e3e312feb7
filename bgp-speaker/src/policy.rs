//! What is taken in from a peer and what is passed on to it.
//!
//! The default is RFC 8212's: nothing is accepted, nothing learned is passed on. Routes of our own go to the peers
//! that they name.
use crate::{
    config::{Asn, ExportPolicy, Family, ImportFilter, PeerConfig, Role},
    decision::DEFAULT_LOCAL_PREF,
    rib::PathAttributes,
    wire::{AsPath, Attributes, Community, ExtendedCommunity, LargeCommunity, NextHop, Unknown},
};
use ipnet::IpNet;
use std::{
    collections::BTreeMap,
    mem,
    net::{IpAddr, Ipv4Addr},
};

/// What is taken in from a peer.
#[derive(Clone, Debug)]
pub(crate) struct Import {
    accept: Vec<IpNet>,
    filter: ImportFilter,
}

impl Import {
    pub(crate) fn new(config: &PeerConfig) -> Self {
        Import { accept: config.accept.clone(), filter: config.import.clone() }
    }

    /// Whether a route is taken: an entry must contain the prefix, and nothing must forbid it.
    pub(crate) fn accepts(&self, prefix: &IpNet, attributes: &Attributes) -> bool {
        let contains = |list: &[IpNet]| list.iter().any(|entry| entry.contains(prefix));
        contains(&self.accept) && !contains(&self.filter.deny) && self.has_community(attributes)
    }

    fn has_community(&self, attributes: &Attributes) -> bool {
        let ImportFilter { communities, large_communities, .. } = &self.filter;
        (communities.is_empty() && large_communities.is_empty())
            || attributes.communities.iter().any(|community| communities.contains(&community.0))
            || attributes.large_communities.iter().any(|large| large_communities.contains(&large.parts()))
    }
}

/// A route that its sender is about to take back is the last choice (RFC 8326 section 4.3). Inside our AS whoever took
/// it in has seen to that.
pub(crate) fn honour_graceful_shutdown(attributes: &mut Attributes, internal: bool) {
    if !internal && attributes.communities.contains(&Community::GRACEFUL_SHUTDOWN) {
        attributes.local_pref = Some(0);
    }
}

/// Whether a route came through us before: our AS in the path (RFC 4271 section 9.1.2), or inside our AS through
/// route reflectors (RFC 4456 section 8).
pub(crate) fn is_loop(attributes: &Attributes, asn: Asn, router_id: Ipv4Addr) -> bool {
    attributes.as_path.contains(asn)
        || attributes.originator_id == Some(router_id)
        || attributes.cluster_list.contains(&router_id)
}

/// Whether a route from an external neighbour is a leak: it went down or sideways before, and comes up or sideways now
/// (RFC 9234 section 5, rules 1 and 2 of ingress). Ours is `role`.
pub(crate) fn is_leak(role: Role, otc: Option<Asn>, neighbour: Asn) -> bool {
    match (role, otc) {
        (Role::Provider | Role::RouteServer, Some(_)) => true,
        (Role::Peer, Some(asn)) => asn != neighbour,
        _ => false,
    }
}

/// Whether what the neighbour tells is for our customers only (rule 3 of ingress), and is not told to it (rule 2 of
/// egress).
pub(crate) fn is_for_customers_only(role: Role) -> bool {
    matches!(role, Role::Customer | Role::Peer | Role::RouteServerClient)
}

/// Where the best route of a prefix comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Provenance {
    /// It is our own.
    Own,
    /// A peer of our AS told us.
    Internal,
    /// A peer of another AS told us.
    External,
}

/// The peer that is told.
#[derive(Clone, Debug)]
pub(crate) struct Export<'a> {
    pub(crate) local_asn: Asn,
    pub(crate) internal: bool,
    pub(crate) address: IpAddr,
    pub(crate) learned: bool,
    /// It knows what to do with routes that are long stale (RFC 9494).
    pub(crate) long_lived: bool,
    /// What we are to the peer (RFC 9234).
    pub(crate) role: Option<Role>,
    /// Routes of IPv4 may have next hops of IPv6 (RFC 8950).
    pub(crate) extended_next_hop: bool,
    pub(crate) changes: &'a BTreeMap<Family, ExportPolicy>,
    /// Our own addresses on this session, by family: next-hop self.
    pub(crate) next_hops: &'a BTreeMap<Family, NextHop>,
}

impl Export<'_> {
    /// What the peer is told about a route; none: nothing.
    pub(crate) fn apply(
        &self,
        family: Family,
        from: Provenance,
        route: &PathAttributes,
    ) -> Option<PathAttributes> {
        if from != Provenance::Own && !self.may_learn(from, &route.attributes) {
            return None;
        }
        let otc = route.attributes.otc;
        if otc.is_some() && self.role.is_some_and(is_for_customers_only) {
            return None;
        }
        let is_stale = route.attributes.communities.contains(&Community::LLGR_STALE) && !self.long_lived;
        if is_stale && !self.internal {
            return None;
        }
        let unchanged = ExportPolicy::default();
        let changes = self.changes.get(&family).unwrap_or(&unchanged);
        let other = self.next_hops.get(&Family::Ipv6Unicast).filter(|_| self.extended_next_hop);
        let own = self.next_hops.get(&family);
        // On a link-local session the other end need not have an address of ours to go to.
        let own_address = if is_link_local(self.address) { other.or(own) } else { own.or(other) }.copied();
        let next_hop = match (from, route.next_hop) {
            (Provenance::Own, Some(given)) => given,
            // Unchanged inside the AS (RFC 4271 section 5.1.3 case 1).
            (Provenance::External | Provenance::Internal, Some(learned))
                if self.internal
                    && !changes.next_hop_self
                    && !is_link_local(learned.address)
                    && self.can_say(family, learned) =>
            {
                // A link-local address is nothing beyond its link (RFC 2545 section 3).
                NextHop { link_local: None, ..learned }
            }
            _ => own_address?,
        };
        // The peer's own address is no next hop for it (section 5.1.3).
        if next_hop.address == self.address {
            return None;
        }
        let mut attributes = route.attributes.clone();
        if self.internal {
            attributes.local_pref.get_or_insert(DEFAULT_LOCAL_PREF);
            if from == Provenance::Own {
                // What an own route is prepended with is for other AS: inside ours it would be a loop.
                attributes.as_path = AsPath::default();
            }
        } else {
            attributes.as_path.prepend(self.local_asn, 1);
            attributes.local_pref = None;
            attributes.originator_id = None;
            attributes.cluster_list = Vec::new();
            if from == Provenance::Own {
                let own = mem::take(&mut attributes.extended_communities);
                attributes.extended_communities =
                    own.into_iter().map(ExtendedCommunity::transitive).collect();
            }
            // Non-transitive over AS borders (RFC 4360 section 2, bit 0x40).
            attributes.extended_communities.retain(|community| community.0[0] & 0x40 == 0);
            if matches!(self.role, Some(Role::Provider | Role::Peer | Role::RouteServer)) {
                // Rule 1 of egress in RFC 9234 section 5.
                attributes.otc = otc.or(Some(self.local_asn));
            }
            if from != Provenance::Own {
                // MED is for the neighbour AS alone (RFC 4271 section 5.1.4).
                attributes.med = None;
            }
        }
        self.change(changes, &mut attributes);
        if is_stale {
            // Partial deployment inside the AS (RFC 9494 section 4.6).
            attributes.communities.insert(Community::NO_EXPORT);
            attributes.local_pref = Some(0);
        }
        for unknown in attributes.unknown.values_mut() {
            unknown.flags |= Unknown::PARTIAL;
        }
        Some(PathAttributes { next_hop: Some(next_hop), attributes })
    }

    /// Whether the next hop can be one of the family's routes.
    fn can_say(&self, family: Family, next_hop: NextHop) -> bool {
        next_hop.address.is_ipv4() == (family == Family::Ipv4Unicast)
            || (family == Family::Ipv4Unicast && self.extended_next_hop)
    }

    fn change(&self, changes: &ExportPolicy, attributes: &mut Attributes) {
        if self.internal {
            attributes.local_pref = changes.local_pref.or(attributes.local_pref);
        } else {
            attributes.as_path.prepend(self.local_asn, usize::from(changes.prepend));
        }
        attributes.med = changes.med.or(attributes.med);
        attributes.communities.extend(changes.communities.iter().copied().map(Community));
        attributes
            .large_communities
            .extend(changes.large_communities.iter().copied().map(LargeCommunity::from));
        if changes.graceful_shutdown {
            attributes.communities.insert(Community::GRACEFUL_SHUTDOWN);
            attributes.local_pref = self.internal.then_some(0);
        }
    }

    /// Whether the peer may hear of a learned route at all.
    fn may_learn(&self, from: Provenance, attributes: &Attributes) -> bool {
        // RFC 4271 section 9.2.1: what internal peers said is not said to internal peers.
        let allowed = self.learned && !(from == Provenance::Internal && self.internal);
        // RFC 1997: these bind whoever receives them, thus not routes of our own.
        let has = |community| attributes.communities.contains(&community);
        allowed
            && !has(Community::NO_ADVERTISE)
            && (self.internal || !(has(Community::NO_EXPORT) || has(Community::NO_EXPORT_SUBCONFED)))
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    static UNCHANGED: BTreeMap<Family, ExportPolicy> = BTreeMap::new();

    fn export(internal: bool, next_hops: &BTreeMap<Family, NextHop>) -> Export<'_> {
        let address = "10.0.0.9".parse().unwrap();
        Export {
            local_asn: Asn(65010),
            internal,
            address,
            learned: true,
            long_lived: false,
            role: None,
            extended_next_hop: false,
            changes: &UNCHANGED,
            next_hops,
        }
    }

    fn own_address() -> BTreeMap<Family, NextHop> {
        [(Family::Ipv4Unicast, IpAddr::from([10, 0, 0, 1]).into())].into()
    }

    fn learned() -> PathAttributes {
        PathAttributes {
            next_hop: Some(IpAddr::from([10, 0, 0, 7]).into()),
            attributes: Attributes {
                as_path: AsPath::sequence([65001]),
                med: Some(5),
                local_pref: Some(200),
                unknown: [(99, Unknown { flags: 0xc0, value: [1].into() })].into(),
                ..Attributes::default()
            },
        }
    }

    #[test]
    fn accept_lists() {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>();
        let filter = ImportFilter { deny: nets(&["10.2.0.0/16"]), ..ImportFilter::default() };
        let mut import = Import { accept: nets(&["10.0.0.0/8", "::/0"]), filter };
        let none = Attributes::default();
        for prefix in nets(&["10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32"]) {
            assert!(import.accepts(&prefix, &none), "{prefix}");
        }
        for prefix in nets(&["0.0.0.0/0", "11.0.0.0/8", "10.2.0.0/16", "10.2.3.0/24"]) {
            assert!(!import.accepts(&prefix, &none), "{prefix}");
        }
        import.accept.clear();
        assert!(!import.accepts(&nets(&["10.0.0.0/8"])[0], &none));
    }

    #[test]
    fn communities_that_are_asked_for() {
        let prefix = "10.0.0.0/8".parse().unwrap();
        let filter = ImportFilter {
            communities: [7].into(),
            large_communities: [(1, 2, 3)].into(),
            ..ImportFilter::default()
        };
        let import = Import { accept: vec![prefix], filter };
        let large = |local2| LargeCommunity { global: 1, local1: 2, local2 };
        for (communities, large_communities, accepted) in [
            (vec![], vec![], false),
            (vec![6, 8], vec![large(4)], false),
            (vec![6, 7], vec![], true),
            (vec![], vec![large(3)], true),
        ] {
            let attributes = Attributes {
                communities: communities.into_iter().map(Community).collect(),
                large_communities: large_communities.into_iter().collect(),
                ..Attributes::default()
            };
            assert_eq!(import.accepts(&prefix, &attributes), accepted, "{attributes:?}");
        }
    }

    #[test]
    fn routes_that_end_soon_are_the_last_choice() {
        for (community, internal, local_pref) in [
            (Community::GRACEFUL_SHUTDOWN, false, Some(0)),
            (Community::GRACEFUL_SHUTDOWN, true, Some(200)),
            (Community::NO_EXPORT, false, Some(200)),
        ] {
            let mut attributes = learned().attributes;
            attributes.communities.insert(community);
            honour_graceful_shutdown(&mut attributes, internal);
            assert_eq!(attributes.local_pref, local_pref, "{community} {internal}");
        }
    }

    #[test]
    fn what_a_peer_is_told_otherwise() {
        let policy = ExportPolicy {
            next_hop_self: true,
            prepend: 2,
            med: Some(9),
            local_pref: Some(50),
            communities: [7].into(),
            large_communities: [(1, 2, 3)].into(),
            ..ExportPolicy::default()
        };
        let (next_hops, changes) = (own_address(), [(Family::Ipv4Unicast, policy.clone())].into());
        let told = |internal, changes: &BTreeMap<Family, ExportPolicy>| {
            let export = Export { changes, ..export(internal, &next_hops) };
            export.apply(Family::Ipv4Unicast, Provenance::External, &learned()).unwrap()
        };
        let (inside, outside) = (told(true, &changes), told(false, &changes));
        assert_eq!(inside.next_hop, Some(IpAddr::from([10, 0, 0, 1]).into()));
        assert_eq!(inside.attributes.as_path.to_string(), "65001");
        assert_eq!((inside.attributes.local_pref, inside.attributes.med), (Some(50), Some(9)));
        assert_eq!(outside.attributes.as_path.to_string(), "65010 65010 65010 65001");
        assert_eq!((outside.attributes.local_pref, outside.attributes.med), (None, Some(9)));
        for told in [inside, outside] {
            assert_eq!(told.attributes.communities, [Community(7)].into());
            assert_eq!(told.attributes.large_communities.len(), 1);
        }
        // The policy of the other family.
        let other = [(Family::Ipv6Unicast, policy.clone())].into();
        assert_eq!(told(true, &other), told(true, &UNCHANGED));
        let drain = [(Family::Ipv4Unicast, ExportPolicy { graceful_shutdown: true, ..policy })].into();
        for (internal, local_pref) in [(true, Some(0)), (false, None)] {
            let told = told(internal, &drain);
            assert!(told.attributes.communities.contains(&Community::GRACEFUL_SHUTDOWN));
            assert_eq!(told.attributes.local_pref, local_pref);
        }
    }

    #[test]
    fn our_link_bandwidth_is_told_to_external_peers() {
        let mut route = learned();
        route.attributes.extended_communities = [ExtendedCommunity::link_bandwidth(Asn(65010), 1)].into();
        let next_hops = own_address();
        let kind = |internal, from| {
            let told = export(internal, &next_hops).apply(Family::Ipv4Unicast, from, &route);
            told.unwrap().attributes.extended_communities.first().map(|community| community.0[0])
        };
        assert_eq!((kind(false, Provenance::Own), kind(true, Provenance::Own)), (Some(0), Some(0x40)));
        assert_eq!(kind(false, Provenance::External), None);
    }

    /// RFC 9234 section 5: each role, without OTC and with one of the neighbour (65001) or of somebody else.
    #[test]
    fn only_to_customer() {
        use Role::*;
        for (role, leaks, told, marked) in [
            (Provider, [false, true, true], [true, true, true], Some(Asn(65010))),
            (RouteServer, [false, true, true], [true, true, true], Some(Asn(65010))),
            (RouteServerClient, [false, false, false], [true, false, false], None),
            (Customer, [false, false, false], [true, false, false], None),
            (Peer, [false, false, true], [true, false, false], Some(Asn(65010))),
        ] {
            for (at, otc) in [None, Some(Asn(65001)), Some(Asn(65002))].into_iter().enumerate() {
                assert_eq!(is_leak(role, otc, Asn(65001)), leaks[at], "{role:?} {otc:?}");
                let mut route = learned();
                route.attributes.otc = otc;
                let next_hops = own_address();
                let export = Export { role: Some(role), ..export(false, &next_hops) };
                let heard = export.apply(Family::Ipv4Unicast, Provenance::External, &route);
                assert_eq!(heard.is_some(), told[at], "{role:?} {otc:?}");
                if let Some(heard) = heard {
                    assert_eq!(heard.attributes.otc, otc.or(marked), "{role:?} {otc:?}");
                }
            }
        }
        // Without a role it is passed on as it is.
        let mut route = learned();
        route.attributes.otc = Some(Asn(65002));
        let heard = export(false, &own_address()).apply(Family::Ipv4Unicast, Provenance::External, &route);
        assert_eq!(heard.unwrap().attributes.otc, Some(Asn(65002)));
    }

    #[test]
    fn an_external_peer_hears_of_us_as_the_next_hop() {
        let told = export(false, &own_address())
            .apply(Family::Ipv4Unicast, Provenance::External, &learned())
            .unwrap();
        assert_eq!(told.next_hop, Some(IpAddr::from([10, 0, 0, 1]).into()));
        assert_eq!(told.attributes.as_path.to_string(), "65010 65001");
        assert_eq!((told.attributes.med, told.attributes.local_pref), (None, None));
        assert_eq!(told.attributes.unknown[&99].flags, 0xe0);
    }

    #[test]
    fn an_internal_peer_hears_of_the_route_as_it_is() {
        let told = export(true, &own_address())
            .apply(Family::Ipv4Unicast, Provenance::External, &learned())
            .unwrap();
        assert_eq!(told.next_hop, learned().next_hop);
        assert_eq!(told.attributes.as_path.to_string(), "65001");
        assert_eq!((told.attributes.med, told.attributes.local_pref), (Some(5), Some(200)));
    }

    #[test]
    fn link_local_next_hops_end_at_their_link() {
        let own: NextHop = "2001:db8::9".parse::<IpAddr>().unwrap().into();
        let next_hops = [(Family::Ipv6Unicast, own)].into();
        let link_local = Some("fe80::1".parse().unwrap());
        for (address, told) in [("2001:db8::1", "2001:db8::1"), ("fe80::1", "2001:db8::9")] {
            let mut route = learned();
            route.next_hop = Some(NextHop { address: address.parse().unwrap(), link_local });
            let export = export(true, &next_hops).apply(Family::Ipv6Unicast, Provenance::External, &route);
            assert_eq!(export.unwrap().next_hop, Some(told.parse::<IpAddr>().unwrap().into()));
        }
    }

    #[test]
    fn internal_routes_stay_away_from_internal_peers() {
        let next_hops = own_address();
        let apply =
            |internal, from| export(internal, &next_hops).apply(Family::Ipv4Unicast, from, &learned());
        assert_eq!(apply(true, Provenance::Internal), None);
        assert!(apply(false, Provenance::Internal).is_some());
    }

    #[test]
    fn well_known_communities_bind_learned_routes() {
        for (community, internal, external) in [
            (Community::NO_EXPORT, true, false),
            (Community::NO_EXPORT_SUBCONFED, true, false),
            (Community::NO_ADVERTISE, false, false),
            (Community::GRACEFUL_SHUTDOWN, true, true),
        ] {
            let mut route = learned();
            route.attributes.communities = BTreeSet::from([community]);
            let next_hops = own_address();
            let told = |internal, from| {
                export(internal, &next_hops).apply(Family::Ipv4Unicast, from, &route).is_some()
            };
            assert_eq!(told(true, Provenance::External), internal, "{community}");
            assert_eq!(told(false, Provenance::External), external, "{community}");
            assert!(told(false, Provenance::Own), "{community}");
        }
    }

    #[test]
    fn next_hops_that_make_no_sense_are_not_told() {
        let mut route = learned();
        route.next_hop = Some(IpAddr::from([10, 0, 0, 9]).into());
        assert_eq!(
            export(true, &own_address()).apply(Family::Ipv4Unicast, Provenance::External, &route),
            None
        );
        assert_eq!(
            export(false, &BTreeMap::new()).apply(Family::Ipv4Unicast, Provenance::External, &learned()),
            None
        );
    }

    #[test]
    fn next_hops_of_the_other_family() {
        let v6: NextHop = "2001:db8::9".parse::<IpAddr>().unwrap().into();
        let next_hops = [(Family::Ipv6Unicast, v6)].into();
        let mut route = learned();
        route.next_hop = Some("2001:db8::1".parse::<IpAddr>().unwrap().into());
        let told = |internal, extended_next_hop| {
            let export = Export { extended_next_hop, ..export(internal, &next_hops) };
            export.apply(Family::Ipv4Unicast, Provenance::External, &route).and_then(|told| told.next_hop)
        };
        assert_eq!((told(false, true), told(true, true)), (Some(v6), route.next_hop));
        assert_eq!((told(false, false), told(true, false)), (None, None));
    }

    #[test]
    fn own_routes_are_prepended_for_other_as_only() {
        let mut route = learned();
        route.next_hop = None;
        route.attributes.as_path = AsPath::sequence([65010, 65010]);
        let path = |internal| {
            let next_hops = own_address();
            let told = export(internal, &next_hops).apply(Family::Ipv4Unicast, Provenance::Own, &route);
            told.unwrap().attributes.as_path.to_string()
        };
        assert_eq!((path(false).as_str(), path(true).as_str()), ("65010 65010 65010", ""));
    }

    #[test]
    fn extended_communities_that_are_not_transitive_stay_inside() {
        use crate::wire::ExtendedCommunity;
        let mut route = learned();
        let (transitive, not) =
            (ExtendedCommunity([0, 2, 0, 0, 0, 0, 0, 1]), ExtendedCommunity([0x40, 4, 0, 0, 0, 0, 0, 1]));
        route.attributes.extended_communities = [transitive, not].into();
        let next_hops = own_address();
        let told = |internal| {
            let told = export(internal, &next_hops).apply(Family::Ipv4Unicast, Provenance::External, &route);
            told.unwrap().attributes.extended_communities
        };
        assert_eq!((told(true), told(false)), ([transitive, not].into(), [transitive].into()));
    }
}
