//! The real programs in the real kernel, with small maps, fed by BPF_PROG_TEST_RUN. Nothing is attached or pinned.
use aya::{
    Ebpf, EbpfLoader, TestRun,
    maps::{
        Array, DevMapHash, HashMap, MapData, PerCpuArray, PerCpuHashMap, PerCpuValues,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{SchedClassifier, TestRunOptions, Xdp},
};
use lb_bpf::abi::{
    Backend, Config, Counter, DecapKey, DropKey, Filter, FlowEntry, FlowKey, FragmentEntry, FragmentKey,
    Frontend, Limit, MEMOS, Marker, Memo, RangeKey, ReverseEntry, Slot, Verdict, Vip, VipKey, VipWord, map,
    program, vip_hash,
};

/// XDP actions (linux/bpf.h).
pub(crate) const DROP: u32 = 1;
pub(crate) const PASS: u32 = 2;
pub(crate) const TX: u32 = 3;
pub(crate) const REDIRECT: u32 = 4;
/// No action of the kernel: passed up with a marker, so that TC sends it. The index of the interface is added.
pub(crate) const HANDED_OVER: u32 = 1 << 16;

/// An interface that there is not, so that XDP cannot redirect to it.
pub(crate) const ELSEWHERE: u32 = 777;
/// The datapath of the marks.
const DATAPATH: [u32; 2] = Marker::datapath(4711);

/// The interface that test packets come in on: the loopback interface of this namespace.
pub(crate) const INGRESS: u32 = 1;

/// Size of the smaller maps.
const ENTRIES: u32 = 32;
/// Size of `slots`.
pub(crate) const SLOTS: u32 = 96;
/// Lines of `recent`.
const RECENT: u32 = 16;
/// Words of `vip_index`.
const WORDS: u32 = 128;

/// A value of a map. The types of the ABI have no padding, and any bytes are a valid value of each.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct Plain<T>(pub(crate) T);

// SAFETY: see above; used with the types of the ABI only.
unsafe impl<T: Copy + 'static> aya::Pod for Plain<T> {}

/// What the maps hold before the first packet.
#[derive(Clone, Default)]
pub(crate) struct World {
    pub(crate) vips: Vec<(VipKey, Vip)>,
    pub(crate) slots: Vec<Slot>,
    /// From index 1 on.
    pub(crate) backends: Vec<Backend>,
    pub(crate) flows: Vec<(FlowKey, FlowEntry)>,
    pub(crate) reverse: Vec<(FlowKey, ReverseEntry)>,
    pub(crate) decap: Vec<(DecapKey, u32)>,
    pub(crate) ranges: Vec<(RangeKey, u32)>,
    /// From index 0 on.
    pub(crate) filters: Vec<Filter>,
    pub(crate) fragments: Vec<(FragmentKey, FragmentEntry)>,
    pub(crate) config: Config,
    /// Whether the rate of what is sent at a limited rate is used up.
    pub(crate) busy: bool,
    /// Size of `flows`; 0: room for all.
    pub(crate) max_flows: u32,
    /// Size of `reverse`; 0: room for all.
    pub(crate) max_reverse: u32,
}

/// The loaded program with its maps.
pub(crate) struct Rig {
    ebpf: Ebpf,
}

/// What became of a packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Result {
    pub(crate) action: u32,
    pub(crate) bytes: Vec<u8>,
}

/// Counters that are not 0: by verdict, and by index of the backend.
pub(crate) type Counted = (Vec<(Verdict, Counter)>, Vec<(u32, Counter)>);

/// What was passed up as `bytes`, if that begins with a marker.
fn handed_over(bytes: &[u8]) -> Option<Result> {
    let (marker, frame) = bytes.split_at_checked(size_of::<Marker>())?;
    let (words, rest) = marker.split_at(12);
    let words: Vec<u32> = words.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect();
    let [first, second, ifindex] = words.try_into().ok()?;
    if [first, second] != DATAPATH {
        return None;
    }
    assert_eq!(rest[2..], frame[6..12], "the source address");
    let tags = u16::from_ne_bytes([rest[0], rest[1]]);
    let in_frame =
        frame[12..].chunks(4).take_while(|tag| matches!(tag[..2], [0x81, 0] | [0x88, 0xa8])).count();
    assert_eq!(usize::from(tags), in_frame, "VLAN tags in {frame:x?}");
    Some(Result { action: HANDED_OVER + ifindex, bytes: frame.to_vec() })
}

