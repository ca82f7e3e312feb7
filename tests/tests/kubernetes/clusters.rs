//! Two clusters, each with its own API server: `home` imports what `west` exports, over a link that may only read, and that fails in
//! every way. The controller of `home` has the rights of `deploy/kubernetes`.
use super::{
    manifests::{Rights, allowed},
    store::{NAMESPACE, Process},
};
use controller::store::kubernetes::Role;
use lab::{
    Error,
    control_plane::{ControlPlane, Fault, Proxy, Request},
    wait_until,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// Both clusters; that of the controller first.
pub(super) fn planes() -> Result<[ControlPlane; 2], Error> {
    let start = || {
        let plane = ControlPlane::start()?;
        plane.install_multicluster()?;
        plane.kubectl(&["create", "namespace", "shop"])?;
        Ok::<_, Error>(plane)
    };
    let west = thread::spawn(start);
    Ok([start()?, west.join().map_err(|_| "west has not started")??])
}

pub(super) fn export(name: &str) -> String {
    format!(
        "---\napiVersion: multicluster.x-k8s.io/v1alpha1\nkind: ServiceExport\nmetadata: {{name: {name}, namespace: shop}}\n"
    )
}

fn service(name: &str, port: u16) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{ports: [{{name: http, port: {port}}}]}}\n"
    )
}

fn slice(service: &str, addresses: &[&str]) -> String {
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|a| format!("{{addresses: [{a}], conditions: {{ready: true}}, nodeName: w1}}"))
        .collect();
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: {service}-1, namespace: shop, labels: {{kubernetes.io/service-name: {service}}}}}\n\
         endpoints: [{}]\nports: [{{name: http, port: 8080, protocol: TCP}}]\n",
        endpoints.join(", ")
    )
}

pub(super) fn link(name: &str, stale_after: u32) -> String {
    format!(
        "---\napiVersion: fairlead.dev/v1alpha1\nkind: ClusterLink\nmetadata: {{name: {name}}}\n\
         spec: {{kubeconfigSecretRef: {{name: {name}, key: kubeconfig}}, staleAfterSeconds: {stale_after}}}\n"
    )
}

pub(super) fn secret(plane: &ControlPlane, name: &str, kubeconfig: &str) -> Result<(), Error> {
    let text = serde_json::to_string(kubeconfig)?;
    let yaml = format!(
        "{{apiVersion: v1, kind: Secret, metadata: {{name: {name}, namespace: {NAMESPACE}}}, stringData: {{kubeconfig: {text}}}}}"
    );
    plane.apply(&yaml).map(drop)
}

pub(super) fn object(plane: &ControlPlane, kind: &str, name: &str) -> Result<Value, Error> {
    let found = plane.kubectl(&["get", kind, name, "-n", "shop", "--ignore-not-found", "-o", "json"])?;
    Ok(if found.is_empty() { Value::Null } else { serde_json::from_str(&found)? })
}

/// Status, reason and message of a condition.
pub(super) fn condition(object: &Value, type_: &str) -> Option<(String, String, String)> {
    let conditions = object["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|condition| condition["type"] == type_)?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("reason"), text("message")))
}

/// Waits for a condition, and gives its message.
pub(super) fn wait_condition(
    plane: &ControlPlane,
    kind: &str,
    name: &str,
    [type_, status, reason]: [&str; 3],
) -> Result<String, Error> {
    let mut last = None;
    let what = format!("{kind}/{name}: {type_}={status}, {reason}");
    let found = wait_until(&what, || {
        last = condition(&object(plane, kind, name)?, type_);
        Ok(last.as_ref().is_some_and(|(s, r, _)| (s.as_str(), r.as_str()) == (status, reason)))
    });
    found.map_err(|error| format!("{error}; it is {last:?}"))?;
    Ok(last.map(|(.., message)| message).unwrap_or_default())
}

/// The imported endpoints of a service by cluster: address, and whether it is ready.
fn imported(plane: &ControlPlane, service: &str) -> Result<BTreeMap<String, BTreeMap<String, bool>>, Error> {
    let selector = format!("multicluster.kubernetes.io/service-name={service}");
    let list = plane.kubectl(&["get", "endpointslices", "-n", "shop", "-l", &selector, "-o", "json"])?;
    let list: Value = serde_json::from_str(&list)?;
    let mut found: BTreeMap<String, BTreeMap<String, bool>> = BTreeMap::new();
    for slice in list["items"].as_array().into_iter().flatten() {
        let cluster = &slice["metadata"]["labels"]["multicluster.kubernetes.io/source-cluster"];
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            let address = endpoint["addresses"][0].as_str().unwrap_or_default().to_owned();
            let ready = endpoint["conditions"]["ready"] != false;
            found.entry(cluster.as_str().unwrap_or_default().to_owned()).or_default().insert(address, ready);
            assert!(cluster == "local" || endpoint["nodeName"].is_null(), "a foreign node: {endpoint}");
        }
    }
    Ok(found)
}

