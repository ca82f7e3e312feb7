//! One BFD session in asynchronous mode (RFC 5880 section 6.8). Pure: packets and the time come in, actions go out,
//! and [`Session::next_deadline`] says when to come back.
//!
//! | state | hears AdminDown | Down | Init | Up | nothing for the detection time |
//! |---|---|---|---|---|---|
//! | AdminDown | - | - | - | - | - |
//! | Down | - | Init | Up | - | - |
//! | Init | Down | - | Up | Up | Down |
//! | Up | Down | Down | - | - | Down |
//!
//! Where the RFC leaves a choice:
//! - Until the session is Up a packet goes out each second at most (section 6.8.3), but at once when there is news
//!   (section 6.8.7).
//! - Any change of our intervals or multiplier is told by a poll sequence, and nothing that the peer could take for
//!   silence is done before its answer: we neither send slower nor expect packets faster. So a change never flaps.
//! - Our packets have C = 0: the session lives and dies with the process that speaks BGP.
//! - No demand mode, no echo, no authentication; a peer that is in demand mode gets what that asks for.
use super::packet::{Diagnostic, Packet, State};
use crate::{Time, config::Bfd, random::Random};
use std::{cmp, mem, time::Duration};

/// Slowest pace of a session that is not up (section 6.8.3).
pub const SLOW: Duration = Duration::from_secs(1);
/// The answer to a poll comes within this time or not at all. So long after a poll another one is not begun: the two
/// answers could not be told apart (section 6.5).
const SETTLED: Duration = Duration::from_secs(1);
/// What the peer is taken to receive while it has not said so (section 6.8.1), microseconds.
const UNKNOWN_MIN_RX: u32 = 1;

/// What the owner does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this.
    Send(Packet),
    /// What an operator sees of the session is another thing now.
    Changed,
    /// The session was Up and is Down, and not because the peer's operator wanted that (RFC 5882 section 3.2).
    Failed,
}

/// What the peer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Its discriminator; 0: unknown.
    pub discriminator: u32,
    /// State of its session.
    pub state: State,
    /// Why it changed.
    pub diagnostic: Diagnostic,
    /// Its detection multiplier.
    pub multiplier: u8,
    /// It sends no faster, microseconds.
    pub desired_min_tx: u32,
    /// It can receive no faster, microseconds.
    pub required_min_rx: u32,
    /// Its BFD does not share the fate of its control plane (C).
    pub control_plane_independent: bool,
    demand: bool,
}

/// A session that is Up, for a successor: what both sides said last, in packets as on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handed {
    /// What it was told to be.
    pub config: Bfd,
    /// How long it is Up.
    pub age: Duration,
    /// How often it came up.
    pub ups: u64,
    /// Our last packet.
    pub ours: Packet,
    /// The peer's.
    pub theirs: Packet,
}

/// The session.
#[derive(Debug)]
pub struct Session {
    config: Bfd,
    discriminator: u32,
    state: State,
    /// What is told: why the state is what it is.
    diagnostic: Diagnostic,
    last_down: Diagnostic,
    since: Time,
    ups: u64,
    remote: Remote,
    poll: Poll,
    /// When the last poll went out.
    polled_at: Option<Time>,
    /// What we send no faster than, in force; told is [`desired_min_tx`](Self::desired_min_tx).
    tx: Duration,
    /// What we expect no faster, in force; told is `config.min_rx_millis`.
    rx: Duration,
    sent_at: Time,
    send_at: Option<Time>,
    heard_at: Time,
    detect_at: Option<Time>,
}

impl From<&Packet> for Remote {
    fn from(packet: &Packet) -> Self {
        Remote {
            discriminator: packet.my_discriminator,
            state: packet.state,
            diagnostic: packet.diagnostic,
            multiplier: packet.multiplier,
            desired_min_tx: packet.desired_min_tx,
            required_min_rx: packet.required_min_rx,
            control_plane_independent: packet.control_plane_independent,
            demand: packet.demand,
        }
    }
}

