//! What is known of the clusters that are linked, as far as addresses go: their pools, and what they have leased and given.
use crate::api::{
    AddressPool, AddressPoolStatus, PoolUse,
    address_pool::{ChunkLease, ClaimReason, LeaseState, PoolLeases},
    scalar::Cidr,
};
use ipam::{
    Range,
    lease::{Lease, Leases, Reason},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// The clusters that are linked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Neighbours {
    /// What this cluster is called; none: it is not known, or nobody links clusters.
    pub name: Option<String>,
    /// What this cluster exports, by `NAMESPACE/NAME`.
    pub exports: BTreeSet<String>,
    /// The others, by name.
    pub clusters: BTreeMap<String, Arc<Neighbour>>,
}

/// Another cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Neighbour {
    /// Whether it answers, and its pools are known as they are.
    pub is_connected: bool,
    /// Its pools, as they were last seen; none: they were never seen.
    pub pools: Option<Arc<BTreeMap<String, NeighbourPool>>>,
    /// Addresses of the services that it exports, by `NAMESPACE/NAME`.
    pub addresses: Arc<BTreeMap<String, Vec<IpAddr>>>,
}

/// A pool of another cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct NeighbourPool {
    /// What it is for.
    pub usage: PoolUse,
    /// Its blocks.
    pub blocks: Vec<Range>,
    /// Who shares it; empty: nobody.
    pub clusters: BTreeSet<String>,
    /// What the cluster says of its chunks; none: it has not spoken yet.
    pub leases: Option<Leases>,
}

impl NeighbourPool {
    /// Of an object, and of its status.
    pub fn of(object: &AddressPool, status: Option<&AddressPoolStatus>) -> Self {
        let range = |(first, last)| Range::new(first, last).ok();
        let blocks = object.spec.blocks.iter().filter_map(|block| block.bounds().and_then(range));
        NeighbourPool {
            usage: object.spec.usage,
            blocks: blocks.collect(),
            clusters: object.spec.clusters.iter().cloned().collect(),
            leases: status.and_then(|status| status.leases.as_ref()).map(leases),
        }
    }

    /// Whether another cluster declares the same.
    pub fn is_same(&self, other: &NeighbourPool) -> bool {
        let sorted = |blocks: &[Range]| blocks.iter().copied().collect::<BTreeSet<_>>();
        self.usage == other.usage
            && self.clusters == other.clusters
            && sorted(&self.blocks) == sorted(&other.blocks)
    }
}

/// As [`ipam::lease`] has it. What makes no sense is left out.
pub fn leases(said: &PoolLeases) -> Leases {
    let number = |number: i64| u64::try_from(number).unwrap_or(0);
    let lease = |chunk: &ChunkLease| {
        let number = number(chunk.number);
        let lease = match chunk.state {
            LeaseState::Held => Lease::Held { number },
            LeaseState::Granted => Lease::Granted { to: chunk.to.as_deref()?.into(), number },
            LeaseState::Claimed => {
                let reason = match chunk.reason {
                    Some(ClaimReason::InUse) => Reason::InUse,
                    _ => Reason::Demand,
                };
                Lease::Claimed { number, reason }
            }
        };
        Some((chunk.cidr.0, lease))
    };
    Leases {
        last_number: number(said.last_number),
        chunks: said.chunks.iter().filter_map(lease).collect(),
        is_short: [said.short_of_ipv4, said.short_of_ipv6],
    }
}

/// As a status has it.
pub fn said(leases: &Leases) -> PoolLeases {
    let number_of = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let chunk = |(chunk, lease): (&ipnet::IpNet, &Lease)| {
        let (state, to, number, reason) = match lease {
            Lease::Held { number } => (LeaseState::Held, None, number, None),
            Lease::Granted { to, number } => (LeaseState::Granted, Some(to.to_string()), number, None),
            Lease::Claimed { number, reason: Reason::InUse } => {
                (LeaseState::Claimed, None, number, Some(ClaimReason::InUse))
            }
            Lease::Claimed { number, reason: Reason::Demand } => {
                (LeaseState::Claimed, None, number, Some(ClaimReason::Demand))
            }
        };
        ChunkLease { cidr: Cidr(*chunk), state, to, number: number_of(*number), reason }
    };
    PoolLeases {
        last_number: number_of(leases.last_number),
        chunks: leases.chunks.iter().map(chunk).collect(),
        short_of_ipv4: leases.is_short[0],
        short_of_ipv6: leases.is_short[1],
    }
}
