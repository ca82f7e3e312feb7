//! What has to be written so that the store has these statuses, in steps. Pure.
//!
//! The order makes a crash between any two writes harmless: an address is said to rest in its pool before its holder loses
//! it, and nobody is given an address before all who lose one have lost it.
use super::snapshot::{Assembly, Refused};
use crate::{
    api::{API_VERSION, Kind, LoadBalancerStatus},
    by_name::changed,
    status::{Conditions, StatusSet, Statuses},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// One after the other; the writes of one step in any order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Step {
    /// Pools say what rests.
    Pools,
    /// Addresses are taken away.
    Losses,
    /// Services are given theirs.
    Services,
    /// All the rest.
    Others,
}

impl Step {
    pub(in crate::store) const ALL: [Step; 4] = [Step::Pools, Step::Losses, Step::Services, Step::Others];
}

/// A write of the status of an object, to be refused if the object has changed since.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::store) struct Write {
    pub(in crate::store) kind: Kind,
    pub(in crate::store) name: String,
    /// Of the object as it was: see [`Seen`](super::snapshot::Seen).
    pub(in crate::store) version: String,
    /// The status as it was; null: none.
    pub(in crate::store) before: Value,
    /// The status as it is to be.
    pub(in crate::store) after: Value,
    /// What people may want to hear of.
    pub(in crate::store) news: Vec<News>,
}

impl Write {
    /// `KIND/NAME`.
    pub(in crate::store) fn object(&self) -> String {
        format!("{}/{}", self.kind, self.name)
    }
}

/// How the status of a Service stands in a store.
pub(in crate::store) type ServiceForm = Form<LoadBalancerStatus>;

/// How a status stands in a store.
pub(in crate::store) struct Form<T> {
    /// What is written.
    pub(in crate::store) written: fn(&T) -> Value,
    /// Whether the same is written for both. It may say no where only what is written can tell: to make that of all
    /// statuses would be most of what a pass costs.
    pub(in crate::store) is_same: fn(&T, &T) -> bool,
}

impl<T: Serialize + PartialEq> Form<T> {
    /// As it is.
    pub(in crate::store) const PLAIN: Self = Form { written: |status| json!(status), is_same: T::eq };
}

/// A condition that has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) struct News {
    /// Whether something is wrong.
    pub(in crate::store) is_warning: bool,
    /// One CamelCase word.
    pub(in crate::store) reason: String,
    /// A sentence.
    pub(in crate::store) message: String,
}

/// A set of statuses that needed no write, and what the store had then: only what is another one since may need some.
#[derive(Debug, Default)]
pub(in crate::store) struct Settled {
    pub(in crate::store) before: StatusSet,
    pub(in crate::store) after: StatusSet,
}

/// What has to be written.
pub(in crate::store) struct Plan {
    pub(in crate::store) writes: Vec<Write>,
    /// Whether nothing was left out because the store does not have the object.
    pub(in crate::store) is_whole: bool,
}

/// The writes of a step, given what the store has by now. Objects that it does not have are left out. `now`: seconds
/// since the epoch.
pub(in crate::store) fn plan(
    step: Step,
    assembly: &Assembly,
    settled: &Settled,
    after: &StatusSet,
    now: u64,
    service: &ServiceForm,
) -> Plan {
    let before = assembly.statuses();
    let mut writes = Writes { assembly, settled, before, after, writes: Vec::new(), is_whole: true };
    match step {
        Step::Pools => writes.compare(Kind::AddressPool, |set| &set.pools, &Form::PLAIN),
        Step::Losses => {
            writes.losses(Kind::LoadBalancer, |set| &set.load_balancers, &Form::PLAIN);
            writes.losses(Kind::Service, |set| &set.services, service);
        }
        Step::Services => {
            writes.compare(Kind::LoadBalancer, |set| &set.load_balancers, &Form::PLAIN);
            writes.compare(Kind::Service, |set| &set.services, service);
        }
        Step::Others => {
            writes.compare(Kind::Node, |set| &set.nodes, &Form::PLAIN);
            writes.compare(Kind::ServicePolicy, |set| &set.policies, &Form::PLAIN);
            writes.compare(Kind::BGPRouter, |set| &set.routers, &Form::PLAIN);
            writes.compare(Kind::BGPPeer, |set| &set.peers, &Form::PLAIN);
            writes.compare(Kind::BGPAdvertisement, |set| &set.advertisements, &Form::PLAIN);
            writes.compare(Kind::PacketFilter, |set| &set.packet_filters, &Form::PLAIN);
            assembly.refused().for_each(|refused| writes.refuse(refused, now));
        }
    }
    let Writes { writes, is_whole, .. } = writes;
    Plan { writes, is_whole }
}

