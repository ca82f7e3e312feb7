//! The official conformance suite of the Multi-Cluster Services API (`tests/conformance/build.sh`) against two clusters, each with its own API
//! server and controller, that are linked both ways. There are no nodes: what kubelets and the controllers of Kubernetes would
//! write, the test writes. Every case of the suite is either to pass or left out for a reason, by name.
use super::{
    clusters::{link, planes, reader, secret},
    store::{NAMESPACE, Process},
};
use lab::{
    Error,
    control_plane::{Api, ControlPlane},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    env, fs,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

/// How long the suite may take, as it is told.
const LONGEST: &str = "300s";
/// How often a kubelet looks: the suite itself looks for its pods every second.
const PERIOD: Duration = Duration::from_millis(200);

/// Cases that pass.
const PASS: [&str; 16] = [
    "A ClusterIP service exported on two clusters should expose the union of the constituent service ports and raise a conflict",
    "A ClusterIP service exported on two clusters with conflicting ports should apply the conflict resolution policy and report a Conflict condition on each ServiceExport",
    "A ServiceImport should only exist as long as there's at least one exporting cluster",
    "A service exported on two clusters with conflicting annotations and labels should apply the conflict resolution policy and report a Conflict condition on each ServiceExport",
    "A service exported on two clusters with conflicting headlessness should apply the conflict resolution policy and report a Conflict condition on the ServiceExport",
    "An IP should be allocated for a ClusterSetIP ServiceImport for each IP family",
    "Exporting a ClusterIP service should create a ServiceImport of type ClusterSetIP in the service's namespace in each cluster. Unexporting should delete the ServiceImport",
    "Exporting a headless service should create a ServiceImport of type Headless in the service's namespace in each cluster. Unexporting should delete the ServiceImport",
    "Exporting a service should create an MCS EndpointSlice in the service's namespace in each cluster with the required MCS labels. Unexporting should delete the EndpointSlice.",
    "Exporting an ExternalName service should set ServiceExport Valid condition to False",
    "No clusterset IP should be allocated for a Headless ServiceImport",
    "Only labels and annotations specified as exported in the ServiceExport should be propagated to the ServiceImport",
    "The InternalTrafficPolicy for a ClusterSetIP ServiceImport should match the exported service's InternalTrafficPolicy",
    "The SessionAffinity for a ClusterSetIP ServiceImport should match the exported service's SessionAffinity",
    "The TrafficDistribution for a ClusterSetIP ServiceImport should match the exported service's TrafficDistribution",
    "The ports for a ClusterSetIP ServiceImport should match those of the exported service",
];

/// Cases that are left out, because they run commands in pods: names are resolved there, and connections opened. One of them would
/// pass, since nothing is reached from where there is nothing.
const NEED_PODS: [&str; 11] = [
    "A DNS SRV query of the <service>.<ns>.svc.clusterset.local domain for a ClusterIP service should return valid SRV records",
    "A DNS SRV query of the <service>.<ns>.svc.clusterset.local domain for a headless service should return valid SRV records",
    "A DNS lookup of the <service>.<ns>.svc.clusterset.local domain for a ClusterIP service should resolve to the clusterset IP",
    "A DNS query of the <hostname>.<clusterid>.<service>.<ns>.svc.clusterset.local domain for a headless StatefulSet service should return the requested pod's endpoint address",
    "A DNS query of the <service>.<ns>.svc.clusterset.local domain for a headless service should return the ready endpoint addresses of all the backing pods",
    "Connectivity to a ClusterIP service existing in two clusters but exported from one should only access the exporting cluster",
    "Connectivity to a service that is not exported should be inaccessible",
    "Connectivity to an exported ClusterIP service should be accessible through DNS",
    "Connectivity to exported services with different port name on each cluster should route traffic to each port only to the cluster that exposes it",
    "Connectivity to exported services with same port name but different port numbers on each cluster should only route traffic to the cluster that exposes the port",
    "DNS lookups of the <service>.<ns>.svc.cluster.local domain for a ClusterIP service should only resolve local services",
];

/// Labels of cases: most of the time the suite waits, so half of it runs beside the other half.
const HALVES: [&str; 2] = ["ClusterIP", "!ClusterIP"];

/// Half of the suite at work. Dropped it ends.
struct Suite {
    child: Child,
    dir: PathBuf,
}

impl Suite {
    /// The cases with these labels, on the contexts `east` and `west` of this kubeconfig, in a new directory beside it.
    fn start(labels: &str, kubeconfig: &Path) -> Result<Self, Error> {
        let dir = kubeconfig.with_file_name(labels);
        fs::create_dir(&dir)?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/build.sh");
        let built = Command::new(&script).output()?;
        if !built.status.success() {
            return Err(String::from_utf8_lossy(&built.stderr).into());
        }
        let mut command = Command::new(String::from_utf8(built.stdout)?.trim());
        command.args(["--ginkgo.no-color", "--ginkgo.json-report=report.json", "-contexts=east,west"]);
        command.args([format!("--ginkgo.timeout={LONGEST}"), format!("--ginkgo.label-filter={labels}")]);
        command.arg(format!("-kubeconfig={}", kubeconfig.display()));
        for name in NEED_PODS {
            command.arg(format!("--ginkgo.skip={}", pattern(name)));
        }
        let log = File::create(dir.join("log"))?;
        command.current_dir(&dir).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Suite { child: command.spawn()?, dir })
    }

    /// Waits for its end: what it printed, and the states of all cases; those of the other half are skipped.
    fn result(mut self) -> Result<(String, BTreeMap<String, String>), Error> {
        let ended = self.child.wait()?;
        let log = fs::read_to_string(self.dir.join("log"))?;
        let report = fs::read_to_string(self.dir.join("report.json"));
        let report = report.map_err(|error| format!("{ended}, and no report: {error}:\n{log}"))?;
        Ok((log, states(&serde_json::from_str(&report)?)))
    }
}

