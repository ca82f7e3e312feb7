//! What the kernel program would do with a packet, read from the maps that it reads: the same steps in the same order
//! as `lb-bpf/ebpf/src/datapath.rs` and `flow.rs`, with the same functions for the hash, the slot, the rule of dirty
//! slots and the NAT port. Nothing is changed: no entry is made, no port is taken.
//!
//! The packet is taken to be whole, sound and small enough, with hops left, and without a QUIC connection ID that names a
//! server; [`NextHop::largest_packet`] says how large one may be.
use crate::{
    maps::{MapError, Maps},
    service::{Endpoint, Protocol, ServiceKey},
};
use lb_bpf_common::{Action, FlowKey, Verdict, decide::Phase};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

mod label;
mod way;

use way::{Stop, Way};

/// What becomes of one packet, and why. JSON keys are camelCase and stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    /// The packet.
    pub packet: Packet,
    /// What the program decides, by its label.
    #[serde(with = "label")]
    pub verdict: Verdict,
    /// Why, in one line of words.
    pub why: String,
    /// The rule of a packet filter that drops the packet, or that may: it looks at the length or at bytes.
    pub filter: Option<String>,
    /// The entry of the frontend; none: no service has it.
    pub vip: Option<VipEntry>,
    /// The hash of the flow.
    pub hash: Option<u32>,
    /// The slot of the flow; none: the table is empty.
    pub slot: Option<SlotEntry>,
    /// The flow's entry. It is shown also where the program does not look at it: on clean slots that are not NAT's.
    pub flow: Option<Flow>,
    /// The backend that was chosen first, if that is this host itself: then the entry, slot and backend below are those of
    /// the frontend of local scope.
    pub host: Option<Chosen>,
    /// The backend that gets the packet.
    pub backend: Option<Chosen>,
    /// For a reply of a backend to a port of NAT: what it answers.
    pub reply: Option<Reply>,
    /// How the packet leaves; none: it does not.
    pub sent: Option<Sent>,
    /// Where the packet leaves to; none: it does not, or that is not resolved.
    pub next_hop: Option<NextHop>,
}

impl Trace {
    /// Whether the packet is sent on, to a backend or back to a client.
    pub fn is_sent(&self) -> bool {
        self.verdict.action() == Action::Transmit
    }
}

/// A packet, by what decides its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Packet {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Source.
    pub source: SocketAddr,
    /// Destination, of the same address family.
    pub destination: SocketAddr,
    /// TCP: whether it opens a connection (SYN without ACK); if not, the connection runs.
    pub syn: bool,
}

/// Why there is no such packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPacket {
    /// The address families differ.
    #[error("the source {0} and the destination {1} are not of one address family")]
    MixedFamilies(SocketAddr, SocketAddr),
    /// An IPv4 address in the clothes of an IPv6 address: packets hold the one or the other.
    #[error("{0} is an IPv4 address mapped to IPv6: write the IPv4 address")]
    Mapped(SocketAddr),
    /// UDP has no SYN.
    #[error("a SYN opens a TCP connection: UDP has none")]
    SynOfUdp,
}

impl Packet {
    /// A packet that can be.
    pub fn new(
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
        syn: bool,
    ) -> Result<Self, BadPacket> {
        let mapped = |address: &&SocketAddr| address.ip().to_canonical() != address.ip();
        if let Some(&address) = [&source, &destination].into_iter().find(mapped) {
            return Err(BadPacket::Mapped(address));
        }
        if source.is_ipv4() != destination.is_ipv4() {
            return Err(BadPacket::MixedFamilies(source, destination));
        }
        if syn && protocol == Protocol::Udp {
            return Err(BadPacket::SynOfUdp);
        }
        // Without the scope of a link-local address, which is not in the packet.
        let plain = |address: SocketAddr| SocketAddr::new(address.ip(), address.port());
        Ok(Packet { protocol, source: plain(source), destination: plain(destination), syn })
    }

    fn key(&self) -> FlowKey {
        FlowKey {
            src: self.source.ip().into(),
            dst: self.destination.ip().into(),
            src_port: self.source.port().to_be(),
            dst_port: self.destination.port().to_be(),
            proto: self.protocol.number(),
            scope: 0,
            zero: [0; 2],
        }
    }

    const fn phase(&self) -> Phase {
        match self.protocol {
            Protocol::Udp => Phase::Datagram,
            Protocol::Tcp if self.syn => Phase::Opening,
            Protocol::Tcp => Phase::Running,
        }
    }
}

/// An entry of the map `vips`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VipEntry {
    /// Name of the service; none: nobody has noted it.
    pub service: Option<ServiceKey>,
    /// Id of the service.
    pub service_id: u32,
    /// Index of the first slot of its table.
    pub table_base: u32,
    /// Number of slots.
    pub table_size: u32,
}

