//! One VIP in several clusters, from what each of them has to the tables of its nodes.
use super::known::Known;
use crate::{
    api::{ClusterLink, delivery::FORWARDING},
    declared::Declared,
    desired::{Desired, desired},
    mcs::{Cluster, Exports, merge},
    object::Object,
    observed::{NodeInfo, Observed},
    status::StatusSet,
    validate::{check_object, parse_directory},
};
use lb_bpf::{
    abi::Mode,
    maglev,
    service::{Endpoint, Scope, Service},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// A cluster: its name, the address of the Service, and its nodes with the number of their pods that are ready. All call their
/// nodes n1, n2 and so on.
#[derive(Clone, Copy)]
struct Site {
    name: &'static str,
    vip: &'static str,
    /// What it says of how packets to the Service are forwarded there; none: nothing.
    mode: Option<&'static str>,
    nodes: &'static [(&'static str, usize)],
}

const SITES: [Site; 3] = [
    Site { name: "east", vip: VIP, mode: Some("IPIP"), nodes: &[("10.0.1.1", 2), ("10.0.1.2", 1)] },
    Site { name: "north", vip: VIP, mode: None, nodes: &[("10.0.2.1", 1)] },
    Site { name: "west", vip: VIP, mode: Some("GUE"), nodes: &[("10.0.3.1", 0), ("10.0.3.2", 3)] },
];
const VIP: &str = "192.0.2.1";

impl Site {
    fn service(self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "shop", "name": "web", "annotations": {"fairlead.dev/addresses": self.vip}},
            "spec": {"type": "LoadBalancer", "loadBalancerClass": "fairlead.dev/lb", "ports": [{"name": "http", "port": 80}]},
        })
    }

    fn node_objects(self) -> Vec<Value> {
        let node = |(number, (address, _)): (usize, &(&str, usize))| {
            json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("n{}", number + 1)},
                "status": {"addresses": [{"type": "InternalIP", "address": address}]},
            })
        };
        self.nodes.iter().enumerate().map(node).collect()
    }

    /// A slice for each node, with a pod that is not ready beside those that are.
    fn slices(self) -> Vec<Value> {
        let slice = |(number, (address, ready)): (usize, &(&str, usize))| {
            let endpoint = |pod: usize| {
                let address = address.replace("10.0.", "10.1.").replace(".1.", &format!(".1{pod}."));
                let conditions = json!({"ready": pod < *ready});
                json!({"addresses": [address], "nodeName": format!("n{}", number + 1), "conditions": conditions})
            };
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {
                    "namespace": "shop", "name": format!("web-{number}"),
                    "labels": {"kubernetes.io/service-name": "web"},
                },
                "endpoints": (0..=*ready).map(endpoint).collect::<Vec<_>>(),
                "ports": [{"name": "http", "protocol": "TCP", "port": 8000 + number}],
            })
        };
        self.nodes.iter().enumerate().map(slice).collect()
    }

    /// What a link to it learns, in the order that is worst for it: nodes come last.
    fn exports(self) -> Exports {
        let mut known = Known::new(self.name);
        let mut export = json!({"metadata": {"namespace": "shop", "name": "web"}});
        if let Some(mode) = self.mode {
            let conditions =
                json!([{"type": "Valid", "reason": "Valid"}, {"type": FORWARDING, "reason": mode}]);
            export["status"] = json!({"conditions": conditions});
        }
        known.export(&serde_json::from_value(export).unwrap());
        for slice in self.slices() {
            let metadata = serde_json::from_value(slice["metadata"].clone()).unwrap();
            let Ok(Object::EndpointSlice(slice)) = check_object(&slice) else { panic!("{slice}") };
            known.slice(&metadata, Some(&slice));
        }
        let mut service = self.service();
        service["status"] = json!({"loadBalancer": {"ingress": [{"ip": self.vip}]}});
        known.service(&serde_json::from_value(service).unwrap());
        let early = known.exports();
        for node in self.node_objects() {
            let node = serde_json::from_value(node).unwrap();
            assert!(known.node(&node) && !known.node(&node), "only the first time it is news");
        }
        let exports = known.exports();
        assert_ne!(exports, early, "nodes came later");
        assert_eq!(known.exports(), exports);
        exports
    }
}

/// What the nodes of a cluster have, in their order.
fn nodes_of(own: Site, sites: &[Site], policy: &str) -> Vec<Desired> {
    let policy = format!(
        "---\nkind: ServicePolicy\nmetadata: {{name: a}}\nspec: {{policy: {{{policy}}}}}\n---\nkind: Namespace\nmetadata: {{name: shop}}\n"
    );
    let objects = [vec![own.service()], own.node_objects(), own.slices()].concat();
    let text: String =
        objects.iter().map(|object| format!("---\n{object}\n")).chain([policy.to_owned()]).collect();
    let mut declared = parse_directory(&BTreeMap::from([("a.yaml".into(), text)])).unwrap();
    let others: Vec<_> = sites.iter().filter(|site| site.name != own.name).collect();
    let exports: BTreeMap<_, _> = others.iter().map(|site| (site.name, site.exports())).collect();
    let clusters = exports.iter().map(|(name, exports)| (*name, Cluster { exports, left: 0 })).collect();
    for (name, slice) in merge(own.name, &clusters, |namespace| namespace == "shop").slices {
        // As it comes back from the API server.
        let Ok(Object::EndpointSlice(read)) = check_object(&json!(*slice)) else { panic!("{slice:?}") };
        assert_eq!(read, slice);
        declared.endpoint_slices.insert(name, read);
    }
    for site in others {
        let link = json!({"kubeconfigSecretRef": {"name": "a", "key": "b"}});
        let link = ClusterLink::new(site.name, serde_json::from_value(link).unwrap());
        declared.cluster_links.insert(site.name.to_owned(), Arc::new(link));
    }
    let of_node = |number: usize| {
        let addresses = BTreeSet::from([own.nodes[number].0.parse().unwrap()]);
        let node = NodeInfo { name: format!("n{}", number + 1), addresses, ..NodeInfo::default() };
        let observed = Observed { node, ..Observed::default() };
        let statuses = StatusSet::clone(&desired(&declared, &observed).status);
        desired(&Declared { statuses, ..declared.clone() }, &observed)
    };
    (0..own.nodes.len()).map(of_node).collect()
}

