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
    let mut set = Draft::new(declared, observed).finish(&Installed::default()).status;
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
