//! Clusters that see each other late, in part, or not at all, and whose pools are edited meanwhile.
use super::*;
use proptest::prelude::*;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn range(text: &str) -> Range {
    Range::of_net(net(text))
}

#[test]
fn a_pool_is_cut_into_prefixes_of_one_length() {
    let cut = |blocks: &[Range], reserved: &[Range], longest| chunks(blocks, reserved, longest);
    let whole = cut(&[range("192.0.2.0/24")], &[], [32, 128]);
    assert_eq!((whole.len(), whole[0]), (64, net("192.0.2.0/30")));
    assert_eq!(cut(&[range("192.0.2.0/24")], &[], [26, 128]).len(), 4, "node blocks stay whole");
    assert_eq!(cut(&[range("192.0.2.7/32")], &[], [32, 128]), [net("192.0.2.7/32")]);
    let reserved = cut(&[range("192.0.2.0/24")], &[range("192.0.2.0/25")], [32, 128]);
    assert_eq!((reserved.len(), reserved[0]), (32, net("192.0.2.128/30")), "the length does not change");
    let odd = Range::new("192.0.2.10".parse().unwrap(), "192.0.2.99".parse().unwrap()).unwrap();
    assert_eq!(cut(&[odd], &[], [32, 128]).len(), 45, "10-11, 12-13 …: prefixes go beyond the block");
    let both = cut(&[range("192.0.2.0/29"), range("2001:db8::/32")], &[], [32, 128]);
    assert_eq!((both.len(), both[8]), (8 + 64, net("2001:db8::/38")));
    assert_eq!(cut(&[range("0.0.0.0/0"), range("::/1")], &[], [32, 128]).len(), 128);
    assert_eq!(cut(&[], &[], [32, 128]), []);
}

/// Clusters, and what each has seen of each.
struct World {
    clusters: Vec<Cluster>,
    /// By reader, then by writer: the version that was seen, and whether they are connected.
    seen: Vec<Vec<(usize, bool)>>,
    now: u64,
    /// When a register was made anew: clocks do not go back behind this.
    wiped: u64,
    /// The latest that it was.
    latest: u64,
}

struct Cluster {
    name: Name,
    /// All versions of what it writes; none: it has no register yet.
    versions: Vec<Version>,
    /// Addresses in use.
    used: BTreeSet<IpAddr>,
    lacking: u128,
    lists_last: bool,
    is_coarse: bool,
}

#[derive(Clone)]
struct Version {
    leases: Option<Leases>,
    lists_last: bool,
}

#[derive(Clone, Debug)]
enum Event {
    Step(usize),
    See(usize, usize, usize),
    Connect(usize, usize, bool),
    Use(usize, usize),
    Free(usize, usize),
    Lack(usize, u8),
    /// Whether the last cluster is among those that share it.
    List(usize, bool),
    Cut(usize, bool),
    /// The object is made anew.
    Wipe(usize),
    Clock(u8),
}

const POOL: &str = "192.0.2.0/29";

impl World {
    fn new(count: usize) -> Self {
        let cluster = |n: usize| Cluster {
            name: format!("c{n}").into(),
            versions: vec![Version { leases: None, lists_last: true }],
            used: BTreeSet::new(),
            lacking: 0,
            lists_last: true,
            is_coarse: false,
        };
        World {
            clusters: (0..count).map(cluster).collect(),
            seen: vec![vec![(0, true); count]; count],
            now: 100,
            wiped: 0,
            latest: 100,
        }
    }

    fn register(&self, i: usize) -> Leases {
        self.clusters[i].versions.last().unwrap().leases.clone().unwrap_or_default()
    }

    fn is_listed(&self, by: usize, other: usize) -> bool {
        let last = self.clusters.len() - 1;
        other != last || by == last || self.clusters[by].lists_last
    }

    fn write(&mut self, i: usize, leases: Option<Leases>) {
        let lists_last = self.clusters[i].lists_last;
        self.clusters[i].versions.push(Version { leases, lists_last });
    }