/// A poll sequence (section 6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Poll {
    None,
    /// One is to begin then.
    Wait(Time),
    Active,
}

impl Session {
    /// A session that is Down and sends its first packet at once; the discriminator is not 0.
    pub fn new(config: Bfd, discriminator: u32, now: Time) -> Self {
        Session {
            config,
            discriminator,
            state: State::Down,
            diagnostic: Diagnostic::NONE,
            last_down: Diagnostic::NONE,
            since: now,
            ups: 0,
            remote: Remote {
                discriminator: 0,
                state: State::Down,
                diagnostic: Diagnostic::NONE,
                multiplier: 1,
                desired_min_tx: 0,
                required_min_rx: UNKNOWN_MIN_RX,
                control_plane_independent: false,
                demand: false,
            },
            poll: Poll::None,
            polled_at: None,
            tx: cmp::max(millis(config.min_tx_millis), SLOW),
            rx: millis(config.min_rx_millis),
            sent_at: now,
            send_at: Some(now),
            heard_at: now,
            detect_at: None,
        }
    }

    /// A session that another process began and that is Up: it goes on as one that was heard just now.
    pub fn resume(handed: &Handed, now: Time) -> Self {
        let Handed { config, age, ups, ours, theirs } = handed;
        let mut session = Session {
            state: State::Up,
            diagnostic: ours.diagnostic,
            since: now.saturating_sub(*age),
            ups: *ups,
            remote: Remote::from(theirs),
            tx: millis(config.min_tx_millis),
            detect_at: Some(now),
            ..Session::new(*config, ours.my_discriminator, now)
        };
        session.expect();
        session
    }

    /// What a successor needs to go on with it; none: it is not Up.
    pub fn handed(&self, now: Time) -> Option<Handed> {
        let Remote { discriminator, state, diagnostic, multiplier, .. } = self.remote;
        let theirs = Packet {
            diagnostic,
            state,
            poll: false,
            r#final: false,
            control_plane_independent: self.remote.control_plane_independent,
            demand: self.remote.demand,
            multiplier,
            my_discriminator: discriminator,
            your_discriminator: self.discriminator,
            desired_min_tx: self.remote.desired_min_tx,
            required_min_rx: self.remote.required_min_rx,
            required_min_echo_rx: 0,
        };
        let (config, age, ups) = (self.config, now.saturating_sub(self.since), self.ups);
        (self.state == State::Up).then(|| Handed { config, age, ups, ours: self.packet(), theirs })
    }

    /// Whether it is not Up, or the peer has agreed to all that we told it last.
    pub fn is_settled(&self) -> bool {
        self.state != State::Up || self.poll == Poll::None
    }

    /// What it was told to be.
    pub fn config(&self) -> Bfd {
        self.config
    }

    /// Our discriminator.
    pub fn discriminator(&self) -> u32 {
        self.discriminator
    }

    /// Its state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Since when it is in this state.
    pub fn since(&self) -> Time {
        self.since
    }

    /// Why it went down last; [`Diagnostic::NONE`]: it never did.
    pub fn last_down(&self) -> Diagnostic {
        self.last_down
    }

    /// How often it came up.
    pub fn ups(&self) -> u64 {
        self.ups
    }

    /// What the peer says.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Interval between our packets before jitter (section 6.8.2).
    pub fn transmit_interval(&self) -> Duration {
        cmp::max(self.tx, micros(self.remote.required_min_rx))
    }

    /// After so long a silence of the peer the session is down (section 6.8.4); none: the peer has not been heard.
    pub fn detection_time(&self) -> Option<Duration> {
        self.detect_at?;
        Some(cmp::max(self.rx, micros(self.remote.desired_min_tx)) * u32::from(self.remote.multiplier))
    }

