//! Addresses: from pools and services to the pools and claims of `ipam`, and back to statuses.
//!
//! What is given out is published first. It takes effect when it has come back in the statuses: so no address is
//! in use that is not written where it survives.
use super::{
    NO_LABELS, in_use, labels, leases,
    sources::{self, Source, claim},
};
use crate::{
    api::{
        AddressPool, AddressPoolSpec, Kind, LoadBalancerStatus, PoolUse,
        address_pool::{AddressCounts, ReleasedAddress},
        load_balancer::AssignedAddress,
        scalar::Address,
    },
    declared::Declared,
    observed::Observed,
    status::{StatusSet, seconds, time},
};
use ipam::{
    Assignment, Assignments, Claim, Counters, Given, Held, Name, Pool, Range, Released, Request, Sharing,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

/// Gives addresses to all sources.
pub(super) fn assign<'a>(
    declared: &Declared,
    sources: impl Iterator<Item = &'a Source>,
    observed: &Observed,
) -> Assignments {
    let leased = |name: &String, object: &AddressPool| Pool {
        leased: leases::leased(declared, observed, name, object),
        ..pool(object)
    };
    let pools = service_pools(declared).map(|(name, p)| (name.as_str().into(), leased(name, p))).collect();
    let mut matching = Matching::new(declared);
    let mut claim_of = |source: &Source| {
        let protocol = |port: &sources::Port| lb_bpf::service::Protocol::from(port.protocol).number();
        Claim {
            request: source.wish.request.clone(),
            created: source.created(),
            ports: source.ports.iter().map(|port| (protocol(port), port.number)).collect(),
            sharing: source.wish.sharing.clone(),
            matching: matching.of(source),
        }
    };
    let claims = sources.map(|source| (source.claim(), claim_of(source)));
    let claims = claims.chain(refused(declared)).collect();
    let mut held = Held { elsewhere: leases::elsewhere(declared, observed), ..held(declared) };
    in_use::release(declared, observed, &mut held);
    let mut assignments = ipam::allocate(&pools, &claims, &held, observed.now);
    // Nothing is said of it here: there is an assignment for each source.
    for object in &declared.refused {
        assignments.claims.remove(object.as_str());
    }
    assignments
}

/// What is refused keeps the addresses that it has: nobody else is given them.
fn refused(declared: &Declared) -> impl Iterator<Item = (Name, Claim)> {
    let StatusSet { load_balancers, services, .. } = &declared.statuses;
    declared.refused.iter().filter_map(move |object| {
        let status = match object.split_once('/')? {
            ("LoadBalancer", name) => load_balancers.get(name),
            ("Service", name) => services.get(name),
            _ => None,
        };
        let addresses = status?.addresses.iter().map(|assigned| assigned.address.0).collect();
        let claim = Claim {
            request: Request::Addresses(addresses),
            created: 0,
            ports: BTreeSet::new(),
            sharing: Sharing::OnRequest,
            matching: Arc::default(),
        };
        Some((object.as_str().into(), claim))
    })
}

/// The addresses in effect: given now, and published before.
pub(super) fn effective(assignment: &Assignment, published: Option<&LoadBalancerStatus>) -> Vec<IpAddr> {
    let Some(published) = published else { return Vec::new() };
    let is_published = |address: &IpAddr| published.addresses.iter().any(|a| a.address.0 == *address);
    assignment.addresses.keys().filter(is_published).collect()
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
            address: Address(address),
            pool: given.pool.as_deref().map(str::to_owned),
            assigned_at: known(&address).map_or_else(|| time(now), |known| known.assigned_at.clone()),
        })
        .collect()
}

/// Whether a status lists the addresses of the service already.
pub(super) fn are_listed(assignment: &Assignment, before: &LoadBalancerStatus) -> bool {
    let given = assignment.addresses.iter().map(|(address, given)| (address, given.pool.as_deref()));
    given.eq(before.addresses.iter().map(|listed| (listed.address.0, listed.pool.as_deref())))
}

/// The numbers of a pool as its status shows them.
pub(super) fn counts(counters: &Counters) -> AddressCounts {
    let count = |number: u128| i64::try_from(number).unwrap_or(i64::MAX);
    AddressCounts {
        total: count(counters.total),
        assigned: count(counters.assigned),
        released: count(counters.resting),
        available: count(counters.available()),
        withheld: count(counters.withheld),
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
            owner: released.claim.to_string(),
        })
        .collect()
}

