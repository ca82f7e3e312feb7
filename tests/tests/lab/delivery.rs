//! Delivery to pods: two nodes of a Kubernetes cluster behind FRR, with pods as namespaces behind a veth each. Nobody but
//! its node knows the way to a pod, and no pod knows a VIP.
use crate::cluster::{NAMESPACE, start};
use controller::{
    demo::{
        http::{Load, Sample, Target, Traffic, fetch, serve},
        netns::{Namespace, Process},
        topology::Host,
    },
    serve::rows::ServiceRow,
};
use lab::{
    Error, Lab, Routing, address, control_plane::ControlPlane, echo, failures, pod::plug, wait_until, watch,
};
use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// VIPs of the Services `ipip` and `gue`, each balanced in the mode that its name says.
const VIPS: [[&str; 2]; 2] = [["203.0.113.30", "2001:db8:1::30"], ["203.0.113.31", "2001:db8:1::31"]];
const MODES: [&str; 2] = ["ipip", "gue"];
/// Ports of the Services.
const HTTP: u16 = 8080;
const ECHO: u16 = 7;

/// Conditions of endpoints.
const READY: &str = "{ready: true}";
const TERMINATING: &str = "{ready: false, serving: true, terminating: true}";
const LOST: &str = "{ready: false, serving: false}";

/// Ports of the pods, the same for both Services: a client may have one port in a connection of each.
pub(super) const TARGET_PORTS: [u16; 2] = [80, 7007];

/// A pod.
struct Pod {
    node: usize,
    host: Host,
}

/// Processes first: they end before the network does.
struct Cluster {
    controller: Option<Process>,
    agents: [Option<Process>; 2],
    configs: [PathBuf; 2],
    plane: ControlPlane,
    lab: Lab,
}

