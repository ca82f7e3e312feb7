//! `deploy/kubernetes` and an API server: all of it is taken, and controller and agents may do what they do, and no more.
use lab::control_plane::ControlPlane;
use serde_json::Value;
use std::{collections::BTreeSet, fs, path::Path};

/// Rights as `VERB GROUP/RESOURCE`, with `:NAME` behind it if they are for one object.
pub(super) type Rights = BTreeSet<String>;

/// What both read: the kinds that are declared, and of Kubernetes' own those that a service consists of.
const READ: [&str; 12] = [
    "fairlead.dev/addresspools",
    "fairlead.dev/bgpadvertisements",
    "fairlead.dev/bgppeers",
    "fairlead.dev/bgprouters",
    "fairlead.dev/clusterlinks",
    "fairlead.dev/loadbalancers",
    "fairlead.dev/packetfilters",
    "fairlead.dev/servicepolicies",
    "/namespaces",
    "/nodes",
    "/services",
    "discovery.k8s.io/endpointslices",
];

/// What the controller that leads writes, wherever it is, and reads again; and what it sums up.
const LEADER: [&str; 40] = [
    "list fairlead.dev/nodestates",
    "watch fairlead.dev/nodestates",
    "get fairlead.dev/addresspools",
    "get fairlead.dev/bgpadvertisements",
    "get fairlead.dev/bgppeers",
    "get fairlead.dev/bgprouters",
    "get fairlead.dev/loadbalancers",
    "get fairlead.dev/packetfilters",
    "get fairlead.dev/servicepolicies",
    "get /nodes",
    "get /services",
    "patch fairlead.dev/addresspools/status",
    "patch fairlead.dev/bgpadvertisements/status",
    "patch fairlead.dev/bgppeers/status",
    "patch fairlead.dev/bgprouters/status",
    "patch fairlead.dev/loadbalancers/status",
    "patch fairlead.dev/packetfilters/status",
    "patch fairlead.dev/servicepolicies/status",
    "patch /services/status",
    "patch /nodes",
    "create events.k8s.io/events",
    "patch events.k8s.io/events",
    "get fairlead.dev/clusterlinks",
    "patch fairlead.dev/clusterlinks/status",
    "list multicluster.x-k8s.io/serviceexports",
    "watch multicluster.x-k8s.io/serviceexports",
    "patch multicluster.x-k8s.io/serviceexports/status",
    "list multicluster.x-k8s.io/serviceimports",
    "watch multicluster.x-k8s.io/serviceimports",
    "create multicluster.x-k8s.io/serviceimports",
    "update multicluster.x-k8s.io/serviceimports",
    "delete multicluster.x-k8s.io/serviceimports",
    "patch multicluster.x-k8s.io/serviceimports/status",
    "create discovery.k8s.io/endpointslices",
    "update discovery.k8s.io/endpointslices",
    "delete discovery.k8s.io/endpointslices",
    "create /services",
    "patch /services",
    "delete /services",
    "get about.k8s.io/clusterproperties:cluster.clusterset.k8s.io",
];

/// What it writes in its own namespace.
const LEASE: [&str; 3] = [
    "create coordination.k8s.io/leases",
    "get coordination.k8s.io/leases:fairlead-controller",
    "update coordination.k8s.io/leases:fairlead-controller",
];

/// What both read in their own namespace, and what an agent writes.
const AGENT: [&str; 2] = ["create fairlead.dev/nodestates", "patch fairlead.dev/nodestates/status"];
const SECRETS: [&str; 2] = ["list /secrets", "watch /secrets"];

fn rights(parts: &[&[&str]]) -> Rights {
    let read = READ.iter().flat_map(|resource| ["list", "watch"].map(|verb| format!("{verb} {resource}")));
    read.chain(parts.concat().into_iter().map(str::to_owned)).collect()
}

