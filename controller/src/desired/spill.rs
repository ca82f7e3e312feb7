//! How traffic spills over to other clusters: by degrees, as the backends of a cluster fail.
//!
//! Clusters stand in a row: the own one, then those with the highest priority, and so on. Each takes what is left of the traffic,
//! all of it while enough of its backends are up, else in proportion; the rest goes on to the next. What nobody takes is shared
//! as what was taken.
//!
//! A backend that no check has spoken of yet is neither up nor down: it changes nothing. Where nothing is served yet, as on a node
//! that has just started, the next clusters wait for the first word on a cluster of which nobody is known to be up.
use crate::{
    api::{
        ClusterLink,
        policy::{Clusters, Prefer},
    },
    by_name::ByName,
    status::seconds,
};
use lb_bpf::service::{Endpoint, Target};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, btree_map::Entry},
};

/// What counts of the link to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) priority: i32,
    pub(super) weight: u16,
    /// When it was made: seconds since the epoch, 0 when unknown.
    pub(super) created: u64,
}

/// The links by the names of their clusters.
pub(super) type Links = BTreeMap<String, Link>;

/// What counts of all links.
pub(super) fn links(declared: &ByName<ClusterLink>) -> Links {
    let link = |link: &ClusterLink| Link {
        priority: link.spec.priority,
        weight: link.spec.weight.get(),
        created: link.metadata.creation_timestamp.as_ref().map_or(0, seconds),
    };
    declared.iter().map(|(name, declared)| (name.clone(), link(declared))).collect()
}

/// What a backend stands for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Share {
    /// The link to its cluster; none: it is in the own one.
    pub(super) link: Option<Link>,
    /// Its weight if it were up, of a node that of all its pods. What is not known yet does not count.
    all: u16,
    /// Whether that is so of some of it that has a weight.
    is_unknown: bool,
    /// How many are up and have a weight.
    pub(super) serving: u32,
}

impl Share {
    /// That of no endpoint yet.
    pub(super) fn new(link: Option<Link>) -> Self {
        Share { link, ..Share::default() }
    }

    /// That of an endpoint. `is_unknown`: it is not up, and no check has said so yet.
    pub(super) fn of(link: Option<Link>, target: &Target, is_unknown: bool) -> Self {
        let mut share = Share::new(link);
        share.add(target, is_unknown);
        share
    }

    /// Another endpoint of the same backend.
    pub(super) fn add(&mut self, target: &Target, is_unknown: bool) {
        match is_unknown {
            true => self.is_unknown |= target.weight > 0,
            false => self.all = self.all.saturating_add(target.weight),
        }
        self.serving += u32::from(target.up && target.weight > 0);
    }
}

/// A cluster, or several of one priority.
#[derive(Default)]
struct Tier {
    /// The sum of the weights of its backends that are known to be up or down.
    all: f64,
    /// The sum of the weights of those that are up.
    up: f64,
    /// Whether there are others.
    is_unknown: bool,
}

/// What the weight 1 becomes in the first of the clusters that traffic goes to: shares of others are finer.
const FINE: f64 = 1000.0;

