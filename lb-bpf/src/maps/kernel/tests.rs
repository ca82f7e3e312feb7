//! The maps in the kernel against those in memory: after the same operations they hold the same. Needs root.
use super::*;
use crate::maps::{dump::dump, fake::FakeMaps};
use lb_bpf_common::{Frontend, Mode, VipWord, proto};
use proptest::{prelude::*, sample::subsequence, strategy::ValueTree, test_runner::TestRunner};
use std::os::fd::OwnedFd;

const SIZES: Sizes =
    Sizes { vips: 8, slots: 256, backends: 16, flows: 512, decap: 16, ranges: 64, filters: 5 };
/// Flag of an array (linux/bpf.h).
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// The maps as the loader makes them, but not pinned.
fn kernel_maps() -> KernelMaps {
    kernel_maps_with(&new_ring())
}

/// A ring buffer.
pub(crate) fn new_ring() -> OwnedFd {
    raw::create_ring_buffer(1 << 16).unwrap()
}

/// Other maps with this ring buffer.
pub(crate) fn kernel_maps_with(ring: &OwnedFd) -> KernelMaps {
    let sizes = SIZES;
    KernelMaps::new(|name| {
        Ok(match name {
            "vips" => array_of::<[u64; size_of::<Frontend>() / 8]>(sizes.vips, BPF_F_MMAPABLE),
            "vip_index" => {
                array_of::<[u64; size_of::<VipWord>() / 8]>(vip_index::words(sizes.vips), BPF_F_MMAPABLE)
            }
            "slots" => array_of::<u64>(sizes.slots, BPF_F_MMAPABLE),
            "backends" => array_of::<[u64; WORDS]>(sizes.backends, BPF_F_MMAPABLE),
            "config" => array_of::<Plain<Config>>(1, 0),
            "filters" => array_of::<Plain<Filter>>(sizes.filters, 0),
            "flows" => hash_of::<Plain<FlowKey>, Plain<FlowEntry>>(sizes.flows),
            "reverse" => hash_of::<Plain<FlowKey>, Plain<ReverseEntry>>(sizes.flows),
            "decap" => hash_of::<Plain<DecapKey>, u32>(sizes.decap),
            "names" => hash_of::<u32, Name>(sizes.vips),
            "filter_names" => hash_of::<u32, Name>(sizes.filters),
            "backend_counters" => counters(sizes.backends),
            "verdict_counters" => counters(Verdict::ALL.len() as u32),
            "filter_counters" => counters(sizes.filters),
            "ranges" => {
                let map = LpmTrie::<MapData, Range, u32>::create(sizes.ranges, BPF_F_NO_PREALLOC).unwrap();
                again(aya::maps::IterableMap::map(&map))
            }
            "service_drops" => again(
                PerCpuHashMap::<MapData, Plain<DropKey>, Plain<Counter>>::create(16, BPF_F_NO_PREALLOC)
                    .unwrap()
                    .data(),
            ),
            "ports" => MapData::from_fd(raw::create_devmap_hash(4).unwrap()).unwrap(),
            "mark" => array_of::<[u32; 2]>(1, 0),
            "events" => MapData::from_fd(ring.try_clone().unwrap()).unwrap(),
            other => panic!("{other}"),
        })
    })
    .unwrap()
}

/// Puts a record into a ring buffer so many times.
pub(crate) fn put_into_ring(ring: &OwnedFd, record: &[u32], times: u32) {
    raw::put_into_ring(ring.as_fd(), record, times).unwrap();
}

fn array_of<V: aya::Pod>(entries: u32, flags: u32) -> MapData {
    again(Array::<MapData, V>::create(entries, flags).expect("make a map (needs root)").data())
}

fn hash_of<K: aya::Pod, V: aya::Pod>(entries: u32) -> MapData {
    again(HashMap::<MapData, K, V>::create(entries, BPF_F_NO_PREALLOC).unwrap().data())
}

fn counters(entries: u32) -> MapData {
    again(PerCpuArray::<MapData, Plain<Counter>>::create(entries, 0).unwrap().data())
}

