//! Takes the maps of the version before over. What is the same in both layouts gets a second name and is shared, so that
//! the programs of both versions see each other's flows while one replaces the other; the rest is converted. Nothing
//! changes for the version before: until it is replaced it can go on as if there had been nothing.
//!
//! What the program of the version before itself writes, and is not shared, are the ways back of NAT. They are copied, and
//! what was added meanwhile is copied again when that program runs no more. Until then the new program looks there itself
//! for what it misses.
use crate::{
    bpffs::{Before, PinDir, Pins},
    error::{DatapathError, os_error},
    loader::{NAMES, keep_size},
    maps::{
        MapError, Maps, Op, Sizes,
        kernel::{KernelMaps, NO_FLOW, Name, Plain},
        raw, vip_index,
    },
};
use aya::maps::{Array, HashMap, Map, MapData, MapInfo, PerCpuArray};
use lb_bpf_common::{Addr, Backend, Config, Mode, ReverseEntry, Tags, Vip, VipKey, map, outer_header_sum};
use std::{io, os::fd::AsFd};

/// The version that is known.
const VERSION: u32 = 1;

/// The maps that are the same in both.
const SHARED: [&str; 4] = [map::SLOTS, map::FLOWS, map::DECAP, map::BACKEND_COUNTERS];

/// Key of `vips` (hash): address, port, protocol, and a byte 0; as a [`VipKey`].
type OldVipKey = [u8; 20];
/// Value of `vips`: service, base, size and flags (0).
type OldVip = [u32; 4];
/// Value of `backends` (array): as a [`Backend`], but that `header_sum` has the protocol in it and is there for IPv4 only,
/// and that `mtu` is a `u32` in the place of `mtu` and `vlan`.
type OldBackend = [u8; 64];
/// Value of `reverse` (hash; its key is a [`FlowKey`]): as a [`ReverseEntry`], without `tags`.
type OldReply = [u8; 56];
/// Value of `config` (array of one): flags (bit 0: there is a NAT service), first and last port.
type OldConfig = [u8; 8];
/// Value of `verdict_counters` (per-CPU array), the same: only there are fewer verdicts.
type OldCounter = [u64; 4];

/// Whether this is the version whose maps can be taken over.
pub(crate) const fn is_known(before: &Before) -> bool {
    before.version == VERSION
}

/// Shares the maps that are the same, and takes over the sizes of the others.
pub(crate) fn share(pins: &PinDir, before: &Before, sizes: &mut Sizes) -> Result<(), DatapathError> {
    for name in SHARED {
        pins.share(name, name)?;
    }
    pins.share(map::REVERSE, map::REVERSE_BEFORE)?;
    let entries = |name| MapInfo::from_pin(before.pins.pin(name)).ok().map(|info| info.max_entries());
    sizes.vips = entries(map::VIPS).map_or(sizes.vips, |old| sizes.vips.max(old + vip_index::RESERVED));
    keep_size(map::BACKENDS, entries(map::BACKENDS), &mut sizes.backends);
    Ok(())
}

