//! Statuses as the whole cluster sees them: addresses, pools, and what is accepted. How things are on a node its own agent
//! says.
use super::Draft;
use crate::{
    declared::Declared,
    observed::Observed,
    status::{StatusSet, Statuses},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use lb_bpf::Installed;
use std::sync::Arc;

/// Conditions that are the same wherever one looks from.
const OF_CLUSTER: [&str; 4] = ["Accepted", "AddressAssigned", "AddressesAvailable", "Disjoint"];

/// What a controller publishes. Of `observed` only the faults and the time count.
pub fn cluster(declared: &Declared, observed: &Observed) -> StatusSet {
    let mut set = Draft::of_cluster(declared, observed).finish(&Installed::default()).status;
    let before = &declared.statuses;
    keep(&mut set.pools, &before.pools, |status| of_cluster(&mut status.conditions));
    for (after, before) in
        [(&mut set.load_balancers, &before.load_balancers), (&mut set.services, &before.services)]
    {
        keep(after, before, |status| {
            of_cluster(&mut status.conditions);
            status.healthy_backends = 0;
        });
    }
    keep(&mut set.policies, &before.policies, |status| of_cluster(&mut status.conditions));
    keep(&mut set.routers, &before.routers, |status| {
        of_cluster(&mut status.conditions);
        (status.sessions, status.established_sessions) = (0, 0);
    });
    keep(&mut set.peers, &before.peers, |status| {
        of_cluster(&mut status.conditions);
        (status.sessions, status.established_sessions) = (0, 0);
    });
    keep(&mut set.advertisements, &before.advertisements, |status| {
        of_cluster(&mut status.conditions);
        (status.announced_routes, status.withheld_routes) = (0, 0);
    });
    keep(&mut set.packet_filters, &before.packet_filters, |status| {
        of_cluster(&mut status.conditions);
        status.rules.clear();
    });
    set
}

fn of_cluster(conditions: &mut Vec<Condition>) {
    conditions.retain(|condition| OF_CLUSTER.contains(&condition.type_.as_str()));
}

/// Leaves out of each status what is not said here; what is as it was before is shared with it.
fn keep<T: Clone + PartialEq>(statuses: &mut Statuses<T>, before: &Statuses<T>, leave_out: impl Fn(&mut T)) {
    for (name, status) in statuses {
        leave_out(Arc::make_mut(status));
        if let Some(before) = before.get(name).filter(|before| *before == status) {
            *status = Arc::clone(before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::parse_directory;
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
        assert_eq!(types(&first.routers["all"].conditions), ["Accepted"]);
        // Come back, they are what they were.
        declared.statuses = first.clone();
        let second = cluster(&declared, &Observed { now: 2_000, ..Observed::default() });
        assert_eq!(second, first);
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
