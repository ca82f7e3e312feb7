//! Through which interfaces XDP may send itself: what the map `ports` and [`Config::WARY`] are to say, and what is to be done
//! so that they do. For all else XDP has TC send (`ebpf/src/handover.rs`), which always works and costs more.
use crate::maps::Op;
use lb_bpf_common::Config;
use std::collections::BTreeSet;

/// What is to be said of interfaces, given by their indexes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// Those that take frames which XDP redirects to them.
    pub takers: BTreeSet<u32>,
    /// Whether one that has an XDP program does not even take what that sends back.
    pub wary: bool,
}

/// Most entries of the map. If there are more interfaces, TC sends to those with the highest indexes.
pub const ROOM: u32 = 4096;

/// Plans what brings maps with this configuration and these ports to `wanted`. Between any two operations no packet is sent
/// to an interface that does not take it.
pub fn plan(config: Config, held: &BTreeSet<u32>, wanted: &Ports) -> Vec<Op> {
    let takers: BTreeSet<u32> = wanted.takers.iter().copied().take(ROOM as usize).collect();
    let flags = if wanted.wary { config.flags | Config::WARY } else { config.flags & !Config::WARY };
    let removed = || held.difference(&takers).map(|index| Op::RemovePort(*index));
    let mut ops = Vec::new();
    let is_full = held.union(&takers).count() > ROOM as usize;
    if is_full {
        ops.extend(removed());
    }
    ops.extend(takers.difference(held).map(|index| Op::SetPort(*index)));
    if flags != config.flags {
        ops.push(Op::SetConfig(Config { flags, ..config }));
    }
    if !is_full {
        ops.extend(removed());
    }
    ops
}

#[cfg(test)]
mod tests {
    use super::*;

    const WARY: Config = Config { flags: Config::WARY | Config::NAT, ..NAT };
    const NAT: Config = Config {
        flags: Config::NAT,
        nat_port_first: 1,
        nat_port_last: 2,
        filters: 3,
        sample_mask: 4,
        vip_mask: 5,
        recent_mask: 6,
    };

    fn ports(takers: impl IntoIterator<Item = u32>, wary: bool) -> Ports {
        Ports { takers: takers.into_iter().collect(), wary }
    }

    #[test]
    fn what_is_right_is_left_alone() {
        assert_eq!(plan(NAT, &[3, 5].into(), &ports([5, 3], false)), []);
        assert_eq!(plan(WARY, &[].into(), &ports([], true)), []);
    }

    #[test]
    fn an_interface_is_checked_before_it_takes_nothing_any_more_and_until_it_does() {
        let [set, unset] = [WARY, NAT].map(Op::SetConfig);
        let ops = plan(NAT, &[3, 5].into(), &ports([3, 7], true));
        assert_eq!(ops, [Op::SetPort(7), set, Op::RemovePort(5)]);
        let ops = plan(WARY, &[3].into(), &ports([3, 5], false));
        assert_eq!(ops, [Op::SetPort(5), unset]);
    }

    #[test]
    fn there_is_room_for_so_many() {
        let ops = plan(NAT, &(1..=ROOM).collect(), &ports(2..=ROOM + 9, false));
        assert_eq!(ops, [Op::RemovePort(1), Op::SetPort(ROOM + 1)]);
    }
}