impl Cluster {
    /// An API server behind the router, which has our definitions, two nodes with their addresses, and Services; controller
    /// and agents are at work.
    fn start(more: &str) -> Result<Self, Error> {
        let lab = Lab::prepare(Routing::Frr)?;
        let router = &lab.topology.router;
        let plane = ControlPlane::start_in(&router.namespace, router.ipv4.into())?;
        plane.install()?;
        for name in ["nodes.yaml", "pool.yaml", "bgp.yaml"] {
            plane.apply(&lab.instances[0].read(name)?)?;
        }
        for balancer in 0..2 {
            let host = lab.balancer(balancer);
            host.namespace.sysctl(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])?;
            let addresses =
                host.addresses().map(|ip| format!("{{\"type\": \"InternalIP\", \"address\": \"{ip}\"}}"));
            let status = format!("{{\"status\": {{\"addresses\": [{}]}}}}", addresses.join(", "));
            let node = lab.instances[balancer].node();
            let [v4, v6] = pod_cidrs(balancer);
            let spec = format!("{{\"spec\": {{\"podCIDR\": \"{v4}\", \"podCIDRs\": [\"{v4}\", \"{v6}\"]}}}}");
            plane.kubectl(&["patch", "node", node, "--type=merge", "-p", &spec])?;
            plane.kubectl(&["patch", "node", node, "--subresource=status", "--type=merge", "-p", &status])?;
        }
        let services = MODES.into_iter().zip(VIPS).map(|(mode, vips)| service(mode, mode, &vips, ""));
        plane.apply(
            &services.chain(MODES.map(policy)).chain([more.to_owned()]).collect::<Vec<_>>().join("---\n"),
        )?;
        let configs =
            ["fairlead-controller", "fairlead-agent"].map(|account| plane.kubeconfig_of(NAMESPACE, account));
        let [controller, agent] = configs;
        let mut cluster =
            Cluster { controller: None, agents: [None, None], configs: [controller?, agent?], plane, lab };
        cluster.start_controller()?;
        for balancer in 0..2 {
            cluster.start_agent(balancer)?;
        }
        Ok(cluster)
    }

    fn start_controller(&mut self) -> Result<(), Error> {
        let router = self.lab.topology.router.clone();
        self.controller = Some(start(&self.lab, &router, &["controller"], &self.configs[0])?);
        Ok(())
    }

    fn start_agent(&mut self, balancer: usize) -> Result<(), Error> {
        let instance = &self.lab.instances[balancer];
        let socket = instance.socket();
        let socket = socket.to_str().ok_or("a path that is no text")?;
        let arguments = ["agent", "--interface", "eth0", "--pod-interface", "pod*"];
        let arguments = [&arguments[..], &["--node-name", instance.node(), "--api-socket", socket]].concat();
        self.agents[balancer] = Some(start(&self.lab, &instance.host, &arguments, &self.configs[1])?);
        Ok(())
    }

    /// A pod on a node, which serves HTTP and echoes.
    fn pod(&self, node: usize, number: u8) -> Result<Pod, Error> {
        Ok(Pod { node, host: pod(&self.lab, node, number)? })
    }

    /// Writes the EndpointSlices of a Service, as their controller would.
    fn write_slices(&self, service: &str, pods: &[(&Pod, &str)]) -> Result<(), Error> {
        let [http, echo] = TARGET_PORTS;
        let slice = |family: &str| {
            let endpoints = pods.iter().map(|(pod, conditions)| {
                let (address, node) =
                    (pod.host.address(family == "IPv4"), self.lab.instances[pod.node].node());
                format!("  - {{addresses: [\"{address}\"], nodeName: {node}, conditions: {conditions}}}\n")
            });
            format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {{name: {service}-{}, namespace: default, labels: {{kubernetes.io/service-name: {service}}}}}\n\
                 addressType: {family}\n\
                 ports: [{{name: http, port: {http}, protocol: TCP}}, {{name: echo, port: {echo}, protocol: TCP}}]\nendpoints:\n{}",
                family.to_lowercase(),
                endpoints.collect::<String>()
            )
        };
        self.plane.apply(&["IPv4", "IPv6"].map(slice).join("---\n")).map(drop)
    }

    fn write_all_slices(&self, pods: &[(&Pod, &str)]) -> Result<(), Error> {
        MODES.iter().try_for_each(|service| self.write_slices(service, pods))
    }

    /// Waits until both nodes give these weights to both of them, in all services that begin so and have clients.
    fn wait_weights(&mut self, prefix: &str, weights: [u16; 2]) -> Result<(), Error> {
        let nodes = [0, 1].map(|node| self.lab.instances[node].node().to_owned());
        for balancer in 0..2 {
            self.lab.wait_services(balancer, |rows| {
                let mut rows = of_clients(rows, prefix).peekable();
                rows.peek().is_some()
                    && rows.all(|row| row.programmed && self::weights(row, &nodes) == weights)
            })?;
        }
        Ok(())
    }
}

/// A pod on a node, which serves HTTP and echoes at [`TARGET_PORTS`].
pub(super) fn pod(lab: &Lab, node: usize, number: u8) -> Result<Host, Error> {
    let name = format!("pod{}{number}", node + 1);
    let addresses = (
        format!("10.244.{}.{number}", node + 1).parse()?,
        format!("fd00:244:{}::{number}", node + 1).parse()?,
    );
    let host = plug(&lab.topology.sandbox, &lab.balancer(node).namespace, &name, addresses)?;
    let [http, echo] = TARGET_PORTS;
    echo::serve(&host.namespace, echo);
    // Ends with the test process, as the echo does.
    host.namespace.thread(move || serve(&name, http));
    Ok(host)
}

/// The pod CIDRs of a node.
fn pod_cidrs(node: usize) -> [String; 2] {
    [format!("10.244.{}.0/24", node + 1), format!("fd00:244:{}::/64", node + 1)]
}

/// The services that choose a node.
fn of_clients<'a>(rows: &'a [ServiceRow], prefix: &str) -> impl Iterator<Item = &'a ServiceRow> {
    let prefix = format!("Service/default/{prefix}");
    rows.iter().filter(move |row| row.name.starts_with(&prefix) && !row.name.ends_with("/pods"))
}

/// What nodes weigh in a service; one that is none of its backends: 0.
fn weights(row: &ServiceRow, nodes: &[String; 2]) -> [u16; 2] {
    nodes.each_ref().map(|node| {
        let mut own = row.backends.iter().filter(|backend| backend.node.as_ref() == Some(node));
        own.find_map(|backend| backend.weight).unwrap_or_default()
    })
}

