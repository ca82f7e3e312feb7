//! What a node tells the controller of the objects: how each stands here, in digits, and in words what is wrong.
use super::pages::{Key, Pages, Sight, Standing};
use crate::{
    api::{
        Kind, LoadBalancerStatus,
        node_state::{AdvertisementState, NodeStateStatus, ObjectFault, ServiceCounts},
    },
    declared::Declared,
    fault::Fault,
    status::{StatusSet, Statuses},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use std::collections::BTreeMap;

/// Faults and advertisements that are told of at most.
const MOST: usize = 100;
/// The condition of a peer that the key of its sessions can be used, and the field whose faults say that it cannot.
pub(super) const KEY_USABLE: &str = "KeyUsable";
const KEY_FIELD: &str = "spec.auth.md5SecretRef";
/// Characters of a message at most.
const LONGEST: usize = 256;

/// What is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    services: ServiceCounts,
    advertisements: Vec<AdvertisementState>,
    faults: Vec<ObjectFault>,
    pages: Vec<String>,
}

impl Report {
    /// Of what was declared and the statuses that this node came to. `faults`: of objects of which the newest version is not in
    /// force here.
    pub fn new(declared: &Declared, status: &StatusSet, faults: &[Fault]) -> Self {
        let mut standings: BTreeMap<Key<'_>, Standing> = BTreeMap::new();
        let mut report = Report::default();
        let mut wrong = Vec::new();
        for (kind, statuses) in
            [(Kind::LoadBalancer, &status.load_balancers), (Kind::Service, &status.services)]
        {
            report.count(kind, statuses, &mut standings, &mut wrong);
        }
        // First what there is few of.
        let mut others = Vec::new();
        let mut add = |kind: Kind, name: &'_ str, conditions: &[Condition]| {
            let programmed = of_type(conditions, "Programmed");
            let health = match programmed.is_none_or(|said| said.reason == "NodeNotSelected") {
                true => Sight::Nothing,
                false => Sight::Unknown,
            };
            if let Some(said) = programmed.filter(|said| said.status == "False" && health == Sight::Unknown) {
                others.push(fault(kind, name, said));
            }
            Standing { health, is_programmed: holds(programmed), is_announced: false }
        };
        for (name, status) in &status.routers {
            standings.insert((Kind::BGPRouter, name), add(Kind::BGPRouter, name, &status.conditions));
        }
        for (name, status) in &status.packet_filters {
            standings.insert((Kind::PacketFilter, name), add(Kind::PacketFilter, name, &status.conditions));
        }
        let refused = faults.iter().filter_map(|fault| {
            let is_key = fault.field.as_deref() == Some(KEY_FIELD);
            let (condition, reason) =
                if is_key { (KEY_USABLE, "KeyUnusable") } else { ("Accepted", "Invalid") };
            Some(ObjectFault {
                object: cut(fault.object.as_ref()?),
                condition: condition.to_owned(),
                reason: reason.to_owned(),
                message: cut(&match &fault.field {
                    Some(field) => format!("{field}: {}", fault.reason),
                    None => fault.reason.clone(),
                }),
            })
        });
        report.faults = refused.chain(others).chain(wrong).take(MOST).collect();
        let advertisements = status.advertisements.iter();
        let telling =
            advertisements.filter(|(_, status)| status.announced_routes + status.withheld_routes > 0);
        let state = |(name, status): (&String, &std::sync::Arc<crate::api::BGPAdvertisementStatus>)| {
            AdvertisementState {
                name: name.clone(),
                announced_routes: status.announced_routes,
                withheld_routes: status.withheld_routes,
            }
        };
        report.advertisements = telling.map(state).take(MOST).collect();
        report.pages = Pages::new(declared, faults).written(&standings);
        report
    }

    /// Puts it into a NodeState.
    pub fn tell(self, state: &mut NodeStateStatus) {
        let Report { services, advertisements, faults, pages } = self;
        (state.services, state.advertisements) = (services, advertisements);
        (state.faults, state.pages) = (faults, pages);
    }

    fn count<'a>(
        &mut self,
        kind: Kind,
        statuses: &'a Statuses<LoadBalancerStatus>,
        standings: &mut BTreeMap<Key<'a>, Standing>,
        wrong: &mut Vec<ObjectFault>,
    ) {
        for (name, status) in statuses {
            let find = |type_| of_type(&status.conditions, type_);
            let (programmed, announced, healthy) = (find("Programmed"), find("Announced"), find("Healthy"));
            let health = match healthy.map(|said| (said.status.as_str(), said.reason.as_str())) {
                Some(("True", _)) => Sight::Healthy,
                Some(("False", "NoBackends")) => Sight::Nothing,
                Some(("False", _)) => Sight::Unhealthy,
                _ => Sight::Unknown,
            };
            let standing =
                Standing { health, is_programmed: holds(programmed), is_announced: holds(announced) };
            self.services.declared += 1;
            self.services.programmed += i64::from(standing.is_programmed);
            self.services.announced += i64::from(standing.is_announced);
            self.services.healthy += i64::from(health == Sight::Healthy);
            // Of several that do not hold the first is the cause of the others.
            let cause =
                [programmed, healthy, announced].into_iter().flatten().find(|said| said.status == "False");
            if let Some(said) = cause.filter(|_| wrong.len() < MOST) {
                wrong.push(fault(kind, name, said));
            }
            standings.insert((kind, name), standing);
        }
    }
}