/// Gives the backends the weights that make it so; `shares` are in their order. `is_served`: the datapath has backends for it by now.
pub(super) fn spill(
    clusters: &Clusters,
    is_served: bool,
    backends: &mut [(Endpoint, Target)],
    shares: &[Share],
) {
    let scaled = |weight: u16, share: &Share| {
        f64::from(weight) * share.link.map_or(1.0, |link| f64::from(link.weight))
    };
    let key = |share: &Share| match (clusters.prefer, share.link) {
        (Prefer::None, _) | (Prefer::Local, None) => None,
        (Prefer::Local, Some(link)) => Some(Reverse(link.priority)),
    };
    // `None` is before all priorities.
    let mut tiers: BTreeMap<_, Tier> = BTreeMap::new();
    for ((_, target), share) in backends.iter().zip(shares) {
        let tier = tiers.entry(key(share)).or_default();
        tier.all += scaled(share.all, share);
        tier.up += if target.up { scaled(target.weight, share) } else { 0.0 };
        tier.is_unknown |= share.is_unknown;
    }
    let least = f64::from(clusters.min_local_percent.map_or(0, |percent| percent.get())) / 100.0;
    let mut left = 1.0;
    // By tier: what the weight 1 becomes.
    let mut units = BTreeMap::new();
    for (key, tier) in &tiers {
        let takes = match tier.up > 0.0 {
            true if least > 0.0 => (tier.up / tier.all / least).min(1.0),
            is_up => f64::from(u8::from(is_up || tier.is_unknown && !is_served)),
        };
        if let (Entry::Vacant(unit), true) = (units.entry(*key), left * takes > 0.0) {
            // Who is up weighs at least 1.
            unit.insert(left * takes / tier.up.max(1.0));
        }
        left *= 1.0 - takes;
    }
    let Some(first) = units.values().next().copied() else { return };
    let weigh = |target: &Target, share: &Share| {
        units.get(&key(share)).map_or(0.0, |unit| scaled(target.weight, share) * FINE * unit / first)
    };
    let heaviest =
        backends.iter().zip(shares).map(|((_, target), share)| weigh(target, share)).fold(1.0, f64::max);
    let scale = (f64::from(u16::MAX) / heaviest).min(1.0);
    for ((_, target), share) in backends.iter_mut().zip(shares) {
        let weight = weigh(target, share) * scale;
        // Within 1 and 65535.
        target.weight = if weight > 0.0 { weight.round().max(1.0) as u16 } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{desired::desired, observed::Observed, status::StatusSet, validate::parse_directory};
    use proptest::prelude::*;

    /// Shares of the traffic in percent, by tier: own cluster, then by link. Each has (all, up) backends.
    fn shares(clusters: &str, own: (u16, u16), others: &[(Link, (u16, u16))]) -> Vec<u64> {
        shares_with(clusters, own, 0, others, true)
    }

    /// The same, with so many more backends in the own cluster that no check has spoken of.
    fn shares_with(
        clusters: &str,
        own: (u16, u16),
        unknown: u16,
        others: &[(Link, (u16, u16))],
        is_served: bool,
    ) -> Vec<u64> {
        let clusters: Clusters = serde_yaml_ng::from_str(clusters).unwrap();
        let (mut backends, mut links) = (Vec::new(), Vec::new());
        let tiers =
            std::iter::once((None, own)).chain(others.iter().map(|(link, tier)| (Some(*link), *tier)));
        for (number, (link, (all, up))) in tiers.enumerate() {
            for index in 0..all {
                let address = [10, number as u8, (index >> 8) as u8, index as u8].into();
                let target = Target { weight: 1, up: index < up, here: false };
                backends.push((Endpoint { address, port: 80 }, target));
                links.push((number, Share::of(link, &target, false)));
            }
        }
        // Nobody has asked these yet.
        for index in 0..unknown {
            let address = [10, 255, (index >> 8) as u8, index as u8].into();
            let target = Target { weight: 1, up: false, here: false };
            backends.push((Endpoint { address, port: 80 }, target));
            links.push((0, Share::of(None, &target, true)));
        }
        let of: Vec<_> = links.iter().map(|(_, share)| *share).collect();
        spill(&clusters, is_served, &mut backends, &of);
        let mut sums = vec![0; others.len() + 1];
        for ((_, target), (number, _)) in backends.iter().zip(&links) {
            sums[*number] += if target.up { u64::from(target.weight) } else { 0 };
        }
        let all: u64 = sums.iter().sum();
        sums.into_iter().map(|sum| (100 * sum + all / 2).checked_div(all).unwrap_or(0)).collect()
    }

    /// Weights by address, of the only service.
    fn weights(policy: &str, links: &str, more: &str) -> BTreeMap<String, u16> {
        let slice = |name: &str, labels: &str, endpoints: &str| {
            format!(
                "---\nkind: EndpointSlice\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\n\
                 metadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}\nendpoints: [{endpoints}]\n"
            )
        };
        let imported = "multicluster.kubernetes.io/service-name: web, multicluster.kubernetes.io/source-cluster: west, \
                        endpointslice.kubernetes.io/managed-by: clusters.fairlead.dev";
        let text = format!(
            "kind: AddressPool\nmetadata: {{name: p}}\nspec: {{blocks: [{{cidr: 192.0.2.0/29}}]}}\n---\n\
             kind: ServicePolicy\nmetadata: {{name: s}}\nspec: {{policy: {{{policy}}}}}\n---\n\
             kind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {{type: LoadBalancer, \
             loadBalancerClass: fairlead.dev/lb, ports: [{{name: http, port: 80}}]{more}}}\n{links}{}{}",
            slice(
                "own",
                "kubernetes.io/service-name: web",
                "{addresses: [10.1.0.1]}, {addresses: [10.1.0.2], conditions: {ready: false}}"
            ),
            slice("imported", imported, "{addresses: [10.2.0.1]}, {addresses: [10.2.0.2]}"),
        );
        let mut declared = parse_directory(&BTreeMap::from([("a.yaml".into(), text)])).unwrap();
        declared.statuses = StatusSet::clone(&desired(&declared, &Observed::default()).status);
        let desired = desired(&declared, &Observed::default());
        let services: Vec<_> = desired.datapath.services.values().collect();
        let [service] = services[..] else { panic!("{services:?}") };
        let weights = service.backends.iter().map(|(at, target)| (at.address.to_string(), target.weight));
        weights.collect()
    }

    #[test]
    fn imported_endpoints_are_backends_where_the_policy_says_so() {
        let link = "---\nkind: ClusterLink\nmetadata: {name: west}\nspec: {kubeconfigSecretRef: {name: a, key: b}}\n";
        let want = |weights: &[(&str, u16)]| -> BTreeMap<String, u16> {
            weights.iter().map(|(address, weight)| ((*address).to_owned(), *weight)).collect()
        };
        let own = want(&[("10.1.0.1", 1), ("10.1.0.2", 1)]);
        assert_eq!(weights("", link, ""), own, "no policy");
        assert_eq!(weights("clusters: {}", "", ""), own, "no link");
        assert_eq!(
            weights("clusters: {}", link, ", externalTrafficPolicy: Local"),
            want(&[]),
            "on this node only"
        );
        let idle = want(&[("10.1.0.1", 1000), ("10.1.0.2", 1000), ("10.2.0.1", 0), ("10.2.0.2", 0)]);
        assert_eq!(weights("clusters: {minLocalPercent: 50}", link, ""), idle);
        // One of two is up: half of the traffic goes on.
        let spilt = want(&[("10.1.0.1", 1000), ("10.1.0.2", 1000), ("10.2.0.1", 500), ("10.2.0.2", 500)]);
        assert_eq!(weights("clusters: {minLocalPercent: 100}", link, ""), spilt);
    }

    /// What `own` has of the service `web`, which is exported in all clusters: its slices, and those of the others as they are
    /// imported, under names and in an order of its own.
    fn mirrored(own: &str, clusters: &[(&str, &[&str])], policy: &str) -> lb_bpf::service::Service {
        let mut text = format!(
            "kind: AddressPool\nmetadata: {{name: p-{own}}}\nspec: {{blocks: [{{cidr: 192.0.2.0/29}}]}}\n---\n\
             kind: ServicePolicy\nmetadata: {{name: s}}\nspec: {{policy: {{{policy}}}}}\n---\n\
             kind: Service\nmetadata: {{name: web, namespace: shop, annotations: {{fairlead.dev/addresses: 192.0.2.1}}}}\n\
             spec: {{type: LoadBalancer, loadBalancerClass: fairlead.dev/lb, ports: [{{name: http, port: 80}}]}}\n"
        );
        if own == "east" {
            // It has others before: numbers and orders differ.
            text += "---\nkind: LoadBalancer\nmetadata: {name: a}\nspec: {ports: [{port: 1}], backends: [{address: 10.2.0.2}]}\n";
        }
        for (number, (cluster, endpoints)) in clusters.iter().enumerate() {
            let labels = match *cluster == own {
                true => "kubernetes.io/service-name: web".to_owned(),
                false => {
                    text += &format!(
                        "---\nkind: ClusterLink\nmetadata: {{name: {cluster}}}\n\
                         spec: {{kubeconfigSecretRef: {{name: a, key: b}}, priority: {number}}}\n"
                    );
                    format!(
                        "multicluster.kubernetes.io/service-name: web, multicluster.kubernetes.io/source-cluster: {cluster}, \
                         endpointslice.kubernetes.io/managed-by: clusters.fairlead.dev"
                    )
                }
            };
            // One slice for each endpoint.
            for (index, endpoint) in endpoints.iter().enumerate() {
                text += &format!(
                    "---\nkind: EndpointSlice\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\n\
                     metadata: {{name: {own}-{}-{cluster}, namespace: shop, labels: {{{labels}}}}}\nendpoints: [{endpoint}]\n",
                    9 - index
                );
            }
        }
        let mut declared = parse_directory(&BTreeMap::from([("a.yaml".into(), text)])).unwrap();
        declared.statuses = StatusSet::clone(&desired(&declared, &Observed::default()).status);
        let desired = desired(&declared, &Observed::default()).datapath;
        let mut services = desired.services.iter().filter(|(key, _)| key.0.contains("web"));
        let (_, service) = services.next().unwrap();
        assert_eq!(services.next(), None);
        lb_bpf::service::Service::clone(service)
    }

    /// So a flow goes on where the network has moved it to another site.
    #[test]
    fn the_table_of_a_service_is_the_same_in_all_clusters() {
        let down = "{addresses: [10.2.0.1], conditions: {ready: false}}";
        let clusters: [(&str, &[&str]); 3] = [
            ("east", &["{addresses: [10.1.0.1]}", "{addresses: [10.1.0.9]}"]),
            ("west", &[down, "{addresses: [10.2.0.2]}", "{addresses: [10.2.0.3], nodeName: n}"]),
            ("north", &["{addresses: [10.0.0.7]}"]),
        ];
        let policy = "clusters: {prefer: None, minLocalPercent: 90}";
        let table = |service: &lb_bpf::service::Service| {
            let up = service.backends.iter().filter(|(_, target)| target.up);
            let members: Vec<_> = up.map(|(endpoint, target)| (*endpoint, target.weight)).collect();
            let slots = lb_bpf::maglev::build(lb_bpf::maglev::table_size(members.len()), &members);
            slots.into_iter().map(|slot| members[slot as usize].0).collect::<Vec<_>>()
        };
        let first = mirrored("east", &clusters, policy);
        assert_eq!((first.frontends.len(), first.backends.len()), (1, 6));
        for own in ["west", "north"] {
            let mut turned = clusters;
            turned.reverse();
            let other = mirrored(own, &turned, policy);
            assert_eq!((&other.frontends, &other.backends), (&first.frontends, &first.backends), "{own}");
            assert_eq!(table(&other), table(&first), "{own}");
        }
        // With another policy each prefers its own.
        let local = |own| mirrored(own, &clusters, "clusters: {}");
        assert_ne!(table(&local("east")), table(&local("west")));
    }

    const WEST: Link = Link { priority: 0, weight: 1, created: 0 };

    #[test]
    fn traffic_follows_health_by_degrees() {
        let half = "{prefer: Local, minLocalPercent: 50}";
        let west = [(WEST, (10, 10))];
        let of_ten = |up| shares(half, (10, up), &west);
        assert_eq!([10, 5, 4, 2, 1, 0].map(|up| of_ten(up)[0]), [100, 100, 80, 40, 20, 0]);
        // Without a percentage others come only after the last.
        let any = |up| shares("{}", (10, up), &west)[0];
        assert_eq!([10, 1, 0].map(any), [100, 100, 0]);
        // Nobody else is there.
        assert_eq!(shares(half, (10, 1), &[(WEST, (10, 0))]), [100, 0]);
        assert_eq!(shares(half, (0, 0), &west), [0, 100]);
    }

    #[test]
    fn priorities_come_in_turn_and_weights_share() {
        let half = "{minLocalPercent: 50}";
        let (first, second) = (Link { priority: 10, ..WEST }, Link { priority: -1, ..WEST });
        assert_eq!(shares(half, (4, 0), &[(second, (4, 4)), (first, (4, 4))]), [0, 0, 100]);
        assert_eq!(shares(half, (4, 1), &[(second, (4, 4)), (first, (4, 1))]), [50, 25, 25]);
        let heavy = Link { weight: 3, ..WEST };
        assert_eq!(shares(half, (4, 0), &[(heavy, (4, 4)), (WEST, (4, 4))]), [0, 75, 25]);
        let drained = Link { weight: 0, ..WEST };
        assert_eq!(shares(half, (4, 0), &[(drained, (4, 4)), (WEST, (4, 4))]), [0, 0, 100]);
        assert_eq!(shares("{prefer: None}", (4, 4), &[(WEST, (12, 12))]), [25, 75]);
    }

    #[test]
    fn who_has_not_been_asked_yet_moves_nothing() {
        let (half, west) = ("{minLocalPercent: 50}", [(WEST, (10, 10))]);
        let of_ten = |up, unknown| shares_with(half, (10, up), unknown, &west, true);
        assert_eq!([(4, 0), (4, 10), (0, 10)].map(|(up, unknown)| of_ten(up, unknown)[0]), [80, 80, 0]);
        // A rollout has replaced all at once: somebody has to serve.
        assert_eq!(shares_with(half, (0, 0), 10, &west, true), [0, 100]);
        // A node that has just started waits, and does not send all abroad.
        assert_eq!(shares_with(half, (0, 0), 10, &west, false), [0, 0]);
        assert_eq!(shares_with(half, (1, 0), 9, &west, false), [0, 0], "the first word is a bad one");
        assert_eq!(shares_with(half, (1, 1), 9, &west, false), [100, 0], "it is a good one");
        assert_eq!(shares_with(half, (10, 0), 0, &west, false), [0, 100], "all are down");
    }

    proptest! {
        /// Whatever comes new goes where all goes, until it is known.
        #[test]
        fn what_is_new_changes_no_share(
            all in 0..50u16, up in 0..50u16, unknown in 1..50u16, percent in 0..101u8, others in 0..50u16,
            is_served in any::<bool>(),
        ) {
            let (clusters, up) = (format!("{{minLocalPercent: {percent}}}"), up.min(all));
            let west = [(WEST, (others, others))];
            let found = shares_with(&clusters, (all, up), unknown, &west, is_served);
            let want = match is_served || up > 0 {
                true => shares(&clusters, (all, up), &west),
                false => vec![0, 0],
            };
            prop_assert_eq!(found, want);
        }

        /// The fewer are up, the less traffic, and all of it goes somewhere.
        #[test]
        fn less_health_is_less_traffic(all in 1..200u16, percent in 0..101u8, others in 1..100u16, weight in 1..1000u16) {
            let clusters = format!("{{minLocalPercent: {percent}}}");
            let other = [(Link { weight, ..WEST }, (others, others))];
            let mut before = 0;
            for up in 0..=all {
                let found = shares(&clusters, (all, up), &other);
                prop_assert!(found[0] >= before && (99..=101).contains(&(found[0] + found[1])), "{:?}", found);
                if u32::from(up) * 100 >= u32::from(all) * u32::from(percent) && up > 0 {
                    prop_assert_eq!(found[0], 100);
                }
                before = found[0];
            }
        }
    }
}
