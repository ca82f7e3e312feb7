//! NodeState: how a node is, as its own instance says. Nobody declares it.
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Nothing is asked for: all of a NodeState is its status.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "NodeState",
    plural = "nodestates",
    shortname = "nstate",
    category = "fairlead",
    doc = "NodeState: how a node is; written by the node's own instance.",
    status = "NodeStateStatus",
    derive = "PartialEq",
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(name = "Interfaces", type_ = "string", json_path = ".status.interfaces[*].name"),
    printcolumn(name = "Modes", type_ = "string", json_path = ".status.interfaces[*].mode"),
    printcolumn(name = "Peers", type_ = "string", json_path = ".status.sessions[*].peer"),
    printcolumn(name = "States", type_ = "string", json_path = ".status.sessions[*].state"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct NodeStateSpec {}

/// How a node is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStateStatus {
    /// Conditions, sorted by type: `Accepted` (what was declared last is in force) and `Ready` (a pass was complete).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Version of fairlead.
    pub version: String,
    /// When this was written, by the clock of the node: at least every 30 seconds. Who does not write any more is not there
    /// any more: what it said does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_time: Option<Time>,
    /// Number of the snapshot in force.
    pub generation: i64,
    /// Interfaces of the datapath, by name.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub interfaces: Vec<InterfaceState>,
    /// How full the maps of the datapath are.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub maps: Vec<MapState>,
    /// BGP sessions, by address of the neighbour.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["peer"]))]
    pub sessions: Vec<SessionState>,
    /// LoadBalancers and Services of our class in numbers.
    pub services: ServiceCounts,
    /// Advertisements that announce or withhold something here, by name; at most 100.
    #[schemars(length(max = 100), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub advertisements: Vec<AdvertisementState>,
    /// What is wrong on this node, by object; at most 100.
    #[schemars(length(max = 100))]
    pub faults: Vec<ObjectFault>,
    /// How objects stand here, for the controller, in 64 pages: the first 16 digits of a page say for which versions of which
    /// objects it is, and then each object has a digit.
    #[schemars(length(max = 64))]
    pub pages: Vec<String>,
}

/// Services in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceCounts {
    /// All of them.
    pub declared: i64,
    /// Those that the datapath holds.
    pub programmed: i64,
    /// Those whose addresses are all announced.
    pub announced: i64,
    /// Those with a healthy backend, as far as this node sees.
    pub healthy: i64,
}

/// What became of an advertisement on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdvertisementState {
    /// Its name.
    pub name: String,
    /// Prefixes that are announced.
    pub announced_routes: i64,
    /// Addresses that it selects and that are held back.
    pub withheld_routes: i64,
}

/// Something that is wrong with an object on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectFault {
    /// `KIND/NAME`; with a namespace `KIND/NAMESPACE/NAME`.
    pub object: String,
    /// The condition that does not hold.
    pub condition: String,
    /// Why, in one CamelCase word.
    pub reason: String,
    /// Why, in a sentence.
    pub message: String,
}

/// An interface of the datapath.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceState {
    /// Its name.
    pub name: String,
    /// `Native`, `Generic` or `TcIngress`.
    pub mode: String,
}

/// A map of the datapath.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MapState {
    /// `vips` (frontends), `slots` or `backends`.
    pub name: String,
    /// Entries that services have.
    pub used: i64,
    /// Entries that there are; a table that changes takes its slots twice.
    pub size: i64,
}

/// A BGP session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionState {
    /// Address of the neighbour.
    pub peer: String,
    /// Name of its BGPPeer; empty: it has none.
    pub name: String,
    /// State (RFC 4271 section 8.2.2).
    pub state: String,
    /// Graceful restart: `Disabled`, `Ready`, `Helping` or `Restarting`.
    pub restart_state: String,
    /// State of the path (RFC 5880); none: it is not watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bfd: Option<String>,
    /// How often an established session ended.
    pub flap_count: i64,
    /// Prefixes accepted from the neighbour.
    pub prefixes_received: i64,
    /// Prefixes announced to it.
    pub prefixes_sent: i64,
    /// The last error, in words; none: there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}
