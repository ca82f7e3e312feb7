//! Loads the kernel program with its maps and attaches it: everything pinned, so that it outlives this process, and
//! everything adopted that a process before has pinned.
use crate::{
    OBJECT,
    bpffs::PinDir,
    error::DatapathError,
    maps::{
        MapError, Sizes,
        kernel::{KernelMaps, Name, make_names},
        raw,
    },
};
use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, MapInfo, MapType},
    programs::{
        ProgramError, Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        xdp::XdpLink,
    },
};
use lb_bpf_common::{
    Backend, Config, Counter, DecapKey, FlowEntry, FlowKey, ReverseEntry, Slot, Verdict, Vip, VipKey, map,
    program,
};
use std::{collections::BTreeMap, io};

/// A link's pin is this and the interface's name.
const LINK: &str = "link-";

/// The one map that the kernel program does not have.
const NAMES: &str = "names";

/// What a map must look like, lest the kernel program and this one misread each other.
struct Shape {
    name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    entries: fn(&Sizes) -> u32,
    /// Only counts are lost if it is made anew.
    counts: bool,
}

const SHAPES: [Shape; 10] = [
    hash::<VipKey, Vip>(map::VIPS, |sizes| sizes.vips),
    array::<Slot>(map::SLOTS, |sizes| sizes.slots),
    array::<Backend>(map::BACKENDS, |sizes| sizes.backends),
    hash::<FlowKey, FlowEntry>(map::FLOWS, |sizes| sizes.flows),
    hash::<FlowKey, ReverseEntry>(map::REVERSE, |sizes| sizes.flows),
    hash::<DecapKey, u32>(map::DECAP, |sizes| sizes.decap),
    hash::<u32, Name>(NAMES, |sizes| sizes.vips),
    array::<Config>(map::CONFIG, |_| 1),
    counters(map::BACKEND_COUNTERS, |sizes| sizes.backends),
    counters(map::VERDICT_COUNTERS, |_| Verdict::ALL.len() as u32),
];

const fn hash<K, V>(name: &'static str, entries: fn(&Sizes) -> u32) -> Shape {
    let kind = MapType::Hash;
    Shape { name, kind, key: size_of::<K>(), value: size_of::<V>(), entries, counts: false }
}

const fn array<V>(name: &'static str, entries: fn(&Sizes) -> u32) -> Shape {
    Shape { name, kind: MapType::Array, key: 4, value: size_of::<V>(), entries, counts: false }
}

const fn counters(name: &'static str, entries: fn(&Sizes) -> u32) -> Shape {
    Shape { name, kind: MapType::PerCpuArray, key: 4, value: size_of::<Counter>(), entries, counts: true }
}

/// The loaded program and its maps.
pub(crate) struct Loaded {
    pub(crate) maps: KernelMaps,
    object: Ebpf,
    pins: PinDir,
    /// Indexes of the interfaces that it is attached to, by name.
    attached: BTreeMap<String, u32>,
}

impl Loaded {
    /// Loads the program. Maps that are pinned are adopted with the sizes they have.
    pub(crate) fn load(pins: PinDir, sizes: Sizes) -> Result<Self, DatapathError> {
        lift_memlock_limit();
        let sizes = adopt(&pins, sizes)?;
        let paths: Vec<_> = SHAPES.iter().map(|shape| (shape.name, pins.pin(shape.name))).collect();
        let mut loader = EbpfLoader::new();
        for (shape, (name, path)) in SHAPES.iter().zip(&paths) {
            loader.map_max_entries(name, (shape.entries)(&sizes)).map_pin_path(name, path.as_path());
        }
        let mut object = loader.load(OBJECT).map_err(|error| permitted(error, DatapathError::Load))?;
        let program = datapath(&mut object)?;
        program.load().map_err(|error| permitted(error, DatapathError::Program))?;
        let names = pins.pin(NAMES);
        if !names.exists() {
            make_names(NAMES, sizes.vips, &names)?;
        }
        let maps = open_maps(&pins)?;
        Ok(Loaded { maps, object, pins, attached: BTreeMap::new() })
    }

    /// The same maps once more, for who reads them beside this.
    pub(crate) fn open_again(&self) -> Result<KernelMaps, MapError> {
        open_maps(&self.pins)
    }

    /// Attaches to exactly these interfaces: by replacing the program atomically where the process before was
    /// attached, and with the driver's mode if it has one.
    pub(crate) fn attach(&mut self, interfaces: &[String]) -> Result<(), DatapathError> {
        for name in self.pins.names()? {
            let is_wanted =
                |interface: &String| self.pins.pin(&format!("{LINK}{interface}")).ends_with(&name);
            if name.starts_with(LINK) && !interfaces.iter().any(is_wanted) {
                tracing::info!(link = name, "detaching from an interface that is no longer configured");
                self.pins.unpin(&name)?;
            }
        }
        for interface in interfaces {
            self.attach_one(interface)?;
        }
        Ok(())
    }

    /// Attaches to interfaces that went and came back under their name since; whether there was one.
    pub(crate) fn attach_again(&mut self) -> Result<bool, DatapathError> {
        let index = |name: &String| nix::net::if_::if_nametoindex(name.as_str()).ok();
        let new =
            |(name, old): (&String, &u32)| index(name).is_some_and(|new| new != *old).then(|| name.clone());
        let back: Vec<String> = self.attached.iter().filter_map(new).collect();
        for interface in &back {
            tracing::warn!(interface, "the interface is another one now, attaching to it");
            self.attach_one(interface)?;
        }
        Ok(!back.is_empty())
    }

