//! What the datapath is asked for: the whole set of services, as one value.
use crate::filter::Filter;
use imbl::OrdMap;
use ipnet::IpNet;
use lb_bpf_common::{Mode, proto};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

/// Everything that this host's datapath should do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Desired {
    /// Services that this host balances. Of a map that was made from that of before by changes, only these are looked at.
    #[serde(serialize_with = "shared")]
    pub services: OrdMap<ServiceKey, Arc<Service>>,
    /// Tunnel ends of this host. VIPs whose packets go up the stack are added to the loopback interface.
    pub decap: BTreeSet<Decap>,
    /// More VIPs that are added to the loopback interface: this host is a backend that gets their packets as they are
    /// ([`Mode::L2`]).
    pub local_vips: BTreeSet<IpAddr>,
    /// Rules that are applied to every IP packet before anything else, by names of the caller's choice that stay the
    /// same as long as the rule counts as the same.
    pub filters: BTreeMap<String, Filter>,
}

#[cfg(feature = "loader")]
impl Desired {
    /// IANA numbers of the protocols in which packets reach backends of tunnel modes.
    pub(crate) fn tunnel_protocols(&self) -> BTreeSet<u8> {
        let protocols = self.services.values().map(|service| match service.mode {
            Mode::Ipip => &[proto::IPIP, proto::IPV6][..],
            Mode::Gue => &[proto::UDP],
            Mode::L2 | Mode::Nat | Mode::Dnat | Mode::Here => &[],
        });
        protocols.flatten().copied().collect()
    }
}

/// Name of a service in the datapath, unique and stable: it identifies the service across restarts of the
/// process, in counters and in dumps; for example `LoadBalancer/web/http/ipv4`. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey(pub Arc<str>);

impl Serialize for ServiceKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ServiceKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|name| ServiceKey(name.into()))
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One service: frontends that share one Maglev table. Frontends are of one address family, and so are the backends:
/// the same, or in a tunnel the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Where clients connect to.
    pub frontends: BTreeSet<Frontend>,
    /// How packets reach the backends, but for those that are [here](Target::here). Not [`Mode::Here`].
    #[serde(serialize_with = "mode_name")]
    pub mode: Mode,
    /// The backends, whatever their state.
    pub backends: BTreeMap<Endpoint, Target>,
    /// How long, in seconds, flows of a backend that left the table are kept.
    pub drain_seconds: u32,
    /// What else holds for its packets.
    pub rules: Rules,
}

impl Service {
    /// How packets reach one of its backends.
    pub const fn mode_of(&self, target: &Target) -> Mode {
        if target.here { Mode::Here } else { self.mode }
    }
}

/// What holds for the packets of a service beyond where they go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rules {
    /// Whether all connections of a client go to one backend. When that changes, connections of all clients may move.
    pub client_affinity: bool,
    /// Clients that are let in; none named: all.
    pub allow: BTreeSet<IpNet>,
    /// Clients that are not let in, even if allowed.
    pub deny: BTreeSet<IpNet>,
    /// Whether packets go up the stack while the service has no backend; else they are dropped.
    pub pass_without_backend: bool,
    /// How many bytes the server IDs in QUIC connection IDs have, 1 to 8 ([`lb_bpf_common::quic`]); 0: UDP packets go by the table
    /// alone, as they do in the modes that translate. The server ID of a backend is the end of its address; one that two
    /// backends have counts for neither.
    pub server_id_bytes: u8,
}

/// A VIP with protocol and port, and whose packets it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Frontend {
    /// The VIP.
    pub address: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port, 1 to 65535.
    pub port: u16,
    /// Whose packets.
    pub scope: Scope,
}

/// Which packets to a VIP a frontend takes. A service with pods on many hosts has one frontend of each scope on a host of
/// theirs: the first one chooses the host, the second one a pod of this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Scope {
    /// Those that clients send.
    #[default]
    All,
    /// Those that were sent to this host for its own backends: by another host through a tunnel end that
    /// [delivers](Decap::deliver), or by a service of this host to a target that is [here](Target::here).
    Local,
}

/// Transport protocol of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// IANA protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => proto::TCP,
            Protocol::Udp => proto::UDP,
        }
    }
}

/// Address and port of a backend. In the modes IPIP, GUE and L2 the port is that of the frontend: nothing translates it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Address of the backend.
    pub address: IpAddr,
    /// Port, 1 to 65535.
    pub port: u16,
}

/// A backend's part in its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Share of the slots, relative to the other backends, 0 to 65535; 0 drains the backend: no new flows.
    pub weight: u16,
    /// Whether the backend answers. The slots of a backend that does not move at once and leave no dirt.
    pub up: bool,
    /// Whether it is this host itself: packets go on to the frontend of [`Scope::Local`], in no tunnel.
    pub here: bool,
}

/// A tunnel end: packets to `local` whose inner destination is `vip` are decapsulated. Unique by these two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Decap {
    /// Address of this host.
    pub local: IpAddr,
    /// The VIP.
    pub vip: IpAddr,
    /// Whether the packets go on to the frontend of [`Scope::Local`]; else up the stack of this host.
    pub deliver: bool,
}

/// Name of a mode, as users write it.
pub const fn mode_label(mode: Mode) -> &'static str {
    match mode {
        Mode::Nat => "NAT",
        Mode::Ipip => "IPIP",
        Mode::Gue => "GUE",
        Mode::L2 => "L2",
        Mode::Dnat => "DNAT",
        Mode::Here => "here",
    }
}

fn mode_name<S: Serializer>(mode: &Mode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(mode_label(*mode))
}

/// Writes a map as if its values were not shared.
pub(crate) fn shared<V: Serialize, S: Serializer>(
    map: &OrdMap<ServiceKey, Arc<V>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(map.iter().map(|(key, value)| (key, &**value)))
}
