//! `deploy/helm` and a real helm: with default values the same objects as `deploy/kubernetes`, with others what they say;
//! installed, changed and removed in an API server.
use super::manifests::assert_rights;
use lab::{
    control_plane::ControlPlane,
    helm::{chart, helm},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::Path};

/// Labels that helm's users expect, and kustomize's do not.
const LABELS: [&str; 3] = ["app.kubernetes.io/managed-by", "app.kubernetes.io/instance", "helm.sh/chart"];

/// All values, each other than its default.
const OTHER: &str = r#"
image: registry.example.com/fairlead@sha256:0123
imagePullPolicy: Always
imagePullSecrets: [{name: registry}]
defaultClass: true
controller: {replicas: 3, args: [--kubeconfig, /etc/a], resources: {limits: {memory: 2Gi}}, nodeSelector: {a: b}}
agent:
  args: [--interface, eth1]
  resources: {limits: {memory: 3Gi}}
  nodeSelector: {c: d}
  tolerations: [{key: e, operator: Exists}]
metrics: {address: "[::]", podMonitor: true}
networkPolicy: false
"#;

/// Objects by kind and name, of several documents.
type Objects = BTreeMap<String, Value>;

fn objects(yaml: &str) -> Objects {
    let documents = serde_yaml_ng::Deserializer::from_str(yaml).map(|d| Value::deserialize(d).unwrap());
    let documents = documents.filter(|document| !document.is_null());
    let mut objects = Objects::new();
    for object in documents {
        let name =
            format!("{}/{}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
        assert!(objects.insert(name.clone(), object).is_none(), "{name} stands twice");
    }
    objects
}

/// Field by field.
fn assert_same(place: &str, found: &Value, want: &Value) {
    match (found, want) {
        (Value::Object(fields), Value::Object(wanted)) => {
            assert_eq!(fields.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "{place}");
            wanted.iter().for_each(|(key, want)| assert_same(&format!("{place}.{key}"), &fields[key], want));
        }
        _ => assert_eq!(found, want, "{place}"),
    }
}

fn path() -> String {
    chart().to_str().unwrap().to_owned()
}

fn render(plane: &ControlPlane, more: &[&str]) -> Objects {
    let chart = path();
    let arguments = ["template", "fairlead", &chart, "-n", "fairlead-system", "--include-crds"];
    objects(&helm(plane, &[&arguments, more].concat()).unwrap())
}

/// A file beside the kubeconfig, which goes with the control plane.
fn file(plane: &ControlPlane, name: &str, text: &str) -> String {
    let path = plane.kubeconfig().with_file_name(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_chart_renders_what_kustomize_does() {
    let plane = ControlPlane::start().unwrap();
    let kubernetes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes");
    let mut want = objects(&plane.kubectl(&["kustomize", kubernetes.to_str().unwrap()]).unwrap());
    // With helm the namespace is its user's.
    assert!(want.remove("Namespace/fairlead-system").is_some());
    let mut found = render(&plane, &[]);
    for (name, object) in &mut found {
        if let Some(labels) = object.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
            let own = LABELS.iter().filter(|label| labels.remove(**label).is_some()).count();
            assert_eq!(own, LABELS.len(), "{name}");
        }
    }
    // Helm takes definitions as they are, without labels.
    for (_, definition) in want.iter_mut().filter(|(name, _)| name.starts_with("CustomResourceDefinition/")) {
        definition["metadata"].as_object_mut().unwrap().remove("labels");
    }
    assert_eq!(found.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    for (name, object) in &want {
        assert_same(name, &found[name], object);
    }
    // A package, as it is published, has no links.
    let dir = plane.kubeconfig().parent().unwrap().to_str().unwrap().to_owned();
    helm(&plane, &["package", &path(), "-d", &dir]).unwrap();
    let package = format!("{dir}/fairlead-{}.tgz", env!("CARGO_PKG_VERSION"));
    let rendered = helm(&plane, &["template", "fairlead", &package, "-n", "fairlead-system"]).unwrap();
    assert_eq!(rendered, helm(&plane, &["template", "fairlead", &path(), "-n", "fairlead-system"]).unwrap());
}

#[test]
fn every_value_has_its_place_and_a_wrong_one_is_named() {
    let plane = ControlPlane::start().unwrap();
    helm(&plane, &["lint", "--strict", &path()]).unwrap();
    let other = file(&plane, "other.yaml", OTHER);
    helm(&plane, &["lint", "--strict", &path(), "-f", &other]).unwrap();
    let found = render(&plane, &["-f", &other]);
    let (controller, agent) = (&found["Deployment/fairlead-controller"], &found["DaemonSet/fairlead-agent"]);
    assert_eq!(controller["spec"]["replicas"], 3);
    for (object, field, want) in [
        (controller, "nodeSelector", json!({"a": "b"})),
        (agent, "nodeSelector", json!({"c": "d"})),
        (agent, "tolerations", json!([{"key": "e", "operator": "Exists"}])),
        (agent, "imagePullSecrets", json!([{"name": "registry"}])),
        (controller, "imagePullSecrets", json!([{"name": "registry"}])),
    ] {
        assert_eq!(object["spec"]["template"]["spec"][field], want, "{field}");
    }
    for (object, resources, address, more) in [
        (controller, "2Gi", "[::]:9618", ["--kubeconfig", "/etc/a"]),
        (agent, "3Gi", "[::]:9617", ["--interface", "eth1"]),
    ] {
        let container = &object["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["image"], "registry.example.com/fairlead@sha256:0123");
        assert_eq!(container["imagePullPolicy"], "Always");
        assert_eq!(container["resources"], json!({"limits": {"memory": resources}}));
        let arguments = container["args"].as_array().unwrap();
        let end: Vec<_> = ["--metrics", address, "--default-class"].into_iter().chain(more).collect();
        assert!(
            arguments.ends_with(&end.iter().map(|text| json!(text)).collect::<Vec<_>>()),
            "{arguments:?}"
        );
    }
    assert!(found.contains_key("PodMonitor/fairlead"));
    assert!(!found.contains_key("NetworkPolicy/fairlead-deny-ingress"));
    for (value, named) in [
        ("controller.replicas=0", "'/controller/replicas'"),
        ("agent.arguments={a}", "'arguments'"),
        ("metrics.address=192.0.2.1", "'/metrics/address'"),
        ("metrics.podMonitor=true", "metrics.podMonitor: no Prometheus reaches 127.0.0.1"),
        ("image=", "'/image'"),
    ] {
        let error = helm(&plane, &["template", "fairlead", &path(), "--set", value]).unwrap_err().to_string();
        assert!(error.contains(named), "{value}: {error}");
    }
}

#[test]
fn a_cluster_takes_the_chart_its_changes_and_its_end() {
    let plane = ControlPlane::start().unwrap();
    let namespace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes/namespace.yaml");
    plane.kubectl(&["create", "-f", namespace.to_str().unwrap()]).unwrap();
    let (chart, run) = (path(), |arguments: &[&str]| {
        helm(&plane, &[arguments, &["-n", "fairlead-system"]].concat()).unwrap()
    });
    let rendered = run(&["template", "fairlead", &chart]);
    plane.kubectl_with(&["apply", "--server-side", "--dry-run=server", "-f", "-"], &rendered).unwrap();
    run(&["install", "fairlead", &chart]);
    assert_rights(&plane);
    let definitions = plane.kubectl(&["get", "crds", "-o", "name"]).unwrap();
    assert_eq!(
        definitions.lines().filter(|name| name.ends_with(".fairlead.dev")).count(),
        9,
        "{definitions}"
    );

    run(&[
        "upgrade",
        "fairlead",
        &chart,
        "--set",
        "controller.replicas=3,image=fairlead:next,networkPolicy=false",
    ]);
    let get = |what: &str, path: &str| {
        plane.kubectl(&["get", "-n", "fairlead-system", what, "-o", &format!("jsonpath={{{path}}}")])
    };
    let image = ".spec.template.spec.containers[0].image";
    assert_eq!(get("deployment/fairlead-controller", ".spec.replicas").unwrap(), "3");
    assert_eq!(get("deployment/fairlead-controller", image).unwrap(), "fairlead:next");
    assert_eq!(get("daemonset/fairlead-agent", image).unwrap(), "fairlead:next");
    assert!(get("networkpolicies", ".items[*].metadata.name").unwrap().is_empty());
    // Definitions are changed as the notes say.
    let crds = helm(&plane, &["show", "crds", &chart]).unwrap();
    plane.apply(&crds).unwrap();
    run(&["rollback", "fairlead", "1"]);
    assert_eq!(get("daemonset/fairlead-agent", image).unwrap(), "fairlead");

    run(&["uninstall", "fairlead"]);
    let left = plane
        .kubectl(&[
            "get",
            "daemonsets,deployments,serviceaccounts,roles,rolebindings",
            "-n",
            "fairlead-system",
            "-o",
            "name",
        ])
        .unwrap();
    assert_eq!(left, "");
    let cluster = plane.kubectl(&["get", "clusterroles,clusterrolebindings", "-o", "name"]).unwrap();
    assert!(!cluster.contains("/fairlead"), "{cluster}");
    assert_eq!(
        plane.kubectl(&["get", "crds", "-o", "name"]).unwrap(),
        definitions,
        "objects are not lost with the chart"
    );
}