fn service(name: &str, mode: &str, vips: &[&str], more: &str) -> String {
    let ([http, echo], vips) = (TARGET_PORTS, vips.join(","));
    format!(
        "apiVersion: v1\nkind: Service\n\
         metadata: {{name: {name}, namespace: default, labels: {{mode: {mode}}},\n\
           annotations: {{fairlead.dev/addresses: \"{vips}\"}}}}\n\
         spec: {{type: LoadBalancer, loadBalancerClass: fairlead.dev/lb, allocateLoadBalancerNodePorts: false,\n\
           ipFamilyPolicy: PreferDualStack{more}, ports: [{{name: http, port: {HTTP}, targetPort: {http}}},\n\
           {{name: echo, port: {ECHO}, targetPort: {echo}}}]}}\n"
    )
}

fn policy(mode: &str) -> String {
    format!(
        "apiVersion: fairlead.dev/v1alpha1\nkind: ServicePolicy\nmetadata: {{name: {mode}}}\n\
         spec: {{serviceSelector: {{matchLabels: {{mode: {mode}}}}}, policy: {{forwarding: {{mode: {}}}}}}}\n",
        mode.to_uppercase()
    )
}

fn all_vips() -> impl Iterator<Item = &'static str> {
    VIPS.into_iter().flatten()
}

/// Requests to all VIPs, in their order.
fn traffic(from: &Namespace) -> Traffic {
    let targets: Vec<_> = all_vips().map(|vip| Target::new("pods", address(vip), HTTP)).collect();
    Traffic::start(from, &targets, Load { clients: 2, pause: Duration::from_millis(20) })
}

/// Which pods answered, by VIP.
fn answered(samples: &[Sample]) -> Vec<BTreeSet<&str>> {
    let of = |target| {
        let own = samples.iter().filter(move |sample| sample.target == target);
        own.filter_map(|sample| sample.answer.as_deref().ok()).collect()
    };
    (0..all_vips().count()).map(of).collect()
}

/// Lets traffic flow until each VIP was answered by these pods and by no other from now on. All requests are answered, those
/// of before, too.
fn all_answer(traffic: &mut Traffic, pods: &[&str]) -> Result<(), Error> {
    let before = watch(traffic, Duration::ZERO)?;
    assert_eq!(failures(&before), [""; 0], "of {}", before.len());
    let wanted = vec![pods.iter().copied().collect::<BTreeSet<_>>(); all_vips().count()];
    let mut samples = Vec::new();
    let done = wait_until("all pods answer", || {
        samples.extend(watch(traffic, Duration::from_millis(200))?);
        Ok(!failures(&samples).is_empty() || samples.len() > 200 && answered(&samples) == wanted)
    });
    assert_eq!(failures(&samples), [""; 0], "of {}", samples.len());
    done.map_err(|e| format!("{e}: {:?}", answered(&samples)).into())
}

/// What is answered to a request: see [`controller::demo::http::serve`].
fn ask(from: &Namespace, vip: &str) -> Result<String, Error> {
    let address = SocketAddr::new(address(vip), HTTP);
    let answer = from.enter(|| -> Result<_, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(fetch(address, "/"))?.1)
    })??;
    Ok(String::from_utf8(answer.to_vec())?)
}

