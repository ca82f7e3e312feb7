//! The maps in the kernel. Frontends, tables and backends are memory that is shared with it; all else goes through
//! bpf(2).
use super::{
    Chunk, Cursor, Ended, MapError, Maps, NAME_LENGTH, Op, Sizes, raw,
    vip_index::{self, Unused, VipIndex},
};
use crate::service::ServiceKey;
use aya::maps::{
    Array, DevMapHash, HashMap, LpmTrie, Map, MapData, PerCpuArray, PerCpuHashMap, PerCpuValues, RingBuf,
    lpm_trie::Key, xdp::XdpMapError,
};
use lb_bpf_common::{
    Addr, Backend, Config, Counter, DecapKey, DropKey, Filter, FlowEntry, FlowKey, Marker, RangeKey,
    ReverseEntry, Slot, Tags, Verdict, Vip, VipKey, map, recent_lines,
};
use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::{SystemTime, UNIX_EPOCH},
};

/// Flag of an update (linux/bpf.h): only where there is no entry.
const BPF_NOEXIST: u64 = 1;
/// Flag of a hash map (linux/bpf.h): entries are allocated when they are made.
const BPF_F_NO_PREALLOC: u32 = 1;
/// Entries that one system call reads.
const BATCH: usize = 4096;
/// Words of 8 bytes in an entry of `backends`.
const WORDS: usize = size_of::<Backend>() / 8;

/// Value of `names` and `filter_names`: UTF-8, filled up with zeros.
pub(crate) type Name = [u8; NAME_LENGTH];
/// [`RangeKey`] as aya splits it: behind the length, service and address.
type Range = [u32; 5];

/// A type of the ABI, for aya: same layout, and aya's marker trait can be implemented for it.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plain<T>(pub(crate) T);

macro_rules! plain {
    ($($name:ty),*) => {
        $(
            // SAFETY: the ABI's types are `repr(C)`, without padding or pointers, and any bytes are a value.
            unsafe impl aya::Pod for Plain<$name> {}
        )*
    };
}
plain!(FlowKey, FlowEntry, ReverseEntry, DecapKey, Config, Counter, DropKey, Filter);

/// The maps of one datapath.
pub struct KernelMaps {
    sizes: Sizes,
    cpus: usize,
    memory: Memory,
    unused: Unused,
    names: HashMap<MapData, u32, Name>,
    decap: HashMap<MapData, Plain<DecapKey>, u32>,
    config: Array<MapData, Plain<Config>>,
    flows: HashMap<MapData, Plain<FlowKey>, Plain<FlowEntry>>,
    replies: HashMap<MapData, Plain<FlowKey>, Plain<ReverseEntry>>,
    backend_counters: PerCpuArray<MapData, Plain<Counter>>,
    verdict_counters: PerCpuArray<MapData, Plain<Counter>>,
    ranges: LpmTrie<MapData, Range, u32>,
    filters: Array<MapData, Plain<Filter>>,
    filter_names: HashMap<MapData, u32, Name>,
    filter_counters: PerCpuArray<MapData, Plain<Counter>>,
    service_drops: PerCpuHashMap<MapData, Plain<DropKey>, Plain<Counter>>,
    ports: DevMapHash<MapData>,
    events: MapData,
}

/// The maps that are memory. Clones are the same memory.
#[derive(Clone)]
struct Memory {
    vips: Arc<raw::Mapping>,
    vip_index: Arc<raw::Mapping>,
    slots: Arc<raw::Mapping>,
    backends: Arc<raw::Mapping>,
}

impl Memory {
    fn frontends(&self) -> VipIndex<'_, [AtomicU64]> {
        VipIndex { index: self.vip_index.words(), vips: self.vips.words() }
    }
}

