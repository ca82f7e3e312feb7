//! Bidirectional forwarding detection: is the path to a peer alive? RFC 5880, over one hop (5881) or several (5883),
//! and its use by BGP (5882). Pure: [`Engine`] owns all sessions; datagrams and the time come in, datagrams go out.
//!
//! ```text
//!  Engine::set ─────────┐                     ┌─> Output::Send
//!  datagram ─> packet ─> demultiplex ─> session ─> Output::Changed, Output::Failed
//!  tick ────────────────┘
//! ```
//! A session that is not wanted any more tells so (AdminDown) for the peer's detection time: to the peer that is the
//! will of an operator and no failure.
mod handover;
pub mod packet;
pub mod session;

pub use handover::{HandedSession, patient};

use crate::{Time, config::Bfd, random::Random};
use packet::{Discard, LENGTH, Packet};
use serde::{Deserialize, Serialize};
use session::{Action, Session};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

/// UDP port of control packets over a single hop (RFC 5881 section 4).
pub const SINGLE_HOP_PORT: u16 = 3784;
/// UDP port of control packets over several hops (RFC 5883 section 5).
pub const MULTIHOP_PORT: u16 = 4784;
/// TTL or hop limit of our packets, and over a single hop that of the peer's (RFC 5881 section 5).
pub const HOP_LIMIT: u8 = 255;

/// How far away a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hops {
    /// On a link of ours.
    Single,
    /// Behind routers.
    Multi,
}

/// Where a session goes to. There is one session for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// The peer.
    pub address: IpAddr,
    /// Index of the interface of a link-local address, else 0.
    pub scope: u32,
    /// How far away it is.
    pub hops: Hops,
}

/// A path that is to be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The peer.
    pub address: IpAddr,
    /// Index of the interface of a link-local address, else 0.
    pub scope: u32,
    /// Address to send from; none: the kernel chooses.
    pub local: Option<IpAddr>,
    /// How far away the peer is; none: on a link of ours, if the address is of a network there.
    pub hops: Option<Hops>,
    /// How it is watched.
    pub config: Bfd,
}

/// A datagram that came.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// From where, and to the port of which kind.
    pub from: Destination,
    /// Its TTL or hop limit.
    pub hop_limit: u8,
    /// What is in it.
    pub bytes: &'a [u8],
}

/// What the driver is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send these octets.
    Send {
        /// To this destination, with [`HOP_LIMIT`].
        to: Destination,
        /// A control packet.
        bytes: [u8; LENGTH],
    },
    /// What [`Engine::status`] says is another thing now.
    Changed(Destination),
    /// A session that was up is down: what goes over this path is lost.
    Failed(Destination),
    /// The session is no more; its socket can be closed.
    Gone(Destination),
}

/// A session as an operator sees it. JSON keys are camelCase and stable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BfdStatus {
    /// `AdminDown`, `Down`, `Init` or `Up`.
    pub state: String,
    /// The peer's state, as it said last; none: it has not been heard.
    pub remote_state: Option<String>,
    /// Seconds in this state.
    pub since_seconds: u64,
    /// How often the session came up.
    pub up_count: u64,
    /// How often it failed: was up and went down, and not by the will of the peer's operator.
    pub failure_count: u64,
    /// Whether it is over several hops (RFC 5883).
    pub multihop: bool,
    /// Interval between our packets in force, milliseconds, rounded up.
    pub transmit_millis: u64,
    /// After so long a silence of the peer the session is down, milliseconds, rounded up; none: it is not heard.
    pub detection_millis: Option<u64>,
    /// Our detection multiplier.
    pub multiplier: u8,
    /// The peer's detection multiplier.
    pub remote_multiplier: Option<u8>,
    /// Our discriminator.
    pub discriminator: u32,
    /// The peer's discriminator.
    pub remote_discriminator: Option<u32>,
    /// Why the session went down last, in the words of RFC 5880 section 4.1.
    pub last_diagnostic: Option<String>,
    /// Why the peer's session changed its state last.
    pub remote_diagnostic: Option<String>,
    /// Whether the peer's BFD does not share the fate of its control plane (the C bit).
    pub control_plane_independent: bool,
    /// Why nothing can be sent or received, in words.
    pub error: Option<String>,
}

/// All sessions.
#[derive(Debug)]
pub struct Engine {
    sessions: BTreeMap<Destination, Entry>,
    by_discriminator: BTreeMap<u32, Destination>,
    /// Deadlines of the sessions, to find the next one.
    deadlines: BTreeSet<(Time, Destination)>,
    random: Random,
}

#[derive(Debug)]
struct Entry {
    session: Session,
    failures: u64,
    /// The deadline that is in `deadlines`.
    due: Option<Time>,
    /// When it may go, if it is not wanted any more.
    leaves: Option<Time>,
}

impl Engine {
    /// No sessions; `seed` makes discriminators and jitter: random where peers are not trusted.
    pub fn new(seed: u64) -> Self {
        Engine {
            sessions: BTreeMap::new(),
            by_discriminator: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            random: Random::new(seed),
        }
    }

