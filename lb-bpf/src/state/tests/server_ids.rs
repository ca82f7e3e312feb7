//! QUIC server IDs: whatever happens, they name the service's own backends, and all of them that may get packets.
use super::{
    super::State, SIZES, START, any_desired, desired, endpoint, frontend, hops, install, key, service,
};
use crate::{
    maps::{Maps, Op, Sizes, fake::FakeMaps},
    service::{Desired, Endpoint, Service, ServiceKey, Target},
};
use lb_bpf_common::{Addr, Backend, Mode, Vip, VipKey, proto};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// A service with server IDs of so many bytes.
fn quic(bytes: u8, backends: &[(u8, u16, bool)]) -> Service {
    let mut service = service(&[1], backends);
    service.rules.server_id_bytes = bytes;
    service
}

/// By service, length and ID, the backend that packets find.
pub(super) fn ids(maps: &FakeMaps) -> BTreeMap<(ServiceKey, u32, u64), (Endpoint, u8)> {
    let of = |(key, vip): (&VipKey, &Vip)| {
        let [bytes, service, high, low] = key.addr.0;
        let backend = maps.backends[vip.base as usize];
        assert_eq!(*vip, Vip { base: vip.base, ..Vip::default() });
        assert!(backend.mode != 0 && backend.service == service, "{key:?} names backend {}", vip.base);
        let id = u64::from(high) << 32 | u64::from(low);
        assert_eq!(backend.addr.server_id(bytes), Some(id), "{key:?} names {:?}", IpAddr::from(backend.addr));
        let named = (super::super::endpoint_of(&backend), backend.mode);
        ((maps.names[&service].clone(), bytes, id), named)
    };
    maps.vips.iter().filter(|(key, _)| key.proto == proto::SERVER_ID).map(of).collect()
}

/// The last bytes of the addresses of the backends that have IDs.
fn named(maps: &FakeMaps) -> Vec<u64> {
    ids(maps).into_keys().map(|(_, _, id)| id & 0xff).collect()
}

#[test]
fn ids_are_there_before_packets_look_for_them() {
    let mut maps = FakeMaps::new(SIZES);
    let mut state = State::restore(&maps).unwrap();
    let web =
        desired([("web", quic(2, &[(1, 1, true), (2, 1, true), (3, 1, true), (4, 0, true), (5, 1, false)]))]);
    let ops = install(&mut state, &mut maps, &web, START);
    let place = |wanted: &dyn Fn(&Op) -> bool| ops.iter().position(wanted).unwrap();
    let last_id = ops.len()
        - ops
            .iter()
            .rev()
            .position(|op| matches!(op, Op::SetVip(key, _) if key.proto == proto::SERVER_ID))
            .unwrap();
    assert!(place(&|op| matches!(op, Op::SetVip(key, _) if key.proto == proto::TCP)) >= last_id);
    assert!(place(&|op| matches!(op, Op::SetBackend(3, _))) < last_id);
    assert_eq!(named(&maps), [1, 2, 3], "those in the table");
    let flags = maps.vips[&super::super::vip_key(&frontend(1))].flags;
    assert_eq!(Vip::quic_bytes(flags), 2);
    assert_eq!(install(&mut state, &mut maps, &web, START), [], "nothing to do");
    let mut state = State::restore(&maps).unwrap();
    assert_eq!(install(&mut state, &mut maps, &web, START), [], "nor after a restart");

    // Other IDs: the new ones come before the flags, and the old ones go after them.
    let ops = install(&mut state, &mut maps, &desired([("web", quic(1, &[(1, 1, true)]))]), START);
    let kinds: Vec<_> = ops
        .iter()
        .filter_map(|op| match op {
            Op::SetVip(key, _) if key.proto == proto::SERVER_ID => Some("id"),
            Op::SetVip(..) => Some("frontend"),
            Op::RemoveVip(_) => Some("gone"),
            _ => None,
        })
        .collect();
    assert_eq!(kinds, ["id", "frontend", "gone", "gone", "gone"]);
    install(&mut state, &mut maps, &desired([("web", quic(0, &[(1, 1, true)]))]), START);
    assert_eq!(ids(&maps), BTreeMap::new());
}

#[test]
fn an_id_outlives_its_backend_as_long_as_that_drains() {
    for (backends, what) in
        [(&[(1, 1, true)][..], "removed"), (&[(1, 1, true), (2, 0, true)], "without weight")]
    {
        let mut maps = FakeMaps::new(SIZES);
        let mut state = State::restore(&maps).unwrap();
        let both = desired([("web", quic(1, &[(1, 1, true), (2, 1, true)]))]);
        install(&mut state, &mut maps, &both, START);
        install(&mut state, &mut maps, &desired([("web", quic(1, backends))]), START);
        let mut now = START;
        for second in 0..20 {
            assert_eq!(named(&maps), if second <= 10 { &[1, 2][..] } else { &[1] }, "{what}, {second} s");
            // A restart does not end it early, nor begins it again.
            if [5, 15].contains(&second) {
                let mut again = State::restore(&maps).unwrap();
                let mut copy = maps.clone();
                assert_eq!(install(&mut again, &mut copy, &desired([("web", quic(1, backends))]), now), []);
            }
            state.sweep(&mut maps, now).unwrap();
            now.0 += 1000;
        }
        assert_eq!(maps.backends().unwrap().len(), backends.len(), "{what}: its entry is free");
        // It is wanted again.
        install(&mut state, &mut maps, &both, now);
        assert_eq!(named(&maps), [1, 2], "{what}");
    }
}

