//! Pools that clusters share: what is leased to this one, what others have for services of the same name, and what this one says
//! next ([`ipam::lease`]). What is leased counts when it has come back in the statuses, as addresses do.
use super::{Draft, addresses, sources::claim};
use crate::{
    api::{AddressPool, Kind, PoolUse, address_pool::PoolLeases},
    declared::Declared,
    neighbours::{self, Neighbour, NeighbourPool},
    observed::Observed,
    status::{Conditions, Verdict},
};
use ipam::{
    Family, Name, Range, Unassigned,
    lease::{self, Lease, Leases, Need, Other, Reason},
};
use ipnet::IpNet;
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

/// What of a pool this cluster may give; none: the pool is not shared.
pub(super) fn leased(
    declared: &Declared,
    observed: &Observed,
    name: &str,
    object: &AddressPool,
) -> Option<Vec<Range>> {
    if object.spec.clusters.is_empty() {
        return None;
    }
    let own = published(declared, name);
    let others = views(observed, name);
    // Should another hold the same by some mistake, nothing more of it is given.
    let is_contested = |chunk: &IpNet| {
        others.iter().any(|(_, pool)| {
            let theirs = pool.leases.iter().flat_map(Leases::held);
            theirs.into_iter().any(|held| lease::overlap(held, chunk))
        })
    };
    let held = own.held().filter(|chunk| !is_contested(chunk));
    Some(lease::within(&addresses::ranges(&object.spec), held))
}

/// Addresses of shared pools that services have in other clusters, with the claim that may have them here: the Service of the same
/// name, if it is exported here, too.
pub(super) fn elsewhere(declared: &Declared, observed: &Observed) -> BTreeMap<IpAddr, Name> {
    let shared = addresses::service_pools(declared).filter(|(_, pool)| !pool.spec.clusters.is_empty());
    let blocks: Vec<Range> = shared.flat_map(|(_, pool)| addresses::ranges(&pool.spec)).collect();
    let mut elsewhere = BTreeMap::new();
    if blocks.is_empty() {
        return elsewhere;
    }
    let neighbours = &observed.neighbours;
    for (cluster, neighbour) in &neighbours.clusters {
        for (service, addresses) in &*neighbour.addresses {
            let name = match neighbours.exports.contains(service) {
                true => claim(Kind::Service, service),
                false => format!("Service/{service} in {cluster}").into(),
            };
            for address in addresses.iter().filter(|a| blocks.iter().any(|block| block.contains(**a))) {
                elsewhere.entry(*address).or_insert_with(|| name.clone());
            }
        }
    }
    elsewhere
}

/// The first address range of another cluster's pool that a pool of ours has, too, though they do not share it.
pub(super) fn overlap(draft: &Draft<'_>, name: &str) -> Option<String> {
    let object = draft.declared.pools.get(name)?;
    let blocks = addresses::ranges(&object.spec);
    let neighbours = &draft.observed.neighbours;
    let own_name = neighbours.name.as_deref().unwrap_or_default();
    let mut overlaps = Vec::new();
    for (cluster, neighbour) in &neighbours.clusters {
        for (other, pool) in neighbour.pools.iter().flat_map(|pools| pools.iter()) {
            let is_shared =
                other == name && object.spec.clusters.contains(cluster) && pool.clusters.contains(own_name);
            if is_shared {
                continue;
            }
            let common = blocks.iter().flat_map(|own| pool.blocks.iter().filter_map(|b| b.intersection(own)));
            overlaps.extend(common.map(|range| (cluster, other, range)));
        }
    }
    let (cluster, pool, range) = overlaps.first()?;
    Some(format!("pool {pool} of cluster {cluster} has {range}, too ({} overlaps)", overlaps.len()))
}

/// How a shared pool is leased.
pub(super) struct Leased<'a> {
    object: &'a AddressPool,
    before: Leases,
    next: Leases,
    chunks: Vec<IpNet>,
    name: Option<&'a str>,
    others: BTreeMap<Name, Other>,
    /// The first cluster that keeps everything from being leased, and why.
    hindrance: Option<(&'static str, String)>,
}

