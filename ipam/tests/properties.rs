//! Random histories of pools and claims against what allocation promises.
#![expect(clippy::unwrap_used, reason = "a test may stop")]
use ipam::{Addresses, Assignments, Claim, Family, Held, Name, Pool, Range, Request, Sharing, allocate};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// Few addresses and names, so that things collide.
fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0u8..24).prop_map(|n| IpAddr::from([192, 0, 2, n])),
        (0u16..24).prop_map(|n| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n])),
    ]
}

fn range() -> impl Strategy<Value = Range> {
    (any::<bool>(), 0u8..24, 0u8..24).prop_map(|(v4, a, b)| {
        let address = |n: u8| match v4 {
            true => IpAddr::from([192, 0, 2, n]),
            false => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()]),
        };
        Range::new(address(a.min(b)), address(a.max(b))).unwrap()
    })
}

fn pool() -> impl Strategy<Value = Pool> {
    (
        prop::collection::vec(range(), 0..4),
        prop::collection::vec(range(), 0..2),
        prop::bool::weighted(0.8),
        -1..2i32,
        prop_oneof![Just(0u64), 1..100u64],
        prop::bool::weighted(0.2),
    )
        .prop_map(|(blocks, reserved, auto_assign, priority, reuse_delay_seconds, disabled)| Pool {
            blocks,
            reserved,
            auto_assign,
            priority,
            reuse_delay_seconds,
            disabled,
            leased: None,
        })
}

fn name(pattern: &'static str) -> impl Strategy<Value = Name> {
    pattern.prop_map(Name::from)
}

fn pools() -> impl Strategy<Value = BTreeMap<Name, Pool>> {
    prop::collection::btree_map(name("[p-r]"), pool(), 0..4)
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        1 => prop::collection::btree_set(address(), 1..3).prop_map(Request::Addresses),
        3 => (prop::option::weighted(0.3, name("[p-r]")), prop::sample::subsequence(Family::ALL.to_vec(), 1..3))
            .prop_map(|(pool, families)| Request::Families { pool, families: families.into_iter().collect() }),
    ]
}

fn claim() -> impl Strategy<Value = Claim> {
    (
        request(),
        0..3u64,
        prop::collection::btree_set((Just(6u8), 80..84u16), 1..3),
        prop_oneof![
            2 => Just(Sharing::OnRequest),
            2 => name("[kl]").prop_map(Sharing::Key),
            1 => Just(Sharing::Never),
        ],
        prop_oneof![4 => Just(BTreeSet::from(["p", "q", "r"].map(Name::from))), 1 => prop::collection::btree_set(name("[p-r]"), 0..3)],
    )
        .prop_map(|(request, created, ports, sharing, matching)| Claim { request, created, ports, sharing, matching: Arc::new(matching) })
}

fn claims() -> impl Strategy<Value = BTreeMap<Name, Claim>> {
    prop::collection::btree_map(name("[a-h]"), claim(), 0..8)
}

/// A step of a history: what changes before the next call, and how many seconds pass.
#[derive(Clone, Debug)]
enum Step {
    Pools(BTreeMap<Name, Pool>),
    Claim(Name, Option<Claim>),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        pools().prop_map(Step::Pools),
        (name("[a-h]"), prop::option::weighted(0.6, claim()))
            .prop_map(|(name, claim)| Step::Claim(name, claim)),
        (0..120u64).prop_map(Step::Pass),
    ]
}

fn offers(pool: &Pool, address: IpAddr) -> bool {
    pool.blocks.iter().any(|b| b.contains(address)) && !pool.reserved.iter().any(|r| r.contains(address))
}

fn holders(assignments: &Assignments) -> BTreeMap<IpAddr, Vec<&str>> {
    let mut holders: BTreeMap<IpAddr, Vec<&str>> = BTreeMap::new();
    for (name, assignment) in &assignments.claims {
        for address in assignment.addresses.keys() {
            holders.entry(address).or_default().push(name);
        }
    }
    holders
}

