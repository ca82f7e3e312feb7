//! How a packet is with the kernel: a frame that a driver hands over (XDP), or a socket buffer (TC). Everything that is
//! decided is written once, for any [`Context`].
use crate::{
    datapath::Outcome,
    decap,
    family::{Family, Network, V4},
    global, handover, local,
    maps::Scratch,
    packet::{Macs, Packet},
    vlan,
};
use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, xdp_action,
    },
    helpers::{
        bpf_l4_csum_replace, bpf_redirect, bpf_skb_adjust_room, bpf_skb_pull_data, bpf_skb_vlan_push,
        bpf_xdp_adjust_head,
    },
    programs::XdpContext,
};
use lb_bpf_common::{Action, Tags, Verdict, fold, proto, scope};

/// A packet and what the kernel lets do with it.
pub trait Context {
    /// Whether packets come in here that nothing of this program has seen before: then packet filters apply.
    const FIRST: bool;

    /// Whether packets are reported if somebody wants to know. Everywhere but in the bench, which compares.
    const REPORTS: bool = true;

    /// Whether packets to backends of this host are left to the stack, which routes them and their replies; else they are
    /// redirected.
    const ROUTES: bool;

    /// Whether packets are about to leave this host.
    const LEAVES: bool;

    /// The packet as it is now: pointers from before a change of its size are void.
    fn packet(&self) -> Packet;

    /// Index of the interface where the packet came in, or where it is about to leave.
    fn interface(&self) -> u32;

    /// The interface where replies to this packet leave; 0: they are for this host itself.
    fn way_back(&self) -> u32;

    /// How long the longest packet is on the wire when an IP packet of `length` bytes may be one of many that are cut later.
    fn wire_length(&self, length: usize) -> usize;

    /// Makes room for an outer header between the Ethernet header and the IP header; then the Ethernet header has to be
    /// written again.
    fn encapsulate(&self, size: usize, is_v4: bool, is_udp: bool) -> bool;

    /// Changes the TCP or UDP checksum at `offset` for changed addresses and ports. What they add to the inverted
    /// checksum. `None` cannot happen after the packet was parsed. Pointers into the packet are void.
    fn fix_checksum(&self, offset: usize, is_udp: bool, addresses: u64, ports: u64) -> Option<()>;

    /// Reports a packet whose flow is not in [`Scratch`], with a verdict and what [`Context::filter`] said.
    fn report_early(&self, verdict: u32, rule: u32);

    /// Takes the VLAN tags off and notes them; whether what remains can be handled.
    fn strip(&self, tags: &mut Tags) -> bool;

    /// Puts VLAN tags on.
    fn push(&self, tags: &Tags) -> bool;

    /// Claims a port for the flow in [`Scratch`]; `Translated`: it has one.
    fn claim(&self) -> Verdict;

    /// Translates the request in [`Scratch`] whose transport header is at an offset. Pointers into the packet are void, here
    /// and below.
    fn translate_request(&self, transport: u32) -> Verdict;

    /// Translates the packet in [`Scratch`] if it is a reply. `judged` is as [`global::reply`] takes it.
    fn translate_reply(&self, transport: u32, judged: u32) -> Verdict;

    /// What is behind the extension headers of IPv6.
    fn behind_extensions(&self) -> u64;

    /// Which of the first `limit` packet filters drops the packet: its index and 1 more; 0: none.
    fn filter(&self, limit: u32) -> u32;

    /// The backend of a service that the connection ID of a QUIC packet names, whose UDP header is at an offset: its index; 0:
    /// none. The server ID has so many bytes.
    fn quic_server(&self, transport: u32, service: u32, bytes: u32) -> u32;

    /// Handles UDP to the port of GUE, as a tunnel end; not ours: it is not for a tunnel end here.
    fn gue(&self) -> Outcome;

    /// Handles what is neither TCP nor UDP.
    fn control<F: Family>(&self, network: &Network) -> Outcome;

    /// Tells the sender that only `mtu` bytes fit, if that can be done here.
    fn too_big(&self, mtu: u32) -> Verdict;

