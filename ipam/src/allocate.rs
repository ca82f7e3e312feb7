//! The allocation itself: one function from pools, claims and what is held to assignments and reasons.
//!
//! Cost: every claim and every held address is touched a constant number of times, with a hash or a tree
//! look-up each; each pool is walked once, upwards, over what is taken of it.
use crate::pool::{Counters, Cursor, Family, Index, Overlap, Pool, Usage};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::IpAddr,
    sync::Arc,
};

/// Who wants addresses, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What is asked for.
    pub request: Request,
    /// Age: seconds since the epoch, 0 when unknown. Where two claims compete, the older one wins; among
    /// equals the name decides.
    pub created: u64,
    /// The ports that the claim serves: claims that ask for the same address share it when these are disjoint.
    pub ports: BTreeSet<Port>,
    /// Names of the pools whose selectors let the claim in.
    pub matching: Arc<BTreeSet<String>>,
}

/// IANA protocol number and port.
pub type Port = (u8, u16);

/// What a claim asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// These addresses and no others. They may lie outside every pool.
    Addresses(BTreeSet<IpAddr>),
    /// One address of each family.
    Families {
        /// From this pool only; none: from any pool with [`Pool::auto_assign`].
        pool: Option<String>,
        /// The families.
        families: BTreeSet<Family>,
    },
}

/// What was given before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Claim → address → pool that it came from.
    pub given: BTreeMap<String, BTreeMap<IpAddr, Option<String>>>,
    /// Addresses that rest.
    pub released: BTreeMap<IpAddr, Released>,
}

/// How an address came to rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// The claim that had it: it may have it back at once.
    pub claim: String,
    /// When it was released, seconds since the epoch.
    pub at: u64,
}

/// The result of [`allocate`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignments {
    /// Every claim, with or without addresses.
    pub claims: BTreeMap<String, Assignment>,
    /// Every pool.
    pub pools: BTreeMap<String, Usage>,
    /// Addresses that rest now.
    pub released: BTreeMap<IpAddr, Released>,
    /// Addresses that more than one pool offers.
    pub overlaps: Vec<Overlap>,
}

impl Assignments {
    /// What the next call of [`allocate`] is to be told.
    pub fn held(&self) -> Held {
        let given = self
            .claims
            .iter()
            .filter(|(_, assignment)| !assignment.addresses.is_empty())
            .map(|(claim, assignment)| {
                (
                    claim.clone(),
                    assignment.addresses.iter().map(|(a, given)| (*a, given.pool.clone())).collect(),
                )
            })
            .collect();
        Held { given, released: self.released.clone() }
    }
}

/// What one claim got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// Its addresses.
    pub addresses: BTreeMap<IpAddr, Given>,
    /// What it asked for and did not get.
    pub unassigned: Vec<Unassigned>,
}

/// A given address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// The pool that it belongs to, or belonged to when it was given; none: it was asked for by address and
    /// lies in no pool.
    pub pool: Option<String>,
    /// What is odd about it.
    pub remark: Option<Remark>,
}

/// Why an address would not be given today. It stays all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
        pool: String,
    },
    /// The pool gives nothing new.
    PoolDisabled {
        /// Its name.
        pool: String,
    },
    /// The selector of the pool does not let the claim in.
    PoolRefuses {
        /// Its name.
        pool: String,
    },
    /// All pools that may serve the claim are used up.
    PoolExhausted {
        /// The family.
        family: Family,
        /// Their names, in the order of use.
        pools: Vec<String>,
        /// Their numbers, summed up.
        counters: Counters,
    },
    /// Another claim has the address.
    Conflict {
        /// The address.
        address: IpAddr,
        /// The claim that has it.
        holder: String,
    },
    /// The pool of the address reserves it.
    Reserved {
        /// The address.
        address: IpAddr,
        /// The pool.
        pool: String,
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
            Unassigned::PoolExhausted { family, pools, counters } => write!(
                f,
                "no free {family} address in {}: {} of {} assigned, {} resting",
                pools.join(", "),
                counters.assigned,
                counters.total,
                counters.resting
            ),
            Unassigned::Conflict { address, holder } => write!(f, "{address} belongs to {holder}"),
            Unassigned::Reserved { address, pool } => write!(f, "pool {pool} reserves {address}"),
        }
    }
}