impl Rig {
    /// Loads the object. The verifier takes its time, so a rig is used again: see [`Rig::fill`].
    pub(crate) fn load(max_flows: u32, max_reverse: u32) -> Self {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(map::VIPS, ENTRIES)
            .map_max_entries(map::SLOTS, SLOTS)
            .map_max_entries(map::BACKENDS, ENTRIES)
            .map_max_entries(map::BACKEND_COUNTERS, ENTRIES)
            .map_max_entries(map::FLOWS, max_flows)
            .map_max_entries(map::RECENT, RECENT)
            .map_max_entries(map::REVERSE, max_reverse)
            .map_max_entries(map::DECAP, ENTRIES)
            .map_max_entries(map::VIP_INDEX, WORDS)
            .map_max_entries(map::RANGES, ENTRIES)
            .map_max_entries(map::FILTERS, ENTRIES)
            .map_max_entries(map::FILTER_COUNTERS, ENTRIES)
            .load(lb_bpf::OBJECT)
            .expect("load the object (needs root)");
        let datapath: &mut Xdp = ebpf.program_mut(program::DATAPATH).unwrap().try_into().unwrap();
        datapath.load().expect("the verifier accepts the program");
        let mut rig = Rig { ebpf };
        rig.array(map::MARK).set(0, Plain(DATAPATH), 0).unwrap();
        rig
    }

    /// Makes the maps hold `world` and nothing else.
    pub(crate) fn fill(&mut self, world: &World) {
        self.fill_vips(&world.vips);
        self.replace(map::FLOWS, &world.flows);
        self.replace(map::REVERSE, &world.reverse);
        for index in 0..RECENT {
            self.array(map::RECENT).set(index, Plain([Memo::default(); MEMOS]), 0).unwrap();
        }
        self.replace(map::DECAP, &world.decap);
        for index in 0..SLOTS {
            let slot = world.slots.get(index as usize).copied().unwrap_or_default();
            self.set_slot(index, slot);
        }
        for index in 0..ENTRIES {
            let backend = (index as usize).checked_sub(1).and_then(|index| world.backends.get(index));
            let backend = backend.copied().unwrap_or_default();
            self.set_backend(index, backend);
            self.set_per_cpu(map::BACKEND_COUNTERS, index, Plain(Counter::default()));
        }
        for verdict in Verdict::ALL {
            self.set_per_cpu(map::VERDICT_COUNTERS, *verdict as u32, Plain(Counter::default()));
        }
        for index in 0..ENTRIES {
            let filter = world.filters.get(index as usize).copied().unwrap_or_default();
            self.array(map::FILTERS).set(index, Plain(filter), 0).unwrap();
            self.set_per_cpu(map::FILTER_COUNTERS, index, Plain(Counter::default()));
        }
        self.fill_ranges(&world.ranges);
        self.replace(map::FRAGMENTS, &world.fragments);
        self.clear_drops();
        let filters = world.filters.len() as u32;
        let config = Config { vip_mask: WORDS - 1, recent_mask: RECENT - 1, filters, ..world.config };
        self.array(map::CONFIG).set(0, Plain(config), 0).unwrap();
        let used = if world.busy { u64::MAX } else { 0 };
        for limit in [Limit::Echo, Limit::TooBig, Limit::TimeExceeded] {
            self.set_per_cpu(map::ICMP_LIMITS, limit as u32, Plain(used));
        }
    }

    /// As user space does it, in short.
    fn fill_vips(&mut self, vips: &[(VipKey, Vip)]) {
        let mut words = [VipWord::FREE; WORDS as usize];
        for (index, &(key, vip)) in (1..).zip(vips) {
            let hash = vip_hash(&key);
            let mut place = VipWord::place(hash, WORDS - 1);
            while words[place as usize] != VipWord::FREE {
                place = (place + 1) % WORDS;
            }
            words[place as usize] = VipWord::new(hash, index);
            let frontend = Frontend { key, zero: 0, vip, edition: 0, learns_until: 0, rest: [0; 4] };
            self.array(map::VIPS).set(index, Plain(frontend), 0).unwrap();
        }
        for (index, word) in (0..).zip(words) {
            self.array(map::VIP_INDEX).set(index, Plain(word), 0).unwrap();
        }
    }

    fn fill_ranges(&mut self, ranges: &[(RangeKey, u32)]) {
        let mut trie: LpmTrie<&mut MapData, [u32; 5], u32> =
            self.ebpf.map_mut(map::RANGES).unwrap().try_into().unwrap();
        for key in trie.keys().collect::<std::result::Result<Vec<_>, _>>().unwrap() {
            trie.remove(&key).unwrap();
        }
        for (key, allowed) in ranges {
            let [a, b, c, d] = key.addr.0;
            trie.insert(&Key::new(key.bits, [key.service, a, b, c, d]), allowed, 0).unwrap();
        }
    }

