//! Where a flow goes that has no entry: the rule of dirty slots, without a map in sight.
use crate::parse::Phase;
use lb_bpf_common::Slot;

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
}
