//! A flow stays with its backend as long as that lives, whatever else changes.
use super::{
    super::{Now, State},
    START, any_desired, frontend, install,
    packets::{flow, named, send, slot},
};
use crate::{
    maps::{Maps, fake::FakeMaps},
    service::{Desired, Endpoint, Service, ServiceKey},
};
use lb_bpf_common::{Backend, FlowKey};
use proptest::prelude::*;
use std::collections::BTreeMap;

const DRAIN: u64 = 10;

#[derive(Clone, Debug)]
enum Step {
    /// Another desired set.
    Install(Desired),
    /// The process dies and comes back, which knows nothing but what the maps hold.
    Restart,
    /// Seconds go by; every flow sends in each of them.
    Wait(u8),
    /// New flows open.
    Open,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any_desired().prop_map(Step::Install),
        1 => Just(Step::Restart),
        3 => (1..15_u8).prop_map(Step::Wait),
        3 => Just(Step::Open),
    ]
}

/// What the history says about one flow.
struct Expected {
    service: ServiceKey,
    backend: (Endpoint, u8),
}

#[derive(Default)]
struct Model {
    desired: Desired,
    flows: BTreeMap<FlowKey, Expected>,
    /// When a backend of a service left the table while it was live.
    left: BTreeMap<(ServiceKey, Endpoint, u8), u64>,
    opened: u16,
}

impl Model {
    fn install(&mut self, desired: &Desired, now: Now) {
        let old = std::mem::replace(&mut self.desired, desired.clone());
        // Flows whose frontend went to nobody or another service are lost, and those whose backend died.
        self.flows.retain(|key, flow| {
            let Some(service) = desired.services.get(&flow.service) else { return false };
            // That gives the flows of all clients other slots.
            let is_affine = |desired: &Desired| desired.services[&flow.service].rules.client_affinity;
            if is_affine(&old) != is_affine(desired) {
                return false;
            }
            let target = service.backends.get(&flow.backend.0);
            service.frontends.iter().any(|f| lb_bpf_common::Addr::from(f.address) == key.dst)
                && target.is_none_or(|target| target.up)
        });
        for (name, service) in &old.services {
            for (endpoint, mode) in members(service) {
                self.left.entry((name.clone(), endpoint, mode)).or_insert(now.0);
            }
        }
        for (name, service) in &desired.services {
            for (endpoint, mode) in members(service) {
                self.left.remove(&(name.clone(), endpoint, mode));
            }
        }
    }

    fn open(&mut self, maps: &mut FakeMaps, now: Now) {
        for _ in 0..40 {
            self.opened += 1;
            let frontend = frontend((self.opened % 4) as u8 + 1);
            let key = flow(frontend, self.opened);
            let owner =
                self.desired.services.iter().find(|(_, service)| service.frontends.contains(&frontend));
            let (Some(backend), Some((name, _))) = (send(maps, &key, true, now), owner) else { continue };
            self.flows.insert(key, Expected { service: name.clone(), backend });
        }
    }

    /// Every flow sends a packet.
    fn send(&mut self, maps: &mut FakeMaps, now: Now) {
        let drained = |left: &u64| now.0 / 1000 >= left / 1000 + DRAIN;
        self.flows.retain(|key, flow| {
            let left = self.left.get(&(flow.service.clone(), flow.backend.0, flow.backend.1));
            if left.is_some_and(drained) {
                return false;
            }
            assert_eq!(send(maps, key, false, now), Some(flow.backend), "flow {key:?} of {}", flow.service);
            true
        });
    }
}

/// The backends in the table of a service, and how packets reach them.
fn members(service: &Service) -> impl Iterator<Item = (Endpoint, u8)> {
    let members = service.backends.iter().filter(|(_, target)| target.up && target.weight > 0);
    members.map(|(endpoint, target)| (*endpoint, service.mode_of(target) as u8))
}

/// No slot names a backend that is free.
fn check_references(maps: &FakeMaps) {
    for (key, vip) in &maps.vips {
        for slot in maps.slots(vip.base, vip.size).unwrap() {
            let waiting = super::super::dirt::waiting(&slot).unwrap_or(0);
            for index in [slot.current, waiting].into_iter().filter(|index| *index != 0) {
                let Backend { mode, service, .. } = maps.backends[index as usize];
                assert!(mode != 0 && service == vip.service, "{key:?} names backend {index}");
            }
        }
    }
}

/// A host that has nothing yet gets the services one by one, the last one first.
fn new_host(desired: &Desired, now: Now) -> FakeMaps {
    let mut maps = FakeMaps::new(super::SIZES);
    let mut state = State::restore(&maps).unwrap();
    let mut some = Desired::default();
    for (key, service) in desired.services.iter().rev() {
        some.services.insert(key.clone(), service.clone());
        install(&mut state, &mut maps, &some, now);
    }
    maps
}

/// Flows of clean slots have the same backend on both hosts.
fn check_agreement(maps: &FakeMaps, other: &FakeMaps) {
    let mut clean = 0;
    for n in 0..200_u16 {
        let key = flow(frontend((n % 4) as u8 + 1), n);
        let (Some((_, here)), there) = (slot(maps, &key), slot(other, &key)) else { continue };
        let backend =
            |maps: &FakeMaps, index: u32| (index != 0).then(|| named(maps.backends[index as usize]));
        if here.previous == 0 {
            clean += 1;
            let there = there.and_then(|(_, there)| backend(other, there.current));
            assert_eq!(backend(maps, here.current), there, "{key:?}");
        }
    }
    assert!(clean > 0 || other.vips.values().all(|vip| vip.size == 0) || maps.vips.is_empty() || dirty(maps));
}

fn dirty(maps: &FakeMaps) -> bool {
    maps.slots.iter().any(|slot| slot.previous != 0)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn flows_stay_with_live_backends(first in any_desired(), steps in prop::collection::vec(step(), 1..14)) {
        let mut maps = FakeMaps::new(super::SIZES);
        let mut state = State::restore(&maps).unwrap();
        let (mut model, mut now) = (Model::default(), START);
        for step in [Step::Install(first), Step::Open].into_iter().chain(steps) {
            match step {
                Step::Install(desired) => {
                    install(&mut state, &mut maps, &desired, now);
                    model.install(&desired, now);
                    check_agreement(&maps, &new_host(&desired, now));
                }
                Step::Restart => {
                    state = State::restore(&maps).unwrap();
                    let ops = install(&mut state, &mut maps, &model.desired, now);
                    prop_assert_eq!(ops, [], "what is right is left alone");
                }
                Step::Wait(seconds) => {
                    for _ in 0..seconds {
                        now.0 += 1000;
                        state.sweep(&mut maps, now).unwrap();
                        model.send(&mut maps, now);
                    }
                }
                Step::Open => model.open(&mut maps, now),
            }
            check_references(&maps);
            model.send(&mut maps, now);
        }
        // When nobody sends any more, all tracking ends.
        for _ in 0..20 {
            now.0 += 100_000;
            state.sweep(&mut maps, now).unwrap();
        }
        now.0 += 10_000_000;
        for _ in 0..6 {
            now.0 += 2_000;
            state.sweep(&mut maps, now).unwrap();
        }
        prop_assert_eq!(&maps.flows, &BTreeMap::new());
        for (_, vip) in maps.vips.clone() {
            prop_assert!(maps.slots(vip.base, vip.size).unwrap().iter().all(|slot| slot.previous == 0));
        }
        let declared: usize = model.desired.services.values().map(|service| service.backends.len()).sum();
        prop_assert_eq!(maps.backends().unwrap().len(), declared);
    }
}
