//! A pod uses a service of several clusters by its name and address: CoreDNS answers with the addresses of the ServiceImport, and
//! kube-proxy brings what is for them to pods of both clusters. `home` imports what `west` exports, and exports, too; pods of
//! both are behind one node, as if the network between the clusters were there.
use controller::demo::{
    instance,
    netns::{Namespace, Process, Sandbox},
    topology::Host,
};
use lab::{
    Error, address, control_plane::ControlPlane, fairlead, pod::plug, service_network::ServiceNetwork, turn,
    wait_until,
};
use serde_json::json;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    process::Command,
    thread,
};

/// Addresses of the node.
const NODE: [&str; 2] = ["10.0.0.9", "fd00::9"];
fn plane(node: &Namespace) -> Result<ControlPlane, Error> {
    let plane = ControlPlane::start_in(node, address(NODE[0]))?;
    plane.install_multicluster()?;
    plane.kubectl(&["create", "namespace", "shop"])?;
    Ok(plane)
}

/// A Service of both families that is exported, with these ports, and its slices; an address may be said: "None".
fn service(name: &str, ip: Option<&str>, ports: &[(&str, u16)], pods: &[&Host]) -> String {
    let metadata = json!({"name": name, "namespace": "shop"});
    let ports_of = ports.iter().map(|(name, port)| json!({"name": name, "port": port})).collect::<Vec<_>>();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata,
        "spec": {"clusterIP": ip, "ipFamilyPolicy": "RequireDualStack", "ports": ports_of},
    });
    let export = json!({
        "apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceExport", "metadata": metadata,
    });
    let slice = |family: &str| {
        let endpoint = |pod: &&Host| {
            json!({"addresses": [pod.address(family == "IPv4")], "conditions": {"ready": true},
                "hostname": pod.name})
        };
        let target = |(name, _): &(&str, u16)| json!({"name": name, "port": 80, "protocol": "TCP"});
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"name": format!("{name}-{}", family.to_lowercase()), "namespace": "shop",
                "labels": {"kubernetes.io/service-name": name}},
            "ports": ports.iter().map(target).collect::<Vec<_>>(),
            "endpoints": pods.iter().map(endpoint).collect::<Vec<_>>(),
        })
    };
    [service, export, slice("IPv4"), slice("IPv6")].map(|object| object.to_string()).join("\n---\n")
}

/// The controller of a cluster.
fn controller(plane: &ControlPlane, node: &Namespace, dir: &Path) -> Result<Process, Error> {
    let mut command = Command::new(fairlead());
    command.args(["controller", "--cluster-name", "home", "--namespace", "fairlead-system"]);
    command.arg("--kubeconfig").arg(plane.kubeconfig_of("fairlead-system", "fairlead-controller")?);
    Ok(node.spawn(command, &dir.join("controller.log"))?)
}

/// The addresses in a field of an object, once it has one of each family.
fn wait_ips(plane: &ControlPlane, kind: &str, name: &str, field: &str) -> Result<[IpAddr; 2], Error> {
    let mut ips = Vec::new();
    let output = format!("jsonpath={{{field}[*]}}");
    wait_until(&format!("{kind}/{name} has addresses"), || {
        let found = ["get", kind, name, "-n", "shop", "--ignore-not-found", "-o", &output];
        ips = plane.kubectl(&found)?.split_whitespace().map(address).collect();
        Ok(ips.len() == 2)
    })?;
    ips.sort_unstable();
    Ok([ips[0], ips[1]])
}

/// The pods that answer a client on 32 connections, if all of these are answered: one of two is missed once in 2^31.
fn get(client: &Namespace, address: SocketAddr) -> Result<BTreeSet<String>, Error> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--fail", "--fail-early", "--max-time", "2"]);
    command.args(["--header", "Connection: close", &format!("http://{address}/[1-32]")]);
    let answers = client.output(command)?;
    Ok(answers.lines().filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect())
}

/// Waits until these pods, and no others, answer a client.
fn wait_answers(client: &Namespace, (ip, port): (IpAddr, u16), want: &[&str]) -> Result<(), Error> {
    let mut last = String::new();
    let found = wait_until(&format!("{want:?} answer at {ip}, port {port}"), || {
        let found = get(client, SocketAddr::new(ip, port));
        last = format!("{found:?}");
        Ok(found.is_ok_and(|found| found.iter().eq(want)))
    });
    found.map_err(|error| format!("{error}; it is {last}").into())
}