    /// After so long a silence of ours the peer takes the session for down.
    pub fn remote_detection_time(&self) -> Duration {
        let interval = cmp::max(self.desired_min_tx(), micros(self.remote.required_min_rx));
        interval * u32::from(self.config.multiplier)
    }

    /// When [`tick`](Self::tick) is due.
    pub fn next_deadline(&self) -> Option<Time> {
        let poll_at = match self.poll {
            Poll::Wait(at) => Some(at),
            Poll::None | Poll::Active => None,
        };
        [self.send_at, self.detect_at, poll_at].into_iter().flatten().min()
    }

    /// Takes other parameters, without a flap: see the head of this file.
    pub fn reconfigure(&mut self, config: Bfd, now: Time, random: &mut Random) -> Vec<Action> {
        if mem::replace(&mut self.config, config) == config || self.state == State::AdminDown {
            return vec![];
        }
        self.poll(now);
        self.apply();
        let mut actions = vec![Action::Changed];
        self.send(now, random, &mut actions);
        self.expect();
        actions
    }

    /// Turns the session off (section 6.8.16). The peer should hear of it for its detection time.
    pub fn disable(&mut self, now: Time, random: &mut Random) -> Vec<Action> {
        let mut actions = Vec::new();
        self.enter(State::AdminDown, Diagnostic::ADMINISTRATIVELY_DOWN, now, random, &mut actions);
        self.detect_at = None;
        actions
    }

