//! The store of a cluster against a real API server: snapshots, statuses, who leads, and what a crash leaves.
use controller::{
    api::crds,
    cluster::{self, Facts},
    declared::Declared,
    store::{
        KubernetesStore, SharedStore, Store,
        kubernetes::{
            Access, Role,
            faulty::{Cut, Faults},
        },
    },
};
use futures::StreamExt;
use lab::{Error, control_plane::ControlPlane, wait_until};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex},
};
use tokio::runtime::Runtime;

/// A control plane that knows our kinds.
pub(super) fn plane() -> Result<ControlPlane, Error> {
    let plane = ControlPlane::start()?;
    let crds: Vec<_> = crds::crds().iter().map(crds::yaml).collect();
    plane.apply(&crds.join("---\n"))?;
    plane.kubectl(&["wait", "--for=condition=Established", "--timeout=120s", "crd", "--all"])?;
    plane.kubectl(&["create", "namespace", NAMESPACE])?;
    Ok(plane)
}

pub(super) const NAMESPACE: &str = "fairlead-system";

/// A process with a store. Dropped it is as if it were killed: nothing is given back, nothing is finished.
pub(super) struct Process {
    pub(super) store: Arc<KubernetesStore>,
    /// All snapshots that were given out.
    snapshots: Arc<Mutex<Vec<Arc<Declared>>>>,
    pub(super) faults: Faults,
    /// Dropped last: ends everything.
    _runtime: Runtime,
}

impl Process {
    pub(super) fn start(
        kubeconfig: &Path,
        role: Role,
        identity: &str,
        cut: Option<Cut>,
    ) -> Result<Self, Error> {
        Process::start_with(kubeconfig, role, identity, cut, false, None)
    }

    /// A controller of the cluster that is called so.
    pub(super) fn controller_of(cluster: &str, kubeconfig: &Path) -> Result<Self, Error> {
        Process::start_with(kubeconfig, Role::Controller, cluster, None, false, Some(cluster))
    }

    /// The same; `is_default_class`: Services that name no class are ours.
    fn start_with(
        kubeconfig: &Path,
        role: Role,
        identity: &str,
        cut: Option<Cut>,
        is_default_class: bool,
        cluster: Option<&str>,
    ) -> Result<Self, Error> {
        let runtime = Runtime::new()?;
        let faults = Faults::default();
        faults.set(cut);
        let (store, snapshots) = runtime.block_on(async {
            let access = Access::with_faults(Some(kubeconfig), Some(NAMESPACE.into()), &faults).await?;
            let access = access.with_default_class(is_default_class);
            let access = access.with_cluster_name(cluster.map(str::to_owned));
            let store = Arc::new(KubernetesStore::start(&access, role, identity)?);
            let snapshots = Arc::new(Mutex::new(Vec::new()));
            let (mut stream, list) = (store.watch(), Arc::clone(&snapshots));
            tokio::spawn(async move {
                while let Some(snapshot) = stream.next().await {
                    list.lock().unwrap().push(snapshot);
                }
            });
            if role == Role::Controller {
                let facts = Facts::new(Arc::clone(&store))?;
                tokio::spawn(cluster::reconcile(Arc::clone(&store), facts));
            }
            Ok::<_, Error>((store, snapshots))
        })?;
        Ok(Process { store, snapshots, faults, _runtime: runtime })
    }

    pub(super) fn last(&self) -> Option<Arc<Declared>> {
        self.snapshots.lock().unwrap().last().cloned()
    }

    pub(super) fn wait(&self, what: &str, good: impl Fn(&Declared) -> bool) -> Result<Arc<Declared>, Error> {
        let found = wait_until(what, || Ok(self.last().is_some_and(|last| good(&last))));
        found.map_err(|error| format!("{error}: {:#?}", self.last()))?;
        self.last().ok_or_else(|| "no snapshot".into())
    }

    pub(super) fn snapshots(&self) -> Vec<Arc<Declared>> {
        self.snapshots.lock().unwrap().clone()
    }

    pub(super) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self._runtime.block_on(future)
    }

    pub(super) fn leads(&self) -> bool {
        *self.store.leader().borrow()
    }
}

pub(super) fn pool(cidr: &str) -> String {
    format!(
        "apiVersion: fairlead.dev/v1alpha1\nkind: AddressPool\nmetadata: {{name: vips}}\n\
         spec: {{use: LoadBalancer, blocks: [{{cidr: {cidr}}}]}}\n"
    )
}

pub(super) fn balancer(name: &str) -> String {
    format!(
        "apiVersion: fairlead.dev/v1alpha1\nkind: LoadBalancer\nmetadata: {{name: {name}}}\n\
         spec: {{ports: [{{port: 80}}], backends: [{{address: 10.0.0.1}}]}}\n"
    )
}