/// The same map, not typed.
fn again(map: &MapData) -> MapData {
    let fd: OwnedFd = map.fd().as_fd().try_clone_to_owned().unwrap();
    MapData::from_fd(fd).unwrap()
}

fn addr(n: u8) -> Addr {
    Addr::from(std::net::IpAddr::from([10, 0, 0, n]))
}

fn flow(n: u16) -> FlowKey {
    FlowKey {
        src: addr(1),
        dst: addr(2),
        src_port: n,
        dst_port: 80,
        proto: proto::TCP,
        scope: 0,
        zero: [0; 2],
    }
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
        tags: Tags::one(7),
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
    let vip_key = (0..6_u8).prop_map(|n| VipKey { addr: addr(n), port: 80, proto: proto::TCP, scope: 0 });
    let vip = (1..4_u32, 0..3_u32).prop_map(|(service, n)| Vip { service, base: n * 50, size: 50, flags: 0 });
    let decap = (0..4_u8).prop_map(|n| DecapKey { local: addr(n), vip: addr(9) });
    let slot = (0..9_u32, 0..3_u32).prop_map(|(current, previous)| Slot { current, previous });
    let flows = subsequence((0..40_u16).collect::<Vec<_>>(), 0..12);
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
            .prop_map(|(base, slots)| Op::WriteTable(base, slots.into_iter().collect())),
        (0..256_u32, any::<u32>()).prop_map(|(index, previous)| Op::SetPrevious(index, previous)),
        (1..9_u32, "[a-z/é]{1,20}").prop_map(|(id, name)| Op::SetName(id, ServiceKey(name.into()))),
        (1..9_u32).prop_map(Op::RemoveName),
        (vip_key.clone(), vip).prop_map(|(key, vip)| Op::SetVip(key, vip)),
        (vip_key.clone(), 1..9_u32).prop_map(|(key, until)| Op::SetLearning(key, until)),
        vip_key.prop_map(Op::RemoveVip),
        (decap.clone(), 1..=2_u32).prop_map(|(key, value)| Op::SetDecap(key, value)),
        decap.prop_map(Op::RemoveDecap),
        (flows.clone(), any::<[bool; 3]>())
            .prop_map(|(flows, is)| { Op::RemoveFlows(flows.into_iter().map(|n| ended(n, is)).collect()) }),
        (flows, any::<bool>()).prop_map(|(flows, is_same)| {
            Op::RemoveReplies(flows.into_iter().map(|n| (flow(n), since(reply(n), is_same))).collect())
        }),
        (range_key(), any::<bool>()).prop_map(|(key, is_let_in)| Op::SetRange(key, is_let_in)),
        range_key().prop_map(Op::RemoveRange),
        (0..5_u32, filter()).prop_map(|(index, filter)| Op::SetFilter(index, filter)),
        (0..5_u32).prop_map(Op::FreeFilter),
        (0..5_u32).prop_map(Op::ResetFilterCounters),
        (0..5_u32, "[a-z/é]{1,20}").prop_map(|(index, name)| Op::SetFilterName(index, name)),
        (0..5_u32).prop_map(Op::RemoveFilterName),
        // The loopback interface, which every namespace has.
        Just(Op::SetPort(1)),
        Just(Op::RemovePort(1)),
    ]
}

/// A flow that was found so: with its way back or without, and meanwhile each of them is the same or not.
fn ended(n: u16, [is_same, has_reply, is_reply_same]: [bool; 3]) -> Ended {
    let entry = if is_same { entry(n) } else { FlowEntry { state: 77, ..entry(n) } };
    Ended { key: flow(n), entry, reply: has_reply.then(|| (flow(n), since(reply(n), is_reply_same))) }
}

fn since(reply: ReverseEntry, is_same: bool) -> ReverseEntry {
    if is_same { reply } else { ReverseEntry { seen: reply.seen.wrapping_add(1), ..reply } }
}

fn range_key() -> impl Strategy<Value = RangeKey> {
    let prefix = prop_oneof![Just((32, Addr::NONE)), Just((128, Addr::v4(0))), Just((152, addr(0)))];
    prop_oneof![prefix, (0..4_u8).prop_map(|n| (160, addr(n)))]
        .prop_flat_map(|(bits, addr)| (1..4_u32).prop_map(move |service| RangeKey { bits, service, addr }))
}

