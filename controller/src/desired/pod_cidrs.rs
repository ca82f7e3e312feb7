//! Pod CIDRs: from pools and nodes to the pools and claims of `ipam`, and back to statuses. As of addresses, what is given
//! takes effect when it comes back: in the status, or in `spec.podCIDRs` of the node.
use super::{Draft, Node, conditions, in_use, labels, leases};
use crate::{
    api::{
        AddressPool, PoolUse,
        address_pool::ReleasedBlock,
        node::{AssignedBlock, NodeStatus, pod_cidr_blocks, pod_cidrs},
        scalar::Cidr,
    },
    declared::Declared,
    observed::Observed,
    status::{Conditions, Statuses, seconds, time},
};
use ipam::{
    Name, Released, Remark,
    pod_cidr::{BlockAssignments, BlockPool, HeldBlocks, NodeBlocks, NodeClaim, assign_blocks},
};
use ipnet::IpNet;
use std::{collections::BTreeSet, sync::Arc};

/// Gives blocks to all nodes.
pub(super) fn assign(declared: &Declared, observed: &Observed) -> BlockAssignments {
    let pools: Vec<_> = pools(declared).collect();
    let statuses = &declared.statuses;
    // Nobody asked for it: a cluster whose pod CIDRs are another's business.
    if pools.is_empty() && statuses.nodes.is_empty() {
        return BlockAssignments::default();
    }
    let matching = |node: &k8s_openapi::api::core::v1::Node| {
        let selecting =
            pools.iter().filter(|(_, pool)| pool.spec.node_selector.matches(labels(&node.metadata)));
        selecting.map(|(name, _)| Name::from(name.as_str())).collect::<BTreeSet<_>>()
    };
    let claim = |(name, node): (&String, &Arc<k8s_openapi::api::core::v1::Node>)| {
        let claim = NodeClaim {
            declared: pod_cidrs(node),
            // An annotation that is none is told in the status, and changes nothing.
            count: pod_cidr_blocks(node).unwrap_or(1),
            created: node.metadata.creation_timestamp.as_ref().map_or(0, seconds),
            matching: Arc::new(matching(node)),
        };
        (Name::from(name.as_str()), claim)
    };
    let nodes = declared.nodes.iter().map(claim).collect();
    let given = statuses.nodes.iter().map(|(name, status)| {
        let blocks =
            status.pod_cidrs.iter().map(|block| (block.cidr.0, block.pool.as_deref().map(Name::from)));
        (Name::from(name.as_str()), blocks.collect())
    });
    let released = statuses.pools.values().flat_map(|status| &status.released_blocks);
    let released = released.map(|block| {
        let record = Released { claim: block.owner.as_str().into(), at: seconds(&block.released_at) };
        (block.cidr.0, record)
    });
    let mut held = HeldBlocks { given: given.collect(), released: released.collect() };
    in_use::release_blocks(declared, observed, &mut held);
    let leased = |name: &String, object: &AddressPool| BlockPool {
        leased: leases::leased(declared, observed, name, object),
        ..pool(object)
    };
    let pools =
        pools.iter().map(|(name, object)| (Name::from(name.as_str()), leased(name, object))).collect();
    assign_blocks(&pools, &nodes, &held, observed.now)
}

/// The blocks of this node in effect, and their pools.
pub(super) fn effective<'a>(
    declared: &'a Declared,
    node: &Node<'_>,
    assignments: &'a BlockAssignments,
) -> impl Iterator<Item = (IpNet, Option<&'a Name>)> {
    effective_of(declared, node.name, assignments)
}

/// Those of all nodes.
pub(super) fn all_effective<'a>(
    declared: &'a Declared,
    assignments: &'a BlockAssignments,
) -> impl Iterator<Item = IpNet> {
    let nodes = assignments.nodes.keys();
    nodes.flat_map(|name| effective_of(declared, name, assignments).map(|(net, _)| net))
}