pub(super) fn service(name: &str, annotations: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default, annotations: {{{annotations}}}}}\n\
         spec: {{type: LoadBalancer, loadBalancerClass: fairlead.dev/lb, allocateLoadBalancerNodePorts: false,\n\
           ipFamilies: [IPv4], ports: [{{port: 80}}]}}\n"
    )
}

pub(super) fn apply(plane: &ControlPlane, objects: &[String]) -> Result<(), Error> {
    plane.apply(&objects.join("---\n")).map(drop)
}

pub(super) fn get(plane: &ControlPlane, kind: &str) -> Result<Vec<Value>, Error> {
    let text = plane.kubectl(&["get", kind, "-A", "-o", "json"])?;
    let list: Value = serde_json::from_str(&text)?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

/// The addresses that everybody has, as the API server says.
pub(super) fn given(plane: &ControlPlane) -> Result<BTreeMap<String, Vec<String>>, Error> {
    let texts = |list: &Value, field: &str| -> Vec<String> {
        let all = list.as_array().into_iter().flatten();
        all.filter_map(|entry| Some(entry[field].as_str()?.to_owned())).collect()
    };
    let mut given = BTreeMap::new();
    for object in get(plane, "loadbalancers")? {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        given.insert(name, texts(&object["status"]["addresses"], "address"));
    }
    for object in get(plane, "services")?.iter().filter(|s| s["spec"]["type"] == "LoadBalancer") {
        let name = format!("svc/{}", object["metadata"]["name"].as_str().unwrap_or_default());
        given.insert(name, texts(&object["status"]["loadBalancer"]["ingress"], "ip"));
    }
    Ok(given)
}

pub(super) fn assert_nothing_twice(given: &BTreeMap<String, Vec<String>>) {
    let mut owners = BTreeMap::new();
    for (name, addresses) in given {
        for address in addresses {
            let before = owners.insert(address, name);
            assert_eq!(before, None, "{address} of {name}: {given:?}");
        }
    }
}

/// Waits until all of them have one address each.
pub(super) fn wait_given(
    plane: &ControlPlane,
    names: &[&str],
) -> Result<BTreeMap<String, Vec<String>>, Error> {
    let want: BTreeSet<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut last = BTreeMap::new();
    let done = wait_until("everybody has an address", || {
        last = given(plane)?;
        assert_nothing_twice(&last);
        Ok(last.keys().cloned().collect::<BTreeSet<_>>() == want && last.values().all(|a| a.len() == 1))
    });
    done.map_err(|error| format!("{error}: {last:?}"))?;
    Ok(last)
}

#[test]
fn what_is_written_comes_back_and_what_is_given_is_said() -> Result<(), Error> {
    let plane = plane()?;
    apply(
        &plane,
        &[
            pool("192.0.2.0/28"),
            balancer("web"),
            service("shop", ""),
            service("bad", "fairlead.dev/addresses: x"),
        ],
    )?;
    let controller = Process::start(&plane.kubeconfig(), Role::Controller, "one", None)?;
    let agent = Process::start(&plane.kubeconfig(), Role::Agent, "node", None)?;
    let declared = agent.wait("addresses are in effect", |declared| {
        let web = declared.statuses.load_balancers.get("web");
        let shop = declared.statuses.services.get("default/shop");
        [web, shop].into_iter().all(|status| status.is_some_and(|s| s.addresses.len() == 1))
    })?;
    assert_eq!(declared.pools["vips"].spec.blocks.len(), 1);
    assert_eq!(declared.services["default/shop"].metadata.name.as_deref(), Some("shop"));
    assert!(!declared.services.contains_key("default/bad"));
    let faults: Vec<_> = agent.store.faults().borrow().iter().map(ToString::to_string).collect();
    assert_eq!(
        faults,
        ["Service/default/bad: metadata.annotations.fairlead.dev/addresses: \"x\" is not an IP address"]
    );
    let given = given(&plane)?;
    assert_nothing_twice(&given);
    assert_eq!((given["web"].len(), given["svc/shop"].len(), given["svc/bad"].len()), (1, 1, 0));
    // The pool counts, and whoever looks at the objects hears of it.
    wait_until("the pool counts", || {
        Ok(get(&plane, "addresspools")?.iter().any(|pool| pool["status"]["ipv4"]["assigned"] == 2))
    })?;
    wait_until("there are events", || {
        let events = get(&plane, "events.events.k8s.io")?;
        let of = |kind: &str, name: &str| {
            events.iter().filter(|e| e["regarding"]["kind"] == kind && e["regarding"]["name"] == name).count()
        };
        Ok(of("LoadBalancer", "web") > 0 && of("Service", "shop") > 0)
    })?;
    // The spec is as it was; at rest nothing is written.
    let writes = controller.faults.writes();
    let version = |kind: &str| -> Result<Vec<Value>, Error> {
        Ok(get(&plane, kind)?.iter().map(|object| object["metadata"]["resourceVersion"].clone()).collect())
    };
    let before = version("loadbalancers")?;
    apply(&plane, &[balancer("second")])?;
    wait_until("the second has an address", || Ok(given_of(&plane, "second")? == 1))?;
    assert!(controller.faults.writes() > writes);
    assert!(version("loadbalancers")?.contains(&before[0]), "the first one was not written again");
    Ok(())
}

fn given_of(plane: &ControlPlane, name: &str) -> Result<usize, Error> {
    Ok(given(plane)?.get(name).map_or(0, Vec::len))
}

#[test]
fn an_api_server_that_is_away_changes_nothing() -> Result<(), Error> {
    let mut plane = plane()?;
    apply(&plane, &[pool("192.0.2.0/28"), balancer("web"), balancer("gone")])?;
    let controller = Process::start(&plane.kubeconfig(), Role::Controller, "one", None)?;
    let agent = Process::start(&plane.kubeconfig(), Role::Agent, "node", None)?;
    let has_address = |declared: &Declared, name: &str| {
        declared.statuses.load_balancers.get(name).is_some_and(|s| !s.addresses.is_empty())
    };
    agent.wait("addresses are in effect", |d| has_address(d, "web") && has_address(d, "gone"))?;
    let (before, writes) = (given(&plane)?, agent.faults.writes());
    plane.stop_api_server();
    wait_until("the controller leads no more", || Ok(!controller.leads()))?;
    plane.start_api_server()?;
    plane.kubectl(&["delete", "loadbalancer", "gone"])?;
    apply(&plane, &[balancer("new")])?;
    let last = agent.wait("the agent has caught up", |d| {
        has_address(d, "new") && !d.load_balancers.contains_key("gone")
    })?;
    assert_eq!(given(&plane)?["web"], before["web"]);
    assert!(has_address(&last, "web"));
    assert_eq!(agent.faults.writes(), writes, "an agent writes no statuses");
    // From the first snapshot on with it, `web` was in all of them, with its address.
    let snapshots = agent.snapshots.lock().unwrap();
    let from = snapshots.iter().position(|s| has_address(s, "web")).unwrap();
    for snapshot in &snapshots[from..] {
        assert!(snapshot.load_balancers.contains_key("web") && has_address(snapshot, "web"), "{snapshot:#?}");
    }
    Ok(())
}

#[test]
fn of_two_controllers_one_leads() -> Result<(), Error> {
    let plane = plane()?;
    apply(&plane, &[pool("192.0.2.0/28"), balancer("web")])?;
    let start = |identity| Process::start(&plane.kubeconfig(), Role::Controller, identity, None);
    let (one, two) = (start("one")?, start("two")?);
    wait_until("one leads", || Ok(one.leads() || two.leads()))?;
    assert!(one.leads() != two.leads());
    wait_given(&plane, &["web"])?;
    // Killed: the other one waits for the end of the Lease.
    let (dead, alive) = if one.leads() { (one, two) } else { (two, one) };
    drop(dead);
    assert!(!alive.leads());
    apply(&plane, &[balancer("second")])?;
    wait_until("the other one leads", || Ok(alive.leads()))?;
    wait_given(&plane, &["web", "second"])?;
    // Stopped: the next one need not wait. It is given back, not run out.
    alive._runtime.block_on(alive.store.resign());
    let lease = plane.kubectl(&["get", "lease", "-n", NAMESPACE, "fairlead-controller", "-o", "json"])?;
    let lease: Value = serde_json::from_str(&lease)?;
    assert_eq!(lease["spec"]["holderIdentity"], Value::Null);
    assert!(!alive.leads());
    Ok(())
}

/// A pool with just as many addresses as there are services: one that leaks is missed at once.
#[test]
fn a_crash_at_any_write_leaks_nothing_and_gives_nothing_twice() -> Result<(), Error> {
    let plane = plane()?;
    let names = ["a", "b", "c", "svc/d"];
    let objects = [balancer("c"), balancer("b"), balancer("a"), service("d", "")];
    let mut at = 0;
    loop {
        let mut went_through = true;
        for arrives in [false, true] {
            apply(&plane, &[vec![pool("192.0.2.4/30")], objects.to_vec()].concat())?;
            let cut = Cut { after: at, arrives, once: false };
            let identity = format!("dies-{at}-{arrives}");
            let dies = Process::start(&plane.kubeconfig(), Role::Controller, &identity, Some(cut))?;
            wait_until(
                "it is cut, or done",
                || Ok(dies.faults.writes() > at || is_settled(&plane, &names)?),
            )?;
            went_through &= dies.faults.writes() <= at;
            drop(dies);
            let left = given(&plane)?;
            assert_nothing_twice(&left);
            // The next one need not wait for the end of the Lease.
            plane.kubectl(&["delete", "lease", "-n", NAMESPACE, "fairlead-controller"])?;
            let next =
                Process::start(&plane.kubeconfig(), Role::Controller, &format!("next-{at}-{arrives}"), None)?;
            let now = wait_given(&plane, &names)?;
            for (name, addresses) in left.iter().filter(|(_, addresses)| !addresses.is_empty()) {
                assert_eq!(now[name], *addresses, "{name} keeps what it was given; cut at {at}");
            }
            drop(next);
            plane.kubectl(&["delete", "lease", "-n", NAMESPACE, "fairlead-controller"])?;
            plane.kubectl(&["delete", "loadbalancers,addresspools", "--all"])?;
            plane.kubectl(&["delete", "service", "d"])?;
        }
        if went_through {
            assert!(at > 4, "only {at} writes");
            return Ok(());
        }
        at += 1;
    }
}

fn is_settled(plane: &ControlPlane, names: &[&str]) -> Result<bool, Error> {
    let given = given(plane)?;
    let counted =
        get(plane, "addresspools")?.iter().all(|pool| pool["status"]["ipv4"]["assigned"] == names.len());
    Ok(counted && given.values().all(|addresses| addresses.len() == 1))
}

#[test]
fn an_answer_that_is_lost_is_asked_for_again() -> Result<(), Error> {
    let plane = plane()?;
    apply(&plane, &[pool("192.0.2.4/31"), balancer("b")])?;
    for after in 0..2 {
        let cut = Cut { after, arrives: true, once: true };
        let identity = format!("one-{after}");
        let controller = Process::start(&plane.kubeconfig(), Role::Controller, &identity, Some(cut))?;
        wait_until("an answer is lost", || Ok(controller.faults.writes() > after))?;
        apply(&plane, &[balancer("a")])?;
        wait_given(&plane, &["a", "b"])?;
        drop(controller);
        plane.kubectl(&["delete", "lease", "-n", NAMESPACE, "fairlead-controller"])?;
        plane.kubectl(&["delete", "loadbalancers,addresspools", "--all"])?;
        apply(&plane, &[pool("192.0.2.4/31"), balancer("b")])?;
    }
    Ok(())
}

/// Of three Services without a word about addresses: the class of the first is another, the second names none, and the third
/// is not for a balancer.
#[test]
fn services_without_a_class_are_ours_if_it_is_said() -> Result<(), Error> {
    let plane = plane()?;
    let service = |name: &str, spec: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
             spec: {{{spec}, ports: [{{port: 80}}]}}\n"
        )
    };
    apply(
        &plane,
        &[
            pool("192.0.2.0/29"),
            balancer("a"),
            service("other", "type: LoadBalancer, loadBalancerClass: example.com/lb"),
            service("plain", "type: LoadBalancer"),
            service("inside", "type: ClusterIP"),
        ],
    )?;
    let ingress = |name: &str| {
        let path = "jsonpath={.status.loadBalancer.ingress[*].ip}";
        plane.kubectl(&["get", "service", name, "-o", path])
    };
    let assigned = |count: u64| {
        wait_until(&format!("{count} addresses are given and counted"), || {
            Ok(get(&plane, "addresspools")?.iter().all(|pool| pool["status"]["ipv4"]["assigned"] == count))
        })
    };
    let controller = Process::start(&plane.kubeconfig(), Role::Controller, "one", None)?;
    assigned(1)?;
    assert_eq!(ingress("plain")?, "");
    drop(controller);
    plane.kubectl(&["delete", "lease", "-n", NAMESPACE, "fairlead-controller"])?;
    let _controller = Process::start_with(&plane.kubeconfig(), Role::Controller, "two", None, true, None)?;
    assigned(2)?;
    assert!(ingress("plain")?.starts_with("192.0.2."));
    assert_eq!([ingress("other")?, ingress("inside")?], ["", ""]);
    // An agent that is told so takes it from there; one that is not leaves it alone.
    for is_default_class in [true, false] {
        let agent =
            Process::start_with(&plane.kubeconfig(), Role::Agent, "node", None, is_default_class, None)?;
        let declared =
            agent.wait("there is a snapshot", |declared| declared.services.contains_key("default/plain"))?;
        assert_eq!(declared.statuses.services.contains_key("default/plain"), is_default_class);
        assert!(!declared.statuses.services.contains_key("default/other"));
    }
    Ok(())
}

