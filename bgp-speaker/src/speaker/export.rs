//! What goes out: our own routes, marks for what changed, and the UPDATEs of a session.
use super::{OwnRoute, Slot, Speaker, family_of};
use crate::{
    PeerId,
    config::{Asn, Family, Route, RouteAttributes},
    connection::ConnectionId,
    policy::{Export, Provenance},
    rib::{AttributesId, Change, Path, PathAttributes, PrefixId, Source},
    seen::LastError,
    update_queue::Exporter,
    wire::{AsPath, Attributes, Community, ExtendedCommunity, LargeCommunity, NextHop, PathId},
};
use ipnet::IpNet;
use std::{collections::BTreeMap, net::IpAddr};

impl Speaker {
    /// Compares the routes with what is announced, and changes and marks what differs.
    pub(super) fn replace_own_routes(&mut self, mut routes: Vec<Route>) {
        // Several of one prefix keep their order.
        routes.sort_by_key(|route| route.prefix);
        let (mut gone, mut other) = (Vec::new(), Vec::new());
        let mut known = self.own.iter().peekable();
        for wanted in routes.chunk_by(|one, next| one.prefix == next.prefix) {
            let prefix = wanted[0].prefix;
            while let Some((known, _)) = known.next_if(|(known, _)| **known < prefix) {
                gone.push(*known);
            }
            let own = known.next_if(|(known, _)| **known == prefix);
            if !own.is_some_and(|(_, own)| own.iter().eq(wanted)) {
                other.push(wanted);
            }
        }
        gone.extend(known.map(|(known, _)| *known));
        for prefix in gone {
            self.withdraw_own(prefix);
        }
        for wanted in other {
            self.set_own(wanted[0].prefix, wanted);
        }
    }

    /// After a change of our AS: what own routes are prepended with is another AS now.
    pub(super) fn rebuild_own_routes(&mut self) {
        let prefixes: Vec<IpNet> = self.own.keys().copied().collect();
        for prefix in prefixes {
            let own = self.own.get(&prefix).into_iter().flatten();
            let routes: Vec<_> = own
                .map(|route| Route { prefix, attributes: route.config.clone(), peers: route.peers.clone() })
                .collect();
            self.set_own(prefix, &routes);
        }
    }

    /// Announces these routes of one prefix, and no others of it.
    fn set_own(&mut self, prefix: IpNet, routes: &[Route]) {
        let asn = self.global.as_ref().map_or(Asn(0), |global| global.asn);
        let own = routes.iter().map(|Route { attributes, peers, .. }| OwnRoute {
            attributes: self.rib.attributes.intern(own_attributes(attributes, asn)),
            config: attributes.clone(),
            peers: peers.clone(),
        });
        let own: Vec<OwnRoute> = own.collect();
        if self.own.get(&prefix) != Some(&own)
            && let Some(first) = own.first()
        {
            let family = family_of(&prefix);
            let change = self.rib.set(family, prefix, Path::own(first.attributes));
            // Of several routes another one may have changed.
            self.mark(family, &Change { best: true, ..change });
        }
        let old = self.own.insert(prefix, own);
        self.release_own(old);
    }

    fn withdraw_own(&mut self, prefix: IpNet) {
        let family = family_of(&prefix);
        if let Some(id) = self.rib.table(family).find(&prefix) {
            if let Some(change) = self.rib.remove(family, id, Source::LOCAL, PathId::default()) {
                self.mark(family, &change);
            }
            self.release_unused(family, [id]);
        }
        let old = self.own.remove(&prefix);
        self.release_own(old);
    }

    fn release_own(&mut self, routes: Option<Vec<OwnRoute>>) {
        for route in routes.into_iter().flatten() {
            self.rib.attributes.release(route.attributes);
        }
    }

    /// A path of a prefix changed: whoever knows it or may hear of it looks again, if it is the best one, or all
    /// matter. Who told the best one hears nothing of it (split horizon).
    pub(super) fn mark(&mut self, family: Family, change: &Change) {
        if change.old == change.new && !change.best {
            return;
        }
        self.mark_installed(family, change.prefix);
        let id = change.prefix;
        let best = self.rib.table(family).best(id).map(|best| best.source);
        for (source, slot) in (0..).map(Source).zip(&mut self.peers) {
            let Some(slot) = slot else { continue };
            let learned = slot.peer.config.export_learned;
            if let Some(out) = slot.out.get_mut(&family)
                && (change.best || out.takes_all())
                && (best == Some(Source::LOCAL)
                    || learned && (out.takes_all() || best.is_some_and(|best| best != source))
                    || out.knows(id))
            {
                out.mark(id);
            }
        }
    }

    /// Looks at all routes again for one peer.
    pub(super) fn export_policy_changed(&mut self, source: Source) {
        let Some(Some(slot)) = self.peers.get_mut(usize::from(source.0)) else { return };
        for (family, out) in &mut slot.out {
            for id in self.rib.table(*family).ids() {
                out.mark(id);
            }
        }
    }

    /// Forgets prefixes that have no path and that no peer needs to hear of any more.
    pub(super) fn release_unused(&mut self, family: Family, ids: impl IntoIterator<Item = PrefixId>) {
        for id in ids {
            let used = |slot: &Slot| slot.out.get(&family).is_some_and(|out| out.uses(id));
            if self.rib.table(family).paths(id).is_empty()
                && !self.fib.uses(family, id)
                && !self.peers.iter().flatten().any(used)
                && !self.feeds.values().any(|feed| feed.uses(family, id))
            {
                self.rib.release(family, id);
            }
        }
    }

