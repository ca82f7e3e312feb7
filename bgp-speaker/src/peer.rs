//! One neighbour: its dialer, the connections that came in, and which of them lives.
//!
//! The dialer tries as long as the peer is configured and no session is up. A connection that comes in is always
//! taken, whatever the dialer waits for, so that a peer that comes back is heard at once. When an OPEN shows that
//! there are two connections with the same peer, section 6.8 of RFC 4271 decides (and RFC 6286 when identifiers
//! are equal): an Established one stays; else the one stays that was opened by the side with the higher identifier,
//! and of two that the peer opened the newer one.
//! The other is closed with Cease/Connection Collision Resolution. But where both sides restart gracefully, a peer
//! that comes back while its session still seems to be up has restarted without the end of its TCP connection having
//! been seen (RFC 4724 section 4.2): then the new connection stays.
use crate::{
    Time,
    config::{Family, Global, MessageCounts, PeerConfig, State},
    connection::{Connection, ConnectionId, Endpoints},
    fsm::{self, Action, Down, Event, Fsm, STABLE_AFTER},
    negotiate::{self, Negotiated, Start},
    random::Random,
    seen::LastError,
    wire::{
        self, Context, GracefulRestart, Message, Notification, Open, Reason, RouteRefresh, Update,
        UpdateError,
    },
};
use std::mem;

/// Connections of one peer that came in and are not up: more than a peer has reason to make.
const MAX_ACCEPTED: usize = 4;

/// What the peer asks of the speaker that owns it, in this order.
#[derive(Debug)]
pub(crate) enum Request {
    /// Dial; the connection has this name.
    Connect(ConnectionId),
    /// Write this and close.
    Close(ConnectionId, Vec<u8>),
    /// A session is up.
    Up(Negotiated),
    /// The peer has told all its routes of the family.
    EndOfRib(Family),
    /// A message of the session.
    Update(Update, Vec<UpdateError>),
    /// The peer wants our routes again, or says where its own begin and end.
    Refresh(RouteRefresh),
    /// The session that was up is no more; its routes are kept on these terms (RFC 4724), or go.
    Down(Option<GracefulRestart>),
}

/// The neighbour.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) config: PeerConfig,
    dialer: Connection,
    accepted: Vec<Connection>,
    /// Until then there are no connections.
    down_until: Option<Time>,
    state: State,
    pub(crate) since: Time,
    pub(crate) established_count: u64,
    pub(crate) last_error: Option<(LastError, Option<Time>)>,
    /// How the last session ended; none: without a word, or it has not.
    pub(crate) last_down: Option<Down>,
    /// Of connections that are gone.
    received_count: MessageCounts,
    sent_count: MessageCounts,
}

/// A session that another process began, and what was agreed on there.
pub(crate) struct Adopted {
    pub(crate) id: ConnectionId,
    pub(crate) dialed: bool,
    pub(crate) since: Time,
    pub(crate) established_count: u64,
    pub(crate) endpoints: Endpoints,
    pub(crate) open: Open,
    pub(crate) open_octets: Vec<u8>,
    pub(crate) sent_open: Open,
    pub(crate) negotiated: Negotiated,
    pub(crate) waiting: Vec<u8>,
    pub(crate) now: Time,
}

/// What the speaker lends to its peers.
pub(crate) struct Tools<'a> {
    pub(crate) global: &'a Global,
    pub(crate) start: Start,
    pub(crate) now: Time,
    pub(crate) random: &'a mut Random,
    pub(crate) next_connection: &'a mut u64,
    pub(crate) requests: Vec<Request>,
}

impl Peer {
    pub(crate) fn new(config: PeerConfig, now: Time) -> Self {
        let mut dialer = Connection::new(Fsm::dialer(config.timers, now));
        dialer.fsm.set_passive(config.passive);
        Peer {
            config,
            dialer,
            accepted: Vec::new(),
            down_until: None,
            state: State::Idle,
            since: now,
            established_count: 0,
            last_error: None,
            last_down: None,
            received_count: MessageCounts::default(),
            sent_count: MessageCounts::default(),
        }
    }

    /// The state of the connection that is furthest.
    pub(crate) fn state(&self) -> State {
        self.connections().map(|connection| connection.fsm.state()).max().unwrap_or(State::Idle)
    }

    /// The connection that is furthest.
    pub(crate) fn foremost(&self) -> &Connection {
        self.connections().max_by_key(|connection| connection.fsm.state()).unwrap_or(&self.dialer)
    }

    /// The session, if it is up.
    pub(crate) fn session(&self) -> Option<&Connection> {
        self.connections().find(|connection| connection.fsm.state() == State::Established)
    }