    /// Tells the sender that the packet had no hops left, if that can be done here.
    fn time_exceeded(&self) -> Verdict;

    /// What the program returns.
    fn action(&self, verdict: Verdict, ifindex: u32) -> i32;
}

impl Context for XdpContext {
    const FIRST: bool = true;
    const ROUTES: bool = true;
    const LEAVES: bool = false;

    #[inline(always)]
    fn packet(&self) -> Packet {
        let (start, end) = (self.data(), self.data_end());
        // SAFETY: the kernel gives the bounds, and only this program sees the packet.
        unsafe { Packet::new(start, end, end - start) }
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        self.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn way_back(&self) -> u32 {
        self.interface()
    }

    #[inline(always)]
    fn wire_length(&self, length: usize) -> usize {
        length
    }

    #[inline(always)]
    fn encapsulate(&self, size: usize, _is_v4: bool, _is_udp: bool) -> bool {
        // SAFETY: the context is the kernel's. All pointers into the packet end here.
        unsafe { bpf_xdp_adjust_head(self.ctx, -(size as i32)) == 0 }
    }

    #[inline(always)]
    fn fix_checksum(&self, offset: usize, is_udp: bool, addresses: u64, ports: u64) -> Option<()> {
        let checksum = self.packet().at::<u16>(offset)?;
        // SAFETY: `at` has checked the bounds.
        let checksum = unsafe { &mut *checksum };
        // 0 says that there is no checksum (RFC 768; RFC 6936 for tunnels over IPv6): it stays so.
        if !is_udp || *checksum != 0 {
            let good = !fold((!*checksum) as u64 + addresses + ports);
            *checksum = if is_udp && good == 0 { 0xffff } else { good };
        }
        Some(())
    }

    #[inline(always)]
    fn strip(&self, tags: &mut Tags) -> bool {
        let packet = self.packet();
        match packet.at::<u32>(size_of::<Macs>()) {
            // SAFETY: `at` has checked the bounds.
            Some(word) if vlan::is_tag(unsafe { *word }) => vlan::strip(self, tags),
            _ => true,
        }
    }

    #[inline(always)]
    fn push(&self, tags: &Tags) -> bool {
        vlan::push(self, tags)
    }

    #[inline(always)]
    fn report_early(&self, verdict: u32, rule: u32) {
        global::fairlead_xdp_report(self.ctx, verdict, rule);
    }

    #[inline(always)]
    fn claim(&self) -> Verdict {
        global::verdict(global::fairlead_xdp_claim(self.ctx))
    }

    #[inline(always)]
    fn translate_request(&self, transport: u32) -> Verdict {
        global::verdict(global::fairlead_xdp_request(self.ctx, transport))
    }

    #[inline(always)]
    fn translate_reply(&self, transport: u32, judged: u32) -> Verdict {
        global::verdict(global::fairlead_xdp_reply(self.ctx, transport, judged))
    }

    #[inline(always)]
    fn behind_extensions(&self) -> u64 {
        global::fairlead_xdp_extensions(self.ctx)
    }

    #[inline(always)]
    fn filter(&self, limit: u32) -> u32 {
        global::fairlead_xdp_filter(self.ctx, limit)
    }

    #[inline(always)]
    fn quic_server(&self, transport: u32, service: u32, bytes: u32) -> u32 {
        global::unknown(global::fairlead_xdp_quic(self.ctx, transport, service, bytes))
    }

    #[inline(always)]
    fn gue(&self) -> Outcome {
        out_of_tunnel(self, global::fairlead_gue(self.ctx))
    }

    #[inline(always)]
    fn control<F: Family>(&self, network: &Network) -> Outcome {
        match network.proto {
            proto::IPIP | proto::IPV6 => out_of_tunnel(self, global::fairlead_decapsulate(self.ctx)),
            proto if proto == F::ICMP => control_message(self, F::ETHER_TYPE, scope::ALL),
            _ => Outcome::verdict(Verdict::NotOurs),
        }
    }

    #[inline(always)]
    fn too_big(&self, mtu: u32) -> Verdict {
        global::verdict(global::fairlead_too_big(self.ctx, mtu))
    }

    #[inline(always)]
    fn time_exceeded(&self) -> Verdict {
        global::verdict(global::fairlead_time_exceeded(self.ctx))
    }

    #[inline(always)]
    fn action(&self, verdict: Verdict, ifindex: u32) -> i32 {
        let action = match verdict.action() {
            Action::Pass => xdp_action::XDP_PASS,
            Action::Drop => xdp_action::XDP_DROP,
            Action::Transmit if ifindex == 0 => xdp_action::XDP_PASS,
            Action::Transmit if ifindex != self.interface() => handover::redirect(self, ifindex),
            Action::Transmit if handover::is_wary() => global::fairlead_send_back(self.ctx, ifindex),
            Action::Transmit => xdp_action::XDP_TX,
        };
        action as i32
    }
}

/// What becomes of a packet that a tunnel end here has looked at; `given` is what [`global::fairlead_decapsulate`] gave.
#[inline(always)]
fn out_of_tunnel(ctx: &XdpContext, given: u32) -> Outcome {
    match global::unknown(given) {
        decap::TO_LOCAL => local::arrive(ctx),
        number => Outcome::verdict(global::verdict(number)),
    }
}

/// Handles an ICMP message to a VIP, about packets of a frontend of the scope `of`.
#[inline(always)]
pub fn control_message(ctx: &XdpContext, ether_type: u16, of: u8) -> Outcome {
    let verdict = global::verdict(match ether_type {
        V4::ETHER_TYPE => global::fairlead_icmp(ctx.ctx, of.into()),
        _ => global::fairlead_icmpv6(ctx.ctx, of.into()),
    });
    match Scratch::get() {
        Some(Scratch { ifindex, vlan, .. }) => {
            Outcome { verdict, ifindex: *ifindex, vlan: *vlan, is_local: false }
        }
        None => Outcome::verdict(Verdict::NotOurs),
    }
}

/// A socket buffer: one that came in, or with `EGRESS` one of this host that goes out. ICMP and tunnels of others are not
/// handled here: XDP does that where the packets come in.
pub struct Skb<const EGRESS: bool>(pub *mut __sk_buff);

impl<const EGRESS: bool> Skb<EGRESS> {
    /// The headers as far as they are looked at, in front of the part of the buffer that programs see.
    const HEADERS: u32 = 256;

