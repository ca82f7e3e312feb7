//! What was lately found out about flows of dirty slots, so that not every packet of theirs is looked up in `flows`.
//!
//! A memo says "packets like this one go to this backend, and change nothing": a packet for which there is one may go the
//! same way unseen. It is good for some seconds, until the frontend has another table, and may be lost at any time. Who
//! changes an entry of `flows` otherwise than by a packet of its flow either removes what agrees with the table, or makes
//! the backend unusable.
//!
//! It is one word, so that CPUs may write at once: 42 bits that tell flows, tables and times apart beside those that give the
//! line, the period's last two bits, and the index of the backend. A flow that is not remembered takes another
//! one's memo for its own once in 2^39 packets.

/// Value of `recent` (array with `BPF_F_MMAPABLE`): the memos of the flows that fall on one cache line.
pub type RecentLine = [Memo; MEMOS];

/// Memos of a line.
pub const MEMOS: usize = 8;

/// Where packets of a flow go: one word, see above. 0: nothing.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Memo(pub u64);

/// Lines of `recent` for a table of so many flows, a power of two: room for twice as many memos at least, lest flows drive
/// each other out.
pub const fn recent_lines(flows: u32) -> u32 {
    let lines = flows / (MEMOS as u32 / 2);
    if lines == 0 { 1 } else { lines.next_power_of_two() }
}

impl Memo {
    /// How many jiffies a period lasts, as a power of two: 16 s on most kernels, and from 4 to 41 s with any usual
    /// `CONFIG_HZ`. A flow's [`seen`](crate::FlowEntry::seen) may be too old by so much, which is well below the
    /// idle times of flows that have memos.
    pub const PERIOD_BITS: u32 = 12;

    const BACKEND_BITS: u32 = 20;
    const AGE: u64 = 3 << Self::BACKEND_BITS;
    const FLOW: u64 = !0 << (Self::BACKEND_BITS + 2);

    /// The memo, but for the backend, of a flow with this [`flow_tag`](crate::flow_tag) in this
    /// [`edition`](crate::Frontend::edition) of its frontend and this period.
    #[inline(always)]
    pub const fn unfinished(flow: u64, edition: u32, period: u32) -> Self {
        let tag = flow
            .wrapping_add((edition as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
            .wrapping_add((period as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9));
        Memo(tag & Self::FLOW | (period as u64) << Self::BACKEND_BITS & Self::AGE)
    }

    /// Finishes a memo. A backend whose index has more than 20 bits cannot be remembered: that makes a memo of nothing.
    #[inline(always)]
    pub const fn with(self, backend: u32) -> Self {
        if backend >> Self::BACKEND_BITS == 0 { Memo(self.0 | backend as u64) } else { Memo(0) }
    }

    /// The backend, if this is what `unfinished` was finished to.
    #[inline(always)]
    pub const fn backend(self, unfinished: Memo) -> Option<u32> {
        let rest = self.0 ^ unfinished.0;
        if rest >> Self::BACKEND_BITS == 0 { Some(rest as u32) } else { None }
    }

    /// Whether it is of the same period, as far as its last two bits tell.
    #[inline(always)]
    pub const fn is_as_old_as(self, other: Memo) -> bool {
        (self.0 ^ other.0) & Self::AGE == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOW: u64 = 0x1234_5678_9abc_def0;

    #[test]
    fn a_memo_is_of_its_flow_its_edition_and_its_period_only() {
        let unfinished = Memo::unfinished(FLOW, 5, 77);
        let memo = unfinished.with(9);
        assert_eq!(memo.backend(unfinished), Some(9));
        let others = [(FLOW ^ 1 << 22, 5, 77), (!FLOW, 5, 77), (FLOW, 4, 77), (FLOW, u32::MAX, 77)];
        let later = [78, 79, 80, 81, 77 + 4096].map(|period| (FLOW, 5, period));
        for (flow, edition, period) in others.into_iter().chain(later) {
            let other = Memo::unfinished(flow, edition, period);
            assert_eq!(memo.backend(other), None, "{flow:x} {edition} {period}");
            assert_eq!(memo.is_as_old_as(other), period % 4 == 1, "{period}");
        }
        assert_eq!(Memo::default().backend(unfinished), None);
    }

    #[test]
    fn backends_have_twenty_bits() {
        let unfinished = Memo::unfinished(FLOW, 0, 0);
        assert_eq!(unfinished.with(0xf_ffff).backend(unfinished), Some(0xf_ffff));
        assert_eq!(unfinished.with(0x10_0000), Memo::default());
    }

    #[test]
    fn lines_are_a_power_of_two() {
        let known = [
            (0, 1),
            (1, 1),
            (4, 1),
            (5, 1),
            (9, 2),
            (1 << 18, 1 << 16),
            (1_000_000, 1 << 18),
            (u32::MAX, 1 << 30),
        ];
        for (flows, lines) in known {
            assert_eq!(recent_lines(flows), lines, "{flows}");
        }
    }
}
