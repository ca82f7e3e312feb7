//! NAT in both directions: destination and source are translated (RFC 2663, section 4.3, "twice NAT"), so replies
//! come back through this host whatever the backend's routes are.
use crate::{
    datapath::{current_packet, ingress},
    family::{Addresses, Family, change, difference},
    flow::{Tracked, now, state_bits},
    maps::{config, flows, reverse},
    packet::{Eth, Macs, Packet, Tcp, Udp},
};
use aya_ebpf::{bindings::BPF_NOEXIST, programs::XdpContext};
use core::mem::offset_of;
use lb_bpf_common::{
    Addr, Backend, Config, FlowEntry, FlowKey, ReverseEntry, Verdict,
    decide::{NAT_ATTEMPTS, NatPorts},
    fold, proto,
};

/// The source port of a flow towards `backend`, network byte order: `port` if that is the flow's, else (0, or the
/// entry was lost) a free one. Called with the first packet, and from then on once a second and with every SYN, so that
/// replies follow the client's packets to another router.
#[inline(always)]
pub fn claim(flow: &Tracked, backend: &Backend, port: u16, now: u32) -> Result<u16, Verdict> {
    let mut key = FlowKey::reply(backend, port, flow.key.proto);
    if port != 0
        && let Some(entry) = reverse.get_ptr_mut(&key)
    {
        // SAFETY: entries are only freed after the program ends (RCU).
        let entry = unsafe { &mut *entry };
        if is_of(entry, flow.key) {
            entry.seen = now;
            set_way_back(entry, flow.ctx);
            return Ok(port);
        }
    }
    let Some(&Config { nat_port_first: first, nat_port_last: last, .. }) = config.get(0) else {
        return Err(Verdict::NatPortsExhausted);
    };
    let mut ports = NatPorts::new(first, last, flow.hash).ok_or(Verdict::NatPortsExhausted)?;
    let mut value = ReverseEntry {
        client: flow.key.src,
        vip: flow.key.dst,
        client_port: flow.key.src_port,
        vip_port: flow.key.dst_port,
        ifindex: 0,
        seen: now,
        next_hop: [0; 6],
        source_mac: [0; 6],
    };
    set_way_back(&mut value, flow.ctx);
    for _ in 0..NAT_ATTEMPTS {
        key.dst_port = ports.port();
        match reverse.insert(&key, &value, BPF_NOEXIST as u64) {
            Ok(()) => return Ok(key.dst_port),
            Err(EEXIST) => ports.advance(),
            Err(_) => return Err(Verdict::FlowTableFull),
        }
    }
    Err(Verdict::NatPortsExhausted)
}

/// Linux error: the entry exists.
const EEXIST: i32 = -17;

/// Gives the port back.
#[inline(always)]
pub fn release(flow: &Tracked, backend: &Backend, port: u16) {
    // An error would mean that it is gone already.
    let _ = reverse.remove(FlowKey::reply(backend, port, flow.key.proto));
}

/// Whether this is the way back of `flow`.
#[inline(always)]
fn is_of(entry: &ReverseEntry, flow: &FlowKey) -> bool {
    entry.client_port == flow.src_port
        && entry.vip_port == flow.dst_port
        && same(&entry.client, &flow.src)
        && same(&entry.vip, &flow.dst)
}

/// Whether two addresses are the same: word by word, which is quicker here than `==`.
#[inline(always)]
pub const fn same(a: &Addr, b: &Addr) -> bool {
    a.0[0] == b.0[0] && a.0[1] == b.0[1] && a.0[2] == b.0[2] && a.0[3] == b.0[3]
}

/// Replies leave where this packet came in.
#[inline(always)]
fn set_way_back(entry: &mut ReverseEntry, ctx: &XdpContext) {
    const { assert!(offset_of!(ReverseEntry, source_mac) == offset_of!(ReverseEntry, next_hop) + 6) };
    entry.ifindex = ingress(ctx);
    if let Some(eth) = current_packet(ctx).at::<Eth>(0) {
        // SAFETY: `at` has checked the bounds; `next_hop` and `source_mac` are 12 bytes in a row.
        unsafe {
            let way_back = (entry as *mut ReverseEntry).cast::<u8>().add(offset_of!(ReverseEntry, next_hop));
            Macs::read(eth.cast()).swapped().write(way_back);
        }
    }
}

