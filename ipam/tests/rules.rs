//! Allocation by example: one test per rule.
#![expect(clippy::unwrap_used, reason = "a test may stop")]
use ipam::{Assignments, Claim, Family, Given, Held, Name, Pool, Range, Remark, Request, Sharing, allocate};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

fn range(text: &str) -> Range {
    match text.split_once('-') {
        Some((first, last)) => Range::new(first.parse().unwrap(), last.parse().unwrap()).unwrap(),
        None => Range::try_from(text.parse::<ipnet::IpNet>().unwrap()).unwrap(),
    }
}

fn pool(blocks: &[&str]) -> Pool {
    Pool { blocks: blocks.iter().map(|b| range(b)).collect(), auto_assign: true, ..Pool::default() }
}

/// Pools and claims, and what was given in the runs so far.
struct World {
    pools: BTreeMap<Name, Pool>,
    claims: BTreeMap<Name, Claim>,
    held: Held,
    now: u64,
}

impl World {
    fn new(pools: impl IntoIterator<Item = (&'static str, Pool)>) -> Self {
        let pools = pools.into_iter().map(|(name, pool)| (name.into(), pool)).collect();
        World { pools, claims: BTreeMap::new(), held: Held::default(), now: 1000 }
    }

    fn claim(&mut self, name: &str, request: Request) -> &mut Claim {
        let matching = Arc::new(self.pools.keys().cloned().collect());
        let ports = BTreeSet::from([(6, 80)]);
        let claim = Claim { request, created: 0, ports, sharing: Sharing::OnRequest, matching };
        self.claims.insert(name.into(), claim);
        self.claims.get_mut(name).unwrap()
    }

    fn run(&mut self) -> Assignments {
        let assignments = allocate(&self.pools, &self.claims, &self.held, self.now);
        self.held = assignments.held();
        assignments
    }

    /// `address address; reason reason`
    fn got(&mut self, name: &str) -> String {
        let assignment = &self.run().claims[name];
        let mut words: Vec<_> = assignment.addresses.keys().map(|address| address.to_string()).collect();
        words.extend(assignment.unassigned.iter().map(ToString::to_string));
        words.join("; ")
    }
}

fn any(families: &[Family]) -> Request {
    Request::Families { pool: None, families: families.iter().copied().collect() }
}

fn from(pool: &str) -> Request {
    Request::Families { pool: Some(pool.into()), families: BTreeSet::from([Family::Ipv4]) }
}

fn exactly(addresses: &[&str]) -> Request {
    Request::Addresses(addresses.iter().map(|a| a.parse().unwrap()).collect())
}

const V4: &[Family] = &[Family::Ipv4];

#[test]
fn priority_goes_before_name_and_the_lowest_free_address_is_taken() {
    let mut world = World::new([
        ("a", pool(&["192.0.2.0/31"])),
        ("b", Pool { priority: 1, reserved: vec![range("198.51.100.0/32")], ..pool(&["198.51.100.0/31"]) }),
    ]);
    world.claim("x", any(V4));
    world.claim("y", any(V4));
    let got = world.run();
    assert_eq!(got.claims["x"].addresses.keys().next().unwrap().to_string(), "198.51.100.1");
    assert_eq!(got.claims["y"].addresses.keys().next().unwrap().to_string(), "192.0.2.0");
    let b = got.pools["b"].ipv4;
    assert_eq!((b.total, b.assigned, b.available()), (1, 1, 0));
}

#[test]
fn dual_stack_takes_a_family_that_is_there_and_names_the_one_that_is_not() {
    let mut world = World::new([("a", pool(&["192.0.2.0/31", "2001:db8::/32"]))]);
    world.claim("x", any(&Family::ALL));
    assert_eq!(world.got("x"), "192.0.2.0; 2001:db8::");
    world.pools.insert("a".into(), pool(&["192.0.2.0/31"]));
    world.claim("y", any(&Family::ALL));
    assert_eq!(world.got("y"), "192.0.2.1; no pool for it has IPv6 addresses");
    assert_eq!(world.got("x"), "192.0.2.0; 2001:db8::");
}

#[test]
fn exhaustion_comes_with_numbers() {
    let mut world = World::new([
        ("a", Pool { reuse_delay_seconds: 60, ..pool(&["192.0.2.0/31"]) }),
        ("six", pool(&["2001:db8::/32"])),
    ]);
    for name in ["x", "y", "z"] {
        world.claim(name, any(V4));
    }
    assert_eq!(world.got("z"), "no free IPv4 address in a: 2 of 2 assigned, 0 resting");
    world.claims.remove("x");
    assert_eq!(world.got("z"), "no free IPv4 address in a: 1 of 2 assigned, 1 resting");
    world.now += 60;
    assert_eq!(world.got("z"), "192.0.2.0");
}

#[test]
fn who_released_an_address_gets_it_back_and_who_asks_for_it_does_not_wait() {
    let mut world = World::new([("a", Pool { reuse_delay_seconds: 60, ..pool(&["192.0.2.0/29"]) })]);
    world.claim("w", any(V4));
    world.claim("x", any(V4));
    assert_eq!(world.got("x"), "192.0.2.1");
    world.claims.remove("w");
    world.claims.remove("x");
    world.run();
    world.claim("a", any(V4));
    assert_eq!(world.got("a"), "192.0.2.2");
    world.claim("x", any(V4));
    assert_eq!(world.got("x"), "192.0.2.1");
    world.claim("new-name-of-w", exactly(&["192.0.2.0"]));
    assert_eq!(world.got("new-name-of-w"), "192.0.2.0");
}

#[test]
fn an_edit_of_the_pool_moves_nothing_and_an_edit_of_the_claim_does() {
    let mut world = World::new([("a", pool(&["192.0.2.0/31"])), ("b", pool(&["198.51.100.0/31"]))]);
    world.claim("x", any(V4));
    world.claim("y", from("b"));
    world.run();
    // The block of `b` moves to `a`, that of `a` goes.
    world.pools.insert("a".into(), pool(&["198.51.100.0/31"]));
    world.pools.insert("b".into(), pool(&["203.0.113.0/24"]));
    for _ in 0..2 {
        let got = world.run();
        let given = |name: &str| got.claims[name].addresses.iter().next().unwrap();
        let outside = |pool: &str| Given { pool: Some(pool.into()), remark: Some(Remark::Outside) };
        assert_eq!(given("x"), ("192.0.2.0".parse().unwrap(), &outside("a")));
        assert_eq!(given("y"), ("198.51.100.0".parse().unwrap(), &outside("b")));
    }
    world.pools.get_mut("b").unwrap().disabled = true;
    world.pools.get_mut("a").unwrap().reserved = vec![range("198.51.100.0/31")];
    assert_eq!(world.run().claims["y"].addresses.iter().next().unwrap().1.remark, Some(Remark::Reserved));
    world.claim("y", from("a"));
    assert_eq!(world.got("y"), "no pool for it has IPv4 addresses");
}

#[test]
fn pools_refuse_by_state_and_by_selector() {
    let mut world = World::new([
        ("manual", Pool { auto_assign: false, ..pool(&["192.0.2.0/31"]) }),
        ("off", Pool { disabled: true, ..pool(&["198.51.100.0/31"]) }),
    ]);
    world.claim("any", any(V4));
    world.claim("named", from("manual"));
    world.claim("off", from("off"));
    world.claim("off-by-address", exactly(&["198.51.100.0"]));
    world.claim("nowhere", from("nowhere"));
    world.claim("stranger", from("manual")).matching = Arc::default();
    world.claim("stranger-by-address", exactly(&["192.0.2.1"])).matching = Arc::default();
    assert_eq!(world.got("any"), "no pool for it has IPv4 addresses");
    assert_eq!(world.got("named"), "192.0.2.0");
    assert_eq!(world.got("off"), "pool off is disabled");
    assert_eq!(world.got("off-by-address"), "pool off is disabled");
    assert_eq!(world.got("nowhere"), "there is no pool nowhere");
    assert_eq!(world.got("stranger"), "the selector of pool manual does not match");
    assert_eq!(world.got("stranger-by-address"), "the selector of pool manual does not match");
}

#[test]
fn sharing_needs_two_requests_by_address_and_disjoint_ports() {
    let mut world =
        World::new([("a", Pool { reserved: vec![range("192.0.2.3/32")], ..pool(&["192.0.2.0/29"]) })]);
    world.claim("auto", any(V4));
    world.run();
    world.claim("x", exactly(&["192.0.2.1"]));
    world.claim("y", exactly(&["192.0.2.1", "203.0.113.1"])).ports = BTreeSet::from([(6, 443)]);
    world.claim("z", exactly(&["192.0.2.0", "192.0.2.1", "192.0.2.3"]));
    assert_eq!(world.got("x"), "192.0.2.1");
    assert_eq!(world.got("y"), "192.0.2.1; 203.0.113.1");
    assert_eq!(
        world.got("z"),
        "192.0.2.0 belongs to auto; 192.0.2.1 belongs to x; pool a reserves 192.0.2.3"
    );
    assert_eq!(world.run().pools["a"].ipv4.assigned, 2);
}

#[test]
fn one_key_is_one_address_while_ports_are_disjoint() {
    let mut world = World::new([("a", pool(&["192.0.2.0/29"])), ("b", pool(&["198.51.100.0/31"]))]);
    let with_key = |world: &mut World, name: &str, request: Request, key: &str, port: u16| {
        let claim = world.claim(name, request);
        claim.sharing = Sharing::Key(key.into());
        claim.ports = BTreeSet::from([(6, port)]);
    };
    world.claim("alone", any(V4));
    with_key(&mut world, "w", any(V4), "k", 80);
    with_key(&mut world, "x", any(V4), "k", 443);
    assert_eq!((world.got("w"), world.got("x")), ("192.0.2.1".into(), "192.0.2.1".into()));
    // The port is taken there, so it gets an address of its own, which the next one shares.
    with_key(&mut world, "y", any(V4), "k", 80);
    assert_eq!(world.got("y"), "192.0.2.2");
    with_key(&mut world, "z", any(V4), "k", 443);
    assert_eq!(world.got("z"), "192.0.2.2");
    // Another key, no key, and another pool.
    with_key(&mut world, "other", exactly(&["192.0.2.1"]), "l", 8080);
    assert_eq!(world.got("other"), "192.0.2.1 belongs to w");
    world.claim("none", exactly(&["192.0.2.1"])).ports = BTreeSet::from([(6, 8080)]);
    assert_eq!(world.got("none"), "192.0.2.1 belongs to w");
    with_key(&mut world, "from-b", from("b"), "k", 8080);
    assert_eq!(world.got("from-b"), "198.51.100.0");
    with_key(&mut world, "by-address", exactly(&["192.0.2.1"]), "k", 8080);
    assert_eq!(world.got("by-address"), "192.0.2.1");
    assert_eq!(world.run().pools["a"].ipv4.assigned, 3);
}

#[test]
fn of_two_newcomers_the_older_wins_and_a_holder_before_both() {
    let mut world = World::new([("a", pool(&["192.0.2.0/29"]))]);
    world.claim("first-by-name", exactly(&["192.0.2.1"])).created = 20;
    world.claim("older", exactly(&["192.0.2.1"])).created = 10;
    assert_eq!(world.got("older"), "192.0.2.1");
    assert_eq!(world.got("first-by-name"), "192.0.2.1 belongs to older");
    world.claim("oldest", exactly(&["192.0.2.1"])).created = 5;
    assert_eq!(world.got("oldest"), "192.0.2.1 belongs to older");
}

#[test]
fn many_claims_in_huge_blocks() {
    let mut world = World::new([("six", pool(&["2001:db8::/32"])), ("four", pool(&["10.0.0.0/8"]))]);
    let matching = Arc::new(world.pools.keys().cloned().collect::<BTreeSet<_>>());
    for i in 0..100_000u32 {
        let claim = Claim {
            request: any(&Family::ALL),
            created: 0,
            ports: BTreeSet::new(),
            sharing: Sharing::Never,
            matching: matching.clone(),
        };
        world.claims.insert(format!("claim-{i}").into(), claim);
    }
    let first = world.run();
    assert_eq!(first.pools["four"].ipv4.assigned, 100_000);
    assert_eq!(first.pools["six"].ipv6.assigned, 100_000);
    assert_eq!(first.pools["six"].ipv6.total, 1 << 96);
    assert_eq!(world.run(), first);
}

#[test]
fn of_a_shared_pool_only_what_is_leased_is_given() {
    let shared = Pool { leased: Some(vec![range("192.0.2.4/31")]), ..pool(&["192.0.2.0/29"]) };
    let mut world = World::new([("a", shared)]);
    for name in ["one", "two", "three"] {
        world.claim(name, any(V4));
    }
    world.claim("asks", exactly(&["192.0.2.1"]));
    assert_eq!(world.got("one"), "192.0.2.4");
    assert_eq!(world.got("three"), "192.0.2.5");
    assert_eq!(
        world.got("two"),
        "no free IPv4 address in a: 2 of 8 assigned, 0 resting, 6 not leased to this cluster"
    );
    assert_eq!(world.got("asks"), "192.0.2.1 of pool a is not leased to this cluster");
    // What is given stays when the lease is lost, and another pool does not give what is not leased.
    world.pools.get_mut("a").unwrap().leased = Some(vec![]);
    world.pools.insert("b".into(), pool(&["192.0.2.6/31"]));
    world.claim("asks", from("b"));
    assert_eq!((world.got("one").as_str(), world.run().pools["a"].ipv4.withheld), ("192.0.2.4", 6));
    assert!(world.got("asks").starts_with("no free IPv4 address in b: 0 of 2 assigned"));
}

#[test]
fn what_another_cluster_has_for_a_claim_only_this_claim_may_have() {
    let shared = Pool { leased: Some(vec![range("192.0.2.0/31")]), ..pool(&["192.0.2.0/29"]) };
    let mut world = World::new([("a", shared)]);
    let address = |text: &str| text.parse().unwrap();
    world.held.elsewhere =
        BTreeMap::from([(address("192.0.2.0"), "mine".into()), (address("192.0.2.6"), "same".into())]);
    world.claim("other", any(V4));
    world.claim("same", any(V4));
    world.claim("asks", exactly(&["192.0.2.0", "192.0.2.6"]));
    assert_eq!((world.got("other").as_str(), world.got("same").as_str()), ("192.0.2.1", "192.0.2.6"));
    assert_eq!(
        world.got("asks"),
        "192.0.2.0 belongs to mine of another cluster; 192.0.2.6 belongs to same of another cluster"
    );
    world.claim("mine", exactly(&["192.0.2.0"]));
    assert_eq!(world.got("mine"), "192.0.2.0");
}
