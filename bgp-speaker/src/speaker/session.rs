//! What a session brings in: it comes up, tells routes, asks for ours, goes down.
use super::{Output, PathKey, Slot, Speaker, family_of};
use crate::{
    Time,
    config::{Family, PrefixCounts},
    connection::{ConnectionId, Endpoints},
    decision::Neighbour,
    negotiate::Negotiated,
    peer::Request,
    policy::{self, Import},
    rib::{Change, Path, PathAttributes, PrefixId, Source},
    seen::LastError,
    transport::Transport,
    update_queue::AdjRibOut,
    wire::{
        AfiSafi, Announcement, GracefulRestart, Message, Nlri, Notification, Reason, RefreshKind,
        RouteRefresh, Severity, Update, UpdateError,
    },
};
use std::{collections::BTreeSet, time::Duration};

/// So many refused routes of a peer are kept at most.
const MAX_REFUSED: u64 = 1_000_000;
/// So many paths of a prefix are taken of one peer (RFC 7911 does not say): each makes the choice of the best dearer.
const MAX_PATHS: usize = 64;

impl Speaker {
    /// Does what a peer asked for, in order.
    pub(super) fn serve(
        &mut self,
        source: Source,
        requests: Vec<Request>,
        now: Time,
        outputs: &mut Vec<Output>,
    ) {
        for request in requests {
            match request {
                Request::Connect(connection) => self.connect(source, connection, outputs),
                Request::Close(connection, last) => {
                    self.by_connection.remove(&connection);
                    outputs.push(Output::Close { connection, last });
                }
                Request::Up(negotiated) => self.up(source, &negotiated, now),
                Request::Down(terms) => self.down(source, terms.as_ref(), now),
                // Of a session that ended for what came before.
                _ if !self.is_up(source) => {}
                Request::Update(update, errors) => {
                    self.note(source, errors, now);
                    self.update(source, update);
                    self.check_max_prefixes(source, now, outputs);
                }
                Request::Refresh(refresh) => self.refresh(source, refresh),
                Request::EndOfRib(family) => self.end_of_rib(source, family),
            }
        }
    }

    fn connect(&mut self, source: Source, connection: ConnectionId, outputs: &mut Vec<Output>) {
        let (Some(global), Some(slot)) = (&self.global, self.slot(source)) else { return };
        let config = &slot.peer.config;
        outputs.push(Output::Connect {
            connection,
            remote: self.remote(config),
            local: config.local_address,
            transport: Transport::new(config, global),
        });
        self.by_connection.insert(connection, source);
    }

    fn is_up(&self, source: Source) -> bool {
        self.slot(source).is_some_and(|slot| !slot.out.is_empty())
    }

    pub(super) fn up(&mut self, source: Source, negotiated: &Negotiated, now: Time) {
        let (deferring, monitored) = (self.own_start.deferring, !self.stations.is_empty());
        let Some(slot) = self.slot_mut(source) else { return };
        slot.keeps_refused = !negotiated.route_refresh || monitored;
        slot.treated_as_withdraw = 0;
        slot.prefixes.iter_mut().for_each(PrefixCounts::restart);
        let families = negotiated.context.families.iter();
        let add_path = &negotiated.context.add_path_send;
        let out = |family: &Family| (*family, AdjRibOut::new(*family, add_path.contains(family), deferring));
        slot.out = families.map(out).collect();
        let neighbour = Neighbour {
            internal: negotiated.context.internal,
            router_id: negotiated.router_id,
            address: slot.peer.config.address,
        };
        let link =
            slot.peer.session().and_then(|session| session.endpoints.as_ref()).map_or(0, Endpoints::link);
        let moved = std::mem::replace(&mut slot.link, link) != link;
        self.rib.neighbours[usize::from(source.0)] = Some(neighbour);
        if moved {
            self.installation_changed(source);
        }
        self.restart_up(source, negotiated, now);
        self.monitor_up(source);
        self.end_deferral();
    }

    fn down(&mut self, source: Source, terms: Option<&GracefulRestart>, now: Time) {
        self.monitor_down(source, now);
        let Some(slot) = self.slot_mut(source) else { return };
        let out = std::mem::take(&mut slot.out);
        slot.unconfirmed.clear();
        for (family, mut out) in out {
            let used = out.clear(&mut self.rib.attributes);
            self.release_unused(family, used);
        }
        self.restart_down(source, terms, now);
    }

    /// Errors of an UPDATE that were handled (RFC 7606): the operator may want to know.
    fn note(&mut self, source: Source, mut errors: Vec<UpdateError>, now: Time) {
        let withdraws = errors.iter().any(|error| error.severity == Severity::TreatAsWithdraw);
        if let Some(error) = errors.pop()
            && let Some(slot) = self.slot_mut(source)
        {
            slot.treated_as_withdraw += u64::from(withdraws);
            slot.peer.last_error = Some((LastError::Handled(error), Some(now)));
        }
    }