struct Writes<'a> {
    assembly: &'a Assembly,
    settled: &'a Settled,
    before: &'a StatusSet,
    after: &'a StatusSet,
    writes: Vec<Write>,
    is_whole: bool,
}

/// The statuses of a kind in a set.
type Of<T> = fn(&StatusSet) -> &Statuses<T>;

impl<'a> Writes<'a> {
    /// The names of objects that may need a write, each with its status as it is to be, and as it is.
    fn open<T: PartialEq + 'a>(
        &self,
        of: Of<T>,
    ) -> impl Iterator<Item = (&'a str, &'a Arc<T>, Option<&'a Arc<T>>)> + use<'a, T> {
        let (before, after) = (of(self.before), of(self.after));
        let names = changed((of(&self.settled.before), before), (of(&self.settled.after), after));
        names.into_iter().filter_map(|name| Some((name, after.get(name)?, before.get(name))))
    }

    fn compare<T: PartialEq + 'a>(&mut self, kind: Kind, of: Of<T>, form: &Form<T>) {
        for (name, after, before) in self.open(of) {
            if before.is_none_or(|before| !Arc::ptr_eq(before, after) && !(form.is_same)(before, after)) {
                let before = before.map_or(Value::Null, |before| (form.written)(before));
                self.write(kind, name, before, (form.written)(after));
            }
        }
    }

    /// Those that lose an address, with what they keep.
    fn losses(&mut self, kind: Kind, of: Of<LoadBalancerStatus>, form: &ServiceForm) {
        for (name, after, before) in self.open(of) {
            let Some(before) = before.filter(|before| !Arc::ptr_eq(before, after)) else { continue };
            let has =
                |status: &LoadBalancerStatus, address| status.addresses.iter().any(|a| a.address == address);
            if before.addresses.iter().all(|held| has(after, held.address)) {
                continue;
            }
            let mut reduced = (**after).clone();
            reduced.addresses.retain(|given| has(before, given.address));
            self.write(kind, name, (form.written)(before), (form.written)(&reduced));
        }
    }

    /// What cannot be read has no status but this.
    fn refuse(&mut self, Refused { kind, name, fault, status: before }: Refused, now: u64) {
        if kind.api_version() != API_VERSION {
            return;
        }
        let known: Vec<Condition> = before
            .get("conditions")
            .and_then(|known| serde_json::from_value(known.clone()).ok())
            .unwrap_or_default();
        let mut conditions = Conditions::new(&known, None, now);
        conditions.set("Accepted", false, "Invalid", fault.to_string());
        let mut after = before.clone();
        match &mut after {
            Value::Object(after) => drop(after.insert("conditions".to_owned(), json!(conditions.finish()))),
            _ => after = json!({"conditions": conditions.finish()}),
        }
        self.write(kind, &name, before, after);
    }

    fn write(&mut self, kind: Kind, name: &str, before: Value, after: Value) {
        let Some(version) = self.assembly.version(kind, name) else {
            self.is_whole = false;
            return;
        };
        if before == after {
            return;
        }
        let (name, version, news) = (name.to_owned(), version.to_owned(), news(&before, &after));
        self.writes.push(Write { kind, name, version, before, after, news });
    }
}

