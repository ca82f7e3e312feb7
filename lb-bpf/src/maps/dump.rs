//! The maps as text: one entry a line, sorted, for people and for tests that compare.
use super::{MapError, Maps};
use crate::service::mode_label;
use lb_bpf_common::{Addr, DecapKey, FlowEntry, FlowKey, Mode, RangeKey, Slot, Verdict, Vip, proto};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

/// Flows that are written out; of the others the number.
const FLOWS: usize = 10_000;
/// Flows read at a time.
const CHUNK: usize = 4096;

/// Writes out all maps. Tables are summed up (slots for each backend, and the slots that are dirty).
pub fn dump(maps: &impl Maps) -> Result<String, MapError> {
    let mut text = String::new();
    let vips = maps.vips()?;
    for (id, name) in maps.names()? {
        line(&mut text, format_args!("service {id} {name}"));
    }
    for (key, vip) in &vips {
        if key.proto == proto::SERVER_ID {
            let [bytes, service, high, low] = key.addr.0;
            let id = u64::from(high) << 32 | u64::from(low);
            let backend = vip.base;
            line(
                &mut text,
                format_args!("serverID service={service} bytes={bytes} {id:#x} backend={backend}"),
            );
            continue;
        }
        let frontend = endpoint(key.addr, key.port);
        let (Vip { service, flags, base, size }, proto) = (vip, name(key.proto));
        let what = format_args!("service={service} flags={flags} base={base} size={size}");
        line(&mut text, format_args!("vip {proto} {frontend} {what}"));
    }
    let tables: BTreeSet<(u32, u32)> = vips.values().map(|vip| (vip.base, vip.size)).collect();
    for (base, size) in tables.into_iter().filter(|(_, size)| *size > 0) {
        let slots = maps.slots(base, size)?;
        let mut shares = BTreeMap::<u32, u32>::new();
        for slot in &slots {
            *shares.entry(slot.current).or_default() += 1;
        }
        for (backend, share) in shares {
            line(&mut text, format_args!("table base={base} backend={backend} slots={share}"));
        }
        for (number, slot) in (0_u32..).zip(&slots).filter(|(_, slot)| slot.previous != 0) {
            let (current, previous) = (slot.current, slot.previous & !Slot::SETTLED);
            let state = if slot.previous & Slot::SETTLED == 0 { "learning" } else { "settled" };
            let index = base + number;
            line(&mut text, format_args!("slot {index} current={current} previous={previous} {state}"));
        }
    }
    for (index, backend) in maps.backends()? {
        let mode = Mode::of(backend.mode).map_or("unknown", mode_label);
        let (to, from) = (endpoint(backend.addr, backend.port), IpAddr::from(backend.source));
        let way = match backend.ifindex {
            0 => "unresolved".to_owned(),
            ifindex => {
                let (via, mtu, vlan) = (mac(backend.next_hop), backend.mtu, backend.vlan);
                format!("if={ifindex} via={via} mtu={mtu} vlan={vlan}")
            }
        };
        let (service, flags) = (backend.service, backend.flags);
        line(
            &mut text,
            format_args!("backend {index} service={service} {mode} {to} from={from} flags={flags} {way}"),
        );
    }
    for (key, value) in maps.decap()? {
        let (local, vip) = (IpAddr::from(key.local), IpAddr::from(key.vip));
        let to = if value == DecapKey::TO_LOCAL { " to=local" } else { "" };
        line(&mut text, format_args!("decap {local} vip={vip}{to}"));
    }
    for (key, is_let_in) in maps.ranges()? {
        let (service, net) = (key.service, net(&key));
        line(&mut text, format_args!("range service={service} {net} allow={is_let_in}"));
    }
    dump_filters(maps, &mut text)?;
    for index in maps.ports()? {
        line(&mut text, format_args!("port {index}"));
    }
    let config = maps.config()?;
    let (flags, first, last) = (config.flags, config.nat_port_first, config.nat_port_last);
    let (filters, sample_mask, vip_mask) = (config.filters, config.sample_mask, config.vip_mask);
    let more = format_args!("filters={filters} sampleMask={sample_mask} vipMask={vip_mask}");
    line(&mut text, format_args!("config flags={flags} natPorts={first}-{last} {more}"));
    for (verdict, counter) in Verdict::ALL.iter().zip(maps.verdict_counters()?) {
        let (packets, bytes) = (counter.packets, counter.bytes);
        line(&mut text, format_args!("verdict {} packets={packets} bytes={bytes}", verdict.label()));
    }
    for (key, counter) in maps.service_drops()? {
        let verdict = Verdict::ALL.get(key.verdict as usize).map_or("unknown", |verdict| verdict.label());
        let (service, packets, bytes) = (key.service, counter.packets, counter.bytes);
        line(&mut text, format_args!("drops service={service} {verdict} packets={packets} bytes={bytes}"));
    }
    dump_flows(maps, &mut text)?;
    Ok(text)
}

fn dump_filters(maps: &impl Maps, text: &mut String) -> Result<(), MapError> {
    let (filters, names) = (maps.filters()?, maps.filter_names()?);
    let counters = maps.filter_counters(filters.last_key_value().map_or(0, |(last, _)| last + 1))?;
    for (index, filter) in &filters {
        let name = names.get(index).map_or("", String::as_str);
        let counter = counters.get(*index as usize).copied().unwrap_or_default();
        let (kind, packets, bytes) = (filter.kind, counter.packets, counter.bytes);
        line(text, format_args!("filter {index} {name:?} kind={kind:#x} packets={packets} bytes={bytes}"));
    }
    Ok(())
}

fn dump_flows(maps: &impl Maps, text: &mut String) -> Result<(), MapError> {
    let (mut flows, mut more, mut from) = (BTreeMap::<FlowKey, FlowEntry>::new(), 0_usize, Some(0));
    while let Some(cursor) = from {
        let chunk = maps.flows(cursor, CHUNK)?;
        for (key, entry) in chunk.entries {
            if flows.len() < FLOWS {
                flows.insert(key, entry);
            } else {
                more += 1;
            }
        }
        from = chunk.next;
    }
    for (key, entry) in &flows {
        let (src, dst) = (endpoint(key.src, key.src_port), endpoint(key.dst, key.dst_port));
        let (backend, seen, state) = (entry.backend, entry.seen, entry.state);
        let port = u16::from_be(entry.nat_port);
        let proto = name(key.proto);
        line(
            text,
            format_args!(
                "flow {proto} {src} {dst} backend={backend} natPort={port} state={state} seen={seen}"
            ),
        );
    }
    if more > 0 {
        line(text, format_args!("flows {more} more"));
    }
    Ok(())
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{arguments}");
}

/// A prefix, of the address alone.
fn net(key: &RangeKey) -> String {
    let (addr, bits) = (IpAddr::from(key.addr), key.bits.saturating_sub(32));
    let bits = if addr.is_ipv4() { bits.saturating_sub(96) } else { bits };
    format!("{addr}/{bits}")
}

fn endpoint(addr: Addr, port: u16) -> SocketAddr {
    SocketAddr::new(addr.into(), u16::from_be(port))
}

fn name(number: u8) -> &'static str {
    match number {
        proto::TCP => "tcp",
        proto::UDP => "udp",
        proto::ICMP => "icmp",
        proto::ICMPV6 => "icmpv6",
        _ => "other",
    }
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
