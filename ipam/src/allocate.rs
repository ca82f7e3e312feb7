//! The allocation itself: one function from pools, claims and what is held to assignments and reasons.
//!
//! Cost: every claim and every held address is touched a constant number of times, with a hash or a tree
//! look-up each; each pool is walked once, upwards, over what is taken of it.
use crate::{
    Name,
    assignment::{Addresses, Assignment, Assignments, Given, Held, Released, Remark, Unassigned},
    pool::{Counters, Cursor, Family, Index, Pool},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
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
    /// The ports that the claim serves: only claims whose ports are disjoint share an address.
    pub ports: BTreeSet<Port>,
    /// With whom it shares an address.
    pub sharing: Sharing,
    /// Names of the pools whose selectors let the claim in.
    pub matching: Arc<BTreeSet<Name>>,
}

/// With whom a claim shares an address, if the ports are disjoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// With others like it, when both ask for the address by address.
    #[default]
    OnRequest,
    /// With those that have the same key. Unless it asks for an address, it is given one of theirs first.
    Key(Name),
    /// With nobody.
    Never,
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
        pool: Option<Name>,
        /// The families.
        families: BTreeSet<Family>,
    },
}

/// Gives addresses to `claims` at the time `now` (seconds since the epoch). The rules are those of the
/// [crate]; the result depends on nothing but the arguments.
///
/// - A held address stays with its claim unless the claim asks for something else: other addresses, another
///   pool, no address of that family. Should two claims hold one address that they may not share, the older
///   one keeps it.
/// - Two claims share an address when their ports are disjoint and both say so: see [`Sharing`].
/// - A released address rests for [`Pool::reuse_delay_seconds`]. The claim that had it gets it back at once,
///   and who asks for it by address does not wait: the delay is there so that nobody gets the traffic of
///   another by chance.
pub fn allocate(
    pools: &BTreeMap<Name, Pool>,
    claims: &BTreeMap<Name, Claim>,
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
    /// In the order of their names, which that of the result is, too.
    claims: Vec<(&'a Name, &'a Claim)>,
    /// Indices of `claims`, oldest first.
    by_age: Vec<usize>,
    /// As `claims`: what each holds.
    given: Vec<Option<&'a Addresses>>,
    /// As `claims`: what each has got, and what it lacks.
    got: Vec<Got>,
    /// Address → its holder, as an index of `claims`.
    taken: HashMap<IpAddr, usize>,
    /// Address → its other holders.
    shared: HashMap<IpAddr, Vec<usize>>,
    /// Key → addresses of the claims that have it.
    keyed: HashMap<&'a str, BTreeSet<IpAddr>>,
    released: BTreeMap<IpAddr, Released>,
    /// Address → the claim that another cluster has it for.
    elsewhere: &'a BTreeMap<IpAddr, Name>,
    /// By pool: how its addresses are given when nothing is odd.
    plain: Vec<Arc<Given>>,
    odd: HashMap<Given, Arc<Given>>,
}

/// An assignment that is not complete.
#[derive(Clone, Default)]
struct Got {
    addresses: Vec<(IpAddr, Arc<Given>)>,
    unassigned: Vec<Unassigned>,
}

/// What a claim (an index) still lacks in one family after everything was tried, and the pools tried.
struct Exhausted {
    claim: usize,
    family: Family,
    pools: Vec<usize>,
}

