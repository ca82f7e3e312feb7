//! From a directory of files to answered requests, with FRR and with BIRD as the router.
use lab::{API, Error, Lab, Routing, WEB, failures, wait_until, watch};
use std::{collections::BTreeSet, time::Duration};

/// Learns, spreads, forwards in both modes and both families, and converges when a load balancer's process dies.
fn serves(lab: &mut Lab) -> Result<(), Error> {
    let mut traffic = lab.traffic();
    let samples = watch(&mut traffic, Duration::from_secs(2))?;
    assert!(samples.len() > 100, "{} requests", samples.len());
    assert_eq!(failures(&samples), [""; 0]);
    for target in 0..4 {
        let answers = samples.iter().filter(|s| s.target == target).filter_map(|s| s.answer.as_deref().ok());
        assert_eq!(answers.collect::<BTreeSet<_>>(), BTreeSet::from(["b1", "b2", "b3"]), "target {target}");
    }
    // Both load balancers had a part in it.
    for balancer in 0..2 {
        lab.wait_services(balancer, |rows| {
            rows.iter().all(|r| r.backends.iter().all(|b| b.packets > 0 && b.flows > 0))
        })?;
    }
    lab.instances[1].kill();
    let vips = [WEB, API].concat();
    lab.wait_next_hops(&vips, &[0])?;
    // What comes after has nobody to lose it.
    traffic.until(std::time::Instant::now())?;
    let samples = watch(&mut traffic, Duration::from_secs(1))?;
    assert!(samples.len() > 50, "{} requests", samples.len());
    assert_eq!(failures(&samples), [""; 0]);
    lab.instances[1].start()?;
    lab.wait_next_hops(&vips, &[0, 1])
}

#[test]
fn a_vip_is_served_behind_frr() -> Result<(), Error> {
    let mut lab = Lab::start(Routing::Frr)?;
    serves(&mut lab)?;
    let frr = lab.frr.as_ref().unwrap();
    let route: serde_json::Value =
        serde_json::from_str(&frr.vtysh("show bgp ipv4 unicast 203.0.113.10/32 json")?)?;
    let path = &route["paths"][0];
    assert_eq!(path["aspath"]["string"], "65010", "{route}");
    assert_eq!(path["community"]["string"], "65010:100", "{route}");
    assert_eq!(path["origin"], "IGP", "{route}");
    Ok(())
}

#[test]
fn a_vip_is_served_behind_bird() -> Result<(), Error> {
    let mut lab = Lab::start(Routing::Bird)?;
    serves(&mut lab)?;
    let mut text = String::new();
    let bird = lab.bird.as_ref().unwrap();
    wait_until("BIRD shows the communities", || {
        text = bird.birdc("show route all for 203.0.113.10")?;
        Ok(text.contains("BGP.community: (65010,100)"))
    })
    .map_err(|e| format!("{e}: {text}"))?;
    assert!(text.contains("BGP.as_path: 65010"), "{text}");
    Ok(())
}

#[test]
fn an_instance_that_is_told_to_end_says_so_and_is_gone_from_the_router() -> Result<(), Error> {
    let mut lab = Lab::start(Routing::Frr)?;
    let (peers, code) = lab.ask(0, &["bgp", "peers", "-o", "json"])?;
    assert_eq!(code, 0, "{peers}");
    let peers: serde_json::Value = serde_json::from_str(&peers)?;
    assert_eq!((&peers[0]["state"], &peers[0]["asn"]), (&"Established".into(), &65000.into()), "{peers}");
    let status = lab.instances[0].terminate()?;
    assert!(status.success(), "{status}");
    lab.wait_next_hops(&[WEB, API].concat(), &[1])?;
    let frr = lab.frr.as_ref().unwrap();
    let text = frr.vtysh("show bgp neighbors 10.0.0.2 json")?;
    assert!(text.contains("Cease") && text.contains("Administrative Shutdown"), "{text}");
    Ok(())
}