fn effective_of<'a>(
    declared: &'a Declared,
    name: &str,
    assignments: &'a BlockAssignments,
) -> impl Iterator<Item = (IpNet, Option<&'a Name>)> + use<'a> {
    let own = assignments.nodes.get(name);
    let declares = declared.nodes.get(name).map(|node| pod_cidrs(node)).unwrap_or_default();
    let published = declared.statuses.nodes.get(name);
    let is_in_effect = move |net: &IpNet| {
        declares.contains(net)
            || published.is_some_and(|status| status.pod_cidrs.iter().any(|block| block.cidr.0 == *net))
    };
    let blocks = own.into_iter().flat_map(|own| &own.blocks);
    blocks.filter(move |(net, _)| is_in_effect(net)).map(|(net, given)| (*net, given.pool.as_ref()))
}

/// The blocks that rest in a pool.
pub(super) fn released(assignments: &BlockAssignments, object: &AddressPool) -> Vec<ReleasedBlock> {
    let blocks = pool(object).blocks;
    let resting = assignments.released.iter();
    resting
        .filter(|(net, _)| blocks.iter().any(|block| block.contains(net.network())))
        .map(|(net, released)| ReleasedBlock {
            cidr: Cidr(*net),
            released_at: time(released.at),
            owner: released.claim.to_string(),
        })
        .collect()
}

/// Of the nodes that have blocks or lack some.
pub(super) fn statuses(draft: &Draft<'_>) -> Statuses<NodeStatus> {
    let known = &draft.declared.statuses.nodes;
    let status = |(name, own): (&Name, &NodeBlocks)| {
        let node = draft.declared.nodes.get(&**name)?;
        let before = known.get(&**name);
        let fault = pod_cidr_blocks(node).err();
        if own.blocks.is_empty() && own.lacking.is_empty() && before.is_none() && fault.is_none() {
            return None;
        }
        let mut conditions =
            conditions(draft, before.map(|before| &before.conditions), node.metadata.generation);
        assigned(own, fault, &mut conditions);
        let given_at = |net: &IpNet| before?.pod_cidrs.iter().find(|block| block.cidr.0 == *net);
        let blocks = own.blocks.iter().map(|(net, given)| AssignedBlock {
            cidr: Cidr(*net),
            pool: given.pool.as_deref().map(str::to_owned),
            assigned_at: given_at(net)
                .map_or_else(|| time(draft.observed.now), |known| known.assigned_at.clone()),
        });
        let status = NodeStatus { conditions: conditions.finish(), pod_cidrs: blocks.collect() };
        Some((name.to_string(), Arc::new(status)))
    };
    draft.blocks.nodes.iter().filter_map(status).collect()
}

fn assigned(own: &NodeBlocks, fault: Option<String>, conditions: &mut Conditions<'_>) {
    const TYPE: &str = "PodCIDRAssigned";
    let mut message = match own.blocks.len() {
        1 => "1 block assigned".to_owned(),
        count => format!("{count} blocks assigned"),
    };
    if let Some(fault) = fault {
        return conditions.set(TYPE, false, "InvalidRequest", format!("{message}; {fault}"));
    }
    if !own.lacking.is_empty() {
        own.lacking.iter().for_each(|lacking| message += &format!("; {lacking}"));
        return conditions.set(TYPE, false, "PoolExhausted", message);
    }
    let (mut is_good, mut reason) = (true, "Assigned");
    for (net, given) in &own.blocks {
        let pool = given.pool.as_ref().map_or_else(|| "no pool".to_owned(), |pool| format!("pool {pool}"));
        match given.remark {
            Some(Remark::Outside) => message += &format!("; {net} is kept although no pool has it ({pool})"),
            Some(Remark::Reserved) => message += &format!("; {net} is kept although it is reserved ({pool})"),
            None => {}
        }
        if given.remark.is_some() && is_good {
            reason = "OutsidePool";
        }
        if let Some(other) = &given.overlaps {
            (is_good, reason) = (false, "Overlap");
            message += &format!("; {net} overlaps what node {other} declares");
        }
    }
    conditions.set(TYPE, is_good, reason, message);
}

fn pools(declared: &Declared) -> impl Iterator<Item = (&String, &Arc<AddressPool>)> {
    declared.pools.iter().filter(|(_, pool)| pool.spec.usage == PoolUse::PodCIDR)
}

fn pool(object: &AddressPool) -> BlockPool {
    let spec = &object.spec;
    let mask = spec.node_mask.as_ref();
    BlockPool {
        blocks: super::addresses::ranges(spec),
        reserved: super::addresses::reserved(spec),
        ipv4_length: mask.and_then(|mask| mask.ipv4).map(|length| length.get()),
        ipv6_length: mask.and_then(|mask| mask.ipv6).map(|length| length.get()),
        priority: spec.priority,
        reuse_delay_seconds: spec.reuse_delay_seconds.get().into(),
        disabled: spec.disabled,
        leased: None,
    }
}
