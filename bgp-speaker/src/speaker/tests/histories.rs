//! One speaker, and peers that send anything: valid messages in any order, damaged ones, garbage; timers early and
//! late; connections that come and go; configurations that change. After every step the invariants of
//! [`Watch::check`](super::sim::Watch::check) hold.
use super::{sim::Watch, *};
use crate::{
    ConnectionId, Endpoints, Time,
    speaker::{Input, Output, Speaker},
    wire::{
        AddPath, Announcement, AsPath, Attributes, Capability, Community, Context, GracefulRestart,
        LongLived, Message, Nlri, Notification, Open, PathId, Reach, Reason, RefreshKind, RouteRefresh,
        Update,
    },
};
use ipnet::IpNet;
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

const HOSTS: u8 = 3;

#[derive(Clone, Debug)]
enum Step {
    /// A peer dials.
    Accept(u8),
    /// A dialed connection is there, or failed.
    Answer(bool),
    /// A connection (by its place among those that live) brings this.
    Bytes(usize, Said),
    /// It is handed over in two parts, cut here.
    Cut(usize, Said, u16),
    /// A peer dials, and says the whole handshake (with these `paths`) and some routes at once.
    Establish(u8, u8, Vec<Said>),
    Close(usize),
    /// The clock goes on; the timer is served if it is due, or all the same.
    Time(u32, bool),
    /// A socket has room.
    Transmit(usize, u16),
    Peers(Vec<(u8, u8)>),
    Routes(Vec<(u8, u8)>),
    Global(u8),
}

#[derive(Clone, Debug)]
enum Said {
    Open {
        other_as: bool,
        id: u8,
        hold: u16,
        four_octet: bool,
        refresh: bool,
        /// Graceful restart: flags R, N, and F of both families, and whether it is long-lived, too; 0: not offered.
        restart: u8,
        /// Several paths: 1 taken, 2 told, 3 both (RFC 7911); else not offered.
        paths: u8,
    },
    Keepalive,
    Update {
        withdrawn: Vec<u8>,
        announced: Vec<u8>,
        shape: u8,
    },
    EndOfRib,
    Refresh(u8),
    Notification,
    Garbage(Vec<u8>),
    /// A message with one octet changed.
    Damaged(Box<Said>, u16, u8),
}

fn prefix(net: u8) -> IpNet {
    if net % 4 == 3 {
        format!("2001:db8:{net}::/48").parse().unwrap()
    } else {
        format!("10.{net}.0.0/16").parse().unwrap()
    }
}

/// The upper bits choose among the paths of the prefix, where there are several.
fn nlri(net: u8) -> Nlri {
    Nlri { prefix: prefix(net % 8), path: PathId(u32::from(net / 8)) }
}

