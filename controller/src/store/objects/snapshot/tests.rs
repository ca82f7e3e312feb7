//! Tests of [`Assembly`]: changes in, snapshots out.
use super::*;
use crate::store::kubernetes::{raw::Raw, watching};
use proptest::prelude::*;
use serde_json::json;

const KINDS: [Kind; 4] = [Kind::AddressPool, Kind::LoadBalancer, Kind::BGPPeer, Kind::Service];

/// What is seen of an object that an API server shows so.
fn seen(object: Value) -> (Source, Seen) {
    let kind: Kind = object["kind"].as_str().unwrap().parse().unwrap();
    let object: Raw = serde_json::from_value(object).unwrap();
    let seen = watching::seen(kind, object, false);
    let source = if kind == Kind::Secret { Source::Secret(seen.name.clone()) } else { Source::All(kind) };
    (source, seen)
}

/// One that knows these objects, and has listed all.
pub(in crate::store) fn assembly(objects: impl IntoIterator<Item = Value>) -> Assembly {
    let mut assembly = Assembly::new(&KINDS, true);
    list_all(&mut assembly);
    for object in objects {
        let (source, seen) = seen(object);
        assembly.change(&source, Change::Applied(seen));
    }
    assembly.take();
    assembly
}

fn list_all(assembly: &mut Assembly) {
    for kind in KINDS {
        assembly.change(&Source::All(kind), Change::Listing);
        assembly.change(&Source::All(kind), Change::ListDone);
    }
}

fn balancer(name: &str, version: u64, port: u16) -> Value {
    json!({"kind": "LoadBalancer", "metadata": {"name": name, "resourceVersion": version.to_string()},
        "spec": {"ports": [{"port": port}], "backends": [{"address": "10.0.0.1"}]}})
}

fn with_address(mut object: Value, address: &str) -> Value {
    let assigned = json!([{"address": address, "assignedAt": "2026-01-01T00:00:00Z"}]);
    object["status"] = json!({"addresses": assigned, "backends": 1, "healthyBackends": 0});
    object
}

fn apply(assembly: &mut Assembly, object: Value) {
    let (source, seen) = seen(object);
    assembly.change(&source, Change::Applied(seen));
}

fn port(declared: &Declared, name: &str) -> u16 {
    declared.load_balancers[name].spec.ports[0].port.get()
}

#[test]
fn nothing_before_everything_was_listed() {
    let mut assembly = Assembly::new(&KINDS, true);
    for (done, kind) in KINDS.into_iter().enumerate() {
        assert!(assembly.take().is_none(), "after {done} lists");
        assembly.change(&Source::All(kind), Change::Listing);
        assert!(assembly.take().is_none(), "after {done} lists");
        assembly.change(&Source::All(kind), Change::ListDone);
    }
    assert_eq!(assembly.take().unwrap().generation, 1);
    assert!(assembly.take().is_none(), "nothing new");
    assembly.await_again();
    apply(&mut assembly, balancer("web", 1, 80));
    assert!(assembly.take().is_none(), "all is to be listed once more");
    list_all(&mut assembly);
    assert_eq!(assembly.take().unwrap().generation, 2);
}

#[test]
fn a_list_drops_what_is_gone() {
    let mut assembly = assembly([balancer("a", 1, 80), balancer("b", 2, 80)]);
    let source = Source::All(Kind::LoadBalancer);
    assembly.change(&source, Change::Listing);
    assert!(assembly.take().is_none(), "a list that has begun says nothing");
    assembly.change(&source, Change::Listed(seen(balancer("b", 9, 81)).1));
    assembly.change(&source, Change::ListDone);
    let declared = assembly.take().unwrap();
    assert_eq!(declared.load_balancers.keys().collect::<Vec<_>>(), ["b"]);
    assert_eq!(port(&declared, "b"), 81);
}

#[test]
fn what_is_the_same_is_no_news() {
    let mut assembly = assembly([balancer("a", 1, 80)]);
    apply(&mut assembly, balancer("a", 2, 80));
    assert!(assembly.take().is_none());
    assert_eq!(assembly.version(Kind::LoadBalancer, "a"), Some("2"));
}

/// A kubelet tells every few seconds that its node lives.
#[test]
fn of_the_status_of_a_node_its_addresses_are_news() {
    let node = |version: u64, address: &str, beat: u64| {
        json!({"kind": "Node", "metadata": {"name": "n1", "resourceVersion": version.to_string()}, "status": {
            "addresses": [{"type": "InternalIP", "address": address}],
            "conditions": [{"type": "Ready", "lastHeartbeatTime": format!("2026-01-01T00:00:0{beat}Z")}],
        }})
    };
    let mut assembly = assembly([node(1, "10.0.0.2", 0)]);
    apply(&mut assembly, node(2, "10.0.0.2", 1));
    assert!(assembly.take().is_none());
    apply(&mut assembly, node(3, "10.0.0.3", 1));
    let declared = assembly.take().unwrap();
    let addresses: Vec<_> = crate::api::node::internal_ips(&declared.nodes["n1"]).collect();
    assert_eq!(addresses, ["10.0.0.3".parse::<std::net::IpAddr>().unwrap()]);
}

