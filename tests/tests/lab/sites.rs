//! Two clusters behind one router, each with an API server, a controller, a node and backends of its own: `east` (lb1; b1, b2)
//! imports what `west` (lb2; b3) exports, and both announce the same VIPs.
use super::cluster::{NAMESPACE, service, slices, start, start_agent};
use controller::demo::http::{Load, Sample, Target, Traffic};
use lab::{
    Error, Lab, Routing, WEB, address,
    control_plane::{ControlPlane, Fault, Proxy},
    failures, wait_until, watch,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

const EXPORT: &str = "---\n{apiVersion: multicluster.x-k8s.io/v1alpha1, kind: ServiceExport, metadata: {name: shop, namespace: default}}\n";

const POLICY: &str = "---\napiVersion: fairlead.dev/v1alpha1\nkind: ServicePolicy\nmetadata: {name: sites}\nspec:\n  policy:\n    \
                      healthCheck: {tcp: {}, intervalMillis: 200, timeoutMillis: 500, rise: 2, fall: 2}\n    \
                      clusters: {prefer: Local, minLocalPercent: 100}\n";

/// A cluster with all that both have alike: nodes, pool, BGP, the API's definitions, the Service.
fn plane(lab: &Lab, backends: &[u8]) -> Result<ControlPlane, Error> {
    let router = &lab.topology.router;
    let plane = ControlPlane::start_in(&router.namespace, router.ipv4.into())?;
    plane.install()?;
    let definitions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/mcs-api");
    plane.kubectl(&["apply", "--server-side", "-k", definitions.to_str().ok_or("no text")?])?;
    plane.kubectl(&["wait", "--for=condition=Established", "--timeout=120s", "crd", "--all"])?;
    for name in ["nodes.yaml", "pool.yaml", "bgp.yaml"] {
        plane.apply(&lab.instances[0].read(name)?)?;
    }
    plane.apply(&[service(), slices(backends)].join("---\n"))?;
    Ok(plane)
}

/// Lets FRR and the nodes watch each other by BFD; returns when they do.
fn watch_neighbors(lab: &Lab, planes: [&ControlPlane; 2]) -> Result<(), Error> {
    let bfd = json!({"spec": {"bfd": {"minTxMillis": 200, "minRxMillis": 200, "multiplier": 3}}});
    for plane in planes {
        plane.kubectl(&["patch", "bgppeer", "router", "--type=merge", "-p", &bfd.to_string()])?;
    }
    let frr = lab.frr.as_ref().ok_or("there is no FRR")?;
    let dir = lab.topology.sandbox.dir().join("router");
    fs::write(dir.join("bfdd.conf"), "log timestamp precision 3\n")?;
    let mut bfdd = Command::new("/usr/lib/frr/bfdd");
    bfdd.arg("-d").args(["-A", "127.0.0.1", "--vty_socket"]).arg(&dir);
    for (flag, file) in [("-f", "bfdd.conf"), ("-i", "bfdd.pid"), ("-z", "zserv.api")] {
        bfdd.arg(flag).arg(dir.join(file));
    }
    lab.topology.router.namespace.output(bfdd)?;
    for neighbor in &lab.topology.balancers {
        let neighbor = neighbor.ipv4;
        frr.vtysh(&format!("configure terminal\nrouter bgp 65000\nneighbor {neighbor} bfd 3 200 200\nend"))?;
    }
    wait_until("BFD is up with both nodes", || {
        let peers: Value = serde_json::from_str(&frr.vtysh("show bfd peers json")?)?;
        let up = peers.as_array().into_iter().flatten().filter(|peer| peer["status"] == "up");
        Ok(up.count() == 2)
    })
}

/// Writes the link of east to west.
fn link(east: &ControlPlane, weight: u16) -> Result<(), Error> {
    let link = format!(
        "{{apiVersion: fairlead.dev/v1alpha1, kind: ClusterLink, metadata: {{name: west}}, spec: {{weight: {weight}, \
         staleAfterSeconds: 3, kubeconfigSecretRef: {{name: west, key: kubeconfig}}}}}}"
    );
    east.apply(&link).map(drop)
}

/// The way of east's controller to the API server of west, with the rights of `remote-reader.yaml`.
fn way(east: &ControlPlane, west: &ControlPlane) -> Result<Proxy, Error> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes/remote-reader.yaml");
    west.apply(&fs::read_to_string(manifest)?)?;
    let way = west.proxy(&west.kubeconfig_of(NAMESPACE, "fairlead-remote")?)?;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "west", "namespace": NAMESPACE},
        "stringData": {"kubeconfig": fs::read_to_string(way.kubeconfig())?},
    });
    east.apply(&secret.to_string())?;
    Ok(way)
}

/// Waits until the tables of a node have these backends (by the last figure of their addresses), and no others.
fn wait_backends(lab: &mut Lab, balancer: usize, backends: &[u8]) -> Result<(), Error> {
    let want: BTreeSet<_> =
        backends.iter().flat_map(|b| [format!("10.1.0.1{b}"), format!("fd00:20::1{b}")]).collect();
    let has = |rows: &[controller::serve::rows::ServiceRow]| {
        let used = rows.iter().flat_map(|row| &row.backends).filter(|backend| backend.slots > 0);
        let used: BTreeSet<_> = used.map(|backend| backend.address.to_string()).collect();
        rows.len() == 2 && rows.iter().all(|row| row.programmed) && used == want
    };
    lab.wait_services(balancer, has).map(drop)
}