    fn attach_one(&mut self, interface: &str) -> Result<(), DatapathError> {
        let index = nix::net::if_::if_nametoindex(interface)
            .map_err(|_| DatapathError::NoInterface(interface.to_owned()))?;
        let pin = format!("{LINK}{interface}");
        let path = self.pins.pin(&pin);
        let failed = |error| attach_error(interface, error);
        self.attached.insert(interface.to_owned(), index);
        let program = datapath(&mut self.object)?;
        if let Ok(link) = PinnedLink::from_pin(&path) {
            let link = FdLink::from(link);
            // An interface that went and came again under its name is another one, and the link is dead.
            if is_on(&link, index) {
                let link =
                    XdpLink::try_from(link).map_err(|_| DatapathError::NoLinks(interface.to_owned()))?;
                program.attach_to_link(link).map_err(failed)?;
                return Ok(());
            }
            drop(link);
            self.pins.unpin(&pin)?;
        }
        let id = match program.attach(interface, XdpMode::Driver) {
            Err(error) if is_unsupported(&error) => {
                let reason = error_chain(&error);
                tracing::warn!(interface, reason, "no native XDP, falling back to generic");
                program.attach(interface, XdpMode::Skb)
            }
            result => result,
        }
        .map_err(failed)?;
        let link = program.take_link(id).map_err(failed)?;
        let link = FdLink::try_from(link).map_err(|_| DatapathError::NoLinks(interface.to_owned()))?;
        link.pin(&path).map_err(|error| DatapathError::PinDir { path, source: io::Error::other(error) })?;
        Ok(())
    }

    /// Detaches from all interfaces and removes all pins.
    pub(crate) fn remove(self) -> Result<(), DatapathError> {
        let Loaded { maps, object, pins, .. } = self;
        // Links first: no packet may meet the program without what it needs.
        let (links, others): (Vec<_>, Vec<_>) =
            pins.names()?.into_iter().partition(|name| name.starts_with(LINK));
        for name in links.into_iter().chain(others) {
            pins.unpin(&name)?;
        }
        drop((maps, object));
        pins.remove()
    }
}

fn datapath(object: &mut Ebpf) -> Result<&mut Xdp, DatapathError> {
    let program = object.program_mut(program::DATAPATH).ok_or(DatapathError::NoProgram(program::DATAPATH))?;
    program.try_into().map_err(DatapathError::Program)
}

fn open_maps(pins: &PinDir) -> Result<KernelMaps, MapError> {
    KernelMaps::new(|name| {
        MapData::from_pin(pins.pin(name))
            .map_err(|error| MapError::new(name, "open", io::Error::other(error)))
    })
}

/// Checks what is pinned; returns the sizes to load with: those of the pinned maps, where there are any.
fn adopt(pins: &PinDir, mut sizes: Sizes) -> Result<Sizes, DatapathError> {
    let pinned: BTreeMap<&str, MapInfo> = SHAPES
        .iter()
        .filter_map(|shape| Some((shape.name, MapInfo::from_pin(pins.pin(shape.name)).ok()?)))
        .collect();
    let size = |name: &str, size: &mut u32| {
        if let Some(info) = pinned.get(name).filter(|info| info.max_entries() != *size) {
            let (installed, asked) = (info.max_entries(), *size);
            tracing::warn!(map = name, installed, asked, "a pinned map keeps its size until it is detached");
            *size = installed;
        }
    };
    size(map::VIPS, &mut sizes.vips);
    size(map::SLOTS, &mut sizes.slots);
    size(map::BACKENDS, &mut sizes.backends);
    size(map::FLOWS, &mut sizes.flows);
    size(map::DECAP, &mut sizes.decap);
    for shape in &SHAPES {
        let Some(info) = pinned.get(shape.name) else { continue };
        let fits = info.map_type().ok() == Some(shape.kind)
            && info.key_size() as usize == shape.key
            && info.value_size() as usize == shape.value
            && info.max_entries() == (shape.entries)(&sizes);
        if !fits && shape.counts {
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

fn is_on(link: &FdLink, index: u32) -> bool {
    // aya gives no descriptor of a link, but the link's id, from which there is one.
    link.info().ok().and_then(|info| raw::link_ifindex(info.id()).ok()) == Some(index)
}

/// Before kernel 5.11 maps count as locked memory.
fn lift_memlock_limit() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the struct is valid for the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) } != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "cannot lift the limit of locked memory");
    }
}

fn is_unsupported(error: &ProgramError) -> bool {
    // Drivers say no in several ways: not at all, not with this MTU, not with these queues.
    !matches!(os_error(error), Some(libc::EBUSY | libc::EEXIST | libc::EPERM | libc::ENODEV))
}

fn attach_error(interface: &str, error: ProgramError) -> DatapathError {
    match os_error(&error) {
        Some(libc::EBUSY | libc::EEXIST) => DatapathError::InterfaceBusy(interface.to_owned()),
        Some(libc::EPERM) => DatapathError::NotPermitted(io::Error::from_raw_os_error(libc::EPERM)),
        _ => DatapathError::Attach { interface: interface.to_owned(), reason: error_chain(&error) },
    }
}

fn permitted<E: std::error::Error + 'static>(error: E, other: fn(E) -> DatapathError) -> DatapathError {
    match os_error(&error) {
        Some(code @ (libc::EPERM | libc::EACCES)) => {
            DatapathError::NotPermitted(io::Error::from_raw_os_error(code))
        }
        _ => other(error),
    }
}

/// The error number of the system call behind an error.
fn os_error(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && let Some(code) = error.raw_os_error()
        {
            return Some(code);
        }
        next = error.source();
    }
    None
}

fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        next = error.source();
    }
    text
}