    /// The buffer, with all headers where programs see them.
    #[inline(always)]
    pub fn new(skb: *mut __sk_buff) -> Self {
        // SAFETY: the kernel's context.
        let (length, linear) = unsafe { ((*skb).len, (*skb).data_end - (*skb).data) };
        let wanted = if length < Self::HEADERS { length } else { Self::HEADERS };
        if linear < wanted {
            // SAFETY: likewise. If it fails, what is missing is missing.
            unsafe { bpf_skb_pull_data(skb, wanted) };
        }
        Skb(skb)
    }
}

impl<const EGRESS: bool> Context for Skb<EGRESS> {
    const FIRST: bool = !EGRESS;
    const ROUTES: bool = false;
    const LEAVES: bool = EGRESS;

    #[inline(always)]
    fn packet(&self) -> Packet {
        // SAFETY: the kernel's context, and only this program sees the packet.
        unsafe { Packet::new((*self.0).data as usize, (*self.0).data_end as usize, (*self.0).len as usize) }
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: the kernel's context.
        unsafe { (*self.0).ifindex }
    }

    #[inline(always)]
    fn way_back(&self) -> u32 {
        if EGRESS { 0 } else { self.interface() }
    }

    /// The kernel makes the segments of a large buffer smaller by an outer header.
    #[inline(always)]
    fn wire_length(&self, length: usize) -> usize {
        // SAFETY: the kernel's context.
        if unsafe { (*self.0).gso_size } != 0 { 0 } else { length }
    }

