//! Writes as an API server takes them. Pure.
use crate::{
    api::{
        Kind,
        node::{NodeStatus, pod_cidrs},
    },
    store::objects::plan::Write,
};
use k8s_openapi::api::core::v1::Node;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Annotation of a Node with our status of it: which blocks its pods have. The first of each family go into
/// `spec.podCIDRs` by the same write, which Kubernetes takes once.
pub(super) const POD_CIDRS: &str = "fairlead.dev/pod-cidrs";

/// A merge patch (RFC 7386), of a Service a strategic one, of the status of an object; of a Node, of the object. It is refused
/// if the object has changed since. `node`: the Node, if it is one.
pub(super) fn patch(write: &Write, node: Option<&Node>) -> Value {
    let Write { kind, version, before, after, .. } = write;
    match kind {
        Kind::Node => {
            let annotations = json!({POD_CIDRS: after.to_string()});
            let mut patch = json!({"metadata": {"resourceVersion": version, "annotations": annotations}});
            let first = NodeStatus::deserialize(after).unwrap_or_default().first_of_each_family();
            if node.is_some_and(|node| pod_cidrs(node).is_empty()) && !first.is_empty() {
                patch["spec"] = json!({"podCIDR": first[0], "podCIDRs": first});
            }
            patch
        }
        _ => {
            let metadata = json!({"resourceVersion": version});
            let mut status = merge_patch(before, after).unwrap_or_default();
            if let Some(conditions) = status.get_mut("conditions").filter(|_| *kind == Kind::Service) {
                *conditions = by_type(before, after);
            }
            json!({"metadata": metadata, "status": status})
        }
    }
}

/// The merge patch (RFC 7386) that makes one value of another; none: they are the same.
pub(super) fn merge_patch(before: &Value, after: &Value) -> Option<Value> {
    let (Value::Object(before), Value::Object(after)) = (before, after) else {
        return (before != after).then(|| after.clone());
    };
    let gone = before.keys().filter(|key| !after.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let changed = after.iter().filter_map(|(key, after)| {
        let patch = merge_patch(before.get(key).unwrap_or(&Value::Null), after)?;
        Some((key.clone(), patch))
    });
    let patch: Map<_, _> = gone.chain(changed).collect();
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// The strategic merge patch of conditions: those that have changed, and that others of ours are gone. What is not named
/// stays.
fn by_type(before: &Value, after: &Value) -> Value {
    let list = |status: &Value| status["conditions"].as_array().cloned().unwrap_or_default();
    let (before, after) = (list(before), list(after));
    let is_gone = |known: &&Value| after.iter().all(|condition| condition["type"] != known["type"]);
    let gone = before.iter().filter(is_gone).map(|gone| json!({"$patch": "delete", "type": gone["type"]}));
    let changed = after.iter().filter(|condition| !before.contains(condition));
    changed.cloned().chain(gone).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::publish::ApiServer, *};
    use crate::{
        api::{LoadBalancerStatus, load_balancer::AssignedAddress},
        status::{Conditions, StatusSet, Statuses},
        store::objects::{
            plan::{Settled, Step, plan},
            publish::Target,
            snapshot::tests::assembly,
        },
    };
    use std::sync::Arc;

    #[test]
    fn patches_make_one_of_the_other() {
        let values = [
            json!({}),
            json!({"a": 1, "b": {"c": [1, 2], "d": "x"}}),
            json!({"a": 1, "b": {"c": [1], "e": true}}),
            json!({"b": 5}),
        ];
        for (before, after) in values.iter().flat_map(|b| values.iter().map(move |a| (b, a))) {
            let mut patched = before.clone();
            if let Some(patch) = merge_patch(before, after) {
                apply(&mut patched, &patch);
            }
            assert_eq!(patched, *after);
            assert_eq!(merge_patch(before, after).is_none(), before == after);
        }
    }

    #[test]
    fn of_a_service_only_our_conditions_are_written() {
        let address = AssignedAddress {
            address: "192.0.2.1".parse().unwrap(),
            pool: None,
            assigned_at: crate::status::time(1),
        };
        let status = |types: &[&str]| {
            let mut conditions = Conditions::new(&[], None, 1);
            for type_ in ["Accepted", "Announced", "Healthy"].into_iter().filter(|t| types.contains(t)) {
                conditions.set(type_, true, "Tested", "");
            }
            LoadBalancerStatus {
                conditions: conditions.finish(),
                addresses: vec![address.clone()],
                ..Default::default()
            }
        };
        let known = (ApiServer::SERVICE.written)(&status(&["Accepted", "Announced"]));
        let object = json!({"kind": "Service", "metadata": {"name": "a", "namespace": "n", "resourceVersion": "7"},
            "spec": {"type": "LoadBalancer", "loadBalancerClass": "fairlead.dev/lb"}, "status": known});
        let after = Arc::new(status(&["Announced", "Healthy"]));
        let after = StatusSet { services: Statuses::from([("n/a".to_owned(), after)]), ..Default::default() };
        let writes =
            plan(Step::Services, &assembly([object]), &Settled::default(), &after, 0, &ApiServer::SERVICE)
                .writes;
        let patch = patch(&writes[0], None);
        assert_eq!(patch["metadata"], json!({"resourceVersion": "7"}));
        let patch = &patch["status"];
        assert_eq!(patch["loadBalancer"], Value::Null, "the addresses are the same");
        let said: Vec<_> =
            patch["conditions"].as_array().unwrap().iter().map(|c| (&c["type"], &c["$patch"])).collect();
        let (healthy, accepted) = (json!("fairlead.dev/Healthy"), json!("fairlead.dev/Accepted"));
        assert_eq!(said, [(&healthy, &Value::Null), (&accepted, &json!("delete"))]);
    }

    /// RFC 7386 section 2.
    fn apply(target: &mut Value, patch: &Value) {
        let Value::Object(patch) = patch else {
            *target = patch.clone();
            return;
        };
        if !target.is_object() {
            *target = json!({});
        }
        for (key, value) in patch {
            let target = target.as_object_mut().unwrap();
            match value {
                Value::Null => drop(target.remove(key)),
                _ => apply(target.entry(key.clone()).or_insert(Value::Null), value),
            }
        }
    }
}
