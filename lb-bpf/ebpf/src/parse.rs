//! From bytes to what the datapath has to know about a packet.
use crate::{
    family::{Network, Part},
    packet::{Packet, Tcp, Udp},
};
use lb_bpf_common::{FlowKey, Verdict, decide::Phase, proto};

/// A TCP or UDP packet.
#[derive(Clone, Copy)]
pub struct Segment {
    /// The network layer.
    pub network: Network,
    /// The flow, as its sender sees it.
    pub flow: FlowKey,
}

/// What a transport header says.
#[derive(Clone, Copy)]
pub struct Transport {
    /// Of the flow.
    pub phase: Phase,
    /// TCP flags; UDP: 0.
    pub flags: u8,
}

impl Segment {
    /// Addresses and ports. `None`: too short for ports.
    #[inline(always)]
    pub fn parse(packet: &Packet, network: Network) -> Option<Self> {
        let ports = packet.at::<[u16; 2]>(network.end)?;
        // SAFETY: `at` has checked the bounds.
        let [src_port, dst_port] = unsafe { *ports };
        let flow = FlowKey {
            src: network.src,
            dst: network.dst,
            src_port,
            dst_port,
            proto: network.proto,
            zero: [0; 3],
        };
        Some(Segment { network, flow })
    }

    /// The transport header of a packet that is ours; else why the packet cannot be sent on.
    #[inline(always)]
    pub fn judge(&self, packet: &Packet) -> Result<Transport, Verdict> {
        if self.network.part != Part::Whole {
            return Err(Verdict::Fragment);
        }
        let transport = self.transport(packet).ok_or(Verdict::Malformed)?;
        if self.network.hops <= 1 {
            return Err(Verdict::TtlExpired);
        }
        Ok(transport)
    }

    /// The transport header. `None`: it is cut short, or the lengths contradict each other.
    #[inline(always)]
    fn transport(&self, packet: &Packet) -> Option<Transport> {
        let start = self.network.end;
        let (transport, size) = if self.network.proto == proto::TCP {
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
