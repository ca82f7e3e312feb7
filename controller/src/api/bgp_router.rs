//! BGPRouter: the BGP speaker of the nodes that it selects.
use super::{
    scalar::{Address, Asn, ListenPort, Port, RouterId, StatsSeconds},
    selector::Selector,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The BGP speaker of the nodes that it selects; of a node's several, the first by name counts.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "BGPRouter",
    plural = "bgprouters",
    shortname = "bgpr",
    category = "fairlead",
    doc = "BGPRouter: the BGP speaker of the nodes that it selects.",
    status = "BGPRouterStatus",
    derive = "PartialEq",
    printcolumn(name = "ASN", type_ = "integer", json_path = ".spec.asn"),
    printcolumn(name = "Router-ID", type_ = "string", json_path = ".spec.routerID"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes"),
    printcolumn(name = "Sessions", type_ = "integer", json_path = ".status.sessions"),
    printcolumn(name = "Established", type_ = "integer", json_path = ".status.establishedSessions"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BGPRouterSpec {
    /// AS number.
    pub asn: Asn,
    /// BGP identifier; none: the first global IPv4 address of the node.
    #[serde(rename = "routerID", skip_serializing_if = "Option::is_none")]
    pub router_id: Option<RouterId>,
    /// TCP port to listen on; 0: dial only.
    #[serde(default = "bgp_port")]
    pub listen_port: ListenPort,
    /// Nodes that are meant, by their labels.
    #[serde(default)]
    pub node_selector: Selector,
    /// Peers that these nodes have, by the labels of BGPPeer objects.
    #[serde(default)]
    pub peer_selector: Selector,
    /// BMP stations, which are told what the peers tell (RFC 7854).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["address", "port"]))]
    pub bmp: Vec<BmpStation>,
    /// What is different on some of the nodes; of several that match, the first counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub overrides: Vec<RouterOverride>,
}

/// A BMP station.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BmpStation {
    /// Address of the station.
    pub address: Address,
    /// TCP port of the station.
    pub port: Port,
    /// Time between Statistics Reports in seconds; 0: there are none.
    #[serde(default = "no_statistics")]
    pub stats_seconds: StatsSeconds,
}

/// What is different on some of the nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouterOverride {
    /// Nodes that are meant, by their labels.
    pub node_selector: Selector,
    /// AS number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asn: Option<Asn>,
    /// BGP identifier.
    #[serde(rename = "routerID", skip_serializing_if = "Option::is_none")]
    pub router_id: Option<RouterId>,
    /// TCP port to listen on; 0: dial only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_port: Option<ListenPort>,
}

fn no_statistics() -> StatsSeconds {
    const NONE: StatsSeconds = StatsSeconds::new(0).expect("in range");
    NONE
}

fn bgp_port() -> ListenPort {
    const BGP: ListenPort = ListenPort::new(179).expect("in range");
    BGP
}

/// What became of a router.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BGPRouterStatus {
    /// Generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions, sorted by type.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Nodes that it selects.
    pub nodes: i64,
    /// Sessions that it has.
    pub sessions: i64,
    /// Those of them that are established.
    pub established_sessions: i64,
}
