//! Pod CIDRs that two clusters have both: packets to pods there would stay here. Pools are compared elsewhere; these are the CIDRs
//! of the nodes, whoever has given them. Pure.
use ipnet::IpNet;
use std::{collections::BTreeSet, net::IpAddr};

/// Pod CIDRs, each with the name of its node.
pub(super) type PodCidrs = BTreeSet<(IpNet, String)>;

/// What is to be said if some overlap.
pub(super) fn overlap(here: &PodCidrs, there: &PodCidrs) -> Option<String> {
    let sides = [here, there];
    let mut all: Vec<_> = sides
        .iter()
        .enumerate()
        .flat_map(|(side, cidrs)| cidrs.iter().map(move |cidr| (side, cidr)))
        .collect();
    // The larger of two that begin alike comes first: so of two that overlap, the first one holds the second.
    all.sort_unstable_by_key(|(side, (cidr, name))| (cidr.network(), cidr.prefix_len(), *side, name));
    // By side: the one that reaches furthest so far, and its last address.
    let mut furthest: [Option<(IpAddr, &(IpNet, String))>; 2] = [None; 2];
    let (mut first, mut count) = (None, 0);
    for (side, cidr) in all {
        if let Some((_, holder)) = furthest[1 - side].filter(|(last, _)| *last >= cidr.0.network()) {
            count += 1;
            let pair = if side == 0 { [cidr, holder] } else { [holder, cidr] };
            first.get_or_insert(pair);
        }
        if furthest[side].is_none_or(|(last, _)| last < cidr.0.broadcast()) {
            furthest[side] = Some((cidr.0.broadcast(), cidr));
        }
    }
    let [(here, node), (there, other)] = first?;
    Some(format!("Node {other} has {there} there, and Node {node} {here} here ({count} overlaps)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cidrs(all: &[&str]) -> PodCidrs {
        all.iter().zip(1..).map(|(cidr, number)| (cidr.parse().unwrap(), format!("n{number}"))).collect()
    }

    #[test]
    fn what_overlaps_is_named_and_counted() {
        let here = cidrs(&["10.244.0.0/24", "10.244.1.0/24", "fd00:1::/64"]);
        assert_eq!(overlap(&here, &cidrs(&["10.244.2.0/24", "fd00:2::/64", "10.243.0.0/16"])), None);
        assert_eq!(overlap(&here, &PodCidrs::new()), None);
        let said = "Node n2 has 10.244.0.0/16 there, and Node n1 10.244.0.0/24 here (2 overlaps)";
        assert_eq!(overlap(&here, &cidrs(&["10.1.0.0/24", "10.244.0.0/16"])).as_deref(), Some(said));
        let said = "Node n1 has fd00:1::/64 there, and Node n3 fd00:1::/64 here (1 overlaps)";
        assert_eq!(overlap(&here, &cidrs(&["fd00:1::/64"])).as_deref(), Some(said));
    }

    proptest! {
        /// As all pairs say it.
        #[test]
        fn nothing_is_missed(
            here in prop::collection::vec((any::<u8>(), 24..=32_u8), 0..6),
            there in prop::collection::vec((any::<u8>(), 24..=32_u8), 0..6),
        ) {
            let cidrs = |all: &[(u8, u8)]| -> PodCidrs {
                let net = |(last, length): &(u8, u8)| {
                    let net = IpNet::new([10, 0, 0, *last].into(), *length).unwrap().trunc();
                    (net, format!("n{last}"))
                };
                all.iter().map(net).collect()
            };
            let (here, there) = (cidrs(&here), cidrs(&there));
            let meet = |(one, _): &(IpNet, String)| {
                there.iter().any(|(other, _)| one.contains(other) || other.contains(one))
            };
            prop_assert_eq!(overlap(&here, &there).is_some(), here.iter().any(meet));
        }
    }
}
