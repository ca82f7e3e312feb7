//! The block `policy`: how the traffic of a service is balanced. It stands in LoadBalancers.
use super::crds::rules;
use super::scalar::{Cidr, Millis, Percent, Port, Seconds, ServerIDBytes, Threshold};
use lb_bpf::abi::Mode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the traffic of a service is balanced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("!has(self.quic) || self.forwarding.mode != 'NAT'", QUIC_MODE),
])))]
pub struct Policy {
    /// How packets reach the backends.
    pub forwarding: Forwarding,
    /// How backends are checked. Without it, all count as healthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// What ties a client to a backend beyond the connection.
    pub affinity: Affinity,
    /// Which clients are let in.
    pub source_ranges: SourceRanges,
    /// What becomes of packets while no backend is up.
    pub without_backends: WithoutBackends,
    /// How long, in seconds, the connections of a backend that was removed or set to weight 0 are kept.
    pub drain_seconds: Seconds,
    /// That UDP packets are QUIC and follow their connection IDs. Without it they follow addresses and ports, as all others do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quic: Option<Quic>,
    /// How traffic is shared with the same service of other clusters. Without it, only backends of this one are used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clusters: Option<Clusters>,
}

/// Why server IDs are of no use under NAT.
pub(crate) const QUIC_MODE: &str =
    "needs a forwarding mode other than NAT, which keeps flows by address and port";

impl Default for Policy {
    fn default() -> Self {
        const DRAIN: Seconds = Seconds::new(300).expect("in range");
        Policy {
            forwarding: Forwarding::default(),
            health_check: None,
            affinity: Affinity::default(),
            source_ranges: SourceRanges::default(),
            without_backends: WithoutBackends::default(),
            drain_seconds: DRAIN,
            quic: None,
            clusters: None,
        }
    }
}

/// How packets reach the backends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("self.mode == 'NAT' || !has(self.sourceNAT)", SOURCE_NAT),
])))]
pub struct Forwarding {
    /// The mode.
    pub mode: ForwardingMode,
    /// Of NAT: whether backends see an address of the load balancer as the source (`true`, also when it is not said), so
    /// that replies come back through it from wherever they are. With `false` they see the client's, and the load
    /// balancer has to be their gateway.
    #[serde(rename = "sourceNAT", skip_serializing_if = "Option::is_none")]
    pub source_nat: Option<bool>,
}

/// Where the source is translated.
pub(crate) const SOURCE_NAT: &str = "sourceNAT is of mode NAT only";

impl Forwarding {
    /// The mode as the datapath knows it.
    pub fn datapath_mode(&self) -> Mode {
        match (self.mode, self.source_nat) {
            (ForwardingMode::NAT, Some(false)) => Mode::Dnat,
            (ForwardingMode::NAT, _) => Mode::Nat,
            (ForwardingMode::IPIP, _) => Mode::Ipip,
            (ForwardingMode::GUE, _) => Mode::Gue,
            (ForwardingMode::L2, _) => Mode::L2,
        }
    }
}

/// How packets reach the backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum ForwardingMode {
    /// Addresses are rewritten; replies come back through the same host. Works with any backend.
    #[default]
    NAT,
    /// Encapsulated in IP; the backend decapsulates and answers the client directly. For a pod its node does.
    IPIP,
    /// Encapsulated in UDP, port 6080; the backend decapsulates and answers the client directly. For a pod its node does.
    GUE,
    /// Sent to the backend's Ethernet address; the backend is on a segment with the load balancer, and answers the client
    /// directly. Not for pods.
    L2,
}

impl ForwardingMode {
    /// Whether the backend answers the client itself (direct server return), so that it sees the frontend's port.
    pub const fn is_direct_return(self) -> bool {
        !matches!(self, ForwardingMode::NAT)
    }

    /// As users write it.
    pub const fn name(self) -> &'static str {
        match self {
            ForwardingMode::NAT => "NAT",
            ForwardingMode::IPIP => "IPIP",
            ForwardingMode::GUE => "GUE",
            ForwardingMode::L2 => "L2",
        }
    }
}

