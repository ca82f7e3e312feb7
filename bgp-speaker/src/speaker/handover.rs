//! Sessions that outlive the process: one speaker writes down what another needs to go on with them, on the same TCP
//! connections, so that the peers see nothing.
//!
//! What was agreed is in the two OPENs, and what was told in UPDATEs, both as on the wire: the successor understands them by
//! the same rules as what comes from a peer. It applies its own policy, asks the peer for its routes again (what was
//! refused is not handed over), and tells it what differs from what it was told.
use super::{Output, Speaker, family_of};
use crate::{
    PeerId, Time,
    config::{Family, PeerConfig},
    connection::{ConnectionId, Endpoints},
    negotiate::{self, Start},
    peer::Adopted,
    rib::{AttributesId, PathAttributes, Source},
    update_queue::AdjRibOut,
    wire::{
        self, Capability, Context, GracefulRestart, MAX_EXTENDED_LENGTH, Message, Nlri, Notification, Open,
        Reason, Update,
    },
};
use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

/// A session that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The neighbour.
    pub(crate) peer: PeerId,
    /// We dialled.
    dialed: bool,
    /// How long it is up.
    pub(crate) age: Duration,
    /// How often a session with this peer was.
    established_count: u64,
    /// OPENs, messages that came partly, octets of messages that are still to be written.
    sent_open: Vec<u8>,
    received_open: Vec<u8>,
    received: Vec<u8>,
    pub(crate) unsent: Vec<u8>,
    /// UPDATEs with all that the peer told (Adj-RIB-In), and with all that it was told (Adj-RIB-Out). In the latter a
    /// withdrawn prefix is one that it knows, and is to be told again.
    told: Vec<u8>,
    sent: Vec<u8>,
    /// Families of which the peer has told all (End-of-RIB), and has been told all.
    told_all: BTreeSet<Family>,
    sent_all: BTreeSet<Family>,
}

impl Session {
    /// How long the peer waits to hear from us; none: for ever.
    pub fn hold_time(&self) -> Option<Duration> {
        let said = |open: &[u8]| read_open(open).map_or(0, |open| open.hold_seconds);
        let seconds = said(&self.sent_open).min(said(&self.received_open));
        (seconds > 0).then(|| Duration::from_secs(seconds.into()))
    }

    /// The peer is to hear from us.
    pub fn keep_alive(&mut self) {
        // It is small.
        let _: Result<_, _> = Message::Keepalive.encode(&Context::default(), &mut self.unsent);
    }

    /// Appends it, to be read by [`Session::read`].
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut number = |number: u64| out.extend(number.to_be_bytes());
        number(self.dialed.into());
        number(self.age.as_secs());
        number(self.established_count);
        number(bits(&self.told_all));
        number(bits(&self.sent_all));
        let peer = self.peer.to_string().into_bytes();
        for octets in [
            &peer,
            &self.sent_open,
            &self.received_open,
            &self.received,
            &self.unsent,
            &self.told,
            &self.sent,
        ] {
            out.extend((octets.len() as u64).to_be_bytes());
            out.extend_from_slice(octets);
        }
    }

    /// Takes one from the front; none: this is not one.
    pub fn read(from: &mut &[u8]) -> Option<Self> {
        let (dialed, age, established_count) = (number(from)?, number(from)?, number(from)?);
        let (told_all, sent_all) = (families(number(from)?), families(number(from)?));
        let peer = String::from_utf8(octets(from)?).ok()?.parse().ok()?;
        Some(Session {
            peer,
            dialed: dialed == 1,
            age: Duration::from_secs(age),
            established_count,
            sent_open: octets(from)?,
            received_open: octets(from)?,
            received: octets(from)?,
            unsent: octets(from)?,
            told: octets(from)?,
            sent: octets(from)?,
            told_all,
            sent_all,
        })
    }
}

/// A bit for each family, in the order of [`Family::ALL`].
fn bits(families: &BTreeSet<Family>) -> u64 {
    let bit = |(at, family)| u64::from(families.contains(family)) << at;
    Family::ALL.iter().enumerate().map(bit).sum()
}

fn families(bits: u64) -> BTreeSet<Family> {
    let is_set = |(at, _): &(usize, Family)| bits & (1 << at) != 0;
    Family::ALL.into_iter().enumerate().filter(is_set).map(|(_, family)| family).collect()
}

