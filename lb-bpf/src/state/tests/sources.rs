//! Who is let in: the entries of the map against the plain rule, also between any two operations.
use super::{
    super::{State, plan::PlanError, vip_key},
    SIZES, START, desired, frontend, hops, install, key, service,
};
use crate::{
    maps::{Maps, Op, Sizes, fake::FakeMaps},
    service::{Desired, Rules},
};
use ipnet::IpNet;
use lb_bpf_common::Vip;
use proptest::prelude::*;
use std::{collections::BTreeSet, net::IpAddr};

const NETS: [&str; 12] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.3/32",
    "192.168.0.0/16",
    "::/0",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "2001:db8:1::1/128",
    "::/64",
    "::ffff:10.1.0.0/112",
];
const CLIENTS: [&str; 10] = [
    "10.0.0.1",
    "10.1.0.1",
    "10.1.2.1",
    "10.1.2.3",
    "192.168.9.9",
    "198.51.100.1",
    "2001:db8::1",
    "2001:db8:1::1",
    "2001:db8:1::2",
    "2a00::1",
];

pub(super) fn any_rules() -> impl Strategy<Value = Rules> {
    let nets = |most| {
        let nets = NETS.map(|text| text.parse::<IpNet>().unwrap()).to_vec();
        prop::sample::subsequence(nets, 0..most).prop_map(|nets| nets.into_iter().collect::<BTreeSet<_>>())
    };
    (nets(5), nets(4)).prop_map(|(allow, deny)| Rules { allow, deny, ..Rules::default() })
}

/// The plain rule: deny wins; else the client must be allowed, if anybody of its family is.
fn is_let_in(rules: &Rules, client: IpAddr) -> bool {
    let plain = |net: &IpNet| {
        let is_mapped = net.to_string() == NETS[11];
        if is_mapped { "10.1.0.0/16".parse().unwrap() } else { *net }
    };
    let named = |nets: &BTreeSet<IpNet>| nets.iter().any(|net| plain(net).contains(&client));
    let is_exclusive = rules.allow.iter().any(|net| plain(net).addr().is_ipv4() == client.is_ipv4());
    !named(&rules.deny) && (named(&rules.allow) || !is_exclusive)
}

/// What the kernel program does.
fn packet_is_let_in(maps: &FakeMaps, client: IpAddr) -> bool {
    let vip = maps.vips[&vip_key(&frontend(1))];
    let answer = || maps.lets_in(vip.service, client.into()).unwrap().expect("there is an entry for all");
    vip.flags & Vip::RANGES == 0 || answer()
}

fn with(rules: &Rules) -> Desired {
    let mut web = service(&[1], &[(1, 1, true)]);
    web.rules = rules.clone();
    desired([("other", service(&[2], &[(2, 1, true)])), ("web", web)])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_client_finds_what_held_before_or_what_shall_hold(history in prop::collection::vec(any_rules(), 1..5)) {
        let mut maps = FakeMaps::new(SIZES);
        let mut state = State::restore(&maps).unwrap();
        let mut before = Rules::default();
        install(&mut state, &mut maps, &with(&before), START);
        for rules in history {
            let desired = with(&rules);
            let ops = state.plan(&maps, &desired, &hops(), START).unwrap();
            for op in &ops {
                maps.apply(op).unwrap();
                for client in CLIENTS.map(|text| text.parse().unwrap()) {
                    let (old, new) = (is_let_in(&before, client), is_let_in(&rules, client));
                    let found = packet_is_let_in(&maps, client);
                    prop_assert!([old, new].contains(&found), "{client} after {op:?} of {ops:?}");
                }
            }
            for client in CLIENTS.map(|text| text.parse().unwrap()) {
                prop_assert_eq!(packet_is_let_in(&maps, client), is_let_in(&rules, client), "{}", client);
            }
            let mut again = State::restore(&maps).unwrap();
            prop_assert_eq!(install(&mut again, &mut maps, &desired, START), []);
            before = rules;
        }
        install(&mut state, &mut maps, &Desired::default(), START);
        prop_assert!(maps.ranges.is_empty());
    }
}

#[test]
fn a_service_that_leaves_keeps_its_ranges_as_long_as_its_frontends() {
    let mut maps = FakeMaps::new(SIZES);
    let mut state = State::restore(&maps).unwrap();
    let rules = Rules { deny: ["10.0.0.0/8".parse().unwrap()].into(), ..Rules::default() };
    install(&mut state, &mut maps, &with(&rules), START);
    assert_eq!(state.plan(&maps, &Desired::default(), &hops(), START).unwrap(), []);
    let ops = state.plan_prune(START);
    let last_vip = ops.iter().rposition(|op| matches!(op, Op::RemoveVip(_))).unwrap();
    let first_range = ops.iter().position(|op| matches!(op, Op::RemoveRange(_))).unwrap();
    assert!(last_vip < first_range, "{ops:?}");
}

#[test]
fn too_many_ranges_are_an_error() {
    let maps = FakeMaps::new(Sizes { ranges: 3, ..SIZES });
    let mut state = State::restore(&maps).unwrap();
    let rules = |nets: &[&str]| Rules {
        allow: nets.iter().map(|net| net.parse().unwrap()).collect(),
        ..Rules::default()
    };
    let error = state.plan(&maps, &with(&rules(&["10.0.0.0/8", "::/1"])), &hops(), START).unwrap_err();
    assert!(matches!(error, PlanError::Full { map: "ranges", needed: 4, available: 3 }), "{error}");
    let mut state = State::restore(&maps).unwrap();
    state.plan(&maps, &with(&rules(&["10.0.0.0/8"])), &hops(), START).unwrap();
    assert!(state.names.values().any(|name| *name == key("web")));
}
