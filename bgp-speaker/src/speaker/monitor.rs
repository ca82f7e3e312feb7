//! What stations hear (RFC 7854): each peer's routes as they stand in its Adj-RIB-In before our policy, sessions that come
//! and go, statistics.
//!
//! While anybody monitors, routes that the import policy refuses are kept, too (as many as of a peer that cannot be asked
//! again), for they have to be told. What leads through ourselves is not kept, and not told.
use super::{Output, Speaker};
use crate::{
    Time,
    bmp::{
        feed::{Feed, Up},
        message::{self, Down, Peer, Statistics},
    },
    config::{BmpStation, ConfigError, Family},
    rib::{AttributesId, PathKey, PrefixId, Source},
    update_queue::AdjRibOut,
    validate,
    wire::{self, Context, EncodeError, MAX_EXTENDED_LENGTH, Message, Nlri},
};
use std::{mem, net::SocketAddr, ops::Range, time::Duration};

/// So many prefixes are looked at together, to be grouped by attributes.
const BATCH: usize = 8192;

impl Speaker {
    /// Sets the stations that will want to know what peers tell, the whole set.
    ///
    /// # Errors
    /// [`ConfigError`]; nothing changes then.
    pub fn set_stations(&mut self, stations: &[BmpStation]) -> Result<Vec<Output>, ConfigError> {
        validate::stations(stations)?;
        let every = |seconds: u32| (seconds > 0).then(|| Duration::from_secs(seconds.into()));
        let wanted = stations.iter().map(|wanted| (wanted.station, every(wanted.stats_seconds))).collect();
        let before = mem::replace(&mut self.stations, wanted);
        let (were_none, are_none) = (before.is_empty(), self.stations.is_empty());
        for source in self.sources() {
            let Some(slot) = self.slot_mut(source) else { continue };
            let Some(session) = slot.peer.session().and_then(|session| session.negotiated.as_ref()) else {
                continue;
            };
            let can_be_asked = session.route_refresh;
            slot.keeps_refused = !are_none || !can_be_asked;
            if were_none && !are_none && can_be_asked {
                self.ask_again(source);
            }
        }
        Ok(self.finish(Vec::new()))
    }

    /// A station is connected and knows nothing.
    pub fn monitor(&mut self, station: SocketAddr, now: Time) -> Vec<Output> {
        self.unmonitor(station);
        let Some(every) = self.stations.get(&station) else { return Vec::new() };
        let mut feed = Feed::new(*every, now);
        for (source, _) in self.slots() {
            if let Some(up) = self.session_start(source) {
                feed.up(source, up);
            }
        }
        self.feeds.insert(station, feed);
        self.finish(Vec::new())
    }

    /// The last that a station that is connected hears: how its peers went down, and that this is the end of it.
    pub fn last_report(&mut self, station: SocketAddr, epoch: Duration, now: Time) -> Vec<u8> {
        let mut last = Vec::new();
        // No room for routes.
        self.report(station, 0, epoch, now, &mut last);
        message::termination(&mut last);
        self.unmonitor(station);
        last
    }

    /// The station is gone.
    pub fn unmonitor(&mut self, station: SocketAddr) {
        if let Some(feed) = self.feeds.remove(&station) {
            for (family, id) in feed.into_changed() {
                self.release_unused(family, [id]);
            }
        }
    }