impl Said {
    /// `add_path`: families that have path identifiers.
    fn bytes(&self, host: u8, asn: u32, add_path: &BTreeSet<Family>) -> Vec<u8> {
        let message = match self {
            Said::Open { other_as, id, hold, four_octet, refresh, restart, paths } => {
                let asn = Asn(if *other_as { 64999 } else { asn });
                let mut capabilities = vec![
                    Capability::MultiProtocol(Family::Ipv4Unicast.into()),
                    Capability::MultiProtocol(Family::Ipv6Unicast.into()),
                ];
                capabilities.extend(four_octet.then_some(Capability::FourOctetAs(asn)));
                capabilities.extend(refresh.then_some(Capability::RouteRefresh));
                capabilities.extend((*refresh && *four_octet).then_some(Capability::EnhancedRouteRefresh));
                let families = Family::ALL;
                let directions = AddPath { send: paths & 2 != 0, receive: paths & 1 != 0 };
                capabilities.extend(
                    (1..=3).contains(paths).then(|| {
                        Capability::AddPath(families.map(|family| (family.into(), directions)).into())
                    }),
                );
                capabilities.extend((*restart > 0).then(|| {
                    Capability::GracefulRestart(GracefulRestart {
                        restarting: restart & 1 != 0,
                        notification: restart & 2 != 0,
                        seconds: 5,
                        families: families.map(|family| (family.into(), restart & 4 != 0)).into(),
                    })
                }));
                let long_lived = |family: Family| LongLived {
                    family: family.into(),
                    forwarding: restart & 4 != 0,
                    seconds: 7,
                };
                capabilities.extend(
                    (restart & 8 != 0)
                        .then(|| Capability::LongLivedGracefulRestart(families.map(long_lived).into())),
                );
                let router_id = Ipv4Addr::new(10, 0, *id, host);
                Message::Open(Open { asn, hold_seconds: *hold, router_id, capabilities })
            }
            Said::Keepalive => Message::Keepalive,
            Said::Update { withdrawn, announced, shape } => Message::Update(Update {
                withdrawn: withdrawn.iter().map(|net| nlri(*net)).collect(),
                announced: announcement(announced, *shape, asn),
            }),
            Said::EndOfRib => Message::EndOfRib(Family::Ipv4Unicast),
            Said::Refresh(kind) => {
                let kinds =
                    [RefreshKind::Request, RefreshKind::Begin, RefreshKind::End, RefreshKind::Other(9)];
                let kind = kinds[usize::from(*kind) % 4];
                Message::RouteRefresh(RouteRefresh { family: Family::Ipv4Unicast.into(), kind })
            }
            Said::Notification => Message::Notification(Notification::from(Reason::OUT_OF_RESOURCES)),
            Said::Garbage(bytes) => return bytes.clone(),
            Said::Damaged(said, at, xor) => {
                let mut bytes = said.bytes(host, asn, add_path);
                let at = usize::from(*at) % bytes.len().max(1);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= xor;
                }
                return bytes;
            }
        };
        let context = Context { four_octet_as: true, add_path_send: add_path.clone(), ..Context::default() };
        let mut bytes = Vec::new();
        message.encode(&context, &mut bytes).unwrap();
        bytes
    }
}

fn announcement(nets: &[u8], shape: u8, asn: u32) -> Option<Announcement> {
    let (v4, v6): (Vec<Nlri>, Vec<Nlri>) =
        nets.iter().map(|net| nlri(*net)).partition(|nlri| matches!(nlri.prefix, IpNet::V4(_)));
    let reach: Vec<Reach> = [(v4, IpAddr::from([10, 0, 0, 200])), (v6, "fd00::200".parse().unwrap())]
        .into_iter()
        .filter(|(prefixes, _)| !prefixes.is_empty())
        .map(|(prefixes, next_hop)| Reach { next_hop: next_hop.into(), prefixes })
        .collect();
    let attributes = Attributes {
        as_path: match shape % 4 {
            0 => AsPath::sequence([asn]),
            1 => AsPath::sequence([asn, 4_200_000_000]),
            // A loop.
            2 => AsPath::sequence([asn, 65000]),
            _ => AsPath::sequence([asn, 65007, 65007]),
        },
        med: (shape & 4 != 0).then_some(u32::from(shape)),
        communities: match shape & 12 {
            0 => BTreeSet::new(),
            4 => [Community::NO_LLGR].into(),
            8 => [Community::NO_EXPORT].into(),
            _ => [Community::LLGR_STALE].into(),
        },
        ..Attributes::default()
    };
    (!reach.is_empty()).then_some(Announcement { attributes, reach })
}

fn said() -> impl Strategy<Value = Said> {
    let nets = || prop::collection::vec(0u8..24, 0..5);
    let open = (
        prop::bool::weighted(0.1),
        0u8..3,
        prop::sample::select(vec![0u16, 3, 9, 90]),
        prop::bool::weighted(0.8),
        prop::bool::weighted(0.8),
        0u8..16,
        0u8..6,
    )
        .prop_map(|(other_as, id, hold, four_octet, refresh, restart, paths)| Said::Open {
            other_as,
            id,
            hold,
            four_octet,
            refresh,
            restart,
            paths,
        });
    let plain = prop_oneof![
        1 => open,
        5 => Just(Said::Keepalive),
        16 => (nets(), nets(), 0u8..16)
            .prop_map(|(withdrawn, announced, shape)| Said::Update { withdrawn, announced, shape }),
        1 => Just(Said::EndOfRib),
        4 => (0u8..4).prop_map(Said::Refresh),
        1 => Just(Said::Notification),
        1 => prop::collection::vec(any::<u8>(), 0..60).prop_map(Said::Garbage),
    ]
    .boxed();
    prop_oneof![
        8 => plain.clone(),
        1 => (plain, any::<u16>(), 1u8..).prop_map(|(said, at, xor)| Said::Damaged(Box::new(said), at, xor)),
    ]
}

