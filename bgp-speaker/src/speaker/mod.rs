//! The speaker without its sockets: all peers, what they told, what they are to be told. Pure: inputs and the
//! time come in, [`Output`]s go out, and [`Speaker::next_deadline`] says when to come back.
//!
//! A driver does this:
//! - it gives what happens to its sockets to [`Speaker::handle`], and [`Input::Tick`] when the deadline has come;
//! - it does what the outputs say, in their order;
//! - for a connection with [`Output::Transmit`] it calls [`Speaker::transmit`] when the socket has room, until that
//!   appends nothing.
//!
//! ```text
//!  bytes ─> connection (frame, decode) ─> fsm ─> peer ─┬─> rib ─> update_queue of each peer ─> transmit
//!  set_global, set_peers, set_routes ──────────────────┘
//! ```
mod bfd;
mod export;
mod fib;
mod handover;
mod io;
mod long_lived;
mod monitor;
mod ranges;
mod restart;
mod session;
mod status;
mod unnumbered;

pub use handover::Session;
#[cfg(feature = "net")]
pub(crate) use handover::number;
pub use io::{Input, Output};

use crate::{
    InterfaceName, PeerId, Time,
    bfd::Path as WatchedPath,
    bmp::feed::Feed,
    config::{
        ConfigError, Family, Global, PeerConfig, PeerRange, PrefixCounts, Route, RouteAttributes, State,
    },
    connection::{ConnectionId, Endpoints},
    fsm::Event,
    peer::{Peer, Tools},
    random::Random,
    rib::{AttributesId, Path, PathKey, Rib, Source},
    transport::Transport,
    update_queue::AdjRibOut,
    validate,
    wire::{Notification, PathId, Reason},
};
pub use fib::Installation;
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};
pub use unnumbered::Link;

/// The speaker.
#[derive(Debug)]
pub struct Speaker {
    global: Option<Global>,
    /// Peers by number of the source; none: the number is free.
    peers: Vec<Option<Slot>>,
    by_id: BTreeMap<PeerId, Source>,
    by_connection: BTreeMap<ConnectionId, Source>,
    /// Of unnumbered peers.
    links: BTreeMap<InterfaceName, Link>,
    ranges: Vec<PeerRange>,
    rib: Rib,
    own: BTreeMap<IpNet, Vec<OwnRoute>>,
    random: Random,
    next_connection: u64,
    own_start: restart::Own,
    fib: fib::Fib,
    /// Time between statistics of each station that there is; refused routes are kept for them.
    stations: BTreeMap<SocketAddr, Option<Duration>>,
    /// Sessions that another process began, until the speaker knows who it is.
    inherited: Vec<(ConnectionId, Endpoints, Session)>,
    /// Stations that are connected.
    feeds: BTreeMap<SocketAddr, Feed>,
}

/// A peer and what its session has.
#[derive(Debug)]
struct Slot {
    peer: Peer,
    /// It came by itself, and is of this range.
    range: Option<IpNet>,
    /// Of the session that is up; empty: none is.
    out: BTreeMap<Family, AdjRibOut>,
    /// By number of the family, of several paths each counts; `sent` is not counted here.
    prefixes: [PrefixCounts; Family::ALL.len()],
    /// UPDATEs of this session whose routes were taken for withdrawn (RFC 7606).
    treated_as_withdraw: u64,
    /// Refused routes are kept: the peer cannot be asked for them again.
    keeps_refused: bool,
    /// Paths that a refresh of the peer has not confirmed yet, by family (RFC 7313 section 4).
    unconfirmed: BTreeMap<Family, BTreeSet<PathKey>>,
    /// Its routes over a restart.
    kept: restart::Kept,
    /// How its path is watched.
    watched: Option<WatchedPath>,
    /// Index of the interface of its last session, if that was link-local, else 0.
    link: u32,
}

/// A route of ours to some peers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct OwnRoute {
    attributes: AttributesId,
    config: RouteAttributes,
    peers: Option<BTreeSet<PeerId>>,
}