/// The entry of a packet that is a reply. One whose port is not of the range costs no lookup.
#[inline(always)]
pub fn entry_of_reply(flow: &FlowKey) -> Option<&'static mut ReverseEntry> {
    let all = config.get(0)?;
    let port = u16::from_be(flow.dst_port);
    if all.flags & Config::NAT == 0 || port < all.nat_port_first || port > all.nat_port_last {
        return None;
    }
    // SAFETY: entries are only freed after the program ends (RCU). Other CPUs write whole words.
    reverse.get_ptr_mut(flow).map(|entry| unsafe { &mut *entry })
}

/// Translates a request: to the backend, from this host. `transport` is the offset of the TCP or UDP header.
///
/// This and [`translate_reply`] are calls of their own: what they keep on the stack is gone when they return.
#[inline(never)]
pub fn translate_request<F: Family>(
    ctx: &XdpContext,
    flow: &FlowKey,
    transport: usize,
    backend: &Backend,
    nat_port: u16,
) -> Verdict {
    let target = FlowKey {
        src_port: nat_port,
        dst_port: backend.port,
        src: backend.source,
        dst: backend.addr,
        ..*flow
    };
    // SAFETY: `next_hop` and `source_mac` are 12 bytes in a row (asserted in `encap`).
    let macs =
        unsafe { Macs::read((backend as *const Backend).cast::<u8>().add(offset_of!(Backend, next_hop))) };
    match rewrite::<F>(&current_packet(ctx), flow, transport, &target, macs) {
        Some(()) => Verdict::Translated,
        None => Verdict::Malformed,
    }
}

/// Translates a reply: to the client, from the VIP. `flags` are those of TCP.
#[inline(never)]
pub fn translate_reply<F: Family>(
    ctx: &XdpContext,
    flow: &FlowKey,
    transport: usize,
    entry: &mut ReverseEntry,
    flags: u8,
) -> Verdict {
    let now = now();
    if entry.seen != now {
        entry.seen = now;
    }
    let (client, vip) = (entry.client, entry.vip);
    let (client_port, vip_port) = (entry.client_port, entry.vip_port);
    let state = state_bits(flags, FlowEntry::FIN_BACKEND);
    if state != 0 {
        let request = FlowKey { src: client, dst: vip, src_port: client_port, dst_port: vip_port, ..*flow };
        if let Some(flow) = flows.get_ptr_mut(&request) {
            // SAFETY: entries are only freed after the program ends (RCU). Of bits that two CPUs set at once some
            // may be lost: then the sweep waits for the idle time.
            unsafe { (*flow).state |= state };
        }
    }
    let target = FlowKey { src: vip, dst: client, src_port: vip_port, dst_port: client_port, ..*flow };
    // SAFETY: `next_hop` and `source_mac` are 12 bytes in a row (asserted above).
    let macs = unsafe {
        Macs::read((entry as *const ReverseEntry).cast::<u8>().add(offset_of!(ReverseEntry, next_hop)))
    };
    match rewrite::<F>(&current_packet(ctx), flow, transport, &target, macs) {
        Some(()) => Verdict::Returned,
        None => Verdict::Malformed,
    }
}

/// Makes the flow `old` in the packet to `new`, takes one hop off and makes the checksums good. `None` cannot happen
/// after the packet was parsed.
#[inline(always)]
fn rewrite<F: Family>(
    packet: &Packet,
    old: &FlowKey,
    transport: usize,
    new: &FlowKey,
    macs: Macs,
) -> Option<()> {
    let mut sum = difference(
        old.src_port as u32 | (old.dst_port as u32) << 16,
        new.src_port as u32 | (new.dst_port as u32) << 16,
    );
    sum += change(&old.src, &new.src) + change(&old.dst, &new.dst);
    if old.proto == proto::TCP {
        let tcp = packet.at::<Tcp>(transport)?;
        // SAFETY: `at` has checked the bounds.
        let tcp = unsafe { &mut *tcp };
        tcp.ports = [new.src_port, new.dst_port];
        tcp.checksum = !fold((!tcp.checksum) as u64 + sum);
    } else {
        let udp = packet.at::<Udp>(transport)?;
        // SAFETY: `at` has checked the bounds.
        let udp = unsafe { &mut *udp };
        udp.ports = [new.src_port, new.dst_port];
        // 0 says that there is no checksum (RFC 768; RFC 6936 for tunnels over IPv6): it stays so.
        if udp.checksum != 0 {
            let checksum = !fold((!udp.checksum) as u64 + sum);
            udp.checksum = if checksum == 0 { 0xffff } else { checksum };
        }
    }
    F::forward(packet, Some(Addresses { src: new.src, dst: new.dst }))?;
    let eth = packet.at::<Eth>(0)?;
    // SAFETY: `at` has checked the bounds.
    unsafe { macs.write(eth.cast()) };
    Some(())
}