fn wait_imported(plane: &ControlPlane, service: &str, cluster: &str, want: &[&str]) -> Result<(), Error> {
    let mut last = BTreeMap::new();
    let found = wait_until(&format!("{service} has {want:?} of {cluster}"), || {
        last = imported(plane, service)?;
        let ready = last.get(cluster).into_iter().flatten().filter(|(_, ready)| **ready);
        Ok(ready.map(|(address, _)| address.as_str()).eq(want.iter().copied()))
    });
    found.map_err(|error| format!("{error}; there are {last:?}").into())
}

/// West as its clients see it: a proxy that has the rights of `remote-reader.yaml`.
pub(super) fn reader(west: &ControlPlane) -> Result<Proxy, Error> {
    west.kubectl(&["create", "serviceaccount", "nobody"])?;
    let everybody = allowed(west, "nobody", "default", "default");
    let may = allowed(west, "fairlead-remote", NAMESPACE, NAMESPACE);
    let read = [
        "multicluster.x-k8s.io/serviceexports",
        "/services",
        "/nodes",
        "discovery.k8s.io/endpointslices",
        "fairlead.dev/addresspools",
    ];
    let read: Rights =
        read.iter().flat_map(|r| ["list", "watch"].map(|verb| format!("{verb} {r}"))).collect();
    assert_eq!(may.difference(&everybody).cloned().collect::<Rights>(), read);
    west.proxy(&west.kubeconfig_of(NAMESPACE, "fairlead-remote")?)
}