fn filter() -> impl Strategy<Value = Filter> {
    (0..4_u8, any::<u16>(), any::<u16>()).prop_map(|(n, kind, offset)| Filter {
        src: addr(n),
        offset,
        kind: kind | Filter::IN_USE,
        ..Filter::default()
    })
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
        let (done, wanted) = (kernel.apply(&op), fake.apply(&op));
        assert_eq!(
            done.map_err(|error| error.to_string()),
            wanted.map_err(|error| error.to_string()),
            "{op:?}"
        );
        assert_eq!(kernel.vips().unwrap(), fake.vips, "{op:?}");
        assert_eq!(kernel.learning().unwrap(), fake.learning, "{op:?}");
        assert_eq!(kernel.slots(0, SIZES.slots).unwrap(), fake.slots, "{op:?}");
        assert_eq!(kernel.backends().unwrap(), fake.backends().unwrap(), "{op:?}");
        assert_eq!(kernel.names().unwrap(), fake.names, "{op:?}");
        for n in 0..=SIZES.backends {
            assert_eq!(kernel.backend(n).unwrap(), fake.backend(n).unwrap(), "{op:?}: backend {n}");
            assert_eq!(kernel.name(n).unwrap(), fake.name(n).unwrap(), "{op:?}: name {n}");
            let key = VipKey { addr: addr(n as u8), port: 80, proto: proto::TCP, scope: 0 };
            assert_eq!(kernel.vip(&key).unwrap(), fake.vip(&key).unwrap(), "{op:?}: VIP {n}");
        }
        assert_eq!(kernel.decap().unwrap(), fake.decap, "{op:?}");
        assert_eq!(kernel.config().unwrap(), fake.config, "{op:?}");
        for limit in [1, 7, 1000] {
            assert_eq!(all(|from, limit| kernel.flows(from, limit), limit), fake.flows, "{op:?}");
            assert_eq!(all(|from, limit| kernel.replies(from, limit), limit), fake.replies, "{op:?}");
        }
        assert_eq!(kernel.ranges().unwrap(), fake.ranges, "{op:?}");
        for (service, n) in (1..4).flat_map(|service| (0..6).map(move |n| (service, n))) {
            let is_let_in = kernel.lets_in(service, addr(n)).unwrap();
            assert_eq!(is_let_in, fake.lets_in(service, addr(n)).unwrap(), "{op:?}: {service} {n}");
        }
        assert_eq!(kernel.filters().unwrap(), fake.filters().unwrap(), "{op:?}");
        assert_eq!(kernel.filter_names().unwrap(), fake.filter_names, "{op:?}");
        assert_eq!(kernel.flow(&flow(3)).unwrap(), fake.flow(&flow(3)).unwrap());
        assert_eq!(kernel.reply(&flow(3)).unwrap(), fake.reply(&flow(3)).unwrap());
        assert_eq!(dump(&kernel).unwrap(), dump(&fake).unwrap());
    }
}

