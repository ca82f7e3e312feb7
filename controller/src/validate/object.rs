//! Rules between the fields of one object, and what this version does not support yet.
use super::kubernetes;
use crate::{
    api::{
        AddressPoolSpec, BGPAdvertisementSpec, BGPPeerSpec, BGPRouterSpec, Cidr, ClusterLink,
        LoadBalancerSpec, PacketFilterSpec, PoolUse, Selector,
        address_pool::{
            CLUSTER_NAMES, NODE_MASK, OF_PODS, OF_SERVICES, ONE_BLOCK, ONE_FAMILY, TWO_CLUSTERS,
            UNIQUE_CLUSTERS,
        },
        bgp_advertisement::{OF_BACKENDS, Source},
        bgp_peer::{
            EVERYBODY, HOLD_TIME, KEEPALIVE, KEYS_OF_ADDRESSES, LOCAL_ADDRESS, LOCAL_FAMILY,
            LOCAL_IS_NEIGHBOUR, ON_LINK, ONE_NEIGHBOUR, SHUTDOWN_TEXT, TTL_EXCLUSIVE,
        },
        bgp_router::BmpStation,
        cluster_link::{LINK_NAME, MAX_NAME},
        load_balancer::{
            ADDRESSES_OR_POOL, DIRECT_RETURN_PORT, ONE_BACKEND, Protocol, QUIC_PORT, UNIQUE_PORT_NAMES,
        },
        packet_filter::{
            self, BytesAt, DROPS_EVERYTHING, FLAGS_OF_PROTOCOL, FilterAction, FilterRule, MASK_LENGTH,
            MIN_MAX, PORTS_OF_PROTOCOL, SET_IN_MASK, UNIQUE_RULE_NAMES,
        },
        policy::{ForwardingMode, HealthCheck, NOT_A_PATH, ONE_CHECK, Policy, QUIC_MODE, SOURCE_NAT},
        scalar::quoted,
        selector::{NOT_A_LABEL, is_dns_label},
    },
    object::Object,
};
use bgp_speaker::InterfaceName;
use lb_bpf::abi;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// Field and reason.
pub(super) type Found = (String, String);

/// Everything that is wrong with an object by itself.
pub(super) fn faults(object: &Object) -> Vec<Found> {
    let mut found = Faults(Vec::new());
    match object {
        Object::AddressPool(pool) => found.pool(&pool.spec),
        Object::LoadBalancer(balancer) => found.load_balancer(&balancer.spec),
        Object::BGPRouter(router) => found.router(&router.spec),
        Object::BGPPeer(peer) => found.peer(&peer.spec),
        Object::BGPAdvertisement(advertisement) => found.advertisement(&advertisement.spec),
        Object::PacketFilter(filter) => found.packet_filter(&filter.spec),
        Object::ServicePolicy(policy) => {
            found.selector("serviceSelector", &policy.spec.service_selector);
            found.policy(&policy.spec.policy);
            let needless = policy.spec.policy.quic.is_some()
                && policy.spec.policy.forwarding.mode == ForwardingMode::NAT;
            found.add_if(needless, "policy.quic", QUIC_MODE);
        }
        Object::Service(service) => return kubernetes::service(service),
        Object::EndpointSlice(slice) => return kubernetes::endpoint_slice(slice),
        Object::Node(node) => return kubernetes::node(node),
        Object::ClusterLink(link) => return cluster_link(link),
        Object::Namespace(_) | Object::Secret(_) => {}
    }
    found.0
}

/// Its name is the value of a label.
fn cluster_link(link: &ClusterLink) -> Vec<Found> {
    let is_long = link.metadata.name.as_ref().is_some_and(|name| name.len() > MAX_NAME);
    is_long.then(|| ("metadata.name".to_owned(), LINK_NAME.to_owned())).into_iter().collect()
}

struct Faults(Vec<Found>);

impl Faults {
    /// Notes a fault of a field below `spec`.
    fn add(&mut self, field: impl AsRef<str>, reason: impl Into<String>) {
        self.0.push((format!("spec.{}", field.as_ref()), reason.into()));
    }

    fn add_if(&mut self, wrong: bool, field: impl AsRef<str>, reason: impl Into<String>) {
        if wrong {
            self.add(field, reason);
        }
    }

