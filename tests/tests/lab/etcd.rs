//! A fleet on etcd: three members and a controller beside the router, an agent on each balancer and backend, with the kernel's
//! own datapath.
use controller::demo::{
    http::{Load, Target, Traffic},
    netns::Process,
};
use lab::{Error, Lab, Routing, WEB, address, etcd::Etcd, failures, fairlead, wait_until, watch};
use std::{fs, process::Command, time::Duration};

/// What `fairlead` prints where etcd is.
fn run(lab: &Lab, etcd: &Etcd, arguments: &[&str]) -> Result<String, Error> {
    let mut command = Command::new(fairlead());
    command.args(arguments).args(["--etcd-endpoints", &etcd.endpoints().join(",")]);
    Ok(lab.topology.router.namespace.output(command)?)
}

fn start_agent(lab: &Lab, etcd: &Etcd, number: usize) -> Result<Process, Error> {
    let instance = &lab.instances[number];
    let role = if number < 2 { "role=balancer" } else { "role=backend" };
    let mut command = Command::new(fairlead());
    command.args(["agent", "--store", "etcd", "--etcd-endpoints", &etcd.endpoints().join(",")]);
    command.args(["--node-label", role, "--interface", "eth0", "--metrics", "127.0.0.1:9617"]);
    command.args(["--node-name", instance.node(), "--api-socket"]).arg(instance.socket());
    let log = lab.topology.sandbox.dir().join(format!("{}-fleet.log", instance.node()));
    Ok(instance.host.namespace.spawn(command, &log)?)
}

/// Waits until a balancer has so many backends in the tables of both services.
fn wait_backends(lab: &mut Lab, balancer: usize, backends: usize) -> Result<(), Error> {
    let has = |row: &controller::serve::rows::ServiceRow| {
        row.programmed && row.backends.iter().filter(|backend| backend.slots > 0).count() == backends
    };
    lab.wait_services(balancer, |rows| rows.len() == 2 && rows.iter().all(has)).map(drop)
}

/// Hosts register, take up what is applied, and go on serving while members of etcd, and its quorum, come and go.
#[test]
fn a_fleet_is_served_through_the_loss_of_etcd() -> Result<(), Error> {
    let mut lab = Lab::prepare(Routing::Frr)?;
    let router = lab.topology.router.clone();
    let mut etcd = Etcd::start_in(&router.namespace, router.ipv4.into(), 3)?;
    let dir = lab.topology.sandbox.dir().join("declared");
    fs::create_dir(&dir)?;
    for name in ["pool.yaml", "bgp.yaml", "web.yaml"] {
        fs::write(dir.join(name), lab.instances[0].read(name)?)?;
    }
    let path = dir.to_str().ok_or("a path that is no text")?;
    run(&lab, &etcd, &["apply", "-f", path])?;
    let mut command = Command::new(fairlead());
    command.args(["controller", "--store", "etcd", "--etcd-endpoints", &etcd.endpoints().join(",")]);
    let log = lab.topology.sandbox.dir().join("controller.log");
    let controller = router.namespace.spawn(command, &log)?;
    let agents = (0..lab.instances.len()).map(|number| start_agent(&lab, &etcd, number));
    let agents = agents.collect::<Result<Vec<_>, _>>()?;
    lab.wait_next_hops(&WEB, &[0, 1])?;
    (0..2).try_for_each(|balancer| wait_backends(&mut lab, balancer, 3))?;
    // From any host: what all of them registered, and the status that the controller wrote.
    let knows = |arguments: &[&str], words: &[&str]| {
        wait_until(&format!("{arguments:?} says {words:?}"), || {
            let (said, code) = lab.ask(4, arguments)?;
            Ok(code == 0 && words.iter().all(|word| said.contains(word)))
        })
    };
    knows(&["get", "nodes"], &["lb1", "lb2", "b1", "b2", "b3"])?;
    knows(&["get", "flb", "web"], &WEB)?;

    let targets = WEB.map(|vip| Target::new("web", address(vip), 80));
    let load = Load { clients: 4, pause: Duration::from_millis(20) };
    let mut traffic = Traffic::start(&lab.topology.client.namespace, &targets, load);
    let mut samples = watch(&mut traffic, Duration::from_secs(1))?;
    let without = |name: &str| -> Result<(), Error> {
        let text = lab.instances[0].read("web.yaml")?;
        let kept: Vec<_> = text.lines().filter(|line| !line.contains(name)).collect();
        Ok(fs::write(dir.join("web.yaml"), kept.join("\n"))?)
    };
    // A member is lost, and a change is made all the same.
    etcd.kill(0);
    without("::13")?;
    wait_until("a change is taken", || Ok(run(&lab, &etcd, &["apply", "-f", path]).is_ok()))?;
    // The quorum is lost: nothing is applied, and everything stays.
    etcd.kill(1);
    samples.extend(watch(&mut traffic, Duration::from_secs(5))?);
    assert!(run(&lab, &etcd, &["apply", "-f", path]).is_err());
    lab.wait_next_hops(&WEB, &[0, 1])?;
    // It comes back, and what was applied last is taken up.
    etcd.restore()?;
    fs::write(dir.join("web.yaml"), lab.instances[0].read("web.yaml")?)?;
    wait_until("a change is taken", || Ok(run(&lab, &etcd, &["apply", "-f", path]).is_ok()))?;
    (0..2).try_for_each(|balancer| wait_backends(&mut lab, balancer, 3))?;
    samples.extend(watch(&mut traffic, Duration::from_secs(1))?);
    assert_eq!(failures(&samples), [""; 0], "of {}", samples.len());
    assert!(samples.len() > 200, "{} requests", samples.len());
    drop(traffic);

    // The service goes, and its routes with it.
    run(&lab, &etcd, &["delete", "flb", "web"])?;
    lab.wait_next_hops(&WEB, &[])?;
    for process in agents.into_iter().chain([controller]) {
        let status = process.terminate()?;
        assert!(status.success(), "{status}");
    }
    Ok(())
}