/// Gives addresses to `claims` at the time `now` (seconds since the epoch). The rules are those of the
/// [crate]; the result depends on nothing but the arguments.
///
/// - A held address stays with its claim unless the claim asks for something else: other addresses, another
///   pool, no address of that family. Should two claims hold one address that they may not share, the older
///   one keeps it.
/// - Two claims share an address when both ask for it by address and their ports are disjoint.
/// - A released address rests for [`Pool::reuse_delay_seconds`]. The claim that had it gets it back at once,
///   and who asks for it by address does not wait: the delay is there so that nobody gets the traffic of
///   another by chance.
pub fn allocate(
    pools: &BTreeMap<String, Pool>,
    claims: &BTreeMap<String, Claim>,
    held: &Held,
    now: u64,
) -> Assignments {
    let mut allocator = Allocator::new(pools, claims, held, now);
    let lacking = allocator.keep_held();
    allocator.release(held);
    let lacking = allocator.give_specific(lacking);
    let exhausted = allocator.give_any(lacking);
    allocator.finish(exhausted)
}

struct Allocator<'a> {
    now: u64,
    index: Index<'a>,
    /// Oldest first.
    claims: Vec<(&'a str, &'a Claim)>,
    /// As `claims`: what each holds.
    given: Vec<Option<&'a BTreeMap<IpAddr, Option<String>>>>,
    /// As `claims`.
    assignments: Vec<Assignment>,
    /// Address → its holders, as indices of `claims`; the first one apart, since it is mostly the only one.
    taken: HashMap<IpAddr, (usize, Vec<usize>)>,
    released: BTreeMap<IpAddr, Released>,
}

/// What a claim (an index) still lacks in one family after everything was tried, and the pools tried.
struct Exhausted {
    claim: usize,
    family: Family,
    pools: Vec<usize>,
}

impl<'a> Allocator<'a> {
    fn new(
        pools: &'a BTreeMap<String, Pool>,
        claims: &'a BTreeMap<String, Claim>,
        held: &'a Held,
        now: u64,
    ) -> Self {
        // Side by side: to look up thousands of names that are alike costs more than all that is done with them.
        let mut given = held.given.iter().peekable();
        let mut claims: Vec<_> = claims
            .iter()
            .map(|(name, claim)| {
                while given.next_if(|(other, _)| *other < name).is_some() {}
                let given = given.next_if(|(other, _)| *other == name).map(|(_, given)| given);
                ((name.as_str(), claim), given)
            })
            .collect();
        // Stable: claims of one age stay in the order of their names.
        claims.sort_by_key(|((_, claim), _)| claim.created);
        let (claims, given): (Vec<_>, Vec<_>) = claims.into_iter().unzip();
        Allocator {
            now,
            index: Index::new(pools),
            assignments: vec![Assignment::default(); claims.len()],
            taken: HashMap::with_capacity(claims.len()),
            claims,
            given,
            released: held.released.clone(),
        }
    }

    /// Leaves to every claim what it holds and still wants. Returns the claims that lack something.
    fn keep_held(&mut self) -> Vec<usize> {
        let mut lacking = Vec::new();
        for i in 0..self.claims.len() {
            let (_, claim) = self.claims[i];
            for (&address, origin) in self.given[i].into_iter().flatten() {
                if self.wanted(i, address, origin.as_deref()) && self.conflict(i, address).is_none() {
                    let given = self.standing(claim, address, origin.as_deref());
                    self.take(i, address, given);
                }
            }
            let assigned = &self.assignments[i].addresses;
            let satisfied = match &claim.request {
                Request::Addresses(addresses) => addresses.len() == assigned.len(),
                Request::Families { families, .. } => families.len() == assigned.len(),
            };
            if !satisfied {
                lacking.push(i);
            }
        }
        lacking
    }

    /// Releases what was held and nobody kept.
    fn release(&mut self, held: &Held) {
        for (name, addresses) in &held.given {
            for address in addresses.keys().filter(|a| !self.taken.contains_key(a)) {
                self.released.insert(*address, Released { claim: name.clone(), at: self.now });
            }
        }
    }

    /// Whether the claim still asks for something that this held address fulfils.
    fn wanted(&self, claim: usize, address: IpAddr, origin: Option<&str>) -> bool {
        match &self.claims[claim].1.request {
            Request::Addresses(addresses) => addresses.contains(&address),
            Request::Families { pool, families } => {
                let family = Family::of(address);
                families.contains(&family)
                    && !self.has(claim, family)
                    && pool.as_deref().is_none_or(|pool| {
                        origin == Some(pool)
                            || self
                                .index
                                .find(pool)
                                .is_some_and(|p| self.index.offering(address).any(|o| o == p))
                    })
            }
        }
    }