    fn not_yet(&mut self, used: bool, field: impl AsRef<str>) {
        self.add_if(used, field, "not supported yet");
    }

    fn selector(&mut self, field: &str, selector: &Selector) {
        for (below, reason) in selector.faults() {
            self.add(format!("{field}.{below}"), reason);
        }
    }

    fn pool(&mut self, spec: &AddressPoolSpec) {
        self.selector("nodeSelector", &spec.node_selector);
        self.node_mask(spec);
        self.selector("serviceSelector", &spec.service_selector);
        self.selector("namespaceSelector", &spec.namespace_selector);
        let clusters: BTreeSet<_> = spec.clusters.iter().collect();
        self.add_if(spec.clusters.len() == 1, "clusters", TWO_CLUSTERS);
        self.add_if(clusters.len() < spec.clusters.len(), "clusters", UNIQUE_CLUSTERS);
        self.add_if(!clusters.into_iter().all(|name| is_dns_label(name)), "clusters", CLUSTER_NAMES);
        for (index, block) in spec.blocks.iter().enumerate() {
            let field = format!("blocks[{index}]");
            match (block.cidr, block.start, block.stop) {
                (Some(_), None, None) => {}
                (None, Some(start), Some(stop)) if start.0.is_ipv4() != stop.0.is_ipv4() => {
                    self.add(field.as_str(), ONE_FAMILY);
                }
                (None, Some(start), Some(stop)) if start > stop => {
                    self.add(field.as_str(), format!("start {start} is after stop {stop}"));
                }
                (None, Some(_), Some(_)) => {}
                _ => self.add(field.as_str(), ONE_BLOCK),
            }
            if let Some((first, last)) = block.bounds() {
                let bad =
                    [first, last].into_iter().find_map(|address| Some((address, not_a_service(address)?)));
                if let Some((address, reason)) = bad {
                    self.add(field, format!("{address} is {reason}"));
                }
            }
        }
        for (index, Cidr(reserved)) in spec.reserved.iter().enumerate() {
            let within = |(first, last)| first <= reserved.network() && reserved.broadcast() <= last;
            let inside = spec.blocks.iter().filter_map(crate::api::Block::bounds).any(within);
            self.add_if(
                !inside,
                format!("reserved[{index}]"),
                format!("{reserved} is not within one of the blocks"),
            );
        }
    }

    /// What is for services is not for pods, and the other way round.
    fn node_mask(&mut self, spec: &AddressPoolSpec) {
        let is_for_pods = spec.usage == PoolUse::PodCIDR;
        self.add_if(is_for_pods != spec.node_mask.is_some(), "nodeMask", NODE_MASK);
        self.add_if(is_for_pods && !spec.service_selector.is_everything(), "serviceSelector", OF_SERVICES);
        self.add_if(
            is_for_pods && !spec.namespace_selector.is_everything(),
            "namespaceSelector",
            OF_SERVICES,
        );
        self.add_if(!is_for_pods && !spec.node_selector.is_everything(), "nodeSelector", OF_PODS);
        let Some(mask) = spec.node_mask.as_ref().filter(|_| is_for_pods) else { return };
        for (index, block) in spec.blocks.iter().enumerate() {
            let Some((first, _)) = block.bounds() else { continue };
            let (name, length) = match first {
                IpAddr::V4(_) => ("ipv4", mask.ipv4.map(|length| length.get())),
                IpAddr::V6(_) => ("ipv6", mask.ipv6.map(|length| length.get())),
            };
            let field = format!("blocks[{index}]");
            match (length, block.cidr) {
                (None, _) => self.add(field, format!("needs nodeMask.{name}")),
                (Some(length), Some(Cidr(net))) if net.prefix_len() > length => {
                    self.add(field, format!("{net} is smaller than a block of nodeMask.{name}: {length}"));
                }
                _ => {}
            }
        }
    }