impl Speaker {
    /// A speaker that has nothing to do; `seed` makes its jitter and keys its hash tables: random where peers are
    /// not trusted.
    pub fn new(seed: u64) -> Self {
        Speaker {
            global: None,
            peers: Vec::new(),
            by_id: BTreeMap::new(),
            by_connection: BTreeMap::new(),
            links: BTreeMap::new(),
            ranges: Vec::new(),
            rib: Rib::new(seed),
            own: BTreeMap::new(),
            random: Random::new(seed),
            next_connection: 0,
            own_start: restart::Own::default(),
            fib: fib::Fib::default(),
            stations: BTreeMap::new(),
            inherited: Vec::new(),
            feeds: BTreeMap::new(),
        }
    }

    /// Says who the speaker is. A change of AS or identifier resets all sessions.
    ///
    /// # Errors
    /// [`ConfigError`]; nothing changes then.
    pub fn set_global(&mut self, global: Global, now: Time) -> Result<Vec<Output>, ConfigError> {
        self.check_global(&global)?;
        let mut outputs = Vec::new();
        let same = self
            .global
            .as_ref()
            .is_some_and(|old| (old.asn, old.router_id) == (global.asn, global.router_id));
        if !same {
            self.stop_all(&Reason::OTHER_CONFIGURATION_CHANGE.into(), now, &mut outputs);
        }
        self.global = Some(global);
        self.started(now);
        if !same {
            self.rebuild_own_routes();
            self.adopt_all(now, &mut outputs);
            for source in self.sources() {
                self.with_peer(source, now, &mut outputs, |peer, tools| {
                    if peer.session().is_none() {
                        peer.start(tools);
                    }
                });
                self.watch(source, &mut outputs);
            }
        }
        Ok(self.finish(outputs))
    }

