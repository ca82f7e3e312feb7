//! A network in virtual time: speakers, links that delay and hold back, connections that are reset, and nothing
//! that reorders or loses, for TCP does not. Whatever a speaker writes is decoded, too, as its peer would: the invariants are
//! checked after every step.
use super::super::*;
use crate::{
    config::State,
    wire::{self, AddPath, Attributes, Capability, Context, Message, NextHop, Nlri, Open},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

pub(super) struct World {
    pub(super) now: Time,
    pub(super) nodes: Vec<Node>,
    /// Links that pass nothing, by the hosts at their ends, the smaller first.
    cut: BTreeSet<(usize, usize)>,
    /// What came to a cut link: TCP sends it again until it passes.
    held: Vec<Event>,
    pub(super) delay: Duration,
    events: BTreeMap<(Time, u64), Event>,
    sequence: u64,
    /// The other end of a connection.
    ends: BTreeMap<End, End>,
    /// When the last bytes towards an end arrive: streams keep their order.
    busy: BTreeMap<End, Time>,
    pub(super) steps: u64,
}

type End = (usize, ConnectionId);

pub(super) struct Node {
    pub(super) speaker: Speaker,
    pub(super) watch: Watch,
    pub(super) changes: Vec<(Time, State)>,
    /// Paths that a BFD would watch.
    pub(super) watched: Vec<(PeerId, WatchedPath)>,
    /// What a kernel would have: gateways by prefix.
    pub(super) installed: BTreeMap<IpNet, Vec<IpAddr>>,
    pub(super) settled: bool,
}

impl Node {
    fn new(speaker: Speaker) -> Self {
        Node {
            speaker,
            watch: Watch::default(),
            changes: Vec::new(),
            watched: Vec::new(),
            installed: BTreeMap::new(),
            settled: false,
        }
    }

    fn install(&mut self) {
        let Installation { changes, settled } = self.speaker.install(usize::MAX);
        for change in changes {
            self.installed.insert(change.prefix, change.hops.iter().map(|hop| hop.gateway).collect());
        }
        self.installed.retain(|_, gateways| !gateways.is_empty());
        self.settled |= settled;
    }
}

enum Event {
    Dial { from: End, to: usize },
    Answer { to: End, from: End },
    Bytes { to: End, bytes: Vec<u8> },
    Closed { to: End },
}

impl Event {
    fn is_to(&self, host: usize) -> bool {
        match self {
            Event::Dial { from, .. } => from.0 == host,
            Event::Answer { to, .. } | Event::Bytes { to, .. } | Event::Closed { to } => to.0 == host,
        }
    }
}

impl World {
    /// `hosts` speakers at 10.0.0.0 and on; nobody is configured yet.
    pub(super) fn new(hosts: usize, seed: u64) -> Self {
        let node = |host| Node::new(Speaker::new(seed.wrapping_add(host as u64)));
        World {
            now: Duration::from_secs(100),
            nodes: (0..hosts).map(node).collect(),
            cut: BTreeSet::new(),
            held: Vec::new(),
            delay: Duration::from_millis(1),
            events: BTreeMap::new(),
            sequence: 0,
            ends: BTreeMap::new(),
            busy: BTreeMap::new(),
            steps: 0,
        }
    }

    /// Does something to a speaker.
    pub(super) fn with(&mut self, host: usize, act: impl FnOnce(&mut Speaker, Time) -> Vec<Output>) {
        let outputs = act(&mut self.nodes[host].speaker, self.now);
        self.outputs(host, outputs);
    }

    /// The link passes nothing, or passes again.
    pub(super) fn cut(&mut self, a: usize, b: usize, cut: bool) {
        let link = (a.min(b), a.max(b));
        if cut {
            self.cut.insert(link);
        } else {
            self.cut.remove(&link);
            // Before whatever was sent later.
            for event in std::mem::take(&mut self.held) {
                self.at(self.now, event);
            }
        }
    }

    /// All connections between two hosts are reset.
    pub(super) fn reset(&mut self, a: usize, b: usize) {
        let hit: Vec<End> =
            self.ends.iter().filter(|(one, other)| (one.0, other.0) == (a, b)).map(|(one, _)| *one).collect();
        for end in hit {
            if let Some(other) = self.ends.remove(&end) {
                self.ends.remove(&other);
                self.at(self.now, Event::Closed { to: end });
                self.at(self.now, Event::Closed { to: other });
            }
        }
    }

    /// The process of a host is another one: the kernel closes its connections.
    pub(super) fn replace(&mut self, host: usize, speaker: Speaker) {
        let ours: Vec<End> = self.ends.keys().filter(|end| end.0 == host).copied().collect();
        for end in ours {
            if let Some(other) = self.ends.remove(&end) {
                let at = self.arrival(other);
                self.at(at, Event::Closed { to: other });
            }
        }
        // The kernel is the same.
        let installed = std::mem::take(&mut self.nodes[host].installed);
        self.nodes[host] = Node { installed, ..Node::new(speaker) };
        // What was on its way to the process before is nobody's.
        self.events.retain(|_, event| !event.is_to(host));
    }

    /// A host forgets all connections with another one, which hears nothing of it.
    pub(super) fn forget(&mut self, host: usize, other: usize) {
        self.ends.retain(|one, two| (one.0, two.0) != (host, other) && (one.0, two.0) != (other, host));
    }

    /// Runs until `end`.
    pub(super) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let event = self.events.first_key_value().map(|((at, _), _)| *at);
            let timers = (0..self.nodes.len())
                .filter_map(|host| Some((self.nodes[host].speaker.next_deadline()?, host)))
                .min();
            let next = [event, timers.map(|(at, _)| at)].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            self.steps += 1;
            if event == Some(next) {
                let (_, event) = self.events.pop_first().unwrap();
                self.happen(event);
            } else if let Some((_, host)) = timers {
                self.input(host, Input::Tick);
                let deadline = self.nodes[host].speaker.next_deadline();
                assert!(deadline.is_none_or(|at| at > self.now), "a tick leaves nothing due");
            }
        }
        self.now = end;
    }

    pub(super) fn state(&self, host: usize, peer: usize) -> State {
        let peers = self.nodes[host].speaker.slots();
        let address = super::address(peer as u8);
        let slot = peers.map(|(_, slot)| slot).find(|slot| slot.peer.config.address == address);
        slot.map_or(State::Idle, |slot| slot.peer.state())
    }

    fn at(&mut self, time: Time, event: Event) {
        self.sequence += 1;
        self.events.insert((time, self.sequence), event);
    }

    fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    fn happen(&mut self, event: Event) {
        let link = match &event {
            Event::Dial { from, to } => Some((from.0, *to)),
            Event::Answer { to, from } => Some((from.0, to.0)),
            Event::Bytes { to, .. } | Event::Closed { to } => self.ends.get(to).map(|other| (other.0, to.0)),
        };
        if link.is_some_and(|(a, b)| self.is_cut(a, b)) {
            self.held.push(event);
            return;
        }
        match event {
            Event::Dial { from, to } => {
                if to >= self.nodes.len() {
                    return;
                }
                let connection = self.nodes[to].speaker.accept_id();
                let end = (to, connection);
                self.ends.insert(from, end);
                self.ends.insert(end, from);
                self.at(self.now + self.delay, Event::Answer { to: from, from: end });
                self.busy.insert(from, self.now + self.delay);
                self.nodes[to].watch.open(connection);
                let endpoints = endpoints(to, from.0);
                self.input(to, Input::Accepted { connection, endpoints });
            }
            Event::Answer { to, from } => {
                if self.ends.get(&to) == Some(&from) {
                    self.nodes[to.0].watch.open(to.1);
                    let endpoints = endpoints(to.0, from.0);
                    self.input(to.0, Input::Connected { connection: to.1, endpoints });
                }
            }
            Event::Bytes { to: (host, connection), bytes } => {
                if self.ends.contains_key(&(host, connection)) {
                    self.nodes[host].watch.received(connection, &bytes);
                    self.input(host, Input::Received { connection, bytes: &bytes });
                }
            }
            Event::Closed { to: (host, connection) } => {
                self.ends.remove(&(host, connection));
                self.input(host, Input::Closed { connection, reason: "closed".to_owned() });
            }
        }
    }

    pub(super) fn input(&mut self, host: usize, input: Input<'_>) {
        let outputs = self.nodes[host].speaker.handle(input, self.now);
        self.outputs(host, outputs);
    }

    fn outputs(&mut self, host: usize, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Connect { connection, remote, .. } => {
                    let IpAddr::V4(address) = remote.ip() else { unreachable!() };
                    let to = usize::from(address.octets()[3]);
                    self.at(self.now + self.delay, Event::Dial { from: (host, connection), to });
                }
                Output::Transmit { connection } => loop {
                    let mut bytes = Vec::new();
                    self.nodes[host].speaker.transmit(connection, 1000, &mut bytes);
                    if bytes.is_empty() {
                        break;
                    }
                    self.send((host, connection), bytes);
                },
                Output::Close { connection, last } => {
                    self.send((host, connection), last);
                    self.nodes[host].watch.close(connection);
                    if let Some(other) = self.ends.remove(&(host, connection)) {
                        let at = self.arrival(other);
                        self.at(at, Event::Closed { to: other });
                    }
                }
                Output::Report { .. } => {}
                Output::Watch { peer, path } => {
                    self.nodes[host].watched.retain(|(address, _)| *address != peer);
                    self.nodes[host].watched.extend(path.map(|path| (peer, path)));
                }
                Output::StateChanged { state, .. } => self.nodes[host].changes.push((self.now, state)),
                Output::Install => self.nodes[host].install(),
            }
        }
        let node = &self.nodes[host];
        node.watch.check(&node.speaker);
    }

    fn send(&mut self, from: End, bytes: Vec<u8>) {
        self.nodes[from.0].watch.sent(from.1, &bytes);
        if let Some(&to) = self.ends.get(&from)
            && !bytes.is_empty()
        {
            let at = self.arrival(to);
            // Cut anywhere: the stream has no messages.
            let (one, two) = bytes.split_at(bytes.len() / 3);
            self.at(at, Event::Bytes { to, bytes: one.to_vec() });
            self.at(at, Event::Bytes { to, bytes: two.to_vec() });
        }
    }

    fn arrival(&mut self, to: End) -> Time {
        let at = (self.now + self.delay).max(self.busy.get(&to).copied().unwrap_or_default());
        self.busy.insert(to, at);
        at
    }
}