    fn clear_drops(&mut self) {
        let mut drops: PerCpuHashMap<&mut MapData, Plain<DropKey>, Plain<Counter>> =
            self.ebpf.map_mut(map::SERVICE_DROPS).unwrap().try_into().unwrap();
        for key in drops.keys().collect::<std::result::Result<Vec<_>, _>>().unwrap() {
            drops.remove(&key).unwrap();
        }
    }

    /// Packets of a service that were not sent on.
    pub(crate) fn drops(&self) -> Vec<(DropKey, u64)> {
        let drops: PerCpuHashMap<&MapData, Plain<DropKey>, Plain<Counter>> =
            self.ebpf.map(map::SERVICE_DROPS).unwrap().try_into().unwrap();
        let sum = |values: PerCpuValues<Plain<Counter>>| values.iter().map(|Plain(one)| one.packets).sum();
        drops.iter().map(|entry| entry.map(|(Plain(key), values)| (key, sum(values))).unwrap()).collect()
    }

    /// Packets that the filter at `index` matched.
    pub(crate) fn filtered(&self, index: u32) -> u64 {
        let counters: PerCpuArray<&MapData, Plain<Counter>> =
            self.ebpf.map(map::FILTER_COUNTERS).unwrap().try_into().unwrap();
        counters.get(&index, 0).unwrap().iter().map(|Plain(one)| one.packets).sum()
    }

    fn replace<K: Copy + 'static, V: Copy + 'static>(&mut self, name: &str, entries: &[(K, V)]) {
        let mut hash = self.hash::<K, V>(name);
        for key in hash.keys().collect::<std::result::Result<Vec<_>, _>>().unwrap() {
            hash.remove(&key).unwrap();
        }
        for &(key, value) in entries {
            hash.insert(Plain(key), Plain(value), 0).unwrap();
        }
    }

