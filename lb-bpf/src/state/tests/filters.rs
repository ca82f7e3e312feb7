//! Filters keep their index, and those that do not fit hinder nobody.
use super::{super::State, SIZES, START, desired, install, service};
use crate::{
    filter::{Filter, FilterAction},
    maps::{Maps, Sizes, fake::FakeMaps},
    service::Desired,
    status::Counters,
};
use lb_bpf_common::{self as abi, Counter};
use proptest::prelude::*;
use std::collections::BTreeMap;

const ROOM: usize = 3;

pub(super) fn rule(protocol: u8) -> Filter {
    Filter { protocol: Some(protocol), ..Filter::new(FilterAction::Drop) }
}

fn with(filters: &BTreeMap<String, Filter>) -> Desired {
    let web = desired([("web", service(&[1], &[(1, 1, true)]))]);
    Desired { filters: filters.clone(), ..web }
}

/// What packets look at, by name.
fn seen(maps: &FakeMaps) -> BTreeMap<String, abi::Filter> {
    let filters = maps.filters().unwrap().into_iter().filter(|(index, _)| *index < maps.config.filters);
    filters.map(|(index, filter)| (maps.filter_names[&index].clone(), filter)).collect()
}

fn indexes(maps: &FakeMaps) -> BTreeMap<String, u32> {
    maps.filter_names.iter().map(|(index, name)| (name.clone(), *index)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn the_first_ones_are_in_force_and_keep_their_index(
        history in prop::collection::vec(prop::collection::btree_map("[a-f]", (1..4_u8).prop_map(rule), 0..6), 1..8),
        restarts in any::<bool>(),
    ) {
        let mut maps = FakeMaps::new(Sizes { filters: ROOM as u32, ..SIZES });
        let mut state = State::restore(&maps).unwrap();
        let one = Counter { packets: 1, ..Counter::default() };
        for filters in &history {
            if restarts {
                state = State::restore(&maps).unwrap();
            }
            let before = indexes(&maps);
            install(&mut state, &mut maps, &with(filters), START);
            let fitting: BTreeMap<_, _> =
                filters.iter().take(ROOM).map(|(name, filter)| (name.clone(), filter.compile())).collect();
            prop_assert_eq!(&seen(&maps), &fitting);
            prop_assert_eq!(state.filters(), fitting.into_keys().collect());
            let after = indexes(&maps);
            let counters = Counters::of_filters(&maps).unwrap();
            for (name, index) in &after {
                let is_known = before.get(name) == Some(index);
                prop_assert!(is_known || !before.contains_key(name), "{} has moved", name);
                prop_assert_eq!(counters[name].packets, u64::from(is_known), "counts of {}", name);
            }
            maps.filter_counters.fill(one);
            prop_assert_eq!(install(&mut State::restore(&maps).unwrap(), &mut maps, &with(filters), START), []);
            prop_assert!(state.installed().contains_key(&super::key("web")));
        }
        install(&mut state, &mut maps, &Desired::default(), START);
        prop_assert!(maps.filter_names.is_empty() && maps.filters().unwrap().is_empty());
        prop_assert_eq!(maps.config.filters, 0);
    }
}

#[test]
fn a_new_rule_is_in_force_before_an_old_one_goes() {
    let mut maps = FakeMaps::new(SIZES);
    let mut state = State::restore(&maps).unwrap();
    install(&mut state, &mut maps, &with(&[("old".to_owned(), rule(6))].into()), START);
    let ops = state.plan(&maps, &with(&[("new".to_owned(), rule(6))].into()), &super::hops(), START).unwrap();
    ops.iter().for_each(|op| maps.apply(op).unwrap());
    assert_eq!(seen(&maps).len(), 2);
    state.plan_prune(START).iter().for_each(|op| maps.apply(op).unwrap());
    assert_eq!(seen(&maps).into_keys().collect::<Vec<_>>(), ["new"]);
}

#[test]
fn no_rule_lies_where_packets_do_not_look() {
    let mut maps = FakeMaps::new(Sizes { filters: 1000, ..SIZES });
    let mut state = State::restore(&maps).unwrap();
    let filters = (0..300).map(|n| (format!("{n:03}"), rule(6))).collect();
    install(&mut state, &mut maps, &with(&filters), START);
    assert_eq!((state.filters().len(), maps.config.filters), (256, 256));
}

#[test]
fn a_name_that_cannot_be_kept_is_not_in_force() {
    let mut maps = FakeMaps::new(SIZES);
    let mut state = State::restore(&maps).unwrap();
    let names = ["", "a\0b", "good"].map(str::to_owned);
    let filters = names.into_iter().chain(["x".repeat(600)]).map(|name| (name, rule(6))).collect();
    install(&mut state, &mut maps, &with(&filters), START);
    assert_eq!(state.filters().into_iter().collect::<Vec<_>>(), ["good"]);
}