fn endpoints(local: usize, remote: usize) -> Endpoints {
    let host = |host: usize| SocketAddr::new(super::address(host as u8), 179);
    let v6: IpAddr = format!("fd00::{local}").parse().unwrap();
    Endpoints {
        local: host(local),
        remote: host(remote),
        next_hops: [
            (Family::Ipv4Unicast, NextHop::from(host(local).ip())),
            (Family::Ipv6Unicast, NextHop::from(v6)),
        ]
        .into(),
    }
}

/// What a speaker wrote and read, as an observer on its wire sees it.
#[derive(Default)]
pub(super) struct Watch {
    connections: BTreeMap<ConnectionId, Seen>,
}

#[derive(Default)]
struct Seen {
    sent: Stream,
    received: Stream,
    /// The peer's picture of us: what it was told and not untold.
    told: BTreeMap<Nlri, (Attributes, NextHop)>,
}

/// Messages of one direction.
#[derive(Default)]
struct Stream {
    rest: Vec<u8>,
    open: Option<Open>,
    kept_alive: bool,
}

impl Watch {
    pub(super) fn open(&mut self, connection: ConnectionId) {
        self.connections.insert(connection, Seen::default());
    }

    pub(super) fn close(&mut self, connection: ConnectionId) {
        self.connections.remove(&connection);
    }