    /// How a held address stands today.
    fn standing(&self, claim: &Claim, address: IpAddr, origin: Option<&str>) -> Given {
        // A claim that names its pool stays with that name: were the name to follow a block that moved to
        // another pool, then the next call would take that for an edit of the claim.
        let named = match &claim.request {
            Request::Families { pool, .. } => pool.as_deref(),
            Request::Addresses(_) => None,
        };
        let origin = named.or(origin);
        let index = origin.and_then(|name| self.index.find(name));
        if index.is_some_and(|index| self.index.offering(address).any(|o| o == index)) {
            return Given { pool: origin.map(str::to_owned), remark: None };
        }
        match self.index.offering(address).min() {
            Some(pool) if named.is_none() => {
                Given { pool: Some(self.index.pools[pool].name.to_owned()), remark: None }
            }
            _ => {
                let reserved = self.index.reserving(address).is_some();
                let remark = if reserved { Remark::Reserved } else { Remark::Outside };
                Given { pool: origin.map(str::to_owned), remark: Some(remark) }
            }
        }
    }

    /// Serves the claims for specific addresses; returns the others.
    fn give_specific(&mut self, lacking: Vec<usize>) -> Vec<usize> {
        let mut others = Vec::new();
        for i in lacking {
            let Request::Addresses(addresses) = &self.claims[i].1.request else {
                others.push(i);
                continue;
            };
            for &address in addresses {
                if self.assignments[i].addresses.contains_key(&address) {
                    continue;
                }
                match self.specific(i, address) {
                    Ok(given) => self.take(i, address, given),
                    Err(reason) => self.assignments[i].unassigned.push(reason),
                }
            }
        }
        others
    }

    fn specific(&self, claim: usize, address: IpAddr) -> Result<Given, Unassigned> {
        let given = self.admission(claim, address)?;
        match self.conflict(claim, address) {
            Some(holder) => Err(Unassigned::Conflict { address, holder: self.claims[holder].0.to_owned() }),
            None => Ok(given),
        }
    }

    /// Whether the pools of `address` would give it to the claim, were it free.
    fn admission(&self, claim: usize, address: IpAddr) -> Result<Given, Unassigned> {
        let name = |pool: usize| self.index.pools[pool].name.to_owned();
        let mut offering: Vec<_> = self.index.offering(address).collect();
        offering.sort_unstable();
        let Some(&first) = offering.first() else {
            return match self.index.reserving(address) {
                Some(pool) => Err(Unassigned::Reserved { address, pool: name(pool) }),
                None => Ok(Given { pool: None, remark: Some(Remark::Outside) }),
            };
        };
        let matching = &self.claims[claim].1.matching;
        offering.retain(|&pool| matching.contains(self.index.pools[pool].name));
        let Some(&admitting) = offering.first() else {
            return Err(Unassigned::PoolRefuses { pool: name(first) });
        };
        match offering.into_iter().find(|&pool| !self.index.pools[pool].pool.disabled) {
            Some(pool) => Ok(Given { pool: Some(name(pool)), remark: None }),
            None => Err(Unassigned::PoolDisabled { pool: name(admitting) }),
        }
    }

    /// Serves the claims for any address.
    fn give_any(&mut self, lacking: Vec<usize>) -> Vec<Exhausted> {
        let mut cursors: Vec<_> =
            self.index.pools.iter().map(|pool| Family::ALL.map(|family| Cursor::new(pool, family))).collect();
        let mut own: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for (address, released) in &self.released {
            own.entry(released.claim.clone()).or_default().push(*address);
        }
        let mut exhausted = Vec::new();
        for i in lacking {
            let (name, claim) = self.claims[i];
            let Request::Families { families, .. } = &claim.request else { continue };
            let pools = match self.candidates(claim) {
                Ok(pools) => pools,
                Err(reason) => {
                    self.assignments[i].unassigned.push(reason);
                    continue;
                }
            };
            for &family in families {
                if self.has(i, family) {
                    continue;
                }
                let before = own.get(name).into_iter().flatten().find_map(|&address| {
                    let free = Family::of(address) == family && !self.taken.contains_key(&address);
                    let offering = self.index.offering(address).filter(|pool| free && pools.contains(pool));
                    offering.min().map(|pool| (pool, address))
                });
                let found = before.or_else(|| {
                    pools.iter().find_map(|&pool| {
                        let delay = self.index.pools[pool].pool.reuse_delay_seconds;
                        let cursor = &mut cursors[pool][family as usize];
                        let address =
                            cursor.find(|a| !self.taken.contains_key(a) && !self.rests(a, delay))?;
                        Some((pool, address))
                    })
                });
                match found {
                    Some((pool, address)) => {
                        let pool = Some(self.index.pools[pool].name.to_owned());
                        self.take(i, address, Given { pool, remark: None });
                    }
                    None => exhausted.push(Exhausted { claim: i, family, pools: pools.clone() }),
                }
            }
        }
        exhausted
    }

