//! Which clients a service lets in, as entries of the map `ranges`, where the longest prefix decides.
use super::{State, plan::PlanError};
use crate::{maps::Op, service::Rules};
use ipnet::{IpNet, Ipv4Net};
use lb_bpf_common::{Addr, RangeKey};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

/// Bits of a key in front of the address: the service.
const SERVICE_BITS: u32 = 32;
/// Bits in front of an IPv4 address that say that it is one.
const V4_BITS: u32 = 96;

/// The entries of a service: none if it lets everybody in; else those that are named, and one for all other addresses of
/// each family. A family of which nobody is allowed by name lets all in that are not denied.
pub(super) fn compile(id: u32, rules: &Rules) -> BTreeMap<RangeKey, bool> {
    let mut ranges = BTreeMap::new();
    let allowed = rules.allow.iter().map(|net| (canonical(net), false));
    let denied = rules.deny.iter().map(|net| (canonical(net), true));
    let nets: BTreeMap<IpNet, bool> = allowed.clone().chain(denied).collect();
    if nets.is_empty() {
        return ranges;
    }
    // In this order every net comes right before those inside it.
    let mut outer: Option<IpNet> = None;
    for (net, is_denied) in nets {
        if !outer.is_some_and(|outer| outer.contains(&net)) {
            outer = is_denied.then_some(net);
        }
        ranges.insert(key(id, &net), outer.is_none());
    }
    let allows = |v4: bool| allowed.clone().any(|(net, _)| matches!(net, IpNet::V4(_)) == v4);
    let all_v4 = IpAddr::from(Ipv4Addr::UNSPECIFIED).into();
    for (bits, addr, v4) in [(0, Addr::NONE, false), (V4_BITS, all_v4, true)] {
        let key = RangeKey { bits: SERVICE_BITS + bits, service: id, addr };
        ranges.entry(key).or_insert(!allows(v4));
    }
    ranges
}

/// The prefix without bits that do not count, and as an IPv4 prefix if it names IPv4 addresses: no IPv6 packet has those.
fn canonical(net: &IpNet) -> IpNet {
    let net = net.trunc();
    match (net, net.addr().to_canonical()) {
        (IpNet::V6(mapped), IpAddr::V4(v4)) if u32::from(mapped.prefix_len()) >= V4_BITS => {
            Ipv4Net::new(v4, mapped.prefix_len() - V4_BITS as u8).map_or(net, IpNet::V4)
        }
        _ => net,
    }
}

fn key(id: u32, net: &IpNet) -> RangeKey {
    let family = if matches!(net, IpNet::V4(_)) { V4_BITS } else { 0 };
    let bits = SERVICE_BITS + family + u32::from(net.prefix_len());
    RangeKey { bits, service: id, addr: net.network().into() }
}

impl State {
    /// Plans to add and change entries of a service, long prefixes first: then every client finds at any time what
    /// held before or what shall hold.
    pub(super) fn add_sources(
        &mut self,
        id: u32,
        wanted: &BTreeMap<RangeKey, bool>,
        ops: &mut Vec<Op>,
    ) -> Result<(), PlanError> {
        let held = self.sources.get(&id);
        let value = |key: &RangeKey| held.and_then(|held| held.get(key));
        let new = wanted.keys().filter(|key| value(key).is_none()).count();
        let available = self.room_for_ranges.saturating_sub(self.ranges_used);
        if new > available {
            let (needed, available) = (new as u32, available as u32);
            return Err(PlanError::Full { map: "ranges", needed, available });
        }
        let changed = wanted.iter().rev().filter(|(key, is_let_in)| value(key) != Some(*is_let_in));
        for op in changed.map(|(key, is_let_in)| Op::SetRange(*key, *is_let_in)).collect::<Vec<_>>() {
            self.push(op, ops);
        }
        Ok(())
    }

    /// Plans to remove the entries of a service that are not wanted, short prefixes first for the same reason.
    pub(super) fn remove_sources(&mut self, id: u32, wanted: &BTreeMap<RangeKey, bool>, ops: &mut Vec<Op>) {
        let held = self.sources.get(&id).into_iter().flat_map(BTreeMap::keys);
        for key in held.filter(|key| !wanted.contains_key(key)).copied().collect::<Vec<_>>() {
            self.push(Op::RemoveRange(key), ops);
        }
    }
}
