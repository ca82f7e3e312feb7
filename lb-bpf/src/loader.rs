//! Loads the kernel programs with their maps: everything pinned, so that it outlives this process, and everything
//! adopted that a process before has pinned, of this version or of another.
use crate::{
    OBJECT,
    attach::{self, Attachment, Programs},
    bpffs::{Before, PinDir, Pins},
    error::{DatapathError, permitted},
    interfaces::Interfaces,
    maps::{
        MapError, Sizes,
        kernel::{KernelMaps, Name, make_names},
        vip_index,
    },
    migrate, ports,
};
use aya::{
    EbpfLoader,
    maps::{MapData, MapInfo, MapType},
};
use lb_bpf_common::{
    ABI_VERSION, Backend, Config, Counter, DecapKey, DropKey, Filter, FlowEntry, FlowKey, FragmentEntry,
    FragmentKey, Frontend, RangeKey, ReverseEntry, Slot, Verdict, VipWord, map, recent_lines,
};
use std::{collections::BTreeMap, io};

/// The maps that the kernel programs do not have.
pub(crate) const NAMES: &str = "names";
const FILTER_NAMES: &str = "filter_names";

/// Entries of `fragments`: packets whose fragments are under way.
const FRAGMENTS: u32 = 8192;
/// Bytes of `events`.
const EVENTS: u32 = 256 << 10;

/// What a map must look like, lest the kernel programs and this one misread each other.
struct Shape {
    name: &'static str,
    kind: MapType,
    flags: u32,
    key: usize,
    value: usize,
    entries: fn(&Sizes) -> u32,
    /// Only counts or what is forgotten soon is lost if it is made anew.
    is_fleeting: bool,
}

/// Flags of maps (linux/bpf.h).
const NO_PREALLOC: u32 = 1;
const MMAPABLE: u32 = 1 << 10;
/// The kernel sets it itself for maps of devices.
const RDONLY_PROG: u32 = 1 << 7;

const SHAPES: [Shape; 20] = [
    array::<Frontend>(map::VIPS, MMAPABLE, |sizes| sizes.vips),
    array::<VipWord>(map::VIP_INDEX, MMAPABLE, |sizes| vip_index::words(sizes.vips)),
    array::<Slot>(map::SLOTS, MMAPABLE, |sizes| sizes.slots),
    array::<Backend>(map::BACKENDS, MMAPABLE, |sizes| sizes.backends),
    hash::<FlowKey, FlowEntry>(map::FLOWS, NO_PREALLOC, |sizes| sizes.flows),
    hash::<FlowKey, ReverseEntry>(map::REVERSE, NO_PREALLOC, |sizes| sizes.flows),
    hash::<DecapKey, u32>(map::DECAP, 0, |sizes| sizes.decap),
    hash::<u32, Name>(NAMES, NO_PREALLOC, |sizes| sizes.vips),
    array::<Config>(map::CONFIG, 0, |_| 1),
    Shape { kind: MapType::LpmTrie, ..hash::<RangeKey, u32>(map::RANGES, NO_PREALLOC, |sizes| sizes.ranges) },
    array::<Filter>(map::FILTERS, 0, |sizes| sizes.filters),
    hash::<u32, Name>(FILTER_NAMES, NO_PREALLOC, |sizes| sizes.filters),
    counters(map::BACKEND_COUNTERS, |sizes| sizes.backends),
    counters(map::VERDICT_COUNTERS, |_| Verdict::ALL.len() as u32),
    counters(map::FILTER_COUNTERS, |sizes| sizes.filters),
    Shape {
        kind: MapType::PerCpuHash,
        is_fleeting: true,
        ..hash::<DropKey, Counter>(map::SERVICE_DROPS, NO_PREALLOC, |sizes| sizes.vips.saturating_mul(2))
    },
    Shape {
        kind: MapType::LruHash,
        is_fleeting: true,
        ..hash::<FragmentKey, FragmentEntry>(map::FRAGMENTS, 0, |_| FRAGMENTS)
    },
    Shape {
        kind: MapType::DevMapHash,
        is_fleeting: true,
        ..hash::<u32, [u32; 2]>(map::PORTS, RDONLY_PROG, |_| ports::ROOM)
    },
    array::<[u32; 2]>(map::MARK, 0, |_| 1),
    Shape {
        name: map::EVENTS,
        kind: MapType::RingBuf,
        flags: 0,
        key: 0,
        value: 0,
        entries: |_| EVENTS,
        is_fleeting: true,
    },
];