    /// A packet that was not discarded and belongs to this session.
    pub fn receive(&mut self, packet: &Packet, now: Time, random: &mut Random) -> Vec<Action> {
        if self.state == State::AdminDown {
            return vec![];
        }
        let mut actions = Vec::new();
        let remote = Remote::from(packet);
        let news = mem::replace(&mut self.remote, remote) != remote;
        if packet.r#final && self.poll == Poll::Active {
            self.poll = Poll::None;
            self.apply();
            actions.push(Action::Changed);
        }
        self.heard_at = now;
        self.detect_at = Some(now);
        self.expect();
        let signaled = Diagnostic::NEIGHBOR_SIGNALED_DOWN;
        match (self.state, packet.state) {
            (State::Init | State::Up, State::AdminDown) | (State::Up, State::Down) => {
                self.enter(State::Down, signaled, now, random, &mut actions);
            }
            (State::Down, State::Down) => {
                self.enter(State::Init, Diagnostic::NONE, now, random, &mut actions);
            }
            (State::Down, State::Init) | (State::Init, State::Init | State::Up) => {
                self.enter(State::Up, Diagnostic::NONE, now, random, &mut actions);
            }
            _ => (),
        }
        if news {
            self.pace(random);
            if !actions.contains(&Action::Changed) {
                actions.push(Action::Changed);
            }
        }
        if packet.poll {
            actions.push(Action::Send(Packet { poll: false, r#final: true, ..self.packet() }));
        }
        actions
    }

    /// The time of [`next_deadline`](Self::next_deadline) has come. What was received before is to be given first.
    pub fn tick(&mut self, now: Time, random: &mut Random) -> Vec<Action> {
        let due = |at: Option<Time>| at.is_some_and(|at| at <= now);
        let mut actions = Vec::new();
        if due(self.detect_at) {
            self.detect_at = None;
            self.remote.discriminator = 0;
            self.remote.state = State::Down;
            self.remote.required_min_rx = UNKNOWN_MIN_RX;
            self.remote.demand = false;
            if self.state >= State::Init {
                let expired = Diagnostic::DETECTION_TIME_EXPIRED;
                self.enter(State::Down, expired, now, random, &mut actions);
            }
            self.pace(random);
        }
        let polls = matches!(self.poll, Poll::Wait(at) if at <= now);
        if polls {
            self.poll = Poll::Active;
        }
        if polls || due(self.send_at) {
            self.send(now, random, &mut actions);
        }
        actions
    }

    /// What we tell to send no faster than.
    fn desired_min_tx(&self) -> Duration {
        let wanted = millis(self.config.min_tx_millis);
        if self.state == State::Up { wanted } else { cmp::max(wanted, SLOW) }
    }

    fn enter(
        &mut self,
        state: State,
        diagnostic: Diagnostic,
        now: Time,
        random: &mut Random,
        actions: &mut Vec<Action>,
    ) {
        let before = mem::replace(&mut self.state, state);
        if before == state {
            return;
        }
        self.since = now;
        self.ups += u64::from(state == State::Up);
        match state {
            // On its way up it goes on to tell for what it went down.
            State::Init => (),
            State::Up => self.diagnostic = diagnostic,
            State::Down | State::AdminDown => (self.diagnostic, self.last_down) = (diagnostic, diagnostic),
        }
        match state {
            State::AdminDown => self.poll = Poll::None,
            // The pace is another one.
            _ if (state == State::Up) != (before == State::Up) => self.poll(now),
            _ => (),
        }
        self.apply();
        actions.push(Action::Changed);
        if before == State::Up && state == State::Down && self.remote.state != State::AdminDown {
            actions.push(Action::Failed);
        }
        self.send(now, random, actions);
    }

    /// Begins a poll sequence, now or when the last one has settled.
    fn poll(&mut self, now: Time) {
        let settled = self.polled_at.map(|at| at + SETTLED);
        self.poll = settled.filter(|at| *at > now).map_or(Poll::Active, Poll::Wait);
    }

    /// Puts into force what may be: all of it, unless an Up session waits for the answer to a poll.
    fn apply(&mut self) {
        let (tx, rx) = (self.desired_min_tx(), millis(self.config.min_rx_millis));
        if self.state == State::Up && self.poll != Poll::None {
            self.tx = cmp::min(self.tx, tx);
            self.rx = cmp::max(self.rx, rx);
        } else {
            (self.tx, self.rx) = (tx, rx);
        }
    }

    /// When the peer is given up, counted from its last packet.
    fn expect(&mut self) {
        self.detect_at = self.detection_time().map(|time| self.heard_at + time);
    }

    fn packet(&self) -> Packet {
        Packet {
            diagnostic: self.diagnostic,
            state: self.state,
            poll: self.poll == Poll::Active,
            r#final: false,
            control_plane_independent: false,
            demand: false,
            multiplier: self.config.multiplier,
            my_discriminator: self.discriminator,
            your_discriminator: self.remote.discriminator,
            desired_min_tx: u32::try_from(self.desired_min_tx().as_micros()).unwrap_or(u32::MAX),
            required_min_rx: self.config.min_rx_millis.saturating_mul(1000),
            required_min_echo_rx: 0,
        }
    }

    fn send(&mut self, now: Time, random: &mut Random, actions: &mut Vec<Action>) {
        actions.push(Action::Send(self.packet()));
        if self.poll == Poll::Active {
            self.polled_at = Some(now);
        }
        self.sent_at = now;
        self.send_at = None;
        self.pace(random);
    }

    /// When the next periodic packet goes out: not later than was meant before.
    fn pace(&mut self, random: &mut Random) {
        let quiet = self.remote.demand && (self.state, self.remote.state) == (State::Up, State::Up);
        if self.remote.required_min_rx == 0 || (quiet && self.poll == Poll::None) {
            self.send_at = None;
            return;
        }
        // Section 6.8.7: 75 to 100 %, and to 90 % where one packet that is late would be one too many.
        let least = self.transmit_interval() * 3 / 4;
        let more = random.jitter(self.transmit_interval()) - least;
        let more = if self.config.multiplier == 1 { more * 3 / 5 } else { more };
        let next = self.sent_at + least + more;
        self.send_at = Some(self.send_at.map_or(next, |at| cmp::min(at, next)));
    }
}

fn millis(millis: u32) -> Duration {
    Duration::from_millis(millis.into())
}

fn micros(micros: u32) -> Duration {
    Duration::from_micros(micros.into())
}
