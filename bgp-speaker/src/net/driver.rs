//! The driver: gives the pure speaker what happens, does what it says.
mod handover;
mod keys;
mod stations;

use super::{
    Command, addresses,
    bfd::{Bfd, HandedPaths, Report},
    connection::{self, Order},
    discovery::Discovery,
    fib::{self, Fib},
    handover::HandOver,
    socket,
    station::StationEvent,
};
use crate::{
    ConnectionId, Endpoints, InterfaceName, Md5Key, PeerId, Time,
    bfd::Path,
    config::{BmpStation, ConfigError, Global, PeerConfig, PeerRange, PeerStatus, Route},
    speaker::{Input, Installation, Link, Output, Speaker},
};
use handover::Inheritance;
use ipnet::IpNet;
use keys::md5_keys;
use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher, Hasher, RandomState},
    io, mem,
    net::{SocketAddr, TcpStream as StdTcpStream},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, sleep_until},
};

/// Octets of messages that a connection has in hand, about.
const BATCH: usize = 64 * 1024;
/// Events that wait for the driver: more senders than that wait in turn.
const EVENTS: usize = 8;
/// Tasks of connections, those that are being closed included. More are not accepted.
const MAX_TASKS: usize = 16 * 1024;
/// Orders that a connection always has room for: a batch, and to close.
const ORDERS: usize = 2;
/// And so many orders to drain.
const DRAINS: usize = 4;
/// Pause after a failed accept: what is missing (file descriptors) does not come back at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What happens to sockets.
pub(super) enum Event {
    Accepted(TcpStream),
    Dialled(ConnectionId, io::Result<TcpStream>),
    Received(ConnectionId, Vec<u8>),
    Written(ConnectionId),
    Closed(ConnectionId, String),
    Drained(ConnectionId),
    /// The kernel has what was to be installed.
    Installed,
    /// What is known of the interface of an unnumbered peer.
    Link(InterfaceName, Option<Link>),
    /// The socket, if it lives, and what was not written to it.
    Detached(ConnectionId, Option<StdTcpStream>, Vec<u8>),
    Station(SocketAddr, StationEvent),
}

pub(super) struct Driver {
    speaker: Speaker,
    /// The beginning of time.
    epoch: Instant,
    /// Those that the speaker has.
    routes: Option<Arc<Vec<Route>>>,
    listeners: BTreeMap<SocketAddr, Listener>,
    /// Keys that the listeners have.
    keys: BTreeMap<IpNet, Md5Key>,
    connections: BTreeMap<ConnectionId, Connection>,
    held: Vec<Held>,
    /// Tasks of connections, those that close included.
    tasks: JoinSet<()>,
    sender: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
    /// Who wants to know when all is written.
    flushes: Vec<oneshot::Sender<()>>,
    changed: watch::Sender<u64>,
    /// Runs since the first path was to be watched.
    bfd: Option<Bfd>,
    /// Failures of paths that the speaker has heard of.
    path_failures: u64,
    /// Runs since there was something to install first.
    fib: Option<Fib>,
    /// Runs since there was an unnumbered peer first.
    discovery: Option<Discovery>,
    stations: BTreeMap<SocketAddr, Station>,
    /// Of a predecessor, until there is an heir.
    inheritance: Option<Inheritance>,
    /// Connections that were given back; some: nothing is written any more.
    detached: Option<BTreeMap<ConnectionId, (StdTcpStream, Vec<u8>)>>,
}

/// What the driver knows of a connection that the speaker has not closed.
enum Connection {
    Dialling(AbortHandle),
    Open {
        remote: SocketAddr,
        orders: mpsc::Sender<Order>,
        key: watch::Sender<Option<Md5Key>>,
        /// The connection has a batch in hand.
        writing: bool,
    },
}

/// A connection that came in while its peer has others. A peer that closed one and dialled again did that in this
/// order: what the others have still to hand over, their end before all, comes first.
struct Held {
    stream: TcpStream,
    endpoints: Endpoints,
    after: BTreeSet<ConnectionId>,
}

/// A station that is told what peers tell.
struct Station {
    config: BmpStation,
    task: AbortHandle,
    /// Its connection; none: it has none.
    batches: Option<mpsc::Sender<Vec<u8>>>,
    /// It has a batch in hand.
    writing: bool,
}

