//! The lookup table of "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016, section 3.4),
//! with weights.
//!
//! Every backend has a permutation of the slots of its own and takes, turn by turn, its next free slot. The paper
//! leaves weights to the reader; here a backend's number of slots is fixed first (its exact share, rounded by
//! largest remainder, so never wrong by a whole slot), and a backend takes its slots spread evenly over a bounded
//! number of rounds. The table depends only on the set of (endpoint, weight) and on the size: every host that
//! balances the service builds the same one.
use crate::service::Endpoint;
use std::net::IpAddr;
use xxhash_rust::xxh3::xxh3_128;

/// The primes that table sizes are taken from. Far apart, because a change of the size remaps flows.
const SIZES: [u32; 6] = [1021, 8191, 65537, 131_071, 524_287, 4_194_301];
/// A table has at least this many slots for each backend, as far as [`SIZES`] goes.
const SLOTS_PER_BACKEND: usize = 100;

/// The table size, a prime, for a service with this many backends: at least 100 slots for each of up to 41,943
/// backends. It depends on nothing else, so that all hosts agree.
pub fn table_size(backends: usize) -> u32 {
    let wanted = backends.saturating_mul(SLOTS_PER_BACKEND);
    let largest = SIZES[SIZES.len() - 1];
    SIZES.into_iter().find(|&size| size as usize >= wanted).unwrap_or(largest)
}

/// Builds a table of `size` slots (a prime): for each slot the index in `members` of its owner.
///
/// Members of weight 0 own nothing. Without any weight there is no table: the result is empty.
pub fn build(size: u32, members: &[(Endpoint, u16)]) -> Vec<u32> {
    let mut turns = Turn::all(size, members);
    let Some(most) = turns.iter().map(|turn| turn.quota).max().filter(|&most| most > 0) else {
        return Vec::new();
    };
    // With equal weights everybody takes one slot a round. With uneven ones the rounds are bounded, so that the
    // visits of light members do not cost more than the slots of the heavy one.
    let rounds = u64::from(most).min(64.max(4 * u64::from(size) / turns.len() as u64));
    let mut table = Free::new(size);
    for round in 1..=rounds {
        for turn in &mut turns {
            let due = (u64::from(turn.quota) * round / rounds) as u32;
            while turn.taken < due {
                turn.position = match table.few.is_empty() {
                    true => table.take(turn.position, turn.skip, turn.member),
                    false => table.take_of_few(turn.position, turn.skip, turn.member),
                };
                turn.taken += 1;
            }
        }
    }
    table.owners
}

/// The slots that are taken so far.
struct Free {
    size: u32,
    owners: Vec<u32>,
    /// One bit a slot: eight times as many fit into the nearest cache as of `owners`.
    taken: Vec<u64>,
    /// How many are free.
    left: u32,
    /// Those, in any order, as soon as they are few: half of all steps would be spent on the last hundreds.
    few: Vec<u32>,
}

impl Free {
    fn new(size: u32) -> Self {
        let (owners, taken) = (vec![0; size as usize], vec![0; size as usize / 64 + 1]);
        Free { size, owners, taken, left: size, few: Vec::new() }
    }

    /// Gives the first free slot at or after `position` in the permutation to `member`; returns where the
    /// permutation goes on. There must be a free slot.
    #[inline]
    fn take(&mut self, mut position: u32, skip: u32, member: u32) -> u32 {
        loop {
            let slot = position;
            position += skip;
            if position >= self.size {
                position -= self.size;
            }
            let (word, bit) = (&mut self.taken[slot as usize / 64], 1 << (slot % 64));
            if *word & bit == 0 {
                *word |= bit;
                self.owners[slot as usize] = member;
                self.left -= 1;
                if self.are_few() {
                    let is_free = |slot: &u32| self.taken[*slot as usize / 64] & 1 << (slot % 64) == 0;
                    self.few = (0..self.size).filter(is_free).collect();
                }
                return position;
            }
        }
    }

    /// Whether it costs less to look at all free slots than to step over those that are taken: a look costs as much as some
    /// three steps.
    fn are_few(&self) -> bool {
        3 * u64::from(self.left) * u64::from(self.left) <= u64::from(self.size)
    }

    /// What [`Free::take`] does, when the free slots are known.
    fn take_of_few(&mut self, position: u32, skip: u32, member: u32) -> u32 {
        let size = u64::from(self.size);
        let inverse = inverse(skip, self.size);
        // How many steps of `skip` it is from the position to the slot.
        let steps = |slot: u32| (u64::from(slot) + size - u64::from(position)) * inverse % size;
        let nearest = (0..self.few.len()).min_by_key(|at| steps(self.few[*at])).unwrap_or(0);
        let slot = self.few.swap_remove(nearest);
        self.owners[slot as usize] = member;
        ((u64::from(slot) + u64::from(skip)) % size) as u32
    }
}

