//! Pools: ranges of addresses with the rules by which they are given out, and the index that finds the
//! pools of an address. Ranges are never enumerated, so that an IPv6 block costs what an IPv4 block costs.
use crate::Name;
use ipnet::IpNet;
use std::{
    cmp::Reverse,
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::AddAssign,
};

/// A set of addresses and the rules by which they are given out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// What the pool consists of. Order and overlaps do not matter.
    pub blocks: Vec<Range>,
    /// What of it is never given out, not even when asked for by address.
    pub reserved: Vec<Range>,
    /// Whether claims that name neither a pool nor an address may be served.
    pub auto_assign: bool,
    /// Pools of a higher priority are used first; among equals the name decides.
    pub priority: i32,
    /// How long, in seconds, a released address rests before it is given to another claim.
    pub reuse_delay_seconds: u64,
    /// Gives nothing new; what is given stays.
    pub disabled: bool,
    /// Of a pool that clusters share, what is leased to this one: nothing else is given. None: it is not shared.
    pub leased: Option<Vec<Range>>,
}

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// Both families.
    pub const ALL: [Family; 2] = [Family::Ipv4, Family::Ipv6];

    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Family::Ipv4,
            IpAddr::V6(_) => Family::Ipv6,
        }
    }

    pub(crate) fn address(self, number: u128) -> IpAddr {
        match self {
            // Numbers of this family come from 32-bit addresses, and ranges do not leave their family.
            Family::Ipv4 => IpAddr::V4(Ipv4Addr::from_bits(number as u32)),
            Family::Ipv6 => IpAddr::V6(Ipv6Addr::from_bits(number)),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Ipv4 => "IPv4",
            Family::Ipv6 => "IPv6",
        })
    }
}

/// Addresses from `first` to `last`, both included, of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    family: Family,
    first: u128,
    last: u128,
}

impl Range {
    /// The addresses from `first` to `last`, both included.
    ///
    /// # Errors
    /// When the two are of different families, in the wrong order, or when the range touches
    /// `::ffff:0:0/96` (IPv4-mapped addresses, RFC 4291 section 2.5.5.2): these would be second names of
    /// IPv4 addresses.
    pub fn new(first: IpAddr, last: IpAddr) -> Result<Self, RangeError> {
        if Family::of(first) != Family::of(last) {
            return Err(RangeError::Families { first, last });
        }
        if first > last {
            return Err(RangeError::Order { first, last });
        }
        let range = Range { family: Family::of(first), first: number(first), last: number(last) };
        let mapped = number(IpAddr::V6(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()))
            ..=number(IpAddr::V6(Ipv4Addr::BROADCAST.to_ipv6_mapped()));
        if range.family == Family::Ipv6 && range.first <= *mapped.end() && range.last >= *mapped.start() {
            return Err(RangeError::Mapped { first, last });
        }
        Ok(range)
    }

    /// The lowest address.
    pub fn first(&self) -> IpAddr {
        self.family.address(self.first)
    }

    /// The highest address.
    pub fn last(&self) -> IpAddr {
        self.family.address(self.last)
    }

    /// The family of all of its addresses.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Whether `address` lies in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.family == Family::of(address) && (self.first..=self.last).contains(&number(address))
    }

    /// The addresses that both ranges have.
    pub fn intersection(&self, other: &Range) -> Option<Range> {
        let (first, last) = (self.first.max(other.first), self.last.min(other.last));
        (self.family == other.family && first <= last).then_some(Range { family: self.family, first, last })
    }

    /// Whether it has all addresses of `other`.
    pub(crate) fn covers(&self, other: &Range) -> bool {
        self.family == other.family && self.first <= other.first && other.last <= self.last
    }

    /// All addresses of a network.
    pub(crate) fn of_net(net: IpNet) -> Range {
        let (first, last) = (net.network(), net.broadcast());
        Range { family: Family::of(first), first: number(first), last: number(last) }
    }

    /// From its first to its last address, as numbers that are in this order and of the family.
    pub(crate) fn of_numbers(family: Family, first: u128, last: u128) -> Range {
        Range { family, first, last }
    }

    /// The lowest address as a number.
    pub(crate) fn start(&self) -> u128 {
        self.first
    }

    /// The highest address as a number.
    pub(crate) fn end(&self) -> u128 {
        self.last
    }

    /// Number of addresses; `u128::MAX` stands for 2^128, too.
    fn len(&self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }
}

