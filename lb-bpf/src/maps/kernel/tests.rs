//! The maps in the kernel against those in memory: after the same operations they hold the same. Needs root.
use super::*;
use crate::{
    OBJECT,
    maps::{dump::dump, fake::FakeMaps},
};
use aya::EbpfLoader;
use lb_bpf_common::{Mode, Tags, map, proto};
use proptest::{prelude::*, sample::subsequence, strategy::ValueTree, test_runner::TestRunner};
use std::{fs, path::PathBuf, process};

const SIZES: Sizes = Sizes { vips: 32, slots: 256, backends: 16, flows: 512, decap: 16, ..Sizes::DEFAULT };

/// The object's maps, not pinned, but for `names`.
fn kernel_maps() -> KernelMaps {
    let mut object = EbpfLoader::new()
        .map_max_entries(map::VIPS, SIZES.vips)
        .map_max_entries(map::SLOTS, SIZES.slots)
        .map_max_entries(map::BACKENDS, SIZES.backends)
        .map_max_entries(map::BACKEND_COUNTERS, SIZES.backends)
        .map_max_entries(map::FLOWS, SIZES.flows)
        .map_max_entries(map::REVERSE, SIZES.flows)
        .map_max_entries(map::DECAP, SIZES.decap)
        .load(OBJECT)
        .expect("load the object (needs root)");
    let dir = PathBuf::from(format!("/sys/fs/bpf/fairlead-test-maps-{}", process::id()));
    let pins = crate::bpffs::PinDir::open(&dir).unwrap();
    make_names(SIZES.vips, &pins.pin("names")).unwrap();
    let maps = KernelMaps::new(|name| match name {
        "names" => Ok(MapData::from_pin(pins.pin(name)).unwrap()),
        _ => match object.take_map(name) {
            Some(
                aya::maps::Map::HashMap(data)
                | aya::maps::Map::Array(data)
                | aya::maps::Map::PerCpuArray(data),
            ) => Ok(data),
            other => panic!("{name}: {other:?}"),
        },
    });
    fs::remove_dir_all(&dir).unwrap();
    maps.unwrap()
}

fn addr(n: u8) -> Addr {
    Addr::from(std::net::IpAddr::from([10, 0, 0, n]))
}

fn flow(n: u16) -> FlowKey {
    FlowKey { src: addr(1), dst: addr(2), src_port: n, dst_port: 80, proto: proto::TCP, zero: [0; 3] }
}

fn entry(n: u16) -> FlowEntry {
    FlowEntry { backend: u32::from(n), slot: 3, seen: 4, nat_port: 5, state: 6 }
}

fn reply(n: u16) -> ReverseEntry {
    ReverseEntry {
        client: addr(3),
        vip: addr(4),
        client_port: n,
        vip_port: 2,
        ifindex: 3,
        seen: 4,
        next_hop: [5; 6],
        source_mac: [6; 6],
        tags: Tags::NONE,
    }
}

fn backend() -> impl Strategy<Value = Backend> {
    let macs = (any::<[u8; 6]>(), any::<[u8; 6]>());
    (macs, 0..4_u8, 0..3_u32, any::<(u16, bool, u16)>()).prop_map(|(macs, n, ifindex, (port, down, mtu))| {
        Backend {
            addr: addr(n),
            source: addr(n + 1),
            next_hop: macs.0,
            source_mac: macs.1,
            ifindex,
            port,
            mode: Mode::Ipip as u8,
            flags: u8::from(down),
            header_sum: u32::from(mtu) / 3,
            service: u32::from(n),
            mtu,
            vlan: 0,
        }
    })
}

fn op() -> impl Strategy<Value = Op> {
    let vip_key = (0..6_u8).prop_map(|n| VipKey { addr: addr(n), port: 80, proto: proto::TCP, zero: 0 });
    let vip = (1..4_u32, 0..3_u32).prop_map(|(service, n)| Vip { service, base: n * 50, size: 50, flags: 0 });
    let decap = (0..4_u8).prop_map(|n| DecapKey { local: addr(n), vip: addr(9) });
    let slot = (0..9_u32, 0..3_u32).prop_map(|(current, previous)| Slot { current, previous });
    let flows = subsequence((0..40_u16).map(flow).collect::<Vec<_>>(), 0..12);
    prop_oneof![
        (0..2_u32).prop_map(|flags| Op::SetConfig(Config {
            flags,
            nat_port_first: 1,
            nat_port_last: 9,
            ..Config::default()
        })),
        (0..16_u32).prop_map(Op::ResetCounters),
        (1..16_u32, backend()).prop_map(|(index, backend)| Op::SetBackend(index, backend)),
        (1..16_u32).prop_map(Op::FreeBackend),
        (0..200_u32, prop::collection::vec(slot, 1..50))
            .prop_map(|(base, slots)| Op::WriteTable(base, slots)),
        (0..256_u32, any::<u32>()).prop_map(|(index, previous)| Op::SetPrevious(index, previous)),
        (1..9_u32, "[a-z/é]{1,20}").prop_map(|(id, name)| Op::SetName(id, ServiceKey(name))),
        (1..9_u32).prop_map(Op::RemoveName),
        (vip_key.clone(), vip).prop_map(|(key, vip)| Op::SetVip(key, vip)),
        vip_key.prop_map(Op::RemoveVip),
        decap.clone().prop_map(Op::AddDecap),
        decap.prop_map(Op::RemoveDecap),
        flows.clone().prop_map(Op::RemoveFlows),
        flows.prop_map(Op::RemoveReplies),
    ]
}