    pub(super) fn received(&mut self, connection: ConnectionId, bytes: &[u8]) {
        if let Some(seen) = self.connections.get_mut(&connection) {
            let context = seen.context(false);
            seen.received.take(bytes, &context, false);
        }
    }

    pub(super) fn sent(&mut self, connection: ConnectionId, bytes: &[u8]) {
        let Some(seen) = self.connections.get_mut(&connection) else { return };
        let context = seen.context(true);
        for message in seen.sent.take(bytes, &context, true) {
            if let Message::Update(update) = message {
                for nlri in update.withdrawn {
                    assert!(seen.told.remove(&nlri).is_some(), "withdrew {nlri}, which was not announced");
                }
                let Some(announced) = update.announced else { continue };
                for reach in announced.reach {
                    for nlri in reach.prefixes {
                        seen.told.insert(nlri, (announced.attributes.clone(), reach.next_hop));
                    }
                }
            }
        }
    }

    /// Families of which what the peer says on a connection has path identifiers.
    pub(super) fn reads_paths(&self, connection: ConnectionId) -> BTreeSet<Family> {
        let seen = self.connections.get(&connection);
        seen.map(|seen| seen.context(false).add_path_receive).unwrap_or_default()
    }

    /// What must hold always.
    pub(super) fn check(&self, speaker: &Speaker) {
        for (_, slot) in speaker.slots() {
            let up: Vec<_> = slot
                .peer
                .connections()
                .filter(|connection| connection.fsm.state() == State::Established)
                .collect();
            assert!(up.len() <= 1, "one session at most");
            assert_eq!(up.is_empty(), slot.out.is_empty());
            let Some(session) = up.first() else { continue };
            let seen = &self.connections[&session.id.unwrap()];
            for stream in [&seen.sent, &seen.received] {
                assert!(stream.open.is_some() && stream.kept_alive, "OPEN and KEEPALIVE went both ways");
            }
            let mut known = 0;
            for (&family, out) in &slot.out {
                let table = speaker.rib.table(family);
                for id in table.ids() {
                    let prefix = table.prefix(id);
                    known += seen.told.keys().filter(|nlri| nlri.prefix == prefix).count();
                    // Not there: a refresh is under way, the peer is told again whatever it knows.
                    for (path, attributes) in out.sent(id) {
                        let told = &seen.told[&Nlri { prefix, path }];
                        let route = speaker.rib.attributes.get(attributes);
                        assert!(
                            *told == (route.attributes.clone(), route.next_hop.unwrap()),
                            "Adj-RIB-Out is what the peer was told"
                        );
                    }
                }
            }
            assert_eq!(known, seen.told.len(), "the peer knows no more than it was told");
            assert_eq!(known as u64, slot.out.values().map(AdjRibOut::announced).sum::<u64>());
        }
        speaker.check_references();
    }
}

