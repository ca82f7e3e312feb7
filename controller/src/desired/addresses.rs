//! Addresses: from pools and services to the pools and claims of `ipam`, and back to statuses.
//!
//! What is given out is published first. It takes effect when it has come back in the statuses: so no address is
//! in use that is not written where it survives.
use super::{joined, labels};
use crate::{
    api::{
        AddressPool, LoadBalancer, LoadBalancerSpec, LoadBalancerStatus, PoolUse,
        address_pool::{AddressCounts, ReleasedAddress},
        load_balancer::AssignedAddress,
        scalar::Address,
    },
    declared::Declared,
    status::{seconds, time},
};
use ipam::{Assignment, Assignments, Claim, Counters, Family, Held, Pool, Range, Released, Request};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

/// Gives addresses to all services.
pub(super) fn assign(declared: &Declared, now: u64) -> Assignments {
    let pools: BTreeMap<_, _> = service_pools(declared).map(|(name, p)| (name.clone(), pool(p))).collect();
    let mut matching = Matching::new(declared);
    let claims = joined(&declared.load_balancers, &declared.statuses.load_balancers)
        .map(|(name, object, before)| {
            let spec = &object.spec;
            let claim = Claim {
                request: request(spec, before.map(|before| &**before)),
                created: object.metadata.creation_timestamp.as_ref().map_or(0, seconds),
                ports: spec
                    .ports
                    .iter()
                    .map(|p| (lb_bpf::service::Protocol::from(p.protocol).number(), p.port.get()))
                    .collect(),
                matching: matching.of(object),
            };
            (claim_name(name), claim)
        })
        .collect();
    ipam::allocate(&pools, &claims, &held(declared), now)
}

/// Name of the claim of a service; it stands in statuses as the owner of an address.
fn claim_name(load_balancer: &str) -> String {
    ["LoadBalancer/", load_balancer].concat()
}

/// The addresses in effect: given now, and published before.
pub(super) fn effective(assignment: &Assignment, published: Option<&LoadBalancerStatus>) -> Vec<IpAddr> {
    let Some(published) = published else { return Vec::new() };
    let is_published = |address: &IpAddr| published.addresses.iter().any(|a| a.address.0 == *address);
    assignment.addresses.keys().copied().filter(is_published).collect()
}

/// The addresses of a service as its status lists them.
pub(super) fn assigned(
    assignment: &Assignment,
    before: Option<&LoadBalancerStatus>,
    now: u64,
) -> Vec<AssignedAddress> {
    let known = |address: &IpAddr| before?.addresses.iter().find(|a| a.address.0 == *address);
    assignment
        .addresses
        .iter()
        .map(|(address, given)| AssignedAddress {
            address: Address(*address),
            pool: given.pool.clone(),
            assigned_at: known(address).map_or_else(|| time(now), |known| known.assigned_at.clone()),
        })
        .collect()
}

/// Whether a status lists the addresses of the service already.
pub(super) fn are_listed(assignment: &Assignment, before: &LoadBalancerStatus) -> bool {
    let given = assignment.addresses.iter().map(|(address, given)| (*address, &given.pool));
    given.eq(before.addresses.iter().map(|listed| (listed.address.0, &listed.pool)))
}

/// The numbers of a pool as its status shows them.
pub(super) fn counts(counters: &Counters) -> AddressCounts {
    let count = |number: u128| i64::try_from(number).unwrap_or(i64::MAX);
    AddressCounts {
        total: count(counters.total),
        assigned: count(counters.assigned),
        released: count(counters.resting),
        available: count(counters.available()),
    }
}

/// The addresses that rest in a pool.
pub(super) fn released(assignments: &Assignments, object: &AddressPool) -> Vec<ReleasedAddress> {
    if assignments.released.is_empty() {
        return Vec::new();
    }
    let blocks = pool(object).blocks;
    assignments
        .released
        .iter()
        .filter(|(address, _)| blocks.iter().any(|block| block.contains(**address)))
        .map(|(address, released)| ReleasedAddress {
            address: Address(*address),
            released_at: time(released.at),
            owner: released.claim.clone(),
        })
        .collect()
}

/// The pools that services are given from.
pub(super) fn service_pools(declared: &Declared) -> impl Iterator<Item = (&String, &Arc<AddressPool>)> {
    declared.pools.iter().filter(|(_, pool)| pool.spec.usage == PoolUse::LoadBalancer)
}

fn pool(object: &AddressPool) -> Pool {
    let spec = &object.spec;
    // Validation has refused blocks that are no ranges.
    let range = |(first, last)| Range::new(first, last).ok();
    Pool {
        blocks: spec.blocks.iter().filter_map(|block| block.bounds().and_then(range)).collect(),
        reserved: spec.reserved.iter().filter_map(|cidr| Range::try_from(cidr.0).ok()).collect(),
        auto_assign: spec.auto_assign,
        priority: spec.priority,
        reuse_delay_seconds: spec.reuse_delay_seconds.get().into(),
        disabled: spec.disabled,
    }
}

fn request(spec: &LoadBalancerSpec, before: Option<&LoadBalancerStatus>) -> Request {
    if !spec.addresses.is_empty() {
        return Request::Addresses(spec.addresses.iter().map(|a| a.0).collect());
    }
    // The families that backends can serve. One that was given stays while the service stays: backends come and
    // go, and clients know the address.
    let backends = spec.backends.iter().filter_map(|backend| backend.address);
    let given = before.into_iter().flat_map(|status| status.addresses.iter().map(|a| a.address));
    let served = backends.chain(given).map(|address| Family::of(address.0));
    let mut families = BTreeSet::new();
    families.extend(Family::ALL.into_iter().filter(|family| served.clone().any(|served| served == *family)));
    if families.is_empty() {
        families.extend(Family::ALL);
    }
    Request::Families { pool: spec.pool.clone(), families }
}

fn held(declared: &Declared) -> Held {
    let given = declared
        .statuses
        .load_balancers
        .iter()
        .filter(|(_, status)| !status.addresses.is_empty())
        .map(|(name, status)| {
            (claim_name(name), status.addresses.iter().map(|a| (a.address.0, a.pool.clone())).collect())
        })
        .collect();
    let released = declared
        .statuses
        .pools
        .values()
        .flat_map(|status| &status.released)
        .map(|r| (r.address.0, Released { claim: r.owner.clone(), at: seconds(&r.released_at) }))
        .collect();
    Held { given, released }
}

/// Which pools let a service in. Services that the same pools let in share the set.
struct Matching<'a> {
    pools: Vec<(&'a String, &'a Arc<AddressPool>)>,
    sets: HashMap<Vec<bool>, Arc<BTreeSet<String>>>,
    /// By pool, whether it lets in the service in hand.
    row: Vec<bool>,
}

impl<'a> Matching<'a> {
    fn new(declared: &'a Declared) -> Self {
        Matching { pools: service_pools(declared).collect(), sets: HashMap::new(), row: Vec::new() }
    }

    fn of(&mut self, object: &LoadBalancer) -> Arc<BTreeSet<String>> {
        let labels = labels(&object.metadata);
        self.row.clear();
        self.row.extend(self.pools.iter().map(|(_, p)| p.spec.service_selector.matches(labels)));
        if let Some(set) = self.sets.get(&self.row) {
            return set.clone();
        }
        let names = self.pools.iter().zip(&self.row).filter(|(_, matches)| **matches);
        let set = Arc::new(names.map(|((name, _), _)| (*name).clone()).collect::<BTreeSet<_>>());
        self.sets.insert(self.row.clone(), set.clone());
        set
    }
}
