//! From bytes to what the datapath has to know about a packet.
use crate::{
    family::{Network, Part},
    fragment,
    packet::{Packet, Tcp, Udp},
};
use lb_bpf_common::{FlowKey, Verdict, decide::Phase, proto, scope};

/// A TCP or UDP packet, or a part of one.
#[derive(Clone, Copy)]
pub struct Segment {
    /// The network layer.
    pub network: Network,
    /// The flow, as its sender sees it.
    pub flow: FlowKey,
}

/// What a transport header says.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Transport {
    /// Of the flow.
    pub phase: Phase,
    /// TCP flags; UDP: 0.
    pub flags: u8,
}

impl Segment {
    /// A packet with these ports, in network byte order: its own, or those of its first fragment.
    #[inline(always)]
    pub const fn new(network: Network, ports: [u16; 2]) -> Self {
        let flow = FlowKey {
            src: network.src,
            dst: network.dst,
            src_port: ports[0],
            dst_port: ports[1],
            proto: network.proto,
            scope: scope::ALL,
            zero: [0; 2],
        };
        Segment { network, flow }
    }

    /// Offset of the transport header; 0: it is in another fragment.
    #[inline(always)]
    pub const fn transport(&self) -> usize {
        if matches!(self.network.part, Part::Later) { 0 } else { self.network.end }
    }

    /// The transport header of a packet that is ours; else why the packet cannot be sent on. Of a first fragment the
    /// ports are noted.
    #[inline(always)]
    pub fn judge(&self, packet: &Packet) -> Result<Transport, Verdict> {
        let transport = self.header(packet).ok_or(Verdict::Malformed)?;
        if self.network.hops <= 1 {
            return Err(Verdict::TtlExpired);
        }
        if matches!(self.network.part, Part::First) {
            fragment::note(&self.network, self.flow.src_port, self.flow.dst_port);
        }
        Ok(transport)
    }

    /// The transport header. `None`: it is cut short, or the lengths contradict each other.
    #[inline(always)]
    pub fn header(&self, packet: &Packet) -> Option<Transport> {
        let start = self.network.end;
        let (transport, size) = if matches!(self.network.part, Part::Later) {
            let is_tcp = self.network.proto == proto::TCP;
            let phase = if is_tcp { Phase::Running } else { Phase::Datagram };
            (Transport { phase, flags: 0 }, 0)
        } else if self.network.proto == proto::TCP {
            let tcp = packet.at::<Tcp>(start)?;
            // SAFETY: `at` has checked the bounds.
            let flags = unsafe { (*tcp).flags };
            let opening = flags & (Tcp::SYN | Tcp::ACK) == Tcp::SYN;
            let phase = if opening { Phase::Opening } else { Phase::Running };
            (Transport { phase, flags }, size_of::<Tcp>())
        } else {
            packet.at::<Udp>(start)?;
            (Transport { phase: Phase::Datagram, flags: 0 }, size_of::<Udp>())
        };
        let fits = self.network.holds(packet, size);
        if fits { Some(transport) } else { None }
    }
}
