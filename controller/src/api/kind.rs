//! The kinds of objects, and the names that each is known by.
use super::{
    AddressPool, BGPAdvertisement, BGPPeer, BGPRouter, ClusterLink, LoadBalancer, NodeState, PacketFilter,
    ServicePolicy,
};
use kube::{CustomResourceExt, Resource};
use std::{fmt, str::FromStr};

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the kinds are documented where they are defined")]
pub enum Kind {
    AddressPool,
    LoadBalancer,
    ServicePolicy,
    BGPRouter,
    BGPPeer,
    BGPAdvertisement,
    PacketFilter,
    ClusterLink,
    NodeState,
    Service,
    EndpointSlice,
    Namespace,
    Node,
    Secret,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 14] = [
        Kind::AddressPool,
        Kind::LoadBalancer,
        Kind::ServicePolicy,
        Kind::BGPRouter,
        Kind::BGPPeer,
        Kind::BGPAdvertisement,
        Kind::PacketFilter,
        Kind::ClusterLink,
        Kind::NodeState,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::Namespace,
        Kind::Node,
        Kind::Secret,
    ];

    /// Whether users declare its objects; of others fairlead says how things are.
    pub fn is_declared(self) -> bool {
        self != Kind::NodeState
    }

    /// Whether the name of an object is `NAMESPACE/NAME`. References to a Secret name no namespace: it is looked for by its
    /// name.
    pub const fn is_namespaced(self) -> bool {
        matches!(self, Kind::Service | Kind::EndpointSlice)
    }

    /// The name as it stands in `kind:`.
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// The name of several, in lower case: `addresspools`.
    pub fn plural(self) -> String {
        match self {
            Kind::AddressPool => AddressPool::plural(&()).into(),
            Kind::LoadBalancer => LoadBalancer::plural(&()).into(),
            Kind::ServicePolicy => ServicePolicy::plural(&()).into(),
            Kind::BGPRouter => BGPRouter::plural(&()).into(),
            Kind::BGPPeer => BGPPeer::plural(&()).into(),
            Kind::BGPAdvertisement => BGPAdvertisement::plural(&()).into(),
            Kind::PacketFilter => PacketFilter::plural(&()).into(),
            Kind::ClusterLink => ClusterLink::plural(&()).into(),
            Kind::NodeState => NodeState::plural(&()).into(),
            Kind::Service => "services".into(),
            Kind::EndpointSlice => "endpointslices".into(),
            Kind::Namespace => "namespaces".into(),
            Kind::Node => "nodes".into(),
            Kind::Secret => "secrets".into(),
        }
    }

    /// Short names: `apool`.
    pub fn short_names(self) -> &'static [&'static str] {
        match self {
            Kind::AddressPool => AddressPool::shortnames(),
            Kind::LoadBalancer => LoadBalancer::shortnames(),
            Kind::ServicePolicy => ServicePolicy::shortnames(),
            Kind::BGPRouter => BGPRouter::shortnames(),
            Kind::BGPPeer => BGPPeer::shortnames(),
            Kind::BGPAdvertisement => BGPAdvertisement::shortnames(),
            Kind::PacketFilter => PacketFilter::shortnames(),
            Kind::ClusterLink => ClusterLink::shortnames(),
            Kind::NodeState => NodeState::shortnames(),
            Kind::Service => &["svc"],
            Kind::Namespace => &["ns"],
            Kind::Node => &["no"],
            Kind::EndpointSlice | Kind::Secret => &[],
        }
    }

    /// `apiVersion` of its objects.
    pub const fn api_version(self) -> &'static str {
        match self {
            Kind::Service | Kind::Namespace | Kind::Node | Kind::Secret => "v1",
            Kind::EndpointSlice => "discovery.k8s.io/v1",
            _ => super::API_VERSION,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Reads a kind as users write it on a command line: its name, its plural or a short name, in any case.
impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.to_ascii_lowercase();
        let known = |kind: &Kind| {
            kind.name().to_ascii_lowercase() == text
                || kind.plural() == text
                || kind.short_names().contains(&&*text)
        };
        Kind::ALL.into_iter().find(known).ok_or_else(|| {
            let names: Vec<_> = Kind::ALL.iter().map(Kind::to_string).collect();
            format!("{} is not a kind: {}", super::scalar::quoted(&text), names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_understood_and_unique() {
        for kind in Kind::ALL {
            let short = kind.short_names().iter().map(|name| (*name).to_owned());
            for name in [kind.name(), kind.plural()].into_iter().chain(short) {
                assert_eq!(name.parse(), Ok(kind));
            }
        }
        assert!("pod".parse::<Kind>().is_err());
    }
}
