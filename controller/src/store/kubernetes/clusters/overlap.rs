//! What nodes of two clusters have both: pod CIDRs, so that packets to pods of one would stay in the other, and addresses, so that
//! nobody can tell which node a packet goes to. Pools are compared elsewhere; this is what the nodes have, whoever has given it. Pure.
use crate::{
    api::node::{internal_ips, pod_cidrs},
    by_name::ByName,
};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// Ranges of addresses, each with the name of its node.
pub(super) type Ranges = BTreeSet<(IpNet, String)>;

/// What the nodes of a cluster have.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Networks {
    pub(super) pod_cidrs: Ranges,
    /// Where they can be reached.
    pub(super) addresses: Ranges,
}

impl Networks {
    fn of(nodes: &ByName<Node>) -> Self {
        let pod_cidrs = nodes
            .iter()
            .flat_map(|(name, node)| pod_cidrs(node).into_iter().map(|cidr| (cidr, name.clone())));
        let addresses =
            nodes.iter().flat_map(|(name, node)| internal_ips(node).map(|ip| (ip.into(), name.clone())));
        Networks { pod_cidrs: pod_cidrs.collect(), addresses: addresses.collect() }
    }

    /// Whether nothing is known of nodes.
    pub(super) fn is_empty(&self) -> bool {
        self.pod_cidrs.is_empty() && self.addresses.is_empty()
    }
}

/// What was compared last, and what came of it: to sort all anew in each pass would be most of what a pass costs.
#[derive(Debug, Default)]
pub(super) struct Overlaps {
    nodes: ByName<Node>,
    others: BTreeMap<String, Arc<Networks>>,
    said: BTreeMap<String, String>,
}

impl Overlaps {
    /// What is to be said of clusters whose nodes have something that others have, too: nodes of this one, or of another one.
    pub(super) fn of(
        &mut self,
        nodes: &ByName<Node>,
        others: BTreeMap<String, Arc<Networks>>,
    ) -> &BTreeMap<String, String> {
        let is_same = self.others.len() == others.len()
            && self
                .others
                .iter()
                .zip(&others)
                .all(|(one, other)| one.0 == other.0 && Arc::ptr_eq(one.1, other.1));
        if !is_same || self.nodes.changes(nodes).next().is_some() {
            self.said = overlaps(&Networks::of(nodes), &others);
            (self.nodes, self.others) = (nodes.clone(), others);
        }
        &self.said
    }
}

/// A range, with the name of its node.
type Range<'a> = &'a (IpNet, String);

/// What two clusters have both: the first such pair of ranges, and how many there are.
type Shared<'a> = BTreeMap<[usize; 2], ([Range<'a>; 2], usize)>;

fn overlaps(own: &Networks, others: &BTreeMap<String, Arc<Networks>>) -> BTreeMap<String, String> {
    let clusters: Vec<&Networks> = [own].into_iter().chain(others.values().map(|other| &**other)).collect();
    let of =
        |part: fn(&Networks) -> &Ranges| shared(&clusters.iter().map(|all| part(all)).collect::<Vec<_>>());
    let parts = [of(|networks| &networks.pod_cidrs), of(|networks| &networks.addresses)];
    let names: Vec<&str> = ["here"].into_iter().chain(others.keys().map(String::as_str)).collect();
    let said = others.keys().zip(1..).filter_map(|(name, cluster)| {
        let with = |other: usize| {
            let names = &names;
            parts.iter().filter_map(move |part| {
                let ([there, here], count) = match part.get(&[other, cluster]) {
                    Some(([here, there], count)) => ([there, here], count),
                    None => part.get(&[cluster, other]).map(|(pair, count)| (pair.each_ref(), count))?,
                };
                let ((range, node), (own, by)) = (there, here);
                let place = if other == 0 { "here".to_owned() } else { format!("in {}", names[other]) };
                let [range, own] = [range, own].map(text);
                Some(format!("Node {node} has {range} there, and Node {by} {own} {place} ({count} overlaps)"))
            })
        };
        let all: Vec<_> = (0..names.len()).flat_map(with).collect();
        (!all.is_empty()).then(|| (name.clone(), all.join("; ")))
    });
    said.collect()
}

/// A single address without its length.
fn text(range: &IpNet) -> String {
    if range.prefix_len() == range.max_prefix_len() { range.addr().to_string() } else { range.to_string() }
}