/// A slot of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotEntry {
    /// Its number in the table, from 0.
    pub number: u32,
    /// Whether flows of it are tracked.
    pub state: SlotState,
    /// The backend that owns it; none: nobody.
    pub current: Option<Holder>,
    /// The backend that owned it before it moved; none: it is clean.
    pub previous: Option<Holder>,
}

/// Whether flows of a slot are tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlotState {
    /// The table alone decides.
    Clean,
    /// Unknown connections that run go to the backend before.
    Learning,
    /// Known flows keep their backend, unknown ones go to the current one.
    Settled,
}

/// A backend that a slot or a flow names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// Index of the map `backends`.
    pub index: u32,
    /// Where it is; none: the index is free, the backend is gone.
    pub endpoint: Option<Endpoint>,
    /// Whether it is marked as not answering.
    pub down: bool,
}

/// An entry of the map `flows`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// Its backend.
    pub backend: Holder,
    /// NAT: source port towards the backend.
    pub nat_port: Option<u16>,
    /// How long ago a packet of the client was seen, seconds.
    pub age_seconds: u32,
    /// What is known of the connection; nothing of it: it is established.
    pub state: Vec<FlowState>,
}

/// What an entry of the map `flows` says about its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FlowState {
    /// The client has sent nothing but SYNs, or one packet of UDP.
    HalfOpen,
    /// The client has sent a FIN.
    FinFromClient,
    /// The backend has sent a FIN.
    FinFromBackend,
    /// One side has sent a RST.
    Reset,
}

/// The backend that was chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Chosen {
    /// Where it is.
    pub endpoint: Endpoint,
    /// Index of the map `backends`.
    pub index: u32,
    /// How packets reach it: `NAT`, `DNAT`, `IPIP`, `GUE`, `L2` or `here`.
    pub mode: String,
    /// Whether it is marked as not answering.
    pub down: bool,
    /// How many slots of the table it owns.
    pub slots: u32,
}

/// An entry of the map `reverse`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// Who asked.
    pub client: SocketAddr,
    /// Whom.
    pub vip: SocketAddr,
    /// How long ago a packet of either side was seen, seconds.
    pub age_seconds: u32,
}

/// How a packet leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Sent {
    /// Whole, inside a new header with these addresses.
    Encapsulated {
        /// Of this host.
        source: IpAddr,
        /// Of the backend.
        destination: IpAddr,
    },
    /// Whole, in UDP between these addresses.
    InUdp {
        /// Of this host; the port is of the flow.
        source: SocketAddr,
        /// Of the backend.
        destination: SocketAddr,
    },
    /// As it is, to the Ethernet address of the next hop.
    Forwarded {
        /// Address of the backend.
        backend: IpAddr,
    },
    /// With these addresses and ports in place of its own.
    Translated {
        /// New source.
        source: SocketAddr,
        /// New destination.
        destination: SocketAddr,
    },
}

/// Where a packet leaves to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NextHop {
    /// Index of the interface.
    pub interface_index: u32,
    /// Its name; none: it is gone.
    pub interface: Option<String>,
    /// Ethernet address of the neighbour.
    pub mac: String,
    /// Ethernet address of the interface.
    pub source_mac: String,
    /// Tag control information of the VLAN; none: no tag.
    pub vlan: Option<u16>,
    /// Largest IP packet of the client that is sent on, bytes; larger ones are dropped (`too_big`). None: any.
    pub largest_packet: Option<u32>,
}

/// What the program would do with `packet` if it came in at `now` (seconds of CLOCK_MONOTONIC). `interface` names the
/// interface with an index. It reads whole maps only where the program would make an entry: whether there is room.
pub fn trace(
    maps: &impl Maps,
    interface: impl Fn(u32) -> Option<String>,
    packet: &Packet,
    now: u32,
) -> Result<Trace, MapError> {
    let mut trace = Trace {
        packet: *packet,
        verdict: Verdict::NotOurs,
        why: String::new(),
        filter: None,
        vip: None,
        hash: None,
        slot: None,
        flow: None,
        host: None,
        backend: None,
        reply: None,
        sent: None,
        next_hop: None,
    };
    let way = Way { maps, key: packet.key(), phase: packet.phase(), now, made: 0 };
    (trace.verdict, trace.why) = match way.follow(&mut trace) {
        Ok(end) | Err(Stop::Verdict(end)) => end,
        Err(Stop::Map(error)) => return Err(error),
    };
    if let Some(hop) = &mut trace.next_hop {
        hop.interface = interface(hop.interface_index);
    }
    Ok(trace)
}

#[cfg(test)]
mod tests;