fn of_type<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

fn holds(condition: Option<&Condition>) -> bool {
    condition.is_some_and(|condition| condition.status == "True")
}

fn fault(kind: Kind, name: &str, said: &Condition) -> ObjectFault {
    ObjectFault {
        object: format!("{kind}/{name}"),
        condition: said.type_.clone(),
        reason: said.reason.clone(),
        message: cut(&said.message),
    }
}

/// The begin of a text.
fn cut(text: &str) -> String {
    text.chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{desired::desired, observed::Observed, validate::parse_directory};

    #[test]
    fn a_node_tells_what_is_wrong_and_how_much_is_right() {
        let text = "kind: LoadBalancer\nmetadata: {name: web}\nspec: {addresses: [192.0.2.1], ports: [{port: 80}], \
                    backends: [{address: 10.0.0.1}]}\n---\n\
                    kind: PacketFilter\nmetadata: {name: other}\nspec: {nodeSelector: {matchLabels: {a: b}}, \
                    rules: [{name: a, action: Drop, protocol: UDP}]}\n";
        let declared = parse_directory(&BTreeMap::from([("a.yaml".into(), text.to_owned())])).unwrap();
        let status = desired(&declared, &Observed::default()).status;
        let faults = [Fault::object("BGPPeer/tor", Some(KEY_FIELD.to_owned()), "x".repeat(1000))];
        let report = Report::new(&declared, &status, &faults);
        let said: Vec<_> = report.faults.iter().map(|f| (f.object.as_str(), f.reason.as_str())).collect();
        assert_eq!(said, [("BGPPeer/tor", "KeyUnusable"), ("LoadBalancer/web", "NoAddress")]);
        assert_eq!(report.faults[0].message.chars().count(), LONGEST);
        assert_eq!(report.services, ServiceCounts { declared: 1, healthy: 1, ..ServiceCounts::default() });
        let pages = Pages::new(&declared, &faults);
        let standing = |object: Key<'_>| {
            let (page, at) = pages.find(object).unwrap();
            Standing::of(pages.read(page, &report.pages).unwrap()[at])
        };
        assert_eq!(standing((Kind::LoadBalancer, "web")).health, Sight::Healthy);
        assert_eq!(standing((Kind::PacketFilter, "other")).health, Sight::Nothing);
    }
}