/// Conditions that have come to another verdict or reason. That all is well from the beginning is no news, but for an
/// address that was given.
fn news(before: &Value, after: &Value) -> Vec<News> {
    let conditions = |status: &Value| -> Vec<Condition> {
        let conditions = status.get("conditions");
        conditions.and_then(|all| serde_json::from_value(all.clone()).ok()).unwrap_or_default()
    };
    let known = conditions(before);
    let is_news = |condition: &Condition| match known.iter().find(|known| known.type_ == condition.type_) {
        Some(known) => (&known.status, &known.reason) != (&condition.status, &condition.reason),
        None => condition.status == "False" || condition.type_ == "AddressAssigned",
    };
    let of = |condition: Condition| News {
        is_warning: condition.status == "False",
        reason: condition.reason,
        message: condition.message,
    };
    conditions(after).into_iter().filter(|c| is_news(c) && c.status != "Unknown").map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::snapshot::tests::assembly, *};
    use crate::api::load_balancer::AssignedAddress;
    use std::collections::BTreeMap;

    fn status(addresses: &[&str]) -> Arc<LoadBalancerStatus> {
        let address = |text: &&str| AssignedAddress {
            address: text.parse().unwrap(),
            pool: Some("vips".to_owned()),
            assigned_at: crate::status::time(1),
        };
        Arc::new(LoadBalancerStatus {
            addresses: addresses.iter().map(address).collect(),
            ..Default::default()
        })
    }

    fn set(statuses: &[(&str, &[&str])]) -> StatusSet {
        let load_balancers = statuses.iter().map(|(name, addresses)| ((*name).to_owned(), status(addresses)));
        StatusSet { load_balancers: load_balancers.collect(), ..Default::default() }
    }

    /// LoadBalancers with these addresses, as the API server has them.
    fn known(statuses: &[(&str, &[&str])]) -> Assembly {
        let object = |(name, addresses): &(&str, &[&str])| {
            let status = json!(*status(addresses));
            json!({"kind": "LoadBalancer", "metadata": {"name": name, "resourceVersion": "7"}, "status": status,
                "spec": {"ports": [{"port": 80}], "backends": [{"address": "10.0.0.1"}]}})
        };
        assembly(statuses.iter().map(object))
    }

    fn writes(step: Step, assembly: &Assembly, after: &StatusSet) -> Vec<Write> {
        plan(step, assembly, &Settled::default(), after, 5, &Form::PLAIN).writes
    }

    /// Which addresses the objects are given in a step.
    fn given(step: Step, assembly: &Assembly, after: &StatusSet) -> BTreeMap<String, Vec<String>> {
        let addresses = |write: &Write| {
            let all = write.after["addresses"].as_array().cloned().unwrap_or_default();
            all.iter().map(|a| a["address"].as_str().unwrap().to_owned()).collect()
        };
        writes(step, assembly, after).iter().map(|write| (write.name.clone(), addresses(write))).collect()
    }

    #[test]
    fn what_is_the_same_is_not_written() {
        let statuses: [(&str, &[&str]); 2] = [("a", &["192.0.2.1"]), ("b", &[])];
        let known = known(&statuses);
        for step in Step::ALL {
            assert_eq!(writes(step, &known, &set(&statuses)), []);
        }
        let gone = set(&[("gone", &["192.0.2.1"])]);
        let plan = plan(Step::Services, &known, &Settled::default(), &gone, 0, &Form::PLAIN);
        assert_eq!((plan.writes, plan.is_whole), (vec![], false), "there may be such an object some time");
    }

    #[test]
    fn an_address_is_lost_before_it_is_given() {
        let known = known(&[("a", &["192.0.2.1", "192.0.2.3"]), ("b", &["192.0.2.2"])]);
        let after = set(&[("a", &["192.0.2.2", "192.0.2.3"]), ("b", &["192.0.2.1"])]);
        let lost = given(Step::Losses, &known, &after);
        assert_eq!(lost["a"], ["192.0.2.3"]);
        assert_eq!(lost["b"], [""; 0]);
        assert_eq!(given(Step::Services, &known, &after)["b"], ["192.0.2.1"]);
    }

    #[test]
    fn a_write_is_for_one_version() {
        let writes = writes(Step::Services, &known(&[("a", &[])]), &set(&[("a", &["192.0.2.1"])]));
        assert_eq!(writes[0].version, "7");
    }

    #[test]
    fn news_are_what_people_want_to_hear() {
        let condition = |type_: &str, status: &str, reason: &str| {
            json!({"type": type_, "status": status, "reason": reason, "message": "m",
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        let reasons = |before: &Value, after: &Value| -> Vec<_> {
            news(before, after).into_iter().map(|news| (news.reason, news.is_warning)).collect()
        };
        let good = json!({"conditions": [condition("Accepted", "True", "Valid"), condition("AddressAssigned", "True", "Assigned")]});
        let bad = json!({"conditions": [condition("Accepted", "True", "Valid"), condition("AddressAssigned", "False", "PoolExhausted")]});
        assert_eq!(reasons(&Value::Null, &good), [("Assigned".to_owned(), false)]);
        assert_eq!(reasons(&good, &good), []);
        assert_eq!(reasons(&good, &bad), [("PoolExhausted".to_owned(), true)]);
        assert_eq!(reasons(&bad, &good), [("Assigned".to_owned(), false)]);
    }

    #[test]
    fn what_is_refused_says_so() {
        let bad = json!({"kind": "LoadBalancer", "metadata": {"name": "a", "resourceVersion": "7"},
            "status": {"backends": 3, "healthyBackends": 0}, "spec": {"ports": [{"port": 0}], "backends": []}});
        let writes = writes(Step::Others, &assembly([bad]), &StatusSet::default());
        let condition = &writes[0].after["conditions"][0];
        assert_eq!((&condition["type"], &condition["status"]), (&json!("Accepted"), &json!("False")));
        assert!(condition["message"].as_str().unwrap().contains("spec.ports[0].port"), "{condition}");
        assert_eq!(writes[0].after["backends"], 3, "the rest stays");
    }
}