/// The pods of both nodes are reached through either, and see the client; nothing breaks while pods come and go, nor while
/// controller and agents are restarted; and when a node is lost, the pods of the other one go on.
#[test]
fn pods_are_reached_through_changes_restarts_and_the_loss_of_a_node() -> Result<(), Error> {
    let mut cluster = Cluster::start("")?;
    let (one, two, three) = (cluster.pod(0, 11)?, cluster.pod(0, 12)?, cluster.pod(1, 11)?);
    cluster.write_all_slices(&[(&one, READY), (&two, READY), (&three, READY)])?;
    for mode in MODES {
        cluster.wait_weights(mode, [2, 1])?;
    }
    let vips: Vec<_> = all_vips().collect();
    cluster.lab.wait_next_hops(&vips, &[0, 1])?;
    let client = cluster.lab.topology.client.clone();
    let mut traffic = traffic(&client.namespace);
    all_answer(&mut traffic, &["pod111", "pod112", "pod211"])?;
    for vip in all_vips() {
        let seen = ask(&client.namespace, vip)?;
        let from: SocketAddr = seen.trim().rsplit(' ').next().unwrap_or_default().parse()?;
        assert_eq!(from.ip(), client.address(vip.contains('.')), "{seen}");
    }
    // Each of the nodes has sent requests to both.
    for balancer in 0..2 {
        cluster.lab.wait_services(balancer, |rows| {
            let http: Vec<_> = of_clients(rows, "").filter(|row| row.name.contains("/http/")).collect();
            http.len() == 4 && http.iter().all(|row| row.backends.iter().all(|backend| backend.flows > 0))
        })?;
    }

    // Pods come and go. Who is connected to one that stays does not notice.
    let echoes: Vec<_> = all_vips().map(|vip| SocketAddr::new(address(vip), ECHO)).collect();
    let connections = echo::Connections::open(&client.namespace, &echoes, 6)?;
    let four = cluster.pod(1, 12)?;
    let pods = |state| -> Vec<(&Pod, &str)> {
        [(&one, READY), (&two, READY), (&three, READY)].into_iter().chain([(&four, state)]).collect()
    };
    for _ in 0..2 {
        cluster.write_all_slices(&pods(READY))?;
        for mode in MODES {
            cluster.wait_weights(mode, [2, 2])?;
        }
        all_answer(&mut traffic, &["pod111", "pod112", "pod211", "pod212"])?;
        for slices in [&pods(TERMINATING)[..], &pods(TERMINATING)[..3]] {
            cluster.write_all_slices(slices)?;
            for mode in MODES {
                cluster.wait_weights(mode, [2, 1])?;
            }
            let echoed = connections.echoed();
            wait_until("every connection goes on", || Ok(connections.echoed() > echoed + 24 * 10))?;
        }
        all_answer(&mut traffic, &["pod111", "pod112", "pod211"])?;
    }

    // Controller and agents come back to what they left. The router moves flows then, away and back, which any node sends to the
    // same one, once its slots are clean.
    if let Some(controller) = cluster.controller.take() {
        controller.kill();
    }
    cluster.start_controller()?;
    for balancer in 0..2 {
        for node in 0..2 {
            cluster.lab.wait_clean(node)?;
        }
        if let Some(agent) = cluster.agents[balancer].take() {
            agent.kill();
        }
        cluster.lab.wait_next_hops(&vips, &[1 - balancer])?;
        all_answer(&mut traffic, &["pod111", "pod112", "pod211"])?;
        cluster.start_agent(balancer)?;
        cluster.lab.wait_next_hops(&vips, &[0, 1])?;
        all_answer(&mut traffic, &["pod111", "pod112", "pod211"])?;
    }
    assert!(connections.close()? > 20);

    // The cable of a node is pulled. What was asked until others know of it is lost.
    cluster.lab.topology.router.namespace.ip("link set lb1 down\n")?;
    cluster.write_all_slices(&[(&one, LOST), (&two, LOST), (&three, READY)])?;
    cluster.lab.wait_next_hops(&vips, &[1])?;
    let nodes = [0, 1].map(|node| cluster.lab.instances[node].node().to_owned());
    cluster.lab.wait_services(1, |rows| of_clients(rows, "").all(|row| weights(row, &nodes) == [0, 1]))?;
    drop(traffic);
    let mut traffic = self::traffic(&client.namespace);
    all_answer(&mut traffic, &["pod211"])
}

/// How many frames with the address of a VIP as their source a capture of the router has.
fn count(capture: &Path) -> Result<usize, Error> {
    let text = fs::read_to_string(capture)?;
    Ok(text.lines().filter(|line| line.contains(&format!(".{HTTP} > "))).count())
}

