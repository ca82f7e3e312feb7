//! What an agent writes of its node: that it is there, how it is, and that it still writes.
//!
//! The heartbeat has a key of its own, so that a node of which there is nothing new costs etcd some bytes. A Node stays when
//! its agent is silent: what it was given is its own until somebody deletes it.
use super::{
    EtcdError,
    client::Client,
    keys::{Keys, Part},
    watching::{Following, News},
    wire::{Compare, KeyValue, What, nested, put, txn},
};
use crate::{
    api::{Kind, NodeState, NodeStateStatus},
    host,
    store::objects::{Shared, lock, nodes::Nodes, now},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

/// What the agent says its Node is.
#[derive(Clone, Debug, Default)]
pub struct Registration {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Interfaces whose first addresses of each family are those in which others reach the node.
    pub interfaces: Vec<String>,
}

impl Registration {
    fn node(&self, name: &str) -> io::Result<Value> {
        let addresses = host::addresses_of(&self.interfaces)?;
        let first = |v4| addresses.iter().find(|address| address.is_ipv4() == v4);
        let internal = |address: &IpAddr| json!({"type": "InternalIP", "address": address});
        let addresses: Vec<_> = [true, false].into_iter().filter_map(first).map(internal).collect();
        Ok(json!({
            "apiVersion": Kind::Node.api_version(),
            "kind": Kind::Node.name(),
            "metadata": {"name": name, "labels": self.labels},
            "status": {"addresses": addresses},
        }))
    }
}

/// Writes the heartbeat, and whatever of the rest is not so already.
pub(super) async fn publish(
    client: &Client,
    keys: &Keys,
    registration: &Registration,
    state: &NodeState,
) -> Result<(), EtcdError> {
    let name = state.name_any();
    let mut state = state.clone();
    let heartbeat = state.status.as_mut().and_then(|status| status.heartbeat_time.take());
    let heartbeat = heartbeat.map_or(Value::Null, |time| json!(time));
    let node = registration
        .node(&name)
        .map_err(|error| EtcdError::new(format!("this host's addresses: {error}")))?;
    let kept = [
        (keys.object(Part::Registered, Kind::Node, &name), node.to_string()),
        (keys.node_state(&name), json!(state).to_string()),
    ];
    let keep = |(key, text): &(String, String)| {
        nested(txn(&[Compare::Holds(key, text)], &[], &[put(key, text, None)]))
    };
    let mut writes: Vec<_> = kept.iter().map(keep).collect();
    writes.push(put(&keys.heartbeat(&name), &heartbeat.to_string(), None));
    client.txn(&txn(&[], &writes, &[])).await.map(drop)
}

/// What agents have told, key by key.
#[derive(Debug, Default)]
pub(super) struct Told {
    states: BTreeMap<String, NodeStateStatus>,
    heartbeats: BTreeMap<String, Time>,
}

impl Told {
    /// Takes in a key; the node that it is of.
    fn take(&mut self, keys: &Keys, what: What, kv: &KeyValue) -> Option<String> {
        let (name, is_state) = keys.read_node(&kv.key)?;
        match (what, is_state) {
            (What::Delete, true) => drop(self.states.remove(&name)),
            (What::Delete, false) => {
                self.heartbeats.remove(&name);
            }
            (What::Put, true) => {
                let state: NodeState = serde_json::from_slice(&kv.value).ok()?;
                self.states.insert(name.clone(), state.status.unwrap_or_default());
            }
            (What::Put, false) => {
                self.heartbeats.insert(name.clone(), serde_json::from_slice(&kv.value).ok()?);
            }
        }
        Some(name)
    }

    /// Says how a node is. `is_listed`: it may be so for long.
    fn tell(&self, name: &str, nodes: &mut Nodes, is_listed: bool, now: Duration) {
        match self.states.get(name) {
            Some(state) => {
                let heartbeat_time = self.heartbeats.get(name).cloned();
                nodes.word(name, NodeStateStatus { heartbeat_time, ..state.clone() }, is_listed, now);
            }
            None => nodes.gone(name),
        }
    }
}

/// Follows what agents tell, for ever.
pub(super) async fn follow(client: Client, keys: Keys, shared: Arc<Shared>) {
    let mut following = Following::new(client, keys.nodes());
    let mut told = Told::default();
    loop {
        let news = following.next("nodes").await;
        let now = now();
        let mut nodes = lock(&shared.nodes);
        match news {
            News::Listed(list) => {
                told = Told::default();
                list.kvs.iter().for_each(|kv| drop(told.take(&keys, What::Put, kv)));
                told.states.keys().for_each(|name| told.tell(name, &mut nodes, true, now));
                nodes.listed(&told.states.keys().cloned().collect(), now);
                shared.metrics.watches(Kind::NodeState);
            }
            News::Changed(events) => {
                shared.metrics.watches(Kind::NodeState);
                let names: BTreeSet<_> =
                    events.iter().filter_map(|event| told.take(&keys, event.what, &event.kv)).collect();
                names.iter().for_each(|name| told.tell(name, &mut nodes, false, now));
            }
            News::Failed => {
                shared.metrics.watch_failed(Kind::NodeState);
                nodes.disturbed(now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: String, value: &Value) -> KeyValue {
        KeyValue { key: key.into(), value: value.to_string().into(), ..KeyValue::default() }
    }

    #[test]
    fn a_heartbeat_is_of_the_state_beside_it() {
        let (keys, mut told, mut nodes) = (Keys::new("/f"), Told::default(), Nodes::default());
        let at = |seconds: u64| Duration::from_secs(seconds);
        let state = kv(keys.node_state("n1"), &json!(NodeState::new("n1", Default::default())));
        let beat = |n: u64| kv(keys.heartbeat("n1"), &json!(crate::status::time(n)));
        let fresh = |nodes: &Nodes, seconds| {
            let reports = nodes.reports(at(seconds))?;
            Some(reports.into_iter().map(|(name, report)| (name, report.is_fresh)).collect::<Vec<_>>())
        };
        assert_eq!(told.take(&keys, What::Put, &beat(1)), Some("n1".to_owned()));
        told.tell("n1", &mut nodes, true, at(0));
        nodes.listed(&["n1".to_owned()].into(), at(0));
        assert_eq!(fresh(&nodes, 50), Some(vec![]), "a heartbeat alone says nothing");
        told.take(&keys, What::Put, &state);
        told.tell("n1", &mut nodes, true, at(0));
        told.take(&keys, What::Put, &beat(2));
        told.tell("n1", &mut nodes, false, at(60));
        assert_eq!(fresh(&nodes, 61), Some(vec![("n1".to_owned(), true)]));
        assert_eq!(fresh(&nodes, 300), Some(vec![("n1".to_owned(), false)]));
        told.take(&keys, What::Delete, &state);
        told.tell("n1", &mut nodes, false, at(301));
        assert_eq!(fresh(&nodes, 302), Some(vec![]));
    }
}