    fn set_per_cpu<T: Copy + 'static>(&mut self, name: &str, index: u32, value: Plain<T>) {
        let mut array: PerCpuArray<&mut MapData, Plain<T>> =
            self.ebpf.map_mut(name).unwrap().try_into().unwrap();
        let values = vec![value; aya::util::nr_cpus().unwrap()];
        array.set(index, PerCpuValues::try_from(values).unwrap(), 0).unwrap();
    }

    /// Runs one packet.
    pub(crate) fn run(&self, packet: &[u8]) -> Result {
        let datapath: &Xdp = self.ebpf.program(program::DATAPATH).unwrap().try_into().unwrap();
        let mut bytes = vec![0; 4096];
        let run = datapath
            .test_run(TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut bytes),
                ..TestRunOptions::new()
            })
            .unwrap();
        bytes.truncate(run.data_size_out as usize);
        handed_over(&bytes)
            .filter(|_| run.return_value == PASS)
            .unwrap_or(Result { action: run.return_value, bytes })
    }

    /// Runs one packet that has so many bytes of metadata in front of it; what becomes of it, without them.
    pub(crate) fn run_behind(&self, metadata: usize, packet: &[u8]) -> Result {
        let datapath: &Xdp = self.ebpf.program(program::DATAPATH).unwrap().try_into().unwrap();
        let packet = [&vec![0; metadata][..], packet].concat();
        let (mut bytes, mut context) = (vec![0; 4096], [0_u8; 24]);
        // The first of `struct xdp_md`: `data`, behind the metadata, and `data_end`.
        context[..4].copy_from_slice(&(metadata as u32).to_ne_bytes());
        context[4..8].copy_from_slice(&(packet.len() as u32).to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(&packet),
            data_out: Some(&mut bytes),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let run = datapath.test_run(options).unwrap();
        bytes.truncate(run.data_size_out as usize);
        Result { action: run.return_value, bytes: bytes.split_off(metadata) }
    }

    /// Lets XDP redirect to an interface itself.
    pub(crate) fn set_port(&mut self, ifindex: u32, takes: bool) {
        let mut ports: DevMapHash<&mut MapData> = self.ebpf.map_mut(map::PORTS).unwrap().try_into().unwrap();
        if takes {
            ports.insert(ifindex, ifindex, None, 0).unwrap();
        } else {
            ports.remove(ifindex).unwrap();
        }
    }

    /// Runs one packet through a program of TC.
    pub(crate) fn run_tc(&mut self, name: &str, packet: &[u8]) -> Result {
        let program: &mut SchedClassifier = self.ebpf.program_mut(name).unwrap().try_into().unwrap();
        if program.fd().is_err() {
            program.load().expect("the verifier accepts the program");
        }
        let mut bytes = vec![0; 4096];
        let options =
            TestRunOptions { data_in: Some(packet), data_out: Some(&mut bytes), ..TestRunOptions::new() };
        let run = program.test_run(options).unwrap();
        bytes.truncate(run.data_size_out as usize);
        Result { action: run.return_value, bytes }
    }

    /// Everything that was counted, summed over the CPUs.
    pub(crate) fn counted(&self) -> Counted {
        let nonzero = |name, count: u32| {
            let array: PerCpuArray<&MapData, Plain<Counter>> =
                self.ebpf.map(name).unwrap().try_into().unwrap();
            let sum = move |index| {
                array.get(&index, 0).unwrap().iter().fold(Counter::default(), |a, Plain(b)| Counter {
                    packets: a.packets + b.packets,
                    bytes: a.bytes + b.bytes,
                    flows: a.flows + b.flows,
                    zero: a.zero + b.zero,
                })
            };
            (0..count).map(move |index| (index, sum(index))).filter(|(_, sum)| *sum != Counter::default())
        };
        let verdicts = nonzero(map::VERDICT_COUNTERS, Verdict::ALL.len() as u32);
        let verdicts = verdicts.map(|(index, counter)| (Verdict::ALL[index as usize], counter)).collect();
        (verdicts, nonzero(map::BACKEND_COUNTERS, ENTRIES).collect())
    }

    /// The entry of a flow.
    pub(crate) fn flow(&mut self, key: &FlowKey) -> Option<FlowEntry> {
        let flows: HashMap<_, Plain<FlowKey>, Plain<FlowEntry>> = self.hash(map::FLOWS);
        flows.get(&Plain(*key), 0).ok().map(|Plain(entry)| entry)
    }

    /// All entries of `flows`.
    pub(crate) fn flows(&mut self) -> Vec<(FlowKey, FlowEntry)> {
        let flows: HashMap<_, Plain<FlowKey>, Plain<FlowEntry>> = self.hash(map::FLOWS);
        flows.iter().map(|entry| entry.map(|(Plain(key), Plain(value))| (key, value)).unwrap()).collect()
    }

    /// All entries of `reverse`.
    pub(crate) fn reverse(&mut self) -> Vec<(FlowKey, ReverseEntry)> {
        let reverse: HashMap<_, Plain<FlowKey>, Plain<ReverseEntry>> = self.hash(map::REVERSE);
        reverse.iter().map(|entry| entry.map(|(Plain(key), Plain(value))| (key, value)).unwrap()).collect()
    }

    /// Puts a flow's entry, or takes it away.
    pub(crate) fn set_flow(&mut self, key: &FlowKey, entry: Option<FlowEntry>) {
        let mut flows: HashMap<_, Plain<FlowKey>, Plain<FlowEntry>> = self.hash(map::FLOWS);
        match entry {
            Some(entry) => flows.insert(Plain(*key), Plain(entry), 0).unwrap(),
            None => flows.remove(&Plain(*key)).unwrap(),
        }
    }

    /// Takes an entry of `reverse` away.
    pub(crate) fn remove_reverse(&mut self, key: &FlowKey) {
        let mut reverse: HashMap<_, Plain<FlowKey>, Plain<ReverseEntry>> = self.hash(map::REVERSE);
        reverse.remove(&Plain(*key)).unwrap();
    }

    /// Replaces an entry of `reverse`.
    pub(crate) fn set_reverse(&mut self, key: &FlowKey, entry: ReverseEntry) {
        let mut reverse: HashMap<_, Plain<FlowKey>, Plain<ReverseEntry>> = self.hash(map::REVERSE);
        reverse.insert(Plain(*key), Plain(entry), 0).unwrap();
    }

    /// Replaces a backend.
    pub(crate) fn set_backend(&mut self, index: u32, backend: Backend) {
        self.array(map::BACKENDS).set(index, Plain(backend), 0).unwrap();
    }

    /// Gives all frontends another edition, as user space does with another table.
    pub(crate) fn renew(&mut self) {
        let mut vips = self.array::<Frontend>(map::VIPS);
        for index in 1..ENTRIES {
            let Plain(frontend) = vips.get(&index, 0).unwrap();
            let edition = frontend.edition + 1;
            vips.set(index, Plain(Frontend { edition, ..frontend }), 0).unwrap();
        }
    }

    /// Replaces a slot.
    pub(crate) fn set_slot(&mut self, index: u32, slot: Slot) {
        self.array(map::SLOTS).set(index, Plain(slot), 0).unwrap();
    }

    fn hash<K: Copy + 'static, V: Copy + 'static>(
        &mut self,
        name: &str,
    ) -> HashMap<&mut MapData, Plain<K>, Plain<V>> {
        self.ebpf.map_mut(name).unwrap().try_into().unwrap()
    }

    fn array<V: Copy + 'static>(&mut self, name: &str) -> Array<&mut MapData, Plain<V>> {
        self.ebpf.map_mut(name).unwrap().try_into().unwrap()
    }
}
