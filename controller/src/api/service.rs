//! Kubernetes' Service (v1) as we read it: whether it is ours, which addresses it asks for, and its status in both
//! directions.
use super::{
    LoadBalancerStatus,
    load_balancer::AssignedAddress,
    scalar::{Address, Cidr, quoted},
};
use k8s_openapi::{
    api::core::v1::{
        LoadBalancerIngress, LoadBalancerStatus as Ingress, Service, ServiceSpec, ServiceStatus,
    },
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use serde_json::Value;
use std::collections::BTreeSet;

/// `spec.loadBalancerClass` of the Services that are ours.
pub const CLASS: &str = "fairlead.dev/lb";

/// Whether we balance it: a Service of type LoadBalancer and of our [`CLASS`].
pub fn is_ours(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.is_some_and(|spec| {
        spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.as_deref() == Some(CLASS)
    })
}

/// Gives a Service (JSON) of type LoadBalancer that has no class ours: where we are the class of those that say nothing.
pub fn adopt(service: &mut Value) {
    let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if spec.get("type").is_some_and(|kind| kind == "LoadBalancer") {
        let class = spec.entry("loadBalancerClass").or_insert(Value::Null);
        if class.is_null() {
            *class = CLASS.into();
        }
    }
}

/// Annotations that ask for addresses; the first that is there counts, `spec.loadBalancerIP` after them.
const ADDRESSES: [&str; 5] = [
    "fairlead.dev/addresses",
    "metallb.io/loadBalancerIPs",
    "metallb.universe.tf/loadBalancerIPs",
    "lbipam.cilium.io/ips",
    "io.cilium/lb-ipam-ips",
];
/// Annotations that ask for a pool.
const POOL: [&str; 3] = ["fairlead.dev/pool", "metallb.io/address-pool", "metallb.universe.tf/address-pool"];
/// Annotations with the key of Services that may share an address.
const SHARE: [&str; 5] = [
    "fairlead.dev/share",
    "metallb.io/allow-shared-ip",
    "metallb.universe.tf/allow-shared-ip",
    "lbipam.cilium.io/sharing-key",
    "io.cilium/lb-ipam-sharing-key",
];
/// Most addresses that a Service may ask for.
const MAX_ADDRESSES: usize = 32;

/// The addresses that a Service asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requested<'a> {
    /// Exactly these; empty: any.
    pub addresses: BTreeSet<Address>,
    /// Given from this pool; none: from any that matches.
    pub pool: Option<&'a str>,
    /// Services with the same key may have the same address, on disjoint ports.
    pub share: Option<&'a str>,
}

impl<'a> Requested<'a> {
    /// What the annotations and `spec.loadBalancerIP` say.
    ///
    /// # Errors
    /// Field and reason. An empty annotation counts as none.
    pub fn of(service: &'a Service) -> Result<Self, (String, String)> {
        let spec = service.spec.as_ref();
        let own = spec.and_then(|spec| spec.load_balancer_ip.as_deref()).filter(|text| !text.is_empty());
        let own = own.map(|text| ("spec.loadBalancerIP".to_owned(), text));
        let Some((field, text)) = annotation(service, &ADDRESSES).or(own) else {
            let pool = annotation(service, &POOL).map(|(_, pool)| pool);
            return Ok(Requested { addresses: BTreeSet::new(), pool, share: share(service) });
        };
        let mut addresses = BTreeSet::new();
        for text in text.split(',') {
            let address: Address = text.trim().parse().map_err(|reason| (field.clone(), reason))?;
            addresses.insert(address);
        }
        if addresses.len() > MAX_ADDRESSES {
            return Err((field, format!("{} addresses are more than {MAX_ADDRESSES}", addresses.len())));
        }
        if let Some((field, _)) = annotation(service, &POOL) {
            return Err((field, super::load_balancer::ADDRESSES_OR_POOL.to_owned()));
        }
        Ok(Requested { addresses, pool: None, share: share(service) })
    }
}

fn share(service: &Service) -> Option<&str> {
    annotation(service, &SHARE).map(|(_, key)| key)
}

/// Field and value of the first annotation that is there and not empty.
fn annotation<'a>(service: &'a Service, keys: &[&str]) -> Option<(String, &'a str)> {
    let annotations = service.metadata.annotations.as_ref()?;
    let value = |key: &str| annotations.get(key).map(|value| value.trim()).filter(|value| !value.is_empty());
    keys.iter().find_map(|key| Some((format!("metadata.annotations.{key}"), value(key)?)))
}