    fn load_balancer(&mut self, spec: &LoadBalancerSpec) {
        self.add_if(spec.pool.is_some() && !spec.addresses.is_empty(), "pool", ADDRESSES_OR_POOL);
        let mut addresses = BTreeMap::new();
        for (index, address) in spec.addresses.iter().enumerate() {
            let field = format!("addresses[{index}]");
            if let Some(reason) = not_a_service(address.0) {
                self.add(field.as_str(), format!("{address} is {reason}"));
            }
            if let Some(first) = addresses.insert(address, index) {
                self.add(field, format!("{address} stands in addresses[{first}] already"));
            }
        }
        self.ports(spec);
        let mut backends = BTreeMap::new();
        for (index, backend) in spec.backends.iter().enumerate() {
            let field = format!("backends[{index}]");
            self.add_if(backend.address.is_some() == backend.service.is_some(), field.as_str(), ONE_BACKEND);
            let Some(address) = &backend.address else { continue };
            if let Some(reason) = not_a_host(address.0) {
                self.add(format!("{field}.address"), format!("{address} is {reason}"));
            }
            let is_frontend = addresses.contains_key(address);
            self.add_if(
                is_frontend,
                format!("{field}.address"),
                format!("{address} is an address of the service"),
            );
            if let Some(first) = backends.insert(address, index) {
                self.add(
                    format!("{field}.address"),
                    format!("{address} stands in backends[{first}] already"),
                );
            }
        }
        // In a tunnel the other family will do.
        let tunnel = spec.policy.forwarding.datapath_mode().is_tunnel();
        let reachable = |address: &IpAddr| {
            tunnel || spec.addresses.iter().any(|vip| vip.0.is_ipv4() == address.is_ipv4())
        };
        if !spec.addresses.is_empty()
            && !backends.is_empty()
            && !backends.keys().any(|address| reachable(&address.0))
        {
            self.add("backends", "none is of the address family of the service's addresses");
        }
        self.policy(&spec.policy);
        self.quic(spec);
    }

    fn quic(&mut self, spec: &LoadBalancerSpec) {
        let Some(quic) = &spec.policy.quic else { return };
        let field = "policy.quic";
        self.add_if(spec.policy.forwarding.mode == ForwardingMode::NAT, field, QUIC_MODE);
        self.add_if(!spec.ports.iter().any(|port| port.protocol == Protocol::UDP), field, QUIC_PORT);
        let bytes = quic.server_id_bytes;
        let mut owners = BTreeMap::new();
        for (index, backend) in spec.backends.iter().enumerate() {
            let Some(address) = backend.address else { continue };
            let is_v4 = address.0.is_ipv4();
            let Some(id) = abi::Addr::from(address.0).server_id(bytes.get().into()) else {
                let reason = format!("must be at most 4: backends[{index}].address is {address}");
                return self.add(format!("{field}.serverIDBytes"), reason);
            };
            // The backends of one service of the datapath are of one family.
            let (first, other) = *owners.entry((is_v4, id)).or_insert((index, address));
            if other != address {
                let reason = format!(
                    "{address} and backends[{first}], {other}, have one QUIC server ID: {field}.serverIDBytes is {bytes}"
                );
                self.add(format!("backends[{index}].address"), reason);
            }
        }
    }

    fn ports(&mut self, spec: &LoadBalancerSpec) {
        let (mut numbers, mut labels) = (BTreeMap::new(), BTreeMap::new());
        for (index, port) in spec.ports.iter().enumerate() {
            let field = format!("ports[{index}]");
            self.name(&field, port.name.as_deref());
            if let Some(first) = numbers.insert((port.protocol, port.port), index) {
                let reason = format!("{:?} {} stands in ports[{first}] already", port.protocol, port.port);
                self.add(field.as_str(), reason);
            } else if let Some(first) = labels.insert(port.label(), index) {
                let reason =
                    format!("{UNIQUE_PORT_NAMES}: ports[{first}] is called {} already", port.label());
                self.add(format!("{field}.name"), reason);
            }
            let translated = port.target() != port.port && spec.policy.forwarding.mode.is_direct_return();
            self.add_if(translated, format!("{field}.targetPort"), DIRECT_RETURN_PORT);
        }
    }

