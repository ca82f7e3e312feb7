//! Statuses as the whole cluster sees them: addresses, pools, and what is accepted. How things are on its nodes stays as it was
//! said before: see [`Fleet`](super::Fleet).
use super::{Draft, Memory, fleet::OF_NODES};
use crate::{
    api::LoadBalancerStatus,
    by_name::changed,
    declared::Declared,
    observed::Observed,
    status::{StatusSet, Statuses},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use lb_bpf::Installed;
use std::{mem, sync::Arc};

/// Conditions that are the same wherever one looks from.
const OF_CLUSTER: [&str; 7] =
    ["Accepted", "Active", "AddressAssigned", "AddressesAvailable", "Disjoint", "Leased", "PolicyApplied"];

/// What the pass before came to: see [`Memory`].
#[derive(Debug, Default)]
pub struct ClusterMemory {
    draft: Memory,
    load_balancers: Merged,
    services: Merged,
}

/// Statuses of the cluster, and what they were made of.
#[derive(Debug, Default)]
struct Merged {
    own: Statuses<LoadBalancerStatus>,
    before: Statuses<LoadBalancerStatus>,
    statuses: Statuses<LoadBalancerStatus>,
}

/// What a controller publishes. Of `observed` only the faults and the time count.
pub fn cluster(declared: &Declared, observed: &Observed) -> StatusSet {
    let draft = Draft::of_cluster(declared, observed, Memory::default());
    merged(draft, declared, &mut ClusterMemory::default())
}

/// The same, faster: what has not changed since the pass before is not worked out again.
pub fn cluster_remembering(
    declared: &Arc<Declared>,
    observed: &Observed,
    memory: &mut ClusterMemory,
) -> StatusSet {
    let draft = Draft::of_cluster(declared, observed, mem::take(&mut memory.draft)).kept(declared);
    merged(draft, declared, memory)
}

fn merged(draft: Draft<'_>, declared: &Declared, memory: &mut ClusterMemory) -> StatusSet {
    let (desired, remembered) = draft.finish_and_remember(&Arc::<Installed>::default());
    memory.draft = remembered;
    let mut set = Arc::unwrap_or_clone(desired.status);
    let before = &declared.statuses;
    keep(&mut set.pools, &before.pools, |status, before| {
        merge(&mut status.conditions, before.map(|before| &before.conditions));
    });
    keep_balanced(&mut set.load_balancers, &before.load_balancers, &mut memory.load_balancers);
    keep_balanced(&mut set.services, &before.services, &mut memory.services);
    keep(&mut set.policies, &before.policies, |status, before| {
        merge(&mut status.conditions, before.map(|before| &before.conditions));
    });
    keep(&mut set.routers, &before.routers, |status, before| {
        merge(&mut status.conditions, before.map(|before| &before.conditions));
        status.sessions = before.map_or(0, |before| before.sessions);
        status.established_sessions = before.map_or(0, |before| before.established_sessions);
    });
    keep(&mut set.peers, &before.peers, |status, before| {
        merge(&mut status.conditions, before.map(|before| &before.conditions));
        status.sessions = before.map_or(0, |before| before.sessions);
        status.established_sessions = before.map_or(0, |before| before.established_sessions);
    });
    keep(&mut set.advertisements, &before.advertisements, |status, before| {
        merge(&mut status.conditions, before.map(|before| &before.conditions));
        status.announced_routes = before.map_or(0, |before| before.announced_routes);
        status.withheld_routes = before.map_or(0, |before| before.withheld_routes);
    });
    keep(&mut set.packet_filters, &before.packet_filters, |status, before| {
        merge(&mut status.conditions, before.map(|before| &before.conditions));
        status.rules.clear();
    });
    set
}

/// Of the conditions those of the cluster, with those of nodes from before.
fn merge(conditions: &mut Vec<Condition>, before: Option<&Vec<Condition>>) {
    let is_one_of = |types: &[&str], condition: &Condition| types.contains(&condition.type_.as_str());
    conditions.retain(|condition| is_one_of(&OF_CLUSTER, condition));
    let of_nodes = before.into_iter().flatten().filter(|condition| is_one_of(&OF_NODES, condition));
    conditions.extend(of_nodes.cloned());
    conditions.sort_by(|one, other| one.type_.cmp(&other.type_));
}

/// Adapts each status to the one before; what is as it was before is shared with it.
fn keep<T: Clone + PartialEq>(
    statuses: &mut Statuses<T>,
    before: &Statuses<T>,
    adapt: impl Fn(&mut T, Option<&T>),
) {
    statuses.change_each(|name, status| {
        let before = before.get(name);
        adapt(Arc::make_mut(status), before.map(|before| &**before));
        if let Some(before) = before.filter(|before| *before == status) {
            *status = Arc::clone(before);
        }
    });
}

/// The same for services, of which there are many.
fn keep_balanced(
    statuses: &mut Statuses<LoadBalancerStatus>,
    before: &Statuses<LoadBalancerStatus>,
    known: &mut Merged,
) {
    let Merged { own: known_own, before: known_before, statuses: mut merged } = mem::take(known);
    let own = mem::take(statuses);
    for name in changed((&known_own, &own), (&known_before, before)) {
        let (Some(status), before) = (own.get(name), before.get(name)) else {
            merged.remove(name);
            continue;
        };
        let mut new = LoadBalancerStatus::clone(status);
        merge(&mut new.conditions, before.map(|before| &before.conditions));
        new.healthy_backends = None;
        new.programmed_nodes = before.and_then(|before| before.programmed_nodes);
        new.announcing_nodes = before.and_then(|before| before.announcing_nodes);
        let same = before.filter(|before| ***before == new);
        merged.insert(name.to_owned(), same.map_or_else(|| Arc::new(new), Arc::clone));
    }
    *statuses = merged.clone();
    *known = Merged { own, before: before.clone(), statuses: merged };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{desired::desired, validate::parse_directory};
    use std::collections::BTreeMap;

    fn declared() -> Declared {
        let yaml = "kind: AddressPool\nmetadata: {name: vips}\n\
                    spec: {use: LoadBalancer, blocks: [{cidr: 192.0.2.0/29}]}\n---\n\
                    kind: LoadBalancer\nmetadata: {name: web}\n\
                    spec: {ports: [{port: 80}], backends: [{address: 10.0.0.1}]}\n---\n\
                    kind: BGPRouter\nmetadata: {name: all}\nspec: {asn: 65010}\n";
        parse_directory(&BTreeMap::from([("a.yaml".into(), yaml.to_owned())])).unwrap()
    }

    fn addresses(set: &StatusSet, name: &str) -> Vec<String> {
        set.load_balancers[name].addresses.iter().map(|assigned| assigned.address.to_string()).collect()
    }

    #[test]
    fn says_what_is_the_same_everywhere() {
        let mut declared = declared();
        let first = cluster(&declared, &Observed { now: 1_000, ..Observed::default() });
        assert_eq!(addresses(&first, "web"), ["192.0.2.0"]);
        let types = |conditions: &[Condition]| -> Vec<String> {
            conditions.iter().map(|condition| condition.type_.clone()).collect()
        };
        assert_eq!(types(&first.load_balancers["web"].conditions), ["Accepted", "AddressAssigned"]);
        assert_eq!(types(&first.pools["vips"].conditions), ["Accepted", "AddressesAvailable", "Disjoint"]);
        assert_eq!(first.routers["all"].nodes, 0, "the controller is no node");
        assert_eq!(types(&first.routers["all"].conditions), ["Accepted"]);
        // Come back, they are what they were.
        declared.statuses = first.clone();
        let second = cluster(&declared, &Observed { now: 2_000, ..Observed::default() });
        assert_eq!(second, first);
        assert!(Arc::ptr_eq(&second.load_balancers["web"], &first.load_balancers["web"]));
    }

    #[test]
    fn what_is_remembered_changes_nothing() {
        let mut declared = declared();
        let mut memory = ClusterMemory::default();
        for step in 0..6_u64 {
            match step {
                2 => {
                    let object = Arc::make_mut(declared.load_balancers.get_mut("web").unwrap());
                    object.metadata.generation = Some(2);
                }
                4 => {
                    let status = Arc::make_mut(declared.statuses.load_balancers.get_mut("web").unwrap());
                    (status.programmed_nodes, status.healthy_backends) = (Some(3), None);
                }
                _ => {}
            }
            let now = Arc::new(declared.clone());
            let observed = Observed { now: 1_000 + step, ..Observed::default() };
            let expected = cluster(&now, &observed);
            let set = cluster_remembering(&now, &observed, &mut memory);
            assert_eq!(set, expected, "step {step}");
            declared.statuses = set;
        }
        assert_eq!(declared.statuses.load_balancers["web"].programmed_nodes, Some(3));
    }

    /// With thousands of services only those are looked at that have changed.
    #[test]
    fn one_that_changes_does_not_bring_up_the_others() {
        let mut declared = declared();
        let mut memory = ClusterMemory::default();
        for _ in 0..2 {
            declared.statuses =
                cluster_remembering(&Arc::new(declared.clone()), &Observed::default(), &mut memory);
        }
        Arc::make_mut(declared.load_balancers.get_mut("web").unwrap()).metadata.generation = Some(2);
        let (now, observed) = (Arc::new(declared), Observed::default());
        let draft = Draft::of_cluster(&now, &observed, memory.draft).kept(&now);
        assert_eq!(draft.changed, Some([0].into()));
    }

    /// What an agent says of its node does not come back: others write the statuses.
    #[test]
    fn a_node_goes_by_what_it_said_itself() {
        let mut declared = declared();
        declared.statuses = cluster(&declared, &Observed::default());
        let first = desired(&declared, &Observed { now: 1_000, ..Observed::default() }).status;
        let later = Observed { now: 2_000, said: Arc::clone(&first), ..Observed::default() };
        let second = desired(&declared, &later).status;
        assert!(Arc::ptr_eq(&second.load_balancers["web"], &first.load_balancers["web"]));
    }

    #[test]
    fn what_is_refused_keeps_its_address() {
        let mut declared = declared();
        let held = cluster(&declared, &Observed::default()).load_balancers["web"].clone();
        declared.statuses.load_balancers.insert("refused".to_owned(), held);
        declared.refused.insert("LoadBalancer/refused".to_owned());
        let set = cluster(&declared, &Observed::default());
        assert_eq!(addresses(&set, "web"), ["192.0.2.1"]);
        assert_eq!((set.pools["vips"].ipv4.assigned, set.pools["vips"].released.len()), (2, 0));
        declared.refused.clear();
        assert_eq!(addresses(&cluster(&declared, &Observed::default()), "web"), ["192.0.2.0"], "it was free");
    }
}