    fn step(&mut self, i: usize) -> Leases {
        let last = self.clusters.len() - 1;
        let own = &self.clusters[i];
        let others = self.clusters.iter().enumerate().filter(|(j, _)| *j != i).map(|(j, other)| {
            let (version, is_connected) = self.seen[i][j];
            let seen = &other.versions[version];
            let same_list = (own.lists_last || i == last) == (seen.lists_last || j == last);
            let other_view = Other {
                leases: seen.leases.clone(),
                is_listed: self.is_listed(i, j),
                is_fresh: is_connected && same_list,
            };
            (other.name.clone(), other_view)
        });
        let others = others.collect();
        let used: Vec<_> = own.used.iter().map(|address| single(*address)).collect();
        let need = Need::new(&used, [own.lacking, 0], false);
        let longest = if own.is_coarse { 30 } else { 31 };
        let chunks = chunks(&[range(POOL)], &[], [longest, 128]);
        let next = step(&self.register(i), &own.name, &others, &chunks, &need, self.now);
        assert_eq!(
            step(&next, &own.name, &others, &chunks, &need, self.now + 1),
            next,
            "it comes to rest at once"
        );
        self.write(i, Some(next.clone()));
        next
    }

    fn happen(&mut self, event: &Event) {
        let count = self.clusters.len();
        match *event {
            Event::Step(i) => drop(self.step(i % count)),
            Event::See(i, j, by) => {
                let (i, j) = (i % count, j % count);
                let newest = self.clusters[j].versions.len() - 1;
                let (version, is_connected) = &mut self.seen[i][j];
                if *is_connected {
                    *version = (*version + by).min(newest);
                }
            }
            Event::Connect(i, j, connected) => self.seen[i % count][j % count].1 = connected,
            Event::Use(i, n) => {
                // Given as allocation does: from what is held.
                let i = i % count;
                let held = self.register(i);
                let free: Vec<_> = held.held().flat_map(|chunk| chunk.hosts()).collect();
                if let Some(address) = free.get(n % free.len().max(1)) {
                    self.clusters[i].used.insert(*address);
                }
            }
            Event::Free(i, n) => {
                let used = &mut self.clusters[i % count].used;
                if let Some(address) = used.iter().nth(n % used.len().max(1)).copied() {
                    used.remove(&address);
                }
            }
            Event::Lack(i, number) => self.clusters[i % count].lacking = number.into(),
            Event::List(i, listed) => {
                let i = i % count;
                self.clusters[i].lists_last = listed;
                let leases = self.clusters[i].versions.last().unwrap().leases.clone();
                self.write(i, leases);
            }
            Event::Cut(i, coarse) => self.clusters[i % count].is_coarse = coarse,
            Event::Wipe(i) => {
                self.write(i % count, None);
                self.latest += 1;
                (self.now, self.wiped) = (self.latest, self.latest);
            }
            Event::Clock(now) => {
                self.now = self.wiped.max(now.into());
                self.latest = self.latest.max(self.now);
            }
        }
    }

    /// No chunk has two holders, and no address two users.
    fn check(&self) {
        for i in 0..self.clusters.len() {
            for j in 0..i {
                let (one, other) = (self.register(i), self.register(j));
                for chunk in one.held() {
                    assert!(other.held().all(|held| !overlap(chunk, held)), "{one:?} {other:?}");
                }
                assert!(self.clusters[i].used.is_disjoint(&self.clusters[j].used));
            }
        }
    }