#[test]
fn nodes_are_given_blocks_for_their_pods() -> Result<(), Error> {
    let plane = plane()?;
    let pods = "apiVersion: fairlead.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: pods}\n\
                spec: {use: PodCIDR, blocks: [{cidr: 10.244.0.0/16}], nodeMask: {ipv4: 24}}\n";
    let node = |name: &str, blocks: u8| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, annotations: {{fairlead.dev/pod-cidr-blocks: \"{blocks}\"}}}}\n"
        )
    };
    apply(&plane, &[pods.to_owned(), node("n1", 1), node("n2", 2)])?;
    let _controller = Process::start(&plane.kubeconfig(), Role::Controller, "one", None)?;
    let agent = Process::start(&plane.kubeconfig(), Role::Agent, "n1", None)?;
    let declared = agent.wait("nodes have blocks", |declared| {
        let blocks =
            |name: &str| declared.statuses.nodes.get(name).map_or(0, |status| status.pod_cidrs.len());
        (blocks("n1"), blocks("n2")) == (1, 2)
    })?;
    let mut all = BTreeSet::new();
    for object in get(&plane, "nodes")? {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let own: Vec<_> =
            declared.statuses.nodes[name].pod_cidrs.iter().map(|b| b.cidr.to_string()).collect();
        assert_eq!(object["spec"]["podCIDRs"], serde_json::json!([own[0]]), "{name}");
        assert!(own.into_iter().all(|block| all.insert(block)), "{all:?}");
    }
    Ok(())
}

