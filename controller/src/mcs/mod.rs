//! The Multi-Cluster Services API (KEP-1645, `multicluster.x-k8s.io/v1alpha1`): what clusters export becomes what this one
//! imports. Pure: [`merge()`] knows neither API servers nor links; the store of a cluster does.
//!
//! An imported service consists of a ServiceImport and of EndpointSlices, those of each cluster apart, and, unless it is headless, of
//! a Service that gives it addresses. Whatever we write has the label that says so, and nothing else is touched.
use crate::fnv::{self, fnv};

mod derived;
mod export;
mod leave;
mod merge;
mod ports;
#[cfg(test)]
mod tests;

pub use derived::{DERIVED_SERVICE, Derived, derived_name};
pub use export::{Export, Exports, Facts, ImportPort, Invalid, slice_name};
pub use leave::{PERMILLE, leaving};
pub use merge::{
    Cluster, Clusters, Conflict, Counts, Import, Merged, Merger, Verdict, merge, shared_clusters,
};

/// API group of ServiceExport and ServiceImport.
pub const GROUP: &str = "multicluster.x-k8s.io";
/// Version of both.
pub const VERSION: &str = "v1alpha1";
/// `apiVersion` of both.
pub const API_VERSION: &str = "multicluster.x-k8s.io/v1alpha1";
/// Label of a slice and of a derived Service with the name of the imported service.
pub const SERVICE_NAME: &str = "multicluster.kubernetes.io/service-name";
/// Label of a slice with the cluster whose endpoints it has.
pub const SOURCE_CLUSTER: &str = "multicluster.kubernetes.io/source-cluster";
/// Label of an EndpointSlice with who writes it.
pub const SLICE_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Label of a ServiceImport and of a derived Service with who writes it.
pub const IMPORT_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Who writes what we write.
pub const MANAGER: &str = "clusters.fairlead.dev";

/// Label selector of Services that somebody declared: of all but those that we derive.
pub fn declared_services() -> String {
    format!("{IMPORT_MANAGED_BY}!={MANAGER}")
}

/// The same for every process and every version.
fn hash(parts: &[&[u8]]) -> u64 {
    parts.iter().fold(fnv::OFFSET, |digest, part| fnv(digest, part))
}
