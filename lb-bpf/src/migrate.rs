//! Takes the maps of the version before over. What is the same in both layouts gets a second name and is shared, so that
//! the programs of both versions see each other's flows while one replaces the other; the rest is converted. Nothing
//! changes for the version before: until it is replaced it can go on as if there had been nothing.
use crate::{
    bpffs::{Before, PinDir, Pins},
    error::DatapathError,
    loader::{NAMES, keep_size},
    maps::{MapError, Maps, Op, kernel::KernelMaps},
};
use aya::maps::{Array, HashMap, Map, MapData, MapInfo, PerCpuArray};
use lb_bpf_common::{Addr, Backend, Config, Mode, Vip, VipKey, map, outer_header_sum};
use std::io;

/// The version that is known.
const VERSION: u32 = 1;

/// The maps that are the same in both.
const SHARED: [&str; 6] = [map::SLOTS, map::FLOWS, map::REVERSE, map::DECAP, map::BACKEND_COUNTERS, NAMES];

/// Key of `vips` (hash): address, port, protocol, and a byte 0; as a [`VipKey`].
type OldVipKey = [u8; 20];
/// Value of `vips`: service, base, size and flags (0).
type OldVip = [u32; 4];
/// Value of `backends` (array): as a [`Backend`], but that `header_sum` has the protocol in it and is there for IPv4 only,
/// and that `mtu` is a `u32` in the place of `mtu` and `vlan`.
type OldBackend = [u8; 64];
/// Value of `config` (array of one): flags (bit 0: there is a NAT service), first and last port.
type OldConfig = [u8; 8];
/// Value of `verdict_counters` (per-CPU array), the same: only there are fewer verdicts.
type OldCounter = [u64; 4];

/// Whether this is the version whose maps can be taken over.
pub(crate) const fn is_known(before: &Before) -> bool {
    before.version == VERSION
}

/// Shares the maps that are the same, and takes over the sizes of the others.
pub(crate) fn share(pins: &PinDir, before: &Before, sizes: &mut crate::Sizes) -> Result<(), DatapathError> {
    for name in SHARED {
        pins.share(name)?;
    }
    let entries = |name| MapInfo::from_pin(before.pins.pin(name)).ok().map(|info| info.max_entries());
    keep_size(map::VIPS, entries(map::VIPS), &mut sizes.vips);
    keep_size(map::BACKENDS, entries(map::BACKENDS), &mut sizes.backends);
    Ok(())
}

/// Fills the maps that are not shared, which are new.
pub(crate) fn convert(before: &Before, pins: &Pins, maps: &mut KernelMaps) -> Result<(), MapError> {
    if let Some(old) = open(&before.pins, map::BACKENDS)? {
        let old: Array<_, OldBackend> = Array::try_from(Map::Array(old)).map_err(of(map::BACKENDS))?;
        for (index, value) in (0..).zip(old.iter()) {
            if let Some(backend) = backend(&value.map_err(of(map::BACKENDS))?) {
                maps.apply(&Op::SetBackend(index, backend))?;
            }
        }
    }
    if let Some(old) = open(&before.pins, map::CONFIG)? {
        let old: Array<_, OldConfig> = Array::try_from(Map::Array(old)).map_err(of(map::CONFIG))?;
        let config = config(&old.get(&0, 0).map_err(of(map::CONFIG))?);
        maps.apply(&Op::SetConfig(config))?;
    }
    if let Some(old) = open(&before.pins, map::VIPS)? {
        let old: HashMap<_, OldVipKey, OldVip> =
            HashMap::try_from(Map::HashMap(old)).map_err(of(map::VIPS))?;
        for entry in old.iter() {
            let (key, value) = entry.map_err(of(map::VIPS))?;
            let (key, vip) = vip(&key, value);
            maps.apply(&Op::SetVip(key, vip))?;
        }
    }
    let old = open(&before.pins, map::VERDICT_COUNTERS)?;
    if let (Some(old), Some(new)) = (old, open(pins, map::VERDICT_COUNTERS)?) {
        let per_cpu = |map| PerCpuArray::try_from(Map::PerCpuArray(map)).map_err(of(map::VERDICT_COUNTERS));
        let (old, mut new): (PerCpuArray<_, OldCounter>, PerCpuArray<_, OldCounter>) =
            (per_cpu(old)?, per_cpu(new)?);
        for (index, values) in (0..).zip(old.iter()) {
            let values = values.map_err(of(map::VERDICT_COUNTERS))?;
            new.set(index, values, 0).map_err(of(map::VERDICT_COUNTERS))?;
        }
    }
    Ok(())
}

fn vip(key: &OldVipKey, [service, base, size, _]: OldVip) -> (VipKey, Vip) {
    let key =
        VipKey { addr: addr(key), port: u16::from_ne_bytes([key[16], key[17]]), proto: key[18], zero: 0 };
    (key, Vip { service, flags: 0, base, size })
}

/// Nothing if the entry is free.
fn backend(old: &OldBackend) -> Option<Backend> {
    let word = |at: usize| u32::from_ne_bytes([old[at], old[at + 1], old[at + 2], old[at + 3]]);
    let mac = |at: usize| [old[at], old[at + 1], old[at + 2], old[at + 3], old[at + 4], old[at + 5]];
    let (addr, source) = (addr(old), addr(&old[16..]));
    let mode = Mode::of(old[50])?;
    Some(Backend {
        addr,
        source,
        next_hop: mac(32),
        source_mac: mac(38),
        ifindex: word(44),
        port: u16::from_ne_bytes([old[48], old[49]]),
        mode: old[50],
        flags: old[51],
        header_sum: if mode.is_tunnel() && addr.is_v4() { outer_header_sum(&source, &addr) } else { 0 },
        service: word(56),
        mtu: u16::try_from(word(60)).unwrap_or_default(),
        vlan: 0,
    })
}

fn config(old: &OldConfig) -> Config {
    let half = |at: usize| u16::from_ne_bytes([old[at], old[at + 1]]);
    let flags = if old[0] & 1 == 1 { Config::NAT } else { 0 };
    Config { flags, nat_port_first: half(4), nat_port_last: half(6), ..Config::default() }
}

/// The address that the first 16 bytes are.
fn addr(bytes: &[u8]) -> Addr {
    let mut addr = Addr::NONE;
    for (word, bytes) in addr.0.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    addr
}

/// Nothing if it is not there: then its process ended before it had made all its maps.
fn open(pins: &Pins, name: &'static str) -> Result<Option<MapData>, MapError> {
    if !pins.pin(name).exists() {
        return Ok(None);
    }
    let map = MapData::from_pin(pins.pin(name));
    map.map(Some).map_err(|error| MapError::new(name, "open", io::Error::other(error)))
}

fn of(map: &'static str) -> impl Fn(aya::maps::MapError) -> MapError {
    move |error| MapError::new(map, "convert", io::Error::other(error))
}