const fn hash<K, V>(name: &'static str, flags: u32, entries: fn(&Sizes) -> u32) -> Shape {
    let kind = MapType::Hash;
    Shape { name, kind, flags, key: size_of::<K>(), value: size_of::<V>(), entries, is_fleeting: false }
}

const fn array<V>(name: &'static str, flags: u32, entries: fn(&Sizes) -> u32) -> Shape {
    let kind = MapType::Array;
    Shape { name, kind, flags, key: 4, value: size_of::<V>(), entries, is_fleeting: false }
}

const fn counters(name: &'static str, entries: fn(&Sizes) -> u32) -> Shape {
    let kind = MapType::PerCpuArray;
    Shape { name, kind, flags: 0, key: 4, value: size_of::<Counter>(), entries, is_fleeting: true }
}

/// The loaded programs and their maps.
pub(crate) struct Loaded {
    pub(crate) maps: KernelMaps,
    programs: Programs,
    pins: PinDir,
}

impl Loaded {
    /// Loads the programs. Maps that are pinned are adopted with the sizes they have.
    pub(crate) fn load(pins: PinDir, mut sizes: Sizes) -> Result<Self, DatapathError> {
        lift_memlock_limit();
        if !pins.is_complete() {
            begin_again(&pins)?;
        }
        let known = known(&pins);
        match (known, pins.before()) {
            (Some(before), _) => migrate::share(&pins, before, &mut sizes)?,
            (None, Some(before)) => tracing::warn!(
                installed = before.version,
                ours = ABI_VERSION,
                "cannot read the maps of another version, building them anew; it forwards until something is \
                 installed in them, then connections that only its maps know break"
            ),
            (None, None) => {}
        }
        let sizes = adopt(pins.own(), sizes)?;
        let paths: Vec<_> = SHAPES.iter().map(|shape| (shape.name, pins.pin(shape.name))).collect();
        let mut loader = EbpfLoader::new();
        for (shape, (name, path)) in SHAPES.iter().zip(&paths) {
            loader.map_max_entries(name, (shape.entries)(&sizes)).map_pin_path(name, path.as_path());
        }
        loader.map_max_entries(map::RECENT, recent_lines(sizes.flows));
        let before = pins.pin(map::REVERSE_BEFORE);
        if before.exists() {
            loader.map_pin_path(map::REVERSE_BEFORE, before.as_path());
        }
        let object = loader.load(OBJECT).map_err(|error| permitted(error, DatapathError::Load))?;
        let programs = Programs::load(object)?;
        for (name, entries) in [(NAMES, sizes.vips), (FILTER_NAMES, sizes.filters)] {
            let path = pins.pin(name);
            if !path.exists() {
                make_names(name, entries, &path)?;
            }
        }
        let mut maps = KernelMaps::new(open(pins.own()))?;
        if let Some(before) = known {
            migrate::convert(before, pins.own(), &mut maps)?;
        }
        Ok(Loaded { maps, programs, pins })
    }

    /// The same maps once more, for who reads them beside this.
    pub(crate) fn open_again(&self) -> Result<KernelMaps, MapError> {
        self.maps.again(open(self.pins.own()))
    }

    /// Whether another version forwards that this one cannot take over from before something is installed.
    pub(crate) fn is_behind(&self) -> bool {
        self.pins.before().is_some_and(|before| !migrate::is_known(before))
    }

    /// Attaches to exactly these interfaces, and takes the place of the version before.
    pub(crate) fn attach(&mut self, interfaces: &Interfaces) -> Result<(), DatapathError> {
        let Loaded { maps, programs, pins } = self;
        programs.attach(pins, interfaces)?;
        pins.commit()?;
        if let Some(replaced) = pins.replaced() {
            if migrate::is_known(replaced)
                && let Err(error) = migrate::finish(replaced, pins.own())
            {
                tracing::warn!(%error, "the newest connections of NAT services may break");
            }
            tracing::info!(version = replaced.version, "the programs of another version are replaced");
        }
        migrate::end(pins.own(), maps)?;
        pins.forget_replaced()
    }

