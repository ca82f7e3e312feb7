//! What an agent writes of its node: that it is there, and how it is.
//!
//! That it is there says a key that goes with a lease, which the agent renews: no clocks are compared, and a node of which there is
//! nothing new costs etcd no write. etcd gives all leases their whole time again when it has elected a leader, so an etcd that was away
//! leaves time to come back. A Node stays when its agent is silent: what it was given is its own until somebody deletes it.
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
    store::objects::{
        Shared, lock,
        nodes::{FRESH, Nodes},
        now,
    },
};
use kube::ResourceExt;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    sync::{Arc, Mutex},
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

/// An agent as it writes of its node.
pub(super) struct Agent {
    client: Client,
    keys: Keys,
    registration: Registration,
    /// The lease that was taken last; it may have ended.
    lease: Mutex<Option<i64>>,
}

impl Agent {
    pub(super) fn new(client: Client, keys: Keys, registration: Registration) -> Self {
        Agent { client, keys, registration, lease: Mutex::default() }
    }

    /// Renews the lease, and writes whatever is not so already.
    pub(super) async fn publish(&self, state: &NodeState) -> Result<(), EtcdError> {
        let (keys, name) = (&self.keys, state.name_any());
        let mut state = state.clone();
        let since = state.status.as_mut().and_then(|status| status.heartbeat_time.take());
        let since = since.map_or(Value::Null, |time| json!(time)).to_string();
        let node = self
            .registration
            .node(&name)
            .map_err(|error| EtcdError::new(format!("this host's addresses: {error}")))?;
        let lease = self.lease().await?;
        let kept = [
            (keys.object(Part::Registered, Kind::Node, &name), node.to_string()),
            (keys.node_state(&name), json!(state).to_string()),
        ];
        let keep = |(key, text): &(String, String)| {
            nested(txn(&[Compare::Holds(key, text)], &[], &[put(key, text, None)]))
        };
        let mut writes: Vec<_> = kept.iter().map(keep).collect();
        let key = keys.node_lease(&name);
        writes.push(nested(txn(&[Compare::Leased(&key, lease)], &[], &[put(&key, &since, Some(lease))])));
        self.client.txn(&txn(&[], &writes, &[])).await.map(drop)
    }

    /// The lease, renewed; a new one, if it has ended.
    async fn lease(&self) -> Result<i64, EtcdError> {
        let known = *lock(&self.lease);
        if let Some(lease) = known
            && self.client.renew(lease).await?
        {
            return Ok(lease);
        }
        let lease = self.client.grant(FRESH).await?;
        *lock(&self.lease) = Some(lease);
        Ok(lease)
    }
}

/// What agents have told, key by key.
#[derive(Debug, Default)]
pub(super) struct Told {
    states: BTreeMap<String, NodeStateStatus>,
    /// Nodes whose agents have a lease.
    there: BTreeSet<String>,
}

impl Told {
    /// Takes in a key; the node that it is of.
    fn take(&mut self, keys: &Keys, what: What, kv: &KeyValue) -> Option<String> {
        let (name, is_state) = keys.read_node(&kv.key)?;
        match (what, is_state) {
            (What::Delete, true) => drop(self.states.remove(&name)),
            (What::Delete, false) => drop(self.there.remove(&name)),
            (What::Put, true) => {
                let state: NodeState = serde_json::from_slice(&kv.value).ok()?;
                self.states.insert(name.clone(), state.status.unwrap_or_default());
            }
            (What::Put, false) => drop(self.there.insert(name.clone())),
        }
        Some(name)
    }

    /// Says how a node is.
    fn tell(&self, name: &str, nodes: &mut Nodes) {
        match self.states.get(name) {
            Some(state) => nodes.leased(name, state, self.there.contains(name)),
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
                told.states.keys().for_each(|name| told.tell(name, &mut nodes));
                nodes.listed(&told.states.keys().cloned().collect(), now);
                shared.metrics.watches(Kind::NodeState);
            }
            News::Changed(events) => {
                shared.metrics.watches(Kind::NodeState);
                let names: BTreeSet<_> =
                    events.iter().filter_map(|event| told.take(&keys, event.what, &event.kv)).collect();
                names.iter().for_each(|name| told.tell(name, &mut nodes));
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
    use std::time::Duration;

    fn kv(key: String, value: &Value) -> KeyValue {
        KeyValue { key: key.into(), value: value.to_string().into(), ..KeyValue::default() }
    }

    #[test]
    fn who_has_a_lease_is_there() {
        let (keys, mut told, mut nodes) = (Keys::new("/f"), Told::default(), Nodes::default());
        let at = |seconds: u64| Duration::from_secs(seconds);
        let state = kv(keys.node_state("n1"), &json!(NodeState::new("n1", Default::default())));
        let lease = kv(keys.node_lease("n1"), &json!(crate::status::time(1)));
        let fresh = |nodes: &Nodes, seconds| {
            let reports = nodes.reports(at(seconds))?;
            Some(reports.into_iter().map(|(name, report)| (name, report.is_fresh)).collect::<Vec<_>>())
        };
        let mut take = |nodes: &mut Nodes, what, kv| {
            assert_eq!(told.take(&keys, what, kv), Some("n1".to_owned()));
            told.tell("n1", nodes);
        };
        let n1 = |is_fresh| Some(vec![("n1".to_owned(), is_fresh)]);
        take(&mut nodes, What::Put, &lease);
        nodes.listed(&["n1".to_owned()].into(), at(0));
        assert_eq!(fresh(&nodes, 50), Some(vec![]), "a lease alone says nothing");
        take(&mut nodes, What::Put, &state);
        assert_eq!(fresh(&nodes, 44), None, "it is listened");
        assert_eq!(fresh(&nodes, 45), n1(true));
        assert_eq!(fresh(&nodes, 9_999), n1(true), "nothing is written while nothing is new");
        take(&mut nodes, What::Delete, &lease);
        assert_eq!(fresh(&nodes, 10_000), n1(false));
        // etcd was away, and the lease has ended: there is time to take another one.
        nodes.disturbed(at(20_000));
        assert_eq!(fresh(&nodes, 20_044), None);
        take(&mut nodes, What::Put, &lease);
        assert_eq!(fresh(&nodes, 20_045), n1(true));
        take(&mut nodes, What::Delete, &state);
        assert_eq!(fresh(&nodes, 20_046), Some(vec![]));
    }
}
