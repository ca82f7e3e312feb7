//! The process may die between any two operations, and in the middle of some.
use super::{
    super::{Now, State, dirt},
    SIZES, START, any_desired, hops, install, server_ids,
};
use crate::{
    maps::{Maps, fake::FakeMaps, faulty::FaultyMaps},
    service::{Desired, Endpoint},
};
use lb_bpf_common::{Addr, Backend, Filter, Vip, VipKey, proto};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A backend as packets see it.
type Seen = Option<(Endpoint, u8, u8)>;

/// What packets see: for every frontend the owner of each slot, and the one before of those that learn. Indexes
/// and places in the array do not matter.
fn seen(maps: &FakeMaps) -> BTreeMap<VipKey, Vec<(Seen, Seen)>> {
    let backend = |index: u32| -> Seen {
        let backend: Backend = maps.backends[index as usize];
        assert!(index == 0 || backend.mode != 0, "backend {index} is free");
        (index != 0).then(|| (super::super::endpoint_of(&backend), backend.mode, backend.flags))
    };
    let table = |vip: &Vip| {
        let slots = maps.slots(vip.base, vip.size).unwrap();
        slots.iter().map(|slot| (backend(slot.current), dirt::waiting(slot).and_then(backend))).collect()
    };
    let frontends = maps.vips.iter().filter(|(key, _)| key.proto != proto::SERVER_ID);
    frontends.map(|(key, vip)| (*key, table(vip))).collect()
}

/// The owners only.
fn owners(maps: &FakeMaps) -> BTreeMap<VipKey, Vec<Option<(Endpoint, u8)>>> {
    let owner = |(current, _): (Seen, Seen)| current.map(|(endpoint, mode, _)| (endpoint, mode));
    let mut owners: BTreeMap<VipKey, Vec<_>> =
        seen(maps).into_iter().map(|(key, table)| (key, table.into_iter().map(owner).collect())).collect();
    // A table without owners and no table are the same to a packet.
    for table in owners.values_mut().filter(|table| table.iter().all(Option::is_none)) {
        table.clear();
    }
    owners
}

/// What does not depend on ids and indexes either: the source ranges of each service, and the filters.
type Rules = (BTreeMap<(String, u32, Addr), bool>, BTreeMap<String, Filter>);

fn rules(maps: &FakeMaps) -> Rules {
    let name = |id: &u32| maps.names[id].0.to_string();
    let ranges = maps.ranges.iter().map(|(key, value)| ((name(&key.service), key.bits, key.addr), *value));
    let filters = maps.filters().unwrap().into_iter();
    (ranges.collect(), filters.map(|(index, filter)| (maps.filter_names[&index].clone(), filter)).collect())
}

/// Applies a desired set to maps that break after `left` operations; true when all of it was done.
fn try_install(
    maps: &mut FaultyMaps<FakeMaps>,
    desired: &Desired,
    now: Now,
    mut check: impl FnMut(&FakeMaps),
) -> bool {
    let mut state = State::restore(maps).unwrap();
    let ops = state.plan(maps, desired, &hops(), now).unwrap();
    let prune = state.plan_prune(now);
    ops.iter().chain(&prune).all(|op| {
        let done = maps.apply(op).is_ok();
        check(&maps.maps);
        done
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_crash_anywhere_leaves_whole_tables_and_is_made_good(
        history in prop::collection::vec(any_desired(), 1..4),
        next in any_desired(),
        other in any_desired(),
    ) {
        let mut maps = FakeMaps::new(SIZES);
        let mut state = State::restore(&maps).unwrap();
        let mut now = START;
        for desired in &history {
            now.0 += 1000;
            install(&mut state, &mut maps, desired, now);
        }
        now.0 += 1000;

        let before = owners(&maps);
        let mut whole = FaultyMaps::new(maps.clone(), usize::MAX);
        prop_assert!(try_install(&mut whole, &next, now, |_| ()));
        let (goal, after) = (seen(&whole.maps), owners(&whole.maps));

        for left in 0..whole.done {
            let mut broken = FaultyMaps::new(maps.clone(), left);
            let done = try_install(&mut broken, &next, now, |maps| {
                for (key, table) in owners(maps) {
                    let is_whole = before.get(&key) == Some(&table) || after.get(&key) == Some(&table);
                    // A frontend that is about to be pruned follows its service until then.
                    let leaves = !after.contains_key(&key) && after.values().any(|other| *other == table);
                    assert!(is_whole || leaves, "after {left} operations: half a table");
                }
            });
            prop_assert!(!done);

            // The same set again: as if nothing had happened.
            let mut repaired = FaultyMaps::new(broken.maps.clone(), usize::MAX);
            prop_assert!(try_install(&mut repaired, &next, now, |_| ()));
            prop_assert_eq!(&seen(&repaired.maps), &goal, "died after {} operations", left);
            prop_assert_eq!(rules(&repaired.maps), rules(&whole.maps));
            prop_assert_eq!(server_ids::ids(&repaired.maps), server_ids::ids(&whole.maps));
            prop_assert_eq!(repaired.maps.config, whole.maps.config);
            prop_assert_eq!(&repaired.maps.names.values().collect::<Vec<_>>(), &whole.maps.names.values().collect::<Vec<_>>());
            repaired.done = 0;
            prop_assert!(try_install(&mut repaired, &next, now, |_| ()));
            prop_assert_eq!(repaired.done, 0);

            // Another set: the owners are right as well.
            let mut turned = FaultyMaps::new(broken.maps, usize::MAX);
            prop_assert!(try_install(&mut turned, &other, now, |_| ()));
            let mut straight = FaultyMaps::new(whole.maps.clone(), usize::MAX);
            prop_assert!(try_install(&mut straight, &other, now, |_| ()));
            prop_assert_eq!(owners(&turned.maps), owners(&straight.maps));
            prop_assert_eq!(rules(&turned.maps), rules(&straight.maps));
        }
    }
}
