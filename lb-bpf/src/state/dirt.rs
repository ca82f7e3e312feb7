//! When a slot is dirty, and for how long (design: "just enough tracking").
//!
//! A slot that moves from one live backend to another becomes dirty. First it *learns*: a TCP packet of a flow that
//! is not known and does not begin here belongs to the backend before, and the kernel program remembers that. Then
//! it is *settled*: what has not shown itself is presumed gone, and unknown flows go to the current backend. When
//! no remembered flow contradicts the table any more it is *clean*.
//!
//! How long does a slot learn? As long as the service drains, for nobody asks to keep flows that are silent for longer:
//! so a connection that is idle for minutes survives a change of the backends. But not longer than the backend before
//! had the slot: flows that have lived for three seconds are not silent for minutes. That matters when a backend was
//! away for a moment, since a slot that learns takes every connection in progress for an old one, also those that began
//! on another load balancer after the change and come here because a router rehashed.
use super::Now;
use lb_bpf_common::Slot;

/// Least time, seconds, that a slot learns: a retransmission or two.
const LEAST_LEARNING: u32 = 2;
/// Least time, seconds, for which a backend counts as having had its slot: a restart of the process. It may have had it for a
/// moment only because it was away; connections of its older days are silent for longer.
const LEAST_HELD: u32 = 5;

/// The state of a dirty slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dirt {
    /// Unknown flows go to the backend before, until this second.
    Learning {
        /// Second at which the slot settles.
        until: u32,
    },
    /// Unknown flows go to the current backend since then.
    Settled {
        /// When it settled.
        at: Now,
    },
}

impl Dirt {
    /// Of a slot as found in the map: it learns no longer than the map says of its table, and when that does not know, the
    /// whole time again.
    pub(super) fn found(
        slot: &Slot,
        drain_seconds: u32,
        learns_until: Option<u32>,
        now: Now,
    ) -> Option<Dirt> {
        match slot.previous {
            0 => None,
            previous if previous & Slot::SETTLED != 0 => Some(Dirt::Settled { at: now }),
            _ => {
                let longest = Dirt::end_of_learning(drain_seconds, 0, now);
                Some(Dirt::Learning { until: learns_until.map_or(longest, |known| longest.min(known)) })
            }
        }
    }

    /// Of a slot that moves now, and whose backend before took it in the second `since`.
    pub(super) fn learning(drain_seconds: u32, since: u32, now: Now) -> Dirt {
        Dirt::Learning { until: Dirt::end_of_learning(drain_seconds, since, now) }
    }

    fn end_of_learning(drain_seconds: u32, since: u32, now: Now) -> u32 {
        let held = now.seconds().saturating_sub(since).max(LEAST_HELD);
        now.seconds().saturating_add(drain_seconds.min(held).max(LEAST_LEARNING))
    }

    /// Second at which it stops to learn, if it does.
    pub(super) fn learns_until(&self) -> Option<u32> {
        match self {
            Dirt::Learning { until } => Some(*until),
            Dirt::Settled { .. } => None,
        }
    }
}

/// The backend before of a slot that learns.
pub(super) fn waiting(slot: &Slot) -> Option<u32> {
    (slot.previous != 0 && slot.previous & Slot::SETTLED == 0).then_some(slot.previous)
}

/// The slot when `new` takes it over from what `old` says.
pub(super) fn moved(old: Slot, new: u32, is_live: impl Fn(u32) -> bool) -> Slot {
    if old.current == new {
        return old;
    }
    let previous = match waiting(&old) {
        // Every flow that began since the slot became dirty is known. Those unknown belong to the one before still.
        Some(previous) if is_live(previous) => previous,
        _ if is_live(old.current) => old.current,
        // Nobody to ask, but some flows may be known: they keep their entries.
        _ if old.previous != 0 => old.previous | Slot::SETTLED,
        _ => 0,
    };
    Slot { current: new, previous }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEAD: u32 = 9;

    fn after(current: u32, previous: u32, new: u32) -> (u32, u32) {
        let slot = moved(Slot { current, previous }, new, |index| index != 0 && index != DEAD);
        (slot.current, slot.previous)
    }

    #[test]
    fn only_live_backends_leave_dirt() {
        assert_eq!(after(1, 0, 2), (2, 1), "from a live one");
        assert_eq!(after(DEAD, 0, 2), (2, 0), "from a dead one");
        assert_eq!(after(0, 0, 2), (2, 0), "from nobody");
        assert_eq!(after(1, 0, 0), (0, 1), "to nobody: the last backend drains");
        assert_eq!(after(1, 0, 1), (1, 0), "not at all");
    }

    #[test]
    fn a_slot_that_moves_twice() {
        let settled = |index| index | Slot::SETTLED;
        assert_eq!(after(2, 1, 3), (3, 1), "flows of 2 are all known, those of 1 are not");
        assert_eq!(after(2, 1, 1), (1, 1), "back again: flows of 2 are known");
        assert_eq!(after(2, settled(1), 3), (3, 2), "since it settled, flows of 2 are not known");
        assert_eq!(after(DEAD, 1, 3), (3, 1));
        assert_eq!(after(2, DEAD, 3), (3, 2), "flows of the dead one are dead");
        assert_eq!(after(DEAD, settled(1), 3), (3, settled(1)), "known flows of 1 go on");
        assert_eq!(after(DEAD, DEAD, 3), (3, settled(DEAD)), "known flows of others may be there");
    }

    #[test]
    fn the_learning_window_is_bounded_by_drain_and_by_history() {
        let now = Now(1_000_000);
        assert_eq!(Dirt::learning(300, 0, now), Dirt::Learning { until: 1300 });
        assert_eq!(Dirt::learning(300, 990, now), Dirt::Learning { until: 1010 });
        assert_eq!(Dirt::learning(300, 1000, now), Dirt::Learning { until: 1005 });
        assert_eq!(Dirt::learning(0, 0, now), Dirt::Learning { until: 1002 });
    }

    #[test]
    fn a_window_that_is_found_goes_on_where_it_was() {
        let now = Now(1_000_000);
        let found = |previous, known| Dirt::found(&Slot { current: 1, previous }, 300, known, now);
        assert_eq!(found(0, None), None);
        assert_eq!(found(2, None), Some(Dirt::Learning { until: 1300 }));
        assert_eq!(found(2, Some(1001)), Some(Dirt::Learning { until: 1001 }));
        assert_eq!(found(2, Some(900)), Some(Dirt::Learning { until: 900 }), "it is over");
        assert_eq!(
            found(2, Some(5000)),
            Some(Dirt::Learning { until: 1300 }),
            "the service drains for less now"
        );
        assert_eq!(found(2 | Slot::SETTLED, Some(1001)), Some(Dirt::Settled { at: now }));
    }
}
