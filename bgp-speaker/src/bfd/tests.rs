//! The session against its table, and two engines with a link between them in virtual time.
use super::{
    packet::{Diagnostic, State},
    *,
};
use proptest::prelude::*;

const FAST: Bfd = Bfd { min_tx_millis: 50, min_rx_millis: 50, multiplier: 3 };
const START: Time = Duration::from_secs(100);

fn packet(state: State) -> Packet {
    Packet {
        diagnostic: Diagnostic::NONE,
        state,
        poll: false,
        r#final: false,
        control_plane_independent: false,
        demand: false,
        multiplier: 3,
        my_discriminator: 9,
        your_discriminator: 7,
        desired_min_tx: 50_000,
        required_min_rx: 50_000,
        required_min_echo_rx: 0,
    }
}

/// A session in this state, at `START`.
fn session(state: State, random: &mut Random) -> Session {
    let mut session = Session::new(FAST, 7, START);
    session.tick(START, random);
    if state >= State::Init {
        session.receive(&packet(State::Down), START, random);
    }
    if state == State::Up {
        session.receive(&packet(State::Up), START, random);
    }
    if state == State::AdminDown {
        session.disable(START, random);
    }
    assert_eq!(session.state(), state);
    session
}

fn sent(actions: &[Action]) -> Vec<Packet> {
    let packets = actions.iter().filter_map(|action| match action {
        Action::Send(packet) => Some(*packet),
        _ => None,
    });
    packets.collect()
}

#[test]
fn the_table() {
    use State::*;
    let random = &mut Random::new(1);
    let table = [
        (AdminDown, [AdminDown; 4], AdminDown),
        (Down, [Down, Init, Up, Down], Down),
        (Init, [Down, Init, Up, Up], Down),
        (Up, [Down, Down, Up, Up], Down),
    ];
    for (before, after, silent) in table {
        for (heard, after) in [AdminDown, Down, Init, Up].into_iter().zip(after) {
            let mut session = session(before, random);
            let actions = session.receive(&packet(heard), START, random);
            assert_eq!(session.state(), after, "{before:?} hears {heard:?}");
            // What changes is told at once; a failure is only what the peer's operator did not want.
            let told = sent(&actions).first().map(|packet| packet.state);
            assert_eq!(told, (before != after).then_some(after), "{before:?} hears {heard:?}");
            assert_eq!(actions.contains(&Action::Failed), (before, heard) == (Up, Down));
            if before > Down && after == Down {
                assert_eq!(session.last_down(), Diagnostic::NEIGHBOR_SIGNALED_DOWN);
            }
        }
        let mut session = session(before, random);
        let actions = session.tick(START + Duration::from_millis(151), random);
        assert_eq!(session.state(), silent, "{before:?} hears nothing");
        assert_eq!(actions.contains(&Action::Failed), before == Up);
        if before >= Init {
            assert_eq!(session.last_down(), Diagnostic::DETECTION_TIME_EXPIRED);
            assert_eq!(session.remote().discriminator, 0);
        }
    }
}