/// Accepts until it is dropped.
struct Listener {
    socket: Arc<TcpListener>,
    task: AbortHandle,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Driver {
    pub(super) fn new(
        changed: watch::Sender<u64>,
        start: impl FnOnce(Speaker) -> Speaker,
        inherited: Option<HandOver>,
    ) -> Self {
        let (sender, events) = mpsc::channel(EVENTS);
        // A session that is older than this process began in the time of this one, too.
        let ages = inherited.iter().flat_map(|handed| &handed.sessions).map(|(_, session)| session.age);
        let now = Instant::now();
        Driver {
            // Keyed with randomness from the system.
            speaker: start(Speaker::new(RandomState::new().build_hasher().finish())),
            epoch: now.checked_sub(ages.max().unwrap_or_default()).unwrap_or(now),
            routes: None,
            listeners: BTreeMap::new(),
            keys: BTreeMap::new(),
            connections: BTreeMap::new(),
            held: Vec::new(),
            tasks: JoinSet::new(),
            sender,
            events,
            flushes: Vec::new(),
            changed,
            bfd: None,
            path_failures: 0,
            fib: None,
            discovery: None,
            stations: BTreeMap::new(),
            inheritance: inherited.map(Inheritance::new),
            detached: None,
        }
    }

    /// Runs until it is told to shut down, or nobody is left who could tell.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        self.watch_inherited();
        // Who waits for what is left to a successor.
        let mut leaving = None;
        let answer = loop {
            let due = self.speaker.next_deadline().map(|at| self.epoch + at);
            let deadline = due.into_iter().chain(self.inheritance.as_ref().map(Inheritance::deadline)).min();
            let wake = async {
                match deadline {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let paths = async {
                match &mut self.bfd {
                    Some(bfd) => bfd.reports_mut().changed().await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                alive = paths => match alive {
                    true => self.paths_changed(),
                    // It has ended for a successor, or is dead.
                    false if leaving.is_none() => self.bfd = None,
                    false => (),
                },
                () = wake => {
                    // What came while this task was busy counts before the time that has passed: a peer that spoke
                    // in time is not to be lost for that.
                    for _ in 0..EVENTS {
                        let Ok(event) = self.events.try_recv() else { break };
                        self.event(event);
                    }
                    self.input(Input::Tick);
                    self.inheritance_tick();
                }
                command = commands.recv() => match command {
                    Some(Command::Shutdown(answer)) => break Some(answer),
                    Some(Command::HandOver(answer)) => {
                        self.bfd.iter().for_each(Bfd::leave);
                        leaving = Some(answer);
                    }
                    Some(command) => self.command(command),
                    None => break None,
                },
                Some(event) = self.events.recv() => self.event(event),
                Some(_) = self.tasks.join_next() => (),
            }
            self.serve_held();
            self.answer_flushes();
            if self.bfd.as_ref().is_none_or(Bfd::has_ended)
                && let Some(answer) = leaving.take()
            {
                let handed = self.hand_over().await;
                return reply(answer, handed);
            }
        };
        self.shutdown().await;
        if let Some(answer) = answer {
            // Who asked may have gone.
            let _: Result<_, _> = answer.send(());
        }
    }

    fn now(&self) -> Time {
        self.epoch.elapsed()
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::SetGlobal(global, answer) => reply(answer, self.set_global(global)),
            Command::SetPeers(peers, answer) => {
                reply(answer, self.set_peers(peers));
            }
            Command::SetRanges(ranges, answer) => reply(answer, self.set_ranges(ranges)),
            Command::SetRoutes(routes, answer) => {
                reply(answer, self.set_routes(routes));
            }
            Command::SetStations(stations, answer) => reply(answer, self.set_stations(stations)),
            Command::RoutesComplete(answer) => {
                self.all_known();
                let outputs = self.speaker.routes_complete();
                self.perform(outputs);
                reply(answer, ());
            }
            Command::Flushed(answer) => {
                self.flushes.retain(|waiting| !waiting.is_closed());
                self.flushes.push(answer);
            }
            Command::Peers(answer) => reply(answer, self.peers()),
            Command::Prefixes(answer) => reply(answer, self.speaker.prefixes()),
            Command::Routes(prefixes, answer) => reply(answer, self.speaker.routes_of(&prefixes)),
            // Seen to by `run`.
            Command::Shutdown(_) | Command::HandOver(_) => (),
        }
    }

    /// Listens where it is new; listeners of the program before that do not fit are closed.
    fn listeners_of(&mut self, global: &Global) -> Result<Vec<(SocketAddr, TcpListener)>, ConfigError> {
        let left = self.inheritance.as_mut().map(|left| &mut left.handed);
        let (before, mut inherited) = left.map_or_else(Default::default, |handed| {
            let all = mem::take(&mut handed.listeners).into_iter();
            (handed.keys.clone(), all.filter(|(address, _)| global.listen.contains(address)).collect())
        });
        let listen = |address: SocketAddr| {
            let listener = match BTreeMap::remove(&mut inherited, &address) {
                Some(socket) => socket::resume(socket, address, &before, &self.keys),
                None => socket::listen(address, &self.keys),
            };
            let error = |error| ConfigError::new("global", "listen", format!("{address}: {error}"));
            Ok((address, listener.map_err(error)?))
        };
        let new = global.listen.iter().filter(|address| !self.listeners.contains_key(address));
        new.copied().map(listen).collect()
    }

    fn listen(&mut self, address: SocketAddr, listener: TcpListener) {
        let socket = Arc::new(listener);
        let task = tokio::spawn(accept(Arc::clone(&socket), self.sender.clone())).abort_handle();
        self.listeners.insert(address, Listener { socket, task });
    }

    /// Gives the listeners their keys before anything changes.
    fn set_peers(&mut self, peers: Vec<PeerConfig>) -> Result<(), ConfigError> {
        self.speaker.check_peers(&peers)?;
        self.check_heirs(&peers)?;
        self.set_keys(md5_keys(&peers, self.speaker.ranges()))?;
        let outputs = self.speaker.set_peers(peers, self.now())?;
        self.perform(outputs);
        self.discover();
        self.change_session_keys();
        self.peers_known()
    }

    fn set_routes(&mut self, routes: Arc<Vec<Route>>) -> Result<(), ConfigError> {
        if !self.routes.as_ref().is_some_and(|known| Arc::ptr_eq(known, &routes)) {
            let outputs = self.speaker.set_routes(routes.to_vec())?;
            self.routes = Some(routes);
            self.perform(outputs);
        }
        self.routes_known()
    }

    fn set_ranges(&mut self, ranges: Vec<PeerRange>) -> Result<(), ConfigError> {
        self.speaker.check_ranges(&ranges)?;
        self.set_keys(md5_keys(self.speaker.peer_configs(), &ranges))?;
        let outputs = self.speaker.set_ranges(ranges, self.now())?;
        self.perform(outputs);
        self.change_session_keys();
        Ok(())
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Accepted(stream) => {
                if let Err(error) = self.accepted(stream) {
                    tracing::debug!(%error, "connection not accepted");
                }
            }
            Event::Dialled(connection, result) => {
                match result.and_then(|stream| Ok((endpoints(&stream)?, stream))) {
                    Ok((endpoints, stream)) if self.connections.contains_key(&connection) => {
                        self.serve(connection, stream, endpoints.remote);
                        self.input(Input::Connected { connection, endpoints });
                    }
                    Ok(_) => (),
                    Err(error) => {
                        self.connections.remove(&connection);
                        self.input(Input::ConnectFailed { connection, reason: error.to_string() });
                    }
                }
            }
            Event::Received(connection, bytes) => {
                self.input(Input::Received { connection, bytes: &bytes });
            }
            Event::Written(id) => {
                if let Some(Connection::Open { writing, .. }) = self.connections.get_mut(&id) {
                    *writing = false;
                    self.transmit(id);
                }
            }
            Event::Closed(connection, reason) => self.input(Input::Closed { connection, reason }),
            Event::Link(interface, link) => self.input(Input::Link { interface, link }),
            Event::Installed => {
                if let Some(fib) = &mut self.fib {
                    fib.installed();
                }
                self.install();
            }
            Event::Detached(id, stream, unsent) => {
                if let (Some(detached), Some(stream)) = (&mut self.detached, stream) {
                    detached.insert(id, (stream, unsent));
                }
                self.connections.remove(&id);
            }
            Event::Station(station, event) => self.station(station, event),
            Event::Drained(id) => self.held.iter_mut().for_each(|held| {
                held.after.remove(&id);
            }),
        }
    }

    fn accepted(&mut self, stream: TcpStream) -> io::Result<()> {
        let endpoints = endpoints(&stream)?;
        match self.speaker.transport(endpoints.remote) {
            Some(transport) if self.tasks.len() + self.held.len() < MAX_TASKS => {
                socket::prepare(&stream, &transport)?;
            }
            // A stranger: not worth a task.
            _ => return Err(io::Error::other(format!("{}: no such peer", endpoints.remote.ip()))),
        }
        let drain = |(&id, connection): (&ConnectionId, &Connection)| match connection {
            Connection::Open { remote, orders, .. } if same_end(*remote, endpoints.remote) => {
                // Room for the others must stay.
                (orders.capacity() > ORDERS && orders.try_send(Order::Drain).is_ok()).then_some(id)
            }
            _ => None,
        };
        let after = self.connections.iter().filter_map(drain).collect();
        self.held.push(Held { stream, endpoints, after });
        Ok(())
    }

    /// Serves what came in and waits for nothing any more.
    fn serve_held(&mut self) {
        for held in &mut self.held {
            held.after.retain(|id| self.connections.contains_key(id));
        }
        while let Some(at) = self.held.iter().position(|held| held.after.is_empty()) {
            let Held { stream, endpoints, .. } = self.held.remove(at);
            let connection = self.speaker.accept_id();
            self.serve(connection, stream, endpoints.remote);
            self.input(Input::Accepted { connection, endpoints });
        }
    }

    fn serve(&mut self, id: ConnectionId, stream: TcpStream, remote: SocketAddr) {
        let (orders, receiver) = mpsc::channel(ORDERS + DRAINS);
        let (key, keys) = watch::channel(self.speaker.transport(remote).and_then(|transport| transport.md5));
        self.tasks.spawn(connection::run(id, stream, receiver, keys, self.sender.clone()));
        self.connections.insert(id, Connection::Open { remote, orders, key, writing: false });
    }

    /// Tells the speaker which paths have failed.
    fn paths_changed(&mut self) {
        let Some(bfd) = &mut self.bfd else { return };
        let heard = self.path_failures;
        let failed: BTreeMap<PeerId, Report> = {
            let reports = bfd.reports_mut().borrow_and_update();
            let new = reports.iter().filter(|(_, report)| report.failure > heard);
            new.map(|(peer, report)| (*peer, report.clone())).collect()
        };
        for (peer, Report { status, failure, .. }) in failed {
            tracing::info!(%peer, diagnostic = status.last_diagnostic, "path failed");
            self.path_failures = self.path_failures.max(failure);
            let control_plane_independent = status.control_plane_independent;
            self.input(Input::PathFailed { peer, control_plane_independent });
        }
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// The thread is started when there is something to watch.
    fn watch(&mut self, peer: PeerId, path: Option<Path>) {
        if self.bfd.is_none() && path.is_some() {
            self.start_bfd(HandedPaths::default());
        }
        if let Some(bfd) = &mut self.bfd {
            bfd.watch(peer, path);
        }
    }

    fn start_bfd(&mut self, handed: HandedPaths) {
        match Bfd::start(RandomState::new().build_hasher().finish(), handed) {
            Ok(bfd) => self.bfd = Some(bfd),
            Err(error) => tracing::error!(%error, "BFD cannot be started"),
        }
    }

    /// Looks for the neighbours of unnumbered peers.
    fn discover(&mut self) {
        let interfaces = self.speaker.interfaces();
        if !interfaces.is_empty() || self.discovery.is_some() {
            let events = || Discovery::start(self.sender.clone());
            self.discovery.get_or_insert_with(events).watch(interfaces);
        }
    }

    /// Gives the kernel's side its next batch, unless it has one in hand; it is started when there is one.
    fn install(&mut self) {
        if self.fib.is_none() {
            match Fib::start(self.sender.clone()) {
                Ok(fib) => self.fib = Some(fib),
                Err(error) => tracing::error!(%error, "routes cannot be installed"),
            }
        }
        if let Some(fib) = self.fib.as_mut().filter(|fib| !fib.is_busy()) {
            let installation = self.speaker.install(fib::BATCH);
            if installation != Installation::default() {
                fib.install(installation);
            }
        }
    }

    /// All peers, with what BFD says of their paths.
    fn peers(&self) -> Vec<PeerStatus> {
        let mut peers = self.speaker.peers(self.now());
        if let Some(bfd) = &self.bfd {
            let reports = bfd.reports().borrow();
            for peer in &mut peers {
                peer.bfd = reports.get(&peer.id()).map(Report::status);
            }
        }
        peers
    }

    fn input(&mut self, input: Input<'_>) {
        let outputs = self.speaker.handle(input, self.now());
        self.perform(outputs);
    }

    fn perform(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Connect { connection, remote, local, transport } => {
                    let events = self.sender.clone();
                    let task = self.tasks.spawn(async move {
                        let result = socket::dial(remote, local, &transport).await;
                        // The driver may have ended.
                        let _: Result<_, _> = events.send(Event::Dialled(connection, result)).await;
                    });
                    self.connections.insert(connection, Connection::Dialling(task));
                }
                Output::Close { connection, last } => match self.connections.remove(&connection) {
                    Some(Connection::Dialling(task)) => task.abort(),
                    Some(Connection::Open { orders, .. }) => {
                        // There is always room for it, and where the task has ended nothing is to be closed.
                        let _: Result<_, _> = orders.try_send(Order::Close(last));
                    }
                    None => (),
                },
                Output::Transmit { connection } => self.transmit(connection),
                Output::Watch { peer, path } => self.watch(peer, path),
                Output::Install => self.install(),
                Output::Report { station } => self.report(station),
                Output::StateChanged { peer, state, last_error } => {
                    tracing::info!(%peer, ?state, last_error, "session");
                    self.changed.send_modify(|changes| *changes += 1);
                }
            }
        }
    }

