//! What became of the declared objects, as one value: published to a store and given back by it.
use crate::{
    api::{
        AddressPoolStatus, BGPAdvertisementStatus, BGPPeerStatus, BGPRouterStatus, ClusterLinkStatus,
        LoadBalancerStatus, PacketFilterStatus, ServicePolicyStatus, node::NodeStatus,
    },
    by_name::ByName,
};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// The statuses of the objects of one kind by name. What has not changed is shared with the set before.
pub type Statuses<T> = ByName<T>;

/// The statuses of all objects, by kind and name. JSON keys are camelCase and stable: it is also a file format.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StatusSet {
    /// Of address pools.
    pub pools: Statuses<AddressPoolStatus>,
    /// Of LoadBalancers.
    pub load_balancers: Statuses<LoadBalancerStatus>,
    /// Of Kubernetes' Services of our class, by `NAMESPACE/NAME`.
    pub services: Statuses<LoadBalancerStatus>,
    /// Of service policies.
    pub policies: Statuses<ServicePolicyStatus>,
    /// Of BGP speakers.
    pub routers: Statuses<BGPRouterStatus>,
    /// Of BGP neighbours.
    pub peers: Statuses<BGPPeerStatus>,
    /// Of advertisements.
    pub advertisements: Statuses<BGPAdvertisementStatus>,
    /// Of nodes, about their pod CIDRs.
    pub nodes: Statuses<NodeStatus>,
    /// Of packet filters.
    pub packet_filters: Statuses<PacketFilterStatus>,
    /// Of links to other clusters.
    pub cluster_links: Statuses<ClusterLinkStatus>,
}

impl StatusSet {
    /// Whether they are the very same. If not, they may be equal all the same.
    pub fn is_same(&self, other: &StatusSet) -> bool {
        let StatusSet { pools, load_balancers, services, policies, routers, .. } = self;
        let StatusSet { peers, advertisements, nodes, packet_filters, cluster_links, .. } = self;
        pools.is_same(&other.pools)
            && load_balancers.is_same(&other.load_balancers)
            && services.is_same(&other.services)
            && policies.is_same(&other.policies)
            && routers.is_same(&other.routers)
            && peers.is_same(&other.peers)
            && advertisements.is_same(&other.advertisements)
            && nodes.is_same(&other.nodes)
            && packet_filters.is_same(&other.packet_filters)
            && cluster_links.is_same(&other.cluster_links)
    }
}

/// The status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// It is not known yet.
    Unknown,
}

impl Verdict {
    /// As Kubernetes writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Verdict::True => "True",
            Verdict::False => "False",
            Verdict::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Verdict {
    fn from(holds: bool) -> Self {
        if holds { Verdict::True } else { Verdict::False }
    }
}

/// Builds the conditions of an object. The time of transition is kept from the conditions before for as long
/// as the status is the same, so that an unchanged object has an unchanged status.
pub struct Conditions<'a> {
    before: &'a [Condition],
    generation: Option<i64>,
    now: u64,
    /// Sorted by type.
    said: Vec<Said>,
}

/// What a condition says.
struct Said {
    type_: &'static str,
    status: &'static str,
    reason: &'static str,
    message: Cow<'static, str>,
}

impl<'a> Conditions<'a> {
    /// Conditions of an object of this generation that had the conditions `before`; `now` is in seconds since
    /// the epoch.
    pub fn new(before: &'a [Condition], generation: Option<i64>, now: u64) -> Self {
        Conditions { before, generation, now, said: Vec::with_capacity(5) }
    }

    /// Says, once for each condition, whether it holds, why in one CamelCase word, and in a sentence.
    pub fn set(
        &mut self,
        condition: &'static str,
        verdict: impl Into<Verdict>,
        reason: &'static str,
        message: impl Into<Cow<'static, str>>,
    ) {
        let status = verdict.into().as_str();
        let at = self.said.partition_point(|said| said.type_ < condition);
        self.said.insert(at, Said { type_: condition, status, reason, message: message.into() });
    }

    /// Whether they are those before.
    pub fn are_unchanged(&self) -> bool {
        let same = |(said, before): (&Said, &Condition)| {
            said.type_ == before.type_
                && said.status == before.status
                && said.reason == before.reason
                && said.message == before.message
                && self.generation == before.observed_generation
        };
        self.said.len() == self.before.len() && self.said.iter().zip(self.before).all(same)
    }

    /// The conditions, sorted by type.
    pub fn finish(self) -> Vec<Condition> {
        let condition = |said: Said| {
            let last = self.before.iter().find(|b| b.type_ == said.type_ && b.status == said.status);
            Condition {
                last_transition_time: last
                    .map_or_else(|| time(self.now), |last| last.last_transition_time.clone()),
                type_: said.type_.into(),
                status: said.status.into(),
                reason: said.reason.into(),
                message: said.message.into_owned(),
                observed_generation: self.generation,
            }
        };
        self.said.into_iter().map(condition).collect()
    }
}

/// A time of so many seconds since the epoch. Statuses know whole seconds only, as Kubernetes writes them.
pub fn time(seconds: u64) -> Time {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    Time(Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX))
}

/// Seconds since the epoch; 0 for a time before it.
pub fn seconds(time: &Time) -> u64 {
    u64::try_from(time.0.as_second()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn ready(before: &[Condition], holds: bool, message: &str, now: u64) -> Vec<Condition> {
        let mut conditions = Conditions::new(before, Some(1), now);
        conditions.set("Ready", holds, "Tested", message.to_owned());
        conditions.finish()
    }

    #[test]
    fn a_transition_is_a_change_of_status() {
        let first = ready(&[], true, "one", 1_000);
        assert_eq!(seconds(&first[0].last_transition_time), 1_000);
        assert_eq!(ready(&first, true, "one", 2_000), first, "unchanged");
        let second = ready(&first, true, "two", 2_000);
        assert_eq!((second[0].message.as_str(), seconds(&second[0].last_transition_time)), ("two", 1_000));
        let third = ready(&second, false, "two", 3_000);
        assert_eq!(seconds(&third[0].last_transition_time), 3_000);
    }

    #[test]
    fn comes_back_as_written() {
        let status = AddressPoolStatus { conditions: ready(&[], true, "one", 1_000), ..Default::default() };
        let set =
            StatusSet { pools: ByName::from([("vips".to_owned(), Arc::new(status))]), ..Default::default() };
        let text = serde_json::to_string(&set).unwrap();
        assert_eq!(serde_json::from_str::<StatusSet>(&text).unwrap(), set);
    }

    #[test]
    fn times_out_of_range_are_cut_off() {
        assert_eq!(seconds(&time(u64::MAX)), seconds(&Time(Timestamp::MAX)));
    }
}