/// Clients that `spec.loadBalancerSourceRanges` lets in; empty: all.
///
/// # Errors
/// The index of one that is no CIDR, and why.
pub fn source_ranges(spec: &ServiceSpec) -> Result<Vec<Cidr>, (usize, String)> {
    let ranges = spec.load_balancer_source_ranges.iter().flatten().enumerate();
    // As kube-proxy does: spaces around a range do not count, nor do bits beyond its length.
    let range = |(index, text): (usize, &String)| {
        let net = text.trim().parse::<ipnet::IpNet>();
        let net = net.map_err(|_| (index, format!("{} is not a CIDR", quoted(text))))?;
        net.trunc().to_string().parse().map_err(|reason| (index, reason))
    };
    ranges.map(range).collect()
}

/// How the types of our conditions begin in the status of a Service: others have conditions there, too, which are theirs.
const OURS: &str = "fairlead.dev/";
/// Type of the condition that keeps, in the status of a Service, the pools of its addresses.
const POOLS: &str = "Pools";

/// Our status as that of a Service: `loadBalancer.ingress` and conditions. Which pools the addresses are of stands in
/// a condition of its own, so that both are written at once; [`status_of`] reads it back.
pub fn kubernetes_status(status: &LoadBalancerStatus) -> ServiceStatus {
    let ingress = |assigned: &AssignedAddress| LoadBalancerIngress {
        ip: Some(assigned.address.to_string()),
        ip_mode: Some("VIP".to_owned()),
        ..LoadBalancerIngress::default()
    };
    let ingress: Vec<_> = status.addresses.iter().map(ingress).collect();
    let mut conditions = status.conditions.clone();
    if let Some(last) = status.addresses.iter().map(|assigned| &assigned.assigned_at.0).max() {
        let pool = |a: &AssignedAddress| format!("{} of {}", a.address, a.pool.as_deref().unwrap_or(NO_POOL));
        let at = conditions.partition_point(|condition| condition.type_.as_str() < POOLS);
        let pools = Condition {
            type_: POOLS.to_owned(),
            status: "True".to_owned(),
            reason: "Assigned".to_owned(),
            message: status.addresses.iter().map(pool).collect::<Vec<_>>().join(", "),
            last_transition_time: Time(*last),
            observed_generation: status.observed_generation,
        };
        conditions.insert(at, pools);
    }
    conditions.iter_mut().for_each(|condition| condition.type_.insert_str(0, OURS));
    ServiceStatus {
        conditions: Some(conditions),
        load_balancer: Some(Ingress { ingress: Some(ingress).filter(|ingress| !ingress.is_empty()) }),
    }
}

/// Whether both have the same [`kubernetes_status`], but for the times of addresses, of which only the latest stands there.
pub fn is_same_in_kubernetes(one: &LoadBalancerStatus, other: &LoadBalancerStatus) -> bool {
    one.observed_generation == other.observed_generation
        && one.conditions == other.conditions
        && one.addresses == other.addresses
}

/// How the condition [`POOLS`] calls what is no pool; no pool has this name, for it has a space.
const NO_POOL: &str = "no pool";

