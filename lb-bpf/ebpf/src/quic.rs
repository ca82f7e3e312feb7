//! QUIC packets whose connection ID names their server. See [`lb_bpf_common::quic`].
use crate::{
    context::Context,
    flow::usable,
    maps,
    packet::{Packet, Udp},
    vip,
};
use lb_bpf_common::{VipKey, decide, quic};

/// Index of the backend of `service` that the connection ID names of the packet whose UDP header is at `transport`; 0: it
/// names none that can be used. The server ID has so many bytes.
#[inline(always)]
pub fn server<C: Context>(ctx: &C, transport: u32, service: u32, bytes: u32) -> u32 {
    match server_id(&ctx.packet(), transport as usize & 0x3ff, bytes) {
        Some(id) => owner(service, bytes, id),
        None => 0,
    }
}

#[inline(always)]
fn owner(service: u32, bytes: u32, id: u64) -> u32 {
    let Some(config) = maps::config.get(0) else {
        return 0;
    };
    let key = VipKey::server_id(service, bytes, id);
    let Some(found) = vip::find(&key.addr, key.port, key.proto, key.scope, config.vip_mask) else {
        return 0;
    };
    match usable(found.vip.base, service) {
        Some(backend) if !decide::is_tracked(backend.mode) => found.vip.base,
        _ => 0,
    }
}

/// The server ID in a UDP payload; `None`: there is none, or it is cut short.
#[inline(always)]
fn server_id(packet: &Packet, transport: usize, bytes: u32) -> Option<u64> {
    let udp = packet.at::<Udp>(transport)?;
    // SAFETY: `at` has checked the bounds.
    let end = transport + u16::from_be(unsafe { (*udp).length }) as usize;
    let payload = transport + size_of::<Udp>();
    let first = packet.byte(payload)?;
    let id = if first & quic::LONG_HEADER == 0 {
        payload + quic::SHORT_ID
    } else {
        let [a, b, c, d] = [0, 1, 2, 3].map(|at| packet.byte(payload + quic::VERSION + at));
        let version = u32::from_be_bytes([a?, b?, c?, d?]);
        let length = packet.byte(payload + quic::VERSION + 4)?;
        if !quic::is_issued(first, version) || (length as u32) <= bytes {
            return None;
        }
        payload + quic::VERSION + 5
    };
    if id + 1 + bytes as usize > end || !quic::is_routable(packet.byte(id)?) {
        return None;
    }
    let mut server = 0_u64;
    for at in 1..=quic::MOST_ID {
        if at <= bytes {
            server = server << 8 | packet.byte(id + at as usize)? as u64;
        }
    }
    Some(server)
}
