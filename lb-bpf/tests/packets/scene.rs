//! The little world of the tests, in both families, and the table that they are.
use crate::{
    frame::{Frame, OWN, ROUTER, Transport, Tunnel},
    rig::{DROP, ELSEWHERE, HANDED_OVER, INGRESS, PASS, Rig, TX, World},
};
use lb_bpf::abi::{
    Addr, Backend, Config, Counter, FlowEntry, FlowKey, Mode, Slot, Verdict, Vip, VipKey, flow_hash,
    outer_header_sum, slot_of,
};
use std::net::{IpAddr, SocketAddr};

/// The id of the one service.
pub(crate) const SERVICE: u32 = 9;
/// Number of its slots, and where they begin.
pub(crate) const SLOTS: u32 = 7;
pub(crate) const BASE: u32 = 5;
/// First and last port of NAT.
pub(crate) const PORTS: (u16, u16) = (20_000, 20_000);

/// Address family of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}
pub(crate) use Family::{V4, V6};

impl Family {
    fn pick(self, v4: &str, v6: &str) -> IpAddr {
        (if self == V4 { v4 } else { v6 }).parse().unwrap()
    }

    pub(crate) fn client(self) -> SocketAddr {
        SocketAddr::new(self.pick("198.51.100.7", "2001:db8:7::7"), 40_007)
    }

    pub(crate) fn vip(self) -> SocketAddr {
        SocketAddr::new(self.pick("203.0.113.10", "2001:db8:1::10"), 80)
    }

    /// This host towards the backends.
    pub(crate) fn own(self) -> IpAddr {
        self.pick("10.1.0.2", "fd00:1::2")
    }

    /// Address of the backend at an index of `backends`.
    pub(crate) fn backend(self, index: u32) -> IpAddr {
        self.pick(&format!("10.1.0.{}", 10 + index), &format!("fd00:1::{}", 10 + index))
    }

    /// Length of a header without options.
    pub(crate) fn header(self) -> usize {
        if self == V4 { 20 } else { 40 }
    }
}

/// Next hop and own address towards the backend at `index`.
pub(crate) fn backend_macs(index: u32) -> ([u8; 6], [u8; 6]) {
    ([2, 0, 0, 0, 1, index as u8], [2, 0, 0, 0, 2, index as u8])
}

/// Port of the backends under NAT.
pub(crate) const BACKEND_PORT: u16 = 8080;

/// A backend's entry: odd indices are behind the ingress interface, even ones behind another.
pub(crate) fn backend(family: Family, mode: Mode, index: u32) -> Backend {
    let (addr, source) = (Addr::from(family.backend(index)), Addr::from(family.own()));
    let (next_hop, source_mac) = backend_macs(index);
    let has_outer_v4 = mode.is_tunnel() && family == V4;
    Backend {
        addr,
        source,
        next_hop,
        source_mac,
        ifindex: if index % 2 == 1 { INGRESS } else { ELSEWHERE },
        port: if mode.is_translated() { BACKEND_PORT } else { family.vip().port() }.to_be(),
        mode: mode as u8,
        flags: 0,
        header_sum: if has_outer_v4 { outer_header_sum(&source, &addr) } else { 0 },
        service: SERVICE,
        mtu: 1500,
        vlan: 0,
    }
}

/// How the frame leaves for the backend at `index`: the action that goes with it.
pub(crate) fn out(index: u32) -> u32 {
    if index % 2 == 1 { TX } else { HANDED_OVER + ELSEWHERE }
}

/// A VIP for TCP and UDP with four backends of one mode; every slot is clean and names backend 1.
pub(crate) fn world(family: Family, mode: Mode) -> World {
    let vip = Vip { service: SERVICE, base: BASE, size: SLOTS, flags: 0 };
    let key =
        |proto| VipKey { addr: family.vip().ip().into(), port: family.vip().port().to_be(), proto, scope: 0 };
    let ping = VipKey { port: 0, ..key(if family == V4 { 1 } else { 58 }) };
    World {
        vips: vec![(key(6), vip), (key(17), vip), (ping, Vip { service: 0, base: 0, size: 0, flags: 0 })],
        slots: vec![Slot { current: 1, previous: 0 }; (BASE + SLOTS) as usize],
        backends: (1..=4).map(|index| backend(family, mode, index)).collect(),
        config: Config {
            flags: Config::NAT,
            nat_port_first: PORTS.0,
            nat_port_last: PORTS.1,
            ..Config::default()
        },
        ..World::default()
    }
}

/// The same with all slots set to `slot`.
pub(crate) fn with_slots(mut world: World, slot: Slot) -> World {
    world.slots.fill(slot);
    world
}

/// A packet of the client to the VIP.
pub(crate) fn request(family: Family, transport: Transport) -> Frame {
    Frame::new(transport, family.client(), family.vip())
}

