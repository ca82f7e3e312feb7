//! Pod CIDRs: one test per rule, and random histories against what is promised.
#![expect(clippy::unwrap_used, reason = "a test may stop")]
use ipam::{
    Family, Name, Range, Remark,
    pod_cidr::{BlockAssignments, BlockPool, HeldBlocks, NodeClaim, assign_blocks},
};
use ipnet::IpNet;
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn pool(blocks: &[&str]) -> BlockPool {
    BlockPool {
        blocks: blocks.iter().map(|block| Range::try_from(net(block)).unwrap()).collect(),
        ipv4_length: Some(26),
        ipv6_length: Some(64),
        ..BlockPool::default()
    }
}

struct World {
    pools: BTreeMap<Name, BlockPool>,
    nodes: BTreeMap<Name, NodeClaim>,
    held: HeldBlocks,
    now: u64,
}

impl World {
    fn new(pools: impl IntoIterator<Item = (&'static str, BlockPool)>) -> Self {
        let pools = pools.into_iter().map(|(name, pool)| (name.into(), pool)).collect();
        World { pools, nodes: BTreeMap::new(), held: HeldBlocks::default(), now: 1000 }
    }

    fn node(&mut self, name: &str, declared: &[&str]) -> &mut NodeClaim {
        let matching = Arc::new(self.pools.keys().cloned().collect());
        let declared = declared.iter().map(|text| net(text)).collect();
        self.nodes.insert(name.into(), NodeClaim { declared, count: 1, created: 0, matching });
        self.nodes.get_mut(name).unwrap()
    }

    fn run(&mut self) -> BlockAssignments {
        let assignments = assign_blocks(&self.pools, &self.nodes, &self.held, self.now);
        self.held = assignments.held();
        assignments
    }

    /// `block block; what is lacking`
    fn got(&mut self, name: &str) -> String {
        let node = &self.run().nodes[name];
        let mut words: Vec<_> = node.blocks.keys().map(ToString::to_string).collect();
        words.extend(node.lacking.iter().map(ToString::to_string));
        words.join("; ")
    }
}

#[test]
fn each_family_that_is_offered_and_as_many_as_asked_for() {
    let mut world = World::new([("a", pool(&["10.244.0.0/24", "fd00::/62"]))]);
    world.node("n1", &[]);
    world.node("n2", &[]).count = 2;
    assert_eq!(world.got("n1"), "10.244.0.0/26; fd00::/64");
    assert_eq!(world.got("n2"), "10.244.0.64/26; 10.244.0.128/26; fd00:0:0:1::/64; fd00:0:0:2::/64");
    world.node("n3", &[]).count = 3;
    let lacking = "2 IPv4 blocks missing, none free in a: 4 of 4 assigned, 0 resting; \
                   2 IPv6 blocks missing, none free in a: 4 of 4 assigned, 0 resting";
    assert_eq!(world.got("n3"), format!("10.244.0.192/26; fd00:0:0:3::/64; {lacking}"));
    assert_eq!(world.got("n1"), "10.244.0.0/26; fd00::/64", "it keeps what it has");
}

#[test]
fn a_block_rests_when_its_node_goes_and_is_given_back_to_it() {
    let mut world = World::new([("a", BlockPool { reuse_delay_seconds: 60, ..pool(&["10.244.0.0/25"]) })]);
    world.node("n1", &[]);
    world.node("n2", &[]);
    assert_eq!(world.got("n1"), "10.244.0.0/26");
    world.nodes.remove("n1");
    world.run();
    world.node("n3", &[]);
    assert_eq!(world.got("n3"), "1 IPv4 blocks missing, none free in a: 1 of 2 assigned, 1 resting");
    world.node("n1", &[]);
    assert_eq!(world.got("n1"), "10.244.0.0/26");
    world.nodes.remove("n1");
    world.run();
    world.now += 60;
    assert_eq!(world.got("n3"), "10.244.0.0/26");
}

#[test]
fn what_a_node_declares_is_its_own() {
    let mut world = World::new([(
        "a",
        BlockPool {
            reserved: vec![Range::try_from(net("10.244.0.0/26")).unwrap()],
            ..pool(&["10.244.0.0/24"])
        },
    )]);
    world.node("n1", &["192.168.0.0/24"]);
    world.node("n2", &["10.244.0.64/26"]);
    world.node("n3", &["10.244.0.0/26"]);
    world.node("n4", &["10.244.0.96/27"]);
    world.node("n5", &[]);
    let got = world.run();
    let given = |name: &str| {
        let (net, given) = got.nodes[name].blocks.iter().next().unwrap();
        (
            net.to_string(),
            given.pool.as_deref().unwrap_or("-").to_owned(),
            given.remark,
            given.overlaps.clone(),
        )
    };
    assert_eq!(given("n1"), ("192.168.0.0/24".into(), "-".into(), Some(Remark::Outside), None));
    assert_eq!(given("n2"), ("10.244.0.64/26".into(), "a".into(), None, None));
    assert_eq!(given("n3"), ("10.244.0.0/26".into(), "-".into(), Some(Remark::Reserved), None));
    assert_eq!(given("n4"), ("10.244.0.96/27".into(), "a".into(), None, Some("n2".into())));
    assert_eq!(given("n5"), ("10.244.0.128/26".into(), "a".into(), None, None));
    assert_eq!(got.pools["a"].ipv4.total, 3);
    assert_eq!(got.pools["a"].ipv4.assigned, 2);
}

#[test]
fn an_edit_of_the_pool_moves_nothing() {
    let mut world = World::new([
        ("a", pool(&["10.244.0.0/24"])),
        ("b", BlockPool { priority: 1, ..pool(&["10.245.0.0/25"]) }),
    ]);
    world.node("n1", &[]);
    assert_eq!(world.got("n1"), "10.245.0.0/26");
    world.pools.insert("b".into(), pool(&["10.246.0.0/24"]));
    assert_eq!(world.got("n1"), "10.245.0.0/26");
    let node = &world.run().nodes["n1"];
    assert_eq!(node.blocks.values().next().unwrap().remark, Some(Remark::Outside));
    for pool in world.pools.values_mut() {
        pool.disabled = true;
    }
    world.node("n2", &[]);
    assert_eq!(world.got("n1"), "10.245.0.0/26");
    assert_eq!(world.got("n2"), "1 IPv4 blocks missing, none free in a, b: 0 of 8 assigned, 0 resting");
    world.node("n3", &[]).matching = Arc::default();
    assert_eq!(world.got("n3"), "", "no pool is for it");
}

/// Huge pools are not enumerated, and a thousand nodes are no work.
#[test]
fn many_nodes_in_huge_pools() {
    let huge =
        BlockPool { ipv6_length: Some(128), ipv4_length: Some(32), ..pool(&["10.0.0.0/8", "8000::/1"]) };
    let mut world = World::new([("a", pool(&["10.0.0.0/8", "fd00::/8"])), ("huge", huge)]);
    for number in 0..1000 {
        world.node(&format!("n{number}"), &[]).count = 4;
    }
    let got = world.run();
    assert_eq!(got.pools["a"].ipv4.assigned, 4000);
    assert_eq!(got.pools["huge"].ipv6.total, 1 << 127);
    assert_eq!(world.run(), got);
}

/// 16 addresses of each of two spaces in blocks of 2 to 8, so that things collide.
fn small_net() -> impl Strategy<Value = IpNet> {
    (0u8..16, 28u8..=31, any::<bool>()).prop_map(|(host, length, other)| {
        let third = if other { 3 } else { 2 };
        IpNet::new([192, 0, third, host].into(), length).unwrap().trunc()
    })
}

fn block_pool() -> impl Strategy<Value = BlockPool> {
    (
        prop::collection::vec(small_net(), 0..3),
        prop::collection::vec(small_net(), 0..2),
        29u8..=31,
        -1..2i32,
        prop_oneof![Just(0u64), 1..100u64],
        prop::bool::weighted(0.2),
    )
        .prop_map(|(blocks, reserved, length, priority, reuse_delay_seconds, disabled)| {
            let ranges =
                |nets: Vec<IpNet>| nets.into_iter().map(|net| Range::try_from(net).unwrap()).collect();
            BlockPool {
                blocks: ranges(blocks),
                reserved: ranges(reserved),
                ipv4_length: Some(length),
                ipv6_length: None,
                priority,
                reuse_delay_seconds,
                disabled,
                leased: None,
            }
        })
}

fn name(pattern: &'static str) -> impl Strategy<Value = Name> {
    pattern.prop_map(Name::from)
}

fn node() -> impl Strategy<Value = NodeClaim> {
    let declared = prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(small_net(), 1..3)];
    (declared, 1usize..3, 0..3u64, prop::collection::btree_set(name("[p-r]"), 0..4)).prop_map(
        |(declared, count, created, matching)| NodeClaim {
            declared,
            count,
            created,
            matching: Arc::new(matching),
        },
    )
}