/// What an API server allows an account in a namespace.
pub(super) fn allowed(plane: &ControlPlane, account: &str, of: &str, namespace: &str) -> Rights {
    let config = plane.kubeconfig_of(of, account).unwrap();
    let review = format!(
        "{{apiVersion: authorization.k8s.io/v1, kind: SelfSubjectRulesReview, spec: {{namespace: {namespace}}}}}"
    );
    let arguments =
        ["--kubeconfig", config.to_str().unwrap(), "create", "--validate=false", "-f", "-", "-o", "json"];
    let answer: Value = serde_json::from_str(&plane.kubectl_with(&arguments, &review).unwrap()).unwrap();
    assert_eq!(answer["status"]["incomplete"], false, "{answer}");
    let texts = |value: &Value| -> Vec<String> {
        let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
        items.iter().map(|item| item.as_str().unwrap().to_owned()).collect()
    };
    let mut found = Rights::new();
    for rule in answer["status"]["resourceRules"].as_array().unwrap() {
        let names = texts(&rule["resourceNames"]);
        let names = if names.is_empty() { vec![String::new()] } else { names };
        for verb in texts(&rule["verbs"]) {
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    for name in &names {
                        let colon = if name.is_empty() { "" } else { ":" };
                        found.insert(format!("{verb} {group}/{resource}{colon}{name}"));
                    }
                }
            }
        }
    }
    found
}

#[test]
fn the_manifests_are_taken_and_give_no_more_rights_than_needed() {
    let plane = ControlPlane::start().unwrap();
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes");
    let apply = || plane.kubectl(&["apply", "--server-side", "-k", deploy.to_str().unwrap()]);
    let said = apply().unwrap();
    for object in ["daemonset.apps/fairlead-agent", "deployment.apps/fairlead-controller"] {
        assert!(said.contains(object), "{said}");
    }
    let definitions = fs::read_dir(deploy.join("../../crds")).unwrap().map(|entry| entry.unwrap().path());
    for path in definitions.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")) {
        let plural = path.file_stem().unwrap().to_str().unwrap();
        assert!(
            said.contains(&format!("/{plural}.fairlead.dev")),
            "crds/Kustomization lacks {plural}: {said}"
        );
    }
    apply().unwrap();
    assert_rights(&plane);
}

/// Controller and agents have the rights that they need, and no others.
pub(super) fn assert_rights(plane: &ControlPlane) {
    plane.kubectl(&["create", "serviceaccount", "nobody"]).unwrap();
    let everybody = allowed(plane, "nobody", "default", "default");
    for (account, namespace, want) in [
        ("fairlead-controller", "fairlead-system", rights(&[&LEADER, &LEASE, &SECRETS])),
        ("fairlead-controller", "default", rights(&[&LEADER])),
        ("fairlead-agent", "fairlead-system", rights(&[&AGENT, &SECRETS])),
        ("fairlead-agent", "default", rights(&[&AGENT])),
    ] {
        let found = allowed(plane, account, "fairlead-system", namespace);
        let found: Rights = found.difference(&everybody).cloned().collect();
        let (missing, more) = (want.difference(&found), found.difference(&want));
        let (missing, more): (Vec<_>, Vec<_>) = (missing.collect(), more.collect());
        assert!(
            missing.is_empty() && more.is_empty(),
            "{account} in {namespace}: missing {missing:?}, too much {more:?}"
        );
    }
}

#[test]
fn with_monitoring_metrics_are_served_where_the_monitor_looks() {
    let plane = ControlPlane::start().unwrap();
    let monitoring = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/monitoring");
    let rendered = plane.kubectl(&["kustomize", monitoring.to_str().unwrap()]).unwrap();
    for (port, after) in
        [("9617", "- --metrics\n        - '[::]:9617'"), ("9618", "- --metrics\n        - '[::]:9618'")]
    {
        assert!(rendered.contains(after), "{rendered}");
        assert!(rendered.contains(&format!("containerPort: {port}")), "{rendered}");
        // Probes look there, too.
        assert!(rendered.contains(&format!("path: /readyz\n            port: {port}")), "{rendered}");
    }
    assert!(rendered.contains("kind: PodMonitor"));
}
