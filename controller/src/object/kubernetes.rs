//! Kubernetes' own kinds in files. Their types are Kubernetes' own, which ignore fields that they do not know; only
//! fields that count here are kept, so that a manifest written for a cluster is legal as it is.
use super::{BadDocument, typed};
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, NodeSpec, Service, ServiceSpec},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::sync::Arc;

/// Fields of an EndpointSlice beside those of every object.
pub(super) const SLICE_FIELDS: [&str; 3] = ["addressType", "endpoints", "ports"];

pub(super) fn service(metadata: ObjectMeta, map: &Map<String, Value>) -> Result<Arc<Service>, BadDocument> {
    let spec: Option<ServiceSpec> = field(map, "spec")?;
    let spec = spec.ok_or_else(|| BadDocument::new("spec", "is missing"))?;
    Ok(Arc::new(Service { metadata, spec: Some(spec), status: None }))
}

pub(super) fn endpoint_slice(
    metadata: ObjectMeta,
    map: &Map<String, Value>,
) -> Result<Arc<EndpointSlice>, BadDocument> {
    let address_type: Option<String> = field(map, "addressType")?;
    Ok(Arc::new(EndpointSlice {
        metadata,
        address_type: address_type.ok_or_else(|| BadDocument::new("addressType", "is missing"))?,
        endpoints: field(map, "endpoints")?,
        ports: field(map, "ports")?,
    }))
}

/// Only the labels of a namespace count.
pub(super) fn namespace(metadata: ObjectMeta) -> Arc<Namespace> {
    Arc::new(Namespace { metadata, ..Namespace::default() })
}

/// Of a node the labels count, and its pod CIDRs.
pub(super) fn node(metadata: ObjectMeta, map: &Map<String, Value>) -> Result<Arc<Node>, BadDocument> {
    let spec: Option<NodeSpec> = field(map, "spec")?;
    Ok(Arc::new(Node { metadata, spec, status: None }))
}

/// A field of an object; none if it is missing or null.
fn field<T: DeserializeOwned>(map: &Map<String, Value>, name: &str) -> Result<Option<T>, BadDocument> {
    match map.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => typed(value, name).map(Some),
    }
}