#[test]
fn pods_reach_both_clusters_by_name_and_address() -> Result<(), Error> {
    let _turn = turn();
    let sandbox = Sandbox::create("fll")?;
    let node = sandbox.namespace("node")?;
    node.sysctl(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])?;
    node.ip(&format!("addr add {}/32 dev lo\naddr add {}/128 dev lo\n", NODE[0], NODE[1]))?;
    let pod = |name: &str, digit: u8, last: u8| {
        let ipv4 = Ipv4Addr::new(10, 244, digit, last);
        let ipv6 = Ipv6Addr::new(0xfd00, 0x244, digit.into(), 0, 0, 0, 0, last.into());
        plug(&sandbox, &node, name, (ipv4, ipv6))
    };
    let (client, ours, theirs) = (pod("client", 1, 10)?, pod("home", 1, 11)?, pod("west", 2, 11)?);
    let serve = |pod| instance::serve(&sandbox, pod, fairlead());
    let _servers = [serve(&ours)?, serve(&theirs)?];

    let (home, west) = thread::scope(|scope| {
        let west = scope.spawn(|| plane(&node));
        (plane(&node), west.join().unwrap_or_else(|_| Err("west has panicked".into())))
    });
    let (home, west) = (home?, west?);
    // What home exports is not younger than what west does, so its number of the port `other` counts.
    home.apply(&service("web", None, &[("http", 8080), ("other", 8081)], &[&ours]))?;
    let ports = [("http", 8080), ("more", 8082), ("other", 8083)];
    let headless = service("each", Some("None"), &ports, &[&theirs]);
    west.apply(&[service("web", None, &ports, &[&theirs]), headless].join("\n---\n"))?;
    let mut network = ServiceNetwork::start(sandbox.dir(), &node, NODE.map(address), &home)?;
    home.link("west", &west.reader()?, 60)?;
    let _controller = controller(&home, &node, sandbox.dir())?;

    // A name in the zone of all clusters is for pods of all that export it, each port for those that have it.
    let client = &client.namespace;
    let ips = wait_ips(&home, "serviceimport", "web", ".spec.ips")?;
    network.wait_name(client, "web.shop.svc.clusterset.local", &ips)?;
    for ip in ips {
        wait_answers(client, (ip, 8080), &["home", "west"])?;
        wait_answers(client, (ip, 8081), &["home"])?;
        wait_answers(client, (ip, 8082), &["west"])?;
    }
    // That of a headless one is for the pods themselves, and each has its own.
    let pod = [true, false].map(|ipv4| theirs.address(ipv4));
    network.wait_name(client, "each.shop.svc.clusterset.local", &pod)?;
    network.wait_name(client, "west.west.each.shop.svc.clusterset.local", &pod)?;
    // In the zone of the cluster there is nothing that is not its own.
    let own = wait_ips(&home, "service", "web", ".spec.clusterIPs")?;
    network.wait_name(client, "web.shop.svc.cluster.local", &own)?;
    network.wait_name(client, "each.shop.svc.cluster.local", &[])?;
    wait_answers(client, (own[0], 8080), &["home"])?;

    // A cluster without endpoints gets nothing; one that exports no more, neither. The name and its addresses stay.
    west.apply(&service("web", None, &ports, &[]))?;
    wait_answers(client, (ips[0], 8080), &["home"])?;
    west.apply(&service("web", None, &ports, &[&theirs]))?;
    home.kubectl(&["delete", "serviceexport", "web", "-n", "shop"])?;
    for ip in ips {
        wait_answers(client, (ip, 8080), &["west"])?;
    }
    network.wait_name(client, "web.shop.svc.clusterset.local", &ips)?;

    // When nobody exports it, nothing is left of it, and all else is as it was.
    west.kubectl(&["delete", "serviceexport", "web", "-n", "shop"])?;
    network.wait_name(client, "web.shop.svc.clusterset.local", &[])?;
    wait_until("nobody answers", || {
        Ok(ips.iter().all(|ip| get(client, SocketAddr::new(*ip, 8080)).is_err()))
    })?;
    network.wait_name(client, "each.shop.svc.clusterset.local", &pod)?;
    wait_answers(client, (own[0], 8080), &["home"])
}
