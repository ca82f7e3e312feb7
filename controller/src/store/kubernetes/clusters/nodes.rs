//! The nodes of another cluster: how its pods are reached through them, and which pod CIDRs they have. Pure.
use super::overlap::{Networks, NodeNetworks};
use crate::{
    api::{
        EndpointSlice,
        delivery::{DeliveredPort, DeliveringNode, Delivery},
        load_balancer::Protocol,
    },
    mcs::{Facts, ImportPort},
};
use ipam::Family;
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

/// Nodes by their names.
#[derive(Debug, Default)]
pub(super) struct Nodes(HashMap<String, NodeNetworks>);

impl Nodes {
    /// Takes in a node. Whether it was another one, or is a new one.
    pub(super) fn put(&mut self, node: &Node) -> bool {
        let known = NodeNetworks::from(node);
        let name = node.metadata.name.clone().unwrap_or_default();
        let is_same = self.0.get(&name) == Some(&known);
        if !is_same {
            self.0.insert(name, known);
        }
        !is_same
    }

    /// What they have.
    pub(super) fn networks(&self) -> Networks {
        Networks::of(&self.0)
    }

    /// Where a node takes packets for its pods: its first address of each family.
    fn addresses(&self, name: &str) -> Option<Box<[IpAddr]>> {
        let all = &self.0.get(name)?.addresses;
        let first = |family| all.iter().copied().find(|address| Family::of(*address) == family);
        Some(Family::ALL.into_iter().filter_map(first).collect())
    }

    /// Whether it was there.
    pub(super) fn forget(&mut self, metadata: &ObjectMeta) -> bool {
        metadata.name.as_ref().is_some_and(|name| self.0.remove(name).is_some())
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// A slice as it is imported.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) slice: Arc<EndpointSlice>,
    /// The node that each of its endpoints is on, in their order; none: none of them says so.
    nodes: Option<Box<[Option<Arc<str>>]>>,
}

impl Listed {
    /// `imported` is what becomes of the slice.
    pub(super) fn new(slice: &EndpointSlice, imported: EndpointSlice) -> Self {
        let nodes = slice.endpoints.iter().map(|endpoint| endpoint.node_name().cloned());
        let nodes =
            slice.endpoints.iter().any(|endpoint| endpoint.node_name().is_some()).then(|| nodes.collect());
        Listed { slice: Arc::new(imported), nodes }
    }

    /// Name of the imported slice.
    pub(super) fn name(&self) -> &str {
        &self.slice.metadata.name
    }

    /// Says how its pods are reached, by the addresses of its service and what else counts of that (none: it has no addresses), and
    /// how packets to it are forwarded there.
    pub(super) fn set_delivery(
        &mut self,
        service: Option<(&[IpAddr], &Facts)>,
        mode: Option<&str>,
        nodes: &Nodes,
    ) {
        let delivery =
            service.map(|(addresses, facts)| Box::new(self.delivery(addresses, facts, mode, nodes)));
        let Some(before) = &self.slice.metadata.import else { return };
        if before.delivery != delivery {
            let mut import = (**before).clone();
            import.delivery = delivery;
            Arc::make_mut(&mut self.slice).metadata.import = Some(Arc::new(import));
        }
    }

    fn delivery(&self, addresses: &[IpAddr], facts: &Facts, mode: Option<&str>, nodes: &Nodes) -> Delivery {
        let mut by_node: BTreeMap<&str, Vec<IpAddr>> = BTreeMap::new();
        for (endpoint, node) in self.slice.endpoints.iter().zip(self.nodes.iter().flatten()) {
            if let Some(node) = node {
                by_node.entry(node).or_default().push(endpoint.address);
            }
        }
        let node = |(name, mut endpoints): (&str, Vec<IpAddr>)| {
            let addresses = nodes.addresses(name).filter(|addresses| !addresses.is_empty())?;
            endpoints.sort_unstable();
            Some(DeliveringNode { name: name.into(), addresses, endpoints: endpoints.into() })
        };
        let mut ports: Vec<_> = facts.ports.iter().filter_map(port).collect();
        ports.sort_unstable();
        let mut addresses = addresses.to_vec();
        addresses.sort_unstable();
        Delivery {
            addresses: addresses.into(),
            ports: ports.into(),
            nodes: by_node.into_iter().filter_map(node).collect(),
            mode: mode.map(Into::into),
        }
    }
}

/// A port that nodes deliver for.
fn port(port: &ImportPort) -> Option<DeliveredPort> {
    let protocol = match port.protocol.as_str() {
        "TCP" => Protocol::TCP,
        "UDP" => Protocol::UDP,
        _ => return None,
    };
    Some(DeliveredPort { protocol, port: u16::try_from(port.port).ok()? })
}
