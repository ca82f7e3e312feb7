//! Pods of a load balancer: what they send to a VIP is balanced where it comes in from them, at TC.
use controller::demo::http::{Load, Target, Traffic};
use lab::{API, Error, Lab, Routing, WEB, address, failures, wait_until};
use std::time::{Duration, Instant};

/// The pod comes when `fairlead` runs already. Nothing else on the host knows the way to a VIP.
#[test]
fn a_pod_that_comes_later_reaches_the_services() -> Result<(), Error> {
    let mut lab = Lab::prepare(Routing::Static)?;
    lab.instances[0].arguments = vec!["--pod-interface".to_owned(), "pod*".to_owned()];
    lab.start_fairlead()?;
    let (host, router) = (lab.balancer(0).clone(), &lab.topology.router.namespace);
    router
        .ip(&format!("route add 10.9.0.0/24 via {}\nroute add fd00:9::/64 via {}\n", host.ipv4, host.ipv6))?;
    host.namespace.sysctl(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])?;
    let pod = lab.topology.sandbox.namespace("pod")?;
    host.namespace.ip(&format!(
        "route add blackhole 203.0.113.0/24\n\
         route add blackhole 2001:db8:1::/64\n\
         link add pod1 type veth peer name eth0 netns {}\n\
         addr add 10.9.0.1/24 dev pod1\n\
         addr add fd00:9::1/64 dev pod1 nodad\n\
         link set pod1 up\n",
        pod.name()
    ))?;
    pod.ip("link set lo up\n\
         addr add 10.9.0.2/24 dev eth0\n\
         addr add fd00:9::2/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via 10.9.0.1\n\
         route add default via fd00:9::1\n")?;
    wait_until("TC is attached to the pod's interface", || {
        Ok(lab.log(0)?.lines().any(|line| line.contains("attached") && line.contains("pod1")))
    })?;
    let web = WEB.map(|vip| Target::new("web", address(vip), 80));
    let api = API.map(|vip| Target::new("api", address(vip), 8080));
    let load = Load { clients: 2, pause: Duration::from_millis(20) };
    let mut traffic = Traffic::start(&pod, &[web, api].concat(), load);
    let mut samples = Vec::new();
    wait_until("a hundred requests", || {
        samples.extend(traffic.until(Instant::now())?);
        Ok(samples.len() > 100)
    })?;
    assert_eq!(failures(&samples), [""; 0]);
    let answered: std::collections::BTreeSet<usize> = samples.iter().map(|sample| sample.target).collect();
    assert_eq!(answered.len(), 4, "each VIP was asked");
    Ok(())
}