    fn policy(&mut self, policy: &Policy) {
        let forwarding = &policy.forwarding;
        let without_nat = forwarding.mode != ForwardingMode::NAT && forwarding.source_nat.is_some();
        self.add_if(without_nat, "policy.forwarding.sourceNAT", SOURCE_NAT);
        for (list, ranges) in [("allow", &policy.source_ranges.allow), ("deny", &policy.source_ranges.deny)] {
            let mut known = BTreeMap::new();
            for (index, range) in ranges.iter().enumerate() {
                if let Some(first) = known.insert(range, index) {
                    let field = format!("policy.sourceRanges.{list}[{index}]");
                    self.add(field, format!("{range} stands in {list}[{first}] already"));
                }
            }
        }
        if let Some(check) = &policy.health_check {
            self.health_check(check);
        }
    }

    fn health_check(&mut self, check: &HealthCheck) {
        let field = "policy.healthCheck";
        self.add_if(check.tcp.is_some() == check.http.is_some(), field, ONE_CHECK);
        if let Some(http) = &check.http {
            let good = http.path.starts_with('/') && http.path.bytes().all(|byte| byte.is_ascii_graphic());
            let reason = format!("{} {NOT_A_PATH}", quoted(&http.path));
            self.add_if(!good, format!("{field}.http.path"), reason);
        }
    }

    fn router(&mut self, spec: &BGPRouterSpec) {
        self.selector("nodeSelector", &spec.node_selector);
        self.selector("peerSelector", &spec.peer_selector);
        for (index, changes) in spec.overrides.iter().enumerate() {
            self.selector(&format!("overrides[{index}].nodeSelector"), &changes.node_selector);
        }
        for (index, station) in spec.bmp.iter().enumerate() {
            let address = station.address.0;
            if address.is_unspecified() || address.is_multicast() {
                self.add(format!("bmp[{index}].address"), "is nothing that can be dialled");
            }
            let same = |other: &BmpStation| (other.address.0, other.port) == (address, station.port);
            if spec.bmp[..index].iter().any(same) {
                self.add(format!("bmp[{index}]"), "is there more than once");
            }
        }
    }

    fn peer(&mut self, spec: &BGPPeerSpec) {
        let named =
            [spec.address.is_some(), spec.interface.is_some(), spec.discover.is_some(), spec.range.is_some()];
        if named.into_iter().filter(|named| *named).count() != 1 {
            self.0.push(("spec".into(), ONE_NEIGHBOUR.into()));
        }
        if let Some(address) = spec.address {
            let link_local = matches!(address.0, IpAddr::V6(v6) if v6.is_unicast_link_local());
            let reason =
                not_a_host(address.0).or(link_local.then_some("link-local, and no interface is known"));
            if let Some(reason) = reason {
                self.add("address", format!("{address} is {reason}"));
            }
        }
        if let Some(interface) = &spec.interface {
            if let Err(reason) = interface.parse::<InterfaceName>() {
                self.add("interface", format!("{} {reason}", quoted(interface)));
            }
            let far = spec.ttl_security.as_ref().is_some_and(|security| security.hops.get() > 1);
            self.add_if(spec.ebgp_multihop.is_some(), "ebgpMultihop", ON_LINK);
            self.add_if(far, "ttlSecurity", ON_LINK);
            self.add_if(spec.auth.is_some(), "auth", KEYS_OF_ADDRESSES);
        }
        if let Some(range) = &spec.range {
            let (field, Cidr(prefix)) = ("range.prefix", range.prefix);
            if prefix.prefix_len() == 0 {
                self.add(field, EVERYBODY);
            } else if let Some(reason) = not_a_host(prefix.network()) {
                self.add(field, format!("{} is {reason}", prefix.network()));
            }
        }
        if let Some(local) = spec.local_address {
            let field = "localAddress";
            match spec.address {
                None => self.add(field, LOCAL_ADDRESS),
                Some(address) if address.0.is_ipv4() != local.0.is_ipv4() => self.add(field, LOCAL_FAMILY),
                Some(address) => self.add_if(address == local, field, LOCAL_IS_NEIGHBOUR),
            }
            if let Some(reason) = not_a_host(local.0) {
                self.add(field, format!("{local} is {reason}"));
            }
        }
        let text = spec.shutdown.as_deref().unwrap_or_default();
        self.add_if(text.len() > 255, "shutdown", SHUTDOWN_TEXT);
        let timers = &spec.timers;
        self.add_if(matches!(timers.hold_seconds.get(), 1 | 2), "timers", HOLD_TIME);
        let too_slow = u32::from(timers.keepalive()) * 3 > u32::from(timers.hold_seconds.get());
        self.add_if(too_slow, "timers", KEEPALIVE);
        let twice =
            spec.families.iter().enumerate().any(|(index, family)| spec.families[..index].contains(family));
        self.add_if(twice, "families", "the same family stands twice");
        self.add_if(
            spec.ttl_security.is_some() && spec.ebgp_multihop.is_some(),
            "ttlSecurity",
            TTL_EXCLUSIVE,
        );
    }

