//! Pod CIDRs: every node gets blocks of its own from pools that select it, of each family that they offer.
//!
//! The rules, in the order in which [`assign_blocks`] applies them:
//! 1. What a node declares is its own, whoever gave it, also outside of all pools: it cannot be changed.
//! 2. What a node was given it keeps for as long as it is there, whatever became of the pool.
//! 3. A node that lacks blocks is given back one that it had and that rests, else the lowest that is free in the first
//!    pool that has one: one that overlaps nothing that any node has, nothing reserved, and nothing that rests.
//!
//! As of addresses, the result is itself the next state ([`BlockAssignments::held`]): calling again with it changes
//! nothing.
use crate::{
    Name,
    assignment::{Released, Remark},
    pool::{Counters, Family, Range, Usage, merge, subtract},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

/// Ranges that are cut into blocks of one size, and the rules by which they are given out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockPool {
    /// What the pool consists of. Order and overlaps do not matter.
    pub blocks: Vec<Range>,
    /// What of it is never given out.
    pub reserved: Vec<Range>,
    /// Prefix length of a block of IPv4, 0 to 32; none: no IPv4 is given.
    pub ipv4_length: Option<u8>,
    /// Prefix length of a block of IPv6, 0 to 128; none: no IPv6 is given.
    pub ipv6_length: Option<u8>,
    /// Pools of a higher priority are used first; among equals the name decides.
    pub priority: i32,
    /// How long, in seconds, a block rests when its node is gone, before another node may have it.
    pub reuse_delay_seconds: u64,
    /// Gives nothing new; what is given stays.
    pub disabled: bool,
    /// Of a pool that clusters share, what is leased to this one: nothing else is given. None: it is not shared.
    pub leased: Option<Vec<Range>>,
}

impl BlockPool {
    /// The blocks of which something is given.
    fn givable(&self) -> Vec<Range> {
        match &self.leased {
            None => self.blocks.clone(),
            Some(leased) => subtract(&self.blocks, &subtract(&self.blocks, leased)),
        }
    }
}

/// A node that wants blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeClaim {
    /// Blocks that the node has by declaration.
    pub declared: Vec<IpNet>,
    /// How many blocks it needs of each family; what it declares counts.
    pub count: usize,
    /// Age: seconds since the epoch, 0 when unknown. Older nodes are served first; among equals the name decides.
    pub created: u64,
    /// Names of the pools whose selectors let the node in.
    pub matching: Arc<BTreeSet<Name>>,
}

/// What was given before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldBlocks {
    /// Node → blocks, and the pool that each came from.
    pub given: BTreeMap<Name, BTreeMap<IpNet, Option<Name>>>,
    /// Blocks that rest, and the nodes that had them.
    pub released: BTreeMap<IpNet, Released>,
}

/// The result of [`assign_blocks`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockAssignments {
    /// Every node, with or without blocks.
    pub nodes: BTreeMap<Name, NodeBlocks>,
    /// Every pool, in blocks of its size; a block counts as assigned if a part of it is.
    pub pools: BTreeMap<Name, Usage>,
    /// Blocks that rest now.
    pub released: BTreeMap<IpNet, Released>,
}

impl BlockAssignments {
    /// What the next call of [`assign_blocks`] is to be told.
    pub fn held(&self) -> HeldBlocks {
        let blocks =
            |node: &NodeBlocks| node.blocks.iter().map(|(net, given)| (*net, given.pool.clone())).collect();
        let nodes = self.nodes.iter().filter(|(_, node)| !node.blocks.is_empty());
        let given = nodes.map(|(name, node)| (name.clone(), blocks(node))).collect();
        HeldBlocks { given, released: self.released.clone() }
    }
}

/// What one node got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeBlocks {
    /// Its blocks.
    pub blocks: BTreeMap<IpNet, GivenBlock>,
    /// What it lacks.
    pub lacking: Vec<Lacking>,
}

/// How a block is a node's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GivenBlock {
    /// The pool that it is of; none: it is of no pool.
    pub pool: Option<Name>,
    /// What is odd about it.
    pub remark: Option<Remark>,
    /// Another node that has a part of it, both by declaration.
    pub overlaps: Option<Name>,
}

/// All pools that may serve a node are used up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// The family.
    pub family: Family,
    /// How many blocks are missing.
    pub count: usize,
    /// The pools that offer the family, in the order of use.
    pub pools: Vec<Name>,
    /// Their numbers, in blocks, summed up.
    pub counters: Counters,
}

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lacking { family, count, pools, counters } = self;
        write!(f, "{count} {family} blocks missing, none free in {}: {counters}", pools.join(", "))
    }
}

