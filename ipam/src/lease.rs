//! Pools that clusters share: a pool is cut into chunks ([`chunks`]), and each chunk is leased to one cluster at a time ([`step`]).
//! Each cluster writes a register of its own, [`Leases`], and reads those of the others, late and with gaps.
//!
//! A claim has a number that its cluster never uses again, and a grant names the number of the claim. A cluster holds a chunk when all
//! others have granted its claim. So two never hold one chunk (nor two that overlap): each of them would have granted the claim of the other
//! before it made its own. This needs neither clocks nor fresh views. It is the mutual exclusion of Ricart and Agrawala (CACM 24(1), 1981)
//! over registers that one writes and all read.
//!
//! What is held stays usable while others are out of reach. A chunk with an address in use is never given back, and granted to nobody.
use crate::{
    Name,
    pool::{Family, Range, merge, subtract},
};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
};

#[cfg(test)]
mod tests;

/// Most chunks of one family of a pool.
pub const MAX_CHUNKS: u128 = 64;
/// Most chunks that are claimed at once beyond the one in reserve.
const AT_ONCE: u128 = 8;
/// So far numbers run ahead in a second: a register that is lost, and made anew in a later second, uses none of them again.
const A_SECOND: u64 = 1024;

/// What one cluster says of the chunks of one pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leases {
    /// The highest number of a claim so far.
    pub last_number: u64,
    /// By chunk; what is not in here is free as far as this cluster is concerned. They do not overlap.
    pub chunks: BTreeMap<IpNet, Lease>,
    /// Whether something is asked for in vain and no chunk is free: IPv4, IPv6. Then others give back what they have in reserve.
    pub is_short: [bool; 2],
}

/// What a cluster says of one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lease {
    /// It asks for it.
    Claimed {
        /// Of the claim.
        number: u64,
        /// Why.
        reason: Reason,
    },
    /// It has it.
    Held {
        /// Of the claim that was granted.
        number: u64,
    },
    /// It leaves it to another until that one says no more that it claims or holds it by this number.
    Granted {
        /// The other cluster.
        to: Name,
        /// Of its claim.
        number: u64,
    },
}

/// Why a chunk is claimed. What comes first goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Addresses of it are in use, from before it was shared: it is never left to another.
    InUse,
    /// There is too little left of what is held.
    Demand,
}

/// What is known of another cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Other {
    /// Its register, as it was some time; none: it was never seen.
    pub leases: Option<Leases>,
    /// Whether it is one of those that share the pool.
    pub is_listed: bool,
    /// Whether it can be reached, and has the same pool, shared by the same clusters.
    pub is_fresh: bool,
}

/// What a cluster needs of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Addresses that are in use or rest.
    used: Vec<Range>,
    /// Addresses that somebody asks for by address and that are not leased.
    asked: Vec<Range>,
    /// Addresses (of pools for pods: blocks, as numbers of addresses) that were asked for in vain: IPv4, IPv6.
    pub lacking: [u128; 2],
    /// Nothing is needed beyond what is in use.
    pub is_disabled: bool,
}

impl Need {
    /// Of what is in use or rests, in any order.
    pub fn new(used: &[Range], lacking: [u128; 2], is_disabled: bool) -> Self {
        Need { used: merge(used), asked: Vec::new(), lacking, is_disabled }
    }

    /// The same; some addresses are asked for by address.
    #[must_use]
    pub fn asking(self, asked: &[Range]) -> Self {
        Need { asked: merge(asked), ..self }
    }

    fn uses(&self, chunk: &IpNet) -> bool {
        touches(&self.used, chunk)
    }

    fn asks_for(&self, chunk: &IpNet) -> bool {
        !self.is_disabled && touches(&self.asked, chunk)
    }
}

/// Whether sorted, disjoint ranges have addresses of a chunk.
fn touches(ranges: &[Range], chunk: &IpNet) -> bool {
    let chunk = Range::of_net(*chunk);
    let at = ranges.partition_point(|range| (range.family(), range.end()) < (chunk.family(), chunk.start()));
    ranges.get(at).is_some_and(|range| range.intersection(&chunk).is_some())
}