    /// The pools that may serve the claim, in the order of use.
    fn candidates(&self, claim: &Claim) -> Result<Vec<usize>, Unassigned> {
        let Request::Families { pool: Some(name), .. } = &claim.request else {
            let may =
                |pool: &Pool, name: &str| pool.auto_assign && !pool.disabled && claim.matching.contains(name);
            let pools = self.index.pools.iter().enumerate();
            return Ok(pools.filter(|(_, p)| may(p.pool, p.name)).map(|(i, _)| i).collect());
        };
        let pool = name.clone();
        match self.index.find(name) {
            None => Err(Unassigned::PoolNotFound { pool }),
            Some(_) if !claim.matching.contains(name) => Err(Unassigned::PoolRefuses { pool }),
            Some(i) if self.index.pools[i].pool.disabled => Err(Unassigned::PoolDisabled { pool }),
            Some(i) => Ok(vec![i]),
        }
    }

    fn finish(mut self, exhausted: Vec<Exhausted>) -> Assignments {
        let mut usage = self.index.totals();
        for &address in self.taken.keys() {
            for pool in self.index.offering(address) {
                usage[pool].of_mut(Family::of(address)).assigned += 1;
            }
        }
        let mut released = std::mem::take(&mut self.released);
        released.retain(|address, record| {
            if self.taken.contains_key(address) {
                return false;
            }
            // A clock that went back does not make an address rest for longer than the delay.
            record.at = record.at.min(self.now);
            let mut rests = false;
            for pool in self.index.offering(*address) {
                if resting(record.at, self.index.pools[pool].pool.reuse_delay_seconds, self.now) {
                    usage[pool].of_mut(Family::of(*address)).resting += 1;
                    rests = true;
                }
            }
            rests
        });
        for Exhausted { claim, family, mut pools } in exhausted {
            pools.retain(|&pool| usage[pool].of(family).total > 0);
            let mut counters = Counters::default();
            for &pool in &pools {
                let of_pool = usage[pool].of(family);
                counters.total = counters.total.saturating_add(of_pool.total);
                counters.assigned += of_pool.assigned;
                counters.resting += of_pool.resting;
            }
            let pools: Vec<_> =
                pools.into_iter().map(|pool| self.index.pools[pool].name.to_owned()).collect();
            self.assignments[claim].unassigned.push(match pools.is_empty() {
                true => Unassigned::NoPool { family },
                false => Unassigned::PoolExhausted { family, pools, counters },
            });
        }
        let overlaps = self.index.overlaps();
        let pools = self.index.pools.iter().map(|p| p.name.to_owned()).zip(usage).collect();
        let names = self.claims.iter().map(|(name, _)| (*name).to_owned());
        Assignments { claims: names.zip(self.assignments).collect(), pools, released, overlaps }
    }

    /// The oldest claim that keeps `claim` from having `address`.
    fn conflict(&self, claim: usize, address: IpAddr) -> Option<usize> {
        let (first, more) = self.taken.get(&address)?;
        std::iter::once(first).chain(more).copied().filter(|&holder| !self.may_share(claim, holder)).min()
    }

    fn may_share(&self, a: usize, b: usize) -> bool {
        let (a, b) = (self.claims[a].1, self.claims[b].1);
        matches!((&a.request, &b.request), (Request::Addresses(_), Request::Addresses(_)))
            && a.ports.is_disjoint(&b.ports)
    }

    fn has(&self, claim: usize, family: Family) -> bool {
        self.assignments[claim].addresses.keys().any(|a| Family::of(*a) == family)
    }

    fn rests(&self, address: &IpAddr, delay: u64) -> bool {
        self.released.get(address).is_some_and(|record| resting(record.at.min(self.now), delay, self.now))
    }

    fn take(&mut self, claim: usize, address: IpAddr, given: Given) {
        self.taken.entry(address).and_modify(|(_, more)| more.push(claim)).or_insert((claim, Vec::new()));
        self.assignments[claim].addresses.insert(address, given);
    }
}

/// Whether an address that was released at `at` rests at `now`, given the delay; all in seconds.
fn resting(at: u64, delay: u64, now: u64) -> bool {
    now < at.saturating_add(delay)
}