    /// See [`Speaker::transmit`].
    pub(super) fn transmit_to(
        &mut self,
        source: Source,
        connection: ConnectionId,
        limit: usize,
        out: &mut Vec<u8>,
    ) {
        let limit = out.len() + limit;
        let Some(global) = self.global.clone() else { return };
        let Some(Some(slot)) = self.peers.get_mut(usize::from(source.0)) else { return };
        let Some(waiting) = slot.peer.connection_mut(connection) else { return };
        out.append(&mut waiting.waiting);
        let is_session = slot.peer.session().is_some_and(|session| session.id == Some(connection));
        if !is_session {
            return;
        }
        let Some(session) = slot.peer.session() else { return };
        let (Some(negotiated), Some(ends)) = (&session.negotiated, &session.endpoints) else { return };
        let exporter = PeerExporter {
            source,
            name: slot.range.map_or(slot.peer.config.id(), PeerId::Range),
            deferring: self.own_start.deferring,
            own: &self.own,
            neighbours: &self
                .rib
                .neighbours
                .iter()
                .map(|n| n.is_some_and(|n| n.internal))
                .collect::<Vec<_>>(),
            policy: Export {
                local_asn: global.asn,
                internal: negotiated.context.internal,
                address: slot.peer.config.address,
                long_lived: negotiated.knows_long_lived,
                learned: slot.peer.config.export_learned,
                extended_next_hop: negotiated.context.extended_next_hop,
                changes: &slot.peer.config.export,
                role: slot.peer.config.role.map(|role| role.local),
                next_hops: &ends.next_hops,
            },
        };
        let mut unused = Vec::new();
        let (mut messages, mut refreshes, mut error) = (0, 0, None);
        for (&family, queue) in &mut slot.out {
            let (table, attributes) = self.rib.export(family);
            let filled = queue.fill(table, attributes, &exporter, &negotiated.context, limit, out);
            messages += filled.messages;
            refreshes += filled.refreshes;
            error = filled.error.or(error);
            unused.push((family, filled.unused));
        }
        if let Some(session) = slot.peer.session_mut() {
            session.sent_count.update += messages;
            session.sent_count.route_refresh += refreshes;
        }
        if let Some(error) = error {
            slot.peer.last_error = Some((LastError::Unsendable(error), None));
        }
        for (family, unused) in unused {
            let table = self.rib.table(family);
            let prefixes: Vec<IpNet> = unused.iter().map(|&id| table.prefix(id)).collect();
            table.touch(&prefixes);
            self.release_unused(family, unused);
        }
    }
}

impl PartialEq<Route> for OwnRoute {
    /// Whether that is what was asked for.
    fn eq(&self, route: &Route) -> bool {
        self.config == route.attributes && self.peers == route.peers
    }
}

struct PeerExporter<'a> {
    source: Source,
    /// By which routes name the peer: its own, or that of its range.
    name: PeerId,
    /// Learned routes are held back.
    deferring: bool,
    own: &'a BTreeMap<IpNet, Vec<OwnRoute>>,
    /// By number of the source: whether it is internal.
    neighbours: &'a [bool],
    policy: Export<'a>,
}

impl Exporter for PeerExporter<'_> {
    fn provenance(&self, path: &Path) -> Option<Provenance> {
        match path.source {
            Source::LOCAL => Some(Provenance::Own),
            _ if self.deferring => None,
            // What a peer told is not told to it (split horizon).
            source if source == self.source => None,
            source if self.neighbours.get(usize::from(source.0)) == Some(&true) => Some(Provenance::Internal),
            _ => Some(Provenance::External),
        }
    }

    fn own(&self, prefix: &IpNet, path: &Path) -> Option<AttributesId> {
        if path.source != Source::LOCAL {
            return Some(path.attributes);
        }
        let routes = self.own.get(prefix)?;
        let named = |route: &&OwnRoute| route.peers.as_ref().is_some_and(|peers| peers.contains(&self.name));
        let route =
            routes.iter().find(named).or_else(|| routes.iter().find(|route| route.peers.is_none()))?;
        Some(route.attributes)
    }

    fn export(&self, family: Family, from: Provenance, route: &PathAttributes) -> Option<PathAttributes> {
        self.policy.apply(family, from, route)
    }
}

/// The attributes of an own route as they stand in the table.
fn own_attributes(route: &RouteAttributes, asn: Asn) -> PathAttributes {
    PathAttributes {
        next_hop: route.next_hop.map(|address: IpAddr| NextHop::from(address)),
        attributes: Attributes {
            as_path: AsPath::sequence(std::iter::repeat_n(asn.0, route.prepend.into())),
            med: route.med,
            local_pref: route.local_pref,
            communities: route.communities.iter().copied().map(Community).collect(),
            large_communities: route.large_communities.iter().copied().map(LargeCommunity::from).collect(),
            extended_communities: route
                .link_bandwidth
                .map(|bandwidth| ExtendedCommunity::link_bandwidth(asn, bandwidth))
                .into_iter()
                .collect(),
            ..Attributes::default()
        },
    }
}
