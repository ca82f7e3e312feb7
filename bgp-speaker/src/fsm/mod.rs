//! The finite state machine of one connection, RFC 4271 section 8. Pure: events and the time come in, actions
//! go out, and [`Fsm::next_deadline`] says when to come back with [`Event::Tick`].
//!
//! A peer has one *dialer* for as long as it is configured, and one *accepted* machine for each connection that
//! came in (section 8.2.1); `peer` resolves their collisions.
//!
//! | state | Start | Tick: retry | connected | TCP failed | OPEN | KEEPALIVE | UPDATE, REFRESH | hold expired |
//! |---|---|---|---|---|---|---|---|---|
//! | Idle | Connect | - | - | - | - | - | - | - |
//! | Connect | - | Connect | OpenSent | *again* | - | - | - | - |
//! | Active | - | Connect | OpenSent | *again* | - | - | - | - |
//! | OpenSent | - | - | - | *again* | OpenConfirm | 5/1 | 5/1 | 4 |
//! | OpenConfirm | - | - | - | *again* | 5/2 | Established | 5/2 | 4 |
//! | Established | - | - | - | *again* | 5/3 | - | - | 4 |
//!
//! `5/1` and the like: that NOTIFICATION (RFC 6608 subcodes), then *again*. *again*: the dialer passes through
//! Idle and is started anew at once with a passive TCP connection (events 14 and 5 of section 8.1.2), that is, it
//! is Active until the next attempt is due; an accepted machine is Idle for good. A NOTIFICATION from the peer and
//! a message that does not decode lead to *again* from any state, `Stop` and `Leave` lead to Idle.
//!
//! Attempts back off: the delay doubles with each failure to 8 times the first one, with jitter. A session that
//! ends soon after it came up counts as a failure, too: this damps peers that accept and then reject us
//! (section 8.1.1, DampPeerOscillations).
use crate::{
    Time,
    config::{State, Timers},
    random::Random,
    wire::{Notification, Reason},
};
use std::{cmp, time::Duration};

/// How long to wait for the OPEN (section 8.2.2: "a large value", 4 minutes are suggested).
pub const LARGE_HOLD_TIME: Duration = Duration::from_secs(240);
/// A session that lived shorter than this counts as a failed attempt.
pub const STABLE_AFTER: Duration = Duration::from_secs(10);
/// Why an attempt ended that nobody answered.
pub(crate) const NO_ANSWER: &str = "no answer";
/// The delay between attempts doubles at most this often.
const MAX_DOUBLINGS: u32 = 3;

/// What happens to a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Dial now.
    Start,
    /// Wait for the peer, dial when the next attempt is due.
    StartPassive,
    /// End for good, with this NOTIFICATION if there is a connection.
    Stop(Notification),
    /// End for good, without a word (RFC 4724 section 4.1: the peer is to keep our routes).
    Leave,
    /// The time that [`Fsm::next_deadline`] gave has come.
    Tick,
    /// TCP is connected.
    TcpConnected,
    /// TCP could not be connected, was closed or reset.
    TcpFailed(String),
    /// The peer's OPEN, validated: the negotiated timers or the NOTIFICATION that answers it.
    Open(Result<SessionTimers, Notification>),
    /// A KEEPALIVE.
    Keepalive,
    /// An UPDATE or a ROUTE-REFRESH.
    Routes,
    /// A NOTIFICATION from the peer.
    Notification(Notification),
    /// Something that cannot be decoded, or an error that ends the session; the NOTIFICATION that answers it.
    Error(Notification),
}

/// What the owner does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Dial the peer.
    Connect,
    /// Send our OPEN.
    SendOpen,
    /// Send a KEEPALIVE.
    SendKeepalive,
    /// Send this and then close the connection.
    SendNotification(Notification),
    /// Close the connection, or give up dialing.
    Disconnect,
    /// The session is up.
    Up,
    /// An attempt or a session ended.
    Down(Down),
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Down {
    /// We sent this.
    Sent(Notification),
    /// The peer sent this.
    Received(Notification),
    /// TCP failed, in words.
    Tcp(String),
}

/// Negotiated timers (RFC 4271 section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionTimers {
    /// Hold time in seconds; 0: neither hold timer nor keepalives.
    pub hold_seconds: u16,
    /// Keepalive interval in seconds before jitter; 0 exactly if the hold time is 0.
    pub keepalive_seconds: u16,
}

