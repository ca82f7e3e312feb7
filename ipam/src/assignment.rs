//! What allocation works on from call to call: what is held, what was assigned, and why something was not. A million
//! assignments fit in memory: names are shared, and so is what many addresses have in common.
use crate::{
    Name,
    pool::{Counters, Family, Overlap, Usage},
};
use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

/// What was given before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// By claim. Remarks do not count.
    pub given: BTreeMap<Name, Addresses>,
    /// Addresses that rest.
    pub released: BTreeMap<IpAddr, Released>,
    /// Addresses that a claim of another cluster has: only the claim of this name may have them, too, and it may also if they are not
    /// leased to this cluster.
    pub elsewhere: BTreeMap<IpAddr, Name>,
}

/// How an address came to rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// The claim that had it: it may have it back at once.
    pub claim: Name,
    /// When it was released, seconds since the epoch.
    pub at: u64,
}

/// The result of [`allocate`](crate::allocate).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignments {
    /// Every claim, with or without addresses.
    pub claims: BTreeMap<Name, Assignment>,
    /// Every pool.
    pub pools: BTreeMap<Name, Usage>,
    /// Addresses that rest now.
    pub released: BTreeMap<IpAddr, Released>,
    /// Addresses that more than one pool offers.
    pub overlaps: Vec<Overlap>,
    /// As in [`Held`].
    pub elsewhere: BTreeMap<IpAddr, Name>,
}

impl Assignments {
    /// What the next call of [`allocate`](crate::allocate) is to be told.
    pub fn held(&self) -> Held {
        let given = self.claims.iter().filter(|(_, assignment)| !assignment.addresses.is_empty());
        let given = given.map(|(claim, assignment)| (claim.clone(), assignment.addresses.clone())).collect();
        Held { given, released: self.released.clone(), elsewhere: self.elsewhere.clone() }
    }
}

/// What one claim got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// Its addresses.
    pub addresses: Addresses,
    /// What it asked for and did not get.
    pub unassigned: Box<[Unassigned]>,
}

/// Addresses and how each was given, sorted by address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses(Box<[(IpAddr, Arc<Given>)]>);

impl Addresses {
    /// Each address and how it was given.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (IpAddr, &Given)> + Clone {
        self.0.iter().map(|(address, given)| (*address, &**given))
    }

    /// The addresses.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = IpAddr> + Clone {
        self.0.iter().map(|(address, _)| *address)
    }

    /// How an address was given; none: it is not among them.
    pub fn get(&self, address: IpAddr) -> Option<&Given> {
        let at = self.0.binary_search_by_key(&address, |(address, _)| *address);
        at.ok().map(|at| &*self.0[at].1)
    }

    /// Whether an address is among them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.get(address).is_some()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Of an address that is there more than once the first counts.
impl FromIterator<(IpAddr, Arc<Given>)> for Addresses {
    fn from_iter<I: IntoIterator<Item = (IpAddr, Arc<Given>)>>(addresses: I) -> Self {
        let mut addresses: Vec<_> = addresses.into_iter().collect();
        addresses.sort_by_key(|(address, _)| *address);
        addresses.dedup_by_key(|(address, _)| *address);
        Addresses(addresses.into_boxed_slice())
    }
}

/// How an address was given. Addresses that have it in common share it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Given {
    /// The pool that it belongs to, or belonged to when it was given; none: it was asked for by address and
    /// lies in no pool.
    pub pool: Option<Name>,
    /// What is odd about it.
    pub remark: Option<Remark>,
}

/// Why an address would not be given today. It stays all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Remark {
    /// Its pool does not have it (any more), or there is no such pool.
    Outside,
    /// Its pool reserves it by now.
    Reserved,
}

/// Why something was not given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unassigned {
    /// No pool that may serve the claim offers the family.
    NoPool {
        /// The family.
        family: Family,
    },
    /// The pool that the claim names does not exist.
    PoolNotFound {
        /// Its name.
        pool: Name,
    },
    /// The pool gives nothing new.
    PoolDisabled {
        /// Its name.
        pool: Name,
    },
    /// The selector of the pool does not let the claim in.
    PoolRefuses {
        /// Its name.
        pool: Name,
    },
    /// All pools that may serve the claim are used up.
    PoolExhausted {
        /// The family.
        family: Family,
        /// Their names, in the order of use.
        pools: Vec<Name>,
        /// Their numbers, summed up.
        counters: Counters,
    },
    /// Another claim has the address.
    Conflict {
        /// The address.
        address: IpAddr,
        /// The claim that has it.
        holder: Name,
    },
    /// The address is of a pool that clusters share, and not leased to this one.
    Withheld {
        /// The address.
        address: IpAddr,
        /// The pool.
        pool: Name,
    },
    /// Another cluster has the address for this claim.
    Elsewhere {
        /// The address.
        address: IpAddr,
        /// The claim there.
        holder: Name,
    },
    /// The pool of the address reserves it.
    Reserved {
        /// The address.
        address: IpAddr,
        /// The pool.
        pool: Name,
    },
}

impl Unassigned {
    /// The reason as one CamelCase word.
    pub const fn reason(&self) -> &'static str {
        match self {
            Unassigned::NoPool { .. } => "NoPool",
            Unassigned::PoolNotFound { .. } => "PoolNotFound",
            Unassigned::PoolDisabled { .. } => "PoolDisabled",
            Unassigned::PoolRefuses { .. } => "PoolRefuses",
            Unassigned::PoolExhausted { .. } => "PoolExhausted",
            Unassigned::Conflict { .. } => "Conflict",
            Unassigned::Withheld { .. } => "NotLeased",
            Unassigned::Elsewhere { .. } => "Conflict",
            Unassigned::Reserved { .. } => "Reserved",
        }
    }
}

impl fmt::Display for Unassigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unassigned::NoPool { family } => write!(f, "no pool for it has {family} addresses"),
            Unassigned::PoolNotFound { pool } => write!(f, "there is no pool {pool}"),
            Unassigned::PoolDisabled { pool } => write!(f, "pool {pool} is disabled"),
            Unassigned::PoolRefuses { pool } => write!(f, "the selector of pool {pool} does not match"),
            Unassigned::PoolExhausted { family, pools, counters } => {
                write!(f, "no free {family} address in {}: {counters}", pools.join(", "))
            }
            Unassigned::Conflict { address, holder } => write!(f, "{address} belongs to {holder}"),
            Unassigned::Withheld { address, pool } => {
                write!(f, "{address} of pool {pool} is not leased to this cluster")
            }
            Unassigned::Elsewhere { address, holder } => {
                write!(f, "{address} belongs to {holder} of another cluster")
            }
            Unassigned::Reserved { address, pool } => write!(f, "pool {pool} reserves {address}"),
        }
    }
}