impl<'a> Allocator<'a> {
    fn new(
        pools: &'a BTreeMap<Name, Pool>,
        claims: &'a BTreeMap<Name, Claim>,
        held: &'a Held,
        now: u64,
    ) -> Self {
        // Side by side: to look up thousands of names that are alike costs more than all that is done with them.
        let mut given = held.given.iter().peekable();
        let claims = claims.iter().map(|(name, claim)| {
            while given.next_if(|(other, _)| *other < name).is_some() {}
            let given = given.next_if(|(other, _)| *other == name).map(|(_, given)| given);
            ((name, claim), given)
        });
        let (claims, given): (Vec<(_, &Claim)>, Vec<_>) = claims.unzip();
        let mut by_age: Vec<_> = (0..claims.len()).collect();
        // Stable: claims of one age stay in the order of their names.
        by_age.sort_by_cached_key(|&i| claims[i].1.created);
        let index = Index::new(pools);
        let plain = |name: &Name| Arc::new(Given { pool: Some(name.clone()), remark: None });
        Allocator {
            now,
            plain: index.pools.iter().map(|pool| plain(pool.name)).collect(),
            odd: HashMap::new(),
            index,
            got: vec![Got::default(); claims.len()],
            taken: HashMap::with_capacity(claims.len()),
            shared: HashMap::new(),
            keyed: HashMap::new(),
            claims,
            by_age,
            given,
            released: held.released.clone(),
            elsewhere: &held.elsewhere,
        }
    }

    /// Leaves to every claim what it holds and still wants. Returns the claims that lack something, oldest first.
    fn keep_held(&mut self) -> Vec<usize> {
        for at in 0..self.by_age.len() {
            let i = self.by_age[at];
            let Some(held) = self.given[i] else { continue };
            let (_, claim) = self.claims[i];
            for (address, given) in held.iter() {
                let origin = given.pool.as_ref();
                if self.wanted(i, address, origin) && self.conflict(i, address).is_none() {
                    let given = self.standing(claim, address, origin);
                    self.take(i, address, given);
                }
            }
        }
        // In the order of memory first: a million claims in that of their ages are as many cache misses.
        let lacks = |((_, claim), got): (&(_, &Claim), &Got)| match &claim.request {
            Request::Addresses(addresses) => addresses.len() != got.addresses.len(),
            Request::Families { families, .. } => families.len() != got.addresses.len(),
        };
        let lacks: Vec<bool> = self.claims.iter().zip(&self.got).map(lacks).collect();
        self.by_age.iter().copied().filter(|i| lacks[*i]).collect()
    }

    /// Releases what was held and nobody kept.
    fn release(&mut self, held: &Held) {
        for (name, addresses) in &held.given {
            for address in addresses.keys().filter(|a| !self.taken.contains_key(a)) {
                self.released.insert(address, Released { claim: name.clone(), at: self.now });
            }
        }
    }