fn service(desired: &Desired, scope: Scope) -> Option<&Service> {
    let mut services = desired.datapath.services.values().map(|service| &**service);
    services.find(|service| service.frontends.iter().all(|frontend| frontend.scope == scope))
}

/// The node behind each slot of the table.
fn table(desired: &Desired) -> Vec<Endpoint> {
    let service = service(desired, Scope::All).unwrap();
    let up = service.backends.iter().filter(|(_, target)| target.up && target.weight > 0);
    let members: Vec<_> = up.map(|(endpoint, target)| (*endpoint, target.weight)).collect();
    let slots = maglev::build(maglev::table_size(members.len()), &members);
    slots.into_iter().map(|slot| members[slot as usize].0).collect()
}

/// How many slots of a table in a hundred lead to a node.
fn share(table: &[Endpoint], node: &str) -> usize {
    let node: IpAddr = node.parse().unwrap();
    let slots = table.iter().filter(|slot| slot.address == node).count();
    (100 * slots + table.len() / 2) / table.len()
}

/// So a flow goes on where the network has moved it to another site; and whatever node it is sent to takes it, and sends it no further.
#[test]
fn all_nodes_of_all_clusters_choose_the_same_node_which_delivers() {
    for mode in ["IPIP", "GUE"] {
        let policy = format!("forwarding: {{mode: {mode}}}, clusters: {{prefer: None}}");
        let all = SITES.map(|site| nodes_of(site, &SITES, &policy));
        let first = table(&all[0][0]);
        assert_eq!(["10.0.1.1", "10.0.2.1", "10.0.3.1"].map(|node| share(&first, node)), [29, 14, 0]);
        for (site, nodes) in SITES.iter().zip(&all) {
            for ((address, ready), desired) in site.nodes.iter().zip(nodes) {
                assert_eq!(table(desired), first, "{} {address}", site.name);
                let here = service(desired, Scope::All).unwrap().backends.iter().filter(|(_, t)| t.here);
                let here: Vec<_> = here.map(|(endpoint, _)| endpoint.address.to_string()).collect();
                assert_eq!(here, [*address]);
                // Who is sent to has pods for it, all of them its own.
                assert!(desired.datapath.decap.iter().all(|end| end.deliver && end.vip.to_string() == VIP));
                let local = service(desired, Scope::Local).unwrap();
                assert_eq!(local.backends.values().filter(|target| target.up).count(), *ready);
                assert!(local.mode == Mode::Dnat && local.backends.values().all(|target| !target.here));
                let subnet = address.replacen("10.0.", "10.1", 1);
                let (_, host) = subnet.rsplit_once('.').unwrap();
                for endpoint in local.backends.keys() {
                    let of = endpoint.address.to_string();
                    assert!(of.starts_with("10.1") && of.ends_with(host), "{of} is on {address}");
                }
            }
        }
    }
}

/// In a mode without tunnels, a node there would not take the packets.
#[test]
fn who_has_another_mode_gets_nothing() {
    let policy = "forwarding: {mode: IPIP}, clusters: {prefer: None}";
    for mode in ["NAT", "L2", "NotBalanced"] {
        let mut sites = SITES;
        sites[2].mode = Some(mode);
        let east = nodes_of(sites[0], &sites, policy);
        let both = table(&east[0]);
        assert_eq!(["10.0.3.2", "10.0.2.1"].map(|node| share(&both, node)), [0, 25], "{mode}");
        let conditions = &east[0].status.services["shop/web"].conditions;
        let programmed = conditions.iter().find(|condition| condition.type_ == "Programmed").unwrap();
        let said = format!(
            "5 endpoints of west are not used: the ServiceExport there says {FORWARDING} {mode}, not IPIP or GUE"
        );
        assert!(programmed.message.ends_with(&said), "{}", programmed.message);
    }
}

/// Without the same address there, a node there would not take the packets.
#[test]
fn who_has_another_address_gets_nothing() {
    let mut sites = SITES;
    sites[2].vip = "192.0.2.9";
    let policy = "forwarding: {mode: IPIP}, clusters: {prefer: None}";
    let east = nodes_of(sites[0], &sites, policy);
    let both = table(&east[0]);
    assert_eq!(["10.0.3.2", "10.0.2.1"].map(|node| share(&both, node)), [0, 25]);
    let conditions = &east[0].status.services["shop/web"].conditions;
    let programmed = conditions.iter().find(|condition| condition.type_ == "Programmed").unwrap();
    assert_eq!(
        programmed.message,
        "0 of 2 services installed; clusters: 5 endpoints of west are not used: the Service does not have the address there"
    );
    // Under NAT it makes no difference: each is reached as it is.
    let nat = nodes_of(sites[0], &sites, "clusters: {prefer: None}");
    assert_eq!(service(&nat[0], Scope::All).unwrap().backends.len(), 12);
}