impl<'a> Leased<'a> {
    /// None: the pool is not shared.
    pub(super) fn new(draft: &'a Draft<'_>, name: &str, object: &'a AddressPool) -> Option<Self> {
        let spec = &object.spec;
        if spec.clusters.is_empty() {
            return None;
        }
        let (declared, observed) = (draft.declared, draft.observed);
        let before = published(declared, name);
        let longest = match (spec.usage, &spec.node_mask) {
            (PoolUse::PodCIDR, Some(mask)) => {
                [mask.ipv4.map_or(32, |length| length.get()), mask.ipv6.map_or(128, |length| length.get())]
            }
            _ => [32, 128],
        };
        let chunks = lease::chunks(&addresses::ranges(spec), &addresses::reserved(spec), longest);
        let own_name = observed.neighbours.name.as_deref();
        let mut leased = Leased {
            object,
            next: before.clone(),
            before,
            chunks,
            name: own_name,
            others: BTreeMap::new(),
            hindrance: None,
        };
        let Some(own_name) = own_name.filter(|own| spec.clusters.iter().any(|name| name == own)) else {
            return Some(leased);
        };
        let own = NeighbourPool::of(object, None);
        for cluster in spec.clusters.iter().filter(|cluster| *cluster != own_name) {
            let neighbour = observed.neighbours.clusters.get(cluster);
            let pool = neighbour.and_then(|neighbour| neighbour.pools.as_ref()?.get(name));
            let hindrance = hindrance(neighbour, pool, &own);
            let other = Other {
                leases: pool.and_then(|pool| pool.leases.clone()),
                is_listed: true,
                is_fresh: hindrance.is_none(),
            };
            leased.hindrance = leased.hindrance.take().or(hindrance
                .map(|(reason, what)| (reason, format!("cluster {cluster} {what}: nothing more is leased"))));
            leased.others.insert(cluster.as_str().into(), other);
        }
        for (cluster, pool) in views(observed, name) {
            let other = Other { leases: pool.leases.clone(), is_listed: false, is_fresh: false };
            leased.others.entry(cluster.as_str().into()).or_insert(other);
        }
        let need = need(draft, name, object, &leased.before);
        leased.next =
            lease::step(&leased.before, own_name, &leased.others, &leased.chunks, &need, observed.now);
        Some(leased)
    }

    /// As the status of the pool has it.
    pub(super) fn leases(&self) -> PoolLeases {
        neighbours::said(&self.next)
    }

    pub(super) fn say(&self, conditions: &mut Conditions<'_>) {
        const TYPE: &str = "Leased";
        let Some(name) = self.name else {
            let message = "what this cluster is called is not known: pools are shared by clusters of Kubernetes that are linked";
            return conditions.set(TYPE, Verdict::Unknown, "NotLinked", message);
        };
        if !self.object.spec.clusters.iter().any(|cluster| cluster == name) {
            let message = format!("this cluster is called {name}, and that is none of spec.clusters");
            return conditions.set(TYPE, false, "NotAmongClusters", message);
        }
        let message = self.numbers();
        let contested = self.next.chunks.iter().find_map(|(chunk, lease)| {
            let is_in_use = matches!(lease, Lease::Claimed { reason: Reason::InUse, .. });
            Some((chunk, self.user(chunk).filter(|_| is_in_use)?))
        });
        match (contested, &self.hindrance) {
            (Some((chunk, cluster)), _) => {
                let message = format!("{message}; {chunk} is in use here, and in cluster {cluster}, too");
                conditions.set(TYPE, false, "InUseElsewhere", message);
            }
            (None, Some((reason, what))) => conditions.set(TYPE, false, reason, format!("{message}; {what}")),
            (None, None) => conditions.set(TYPE, true, "Leased", message),
        }
    }