    /// Appends what a station is to hear, about `limit` octets; nothing: there is nothing to tell. `epoch`: the beginning
    /// of time, since 1970.
    pub fn report(
        &mut self,
        station: SocketAddr,
        limit: usize,
        epoch: Duration,
        now: Time,
        out: &mut Vec<u8>,
    ) {
        // Nobody else looks at it meanwhile.
        let Some(mut feed) = self.feeds.remove(&station) else { return };
        let limit = out.len() + limit;
        if mem::take(&mut feed.greeting) {
            let description = concat!("bgp-speaker ", env!("CARGO_PKG_VERSION"));
            let name = self.global.as_ref().map(|global| global.router_id.to_string());
            message::initiation(description, &name.unwrap_or_default(), out);
        }
        for monitored in feed.peers.values_mut() {
            if let (Some((at, down)), Some(peer)) = (monitored.down.take(), &monitored.told) {
                message::peer_down(peer, epoch + at, &down, out);
                monitored.told = None;
            }
            if let Some(Up { peer, at, ends, sent, received, .. }) = monitored.up.take() {
                message::peer_up(&peer, epoch + at, ends, &sent, &received, out);
                monitored.told = Some(peer);
            }
        }
        feed.peers.retain(|_, monitored| monitored.told.is_some());
        if mem::take(&mut feed.statistics_due) {
            for (source, monitored) in &feed.peers {
                if let Some(peer) = &monitored.told {
                    message::statistics(peer, epoch + now, &self.statistics(*source), out);
                }
            }
        }
        for (&source, monitored) in &mut feed.peers {
            let Some(peer) = monitored.told else { continue };
            while out.len() < limit
                && let Some(entry) = monitored.dumps.first_entry()
            {
                let (family, next) = (*entry.key(), *entry.get());
                let end = next.saturating_add(BATCH as PrefixId).min(self.rib.table(family).bound());
                let updates = self.dumped(source, family, next..end);
                message::route_monitoring(&peer, epoch + now, &updates, out);
                if end < self.rib.table(family).bound() {
                    *entry.into_mut() = end;
                } else {
                    entry.remove();
                    let mut marker = Vec::new();
                    if Message::EndOfRib(family).encode(&Context::default(), &mut marker).is_ok() {
                        message::route_monitoring(&peer, epoch + now, &marker, out);
                    }
                }
            }
        }
        let mut heard = Vec::new();
        for family in Family::ALL {
            while out.len() < limit {
                let changed = feed.take_changed(family, BATCH);
                if changed.is_empty() {
                    break;
                }
                for group in changed.chunk_by(|a, b| a.0 == b.0) {
                    let source = group[0].0;
                    let paths = group.iter().map(|(_, path)| *path);
                    if let Some(peer) = feed.peers.get(&source).and_then(|monitored| monitored.told) {
                        let updates = self.changed(source, family, paths);
                        message::route_monitoring(&peer, epoch + now, &updates, out);
                    }
                }
                heard.extend(changed.into_iter().map(|(_, (id, _))| (family, id)));
            }
        }
        self.feeds.insert(station, feed);
        for (family, id) in heard {
            self.release_unused(family, [id]);
        }
    }

