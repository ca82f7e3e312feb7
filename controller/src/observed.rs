//! What this node sees: itself, the health of backends, what its datapath holds, its BGP sessions, the time.
//! Together with [`Declared`](crate::declared::Declared) this is all that
//! [`desired`](crate::desired::desired) knows.
use crate::{api::policy, fault::Fault, neighbours::Neighbours, status::StatusSet};
use bgp_speaker::PeerId;
use lb_bpf::{Counter, Installed, service::Endpoint};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::IpAddr,
    sync::Arc,
};

/// A complete observation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// The node itself.
    pub node: NodeInfo,
    /// Results of health checks. What is not in here is not known yet.
    pub health: Arc<Healths>,
    /// What the datapath holds of what it was last asked for; at the start, of what it was asked for by the process
    /// before.
    pub installed: Arc<Installed>,
    /// What rules of packet filters counted, a few seconds ago.
    pub filters: Arc<FilterCounters>,
    /// Peers whose BGP session is established.
    pub established: BTreeSet<PeerId>,
    /// Why the newest generation of declared objects was refused; empty when it is in force.
    pub faults: Vec<Fault>,
    /// The statuses that this node came to last; empty at the start. What is the same is shared with them, and conditions are as
    /// old as they are, also where others write the statuses that come back.
    pub said: Arc<StatusSet>,
    /// What is known of other clusters; empty where no links are opened.
    pub neighbours: Arc<Neighbours>,
    /// Seconds since the epoch.
    pub now: u64,
    /// Whether this process leads since a moment ago: it is looked for what went while nobody led.
    pub takes_over: bool,
}

/// What rules of packet filters counted, by their names in the datapath.
pub type FilterCounters = BTreeMap<String, Counter>;

/// This node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInfo {
    /// Its name. Its labels are those of the declared Node of that name.
    pub name: String,
    /// Its addresses that others can reach, VIPs on the loopback interface included.
    pub addresses: BTreeSet<IpAddr>,
    /// Next hop of its default route, IPv4 before IPv6; none: it had none yet, or a link-local one.
    pub gateway: Option<IpAddr>,
}

/// How endpoints are checked. Equal checks of one endpoint are one check, however many services ask for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// What is tried.
    pub method: Method,
    /// Time from the start of one try to the start of the next, ms.
    pub interval_millis: u32,
    /// How long a try may take, ms.
    pub timeout_millis: u32,
    /// How many successes in a row make an endpoint healthy.
    pub rise: u8,
    /// How many failures in a row make an endpoint unhealthy.
    pub fall: u8,
}

/// What a check tries.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Method {
    /// A TCP connection can be opened.
    Tcp,
    /// A GET of this path and query is answered with a status of 200 to 399.
    Http {
        /// From `/` on.
        path: String,
    },
}

impl Check {
    /// What a declared health check asks for, and the port that it names instead of the backend's own.
    pub fn of(declared: &policy::HealthCheck) -> (Self, Option<u16>) {
        let (method, port) = match (&declared.http, &declared.tcp) {
            (Some(http), _) => (Method::Http { path: http.path.clone() }, http.port),
            (None, tcp) => (Method::Tcp, tcp.as_ref().and_then(|tcp| tcp.port)),
        };
        let check = Check {
            method,
            interval_millis: declared.interval_millis.get(),
            timeout_millis: declared.timeout_millis.get(),
            rise: declared.rise.get(),
            fall: declared.fall.get(),
        };
        (check, port.map(|port| port.get()))
    }
}

/// Endpoints to check, by how.
pub type Targets = BTreeMap<Check, BTreeSet<Endpoint>>;

/// Results, by check and endpoint.
pub type Healths = BTreeMap<Check, BTreeMap<Endpoint, Health>>;

/// What the checks say of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Health {
    /// It answers.
    Healthy,
    /// It does not, and this is how the last check failed.
    Unhealthy(Failure),
}

/// How a check failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No answer in time.
    TimedOut,
    /// No connection, or it broke.
    Io(io::ErrorKind),
    /// An HTTP status other than 200 to 399.
    Status(u16),
    /// The answer was not HTTP.
    NotHttp,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::TimedOut => f.write_str("timed out"),
            Failure::Io(kind) => kind.fmt(f),
            Failure::Status(status) => write!(f, "HTTP status {status}"),
            Failure::NotHttp => f.write_str("the answer is not HTTP"),
        }
    }
}

impl Serialize for Failure {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
