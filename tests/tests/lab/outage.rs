//! A cluster under traffic while the API server fails for a minute and a half, in three ways; a key that comes late, goes and comes
//! back; nodes that are cordoned, excluded and deleted.
use super::cluster::{NAMESPACE, service, slices, start, start_agent, wait_backends};
use controller::demo::http::{Load, Target, Traffic};
use lab::{
    Error, Lab, Routing, WEB, address,
    control_plane::{ControlPlane, Fault, Proxy},
    failures, wait_until, watch,
};
use serde_json::Value;
use std::{process::Command, time::Duration};

/// Status, reason and message of a condition.
fn said(plane: &ControlPlane, object: &[&str], type_: &str) -> Result<String, Error> {
    let text = plane.kubectl(&[&["get", "-o", "json"], object].concat())?;
    let object: Value = serde_json::from_str(&text)?;
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let said = conditions.iter().find(|condition| condition["type"] == type_);
    let text = |field: &str| said.and_then(|said| said[field].as_str()).unwrap_or_default();
    Ok(format!("{} {}: {}", text("status"), text("reason"), text("message")))
}

/// Waits until a condition begins so.
fn wait_said(plane: &ControlPlane, object: &[&str], type_: &str, want: &str) -> Result<(), Error> {
    let mut last = String::new();
    let done = wait_until(&format!("{object:?} says {type_}: {want}"), || {
        last = said(plane, object, type_)?;
        Ok(last.starts_with(want))
    });
    done.map_err(|error| format!("{error}; it says {last}").into())
}

/// UPDATE messages that FRR has had from each balancer, and how often a session was established.
fn heard(lab: &Lab) -> Result<Vec<(u64, u64)>, Error> {
    let frr = lab.frr.as_ref().ok_or("no FRR")?;
    let of = |address: &str| -> Result<(u64, u64), Error> {
        let neighbors: Value =
            serde_json::from_str(&frr.vtysh(&format!("show bgp neighbors {address} json"))?)?;
        let neighbor = &neighbors[address];
        let number = |value: &Value| value.as_u64().ok_or_else(|| format!("no number in {neighbor}"));
        let updates = number(&neighbor["messageStats"]["updatesRecv"])?;
        Ok((updates, number(&neighbor["connectionsEstablished"])?))
    };
    ["10.0.0.2", "10.0.0.3"].map(of).into_iter().collect()
}

/// The metrics of an agent.
fn metrics(lab: &Lab, balancer: usize) -> Result<String, Error> {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--fail", "http://127.0.0.1:9617/metrics"]);
    Ok(lab.balancer(balancer).namespace.output(curl)?)
}

/// The slots of all backends, as an agent has them in the kernel.
fn slots(lab: &mut Lab, balancer: usize) -> Result<Vec<(String, u32)>, Error> {
    let rows = lab.wait_services(balancer, |rows| rows.len() == 2)?;
    let backends = rows.iter().flat_map(|row| row.backends.iter().map(|b| (b.address.to_string(), b.slots)));
    Ok(backends.collect())
}

/// Waits until a balancer knows that its Node is so.
fn wait_node(lab: &Lab, balancer: usize, knows: impl Fn(&Value) -> bool) -> Result<(), Error> {
    let name = lab.instances[balancer].node();
    wait_until("the agent knows how its Node is", || {
        let (text, code) = lab.ask(balancer, &["get", "node", name, "-o", "json"])?;
        Ok(code == 0 && knows(&serde_json::from_str(&text)?))
    })
}