#[test]
fn counters_are_summed_over_cpus_and_set_to_zero() {
    let mut kernel = kernel_maps();
    let one = Counter { packets: 2, bytes: 300, flows: 1, zero: 0 };
    let cpus = kernel.cpus;
    let on_all_cpus = || PerCpuValues::try_from(vec![Plain(one); cpus]).unwrap();
    let (first, second) = (on_all_cpus(), on_all_cpus());
    kernel.backend_counters.set(3, first, 0).unwrap();
    kernel.verdict_counters.set(Verdict::NoBackend as u32, second, 0).unwrap();
    let times = cpus as u64;
    let sum = Counter { packets: 2 * times, bytes: 300 * times, flows: times, zero: 0 };
    assert_eq!(kernel.backend_counters(4).unwrap()[3], sum);
    assert_eq!(kernel.backend_counters(4).unwrap()[2], Counter::default());
    assert_eq!(kernel.backend_counters(1000).unwrap().len(), SIZES.backends as usize);
    assert_eq!(kernel.verdict_counters().unwrap()[Verdict::NoBackend as usize], sum);
    kernel.apply(&Op::ResetCounters(3)).unwrap();
    assert_eq!(kernel.backend_counters(4).unwrap()[3], Counter::default());
    kernel.filter_counters.set(2, on_all_cpus(), 0).unwrap();
    assert_eq!(kernel.filter_counters(1000).unwrap()[2], sum);
    kernel.apply(&Op::ResetFilterCounters(2)).unwrap();
    assert_eq!(kernel.filter_counters(3).unwrap()[2], Counter::default());
    let keys = [1, 2, 3].map(|service| DropKey { service, verdict: Verdict::SourceDenied as u32 });
    for key in keys {
        kernel.service_drops.insert(Plain(key), on_all_cpus(), 0).unwrap();
    }
    assert_eq!(kernel.service_drops().unwrap(), keys.map(|key| (key, sum)).into());
    kernel.apply(&Op::RemoveDrops(vec![keys[0], keys[2], keys[0]])).unwrap();
    assert_eq!(kernel.service_drops().unwrap(), [(keys[1], sum)].into());
}

#[test]
fn what_lies_outside_is_refused() {
    let mut kernel = kernel_maps();
    assert!(kernel.slots(250, 7).is_err());
    assert!(kernel.apply(&Op::WriteTable(250, [Slot::default(); 7].into_iter().collect())).is_err());
    assert!(kernel.apply(&Op::SetPrevious(256, 0)).is_err());
    assert!(kernel.apply(&Op::SetBackend(16, Backend::default())).is_err());
    assert!(kernel.apply(&Op::SetFilter(5, Filter::default())).is_err());
}

/// A process that starts finds the frontends and the free entries as they are, and the length of the index in place.
#[test]
fn frontends_outlive_the_process() {
    let mut kernel = kernel_maps();
    let vip = |service| Vip { service, ..Vip::default() };
    let key = |n| VipKey { addr: addr(n), port: 80, proto: proto::TCP, scope: 0 };
    for n in 0..6 {
        kernel.apply(&Op::SetVip(key(n), vip(n.into()))).unwrap();
    }
    let error = kernel.apply(&Op::SetVip(key(6), vip(1))).unwrap_err();
    assert_eq!(error.to_string(), "map vips: insert: the map is full");
    kernel.apply(&Op::SetVip(key(5), vip(9))).expect("there is room to replace one");
    kernel.apply(&Op::SetConfig(Config { vip_mask: 1, ..Config::default() })).unwrap();
    assert_eq!(kernel.config().unwrap().vip_mask, 31);
    let before = kernel.vips().unwrap();
    assert_eq!((before.len(), before[&key(5)]), (6, vip(9)));
    kernel.unused = kernel.memory.frontends().unused();
    kernel.apply(&Op::RemoveVip(key(0))).unwrap();
    kernel.apply(&Op::SetVip(key(6), vip(1))).unwrap();
    assert_eq!(kernel.vips().unwrap().len(), 6);
}

#[test]
fn an_interface_that_is_gone_is_no_port() {
    let mut maps = kernel_maps();
    maps.apply(&Op::SetPort(1)).unwrap();
    maps.apply(&Op::SetPort(u32::MAX)).unwrap();
    assert_eq!(maps.ports().unwrap(), BTreeSet::from([1]));
    for index in [1, u32::MAX] {
        maps.apply(&Op::RemovePort(index)).unwrap();
    }
    assert_eq!(maps.ports().unwrap(), BTreeSet::new());
}

#[test]
fn datapaths_have_marks_of_their_own() {
    let make = || array_of::<[u32; 2]>(1, 0);
    let marks = [make(), make()].map(|map| {
        sign(again(&map)).unwrap();
        let read = || array::<[u32; 2]>("mark", again(&map)).unwrap().get(&0, 0).unwrap();
        let before = read();
        sign(again(&map)).unwrap();
        assert_eq!(read(), before, "it stays");
        (before, map)
    });
    assert_ne!(marks[0].0, marks[1].0);
}
