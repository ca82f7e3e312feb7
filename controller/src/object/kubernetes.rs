//! Kubernetes' own kinds in files. Their types are Kubernetes' own, which ignore fields that they do not know; only
//! fields that count here are kept, so that a manifest written for a cluster is legal as it is.
use super::{BadDocument, typed};
use crate::api::endpoint_slice::{AddressType, Endpoint, EndpointSlice};
use k8s_openapi::{
    api::core::v1::{Namespace, Node, NodeSpec, NodeStatus, Service, ServiceSpec},
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
    let address_type: Option<AddressType> = field(map, "addressType")?;
    let address_type = address_type.ok_or_else(|| BadDocument::new("addressType", "is missing"))?;
    let endpoints: Option<Box<[Endpoint]>> = match address_type {
        AddressType::IPv4 | AddressType::IPv6 => field(map, "endpoints")?,
        AddressType::FQDN => None,
    };
    Ok(Arc::new(EndpointSlice {
        metadata: metadata.into(),
        address_type,
        endpoints: endpoints.unwrap_or_default(),
        ports: field::<Vec<_>>(map, "ports")?.unwrap_or_default().into(),
    }))
}

/// Only the labels of a namespace count.
pub(super) fn namespace(metadata: ObjectMeta) -> Arc<Namespace> {
    Arc::new(Namespace { metadata, ..Namespace::default() })
}

/// Of a node the labels count, its addresses, and its pod CIDRs.
pub(super) fn node(metadata: ObjectMeta, map: &Map<String, Value>) -> Result<Arc<Node>, BadDocument> {
    let spec: Option<NodeSpec> = field(map, "spec")?;
    let addresses = match map.get("status") {
        Some(Value::Object(status)) => status.get("addresses").filter(|addresses| !addresses.is_null()),
        _ => None,
    };
    let addresses = addresses.map(|addresses| typed(addresses, "status.addresses")).transpose()?;
    let status = addresses.map(|addresses| NodeStatus { addresses, ..NodeStatus::default() });
    Ok(Arc::new(Node { metadata, spec, status }))
}

/// A field of an object; none if it is missing or null.
fn field<T: DeserializeOwned>(map: &Map<String, Value>, name: &str) -> Result<Option<T>, BadDocument> {
    match map.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => typed(value, name).map(Some),
    }
}
