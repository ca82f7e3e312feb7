//! An API server that fails in every way, between it and us a proxy of the test: nothing that was known goes, and afterwards
//! everything is caught up with. Leaders that are paused write nothing when they wake.
use super::store::{
    NAMESPACE, Process, apply, assert_nothing_twice, balancer, get, given, plane, pool, wait_given,
};
use controller::{
    declared::Declared,
    store::{
        Store,
        kubernetes::{Role, lease},
    },
};
use lab::{
    Error,
    control_plane::{ControlPlane, Fault, Proxy},
    fairlead, wait_until,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::BTreeMap,
    fs::File,
    process::{Child, Command},
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

fn has_address(declared: &Declared, name: &str) -> bool {
    declared.statuses.load_balancers.get(name).is_some_and(|status| !status.addresses.is_empty())
}

/// Since the first snapshot that has it, an object with its address was in all of them.
fn assert_was_there(process: &Process, name: &str) {
    let snapshots = process.snapshots();
    let from = snapshots.iter().position(|snapshot| has_address(snapshot, name)).unwrap_or(0);
    for snapshot in &snapshots[from..] {
        assert!(snapshot.load_balancers.contains_key(name) && has_address(snapshot, name), "{snapshot:#?}");
    }
}

const FAULTS: [Fault; 5] = [
    Fault::Answer(429, Some(1)),
    Fault::Answer(500, None),
    Fault::Answer(410, None),
    Fault::Close,
    Fault::Truncate(300),
];

#[test]
fn whatever_the_api_server_answers_nothing_goes() -> Result<(), Error> {
    let plane = plane()?;
    apply(&plane, &[pool("192.0.2.0/28"), balancer("web"), balancer("gone-0")])?;
    let proxies = [plane.proxy(&plane.kubeconfig())?, plane.proxy(&plane.kubeconfig())?];
    let controller = Process::start(proxies[0].kubeconfig(), Role::Controller, "one", None)?;
    let agent = Process::start(proxies[1].kubeconfig(), Role::Agent, "node", None)?;
    agent.wait("addresses are in effect", |d| has_address(d, "web") && has_address(d, "gone-0"))?;
    let first = given(&plane)?["web"].clone();
    // Errors of all kinds in turn; then watches that have a gap, while lists are answered.
    for turn in 0..2 {
        let failed = |proxy: &Proxy| proxy.requests().iter().filter(|r| r.fault != Fault::None).count();
        let before = proxies.each_ref().map(failed);
        for proxy in &proxies {
            let count = AtomicUsize::new(0);
            proxy.set(move |request| match turn {
                0 => FAULTS[count.fetch_add(1, Ordering::Relaxed) % FAULTS.len()],
                _ if request.is_watch() => Fault::Answer(410, None),
                _ => Fault::None,
            });
            proxy.cut();
        }
        // Meanwhile something changes, and something goes.
        let (new, gone) = (format!("gone-{}", turn + 1), format!("gone-{turn}"));
        plane.kubectl(&["delete", "loadbalancer", &gone])?;
        apply(&plane, &[balancer(&new)])?;
        // All twelve watches have failed, some of them again.
        wait_until("requests fail", || {
            Ok(proxies.iter().zip(before).all(|(proxy, before)| failed(proxy) > before + 20))
        })?;
        let last = agent.last().ok_or("no snapshot")?;
        let is_known = last.load_balancers.contains_key(&gone);
        assert!(is_known || turn == 1, "nobody has said that it is gone");
        proxies.iter().for_each(|proxy| proxy.set(|_| Fault::None));
        agent.wait("the agent has caught up", |d| {
            has_address(d, &new) && !d.load_balancers.contains_key(&gone)
        })?;
        assert_nothing_twice(&given(&plane)?);
    }
    assert_eq!(given(&plane)?["web"], first);
    assert_was_there(&agent, "web");
    wait_until("the controller leads again", || Ok(controller.leads()))?;
    Ok(())
}

/// Watches that say nothing any more and are not closed; lists that are never answered; answers that are slow. In the meantime
/// the controller, whose Lease is asked for anew each time, loses the lead, and has it again.
#[test]
fn silence_is_found_out() -> Result<(), Error> {
    let plane = plane()?;
    apply(&plane, &[pool("192.0.2.0/28"), balancer("web"), balancer("gone")])?;
    let (of_controller, of_agent) = (plane.proxy(&plane.kubeconfig())?, plane.proxy(&plane.kubeconfig())?);
    let controller = Process::start(of_controller.kubeconfig(), Role::Controller, "one", None)?;
    let agent = Process::start(of_agent.kubeconfig(), Role::Agent, "node", None)?;
    agent.wait("addresses are in effect", |d| has_address(d, "web") && has_address(d, "gone"))?;
    of_agent.mute();
    of_controller.set(|_| Fault::Silence);
    of_controller.mute();
    wait_until("the lead is lost", || Ok(!controller.leads()))?;
    plane.kubectl(&["delete", "loadbalancer", "gone"])?;
    apply(&plane, &[balancer("new")])?;
    of_controller.set(|request| match request.is_watch() {
        true => Fault::None,
        false => Fault::Delay(std::time::Duration::from_millis(300)),
    });
    of_controller.cut();
    wait_until("the controller leads, and gives an address", || {
        Ok(controller.leads() && given(&plane)?["new"].len() == 1)
    })?;
    assert!(
        agent.last().is_some_and(|last| last.load_balancers.contains_key("gone")),
        "it has heard nothing"
    );
    // Longer than anything else: a watch lasts for two minutes, and may be silent all the while.
    let caught_up = |d: &Declared| has_address(d, "new") && !d.load_balancers.contains_key("gone");
    agent
        .wait("the silence is found out", caught_up)
        .or_else(|_| agent.wait("the silence is found out", caught_up))?;
    assert_was_there(&agent, "web");
    Ok(())
}

/// `fairlead controller` as a process of its own.
struct Replica {
    child: Child,
    proxy: Proxy,
}

impl Replica {
    fn start(plane: &ControlPlane) -> Result<Self, Error> {
        let proxy = plane.proxy(&plane.kubeconfig())?;
        let log = File::create(proxy.kubeconfig().with_extension("log"))?;
        let mut command = Command::new(fairlead());
        command.args(["controller", "--namespace", NAMESPACE, "--metrics", "127.0.0.1:0", "--kubeconfig"]);
        let child = command.arg(proxy.kubeconfig()).stdout(log.try_clone()?).stderr(log).spawn()?;
        Ok(Replica { child, proxy })
    }

    fn signal(&self, signal: Signal) -> Result<(), Error> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// When it wrote what only a leader writes.
    fn writes(&self) -> Vec<Instant> {
        let requests = self.proxy.requests();
        requests.iter().filter(|r| r.is_write() && !r.is_lease()).map(|request| request.at).collect()
    }

    /// When it asked for the Lease, or wrote it.
    fn turns(&self, writes: bool) -> Vec<Instant> {
        let requests = self.proxy.requests();
        requests.iter().filter(|r| r.is_lease() && r.is_write() == writes).map(|r| r.at).collect()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_leader_that_was_paused_writes_nothing_when_it_wakes() -> Result<(), Error> {
    let plane = plane()?;
    apply(&plane, &[pool("192.0.2.0/24"), balancer("web")])?;
    let replicas = [Replica::start(&plane)?, Replica::start(&plane)?];
    wait_given(&plane, &["web"])?;
    let [one, two] = replicas;
    let (leader, other) = if one.writes().is_empty() { (two, one) } else { (one, two) };
    assert_eq!(other.writes().len(), 0, "only one leads");
    // Paused in the middle of its work.
    let before = leader.writes().len();
    let names: Vec<_> = (0..100).map(|n| format!("s-{n}")).collect();
    apply(&plane, &names.iter().map(|name| balancer(name)).collect::<Vec<_>>())?;
    wait_until("it is at work", || Ok(leader.writes().len() > before))?;
    leader.signal(Signal::SIGSTOP)?;
    let renewed = leader.turns(true).last().copied().ok_or("it has never written the Lease")?;
    wait_until("the other one writes", || Ok(!other.writes().is_empty()))?;
    let waited = other.writes()[0] - renewed;
    assert!(waited >= lease::DURATION, "{waited:?} after the last word of the other");
    let mut all: Vec<_> = names.iter().map(String::as_str).collect();
    all.push("web");
    wait_given(&plane, &all)?;
    let versions = || -> Result<BTreeMap<String, String>, Error> {
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let version = |object: &serde_json::Value| {
            (text(&object["metadata"]["name"]), text(&object["metadata"]["resourceVersion"]))
        };
        Ok(get(&plane, "loadbalancers")?.iter().map(version).collect())
    };
    let settled = versions()?;
    let woken = Instant::now();
    leader.signal(Signal::SIGCONT)?;
    wait_until("it has found out", || Ok(leader.turns(false).iter().filter(|at| **at > woken).count() > 2))?;
    // At most what was under way, and that is refused: the objects are others by now.
    let late = leader.writes().iter().filter(|at| **at > woken).count();
    assert!(late <= 16, "{late} writes after it woke");
    assert_eq!(versions()?, settled);
    assert!(leader.turns(true).iter().all(|at| *at <= woken), "the Lease is another one's");
    Ok(())
}

/// Objects that no validation has seen: their kind was defined without.
#[test]
fn what_got_past_validation_is_reported_and_others_go_on() -> Result<(), Error> {
    let plane = plane()?;
    let open = r#"[{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema",
        "value": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}]"#;
    for kind in ["loadbalancers", "bgppeers", "addresspools"] {
        let name = format!("{kind}.fairlead.dev");
        plane.kubectl(&["patch", "crd", &name, "--type=json", "-p", open])?;
    }
    let bad = |kind: &str, name: &str, rest: &str| {
        format!("apiVersion: fairlead.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\n{rest}\n")
    };
    // The new schema counts a moment later.
    wait_until("garbage is taken", || {
        let garbage = [
            bad("LoadBalancer", "no-spec", "other: 1"),
            bad("LoadBalancer", "text", "spec: {ports: [{port: http}], backends: 7}"),
            bad("BGPPeer", "two", "spec: {address: 10.0.0.1, interface: eth0, asn: -1}"),
            bad("AddressPool", "reverse", "spec: {blocks: [{start: 192.0.2.9, stop: '2001:db8::1'}]}"),
        ];
        Ok(apply(&plane, &garbage).is_ok())
    })?;
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: odd, namespace: default, \
                 labels: {kubernetes.io/service-name: web}}\naddressType: FQDN\nendpoints: [{addresses: [no.address.at.all]}]\n";
    apply(&plane, &[pool("192.0.2.0/28"), balancer("web"), slice.to_owned()])?;
    let _controller = Process::start(&plane.kubeconfig(), Role::Controller, "one", None)?;
    let agent = Process::start(&plane.kubeconfig(), Role::Agent, "node", None)?;
    agent.wait("the others go on", |declared| has_address(declared, "web"))?;
    for (kind, name) in [
        ("loadbalancers", "no-spec"),
        ("loadbalancers", "text"),
        ("bgppeers", "two"),
        ("addresspools", "reverse"),
    ] {
        wait_until("it is told", || {
            let objects = get(&plane, kind)?;
            let object = objects.iter().find(|object| object["metadata"]["name"] == name);
            let conditions = object.and_then(|object| object["status"]["conditions"].as_array().cloned());
            let is_told = |condition: &serde_json::Value| {
                condition["type"] == "Accepted" && condition["status"] == "False"
            };
            Ok(conditions.is_some_and(|conditions| conditions.iter().any(is_told)))
        })
        .map_err(|error| format!("{kind}/{name}: {error}"))?;
    }
    let faults = agent.store.faults().borrow().clone();
    let objects: Vec<_> = faults.iter().filter_map(|fault| fault.object.as_deref()).collect();
    assert_eq!(
        objects,
        ["AddressPool/reverse", "LoadBalancer/no-spec", "LoadBalancer/text", "BGPPeer/two"],
        "{faults:#?}"
    );
    // It is put right.
    apply(&plane, &[balancer("text")])?;
    agent.wait("what was put right is taken", |declared| has_address(declared, "text"))?;
    Ok(())
}