    /// Attaches to interfaces that came since, or went and came back under their name, and forgets those that went for
    /// good; whether there was one.
    pub(crate) fn attach_again(&mut self, interfaces: &Interfaces) -> Result<bool, DatapathError> {
        self.programs.attach_again(self.pins.own(), interfaces)
    }

    /// How each interface is attached, by name.
    pub(crate) fn attached(&self) -> &BTreeMap<String, Attachment> {
        self.programs.attached()
    }

    /// Detaches from all interfaces and removes all pins.
    pub(crate) fn remove(self) -> Result<(), DatapathError> {
        let Loaded { maps, programs, pins } = self;
        for pins in pins.before().map(|before| &before.pins).into_iter().chain([pins.own()]) {
            attach::detach_all(pins)?;
        }
        drop((maps, programs));
        pins.remove()
    }
}

/// Opens maps by name.
fn open(pins: &Pins) -> impl FnMut(&'static str) -> Result<MapData, MapError> {
    |name| {
        MapData::from_pin(pins.pin(name))
            .map_err(|error| MapError::new(name, "open", io::Error::other(error)))
    }
}

/// Checks what is pinned; returns the sizes to load with: those of the pinned maps, where there are any.
fn adopt(pins: &Pins, mut sizes: Sizes) -> Result<Sizes, DatapathError> {
    let pinned: BTreeMap<&str, MapInfo> = SHAPES
        .iter()
        .filter_map(|shape| Some((shape.name, MapInfo::from_pin(pins.pin(shape.name)).ok()?)))
        .collect();
    let entries = |name: &str| pinned.get(name).map(MapInfo::max_entries);
    keep_size(map::VIPS, entries(map::VIPS), &mut sizes.vips);
    keep_size(map::SLOTS, entries(map::SLOTS), &mut sizes.slots);
    keep_size(map::BACKENDS, entries(map::BACKENDS), &mut sizes.backends);
    keep_size(map::FLOWS, entries(map::FLOWS), &mut sizes.flows);
    keep_size(map::DECAP, entries(map::DECAP), &mut sizes.decap);
    keep_size(map::RANGES, entries(map::RANGES), &mut sizes.ranges);
    keep_size(map::FILTERS, entries(map::FILTERS), &mut sizes.filters);
    for shape in &SHAPES {
        let Some(info) = pinned.get(shape.name) else { continue };
        let fits = info.map_type().ok() == Some(shape.kind)
            && info.map_flags() == shape.flags
            && info.key_size() as usize == shape.key
            && info.value_size() as usize == shape.value
            && info.max_entries() == (shape.entries)(&sizes);
        if !fits && shape.is_fleeting {
            tracing::warn!(
                map = shape.name,
                "a pinned map has another shape, making it anew: counts begin at 0"
            );
            pins.unpin(shape.name)?;
        } else if !fits {
            return Err(DatapathError::OtherShape { map: shape.name, path: pins.pin(shape.name) });
        }
    }
    Ok(sizes)
}

/// Forgets the maps that a process has made which did not come to an end with it; but where it is attached already, how
/// its programs know each other's marks, and the ways back that packets have found there meanwhile, stay.
fn begin_again(pins: &PinDir) -> Result<(), DatapathError> {
    for name in pins.own().names()? {
        let is_kept = name == map::MARK || name == map::REVERSE && known(pins).is_some();
        if !is_kept && !attach::is_attachment(&name) {
            pins.own().unpin(&name)?;
        }
    }
    Ok(())
}

/// The version before, if its maps can be taken over.
fn known(pins: &PinDir) -> Option<&Before> {
    pins.before().filter(|before| migrate::is_known(before))
}

/// A map that is there keeps its size.
pub(crate) fn keep_size(map: &str, installed: Option<u32>, size: &mut u32) {
    if let Some(installed) = installed.filter(|installed| *installed != *size) {
        tracing::warn!(map, installed, asked = *size, "a pinned map keeps its size until it is detached");
        *size = installed;
    }
}

/// Before kernel 5.11 maps count as locked memory.
fn lift_memlock_limit() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the struct is valid for the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) } != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "cannot lift the limit of locked memory");
    }
}