/// The key of the client's flow.
pub(crate) fn flow_key(frame: &Frame) -> FlowKey {
    FlowKey {
        src: frame.src.ip().into(),
        dst: frame.dst.ip().into(),
        src_port: frame.src.port().to_be(),
        dst_port: frame.dst.port().to_be(),
        proto: if matches!(frame.transport, Transport::Tcp(_)) { 6 } else { 17 },
        scope: 0,
        zero: [0; 2],
    }
}

/// Index of the slot of the client's flow.
pub(crate) fn slot_index(frame: &Frame) -> u32 {
    BASE + slot_of(flow_hash(&flow_key(frame)), SLOTS)
}

/// The entry of a flow that was last seen long ago.
pub(crate) fn entry(frame: &Frame, backend: u32, nat_port: u16) -> FlowEntry {
    FlowEntry { backend, slot: slot_index(frame), seen: 1, nat_port: nat_port.to_be(), state: 0 }
}

/// How `frame` leaves for the backend at `index` in a tunnel.
pub(crate) fn tunnelled(family: Family, frame: &Frame, index: u32) -> Vec<u8> {
    frame.tunnelled(&tunnel(family, frame, index))
}

/// The tunnel of the flow of `frame` to the backend at `index`.
pub(crate) fn tunnel(family: Family, frame: &Frame, index: u32) -> Tunnel {
    let (eth_dst, eth_src) = backend_macs(index);
    let bits = flow_hash(&flow_key(frame)).to_ne_bytes();
    let flow_label = u32::from_be_bytes(bits) & 0x000f_ffff;
    Tunnel {
        eth_dst,
        eth_src,
        src: family.own(),
        dst: family.backend(index),
        class: frame.class & 0xfc,
        flow_label,
        proto: if frame.src.is_ipv4() { 4 } else { 41 },
        fragment: 0x4000,
        options: Vec::new(),
    }
}

/// The tunnel of a packet that comes in for the tunnel end at backend 1.
pub(crate) fn arriving(outer: Family, inner: Family) -> Tunnel {
    Tunnel {
        eth_dst: OWN,
        eth_src: ROUTER,
        src: outer.own(),
        dst: outer.backend(1),
        class: 0,
        flow_label: 0x12345,
        proto: if inner == V4 { 4 } else { 41 },
        fragment: 0x4000,
        options: Vec::new(),
    }
}

/// How `frame` leaves for the backend at `index`, translated with the source port `nat_port`.
pub(crate) fn translated(family: Family, frame: &Frame, index: u32, nat_port: u16) -> Vec<u8> {
    let (eth_dst, eth_src) = backend_macs(index);
    let mut frame = frame.clone().ttl(frame.ttl - 1).macs(eth_dst, eth_src);
    frame.src = SocketAddr::new(family.own(), nat_port);
    frame.dst = SocketAddr::new(family.backend(index), BACKEND_PORT);
    frame.bytes()
}

/// The backend's reply to a translated packet, as it comes in.
pub(crate) fn reply(family: Family, transport: Transport, index: u32, nat_port: u16) -> Frame {
    let src = SocketAddr::new(family.backend(index), BACKEND_PORT);
    Frame::new(transport, src, SocketAddr::new(family.own(), nat_port)).macs(OWN, backend_macs(index).0)
}

/// The reply as the client gets it, by the way that its packets came.
pub(crate) fn returned(family: Family, frame: &Frame) -> Vec<u8> {
    let mut frame = frame.clone().ttl(frame.ttl - 1).macs(ROUTER, OWN);
    (frame.src, frame.dst) = (family.vip(), family.client());
    frame.bytes()
}

/// What must become of a packet.
#[derive(Clone, Debug)]
pub(crate) enum Expect {
    /// Sent to the backend at this index; the flag: it counts as a new flow.
    Sent { backend: u32, new: bool, bytes: Vec<u8> },
    /// Sent to the client.
    Returned(Vec<u8>),
    /// Passed or dropped, not changed, with this verdict.
    Untouched(Verdict),
    /// Sent back to where it came from, changed, with this verdict.
    Answered(Verdict, Vec<u8>),
    /// Passed, changed.
    Passed(Verdict, Vec<u8>),
    /// Passed, translated to the backend of this host at this index; sent through the backend `here`, if there is one.
    Delivered { here: Option<u32>, backend: u32, new: bool, bytes: Vec<u8> },
}

/// One line of the table: packets in order through one world.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) world: World,
    pub(crate) steps: Vec<(Vec<u8>, Expect)>,
    /// Looks at the maps in the end.
    pub(crate) check: Box<dyn Fn(&mut Rig)>,
}

/// A case of one packet.
pub(crate) fn case(name: impl Into<String>, world: World, packet: Vec<u8>, expect: Expect) -> Case {
    Case { name: name.into(), world, steps: vec![(packet, expect)], check: Box::new(|_| {}) }
}

impl Case {
    pub(crate) fn then(mut self, packet: Vec<u8>, expect: Expect) -> Self {
        self.steps.push((packet, expect));
        self
    }

