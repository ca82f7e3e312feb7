//! LoadBalancer: a service declared without Kubernetes endpoints, or across several Services.
use super::{
    crds::rules,
    policy::Policy,
    scalar::{Address, LINK_LOCAL, LOOPBACK, Port, UNSPECIFIED, Weight},
    selector::DNS_LABEL,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Addresses, ports, and the backends behind them.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "LoadBalancer",
    plural = "loadbalancers",
    shortname = "flb",
    category = "fairlead",
    doc = "LoadBalancer: a service with its addresses, ports and backends.",
    status = "LoadBalancerStatus",
    derive = "PartialEq",
    printcolumn(name = "Addresses", type_ = "string", json_path = ".status.addresses[*].address"),
    printcolumn(name = "Ports", type_ = "string", json_path = ".spec.ports[*].port"),
    printcolumn(name = "Backends", type_ = "integer", json_path = ".status.backends"),
    printcolumn(name = "Healthy", type_ = "integer", json_path = ".status.healthyBackends"),
    printcolumn(
        name = "Announced",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Announced\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("!has(self.pool) || !has(self.addresses) || size(self.addresses) == 0", ADDRESSES_OR_POOL),
    ("self.ports.all(p, !has(p.name) || self.ports.exists_one(q, has(q.name) && q.name == p.name))", UNIQUE_PORT_NAMES),
    (
        "self.policy.forwarding.mode == 'NAT' || self.ports.all(p, !has(p.targetPort) || p.targetPort == p.port)",
        DIRECT_RETURN_PORT
    ),
    ("!has(self.addresses) || self.addresses.all(a, !isIP(a) || !ip(a).isUnspecified())", UNSPECIFIED),
    ("!has(self.addresses) || self.addresses.all(a, !isIP(a) || !ip(a).isLoopback())", LOOPBACK),
    ("!has(self.addresses) || self.addresses.all(a, !isIP(a) || !ip(a).isLinkLocalUnicast())", LINK_LOCAL),
    ("!has(self.policy.quic) || self.ports.exists(p, p.protocol == 'UDP')", QUIC_PORT),
])))]
pub struct LoadBalancerSpec {
    /// Exactly these addresses, of one or both families; empty: given from a pool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub addresses: Vec<Address>,
    /// Given from this pool; none: from any that matches.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub pool: Option<String>,
    /// The ports.
    #[schemars(
        length(min = 1, max = 100),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["port", "protocol"])
    )]
    pub ports: Vec<ServicePort>,
    /// The backends. Several of one weight share alike; none: the service is not announced.
    #[serde(default)]
    #[schemars(length(max = 10000))]
    pub backends: Vec<Backend>,
    /// How traffic is balanced.
    #[serde(default)]
    pub policy: Policy,
}

/// Why both addresses and a pool are refused.
pub(crate) const ADDRESSES_OR_POOL: &str = "addresses and pool exclude each other";

/// Why two ports of one name are refused.
pub(crate) const UNIQUE_PORT_NAMES: &str = "the names of ports must be unique";
/// Why a port is not translated with direct server return.
pub(crate) const DIRECT_RETURN_PORT: &str = "targetPort must equal port unless policy.forwarding.mode is NAT";

/// Why connection IDs are of no use without UDP.
pub(crate) const QUIC_PORT: &str = "policy.quic needs a port with protocol UDP";

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// Name, unique within the service: a DNS label.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), extend("x-kubernetes-validations" = rules(&[DNS_LABEL])))]
    pub name: Option<String>,
    /// Transport protocol.
    #[serde(default)]
    pub protocol: Protocol,
    /// Port of the frontend.
    pub port: Port,
    /// Port of the backends; none: the same as `port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_port: Option<Port>,
}

impl ServicePort {
    /// Port of the backends.
    pub fn target(&self) -> Port {
        self.target_port.unwrap_or(self.port)
    }

    /// Its name, or its number if it has none.
    pub fn label(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.port.to_string())
    }
}

/// Transport protocol.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum Protocol {
    /// Transmission Control Protocol.
    #[default]
    TCP,
    /// User Datagram Protocol.
    UDP,
}

impl From<Protocol> for lb_bpf::service::Protocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::TCP => lb_bpf::service::Protocol::Tcp,
            Protocol::UDP => lb_bpf::service::Protocol::Udp,
        }
    }
}

/// A backend: exactly one of `address` and `service`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("has(self.address) != has(self.service)", ONE_BACKEND),
    ("!has(self.address) || !isIP(self.address) || !ip(self.address).isUnspecified()", UNSPECIFIED),
])))]
pub struct Backend {
    /// Address of the backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
    /// The endpoints of a Kubernetes Service, which share the weight: `targetPort` of a port is the port of the Service, and leads
    /// to the endpoints' own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceReference>,
    /// Share relative to the other backends; 0 drains: no new connections.
    #[serde(default = "default_weight")]
    pub weight: Weight,
}

/// What a backend has to consist of.
pub(crate) const ONE_BACKEND: &str = "needs exactly one of address and service";

fn default_weight() -> Weight {
    const ONE: Weight = Weight::new(1).expect("in range");
    ONE
}

/// A Kubernetes Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceReference {
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Its namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
}

/// What became of a LoadBalancer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerStatus {
    /// Generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions, sorted by type.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Its addresses, sorted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<AssignedAddress>,
    /// Backends declared.
    pub backends: i64,
    /// Backends that count as healthy; in a cluster none: each node sees its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy_backends: Option<i64>,
    /// In a cluster: nodes whose datapath has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub programmed_nodes: Option<i64>,
    /// In a cluster: nodes that announce all of its addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announcing_nodes: Option<i64>,
}

/// An address of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AssignedAddress {
    /// The address.
    pub address: Address,
    /// The pool that it was given from; none: it is of no pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// When it was given.
    pub assigned_at: Time,
}
