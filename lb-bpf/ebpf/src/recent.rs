//! Memos of where flows of dirty slots go ([`Memo`]). The truth is in `flows`.
use crate::maps::{config, recent};
use aya_ebpf::helpers::bpf_jiffies64;
use lb_bpf_common::{FlowKey, MEMOS, Memo, flow_tag};

/// Where a flow's memo is, and what it looks like.
#[derive(Clone, Copy)]
pub struct Place {
    /// [`Memo::unfinished`].
    pub memo: Memo,
    /// Index in `recent`.
    pub line: u32,
}

impl Place {
    /// Of a flow to a frontend with this [`lb_bpf_common::Frontend::edition`].
    #[inline(always)]
    pub fn of(flow: &FlowKey, edition: u32) -> Self {
        let (tag, mask) = (flow_tag(flow), config.get(0).map_or(0, |all| all.recent_mask));
        // SAFETY: no argument, no effect. The kernel makes the call a read of memory.
        let period = unsafe { bpf_jiffies64() } >> Memo::PERIOD_BITS;
        Place { memo: Memo::unfinished(tag, edition, period as u32), line: tag as u32 & mask }
    }

    /// The backend that the flow goes to, if that is remembered; else 0.
    #[inline(always)]
    pub fn recall(self) -> u32 {
        let Some(line) = self.line() else {
            return 0;
        };
        let mut found = 0;
        for place in 0..MEMOS {
            // SAFETY: within the element. Other CPUs write it at any time, in whole words.
            let memo = unsafe { line.add(place).read_volatile() };
            if let Some(backend) = memo.backend(self.memo) {
                found = backend;
            }
        }
        found
    }

    /// Remembers that the flow goes to `backend`; 0: forgets where it went.
    #[inline(always)]
    pub fn note(self, backend: u32) {
        let Some(line) = self.line() else {
            return;
        };
        // What is older goes first, else any.
        let mut free = (self.memo.0 >> 61) as usize;
        let mut own = MEMOS;
        for place in 0..MEMOS {
            // SAFETY: as above.
            let memo = unsafe { line.add(place).read_volatile() };
            if memo.backend(self.memo).is_some() {
                own = place;
            } else if !memo.is_as_old_as(self.memo) {
                free = place;
            }
        }
        let is_known = own < MEMOS;
        if backend == 0 && !is_known {
            return;
        }
        let memo = if backend == 0 { Memo::default() } else { self.memo.with(backend) };
        let place = if is_known { own } else { free };
        // SAFETY: as above.
        unsafe { line.add(place & (MEMOS - 1)).write_volatile(memo) };
    }

    #[inline(always)]
    fn line(self) -> Option<*mut Memo> {
        recent.get_ptr_mut(self.line).map(|line| line.cast())
    }
}