    /// Whether the claim still asks for something that this held address fulfils.
    fn wanted(&self, claim: usize, address: IpAddr, origin: Option<&Name>) -> bool {
        match &self.claims[claim].1.request {
            Request::Addresses(addresses) => addresses.contains(&address),
            Request::Families { pool, families } => {
                let family = Family::of(address);
                families.contains(&family)
                    && !self.has(claim, family)
                    && pool.as_ref().is_none_or(|pool| {
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
    fn standing(&mut self, claim: &Claim, address: IpAddr, origin: Option<&Name>) -> Arc<Given> {
        // A claim that names its pool stays with that name: were the name to follow a block that moved to
        // another pool, then the next call would take that for an edit of the claim.
        let named = match &claim.request {
            Request::Families { pool, .. } => pool.as_ref(),
            Request::Addresses(_) => None,
        };
        let origin = named.or(origin);
        let index = origin.and_then(|name| self.index.find(name));
        let offering = self.index.offering(address);
        let mut first = None;
        for pool in offering {
            if Some(pool) == index {
                return self.plain[pool].clone();
            }
            first = first.into_iter().chain([pool]).min();
        }
        match first {
            Some(pool) if named.is_none() => self.plain[pool].clone(),
            _ => {
                let reserved = self.index.reserving(address).is_some();
                let remark = if reserved { Remark::Reserved } else { Remark::Outside };
                self.odd(origin.cloned(), remark)
            }
        }
    }

    fn odd(&mut self, pool: Option<Name>, remark: Remark) -> Arc<Given> {
        let given = Given { pool, remark: Some(remark) };
        if let Some(known) = self.odd.get(&given) {
            return known.clone();
        }
        let shared = Arc::new(given.clone());
        self.odd.insert(given, shared.clone());
        shared
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
                if self.got[i].addresses.iter().any(|(has, _)| *has == address) {
                    continue;
                }
                match self.specific(i, address) {
                    Ok(Some(pool)) => self.take(i, address, self.plain[pool].clone()),
                    Ok(None) => {
                        let given = self.odd(None, Remark::Outside);
                        self.take(i, address, given);
                    }
                    Err(reason) => self.got[i].unassigned.push(reason),
                }
            }
        }
        others
    }

    /// The pool that gives `address` to the claim; none: it is of no pool.
    fn specific(&self, claim: usize, address: IpAddr) -> Result<Option<usize>, Unassigned> {
        let pool = self.admission(claim, address)?;
        match self.elsewhere.get(&address) {
            Some(holder) if holder != self.claims[claim].0 => {
                return Err(Unassigned::Elsewhere { address, holder: holder.clone() });
            }
            None if self.index.is_withheld(address) => {
                let pool = pool.map_or_else(|| "".into(), |pool| self.index.pools[pool].name.clone());
                return Err(Unassigned::Withheld { address, pool });
            }
            _ => {}
        }
        match self.conflict(claim, address) {
            Some(holder) => Err(Unassigned::Conflict { address, holder: self.claims[holder].0.clone() }),
            None => Ok(pool),
        }
    }

    /// The pool that would give `address` to the claim, were it free.
    fn admission(&self, claim: usize, address: IpAddr) -> Result<Option<usize>, Unassigned> {
        let name = |pool: usize| self.index.pools[pool].name.clone();
        let mut offering: Vec<_> = self.index.offering(address).collect();
        offering.sort_unstable();
        let Some(&first) = offering.first() else {
            return match self.index.reserving(address) {
                Some(pool) => Err(Unassigned::Reserved { address, pool: name(pool) }),
                None => Ok(None),
            };
        };
        let matching = &self.claims[claim].1.matching;
        offering.retain(|&pool| matching.contains(self.index.pools[pool].name));
        let Some(&admitting) = offering.first() else {
            return Err(Unassigned::PoolRefuses { pool: name(first) });
        };
        match offering.into_iter().find(|&pool| !self.index.pools[pool].pool.disabled) {
            Some(pool) => Ok(Some(pool)),
            None => Err(Unassigned::PoolDisabled { pool: name(admitting) }),
        }
    }

    /// Serves the claims for any address.
    fn give_any(&mut self, lacking: Vec<usize>) -> Vec<Exhausted> {
        let mut cursors: Vec<_> =
            self.index.pools.iter().map(|pool| Family::ALL.map(|family| Cursor::new(pool, family))).collect();
        let mut own: HashMap<Name, Vec<IpAddr>> = HashMap::new();
        for (address, released) in &self.released {
            own.entry(released.claim.clone()).or_default().push(*address);
        }
        let mut abroad: HashMap<&Name, Vec<IpAddr>> = HashMap::new();
        for (address, claim) in self.elsewhere {
            abroad.entry(claim).or_default().push(*address);
        }
        let mut candidates = Candidates::default();
        let mut exhausted = Vec::new();
        for i in lacking {
            let (name, claim) = self.claims[i];
            let Request::Families { pool, families } = &claim.request else { continue };
            let pools = match candidates.of(&self.index, claim, pool.as_ref()) {
                Ok(pools) => pools,
                Err(reason) => {
                    self.got[i].unassigned.push(reason);
                    continue;
                }
            };
            for &family in families {
                if self.has(i, family) {
                    continue;
                }
                let before = own.get(name).into_iter().flatten().copied();
                let before = before.filter(|address| self.is_ours(address));
                let same = abroad.get(name).into_iter().flatten().copied();
                let known = same.chain(before).filter(|address| !self.taken.contains_key(address));
                let known = self.of_key(i).chain(known).filter(|address| Family::of(*address) == family);
                let known = { known }.find_map(|address| {
                    let offering = self.index.offering(address).filter(|pool| pools.contains(pool));
                    offering.min().map(|pool| (pool, address))
                });
                let found = known.or_else(|| {
                    pools.iter().find_map(|&pool| {
                        let delay = self.index.pools[pool].pool.reuse_delay_seconds;
                        let cursor = &mut cursors[pool][family as usize];
                        let address = cursor.find(|a| {
                            !self.taken.contains_key(a)
                                && !self.rests(a, delay)
                                && !self.elsewhere.contains_key(a)
                        })?;
                        Some((pool, address))
                    })
                });
                match found {
                    Some((pool, address)) => self.take(i, address, self.plain[pool].clone()),
                    None => exhausted.push(Exhausted { claim: i, family, pools: pools.to_vec() }),
                }
            }
        }
        exhausted
    }

    /// Whether an address may be given to anybody here.
    fn is_ours(&self, address: &IpAddr) -> bool {
        !self.index.is_withheld(*address) && !self.elsewhere.contains_key(address)
    }

    /// The addresses of others that the claim may have by its key.
    fn of_key(&self, claim: usize) -> impl Iterator<Item = IpAddr> + '_ {
        let addresses = match &self.claims[claim].1.sharing {
            Sharing::Key(key) => self.keyed.get(&**key),
            _ => None,
        };
        addresses.into_iter().flatten().copied().filter(move |a| self.conflict(claim, *a).is_none())
    }

    fn finish(mut self, exhausted: Vec<Exhausted>) -> Assignments {
        let mut usage = self.index.totals();
        for &address in self.taken.keys() {
            let is_withheld = self.index.is_withheld(address);
            for pool in self.index.offering(address) {
                let counters = usage[pool].of_mut(Family::of(address));
                counters.assigned += 1;
                counters.withheld = counters.withheld.saturating_sub(is_withheld.into());
            }
        }
        let mut released = mem::take(&mut self.released);
        released.retain(|address, record| {
            if self.taken.contains_key(address) {
                return false;
            }
            // A clock that went back does not make an address rest for longer than the delay.
            record.at = record.at.min(self.now);
            let mut rests = false;
            for pool in self.index.offering(*address) {
                if resting(record.at, self.index.pools[pool].pool.reuse_delay_seconds, self.now) {
                    let counters = usage[pool].of_mut(Family::of(*address));
                    counters.resting += 1;
                    let is_withheld = self.index.is_withheld(*address);
                    counters.withheld = counters.withheld.saturating_sub(is_withheld.into());
                    rests = true;
                }
            }
            rests
        });
        for Exhausted { claim, family, mut pools } in exhausted {
            pools.retain(|&pool| usage[pool].of(family).total > 0);
            let mut counters = Counters::default();
            for &pool in &pools {
                counters += *usage[pool].of(family);
            }
            let pools: Vec<_> = pools.into_iter().map(|pool| self.index.pools[pool].name.clone()).collect();
            self.got[claim].unassigned.push(match pools.is_empty() {
                true => Unassigned::NoPool { family },
                false => Unassigned::PoolExhausted { family, pools, counters },
            });
        }
        let overlaps = self.index.overlaps();
        let pools = self.index.pools.iter().map(|p| p.name.clone()).zip(usage).collect();
        let names = self.claims.iter().map(|(name, _)| (*name).clone());
        let assignment = |Got { addresses, unassigned }: Got| Assignment {
            addresses: addresses.into_iter().collect(),
            unassigned: unassigned.into_boxed_slice(),
        };
        let claims = names.zip(self.got.into_iter().map(assignment)).collect();
        Assignments { claims, pools, released, overlaps, elsewhere: self.elsewhere.clone() }
    }

    /// The oldest claim that keeps `claim` from having `address`.
    fn conflict(&self, claim: usize, address: IpAddr) -> Option<usize> {
        let first = self.taken.get(&address)?;
        let more = self.shared.get(&address).into_iter().flatten();
        let holders = std::iter::once(first).chain(more).copied();
        let others = holders.filter(|&holder| !self.may_share(claim, holder));
        others.min_by_key(|&holder| (self.claims[holder].1.created, holder))
    }

    fn may_share(&self, a: usize, b: usize) -> bool {
        let (a, b) = (self.claims[a].1, self.claims[b].1);
        let agreed = match (&a.sharing, &b.sharing) {
            (Sharing::OnRequest, Sharing::OnRequest) => {
                matches!((&a.request, &b.request), (Request::Addresses(_), Request::Addresses(_)))
            }
            (Sharing::Key(a), Sharing::Key(b)) => a == b,
            _ => false,
        };
        agreed && a.ports.is_disjoint(&b.ports)
    }

    fn has(&self, claim: usize, family: Family) -> bool {
        self.got[claim].addresses.iter().any(|(a, _)| Family::of(*a) == family)
    }

    fn rests(&self, address: &IpAddr, delay: u64) -> bool {
        !self.released.is_empty()
            && self
                .released
                .get(address)
                .is_some_and(|record| resting(record.at.min(self.now), delay, self.now))
    }

    fn take(&mut self, claim: usize, address: IpAddr, given: Arc<Given>) {
        if *self.taken.entry(address).or_insert(claim) != claim {
            self.shared.entry(address).or_default().push(claim);
        }
        if let Sharing::Key(key) = &self.claims[claim].1.sharing {
            self.keyed.entry(&**key).or_default().insert(address);
        }
        let addresses = &mut self.got[claim].addresses;
        if addresses.is_empty() {
            // Most claims get one or two: no room for more is kept.
            addresses.reserve_exact(match &self.claims[claim].1.request {
                Request::Addresses(wanted) => wanted.len(),
                Request::Families { families, .. } => families.len(),
            });
        }
        addresses.push((address, given));
    }
}

/// The pools that may serve claims for any address, in the order of use; of claims alike they are looked for once.
#[derive(Default)]
struct Candidates<'a> {
    /// Those of the claim before, which named no pool and had these matching pools.
    before: Option<(&'a Arc<BTreeSet<Name>>, Vec<usize>)>,
    named: [usize; 1],
}

impl<'a> Candidates<'a> {
    fn of(
        &mut self,
        index: &Index<'_>,
        claim: &'a Claim,
        pool: Option<&Name>,
    ) -> Result<&[usize], Unassigned> {
        let Some(name) = pool else {
            let known = self.before.take().filter(|(matching, _)| Arc::ptr_eq(matching, &claim.matching));
            let (_, pools) = self.before.insert(known.unwrap_or_else(|| {
                let may = |pool: &Pool, name: &Name| {
                    pool.auto_assign && !pool.disabled && claim.matching.contains(name)
                };
                let pools = index.pools.iter().enumerate().filter(|(_, p)| may(p.pool, p.name));
                (&claim.matching, pools.map(|(i, _)| i).collect())
            }));
            return Ok(pools);
        };
        let pool = name.clone();
        match index.find(name) {
            None => Err(Unassigned::PoolNotFound { pool }),
            Some(_) if !claim.matching.contains(name) => Err(Unassigned::PoolRefuses { pool }),
            Some(i) if index.pools[i].pool.disabled => Err(Unassigned::PoolDisabled { pool }),
            Some(i) => {
                self.named = [i];
                Ok(&self.named)
            }
        }
    }
}

/// Whether an address that was released at `at` rests at `now`, given the delay; all in seconds.
fn resting(at: u64, delay: u64, now: u64) -> bool {
    now < at.saturating_add(delay)
}