    pub(crate) fn session_mut(&mut self) -> Option<&mut Connection> {
        self.connections_mut().find(|connection| connection.fsm.state() == State::Established)
    }

    pub(crate) fn connections(&self) -> impl Iterator<Item = &Connection> {
        std::iter::once(&self.dialer).chain(&self.accepted)
    }

    fn connections_mut(&mut self) -> impl Iterator<Item = &mut Connection> {
        std::iter::once(&mut self.dialer).chain(&mut self.accepted)
    }

    pub(crate) fn connection_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.connections_mut().find(|connection| connection.id == Some(id))
    }

    /// Messages received and sent since the peer was configured.
    pub(crate) fn messages(&self) -> (MessageCounts, MessageCounts) {
        let (mut received, mut sent) = (self.received_count, self.sent_count);
        for connection in self.connections() {
            received += connection.received_count;
            sent += connection.sent_count;
        }
        (received, sent)
    }

    /// The last error in words.
    pub(crate) fn error(&self) -> Option<String> {
        self.last_error.as_ref().map(|(error, _)| error.to_string())
    }

    /// True once after each change of [`state`](Self::state).
    pub(crate) fn state_changed(&mut self, now: Time) -> bool {
        let state = self.state();
        let changed = mem::replace(&mut self.state, state) != state;
        if changed {
            self.since = now;
        }
        changed
    }

    pub(crate) fn next_deadline(&self) -> Option<Time> {
        let deadlines = self.connections().filter_map(|connection| connection.fsm.next_deadline());
        deadlines.chain(self.down_until).min()
    }

    /// Dials at once, unless the peer is shut down.
    pub(crate) fn start(&mut self, tools: &mut Tools<'_>) {
        self.down_until = None;
        // An unnumbered peer that was not heard yet has no address.
        if self.config.shutdown.is_some() || self.config.address.is_unspecified() {
            return;
        }
        self.event(Which::Dialer, Event::Start, tools);
    }

    /// Ends all connections; the peer stays down until it is started.
    pub(crate) fn stop(&mut self, notification: &Notification, tools: &mut Tools<'_>) {
        while !self.accepted.is_empty() {
            self.event(Which::Accepted(0), Event::Stop(notification.clone()), tools);
        }
        self.event(Which::Dialer, Event::Stop(notification.clone()), tools);
    }

    /// Ends all connections like [`stop`](Self::stop), but the session without a word if the peer is to keep our routes
    /// (RFC 4724 section 4.1).
    pub(crate) fn leave(&mut self, notification: &Notification, tools: &mut Tools<'_>) {
        if self.leaves_gracefully()
            && let Some(id) = self.session().and_then(|session| session.id)
        {
            self.on(id, Event::Leave, tools);
        }
        self.stop(notification, tools);
    }

    /// Whether a session is up over whose end the peer keeps our routes, if it ends without a word.
    pub(crate) fn leaves_gracefully(&self) -> bool {
        let negotiated = self.session().and_then(|session| session.negotiated.as_ref());
        negotiated.is_some_and(|negotiated| negotiated.graceful_restart.is_some())
    }

    /// Ends all connections; there are no others until then.
    pub(crate) fn stop_until(&mut self, end: Time, notification: &Notification, tools: &mut Tools<'_>) {
        self.reset(notification.clone(), tools);
        self.stop(notification, tools);
        self.down_until = Some(end);
    }

    /// What the peer is told when its session has to be another one.
    pub(crate) fn farewell(&self) -> Notification {
        match &self.config.shutdown {
            Some(text) => Notification::with_communication(Reason::ADMINISTRATIVE_SHUTDOWN, text),
            None => Reason::OTHER_CONFIGURATION_CHANGE.into(),
        }
    }

    /// Whether it takes no connections for now.
    pub(crate) fn is_kept_down(&self) -> bool {
        self.down_until.is_some() || self.config.shutdown.is_some()
    }

    /// Ends the session that is up, if there is one; the dialer tries again later.
    pub(crate) fn reset(&mut self, notification: Notification, tools: &mut Tools<'_>) {
        if let Some(id) = self.session().and_then(|connection| connection.id) {
            self.on(id, Event::Error(notification), tools);
        }
    }

    /// Gives the session that is up up, as if its TCP connection had been lost.
    pub(crate) fn lose(&mut self, reason: &str, tools: &mut Tools<'_>) {
        if let Some(id) = self.session().and_then(|connection| connection.id) {
            self.on(id, Event::TcpFailed(reason.to_owned()), tools);
        }
    }

    /// Takes what changed in the configuration to the connections.
    pub(crate) fn set_timers(&mut self) {
        self.dialer.fsm.set_passive(self.config.passive);
        let timers = self.config.timers;
        self.connections_mut().for_each(|connection| connection.fsm.set_timers(timers));
    }

    /// The dialed connection is there.
    pub(crate) fn connected(&mut self, id: ConnectionId, endpoints: Endpoints, tools: &mut Tools<'_>) {
        if self.dialer.id == Some(id) {
            self.dialer.endpoints = Some(endpoints);
            self.event(Which::Dialer, Event::TcpConnected, tools);
        }
    }

    /// A connection came in.
    pub(crate) fn accept(&mut self, id: ConnectionId, endpoints: Endpoints, tools: &mut Tools<'_>) {
        if self.is_kept_down() {
            tools.requests.push(Request::Close(id, Vec::new()));
            return;
        }
        if self.accepted.len() >= MAX_ACCEPTED {
            // The oldest that is not up makes room: a peer that dials anew has given that one up.
            let oldest = self.accepted.iter().position(|other| other.fsm.state() != State::Established);
            if let Some(oldest) = oldest {
                let cease = Reason::CONNECTION_COLLISION_RESOLUTION.into();
                self.event(Which::Accepted(oldest), Event::Stop(cease), tools);
            }
        }
        let mut connection = Connection::new(Fsm::accepted(self.config.timers, tools.now));
        connection.id = Some(id);
        connection.endpoints = Some(endpoints);
        self.accepted.push(connection);
        self.event(Which::Accepted(self.accepted.len() - 1), Event::TcpConnected, tools);
    }

    /// Whether there is no connection, and none is tried.
    pub(crate) fn is_alone(&self) -> bool {
        self.down_until.is_none() && self.connections().all(|connection| connection.id.is_none())
    }

    /// Goes on with a session that another process began.
    pub(crate) fn adopt(&mut self, adopted: Adopted) {
        let Adopted { id, dialed, since, established_count, endpoints, negotiated, now, .. } = adopted;
        let mut connection =
            Connection::new(Fsm::resumed(dialed, self.config.timers, negotiated.timers, since, now));
        connection.id = Some(id);
        connection.endpoints = Some(endpoints);
        connection.open = Some(adopted.open);
        connection.open_octets = adopted.open_octets;
        connection.sent_open = Some(adopted.sent_open);
        connection.negotiated = Some(negotiated);
        connection.waiting = adopted.waiting;
        if dialed {
            connection.fsm.set_passive(self.config.passive);
            self.dialer = connection;
        } else {
            self.accepted.push(connection);
        }
        self.established_count = established_count;
        self.state = State::Established;
        self.since = since;
    }

    /// An event of the connection with this name.
    pub(crate) fn on(&mut self, id: ConnectionId, event: Event, tools: &mut Tools<'_>) {
        if let Some(which) = self.which(id) {
            self.event(which, event, tools);
        }
    }

    /// The time has come for some connection.
    pub(crate) fn tick(&mut self, tools: &mut Tools<'_>) {
        if self.down_until.is_some_and(|end| end <= tools.now) {
            self.start(tools);
        }
        let due = |connection: &Connection| {
            connection.fsm.next_deadline().is_some_and(|deadline| deadline <= tools.now)
        };
        let accepted: Vec<ConnectionId> =
            self.accepted.iter().filter(|connection| due(connection)).filter_map(|c| c.id).collect();
        let dialer = due(&self.dialer);
        for id in accepted {
            self.on(id, Event::Tick, tools);
        }
        if dialer {
            self.event(Which::Dialer, Event::Tick, tools);
        }
        if let Some(id) = self.session().filter(|session| session.is_stuck(tools.now)).and_then(|s| s.id) {
            self.on(id, Event::Error(Reason::SEND_HOLD_TIMER_EXPIRED.into()), tools);
        }
    }

    /// Bytes of the connection with this name. Stops at the first message that ends it.
    pub(crate) fn receive(&mut self, id: ConnectionId, bytes: &[u8], tools: &mut Tools<'_>) {
        let Some(connection) = self.connection_mut(id).filter(|connection| connection.is_connected()) else {
            return;
        };
        connection.received.extend_from_slice(bytes);
        let mut consumed = 0;
        while let Some(connection) = self.connection_mut(id) {
            let fallback = Context::default();
            let context = connection.negotiated.as_ref().map_or(&fallback, |session| &session.context);
            let start = consumed;
            let rest = &connection.received[start..];
            let decoded = match wire::frame(rest, context) {
                Ok(None) => {
                    connection.received.drain(..consumed);
                    return;
                }
                Ok(Some(message)) => {
                    consumed += message.len();
                    wire::decode(message, context)
                }
                Err(notification) => Err(notification),
            };
            match decoded {
                Ok(decoded) => {
                    connection.received_count.add(&decoded.message, 1);
                    if matches!(decoded.message, Message::Open(_)) {
                        connection.open_octets = connection.received[start..consumed].to_vec();
                    }
                    self.message(id, decoded.message, decoded.errors, tools);
                }
                Err(notification) => self.on(id, Event::Error(notification), tools),
            }
        }
    }

    fn message(
        &mut self,
        id: ConnectionId,
        message: Message,
        errors: Vec<UpdateError>,
        tools: &mut Tools<'_>,
    ) {
        match message {
            Message::Open(open) => self.open(id, open, tools),
            Message::Keepalive => self.on(id, Event::Keepalive, tools),
            Message::Notification(notification) => self.on(id, Event::Notification(notification), tools),
            Message::Update(update) => self.routes(id, Request::Update(update, errors), tools),
            Message::EndOfRib(family) => self.routes(id, Request::EndOfRib(family), tools),
            Message::RouteRefresh(refresh) => self.routes(id, Request::Refresh(refresh), tools),
        }
    }

    fn routes(&mut self, id: ConnectionId, request: Request, tools: &mut Tools<'_>) {
        self.on(id, Event::Routes, tools);
        if self.connection_mut(id).is_some() {
            tools.requests.push(request);
        }
    }

    fn open(&mut self, id: ConnectionId, open: Open, tools: &mut Tools<'_>) {
        let Some(which) = self.which(id) else { return };
        let negotiated = negotiate::negotiate(tools.global, &self.config, &open);
        let event = Event::Open(match &negotiated {
            Ok(negotiated) => Ok(negotiated.timers),
            Err(notification) => Err(notification.clone()),
        });
        let in_open_sent = self.get_mut(which).fsm.state() == State::OpenSent;
        if in_open_sent {
            self.get_mut(which).open = Some(open.clone());
        }
        if let Ok(negotiated) = negotiated
            && in_open_sent
        {
            if !self.survives(id, &open, tools) {
                let cease = Reason::CONNECTION_COLLISION_RESOLUTION.into();
                self.on(id, Event::Stop(cease), tools);
                return;
            }
            // Closing the other connection may have moved this one in the list.
            if let Some(connection) = self.connection_mut(id) {
                connection.negotiated = Some(negotiated);
            }
        }
        self.on(id, event, tools);
    }

    /// Section 6.8: whether the connection on which the OPEN came stays; if it does, its rivals are closed.
    fn survives(&mut self, id: ConnectionId, open: &Open, tools: &mut Tools<'_>) -> bool {
        if let Some(dead) = self.session().filter(|session| is_dead(session, tools.now)).and_then(|s| s.id) {
            self.on(dead, Event::TcpFailed("the peer has restarted".to_owned()), tools);
        }
        let rivals: Vec<(ConnectionId, State, bool)> = self
            .connections()
            .filter(|rival| matches!(rival.fsm.state(), State::OpenConfirm | State::Established))
            .filter_map(|rival| Some((rival.id?, rival.fsm.state(), self.is_dialed(rival.id?))))
            .filter(|(rival, ..)| *rival != id)
            .collect();
        let dialed = self.is_dialed(id);
        let local = (tools.global.router_id, tools.global.asn);
        let local_wins = local > (open.router_id, open.asn);
        for (_, state, rival_dialed) in &rivals {
            // Two that came in are no collision of both sides: the peer has given the older one up.
            let stays = *state != State::Established
                && if dialed == *rival_dialed { !dialed } else { dialed == local_wins };
            if !stays {
                return false;
            }
        }
        for (rival, ..) in rivals {
            let cease = Reason::CONNECTION_COLLISION_RESOLUTION.into();
            self.on(rival, Event::Stop(cease), tools);
        }
        true
    }

    pub(crate) fn is_dialed(&self, id: ConnectionId) -> bool {
        self.dialer.id == Some(id)
    }

    fn which(&self, id: ConnectionId) -> Option<Which> {
        if self.is_dialed(id) {
            return Some(Which::Dialer);
        }
        self.accepted.iter().position(|connection| connection.id == Some(id)).map(Which::Accepted)
    }

    fn get_mut(&mut self, which: Which) -> &mut Connection {
        match which {
            Which::Dialer => &mut self.dialer,
            Which::Accepted(at) => &mut self.accepted[at],
        }
    }

    /// One event for one machine, and all that follows from it.
    fn event(&mut self, which: Which, event: Event, tools: &mut Tools<'_>) {
        let stopped = matches!(event, Event::Stop(_) | Event::Leave);
        let connection = match which {
            Which::Dialer => &mut self.dialer,
            Which::Accepted(at) => &mut self.accepted[at],
        };
        let was_up = connection.fsm.state() == State::Established;
        let terms = connection.negotiated.as_ref().and_then(|session| session.graceful_restart.clone());
        let start = if self.established_count == 0 { tools.start } else { Start::Running };
        let actions = connection.handle(event, tools.global, &self.config, start, tools.now, tools.random);
        let terms = terms.filter(|terms| actions.iter().any(|action| keeps_routes(terms, action)));
        let mut up = None;
        for action in actions {
            let connection = self.get_mut(which);
            match action {
                Action::Connect => {
                    *tools.next_connection += 1;
                    let id = ConnectionId(*tools.next_connection);
                    connection.id = Some(id);
                    tools.requests.push(Request::Connect(id));
                }
                // It waits in the connection.
                Action::SendOpen | Action::SendKeepalive => {}
                Action::SendNotification(_) | Action::Disconnect => {
                    if let Some(id) = connection.id {
                        let last = connection.reset();
                        tools.requests.push(Request::Close(id, last));
                    }
                }
                Action::Up => {
                    if let (Some(id), Some(negotiated)) = (connection.id, connection.negotiated.clone()) {
                        tools.requests.push(Request::Up(negotiated));
                        up = Some(id);
                    }
                    self.last_down = None;
                    self.established_count += 1;
                }
                Action::Down(down) => self.down(down, tools.now),
            }
        }
        if was_up && self.get_mut(which).fsm.state() != State::Established {
            tools.requests.push(Request::Down(terms));
        }
        if let Which::Accepted(at) = which
            && self.accepted[at].fsm.state() == State::Idle
        {
            let gone = self.accepted.remove(at);
            self.received_count += gone.received_count;
            self.sent_count += gone.sent_count;
        }
        if let Some(id) = up {
            self.close_others(id, tools);
        } else if !(stopped && which == Which::Dialer) {
            self.revive(tools);
        }
    }

    /// A session is up: whatever else was tried ends (section 6.8).
    fn close_others(&mut self, id: ConnectionId, tools: &mut Tools<'_>) {
        let cease: Notification = Reason::CONNECTION_COLLISION_RESOLUTION.into();
        let others: Vec<ConnectionId> =
            self.accepted.iter().filter_map(|other| other.id).filter(|other| *other != id).collect();
        for other in others {
            self.on(other, Event::Stop(cease.clone()), tools);
        }
        if !self.is_dialed(id) {
            self.event(Which::Dialer, Event::Stop(cease), tools);
        }
    }

    /// The dialer was put to rest for a connection that is gone now: it goes on.
    fn revive(&mut self, tools: &mut Tools<'_>) {
        if self.dialer.fsm.state() == State::Idle && self.accepted.is_empty() {
            self.event(Which::Dialer, Event::StartPassive, tools);
        }
    }

    fn down(&mut self, down: Down, now: Time) {
        let down = match down {
            // The end of the connection that lost is nobody's error.
            Down::Sent(notification) if notification.reason == Reason::CONNECTION_COLLISION_RESOLUTION => {
                return;
            }
            // A wrong signature is not answered: nobody says more than that.
            Down::Tcp(reason) if self.config.md5.is_some() && reason == fsm::NO_ANSWER => {
                Down::Tcp(format!("{reason}: the MD5 keys may differ"))
            }
            down => down,
        };
        self.last_down = Some(down.clone());
        self.last_error = Some((LastError::Down(down), Some(now)));
    }
}

/// Whether a session that is up must be one that the peer has forgotten, if its OPEN comes on another connection. Not
/// soon after its start, when both sides have just dialled.
fn is_dead(session: &Connection, now: Time) -> bool {
    let terms = session.negotiated.as_ref().and_then(|negotiated| negotiated.graceful_restart.as_ref());
    terms.is_some() && now.saturating_sub(session.fsm.since()) >= STABLE_AFTER
}

/// Whether the routes of a session outlive this end of it (RFC 4724 section 4.2, RFC 8538 section 4).
fn keeps_routes(terms: &GracefulRestart, action: &Action) -> bool {
    match action {
        Action::Down(Down::Tcp(_)) => true,
        Action::Down(Down::Sent(notification) | Down::Received(notification)) => {
            terms.notification && !notification.is_hard()
        }
        _ => false,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Dialer,
    Accepted(usize),
}
