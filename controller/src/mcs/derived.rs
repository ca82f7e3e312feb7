//! The derived Service: what stands behind a ServiceImport that is not headless, as the reference implementation of KEP-1645 has it. It
//! has no selector. The API server hands its addresses out, which become those of the ServiceImport, and what stands for Services on
//! the nodes (kube-proxy) brings traffic for them to the imported slices, which name it. Pure.
use super::{Facts, IMPORT_MANAGED_BY, Import, ImportPort, MANAGER, SERVICE_NAME, hash};
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};
use std::{net::IpAddr, sync::Arc};

/// Annotation of a ServiceImport with the name of its derived Service.
pub const DERIVED_SERVICE: &str = "multicluster.kubernetes.io/derived-service";

/// The `ipFamilyPolicy` of a Service that has what it needs of one family.
const SINGLE_STACK: &str = "SingleStack";
/// That of one that has an address of each family that the cluster has.
const PREFER_DUAL_STACK: &str = "PreferDualStack";

/// What is kept of a derived Service.
#[derive(Clone, Debug, PartialEq)]
pub struct Derived {
    /// `resourceVersion`.
    pub version: Box<str>,
    facts: Arc<Facts>,
    addresses: Box<[IpAddr]>,
    /// Whether it has all families that the cluster has.
    is_dual: bool,
}

/// Name of the Service that is derived for an imported one, in the same namespace.
pub fn derived_name(namespace: &str, service: &str) -> String {
    format!("derived-{:016x}", hash(&[namespace.as_bytes(), service.as_bytes()]))
}

impl Derived {
    /// `NAMESPACE/NAME` of the imported service, and what is kept of the one that is derived for it; none: it is not derived by us.
    pub fn of(service: &Service) -> Option<(String, Self)> {
        let (metadata, spec) = (&service.metadata, service.spec.as_ref()?);
        let labels = metadata.labels.as_ref()?;
        let (namespace, name) = (metadata.namespace.as_deref()?, labels.get(SERVICE_NAME)?);
        let is_ours = labels.get(IMPORT_MANAGED_BY).is_some_and(|by| by == MANAGER)
            && metadata.name.as_ref() == Some(&derived_name(namespace, name));
        let first = spec.cluster_ip.iter().filter(|_| spec.cluster_ips.is_none());
        let addresses = spec.cluster_ips.iter().flatten().chain(first);
        let derived = Derived {
            version: metadata.resource_version.as_deref().unwrap_or_default().into(),
            facts: Facts::of(service).ok()?.shared(),
            addresses: addresses.filter_map(|address| address.parse().ok()).collect(),
            is_dual: spec.ip_family_policy.as_deref().is_some_and(|policy| policy != SINGLE_STACK),
        };
        is_ours.then(|| ([namespace, "/", name].concat(), derived))
    }

    /// The Service that is to be made for an import, `NAMESPACE/NAME`.
    pub fn object(name: &str, import: &Import) -> Value {
        let (namespace, service) = name.split_once('/').unwrap_or(("default", name));
        let mut spec = spec(&import.facts);
        match import.facts.ip_families.as_slice() {
            [] => {}
            [family] => {
                spec["ipFamilyPolicy"] = SINGLE_STACK.into();
                spec["ipFamilies"] = json!([family]);
            }
            // Families that a cluster does not have may be asked for in no other way.
            _ => spec["ipFamilyPolicy"] = PREFER_DUAL_STACK.into(),
        }
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "namespace": namespace,
                "name": derived_name(namespace, service),
                "labels": {IMPORT_MANAGED_BY: MANAGER, SERVICE_NAME: service},
            },
            "spec": spec,
        })
    }

    /// The merge patch that makes it as the import wants it, if it is of this version still; none: it is so. Addresses stay: more
    /// families than are wanted do no harm.
    pub fn patch(&self, import: &Import) -> Option<Value> {
        let wanted = &import.facts;
        let has = |family: &String| self.addresses.iter().any(|address| family_of(address) == family);
        let lacks_family = !self.is_dual && !wanted.ip_families.iter().all(has);
        let mut spec = spec(wanted);
        if lacks_family {
            spec["ipFamilyPolicy"] = PREFER_DUAL_STACK.into();
        }
        let is_other = lacks_family || self::spec(&self.facts) != self::spec(wanted);
        is_other.then(|| json!({"metadata": {"resourceVersion": self.version}, "spec": spec}))
    }

    /// The import with the addresses that are there for it, in the order of its families. Families that the cluster does not have
    /// are left out; none: there is no address at all.
    pub fn give(&self, import: &Import) -> Option<Import> {
        let families = &import.facts.ip_families;
        let of = |family: &String| {
            let family = family.clone();
            self.addresses.iter().copied().filter(move |address| family_of(address) == family)
        };
        let ips: Vec<_> = match families.is_empty() {
            true => self.addresses.to_vec(),
            false => families.iter().flat_map(of).collect(),
        };
        let ip_families = ips.iter().map(|address| family_of(address).to_owned()).collect();
        let facts = Facts { ip_families, ..(*import.facts).clone() }.shared();
        (!ips.is_empty()).then(|| Import { facts, ips, ..import.clone() })
    }
}