/// How a backend is checked: exactly one of `tcp` and `http`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("has(self.tcp) != has(self.http)", ONE_CHECK),
])))]
pub struct HealthCheck {
    /// A TCP connection can be opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpCheck>,
    /// A GET is answered with a status of 200 to 399.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    /// Time from the start of a check to the start of the next, ms; a check that takes longer delays the next.
    #[serde(default = "default_interval")]
    pub interval_millis: Millis,
    /// How long a check may take, ms.
    #[serde(default = "default_timeout")]
    pub timeout_millis: Millis,
    /// How many successes in a row make a backend healthy.
    #[serde(default = "default_rise")]
    pub rise: Threshold,
    /// How many failures in a row make a backend unhealthy.
    #[serde(default = "default_fall")]
    pub fall: Threshold,
}

/// Why a health check without a method, or with two, is refused.
pub(crate) const ONE_CHECK: &str = "needs exactly one of tcp and http";

fn default_interval() -> Millis {
    const INTERVAL: Millis = Millis::new(1000).expect("in range");
    INTERVAL
}

fn default_timeout() -> Millis {
    const TIMEOUT: Millis = Millis::new(500).expect("in range");
    TIMEOUT
}

fn default_rise() -> Threshold {
    const RISE: Threshold = Threshold::new(2).expect("in range");
    RISE
}

fn default_fall() -> Threshold {
    const FALL: Threshold = Threshold::new(3).expect("in range");
    FALL
}

/// Check by a TCP connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpCheck {
    /// Port of the backend; none: the port that receives the traffic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<Port>,
}

/// Check by an HTTP GET.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpCheck {
    /// Path and query, from `/` on.
    #[serde(default = "default_path")]
    #[schemars(length(min = 1, max = 1024), extend("x-kubernetes-validations" = rules(&[
        ("self.matches('^/[!-~]*$')", NOT_A_PATH),
    ])))]
    pub path: String,
    /// Port of the backend; none: the port that receives the traffic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<Port>,
}

/// What is said of a path that is none.
pub(crate) const NOT_A_PATH: &str = "is not a path: / and more, of visible ASCII characters";

fn default_path() -> String {
    "/".into()
}

/// What ties a client to a backend beyond the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Affinity {
    /// Nothing.
    #[default]
    None,
    /// The client's address.
    ClientIP,
}

/// Which clients are let in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SourceRanges {
    /// Only these; empty: all. With ranges of one address family only, no client of the other is let in.
    #[schemars(length(max = 1000), extend("x-kubernetes-list-type" = "set"))]
    pub allow: Vec<Cidr>,
    /// Not these, even if allowed.
    #[schemars(length(max = 1000), extend("x-kubernetes-list-type" = "set"))]
    pub deny: Vec<Cidr>,
}

/// What becomes of packets while no backend is up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WithoutBackends {
    /// They are dropped.
    #[default]
    Drop,
    /// The load balancer's own stack has them.
    Pass,
}

/// How QUIC connection IDs name their server: as QUIC-LB has it, with the plaintext algorithm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Quic {
    /// How many bytes the server ID has that follows the first byte of a connection ID. It is the end of the backend's address: of
    /// IPv4 at most 4 bytes.
    #[serde(rename = "serverIDBytes")]
    pub server_id_bytes: ServerIDBytes,
}

/// How traffic is shared with the same service of other clusters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Clusters {
    /// Whose backends come first.
    #[serde(default)]
    pub prefer: Prefer,
    /// While less than this share of the backends of a cluster are healthy, the next ones take over what is missing, in proportion:
    /// at 50, with a quarter of them healthy, half of the traffic. The own cluster is the first, then come those with the highest
    /// priority. None: the next ones are used only while none is healthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_local_percent: Option<Percent>,
}

/// Whose backends come first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Prefer {
    /// Those of the own cluster.
    #[default]
    Local,
    /// All alike.
    None,
}