    /// `3 of 16 chunks held, 1 asked for, 12 left to others (east 4, west 8)`.
    fn numbers(&self) -> String {
        let (mut held, mut claimed, mut granted) = (0, 0, BTreeMap::<&Name, usize>::new());
        for lease in self.next.chunks.values() {
            match lease {
                Lease::Held { .. } => held += 1,
                Lease::Claimed { .. } => claimed += 1,
                Lease::Granted { to, .. } => *granted.entry(to).or_default() += 1,
            }
        }
        let mut message = format!("{held} of {} chunks held, {claimed} asked for", self.chunks.len());
        if !granted.is_empty() {
            let all: Vec<_> = granted.iter().map(|(name, count)| format!("{name} {count}")).collect();
            message += &format!(", {} left to others ({})", granted.values().sum::<usize>(), all.join(", "));
        }
        message
    }

    /// Another cluster that holds a chunk, or claims it because it is in use.
    fn user(&self, chunk: &IpNet) -> Option<&Name> {
        let is_user = |(other, lease): (&IpNet, &Lease)| {
            lease::overlap(other, chunk)
                && matches!(lease, Lease::Held { .. } | Lease::Claimed { reason: Reason::InUse, .. })
        };
        let others = self.others.iter().filter_map(|(name, other)| Some((name, other.leases.as_ref()?)));
        { others }.find(|(_, leases)| leases.chunks.iter().any(is_user)).map(|(name, _)| name)
    }
}

/// What keeps clusters from leasing, as reason and part of a sentence.
fn hindrance(
    neighbour: Option<&Arc<Neighbour>>,
    pool: Option<&NeighbourPool>,
    own: &NeighbourPool,
) -> Option<(&'static str, &'static str)> {
    match (neighbour, pool) {
        (None, _) => Some(("ClusterNotLinked", "is not linked")),
        (Some(neighbour), _) if !neighbour.is_connected => {
            Some(("ClusterUnreachable", "cannot be reached, or its pools cannot be read"))
        }
        (_, None) => Some(("NotShared", "has no pool of this name")),
        (_, Some(pool)) if !pool.is_same(own) => {
            Some(("NotTheSame", "has this pool with another use, other blocks or other clusters"))
        }
        (_, Some(pool)) if pool.leases.is_none() => Some(("NotSpoken", "has not said yet what it holds")),
        _ => None,
    }
}

/// What this cluster needs of a pool.
fn need(draft: &Draft<'_>, name: &str, object: &AddressPool, before: &Leases) -> Need {
    let mut lacking = [0_u128; 2];
    let (mut used, mut asked) = (Vec::new(), Vec::new());
    let statuses = &draft.declared.statuses;
    match object.spec.usage {
        PoolUse::LoadBalancer => {
            let given = draft.given.claims.iter().flat_map(|claim| claim.addresses.keys());
            let published = statuses.load_balancers.values().chain(statuses.services.values());
            let published = published.flat_map(|status| status.addresses.iter().map(|a| a.address.0));
            let assignments = &draft.given.assignments;
            let resting = assignments.released.keys().copied();
            // What others have of what is leased to us is not given back under their feet.
            let lent = assignments.elsewhere.keys().copied();
            let lent = lent.filter(|address| before.held().any(|chunk| chunk.contains(address)));
            used.extend(given.chain(published).chain(resting).chain(lent).map(lease::single));
            for reason in draft.given.claims.iter().flat_map(|claim| &claim.unassigned) {
                match reason {
                    Unassigned::PoolExhausted { family, pools, .. } if pools.iter().any(|p| **p == *name) => {
                        lacking[*family as usize] += 1;
                    }
                    Unassigned::Withheld { address, pool } if **pool == *name => {
                        asked.push(lease::single(*address));
                    }
                    _ => {}
                }
            }
        }
        PoolUse::PodCIDR => {
            let range = |net: IpNet| Range::try_from(net).ok();
            let given = draft.blocks.nodes.values().flat_map(|node| node.blocks.keys().copied());
            let published = statuses.nodes.values().flat_map(|s| s.pod_cidrs.iter().map(|b| b.cidr.0));
            let resting = draft.blocks.released.keys().copied();
            used.extend(given.chain(published).chain(resting).filter_map(range));
            let mask = object.spec.node_mask.as_ref();
            for missing in draft.blocks.nodes.values().flat_map(|node| &node.lacking) {
                let bits = match missing.family {
                    Family::Ipv4 => mask.and_then(|m| m.ipv4).map(|length| 32 - length.get()),
                    Family::Ipv6 => mask.and_then(|m| m.ipv6).map(|length| 128 - length.get()),
                };
                let size = bits.map_or(0, |bits| 1_u128.checked_shl(bits.into()).unwrap_or(u128::MAX));
                if missing.pools.iter().any(|pool| **pool == *name) {
                    let lacking = &mut lacking[missing.family as usize];
                    *lacking = lacking.saturating_add(size.saturating_mul(missing.count as u128));
                }
            }
        }
    }
    Need::new(&used, lacking, object.spec.disabled).asking(&asked)
}