/// Gives blocks to `nodes` at the time `now` (seconds since the epoch), by the rules of the [module](self). The result
/// depends on nothing but the arguments.
pub fn assign_blocks(
    pools: &BTreeMap<Name, BlockPool>,
    nodes: &BTreeMap<Name, NodeClaim>,
    held: &HeldBlocks,
    now: u64,
) -> BlockAssignments {
    let mut by_use: Vec<_> = pools.iter().collect();
    // Stable: among equal priorities the order of the names stays.
    by_use.sort_by_key(|(_, pool)| Reverse(pool.priority));
    let mut by_age: Vec<_> = nodes.iter().collect();
    by_age.sort_by_key(|(_, claim)| claim.created);
    let got = nodes.keys().map(|name| (name.clone(), NodeBlocks::default())).collect();
    let mut assigning = Assigning {
        pools: by_use,
        nodes: by_age,
        taken: Taken::default(),
        got,
        released: held.released.clone(),
    };
    assigning.keep(held);
    assigning.release(held, now);
    assigning.give_back();
    let exhausted = assigning.give();
    assigning.finish(exhausted)
}

struct Assigning<'a> {
    /// In the order of use.
    pools: Vec<(&'a Name, &'a BlockPool)>,
    /// Oldest first.
    nodes: Vec<(&'a Name, &'a NodeClaim)>,
    taken: Taken,
    got: BTreeMap<Name, NodeBlocks>,
    released: BTreeMap<IpNet, Released>,
}

impl<'a> Assigning<'a> {
    fn keep(&mut self, held: &HeldBlocks) {
        for (name, claim) in self.nodes.clone() {
            for net in &claim.declared {
                let overlaps = self.taken.overlapping(range(*net)).find(|owner| *owner != name).cloned();
                self.take(name, *net, GivenBlock { overlaps, ..self.standing(*net, None) });
            }
        }
        for (name, _) in self.nodes.clone() {
            for (net, pool) in held.given.get(name).into_iter().flatten() {
                // Should another node declare it by now, it is that node's.
                if self.taken.overlapping(range(*net)).all(|owner| owner == name) {
                    self.take(name, *net, self.standing(*net, pool.as_ref()));
                }
            }
        }
    }

    /// What was held and is nobody's rests; what is over, or somebody's, does so no longer.
    fn release(&mut self, held: &HeldBlocks, now: u64) {
        for (name, blocks) in &held.given {
            for net in blocks.keys() {
                self.released.entry(*net).or_insert(Released { claim: name.clone(), at: now });
            }
        }
        let (pools, taken) = (&self.pools, &self.taken);
        self.released.retain(|net, record| {
            // A clock that went back does not make a block rest for longer than the delay.
            record.at = record.at.min(now);
            let offering = pools.iter().filter(|(_, pool)| offers(pool, *net));
            let delay = offering.map(|(_, pool)| pool.reuse_delay_seconds).max().unwrap_or(0);
            now < record.at.saturating_add(delay) && taken.is_free(range(*net))
        });
    }

    /// Nodes that come back get what they had.
    fn give_back(&mut self) {
        let records: Vec<_> =
            self.released.iter().map(|(net, record)| (*net, record.claim.clone())).collect();
        for (net, name) in records {
            let Some((name, claim)) = self.nodes.iter().find(|(node, _)| **node == name).copied() else {
                continue;
            };
            let may = |pool: &&(&Name, &BlockPool)| {
                claim.matching.contains(pool.0) && !pool.1.disabled && fits(pool.1, net)
            };
            if self.lacks(name, claim, Family::of(net.addr())) > 0
                && let Some((pool, _)) = self.pools.iter().find(may)
                && self.taken.is_free(range(net))
            {
                let given = GivenBlock { pool: Some((*pool).clone()), ..GivenBlock::default() };
                self.take(name, net, given);
                self.released.remove(&net);
            }
        }
    }

