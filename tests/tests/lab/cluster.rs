//! The nodes of a Kubernetes cluster: `fairlead controller` and an agent on each node, with the rights of their manifests,
//! against a real API server behind the same router as the clients.
use controller::demo::{
    http::{Load, Target, Traffic},
    netns::Process,
};
use lab::{
    Error, Lab, Routing, WEB, address, control_plane::ControlPlane, failures, fairlead, wait_until, watch,
};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

pub(super) const NAMESPACE: &str = "fairlead-system";

/// A Service of both families that asks for the VIPs of `web`.
pub(super) fn service() -> String {
    let addresses = WEB.join(",");
    format!(
        "apiVersion: v1\nkind: Service\n\
         metadata: {{name: shop, namespace: default, annotations: {{fairlead.dev/addresses: \"{addresses}\"}}}}\n\
         spec: {{type: LoadBalancer, loadBalancerClass: fairlead.dev/lb, allocateLoadBalancerNodePorts: false,\n\
           ipFamilyPolicy: PreferDualStack, ports: [{{name: http, port: 80}}]}}\n"
    )
}

/// Its endpoints, as their controller would write them: some of b1, b2, b3.
pub(super) fn slices(backends: &[u8]) -> String {
    let slice = |family: &str, prefix: &str| {
        let endpoints = backends
            .iter()
            .map(|b| format!("  - {{addresses: [\"{prefix}1{b}\"], conditions: {{ready: true}}}}\n"));
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: shop-{}, namespace: default, labels: {{kubernetes.io/service-name: shop}}}}\n\
             addressType: {family}\nports: [{{name: http, port: 80, protocol: TCP}}]\nendpoints:\n{}",
            family.to_lowercase(),
            endpoints.collect::<String>()
        )
    };
    [slice("IPv4", "10.1.0."), slice("IPv6", "fd00:20::")].join("---\n")
}

/// Starts a process of the cluster in a namespace of the lab.
pub(super) fn start(
    lab: &Lab,
    host: &controller::demo::topology::Host,
    arguments: &[&str],
    config: &Path,
) -> Result<Process, Error> {
    let mut command = Command::new(fairlead());
    command.args(arguments).args([Path::new("--kubeconfig"), config]);
    command.args(["--namespace", NAMESPACE, "--metrics", "127.0.0.1:9617"]);
    let log = lab.topology.sandbox.dir().join(format!("{}-cluster.log", host.name));
    Ok(host.namespace.spawn(command, &log)?)
}

pub(super) fn start_agent(lab: &Lab, balancer: usize, config: &Path) -> Result<Process, Error> {
    let instance = &lab.instances[balancer];
    let socket: PathBuf = instance.socket();
    let socket = socket.to_str().ok_or("a path that is no text")?;
    let arguments = ["agent", "--interface", "eth0", "--node-name", instance.node(), "--api-socket", socket];
    start(lab, &instance.host, &arguments, config)
}

/// Waits until a balancer has these backends, and no others, in the tables of all its services.
pub(super) fn wait_backends(lab: &mut Lab, balancer: usize, backends: usize) -> Result<(), Error> {
    let has = |row: &controller::serve::rows::ServiceRow| {
        row.programmed && row.backends.iter().filter(|backend| backend.slots > 0).count() == backends
    };
    lab.wait_services(balancer, |rows| rows.len() == 2 && rows.iter().all(has)).map(drop)
}

/// A Service gets its addresses from the controller, both nodes announce them, and requests are answered; they go on being
/// answered while endpoints come and go, while the API server is away, and while an agent is killed and comes back.
#[test]
fn a_service_is_served_through_changes_and_outages() -> Result<(), Error> {
    let mut lab = Lab::prepare(Routing::Frr)?;
    let router = lab.topology.router.clone();
    let mut plane = ControlPlane::start_in(&router.namespace, router.ipv4.into())?;
    plane.install()?;
    let examples = ["nodes.yaml", "pool.yaml", "bgp.yaml"].map(|name| lab.instances[0].read(name));
    for text in examples {
        plane.apply(&text?)?;
    }
    plane.apply(&[service(), slices(&[1, 2, 3])].join("---\n"))?;

    let config = plane.kubeconfig_of(NAMESPACE, "fairlead-controller")?;
    let controller = start(&lab, &router, &["controller"], &config)?;
    let config = plane.kubeconfig_of(NAMESPACE, "fairlead-agent")?;
    let mut agents = vec![start_agent(&lab, 0, &config)?, start_agent(&lab, 1, &config)?];
    lab.wait_next_hops(&WEB, &[0, 1])?;
    let shop: Value = serde_json::from_str(&plane.kubectl(&["get", "service", "shop", "-o", "json"])?)?;
    let ingress = shop["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
    let given: Vec<_> = ingress.iter().filter_map(|entry| entry["ip"].as_str()).collect();
    assert_eq!(given, WEB, "{shop}");
    for balancer in 0..2 {
        let node = lab.instances[balancer].node().to_owned();
        wait_until("the NodeState tells of a session", || {
            let state = plane.kubectl(&["get", "nodestate", &node, "-o", "json"]);
            Ok(state.is_ok_and(|text| text.contains("\"Established\"")))
        })?;
    }

    let targets = WEB.map(|vip| Target::new("shop", address(vip), 80));
    let load = Load { clients: 4, pause: Duration::from_millis(20) };
    let mut traffic = Traffic::start(&lab.topology.client.namespace, &targets, load);
    let mut samples = watch(&mut traffic, Duration::from_secs(1))?;
    // Endpoints go and come: their controller writes the slices.
    for backends in [&[1, 3][..], &[1, 2, 3]] {
        plane.apply(&slices(backends))?;
        for balancer in 0..2 {
            wait_backends(&mut lab, balancer, backends.len())?;
        }
        samples.extend(watch(&mut traffic, Duration::from_secs(1))?);
    }
    // An API server that is away changes nothing.
    plane.stop_api_server();
    samples.extend(watch(&mut traffic, Duration::from_secs(5))?);
    lab.wait_next_hops(&WEB, &[0, 1])?;
    plane.start_api_server()?;
    plane.apply(&slices(&[2, 3]))?;
    for balancer in 0..2 {
        wait_backends(&mut lab, balancer, 2)?;
    }
    samples.extend(watch(&mut traffic, Duration::from_secs(1))?);
    assert_eq!(failures(&samples), [""; 0], "of {}", samples.len());
    assert!(samples.len() > 300, "{} requests", samples.len());
    drop(traffic);

    // An agent that is killed leaves the datapath behind, and finds it again.
    agents.remove(0).kill();
    lab.wait_next_hops(&WEB, &[1])?;
    agents.insert(0, start_agent(&lab, 0, &config)?);
    lab.wait_next_hops(&WEB, &[0, 1])?;
    wait_backends(&mut lab, 0, 2)?;

    // The Service goes, and its routes with it.
    plane.kubectl(&["delete", "service", "shop"])?;
    lab.wait_next_hops(&WEB, &[])?;
    for process in agents.into_iter().chain([controller]) {
        let status = process.terminate()?;
        assert!(status.success(), "{status}");
    }
    Ok(())
}