/// What times `number` is 1 modulo this prime (Fermat).
fn inverse(number: u32, prime: u32) -> u64 {
    let prime = u64::from(prime);
    let (mut power, mut inverse, mut exponent) = (u64::from(number) % prime, 1, prime - 2);
    while exponent > 0 {
        if exponent % 2 == 1 {
            inverse = inverse * power % prime;
        }
        power = power * power % prime;
        exponent /= 2;
    }
    inverse
}

/// A member's way through its permutation.
struct Turn {
    /// Next slot to try: slot j of the permutation is (offset + j * skip) mod size.
    position: u32,
    /// 1 to size - 1; coprime to the size, which is a prime.
    skip: u32,
    /// How many slots it gets.
    quota: u32,
    /// How many it has.
    taken: u32,
    /// Index in the caller's list.
    member: u32,
}

impl Turn {
    /// The members that have a weight, in an order that depends on nothing but their endpoints, with quotas that
    /// add up to `size`.
    fn all(size: u32, members: &[(Endpoint, u16)]) -> Vec<Turn> {
        let total: u64 = members.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut order: Vec<_> = (0_u32..)
            .zip(members)
            .filter(|(_, (_, weight))| *weight > 0)
            .map(|(member, (endpoint, weight))| (identity_hash(endpoint), endpoint, *weight, member))
            .collect();
        order.sort_unstable();
        // (remainder, position in `order`): the largest remainders round up, the first ones among equals.
        let mut remainders = Vec::with_capacity(order.len());
        let mut given = 0;
        let mut turns = Vec::with_capacity(order.len());
        for (at, &(hash, _, weight, member)) in order.iter().enumerate() {
            let share = u64::from(size) * u64::from(weight);
            let quota = (share / total) as u32;
            given += quota;
            remainders.push((std::cmp::Reverse(share % total), at));
            turns.push(Turn {
                position: (hash as u64 % u64::from(size)) as u32,
                skip: ((hash >> 64) as u64 % u64::from(size - 1)) as u32 + 1,
                quota,
                taken: 0,
                member,
            });
        }
        remainders.sort_unstable();
        for &(_, at) in remainders.iter().take((size - given) as usize) {
            turns[at].quota += 1;
        }
        turns
    }
}

