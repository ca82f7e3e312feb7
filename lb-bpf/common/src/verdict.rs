//! What the datapath decided about a packet. One number is the counter's index and the metric's label, and one
//! total match gives the action.

/// What happens to the packet in the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Up the stack.
    Pass,
    /// Out: back through the interface it came from, or redirected to the backend's.
    Transmit,
    /// Discarded.
    Drop,
}

macro_rules! verdicts {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $label:literal, $action:ident;)*) => {
        /// The verdict on one packet.
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Verdict {
            $($(#[$doc])* $name = $number,)*
        }

        impl Verdict {
            /// Every verdict, in the order of the numbers.
            pub const ALL: &[Verdict] = &[$(Verdict::$name,)*];

            /// The verdict with this number.
            #[inline(always)]
            pub const fn of(number: u32) -> Option<Verdict> {
                match number { $($number => Some(Verdict::$name),)* _ => None }
            }

            /// Name in metrics, events and dumps.
            pub const fn label(self) -> &'static str {
                match self { $(Verdict::$name => $label,)* }
            }

            /// What becomes of the packet.
            #[inline(always)]
            pub const fn action(self) -> Action {
                match self { $(Verdict::$name => Action::$action,)* }
            }
        }
    };
}

verdicts! {
    /// Not for a VIP of ours.
    NotOurs = 0, "not_ours", Pass;
    /// Encapsulated and sent to the backend.
    Encapsulated = 1, "encapsulated", Transmit;
    /// Translated and sent to the backend.
    Translated = 2, "translated", Transmit;
    /// A reply, translated back and sent to the client.
    Returned = 3, "returned", Transmit;
    /// The outer header was removed; the inner packet goes up the stack.
    Decapsulated = 4, "decapsulated", Pass;
    /// The next hop is not known yet: the stack routes the packet and learns the neighbour.
    Unresolved = 5, "unresolved", Pass;
    /// The service has no backend.
    NoBackend = 6, "no_backend", Drop;
    /// A header is cut short or contradicts itself.
    Malformed = 7, "malformed", Drop;
    /// A fragment of a packet for a VIP whose first fragment was not seen in time, or a fragmented ping.
    Fragment = 8, "fragment", Drop;
    /// TTL or hop limit ran out, and the sender is not told.
    TtlExpired = 9, "ttl_expired", Drop;
    /// The packet as it would leave does not fit into the MTU, and the sender is not told: it lets routers fragment,
    /// or there were too many answers ([`crate::Limit::TooBig`]).
    TooBig = 10, "too_big", Drop;
    /// No free source port towards the backend.
    NatPortsExhausted = 11, "nat_ports_exhausted", Drop;
    /// The flow table is full.
    FlowTableFull = 12, "flow_table_full", Drop;
    /// The kernel refused to move the packet's head or tail.
    NoHeadroom = 13, "no_headroom", Drop;
    /// Tunnel packet for no pair of tunnel end and VIP in `decap`.
    DecapRefused = 14, "decap_refused", Pass;
    /// A VIP answered a ping.
    EchoReply = 15, "echo_reply", Transmit;
    /// A ping to a VIP, above the rate of [`crate::Limit::Echo`].
    EchoLimited = 16, "echo_limited", Drop;
    /// As [`Verdict::TooBig`], and the sender was told the MTU that fits.
    TooBigAnswered = 17, "too_big_answered", Transmit;
    /// An ICMP error about a flow of a NAT service that has no entry.
    NoFlow = 18, "no_flow", Drop;
    /// Sent to the backend's Ethernet address as it is.
    Forwarded = 19, "forwarded", Transmit;
    /// A rule of `filters` drops it.
    Filtered = 20, "filtered", Drop;
    /// The service does not let this client in.
    SourceDenied = 21, "source_denied", Drop;
    /// The service has no backend, and lets the stack have its packets.
    NoBackendPassed = 22, "no_backend_passed", Pass;
    /// To a VIP, with more extension headers than are looked through, or with a routing header that is not used up.
    HeaderChain = 23, "header_chain", Drop;
    /// As [`Verdict::TtlExpired`], and the sender was told.
    TtlAnswered = 24, "ttl_answered", Transmit;
    /// A reply to this host itself, translated back; it goes up the stack.
    ReturnedHere = 25, "returned_here", Pass;
    /// No verdict of its own, but counted beside one that sends: the packet had to be handed over to TC, which the driver where
    /// it came in has no room to say. It was redirected all the same, and may be lost.
    NotHandedOver = 26, "not_handed_over", Transmit;
}

impl Verdict {
    /// Whether packets with this verdict are counted with their backend, and nowhere else.
    #[inline(always)]
    pub const fn is_to_backend(self) -> bool {
        matches!(self, Verdict::Encapsulated | Verdict::Translated | Verdict::Forwarded)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn numbers_are_indices_and_labels_are_unique() {
        for (index, verdict) in Verdict::ALL.iter().enumerate() {
            assert_eq!(*verdict as usize, index);
        }
        let labels: BTreeSet<&str> = Verdict::ALL.iter().map(|verdict| verdict.label()).collect();
        assert_eq!(labels.len(), Verdict::ALL.len());
    }
}