#[test]
fn nothing_moves_while_the_api_server_fails() -> Result<(), Error> {
    let mut lab = Lab::prepare(Routing::Frr)?;
    let router = lab.topology.router.clone();
    let plane = ControlPlane::start_in(&router.namespace, router.ipv4.into())?;
    plane.install()?;
    // The router wants a key that the cluster does not have yet.
    let frr = lab.frr.as_ref().ok_or("no FRR")?;
    for neighbor in ["10.0.0.2", "10.0.0.3"] {
        frr.vtysh(&format!("configure terminal\nrouter bgp 65000\nneighbor {neighbor} password s3cret"))?;
    }
    let bgp = lab.instances[0].read("bgp.yaml")?;
    let bgp =
        bgp.replace("  asn: 65000\n", "  asn: 65000\n  auth: {md5SecretRef: {name: tor, key: password}}\n");
    for text in [lab.instances[0].read("nodes.yaml")?, lab.instances[0].read("pool.yaml")?, bgp] {
        plane.apply(&text)?;
    }
    plane.apply(&[service(), slices(&[1, 2, 3])].join("---\n"))?;
    let of_controller = plane.proxy(&plane.kubeconfig_of(NAMESPACE, "fairlead-controller")?)?;
    let config = plane.kubeconfig_of(NAMESPACE, "fairlead-agent")?;
    let of_agents = [plane.proxy(&config)?, plane.proxy(&config)?];
    let controller = start(&lab, &router, &["controller"], of_controller.kubeconfig())?;
    of_agents[0].set(|_| Fault::Close);
    let agents = [0, 1].map(|balancer| start_agent(&lab, balancer, of_agents[balancer].kubeconfig()));
    let agents = agents.into_iter().collect::<Result<Vec<_>, _>>()?;
    wait_until("an agent that has read nothing does not say that there is nothing", || {
        let (said, code) = lab.ask(0, &["get", "nodes"])?;
        assert_ne!(code, 0, "{said}");
        Ok(said.contains("what is declared is not known yet"))
    })?;
    of_agents[0].set(|_| Fault::None);
    let peer = ["bgppeer", "router"];
    wait_said(&plane, &peer, "KeyUsable", "False KeyUnusable: on ")?;
    let secret = ["create", "secret", "generic", "tor", "-n", NAMESPACE, "--from-literal=password=s3cret"];
    plane.kubectl(&secret)?;
    lab.wait_next_hops(&WEB, &[0, 1])?;
    wait_said(&plane, &peer, "KeyUsable", "True")?;
    wait_said(&plane, &peer, "Established", "True Established: 2 of 2 sessions established")?;
    let shop = ["service", "shop"];
    wait_said(&plane, &shop, "fairlead.dev/Programmed", "True Installed: programmed on 2 of 2 nodes")?;

    let targets = WEB.map(|vip| Target::new("shop", address(vip), 80));
    let load = Load { clients: 4, pause: Duration::from_millis(20) };
    let mut traffic = Traffic::start(&lab.topology.client.namespace, &targets, load);
    let mut samples = watch(&mut traffic, Duration::from_secs(1))?;
    let proxies: Vec<&Proxy> = of_agents.iter().chain([&of_controller]).collect();
    let (before, programmed) = (heard(&lab)?, slots(&mut lab, 0)?);
    for fault in [Fault::Close, Fault::Answer(429, Some(1)), Fault::Silence] {
        for proxy in &proxies {
            proxy.set(move |_| fault);
            match fault {
                Fault::Silence => proxy.mute(),
                _ => proxy.cut(),
            }
        }
        // What is wanted meanwhile has to wait.
        plane.apply(&slices(&[1, 3]))?;
        samples.extend(watch(&mut traffic, Duration::from_secs(30))?);
        lab.wait_next_hops(&WEB, &[0, 1])?;
        assert_eq!(heard(&lab)?, before, "no UPDATE, no new session: {fault:?}");
        assert_eq!(slots(&mut lab, 0)?, programmed, "the tables are as they were: {fault:?}");
    }
    let page = metrics(&lab, 0)?;
    let failed = page.lines().filter(|line| line.starts_with("fairlead_store_watch_errors_total{")).count();
    assert!(failed >= 10, "{page}");
    assert!(page.contains("fairlead_store_snapshot_timestamp_seconds "), "{page}");
    for proxy in &proxies {
        proxy.set(|_| Fault::None);
        proxy.cut();
    }
    for balancer in 0..2 {
        wait_backends(&mut lab, balancer, 2)?;
    }
    samples.extend(watch(&mut traffic, Duration::from_secs(1))?);
    assert_eq!(failures(&samples), [""; 0], "of {}", samples.len());
    assert!(samples.len() > 1_000, "{} requests", samples.len());
    drop(traffic);
    wait_said(&plane, &shop, "fairlead.dev/Programmed", "True Installed: programmed on 2 of 2 nodes")?;
    assert_eq!(heard(&lab)?, before, "the addresses are the same, and so are the routes");
    // An outage is some lines for each kind, not for each try.
    let log = std::fs::read_to_string(lab.topology.sandbox.dir().join("lb1-cluster.log"))?;
    let said_so = log.lines().filter(|line| line.contains("watching failed")).count();
    assert!((10..=60).contains(&said_so), "{said_so} lines:\n{log}");

    // A key that is in use stays in use when its Secret goes.
    plane.kubectl(&["delete", "secret", "tor", "-n", NAMESPACE])?;
    wait_said(&plane, &peer, "KeyUsable", "False KeyUnusable")?;
    plane.kubectl(&secret)?;
    wait_said(&plane, &peer, "KeyUsable", "True")?;
    assert!(said(&plane, &peer, "Established")?.starts_with("True"));

    // Nodes: cordoned is not excluded.
    let lb1 = lab.instances[0].node().to_owned();
    plane.kubectl(&["cordon", &lb1])?;
    wait_node(&lab, 0, |node| node["spec"]["unschedulable"] == true)?;
    lab.wait_next_hops(&WEB, &[0, 1])?;
    assert_eq!(heard(&lab)?, before, "neither key nor cordon is told to routers");
    let label = "node.kubernetes.io/exclude-from-external-load-balancers";
    plane.kubectl(&["label", "node", &lb1, &format!("{label}=")])?;
    lab.wait_next_hops(&WEB, &[1])?;
    wait_said(&plane, &shop, "fairlead.dev/Announced", "True Announced: announced from 1 of 2 nodes")?;
    plane.kubectl(&["label", "node", &lb1, &format!("{label}-")])?;
    plane.kubectl(&["uncordon", &lb1])?;
    lab.wait_next_hops(&WEB, &[0, 1])?;
    // Its labels go with it, and the router that selected it by them.
    plane.kubectl(&["delete", "node", &lb1])?;
    lab.wait_next_hops(&WEB, &[1])?;
    for process in agents.into_iter().chain([controller]) {
        let status = process.terminate()?;
        assert!(status.success(), "{status}");
    }
    Ok(())
}