#[test]
fn own_writes_are_taken_in_before_the_watch_tells() {
    let mut assembly = assembly([balancer("a", 5, 80)]);
    assembly.wrote(Kind::LoadBalancer, seen(with_address(balancer("a", 7, 80), "192.0.2.1")).1);
    let declared = assembly.take().unwrap();
    assert_eq!(declared.statuses.load_balancers["a"].addresses.len(), 1);
    // Late: the watch is still at what was before.
    apply(&mut assembly, balancer("a", 6, 443));
    assert!(assembly.take().is_none());
    apply(&mut assembly, with_address(balancer("a", 8, 443), "192.0.2.1"));
    assert_eq!(port(&assembly.take().unwrap(), "a"), 443);
    assembly.change(&Source::All(Kind::LoadBalancer), Change::Deleted("a".to_owned()));
    assembly.wrote(Kind::LoadBalancer, seen(balancer("a", 7, 80)).1);
    assert!(assembly.take().unwrap().load_balancers.is_empty(), "what is gone stays gone");
}

#[test]
fn a_fault_is_of_one_object() {
    let mut assembly = assembly([balancer("a", 1, 80), balancer("b", 2, 0), balancer("c", 3, 80)]);
    assert_eq!(
        assembly.faults().iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["LoadBalancer/b: spec.ports[0].port: 0 is not a port (1 to 65535)"]
    );
    assert_eq!(assembly.refused().map(|refused| refused.name).collect::<Vec<_>>(), ["b"]);
    apply(&mut assembly, balancer("a", 4, 0));
    let declared = assembly.take().unwrap();
    assert_eq!(declared.load_balancers.keys().collect::<Vec<_>>(), ["a", "c"]);
    assert_eq!(port(&declared, "a"), 80, "the version before is in force");
    assert_eq!(declared.refused, BTreeSet::from(["LoadBalancer/b".to_owned()]));
    assert_eq!(assembly.faults().len(), 2);
    apply(&mut assembly, balancer("b", 5, 81));
    assembly.change(&Source::All(Kind::LoadBalancer), Change::Deleted("a".to_owned()));
    let declared = assembly.take().unwrap();
    assert_eq!((port(&declared, "b"), assembly.faults().len()), (81, 0));
    assert!(declared.refused.is_empty());
}

#[test]
fn the_address_of_what_is_gone_is_looked_at_once_more() {
    let web = || with_address(balancer("web", 1, 80), "192.0.2.1");
    let gone = |assembly: &mut Assembly| {
        assembly.change(&Source::All(Kind::LoadBalancer), Change::Deleted("web".to_owned()));
        assembly.take().unwrap()
    };
    let mut follower = assembly([web()]);
    assert!(gone(&mut follower).statuses.load_balancers.is_empty());
    let mut leader = assembly([]);
    leader.keep_orphans(true);
    apply(&mut leader, web());
    let declared = gone(&mut leader);
    assert!(declared.load_balancers.is_empty());
    assert_eq!(declared.statuses.load_balancers["web"].addresses.len(), 1);
    leader.published(&StatusSet::default());
    assert!(leader.take().unwrap().statuses.load_balancers.is_empty());
    // Made again: it has the status that it has.
    apply(&mut leader, web());
    gone(&mut leader);
    apply(&mut leader, balancer("web", 5, 80));
    assert!(leader.take().unwrap().statuses.load_balancers.is_empty());
}