impl TryFrom<IpNet> for Range {
    type Error = RangeError;

    /// All addresses of the network, its first and last ones included.
    fn try_from(net: IpNet) -> Result<Self, RangeError> {
        Range::new(net.network(), net.broadcast())
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return write!(f, "{}", self.first());
        }
        write!(f, "{}-{}", self.first(), self.last())
    }
}

/// Why two addresses are no range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// One is IPv4, the other IPv6.
    #[error("{first} and {last} are of different address families")]
    Families {
        /// As given.
        first: IpAddr,
        /// As given.
        last: IpAddr,
    },
    /// The range would end before it starts.
    #[error("{first} comes after {last}")]
    Order {
        /// As given.
        first: IpAddr,
        /// As given.
        last: IpAddr,
    },
    /// The range holds IPv4-mapped addresses.
    #[error("{first}-{last} holds IPv4-mapped addresses (::ffff:0:0/96); write them as IPv4")]
    Mapped {
        /// As given.
        first: IpAddr,
        /// As given.
        last: IpAddr,
    },
}

/// Numbers of a pool, per family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// IPv4.
    pub ipv4: Counters,
    /// IPv6.
    pub ipv6: Counters,
}

impl Usage {
    /// The numbers of one family.
    pub fn of(&self, family: Family) -> &Counters {
        match family {
            Family::Ipv4 => &self.ipv4,
            Family::Ipv6 => &self.ipv6,
        }
    }

    pub(crate) fn of_mut(&mut self, family: Family) -> &mut Counters {
        match family {
            Family::Ipv4 => &mut self.ipv4,
            Family::Ipv6 => &mut self.ipv6,
        }
    }
}

/// Numbers of addresses. Those that are reserved do not count anywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Addresses that can be given out, free or not. `u128::MAX` stands for 2^128, too.
    pub total: u128,
    /// Given to claims. A shared address counts once.
    pub assigned: u128,
    /// Released, and not yet free for others.
    pub resting: u128,
    /// Of a pool that clusters share: neither of those, and not leased to this cluster.
    pub withheld: u128,
}

impl Counters {
    /// Addresses that are free now.
    pub fn available(&self) -> u128 {
        let given = self.assigned.saturating_add(self.resting);
        self.total.saturating_sub(given).saturating_sub(self.withheld)
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.total = self.total.saturating_add(other.total);
        self.assigned = self.assigned.saturating_add(other.assigned);
        self.resting = self.resting.saturating_add(other.resting);
        self.withheld = self.withheld.saturating_add(other.withheld);
    }
}

/// What became of all that there is: part of a sentence.
impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counters { total, assigned, resting, withheld } = self;
        write!(f, "{assigned} of {total} assigned, {resting} resting")?;
        match withheld {
            0 => Ok(()),
            _ => write!(f, ", {withheld} not leased to this cluster"),
        }
    }
}

/// Addresses that two pools offer. Harmless for allocation, since nothing is given twice, but they count in
/// both.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overlap {
    /// The pool that is used first.
    pub first: Name,
    /// The other one.
    pub second: Name,
    /// The addresses.
    pub range: Range,
}

/// The pools in order of use, with what each can give, and the way from an address to its pools.
pub(crate) struct Index<'a> {
    /// By priority, then by name.
    pub(crate) pools: Vec<IndexedPool<'a>>,
    by_name: BTreeMap<&'a str, usize>,
    /// Usable ranges of all pools, sorted.
    ranges: Vec<(Range, usize)>,
    /// For each of `ranges` the highest end up to here: tells when looking further back is in vain.
    reach: Vec<(Family, u128)>,
    reserved: Vec<(Range, usize)>,
    /// What is of shared pools and not leased to this cluster: sorted, disjoint. No pool gives it.
    withheld: Vec<Range>,
}