/// The pools that services are given from.
pub(super) fn service_pools(declared: &Declared) -> impl Iterator<Item = (&String, &Arc<AddressPool>)> {
    declared.pools.iter().filter(|(_, pool)| pool.spec.usage == PoolUse::LoadBalancer)
}

fn pool(object: &AddressPool) -> Pool {
    let spec = &object.spec;
    Pool {
        blocks: ranges(spec),
        reserved: reserved(spec),
        auto_assign: spec.auto_assign,
        priority: spec.priority,
        reuse_delay_seconds: spec.reuse_delay_seconds.get().into(),
        disabled: spec.disabled,
        leased: None,
    }
}

/// The blocks of a pool. Validation has refused those that are no ranges.
pub(super) fn ranges(spec: &AddressPoolSpec) -> Vec<Range> {
    let range = |(first, last)| Range::new(first, last).ok();
    spec.blocks.iter().filter_map(|block| block.bounds().and_then(range)).collect()
}

/// What a pool reserves.
pub(super) fn reserved(spec: &AddressPoolSpec) -> Vec<Range> {
    spec.reserved.iter().filter_map(|cidr| Range::try_from(cidr.0).ok()).collect()
}

fn held(declared: &Declared) -> Held {
    let statuses = &declared.statuses;
    let balancers = statuses.load_balancers.iter().map(|(name, status)| (Kind::LoadBalancer, name, status));
    let services = statuses.services.iter().map(|(name, status)| (Kind::Service, name, status));
    let mut known: HashMap<Option<&str>, Arc<Given>> = HashMap::new();
    let given = |pool: Option<&str>| Arc::new(Given { pool: pool.map(Name::from), remark: None });
    let holders = balancers.chain(services).filter(|(.., status)| !status.addresses.is_empty());
    let given = holders
        .map(|(kind, name, status)| {
            let addresses = status.addresses.iter().map(|assigned| {
                let pool = assigned.pool.as_deref();
                (assigned.address.0, known.entry(pool).or_insert_with(|| given(pool)).clone())
            });
            (claim(kind, name), addresses.collect())
        })
        .collect();
    let released = statuses.pools.values().flat_map(|status| &status.released);
    let released = released
        .map(|r| (r.address.0, Released { claim: r.owner.as_str().into(), at: seconds(&r.released_at) }));
    Held { given, released: released.collect(), elsewhere: BTreeMap::new() }
}

/// Which pools let a source in. Sources that the same pools let in share the set.
struct Matching<'a> {
    declared: &'a Declared,
    pools: Vec<(&'a String, &'a Arc<AddressPool>)>,
    sets: HashMap<Vec<bool>, Arc<BTreeSet<Name>>>,
    /// By pool, whether it lets in the source in hand.
    row: Vec<bool>,
}

impl<'a> Matching<'a> {
    fn new(declared: &'a Declared) -> Self {
        let pools = service_pools(declared).collect();
        Matching { declared, pools, sets: HashMap::new(), row: Vec::new() }
    }

    fn of(&mut self, source: &Source) -> Arc<BTreeSet<Name>> {
        let labels = source.labels();
        self.row.clear();
        for (_, pool) in &self.pools {
            let spec = &pool.spec;
            self.row.push(
                spec.service_selector.matches(labels)
                    && (spec.namespace_selector.is_everything() || self.selects_namespace(pool, source)),
            );
        }
        if let Some(set) = self.sets.get(&self.row) {
            return set.clone();
        }
        let names = self.pools.iter().zip(&self.row).filter(|(_, matches)| **matches);
        let set = Arc::new(names.map(|((name, _), _)| name.as_str().into()).collect::<BTreeSet<Name>>());
        self.sets.insert(self.row.clone(), set.clone());
        set
    }

    /// A LoadBalancer is of no namespace. Every namespace has the label that Kubernetes gives it, also if it is not
    /// declared.
    fn selects_namespace(&self, pool: &AddressPool, source: &Source) -> bool {
        source.namespace().is_some_and(|name| {
            let declared = self.declared.namespaces.get(name);
            let mut labels = declared.map_or(&NO_LABELS, |namespace| labels(&namespace.metadata)).clone();
            labels.entry("kubernetes.io/metadata.name".to_owned()).or_insert_with(|| name.to_owned());
            pool.spec.namespace_selector.matches(&labels)
        })
    }
}