#[test]
fn an_id_of_two_backends_is_nobodys() {
    let mut maps = FakeMaps::new(SIZES);
    let mut state = State::restore(&maps).unwrap();
    let mut web = quic(1, &[(1, 1, true), (2, 1, true)]);
    install(&mut state, &mut maps, &desired([("web", web.clone())]), START);
    assert_eq!(named(&maps), [1, 2]);
    let twin = Endpoint { port: 8081, ..endpoint(2) };
    web.backends.insert(twin, Target { weight: 1, up: true, here: false });
    install(&mut state, &mut maps, &desired([("web", web.clone())]), START);
    assert_eq!(named(&maps), [1]);
    web.backends.remove(&endpoint(2));
    install(&mut state, &mut maps, &desired([("web", web.clone())]), START);
    assert_eq!(ids(&maps)[&(key("web"), 1, 2)].0, twin, "what is declared comes before what drains");
    // Too short an address.
    web.rules.server_id_bytes = 5;
    install(&mut state, &mut maps, &desired([("web", web.clone())]), START);
    assert_eq!(named(&maps), [0; 0]);
    // Flows that are translated have entries.
    web.rules.server_id_bytes = 1;
    for mode in Mode::ALL {
        web.mode = mode;
        install(&mut state, &mut maps, &desired([("web", web.clone())]), START);
        assert_eq!(named(&maps).is_empty(), mode.is_translated(), "{mode:?}");
    }
}

#[test]
fn ids_that_do_not_fit_are_an_error_that_says_so() {
    let mut maps = FakeMaps::new(Sizes { vips: 8, ..SIZES });
    let mut state = State::restore(&maps).unwrap();
    let backends: Vec<_> = (1..=5).map(|n| (n, 1, true)).collect();
    let error = state.plan(&maps, &desired([("web", quic(1, &backends))]), &hops(), START).unwrap_err();
    assert_eq!(error.to_string(), "map vips is full: 7 more entries are needed, 6 are free");
    let mut state = State::restore(&maps).unwrap();
    install(&mut state, &mut maps, &desired([("web", quic(1, &backends[..4]))]), START);
    assert_eq!(named(&maps), [1, 2, 3, 4]);
}

#[derive(Clone, Debug)]
enum Step {
    Install(Desired),
    /// The process dies and comes back.
    Restart,
    /// Seconds go by, with a sweep in each.
    Wait(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any_desired().prop_map(Step::Install),
        1 => Just(Step::Restart),
        3 => (1..15_u8).prop_map(Step::Wait),
    ]
}

/// The declared backends that have a weight and an ID of their own.
fn wanted(desired: &Desired) -> BTreeMap<(ServiceKey, u32, u64), (Endpoint, u8)> {
    let mut wanted = BTreeMap::new();
    for (key, service) in desired.services.iter().filter(|(_, service)| !service.mode.is_translated()) {
        let bytes = u32::from(service.rules.server_id_bytes);
        for (endpoint, target) in &service.backends {
            if let (Some(id), 1..) = (Addr::from(endpoint.address).server_id(bytes), target.weight)
                && target.up
            {
                wanted.insert((key.clone(), bytes, id), (*endpoint, service.mode_of(target) as u8));
            }
        }
    }
    wanted
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn ids_name_the_backends_of_their_service(history in prop::collection::vec(step(), 1..20)) {
        let mut maps = FakeMaps::new(SIZES);
        let mut state = State::restore(&maps).unwrap();
        let (mut now, mut last) = (START, Desired::default());
        for step in history {
            match step {
                Step::Install(desired) => {
                    for op in state.plan(&maps, &desired, &hops(), now).unwrap() {
                        maps.apply(&op).unwrap();
                        ids(&maps);
                    }
                    for op in state.plan_prune(now) {
                        maps.apply(&op).unwrap();
                        ids(&maps);
                    }
                    last = desired;
                }
                Step::Restart => {
                    state = State::restore(&maps).unwrap();
                    install(&mut state, &mut maps, &last, now);
                }
                Step::Wait(seconds) => for _ in 0..seconds {
                    now.0 += 1000;
                    state.sweep(&mut maps, now).unwrap();
                    ids(&maps);
                },
            }
            let found = ids(&maps);
            for (key, backend) in wanted(&last) {
                prop_assert_eq!(found.get(&key), Some(&backend), "{:?}", key);
            }
            let lengths: BTreeSet<_> = last.services.iter().map(|(key, its)| {
                (key.clone(), if its.mode.is_translated() { 0 } else { u32::from(its.rules.server_id_bytes) })
            }).collect();
            for (name, bytes, _) in found.keys() {
                prop_assert!(lengths.contains(&(name.clone(), *bytes)), "{} bytes of {}", bytes, name);
            }
        }
        // In the end nothing is left.
        install(&mut state, &mut maps, &Desired::default(), now);
        for _ in 0..5 {
            now.0 += 1000;
            state.sweep(&mut maps, now).unwrap();
        }
        prop_assert!(maps.vips.is_empty());
        prop_assert_eq!(maps.backends().unwrap(), BTreeMap::<u32, Backend>::new());
    }
}
