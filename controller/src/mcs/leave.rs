//! How the endpoints of a cluster leave that is out of reach for too long: one after the other, in an order that is the same
//! whoever looks. First an endpoint drains: its connections stay, and while nobody else serves it goes on.
use super::hash;
use crate::api::EndpointSlice;
use k8s_openapi::api::discovery::v1::EndpointConditions;
use std::{borrow::Cow, net::IpAddr};

/// All of a cluster's endpoints.
pub const PERMILLE: u16 = 1000;

/// How much of a cluster has left, in thousandths, when it was out of reach for `silent` seconds: nothing before `stale_after`,
/// everything after twice that.
pub fn leaving(silent: u64, stale_after: u32) -> u16 {
    let stale_after = u64::from(stale_after.max(1));
    let late = silent.saturating_sub(stale_after).min(stale_after);
    // At most 1000.
    (late * u64::from(PERMILLE) / stale_after) as u16
}

/// The slice, where the endpoints that have left drain.
pub(super) fn thinned(slice: &EndpointSlice, left: u16) -> Cow<'_, EndpointSlice> {
    let has_left = |address| rank(address) < left;
    if !slice.endpoints.iter().any(|endpoint| has_left(endpoint.address)) {
        return Cow::Borrowed(slice);
    }
    let mut thinned = slice.clone();
    for endpoint in thinned.endpoints.iter_mut().filter(|endpoint| has_left(endpoint.address)) {
        let conditions = endpoint.conditions.get_or_insert_default();
        let serving = conditions.serving.or(conditions.ready).unwrap_or(true);
        *conditions =
            EndpointConditions { ready: Some(false), serving: Some(serving), terminating: Some(true) };
    }
    Cow::Owned(thinned)
}

/// When it leaves, in thousandths of the way.
fn rank(address: IpAddr) -> u16 {
    let hash = match address {
        IpAddr::V4(v4) => hash(&[&v4.octets()]),
        IpAddr::V6(v6) => hash(&[&v6.octets()]),
    };
    // Below 1000. The high bits of FNV are the better ones.
    ((hash >> 20) % u64::from(PERMILLE)) as u16
}