    /// Serves who still lacks something; returns who does after that.
    fn give(&mut self) -> Vec<(&'a Name, Family, usize, Vec<usize>)> {
        let resting: Vec<_> = self.released.keys().map(|net| range(*net)).collect();
        let mut cursors: Vec<_> = self
            .pools
            .iter()
            .map(|(_, pool)| {
                let mut holes = pool.reserved.clone();
                holes.extend(self.taken.ranges());
                holes.extend(&resting);
                let free = subtract(&pool.givable(), &holes);
                Family::ALL.map(|family| Blocks::new(&free, family, length(pool, family)))
            })
            .collect();
        let mut exhausted = Vec::new();
        for (name, claim) in self.nodes.clone() {
            for family in Family::ALL {
                let candidates = self.pools.iter().enumerate().filter(|(_, (pool_name, pool))| {
                    claim.matching.contains(*pool_name)
                        && length(pool, family).is_some()
                        && pool.blocks.iter().any(|block| block.family() == family)
                });
                let candidates: Vec<_> = candidates.map(|(index, _)| index).collect();
                if candidates.is_empty() {
                    continue;
                }
                let mut lacks = self.lacks(name, claim, family);
                for &index in &candidates {
                    while lacks > 0 && !self.pools[index].1.disabled {
                        // Another pool may have given the same space.
                        let taken = &self.taken;
                        let cursor = &mut cursors[index][family as usize];
                        let free = cursor.find(|net| taken.is_free(range(*net)));
                        let Some(net) = free else { break };
                        let pool = Some(self.pools[index].0.clone());
                        self.take(name, net, GivenBlock { pool, ..GivenBlock::default() });
                        lacks -= 1;
                    }
                }
                if lacks > 0 {
                    exhausted.push((name, family, lacks, candidates));
                }
            }
        }
        exhausted
    }

    fn finish(mut self, exhausted: Vec<(&Name, Family, usize, Vec<usize>)>) -> BlockAssignments {
        let resting: Vec<_> = self.released.keys().map(|net| range(*net)).collect();
        let taken: Vec<_> = self.taken.ranges().collect();
        let count_of = |pool: &BlockPool, blocks: &[Range], holes: &[&[Range]], family| {
            let holes: Vec<_> = holes.concat();
            Blocks::new(&subtract(blocks, &holes), family, length(pool, family)).count_all()
        };
        let count =
            |pool: &BlockPool, holes: &[&[Range]], family| count_of(pool, &pool.blocks, holes, family);
        let usage = |pool: &BlockPool| {
            let of_family = |family| {
                let total = count(pool, &[&pool.reserved], family);
                let not_taken = count(pool, &[&pool.reserved, &taken], family);
                let free = count(pool, &[&pool.reserved, &taken, &resting], family);
                let givable = match &pool.leased {
                    None => free,
                    Some(_) => count_of(pool, &pool.givable(), &[&pool.reserved, &taken, &resting], family),
                };
                let (assigned, resting) = (total - not_taken, not_taken - free);
                Counters { total, assigned, resting, withheld: free.saturating_sub(givable) }
            };
            Usage { ipv4: of_family(Family::Ipv4), ipv6: of_family(Family::Ipv6) }
        };
        let usages: Vec<_> = self.pools.iter().map(|(_, pool)| usage(pool)).collect();
        for (name, family, count, candidates) in exhausted {
            let mut counters = Counters::default();
            for index in &candidates {
                counters += *usages[*index].of(family);
            }
            let pools = candidates.iter().map(|index| self.pools[*index].0.clone()).collect();
            let lacking = Lacking { family, count, pools, counters };
            self.got.entry(name.clone()).or_default().lacking.push(lacking);
        }
        let pools = self.pools.iter().map(|(name, _)| (*name).clone()).zip(usages).collect();
        BlockAssignments { nodes: self.got, pools, released: self.released }
    }

    /// How a block that a node has stands today.
    fn standing(&self, net: IpNet, origin: Option<&Name>) -> GivenBlock {
        let mut offering = self.pools.iter().filter(|(_, pool)| offers(pool, net)).peekable();
        let first = offering.peek().map(|(name, _)| *name);
        let own = offering.map(|(name, _)| *name).find(|name| Some(*name) == origin);
        if let Some(pool) = own.or(first) {
            return GivenBlock { pool: Some(pool.clone()), ..GivenBlock::default() };
        }
        let within = |ranges: &[Range]| merge(ranges).iter().any(|range| range.covers(&self::range(net)));
        let reserved = self.pools.iter().any(|(_, pool)| within(&pool.blocks));
        let remark = if reserved { Remark::Reserved } else { Remark::Outside };
        GivenBlock { pool: origin.cloned(), remark: Some(remark), overlaps: None }
    }

    /// How many blocks of a family a node lacks.
    fn lacks(&self, name: &Name, claim: &NodeClaim, family: Family) -> usize {
        let has = self
            .got
            .get(name)
            .map_or(0, |node| node.blocks.keys().filter(|net| Family::of(net.addr()) == family).count());
        claim.count.saturating_sub(has)
    }

    fn take(&mut self, name: &Name, net: IpNet, given: GivenBlock) {
        self.taken.insert(range(net), name);
        self.got.entry(name.clone()).or_default().blocks.entry(net).or_insert(given);
    }
}

/// Whether a pool has all of a block, and does not reserve a part of it.
fn offers(pool: &BlockPool, net: IpNet) -> bool {
    let net = range(net);
    merge(&pool.blocks).iter().any(|block| block.covers(&net))
        && pool.reserved.iter().all(|reserved| reserved.intersection(&net).is_none())
}

