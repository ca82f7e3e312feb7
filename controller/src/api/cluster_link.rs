//! ClusterLink: another cluster, whose exported services are usable in this one (MCS API, KEP-1645).
use super::{
    bgp_peer::SecretReference,
    scalar::{StaleSeconds, Weight},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Another cluster. Its name here is the name of the link: call it as it calls itself, so that all clusters agree on whose
/// word counts when exports of one age contradict each other.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "ClusterLink",
    plural = "clusterlinks",
    shortname = "clink",
    category = "fairlead",
    doc = "ClusterLink: another cluster, whose exported services are usable in this one.",
    status = "ClusterLinkStatus",
    derive = "PartialEq",
    validation = ("self.metadata.name.size() <= 63", LINK_NAME),
    printcolumn(name = "Priority", type_ = "integer", json_path = ".spec.priority"),
    printcolumn(name = "Weight", type_ = "integer", json_path = ".spec.weight"),
    printcolumn(
        name = "Connected",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Connected\")].status"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Exported", type_ = "integer", json_path = ".status.exportedServices"),
    printcolumn(name = "Imported", type_ = "integer", json_path = ".status.importedServices"),
    printcolumn(name = "Endpoints", type_ = "integer", json_path = ".status.importedEndpoints"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterLinkSpec {
    /// Where its kubeconfig is: a Secret of our own namespace. Server, certificates and credentials stand in the kubeconfig
    /// itself: one that names files or commands is not used.
    pub kubeconfig_secret_ref: SecretReference,
    /// Of several clusters that traffic spills over to, those with the highest priority are used first.
    #[serde(default)]
    pub priority: i32,
    /// What an endpoint of the cluster counts, relative to those of other clusters; 0: the cluster is drained.
    #[serde(default = "one")]
    pub weight: Weight,
    /// How long, in seconds, the cluster may be out of reach before its endpoints leave. They leave one after the other,
    /// within as long again.
    #[serde(default = "minute")]
    pub stale_after_seconds: StaleSeconds,
}

/// Most characters of a link's name: it is the value of a label.
pub(crate) const MAX_NAME: usize = 63;
/// Why a longer name is refused.
pub(crate) const LINK_NAME: &str = "the name of a cluster has at most 63 characters";

fn one() -> Weight {
    const ONE: Weight = Weight::new(1).expect("in range");
    ONE
}

fn minute() -> StaleSeconds {
    const MINUTE: StaleSeconds = StaleSeconds::new(60).expect("in range");
    MINUTE
}

/// How a link is, as the controller that leads sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterLinkStatus {
    /// Generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions, sorted by type: `Connected` (the cluster answers, and all of its exports are known), `Disjoint` (its nodes have
    /// no pod CIDRs and no addresses that ours have, or those of another linked cluster) and `Ready` (what it exports is in use: connected, or not out of reach for too long).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// When it answered last, while it does not; none: it answers, or never did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_contact_time: Option<Time>,
    /// Services that it exports.
    pub exported_services: i64,
    /// Those of them that are imported here.
    pub imported_services: i64,
    /// Their endpoints in use.
    pub imported_endpoints: i64,
    /// Those of the imported services whose exports contradict each other, by `NAMESPACE/NAME`; at most 100.
    pub conflicting_services: Vec<String>,
}
