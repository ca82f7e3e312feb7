//! The custom resource definitions, generated from the types. `crds/` at the top of the repository holds the
//! same; to rewrite it after a change of the types: `FAIRLEAD_WRITE=1 cargo test -p controller crds`.
use super::{AddressPool, BGPAdvertisement, BGPPeer, BGPRouter, LoadBalancer};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Value, json};

/// All definitions, in the order in which users meet the kinds.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![AddressPool::crd(), LoadBalancer::crd(), BGPRouter::crd(), BGPPeer::crd(), BGPAdvertisement::crd()]
}

/// The extension `x-kubernetes-validations` of a schema: CEL rules and what is said when one does not hold.
pub(super) fn rules(rules: &[(&str, &str)]) -> Value {
    rules.iter().map(|(rule, message)| json!({"rule": rule, "message": message})).collect()
}