fn update() -> impl Strategy<Value = Said> {
    let nets = || prop::collection::vec(0u8..24, 0..5);
    (nets(), nets(), 0u8..16).prop_map(|(withdrawn, announced, shape)| Said::Update {
        withdrawn,
        announced,
        shape,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let pairs =
        || prop::collection::btree_map(0u8..8, 0u8..16, 0..6).prop_map(|map| map.into_iter().collect());
    prop_oneof![
        4 => (1..=HOSTS).prop_map(Step::Accept),
        3 => any::<bool>().prop_map(Step::Answer),
        12 => (any::<usize>(), said()).prop_map(|(at, said)| Step::Bytes(at, said)),
        2 => (any::<usize>(), said(), any::<u16>()).prop_map(|(at, said, cut)| Step::Cut(at, said, cut)),
        4 => (1..=HOSTS, 0u8..6, prop::collection::vec(update(), 0..4))
            .prop_map(|(host, paths, updates)| Step::Establish(host, paths, updates)),
        1 => any::<usize>().prop_map(Step::Close),
        4 => (0u32..3000, any::<bool>()).prop_map(|(millis, always)| Step::Time(millis, always)),
        6 => (any::<usize>(), 1u16..2000).prop_map(|(at, limit)| Step::Transmit(at, limit)),
        1 => prop::collection::btree_map(0..HOSTS, shape(), 1..=usize::from(HOSTS))
            .prop_map(|map| Step::Peers(map.into_iter().collect())),
        4 => pairs().prop_map(Step::Routes),
        1 => prop::bool::weighted(0.2).prop_map(|other| Step::Global(other.into())),
    ]
}

/// Of a peer: mostly external, mostly with everything accepted and told.
fn shape() -> impl Strategy<Value = u8> {
    let bit =
        |bit: u8, often: f64| prop::bool::weighted(often).prop_map(move |set| if set { bit } else { 0 });
    (
        bit(1, 0.8),
        bit(2, 0.8),
        bit(4, 0.8),
        bit(8, 0.2),
        bit(16, 0.8),
        bit(32, 0.5),
        bit(64, 0.5),
        bit(128, 0.5),
    )
        .prop_map(|(a, b, c, d, e, f, g, h)| a | b | c | d | e | f | g | h)
}

struct Driver {
    speaker: Speaker,
    watch: Watch,
    now: Time,
    dialing: BTreeMap<ConnectionId, u8>,
    live: BTreeMap<ConnectionId, u8>,
    asns: BTreeMap<u8, u32>,
}

impl Driver {
    fn new(seed: u64) -> Self {
        let mut driver = Driver {
            speaker: Speaker::new(seed),
            watch: Watch::default(),
            now: Time::from_secs(50),
            dialing: BTreeMap::new(),
            live: BTreeMap::new(),
            asns: (1..=HOSTS).map(|host| (host, asn(host, 0))).collect(),
        };
        driver.step(Step::Global(0));
        driver.step(Step::Peers((1..=HOSTS).map(|host| (host - 1, 247)).collect()));
        driver
    }

    fn pick(&self, at: usize) -> Option<(ConnectionId, u8)> {
        let count = self.live.len();
        (count > 0).then(|| self.live.iter().nth(at % count).map(|(id, host)| (*id, *host)).unwrap())
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Accept(host) => {
                let connection = self.speaker.accept_id();
                self.live.insert(connection, host);
                self.watch.open(connection);
                self.input(Input::Accepted { connection, endpoints: endpoints(host) });
            }
            Step::Answer(connected) => {
                let Some((connection, host)) = self.dialing.pop_first() else { return };
                if connected {
                    self.live.insert(connection, host);
                    self.watch.open(connection);
                    self.input(Input::Connected { connection, endpoints: endpoints(host) });
                } else {
                    self.input(Input::ConnectFailed { connection, reason: "refused".to_owned() });
                }
            }
            Step::Bytes(at, said) => self.say(at, &[said], None),
            Step::Cut(at, said, cut) => self.say(at, &[said], Some(cut)),
            Step::Establish(host, paths, updates) => {
                self.step(Step::Accept(host));
                // Refused where the peer is not configured.
                let Some(at) = self.live.len().checked_sub(1) else { return };
                let restart = 4 + host % 4 + if paths > 2 { 8 } else { 0 };
                let (four_octet, refresh) = (true, true);
                let open =
                    Said::Open { other_as: false, id: 0, hold: 90, four_octet, refresh, restart, paths };
                self.say(at, &[vec![open, Said::Keepalive], updates].concat(), None);
            }
            Step::Close(at) => {
                if let Some((connection, _)) = self.pick(at) {
                    self.live.remove(&connection);
                    self.input(Input::Closed { connection, reason: "reset".to_owned() });
                    self.watch.close(connection);
                }
            }
            Step::Time(millis, always) => {
                self.now += Duration::from_millis(millis.into());
                let due = self.speaker.next_deadline().is_some_and(|at| at <= self.now);
                if due || always {
                    self.input(Input::Tick);
                    assert!(self.speaker.next_deadline().is_none_or(|at| at > self.now));
                }
            }
            Step::Transmit(at, limit) => {
                if let Some((connection, _)) = self.pick(at) {
                    self.transmit(connection, limit.into());
                }
            }
            Step::Peers(peers) => {
                let configs = peers.into_iter().filter(|(host, _)| *host < HOSTS).map(|(host, shape)| {
                    let host = host + 1;
                    // Bit 3: internal. The others: what policy there is.
                    self.asns.insert(host, asn(host, shape));
                    let mut config = peer(host, asn(host, shape));
                    config.export_learned = shape & 1 != 0;
                    if shape & 2 == 0 {
                        config.accept = vec!["10.0.0.0/14".parse().unwrap()];
                    }
                    config.max_prefixes = (shape & 4 == 0).then_some(3);
                    config.add_path = AddPath { send: shape & 32 != 0, receive: shape & 64 != 0 };
                    config.graceful_restart = (shape & 16 != 0).then_some(60);
                    let longer = if shape & 16 != 0 { u32::from(shape >> 7) * 60 } else { 0 };
                    config.long_lived_seconds = [(Family::Ipv4Unicast, longer)].into();
                    config
                });
                let configs = configs.collect();
                let outputs = self.speaker.set_peers(configs, self.now).unwrap();
                self.outputs(outputs);
            }
            Step::Routes(routes) => {
                let routes = routes.into_iter().map(|(net, shape)| {
                    let prefix = prefix(net);
                    let attributes = RouteAttributes {
                        med: Some((shape % 4).into()),
                        prepend: shape & 3,
                        ..RouteAttributes::default()
                    };
                    let peers = (shape & 8 != 0).then(|| [address(1 + shape % HOSTS).into()].into());
                    Route { prefix, attributes, peers }
                });
                let outputs = self.speaker.set_routes(routes.collect()).unwrap();
                self.outputs(outputs);
            }
            Step::Global(shape) => {
                let mut global = global(9, 65000);
                global.router_id = Ipv4Addr::new(10, 0, 1, 1 + shape);
                let outputs = self.speaker.set_global(global, self.now).unwrap();
                self.outputs(outputs);
            }
        }
    }

    fn say(&mut self, at: usize, said: &[Said], cut: Option<u16>) {
        let Some((connection, host)) = self.pick(at) else { return };
        // On a new connection: what the peer offers in this very breath, of which we take all.
        let offered = said.iter().find_map(|said| match said {
            Said::Open { paths, .. } if matches!(paths, 2 | 3) && self.takes_paths(host) => {
                Some(Family::ALL.into())
            }
            Said::Open { .. } => Some(BTreeSet::new()),
            _ => None,
        });
        let add_path = offered.unwrap_or_else(|| self.watch.reads_paths(connection));
        let bytes =
            said.iter().flat_map(|said| said.bytes(host, self.asns[&host], &add_path)).collect::<Vec<u8>>();
        let cut = cut.map_or(0, |cut| usize::from(cut) % (bytes.len() + 1));
        for part in [&bytes[..cut], &bytes[cut..]] {
            // The observer must know the peer's OPEN before our answer.
            self.watch.received(connection, part);
            self.input(Input::Received { connection, bytes: part });
        }
    }

    /// Whether we take several paths of this peer.
    fn takes_paths(&self, host: u8) -> bool {
        let mut configs = self.speaker.peer_configs();
        configs.any(|config| config.address == address(host) && config.add_path.receive)
    }

    fn input(&mut self, input: Input<'_>) {
        let outputs = self.speaker.handle(input, self.now);
        self.outputs(outputs);
    }

    fn outputs(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Connect { connection, remote, .. } => {
                    let IpAddr::V4(address) = remote.ip() else { unreachable!() };
                    self.dialing.insert(connection, address.octets()[3]);
                }
                Output::Close { connection, last } => {
                    self.watch.sent(connection, &last);
                    self.watch.close(connection);
                    self.live.remove(&connection);
                    self.dialing.remove(&connection);
                }
                // Sockets have room when a step says so; OPEN and KEEPALIVE go at once.
                Output::Transmit { connection } => self.write(connection, 0),
                Output::StateChanged { .. }
                | Output::Watch { .. }
                | Output::Install
                | Output::Report { .. } => {}
            }
        }
        self.watch.check(&self.speaker);
    }

    fn transmit(&mut self, connection: ConnectionId, limit: usize) {
        self.write(connection, limit);
        self.watch.check(&self.speaker);
    }

    fn write(&mut self, connection: ConnectionId, limit: usize) {
        let mut bytes = Vec::new();
        self.speaker.transmit(connection, limit, &mut bytes);
        self.watch.sent(connection, &bytes);
    }
}

