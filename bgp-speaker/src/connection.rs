//! One TCP connection of a peer: its state machine, the bytes that came and are not a whole message yet, and the
//! messages that wait to be sent. UPDATEs do not wait here: they are made when the socket has room for them
//! (see [`update_queue`](crate::update_queue)).
use crate::{
    Time,
    config::{Family, Global, MessageCounts, PeerConfig, State},
    fsm::{Action, Event, Fsm},
    negotiate::{self, Negotiated, Start},
    random::Random,
    wire::{Context, Message, NextHop, Notification, Open},
};
use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

/// How long a peer may take nothing at least (RFC 9687 section 4).
pub(crate) const SEND_HOLD: Duration = Duration::from_secs(8 * 60);

/// Names a TCP connection, or an attempt to make one. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub(crate) u64);

/// The ends of a connection, and our addresses there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// Our end.
    pub local: SocketAddr,
    /// The peer's end.
    pub remote: SocketAddr,
    /// Next-hop self by family: our global addresses on the interface of `local`. A family that is not here
    /// is announced with given next hops only.
    pub next_hops: BTreeMap<Family, NextHop>,
}

impl Endpoints {
    /// Index of the interface of a connection between link-local addresses, else 0.
    pub(crate) fn link(&self) -> u32 {
        match self.remote {
            SocketAddr::V6(remote) if remote.ip().is_unicast_link_local() => remote.scope_id(),
            SocketAddr::V6(_) | SocketAddr::V4(_) => 0,
        }
    }
}

/// The connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) id: Option<ConnectionId>,
    pub(crate) fsm: Fsm,
    pub(crate) endpoints: Option<Endpoints>,
    /// What came and is not decoded yet: less than a message between two inputs.
    pub(crate) received: Vec<u8>,
    /// Encoded messages that wait: at most an OPEN, a few KEEPALIVEs and ROUTE-REFRESHs.
    pub(crate) waiting: Vec<u8>,
    /// The peer's OPEN.
    pub(crate) open: Option<Open>,
    /// The same as on the wire.
    pub(crate) open_octets: Vec<u8>,
    /// Ours.
    pub(crate) sent_open: Option<Open>,
    pub(crate) negotiated: Option<Negotiated>,
    pub(crate) received_count: MessageCounts,
    pub(crate) sent_count: MessageCounts,
    /// Since when the peer has taken nothing of what waits, as far as keepalives have found.
    blocked_since: Option<Time>,
}

impl Connection {
    pub(crate) fn new(fsm: Fsm) -> Self {
        Connection {
            id: None,
            fsm,
            endpoints: None,
            received: Vec::new(),
            waiting: Vec::new(),
            open: None,
            open_octets: Vec::new(),
            sent_open: None,
            negotiated: None,
            received_count: MessageCounts::default(),
            sent_count: MessageCounts::default(),
            blocked_since: None,
        }
    }

    /// Whether both sides keep routes over a restart.
    pub(crate) fn restarts_gracefully(&self) -> bool {
        self.negotiated.as_ref().is_some_and(|session| session.graceful_restart.is_some())
    }

    /// Whether the machine has a TCP connection.
    pub(crate) fn is_connected(&self) -> bool {
        matches!(self.fsm.state(), State::OpenSent | State::OpenConfirm | State::Established)
    }

    /// Puts a message among those that wait.
    pub(crate) fn send(&mut self, message: &Message) {
        let fallback = Context::default();
        let context = self.negotiated.as_ref().map_or(&fallback, |negotiated| &negotiated.context);
        // What goes this way is small and made here: it always fits.
        if let Ok(count) = message.encode(context, &mut self.waiting) {
            self.sent_count.add(message, count as u64);
        }
    }

    /// One event for the machine; what it does to the connection itself is done here: OPEN, KEEPALIVE and
    /// NOTIFICATION are put among the waiting messages.
    pub(crate) fn handle(
        &mut self,
        event: Event,
        global: &Global,
        config: &PeerConfig,
        start: Start,
        now: Time,
        random: &mut Random,
    ) -> Vec<Action> {
        let actions = self.fsm.handle(event, now, random);
        for action in &actions {
            match action {
                Action::SendOpen => {
                    let open = negotiate::open(global, config, start);
                    self.sent_open = Some(open.clone());
                    self.send(&Message::Open(open));
                }
                // A peer that reads nothing is not written to without end.
                Action::SendKeepalive
                    if self.fsm.state() == State::Established && !self.waiting.is_empty() =>
                {
                    self.blocked_since.get_or_insert(now);
                }
                Action::SendKeepalive => {
                    self.blocked_since = None;
                    self.send(&Message::Keepalive);
                }
                Action::SendNotification(notification) => self.notify(notification),
                Action::Connect | Action::Disconnect | Action::Up | Action::Down(_) => {}
            }
        }
        actions
    }

    /// Whether the peer has taken nothing for so long that the session is as good as dead (SendHoldTimer, RFC 9687).
    pub(crate) fn is_stuck(&self, now: Time) -> bool {
        let hold = Duration::from_secs(self.fsm.session().map_or(0, |session| session.hold_seconds).into());
        self.blocked_since.is_some_and(|since| now.saturating_sub(since) >= SEND_HOLD.max(hold * 2))
    }

    fn notify(&mut self, notification: &Notification) {
        let terms = self.negotiated.as_ref().and_then(|session| session.graceful_restart.as_ref());
        let notification = match terms {
            Some(terms) if terms.notification && notification.is_hard() => notification.hardened(),
            _ => notification.clone(),
        };
        self.send(&Message::Notification(notification));
    }

    /// Forgets what belonged to the TCP connection that is gone. What waits must be written before it is
    /// closed: OPEN and NOTIFICATION.
    pub(crate) fn reset(&mut self) -> Vec<u8> {
        self.id = None;
        self.endpoints = None;
        self.received = Vec::new();
        self.open = None;
        self.open_octets = Vec::new();
        self.sent_open = None;
        self.negotiated = None;
        self.blocked_since = None;
        std::mem::take(&mut self.waiting)
    }
}
