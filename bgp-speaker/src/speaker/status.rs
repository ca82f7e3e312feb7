//! What an operator asks.
use super::{Slot, Speaker, family_of};
use crate::{
    PeerId, Time,
    config::{AddPathStatus, Asn, Family, PeerAsn, PeerStatus, PrefixCounts, RouteStatus, State},
    decision::Rule,
    rib::{AttributesId, Path, PathAttributes, Source},
    seen,
    update_queue::AdjRibOut,
    wire::{Capability, Open},
};
use ipnet::IpNet;

impl Speaker {
    /// All peers, by address.
    pub fn peers(&self, now: Time) -> Vec<PeerStatus> {
        self.by_id
            .values()
            .filter_map(|&source| self.slot(source))
            .map(|slot| self.peer_status(slot, now))
            .collect()
    }

    fn peer_status(&self, slot: &Slot, now: Time) -> PeerStatus {
        let peer = &slot.peer;
        let foremost = peer.foremost();
        let (open, session) = (foremost.open.as_ref(), foremost.negotiated.as_ref());
        let is_up = foremost.fsm.state() == State::Established;
        let (received, sent) = peer.messages();
        let sent_restart =
            foremost.sent_open.iter().flat_map(|open| &open.capabilities).find_map(|capability| {
                match capability {
                    Capability::GracefulRestart(restart) => Some(restart),
                    _ => None,
                }
            });
        let local_restart = self.own_start.status(&peer.config, sent_restart, now);
        let graceful_restart = slot.kept.status(now);
        PeerStatus {
            address: peer.config.address,
            interface: peer.config.interface,
            asn: match peer.config.asn {
                PeerAsn::Is(asn) => asn,
                PeerAsn::External => open.map_or(Asn(0), |open| open.asn),
            },
            local_asn: self.global.as_ref().map_or(Asn(0), |global| global.asn),
            local_router_id: self.global.as_ref().map(|global| global.router_id),
            router_id: open.map(|open| open.router_id),
            local_address: foremost.endpoints.as_ref().map(|ends| ends.local.ip().to_canonical()),
            state: format!("{:?}", peer.state()),
            since_seconds: now.saturating_sub(peer.since).as_secs(),
            established_count: peer.established_count,
            flap_count: peer.established_count.saturating_sub(is_up.into()),
            deadline_seconds: peer.next_deadline().map(|deadline| deadline.saturating_sub(now).as_secs()),
            families: session.map(|session| session.context.families.clone()).unwrap_or_default(),
            add_path: AddPathStatus {
                send: session.map(|session| session.context.add_path_send.clone()).unwrap_or_default(),
                receive: session.map(|session| session.context.add_path_receive.clone()).unwrap_or_default(),
            },
            hold_seconds: session.map(|session| session.timers.hold_seconds),
            keepalive_seconds: session.map(|session| session.timers.keepalive_seconds),
            local_timers: peer.config.timers,
            remote_hold_seconds: open.map(|open| open.hold_seconds),
            capabilities: capabilities(open),
            capabilities_sent: capabilities(foremost.sent_open.as_ref()),
            prefixes_received: slot.accepted(),
            prefixes_sent: slot.out.values().map(AdjRibOut::announced).sum(),
            prefixes: (peer.config.families.iter())
                .map(|&family| {
                    let sent = slot.out.get(&family).map_or(0, AdjRibOut::announced);
                    (family, PrefixCounts { sent, ..slot.prefixes[family as usize] })
                })
                .collect(),
            messages_received: received.total(),
            received_by_type: received,
            messages_sent: sent.total(),
            sent_by_type: sent,
            restart_state: seen::restart_state(local_restart.as_ref(), graceful_restart.as_ref()).to_owned(),
            local_restart,
            graceful_restart,
            last_error: peer.error(),
            last_error_detail: peer.last_error.as_ref().map(|(error, at)| error.status(*at, now)),
            // The driver knows: see [`Output::Watch`](super::Output::Watch).
            bfd: None,
        }
    }

    /// All routes: by prefix, then what peers told, what is best of it, what peers were told.
    pub fn routes(&self) -> Vec<RouteStatus> {
        let mut prefixes = self.prefixes();
        prefixes.sort_unstable();
        self.routes_of(&prefixes)
    }

