//! How the pods of another cluster are reached in a tunnel, through its nodes: an annotation of the EndpointSlices that are
//! imported from it. Names of nodes stand there and not in the endpoints: `nodeName` is for nodes of one's own cluster.
use super::{load_balancer::Protocol, policy::ForwardingMode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::net::IpAddr;

/// The annotation: a [`Delivery`] as JSON.
pub const DELIVERY: &str = "fairlead.dev/delivery";
/// Type of a condition of a ServiceExport: how its own cluster forwards packets to the Service. Its reason is a
/// [`ForwardingMode`], or that it does not. Links read it there: what takes packets out of a tunnel, and what does not.
pub const FORWARDING: &str = "fairlead.dev/Forwarding";
/// Most bytes of its reason that are read.
const LONGEST_MODE: usize = 64;
/// Most bytes of it that are read: as many as the annotations of an object may have in Kubernetes.
const LONGEST: usize = 256 << 10;

/// What the nodes of another cluster do for a service. Lists are sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    /// The addresses that the service has there: packets to these, its nodes deliver.
    pub addresses: Box<[IpAddr]>,
    /// Its ports there.
    pub ports: Box<[DeliveredPort]>,
    /// The nodes that have endpoints of the slice, as far as their addresses are known.
    pub nodes: Box<[DeliveringNode]>,
    /// How packets to the service are forwarded there, in the words of the condition [`FORWARDING`]; none: it is not said, as by
    /// older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Box<str>>,
}

/// A port of the service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeliveredPort {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

/// A node of the other cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveringNode {
    /// Its name there.
    pub name: Box<str>,
    /// Where it takes packets for its pods: its first `InternalIP` of each family.
    pub addresses: Box<[IpAddr]>,
    /// Endpoints of the slice that are on it.
    pub endpoints: Box<[IpAddr]>,
}

impl Delivery {
    /// As the annotation says it; none: it cannot be read.
    pub(super) fn read(text: &str) -> Option<Self> {
        (text.len() <= LONGEST).then(|| serde_json::from_str(text).ok()).flatten()
    }

    /// The node that an endpoint is on; none: it is not known.
    pub fn node_of(&self, endpoint: IpAddr) -> Option<&DeliveringNode> {
        self.nodes.iter().find(|node| node.endpoints.contains(&endpoint))
    }

    /// The mode, if what comes out of a tunnel is not taken in it.
    pub fn mode_without_tunnels(&self) -> Option<&str> {
        let is_tunnel = |mode: &str| TUNNELS.iter().any(|tunnel| tunnel.name() == mode);
        self.mode.as_deref().filter(|mode| !is_tunnel(mode))
    }

    /// Whether the service has a port there.
    pub fn has_port(&self, protocol: Protocol, port: u16) -> bool {
        self.ports.contains(&DeliveredPort { protocol, port })
    }
}

/// The modes whose tunnels a node takes packets out of, whichever of them its own cluster uses.
const TUNNELS: [ForwardingMode; 2] = [ForwardingMode::IPIP, ForwardingMode::GUE];

/// The reason of the condition [`FORWARDING`] in the status of a ServiceExport; none: it is not there, or too long to be one.
pub fn said_mode(status: &Value) -> Option<Box<str>> {
    let mut conditions = status["conditions"].as_array()?.iter();
    let said = conditions.find(|condition| condition["type"] == FORWARDING)?["reason"].as_str()?;
    (said.len() <= LONGEST_MODE).then(|| said.into())
}