impl Seen {
    /// How the peer reads us; or how we read it.
    fn context(&self, ours: bool) -> Context {
        let four = |open: &Open| open.capabilities.iter().any(|c| matches!(c, Capability::FourOctetAs(_)));
        let opens = (&self.sent.open, &self.received.open);
        let extended = |open: &Option<Open>| {
            open.as_ref().is_some_and(|open| open.capabilities.contains(&Capability::ExtendedMessage))
        };
        // Where an OPEN names a family twice, the first counts.
        let directions = |open: &Option<Open>, family: Family| {
            let capabilities = open.iter().flat_map(|open| &open.capabilities);
            let offers = capabilities.filter_map(|capability| match capability {
                Capability::AddPath(families) => Some(families),
                _ => None,
            });
            let mut said = offers.flatten().filter(|(named, _)| named.family() == Some(family));
            said.next().map(|(_, directions)| *directions).unwrap_or_default()
        };
        let with_paths = |family: &Family| {
            let (we, they): (AddPath, AddPath) =
                (directions(&self.sent.open, *family), directions(&self.received.open, *family));
            if ours { we.send && they.receive } else { we.receive && they.send }
        };
        Context {
            add_path_receive: Family::ALL.into_iter().filter(with_paths).collect(),
            four_octet_as: self.received.open.as_ref().is_some_and(four),
            internal: matches!(opens, (Some(ours), Some(theirs)) if ours.asn == theirs.asn),
            families: Family::ALL.into(),
            max_length: match opens {
                (ours, theirs) if extended(ours) && extended(theirs) => wire::MAX_EXTENDED_LENGTH,
                _ => wire::MAX_LENGTH,
            },
            ..Context::default()
        }
    }
}

impl Stream {
    /// Messages that are complete now. What a speaker itself writes must decode without errors.
    fn take(&mut self, bytes: &[u8], context: &Context, own: bool) -> Vec<Message> {
        self.rest.extend_from_slice(bytes);
        let mut messages = Vec::new();
        while let Ok(Some(message)) = wire::frame(&self.rest, context) {
            let length = message.len();
            match wire::decode(message, context) {
                Ok(decoded) => {
                    assert!(!own || decoded.errors.is_empty(), "{:?}", decoded.errors);
                    if let Message::Open(open) = &decoded.message {
                        self.open = Some(open.clone());
                    }
                    self.kept_alive |= decoded.message == Message::Keepalive;
                    messages.push(decoded.message);
                }
                Err(error) => assert!(!own, "{error}"),
            }
            self.rest.drain(..length);
        }
        messages
    }
}

impl Speaker {
    /// Counts of attribute sets agree with who holds them, and no number of a prefix leaks.
    fn check_references(&self) {
        let mut holders: BTreeMap<AttributesId, u32> = BTreeMap::new();
        let mut hold = |id: AttributesId| *holders.entry(id).or_default() += 1;
        for family in Family::ALL {
            let table = self.rib.table(family);
            for id in table.ids() {
                table.paths(id).iter().for_each(|path| hold(path.attributes));
                let used =
                    self.slots().any(|(_, slot)| slot.out.get(&family).is_some_and(|out| out.uses(id)));
                assert!(used || !table.paths(id).is_empty(), "{} is of use to nobody", table.prefix(id));
            }
            for (_, slot) in self.slots() {
                if let Some(out) = slot.out.get(&family) {
                    let sent = (0..table.bound()).flat_map(|id| out.sent(id));
                    sent.for_each(|(_, attributes)| hold(attributes));
                }
            }
        }
        self.own.values().flatten().for_each(|route| hold(route.attributes));
        assert_eq!(self.rib.attributes.holders(), holders);
        for (source, slot) in self.slots() {
            let accepted = Family::ALL.map(|family| {
                let table = self.rib.table(family);
                let ours = |path: &&Path| path.source == source && !path.refused;
                table.ids().map(|id| table.paths(id).iter().filter(ours).count() as u64).sum::<u64>()
            });
            assert_eq!(slot.accepted(), accepted.iter().sum::<u64>(), "count of accepted prefixes");
        }
    }
}