/// Our status from that of a Service, as [`kubernetes_status`] wrote it. Addresses that somebody else wrote are
/// adopted, as of no pool; entries that are no addresses are not, nor are conditions of others.
pub fn status_of(service: &Service) -> LoadBalancerStatus {
    let Some(status) = &service.status else { return LoadBalancerStatus::default() };
    let own = |condition: &Condition| {
        let type_ = condition.type_.strip_prefix(OURS)?.to_owned();
        Some(Condition { type_, ..condition.clone() })
    };
    let own = status.conditions.iter().flatten().filter_map(own);
    let (pools, mut conditions): (Vec<_>, Vec<_>) = own.partition(|condition| condition.type_ == POOLS);
    // The API server appends what is new.
    conditions.sort_by(|one, other| one.type_.cmp(&other.type_));
    let pools = pools.first();
    let pool = |address: Address| {
        let entries = pools?.message.split(", ").filter_map(|entry| entry.split_once(" of "));
        let mut own = entries.filter(|(text, _)| text.parse() == Ok(address));
        own.next().map(|(_, pool)| pool.to_owned()).filter(|pool| pool != NO_POOL)
    };
    let ingress = status.load_balancer.iter().flat_map(|balancer| balancer.ingress.iter().flatten());
    let mut addresses: Vec<_> = ingress
        .filter_map(|ingress| ingress.ip.as_ref()?.parse::<Address>().ok())
        .map(|address| AssignedAddress {
            address,
            pool: pool(address),
            assigned_at: pools
                .map_or_else(|| crate::status::time(0), |pools| pools.last_transition_time.clone()),
        })
        .collect();
    addresses.sort_by_key(|assigned| assigned.address);
    addresses.dedup_by_key(|assigned| assigned.address);
    LoadBalancerStatus {
        observed_generation: conditions.iter().find_map(|condition| condition.observed_generation),
        conditions,
        addresses,
        ..LoadBalancerStatus::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(yaml: &str) -> Service {
        serde_yaml_ng::from_str(yaml).unwrap()
    }

    fn requested(yaml: &str) -> String {
        match Requested::of(&service(yaml)) {
            Ok(Requested { addresses, pool, share }) => {
                let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                format!("{} {} {}", addresses.join("+"), pool.unwrap_or("-"), share.unwrap_or("-"))
            }
            Err((field, reason)) => format!("{field}: {reason}"),
        }
    }

    #[test]
    fn annotations_that_users_know_are_read() {
        let annotated =
            |annotations: &str| requested(&format!("metadata: {{annotations: {{{annotations}}}}}"));
        assert_eq!(annotated(""), " - -");
        assert_eq!(
            annotated("fairlead.dev/addresses: '192.0.2.1, 2001:db8::1'"),
            "192.0.2.1+2001:db8::1 - -"
        );
        for key in ADDRESSES {
            assert_eq!(annotated(&format!("{key}: 192.0.2.1")), "192.0.2.1 - -");
            assert!(
                annotated(&format!("{key}: 192.0.2.1.1"))
                    .starts_with(&format!("metadata.annotations.{key}: "))
            );
        }
        assert_eq!(
            annotated("metallb.io/loadBalancerIPs: 192.0.2.2, fairlead.dev/addresses: 192.0.2.1"),
            "192.0.2.1 - -"
        );
        assert_eq!(annotated("fairlead.dev/pool: vips, fairlead.dev/share: k"), " vips k");
        assert_eq!(
            annotated("fairlead.dev/pool: vips, fairlead.dev/addresses: 192.0.2.1"),
            "metadata.annotations.fairlead.dev/pool: addresses and pool exclude each other"
        );
        assert_eq!(requested("spec: {loadBalancerIP: 192.0.2.9}"), "192.0.2.9 - -");
        let many: Vec<_> = (0..33).map(|n| format!("192.0.2.{n}")).collect();
        assert!(
            annotated(&format!("fairlead.dev/addresses: '{}'", many.join(",")))
                .ends_with("33 addresses are more than 32")
        );
    }

    #[test]
    fn a_status_comes_back_as_written() {
        let assigned = |text: &str, pool: Option<&str>| AssignedAddress {
            address: text.parse().unwrap(),
            pool: pool.map(str::to_owned),
            assigned_at: crate::status::time(1_000),
        };
        let mut conditions = crate::status::Conditions::new(&[], None, 2_000);
        conditions.set("Announced", true, "Announced", "to 1 of 1 peers");
        conditions.set("Programmed", true, "Installed", "1 of 1");
        let status = LoadBalancerStatus {
            conditions: conditions.finish(),
            addresses: vec![assigned("192.0.2.1", Some("of.vips")), assigned("2001:db8::1", None)],
            ..LoadBalancerStatus::default()
        };
        let written = kubernetes_status(&status);
        let types: Vec<_> = written.conditions.iter().flatten().map(|c| c.type_.as_str()).collect();
        assert_eq!(types, ["fairlead.dev/Announced", "fairlead.dev/Pools", "fairlead.dev/Programmed"]);
        let mut service = service("metadata: {name: web}");
        service.status = Some(written);
        // In any order, and beside those of others.
        let all = service.status.as_mut().unwrap().conditions.as_mut().unwrap();
        let others = ["Programmed", "example.com/Programmed"];
        all.extend(others.map(|other| Condition { type_: other.to_owned(), ..all[0].clone() }));
        all.reverse();
        assert_eq!(status_of(&service), status);
        let more = LoadBalancerStatus { backends: 3, programmed_nodes: Some(1), ..status.clone() };
        assert!(
            is_same_in_kubernetes(&more, &status) && kubernetes_status(&more) == kubernetes_status(&status)
        );
        let mut moved = status.clone();
        moved.addresses.pop();
        assert!(!is_same_in_kubernetes(&moved, &status));
        let strange = "status: {loadBalancer: {ingress: [{hostname: a}, {ip: nonsense}, {ip: 192.0.2.1}, {ip: 192.0.2.1}]}}";
        assert_eq!(status_of(&self::service(strange)).addresses.len(), 1);
    }

    #[test]
    fn source_ranges_are_read_as_kube_proxy_does() {
        let ranges = |yaml: &str| source_ranges(&service(yaml).spec.unwrap());
        let read = ranges("spec: {loadBalancerSourceRanges: [' 192.0.2.9/24 ', '2001:db8::/32']}").unwrap();
        assert_eq!(
            read.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["192.0.2.0/24", "2001:db8::/32"]
        );
        assert_eq!(ranges("spec: {loadBalancerSourceRanges: ['0.0.0.0/0', a]}").unwrap_err().0, 1);
    }
}
