//! `fairlead trace`: what the kernel would do with a packet, and why.
use super::{
    Failure, Question,
    output::{age, lines, print},
};
use crate::serve::rows::{BackendStatus, TraceRow};
use clap::ValueEnum;
use lb_bpf::{
    abi::{Action, Verdict},
    service::Protocol,
    trace::{Chosen, Flow, FlowState, Holder, NextHop, Packet, Sent, SlotEntry, SlotState, Trace},
};
use std::net::SocketAddr;

/// Says what the datapath would do with a packet, and why: frontend, slot, flow, backend, addresses, next hop
///
/// The answer is read from the maps in the kernel at this moment, by the rules of the kernel program; nothing is sent
/// and nothing is changed. The packet is taken to be whole, sound and small enough for the MTU. The answer is also
/// given for a backend's reply to a port of NAT.
///
/// Exit code 0: the packet is sent on, to a backend or back to a client. 1: it is not, for example because no service
/// has the destination, the service has no backend, or the next hop is not resolved.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Transport protocol.
    #[arg(long, value_enum)]
    proto: Proto,
    /// Source of the packet: the client.
    #[arg(long, value_name = "ADDR:PORT", value_parser = address)]
    src: SocketAddr,
    /// Destination of the packet: the VIP.
    #[arg(long, value_name = "ADDR:PORT", value_parser = address)]
    dst: SocketAddr,
    /// TCP: the packet opens a connection. Without it, it belongs to a connection that runs.
    #[arg(long)]
    syn: bool,
    #[command(flatten)]
    question: Question,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Proto {
    Tcp,
    Udp,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let protocol = match self.proto {
            Proto::Tcp => Protocol::Tcp,
            Proto::Udp => Protocol::Udp,
        };
        let packet = Packet::new(protocol, self.src, self.dst, self.syn)
            .map_err(|error| Failure::Usage(error.to_string()))?;
        let row: TraceRow = self.question.instance.ask(&path(&packet))?;
        print(&self.question.shown(&row, |row| lines(&cells(row)))?)?;
        if row.trace.is_sent() { Ok(()) } else { Err(Failure::No(String::new())) }
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "an address and a port are needed: 198.51.100.7:40000, or [2001:db8::7]:40000".to_owned()
    })
}

fn path(packet: &Packet) -> String {
    let Packet { source, destination, syn, .. } = packet;
    // Brackets may not stand in a query (RFC 3986, section 3.4).
    format!("/v1/trace?proto={}&src={source}&dst={destination}&syn={syn}", proto(packet))
        .replace('[', "%5B")
        .replace(']', "%5D")
}

const fn proto(packet: &Packet) -> &'static str {
    match packet.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// What there is to say, with its name.
fn cells(row: &TraceRow) -> Vec<(&'static str, String)> {
    let TraceRow { trace, backend_status } = row;
    let Trace { packet, filter, vip, hash, slot, flow, host, backend, reply, sent, next_hop, .. } = trace;
    let opening = if packet.syn { ", SYN" } else { "" };
    let mut cells =
        vec![("PACKET", format!("{} {} -> {}{opening}", proto(packet), packet.source, packet.destination))];
    cells.extend(filter.as_ref().map(|name| {
        let says =
            if trace.verdict == Verdict::Filtered { "drops it" } else { "may drop it: by length or bytes" };
        ("FILTER", format!("{name} {says}"))
    }));
    cells.extend(host.as_ref().map(|host| {
        let own = SocketAddr::new(host.endpoint.address, host.endpoint.port);
        ("NODE", format!("{own}, which is this one; below is what it does for its own pods"))
    }));
    if let Some(vip) = vip {
        let id = vip.service_id;
        let name =
            vip.service.as_ref().map_or_else(|| format!("without a name (id {id})"), ToString::to_string);
        cells.push(("SERVICE", name));
    }
    cells.extend(hash.map(|hash| ("HASH", format!("{hash:#010x}"))));
    if let (Some(slot), Some(vip)) = (slot, vip) {
        cells.push(("SLOT", slot_text(slot, vip.table_size)));
    }
    cells.extend(flow.as_ref().map(|flow| ("FLOW", flow_text(flow))));
    if let (Some(backend), Some(vip)) = (backend, vip) {
        cells.push(("BACKEND", backend_text(backend, vip.table_size, backend_status.as_ref())));
        cells.push(("MODE", backend.mode.clone()));
    }
    cells.extend(reply.map(|reply| {
        let age = age(reply.age_seconds.into());
        ("ANSWERS", format!("{} -> {}, last packet {age} ago", reply.client, reply.vip))
    }));
    cells.extend(sent.map(|sent| ("SENT", sent_text(packet, sent))));
    cells.extend(next_hop.as_ref().map(|hop| ("NEXT HOP", hop_text(hop))));
    let action = match trace.verdict.action() {
        Action::Pass => "passed to the stack",
        Action::Transmit => "sent",
        Action::Drop => "dropped",
    };
    cells.push(("VERDICT", format!("{} ({action})", trace.verdict.label())));
    cells.push(("WHY", trace.why.clone()));
    cells
}

