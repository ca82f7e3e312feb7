//! One VIP at two sites behind one router: `east` and `west` are clusters with an API server, a controller, a node and a pod each. A
//! pod is reached through its node, in a tunnel, from either site.
use super::{
    cluster::{NAMESPACE, start},
    delivery::{TARGET_PORTS, pod},
};
use controller::{
    demo::{netns::Process, topology::Host},
    serve::rows::{BackendRow, ServiceRow},
};
use lab::{
    Error, Lab, Routing, address,
    control_plane::{ControlPlane, Proxy},
    echo, wait_until,
};
use serde_json::json;
use std::{fs, net::SocketAddr, thread};

const SITES: [&str; 2] = ["east", "west"];
/// VIPs of the Services `ipip` and `gue`.
const VIPS: [(&str, &str); 2] = [("ipip", "203.0.113.30"), ("gue", "203.0.113.31")];
const ECHO: u16 = 7;
/// Connections to each VIP.
const CONNECTIONS: usize = 12;

/// An API server with what a site declares: its node and its pod, and both Services, which are exported.
fn plane(lab: &Lab, site: usize, pod: &Host) -> Result<ControlPlane, Error> {
    let router = &lab.topology.router;
    let plane = ControlPlane::start_in(&router.namespace, router.ipv4.into())?;
    plane.install_multicluster()?;
    let node = lab.instances[site].node();
    let declared = VIPS.iter().map(|(name, vip)| service(name, vip, node, pod));
    let declared =
        declared.chain([json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}}).to_string()]);
    plane.apply(&declared.collect::<Vec<_>>().join("\n---\n"))?;
    let addresses = [json!({"type": "InternalIP", "address": lab.balancer(site).ipv4})];
    let status = json!({"status": {"addresses": addresses}}).to_string();
    plane.kubectl(&["patch", "node", node, "--subresource=status", "--type=merge", "-p", &status])?;
    Ok(plane)
}

/// A Service in the mode that its name says, its only endpoint, and that it is exported.
fn service(name: &str, vip: &str, node: &str, pod: &Host) -> String {
    let (mode, [_, echo], pod) = (name.to_uppercase(), TARGET_PORTS, pod.ipv4);
    format!(
        "apiVersion: v1\nkind: Service\n\
         metadata: {{name: {name}, namespace: default, labels: {{mode: {name}}}, annotations: {{fairlead.dev/addresses: {vip}}}}}\n\
         spec: {{type: LoadBalancer, loadBalancerClass: fairlead.dev/lb, allocateLoadBalancerNodePorts: false,\n\
           ports: [{{name: echo, port: {ECHO}, targetPort: {echo}}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: {name}-1, namespace: default, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         ports: [{{name: echo, port: {echo}, protocol: TCP}}]\n\
         endpoints: [{{addresses: [{pod}], nodeName: {node}, conditions: {{ready: true}}}}]\n---\n\
         apiVersion: multicluster.x-k8s.io/v1alpha1\nkind: ServiceExport\nmetadata: {{name: {name}, namespace: default}}\n---\n\
         apiVersion: fairlead.dev/v1alpha1\nkind: ServicePolicy\nmetadata: {{name: {name}}}\n\
         spec: {{serviceSelector: {{matchLabels: {{mode: {name}}}}},\n\
           policy: {{forwarding: {{mode: {mode}}}, clusters: {{prefer: None}}, drainSeconds: 1}}}}\n"
    )
}

/// Links a cluster to another one, with the rights of `remote-reader.yaml`.
fn link(from: &ControlPlane, to: &ControlPlane, name: &str) -> Result<Proxy, Error> {
    let way = to.proxy(&to.kubeconfig_of(NAMESPACE, "fairlead-remote")?)?;
    from.link(name, &fs::read_to_string(way.kubeconfig())?, 60)?;
    Ok(way)
}

