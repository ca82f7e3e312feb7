//! What is kept of a ServiceExport and of a ServiceImport of this cluster. As it comes an object takes several kilobytes, most of it
//! who wrote which field. Pure.
use super::super::raw::Raw;
use crate::{
    api::delivery::said_mode,
    mcs::{DERIVED_SERVICE, Facts, IMPORT_MANAGED_BY, Import, MANAGER, shared_clusters},
    status::seconds,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// An object.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Kept<T> {
    /// `resourceVersion`.
    pub(super) version: Box<str>,
    /// `generation`.
    pub(super) generation: Option<i64>,
    /// The conditions of its status; those that cannot be read are not there.
    pub(super) conditions: Box<[Condition]>,
    /// What counts of the rest.
    pub(super) rest: T,
}

impl<T: for<'a> From<&'a Raw>> From<&Raw> for Kept<T> {
    fn from(object: &Raw) -> Self {
        let conditions = Vec::deserialize(object.at(&["status", "conditions"]));
        Kept {
            version: object.metadata.resource_version.as_deref().unwrap_or_default().into(),
            generation: object.metadata.generation,
            conditions: conditions.unwrap_or_default().into(),
            rest: T::from(object),
        }
    }
}

/// What counts of a ServiceExport.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ServiceExport {
    /// When it was made, in seconds since the epoch.
    pub(super) created: u64,
    /// `spec.exportedLabels`.
    pub(super) labels: BTreeMap<String, String>,
    /// `spec.exportedAnnotations`.
    pub(super) annotations: BTreeMap<String, String>,
    /// How its own cluster forwards packets to the Service, as far as it says so.
    pub(super) mode: Option<Box<str>>,
}

impl From<&Raw> for ServiceExport {
    fn from(object: &Raw) -> Self {
        let texts = |field: &str| -> BTreeMap<String, String> {
            let entries = object.at(&["spec", field]).as_object().into_iter().flatten();
            entries
                .filter_map(|(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned())))
                .collect()
        };
        ServiceExport {
            created: object.metadata.creation_timestamp.as_ref().map_or(0, seconds),
            labels: texts("exportedLabels"),
            annotations: texts("exportedAnnotations"),
            mode: said_mode(object.at(&["status"])),
        }
    }
}

/// What counts of a ServiceImport.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ServiceImport {
    /// Whether we write it.
    pub(super) is_ours: bool,
    /// As it would have been merged, if it is ours. What cannot be read is as if it were not said.
    pub(super) import: Import,
}

impl From<&Raw> for ServiceImport {
    fn from(object: &Raw) -> Self {
        let labels = object.metadata.labels.as_ref();
        if labels.and_then(|labels| labels.get(IMPORT_MANAGED_BY)).is_none_or(|by| by != MANAGER) {
            return ServiceImport::default();
        }
        let spec = object.at(&["spec"]);
        let facts = Facts::deserialize(spec).unwrap_or_default();
        let ips = spec["ips"].as_array().into_iter().flatten();
        let clusters = object.at(&["status", "clusters"]).as_array().into_iter().flatten();
        let import = Import {
            facts: Facts { is_headless: spec["type"] == "Headless", ..facts }.shared(),
            labels: without(labels, IMPORT_MANAGED_BY),
            annotations: without(object.metadata.annotations.as_ref(), DERIVED_SERVICE),
            ips: ips.filter_map(|ip| ip.as_str()?.parse().ok()).collect(),
            clusters: shared_clusters(
                clusters.filter_map(|entry| entry["cluster"].as_str().map(str::to_owned)),
            ),
        };
        ServiceImport { is_ours: true, import }
    }
}

/// All of these but one. Made anew: a map from which the last one is taken keeps room for eleven.
fn without(all: Option<&BTreeMap<String, String>>, name: &str) -> BTreeMap<String, String> {
    let others = all.into_iter().flatten().filter(|(key, _)| *key != name);
    others.map(|(key, value)| (key.clone(), value.clone())).collect()
}