    /// Gives a connection its next batch, unless it has one in hand.
    fn transmit(&mut self, id: ConnectionId) {
        let Some(Connection::Open { orders, writing, .. }) = self.connections.get_mut(&id) else { return };
        if *writing || self.detached.is_some() {
            return;
        }
        let mut batch = Vec::new();
        self.speaker.transmit(id, BATCH, &mut batch);
        if !batch.is_empty() {
            // The task may have ended: then the speaker hears, or has heard, of that.
            *writing = orders.try_send(Order::Write(batch)).is_ok();
        }
    }

    fn answer_flushes(&mut self) {
        let writing = |connection: &Connection| matches!(connection, Connection::Open { writing: true, .. });
        if !self.flushes.is_empty() && !self.speaker.is_pending() && !self.connections.values().any(writing) {
            self.flushes.drain(..).for_each(|waiting| reply(waiting, ()));
        }
    }

    /// Says goodbye on all connections and waits until that is said; the tasks see to it that it ends.
    async fn shutdown(&mut self) {
        self.listeners.clear();
        self.discovery = None;
        let outputs = self.speaker.shutdown(self.now());
        self.perform(outputs);
        self.end_stations();
        self.connections.clear();
        self.events.close();
        while self.tasks.join_next().await.is_some() {}
        // The sessions have taken their leave: now their paths do, and their routes.
        self.bfd = None;
        if let Some(fib) = self.fib.take() {
            fib.leave(self.speaker.install(usize::MAX)).await;
        }
    }
}

/// Whether two connections are with the same neighbour, whatever their ports.
fn same_end(one: SocketAddr, other: SocketAddr) -> bool {
    let scope = |end| match end {
        SocketAddr::V6(end) => end.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    (one.ip(), scope(one)) == (other.ip(), scope(other))
}

fn reply<T>(answer: oneshot::Sender<T>, value: T) {
    // Who asked may have gone.
    let _: Result<_, _> = answer.send(value);
}

fn endpoints(stream: &TcpStream) -> io::Result<Endpoints> {
    let local = stream.local_addr()?;
    let next_hops = addresses::next_hops(local);
    Ok(Endpoints { local, remote: stream.peer_addr()?, next_hops })
}

async fn accept(listener: Arc<TcpListener>, events: mpsc::Sender<Event>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if events.send(Event::Accepted(stream)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "accept");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