pub(crate) struct IndexedPool<'a> {
    pub(crate) name: &'a Name,
    pub(crate) pool: &'a Pool,
    /// Blocks without reserved ranges: sorted, disjoint.
    pub(crate) usable: Vec<Range>,
    /// Of these what is not withheld.
    givable: Vec<Range>,
}

impl<'a> Index<'a> {
    pub(crate) fn new(pools: &'a BTreeMap<Name, Pool>) -> Self {
        let mut indexed: Vec<_> = pools
            .iter()
            .map(|(name, pool)| {
                let usable = subtract(&pool.blocks, &pool.reserved);
                IndexedPool { name, pool, givable: usable.clone(), usable }
            })
            .collect();
        let leased = |p: &IndexedPool<'_>| Some(subtract(&p.usable, p.pool.leased.as_deref()?));
        let withheld: Vec<_> = indexed.iter().filter_map(leased).flatten().collect();
        let withheld = merge(&withheld);
        if !withheld.is_empty() {
            indexed.iter_mut().for_each(|p| p.givable = subtract(&p.usable, &withheld));
        }
        // Stable: among equal priorities the order of the map, which is that of the names, stays.
        indexed.sort_by_key(|p| Reverse(p.pool.priority));
        let mut ranges: Vec<_> =
            indexed.iter().enumerate().flat_map(|(i, p)| p.usable.iter().map(move |r| (*r, i))).collect();
        ranges.sort();
        let mut reach: Vec<(Family, u128)> = Vec::with_capacity(ranges.len());
        for (range, _) in &ranges {
            // Families sort apart, so the maximum over the pair starts anew with the second family.
            let end = (range.family, range.last);
            reach.push(reach.last().map_or(end, |before| end.max(*before)));
        }
        let reserved = indexed
            .iter()
            .enumerate()
            .flat_map(|(i, p)| {
                let reserved = merge(&p.pool.reserved);
                p.pool
                    .blocks
                    .iter()
                    .flat_map(|block| {
                        reserved.iter().filter_map(|r| r.intersection(block)).collect::<Vec<_>>()
                    })
                    .map(move |r| (r, i))
                    .collect::<Vec<_>>()
            })
            .collect();
        let by_name = indexed.iter().enumerate().map(|(i, p)| (&**p.name, i)).collect();
        Index { pools: indexed, by_name, ranges, reach, reserved, withheld }
    }

    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The pools that can give `address`, in no particular order.
    pub(crate) fn offering(&self, address: IpAddr) -> impl Iterator<Item = usize> + '_ {
        let at = (Family::of(address), number(address));
        let end = self.ranges.partition_point(|(r, _)| (r.family, r.first) <= at);
        (0..end)
            .rev()
            .take_while(move |&i| self.reach[i] >= at)
            .filter(move |&i| self.ranges[i].0.contains(address))
            .map(|i| self.ranges[i].1)
    }

    /// The first pool that reserves `address`.
    pub(crate) fn reserving(&self, address: IpAddr) -> Option<usize> {
        self.reserved.iter().filter(|(r, _)| r.contains(address)).map(|(_, pool)| *pool).min()
    }

    /// Whether `address` is of a pool that clusters share, and not leased to this one.
    pub(crate) fn is_withheld(&self, address: IpAddr) -> bool {
        let at = (Family::of(address), number(address));
        let after = self.withheld.partition_point(|r| (r.family, r.last) < at);
        self.withheld.get(after).is_some_and(|range| range.contains(address))
    }

    pub(crate) fn overlaps(&self) -> Vec<Overlap> {
        let mut overlaps = Vec::new();
        // Each range against the one that reaches furthest before it: every overlapping range shows up, in a
        // list as long as that of the ranges.
        let mut furthest: Option<(Range, usize)> = None;
        for &(range, pool) in &self.ranges {
            if let Some((before, owner)) = furthest
                && let Some(common) = before.intersection(&range)
            {
                let (a, b) = (owner.min(pool), owner.max(pool));
                overlaps.push(Overlap {
                    first: self.pools[a].name.clone(),
                    second: self.pools[b].name.clone(),
                    range: common,
                });
            }
            if furthest.is_none_or(|(before, _)| (before.family, before.last) < (range.family, range.last)) {
                furthest = Some((range, pool));
            }
        }
        overlaps.sort();
        overlaps
    }

    pub(crate) fn totals(&self) -> Vec<Usage> {
        let mut totals = vec![Usage::default(); self.pools.len()];
        for (usage, pool) in totals.iter_mut().zip(&self.pools) {
            for range in &pool.usable {
                let counters = usage.of_mut(range.family);
                counters.total = counters.total.saturating_add(range.len());
                counters.withheld = counters.withheld.saturating_add(range.len());
            }
            for range in &pool.givable {
                let withheld = &mut usage.of_mut(range.family).withheld;
                *withheld = withheld.saturating_sub(range.len());
            }
        }
        totals
    }
}