    pub(super) fn update(&mut self, source: Source, update: Update) {
        self.rib.touch(&update.withdrawn);
        let find = |nlri: &Nlri| {
            let family = family_of(&nlri.prefix);
            Some((family, (self.rib.table(family).find(&nlri.prefix)?, nlri.path)))
        };
        let withdrawn: Vec<(Family, PathKey)> = update.withdrawn.iter().filter_map(find).collect();
        if let Some(Some(slot)) = self.peers.get_mut(usize::from(source.0)) {
            for nlri in &update.withdrawn {
                slot.prefixes[family_of(&nlri.prefix) as usize].withdrawn += 1;
            }
        }
        for (family, path) in withdrawn {
            self.withdraw(source, family, path);
        }
        if let Some(announced) = update.announced {
            announced.reach.iter().for_each(|reach| self.rib.touch(&reach.prefixes));
            self.announced(source, announced);
        }
    }

    fn announced(&mut self, source: Source, announced: Announcement) {
        let (Some(global), Some(slot)) = (&self.global, self.slot(source)) else { return };
        let mut attributes = announced.attributes;
        let mut is_loop = policy::is_loop(&attributes, global.asn, global.router_id);
        let neighbour = slot.peer.session().and_then(|session| session.open.as_ref()).map(|open| open.asn);
        if let (Some(role), Some(neighbour)) = (slot.peer.config.role, neighbour) {
            is_loop |= policy::is_leak(role.local, attributes.otc, neighbour);
            if policy::is_for_customers_only(role.local) {
                attributes.otc.get_or_insert(neighbour);
            }
        }
        let import = Import::new(&slot.peer.config);
        let internal = slot.peer.config.asn.is_internal(global.asn);
        let keeps_refused = slot.keeps_refused && slot.kept_refused() < MAX_REFUSED;
        let session = slot.peer.session().and_then(|session| session.negotiated.as_ref());
        let add_path = session.map(|session| session.context.add_path_receive.clone()).unwrap_or_default();
        let own_addresses: Vec<_> = slot
            .peer
            .session()
            .and_then(|session| session.endpoints.as_ref())
            .map(|ends| {
                ends.next_hops
                    .values()
                    .map(|own| own.address)
                    .chain([ends.local.ip().to_canonical()])
                    .collect()
            })
            .unwrap_or_default();
        policy::honour_graceful_shutdown(&mut attributes, internal);
        for reach in announced.reach {
            // A route through ourselves is no route (RFC 4271 section 5.1.3).
            let unusable = is_loop || own_addresses.contains(&reach.next_hop.address);
            let id = self
                .rib
                .attributes
                .intern(PathAttributes { next_hop: Some(reach.next_hop), attributes: attributes.clone() });
            for nlri in reach.prefixes {
                let Nlri { prefix, path } = nlri;
                let family = family_of(&prefix);
                let refused = unusable || !import.accepts(&prefix, &attributes);
                if let Some(Some(slot)) = self.peers.get_mut(usize::from(source.0)) {
                    let counts = &mut slot.prefixes[family as usize];
                    counts.received += 1;
                    counts.refused += u64::from(refused);
                }
                if unusable || (refused && !keeps_refused) {
                    if let Some(id) = self.rib.table(family).find(&prefix) {
                        self.withdraw(source, family, (id, path));
                    }
                    continue;
                }
                if add_path.contains(&family) && self.has_too_many_paths(source, family, nlri) {
                    continue;
                }
                let path = Path { source, id: path, refused, attributes: id };
                let change = self.rib.set(family, prefix, path);
                self.confirmed(source, family, &change);
                self.counted(source, family, &change);
            }
            self.rib.attributes.release(id);
        }
    }

    /// Whether a new path would be one too many of its prefix; the operator hears of it.
    fn has_too_many_paths(&mut self, source: Source, family: Family, nlri: Nlri) -> bool {
        let table = self.rib.table(family);
        let Some(id) = table.find(&nlri.prefix) else { return false };
        let paths = || table.paths(id).iter().filter(|path| path.source == source);
        let too_many = paths().count() >= MAX_PATHS && paths().all(|path| path.id != nlri.path);
        if too_many && let Some(slot) = self.slot_mut(source) {
            slot.peer.last_error = Some((LastError::TooManyPaths(nlri.prefix, MAX_PATHS), None));
        }
        too_many
    }

    /// A path of a source is no more.
    pub(super) fn withdraw(&mut self, source: Source, family: Family, (id, path): PathKey) {
        if let Some(change) = self.rib.remove(family, id, source, path) {
            self.confirmed(source, family, &change);
            self.counted(source, family, &change);
            self.release_unused(family, [id]);
        }
    }

    /// A path is what the peer last said: neither stale nor waited for.
    fn confirmed(&mut self, source: Source, family: Family, change: &Change) {
        if let Some(slot) = self.slot_mut(source) {
            let path = (change.prefix, change.path);
            if let Some(unconfirmed) = slot.unconfirmed.get_mut(&family) {
                unconfirmed.remove(&path);
            }
            slot.kept.confirm(family, path);
        }
    }