#[test]
fn a_service_of_another_class_has_no_status_of_ours() {
    let service = |version: u64, class: &str| {
        json!({"kind": "Service",
            "metadata": {"name": "web", "namespace": "shop", "resourceVersion": version.to_string()},
            "spec": {"type": "LoadBalancer", "loadBalancerClass": class, "ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}})
    };
    let mut assembly = assembly([]);
    assembly.keep_orphans(true);
    apply(&mut assembly, service(1, "another.example/lb"));
    let declared = assembly.take().unwrap();
    assert!(declared.services.contains_key("shop/web") && declared.statuses.services.is_empty());
    apply(&mut assembly, service(2, crate::api::service::CLASS));
    assert_eq!(assembly.take().unwrap().statuses.services["shop/web"].addresses.len(), 1);
    apply(&mut assembly, service(3, "another.example/lb"));
    assert_eq!(assembly.take().unwrap().statuses.services.len(), 1, "comes to rest first");
    assembly.published(&StatusSet::default());
    assert!(assembly.take().unwrap().statuses.services.is_empty());
}

fn peer(version: u64, secret: Option<&str>) -> Value {
    let auth = secret.map(|name| json!({"md5SecretRef": {"name": name, "key": "password"}}));
    let mut peer = json!({"kind": "BGPPeer", "metadata": {"name": "tor", "resourceVersion": version.to_string()},
        "spec": {"address": "10.0.0.1", "asn": 65000}});
    if let Some(auth) = auth {
        peer["spec"]["auth"] = auth;
    }
    peer
}

fn secret(version: u64, key: &str) -> Value {
    json!({"kind": "Secret",
        "metadata": {"name": "tor", "namespace": "fairlead-system", "resourceVersion": version.to_string()},
        "data": {key: "czNjcmV0"}})
}

#[test]
fn a_peer_waits_for_its_key() {
    let source = Source::Secret("tor".to_owned());
    let mut assembly = Assembly::new(&KINDS, true);
    list_all(&mut assembly);
    apply(&mut assembly, peer(1, Some("tor")));
    assert!(assembly.take().is_none(), "the Secret was not looked for yet");
    assert_eq!(assembly.named_secrets(), BTreeSet::from(["tor".to_owned()]));
    assembly.change(&source, Change::Listing);
    assembly.change(&source, Change::ListDone);
    assert!(assembly.take().unwrap().peers.is_empty());
    assert_eq!(
        assembly.faults()[0].to_string(),
        "BGPPeer/tor: spec.auth.md5SecretRef: there is no Secret/tor"
    );
    apply(&mut assembly, secret(2, "password"));
    let declared = assembly.take().unwrap();
    assert_eq!((declared.peers.len(), declared.secrets.len(), assembly.faults().len()), (1, 1, 0));
    // The session has the key that it had.
    for change in [Change::Deleted("tor".to_owned()), Change::Applied(seen(secret(4, "other")).1)] {
        assembly.change(&source, change);
        let declared = assembly.take().unwrap();
        assert_eq!((declared.peers.len(), assembly.faults().len()), (1, 1));
        assert!(declared.secrets["tor"].get("password").is_ok());
    }
    apply(&mut assembly, peer(5, None));
    let declared = assembly.take().unwrap();
    assert_eq!((declared.peers.len(), declared.secrets.len(), assembly.faults().len()), (1, 0, 0));
}

#[test]
fn who_reads_no_secrets_has_peers_without_them() {
    let mut assembly = Assembly::new(&KINDS, false);
    list_all(&mut assembly);
    apply(&mut assembly, peer(1, Some("tor")));
    assert_eq!(assembly.take().unwrap().peers.len(), 1);
    assert!(assembly.named_secrets().is_empty());
}

#[test]
fn what_kubernetes_adds_is_no_fault() {
    let node = json!({"kind": "Node", "metadata": {"name": "n1", "resourceVersion": "3", "managedFields": []},
        "spec": {"podCIDR": "10.244.1.0/24", "ofALaterRelease": 1}, "status": {"images": []}, "more": {}});
    let (_, node) = seen(node);
    assert_eq!((node.object.map(|object| object.kind()), node.status), (Ok(Kind::Node), None));
}

/// The same objects come to the same snapshot, in whatever order the watches tell of them.
#[derive(Clone, Debug)]
struct Told {
    kind: usize,
    name: usize,
    /// 0: gone.
    port: u16,
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn order_between_kinds_does_not_matter(
        told in prop::collection::vec((0_usize..2, 0_usize..4, 0_u16..3)
            .prop_map(|(kind, name, port)| Told { kind, name, port }), 0..40),
        order in prop::collection::vec(any::<prop::sample::Index>(), 40),
    ) {
        let object = |version: usize, told: &Told| {
            let name = format!("o{}", told.name);
            let object = match told.kind {
                0 => balancer(&name, version as u64 + 1, told.port),
                _ => json!({"kind": "AddressPool", "metadata": {"name": name, "resourceVersion": (version + 1).to_string()},
                    "spec": {"use": "LoadBalancer", "blocks": [{"cidr": format!("10.{}.0.0/24", told.port)}]}}),
            };
            let (source, seen) = seen(object);
            let change = if told.port == 0 { Change::Deleted(name) } else { Change::Applied(seen) };
            (source, change)
        };
        let changes: Vec<_> = told.iter().enumerate().map(|(version, told)| object(version, told)).collect();
        let snapshot = |changes: &[(Source, Change)]| {
            let mut assembly = Assembly::new(&KINDS, true);
            changes.iter().for_each(|(source, change)| assembly.change(source, change.clone()));
            list_nothing_new(&mut assembly);
            let declared = assembly.take().unwrap();
            Declared { generation: 0, ..declared }
        };
        // Each kind in its own order.
        let (mut first, mut second): (Vec<_>, Vec<_>) =
            changes.iter().cloned().partition(|(source, _)| *source == Source::All(Kind::LoadBalancer));
        first.reverse();
        second.reverse();
        let mut mixed = Vec::new();
        for index in order {
            let from = if index.index(2) == 0 { &mut first } else { &mut second };
            mixed.extend(from.pop());
        }
        mixed.extend(first.into_iter().rev());
        mixed.extend(second.into_iter().rev());
        prop_assert_eq!(snapshot(&changes), snapshot(&mixed));
    }
}

/// Lists what is known.
fn list_nothing_new(assembly: &mut Assembly) {
    for kind in KINDS {
        let source = Source::All(kind);
        let known: Vec<_> = assembly.entries.entry(kind).or_default().keys().cloned().collect();
        assembly.change(&source, Change::Listing);
        assembly.lists.get_mut(&source).unwrap().extend(known);
        assembly.change(&source, Change::ListDone);
    }
}