#[test]
fn a_poll_is_answered_and_an_answer_ends_a_poll() {
    let random = &mut Random::new(1);
    let mut session = session(State::Up, random);
    let asked = Packet { poll: true, ..packet(State::Up) };
    let answers = sent(&session.receive(&asked, START, random));
    assert_eq!(
        answers.iter().map(|answer| (answer.poll, answer.r#final)).collect::<Vec<_>>(),
        [(false, true)]
    );

    // Slower and expecting faster: neither before the answer. The poll of coming up has not settled yet.
    let slow = Bfd { min_tx_millis: 400, min_rx_millis: 20, multiplier: 2 };
    let told = sent(&session.reconfigure(slow, START, random));
    assert_eq!(told.len(), 1);
    assert!(!told[0].poll && (told[0].desired_min_tx, told[0].required_min_rx) == (400_000, 20_000));
    let answer = Packet { r#final: true, ..packet(State::Up) };
    session.receive(&answer, START, random);
    let in_force = |session: &Session| (session.transmit_interval(), session.detection_time().unwrap());
    let millis = Duration::from_millis;
    assert_eq!(in_force(&session), (millis(50), millis(150)), "an answer to what was asked before");
    // The peer goes on to be heard until the second is over.
    let polls = (1..25_u64).flat_map(|step| {
        let now = START + millis(50 * step);
        session.receive(&packet(State::Up), now, random);
        sent(&session.tick(now, random))
    });
    assert!(polls.map(|packet| packet.poll).collect::<Vec<_>>().contains(&true));
    session.receive(&answer, START + millis(1240), random);
    assert_eq!(in_force(&session), (millis(400), millis(150)), "the peer sends each 50 ms at most");
}

#[test]
fn a_peer_may_want_no_packets() {
    let random = &mut Random::new(1);
    for change in [
        |packet: &mut Packet| packet.required_min_rx = 0,
        |packet: &mut Packet| (packet.demand, packet.r#final) = (true, true),
    ] {
        let mut session = session(State::Up, random);
        let mut quiet = packet(State::Up);
        change(&mut quiet);
        session.receive(&quiet, START, random);
        let silence = START + session.detection_time().unwrap();
        assert_eq!(
            session.next_deadline(),
            Some(silence),
            "nothing but the silence of the peer is waited for"
        );
        session.receive(&packet(State::Up), START, random);
        assert!(session.next_deadline().unwrap() < silence);
    }
}

#[test]
fn packets_find_their_session() {
    let to = |address: [u8; 4], hops| Destination { address: IpAddr::from(address), scope: 0, hops };
    let (one, other) = (to([10, 0, 0, 1], Hops::Single), to([10, 0, 0, 2], Hops::Single));
    let many = Destination { hops: Hops::Multi, ..one };
    let mut engine = Engine::new(1);
    engine.set(&[(one, FAST), (other, FAST), (many, FAST)].into(), START);
    let mine = engine.status(one, START).unwrap().discriminator;
    let mut receive = |from, hop_limit, yours, state| {
        let packet = Packet { your_discriminator: yours, ..packet(state) };
        engine.receive(Datagram { from, hop_limit, bytes: &packet.encode() }, START).map(drop)
    };
    for (from, hop_limit, yours, result) in [
        (one, 254, mine, Err(Discard::HopLimit)),
        (one, 255, mine, Ok(())),
        (one, 255, mine.wrapping_add(1), Err(Discard::UnknownSession)),
        (other, 255, mine, Err(Discard::UnknownSession)),
        (many, 64, mine, Err(Discard::UnknownSession)),
        (many, 64, 0, Ok(())),
        (to([10, 0, 0, 3], Hops::Single), 255, 0, Err(Discard::UnknownSession)),
    ] {
        assert_eq!(receive(from, hop_limit, yours, State::Down), result, "{from:?} {hop_limit} {yours}");
    }
}

/// Two engines, each with a session to the other.
struct World {
    now: Time,
    engines: [Engine; 2],
    configs: [Bfd; 2],
    delay: Duration,
    /// Of 100 datagrams so many are lost.
    loss: u64,
    random: Random,
    flying: BTreeMap<(Time, u64), (usize, Vec<u8>)>,
    sequence: u64,
    failures: [u64; 2],
    /// When each sent last, and what.
    sent: [Vec<(Time, Packet)>; 2],
}

impl World {
    fn new(configs: [Bfd; 2], seed: u64) -> Self {
        let mut world = World {
            now: START,
            engines: [Engine::new(seed), Engine::new(!seed)],
            configs,
            delay: Duration::from_millis(1),
            loss: 0,
            random: Random::new(seed),
            flying: BTreeMap::new(),
            sequence: 0,
            failures: [0; 2],
            sent: [Vec::new(), Vec::new()],
        };
        (0..2).for_each(|side| world.configure(side, configs[side]));
        world
    }

    fn destination(side: usize) -> Destination {
        Destination { address: IpAddr::from([10, 0, 0, 1 - side as u8]), scope: 0, hops: Hops::Single }
    }

    fn configure(&mut self, side: usize, config: Bfd) {
        self.configs[side] = config;
        let outputs = self.engines[side].set(&[(Self::destination(side), config)].into(), self.now);
        self.outputs(side, outputs);
    }

    fn remove(&mut self, side: usize) {
        let outputs = self.engines[side].set(&BTreeMap::new(), self.now);
        self.outputs(side, outputs);
    }

    fn status(&self, side: usize) -> BfdStatus {
        self.engines[side].status(Self::destination(side), self.now).unwrap()
    }

    fn are_up(&self) -> bool {
        (0..2).all(|side| self.status(side).state == "Up")
    }

    fn outputs(&mut self, side: usize, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Send { bytes, .. } => {
                    self.sent[side].push((self.now, Packet::parse(&bytes).unwrap()));
                    if self.random.draw() % 100 >= self.loss {
                        self.sequence += 1;
                        let at = (self.now + self.delay, self.sequence);
                        self.flying.insert(at, (1 - side, bytes.to_vec()));
                    }
                }
                Output::Failed(_) => self.failures[side] += 1,
                Output::Changed(_) | Output::Gone(_) => (),
            }
        }
    }

    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let arrival = self.flying.first_key_value().map(|((at, _), _)| *at);
            let deadlines = (0..2).filter_map(|side| self.engines[side].next_deadline());
            let Some(next) = deadlines.chain(arrival).min().filter(|next| *next <= end) else { break };
            assert!(next >= self.now, "what was due has been done");
            self.now = next;
            if arrival == Some(next)
                && let Some((_, (side, bytes))) = self.flying.pop_first()
            {
                let from = Self::destination(side);
                let datagram = Datagram { from, hop_limit: HOP_LIMIT, bytes: &bytes };
                // A session that is gone is asked for no more.
                let outputs = self.engines[side].receive(datagram, self.now).unwrap_or_default();
                self.outputs(side, outputs);
            }
            for side in 0..2 {
                if self.engines[side].next_deadline().is_some_and(|at| at <= self.now) {
                    let mut outputs = Vec::new();
                    self.engines[side].tick(self.now, &mut outputs);
                    self.outputs(side, outputs);
                    assert!(self.engines[side].next_deadline().is_none_or(|at| at > self.now));
                }
            }
        }
        self.now = end;
    }
}