fn family_of(address: &IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// What of a spec follows from the import, with the values that an API server sets where nothing is said.
fn spec(facts: &Facts) -> Value {
    let port = |ImportPort { name, protocol, app_protocol, port }: &ImportPort| {
        let mut object = json!({"protocol": protocol, "port": port});
        // A port of an empty name is no port without a name.
        if !name.is_empty() {
            object["name"] = name.as_str().into();
        }
        if let Some(app_protocol) = app_protocol {
            object["appProtocol"] = app_protocol.as_str().into();
        }
        object
    };
    let affinity = facts.session_affinity.as_deref().unwrap_or("None");
    let client_ip = facts.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let timeout = client_ip.and_then(|config| config.timeout_seconds).unwrap_or(10800);
    let config = (affinity == "ClientIP").then(|| json!({"clientIP": {"timeoutSeconds": timeout}}));
    json!({
        "type": "ClusterIP",
        "ports": facts.ports.iter().map(port).collect::<Vec<_>>(),
        "sessionAffinity": affinity,
        "sessionAffinityConfig": config,
        "internalTrafficPolicy": facts.internal_traffic_policy.as_deref().unwrap_or("Cluster"),
        "trafficDistribution": facts.traffic_distribution,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn import(spec: &str) -> Import {
        let service: Service = serde_yaml_ng::from_str(&format!("spec: {spec}")).unwrap();
        Import { facts: Facts::of(&service).unwrap().shared(), ..Import::default() }
    }

    /// What an API server makes of a Service.
    fn made(import: &Import, addresses: &[&str]) -> Service {
        let mut object = Derived::object("shop/web", import);
        object["metadata"]["resourceVersion"] = "7".into();
        let spec = &mut object["spec"];
        spec["clusterIP"] = addresses[0].into();
        spec["clusterIPs"] = json!(addresses);
        for port in spec["ports"].as_array_mut().unwrap() {
            port["targetPort"] = port["port"].clone();
        }
        serde_json::from_value(object).unwrap()
    }

    fn derived(import: &Import, addresses: &[&str]) -> Derived {
        let (name, derived) = Derived::of(&made(import, addresses)).unwrap();
        assert_eq!(name, "shop/web");
        derived
    }

    #[test]
    fn it_is_made_for_the_families_of_the_import() {
        let families = |spec: &str| {
            let spec = Derived::object("shop/web", &import(spec))["spec"].clone();
            (spec["ipFamilyPolicy"].clone(), spec["ipFamilies"].clone())
        };
        assert_eq!(families("{}"), (Value::Null, Value::Null));
        assert_eq!(families("{ipFamilies: [IPv6]}"), (json!("SingleStack"), json!(["IPv6"])));
        assert_eq!(families("{ipFamilies: [IPv6, IPv4]}"), (json!("PreferDualStack"), Value::Null));
        assert_eq!(
            Derived::object("shop/web", &import("{}"))["metadata"],
            json!({"namespace": "shop", "name": derived_name("shop", "web"), "labels": {
                "app.kubernetes.io/managed-by": "clusters.fairlead.dev",
                "multicluster.kubernetes.io/service-name": "web",
            }})
        );
    }

    #[test]
    fn what_an_api_server_fills_in_is_no_difference() {
        let plain = import("{ports: [{port: 80}], ipFamilies: [IPv4]}");
        let service = derived(&plain, &["10.96.0.5"]);
        assert_eq!(service.patch(&plain), None);
        let said = "{ports: [{port: 80, protocol: TCP}], ipFamilies: [IPv4], sessionAffinity: None, internalTrafficPolicy: Cluster}";
        assert_eq!(service.patch(&import(said)), None);
        let bound = import("{ports: [{port: 80}], sessionAffinity: ClientIP}");
        let service = derived(&bound, &["10.96.0.5"]);
        let ten = "{ports: [{port: 80}], sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 10800}}}";
        assert_eq!(service.patch(&import(ten)), None);
    }

    #[test]
    fn a_difference_is_patched_in_the_version_that_is_known() {
        let before = import("{ports: [{port: 80}], trafficDistribution: PreferClose, ipFamilies: [IPv4]}");
        let service = derived(&before, &["10.96.0.5"]);
        let patch = service.patch(&import("{ports: [{port: 81}], ipFamilies: [IPv4]}")).unwrap();
        assert_eq!(patch["metadata"], json!({"resourceVersion": "7"}));
        assert_eq!(patch["spec"]["ports"], json!([{"protocol": "TCP", "port": 81}]));
        assert_eq!(patch["spec"].get("trafficDistribution"), Some(&Value::Null));
        assert_eq!(patch["spec"].get("ipFamilyPolicy"), None);
    }

    #[test]
    fn a_family_more_is_asked_for_and_one_less_stays() {
        let of = |families: &str| import(&format!("{{ports: [{{port: 80}}], ipFamilies: [{families}]}}"));
        let one = derived(&of("IPv4"), &["10.96.0.5"]);
        assert_eq!(one.patch(&of("IPv4, IPv6")).unwrap()["spec"]["ipFamilyPolicy"], "PreferDualStack");
        assert_eq!(one.patch(&of("IPv6")).unwrap()["spec"]["ipFamilyPolicy"], "PreferDualStack");
        let both = derived(&of("IPv4, IPv6"), &["10.96.0.5", "fd00::5"]);
        assert_eq!((both.patch(&of("IPv6")), both.patch(&of("IPv6, IPv4"))), (None, None));
        // The cluster has no other family.
        assert_eq!(derived(&of("IPv4, IPv6"), &["10.96.0.5"]).patch(&of("IPv4, IPv6")), None);
    }

    #[test]
    fn addresses_come_in_the_order_of_the_families() {
        let of = |families: &str| import(&format!("{{ports: [{{port: 80}}], ipFamilies: [{families}]}}"));
        let given = |families: &str, addresses: &[&str]| {
            let import = derived(&of("IPv4, IPv6"), addresses).give(&of(families))?;
            Some((
                import.ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
                import.facts.ip_families.clone(),
            ))
        };
        let some = |ips: &[&str], families: &[&str]| {
            let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
            Some((owned(ips), owned(families)))
        };
        let both = ["10.96.0.5", "fd00::5"];
        assert_eq!(given("IPv6, IPv4", &both), some(&["fd00::5", "10.96.0.5"], &["IPv6", "IPv4"]));
        assert_eq!(given("IPv6", &both), some(&["fd00::5"], &["IPv6"]));
        assert_eq!(given("IPv6, IPv4", &both[..1]), some(&["10.96.0.5"], &["IPv4"]));
        assert_eq!(given("", &both), some(&both, &["IPv4", "IPv6"]));
        assert_eq!(given("IPv6", &both[..1]), None);
    }

    #[test]
    fn what_only_looks_so_is_not_ours() {
        let service = made(&import("{ports: [{port: 80}]}"), &["10.96.0.5"]);
        let mut named = service.clone();
        named.metadata.name = Some("derived-1".to_owned());
        let mut unlabelled = service.clone();
        unlabelled.metadata.labels.as_mut().unwrap().remove(IMPORT_MANAGED_BY);
        assert!(Derived::of(&service).is_some());
        assert_eq!((Derived::of(&named), Derived::of(&unlabelled)), (None, None));
    }
}