fn asn(host: u8, shape: u8) -> u32 {
    if shape & 8 != 0 { 65000 } else { 65000 + u32::from(host) }
}

fn endpoints(host: u8) -> Endpoints {
    let end = |host| SocketAddr::new(address(host), 179);
    let v6: IpAddr = "fd00::9".parse().unwrap();
    Endpoints {
        local: end(9),
        remote: end(host),
        next_hops: [(Family::Ipv4Unicast, address(9).into()), (Family::Ipv6Unicast, v6.into())].into(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, max_shrink_iters: 4000, ..ProptestConfig::default() })]
    #[test]
    fn invariants_hold_whatever_happens(seed: u64, steps in prop::collection::vec(step(), 1..120)) {
        let mut driver = Driver::new(seed);
        for step in steps {
            driver.step(step);
        }
        // Whatever waits can be written, and then nothing waits.
        for connection in driver.live.keys().copied().collect::<Vec<_>>() {
            driver.transmit(connection, usize::MAX / 2);
        }
        prop_assert!(!driver.speaker.is_pending());
        // The shut down speaker holds nothing but its own routes.
        let outputs = driver.speaker.shutdown(driver.now);
        driver.outputs(outputs);
        prop_assert!(driver.speaker.routes().iter().all(|row| row.table == "loc" && row.peer.is_none()));
        prop_assert_eq!(driver.speaker.next_deadline(), None);
    }
}

/// The histories are worth something only if sessions do come up in them and routes do move.
#[test]
fn histories_reach_established_sessions_and_routes() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let (mut sessions, mut told, mut several) = (0, 0, 0);
    for _ in 0..50 {
        let steps = prop::collection::vec(step(), 1..120).new_tree(&mut runner).unwrap().current();
        let mut driver = Driver::new(1);
        for step in steps {
            driver.step(step);
            let status = driver.speaker.peers(driver.now);
            sessions += status.iter().filter(|peer| peer.state == "Established").count();
            several +=
                driver.speaker.routes().iter().filter(|row| row.table == "adj-out" && !row.best).count();
            told += status.iter().filter(|peer| peer.prefixes_sent > 0 && peer.prefixes_received > 0).count();
        }
    }
    assert!(sessions > 500 && told > 100 && several > 50, "{sessions} {told} {several}");
}