impl Leases {
    /// The chunks that are held.
    pub fn held(&self) -> impl Iterator<Item = &IpNet> {
        self.chunks.iter().filter(|(_, lease)| matches!(lease, Lease::Held { .. })).map(|(chunk, _)| chunk)
    }

    /// What it says of chunks that have addresses in common with this one.
    fn around(&self, chunk: &IpNet) -> impl Iterator<Item = (&IpNet, &Lease)> {
        self.chunks.iter().filter(move |(other, _)| overlap(chunk, other))
    }

    fn claim(&mut self, chunk: IpNet, reason: Reason, now: u64) {
        let number = now.saturating_mul(A_SECOND);
        self.last_number = number.max(self.last_number.saturating_add(1));
        self.chunks.insert(chunk, Lease::Claimed { number: self.last_number, reason });
    }
}

/// Whether two prefixes have addresses in common.
pub fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// Cuts a pool into chunks: the longest prefixes, all of one length and not longer than `longest` (IPv4, IPv6), of which at most
/// [`MAX_CHUNKS`] cover the blocks of a family. Those without an address that can be given are left out. Sorted.
pub fn chunks(blocks: &[Range], reserved: &[Range], longest: [u8; 2]) -> Vec<IpNet> {
    let (blocks, usable) = (merge(blocks), subtract(blocks, reserved));
    let mut chunks = BTreeSet::new();
    for family in Family::ALL {
        let bits: u8 = if family == Family::Ipv4 { 32 } else { 128 };
        // How many prefixes of a length have addresses of the blocks. A prefix may be in two blocks.
        let prefix = |number: u128, length: u8| {
            let shift = u32::from(bits - length);
            number.checked_shr(shift).unwrap_or(0)
        };
        let count = |length: u8| {
            let (mut count, mut last) = (0_u128, None);
            for block in blocks.iter().filter(|block| block.family() == family) {
                let (first, end) = (prefix(block.start(), length), prefix(block.end(), length));
                let first = if last == Some(first) { first.saturating_add(1) } else { first };
                count = count.saturating_add((end.saturating_add(1)).saturating_sub(first));
                last = Some(end);
            }
            count
        };
        let longest = longest[family as usize].min(bits);
        let length = (0..=longest).rev().find(|length| count(*length) <= MAX_CHUNKS).unwrap_or(0);
        for range in usable.iter().filter(|range| range.family() == family) {
            let mut address = range.first();
            while let Ok(net) = IpNet::new(address, length) {
                let net = net.trunc();
                chunks.insert(net);
                let next = Range::of_net(net).end();
                if next >= range.end() {
                    break;
                }
                address = family.address(next + 1);
            }
        }
    }
    chunks.into_iter().collect()
}

/// What a cluster says next. `own`: what it said last, as it stands where the others read it. `me`: its name. `others`: all that share
/// the pool, and those besides of which something is known. `chunks`: what may be claimed. `now`: seconds since the epoch; a clock that
/// goes back does no harm, unless the register is lost meanwhile.
///
/// Nothing is claimed for a reserve and nothing is granted unless all that share the pool are fresh. The result is that of `own`
/// if nothing has changed.
pub fn step(
    own: &Leases,
    me: &str,
    others: &BTreeMap<Name, Other>,
    chunks: &[IpNet],
    need: &Need,
    now: u64,
) -> Leases {
    let all_fresh = others.values().filter(|other| other.is_listed).all(|o| o.is_fresh && o.leases.is_some());
    let stepper = Stepper { me, others, need, now, all_fresh };
    let mut next = own.clone();
    stepper.end_grants(&mut next);
    stepper.settle_claims(&mut next);
    stepper.claim_what_is_used(&mut next, chunks);
    stepper.give_back(&mut next, chunks);
    stepper.grant(&mut next);
    stepper.claim_reserve(&mut next, chunks);
    next.is_short = Family::ALL.map(|family| stepper.is_short(&next, chunks, family));
    next
}

struct Stepper<'a> {
    me: &'a str,
    others: &'a BTreeMap<Name, Other>,
    need: &'a Need,
    now: u64,
    all_fresh: bool,
}