    /// What [`set_global`](Speaker::set_global) would refuse.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn check_global(&self, global: &Global) -> Result<(), ConfigError> {
        validate::global(global)?;
        let configs: Vec<PeerConfig> = self.slots().map(|(_, slot)| slot.peer.config.clone()).collect();
        validate::peers(&configs, Some(global))
    }

    /// Sets the neighbours, the whole set. A neighbour that is gone or whose session would be another one is told
    /// so; other changes take effect without a reset.
    ///
    /// # Errors
    /// [`ConfigError`]; nothing changes then.
    pub fn set_peers(&mut self, peers: Vec<PeerConfig>, now: Time) -> Result<Vec<Output>, ConfigError> {
        self.check_peers(&peers)?;
        let mut outputs = Vec::new();
        let wanted: BTreeMap<PeerId, PeerConfig> = peers.into_iter().map(|peer| (peer.id(), peer)).collect();
        let gone: Vec<Source> = self
            .by_id
            .iter()
            .filter(|(id, _)| !wanted.contains_key(id))
            .map(|(_, source)| *source)
            .filter(|source| self.slot(*source).is_some_and(|slot| slot.range.is_none()))
            .collect();
        for source in gone {
            self.remove_peer(source, now, &mut outputs);
        }
        for (id, config) in wanted {
            let config = self.with_known_address(config);
            match self.by_id.get(&id) {
                Some(&source) => {
                    // One that came by itself is one of the set from now on.
                    self.slot_mut(source).into_iter().for_each(|slot| slot.range = None);
                    self.change_peer(source, config, now, &mut outputs);
                }
                None => self.add_peer(config, now, &mut outputs),
            }
        }
        Ok(self.finish(outputs))
    }

    /// What [`set_peers`](Speaker::set_peers) would refuse.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn check_peers(&self, peers: &[PeerConfig]) -> Result<(), ConfigError> {
        validate::peers(peers, self.global.as_ref())
    }

    /// Sets the routes to announce, the whole set. What did not change is not sent again. Where several routes
    /// have the same prefix, a peer hears of the one that names it, else of the one for all.
    ///
    /// # Errors
    /// [`ConfigError`]; nothing changes then.
    pub fn set_routes(&mut self, routes: Vec<Route>) -> Result<Vec<Output>, ConfigError> {
        validate::routes(&routes)?;
        self.replace_own_routes(routes);
        Ok(self.finish(Vec::new()))
    }

    /// A name for a connection that came in.
    pub fn accept_id(&mut self) -> ConnectionId {
        self.next_connection += 1;
        ConnectionId(self.next_connection)
    }

    /// What connections with the neighbour at this end are made with; none: no such neighbour, or no AS of our own yet.
    pub fn transport(&self, remote: SocketAddr) -> Option<Transport> {
        let global = self.global.as_ref()?;
        let known = self.known(remote).and_then(|source| self.slot(source));
        let range = || self.range(remote.ip().to_canonical());
        let config = known.map(|slot| &slot.peer.config).or_else(|| Some(&range()?.peer))?;
        Some(Transport::new(config, global))
    }

    /// One input. Inputs about connections that the speaker has forgotten do nothing.
    pub fn handle(&mut self, input: Input<'_>, now: Time) -> Vec<Output> {
        let mut outputs = Vec::new();
        match input {
            Input::Connected { connection, endpoints } => match self.by_connection.get(&connection) {
                Some(&source) => self.with_peer(source, now, &mut outputs, |peer, tools| {
                    peer.connected(connection, endpoints, tools);
                }),
                None => outputs.push(Output::Close { connection, last: Vec::new() }),
            },
            Input::Accepted { connection, endpoints } => {
                match self.source_of(endpoints.remote, now, &mut outputs) {
                    Some(source) if self.global.is_some() => {
                        self.by_connection.insert(connection, source);
                        self.with_peer(source, now, &mut outputs, |peer, tools| {
                            peer.accept(connection, endpoints, tools);
                        });
                    }
                    _ => outputs.push(Output::Close { connection, last: Vec::new() }),
                }
            }
            Input::Received { connection, bytes } => self.on(connection, now, &mut outputs, |peer, tools| {
                peer.receive(connection, bytes, tools);
            }),
            Input::ConnectFailed { connection, reason } | Input::Closed { connection, reason } => {
                self.on(connection, now, &mut outputs, |peer, tools| {
                    peer.on(connection, Event::TcpFailed(reason), tools);
                });
            }
            Input::PathFailed { peer, control_plane_independent } => {
                self.path_failed(peer, control_plane_independent, now, &mut outputs);
            }
            Input::Link { interface, link } => self.link_changed(interface, link, now, &mut outputs),
            Input::Tick => {
                for source in self.sources() {
                    let due = self.slot(source).and_then(|slot| slot.peer.next_deadline());
                    if due.is_some_and(|due| due <= now) {
                        self.with_peer(source, now, &mut outputs, |peer, tools| peer.tick(tools));
                    }
                }
                self.restart_tick(now, &mut outputs);
                self.feeds.values_mut().for_each(|feed| feed.tick(now));
            }
        }
        self.finish(outputs)
    }

    /// When [`Input::Tick`] is due; may be in the past: at once.
    pub fn next_deadline(&self) -> Option<Time> {
        let peers = self.slots().filter_map(|(_, slot)| slot.peer.next_deadline());
        let stations = self.feeds.values().filter_map(Feed::next_deadline);
        peers.chain(self.restart_deadline()).chain(stations).min()
    }

    /// Appends what is to be written to a connection, about `limit` octets (a batch of UPDATEs more at most);
    /// nothing: there is nothing to send.
    pub fn transmit(&mut self, connection: ConnectionId, limit: usize, out: &mut Vec<u8>) {
        if let Some(&source) = self.by_connection.get(&connection) {
            self.transmit_to(source, connection, limit, out);
        }
    }

    /// Whether a session that is up has something to send.
    pub fn is_pending(&self) -> bool {
        self.slots().any(|(_, slot)| slot.out.values().any(AdjRibOut::is_pending))
    }

    /// Ends all sessions, and forgets the peers. Peers that keep routes over a restart (RFC 4724) see the connection
    /// close, the others get Cease/Administrative Shutdown. What came from the former stays installed.
    pub fn shutdown(&mut self, now: Time) -> Vec<Output> {
        let mut outputs = Vec::new();
        let notification = Reason::ADMINISTRATIVE_SHUTDOWN.into();
        let stays = |source: &Source| self.slot(*source).is_some_and(|slot| slot.peer.leaves_gracefully());
        let (stay, go): (Vec<Source>, Vec<Source>) = self.sources().into_iter().partition(stays);
        if stay.is_empty() {
            self.keep_nothing_installed();
        }
        for sources in [go, stay] {
            for source in sources {
                self.with_peer(source, now, &mut outputs, |peer, tools| peer.leave(&notification, tools));
                self.forget_stale(source);
            }
            // What came from those who keep our routes is forwarded on.
            self.freeze_installed();
        }
        self.peers.clear();
        self.rib.neighbours.clear();
        self.by_id.clear();
        self.finish(outputs)
    }

    fn remove_peer(&mut self, source: Source, now: Time, outputs: &mut Vec<Output>) {
        let notification = Reason::PEER_DECONFIGURED.into();
        self.with_peer(source, now, outputs, |peer, tools| peer.stop(&notification, tools));
        self.forget_peer(source, outputs);
    }

    fn forget_peer(&mut self, source: Source, outputs: &mut Vec<Output>) {
        self.forget_stale(source);
        if let Some(slot) = self.peers[usize::from(source.0)].take() {
            if slot.watched.is_some() {
                outputs.push(Output::Watch { peer: slot.peer.config.id(), path: None });
            }
            self.by_id.remove(&slot.peer.config.id());
            if let Some(interface) = slot.peer.config.interface {
                self.links.remove(&interface);
            }
        }
        self.rib.neighbours[usize::from(source.0)] = None;
    }

    fn add_peer(&mut self, config: PeerConfig, now: Time, outputs: &mut Vec<Output>) {
        let free = self.peers.iter().position(Option::is_none).unwrap_or(self.peers.len());
        if free == self.peers.len() {
            self.peers.push(None);
            self.rib.neighbours.push(None);
        }
        // Validation keeps the number of peers far below the range of a source.
        let source = Source(free as u16);
        self.by_id.insert(config.id(), source);
        self.peers[free] = Some(Slot {
            peer: Peer::new(config, now),
            range: None,
            out: BTreeMap::new(),
            prefixes: Default::default(),
            treated_as_withdraw: 0,
            keeps_refused: false,
            unconfirmed: BTreeMap::new(),
            kept: restart::Kept::default(),
            watched: None,
            link: 0,
        });
        self.use_fib(source);
        if self.global.is_some() {
            self.with_peer(source, now, outputs, |peer, tools| peer.start(tools));
        }
        self.watch(source, outputs);
    }

    fn change_peer(&mut self, source: Source, config: PeerConfig, now: Time, outputs: &mut Vec<Output>) {
        let Some(slot) = self.slot_mut(source) else { return };
        if slot.peer.config == config {
            return;
        }
        let old = std::mem::replace(&mut slot.peer.config, config.clone());
        slot.peer.set_timers();
        self.watch(source, outputs);
        if old.install != config.install {
            self.installation_changed(source);
        }
        if session_of(&old) != session_of(&config) {
            self.with_peer(source, now, outputs, |peer, tools| {
                peer.stop(&peer.farewell(), tools);
            });
            let keeps = |config: &PeerConfig| {
                let long_lived: Vec<Family> = config.long_lived().map(|(family, _)| family).collect();
                (config.asn, config.graceful_restart.is_some(), long_lived)
            };
            if keeps(&old) != keeps(&config) {
                self.forget_stale(source);
            }
            if self.global.is_some() {
                self.with_peer(source, now, outputs, |peer, tools| peer.start(tools));
            }
            return;
        }
        if (&old.accept, &old.import) != (&config.accept, &config.import) {
            self.import_policy_changed(source);
        }
        if (old.export_learned, &old.export) != (config.export_learned, &config.export) {
            self.export_policy_changed(source);
        }
        if old.max_prefixes != config.max_prefixes {
            self.with_peer(source, now, outputs, |peer, tools| {
                if peer.is_kept_down() {
                    peer.start(tools);
                }
            });
        }
        self.check_max_prefixes(source, now, outputs);
    }

    fn stop_all(&mut self, notification: &Notification, now: Time, outputs: &mut Vec<Output>) {
        for source in self.sources() {
            self.with_peer(source, now, outputs, |peer, tools| peer.stop(notification, tools));
        }
    }

    fn on(
        &mut self,
        connection: ConnectionId,
        now: Time,
        outputs: &mut Vec<Output>,
        act: impl FnOnce(&mut Peer, &mut Tools<'_>),
    ) {
        if let Some(&source) = self.by_connection.get(&connection) {
            self.with_peer(source, now, outputs, act);
        }
    }

    /// Does something with a peer, and what the peer then asks for.
    fn with_peer(
        &mut self,
        source: Source,
        now: Time,
        outputs: &mut Vec<Output>,
        act: impl FnOnce(&mut Peer, &mut Tools<'_>),
    ) {
        let (Some(global), Some(Some(slot))) = (&self.global, self.peers.get_mut(usize::from(source.0)))
        else {
            return;
        };
        let mut tools = Tools {
            global,
            start: self.own_start.start,
            now,
            random: &mut self.random,
            next_connection: &mut self.next_connection,
            requests: Vec::new(),
        };
        act(&mut slot.peer, &mut tools);
        let requests = tools.requests;
        self.serve(source, requests, now, outputs);
        let Some(slot) = self.slot_mut(source) else { return };
        if slot.peer.state_changed(now) {
            outputs.push(Output::StateChanged {
                peer: slot.peer.config.id(),
                state: slot.peer.state(),
                last_error: slot.peer.error(),
            });
            self.watch(source, outputs);
            self.follow_link(source, now, outputs);
        }
        self.let_go(source, outputs);
    }

    /// What follows from everything that an input did: who has something to send.
    fn finish(&self, mut outputs: Vec<Output>) -> Vec<Output> {
        for (_, slot) in self.slots() {
            let updates = slot.out.values().any(AdjRibOut::is_pending);
            for connection in slot.peer.connections() {
                let updates = updates && connection.fsm.state() == State::Established;
                if let Some(connection) = connection.id.filter(|_| updates || !connection.waiting.is_empty())
                    && !outputs.contains(&Output::Transmit { connection })
                {
                    outputs.push(Output::Transmit { connection });
                }
            }
        }
        self.push_install(&mut outputs);
        outputs.extend(self.reports());
        outputs
    }

    fn sources(&self) -> Vec<Source> {
        self.by_id.values().copied().collect()
    }

    fn slots(&self) -> impl Iterator<Item = (Source, &Slot)> {
        (0..).map(Source).zip(&self.peers).filter_map(|(source, slot)| Some((source, slot.as_ref()?)))
    }

    fn slot(&self, source: Source) -> Option<&Slot> {
        self.peers.get(usize::from(source.0))?.as_ref()
    }

    fn slot_mut(&mut self, source: Source) -> Option<&mut Slot> {
        self.peers.get_mut(usize::from(source.0))?.as_mut()
    }
}

/// What a session was negotiated with: a change needs another session.
fn session_of(config: &PeerConfig) -> impl PartialEq + use<> {
    let timers = (config.timers.hold_seconds, config.timers.keepalive_seconds);
    let ends = (config.asn, config.port, config.local_address, config.passive);
    let ttl = (config.multihop_ttl, config.ttl_security_hops);
    let long_lived: Vec<(Family, u32)> = config.long_lived().collect();
    let restart = (config.graceful_restart, long_lived);
    let offered = (config.families.clone(), restart, config.role, config.add_path);
    (ends, ttl, timers, offered, config.shutdown.clone())
}

fn family_of(prefix: &IpNet) -> Family {
    match prefix {
        IpNet::V4(_) => Family::Ipv4Unicast,
        IpNet::V6(_) => Family::Ipv6Unicast,
    }
}

impl Path {
    fn own(attributes: AttributesId) -> Self {
        Path { source: Source::LOCAL, id: PathId::default(), refused: false, attributes }
    }
}

#[cfg(test)]
mod tests;