#[test]
fn services_of_another_cluster_are_imported_and_leave_by_and_by() -> Result<(), Error> {
    let [home, west] = planes()?;
    let way = reader(&west)?;
    let kubeconfig = fs::read_to_string(way.kubeconfig())?;
    west.kubectl(&["create", "namespace", "elsewhere"])?;
    let elsewhere =
        export("web").replace("shop", "elsewhere") + &service("web", 80).replace("shop", "elsewhere");
    // In the order of their texts.
    let addresses: Vec<_> = (10..30).map(|n| format!("10.2.0.{n}")).collect();
    let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
    west.apply(
        &[
            service("web", 80),
            slice("web", &addresses),
            export("web"),
            export("none"),
            export("theirs"),
            service("theirs", 80),
            elsewhere,
        ]
        .concat(),
    )?;
    let theirs = "{apiVersion: multicluster.x-k8s.io/v1alpha1, kind: ServiceImport, \
                  metadata: {name: theirs, namespace: shop}, spec: {type: ClusterSetIP, ports: [{port: 99}]}}";
    home.apply(theirs)?;

    // Without a Secret, then with one that is none, then with a good one. A cluster that nobody reaches delays nobody.
    let rights = home.kubeconfig_of(NAMESPACE, "fairlead-controller")?;
    let here = home.proxy(&rights)?;
    let controller = Process::start(here.kubeconfig(), Role::Controller, "one", None)?;
    let writes =
        || here.requests().iter().filter(|request| request.is_write() && !request.is_lease()).count();
    home.apply(&[link("west", 3), link("dead", 60)].concat())?;
    let missing = ["Connected", "False", "SecretNotUsable"];
    let said = wait_condition(&home, "clusterlink", "west", missing)?;
    assert_eq!(said, format!("there is no Secret/west in the namespace {NAMESPACE}"));
    secret(&home, "west", "{\"s3cret\": 1")?;
    wait_until("the value is refused", || {
        let link = object(&home, "clusterlink", "west")?;
        assert!(!link.to_string().contains("s3cret"), "{link}");
        Ok(condition(&link, "Connected")
            .is_some_and(|(.., said)| said == "the Secret's value is no kubeconfig"))
    })?;
    let dead = kubeconfig.replace(&west.address().ip().to_string(), "192.0.2.1");
    secret(&home, "dead", &dead)?;
    secret(&home, "west", &kubeconfig)?;
    wait_condition(&home, "clusterlink", "west", ["Connected", "True", "Connected"])?;
    wait_condition(&home, "clusterlink", "dead", ["Connected", "False", "Unreachable"])?;
    wait_imported(&home, "web", "west", &addresses)?;
    wait_condition(&home, "serviceimport", "web", ["Ready", "True", "Ready"])?;
    let import = object(&home, "serviceimport", "web")?;
    assert_eq!(
        (&import["spec"]["type"], &import["spec"]["ports"][0]["port"]),
        (&"ClusterSetIP".into(), &80.into())
    );
    assert_eq!(import["status"]["clusters"][0]["cluster"], "west");
    let link = object(&home, "clusterlink", "west")?;
    let count = |field: &str| link["status"][field].as_i64();
    // `none` has no Service, `elsewhere` no namespace here, `theirs` belongs to somebody else.
    assert_eq!(count("exportedServices"), Some(4));

    // Pod CIDRs of nodes there and here.
    let node = |name: &str, cidr: &str| {
        format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}, spec: {{podCIDR: {cidr}, podCIDRs: [{cidr}]}}}}"
        )
    };
    west.apply(&node("w1", "10.2.0.0/24"))?;
    wait_condition(&home, "clusterlink", "west", ["Disjoint", "True", "Disjoint"])?;
    home.apply(&node("h1", "10.2.0.0/16"))?;
    let said = wait_condition(&home, "clusterlink", "west", ["Disjoint", "False", "OverlapAcrossClusters"])?;
    assert_eq!(said, "Node w1 has 10.2.0.0/24 there, and Node h1 10.2.0.0/16 here (1 overlaps)");

    // Their addresses.
    for (plane, name) in [(&west, "w2"), (&home, "h2")] {
        plane.apply(&format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}, \
              status: {{addresses: [{{type: InternalIP, address: 192.0.2.50}}]}}}}"
        ))?;
    }
    let both = said + "; Node w2 has 192.0.2.50 there, and Node h2 192.0.2.50 here (1 overlaps)";
    wait_until("the link says that addresses of nodes are there twice", || {
        let link = object(&home, "clusterlink", "west")?;
        Ok(condition(&link, "Disjoint").is_some_and(|(status, _, said)| status == "False" && said == both))
    })?;

    // What changes there changes here, and what is not ours stays as it is.
    west.apply(&slice("web", &addresses[..4]))?;
    wait_imported(&home, "web", "west", &addresses[..4])?;
    let theirs = object(&home, "serviceimport", "theirs")?;
    assert_eq!(theirs["spec"]["ports"][0]["port"], 99);
    assert!(imported(&home, "theirs")?.is_empty());

    // The younger export loses, and says so. Ports are united.
    let own = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
               spec: {ports: [{name: http, port: 81}, {name: more, port: 443}]}\n";
    home.apply(&[own, &slice("web", &["10.1.0.1"]), &export("web"), &export("none")].concat())?;
    let said = wait_condition(&home, "serviceexport", "web", ["Conflict", "True", "PortConflict"])?;
    assert!(said.contains("of local differ from those of west, whose export is the oldest"), "{said}");
    wait_condition(&home, "serviceexport", "web", ["Valid", "True", "Valid"])?;
    wait_condition(&home, "serviceexport", "none", ["Valid", "False", "NoService"])?;
    wait_imported(&home, "web", "local", &["10.1.0.1"])?;
    let ports = object(&home, "serviceimport", "web")?["spec"]["ports"].clone();
    let ports: Vec<_> = ports.as_array().into_iter().flatten().map(|port| port["port"].as_i64()).collect();
    assert_eq!(ports, [Some(80), Some(443)]);

    // Out of reach it stays, then drains, then is gone; what is exported here stays.
    west.apply(&slice("web", &addresses))?;
    wait_imported(&home, "web", "west", &addresses)?;
    way.set(|_| Fault::Silence);
    way.mute();
    wait_condition(&home, "clusterlink", "west", ["Ready", "True", "Kept"])?;
    assert_eq!(imported(&home, "web")?["west"].values().filter(|ready| **ready).count(), 20);
    let mut some = false;
    wait_until("all of west has left", || {
        let west = imported(&home, "web")?.remove("west").unwrap_or_default();
        let ready = west.values().filter(|ready| **ready).count();
        some |= west.len() == 20 && (1..20).contains(&ready);
        Ok(west.is_empty())
    })?;
    assert!(some, "they left all at once");
    wait_condition(&home, "clusterlink", "west", ["Ready", "False", "Stale"])?;
    wait_imported(&home, "web", "local", &["10.1.0.1"])?;

    // It comes back, with what has changed meanwhile. That its nodes may not be read any more is no reason to import nothing.
    west.apply(&slice("web", &addresses[..2]))?;
    let asked = way.requests().len();
    way.set(|request| match request.path.starts_with("/api/v1/nodes") {
        true => Fault::Answer(403, None),
        false => Fault::None,
    });
    way.cut();
    wait_imported(&home, "web", "west", &addresses[..2])?;
    wait_condition(&home, "clusterlink", "west", ["Ready", "True", "Imported"])?;
    // What was known is not listed again, but where there is little of it.
    let is_list = |request: &&Request| {
        let lists_little = ["/nodes?", "/addresspools?"].iter().any(|kind| request.path.contains(kind));
        !request.is_watch() && request.path.contains("limit=200") && !lists_little
    };
    let lists: Vec<_> =
        way.requests()[asked..].iter().filter(is_list).map(|request| request.path.clone()).collect();
    assert_eq!(lists, [""; 0]);

    // A change is written once: the slice, and the number of endpoints in the status of the link.
    let before = writes();
    for count in 3..6 {
        west.apply(&slice("web", &addresses[..count]))?;
        wait_imported(&home, "web", "west", &addresses[..count])?;
    }
    assert!(writes() - before <= 9, "{:#?}", here.requests());

    // One that fails is tried again, and again.
    let tries = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tries);
    here.set(move |request| match request.is_write() && request.path.contains("/endpointslices/") {
        true if count.fetch_add(1, Ordering::Relaxed) < 3 => Fault::Answer(500, None),
        _ => Fault::None,
    });
    west.apply(&slice("web", &addresses[..6]))?;
    wait_imported(&home, "web", "west", &addresses[..6])?;
    here.set(|_| Fault::None);
    assert_eq!(tries.load(Ordering::Relaxed), 4);
    west.apply(&slice("web", &addresses[..5]))?;
    wait_imported(&home, "web", "west", &addresses[..5])?;

    // Another controller leads, while west is out of reach: what is there of it stays.
    way.set(|_| Fault::Close);
    way.cut();
    drop(controller);
    let successor = Process::start(&rights, Role::Controller, "two", None)?;
    home.apply(&self::link("west", 600))?;
    wait_until("another one leads", || Ok(successor.leads()))?;
    home.apply(&slice("web", &["10.1.0.2"]))?;
    wait_imported(&home, "web", "local", &["10.1.0.2"])?;
    wait_imported(&home, "web", "west", &addresses[..5])?;

    // What is exported no more, and a link that is gone.
    way.set(|_| Fault::None);
    west.kubectl(&["delete", "serviceexport", "web", "-n", "shop"])?;
    wait_imported(&home, "web", "west", &[])?;
    home.kubectl(&["delete", "serviceexport", "web", "-n", "shop"])?;
    wait_until("nothing is left of web", || {
        Ok(object(&home, "serviceimport", "web")?.is_null() && imported(&home, "web")?.is_empty())
    })?;
    let said = way.requests().iter().filter(|request| request.is_write()).count();
    assert_eq!(said, 0, "a link reads only");
    Ok(())
}