fn all<V: Copy>(
    read: impl Fn(Cursor, usize) -> Result<Chunk<V>, MapError>,
    limit: usize,
) -> BTreeMap<FlowKey, V> {
    let (mut all, mut from) = (BTreeMap::new(), Some(0));
    while let Some(cursor) = from {
        let chunk = read(cursor, limit).unwrap();
        for (key, value) in chunk.entries {
            assert!(all.insert(key, value).is_none(), "{key:?} is seen twice");
        }
        from = chunk.next;
    }
    all
}

/// One history, so that the object is loaded once.
#[test]
fn the_kernel_holds_what_the_fake_holds() {
    let (mut kernel, mut fake) = (kernel_maps(), FakeMaps::new(SIZES));
    assert_eq!(kernel.sizes(), SIZES);
    let mut runner = TestRunner::deterministic();
    for step in 0..400 {
        if step % 20 == 0 {
            for n in 0..40 {
                kernel.flows.insert(Plain(flow(n)), Plain(entry(n)), 0).unwrap();
                kernel.replies.insert(Plain(flow(n)), Plain(reply(n)), 0).unwrap();
                fake.flows.insert(flow(n), entry(n));
                fake.replies.insert(flow(n), reply(n));
            }
        }
        let op = op().new_tree(&mut runner).unwrap().current();
        kernel.apply(&op).unwrap();
        fake.apply(&op).unwrap();
        assert_eq!(kernel.vips().unwrap(), fake.vips, "{op:?}");
        assert_eq!(kernel.slots(0, SIZES.slots).unwrap(), fake.slots, "{op:?}");
        assert_eq!(kernel.backends().unwrap(), fake.backends().unwrap(), "{op:?}");
        assert_eq!(kernel.names().unwrap(), fake.names, "{op:?}");
        for n in 0..=SIZES.backends {
            assert_eq!(kernel.backend(n).unwrap(), fake.backend(n).unwrap(), "{op:?}: backend {n}");
            assert_eq!(kernel.name(n).unwrap(), fake.name(n).unwrap(), "{op:?}: name {n}");
            let key = VipKey { addr: addr(n as u8), port: 80, proto: proto::TCP, zero: 0 };
            assert_eq!(kernel.vip(&key).unwrap(), fake.vip(&key).unwrap(), "{op:?}: VIP {n}");
        }
        assert_eq!(kernel.decap().unwrap(), fake.decap, "{op:?}");
        assert_eq!(kernel.config().unwrap(), fake.config, "{op:?}");
        for limit in [1, 7, 1000] {
            assert_eq!(all(|from, limit| kernel.flows(from, limit), limit), fake.flows, "{op:?}");
            assert_eq!(all(|from, limit| kernel.replies(from, limit), limit), fake.replies, "{op:?}");
        }
        assert_eq!(kernel.flow(&flow(3)).unwrap(), fake.flow(&flow(3)).unwrap());
        assert_eq!(kernel.reply(&flow(3)).unwrap(), fake.reply(&flow(3)).unwrap());
        assert_eq!(dump(&kernel).unwrap(), dump(&fake).unwrap());
    }
}

#[test]
fn counters_are_summed_over_cpus_and_set_to_zero() {
    let mut kernel = kernel_maps();
    let one = Counter { packets: 2, bytes: 300, flows: 1, zero: 0 };
    let on_all_cpus = || PerCpuValues::try_from(vec![Plain(one); kernel.cpus]).unwrap();
    let (first, second) = (on_all_cpus(), on_all_cpus());
    kernel.backend_counters.set(3, first, 0).unwrap();
    kernel.verdict_counters.set(Verdict::NoBackend as u32, second, 0).unwrap();
    let cpus = kernel.cpus as u64;
    let sum = Counter { packets: 2 * cpus, bytes: 300 * cpus, flows: cpus, zero: 0 };
    assert_eq!(kernel.backend_counters(4).unwrap()[3], sum);
    assert_eq!(kernel.backend_counters(4).unwrap()[2], Counter::default());
    assert_eq!(kernel.backend_counters(1000).unwrap().len(), SIZES.backends as usize);
    assert_eq!(kernel.verdict_counters().unwrap()[Verdict::NoBackend as usize], sum);
    kernel.apply(&Op::ResetCounters(3)).unwrap();
    assert_eq!(kernel.backend_counters(4).unwrap()[3], Counter::default());
}

#[test]
fn what_lies_outside_is_refused() {
    let mut kernel = kernel_maps();
    assert!(kernel.slots(250, 7).is_err());
    assert!(kernel.apply(&Op::WriteTable(250, vec![Slot::default(); 7])).is_err());
    assert!(kernel.apply(&Op::SetPrevious(256, 0)).is_err());
    assert!(kernel.apply(&Op::SetBackend(16, Backend::default())).is_err());
}