fn identity_hash(endpoint: &Endpoint) -> u128 {
    let address = match endpoint.address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let mut bytes = [0; 18];
    bytes[..16].copy_from_slice(&address.octets());
    bytes[16..].copy_from_slice(&endpoint.port.to_be_bytes());
    xxh3_128(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{collections::BTreeMap, net::Ipv4Addr};

    fn endpoint(n: u32) -> Endpoint {
        Endpoint { address: Ipv4Addr::from(0x0a00_0000 + n).into(), port: 8080 }
    }

    fn equal(backends: u32) -> Vec<(Endpoint, u16)> {
        (0..backends).map(|n| (endpoint(n), 1)).collect()
    }

    fn shares(table: &[u32]) -> BTreeMap<u32, u32> {
        let mut shares = BTreeMap::new();
        for &member in table {
            *shares.entry(member).or_default() += 1;
        }
        shares
    }

    fn members() -> impl Strategy<Value = Vec<(Endpoint, u16)>> {
        let weight = prop_oneof![Just(0_u16), 1..4_u16, 1..=u16::MAX];
        prop::collection::btree_map(0_u32..4000, weight, 1..60)
            .prop_map(|map| map.into_iter().map(|(n, weight)| (endpoint(n), weight)).collect())
    }

    /// The table as the paper builds it: every member steps until it finds a slot that is free.
    fn build_stepwise(size: u32, members: &[(Endpoint, u16)]) -> Vec<u32> {
        let mut turns = Turn::all(size, members);
        let most = u64::from(turns.iter().map(|turn| turn.quota).max().unwrap());
        let rounds = most.min(64.max(4 * u64::from(size) / turns.len() as u64));
        let mut owners = vec![None; size as usize];
        for round in 1..=rounds {
            for turn in &mut turns {
                while turn.taken < (u64::from(turn.quota) * round / rounds) as u32 {
                    while owners[turn.position as usize].is_some() {
                        turn.position = (turn.position + turn.skip) % size;
                    }
                    owners[turn.position as usize] = Some(turn.member);
                    turn.taken += 1;
                }
            }
        }
        owners.into_iter().map(Option::unwrap).collect()
    }

    #[test]
    fn the_last_slots_are_given_as_if_by_steps() {
        for (size, backends) in [(1021, 1), (1021, 10), (1021, 1021), (8191, 80), (65537, 655), (65537, 3)] {
            assert!(
                build(size, &equal(backends)) == build_stepwise(size, &equal(backends)),
                "{size} {backends}"
            );
        }
        for size in SIZES {
            for number in [1, 2, size / 2, size - 1] {
                assert_eq!(inverse(number, size) * u64::from(number) % u64::from(size), 1);
            }
        }
    }

    #[test]
    fn sizes_are_primes_with_room_for_the_backends() {
        for size in SIZES {
            assert!((2..).take_while(|d| d * d <= size).all(|d| size % d != 0), "{size}");
        }
        assert_eq!(table_size(1), 1021);
        assert_eq!(table_size(11), 8191);
        assert_eq!(table_size(655), 65537);
        assert_eq!(table_size(1000), 131_071);
        assert_eq!(table_size(1_000_000), 4_194_301);
    }

    #[test]
    fn no_weight_no_table() {
        assert!(build(1021, &[]).is_empty());
        assert!(build(1021, &[(endpoint(1), 0)]).is_empty());
    }

    #[test]
    fn the_table_does_not_change_from_version_to_version() {
        // Hosts of different versions balance the same service side by side.
        let table = build(1021, &[(endpoint(1), 1), (endpoint(2), 2), (endpoint(3), 3)]);
        let bytes: Vec<u8> = table.iter().flat_map(|member| member.to_le_bytes()).collect();
        assert_eq!(xxhash_rust::xxh3::xxh3_64(&bytes), 12_928_918_014_309_790_878);
    }

    #[test]
    fn little_moves_when_one_of_many_goes() {
        for backends in [10_u32, 100, 600] {
            let size = table_size(backends as usize);
            let mut members = equal(backends);
            let before = build(size, &members);
            members.remove(backends as usize / 2);
            let after = build(size, &members);
            let moved_needlessly = before
                .iter()
                .zip(&after)
                .filter(|&(&b, &a)| {
                    let gone = b == backends / 2;
                    let same = endpoint(b) == members[a as usize].0;
                    !gone && !same
                })
                .count();
            // The paper reports a few percent (its figure 12); consistent hashing would move none.
            assert!(moved_needlessly * 100 < size as usize * 5, "{backends}: {moved_needlessly} of {size}");
        }
    }

    proptest! {
        #[test]
        fn full_and_fair(members in members(), size in prop::sample::select(&SIZES[..2])) {
            let table = build(size, &members);
            let total: u64 = members.iter().map(|m| u64::from(m.1)).sum();
            prop_assert_eq!(table.len(), if total == 0 { 0 } else { size as usize });
            prop_assert!(total == 0 || table == build_stepwise(size, &members));
            let shares = shares(&table);
            for (member, (_, weight)) in (0..).zip(&members).filter(|_| total > 0) {
                let exact = f64::from(size) * f64::from(*weight) / total as f64;
                let got = f64::from(shares.get(&member).copied().unwrap_or(0));
                prop_assert!((got - exact).abs() < 1.0, "weight {} got {} of {}", weight, got, exact);
                prop_assert!(exact < 100.0 || (got / exact - 1.0).abs() < 0.01);
            }
        }

        #[test]
        fn order_does_not_matter(members in members(), turn in 0_usize..60) {
            let mut other = members.clone();
            other.reverse();
            let turn = turn % other.len();
            other.rotate_left(turn);
            let resolve = |members: &[(Endpoint, u16)]| -> Vec<Endpoint> {
                build(1021, members).iter().map(|&m| members[m as usize].0).collect()
            };
            prop_assert_eq!(resolve(&members), resolve(&other));
        }

        #[test]
        fn a_change_of_one_weight_moves_little_else(members in members(), weight in 1_u16..4) {
            let light: Vec<_> = members.into_iter().map(|(e, w)| (e, w % 4 + 1)).collect();
            prop_assume!(light.len() > 2);
            let mut changed = light.clone();
            changed[0].1 = weight;
            let (before, after) = (build(8191, &light), build(8191, &changed));
            let others = before.iter().zip(&after).filter(|&(&b, &a)| b != a && a != 0 && b != 0).count();
            prop_assert!(others < 8191 / 5, "{} slots moved between the others", others);
        }
    }
}