impl Stepper<'_> {
    fn registers(&self) -> impl Iterator<Item = (&Name, &Leases)> {
        self.others.iter().filter_map(|(name, other)| Some((name, other.leases.as_ref()?)))
    }

    /// Grants end when their claim or hold is over. Of a cluster that is not seen they stay.
    fn end_grants(&self, next: &mut Leases) {
        next.chunks.retain(|chunk, lease| {
            let Lease::Granted { to, number } = lease else { return true };
            let Some(theirs) = self.others.get(to).and_then(|other| other.leases.as_ref()) else {
                return true;
            };
            matches!(theirs.chunks.get(chunk),
                Some(Lease::Claimed { number: n, .. } | Lease::Held { number: n }) if n == number)
        });
    }

    /// Claims that all have granted are holds; those that have lost against another are withdrawn.
    fn settle_claims(&self, next: &mut Leases) {
        next.chunks.retain(|chunk, lease| {
            let Lease::Claimed { number, reason } = lease else { return true };
            let number = *number;
            let granted =
                |lease: &Lease| matches!(lease, Lease::Granted { to, number: n } if **to == *self.me && *n == number);
            let mut listed = self.others.values().filter(|other| other.is_listed).peekable();
            let is_shared = listed.peek().is_some();
            let grants = |other: &Other| {
                other.leases.as_ref().and_then(|theirs| theirs.chunks.get(chunk)).is_some_and(granted)
            };
            if is_shared && listed.all(grants) {
                *lease = Lease::Held { number };
                return true;
            }
            *reason = if self.need.uses(chunk) { Reason::InUse } else { Reason::Demand };
            *reason == Reason::InUse || !self.goes_before(chunk, (*reason, self.me))
        });
    }

    /// Whether somebody else has a better title to a chunk than the claim of this reason and cluster.
    fn goes_before(&self, chunk: &IpNet, claim: (Reason, &str)) -> bool {
        self.registers().filter(|(name, _)| &***name != claim.1).any(|(name, theirs)| {
            theirs.around(chunk).any(|(_, lease)| match lease {
                Lease::Held { .. } => true,
                Lease::Claimed { reason, .. } => (*reason, &**name) < claim,
                Lease::Granted { .. } => false,
            })
        })
    }

    fn claim_what_is_used(&self, next: &mut Leases, chunks: &[IpNet]) {
        for chunk in chunks.iter().filter(|chunk| self.need.uses(chunk)) {
            if next.around(chunk).next().is_none() {
                next.claim(*chunk, Reason::InUse, self.now);
            }
        }
    }

    /// Grants the claims of those that share the pool, where nobody has a better title.
    fn grant(&self, next: &mut Leases) {
        if !self.all_fresh {
            return;
        }
        for (name, other) in self.others.iter().filter(|(_, other)| other.is_listed) {
            for (chunk, lease) in other.leases.iter().flat_map(|theirs| &theirs.chunks) {
                let Lease::Claimed { number, reason } = lease else { continue };
                let is_free = next.around(chunk).next().is_none() && !self.need.uses(chunk);
                let left_to_another = self.registers().any(|(_, theirs)| {
                    theirs.around(chunk).any(|(_, l)| matches!(l, Lease::Granted { to, .. } if to != name))
                });
                if is_free && !left_to_another && !self.goes_before(chunk, (*reason, name)) {
                    next.chunks.insert(*chunk, Lease::Granted { to: name.clone(), number: *number });
                }
            }
        }
    }

    /// Gives back what is too much: one chunk without anything in use is kept in reserve, and what is asked for in vain.
    fn give_back(&self, next: &mut Leases, chunks: &[IpNet]) {
        for family in Family::ALL {
            let order = self.order(chunks, family);
            let mut idle = self.idle(next, family);
            // What is held stays before what is only claimed; what is no chunk any more goes first.
            idle.sort_by_key(|chunk| {
                let is_claimed = matches!(next.chunks.get(chunk), Some(Lease::Claimed { .. }));
                (is_claimed, order.iter().position(|known| known == chunk).unwrap_or(usize::MAX))
            });
            for chunk in idle.iter().skip(self.wanted(&order, family)) {
                next.chunks.remove(chunk);
            }
        }
    }

    /// Claims what is too little.
    fn claim_reserve(&self, next: &mut Leases, chunks: &[IpNet]) {
        if !self.all_fresh {
            return;
        }
        for family in Family::ALL {
            let order = self.order(chunks, family);
            let missing = self.wanted(&order, family).saturating_sub(self.idle(next, family).len());
            let is_free = |chunk: &IpNet| {
                next.around(chunk).next().is_none()
                    && self.registers().all(|(_, theirs)| theirs.around(chunk).next().is_none())
            };
            let (asked, others): (Vec<_>, Vec<_>) =
                order.into_iter().filter(is_free).partition(|chunk| self.need.asks_for(chunk));
            for chunk in asked.into_iter().chain(others.into_iter().take(missing)) {
                next.claim(chunk, Reason::Demand, self.now);
            }
        }
    }

    /// The chunks of a family in the order in which this cluster tries them.
    fn order(&self, chunks: &[IpNet], family: Family) -> Vec<IpNet> {
        let of_family = chunks.iter().filter(|chunk| Family::of(chunk.addr()) == family);
        let mut order: Vec<_> = of_family.copied().collect();
        order.sort_by_cached_key(|chunk| (rank(self.me, chunk), *chunk));
        order
    }

    /// How many chunks without anything in use are to be held.
    fn wanted(&self, chunks: &[IpNet], family: Family) -> usize {
        let Some(size) = chunks.first().map(size).filter(|_| !self.need.is_disabled) else { return 0 };
        match self.need.lacking[family as usize].div_ceil(size).min(AT_ONCE) as usize {
            0 if self.is_another_short(family) => 0,
            lacking => 1 + lacking,
        }
    }

    fn is_another_short(&self, family: Family) -> bool {
        let fresh = self.others.values().filter(|other| other.is_listed && other.is_fresh);
        { fresh }.filter_map(|other| other.leases.as_ref()).any(|theirs| theirs.is_short[family as usize])
    }

    /// Whether what is held and claimed is not enough even without a reserve.
    fn is_short(&self, next: &Leases, chunks: &[IpNet], family: Family) -> bool {
        self.need.lacking[family as usize] > 0
            && self.idle(next, family).len() + 1 < self.wanted(&self.order(chunks, family), family)
    }

    /// What is held or claimed without anything in use, and not asked for by address.
    fn idle(&self, next: &Leases, family: Family) -> Vec<IpNet> {
        let is_ours = |lease: &Lease| !matches!(lease, Lease::Granted { .. });
        let ours = next.chunks.iter().filter(|(_, lease)| is_ours(lease)).map(|(chunk, _)| *chunk);
        let is_needed = |chunk: &IpNet| self.need.uses(chunk) || self.need.asks_for(chunk);
        ours.filter(|chunk| Family::of(chunk.addr()) == family && !is_needed(chunk)).collect()
    }
}

/// Each cluster tries the chunks in an order of its own (rendezvous hashing), so that claims seldom meet.
fn rank(cluster: &str, chunk: &IpNet) -> u64 {
    let mut hasher = DefaultHasher::new();
    (cluster, chunk).hash(&mut hasher);
    hasher.finish()
}

/// Number of addresses; `u128::MAX` stands for 2^128, too.
fn size(net: &IpNet) -> u128 {
    let bits = u32::from(net.max_prefix_len() - net.prefix_len());
    1_u128.checked_shl(bits).unwrap_or(u128::MAX)
}

/// Those addresses of ranges that lie in these chunks; sorted.
pub fn within<'a>(ranges: &[Range], chunks: impl Iterator<Item = &'a IpNet>) -> Vec<Range> {
    let chunks: Vec<_> = chunks.map(|chunk| Range::of_net(*chunk)).collect();
    let common =
        |range: &Range| chunks.iter().filter_map(|chunk| chunk.intersection(range)).collect::<Vec<_>>();
    let common: Vec<_> = merge(ranges).iter().flat_map(common).collect();
    merge(&common)
}

/// An address as a range.
pub fn single(address: IpAddr) -> Range {
    Range::of_net(IpNet::from(address))
}