    /// Keeps count of paths, and tells the peers of a new best one, or of any if they take all.
    fn counted(&mut self, source: Source, family: Family, change: &Change) {
        if let Some(slot) = self.slot_mut(source) {
            match change.old {
                Some(old) if old.refused => slot.prefixes[family as usize].kept -= 1,
                Some(_) => slot.prefixes[family as usize].accepted -= 1,
                None => {}
            }
            match change.new {
                Some(path) if path.refused => slot.prefixes[family as usize].kept += 1,
                Some(_) => slot.prefixes[family as usize].accepted += 1,
                None => {}
            }
        }
        if change.old.map(|old| old.attributes) != change.new.map(|new| new.attributes) {
            self.feeds.values_mut().for_each(|feed| feed.mark(source, family, (change.prefix, change.path)));
        }
        self.mark(family, change);
    }

    /// The peer asks for our routes, or marks a refresh of its own (RFC 7313 section 4).
    fn refresh(&mut self, source: Source, refresh: RouteRefresh) {
        let Some(family) = refresh.family.family() else { return };
        let index = usize::from(source.0);
        let Some(Some(slot)) = self.peers.get_mut(index) else { return };
        let Some(out) = slot.out.get_mut(&family) else { return };
        let Some(session) = slot.peer.session_mut() else { return };
        let enhanced = session.negotiated.as_ref().is_some_and(|negotiated| negotiated.enhanced_refresh);
        match refresh.kind {
            RefreshKind::Request => {
                session.sent_count.route_refresh +=
                    out.refresh(enhanced, &mut self.rib.attributes, &mut session.waiting);
            }
            // Before its first End-of-RIB the peer has not told everything once.
            RefreshKind::Begin if slot.kept.is_stale(family) => {}
            RefreshKind::Begin => {
                slot.unconfirmed.insert(family, self.rib.paths_of(family, source).collect());
            }
            RefreshKind::End => {
                for path in slot.unconfirmed.remove(&family).unwrap_or_default() {
                    self.withdraw(source, family, path);
                }
            }
            RefreshKind::Other(_) => {}
        }
    }

    /// More prefixes than allowed end the session (RFC 4486).
    pub(super) fn check_max_prefixes(&mut self, source: Source, now: Time, outputs: &mut Vec<Output>) {
        let Some(slot) = self.slot(source) else { return };
        let Some(max) = slot.peer.config.max_prefixes else { return };
        if slot.accepted() > u64::from(max) {
            let family = slot.out.keys().next().copied().unwrap_or(Family::Ipv4Unicast);
            let AfiSafi { afi, safi } = family.into();
            let data = [&afi.to_be_bytes()[..], &[safi], &max.to_be_bytes()].concat();
            let notification = Notification::new(Reason::MAX_PREFIXES_REACHED, data);
            let end = now + Duration::from_secs(slot.peer.config.max_prefixes_restart_seconds.into());
            self.with_peer(source, now, outputs, |peer, tools| peer.stop_until(end, &notification, tools));
        }
    }

    /// Applies a new accept list to what the peer told, and asks it for what was refused before.
    pub(super) fn import_policy_changed(&mut self, source: Source) {
        let Some(slot) = self.slot(source) else { return };
        let import = Import::new(&slot.peer.config);
        let keeps_refused = slot.keeps_refused;
        // Of a peer that is away, too: its routes may be kept.
        for family in Family::ALL {
            let paths: Vec<(PrefixId, Path)> = self.rib.table(family).paths_of(source).collect();
            for (id, path) in paths {
                let prefix = self.rib.table(family).prefix(id);
                let route = self.rib.attributes.get(path.attributes);
                let refused = !import.accepts(&prefix, &route.attributes);
                if refused == path.refused {
                    continue;
                }
                if refused && !keeps_refused {
                    self.withdraw(source, family, (id, path.id));
                } else {
                    let change = self.rib.set(family, prefix, Path { refused, ..path });
                    self.counted(source, family, &change);
                }
            }
        }
        if !keeps_refused {
            self.ask_again(source);
        }
    }

    /// Asks the peer for all its routes again.
    pub(super) fn ask_again(&mut self, source: Source) {
        let Some(slot) = self.slot_mut(source) else { return };
        let families: BTreeSet<Family> = slot.out.keys().copied().collect();
        if let Some(session) = slot.peer.session_mut() {
            for family in families {
                let request = RouteRefresh { family: family.into(), kind: RefreshKind::Request };
                session.send(&Message::RouteRefresh(request));
            }
        }
    }
}

impl Slot {
    /// Prefixes accepted, of all families.
    pub(super) fn accepted(&self) -> u64 {
        self.prefixes.iter().map(|counts| counts.accepted).sum()
    }

    /// Prefixes kept though refused, of all families.
    fn kept_refused(&self) -> u64 {
        self.prefixes.iter().map(|counts| counts.kept).sum()
    }
}