#[test]
fn secrets_are_read_by_name_only() -> Result<(), Error> {
    let plane = plane()?;
    let peer = |name: &str, address: &str| {
        format!(
            "apiVersion: fairlead.dev/v1alpha1\nkind: BGPPeer\nmetadata: {{name: {name}}}\n\
             spec: {{address: {address}, asn: 65000, auth: {{md5SecretRef: {{name: {name}, key: password}}}}}}\n"
        )
    };
    for name in ["tor", "hidden", "other"] {
        plane.kubectl(&[
            "create",
            "secret",
            "generic",
            name,
            "-n",
            NAMESPACE,
            "--from-literal=password=s3cret",
        ])?;
    }
    apply(&plane, &[peer("tor", "10.0.0.1"), peer("hidden", "10.0.0.2")])?;
    let create = |arguments: &str| plane.kubectl(&arguments.split(' ').collect::<Vec<_>>());
    create(&format!("create serviceaccount agent -n {NAMESPACE}"))?;
    create(
        "create clusterrole agent --verb=list,watch --resource=addresspools.fairlead.dev,loadbalancers.fairlead.dev,servicepolicies.fairlead.dev,bgprouters.fairlead.dev,bgppeers.fairlead.dev,bgpadvertisements.fairlead.dev,packetfilters.fairlead.dev,clusterlinks.fairlead.dev,services,endpointslices.discovery.k8s.io,nodes,namespaces",
    )?;
    create(&format!(
        "create clusterrolebinding agent --clusterrole=agent --serviceaccount={NAMESPACE}:agent"
    ))?;
    create(&format!(
        "create role agent -n {NAMESPACE} --verb=list,watch --resource=secrets --resource-name=tor"
    ))?;
    create(&format!(
        "create rolebinding agent -n {NAMESPACE} --role=agent --serviceaccount={NAMESPACE}:agent"
    ))?;
    let kubeconfig = plane.kubeconfig_of(NAMESPACE, "agent")?;
    let agent = Process::start(&kubeconfig, Role::Agent, "node", None)?;
    let declared = agent.wait("there is a snapshot", |declared| declared.peers.contains_key("tor"))?;
    assert_eq!(declared.secrets.keys().collect::<Vec<_>>(), ["tor"]);
    assert_eq!(declared.secrets["tor"].get("password"), Ok(&b"s3cret"[..]));
    assert!(!declared.peers.contains_key("hidden"), "its session would be unsigned");
    let faults: Vec<_> = agent.store.faults().borrow().iter().map(ToString::to_string).collect();
    assert_eq!(faults, ["BGPPeer/hidden: spec.auth.md5SecretRef: there is no Secret/hidden"]);
    assert!(!format!("{declared:?}").contains("s3cret"));
    Ok(())
}