    /// All prefixes that [`routes`](Speaker::routes) has, in no order.
    pub fn prefixes(&self) -> Vec<IpNet> {
        let of = |family| {
            let table = self.rib.table(family);
            table.ids().map(|id| table.prefix(id))
        };
        of(Family::Ipv4Unicast).chain(of(Family::Ipv6Unicast)).collect()
    }

    /// The part of [`routes`](Speaker::routes) that is of these prefixes, in their order.
    pub fn routes_of(&self, prefixes: &[IpNet]) -> Vec<RouteStatus> {
        let mut rows = Vec::new();
        for &prefix in prefixes {
            let family = family_of(&prefix);
            if let Some(id) = self.rib.table(family).find(&prefix) {
                self.rows(family, prefix, id, &mut rows);
            }
        }
        rows
    }

    fn rows(&self, family: Family, prefix: IpNet, id: u32, rows: &mut Vec<RouteStatus>) {
        debug_assert_eq!(family, family_of(&prefix));
        let table = self.rib.table(family);
        let paths = table.paths(id);
        let verdicts = self.rib.decision().explain(paths);
        let row = |table: &str, peer, attributes: AttributesId, best, rule: Option<Rule>| {
            row(table, peer, prefix, self.rib.attributes.get(attributes), best, rule)
        };
        // What is kept of a session that is gone may have them, too.
        let told_by =
            |path: &Path| (path.id.0 > 0 || self.takes_paths(path.source, family)).then_some(path.id.0);
        let address = |source: Source| self.slot(source).map(|slot| slot.peer.config.id());
        let mut told: Vec<_> = paths
            .iter()
            .zip(&verdicts)
            .filter(|(path, _)| path.source != Source::LOCAL)
            .map(|(path, &(best, rule))| RouteStatus {
                path_id: told_by(path),
                ..row("adj-in", address(path.source), path.attributes, best, Some(rule))
            })
            .collect();
        told.sort_by_key(|row| (row.peer, row.path_id));
        rows.append(&mut told);
        for (path, &(best, rule)) in paths.iter().zip(&verdicts) {
            if best {
                rows.push(RouteStatus {
                    path_id: told_by(path),
                    ..row("loc", address(path.source), path.attributes, true, Some(rule))
                });
            }
        }
        for slot in self.by_id.values().filter_map(|&source| self.slot(source)) {
            let Some(out) = slot.out.get(&family) else { continue };
            let best = table.best(id);
            for (path, sent) in out.sent(id) {
                let is_best = !out.takes_all()
                    || table.identified(id).any(|(name, told)| name == path && Some(told) == best);
                rows.push(RouteStatus {
                    path_id: out.takes_all().then_some(path.0),
                    ..row("adj-out", Some(slot.peer.config.id()), sent, is_best, None)
                });
            }
        }
    }

    /// Whether the peer tells several paths of a prefix (RFC 7911).
    fn takes_paths(&self, source: Source, family: Family) -> bool {
        let session = self.slot(source).and_then(|slot| slot.peer.session()?.negotiated.as_ref());
        session.is_some_and(|session| session.context.add_path_receive.contains(&family))
    }
}

/// Names of the capabilities of an OPEN.
fn capabilities(open: Option<&Open>) -> Vec<String> {
    open.iter().flat_map(|open| open.capabilities.iter().map(ToString::to_string)).collect()
}

fn row(
    table: &str,
    peer: Option<PeerId>,
    prefix: IpNet,
    route: &PathAttributes,
    best: bool,
    rule: Option<Rule>,
) -> RouteStatus {
    let attributes = &route.attributes;
    RouteStatus {
        table: table.to_owned(),
        peer,
        prefix,
        path_id: None,
        next_hop: route.next_hop.map(|next_hop| next_hop.address),
        as_path: attributes.as_path.to_string(),
        origin: attributes.origin.to_string(),
        local_pref: attributes.local_pref,
        med: attributes.med,
        communities: (attributes.communities.iter().map(ToString::to_string))
            .chain(attributes.extended_communities.iter().map(ToString::to_string))
            .chain(attributes.large_communities.iter().map(ToString::to_string))
            .collect(),
        best,
        reason: rule.map(|rule| rule.to_string()),
    }
}