/// What any two of the clusters have both, by their indices, the smaller one first.
fn shared<'a>(clusters: &[&'a Ranges]) -> Shared<'a> {
    let mut all: Vec<(usize, Range<'a>)> = clusters
        .iter()
        .enumerate()
        .flat_map(|(cluster, ranges)| ranges.iter().map(move |range| (cluster, range)))
        .collect();
    // The larger of two that begin alike comes first: so of two that overlap, the first one holds the second.
    all.sort_unstable_by_key(|(cluster, (range, name))| {
        (range.network(), range.prefix_len(), *cluster, name)
    });
    // By cluster: the one that reaches furthest so far, and its last address.
    let mut furthest: Vec<Option<(IpAddr, Range<'a>)>> = vec![None; clusters.len()];
    let mut shared = Shared::new();
    for (cluster, range) in all {
        for other in (0..clusters.len()).filter(|other| *other != cluster) {
            let Some((_, holder)) = furthest[other].filter(|(last, _)| *last >= range.0.network()) else {
                continue;
            };
            let (key, pair) = match cluster < other {
                true => ([cluster, other], [range, holder]),
                false => ([other, cluster], [holder, range]),
            };
            shared.entry(key).or_insert((pair, 0)).1 += 1;
        }
        if furthest[cluster].is_none_or(|(last, _)| last < range.0.broadcast()) {
            furthest[cluster] = Some((range.0.broadcast(), range));
        }
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges(all: &[&str]) -> Ranges {
        let range = |text: &&str| text.parse().unwrap_or_else(|_| text.parse::<IpAddr>().unwrap().into());
        all.iter().zip(1..).map(|(text, number)| (range(text), format!("n{number}"))).collect()
    }

    fn networks(pod_cidrs: &[&str], addresses: &[&str]) -> Networks {
        Networks { pod_cidrs: ranges(pod_cidrs), addresses: ranges(addresses) }
    }

    fn said(own: &Networks, others: &[(&str, &Arc<Networks>)]) -> Vec<(String, String)> {
        let others = others.iter().map(|(name, other)| ((*name).to_owned(), Arc::clone(other))).collect();
        overlaps(own, &others).into_iter().collect()
    }

    #[test]
    fn what_overlaps_is_named_and_counted() {
        let here = networks(&["10.244.0.0/24", "10.244.1.0/24", "fd00:1::/64"], &[]);
        let overlap = |cidrs: &[&str]| {
            said(&here, &[("west", &networks(cidrs, &[]).into())]).pop().map(|(_, message)| message)
        };
        assert_eq!(overlap(&["10.244.2.0/24", "fd00:2::/64", "10.243.0.0/16"]), None);
        assert_eq!(overlap(&[]), None);
        let said = "Node n2 has 10.244.0.0/16 there, and Node n1 10.244.0.0/24 here (2 overlaps)";
        assert_eq!(overlap(&["10.1.0.0/24", "10.244.0.0/16"]).as_deref(), Some(said));
        let said = "Node n1 has fd00:1::/64 there, and Node n3 fd00:1::/64 here (1 overlaps)";
        assert_eq!(overlap(&["fd00:1::/64"]).as_deref(), Some(said));
    }

    #[test]
    fn addresses_of_nodes_are_compared_with_ours_and_with_those_of_other_clusters() {
        let here = networks(&["10.244.0.0/16"], &["10.0.0.1", "10.0.0.2"]);
        // An address within a pod CIDR is no matter of this.
        let west = Arc::new(networks(&["10.245.0.0/16"], &["10.244.0.9", "10.0.0.2", "fd00::2"]));
        let north = Arc::new(networks(&["10.245.7.0/24"], &["10.3.0.1", "fd00::2"]));
        let alone = Arc::new(networks(&["10.246.0.0/16"], &["10.4.0.1"]));
        assert_eq!(
            said(&here, &[("alone", &alone), ("north", &north), ("west", &west)]),
            [
                (
                    "north",
                    "Node n1 has 10.245.7.0/24 there, and Node n1 10.245.0.0/16 in west (1 overlaps); \
                     Node n2 has fd00::2 there, and Node n3 fd00::2 in west (1 overlaps)"
                ),
                (
                    "west",
                    "Node n2 has 10.0.0.2 there, and Node n2 10.0.0.2 here (1 overlaps); \
                     Node n1 has 10.245.0.0/16 there, and Node n1 10.245.7.0/24 in north (1 overlaps); \
                     Node n3 has fd00::2 there, and Node n2 fd00::2 in north (1 overlaps)"
                ),
            ]
            .map(|(name, message)| (name.to_owned(), message.to_owned()))
        );
    }

    #[test]
    fn what_has_changed_is_compared_anew() {
        let node = |address: &str| {
            let node = serde_json::json!({"metadata": {"name": "n1"},
                "status": {"addresses": [{"type": "InternalIP", "address": address}]}});
            ByName::from_iter([("n1".to_owned(), Arc::new(serde_json::from_value::<Node>(node).unwrap()))])
        };
        let west = |address: &str| BTreeMap::from([("west".to_owned(), Arc::new(networks(&[], &[address])))]);
        let mut overlaps = Overlaps::default();
        assert_eq!(overlaps.of(&node("10.0.0.1"), west("10.0.0.2")).len(), 0);
        assert_eq!(overlaps.of(&node("10.0.0.1"), west("10.0.0.1")).len(), 1);
        assert_eq!(overlaps.of(&node("10.0.0.3"), overlaps.others.clone()).len(), 0);
        let same = overlaps.others.clone();
        assert_eq!(overlaps.of(&node("10.0.0.1"), same).len(), 1);
        assert_eq!(overlaps.of(&node("10.0.0.1"), BTreeMap::new()).len(), 0);
    }

    proptest! {
        /// As all pairs say it.
        #[test]
        fn nothing_is_missed(
            all in prop::collection::vec(prop::collection::vec((any::<u8>(), 24..=32_u8), 0..6), 2..5),
        ) {
            let ranges = |all: &Vec<(u8, u8)>| -> Ranges {
                let net = |(last, length): &(u8, u8)| {
                    let net = IpNet::new([10, 0, 0, *last].into(), *length).unwrap().trunc();
                    (net, format!("n{last}"))
                };
                all.iter().map(net).collect()
            };
            let all: Vec<_> = all.iter().map(ranges).collect();
            let found: BTreeSet<_> = shared(&all.iter().collect::<Vec<_>>()).into_keys().collect();
            let meet = |one: &Ranges, other: &Ranges| {
                one.iter().any(|(a, _)| other.iter().any(|(b, _)| a.contains(b) || b.contains(a)))
            };
            let pairs = (0..all.len()).flat_map(|one| (one + 1..all.len()).map(move |other| [one, other]));
            let want: BTreeSet<_> = pairs.filter(|[one, other]| meet(&all[*one], &all[*other])).collect();
            prop_assert_eq!(found, want);
        }
    }
}