    fn advertisement(&mut self, spec: &BGPAdvertisementSpec) {
        self.not_yet(spec.source == Source::Interface, "source");
        let counts = spec.source != Source::LoadBalancer && spec.attributes.link_bandwidth.is_some();
        self.add_if(counts, "attributes.linkBandwidth", OF_BACKENDS);
        self.selector("serviceSelector", &spec.service_selector);
        self.selector("poolSelector", &spec.pool_selector);
        self.selector("nodeSelector", &spec.node_selector);
        self.selector("peerSelector", &spec.peer_selector);
    }

    fn packet_filter(&mut self, spec: &PacketFilterSpec) {
        self.selector("nodeSelector", &spec.node_selector);
        let mut labels = BTreeMap::new();
        for (index, rule) in spec.rules.iter().enumerate() {
            let field = format!("rules[{index}]");
            self.name(&field, rule.name.as_deref());
            let label = rule.label(index);
            if let Some(first) = labels.insert(label.clone(), index) {
                let reason = format!("{UNIQUE_RULE_NAMES}: rules[{first}] is called {label} already");
                self.add(format!("{field}.name"), reason);
            }
            self.filter_rule(&field, rule);
        }
    }

    fn filter_rule(&mut self, field: &str, rule: &FilterRule) {
        self.add_if(rule.action == FilterAction::Drop && rule.is_everything(), field, DROPS_EVERYTHING);
        if let (Some(Cidr(source)), Some(Cidr(destination))) = (rule.source, rule.destination) {
            let two_families = source.addr().is_ipv4() != destination.addr().is_ipv4();
            self.add_if(two_families, field, packet_filter::ONE_FAMILY);
        }
        if let Some(protocol) = rule.protocol {
            let ports = rule.source_ports.is_some() || rule.destination_ports.is_some();
            self.add_if(ports && !protocol.has_ports(), field, PORTS_OF_PROTOCOL);
            self.add_if(rule.tcp_flags.is_some() && !protocol.has_tcp_flags(), field, FLAGS_OF_PROTOCOL);
        }
        let reversed = rule.length.is_some_and(|length| length.min > length.max);
        self.add_if(reversed, format!("{field}.length"), MIN_MAX);
        if let Some(flags) = &rule.tcp_flags {
            let outside = flags.set.iter().any(|flag| !flags.mask.contains(flag));
            self.add_if(outside, format!("{field}.tcpFlags"), SET_IN_MASK);
        }
        if let Some(BytesAt { value, mask: Some(mask), .. }) = &rule.bytes {
            let (value, mask, field) = (value.bytes(), mask.bytes(), format!("{field}.bytes"));
            self.add_if(value.len() != mask.len(), field.as_str(), MASK_LENGTH);
            let outside = value.iter().zip(mask).any(|(value, mask)| value & !mask != 0);
            self.add_if(outside, field, "value has bits that mask has not");
        }
    }

    /// The name of a part of an object.
    fn name(&mut self, field: &str, name: Option<&str>) {
        if let Some(name) = name.filter(|name| !is_dns_label(name)) {
            let reason = format!("{} {NOT_A_LABEL}", quoted(name));
            self.add(format!("{field}.name"), reason);
        }
    }
}

/// Why an address cannot be one of a host.
pub(super) fn not_a_host(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if matches!(address, IpAddr::V4(v4) if v4.is_broadcast() || v4.octets()[0] == 0) {
        Some("not an address of a host")
    } else {
        None
    }
}

/// Why an address cannot be one of a service: what is not routed cannot be announced.
pub(super) fn not_a_service(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let loopback = address.is_loopback().then_some("a loopback address");
    not_a_host(address).or(loopback).or(link_local.then_some("link-local"))
}