fn slot_text(slot: &SlotEntry, size: u32) -> String {
    let holder = |holder: Option<Holder>| holder.as_ref().map_or_else(|| "none".to_owned(), holder_text);
    let current = holder(slot.current);
    let state = match slot.state {
        SlotState::Clean => format!("clean, backend {current}"),
        SlotState::Learning => format!("learning, backend {current}, before {}", holder(slot.previous)),
        SlotState::Settled => format!("settled, backend {current}, before {}", holder(slot.previous)),
    };
    format!("{} of {size}, {state}", slot.number)
}

fn flow_text(flow: &Flow) -> String {
    let port = flow.nat_port.map_or_else(String::new, |port| format!(", NAT port {port}"));
    let state = |state: &FlowState| match state {
        FlowState::HalfOpen => "half-open",
        FlowState::FinFromClient => "FIN from the client",
        FlowState::FinFromBackend => "FIN from the backend",
        FlowState::Reset => "reset",
    };
    let states: Vec<&str> = flow.state.iter().map(state).collect();
    let states = if states.is_empty() { "established".to_owned() } else { states.join(", ") };
    let (holder, age) = (holder_text(&flow.backend), age(flow.age_seconds.into()));
    format!("backend {holder}{port}, {states}, last packet {age} ago")
}

fn holder_text(holder: &Holder) -> String {
    let down = if holder.down { " (down)" } else { "" };
    match holder.endpoint {
        Some(endpoint) => format!("{}{down}", SocketAddr::new(endpoint.address, endpoint.port)),
        None => format!("gone (index {})", holder.index),
    }
}

fn backend_text(backend: &Chosen, size: u32, status: Option<&BackendStatus>) -> String {
    let endpoint = SocketAddr::new(backend.endpoint.address, backend.endpoint.port);
    let slots = format!("{} of {size} slots", backend.slots);
    let Some(BackendStatus { weight, health, health_reason }) = status else {
        return format!("{endpoint}, {slots}");
    };
    let weight = match weight {
        Some(0) => "weight 0 (drain)".to_owned(),
        Some(weight) => format!("weight {weight}"),
        None => "no longer declared".to_owned(),
    };
    let reason = health_reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"));
    format!("{endpoint}, {weight}, {health}{reason}, {slots}")
}

fn sent_text(packet: &Packet, sent: Sent) -> String {
    match sent {
        Sent::Encapsulated { source, destination } => format!("inside {source} -> {destination}"),
        Sent::InUdp { source, destination } => format!("inside udp {source} -> {destination}"),
        Sent::Forwarded { backend } => format!("as it is, to the Ethernet address of {backend}"),
        Sent::Translated { source, destination } => format!("as {} {source} -> {destination}", proto(packet)),
    }
}

fn hop_text(hop: &NextHop) -> String {
    let interface =
        hop.interface.clone().unwrap_or_else(|| format!("interface {} (gone)", hop.interface_index));
    let largest =
        hop.largest_packet.map_or_else(String::new, |bytes| format!(", packets up to {bytes} bytes"));
    // The lower 12 bits are the VLAN's number.
    let vlan = hop.vlan.map_or_else(String::new, |tci| format!(", VLAN {}", tci & 0xfff));
    format!("{} on {interface}{vlan}{largest}", hop.mac)
}
