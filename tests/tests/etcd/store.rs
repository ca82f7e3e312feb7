//! The store against a real etcd: snapshots, statuses, who leads, what is compacted.
use super::process::{Process, addresses, apply, balancer, has_address, options, pool};
use controller::store::{SharedStore, etcd::Options, objects::Role};
use lab::{
    Error,
    etcd::{Etcd, Wire},
    wait_until,
};
use serde_json::json;

#[test]
fn what_is_written_comes_back() -> Result<(), Error> {
    let etcd = Etcd::start(1)?;
    let options = options(&etcd);
    let service = "kind: Service\nmetadata: {name: shop}\nspec: {type: LoadBalancer, loadBalancerClass: fairlead.dev/lb, ports: [{port: 80}]}\n";
    let pods = "kind: AddressPool\nmetadata: {name: pods}\nspec: {use: PodCIDR, blocks: [{cidr: 10.244.0.0/16}], nodeMask: {ipv4: 24}}\n";
    let node = "kind: Node\nmetadata: {name: n1}\n";
    let all = [pool("192.0.2.0/28"), balancer("web"), service.into(), pods.into(), node.into()];
    apply(&options, &all, false)?;
    let agent = Process::start(&options, Role::Agent, "n1")?;
    let declared = agent.wait("all objects are there", |d| d.load_balancers.contains_key("web"))?;
    assert!(declared.services.contains_key("default/shop"));
    assert!(declared.statuses.load_balancers.is_empty(), "nobody leads yet");
    let controller = Process::start(&options, Role::Controller, "one")?;
    let declared = agent.wait("addresses and blocks are in effect", |d| {
        has_address(d, "web")
            && d.statuses.services.contains_key("default/shop")
            && d.statuses.nodes.contains_key("n1")
    })?;
    assert_eq!(declared.statuses.nodes["n1"].pod_cidrs[0].cidr.to_string(), "10.244.0.0/24");
    assert_ne!(
        declared.statuses.services["default/shop"].addresses[0].address.to_string(),
        addresses(&declared, "web")[0]
    );
    agent.wait("the pool counts", |d| {
        d.statuses.pools.get("vips").is_some_and(|pool| pool.ipv4.assigned == 2)
    })?;
    // What is gone has its address no more, and the next one does not get it at once.
    let before = addresses(&declared, "web");
    apply(&options, &[pool("192.0.2.0/28"), balancer("next"), pods.into(), node.into()], true)?;
    let declared = agent.wait("the next one has an address", |d| has_address(d, "next"))?;
    assert!(!declared.load_balancers.contains_key("web") && declared.services.is_empty());
    assert_ne!(addresses(&declared, "next"), before);
    agent.wait("the address rests", |d| {
        let released = d.statuses.pools.get("vips").map(|pool| pool.released.iter());
        released.into_iter().flatten().any(|released| released.address.to_string() == before[0])
    })?;
    drop(controller);
    Ok(())
}

#[test]
fn of_two_controllers_one_leads() -> Result<(), Error> {
    let etcd = Etcd::start(1)?;
    let options = options(&etcd);
    apply(&options, &[pool("192.0.2.0/28"), balancer("web")], false)?;
    let start = |identity| Process::start(&options, Role::Controller, identity);
    let one = start("one")?;
    wait_until("one leads", || Ok(one.leads()))?;
    let two = start("two")?;
    two.wait("web has an address", |d| has_address(d, "web"))?;
    assert!(one.leads() && !two.leads());
    // Killed: the other one waits for the end of the lease.
    drop(one);
    apply(&options, &[pool("192.0.2.0/28"), balancer("web"), balancer("second")], false)?;
    two.wait("second has an address", |d| has_address(d, "second"))?;
    assert!(two.leads());
    // Its key is deleted by hand: it writes nothing, and stands anew.
    let prefix = json!({"key": "L2ZhaXJsZWFkL3YxYWxwaGExL2xlYWRlci8=", "range_end": "L2ZhaXJsZWFkL3YxYWxwaGExL2xlYWRlcjA="});
    assert_eq!(etcd.post(0, "/v3/kv/deleterange", &prefix)?["deleted"], "1");
    apply(&options, &[balancer("third")], false)?;
    two.wait("third has an address", |d| has_address(d, "third"))?;
    // Stopped: the next one need not wait.
    let three = start("three")?;
    two.block_on(two.store.resign());
    assert!(!two.leads());
    assert_eq!(
        etcd.post(0, "/v3/kv/range", &prefix)?["kvs"]
            .as_array()
            .map_or(0, |kvs| kvs.iter().filter(|kv| kv["value"] == "dHdv").count()),
        0
    );
    wait_until("the third leads", || Ok(three.leads()))?;
    Ok(())
}

#[test]
fn what_was_compacted_is_listed_anew() -> Result<(), Error> {
    let etcd = Etcd::start(1)?;
    let (direct, wire) = (options(&etcd), Wire::new(&etcd, 0)?);
    let through = Options { endpoints: vec![wire.endpoint()], ..Options::default() };
    apply(&direct, &[pool("192.0.2.0/28"), balancer("web"), balancer("gone")], false)?;
    let controller = Process::start(&direct, Role::Controller, "one")?;
    let agent = Process::start(&through, Role::Agent, "n1")?;
    let before = agent.wait("both have addresses", |d| has_address(d, "web") && has_address(d, "gone"))?;
    wire.cut(true);
    apply(&direct, &[pool("192.0.2.0/28"), balancer("web"), balancer("new")], true)?;
    controller.wait("the new one has an address", |d| has_address(d, "new"))?;
    let seen = agent.snapshots().len();
    let revision = etcd.post(0, "/v3/kv/range", &json!({"key": "AA=="}))?["header"]["revision"].clone();
    etcd.post(0, "/v3/kv/compaction", &json!({"revision": revision, "physical": true}))?;
    assert_eq!(agent.snapshots().len(), seen, "who hears nothing changes nothing");
    wire.cut(false);
    let after = agent.wait("the agent has caught up", |d| {
        has_address(d, "new") && !d.load_balancers.contains_key("gone")
    })?;
    assert_eq!(addresses(&after, "web"), addresses(&before, "web"));
    let snapshots = agent.snapshots();
    assert!(snapshots[seen..].iter().all(|d| has_address(d, "web")), "it was never without");
    Ok(())
}