/// Fills the maps that are not shared, which are new but for `reverse`: it may have entries of packets already.
pub(crate) fn convert(before: &Before, pins: &Pins, maps: &mut KernelMaps) -> Result<(), MapError> {
    if let Some(old) = open(&before.pins, map::BACKENDS)? {
        let old: Array<_, OldBackend> = Array::try_from(Map::Array(old)).map_err(of(map::BACKENDS))?;
        for (index, value) in (0..).zip(old.iter()) {
            if let Some(backend) = backend(&value.map_err(of(map::BACKENDS))?) {
                maps.apply(&Op::SetBackend(index, backend))?;
            }
        }
    }
    if let (Some(old), Some(new)) = (open(&before.pins, NAMES)?, open(pins, NAMES)?) {
        let names = |map| HashMap::<_, u32, Name>::try_from(Map::HashMap(map)).map_err(of(NAMES));
        let (old, mut new) = (names(old)?, names(new)?);
        for entry in old.iter() {
            let (id, name) = entry.map_err(of(NAMES))?;
            new.insert(id, name, 0).map_err(of(NAMES))?;
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
    copy_replies(before, pins).map(drop)
}

/// Ends what [`convert`] began, when the program of the version before is attached no more.
pub(crate) fn finish(replaced: &Before, pins: &Pins) -> Result<(), MapError> {
    // On another CPU it may be at its last packet still.
    while copy_replies(replaced, pins)? > 0 {}
    Ok(())
}

/// Tells the new program that the ways back are complete; whether it was told otherwise before.
pub(crate) fn end(pins: &Pins, maps: &mut KernelMaps) -> Result<(), DatapathError> {
    let config = maps.config()?;
    if config.flags & Config::TAKING_OVER != 0 {
        maps.apply(&Op::SetConfig(Config { flags: config.flags & !Config::TAKING_OVER, ..config }))?;
    }
    pins.unpin(map::REVERSE_BEFORE)
}

/// Copies ways back that are not there; returns how many that were.
fn copy_replies(before: &Before, pins: &Pins) -> Result<usize, MapError> {
    /// Entries that one system call reads.
    const BATCH: usize = 4096;
    /// Of linux/bpf.h: only if there is none.
    const BPF_NOEXIST: u64 = 1;
    let (Some(old), Some(new)) = (open(&before.pins, map::REVERSE)?, open(pins, map::REVERSE)?) else {
        return Ok(0);
    };
    if old.info().map_err(of(map::REVERSE))?.value_size() as usize != size_of::<OldReply>() {
        return Err(MapError::new(map::REVERSE, "convert", io::ErrorKind::InvalidData));
    }
    let mut new = HashMap::try_from(Map::HashMap(new)).map_err(of(map::REVERSE))?;
    let (mut count, mut from) = (0, Some(0));
    while let Some(cursor) = from {
        let zero = (Plain(NO_FLOW), [0_u8; size_of::<OldReply>()]);
        let batch = raw::lookup_batch(old.fd().as_fd(), cursor, BATCH, 1, zero)
            .map_err(|error| MapError::new(map::REVERSE, "lookup", error))?;
        for (key, value) in batch.keys.into_iter().zip(batch.values) {
            match new.insert(key, Plain(reply(&value)), BPF_NOEXIST) {
                Ok(()) => count += 1,
                Err(error) if os_error(&error) == Some(libc::EEXIST) => {}
                Err(error) => return Err(of(map::REVERSE)(error)),
            }
        }
        from = batch.next;
    }
    Ok(count)
}

fn vip(key: &OldVipKey, [service, base, size, _]: OldVip) -> (VipKey, Vip) {
    let key = VipKey { addr: addr(key), port: half(key, 16), proto: key[18], scope: 0 };
    (key, Vip { service, flags: 0, base, size })
}

/// Nothing if the entry is free.
fn backend(old: &OldBackend) -> Option<Backend> {
    let (addr, source) = (addr(old), addr(&old[16..]));
    let mode = Mode::of(old[50])?;
    Some(Backend {
        addr,
        source,
        next_hop: mac(old, 32),
        source_mac: mac(old, 38),
        ifindex: word(old, 44),
        port: half(old, 48),
        mode: old[50],
        flags: old[51],
        header_sum: if mode.is_tunnel() && addr.is_v4() { outer_header_sum(&source, &addr) } else { 0 },
        service: word(old, 56),
        mtu: u16::try_from(word(old, 60)).unwrap_or_default(),
        vlan: 0,
    })
}

fn reply(old: &OldReply) -> ReverseEntry {
    ReverseEntry {
        client: addr(old),
        vip: addr(&old[16..]),
        client_port: half(old, 32),
        vip_port: half(old, 34),
        ifindex: word(old, 36),
        seen: word(old, 40),
        next_hop: mac(old, 44),
        source_mac: mac(old, 50),
        tags: Tags::NONE,
    }
}

fn config(old: &OldConfig) -> Config {
    let flags = Config::TAKING_OVER | if old[0] & 1 == 1 { Config::NAT } else { 0 };
    Config { flags, nat_port_first: half(old, 4), nat_port_last: half(old, 6), ..Config::default() }
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn mac(bytes: &[u8], at: usize) -> [u8; 6] {
    std::array::from_fn(|i| bytes[at + i])
}

/// The address that the first 16 bytes are.
fn addr(bytes: &[u8]) -> Addr {
    Addr(std::array::from_fn(|i| word(bytes, 4 * i)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn address(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn bytes(addr: Addr) -> [u8; 16] {
        std::array::from_fn(|i| addr.0[i / 4].to_ne_bytes()[i % 4])
    }

    /// An entry of version 1.
    fn old(addr: &str, source: &str, mode: u8, mtu: u32) -> OldBackend {
        let parts: [&[u8]; 10] = [
            &bytes(address(addr)),
            &bytes(address(source)),
            &[1, 2, 3, 4, 5, 6],
            &[7, 8, 9, 10, 11, 12],
            &13_u32.to_ne_bytes(),
            &80_u16.to_be_bytes(),
            &[mode, Backend::DOWN],
            &0xabcd_u32.to_ne_bytes(),
            &14_u32.to_ne_bytes(),
            &mtu.to_ne_bytes(),
        ];
        parts.concat().try_into().unwrap()
    }

    #[test]
    fn a_backend_keeps_all_but_the_sum_of_its_header() {
        let (addr, source) = (address("10.0.0.2"), address("10.0.0.1"));
        let wanted = Backend {
            addr,
            source,
            next_hop: [1, 2, 3, 4, 5, 6],
            source_mac: [7, 8, 9, 10, 11, 12],
            ifindex: 13,
            port: 80_u16.to_be(),
            mode: Mode::Ipip as u8,
            flags: Backend::DOWN,
            header_sum: outer_header_sum(&source, &addr),
            service: 14,
            mtu: 1500,
            vlan: 0,
        };
        assert_eq!(backend(&old("10.0.0.2", "10.0.0.1", 2, 1500)), Some(wanted));
        let no_sum = |old| backend(&old).map(|backend| backend.header_sum);
        assert_eq!(no_sum(old("10.0.0.2", "10.0.0.1", 1, 1500)), Some(0), "NAT");
        assert_eq!(no_sum(old("2001:db8::2", "2001:db8::1", 2, 1500)), Some(0), "IPv6");
        assert_eq!(backend(&old("10.0.0.2", "10.0.0.1", 0, 1500)), None, "free");
    }

    #[test]
    fn an_mtu_that_does_not_fit_is_not_known_and_is_no_vlan() {
        let backend = backend(&old("10.0.0.2", "10.0.0.1", 2, 65_536)).unwrap();
        assert_eq!((backend.mtu, backend.vlan), (0, 0));
    }

    #[test]
    fn frontends_ways_back_and_config_are_read_where_they_lie() {
        let (client, addr) = (address("192.0.2.7"), address("2001:db8::10"));
        let key: OldVipKey = [&bytes(addr)[..], &443_u16.to_be_bytes(), &[6, 0]].concat().try_into().unwrap();
        let wanted = VipKey { addr, port: 443_u16.to_be(), proto: 6, scope: 0 };
        assert_eq!(vip(&key, [1, 2, 3, 0]), (wanted, Vip { service: 1, flags: 0, base: 2, size: 3 }));

        let parts: [&[u8]; 7] = [
            &bytes(client),
            &bytes(addr),
            &[0, 1, 0, 2],
            &3_u32.to_ne_bytes(),
            &4_u32.to_ne_bytes(),
            &[5; 6],
            &[6; 6],
        ];
        let wanted = ReverseEntry {
            client,
            vip: addr,
            client_port: 1_u16.to_be(),
            vip_port: 2_u16.to_be(),
            ifindex: 3,
            seen: 4,
            next_hop: [5; 6],
            source_mac: [6; 6],
            tags: Tags::NONE,
        };
        assert_eq!(reply(&parts.concat().try_into().unwrap()), wanted);

        let parts: [&[u8]; 3] = [&1_u32.to_ne_bytes(), &1024_u16.to_ne_bytes(), &32767_u16.to_ne_bytes()];
        let wanted = Config {
            flags: Config::TAKING_OVER | Config::NAT,
            nat_port_first: 1024,
            nat_port_last: 32767,
            ..Config::default()
        };
        assert_eq!(config(&parts.concat().try_into().unwrap()), wanted);
    }
}