impl SessionTimers {
    /// The smaller hold time, and our keepalive interval or a third of that (section 4.4).
    pub fn negotiate(ours: &Timers, peer_hold_seconds: u16) -> Self {
        let hold_seconds = cmp::min(ours.hold_seconds, peer_hold_seconds);
        let keepalive_seconds = cmp::min(ours.keepalive_seconds, hold_seconds / 3);
        SessionTimers { hold_seconds, keepalive_seconds }
    }
}

/// The machine.
#[derive(Debug)]
pub struct Fsm {
    role: Role,
    state: State,
    since: Time,
    timers: Timers,
    passive: bool,
    session: Option<SessionTimers>,
    failures: u32,
    retry_at: Option<Time>,
    hold_at: Option<Time>,
    keepalive_at: Option<Time>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Dialer,
    Accepted,
}

impl Fsm {
    /// The machine that dials; Idle.
    pub fn dialer(timers: Timers, now: Time) -> Self {
        Fsm {
            role: Role::Dialer,
            state: State::Idle,
            since: now,
            timers,
            passive: false,
            session: None,
            failures: 0,
            retry_at: None,
            hold_at: None,
            keepalive_at: None,
        }
    }

    /// The machine of a connection that came in; Active until it gets [`Event::TcpConnected`].
    pub fn accepted(timers: Timers, now: Time) -> Self {
        Fsm { role: Role::Accepted, state: State::Active, ..Fsm::dialer(timers, now) }
    }

    /// The machine of a session that is up since `since`: another process began it. A KEEPALIVE is due, for it may have
    /// missed one.
    pub(crate) fn resumed(
        dialed: bool,
        timers: Timers,
        session: SessionTimers,
        since: Time,
        now: Time,
    ) -> Self {
        let role = if dialed { Role::Dialer } else { Role::Accepted };
        let mut fsm =
            Fsm { role, state: State::Established, session: Some(session), ..Fsm::dialer(timers, since) };
        fsm.restart_hold(now);
        fsm.keepalive_at = (session.keepalive_seconds > 0).then_some(now);
        fsm
    }

    /// The state.
    pub fn state(&self) -> State {
        self.state
    }

    /// When the state was entered.
    pub fn since(&self) -> Time {
        self.since
    }

    /// The negotiated timers, from OpenConfirm on.
    pub fn session(&self) -> Option<SessionTimers> {
        self.session
    }

    /// Failed attempts since the last stable session.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Takes new timers; a session keeps what it negotiated.
    pub fn set_timers(&mut self, timers: Timers) {
        self.timers = timers;
    }

    /// Never dials: waits in Active for the peer to do it (section 8.1.1, PassiveTcpEstablishment). To be said before
    /// the machine starts.
    pub fn set_passive(&mut self, passive: bool) {
        self.passive = passive;
    }

    /// When [`Event::Tick`] is due.
    pub fn next_deadline(&self) -> Option<Time> {
        [self.retry_at, self.hold_at, self.keepalive_at].into_iter().flatten().min()
    }

    /// Anything from the peer that is a message restarts the hold timer (sections 6.5 and 8.2.2: KEEPALIVE and
    /// UPDATE do; a ROUTE-REFRESH shows life just the same).
    fn restart_hold(&mut self, now: Time) {
        let hold = self.session.map_or(0, |session| session.hold_seconds);
        self.hold_at = (hold > 0).then(|| now + Duration::from_secs(hold.into()));
    }

    fn restart_keepalive(&mut self, now: Time, random: &mut Random) {
        let keepalive = self.session.map_or(0, |session| session.keepalive_seconds);
        self.keepalive_at =
            (keepalive > 0).then(|| now + random.jitter(Duration::from_secs(keepalive.into())));
    }

