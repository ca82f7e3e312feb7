//! Backends come, go, fail and weigh.
use crate::restart::{add_echo, ipip, is_b2, nat, without_b2};
use lab::{Error, Lab, Routing, WEB, echo, failures, watch};
use std::time::Duration;

#[test]
fn weights_are_shares_of_slots_and_of_requests() -> Result<(), Error> {
    let mut lab = Lab::start(Routing::Frr)?;
    for balancer in 0..2 {
        let rows = lab.wait_services(balancer, |_| true)?;
        for row in &rows {
            let total: f64 = row.backends.iter().map(|b| f64::from(b.weight.unwrap_or_default())).sum();
            for backend in &row.backends {
                let expected = f64::from(backend.weight.unwrap_or_default()) / total;
                let share = f64::from(backend.slots) / f64::from(row.table_size);
                assert!(
                    (share - expected).abs() < 0.01 * expected.max(share) + 0.001,
                    "{} {backend:?}",
                    row.name
                );
            }
        }
    }
    let mut traffic = lab.traffic();
    let samples = watch(&mut traffic, Duration::from_secs(5))?;
    assert_eq!(failures(&samples), [""; 0]);
    let web: Vec<_> =
        samples.iter().filter(|s| s.target < 2).filter_map(|s| s.answer.as_deref().ok()).collect();
    for (backend, expected) in [("b1", 0.5), ("b2", 0.25), ("b3", 0.25)] {
        let n = web.len() as f64;
        let share = web.iter().filter(|b| **b == backend).count() as f64 / n;
        // Six standard deviations of a binomial share.
        let allowed = 6.0 * (expected * (1.0 - expected) / n).sqrt();
        assert!((share - expected).abs() < allowed, "{backend}: {share:.3} of {n}, expected {expected}");
    }
    Ok(())
}

#[test]
fn a_backend_comes_and_goes_without_breaking_connections() -> Result<(), Error> {
    let mut lab = Lab::prepare(Routing::Static)?;
    add_echo(&lab)?;
    lab.start_fairlead()?;
    let client = lab.topology.client.namespace.clone();
    let connections = echo::Connections::open(&client, &[ipip(), nat()].concat(), 12)?;
    let whole = lab.instances[0].read("echo.yaml")?;
    let without = without_b2(&whole);
    assert_ne!(whole, without);
    for _ in 0..2 {
        for (text, has) in [(&without, false), (&whole, true)] {
            lab.instances[0].write("echo.yaml", text)?;
            lab.wait_services(0, |rows| {
                let echo = rows.iter().filter(|r| r.name.contains("/echo-"));
                let mut b2 = echo.map(|r| r.backends.iter().any(|b| is_b2(b.address) && b.slots > 0));
                b2.all(|x| x == has)
            })?;
            let rounds = connections.echoed();
            lab::wait_until("every connection goes on", || Ok(connections.echoed() > rounds + 48 * 10))?;
        }
    }
    assert!(connections.close()? > 20);
    Ok(())
}

#[test]
fn too_few_healthy_backends_withdraw_the_route() -> Result<(), Error> {
    let mut lab = Lab::prepare(Routing::Frr)?;
    for instance in &lab.instances {
        let text = instance.read("bgp.yaml")?;
        let more = text.replace("minHealthy: 1", "minHealthy: 2");
        assert_ne!(text, more);
        instance.write("bgp.yaml", &more)?;
    }
    lab.start_fairlead()?;
    let mut traffic = lab.traffic();
    lab.stop_server("b1");
    lab.wait_services(0, |rows| rows.iter().all(|r| r.backends.iter().filter(|b| b.slots > 0).count() == 2))?;
    lab.wait_next_hops(&WEB, &[0, 1])?;
    lab.stop_server("b2");
    lab.wait_next_hops(&WEB, &[])?;
    lab.start_server(0)?;
    lab.wait_next_hops(&WEB, &[0, 1])?;
    traffic.until(std::time::Instant::now())?;
    let samples = watch(&mut traffic, Duration::from_millis(500))?;
    assert_eq!(failures(&samples), [""; 0]);
    Ok(())
}