impl KernelMaps {
    /// Takes the maps that `take` gives by name: those of [`map`], but for what only the kernel program uses
    /// (`fragments`, `icmp_limits`, `recent`), and `names` and `filter_names`. Tells the kernel programs how long
    /// `vip_index` and `recent` are, and which packets are marked by them.
    pub fn new(take: impl FnMut(&'static str) -> Result<MapData, MapError>) -> Result<Self, MapError> {
        Self::open(None, take)
    }

    /// The same maps once more, which `take` gives as before.
    pub(crate) fn again(
        &self,
        take: impl FnMut(&'static str) -> Result<MapData, MapError>,
    ) -> Result<Self, MapError> {
        Self::open(Some(self.memory.clone()), take)
    }

    fn open(
        memory: Option<Memory>,
        mut take: impl FnMut(&'static str) -> Result<MapData, MapError>,
    ) -> Result<Self, MapError> {
        let (vips, slots, backends) = (take("vips")?, take("slots")?, take("backends")?);
        let (flows, decap) = (take("flows")?, take("decap")?);
        let (ranges, filters, vip_index) = (take("ranges")?, take("filters")?, take("vip_index")?);
        let sizes = Sizes {
            vips: entries("vips", &vips)?,
            slots: entries("slots", &slots)?,
            backends: entries("backends", &backends)?,
            flows: entries("flows", &flows)?,
            decap: entries("decap", &decap)?,
            ranges: entries("ranges", &ranges)?,
            filters: entries("filters", &filters)?,
        };
        let words = entries("vip_index", &vip_index)?;
        if !words.is_power_of_two() {
            return Err(MapError::new("vip_index", "open", io::ErrorKind::InvalidData));
        }
        let map = |map: &'static str, data: &MapData, words: usize| {
            let mapping = raw::Mapping::new(data.fd().as_fd(), words);
            mapping.map(Arc::new).map_err(|error| MapError::new(map, "mmap", error))
        };
        let memory = match memory {
            Some(memory) => memory,
            None => Memory {
                vips: map("vips", &vips, sizes.vips as usize * vip_index::WORDS)?,
                vip_index: map("vip_index", &vip_index, words as usize)?,
                slots: map("slots", &slots, sizes.slots as usize)?,
                backends: map("backends", &backends, sizes.backends as usize * WORDS)?,
            },
        };
        let cpus =
            aya::util::nr_cpus().map_err(|(path, error)| MapError::new("backend_counters", path, error))?;
        let unused = memory.frontends().unused();
        let mut maps = KernelMaps {
            sizes,
            cpus,
            memory,
            unused,
            names: hash("names", take("names")?)?,
            decap: hash("decap", decap)?,
            flows: hash("flows", flows)?,
            replies: hash("reverse", take("reverse")?)?,
            config: array("config", take("config")?)?,
            backend_counters: per_cpu("backend_counters", take("backend_counters")?)?,
            verdict_counters: per_cpu("verdict_counters", take("verdict_counters")?)?,
            ranges: LpmTrie::try_from(Map::LpmTrie(ranges)).map_err(of("ranges", "open"))?,
            filters: array("filters", filters)?,
            filter_names: hash("filter_names", take("filter_names")?)?,
            filter_counters: per_cpu("filter_counters", take("filter_counters")?)?,
            service_drops: PerCpuHashMap::try_from(Map::PerCpuHashMap(take("service_drops")?))
                .map_err(of("service_drops", "open"))?,
            ports: DevMapHash::try_from(Map::DevMapHash(take("ports")?)).map_err(of("ports", "open"))?,
            events: take("events")?,
        };
        sign(take("mark")?)?;
        let config = maps.config()?;
        if (config.vip_mask, config.recent_mask) != (maps.vip_mask(), maps.recent_mask()) {
            maps.apply(&Op::SetConfig(config))?;
        }
        Ok(maps)
    }

    /// See [`Config::vip_mask`].
    fn vip_mask(&self) -> u32 {
        self.memory.vip_index.words().len() as u32 - 1
    }

    /// See [`Config::recent_mask`].
    const fn recent_mask(&self) -> u32 {
        recent_lines(self.sizes.flows) - 1
    }

    /// The map `events`, to be read from where the reader before stopped. It must be the only one.
    pub(crate) fn events(&self) -> Result<RingBuf<MapData>, MapError> {
        let fd = self.events.fd().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|error| MapError::new(map::EVENTS, "open", error))?;
        let data = MapData::from_fd(fd).map_err(of(map::EVENTS, "open"))?;
        RingBuf::try_from(Map::RingBuf(data)).map_err(of(map::EVENTS, "open"))
    }

    fn write_backend(&self, index: u32, backend: &Backend) -> Result<(), MapError> {
        /// Holds the rest of the interface's Ethernet address and the interface, 0 for "up the stack".
        const IFINDEX: usize = std::mem::offset_of!(Backend, ifindex) / 8;
        const IFINDEX_SHIFT: usize = std::mem::offset_of!(Backend, ifindex) % 8 * 8;
        let words = self.backend_words(index)?;
        let new = words_of(backend);
        let is_same_way = (4..=IFINDEX).all(|word| words[word].load(Relaxed) == new[word]);
        if !is_same_way {
            // No packet may see one half of an Ethernet address and one half of another.
            let ifindex_mask = !(u64::from(u32::MAX) << IFINDEX_SHIFT);
            words[IFINDEX].fetch_and(ifindex_mask, Release);
        }
        for (word, value) in
            words.iter().zip(new).enumerate().filter(|(word, _)| *word != IFINDEX).map(|(_, w)| w)
        {
            word.store(value, Release);
        }
        words[IFINDEX].store(new[IFINDEX], Release);
        Ok(())
    }

    fn free_filter(&mut self, index: u32) -> Result<(), MapError> {
        let filter = self.filters.get(&index, 0).map_err(of("filters", "lookup"))?;
        self.set_filter(index, &Filter { kind: 0, ..filter.0 })
    }

    fn set_filter(&mut self, index: u32, filter: &Filter) -> Result<(), MapError> {
        self.filters.set(index, Plain(*filter), 0).map_err(of("filters", "update"))
    }

    fn backend_words(&self, index: u32) -> Result<&[AtomicU64], MapError> {
        let at = index as usize * WORDS;
        self.memory.backends.words().get(at..at + WORDS).ok_or_else(|| outside("backends"))
    }

    fn slot_words(&self, base: u32, size: usize) -> Result<&[AtomicU64], MapError> {
        self.memory.slots.words().get(base as usize..base as usize + size).ok_or_else(|| outside("slots"))
    }
}

impl Maps for KernelMaps {
    fn sizes(&self) -> Sizes {
        self.sizes
    }