impl Drop for Suite {
    fn drop(&mut self) {
        // Fails when it is over.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A regular expression for the case: its name has blanks in places where a report shows none.
fn pattern(name: &str) -> String {
    name.replace('.', r"\.").replace(' ', r"\s+")
}

/// States of the cases, by their names, and the message of each that failed.
fn states(report: &Value) -> BTreeMap<String, String> {
    let cases = report[0]["SpecReports"].as_array().into_iter().flatten();
    let cases = cases.filter(|case| case["LeafNodeType"] == "It");
    let state = |case: &Value| {
        let texts = case["ContainerHierarchyTexts"].as_array().into_iter().flatten();
        let texts = texts.chain([&case["LeafNodeText"]]).filter_map(Value::as_str);
        let words: Vec<_> = texts.flat_map(str::split_whitespace).collect();
        let state = case["State"].as_str().unwrap_or_default();
        let why = case["Failure"]["Message"].as_str().map(|why| format!(": {why}"));
        (words.join(" "), format!("{state}{}", why.unwrap_or_default()))
    };
    cases.map(state).collect()
}

/// Writes for the objects of the suite what a kubelet and the controllers of EndpointSlices would write, until nobody can tell it to stop.
fn keep(apis: &[Api], stop: &mpsc::Receiver<()>) -> Result<(), Error> {
    while stop.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
        apis.iter().try_for_each(look)?;
    }
    Ok(())
}

fn look(api: &Api) -> Result<(), Error> {
    let list = |path: &str| -> Result<Vec<Value>, Error> {
        Ok(api.get(path)?.object()?["items"].as_array().cloned().unwrap_or_default())
    };
    let name =
        |object: &Value, field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    for mut pod in list("/api/v1/pods?fieldSelector=status.phase=Pending")? {
        let path =
            format!("/api/v1/namespaces/{}/pods/{}/status", name(&pod, "namespace"), name(&pod, "name"));
        pod["status"]["phase"] = "Running".into();
        api.put(&path, &pod)?;
    }
    for service in list("/api/v1/services?labelSelector=dummy-svc=dummy")? {
        let (namespace, service_name) = (name(&service, "namespace"), name(&service, "name"));
        for family in service["spec"]["ipFamilies"].as_array().into_iter().flatten() {
            let address = if family == "IPv4" { "10.1.0.1" } else { "fd00:1::1" };
            let path = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
            let family = family.as_str().unwrap_or_default();
            // One that is there is left as it is.
            api.post(
                &path,
                &json!({
                    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                    "metadata": {
                        "name": format!("{service_name}-{}", family.to_lowercase()),
                        "labels": {
                            "kubernetes.io/service-name": service_name,
                            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                        },
                    },
                    "addressType": family,
                    "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
                    "ports": [{"name": "tcp", "port": 42, "protocol": "TCP"}],
                }),
            )?;
        }
    }
    Ok(())
}

/// A kubeconfig with both clusters as contexts.
fn kubeconfig(planes: [(&str, &ControlPlane); 2]) -> Result<Value, Error> {
    let mut all = json!({"apiVersion": "v1", "kind": "Config", "clusters": [], "users": [], "contexts": []});
    for (name, plane) in planes {
        let one: Value = serde_json::from_str(&fs::read_to_string(plane.kubeconfig())?)?;
        for (kind, field) in [("clusters", "cluster"), ("users", "user")] {
            let entry = json!({"name": name, field: one[kind][0][field]});
            all[kind].as_array_mut().ok_or("no list")?.push(entry);
        }
        let context = json!({"name": name, "context": {"cluster": name, "user": name}});
        all["contexts"].as_array_mut().ok_or("no list")?.push(context);
    }
    Ok(all)
}

#[test]
fn the_conformance_suite_passes() -> Result<(), Error> {
    let [east, west] = planes()?;
    let (to_east, to_west) = (reader(&east)?, reader(&west)?);
    secret(&east, "west", &fs::read_to_string(to_west.kubeconfig())?)?;
    secret(&west, "east", &fs::read_to_string(to_east.kubeconfig())?)?;
    east.apply(&link("west", 600))?;
    west.apply(&link("east", 600))?;
    let rights = |plane: &ControlPlane| plane.kubeconfig_of(NAMESPACE, "fairlead-controller");
    let _controllers =
        [Process::controller_of("east", &rights(&east)?)?, Process::controller_of("west", &rights(&west)?)?];

    let both = east.kubeconfig().with_file_name("both");
    fs::write(&both, kubeconfig([("east", &east), ("west", &west)])?.to_string())?;
    let apis = [east.api()?, west.api()?];
    let (stop, stopped) = mpsc::channel();
    let kubelet = thread::spawn(move || keep(&apis, &stopped));
    let [one, other] = HALVES.map(|labels| Suite::start(labels, &both));
    let (mut log, mut states) = one?.result()?;
    let (more, others) = other?.result()?;
    drop(stop);
    kubelet.join().map_err(|_| "the kubelet has panicked")??;
    log += &more;
    states.extend(others.into_iter().filter(|(_, state)| state != "skipped"));

    let wanted = PASS.map(|name| (name, "passed")).into_iter().chain(NEED_PODS.map(|name| (name, "skipped")));
    let wanted: BTreeMap<_, _> = wanted.collect();
    let others = states.iter().filter(|(name, state)| wanted.get(name.as_str()) != Some(&state.as_str()));
    let others: BTreeMap<_, _> = others.collect();
    assert!(others.is_empty() && states.len() == wanted.len(), "{others:#?}\n{log}");
    Ok(())
}