/// The controller and the agent of a site.
fn start_site(lab: &Lab, site: usize, plane: &ControlPlane) -> Result<[Process; 2], Error> {
    let host = lab.balancer(site);
    host.namespace.sysctl(&[("net/ipv4/ip_forward", "1")])?;
    let config = plane.kubeconfig_of(NAMESPACE, "fairlead-controller")?;
    let controller =
        start(lab, &lab.topology.backends[site], &["controller", "--cluster-name", SITES[site]], &config)?;
    let instance = &lab.instances[site];
    let socket = instance.socket();
    let socket = socket.to_str().ok_or("a path that is no text")?;
    let arguments = ["agent", "--interface", "eth0", "--pod-interface", "pod*"];
    let arguments = [&arguments[..], &["--node-name", instance.node(), "--api-socket", socket]].concat();
    let config = plane.kubeconfig_of(NAMESPACE, "fairlead-agent")?;
    Ok([controller, start(lab, host, &arguments, &config)?])
}

/// The nodes behind both VIPs, as a site has them.
fn nodes(rows: &[ServiceRow]) -> Vec<&BackendRow> {
    rows.iter().filter(|row| !row.name.ends_with("/pods")).flat_map(|row| &row.backends).collect()
}

/// Waits until a site has both nodes in both tables; how many slots they have, in an order that is the same at both sites.
fn slots(lab: &mut Lab, site: usize) -> Result<Vec<(SocketAddr, u32)>, Error> {
    let of = |rows: &[ServiceRow]| -> Vec<_> {
        nodes(rows).iter().map(|node| (SocketAddr::new(node.address, node.port), node.slots)).collect()
    };
    let is_whole = |rows: &[ServiceRow]| {
        let slots = of(rows);
        rows.iter().all(|row| row.programmed) && slots.len() == 4 && slots.iter().all(|(_, slots)| *slots > 0)
    };
    Ok(of(&lab.wait_services(site, is_whole)?))
}

/// Sends packets for the VIPs to a site.
fn route(lab: &Lab, site: usize) -> Result<(), Error> {
    let via = lab.balancer(site).ipv4;
    let routes: String = VIPS.iter().map(|(_, vip)| format!("route replace {vip} via {via}\n")).collect();
    Ok(lab.topology.router.namespace.ip(&routes)?)
}

/// Connections live on while the router sends their packets to the other site and back, whichever site their pod is at.
#[test]
fn a_connection_survives_its_move_to_another_site() -> Result<(), Error> {
    let mut lab = Lab::prepare(Routing::Static)?;
    let pods = [pod(&lab, 0, 11)?, pod(&lab, 1, 11)?];
    let planes = thread::scope(|scope| {
        let west = scope.spawn(|| plane(&lab, 1, &pods[1]));
        let east = plane(&lab, 0, &pods[0]);
        Ok::<_, Error>([east?, west.join().map_err(|_| "west has not started")??])
    })?;
    let _links = [link(&planes[0], &planes[1], SITES[1])?, link(&planes[1], &planes[0], SITES[0])?];
    let _processes = [start_site(&lab, 0, &planes[0])?, start_site(&lab, 1, &planes[1])?];
    assert_eq!(slots(&mut lab, 0)?, slots(&mut lab, 1)?);
    for site in 0..2 {
        lab.wait_clean(site)?;
    }

    route(&lab, 0)?;
    let vips: Vec<_> = VIPS.iter().map(|(_, vip)| SocketAddr::new(address(vip), ECHO)).collect();
    let connections = echo::Connections::open(&lab.topology.client.namespace, &vips, CONNECTIONS)?;
    // East has them all, and sends some of them to west.
    lab.wait_services(0, |rows| nodes(rows).iter().all(|node| node.flows > 0))?;
    lab.wait_services(1, |rows| nodes(rows).iter().all(|node| node.packets == 0))?;
    for site in [1, 0] {
        route(&lab, site)?;
        let echoed = connections.echoed();
        let rounds = (vips.len() * CONNECTIONS * 20) as u64;
        wait_until("every connection goes on", || Ok(connections.echoed() > echoed + rounds))?;
    }
    // West had them, with both pods.
    lab.wait_services(1, |rows| nodes(rows).iter().all(|node| node.packets > 0 && node.flows == 0))?;
    assert!(connections.close()? > 20);
    Ok(())
}
