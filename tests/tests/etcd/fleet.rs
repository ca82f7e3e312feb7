//! A hundred hosts on one etcd: each registers, is given its block, and has in its maps what all the others have.
use super::process::{apply, balancer, has_address, node_state, options, pool, start};
use controller::{
    api::Kind,
    desired::desired,
    observed::{NodeInfo, Observed},
    store::{
        SharedStore, Store,
        etcd::{Access, Registration},
        objects::Role,
    },
};
use lab::{Error, etcd::Etcd, wait_until};
use lb_bpf::{
    Sizes,
    maps::{Maps, dump::dump, fake::FakeMaps},
    state::{NextHops, Now, State},
};
use std::collections::{BTreeMap, BTreeSet};
use tokio::runtime::Runtime;

const HOSTS: usize = 100;

#[test]
fn a_hundred_hosts_share_what_is_declared() -> Result<(), Error> {
    let etcd = Etcd::start(1)?;
    let options = options(&etcd);
    let pods = "kind: AddressPool\nmetadata: {name: pods}\nspec: {use: PodCIDR, blocks: [{cidr: 10.244.0.0/16}], nodeMask: {ipv4: 24}}\n";
    let objects = |backend: &str| {
        let router = "kind: BGPRouter\nmetadata: {name: all}\nspec: {asn: 65010, nodeSelector: {matchLabels: {role: lb}}}\n";
        let balancer = balancer("web").replace("10.0.0.1", backend);
        [pool("192.0.2.0/28"), pods.to_owned(), router.to_owned(), balancer]
    };
    apply(&options, &objects("10.0.0.1"), false)?;
    let runtime = Runtime::new()?;
    let access = Access::new(&options)?;
    let (controller, agents) = runtime.block_on(async {
        let controller = start(&access, Role::Controller, "one", Registration::default())?;
        let labels = BTreeMap::from([("role".to_owned(), "lb".to_owned())]);
        let mut agents = Vec::new();
        for host in 0..HOSTS {
            let name = format!("host-{host}");
            let registration = Registration { labels: labels.clone(), interfaces: Vec::new() };
            // A client of its own, as of another host.
            let agent = start(&Access::new(&options)?, Role::Agent, &name, registration)?;
            agent.0.publish_node(&node_state(&name, 1), None).await?;
            agents.push((name, agent));
        }
        Ok::<_, Error>((controller, agents))
    })?;
    let last = |at: usize| agents[at].1.1.lock().unwrap().last().cloned();
    let everywhere = |what: &str, good: &dyn Fn(&controller::declared::Declared) -> bool| {
        (0..HOSTS)
            .try_for_each(|at| wait_until(what, || Ok(last(at).is_some_and(|declared| good(&declared)))))
    };
    everywhere("all hosts have blocks, and all know of them", &|declared| {
        let blocks = declared.statuses.nodes.values().flat_map(|status| &status.pod_cidrs);
        let blocks: BTreeSet<_> = blocks.map(|block| block.cidr.to_string()).collect();
        blocks.len() == HOSTS && declared.nodes.len() == HOSTS && has_address(declared, "web")
    })?;
    apply(&options, &objects("10.0.0.2"), false)?;
    everywhere("all have the other backend", &|declared| {
        format!("{:?}", declared.load_balancers["web"].spec.backends).contains("10.0.0.2")
    })?;
    // What each of them would bring into its maps, from what it knows by itself.
    let mut dumps = BTreeSet::new();
    for (at, (name, _)) in agents.iter().enumerate() {
        let node = NodeInfo { name: name.clone(), ..NodeInfo::default() };
        let observed = Observed { node, now: 1_000, ..Observed::default() };
        let declared = last(at).ok_or("no snapshot")?;
        let want = desired(&declared, &observed).datapath;
        assert_eq!(want.services.len(), 1, "{name} balances");
        let mut maps = FakeMaps::new(Sizes::DEFAULT);
        let mut state = State::restore(&maps)?;
        for op in state.plan(&maps, &want, &NextHops::default(), Now(0))? {
            maps.apply(&op)?;
        }
        dumps.insert(dump(&maps)?);
    }
    assert_eq!(dumps.len(), 1, "not all are the same");
    // A host is gone for good: so is what it was given.
    assert!(runtime.block_on(access.delete(Kind::Node, "host-0"))?);
    everywhere("the host is gone", &|declared| {
        declared.nodes.len() == HOSTS - 1 && !declared.statuses.nodes.contains_key("host-0")
    })?;
    let leads = controller.0.leader();
    assert!(*leads.borrow());
    Ok(())
}