/// Walks through the addresses of one family of a pool that may be given, upwards, each once.
pub(crate) struct Cursor {
    /// What is left; the next address is the first of the last range.
    left: Vec<Range>,
}

impl Cursor {
    pub(crate) fn new(pool: &IndexedPool<'_>, family: Family) -> Self {
        Cursor { left: pool.givable.iter().rev().filter(|r| r.family == family).copied().collect() }
    }
}

impl Iterator for Cursor {
    type Item = IpAddr;

    fn next(&mut self) -> Option<IpAddr> {
        let range = self.left.last_mut()?;
        let address = range.first();
        if range.first == range.last {
            self.left.pop();
        } else {
            range.first += 1;
        }
        Some(address)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The same addresses in sorted ranges that neither overlap nor touch.
pub(crate) fn merge(ranges: &[Range]) -> Vec<Range> {
    let mut sorted = ranges.to_vec();
    sorted.sort();
    let mut merged: Vec<Range> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match merged.last_mut() {
            Some(last) if last.family == range.family && range.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// `blocks` without `reserved`: sorted, disjoint.
pub(crate) fn subtract(blocks: &[Range], reserved: &[Range]) -> Vec<Range> {
    let holes = merge(reserved);
    let mut usable = Vec::new();
    for mut block in merge(blocks) {
        let touching = holes.partition_point(|h| (h.family, h.last) < (block.family, block.first));
        let mut whole = true;
        for hole in &holes[touching..] {
            if hole.intersection(&block).is_none() {
                break;
            }
            if hole.first > block.first {
                usable.push(Range { last: hole.first - 1, ..block });
            }
            if hole.last >= block.last {
                whole = false;
                break;
            }
            block.first = hole.last + 1;
        }
        if whole {
            usable.push(block);
        }
    }
    usable
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(first: u8, last: u8) -> Range {
        let address = |n: u8| IpAddr::from([192, 0, 2, n]);
        Range::new(address(first.min(last)), address(first.max(last))).unwrap()
    }

    fn net(text: &str) -> Range {
        Range::try_from(text.parse::<IpNet>().unwrap()).unwrap()
    }

    #[test]
    fn bad_ranges_say_why() {
        let error =
            |a: &str, b: &str| Range::new(a.parse().unwrap(), b.parse().unwrap()).unwrap_err().to_string();
        assert_eq!(error("192.0.2.9", "192.0.2.1"), "192.0.2.9 comes after 192.0.2.1");
        assert!(error("192.0.2.9", "2001:db8::").contains("different address families"));
        assert!(error("::", "2001:db8::").contains("IPv4-mapped"));
        assert!(error("::ffff:192.0.2.1", "::ffff:192.0.2.1").contains("IPv4-mapped"));
    }

    #[test]
    fn the_end_of_the_address_space_is_an_address_like_others() {
        let top =
            Range::new("ffff::".parse().unwrap(), "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap());
        let holes = [net("ffff::/64"), net("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/128")];
        let usable = subtract(&[top.unwrap()], &holes);
        assert_eq!(usable.len(), 2);
        assert_eq!(usable[1].to_string(), "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
        let whole = Pool { blocks: vec![net("0.0.0.0/0")], ..Pool::default() };
        let pools = BTreeMap::from([("all".into(), whole)]);
        assert_eq!(Index::new(&pools).totals()[0].ipv4.total, 1 << 32);
    }

    #[test]
    fn overlaps_are_found_also_behind_a_short_range() {
        let pool = |blocks: Vec<Range>| Pool { blocks, ..Pool::default() };
        let pools = BTreeMap::from([
            ("wide".into(), pool(vec![range(0, 100)])),
            ("inner".into(), pool(vec![range(10, 20)])),
            ("tail".into(), pool(vec![range(90, 120)])),
            ("apart".into(), pool(vec![range(200, 201)])),
        ]);
        let overlaps: Vec<_> = Index::new(&pools)
            .overlaps()
            .into_iter()
            .map(|o| format!("{} {} {}", o.first, o.second, o.range))
            .collect();
        assert_eq!(overlaps, ["inner wide 192.0.2.10-192.0.2.20", "tail wide 192.0.2.90-192.0.2.100"]);
    }

    proptest! {
        #[test]
        fn usable_is_blocks_without_reserved(
            blocks in prop::collection::vec((0u8.., 0u8..), 0..5),
            reserved in prop::collection::vec((0u8.., 0u8..), 0..5),
        ) {
            let blocks: Vec<_> = blocks.into_iter().map(|(a, b)| range(a, b)).collect();
            let reserved: Vec<_> = reserved.into_iter().map(|(a, b)| range(a, b)).collect();
            let pools = BTreeMap::from([("p".into(), Pool { blocks: blocks.clone(), reserved: reserved.clone(), ..Pool::default() })]);
            let index = Index::new(&pools);
            let walked: Vec<_> = Cursor::new(&index.pools[0], Family::Ipv4).collect();
            let expected: Vec<_> = (0..=255u8)
                .map(|n| IpAddr::from([192, 0, 2, n]))
                .filter(|a| blocks.iter().any(|b| b.contains(*a)) && !reserved.iter().any(|r| r.contains(*a)))
                .collect();
            prop_assert_eq!(&walked, &expected);
            prop_assert_eq!(index.totals()[0].ipv4.total, expected.len() as u128);
            for n in 0..=255u8 {
                let address = IpAddr::from([192, 0, 2, n]);
                prop_assert_eq!(index.offering(address).count(), usize::from(expected.contains(&address)));
                let is_reserved = blocks.iter().any(|b| b.contains(address)) && reserved.iter().any(|r| r.contains(address));
                prop_assert_eq!(index.reserving(address).is_some(), is_reserved);
            }
        }

        #[test]
        fn offering_finds_every_pool(
            pools in prop::collection::btree_map("[a-e]", prop::collection::vec((0u8.., 0u8..), 0..4), 0..5),
            probe in 0u8..,
        ) {
            let pools: BTreeMap<Name, Pool> = pools
                .into_iter()
                .map(|(name, blocks)| {
                    (name.into(), Pool { blocks: blocks.into_iter().map(|(a, b)| range(a, b)).collect(), ..Pool::default() })
                })
                .collect();
            let address = IpAddr::from([192, 0, 2, probe]);
            let index = Index::new(&pools);
            let mut found: Vec<_> = index.offering(address).map(|i| &**index.pools[i].name).collect();
            found.sort_unstable();
            let expected: Vec<_> = pools
                .iter()
                .filter(|(_, p)| p.blocks.iter().any(|b| b.contains(address)))
                .map(|(name, _)| &**name)
                .collect();
            prop_assert_eq!(found, expected);
        }
    }
}
