//! The delay before an address is used again, when the leader dies at any write after a service has gone.
use super::store::{NAMESPACE, Process, apply, balancer, get, given, plane, wait_given};
use controller::store::kubernetes::{Role, faulty::Cut};
use lab::{Error, control_plane::ControlPlane, wait_until};

/// Three addresses that rest for an hour.
const POOL: &str = "apiVersion: fairlead.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: vips}\n\
    spec: {use: LoadBalancer, blocks: [{start: 192.0.2.1, stop: 192.0.2.3}], reuseDelaySeconds: 3600}\n";

/// Addresses that rest, as the pool says.
fn resting(plane: &ControlPlane) -> Result<Vec<String>, Error> {
    let pools = get(plane, "addresspools")?;
    let released =
        pools.iter().flat_map(|pool| pool["status"]["released"].as_array().cloned().unwrap_or_default());
    Ok(released.filter_map(|entry| Some(entry["address"].as_str()?.to_owned())).collect())
}

#[test]
fn an_address_rests_whenever_the_leader_dies() -> Result<(), Error> {
    let plane = plane()?;
    let start = |identity: &str, cut| Process::start(&plane.kubeconfig(), Role::Controller, identity, cut);
    let forget_lease = || plane.kubectl(&["delete", "lease", "-n", NAMESPACE, "fairlead-controller"]);
    // Also before the first: the leader is dead when the service goes.
    for at in 0.. {
        apply(&plane, &[POOL.to_owned(), balancer("a"), balancer("b")])?;
        let dies = start(&format!("dies-{at}"), None)?;
        let first = wait_given(&plane, &["a", "b"])?["a"][0].clone();
        wait_until("the pool says what is in use", || {
            Ok(get(&plane, "addresspools")?
                .iter()
                .any(|pool| pool["status"]["inUse"][0]["stop"] == "192.0.2.2"))
        })?;
        let before = dies.faults.writes();
        if at > 0 {
            dies.faults.set(Some(Cut { after: before + (at - 1) / 2, arrives: at % 2 == 0, once: false }));
        } else {
            dies.faults.set(Some(Cut { after: 0, arrives: false, once: false }));
        }
        plane.kubectl(&["delete", "loadbalancer", "a"])?;
        apply(&plane, &[balancer("c")])?;
        let is_through = |dies: &Process| Ok::<_, Error>(dies.leads() && given(&plane)?["c"].len() == 1);
        wait_until("it is cut, or done", || {
            Ok(at == 0 || dies.faults.writes() > before + (at - 1) / 2 || is_through(&dies)?)
        })?;
        let is_done = at > 0 && dies.faults.writes() <= before + (at - 1) / 2;
        drop(dies);
        forget_lease()?;
        let next = start(&format!("next-{at}"), None)?;
        let now = wait_given(&plane, &["b", "c"])?;
        assert_ne!(now["c"][0], first, "cut at {at}");
        wait_until("it rests", || Ok(resting(&plane)? == [first.clone()]))?;
        drop(next);
        forget_lease()?;
        plane.kubectl(&["delete", "loadbalancers,addresspools", "--all"])?;
        if is_done {
            assert!(at > 4, "only {at} ways to die");
            return Ok(());
        }
    }
    Ok(())
}
