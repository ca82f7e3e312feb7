//! How the speaker uses BFD (RFC 5882): which paths are to be watched, and what follows when one fails.
//!
//! A path is watched from the moment that the peer is configured, so that a session is protected at once, and goes
//! on to be while the session is down. A path that is not up yet does not hold BGP back (section 10.1): a peer
//! without BFD is a peer. What the peer's operator turned off is no failure (section 3.2).
use super::{Output, Speaker};
use crate::{
    PeerId, Time,
    bfd::{Hops, Path},
    fib::is_link_local,
    rib::Source,
    wire::Reason,
};

impl Speaker {
    /// Says how the path to a peer is to be watched, if that is another way than before.
    pub(super) fn watch(&mut self, source: Source, outputs: &mut Vec<Output>) {
        let path = self.path(source);
        let Some(slot) = self.slot_mut(source) else { return };
        if slot.watched != path {
            slot.watched = path;
            outputs.push(Output::Watch { peer: slot.peer.config.id(), path });
        }
    }

    /// The session ends at once, and with it all that came over it. But where routes outlive a restart of the peer its C bit
    /// decides (RFC 5882 section 4.3): a peer whose BFD shares the fate of its control plane may just be restarting
    /// that, as after any other end of the session without a word.
    pub(super) fn path_failed(
        &mut self,
        peer: PeerId,
        control_plane_independent: bool,
        now: Time,
        outputs: &mut Vec<Output>,
    ) {
        let Some(&source) = self.by_id.get(&peer) else { return };
        self.with_peer(source, now, outputs, |peer, tools| match peer.session() {
            Some(session) if !control_plane_independent && session.restarts_gracefully() => {
                peer.lose("the path failed (BFD)", tools);
            }
            _ => peer.reset(Reason::BFD_DOWN.into(), tools),
        });
        if control_plane_independent {
            // Nor is anything kept of a session before.
            self.forget_stale(source);
        }
    }

    /// The ends are those of the session; after it those that it had, and before it what is configured.
    fn path(&self, source: Source) -> Option<Path> {
        let (global, slot) = (self.global.as_ref()?, self.slot(source)?);
        let peer = &slot.peer.config;
        let config = peer.bfd?;
        let endpoints = slot.peer.session().and_then(|session| session.endpoints.as_ref());
        let (scope, local) = match (endpoints, slot.watched) {
            (Some(ends), _) => (ends.link(), Some(ends.local.ip().to_canonical())),
            (None, Some(before)) => (before.scope, before.local),
            (None, None) => (0, peer.local_address),
        };
        let scope = self.link(source).map_or(scope, |link| link.index);
        let hops = match (peer.multihop_ttl, peer.ttl_security_hops) {
            (Some(_), _) | (None, Some(2..)) => Some(Hops::Multi),
            (None, Some(_)) => Some(Hops::Single),
            (None, None) if peer.asn.is_internal(global.asn) => None,
            (None, None) => Some(Hops::Single),
        };
        // The interface of a link-local address is known with the session.
        let reachable = !peer.address.is_unspecified() && (scope != 0 || !is_link_local(peer.address));
        reachable.then_some(Path { address: peer.address, scope, local, hops, config })
    }
}