    /// One event. The actions are in the order in which they must be done.
    pub fn handle(&mut self, event: Event, now: Time, random: &mut Random) -> Vec<Action> {
        use State::*;
        match (self.state, event) {
            (Idle, Event::Start) if self.role == Role::Dialer => self.connect(now, random),
            (Idle, Event::StartPassive) if self.role == Role::Dialer => {
                self.wait(now, random);
                vec![]
            }
            (Idle, _) | (_, Event::Start | Event::StartPassive) => vec![],

            (Connect | Active, Event::Stop(_)) | (_, Event::Leave) => {
                self.stop(now, vec![Action::Disconnect])
            }
            (_, Event::Stop(notification)) => self.stop(
                now,
                vec![Action::SendNotification(notification.clone()), Action::Down(Down::Sent(notification))],
            ),
            (_, Event::Tick) => self.tick(now, random),

            (Connect | Active, Event::TcpConnected) => {
                self.enter(OpenSent, now);
                self.retry_at = None;
                self.hold_at = Some(now + LARGE_HOLD_TIME);
                vec![Action::SendOpen]
            }
            (_, Event::TcpConnected) => vec![],
            (_, Event::TcpFailed(reason)) => {
                self.again(now, random);
                vec![Action::Disconnect, Action::Down(Down::Tcp(reason))]
            }
            // Without a connection there are no messages.
            (Connect | Active, _) => vec![],

            (_, Event::Notification(notification)) => {
                self.again(now, random);
                vec![Action::Disconnect, Action::Down(Down::Received(notification))]
            }
            (_, Event::Error(notification)) => self.refuse(notification, now, random),

            (OpenSent, Event::Open(Ok(session))) => {
                self.enter(OpenConfirm, now);
                self.session = Some(session);
                self.restart_hold(now);
                self.restart_keepalive(now, random);
                vec![Action::SendKeepalive]
            }
            (OpenSent, Event::Open(Err(notification))) => self.refuse(notification, now, random),
            (OpenConfirm, Event::Keepalive) => {
                self.enter(Established, now);
                self.restart_hold(now);
                vec![Action::Up]
            }
            (Established, Event::Keepalive | Event::Routes) => {
                self.restart_hold(now);
                vec![]
            }
            (state, Event::Open(_) | Event::Keepalive | Event::Routes) => {
                self.refuse(unexpected_message(state), now, random)
            }
        }
    }

    fn tick(&mut self, now: Time, random: &mut Random) -> Vec<Action> {
        let due = |at: Option<Time>| at.is_some_and(|at| at <= now);
        if due(self.hold_at) {
            return self.refuse(Reason::HOLD_TIMER_EXPIRED.into(), now, random);
        }
        if due(self.retry_at) {
            let given_up = self.state == State::Connect;
            if given_up {
                self.failures = self.failures.saturating_add(1);
            }
            let mut actions = self.connect(now, random);
            if given_up {
                let silence = Down::Tcp(NO_ANSWER.to_owned());
                actions.splice(0..0, [Action::Disconnect, Action::Down(silence)]);
            }
            return actions;
        }
        if due(self.keepalive_at) {
            self.restart_keepalive(now, random);
            return vec![Action::SendKeepalive];
        }
        vec![]
    }

    fn connect(&mut self, now: Time, random: &mut Random) -> Vec<Action> {
        if self.passive {
            self.wait(now, random);
            return vec![];
        }
        self.enter(State::Connect, now);
        self.retry_at = Some(now + self.retry_delay(random));
        vec![Action::Connect]
    }

    fn stop(&mut self, now: Time, actions: Vec<Action>) -> Vec<Action> {
        self.end(now);
        actions
    }

    fn refuse(&mut self, notification: Notification, now: Time, random: &mut Random) -> Vec<Action> {
        self.again(now, random);
        vec![Action::SendNotification(notification.clone()), Action::Down(Down::Sent(notification))]
    }

    /// See the head of this file.
    fn again(&mut self, now: Time, random: &mut Random) {
        let stable = self.state == State::Established && now.saturating_sub(self.since) >= STABLE_AFTER;
        self.failures = if stable { 1 } else { self.failures.saturating_add(1) };
        self.end(now);
        if self.role == Role::Dialer {
            self.wait(now, random);
        }
    }

    fn end(&mut self, now: Time) {
        self.enter(State::Idle, now);
        (self.session, self.retry_at, self.hold_at, self.keepalive_at) = (None, None, None, None);
    }

    fn wait(&mut self, now: Time, random: &mut Random) {
        self.enter(State::Active, now);
        self.retry_at = (!self.passive).then(|| now + self.retry_delay(random));
    }

    fn enter(&mut self, state: State, now: Time) {
        if self.state != state {
            self.state = state;
            self.since = now;
        }
    }

    fn retry_delay(&self, random: &mut Random) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(MAX_DOUBLINGS);
        random.jitter(Duration::from_secs(self.timers.connect_retry_seconds.into()) * (1 << doublings))
    }
}

/// RFC 6608.
fn unexpected_message(state: State) -> Notification {
    match state {
        State::OpenSent => Reason::UNEXPECTED_IN_OPEN_SENT,
        State::OpenConfirm => Reason::UNEXPECTED_IN_OPEN_CONFIRM,
        State::Established => Reason::UNEXPECTED_IN_ESTABLISHED,
        State::Idle | State::Connect | State::Active => Reason::FSM_UNSPECIFIC,
    }
    .into()
}

#[cfg(test)]
mod tests;
