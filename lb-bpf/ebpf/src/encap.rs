//! Direct server return: the packet reaches a backend that serves the VIP itself, inside a new header (IPIP: RFC 2003, RFC
//! 2473; GUE: draft-ietf-intarea-gue-09) or as it is (L2).
use crate::{
    context::Context,
    family::{Family, Network, Part, V4, V6},
    packet::{ETH, Eth, Macs, Packet, Udp},
};
use lb_bpf_common::{
    Backend, GUE_PORT, Mode, Verdict,
    decide::{gue_source, outer_source_bits},
    fold, proto,
};

/// Ethernet addresses towards a backend.
#[inline(always)]
fn macs_of(backend: &Backend) -> Macs {
    const { assert!(core::mem::offset_of!(Backend, source_mac) == core::mem::offset_of!(Backend, next_hop) + 6) };
    // SAFETY: the two lie one behind the other.
    unsafe {
        Macs::read((backend as *const Backend).cast::<u8>().add(core::mem::offset_of!(Backend, next_hop)))
    }
}

/// Sends the packet, which [fits](crate::datapath::fits), to `backend` in a tunnel. The inner TTL sinks by one, for this host forwards (RFC 2003, section
/// 3.1; RFC 2473, section 3.1); that also ends a loop of hosts which balance to each other.
#[inline(always)]
pub fn encapsulate<C: Context, F: Family>(
    ctx: &C,
    packet: &Packet,
    network: &Network,
    hash: u32,
    backend: &Backend,
) -> Result<Verdict, Verdict> {
    let (Some(class), Some(())) = (F::class(packet), F::forward(packet, None)) else {
        return Err(Verdict::Malformed);
    };
    // Two copies of what is short, so that the way of a packet between equal families has no other branch.
    let sent = if backend.header_sum != 0 {
        put_in::<C, F, V4>(ctx, packet, network, hash, class, backend)
    } else {
        put_in::<C, F, V6>(ctx, packet, network, hash, class, backend)
    };
    if sent.is_some() { Ok(Verdict::Encapsulated) } else { Err(Verdict::NoHeadroom) }
}

#[inline(always)]
fn put_in<C: Context, Inner: Family, Outer: Family>(
    ctx: &C,
    packet: &Packet,
    network: &Network,
    hash: u32,
    class: u32,
    backend: &Backend,
) -> Option<()> {
    const { assert!(ETH == size_of::<Eth>()) };
    let is_v4 = Outer::OUTER == V4::OUTER;
    if backend.mode == Mode::Gue as u8 {
        let length = network.length + size_of::<Udp>();
        // An outer IPv4 header has a checksum of its own, and then there need not be another (RFC 768).
        let inner = if is_v4 { None } else { sum_of_packet::<Inner>(packet, network) };
        if !ctx.encapsulate(Outer::OUTER + size_of::<Udp>(), is_v4, true) {
            return None;
        }
        let packet = ctx.packet();
        Outer::write_outer(&packet, backend, 0, class, hash, length, proto::UDP)?;
        let udp = packet.at::<Udp>(ETH + Outer::OUTER)?;
        let source = gue_source(hash);
        let header = Udp {
            ports: [source.to_be(), GUE_PORT.to_be()],
            length: (length as u16).to_be(),
            checksum: match inner {
                Some(inner) => udp_checksum(backend, source, length, inner),
                None => 0,
            },
        };
        // SAFETY: `at` has checked the bounds.
        unsafe { *udp = header };
    } else {
        if !ctx.encapsulate(Outer::OUTER, is_v4, false) {
            return None;
        }
        let source = outer_source_bits(backend, hash);
        Outer::write_outer(&ctx.packet(), backend, source, class, hash, network.length, Inner::IN_IP)?;
    }
    let eth = ctx.packet().at::<Eth>(0)?;
    // SAFETY: `at` has checked the bounds.
    unsafe {
        macs_of(backend).write(eth.cast());
        (*eth).ether_type = Outer::ETHER_TYPE;
    }
    Some(())
}

/// The sum of all bytes of the packet, known from its transport checksum without a look at them (Linux,
/// networking/checksum-offloads: local checksum offload). `None`: it has none that says it, and then the outer header has
/// none either (RFC 6935). Called when the TTL has been changed.
#[inline(always)]
fn sum_of_packet<F: Family>(packet: &Packet, network: &Network) -> Option<u64> {
    let plain = network.end - network.start == F::OUTER || F::OUTER == V4::OUTER;
    if !matches!(network.part, Part::Whole) || !plain {
        return None;
    }
    if network.proto == proto::UDP {
        let udp = packet.at::<Udp>(network.end)?;
        // SAFETY: `at` has checked the bounds.
        if unsafe { (*udp).checksum } == 0 {
            return None;
        }
    } else if network.proto != proto::TCP {
        return None;
    }
    F::sum_beyond_transport(packet, network)
}

/// Checksum of the UDP header over IPv6, for a payload with this sum.
#[inline(always)]
fn udp_checksum(backend: &Backend, source: u16, length: usize, inner: u64) -> u16 {
    let (from, to) = (&backend.source.0, &backend.addr.0);
    let addresses = from[0] as u64 + from[1] as u64 + from[2] as u64 + from[3] as u64;
    let addresses = addresses + to[0] as u64 + to[1] as u64 + to[2] as u64 + to[3] as u64;
    // The length counts twice: in the pseudo header and in the header.
    let length = (length as u32).to_be() as u64 + (length as u16).to_be() as u64;
    let rest = (proto::UDP as u32).to_be() as u64 + source.to_be() as u64 + GUE_PORT.to_be() as u64;
    let checksum = !fold(fold(addresses) as u64 + fold(inner) as u64 + length + rest);
    if checksum == 0 { 0xffff } else { checksum }
}

/// Sends the packet as it is to the Ethernet address of `backend`, with one hop less.
#[inline(always)]
pub fn forward_on_link<F: Family>(packet: &Packet, backend: &Backend) -> Result<Verdict, Verdict> {
    let (Some(()), Some(eth)) = (F::forward(packet, None), packet.at::<Eth>(0)) else {
        return Err(Verdict::Malformed);
    };
    // SAFETY: `at` has checked the bounds.
    unsafe { macs_of(backend).write(eth.cast()) };
    Ok(Verdict::Forwarded)
}
