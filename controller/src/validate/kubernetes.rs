//! Rules for Kubernetes' own kinds in files: what an API server would refuse, as far as it counts here.
use super::object::{Found, not_a_host, not_a_service};
use crate::api::{
    Address, Cidr, EndpointSlice,
    endpoint_slice::AddressType,
    node::{POD_CIDR_BLOCKS, internal_addresses, pod_cidr_blocks},
    scalar::quoted,
    service::{Requested, is_ours, source_ranges},
};
use k8s_openapi::api::core::v1::{Node, Service, ServicePort};
use std::collections::BTreeMap;

/// Services that are none of ours are Kubernetes' business.
pub(super) fn service(service: &Service) -> Vec<Found> {
    let Some(spec) = service.spec.as_ref().filter(|_| is_ours(service)) else { return Vec::new() };
    let mut found = Vec::new();
    let mut add = |field: String, reason: String| found.push((field, reason));
    match Requested::of(service) {
        Err((field, reason)) => add(field, reason),
        Ok(requested) => {
            for address in requested.addresses {
                if let Some(reason) = not_a_service(address.0) {
                    add("metadata.annotations".into(), format!("{address} is {reason}"));
                }
            }
        }
    }
    if let Err((index, reason)) = source_ranges(spec) {
        add(format!("spec.loadBalancerSourceRanges[{index}]"), reason);
    }
    for (field, value, words) in [
        ("externalTrafficPolicy", &spec.external_traffic_policy, &["Cluster", "Local"][..]),
        ("internalTrafficPolicy", &spec.internal_traffic_policy, &["Cluster", "Local"]),
        ("sessionAffinity", &spec.session_affinity, &["None", "ClientIP"]),
        ("ipFamilyPolicy", &spec.ip_family_policy, &["SingleStack", "PreferDualStack", "RequireDualStack"]),
        (
            "trafficDistribution",
            &spec.traffic_distribution,
            &["PreferClose", "PreferSameZone", "PreferSameNode"],
        ),
    ] {
        if let Some(reason) = value.as_deref().and_then(|value| none_of(value, words)) {
            add(format!("spec.{field}"), reason);
        }
    }
    for (index, family) in spec.ip_families.iter().flatten().enumerate() {
        if let Some(reason) = none_of(family, &["IPv4", "IPv6"]) {
            add(format!("spec.ipFamilies[{index}]"), reason);
        }
    }
    if spec.ports.iter().flatten().next().is_none() {
        add("spec.ports".into(), "is missing".into());
    }
    ports(spec.ports.as_deref().unwrap_or_default(), &mut found);
    found
}

fn ports(ports: &[ServicePort], found: &mut Vec<Found>) {
    let (mut numbers, mut names) = (BTreeMap::new(), BTreeMap::new());
    for (index, port) in ports.iter().enumerate() {
        let mut add =
            |field: &str, reason: String| found.push((format!("spec.ports[{index}]{field}"), reason));
        if !is_port(port.port) {
            add(".port", format!("{} is not a port (1 to 65535)", port.port));
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        if let Some(reason) = none_of(protocol, &["TCP", "UDP", "SCTP"]) {
            add(".protocol", reason);
        }
        if let Some(first) = numbers.insert((protocol, port.port), index) {
            add("", format!("{protocol} {} stands in ports[{first}] already", port.port));
        }
        match port.name.as_deref().filter(|name| !name.is_empty()) {
            None if ports.len() > 1 => add(".name", "is missing: there are several ports".into()),
            None => {}
            Some(name) => {
                if let Some(first) = names.insert(name, index) {
                    add(".name", format!("must be unique: ports[{first}] is called {name} already"));
                }
            }
        }
    }
}

pub(super) fn endpoint_slice(slice: &EndpointSlice) -> Vec<Found> {
    let mut found = Vec::new();
    for (index, port) in slice.ports.iter().enumerate() {
        if let Some(number) = port.port.filter(|number| !is_port(*number)) {
            found.push((format!("ports[{index}].port"), format!("{number} is not a port (1 to 65535)")));
        }
    }
    for (index, endpoint) in slice.endpoints.iter().enumerate() {
        let address = Address(endpoint.address);
        let reason = match not_a_host(address.0) {
            _ if address.0.is_ipv4() != (slice.address_type == AddressType::IPv4) => {
                format!("{address} is not of the type {:?}", slice.address_type)
            }
            Some(reason) => format!("{address} is {reason}"),
            None => continue,
        };
        found.push((format!("endpoints[{index}].addresses[0]"), reason));
    }
    found
}

pub(super) fn node(node: &Node) -> Vec<Found> {
    let cidrs = node.spec.iter().flat_map(|spec| spec.pod_cidrs.iter().flatten()).enumerate();
    let bad = cidrs
        .filter_map(|(index, text)| Some((format!("spec.podCIDRs[{index}]"), text.parse::<Cidr>().err()?)));
    let count = pod_cidr_blocks(node).err();
    let count = count.map(|reason| (format!("metadata.annotations.{POD_CIDR_BLOCKS}"), reason));
    let addresses = internal_addresses(node).filter_map(|(index, text)| {
        Some((format!("status.addresses[{index}].address"), not_an_address(text)?))
    });
    bad.chain(count).chain(addresses).collect()
}

/// Why a text is no address of a host.
fn not_an_address(text: &str) -> Option<String> {
    match text.parse::<Address>() {
        Err(reason) => Some(reason),
        Ok(address) => not_a_host(address.0).map(|reason| format!("{address} is {reason}")),
    }
}

fn is_port(number: i32) -> bool {
    (1..=65535).contains(&number)
}

/// Why a word is not one of those that there are.
fn none_of(word: &str, words: &[&str]) -> Option<String> {
    (!words.contains(&word)).then(|| format!("{} is none of {}", quoted(word), words.join(", ")))
}