#[derive(Clone, Debug)]
enum Step {
    Pools(BTreeMap<Name, BlockPool>),
    Node(Name, Option<NodeClaim>),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        prop::collection::btree_map(name("[p-r]"), block_pool(), 0..4).prop_map(Step::Pools),
        (name("[a-f]"), prop::option::weighted(0.6, node())).prop_map(|(name, node)| Step::Node(name, node)),
        (0..120u64).prop_map(Step::Pass),
    ]
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// The blocks that a pool can give, one by one: the model of what is walked in ranges.
fn all_blocks(pool: &BlockPool) -> Vec<IpNet> {
    let length = pool.ipv4_length.unwrap();
    let all = (0..32u8).map(|n| IpNet::new([192, 0, 2 + n / 16, n % 16].into(), length).unwrap().trunc());
    let blocks: BTreeSet<_> = all
        .filter(|net| {
            net.hosts().chain([net.network(), net.broadcast()]).all(|address| {
                pool.blocks.iter().any(|block| block.contains(address))
                    && !pool.reserved.iter().any(|r| r.contains(address))
            })
        })
        .collect();
    blocks.into_iter().collect()
}

proptest! {
    #[test]
    fn promises_hold_over_any_history(
        steps in prop::collection::vec(step(), 1..16),
    ) {
        let mut world = World::new([]);
        for step in steps {
            match step {
                Step::Pools(pools) => world.pools = pools,
                Step::Node(name, Some(node)) => drop(world.nodes.insert(name, node)),
                Step::Node(name, None) => drop(world.nodes.remove(&name)),
                Step::Pass(seconds) => world.now += seconds,
            }
            let before = world.held.clone();
            let got = world.run();
            let all: Vec<_> = got.nodes.iter().flat_map(|(name, node)| node.blocks.iter().map(move |b| (name, b))).collect();
            let declares = |name: &Name, net: &IpNet| world.nodes[name].declared.contains(net);
            for (i, (one, (a, given))) in all.iter().enumerate() {
                // Never two nodes with one block, unless both declare it; and then it is said.
                for (other, (b, second)) in &all[i + 1..] {
                    if one != other && overlap(a, b) {
                        prop_assert!(declares(one, a) && declares(other, b), "{a} of {one} and {b} of {other}");
                        prop_assert!(given.overlaps.is_some() || second.overlaps.is_some());
                    }
                }
                // What is new is a whole block of a pool that may give it, and does not rest for another.
                let held = before.given.get(*one).is_some_and(|held| held.contains_key(a));
                if !held && !declares(one, a) {
                    let pool = given.pool.as_ref().unwrap();
                    prop_assert!(world.nodes[*one].matching.contains(pool) && !world.pools[pool].disabled);
                    prop_assert!(all_blocks(&world.pools[pool]).contains(a), "{a} is no block of {pool}");
                    prop_assert!(got.released.keys().all(|resting| !overlap(resting, a)));
                }
            }
            // Sticky, unless another node declares it.
            for (name, blocks) in &before.given {
                let Some(node) = got.nodes.get(name) else { continue };
                for net in blocks.keys().filter(|net| !node.blocks.contains_key(*net)) {
                    let declared = world.nodes.values().flat_map(|claim| &claim.declared);
                    prop_assert!({ declared }.any(|other| overlap(other, net)), "{name} lost {net}");
                }
            }
            // Who lacks something is told so, and there is nothing that it could have.
            let is_free = |net: &IpNet| {
                all.iter().all(|(_, (other, _))| !overlap(other, net)) && got.released.keys().all(|r| !overlap(r, net))
            };
            for (name, claim) in &world.nodes {
                let node = &got.nodes[name];
                let pools: Vec<_> = world.pools.iter().filter(|(pool, _)| claim.matching.contains(*pool)).collect();
                let offered = pools.iter().any(|(_, pool)| !pool.blocks.is_empty());
                let lacks = claim.count.saturating_sub(node.blocks.len());
                prop_assert_eq!(node.lacking.iter().map(|lacking| lacking.count).sum::<usize>(), if offered { lacks } else { 0 });
                if lacks > 0 {
                    for (name, pool) in pools.iter().filter(|(_, pool)| !pool.disabled) {
                        prop_assert!(!all_blocks(pool).iter().any(is_free), "{name} has one");
                    }
                }
            }
            // The numbers are those of counting.
            for (name, usage) in &got.pools {
                let blocks = all_blocks(&world.pools[name]);
                let taken = |net: &&IpNet| all.iter().any(|(_, (other, _))| overlap(other, net));
                prop_assert_eq!(usage.of(Family::Ipv4).total, blocks.len() as u128);
                prop_assert_eq!(usage.of(Family::Ipv4).assigned, blocks.iter().filter(taken).count() as u128);
                prop_assert_eq!(usage.of(Family::Ipv4).available(), blocks.iter().filter(|net| is_free(net)).count() as u128);
            }
            // Its own result, told again, changes nothing.
            prop_assert_eq!(world.run(), got);
        }
    }
}
