//! Three members, of which some are lost: what is known stays, and what comes back is caught up with.
use super::process::{Process, addresses, apply, balancer, has_address, options, pool};
use controller::store::objects::Role;
use lab::{Error, etcd::Etcd, wait_until};

#[test]
fn without_a_quorum_all_stays_as_it_was() -> Result<(), Error> {
    let mut etcd = Etcd::start(3)?;
    let options = options(&etcd);
    let objects = |names: &[&str]| {
        let balancers = names.iter().map(|name| balancer(name));
        [pool("192.0.2.0/28")].into_iter().chain(balancers).collect::<Vec<_>>()
    };
    apply(&options, &objects(&["web"]), false)?;
    let controllers = [
        Process::start(&options, Role::Controller, "one")?,
        Process::start(&options, Role::Controller, "two")?,
    ];
    // Hosts ask members by chance: together they ask all of them.
    let agents = (0..4).map(|n| Process::start(&options, Role::Agent, &format!("n{n}")));
    let agents = agents.collect::<Result<Vec<_>, _>>()?;
    let everywhere =
        |name: &str| agents.iter().try_for_each(|agent| agent.wait(name, |d| has_address(d, name)).map(drop));
    everywhere("web")?;
    let given = addresses(&agents[0].last().unwrap(), "web");
    // One member is lost: the others do.
    etcd.kill(0);
    wait_until("a change is taken", || Ok(apply(&options, &objects(&["web", "second"]), false).is_ok()))?;
    everywhere("second")?;
    // The quorum is lost.
    etcd.kill(1);
    wait_until("nobody leads", || Ok(controllers.iter().all(|controller| !controller.leads())))?;
    let seen: Vec<_> = agents.iter().map(|agent| agent.snapshots().len()).collect();
    let refused = apply(&options, &objects(&["web", "third"]), true);
    assert!(refused.is_err(), "{refused:?}");
    let now: Vec<_> = agents.iter().map(|agent| agent.snapshots().len()).collect();
    assert_eq!(now, seen, "nothing is new");
    // It comes back, with what was so, and what was not written was not.
    etcd.restore()?;
    wait_until("a change is taken", || Ok(apply(&options, &objects(&["web", "fourth"]), true).is_ok()))?;
    everywhere("fourth")?;
    for agent in &agents {
        let snapshots = agent.snapshots();
        let from = snapshots.iter().position(|d| has_address(d, "web")).unwrap();
        assert!(snapshots[from..].iter().all(|d| addresses(d, "web") == given), "it was never without");
        assert!(snapshots.iter().all(|d| !d.load_balancers.contains_key("third")));
        agent.wait("what was pruned is gone", |d| !d.load_balancers.contains_key("second"))?;
    }
    Ok(())
}
