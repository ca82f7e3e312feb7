//! A host is there as long as its lease: who is gone is silent, and an etcd that was away leaves time to come back.
use super::{
    process::{Process, node_state, options},
    rights::base64,
};
use controller::store::{SharedStore, Store, objects::Role};
use lab::{Error, etcd::Etcd, wait_until};
use serde_json::{Value, json};

const STATE: &str = "/fairlead/v1alpha1/nodes/state/n1";
const LEASE: &str = "/fairlead/v1alpha1/nodes/lease/n1";

/// A key as etcd has it.
fn kv(etcd: &Etcd, key: &str) -> Result<Value, Error> {
    Ok(etcd.post(0, "/v3/kv/range", &json!({"key": base64(key)}))?["kvs"][0].clone())
}

#[test]
fn a_host_is_there_as_long_as_its_lease() -> Result<(), Error> {
    let mut etcd = Etcd::start(1)?;
    let controller = Process::start(&options(&etcd), Role::Controller, "one")?;
    let agent = Process::start(&options(&etcd), Role::Agent, "n1")?;
    let mut now = 0;
    let mut tell = || {
        now += 30;
        agent.block_on(agent.store.publish_node(&node_state("n1", now), None))
    };
    let is_there = || Some(controller.store.node_reports()?.get("n1")?.is_fresh);
    let end_lease = |etcd: &Etcd| -> Result<(), Error> {
        let lease = kv(etcd, LEASE)?["lease"].clone();
        etcd.post(0, "/v3/lease/revoke", &json!({"ID": lease})).map(drop)
    };

    // The key goes with a lease, and while nothing is new nothing is written.
    tell()?;
    let (state, key) = (kv(&etcd, STATE)?, kv(&etcd, LEASE)?);
    assert_eq!(state["lease"], Value::Null, "what a host says stays");
    let lease = etcd.post(0, "/v3/lease/timetolive", &json!({"ID": key["lease"], "keys": true}))?;
    assert_eq!((&lease["grantedTTL"], &lease["keys"]), (&"90".into(), &json!([base64(LEASE)])));
    tell()?;
    assert_eq!((kv(&etcd, STATE)?, kv(&etcd, LEASE)?), (state.clone(), key.clone()));

    // etcd is away, and when it is back the lease has ended: the host takes another one, and was never taken for dead.
    etcd.kill(0);
    assert!(tell().is_err());
    etcd.restore()?;
    end_lease(&etcd)?;
    wait_until("the host has another lease", || Ok(tell().is_ok() && kv(&etcd, LEASE)? != Value::Null))?;
    assert_ne!(kv(&etcd, LEASE)?["lease"], key["lease"]);
    assert_eq!(kv(&etcd, STATE)?, state);
    wait_until("the host is there", || {
        assert_ne!(is_there(), Some(false));
        Ok(is_there() == Some(true))
    })?;

    // It is gone, and comes back.
    end_lease(&etcd)?;
    wait_until("the host is silent", || Ok(is_there() == Some(false)))?;
    assert_eq!(kv(&etcd, STATE)?, state);
    tell()?;
    wait_until("the host is there again", || Ok(is_there() == Some(true)))
}