/// What this cluster said last.
fn published(declared: &Declared, pool: &str) -> Leases {
    let status = declared.statuses.pools.get(pool);
    status.and_then(|status| status.leases.as_ref()).map(neighbours::leases).unwrap_or_default()
}

/// The pools of this name in other clusters.
fn views<'a>(observed: &'a Observed, name: &str) -> Vec<(&'a String, &'a NeighbourPool)> {
    let clusters = observed.neighbours.clusters.iter();
    clusters.filter_map(|(cluster, other)| Some((cluster, other.pools.as_ref()?.get(name)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{desired::cluster, validate::parse_directory};
    use std::collections::BTreeSet;

    const POOL: &str = "kind: AddressPool\nmetadata: {name: vips}\n\
        spec: {blocks: [{cidr: 192.0.2.0/29}], clusters: [east, west], reuseDelaySeconds: 0}\n";

    /// Two clusters, and what each knows of the other.
    struct World {
        clusters: BTreeMap<&'static str, Declared>,
        exports: BTreeSet<String>,
        is_cut: bool,
        seen: BTreeMap<&'static str, Neighbour>,
        now: u64,
    }

    impl World {
        fn new(yaml: &str) -> Self {
            let declared = |name: &'static str| (name, declared(yaml));
            World {
                clusters: ["east", "west"].into_iter().map(declared).collect(),
                exports: BTreeSet::new(),
                is_cut: false,
                seen: BTreeMap::new(),
                now: 1_000,
            }
        }

        fn add(&mut self, cluster: &str, yaml: &str) {
            let known = self.clusters.get_mut(cluster).unwrap();
            let new = declared(yaml);
            known.services.extend(new.services);
            known.pools.extend(new.pools);
        }

        /// All take turns until nothing changes any more.
        fn settle(&mut self) {
            for _ in 0..40 {
                self.now += 1;
                let before: Vec<_> = self.clusters.values().map(|d| d.statuses.clone()).collect();
                for name in ["east", "west"] {
                    let other = if name == "east" { "west" } else { "east" };
                    if !self.is_cut {
                        self.seen.insert(other, neighbour(&self.clusters[other], &self.exports));
                    }
                    let mut seen = self.seen[other].clone();
                    seen.is_connected = !self.is_cut;
                    let neighbours = crate::neighbours::Neighbours {
                        name: Some(name.to_owned()),
                        exports: self.exports.clone(),
                        clusters: BTreeMap::from([(other.to_owned(), Arc::new(seen))]),
                    };
                    let neighbours = Arc::new(neighbours);
                    let observed = Observed { now: self.now, neighbours, ..Observed::default() };
                    let declared = self.clusters.get_mut(name).unwrap();
                    declared.statuses = cluster(declared, &observed);
                }
                if self.clusters.values().map(|d| &d.statuses).eq(&before) {
                    return;
                }
            }
            panic!("it does not come to rest: {:#?}", self.clusters["east"].statuses.pools);
        }

        fn address(&self, cluster: &str, service: &str) -> String {
            let status = &self.clusters[cluster].statuses.services[&format!("shop/{service}")];
            status.addresses.iter().map(|assigned| assigned.address.to_string()).collect()
        }

        fn said(&self, cluster: &str, condition: &str) -> (String, String) {
            let conditions = &self.clusters[cluster].statuses.pools["vips"].conditions;
            let found = conditions.iter().find(|c| c.type_ == condition).unwrap();
            (found.reason.clone(), found.message.clone())
        }

        fn reason(&self, cluster: &str, service: &str) -> String {
            let conditions = &self.clusters[cluster].statuses.services[&format!("shop/{service}")].conditions;
            conditions.iter().find(|c| c.type_ == "AddressAssigned").unwrap().message.clone()
        }
    }

    fn declared(yaml: &str) -> Declared {
        parse_directory(&BTreeMap::from([("a.yaml".into(), yaml.to_owned())])).unwrap()
    }

    fn neighbour(declared: &Declared, exports: &BTreeSet<String>) -> Neighbour {
        let pool = |(name, object): (&String, &Arc<AddressPool>)| {
            let status = declared.statuses.pools.get(name);
            (name.clone(), NeighbourPool::of(object, status.map(|status| &**status)))
        };
        let addresses = declared.statuses.services.iter().filter(|(name, _)| exports.contains(*name));
        let addresses = addresses
            .map(|(name, status)| (name.clone(), status.addresses.iter().map(|a| a.address.0).collect()));
        Neighbour {
            is_connected: true,
            pools: Some(Arc::new(declared.pools.iter().map(pool).collect())),
            addresses: Arc::new(addresses.collect()),
        }
    }

    fn service(name: &str, address: &str) -> String {
        format!(
            "---\nkind: Service\nmetadata: {{name: {name}, namespace: shop, annotations: {{{address}}}}}\n\
             spec: {{type: LoadBalancer, loadBalancerClass: fairlead.dev/lb, ports: [{{port: 80}}]}}\n"
        )
    }

    #[test]
    fn two_clusters_give_every_address_once() {
        let mut world = World::new(POOL);
        world.settle();
        assert_eq!(world.said("east", "Leased").0, "Leased");
        for number in 0..3 {
            world.add("east", &service(&format!("e{number}"), ""));
            world.add("west", &service(&format!("w{number}"), ""));
        }
        world.settle();
        let all: BTreeSet<_> = (0..3)
            .flat_map(|n| [world.address("east", &format!("e{n}")), world.address("west", &format!("w{n}"))])
            .collect();
        assert_eq!(all.len(), 6, "{all:?}");
        let (_, said) = world.said("east", "Leased");
        assert_eq!(said, "4 of 8 chunks held, 0 asked for, 4 left to others (west 4)");

        // Cut off, each gives the one that it has in reserve, and then says why there are no more.
        world.is_cut = true;
        world.add("east", &(service("e3", "") + &service("e4", "")));
        world.settle();
        assert!(!world.address("east", "e3").is_empty());
        assert_eq!(
            world.reason("east", "e4"),
            "no free IPv4 address in vips: 4 of 8 assigned, 0 resting, 4 not leased to this cluster"
        );
        let (reason, said) = world.said("east", "Leased");
        assert_eq!(reason, "ClusterUnreachable");
        assert!(
            said.ends_with(
                "; cluster west cannot be reached, or its pools cannot be read: nothing more is leased"
            ),
            "{said}"
        );

        // West needs less meanwhile, and gives back what it does not need.
        world.clusters.get_mut("west").unwrap().services.remove("shop/w0");
        world.settle();
        world.is_cut = false;
        world.settle();
        assert!(!world.address("east", "e4").is_empty(), "{}", world.reason("east", "e4"));
    }

    #[test]
    fn who_asks_by_address_leases_the_chunk_and_the_same_service_elsewhere_has_it_too() {
        let mut world = World::new(POOL);
        let asks = |address: &str| format!("fairlead.dev/addresses: {address}");
        world.exports = BTreeSet::from(["shop/web".to_owned(), "shop/plain".to_owned()]);
        world.settle();
        for cluster in ["east", "west"] {
            world.add(cluster, &service("web", &asks("192.0.2.6")));
        }
        world.add("west", &service("other", &asks("192.0.2.6")));
        world.add("east", &service("plain", ""));
        world.settle();
        assert_eq!(
            (world.address("east", "web"), world.address("west", "web")),
            ("192.0.2.6".into(), "192.0.2.6".into())
        );
        assert_eq!(world.address("west", "other"), "");
        // Who asks for nothing is given what the other has.
        world.add("west", &service("plain", ""));
        world.settle();
        assert_eq!(world.address("west", "plain"), world.address("east", "plain"));
        // Nobody else is given it while the other cluster uses it.
        let holder = match world.clusters["east"].statuses.pools["vips"].leases.as_ref().unwrap() {
            leases
                if neighbours::leases(leases)
                    .held()
                    .any(|c| c.contains(&"192.0.2.6".parse::<IpAddr>().unwrap())) =>
            {
                "east"
            }
            _ => "west",
        };
        world.clusters.get_mut(holder).unwrap().services.remove("shop/web");
        world.add(holder, &service("thief", &asks("192.0.2.6")));
        world.settle();
        assert_eq!(world.address(holder, "thief"), "");
        assert!(
            world.reason(holder, "thief").contains("192.0.2.6 belongs to Service/shop/web"),
            "{}",
            world.reason(holder, "thief")
        );
    }

    #[test]
    fn what_is_not_shared_and_overlaps_is_said() {
        let mut world = World::new(POOL);
        world.add(
            "west",
            "kind: AddressPool\nmetadata: {name: own}\nspec: {blocks: [{cidr: 192.0.2.4/31}]}\n",
        );
        world.settle();
        assert_eq!(
            world.said("east", "Disjoint").1,
            "pool own of cluster west has 192.0.2.4-192.0.2.5, too (1 overlaps)"
        );
        world.clusters.get_mut("west").unwrap().pools.remove("own");
        world.settle();
        assert_eq!(world.said("east", "Disjoint").0, "Disjoint");
        // Another list of clusters: nothing is leased any more, and nothing is taken away.
        let mut edited = (*world.clusters["west"].pools["vips"]).clone();
        edited.spec.clusters.push("north".to_owned());
        world.clusters.get_mut("west").unwrap().pools.insert("vips".to_owned(), Arc::new(edited));
        world.settle();
        assert_eq!(world.said("east", "Leased").0, "NotTheSame");
        assert_eq!(world.said("west", "Leased").0, "NotTheSame");
    }

    #[test]
    fn nodes_of_two_clusters_share_a_pool() {
        let mut world = World::new(
            "kind: AddressPool\nmetadata: {name: vips}\n\
             spec: {use: PodCIDR, blocks: [{cidr: 10.244.0.0/22}], nodeMask: {ipv4: 24}, clusters: [east, west]}\n",
        );
        for (cluster, nodes) in [("east", ["e1", "e2"]), ("west", ["w1", "w2"])] {
            for node in nodes {
                let node = declared(&format!("kind: Node\nmetadata: {{name: {node}}}\n"));
                world.clusters.get_mut(cluster).unwrap().nodes.extend(node.nodes);
            }
        }
        world.settle();
        let blocks = |cluster: &str| -> Vec<_> {
            let nodes = world.clusters[cluster].statuses.nodes.values();
            nodes.flat_map(|status| status.pod_cidrs.iter().map(|block| block.cidr.to_string())).collect()
        };
        let all: BTreeSet<_> = blocks("east").into_iter().chain(blocks("west")).collect();
        assert_eq!(all.len(), 4, "{all:?}");
    }
}
