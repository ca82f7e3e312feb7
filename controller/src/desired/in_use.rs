//! Which addresses of a pool are somebody's, as ranges in the status of the pool: so the delay of their reuse outlives the
//! leader. When an owner goes, its status goes with it. The leader that saw it says in the pool what rests from now on; the
//! leader that comes later finds here what nobody has any more, and lets it rest from then on.
//!
//! What is in effect is in a range from the pass after that which gave it: what was only meant to be given, when the leader died,
//! does not rest. It leaves the range by the write that says that it rests.
use super::addresses;
use crate::{
    api::{
        AddressPool, AddressPoolStatus, PoolUse, address_pool::AddressRange, node::pod_cidrs, scalar::Address,
    },
    declared::Declared,
    observed::Observed,
};
use ipam::{Held, Released, pod_cidr::HeldBlocks};
use ipnet::IpNet;
use std::{
    collections::BTreeSet,
    iter,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Ranges of one pool. What is beyond is not written, and may be given again at once after a leader has died.
const MAX_RANGES: usize = 1000;
/// Addresses or blocks of one pool that are looked at.
const MAX_STARTS: usize = 100_000;

/// The ranges of a pool, given first and last addresses in any order; none if nothing rests there anyway.
pub(super) fn ranges(
    object: &AddressPool,
    spans: impl Iterator<Item = (IpAddr, IpAddr)>,
) -> Vec<AddressRange> {
    if object.spec.reuse_delay_seconds.get() == 0 {
        return Vec::new();
    }
    let blocks = addresses::ranges(&object.spec);
    let mut spans: Vec<_> =
        spans.filter(|(first, _)| blocks.iter().any(|block| block.contains(*first))).collect();
    spans.sort_unstable();
    let mut ranges: Vec<AddressRange> = Vec::new();
    for (first, last) in spans {
        match ranges.last_mut().filter(|range| first <= range.stop.0 || next(range.stop.0) == Some(first)) {
            Some(range) => range.stop = Address(range.stop.0.max(last)),
            None => ranges.push(AddressRange { start: Address(first), stop: Address(last) }),
        }
    }
    ranges.truncate(MAX_RANGES);
    ranges
}

/// Lets addresses rest from now on that were somebody's and are nobody's, if this is to be looked for.
pub(super) fn release(declared: &Declared, observed: &Observed, held: &mut Held) {
    if !observed.takes_over {
        return;
    }
    let given: BTreeSet<_> = held.given.values().flat_map(|addresses| addresses.keys()).collect();
    for (_, status) in pools(declared, PoolUse::LoadBalancer) {
        for address in starts(status, next).filter(|address| !given.contains(address)) {
            held.released.entry(address).or_insert_with(|| unknown(observed));
        }
    }
}

/// The same of the blocks of nodes.
pub(super) fn release_blocks(declared: &Declared, observed: &Observed, held: &mut HeldBlocks) {
    if !observed.takes_over {
        return;
    }
    let mut given: Vec<_> = held.given.values().flat_map(|blocks| blocks.keys().copied()).collect();
    given.extend(declared.nodes.values().flat_map(|node| pod_cidrs(node)));
    for (pool, status) in pools(declared, PoolUse::PodCIDR) {
        let block = |first: IpAddr| {
            let mask = pool.spec.node_mask.as_ref()?;
            let length = match first {
                IpAddr::V4(_) => mask.ipv4?.get(),
                IpAddr::V6(_) => mask.ipv6?.get(),
            };
            IpNet::new(first, length).ok().map(|net| net.trunc())
        };
        for block in starts(status, |first| next(block(first)?.broadcast())).filter_map(block) {
            let overlaps = |net: &IpNet| net.contains(&block) || block.contains(net);
            if !given.iter().any(overlaps) {
                held.released.entry(block).or_insert_with(|| unknown(observed));
            }
        }
    }
}

fn pools(declared: &Declared, usage: PoolUse) -> impl Iterator<Item = (&AddressPool, &AddressPoolStatus)> {
    let statuses = declared.statuses.pools.iter();
    let pools = statuses.filter_map(|(name, status)| Some((&**declared.pools.get(name)?, &**status)));
    pools.filter(move |(pool, _)| pool.spec.usage == usage)
}

/// Where what is in use begins: in each range the first address, the `next` one, and so on.
fn starts(
    status: &AddressPoolStatus,
    next: impl Fn(IpAddr) -> Option<IpAddr>,
) -> impl Iterator<Item = IpAddr> {
    let mut ranges = status.in_use.iter().map(|range| (range.start.0, range.stop.0));
    let mut rest: Option<(IpAddr, IpAddr)> = None;
    let starts = iter::from_fn(move || {
        let (start, stop) = rest.or_else(|| ranges.next())?;
        rest = next(start).filter(|next| *next <= stop).map(|next| (next, stop));
        Some(start)
    });
    // Whoever may write statuses shall not make this endless.
    starts.take(MAX_STARTS)
}

/// The address after this one; none: it is the last of its family.
fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(v6) => v6.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

/// Whoever had it: nobody has it back before the time.
fn unknown(observed: &Observed) -> Released {
    Released { claim: "".into(), at: observed.now }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{desired::cluster, validate::parse_directory};
    use std::collections::BTreeMap;

    const POOLS: &str = "kind: AddressPool\nmetadata: {name: vips}\n\
        spec: {blocks: [{cidr: 192.0.2.0/29}], reuseDelaySeconds: 60}\n---\n\
        kind: AddressPool\nmetadata: {name: pods}\n\
        spec: {use: PodCIDR, blocks: [{cidr: 10.244.0.0/16}], nodeMask: {ipv4: 24}, reuseDelaySeconds: 60}\n";

    fn declared(balancers: &[&str], nodes: &[&str]) -> Declared {
        let mut text = POOLS.to_owned();
        for name in balancers {
            text += &format!(
                "---\nkind: LoadBalancer\nmetadata: {{name: {name}}}\n\
                 spec: {{ports: [{{port: 80}}], backends: [{{address: 10.0.0.1}}]}}\n"
            );
        }
        for name in nodes {
            text += &format!("---\nkind: Node\nmetadata: {{name: {name}}}\n");
        }
        parse_directory(&BTreeMap::from([("a.yaml".into(), text)])).unwrap()
    }

    /// What rests, as the pools say.
    fn rests(status: &crate::status::StatusSet) -> (Vec<String>, Vec<String>) {
        let addresses = status.pools["vips"].released.iter().map(|r| r.address.to_string());
        let blocks = status.pools["pods"].released_blocks.iter().map(|r| r.cidr.to_string());
        (addresses.collect(), blocks.collect())
    }

    #[test]
    fn what_went_while_nobody_led_rests() {
        let mut before = declared(&["a", "b", "c"], &["n1", "n2"]);
        for _ in 0..2 {
            before.statuses = cluster(&before, &Observed { now: 1_000, ..Observed::default() });
        }
        let ranges = |pool: &str| -> Vec<_> {
            before.statuses.pools[pool].in_use.iter().map(|r| format!("{} {}", r.start, r.stop)).collect()
        };
        assert_eq!(ranges("vips"), ["192.0.2.0 192.0.2.2"]);
        assert_eq!(ranges("pods"), ["10.244.0.0 10.244.1.255"]);

        // Their owners went, and their statuses with them; others have come.
        let mut now = declared(&["a", "c", "d"], &["n2", "n3"]);
        now.statuses = before.statuses.clone();
        now.statuses.load_balancers.remove("b");
        now.statuses.nodes.remove("n1");
        let goes_on = cluster(&now, &Observed { now: 2_000, ..Observed::default() });
        assert_eq!(rests(&goes_on), (vec![], vec![]), "who leads all the time has seen nothing go");
        let observed = Observed { now: 2_000, takes_over: true, ..Observed::default() };
        let taken_over = cluster(&now, &observed);
        assert_eq!(rests(&taken_over), (vec!["192.0.2.1".to_owned()], vec!["10.244.0.0/24".to_owned()]));
        assert_eq!(taken_over.load_balancers["d"].addresses[0].address.to_string(), "192.0.2.3");
        assert_eq!(taken_over.nodes["n3"].pod_cidrs[0].cidr.to_string(), "10.244.2.0/24");
        let starts = |pool: &str| -> Vec<_> {
            taken_over.pools[pool].in_use.iter().map(|range| range.start.to_string()).collect()
        };
        assert_eq!(starts("vips"), ["192.0.2.0", "192.0.2.2"], "that of d is not in effect yet");
        assert_eq!(starts("pods"), ["10.244.1.0"]);

        // From then on as ever: they rest until the delay is over.
        now.statuses = taken_over;
        let later = cluster(&now, &Observed { now: 2_030, ..Observed::default() });
        assert_eq!(rests(&later), rests(&now.statuses));
        let over = cluster(&now, &Observed { now: 2_061, takes_over: true, ..Observed::default() });
        assert_eq!(rests(&over), (vec![], vec![]));
    }

    #[test]
    fn a_status_that_somebody_made_up_is_harmless() {
        let mut declared = declared(&["a"], &[]);
        let range = |start: &str, stop: &str| AddressRange {
            start: start.parse().unwrap(),
            stop: stop.parse().unwrap(),
        };
        let in_use = vec![
            range("192.0.2.7", "192.0.2.0"),
            range("10.0.0.0", "::1"),
            range("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ];
        let status = AddressPoolStatus { in_use, ..AddressPoolStatus::default() };
        for pool in ["vips", "pods"] {
            declared.statuses.pools.insert(pool.to_owned(), status.clone().into());
        }
        let observed = Observed { now: 1, takes_over: true, ..Observed::default() };
        let status = cluster(&declared, &observed);
        assert_eq!(status.load_balancers["a"].addresses[0].address.to_string(), "192.0.2.0");
    }
}