    /// All see all, again and again.
    fn heal(&mut self) {
        for cluster in &mut self.clusters {
            (cluster.lists_last, cluster.is_coarse) = (true, false);
        }
        for _ in 0..12 {
            for i in 0..self.clusters.len() {
                for j in 0..self.clusters.len() {
                    self.seen[i][j] = (self.clusters[j].versions.len() - 1, true);
                }
                self.step(i);
            }
            self.check();
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    let cluster = || 0..4_usize;
    prop_oneof![
        12 => cluster().prop_map(Event::Step),
        12 => (cluster(), cluster(), 1..4_usize).prop_map(|(i, j, by)| Event::See(i, j, by)),
        2 => (cluster(), cluster(), any::<bool>()).prop_map(|(i, j, on)| Event::Connect(i, j, on)),
        3 => (cluster(), 0..8_usize).prop_map(|(i, n)| Event::Use(i, n)),
        3 => (cluster(), 0..8_usize).prop_map(|(i, n)| Event::Free(i, n)),
        2 => (cluster(), 0..6_u8).prop_map(|(i, n)| Event::Lack(i, n)),
        1 => (cluster(), any::<bool>()).prop_map(|(i, on)| Event::List(i, on)),
        1 => (cluster(), any::<bool>()).prop_map(|(i, on)| Event::Cut(i, on)),
        1 => cluster().prop_map(Event::Wipe),
        1 => (90..110_u8).prop_map(Event::Clock),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_chunk_has_two_holders_and_claims_end_in_leases(
        count in 2..5_usize,
        events in prop::collection::vec(event(), 0..120),
    ) {
        let mut world = World::new(count);
        for event in &events {
            world.happen(event);
            world.check();
        }
        world.heal();
        let chunks = chunks(&[range(POOL)], &[], [31, 128]);
        let registers: Vec<_> = (0..count).map(|i| world.register(i)).collect();
        let is_free = |chunk: &IpNet| registers.iter().all(|r| r.around(chunk).next().is_none());
        for (cluster, register) in world.clusters.iter().zip(&registers) {
            for address in &cluster.used {
                prop_assert!(register.held().any(|chunk| chunk.contains(address)), "{} is used, and not held", address);
            }
            let used: Vec<_> = cluster.used.iter().map(|address| single(*address)).collect();
            let need = Need::new(&used, [0; 2], false);
            let idle = register.held().filter(|chunk| !need.uses(chunk)).count();
            let has_enough = idle as u128 > cluster.lacking.div_ceil(2) || registers.iter().any(|r| r.is_short[0]);
            prop_assert!(has_enough || !chunks.iter().any(is_free), "{} lacks {}: {:?}", cluster.name, cluster.lacking, registers);
            if register.is_short[0] {
                // Nobody who lacks nothing keeps something in reserve.
                let reserves = world.clusters.iter().zip(&registers).filter(|(other, _)| other.lacking == 0);
                for (other, theirs) in reserves {
                    let used: Vec<_> = other.used.iter().map(|address| single(*address)).collect();
                    let need = Need::new(&used, [0; 2], false);
                    prop_assert!(theirs.held().all(|chunk| need.uses(chunk)), "{:?}", registers);
                }
                prop_assert!(!chunks.iter().any(is_free), "{:?}", registers);
            }
            let pending = register.chunks.values().filter(|lease| matches!(lease, Lease::Claimed { .. })).count();
            prop_assert_eq!(pending, 0, "{:?}", registers);
        }
    }
}

#[test]
fn a_chunk_that_is_asked_for_by_address_is_claimed() {
    let mut world = World::new(2);
    let asked = [single("192.0.2.5".parse().unwrap())];
    let need = Need::default().asking(&asked);
    world.heal();
    let chunks = chunks(&[range(POOL)], &[], [31, 128]);
    let other = |leases| Other { leases: Some(leases), is_listed: true, is_fresh: true };
    let others = BTreeMap::from([("c1".into(), other(Leases::default()))]);
    let next = step(&Leases::default(), "c0", &others, &chunks, &need, 1);
    assert!(next.chunks.contains_key(&net("192.0.2.4/31")), "{next:?}");
    assert_eq!(step(&next, "c0", &others, &chunks, &need, 2), next);
}

#[test]
fn what_was_in_use_before_it_was_shared_is_left_to_nobody() {
    let mut world = World::new(2);
    let address: IpAddr = "192.0.2.0".parse().unwrap();
    world.clusters[0].used.insert(address);
    world.clusters[1].lacking = 8;
    for _ in 0..2 {
        world.heal();
    }
    let other: Vec<_> = world.register(1).held().copied().collect();
    assert!(!other.is_empty() && other.iter().all(|chunk| !chunk.contains(&address)), "{other:?}");
    // In use in both: it stays so, and nobody holds it.
    let mut world = World::new(2);
    for cluster in &mut world.clusters {
        cluster.used.insert(address);
    }
    for cluster in [0, 1, 0, 1, 0, 1] {
        let other = 1 - cluster;
        world.seen[cluster][other].0 = world.clusters[other].versions.len() - 1;
        let leases = world.step(cluster);
        assert!(leases.held().all(|chunk| !chunk.contains(&address)));
        assert!(matches!(leases.chunks[&net("192.0.2.0/31")], Lease::Claimed { reason: Reason::InUse, .. }));
    }
}
