//! What the API socket answers, besides the objects themselves and what the speaker says: services as an operator
//! sees them, what became of packets, and the state of the instance. JSON keys are camelCase and stable.
use lb_bpf::{
    FlowEvent,
    service::{Frontend, Protocol},
    trace::Trace,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, net::IpAddr};

/// A service of the datapath: one port of a LoadBalancer or Service in one address family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRow {
    /// Kind, name, port and family: `LoadBalancer/web/http/ipv4`. With `/pods` behind it: the one that chooses among the pods
    /// of this node, when the other has chosen this node.
    pub name: String,
    /// Where clients connect to.
    pub frontends: Vec<FrontendRow>,
    /// `NAT`, `DNAT` (without translation of the source; so pods are reached, too), `IPIP`, `GUE` or `L2`.
    pub mode: String,
    /// Whether the kernel has all of the frontends.
    pub programmed: bool,
    /// Slots of its Maglev table; 0 while it is not programmed.
    pub table_size: u32,
    /// Slots whose flows are being learned, since they moved from one live backend to another. While there are any, a router
    /// that moves flows to this host may break those in the middle of their handshake.
    #[serde(default)]
    pub learning_slots: u32,
    /// Slots, beside those, of which known flows still go elsewhere than the table says.
    #[serde(default)]
    pub settled_slots: u32,
    /// The backends, also those that drain.
    pub backends: Vec<BackendRow>,
    /// Packets that were not sent on, by verdict.
    #[serde(default)]
    pub drops: BTreeMap<String, DropRow>,
}

/// Packets of a service that were not sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DropRow {
    /// Packets.
    pub packets: u64,
    /// Bytes of those packets as received, Ethernet header included.
    pub bytes: u64,
}

/// A VIP with protocol and port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendRow {
    /// The VIP.
    pub address: IpAddr,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// Port.
    pub port: u16,
}

impl From<&Frontend> for FrontendRow {
    fn from(frontend: &Frontend) -> Self {
        let protocol = match frontend.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        };
        FrontendRow { address: frontend.address, protocol: protocol.to_owned(), port: frontend.port }
    }
}

impl fmt::Display for FrontendRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FrontendRow { address, protocol, port } = self;
        match address {
            IpAddr::V4(v4) => write!(f, "{v4}:{port}/{protocol}"),
            IpAddr::V6(v6) => write!(f, "[{v6}]:{port}/{protocol}"),
        }
    }
}

/// A backend of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRow {
    /// Address of the backend.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Name of the node that it is, and which delivers to its pods, after `CLUSTER/` if it is of another cluster; none: it is none.
    #[serde(default)]
    pub node: Option<String>,
    /// Weight as declared, of a node the sum of those of its pods that are healthy; 0 drains. None: no longer declared, its flows are running out.
    pub weight: Option<u16>,
    /// `Healthy`, `Unhealthy`, `Unknown` (not checked yet) or `Unchecked` (no check is declared).
    pub health: String,
    /// How the last check failed, if it did.
    pub health_reason: Option<String>,
    /// Slots of the table that point to it.
    pub slots: u32,
    /// Its part of the table, 0 to 1.
    pub share: f64,
    /// Packets sent to it since it was added.
    pub packets: u64,
    /// Bytes of those packets as received, Ethernet header included.
    pub bytes: u64,
    /// Flows begun with it: TCP SYNs, and first packets of tracked UDP flows.
    pub flows: u64,
}

/// A link to another cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkRow {
    /// Name of the cluster.
    pub name: String,
    /// Of several that traffic spills over to, the highest comes first.
    pub priority: i32,
    /// What an endpoint counts; 0 drains.
    pub weight: u16,
    /// `True`: it answers, and all of its exports are known; `False` or `Unknown`.
    pub connected: String,
    /// `Imported`, `Kept`, `Leaving`, `Stale`, or another reason of the condition `Ready`.
    pub state: String,
    /// Why it is not connected, if it is not.
    pub reason: Option<String>,
    /// How long ago it answered last, in seconds, 0 while it does; none: that is not known.
    pub lag_seconds: Option<u64>,
    /// Services that it exports.
    pub exported_services: i64,
    /// Those of them that are imported here.
    pub imported_services: i64,
    /// Their endpoints in use.
    pub imported_endpoints: i64,
    /// Those of the imported services whose exports contradict each other; at most 100.
    pub conflicting_services: Vec<String>,
    /// Pools that are shared with it.
    #[serde(default)]
    pub shared_pools: Vec<SharedPoolRow>,
}

/// A pool that clusters share, as its condition `Leased` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SharedPoolRow {
    /// Its name.
    pub name: String,
    /// `True`: chunks can be leased; `False`, or `Unknown`: nothing was said yet.
    pub leased: String,
    /// Why, in one word.
    pub reason: String,
    /// How many chunks this cluster holds, asks for, and leaves to others, and what keeps it from more.
    pub chunks: String,
}

/// What the datapath would do with a packet, and what is known of the backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceRow {
    /// What the maps in the kernel say.
    #[serde(flatten)]
    pub trace: Trace,
    /// What is known of the chosen backend; none: no backend was chosen.
    pub backend_status: Option<BackendStatus>,
}

/// How a backend is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendStatus {
    /// As [`BackendRow::weight`].
    pub weight: Option<u16>,
    /// As [`BackendRow::health`].
    pub health: String,
    /// As [`BackendRow::health_reason`].
    pub health_reason: Option<String>,
}

/// What became of one packet. The name of its service has the names of the objects: see [`ServiceRow::name`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRow {
    /// When: RFC 3339 in UTC, with milliseconds.
    pub time: String,
    /// What the verdict means: `pass` (to the stack), `transmit` or `drop`.
    pub action: String,
    /// What the datapath reported.
    #[serde(flatten)]
    pub event: FlowEvent,
}

/// What became of packets within a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRows {
    /// Packets, the first one first.
    pub flows: Vec<FlowRow>,
    /// How many more there were.
    pub lost: u64,
}

/// A line of what is followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FlowLine {
    /// What became of a packet.
    Flow(Box<FlowRow>),
    /// Packets that are missing here: the reader is too slow.
    Lost {
        /// How many.
        lost: u64,
    },
}

/// Whether the instance is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceStatus {
    /// Name of the node.
    pub node: String,
    /// Version of fairlead.
    pub version: String,
    /// Whether it does all that it should: the first pass is complete.
    pub ready: bool,
    /// Why it is not ready; one sentence each.
    pub reasons: Vec<String>,
    /// Number of the snapshot in force; statuses that come back make a new one, too.
    pub generation: u64,
    /// Faults of the newest generation when it was refused: one line each.
    pub faults: Vec<String>,
    /// Passes of the reconcile loop since the start.
    pub passes: u64,
    /// Passes that ended with an error.
    pub pass_errors: u64,
    /// The error of the last pass, if it ended with one.
    pub last_error: Option<String>,
    /// The interfaces of the datapath.
    pub interfaces: Vec<InterfaceRow>,
}

/// An interface of the datapath.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceRow {
    /// Its name.
    pub name: String,
    /// `Native` or `Generic`.
    pub mode: String,
}