    fn vip(&self, key: &VipKey) -> Result<Option<Vip>, MapError> {
        Ok(self.memory.frontends().get(key))
    }

    fn backend(&self, index: u32) -> Result<Option<Backend>, MapError> {
        if index >= self.sizes.backends {
            return Ok(None);
        }
        let backend = copy(self.backend_words(index)?);
        Ok((backend.mode != 0).then_some(backend))
    }

    fn name(&self, id: u32) -> Result<Option<ServiceKey>, MapError> {
        get("names", &self.names, &id).map(|name| name.map(|name| ServiceKey(text(name).into())))
    }

    fn vips(&self) -> Result<BTreeMap<VipKey, Vip>, MapError> {
        Ok(self.memory.frontends().list())
    }

    fn learning(&self) -> Result<BTreeMap<VipKey, u32>, MapError> {
        Ok(self.memory.frontends().learning())
    }

    fn slots(&self, base: u32, size: u32) -> Result<Vec<Slot>, MapError> {
        let words = self.slot_words(base, size as usize)?;
        Ok(words.iter().map(|word| Slot::from_bits(word.load(Acquire))).collect())
    }

    fn backends(&self) -> Result<BTreeMap<u32, Backend>, MapError> {
        let entries = (0..).zip(self.memory.backends.words().chunks_exact(WORDS));
        let backends = entries.map(|(index, words)| (index, copy(words)));
        Ok(backends.filter(|(_, backend)| backend.mode != 0).collect())
    }