    pub(crate) fn check(mut self, check: impl Fn(&mut Rig) + 'static) -> Self {
        self.check = Box::new(check);
        self
    }

    /// Runs all packets, and compares action, bytes and counters after each.
    pub(crate) fn run(&self, rig: &mut Rig) {
        rig.fill(&self.world);
        let mut verdicts = std::collections::BTreeMap::<Verdict, Counter>::new();
        let mut backends = std::collections::BTreeMap::<u32, Counter>::new();
        for (number, (packet, expect)) in self.steps.iter().enumerate() {
            let result = rig.run(packet);
            let (action, bytes) = match expect {
                Expect::Sent { backend, bytes, .. } => (out(*backend), bytes),
                Expect::Returned(bytes) | Expect::Answered(_, bytes) => (TX, bytes),
                Expect::Passed(_, bytes) | Expect::Delivered { bytes, .. } => (PASS, bytes),
                Expect::Untouched(verdict) => (untouched(*verdict), packet),
            };
            let step = format!("{}, packet {}", self.name, number + 1);
            assert_eq!(result.action, action, "{step}: XDP action (counted: {:?})", rig.counted());
            assert_eq!(hex(&result.bytes), hex(bytes), "{step}: bytes");
            if let Expect::Delivered { here: Some(here), new, .. } = expect {
                let counter = backends.entry(*here).or_default();
                counter.packets += 1;
                counter.bytes += packet.len() as u64;
                counter.flows += u64::from(*new);
            }
            let (counter, new) = match expect {
                Expect::Sent { backend, new, .. } | Expect::Delivered { backend, new, .. } => {
                    (Some(backends.entry(*backend).or_default()), *new)
                }
                Expect::Untouched(Verdict::NotOurs) => (None, false),
                Expect::Untouched(verdict) | Expect::Passed(verdict, _) | Expect::Answered(verdict, _) => {
                    (Some(verdicts.entry(*verdict).or_default()), false)
                }
                Expect::Returned(_) => (Some(verdicts.entry(Verdict::Returned).or_default()), false),
            };
            if let Some(counter) = counter {
                counter.packets += 1;
                counter.bytes += counted_length(packet, expect);
                counter.flows += u64::from(new);
            }
            let expected = (verdicts.clone().into_iter().collect(), backends.clone().into_iter().collect());
            assert_eq!(rig.counted(), expected, "{step}: counters");
        }
        (self.check)(rig);
        self.run_prefixes(rig);
    }

    /// Whatever is cut off at the end, the program drops or passes what is left, and never aborts.
    fn run_prefixes(&self, rig: &Rig) {
        for (packet, _) in &self.steps {
            for length in 14..end_of_ip(packet).min(packet.len()) {
                let action = rig.run(&packet[..length]).action;
                assert!(
                    [DROP, PASS].contains(&action),
                    "{}: {length} of {} bytes: {action}",
                    self.name,
                    packet.len()
                );
            }
        }
    }
}

/// The action of a verdict that changes nothing: written out again, so that a changed table is noticed.
fn untouched(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::NotOurs | Verdict::Unresolved | Verdict::DecapRefused | Verdict::NoBackendPassed => PASS,
        Verdict::NoBackend
        | Verdict::Malformed
        | Verdict::Fragment
        | Verdict::TtlExpired
        | Verdict::TooBig
        | Verdict::NatPortsExhausted
        | Verdict::FlowTableFull
        | Verdict::NoHeadroom
        | Verdict::EchoLimited
        | Verdict::NoFlow
        | Verdict::Filtered
        | Verdict::SourceDenied
        | Verdict::HeaderChain => DROP,
        Verdict::Encapsulated
        | Verdict::Translated
        | Verdict::Returned
        | Verdict::Decapsulated
        | Verdict::EchoReply
        | Verdict::TooBigAnswered
        | Verdict::TtlAnswered
        | Verdict::NotHandedOver
        | Verdict::Forwarded
        | Verdict::ReturnedHere => {
            panic!("{verdict:?} changes the packet")
        }
    }
}

/// What comes out of a tunnel is counted without it.
fn counted_length(packet: &[u8], expect: &Expect) -> u64 {
    match expect {
        Expect::Delivered { bytes, .. } => bytes.len() as u64,
        _ => packet.len() as u64,
    }
}

/// Where the IP packet ends by its own header: behind it there is only padding.
fn end_of_ip(packet: &[u8]) -> usize {
    let length =
        |at: usize| packet.get(at..at + 2).map_or(0, |pair| usize::from(pair[0]) << 8 | usize::from(pair[1]));
    match packet[12..14] {
        [0x08, 0x00] => 14 + length(16),
        [0x86, 0xdd] => 14 + 40 + length(18),
        _ => packet.len(),
    }
}

/// Sixteen bytes a line: the difference of two is readable.
fn hex(bytes: &[u8]) -> Vec<String> {
    bytes
        .chunks(16)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "))
        .collect()
}