/// A number of eight octets, big-endian.
pub(crate) fn number(from: &mut &[u8]) -> Option<u64> {
    let (number, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(u64::from_be_bytes(*number))
}

fn octets(from: &mut &[u8]) -> Option<Vec<u8>> {
    let length = usize::try_from(number(from)?).ok()?;
    let (octets, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(octets.to_vec())
}

impl Speaker {
    /// The sessions that are up, by connection, for a successor. Nothing more may be done with this speaker.
    pub fn hand_over(&mut self, now: Time) -> Vec<(ConnectionId, Session)> {
        let sources = self.sources();
        sources.into_iter().filter_map(|source| self.handed(source, now)).collect()
    }

    fn handed(&self, source: Source, now: Time) -> Option<(ConnectionId, Session)> {
        let slot = self.slot(source)?;
        let session = slot.peer.session()?;
        let context = wide(&session.negotiated.as_ref()?.context);
        let received = context.reversed();
        let mut sent_open = Vec::new();
        Message::Open(session.sent_open.clone()?).encode(&Context::default(), &mut sent_open).ok()?;
        let (mut told, mut sent) = (Vec::new(), Vec::new());
        for (&family, out) in &slot.out {
            let table = self.rib.table(family);
            let paths = table.paths_of(source).map(|(id, path)| (path.attributes, (id, path.id)));
            told.extend(self.updates(family, paths.collect(), &[], &received));
            let (mut again, mut known) = (Vec::new(), Vec::new());
            for ((id, path), attributes) in out.known() {
                match attributes {
                    Some(attributes) => known.push((attributes, (id, path))),
                    None => again.push(Nlri { prefix: table.prefix(id), path }),
                }
            }
            sent.extend(self.updates(family, known, &again, &context));
        }
        let handed = Session {
            peer: slot.peer.config.id(),
            dialed: slot.peer.is_dialed(session.id?),
            age: now.saturating_sub(session.fsm.since()),
            established_count: slot.peer.established_count,
            sent_open,
            received_open: session.open_octets.clone(),
            received: session.received.clone(),
            unsent: session.waiting.clone(),
            told,
            sent,
            told_all: slot.kept.ended().clone(),
            sent_all: slot.out.iter().filter(|(_, out)| out.has_ended()).map(|(family, _)| *family).collect(),
        };
        Some((session.id?, handed))
    }

    /// The speaker takes the place of one that handed over these sessions. It goes on with them when it learns who it is
    /// ([`set_global`](Speaker::set_global)): peers and routes must be set before, since an unknown peer's session is
    /// ended, and what is not set is withdrawn. A session that could not be what it is
    /// with the present configuration is ended.
    pub fn inherit(&mut self, sessions: Vec<(ConnectionId, Endpoints, Session)>) {
        self.own_start.go_on();
        self.inherited = sessions;
    }

    /// It will not learn who it is, for it speaks no BGP any more: the sessions end.
    pub fn end_inherited(&mut self, now: Time) -> Vec<Output> {
        let mut outputs = Vec::new();
        self.adopt_all(now, &mut outputs);
        self.finish(outputs)
    }

    pub(super) fn adopt_all(&mut self, now: Time, outputs: &mut Vec<Output>) {
        let mut adopted = Vec::new();
        for (connection, endpoints, session) in std::mem::take(&mut self.inherited) {
            let peer = session.peer;
            match self.go_on(connection, endpoints, session, now, outputs) {
                Ok(received) => adopted.push((connection, received)),
                Err(notification) => {
                    tracing::info!(%peer, reason = %notification, "session not taken over");
                    let mut last = Vec::new();
                    // It is small.
                    let _: Result<_, _> =
                        Message::Notification(notification).encode(&Context::default(), &mut last);
                    outputs.push(Output::Close { connection, last });
                    if let Some(&source) = self.by_id.get(&peer) {
                        self.let_go(source, outputs);
                    }
                }
            }
        }
        // Now that all routes are there: what came partly.
        for (connection, received) in adopted {
            self.on(connection, now, outputs, |peer, tools| peer.receive(connection, &received, tools));
        }
    }

    /// Returns what came and was not understood yet.
    fn go_on(
        &mut self,
        connection: ConnectionId,
        endpoints: Endpoints,
        session: Session,
        now: Time,
        outputs: &mut Vec<Output>,
    ) -> Result<Vec<u8>, Notification> {
        let gone = || Notification::from(Reason::PEER_DECONFIGURED);
        let changed = || Notification::from(Reason::OTHER_CONFIGURATION_CHANGE);
        let source = self.heir(session.peer, endpoints.remote, now, outputs).ok_or_else(gone)?;
        let global = self.global.clone().ok_or_else(gone)?;
        let config: PeerConfig = self.slot(source).ok_or_else(gone)?.peer.config.clone();
        if config.shutdown.is_some() {
            return Err(self.slot(source).ok_or_else(gone)?.peer.farewell());
        }
        let (Some(sent), Some(open)) = (read_open(&session.sent_open), read_open(&session.received_open))
        else {
            return Err(changed());
        };
        if without_flags(&sent) != without_flags(&negotiate::open(&global, &config, Start::Running)) {
            return Err(changed());
        }
        let negotiated = negotiate::negotiate(&global, &config, &open)?;
        let slot = self.slot_mut(source).ok_or_else(gone)?;
        slot.peer.adopt(Adopted {
            id: connection,
            dialed: session.dialed,
            since: now.saturating_sub(session.age),
            established_count: session.established_count,
            endpoints,
            open,
            open_octets: session.received_open,
            sent_open: sent,
            negotiated: negotiated.clone(),
            waiting: session.unsent,
            now,
        });
        self.by_connection.insert(connection, source);
        self.up(source, &negotiated, now);
        let context = wide(&negotiated.context);
        for update in updates(&session.sent, &context.reversed()) {
            self.restore_sent(source, update);
        }
        for update in updates(&session.told, &context) {
            self.update(source, update);
        }
        for family in session.sent_all {
            self.slot_mut(source)
                .and_then(|slot| slot.out.get_mut(&family))
                .into_iter()
                .for_each(AdjRibOut::restore_end);
        }
        for family in session.told_all {
            self.end_of_rib(source, family);
        }
        self.ask_again_if_possible(source);
        self.with_peer(source, now, outputs, |_, _| ());
        Ok(session.received)
    }

    /// The peer whose session is handed over.
    fn heir(
        &mut self,
        peer: PeerId,
        remote: SocketAddr,
        now: Time,
        outputs: &mut Vec<Output>,
    ) -> Option<Source> {
        match peer {
            PeerId::Address(_) => self.source_of(remote, now, outputs),
            // Its link is not known yet.
            PeerId::Interface(_) => {
                let source = *self.by_id.get(&peer)?;
                self.adopt(source, remote);
                Some(source)
            }
            // Nobody has a session with all of them.
            PeerId::Range(_) => None,
        }
    }

    /// The peer was told this.
    fn restore_sent(&mut self, source: Source, update: Update) {
        for nlri in update.withdrawn {
            self.restore(source, nlri, None);
        }
        let Some(announced) = update.announced else { return };
        for reach in announced.reach {
            let route =
                PathAttributes { next_hop: Some(reach.next_hop), attributes: announced.attributes.clone() };
            let attributes = self.rib.attributes.intern(route);
            for nlri in reach.prefixes {
                self.restore(source, nlri, Some(attributes));
            }
            self.rib.attributes.release(attributes);
        }
    }

    fn restore(&mut self, source: Source, nlri: Nlri, attributes: Option<AttributesId>) {
        let Nlri { prefix, path } = nlri;
        let family: Family = family_of(&prefix);
        let Some(Some(slot)) = self.peers.get_mut(usize::from(source.0)) else { return };
        let Some(out): Option<&mut AdjRibOut> = slot.out.get_mut(&family) else { return };
        let id = self.rib.reserve(family, prefix);
        out.restore((id, path), attributes, &mut self.rib.attributes);
    }

    /// What was refused, and what this speaker would take in, is known to the peer only.
    fn ask_again_if_possible(&mut self, source: Source) {
        let session = self.slot(source).and_then(|slot| slot.peer.session());
        let negotiated = session.and_then(|session| session.negotiated.as_ref());
        if negotiated.is_some_and(|negotiated| negotiated.route_refresh) {
            self.ask_again(source);
        }
    }
}

/// How the UPDATEs of a session are written down: any of them fits.
fn wide(context: &Context) -> Context {
    Context { four_octet_as: true, max_length: MAX_EXTENDED_LENGTH, ..context.clone() }
}

fn read_open(octets: &[u8]) -> Option<Open> {
    match wire::decode(octets, &Context::default()).ok()?.message {
        Message::Open(open) => Some(open),
        _ => None,
    }
}

/// What does not depend on when it was said.
fn without_flags(open: &Open) -> Open {
    let capabilities = open.capabilities.iter().map(|capability| match capability {
        Capability::GracefulRestart(GracefulRestart { notification, seconds, families, .. }) => {
            Capability::GracefulRestart(GracefulRestart {
                restarting: false,
                notification: *notification,
                seconds: *seconds,
                families: families.iter().map(|(family, _)| (*family, false)).collect(),
            })
        }
        capability => capability.clone(),
    });
    Open { capabilities: capabilities.collect(), ..open.clone() }
}

/// The UPDATEs of a stream, up to the first that is none.
fn updates<'a>(mut stream: &'a [u8], context: &'a Context) -> impl Iterator<Item = Update> + 'a {
    std::iter::from_fn(move || {
        let message = wire::frame(stream, context).ok()??;
        stream = &stream[message.len()..];
        match wire::decode(message, context).ok()?.message {
            Message::Update(update) => Some(update),
            _ => None,
        }
    })
}