    /// Sets the sessions, the whole set. What is another one in its parameters only goes on without a flap.
    pub fn set(&mut self, wanted: &BTreeMap<Destination, Bfd>, now: Time) -> Vec<Output> {
        let mut outputs = Vec::new();
        let gone: Vec<Destination> = self
            .sessions
            .iter()
            .filter(|(to, entry)| entry.leaves.is_none() && !wanted.contains_key(to))
            .map(|(to, _)| *to)
            .collect();
        for to in gone {
            self.with(to, &mut outputs, |entry, random| {
                // A peer that never spoke need not be told.
                let heard = entry.session.remote().discriminator != 0;
                let time = if heard { entry.session.remote_detection_time() } else { Duration::ZERO };
                entry.leaves = Some(now + time);
                if heard { entry.session.disable(now, random) } else { vec![] }
            });
        }
        for (&to, &config) in wanted {
            if self.sessions.get(&to).is_some_and(|entry| entry.leaves.is_some()) {
                self.remove(to);
            }
            if self.sessions.contains_key(&to) {
                self.with(to, &mut outputs, |entry, random| entry.session.reconfigure(config, now, random));
            } else {
                self.add(to, config, now);
                outputs.push(Output::Changed(to));
            }
        }
        self.tick(now, &mut outputs);
        outputs
    }

    /// A datagram.
    ///
    /// # Errors
    /// Why it was discarded.
    pub fn receive(&mut self, datagram: Datagram<'_>, now: Time) -> Result<Vec<Output>, Discard> {
        let Datagram { from, hop_limit, bytes } = datagram;
        if from.hops == Hops::Single && hop_limit != HOP_LIMIT {
            return Err(Discard::HopLimit);
        }
        let packet = Packet::parse(bytes)?;
        let to = match packet.your_discriminator {
            0 => Some(from),
            // Who knows our discriminator must still be where the session goes to: there is no other proof of it.
            yours => self.by_discriminator.get(&yours).copied().filter(|to| *to == from),
        };
        let to = to.filter(|to| self.sessions.contains_key(to)).ok_or(Discard::UnknownSession)?;
        let mut outputs = Vec::new();
        self.with(to, &mut outputs, |entry, random| entry.session.receive(&packet, now, random));
        Ok(outputs)
    }

    /// The time of [`next_deadline`](Self::next_deadline) has come. What was received before is to be given first.
    pub fn tick(&mut self, now: Time, outputs: &mut Vec<Output>) {
        while let Some(&(_, to)) = self.deadlines.first().filter(|(due, _)| *due <= now) {
            if self.sessions.get(&to).is_some_and(|entry| entry.leaves.is_some_and(|at| at <= now)) {
                self.remove(to);
                outputs.push(Output::Gone(to));
            } else {
                self.with(to, outputs, |entry, random| entry.session.tick(now, random));
            }
        }
    }

    /// When [`tick`](Self::tick) is due; may be in the past: at once.
    pub fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(due, _)| *due)
    }

    /// How a session is; none: there is no such session, or it is not wanted any more.
    pub fn status(&self, to: Destination, now: Time) -> Option<BfdStatus> {
        let entry = self.sessions.get(&to).filter(|entry| entry.leaves.is_none())?;
        let (session, remote) = (&entry.session, entry.session.remote());
        let heard = remote.discriminator != 0;
        let went_down = session.last_down() != packet::Diagnostic::NONE;
        Some(BfdStatus {
            state: format!("{:?}", session.state()),
            remote_state: heard.then(|| format!("{:?}", remote.state)),
            since_seconds: now.saturating_sub(session.since()).as_secs(),
            up_count: session.ups(),
            failure_count: entry.failures,
            multihop: to.hops == Hops::Multi,
            transmit_millis: millis(session.transmit_interval()),
            detection_millis: session.detection_time().map(millis),
            multiplier: session.config().multiplier,
            remote_multiplier: heard.then_some(remote.multiplier),
            discriminator: session.discriminator(),
            remote_discriminator: heard.then_some(remote.discriminator),
            last_diagnostic: went_down.then(|| session.last_down().to_string()),
            remote_diagnostic: heard.then(|| remote.diagnostic.to_string()),
            control_plane_independent: remote.control_plane_independent,
            error: None,
        })
    }

    /// Since when a session is in its state.
    pub fn since(&self, to: Destination) -> Option<Time> {
        self.sessions.get(&to).map(|entry| entry.session.since())
    }

    fn add(&mut self, to: Destination, config: Bfd, now: Time) {
        // Four thousand million numbers, and far fewer sessions.
        let discriminator = loop {
            let number = (self.random.draw() >> 32) as u32;
            if number != 0 && !self.by_discriminator.contains_key(&number) {
                break number;
            }
        };
        let session = Session::new(config, discriminator, now);
        self.by_discriminator.insert(discriminator, to);
        self.sessions.insert(to, Entry { session, failures: 0, due: None, leaves: None });
        self.schedule(to);
    }

    fn remove(&mut self, to: Destination) {
        if let Some(entry) = self.sessions.remove(&to) {
            self.by_discriminator.remove(&entry.session.discriminator());
            if let Some(due) = entry.due {
                self.deadlines.remove(&(due, to));
            }
        }
    }

    /// Does something with a session, and what follows from it.
    fn with(
        &mut self,
        to: Destination,
        outputs: &mut Vec<Output>,
        act: impl FnOnce(&mut Entry, &mut Random) -> Vec<Action>,
    ) {
        let Some(entry) = self.sessions.get_mut(&to) else { return };
        for action in act(entry, &mut self.random) {
            outputs.push(match action {
                Action::Send(packet) => Output::Send { to, bytes: packet.encode() },
                Action::Changed => Output::Changed(to),
                Action::Failed => {
                    entry.failures += 1;
                    Output::Failed(to)
                }
            });
        }
        self.schedule(to);
    }

    fn schedule(&mut self, to: Destination) {
        let Some(entry) = self.sessions.get_mut(&to) else { return };
        let due = [entry.session.next_deadline(), entry.leaves].into_iter().flatten().min();
        let before = std::mem::replace(&mut entry.due, due);
        if before != due {
            if let Some(before) = before {
                self.deadlines.remove(&(before, to));
            }
            self.deadlines.extend(due.map(|due| (due, to)));
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
