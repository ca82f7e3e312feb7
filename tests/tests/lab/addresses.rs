//! Addresses from a pool: given once, kept through restarts and whatever else is declared.
use lab::{Error, Lab, Routing, wait_until};
use std::{collections::BTreeSet, net::IpAddr};

const SERVICE: &str = "kind: LoadBalancer\nmetadata: {name: NAME}\n\
    spec: {pool: public, ports: [{port: 80}], backends: [{address: 10.1.0.11}, {address: \"fd00:20::11\"}]}\n";

/// Addresses of a LoadBalancer as the datapath has them.
fn addresses(lab: &Lab, name: &str) -> Result<BTreeSet<IpAddr>, Error> {
    let prefix = format!("LoadBalancer/{name}/");
    let rows = lab.instances[0].services()?.unwrap_or_default();
    let ours = rows.iter().filter(|r| r.name.starts_with(&prefix) && r.programmed);
    Ok(ours.flat_map(|r| r.frontends.iter().map(|f| f.address)).collect())
}

#[test]
fn an_address_from_a_pool_survives_a_restart_and_its_neighbours() -> Result<(), Error> {
    let mut lab = Lab::start(Routing::Frr)?;
    lab.instances[0].write("middle.yaml", &SERVICE.replace("NAME", "middle"))?;
    let mut first = BTreeSet::new();
    wait_until("an address of each family", || {
        first = addresses(&lab, "middle")?;
        Ok(first.len() == 2)
    })?;
    let texts: Vec<_> = first.iter().map(ToString::to_string).collect();
    lab.wait_next_hops(&texts.iter().map(String::as_str).collect::<Vec<_>>(), &[0])?;
    let (text, code) = lab.ask(0, &["get", "loadbalancer", "middle", "-o", "json"])?;
    assert!(code == 0 && texts.iter().all(|a| text.contains(a)), "{text}");

    // One that sorts before it comes while the process is dead: it takes the next address, not this one.
    lab.instances[0].kill();
    lab.instances[0].write("early.yaml", &SERVICE.replace("NAME", "early"))?;
    lab.instances[0].start()?;
    let mut early = BTreeSet::new();
    wait_until("the new service has addresses", || {
        early = addresses(&lab, "early")?;
        Ok(early.len() == 2)
    })?;
    assert_eq!(addresses(&lab, "middle")?, first);
    assert!(early.is_disjoint(&first), "{early:?} {first:?}");

    // A service that goes gives its route back.
    lab.instances[0].delete("middle.yaml")?;
    lab.wait_next_hops(&texts.iter().map(String::as_str).collect::<Vec<_>>(), &[])
}
