//! What the thread of BFD leaves to that of a successor: sessions that are up, and the sockets, so that nothing of them
//! is another thing to the peers, and nothing that they send meanwhile is refused.
use super::socket::{Inlet, Receiver, Sender};
use crate::{
    PeerId, Time,
    bfd::{Destination, Engine, HandedSession, Hops, Path},
    net::handover::text,
    speaker::number,
};
use std::{collections::BTreeMap, os::fd::OwnedFd, time::Duration};

/// It.
#[derive(Debug, Default)]
pub(crate) struct HandedPaths {
    pub(super) receivers: Vec<(Inlet, OwnedFd)>,
    pub(super) paths: Vec<HandedPath>,
}

/// A session with the socket that it sends from.
#[derive(Debug)]
pub(super) struct HandedPath {
    pub(super) peer: PeerId,
    pub(super) session: HandedSession,
    pub(super) sender: OwnedFd,
}

impl HandedPaths {
    /// Whether there is nothing to go on with.
    pub(in crate::net) fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// Whose paths they are.
    pub(super) fn peers(&self) -> impl Iterator<Item = PeerId> {
        self.paths.iter().map(|path| path.peer)
    }

    /// How the paths were watched last.
    pub(super) fn wanted(&self) -> BTreeMap<PeerId, Path> {
        let path = |path: &HandedPath| {
            let HandedSession { to, session, .. } = &path.session;
            let hops = Some(to.hops);
            Path { address: to.address, scope: to.scope, local: None, hops, config: session.config }
        };
        self.paths.iter().map(|handed| (handed.peer, path(handed))).collect()
    }

    /// How long the oldest session is up.
    pub(super) fn age(&self) -> Duration {
        self.paths.iter().map(|path| path.session.session.age).max().unwrap_or_default()
    }

    /// Takes the sessions of peers from a thread that ends.
    pub(super) fn of(
        engine: &Engine,
        now: Time,
        receivers: BTreeMap<Inlet, Receiver>,
        mut senders: BTreeMap<Destination, Sender>,
        peer: impl Fn(&Destination) -> Option<PeerId>,
    ) -> Self {
        let path = |session: HandedSession| {
            let (peer, sender) = (peer(&session.to)?, senders.remove(&session.to)?.into());
            Some(HandedPath { peer, session, sender })
        };
        let paths = engine.handed(now).into_iter().filter_map(path).collect();
        let receivers = receivers.into_iter();
        let receivers = receivers.filter_map(|(inlet, receiver)| Some((inlet, receiver.into_socket().ok()?)));
        HandedPaths { receivers: receivers.collect(), paths }
    }

    /// Appends all but the sockets, and these to `sockets` in the order of [`HandedPaths::read`].
    pub(in crate::net) fn write(self, out: &mut Vec<u8>, sockets: &mut Vec<OwnedFd>) {
        let put = |out: &mut Vec<u8>, number: usize| out.extend((number as u64).to_be_bytes());
        put(out, self.receivers.len());
        for ((is_ipv6, hops), socket) in self.receivers {
            put(out, is_ipv6.into());
            put(out, (hops == Hops::Multi).into());
            sockets.push(socket);
        }
        put(out, self.paths.len());
        for HandedPath { peer, session, sender } in self.paths {
            let peer = peer.to_string();
            put(out, peer.len());
            out.extend(peer.into_bytes());
            session.write(out);
            sockets.push(sender);
        }
    }

    /// Takes it from the front; none: this is something else.
    pub(in crate::net) fn read(
        from: &mut &[u8],
        sockets: &mut impl Iterator<Item = OwnedFd>,
    ) -> Option<Self> {
        let mut handed = HandedPaths::default();
        for _ in 0..number(from)? {
            let is_ipv6 = number(from)? == 1;
            let hops = if number(from)? == 1 { Hops::Multi } else { Hops::Single };
            handed.receivers.push(((is_ipv6, hops), sockets.next()?));
        }
        for _ in 0..number(from)? {
            let peer = text(from)?.parse().ok()?;
            let session = HandedSession::read(from)?;
            handed.paths.push(HandedPath { peer, session, sender: sockets.next()? });
        }
        Some(handed)
    }
}