    fn names(&self) -> Result<BTreeMap<u32, ServiceKey>, MapError> {
        let all = texts("names", &self.names)?;
        Ok(all.map(|(id, name)| (id, ServiceKey(name.into()))).collect())
    }

    fn decap(&self) -> Result<BTreeMap<DecapKey, u32>, MapError> {
        let no_key = DecapKey { local: Addr::NONE, vip: Addr::NONE };
        let all = read_all("decap", fd(&self.decap), 1, (Plain(no_key), 0_u32))?;
        Ok(all.keys.into_iter().map(|key| key.0).zip(all.values).collect())
    }

    fn config(&self) -> Result<Config, MapError> {
        self.config.get(&0, 0).map(|config| config.0).map_err(of("config", "lookup"))
    }

    fn flows(&self, from: Cursor, limit: usize) -> Result<Chunk<FlowEntry>, MapError> {
        let zero = FlowEntry { backend: 0, slot: 0, seen: 0, nat_port: 0, state: 0 };
        chunk("flows", fd(&self.flows), from, limit, Plain(zero))
    }

    fn replies(&self, from: Cursor, limit: usize) -> Result<Chunk<ReverseEntry>, MapError> {
        let zero = ReverseEntry {
            client: Addr::NONE,
            vip: Addr::NONE,
            client_port: 0,
            vip_port: 0,
            ifindex: 0,
            seen: 0,
            next_hop: [0; 6],
            source_mac: [0; 6],
            tags: Tags::NONE,
        };
        chunk("reverse", fd(&self.replies), from, limit, Plain(zero))
    }

    fn flow(&self, key: &FlowKey) -> Result<Option<FlowEntry>, MapError> {
        get("flows", &self.flows, &Plain(*key)).map(|entry| entry.map(|entry| entry.0))
    }

    fn reply(&self, key: &FlowKey) -> Result<Option<ReverseEntry>, MapError> {
        get("reverse", &self.replies, &Plain(*key)).map(|entry| entry.map(|entry| entry.0))
    }

    fn backend_counters(&self, count: u32) -> Result<Vec<Counter>, MapError> {
        let count = count.min(self.sizes.backends) as usize;
        sums("backend_counters", fd(&self.backend_counters), count, self.cpus)
    }

    fn verdict_counters(&self) -> Result<Vec<Counter>, MapError> {
        sums("verdict_counters", fd(&self.verdict_counters), Verdict::ALL.len(), self.cpus)
    }

    fn ranges(&self) -> Result<BTreeMap<RangeKey, bool>, MapError> {
        let range = |entry: Result<(Key<Range>, u32), aya::maps::MapError>| {
            let (key, is_let_in) = entry.map_err(of("ranges", "lookup"))?;
            let [service, a, b, c, d] = key.data();
            Ok((RangeKey { bits: key.prefix_len(), service, addr: Addr([a, b, c, d]) }, is_let_in != 0))
        };
        self.ranges.iter().map(range).collect()
    }