/// The node that sends a request on never sees the answer; with externalTrafficPolicy Local only nodes that have pods are asked;
/// and pods are clients like others, those of the same node, too.
#[test]
fn answers_go_straight_and_pods_are_clients_too() -> Result<(), Error> {
    const LOCAL: [&str; 2] = ["203.0.113.32", "2001:db8:1::32"];
    let announced = "apiVersion: fairlead.dev/v1alpha1\nkind: BGPAdvertisement\nmetadata: {name: pods}\n\
                     spec: {source: PodCIDR}\n---\n\
                     apiVersion: fairlead.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: pods}\n\
                     spec: {use: PodCIDR, nodeMask: {ipv4: 24, ipv6: 64}, blocks: [{cidr: 10.244.0.0/16}, {cidr: \"fd00:244::/48\"}]}\n";
    let local = service("local", "gue", &LOCAL, ", externalTrafficPolicy: Local");
    let mut cluster = Cluster::start(&[&local, announced].join("---\n"))?;
    let nodes = [0, 1].map(|node| cluster.lab.instances[node].node().to_owned());
    let (one, two, guest) = (cluster.pod(0, 11)?, cluster.pod(1, 11)?, cluster.pod(0, 19)?);
    // Only the first node is sent to, and only the second one has pods.
    let label = "node.kubernetes.io/exclude-from-external-load-balancers";
    cluster.plane.kubectl(&["label", "node", &nodes[1], &format!("{label}=")])?;
    cluster.write_all_slices(&[(&two, READY)])?;
    cluster.write_slices("local", &[(&two, READY)])?;
    for mode in MODES {
        cluster.wait_weights(mode, [0, 1])?;
    }
    let vips: Vec<_> = all_vips().collect();
    cluster.lab.wait_next_hops(&vips, &[0])?;
    let dir = cluster.lab.topology.sandbox.dir().to_owned();
    let ports = ["lb1", "lb2"];
    let files = ports.map(|port| dir.join(format!("from-{port}.txt")));
    let mut captures = Vec::new();
    for (port, file) in ports.into_iter().zip(&files) {
        let mut tcpdump = Command::new("tcpdump");
        tcpdump.args(["-n", "-l", "-Q", "in", "-i", port, "tcp"]);
        captures.push(cluster.lab.topology.router.namespace.spawn(tcpdump, file)?);
        wait_until("tcpdump captures", || Ok(fs::read_to_string(file)?.contains("listening on")))?;
    }
    let client = cluster.lab.topology.client.namespace.clone();
    let mut traffic = self::traffic(&client);
    all_answer(&mut traffic, &["pod211"])?;
    wait_until("the answers are captured", || Ok(count(&files[1])? > 200))?;
    assert_eq!(count(&files[0])?, 0, "answers from lb1");
    drop(captures);

    // Once there are pods on both nodes, and both announce.
    cluster.plane.kubectl(&["label", "node", &nodes[1], &format!("{label}-")])?;
    cluster.write_all_slices(&[(&one, READY), (&two, READY)])?;
    for mode in MODES {
        cluster.wait_weights(mode, [1, 1])?;
    }
    cluster.lab.wait_next_hops(&vips, &[0, 1])?;
    all_answer(&mut traffic, &["pod111", "pod211"])?;
    drop(traffic);
    cluster.lab.wait_next_hops(&LOCAL, &[1])?;
    assert!(ask(&client, LOCAL[0])?.starts_with("pod211 answers 198.51.100.2:"));
    cluster.write_slices("local", &[(&one, READY)])?;
    cluster.lab.wait_next_hops(&LOCAL, &[0])?;
    assert!(ask(&client, LOCAL[1])?.starts_with("pod111 answers [2001:db8:2::2]:"));

    // Answers to a pod on the other node go by the routes between pods.
    let router = &cluster.lab.topology.router.namespace;
    for (family, cidr) in ["-4", "-6"].into_iter().zip(pod_cidrs(0)) {
        wait_until("the router knows the pod CIDR", || {
            Ok(router
                .ip_json(&[family, "route", "show", &cidr])?
                .as_array()
                .is_some_and(|routes| !routes.is_empty()))
        })?;
    }
    let mut traffic = self::traffic(&guest.host.namespace);
    all_answer(&mut traffic, &["pod111", "pod211"])?;
    let seen = ask(&guest.host.namespace, VIPS[1][0])?;
    assert!(seen.contains(" answers 10.244.1.19:"), "{seen}");
    Ok(())
}
