//! What became of the declared objects, as one value: published to a store and given back by it.
use crate::api::{
    AddressPoolStatus, BGPAdvertisementStatus, BGPPeerStatus, BGPRouterStatus, LoadBalancerStatus,
};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The statuses of all objects, by kind and name. JSON keys are camelCase and stable: it is also a file format.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StatusSet {
    /// Of address pools.
    pub pools: BTreeMap<String, AddressPoolStatus>,
    /// Of services.
    pub load_balancers: BTreeMap<String, LoadBalancerStatus>,
    /// Of BGP speakers.
    pub routers: BTreeMap<String, BGPRouterStatus>,
    /// Of BGP neighbours.
    pub peers: BTreeMap<String, BGPPeerStatus>,
    /// Of advertisements.
    pub advertisements: BTreeMap<String, BGPAdvertisementStatus>,
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
    conditions: Vec<Condition>,
}

impl<'a> Conditions<'a> {
    /// Conditions of an object of this generation that had the conditions `before`; `now` is in seconds since
    /// the epoch.
    pub fn new(before: &'a [Condition], generation: Option<i64>, now: u64) -> Self {
        Conditions { before, generation, now, conditions: Vec::with_capacity(5) }
    }

    /// Says, once for each condition, whether it holds, why in one CamelCase word, and in a sentence.
    pub fn set(
        &mut self,
        condition: &'static str,
        verdict: impl Into<Verdict>,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) {
        let status = verdict.into().as_str();
        let last = self.before.iter().find(|before| before.type_ == condition && before.status == status);
        let last_transition_time =
            last.map_or_else(|| time(self.now), |last| last.last_transition_time.clone());
        self.conditions.push(Condition {
            type_: condition.into(),
            status: status.into(),
            reason: reason.into(),
            message: message.into(),
            observed_generation: self.generation,
            last_transition_time,
        });
    }

    /// The conditions, sorted by type.
    pub fn finish(mut self) -> Vec<Condition> {
        self.conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        self.conditions
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

    fn ready(before: &[Condition], holds: bool, message: &str, now: u64) -> Vec<Condition> {
        let mut conditions = Conditions::new(before, Some(1), now);
        conditions.set("Ready", holds, "Tested", message);
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
        let set = StatusSet { pools: BTreeMap::from([("vips".to_owned(), status)]), ..Default::default() };
        let text = serde_json::to_string(&set).unwrap();
        assert_eq!(serde_json::from_str::<StatusSet>(&text).unwrap(), set);
    }

    #[test]
    fn times_out_of_range_are_cut_off() {
        assert_eq!(seconds(&time(u64::MAX)), seconds(&Time(Timestamp::MAX)));
    }
}
