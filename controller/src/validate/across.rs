//! Rules between objects: blocks that overlap, names that name nothing, peers that clash. That two services ask for
//! one address is no fault: the older one has it, and the other has a condition that says so.
use super::{Fault, Objects, Place};
use crate::{
    api::{AddressPool, BGPPeer, BGPRouter, Kind, LoadBalancer, PoolUse},
    desired::md5_key,
    object::Object,
};
use std::{collections::BTreeMap, net::IpAddr};

/// Everything that is wrong between objects that are good by themselves.
pub(super) fn faults(objects: &Objects<'_>) -> Vec<Fault> {
    let mut faults = overlapping_blocks(objects);
    faults.extend(missing_pools(objects));
    faults.extend(ambiguous_peers(objects));
    faults.extend(missing_keys(objects));
    faults
}

/// Blocks in the order of their first addresses; each is compared with the one before that reaches furthest.
fn overlapping_blocks(objects: &Objects<'_>) -> Vec<Fault> {
    let mut blocks: Vec<_> = pools(objects)
        .flat_map(|(name, place, pool)| {
            let bounds = pool.spec.blocks.iter().enumerate();
            bounds.filter_map(move |(index, block)| {
                block.bounds().map(|(first, last)| (first, last, name, index, place))
            })
        })
        .collect();
    blocks.sort_by_key(|&(first, last, name, index, _)| (first, last, name, index));
    let mut faults = Vec::new();
    let mut furthest: Option<(IpAddr, &str, usize)> = None;
    for (first, last, name, index, place) in blocks {
        match furthest {
            // Families do not mix: every IPv4 address is before every IPv6 address.
            Some((reached, other, its)) if first <= reached => {
                let reason = format!("{first} to {last} overlaps blocks[{its}] of AddressPool/{other}");
                faults.push(place.fault(
                    format!("AddressPool/{name}"),
                    Some(format!("spec.blocks[{index}]")),
                    reason,
                ));
                if last > reached {
                    furthest = Some((last, name, index));
                }
            }
            _ => furthest = Some((last, name, index)),
        }
    }
    faults
}

fn missing_pools(objects: &Objects<'_>) -> Vec<Fault> {
    let fault = |(name, place, balancer): (&str, Place<'_>, &LoadBalancer)| {
        let pool = balancer.spec.pool.as_ref()?;
        let reason = match objects.get(&(Kind::AddressPool, pool.as_str())) {
            Some((_, Object::AddressPool(found))) if found.spec.usage == PoolUse::LoadBalancer => {
                return None;
            }
            Some(_) => format!("AddressPool/{pool} is not for services"),
            None => format!("there is no AddressPool/{pool}"),
        };
        Some(place.fault(format!("LoadBalancer/{name}"), Some("spec.pool".into()), reason))
    };
    load_balancers(objects).filter_map(fault).collect()
}

static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

/// A router knows its peers by their addresses, interfaces and ranges.
fn ambiguous_peers(objects: &Objects<'_>) -> Vec<Fault> {
    let peers: Vec<_> = peers(objects).collect();
    let mut faults = Vec::new();
    for (router, _, found) in routers(objects) {
        let mut owners = BTreeMap::new();
        for (name, place, peer) in &peers {
            let labels = peer.metadata.labels.as_ref().unwrap_or(&NO_LABELS);
            if !found.spec.peer_selector.matches(labels) {
                continue;
            }
            let spec = &peer.spec;
            let (field, known_by) = match (&spec.address, &spec.interface, &spec.range) {
                (Some(address), ..) => ("spec.address", address.to_string()),
                (None, Some(interface), _) => ("spec.interface", interface.clone()),
                (None, None, Some(range)) => ("spec.range.prefix", range.prefix.to_string()),
                (None, None, None) => continue,
            };
            let reason =
                |owner| format!("{known_by} is of BGPPeer/{owner}, and BGPRouter/{router} selects both");
            let owner = *owners.entry(known_by.clone()).or_insert(*name);
            if owner != *name {
                faults.push(place.fault(format!("BGPPeer/{name}"), Some(field.into()), reason(owner)));
            }
        }
    }
    faults
}

/// A key that cannot be used would leave the session unsigned.
fn missing_keys(objects: &Objects<'_>) -> Vec<Fault> {
    let fault = |(name, place, peer): (&str, Place<'_>, &BGPPeer)| {
        let reference = &peer.spec.auth.as_ref()?.md5_secret_ref;
        let reason = match objects.get(&(Kind::Secret, reference.name.as_str())) {
            Some((_, Object::Secret(secret))) => {
                let reason = md5_key(secret, &reference.key).err()?;
                format!("Secret/{}: {reason}", reference.name)
            }
            _ => format!("there is no Secret/{}", reference.name),
        };
        Some(place.fault(format!("BGPPeer/{name}"), Some("spec.auth.md5SecretRef".into()), reason))
    };
    peers(objects).filter_map(fault).collect()
}

/// Declares an iterator over the objects of one kind.
macro_rules! of_kind {
    ($function:ident, $kind:ident) => {
        fn $function<'a>(objects: &'a Objects<'a>) -> impl Iterator<Item = (&'a str, Place<'a>, &'a $kind)> {
            objects.iter().filter_map(|((_, name), (place, object))| match object {
                Object::$kind(object) => Some((*name, *place, &**object)),
                _ => None,
            })
        }
    };
}

of_kind!(pools, AddressPool);
of_kind!(load_balancers, LoadBalancer);
of_kind!(routers, BGPRouter);
of_kind!(peers, BGPPeer);