#[test]
fn up_slow_then_fast_and_down_when_the_link_is_cut() {
    let mut world = World::new([FAST, Bfd { multiplier: 1, ..FAST }], 3);
    world.flying.clear();
    world.loss = 100;
    world.run(Duration::from_secs(60));
    for sent in &mut world.sent {
        let intervals = sent.windows(2).map(|two| two[1].0 - two[0].0);
        assert!(intervals.into_iter().all(|interval| interval >= Duration::from_millis(750)));
        assert!(sent.iter().all(|(_, packet)| packet.desired_min_tx == 1_000_000));
    }
    world.loss = 0;
    world.run(Duration::from_secs(2));
    assert!(world.are_up());
    world.sent.iter_mut().for_each(Vec::clear);
    world.run(Duration::from_secs(20));
    for (side, most) in [(0, 50_000), (1, 45_000)] {
        let intervals: Vec<u128> =
            world.sent[side].windows(2).map(|two| (two[1].0 - two[0].0).as_micros()).collect();
        let (low, high) = (*intervals.iter().min().unwrap(), *intervals.iter().max().unwrap());
        assert!((37_500..38_000).contains(&low) && (most - 500..=most).contains(&high), "{low} to {high}");
        assert!(world.sent[side].iter().all(|(_, packet)| !packet.poll), "all polls are answered");
    }
    let status = world.status(0);
    assert_eq!((status.transmit_millis, status.detection_millis), (50, Some(50)));
    assert_eq!((status.up_count, status.failure_count, status.last_diagnostic), (1, 0, None));

    world.loss = 100;
    world.run(Duration::from_millis(151));
    assert_eq!(world.failures, [1, 1]);
    let status = world.status(0);
    assert_eq!(status.last_diagnostic.as_deref(), Some("Control Detection Time Expired"));
    assert_eq!((status.state.as_str(), status.failure_count, status.remote_state), ("Down", 1, None));
    world.loss = 0;
    world.run(Duration::from_secs(2));
    assert!(world.are_up());
}

#[test]
fn what_is_not_wanted_any_more_is_no_failure() {
    let mut world = World::new([FAST, FAST], 3);
    world.run(Duration::from_secs(3));
    world.remove(0);
    world.run(Duration::from_secs(10));
    let status = world.status(1);
    assert_eq!((status.state.as_str(), world.failures), ("Down", [0, 0]));
    assert_eq!(status.last_diagnostic.as_deref(), Some("Neighbor Signaled Session Down"));
    assert_eq!(world.engines[0].next_deadline(), None, "nothing is left of it");
    // Taken back before it is gone: another session, and the peer comes along.
    world.configure(0, FAST);
    world.run(Duration::from_secs(3));
    world.remove(0);
    world.run(Duration::from_millis(500));
    world.configure(0, FAST);
    world.run(Duration::from_secs(3));
    assert!(world.are_up());
    assert_eq!(world.failures, [0, 0]);
}