/// Waits for the condition `Ready` of the link.
fn wait_link(east: &ControlPlane, reason: &str) -> Result<(), Error> {
    let mut last = Value::Null;
    let done = wait_until(&format!("the link says {reason}"), || {
        last = serde_json::from_str(&east.kubectl(&["get", "clusterlink", "west", "-o", "json"])?)?;
        let conditions = last["status"]["conditions"].as_array().into_iter().flatten();
        Ok(conditions.into_iter().any(|said| said["type"] == "Ready" && said["reason"] == reason))
    });
    done.map_err(|error| format!("{error}; it is {last}").into())
}

/// Share of the requests that a backend has answered; none of them may have failed.
fn share(samples: &[Sample], backend: &str) -> f64 {
    assert_eq!(failures(samples), [""; 0], "of {}", samples.len());
    assert!(samples.len() > 50, "{} requests", samples.len());
    let by = samples.iter().filter(|sample| sample.answer.as_deref() == Ok(backend)).count();
    by as f64 / samples.len() as f64
}

/// What is asked from now on, for two seconds.
fn fresh(traffic: &mut Traffic) -> Result<Vec<Sample>, Error> {
    traffic.until(Instant::now())?;
    watch(traffic, Duration::from_secs(2))
}

/// Traffic spills over to west by degrees and comes back; a cluster that is out of reach, or drained, leaves without a request that
/// fails; and where a whole site dies, the other one answers.
#[test]
fn two_sites_stand_in_for_each_other() -> Result<(), Error> {
    let mut lab = Lab::prepare(Routing::Frr)?;
    let (east, west) = thread::scope(|scope| {
        let west = scope.spawn(|| plane(&lab, &[3]));
        let east = plane(&lab, &[1, 2]);
        Ok::<_, Error>((east?, west.join().map_err(|_| "west has not started")??))
    })?;
    west.apply(EXPORT)?;
    east.apply(&[EXPORT, POLICY].concat())?;
    let way = way(&east, &west)?;
    link(&east, 1)?;
    let controllers =
        [(&east, "east", lab.topology.router.clone()), (&west, "west", lab.topology.backends[2].clone())];
    let _controllers = controllers
        .iter()
        .map(|(plane, name, host)| {
            let config = plane.kubeconfig_of(NAMESPACE, "fairlead-controller")?;
            start(&lab, host, &["controller", "--cluster-name", name], &config)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut agents = vec![start_agent(&lab, 0, &east.kubeconfig_of(NAMESPACE, "fairlead-agent")?)?];
    wait_link(&east, "Imported")?;
    lab.wait_next_hops(&WEB, &[0])?;
    wait_backends(&mut lab, 0, &[1, 2])?;

    // East alone answers, then half of it, with west for the rest.
    let targets = WEB.map(|vip| Target::new("shop", address(vip), 80));
    let load = Load { clients: 4, pause: Duration::from_millis(20) };
    let mut traffic = Traffic::start(&lab.topology.client.namespace, &targets, load);
    assert_eq!(share(&fresh(&mut traffic)?, "b3"), 0.0);
    lab.stop_server("b1");
    wait_backends(&mut lab, 0, &[2, 3])?;
    let spilt = share(&fresh(&mut traffic)?, "b3");
    assert!((0.3..0.7).contains(&spilt), "{spilt} of the requests went to west");

    // West's API server is out of reach: its endpoints leave, and come back with it.
    way.set(|_| Fault::Silence);
    way.mute();
    wait_link(&east, "Stale")?;
    wait_backends(&mut lab, 0, &[2])?;
    way.set(|_| Fault::None);
    way.cut();
    wait_link(&east, "Imported")?;
    wait_backends(&mut lab, 0, &[2, 3])?;
    // The whole cluster is drained, and taken back.
    for (weight, backends) in [(0, &[2][..]), (1, &[2, 3])] {
        link(&east, weight)?;
        wait_backends(&mut lab, 0, backends)?;
    }
    let spilt = share(&watch(&mut traffic, Duration::from_secs(1))?, "b3");
    assert!(spilt > 0.0 && spilt < 1.0, "{spilt} of the requests went to west");

    // West takes all, and gives it back.
    lab.stop_server("b2");
    wait_backends(&mut lab, 0, &[3])?;
    assert_eq!(share(&fresh(&mut traffic)?, "b3"), 1.0);
    for backend in 0..2 {
        lab.start_server(backend)?;
    }
    wait_backends(&mut lab, 0, &[1, 2])?;
    assert_eq!(share(&fresh(&mut traffic)?, "b3"), 0.0);

    // The same VIPs at both sites; then east is gone, node and all.
    agents.push(start_agent(&lab, 1, &west.kubeconfig_of(NAMESPACE, "fairlead-agent")?)?);
    lab.wait_next_hops(&WEB, &[0, 1])?;
    wait_backends(&mut lab, 1, &[3])?;
    watch_neighbors(&lab, [&east, &west])?;
    lab.wait_next_hops(&WEB, &[0, 1])?;
    let both = share(&fresh(&mut traffic)?, "b3");
    assert!(both > 0.0 && both < 1.0, "{both} of the requests went to west");
    let start = Instant::now();
    lab.topology.router.namespace.ip("link set lb1 down")?;
    agents.remove(0).kill();
    lab.wait_next_hops(&WEB, &[1])?;
    println!("a site is gone: the router has only the other one after {:.1?}", start.elapsed());
    assert_eq!(share(&fresh(&mut traffic)?, "b3"), 1.0);
    Ok(())
}