/// Whether a pool could give this very block.
fn fits(pool: &BlockPool, net: IpNet) -> bool {
    length(pool, Family::of(net.addr())) == Some(net.prefix_len()) && offers(pool, net)
}

fn length(pool: &BlockPool, family: Family) -> Option<u8> {
    match family {
        Family::Ipv4 => pool.ipv4_length.filter(|length| *length <= 32),
        Family::Ipv6 => pool.ipv6_length.filter(|length| *length <= 128),
    }
}

fn range(net: IpNet) -> Range {
    Range::of_net(net)
}

/// What nodes have: ranges that are apart, except those that nodes declare.
#[derive(Default)]
struct Taken {
    /// First address → last address, and the node.
    ranges: BTreeMap<(Family, u128), (u128, Name)>,
    /// Those that begin or lie within another: only by declaration, so there are few.
    others: Vec<(Range, Name)>,
}

impl Taken {
    fn insert(&mut self, range: Range, name: &Name) {
        if !self.is_free(range) {
            self.others.push((range, name.clone()));
        } else {
            self.ranges.insert((range.family(), range.start()), (range.end(), name.clone()));
        }
    }

    /// The nodes that have a part of it.
    fn overlapping(&self, range: Range) -> impl Iterator<Item = &Name> {
        let (family, start, end) = (range.family(), range.start(), range.end());
        // They are apart: what ends before the start has nothing behind it that does not.
        let before = self.ranges.range((family, 0)..=(family, end)).rev();
        let hits = before.take_while(move |(_, (last, _))| *last >= start).map(|(_, (_, name))| name);
        let others = self.others.iter().filter(move |(other, _)| other.intersection(&range).is_some());
        hits.chain(others.map(|(_, name)| name))
    }

    fn is_free(&self, range: Range) -> bool {
        self.overlapping(range).next().is_none()
    }

    fn ranges(&self) -> impl Iterator<Item = Range> + '_ {
        let apart =
            self.ranges.iter().map(|((family, start), (end, _))| Range::of_numbers(*family, *start, *end));
        apart.chain(self.others.iter().map(|(range, _)| *range))
    }
}

/// Walks upwards through the blocks of one size that lie wholly in free ranges, each once.
struct Blocks {
    family: Family,
    /// None: no block is given.
    length: Option<u8>,
    /// What is left; the next block is in the last range.
    left: Vec<Range>,
}

impl Blocks {
    fn new(free: &[Range], family: Family, length: Option<u8>) -> Self {
        let left = free.iter().rev().filter(|range| range.family() == family).copied().collect();
        Blocks { family, length, left }
    }

    /// The host bits of a block.
    fn mask(&self, length: u8) -> u128 {
        let bits = match self.family {
            Family::Ipv4 => 32,
            Family::Ipv6 => 128,
        };
        u128::MAX.checked_shr(128 - (bits - u32::from(length))).unwrap_or(0)
    }

    /// First and last address of the first block in a range.
    fn first_in(&self, range: &Range, length: u8) -> Option<(u128, u128)> {
        let mask = self.mask(length);
        let first = range.start().checked_add(mask)? & !mask;
        let last = first | mask;
        (last <= range.end()).then_some((first, last))
    }

    /// How many there are; `u128::MAX` stands for 2^128, too.
    fn count_all(&self) -> u128 {
        let Some(length) = self.length else { return 0 };
        let of_range = |range: &Range| {
            let Some((first, _)) = self.first_in(range, length) else { return 0 };
            let mask = self.mask(length);
            // Addresses from the first block to the end, less one; whole blocks among them.
            let span = range.end() - first;
            let whole = if mask == u128::MAX { 0 } else { span / (mask + 1) };
            if mask == 0 { whole.saturating_add(1) } else { whole + u128::from(span & mask == mask) }
        };
        self.left.iter().map(of_range).fold(0, u128::saturating_add)
    }
}

impl Iterator for Blocks {
    type Item = IpNet;

    fn next(&mut self) -> Option<IpNet> {
        let length = self.length?;
        loop {
            let range = *self.left.last()?;
            self.left.pop();
            let Some((first, last)) = self.first_in(&range, length) else { continue };
            if last < range.end() {
                self.left.push(Range::of_numbers(self.family, last + 1, range.end()));
            }
            // The length is at most that of the family.
            return match self.family.address(first) {
                IpAddr::V4(address) => Ipv4Net::new(address, length).ok().map(IpNet::V4),
                IpAddr::V6(address) => Ipv6Net::new(address, length).ok().map(IpNet::V6),
            };
        }
    }
}
