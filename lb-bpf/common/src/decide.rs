//! Where a flow goes and what a packet gains on the way: the rule of dirty slots, the choice of a NAT port, the outer
//! headers, without a map in sight. The kernel program
//! decides with this, and user space says with it what the kernel program would decide.
use crate::{Backend, Config, Mode, Slot, slot_of};

/// What a packet says about its flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// TCP, SYN without ACK: a new connection.
    Opening,
    /// TCP, anything else.
    Running,
    /// UDP: it cannot be told.
    Datagram,
}

/// Whether flows to a backend of the mode with this number have entries whatever their slots are.
#[inline(always)]
pub const fn is_tracked(mode: u8) -> bool {
    mode == Mode::Nat as u8 || mode == Mode::Dnat as u8
}

/// Whether packets to a backend of the mode with this number get an outer header.
#[inline(always)]
pub const fn is_tunnel(mode: u8) -> bool {
    mode == Mode::Ipip as u8 || mode == Mode::Gue as u8
}

/// Bytes that a packet gains on the way to `backend`: an outer header of IPv4 (RFC 791, without options) or IPv6 (RFC 8200),
/// and of UDP (RFC 768).
#[inline(always)]
pub const fn overhead(backend: &Backend) -> usize {
    if !is_tunnel(backend.mode) {
        return 0;
    }
    let outer = if backend.header_sum != 0 { 20 } else { 40 };
    let udp = if backend.mode == Mode::Gue as u8 { 8 } else { 0 };
    outer + udp
}

/// Source port of GUE for a flow with this hash, host byte order: one of the ephemeral ports (RFC 6335), so that routers
/// and receive queues spread the flows.
#[inline(always)]
pub const fn gue_source(hash: u32) -> u16 {
    (0xc000 | hash >> 16 & 0x3fff) as u16
}

/// What a flow with this hash adds to the last word of the outer source of IPIP, network byte order. Receivers that spread packets
/// over queues by the outer addresses alone spread the flows so.
#[inline(always)]
pub const fn outer_source_bits(backend: &Backend, hash: u32) -> u32 {
    let bits = (backend.flags >> Backend::VARYING_SHIFT) as u32;
    (hash & ((1 << bits) - 1)).to_be()
}

/// Whether packets to this port, network byte order, may be replies to a translated source.
#[inline(always)]
pub const fn is_nat_port(config: &Config, port: u16) -> bool {
    let port = u16::from_be(port);
    port >= config.nat_port_first && port <= config.nat_port_last
}

/// Whether flows of this slot are tracked.
#[inline(always)]
pub const fn is_dirty(slot: Slot) -> bool {
    slot.previous != 0
}

/// The backend of an unknown flow of `slot`: the current one, but while a dirty slot learns, a TCP connection that
/// is not new was opened before the slot moved and belongs to the backend before.
#[inline(always)]
pub const fn unknown(slot: Slot, phase: Phase) -> u32 {
    let learning = is_dirty(slot) && slot.previous & Slot::SETTLED == 0;
    if learning && matches!(phase, Phase::Running) { slot.previous } else { slot.current }
}

/// Whether a flow that could not be pinned to `index` is sent there again by its next packet.
#[inline(always)]
pub fn stays_without_entry(slot: Slot, phase: Phase, index: u32) -> bool {
    let next = if phase == Phase::Opening { Phase::Running } else { phase };
    unknown(slot, next) == index
}

/// Whether a flow of `service` that knows this backend, or is from before its slot moved, may go to it: nobody else
/// has the entry now, and the backend answers.
#[inline(always)]
pub const fn is_usable(backend: &Backend, service: u32) -> bool {
    backend.flags & Backend::DOWN == 0 && backend.service == service
}

/// How many source ports are tried for a new flow of NAT.
pub const NAT_ATTEMPTS: u32 = 16;

/// The source ports that a new flow of NAT tries, one after the other: [`NAT_ATTEMPTS`] of them.
#[derive(Clone, Copy, Debug)]
pub struct NatPorts {
    first: u16,
    count: u32,
    seed: u32,
}

impl NatPorts {
    /// For a flow with this hash, from the range `first` to `last` (host byte order, inclusive). `None`: it is empty.
    #[inline(always)]
    pub const fn new(first: u16, last: u16, hash: u32) -> Option<Self> {
        if first == 0 || last < first {
            return None;
        }
        // Flows of one slot have the high bits of the hash in common; the port must not depend on these alone.
        let seed = hash.wrapping_mul(0x9e37_79b1);
        Some(NatPorts { first, count: last as u32 - first as u32 + 1, seed })
    }

    /// The port to try now, network byte order.
    #[inline(always)]
    pub const fn port(&self) -> u16 {
        (self.first + slot_of(self.seed, self.count) as u16).to_be()
    }

    /// Goes on to the next one.
    #[inline(always)]
    pub const fn advance(&mut self) {
        self.seed = self.seed.wrapping_add(0x61c8_8647);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: Slot = Slot { current: 7, previous: 0 };
    const LEARNING: Slot = Slot { current: 7, previous: 3 };
    const SETTLED: Slot = Slot { current: 7, previous: 3 | Slot::SETTLED };

    #[test]
    fn only_running_connections_of_a_learning_slot_go_to_the_previous_backend() {
        for slot in [CLEAN, LEARNING, SETTLED] {
            for phase in [Phase::Opening, Phase::Running, Phase::Datagram] {
                let before = slot == LEARNING && phase == Phase::Running;
                assert_eq!(unknown(slot, phase), if before { 3 } else { 7 }, "{slot:?} {phase:?}");
            }
        }
    }

    #[test]
    fn a_new_connection_needs_its_entry_only_while_the_slot_learns() {
        for slot in [CLEAN, LEARNING, SETTLED] {
            for phase in [Phase::Opening, Phase::Running, Phase::Datagram] {
                let index = unknown(slot, phase);
                let needed = slot == LEARNING && phase == Phase::Opening;
                assert_eq!(stays_without_entry(slot, phase, index), !needed, "{slot:?} {phase:?}");
            }
        }
    }

    #[test]
    fn outer_headers_are_as_long_as_the_mode_and_the_family_say() {
        let overhead = |mode: Mode, header_sum| {
            overhead(&Backend { mode: mode as u8, header_sum, ..Backend::default() })
        };
        assert_eq!(Mode::ALL.map(|mode| overhead(mode, 1)), [0, 20, 28, 0, 0, 0]);
        assert_eq!(Mode::ALL.map(|mode| overhead(mode, 0)), [0, 40, 48, 0, 0, 0]);
        assert_eq!((gue_source(0), gue_source(u32::MAX)), (0xc000, 0xffff));
        let config = Config { nat_port_first: 9, nat_port_last: 10, ..Config::default() };
        let is_port = |port: u16| is_nat_port(&config, port.to_be());
        assert_eq!([8, 9, 10, 11].map(is_port), [false, true, true, false]);
    }

    #[test]
    fn ports_stay_within_their_range() {
        assert!(NatPorts::new(0, 9, 1).is_none() && NatPorts::new(9, 8, 1).is_none());
        for (first, last) in [(1, u16::MAX), (20_000, 20_000), (65_535, 65_535), (15_000, 32_000)] {
            for hash in [0, 1, 0x9e37_79b9, u32::MAX] {
                let mut ports = NatPorts::new(first, last, hash).unwrap();
                for _ in 0..NAT_ATTEMPTS {
                    assert!((first..=last).contains(&u16::from_be(ports.port())), "{first} {last} {hash}");
                    ports.advance();
                }
            }
        }
    }
}