    /// Whether stations have something to hear.
    pub(super) fn reports(&self) -> impl Iterator<Item = Output> + '_ {
        let pending = self.feeds.iter().filter(|(_, feed)| feed.is_pending());
        pending.map(|(&station, _)| Output::Report { station })
    }

    pub(super) fn monitor_up(&mut self, source: Source) {
        if let Some(up) = self.session_start(source) {
            self.feeds.values_mut().for_each(|feed| feed.up(source, up.clone()));
        }
    }

    pub(super) fn monitor_down(&mut self, source: Source, now: Time) {
        let Some(slot) = self.slot(source) else { return };
        let down = Down::from(slot.peer.last_down.as_ref());
        let unheard: Vec<_> =
            self.feeds.values_mut().flat_map(|feed| feed.down(source, now, down.clone())).collect();
        for (family, id) in unheard {
            self.release_unused(family, [id]);
        }
    }

    /// None: no session is up.
    fn session_start(&self, source: Source) -> Option<Up> {
        let slot = self.slot(source)?;
        let session = slot.peer.session()?;
        let (open, ends) = (session.open.as_ref()?, session.endpoints.as_ref()?);
        let mut sent = Vec::new();
        Message::Open(session.sent_open.clone()?).encode(&Context::default(), &mut sent).ok()?;
        Some(Up {
            peer: Peer { address: slot.peer.config.address, asn: open.asn, router_id: open.router_id },
            at: session.fsm.since(),
            ends: (ends.local, ends.remote),
            sent,
            received: session.open_octets.clone(),
            families: session.negotiated.as_ref()?.context.families.clone(),
        })
    }

    fn statistics(&self, source: Source) -> Statistics {
        let Some(slot) = self.slot(source) else { return Statistics::default() };
        let families = slot.out.keys().copied();
        Statistics {
            refused: slot.prefixes.iter().map(|counts| counts.refused).sum::<u64>() as u32,
            adj_rib_in: families
                .clone()
                .map(|family| {
                    let counts = &slot.prefixes[family as usize];
                    (family, counts.accepted + counts.kept)
                })
                .collect(),
            adj_rib_out: slot.out.iter().map(|(&family, out)| (family, AdjRibOut::announced(out))).collect(),
            treated_as_withdraw: slot.treated_as_withdraw as u32,
        }
    }

    /// UPDATEs with all that a peer told of some prefixes.
    fn dumped(&self, source: Source, family: Family, ids: Range<PrefixId>) -> Vec<u8> {
        let table = self.rib.table(family);
        let told = |id: PrefixId| {
            let paths = table.paths(id).iter().filter(|path| path.source == source);
            paths.map(move |path| (path.attributes, (id, path.id)))
        };
        self.told(source, family, ids.flat_map(told).collect(), &[])
    }

    /// UPDATEs with what some paths of a peer are now, or that they are no more.
    fn changed(&self, source: Source, family: Family, paths: impl Iterator<Item = PathKey>) -> Vec<u8> {
        let table = self.rib.table(family);
        let (mut announced, mut withdrawn) = (Vec::new(), Vec::new());
        for (id, name) in paths {
            match table.path(id, source, name) {
                Some(path) => announced.push((path.attributes, (id, name))),
                None => withdrawn.push(Nlri { prefix: table.prefix(id), path: name }),
            }
        }
        self.told(source, family, announced, &withdrawn)
    }

    /// UPDATEs as the peer might have sent them.
    fn told(
        &self,
        source: Source,
        family: Family,
        announced: Vec<(AttributesId, PathKey)>,
        withdrawn: &[Nlri],
    ) -> Vec<u8> {
        let session = self.slot(source).and_then(|slot| slot.peer.session());
        let Some(negotiated) = session.and_then(|session| session.negotiated.as_ref()) else {
            return Vec::new();
        };
        let context = Context { four_octet_as: true, ..negotiated.context.reversed() };
        self.updates(family, announced, withdrawn, &context)
    }

    /// UPDATEs that withdraw, and that announce, each set of attributes with all its paths.
    pub(super) fn updates(
        &self,
        family: Family,
        mut announced: Vec<(AttributesId, PathKey)>,
        withdrawn: &[Nlri],
        context: &Context,
    ) -> Vec<u8> {
        let table = self.rib.table(family);
        let mut updates = Vec::new();
        wide(context, |context| wire::withdraw(withdrawn, context, &mut updates));
        announced.sort_unstable();
        for group in announced.chunk_by(|a, b| a.0 == b.0) {
            let route = self.rib.attributes.get(group[0].0);
            let Some(next_hop) = route.next_hop else { continue };
            let nlri = |&(_, (id, path)): &(AttributesId, PathKey)| Nlri { prefix: table.prefix(id), path };
            let prefixes: Vec<Nlri> = group.iter().map(nlri).collect();
            wide(context, |context| {
                wire::announce(&route.attributes, next_hop, &prefixes, context, &mut updates)
            });
        }
        updates
    }
}

/// Writes with the limits of the session; what does not fit, for an AS has four octets here, in a longer message.
fn wide(context: &Context, mut write: impl FnMut(&Context) -> Result<usize, EncodeError>) {
    if write(context).is_err() {
        let context = Context { max_length: MAX_EXTENDED_LENGTH, ..context.clone() };
        if let Err(error) = write(&context) {
            tracing::debug!(%error, "route not told");
        }
    }
}
