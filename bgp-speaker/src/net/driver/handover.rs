//! The end of a driver that has a successor, and the beginning of one that is one.
use super::{Connection, Driver, Event};
use crate::{
    ConnectionId,
    config::{self, ConfigError, Global, PeerConfig},
    net::{bfd::Bfd, connection::Order, handover::HandOver},
    speaker::{Installation, Session},
};
use socket2::SockRef;
use std::{
    collections::BTreeMap,
    io, mem,
    net::{SocketAddr, TcpStream as StdTcpStream},
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

/// Connections that have to give back their sockets, and say nothing at all for so long, end. What they have still to hand over
/// takes what it takes: a table that a peer tells anew is seconds of work.
const SILENCE: Duration = Duration::from_secs(2);
/// How long sessions wait for their heir.
const WAIT: Duration = Duration::from_secs(60);
/// Longest time between KEEPALIVEs meanwhile.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// What a predecessor left, until it is known who we are, whom we talk to and what we announce: what was not told in time
/// would be taken for gone. The sessions are kept alive meanwhile, and nothing is read.
pub(super) struct Inheritance {
    pub(super) handed: HandOver,
    global: Option<Global>,
    has_peers: bool,
    has_routes: bool,
    until: Instant,
    keepalive_at: Instant,
}

impl Inheritance {
    pub(super) fn new(handed: HandOver) -> Self {
        let now = Instant::now();
        Inheritance {
            handed,
            global: None,
            has_peers: false,
            has_routes: false,
            until: now + WAIT,
            keepalive_at: now,
        }
    }

    /// When there is something to do.
    pub(super) fn deadline(&self) -> Instant {
        self.until.min(self.keepalive_at)
    }

    fn is_known(&self) -> bool {
        self.has_peers && self.has_routes
    }

    /// The peers hear from us, if it is time.
    fn keep_alive(&mut self) {
        if self.keepalive_at > Instant::now() {
            return;
        }
        for (socket, session) in &mut self.handed.sessions {
            // Twice: what was left to be written comes first. Who takes nothing more will find out by himself.
            for _ in 0..2 {
                let sent = SockRef::from(&*socket).send(&session.unsent).unwrap_or(0);
                session.unsent.drain(..sent);
                if session.unsent.is_empty() && sent == 0 {
                    session.keep_alive();
                }
            }
        }
        let holds = self.handed.sessions.iter().filter_map(|(_, session)| session.hold_time());
        let pause = holds.min().map_or(KEEPALIVE, |hold| (hold / 3).min(KEEPALIVE));
        self.keepalive_at = Instant::now() + pause;
    }
}

impl Driver {
    /// Takes the connections back from their tasks. What comes meanwhile still counts; what is to be written waits in the
    /// speaker.
    pub(super) async fn hand_over(&mut self) -> HandOver {
        self.detached = Some(BTreeMap::new());
        // Who is not up need not be kept.
        self.held.clear();
        for connection in self.connections.values() {
            match connection {
                Connection::Dialling(task) => task.abort(),
                Connection::Open { orders, .. } => {
                    let _: Result<_, _> = orders.try_send(Order::Detach);
                }
            }
        }
        let is_open = |connection: &Connection| matches!(connection, Connection::Open { .. });
        while self.connections.values().any(is_open) {
            match timeout(SILENCE, self.events.recv()).await {
                Ok(Some(Event::Accepted(_))) => (),
                Ok(Some(event)) => self.event(event),
                Ok(None) | Err(_) => break,
            }
        }
        let mut handed = match self.inheritance.take() {
            // Nothing of it has been touched.
            Some(inheritance) => inheritance.handed,
            None => HandOver { keys: self.keys.keys().copied().collect(), ..HandOver::default() },
        };
        for (address, listener) in mem::take(&mut self.listeners) {
            match listener.socket.as_fd().try_clone_to_owned() {
                Ok(socket) => handed.listeners.push((address, socket)),
                Err(error) => tracing::warn!(%address, %error, "listener not handed over"),
            }
        }
        let mut detached = self.detached.take().unwrap_or_default();
        for (id, mut session) in self.speaker.hand_over(self.now()) {
            if let Some((stream, mut unsent)) = detached.remove(&id) {
                unsent.append(&mut session.unsent);
                session.unsent = unsent;
                handed.sessions.push((stream.into(), session));
            }
        }
        self.end_stations();
        if let Some(bfd) = self.bfd.take() {
            handed.paths = bfd.into_handed();
        }
        if let Some(fib) = self.fib.take() {
            // What is in hand is done; the rest the successor finds out.
            fib.leave(Installation::default()).await;
        }
        handed
    }

    /// The peers have been asked for some patience only: their paths are watched before anything is known.
    pub(super) fn watch_inherited(&mut self) {
        let paths = self.inheritance.as_mut().map(|left| mem::take(&mut left.handed.paths));
        if let Some(paths) = paths.filter(|paths| !paths.is_empty()) {
            self.start_bfd(paths);
        }
    }

    /// Says who we are; where something is inherited, when the rest is known, too.
    pub(super) fn set_global(&mut self, global: Global) -> Result<(), ConfigError> {
        self.speaker.check_global(&global)?;
        match &mut self.inheritance {
            Some(inheritance) => inheritance.global = Some(global),
            None => return self.become_known(global),
        }
        self.take_over()
    }

    /// What the speaker cannot say of its neighbours while it does not know who it is.
    pub(super) fn check_heirs(&self, peers: &[PeerConfig]) -> Result<(), ConfigError> {
        match self.inheritance.as_ref().and_then(|left| left.global.as_ref()) {
            Some(global) => config::check(global, peers, self.speaker.ranges(), &[], &[]),
            None => Ok(()),
        }
    }

    /// The neighbours have been set.
    pub(super) fn peers_known(&mut self) -> Result<(), ConfigError> {
        self.inheritance.iter_mut().for_each(|inheritance| inheritance.has_peers = true);
        self.take_over()
    }

    /// The routes have been set.
    pub(super) fn routes_known(&mut self) -> Result<(), ConfigError> {
        self.inheritance.iter_mut().for_each(|inheritance| inheritance.has_routes = true);
        self.take_over()
    }

    /// All is set. A program that has not said who it is and whom it talks to will not do so: it speaks no BGP any more.
    pub(super) fn all_known(&mut self) {
        let speaks_to = self.speaker.peer_configs().count() + self.speaker.ranges().len();
        let known = |inheritance: &mut Inheritance| inheritance.is_known() && inheritance.global.is_none();
        if speaks_to == 0
            && let Some(inheritance) = self.inheritance.take_if(known)
        {
            let connections = self.inherit(inheritance.handed.sessions);
            self.serve_all(connections);
            let outputs = self.speaker.end_inherited(self.now());
            self.perform(outputs);
            self.bfd.iter_mut().for_each(Bfd::forget_inherited);
        }
    }

    /// Sees to what waits for an heir.
    pub(super) fn inheritance_tick(&mut self) {
        let Some(inheritance) = &mut self.inheritance else { return };
        if inheritance.until <= Instant::now() {
            self.give_up_inheritance();
        } else {
            inheritance.keep_alive();
        }
    }

    /// It took too long: the peers see the connections close, without a word.
    fn give_up_inheritance(&mut self) {
        let Some(inheritance) = self.inheritance.take() else { return };
        tracing::warn!(
            sessions = inheritance.handed.sessions(),
            "the sessions of the program before waited too long for their peers and routes: they are closed"
        );
        drop(inheritance.handed);
        self.bfd.iter_mut().for_each(Bfd::forget_inherited);
        if let Some(global) = inheritance.global
            && let Err(error) = self.become_known(global)
        {
            tracing::error!(%error, "after the sessions of the program before");
        }
    }

    /// Goes on with what is inherited when all is known.
    fn take_over(&mut self) -> Result<(), ConfigError> {
        let Some(inheritance) = self.inheritance.as_ref().filter(|inheritance| inheritance.is_known()) else {
            return Ok(());
        };
        match inheritance.global.clone() {
            Some(global) => self.become_known(global),
            None => Ok(()),
        }
    }

    /// Listens where it is new before anything changes.
    fn become_known(&mut self, global: Global) -> Result<(), ConfigError> {
        let listeners = self.listeners_of(&global)?;
        let inherited = self.inheritance.take();
        let connections = inherited.map(|inheritance| self.inherit(inheritance.handed.sessions));
        let listen = global.listen.clone();
        let outputs = self.speaker.set_global(global, self.now())?;
        self.serve_all(connections.unwrap_or_default());
        self.listeners.retain(|address, _| listen.contains(address));
        listeners.into_iter().for_each(|(address, listener)| self.listen(address, listener));
        self.perform(outputs);
        self.bfd.iter_mut().for_each(Bfd::forget_inherited);
        Ok(())
    }

    /// Gives sessions to the speaker; their connections are to be served when it knows who it is.
    fn inherit(&mut self, sessions: Vec<(OwnedFd, Session)>) -> Vec<(ConnectionId, TcpStream, SocketAddr)> {
        let mut inherited = Vec::new();
        let mut connections = Vec::new();
        for (socket, session) in sessions {
            let stream = TcpStream::from_std(StdTcpStream::from(socket));
            match stream.and_then(|stream| io::Result::Ok((super::endpoints(&stream)?, stream))) {
                Ok((ends, stream)) => {
                    let connection = self.speaker.accept_id();
                    connections.push((connection, stream, ends.remote));
                    inherited.push((connection, ends, session));
                }
                Err(error) => tracing::warn!(peer = %session.peer, %error, "session not taken over"),
            }
        }
        self.speaker.inherit(inherited);
        connections
    }

    fn serve_all(&mut self, connections: Vec<(ConnectionId, TcpStream, SocketAddr)>) {
        connections
            .into_iter()
            .for_each(|(connection, stream, remote)| self.serve(connection, stream, remote));
    }
}