/// Ten seconds without a word, and neither side flaps; afterwards all is as before.
#[test]
fn a_successor_goes_on_without_a_flap() {
    let slow = Bfd { min_tx_millis: 1000, min_rx_millis: 300, multiplier: 1 };
    let many = Bfd { min_tx_millis: 10, min_rx_millis: 10, multiplier: 255 };
    for (seed, configs) in [[FAST, FAST], [slow, FAST], [FAST, slow], [many, slow]].into_iter().enumerate() {
        let mut world = World::new(configs, seed as u64);
        world.run(Duration::from_secs(10));
        assert!(world.are_up());
        let before = [world.status(0), world.status(1)];
        world.configure(0, patient(configs[0]));
        let asked = world.now;
        while !world.engines[0].is_settled() {
            world.run(Duration::from_millis(10));
        }
        assert!(world.now - asked <= Duration::from_millis(2500), "within the patience of the driver");
        let mut octets = Vec::new();
        let handed = world.engines[0].handed(world.now).remove(0);
        handed.write(&mut octets);
        for end in 0..octets.len() {
            assert_eq!(HandedSession::read(&mut &octets[..end]), None, "cut at {end}");
        }
        world.engines[0] = Engine::new(99);
        world.run(Duration::from_secs(10));

        let read = HandedSession::read(&mut &octets[..]).unwrap();
        assert_eq!(read.to, handed.to);
        world.engines[0].resume(&[read], world.now);
        // The peer hears of it before it is known what is wanted.
        world.run(Duration::from_secs(3));
        world.configure(0, configs[0]);
        world.run(Duration::from_secs(10));
        assert_eq!(world.failures, [0, 0], "{configs:?}");
        for (side, before) in before.into_iter().enumerate() {
            let now = BfdStatus { since_seconds: before.since_seconds, ..world.status(side) };
            assert_eq!(now, before, "{configs:?}");
            assert!(world.status(side).since_seconds >= before.since_seconds + 12);
        }
    }
}

fn config() -> impl Strategy<Value = Bfd> {
    (10..2000_u32, 10..2000_u32, 1..5_u8).prop_map(|(min_tx_millis, min_rx_millis, multiplier)| Bfd {
        min_tx_millis,
        min_rx_millis,
        multiplier,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 200, ..ProptestConfig::default() })]

    /// Whatever is changed on either side at whatever moment: as long as the link passes all, no session fails.
    #[test]
    fn a_change_never_flaps(
        configs in [config(), config()],
        changes in prop::collection::vec((0..2_usize, config(), 0..3000_u64), 1..30),
        delay in 0..300_u64,
        seed: u64,
    ) {
        let mut world = World::new(configs, seed);
        world.delay = Duration::from_millis(delay);
        world.run(Duration::from_secs(30));
        prop_assert!(world.are_up());
        for (side, config, millis) in changes {
            world.configure(side, config);
            world.run(Duration::from_millis(millis));
            prop_assert_eq!(world.failures, [0, 0]);
        }
        world.run(Duration::from_secs(30));
        prop_assert!(world.are_up());
        for side in 0..2 {
            let (ours, theirs) = (world.configs[side], world.configs[1 - side]);
            let status = world.status(side);
            prop_assert_eq!(status.transmit_millis, u64::from(ours.min_tx_millis.max(theirs.min_rx_millis)));
            let detection = ours.min_rx_millis.max(theirs.min_tx_millis) * u32::from(theirs.multiplier);
            prop_assert_eq!(status.detection_millis, Some(detection.into()));
        }
    }

    /// Loss, cuts, changes and removals in any order: the sessions agree in the end, and nobody sends too fast.
    #[test]
    fn histories(
        steps in prop::collection::vec((0..5_u8, 0..2_usize, config(), 0..100_u64, 0..5000_u64), 1..40),
        seed: u64,
    ) {
        let mut world = World::new([FAST, FAST], seed);
        for (kind, side, config, loss, millis) in steps {
            match kind {
                0 => world.configure(side, config),
                1 => world.remove(side),
                2 => world.loss = 100,
                3 => world.loss = loss,
                _ => world.loss = 0,
            }
            world.run(Duration::from_millis(millis));
        }
        world.loss = 0;
        (0..2).for_each(|side| world.configure(side, FAST));
        world.run(Duration::from_secs(30));
        prop_assert!(world.are_up());
        let failures = world.failures;
        world.sent.iter_mut().for_each(Vec::clear);
        world.run(Duration::from_secs(10));
        prop_assert_eq!(world.failures, failures);
        for sent in &world.sent {
            prop_assert!((200..=268).contains(&sent.len()), "{} packets in 10 s", sent.len());
        }
    }
}