    fn lets_in(&self, service: u32, client: Addr) -> Result<Option<bool>, MapError> {
        let key = range_key(&RangeKey { bits: 160, service, addr: client });
        match self.ranges.get(&key, 0) {
            Ok(is_let_in) => Ok(Some(is_let_in != 0)),
            Err(aya::maps::MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(of("ranges", "lookup")(error)),
        }
    }

    fn filters(&self) -> Result<BTreeMap<u32, Filter>, MapError> {
        let all = read_all("filters", fd(&self.filters), 1, (0_u32, Plain(Filter::default())))?;
        let all = all.keys.into_iter().zip(all.values).map(|(index, filter)| (index, filter.0));
        Ok(all.filter(|(_, filter)| filter.kind != 0).collect())
    }

    fn filter_name(&self, index: u32) -> Result<Option<String>, MapError> {
        get("filter_names", &self.filter_names, &index).map(|name| name.map(text))
    }

    fn filter_names(&self) -> Result<BTreeMap<u32, String>, MapError> {
        texts("filter_names", &self.filter_names).map(Iterator::collect)
    }

    fn filter_counters(&self, count: u32) -> Result<Vec<Counter>, MapError> {
        let count = count.min(self.sizes.filters) as usize;
        sums("filter_counters", fd(&self.filter_counters), count, self.cpus)
    }

    fn service_drops(&self) -> Result<BTreeMap<DropKey, Counter>, MapError> {
        let zero = (Plain(DropKey { service: 0, verdict: 0 }), Plain(Counter::default()));
        let all = read_all("service_drops", fd(&self.service_drops), self.cpus, zero)?;
        let sums = all.values.chunks_exact(self.cpus).map(sum);
        Ok(all.keys.into_iter().map(|key| key.0).zip(sums).collect())
    }

    fn ports(&self) -> Result<BTreeSet<u32>, MapError> {
        self.ports.keys().collect::<Result<_, _>>().map_err(of("ports", "lookup"))
    }

    fn apply(&mut self, op: &Op) -> Result<(), MapError> {
        match op {
            Op::SetConfig(config) => {
                let config = Config { vip_mask: self.vip_mask(), recent_mask: self.recent_mask(), ..*config };
                self.config.set(0, Plain(config), 0).map_err(of("config", "update"))?;
            }
            Op::ResetCounters(index) => {
                reset("backend_counters", &mut self.backend_counters, *index, self.cpus)?
            }
            Op::SetBackend(index, backend) => self.write_backend(*index, backend)?,
            Op::FreeBackend(index) => {
                const MODE: usize = std::mem::offset_of!(Backend, mode) / 8;
                const MODE_SHIFT: usize = std::mem::offset_of!(Backend, mode) % 8 * 8;
                self.backend_words(*index)?[MODE].fetch_and(!(0xff << MODE_SHIFT), Release);
            }
            Op::WriteTable(base, slots) => {
                for (word, slot) in self.slot_words(*base, slots.len())?.iter().zip(slots.iter()) {
                    word.store(slot.to_bits(), Release);
                }
            }
            Op::SetPrevious(index, previous) => {
                let word = &self.slot_words(*index, 1)?[0];
                let slot = Slot::from_bits(word.load(Acquire));
                word.store(Slot { previous: *previous, ..slot }.to_bits(), Release);
            }
            Op::SetName(id, name) => {
                self.names.insert(id, bytes_of(&name.0), 0).map_err(of("names", "update"))?;
            }
            Op::RemoveName(id) => ignore_absent(self.names.remove(id), "names")?,
            Op::SetVip(key, vip) => {
                let frontends = self.memory.frontends();
                frontends.set(key, *vip, edition(), &mut self.unused)?;
            }
            Op::SetLearning(key, until) => {
                let frontends = self.memory.frontends();
                frontends.set_learning(key, *until);
            }
            Op::RemoveVip(key) => {
                let frontends = self.memory.frontends();
                frontends.remove(key, &mut self.unused);
            }
            Op::SetDecap(key, value) => {
                self.decap.insert(Plain(*key), *value, 0).map_err(of("decap", "update"))?;
            }
            Op::RemoveDecap(key) => ignore_absent(self.decap.remove(&Plain(*key)), "decap")?,
            Op::SetRange(key, is_let_in) => {
                let value = u32::from(*is_let_in);
                self.ranges.insert(&range_key(key), value, 0).map_err(of("ranges", "update"))?;
            }
            Op::RemoveRange(key) => ignore_absent(self.ranges.remove(&range_key(key)), "ranges")?,
            Op::SetFilter(index, filter) => {
                self.free_filter(*index)?;
                // All but what says that it is in use, and then that: the kernel copies byte by byte.
                for kind in [0, filter.kind] {
                    self.set_filter(*index, &Filter { kind, ..*filter })?;
                }
            }
            Op::FreeFilter(index) => self.free_filter(*index)?,
            Op::ResetFilterCounters(index) => {
                reset("filter_counters", &mut self.filter_counters, *index, self.cpus)?;
            }
            Op::SetFilterName(index, name) => {
                let bytes = bytes_of(name);
                self.filter_names.insert(index, bytes, 0).map_err(of("filter_names", "update"))?;
            }
            Op::RemoveFilterName(index) => ignore_absent(self.filter_names.remove(index), "filter_names")?,
            Op::RemoveDrops(keys) => {
                for key in keys {
                    ignore_absent(self.service_drops.remove(&Plain(*key)), "service_drops")?;
                }
            }
            Op::RemoveFlows(flows) => {
                for Ended { key, entry, reply } in flows {
                    let is_removed = remove_unchanged("flows", &mut self.flows, *key, *entry)?;
                    if let Some((key, reply)) = reply.filter(|_| is_removed) {
                        remove_unchanged("reverse", &mut self.replies, key, reply)?;
                    }
                }
            }
            Op::RemoveReplies(replies) => {
                for (key, reply) in replies {
                    remove_unchanged("reverse", &mut self.replies, *key, *reply)?;
                }
            }
            Op::SetPort(index) => match self.ports.insert(*index, *index, None, 0) {
                // It has gone meanwhile.
                Err(XdpMapError::MapError(aya::maps::MapError::SyscallError(error)))
                    if error.io_error.kind() == io::ErrorKind::InvalidInput => {}
                Err(XdpMapError::MapError(error)) => return Err(of("ports", "update")(error)),
                Err(error) => return Err(MapError::new("ports", "update", io::Error::other(error))),
                Ok(()) => {}
            },
            Op::RemovePort(index) => ignore_absent(self.ports.remove(*index), "ports")?,
        }
        Ok(())
    }
}

/// Makes a map of names (`names`, `filter_names`), which the kernel program does not have.
pub(crate) fn make_names(map: &'static str, entries: u32, pin: &Path) -> Result<(), MapError> {
    let names =
        HashMap::<MapData, u32, Name>::create(entries, BPF_F_NO_PREALLOC).map_err(of(map, "create"))?;
    let pinned = names.data().pin(pin);
    pinned.map_err(|error| MapError::new(map, "pin", io::Error::other(error)))
}

/// Says in the map `mark` which packets are marked by the kernel programs that have it.
fn sign(mark: MapData) -> Result<(), MapError> {
    let id = mark.info().map_err(of("mark", "info"))?.id();
    let mut mark: Array<_, [u32; 2]> = array("mark", mark)?;
    mark.set(0, Marker::datapath(id), 0).map_err(of("mark", "update"))
}

fn range_key(key: &RangeKey) -> Key<Range> {
    let [a, b, c, d] = key.addr.0;
    Key::new(key.bits, [key.service, a, b, c, d])
}

fn bytes_of(name: &str) -> Name {
    let mut bytes = [0; NAME_LENGTH];
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}

fn words_of(backend: &Backend) -> [u64; WORDS] {
    // SAFETY: same size, no padding (both asserted in the ABI), and any bytes are an array of numbers.
    unsafe { std::mem::transmute::<Backend, [u64; WORDS]>(*backend) }
}

fn backend_of(words: [u64; WORDS]) -> Backend {
    // SAFETY: same size, and any bytes are a `Backend`: all its fields are numbers.
    unsafe { std::mem::transmute::<[u64; WORDS], Backend>(words) }
}

/// Reads an entry of `backends` from its words.
fn copy(words: &[AtomicU64]) -> Backend {
    let mut copy = [0; WORDS];
    for (to, from) in copy.iter_mut().zip(words) {
        *to = from.load(Acquire);
    }
    backend_of(copy)
}

fn text(name: Name) -> String {
    let bytes = name.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

fn texts(
    map: &'static str,
    names: &HashMap<MapData, u32, Name>,
) -> Result<impl Iterator<Item = (u32, String)>, MapError> {
    let all = read_all(map, fd(names), 1, (0_u32, [0; NAME_LENGTH]))?;
    Ok(all.keys.into_iter().zip(all.values).map(|(id, name)| (id, text(name))))
}

fn fd<M: Borrow<MapData>>(map: &impl AsMapData<M>) -> BorrowedFd<'_> {
    map.data().fd().as_fd()
}

/// aya's typed maps, seen as what they wrap.
trait AsMapData<M> {
    fn data(&self) -> &MapData;
}

impl<K: aya::Pod, V: aya::Pod> AsMapData<MapData> for HashMap<MapData, K, V> {
    fn data(&self) -> &MapData {
        aya::maps::IterableMap::map(self)
    }
}

impl<K: aya::Pod, V: aya::Pod> AsMapData<MapData> for PerCpuHashMap<MapData, K, V> {
    fn data(&self) -> &MapData {
        aya::maps::IterableMap::map(self)
    }
}

impl<V: aya::Pod> AsMapData<MapData> for Array<MapData, V> {
    fn data(&self) -> &MapData {
        aya::maps::IterableMap::map(self)
    }
}

impl<V: aya::Pod> AsMapData<MapData> for PerCpuArray<MapData, V> {
    fn data(&self) -> &MapData {
        aya::maps::IterableMap::map(self)
    }
}

fn entries(map: &'static str, data: &MapData) -> Result<u32, MapError> {
    data.info().map(|info| info.max_entries()).map_err(of(map, "info"))
}

fn hash<K: aya::Pod, V: aya::Pod>(
    map: &'static str,
    data: MapData,
) -> Result<HashMap<MapData, K, V>, MapError> {
    HashMap::try_from(Map::HashMap(data)).map_err(of(map, "open"))
}

fn array<V: aya::Pod>(map: &'static str, data: MapData) -> Result<Array<MapData, V>, MapError> {
    Array::try_from(Map::Array(data)).map_err(of(map, "open"))
}

fn per_cpu<V: aya::Pod>(map: &'static str, data: MapData) -> Result<PerCpuArray<MapData, V>, MapError> {
    PerCpuArray::try_from(Map::PerCpuArray(data)).map_err(of(map, "open"))
}

fn read_all<K: aya::Pod, V: aya::Pod>(
    map: &'static str,
    fd: BorrowedFd<'_>,
    values_per_key: usize,
    zero: (K, V),
) -> Result<raw::Batch<K, V>, MapError> {
    let mut all = raw::Batch { keys: Vec::new(), values: Vec::new(), next: Some(0) };
    while let Some(from) = all.next {
        let batch = raw::lookup_batch(fd, from, BATCH, values_per_key, zero)
            .map_err(|error| MapError::new(map, "lookup", error))?;
        all.keys.extend(batch.keys);
        all.values.extend(batch.values);
        all.next = batch.next;
    }
    Ok(all)
}

/// Fills keys until they are read.
pub(crate) const NO_FLOW: FlowKey =
    FlowKey { src: Addr::NONE, dst: Addr::NONE, src_port: 0, dst_port: 0, proto: 0, scope: 0, zero: [0; 2] };

fn chunk<V>(
    map: &'static str,
    fd: BorrowedFd<'_>,
    from: Cursor,
    limit: usize,
    zero: Plain<V>,
) -> Result<Chunk<V>, MapError>
where
    Plain<V>: aya::Pod,
{
    let batch = raw::lookup_batch(fd, from, limit.min(BATCH), 1, (Plain(NO_FLOW), zero))
        .map_err(|error| MapError::new(map, "lookup", error))?;
    let entries = batch.keys.into_iter().zip(batch.values).map(|(key, value)| (key.0, value.0)).collect();
    Ok(Chunk { entries, next: batch.next })
}

fn get<K: aya::Pod, V: aya::Pod>(
    map: &'static str,
    hash: &HashMap<MapData, K, V>,
    key: &K,
) -> Result<Option<V>, MapError> {
    match hash.get(key, 0) {
        Ok(value) => Ok(Some(value)),
        Err(aya::maps::MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(of(map, "lookup")(error)),
    }
}

fn sums(map: &'static str, fd: BorrowedFd<'_>, count: usize, cpus: usize) -> Result<Vec<Counter>, MapError> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let zero = (0_u32, Plain(Counter::default()));
    let batch =
        raw::lookup_batch(fd, 0, count, cpus, zero).map_err(|error| MapError::new(map, "lookup", error))?;
    Ok(batch.values.chunks_exact(cpus).map(sum).collect())
}

fn sum(values: &[Plain<Counter>]) -> Counter {
    values.iter().fold(Counter::default(), |sum, one| Counter {
        packets: sum.packets + one.0.packets,
        bytes: sum.bytes + one.0.bytes,
        flows: sum.flows + one.0.flows,
        zero: 0,
    })
}

fn reset(
    map: &'static str,
    counters: &mut PerCpuArray<MapData, Plain<Counter>>,
    index: u32,
    cpus: usize,
) -> Result<(), MapError> {
    let zeros = PerCpuValues::try_from(vec![Plain(Counter::default()); cpus]);
    let zeros = zeros.map_err(|error| MapError::new(map, "reset", error))?;
    counters.set(index, zeros, 0).map_err(of(map, "update"))
}

/// Removes an entry of which packets may make something else at any time, if it is as it was judged. Whether it was
/// removed.
fn remove_unchanged<V: Copy + PartialEq>(
    map: &'static str,
    hash: &mut HashMap<MapData, Plain<FlowKey>, Plain<V>>,
    key: FlowKey,
    judged: V,
) -> Result<bool, MapError>
where
    Plain<V>: aya::Pod,
{
    let key = Plain(key);
    if get(map, hash, &key)?.is_none_or(|entry| entry.0 != judged) {
        return Ok(false);
    }
    let gone = raw::lookup_and_delete(fd(hash), &key, Plain(judged));
    match gone.map_err(|error| MapError::new(map, "delete", error))? {
        None => Ok(false),
        Some(entry) if entry.0 == judged => Ok(true),
        // A packet came between the two: it has its entry back, unless the next one has already made another.
        Some(entry) => {
            match hash.insert(key, entry, BPF_NOEXIST) {
                Err(aya::maps::MapError::SyscallError(error))
                    if error.io_error.kind() == io::ErrorKind::AlreadyExists => {}
                result => result.map_err(of(map, "update"))?,
            }
            Ok(false)
        }
    }
}

fn ignore_absent(result: Result<(), aya::maps::MapError>, map: &'static str) -> Result<(), MapError> {
    match result {
        Err(aya::maps::MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            Ok(())
        }
        Ok(()) | Err(aya::maps::MapError::KeyNotFound) => Ok(()),
        Err(error) => Err(of(map, "delete")(error)),
    }
}

fn outside(map: &'static str) -> MapError {
    MapError::new(map, "access", io::ErrorKind::InvalidInput)
}

fn of(map: &'static str, action: &'static str) -> impl FnOnce(aya::maps::MapError) -> MapError {
    move |error| match error {
        aya::maps::MapError::SyscallError(error) => MapError::new(map, action, error.io_error),
        error => MapError::new(map, action, io::Error::other(error)),
    }
}

/// A number that no frontend has had within the last hour: the microsecond.
fn edition() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros() as u32)
}

#[cfg(test)]
pub(crate) mod tests;