    #[inline(always)]
    fn encapsulate(&self, size: usize, is_v4: bool, is_udp: bool) -> bool {
        let family = if is_v4 { BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 } else { BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 };
        let flags = family | if is_udp { BPF_F_ADJ_ROOM_ENCAP_L4_UDP } else { 0 };
        // SAFETY: the context is the kernel's. All pointers into the packet end here.
        unsafe { bpf_skb_adjust_room(self.0, size as i32, BPF_ADJ_ROOM_MAC, flags as u64) == 0 }
    }

    /// By the helper, which knows whether the checksum is still to be finished by the device.
    #[inline(always)]
    fn fix_checksum(&self, offset: usize, is_udp: bool, addresses: u64, ports: u64) -> Option<()> {
        let mangled = if is_udp { BPF_F_MARK_MANGLED_0 as u64 } else { 0 };
        let (offset, addresses, ports) = (offset as u32, fold(addresses) as u64, fold(ports) as u64);
        // SAFETY: the context is the kernel's. All pointers into the packet end here.
        let done = unsafe {
            bpf_l4_csum_replace(self.0, offset, 0, addresses, BPF_F_PSEUDO_HDR as u64 | mangled) == 0
                && bpf_l4_csum_replace(self.0, offset, 0, ports, mangled) == 0
        };
        done.then_some(())
    }

    /// The kernel keeps the tag beside the packet.
    #[inline(always)]
    fn strip(&self, _tags: &mut Tags) -> bool {
        true
    }

    #[inline(always)]
    fn push(&self, tags: &Tags) -> bool {
        let [first, _] = tags.0;
        let (tpid, tci) = (first as u16, u16::from_be((first >> 16) as u16));
        // SAFETY: the context is the kernel's. All pointers into the packet end here.
        unsafe { bpf_skb_vlan_push(self.0, tpid, tci) == 0 }
    }

    #[inline(always)]
    fn report_early(&self, verdict: u32, rule: u32) {
        global::fairlead_tc_report(self.0, verdict, rule);
    }

    #[inline(always)]
    fn claim(&self) -> Verdict {
        global::verdict(if EGRESS {
            global::fairlead_tc_claim_own(self.0)
        } else {
            global::fairlead_tc_claim(self.0)
        })
    }

    #[inline(always)]
    fn translate_request(&self, transport: u32) -> Verdict {
        global::verdict(global::fairlead_tc_request(self.0, transport))
    }

    #[inline(always)]
    fn translate_reply(&self, transport: u32, judged: u32) -> Verdict {
        global::verdict(global::fairlead_tc_reply(self.0, transport, judged))
    }

    #[inline(always)]
    fn behind_extensions(&self) -> u64 {
        global::fairlead_tc_extensions(self.0)
    }

    #[inline(always)]
    fn filter(&self, limit: u32) -> u32 {
        global::fairlead_tc_filter(self.0, limit)
    }

    #[inline(always)]
    fn quic_server(&self, transport: u32, service: u32, bytes: u32) -> u32 {
        global::unknown(global::fairlead_tc_quic(self.0, transport, service, bytes))
    }

    #[inline(always)]
    fn gue(&self) -> Outcome {
        Outcome::verdict(Verdict::NotOurs)
    }

    #[inline(always)]
    fn control<F: Family>(&self, _network: &Network) -> Outcome {
        Outcome::verdict(Verdict::NotOurs)
    }

    #[inline(always)]
    fn too_big(&self, _mtu: u32) -> Verdict {
        Verdict::TooBig
    }

    #[inline(always)]
    fn time_exceeded(&self) -> Verdict {
        Verdict::TtlExpired
    }

    #[inline(always)]
    fn action(&self, verdict: Verdict, ifindex: u32) -> i32 {
        match verdict.action() {
            // The next program decides.
            Action::Pass => TC_ACT_UNSPEC,
            Action::Drop => TC_ACT_SHOT as i32,
            Action::Transmit if ifindex == 0 => TC_ACT_UNSPEC,
            // SAFETY: no pointer is passed.
            Action::Transmit => (unsafe { bpf_redirect(ifindex, 0) }) as i32,
        }
    }
}