proptest! {
    #[test]
    fn promises_hold_over_any_history(
        first_pools in pools(),
        first_claims in claims(),
        steps in prop::collection::vec(step(), 0..12),
    ) {
        let (mut pools, mut claims, mut now) = (first_pools, first_claims, 1_000u64);
        let mut held = Held::default();
        // When an address was last seen in use, and by whom.
        let mut last_use: BTreeMap<IpAddr, (u64, Name)> = BTreeMap::new();
        for step in std::iter::once(None).chain(steps.into_iter().map(Some)) {
            let mut edited: Option<Name> = None;
            match step {
                None => {}
                Some(Step::Pools(next)) => pools = next,
                Some(Step::Pass(seconds)) => now += seconds,
                Some(Step::Claim(name, Some(claim))) => {
                    claims.insert(name.clone(), claim);
                    edited = Some(name);
                }
                Some(Step::Claim(name, None)) => {
                    claims.remove(&name);
                    edited = Some(name);
                }
            }
            let result = allocate(&pools, &claims, &held, now);

            // Never one address twice, unless both asked for it and the ports are disjoint.
            for (address, holders) in holders(&result) {
                for (i, a) in holders.iter().enumerate() {
                    for b in &holders[i + 1..] {
                        match (&claims[*a].sharing, &claims[*b].sharing) {
                            (Sharing::Key(one), Sharing::Key(other)) => prop_assert_eq!(one, other),
                            (Sharing::OnRequest, Sharing::OnRequest) => for name in [a, b] {
                                prop_assert!(matches!(&claims[*name].request, Request::Addresses(w) if w.contains(&address)));
                            },
                            _ => prop_assert!(false, "{address}: {a} and {b} do not share"),
                        }
                        prop_assert!(claims[*a].ports.is_disjoint(&claims[*b].ports), "{address}: {a} and {b}");
                    }
                }
            }
            for (name, assignment) in &result.claims {
                let claim = &claims[name];
                let before = held.given.get(name);
                // Sticky: unless the claim was edited, it keeps all it had. (An edit of another claim's ports
                // may end the sharing of an address.)
                if edited.is_none() {
                    for address in before.into_iter().flat_map(Addresses::keys) {
                        prop_assert!(assignment.addresses.contains(address), "{name} lost {address}");
                    }
                }
                for (address, given) in assignment.addresses.iter() {
                    match &claim.request {
                        Request::Addresses(wanted) => prop_assert!(wanted.contains(&address)),
                        Request::Families { families, .. } => prop_assert!(families.contains(&Family::of(address))),
                    }
                    if before.is_some_and(|b| b.contains(address)) {
                        continue;
                    }
                    // What is new comes from a pool that may give it, or was asked for and is in no pool.
                    match &given.pool {
                        Some(name) => {
                            let pool = &pools[name];
                            prop_assert!(offers(pool, address), "reserved or outside: {address}");
                            prop_assert!(!pool.disabled && claim.matching.contains(name));
                        }
                        None => {
                            prop_assert!(matches!(claim.request, Request::Addresses(_)));
                            prop_assert!(!pools.values().any(|p| p.blocks.iter().any(|b| b.contains(address))));
                        }
                    }
                    // Not before the delay, unless it was its own or asked for; of those who share it, somebody has it.
                    if let (Some(pool), Request::Families { pool: named, .. }) = (&given.pool, &claim.request) {
                        prop_assert!(named.is_some() || pools[pool].auto_assign);
                        if let Some((at, who)) = last_use.get(&address).filter(|(_, who)| who != name) {
                            let delay = pools[pool].reuse_delay_seconds;
                            let shared = holders(&result)[&address].len() > 1;
                            prop_assert!(shared || delay == 0 || now >= at + delay || rest_was_forgotten(&held, &address), "{address} of {who} reused early");
                        }
                    }
                }
                // Who lacks something is told why.
                let wanted = match &claim.request {
                    Request::Addresses(addresses) => addresses.len(),
                    Request::Families { families, .. } => families.len(),
                };
                prop_assert_eq!(assignment.addresses.len() < wanted, !assignment.unassigned.is_empty());
            }
            for (name, usage) in &result.pools {
                for family in Family::ALL {
                    let assigned = holders(&result).keys().filter(|a| Family::of(**a) == family && offers(&pools[name], **a)).count();
                    prop_assert_eq!(usage.of(family).assigned, assigned as u128);
                }
            }
            for (name, assignment) in &result.claims {
                for address in assignment.addresses.keys() {
                    last_use.insert(address, (now, name.clone()));
                }
            }
            // Its own result, told again, changes nothing.
            held = result.held();
            prop_assert_eq!(allocate(&pools, &claims, &held, now), result);
        }
    }

    #[test]
    fn order_of_blocks_does_not_matter(mut pools in pools(), claims in claims()) {
        let before = allocate(&pools, &claims, &Held::default(), 0);
        for pool in pools.values_mut() {
            pool.blocks.reverse();
            pool.reserved.reverse();
        }
        prop_assert_eq!(allocate(&pools, &claims, &Held::default(), 0), before);
    }
}

/// A record of rest is dropped when no pool that offers the address has it rest; a pool that appears later
/// knows nothing of it.
fn rest_was_forgotten(held: &Held, address: &IpAddr) -> bool {
    !held.released.contains_key(address) && !held.given.values().any(|g| g.contains(*address))
}
