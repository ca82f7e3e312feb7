//! From what the watches say, kind by kind, to whole snapshots. Pure: changes go in, a [`Declared`] comes out.
//!
//! There is no snapshot before every source was listed once. From then on each object stands for itself: one that is
//! invalid is a fault, and the version before stays in force; if there was none, the object is left out. A change that
//! is older than what is known (`resourceVersion`) is none: our own writes are taken in as they are answered, and the
//! watch tells of them later.
use crate::{
    api::{BGPPeer, EndpointSlice, Kind, Secret},
    by_name::ByName,
    declared::Declared,
    desired::md5_key,
    fault::Fault,
    object::Object,
    status::{StatusSet, Statuses},
};
use k8s_openapi::api::core::v1::Node;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

/// What is listed and watched as one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::store) enum Source {
    /// All objects of a kind.
    All(Kind),
    /// One Secret of our namespace.
    Secret(String),
}

impl Source {
    pub(in crate::store) fn kind(&self) -> Kind {
        match self {
            Source::All(kind) => *kind,
            Source::Secret(_) => Kind::Secret,
        }
    }
}

/// An object as the API server has it.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::store) struct Seen {
    /// Its name; with a namespace `NAMESPACE/NAME`.
    pub(in crate::store) name: String,
    /// `resourceVersion`.
    pub(in crate::store) version: String,
    /// What was declared, or what is wrong with it.
    pub(in crate::store) object: Result<Object, Fault>,
    /// Its status; none: it has none, or it is not our business.
    pub(in crate::store) status: Option<Value>,
}

/// What a watch says.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::store) enum Change {
    /// A list begins.
    Listing,
    /// An object of the list.
    Listed(Seen),
    /// The list is complete: what is not in it is gone.
    ListDone,
    /// An object was made or changed.
    Applied(Seen),
    /// An object is gone.
    Deleted(String),
}

/// An object whose fault nobody else will say: it is not in force.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::store) struct Refused {
    pub(in crate::store) kind: Kind,
    pub(in crate::store) name: String,
    pub(in crate::store) fault: Fault,
    /// Its status.
    pub(in crate::store) status: Value,
}

/// What is known so far.
#[derive(Debug, Default)]
pub(in crate::store) struct Assembly {
    kinds: Vec<Kind>,
    /// Kinds that were not listed yet.
    awaited: BTreeSet<Source>,
    listed_secrets: BTreeSet<String>,
    /// Lists that have begun, and what was in them.
    lists: BTreeMap<Source, BTreeSet<String>>,
    entries: BTreeMap<Kind, BTreeMap<String, Entry>>,
    faults: BTreeMap<(Kind, String), Fault>,
    /// Peers are in force only with their keys, if keys are watched.
    has_keys: bool,
    peers: BTreeMap<String, Arc<BGPPeer>>,
    secrets: BTreeMap<String, Arc<Secret>>,
    key_faults: BTreeMap<String, Fault>,
    /// In force.
    declared: Declared,
    /// Statuses of objects that are gone, which the next publication has to look at: addresses come to rest.
    orphans: BTreeSet<(Kind, String)>,
    keeps_orphans: bool,
    changed: bool,
}

/// An object that the API server has.
#[derive(Debug, Default)]
struct Entry {
    version: Box<str>,
    /// Its status, while it is refused.
    refused: Option<Box<Value>>,
}

impl Assembly {
    /// Nothing known yet of these kinds. `has_keys`: the Secrets that peers name are watched, too.
    pub(in crate::store) fn new(kinds: &[Kind], has_keys: bool) -> Self {
        let mut assembly = Assembly { kinds: kinds.to_vec(), has_keys, ..Assembly::default() };
        assembly.await_again();
        assembly
    }

    /// Whether the statuses of objects that go are kept until [`Assembly::published`]. Those that were kept go.
    pub(in crate::store) fn keep_orphans(&mut self, keep: bool) {
        self.keeps_orphans = keep;
        self.forget_orphans(|_, _| true);
    }

    /// Takes in what a watch says.
    pub(in crate::store) fn change(&mut self, source: &Source, change: Change) {
        let kind = source.kind();
        match change {
            Change::Listing => drop(self.lists.insert(source.clone(), BTreeSet::new())),
            Change::Listed(seen) => {
                if let Some(list) = self.lists.get_mut(source) {
                    list.insert(seen.name.clone());
                }
                self.apply(kind, seen);
            }
            Change::ListDone => {
                let list = self.lists.remove(source).unwrap_or_default();
                let known: Vec<_> = match source {
                    Source::All(_) => self.entries.entry(kind).or_default().keys().cloned().collect(),
                    Source::Secret(name) => vec![name.clone()],
                };
                for name in known.iter().filter(|name| !list.contains(*name)) {
                    self.delete(kind, name);
                }
                self.changed |= self.awaited.remove(source);
                if let Source::Secret(name) = source {
                    self.listed_secrets.insert(name.clone());
                }
            }
            Change::Applied(seen) => self.apply(kind, seen),
            Change::Deleted(name) => self.delete(kind, &name),
        }
    }

    /// Takes in the answer to one of our own writes. An object that has gone meanwhile stays gone.
    pub(in crate::store) fn wrote(&mut self, kind: Kind, seen: Seen) {
        if self.version(kind, &seen.name).is_some() {
            self.apply(kind, seen);
        }
    }

    /// A slice that is known elsewhere, too: from the next snapshot on, what is the same is kept once.
    pub(in crate::store) fn share(&mut self, name: &str, slice: &Arc<EndpointSlice>) {
        let slices = &mut self.declared.endpoint_slices;
        if slices.get(name).is_some_and(|known| !Arc::ptr_eq(known, slice) && known == slice) {
            slices.insert(name.to_owned(), Arc::clone(slice));
        }
    }

    /// All statuses of this set are written: those of objects that are gone have been looked at.
    pub(in crate::store) fn published(&mut self, statuses: &StatusSet) {
        let rest = |kind: Kind, name: &str| has_status(statuses, kind, name);
        self.forget_orphans(|kind, name| !rest(kind, name));
    }

    /// `resourceVersion` of an object.
    pub(in crate::store) fn version(&self, kind: Kind, name: &str) -> Option<&str> {
        self.entries.get(&kind)?.get(name).map(|entry| &*entry.version)
    }

    /// The statuses that objects have, and those of orphans.
    pub(in crate::store) fn statuses(&self) -> &StatusSet {
        &self.declared.statuses
    }

    /// A node, if it is in force.
    pub(in crate::store) fn node(&self, name: &str) -> Option<&Node> {
        self.declared.nodes.get(name).map(|node| &**node)
    }

    /// Objects that are refused and of which no version is in force.
    pub(in crate::store) fn refused(&self) -> impl Iterator<Item = Refused> {
        let not_in_force = |(kind, name): &(Kind, String)| !is_in_force(&self.declared, *kind, name);
        self.faults.iter().filter(move |(key, _)| not_in_force(key)).filter_map(|((kind, name), fault)| {
            let status = self.entries.get(kind)?.get(name)?.refused.as_deref()?.clone();
            Some(Refused { kind: *kind, name: name.clone(), fault: fault.clone(), status })
        })
    }

    /// Everything that is wrong, sorted by object.
    pub(in crate::store) fn faults(&self) -> Vec<Fault> {
        self.faults.values().chain(self.key_faults.values()).cloned().collect()
    }

    /// The Secrets that peers name.
    pub(in crate::store) fn named_secrets(&self) -> BTreeSet<String> {
        if !self.has_keys {
            return BTreeSet::new();
        }
        let peers = self.peers.values().chain(self.declared.peers.values());
        peers.filter_map(|peer| Some(key_of(peer)?.0.to_owned())).collect()
    }

    /// Forgets a Secret that nobody names any more.
    pub(in crate::store) fn forget_secret(&mut self, name: &str) {
        self.delete(Kind::Secret, name);
        self.listed_secrets.remove(name);
    }

    /// No snapshot from now on before all kinds were listed once more.
    pub(in crate::store) fn await_again(&mut self) {
        self.lists.clear();
        self.awaited = self.kinds.iter().copied().map(Source::All).collect();
    }

    /// Whether everything was listed.
    pub(in crate::store) fn is_complete(&self) -> bool {
        let has_keys = || self.named_secrets().is_subset(&self.listed_secrets);
        self.awaited.is_empty() && (self.declared.generation > 0 || has_keys())
    }

    /// The next snapshot, if it is complete and there is something new in it.
    pub(in crate::store) fn take(&mut self) -> Option<Declared> {
        if !self.is_complete() {
            return None;
        }
        self.settle_keys();
        if !mem::take(&mut self.changed) {
            return None;
        }
        self.declared.refused =
            self.refused().map(|refused| format!("{}/{}", refused.kind, refused.name)).collect();
        self.declared.generation += 1;
        Some(self.declared.clone())
    }

    fn apply(&mut self, kind: Kind, seen: Seen) {
        let Seen { name, version, object, status } = seen;
        let entry = self.entries.entry(kind).or_default().entry(name.clone()).or_default();
        if is_older(&version, &entry.version) {
            return;
        }
        entry.version = version.into();
        let statuses = &mut self.declared.statuses;
        let key = (kind, name);
        let name = &key.1;
        // A Service that is of our class no more: Kubernetes clears its status, and what it had comes to rest.
        let is_left = kind == Kind::Service && status.is_none() && has_status(statuses, kind, name);
        let told = if is_left && self.keeps_orphans {
            self.orphans.insert(key.clone());
            Ok(false)
        } else {
            self.orphans.remove(&key);
            set_status(statuses, kind, name, status.clone())
        };
        let told =
            told.map_err(|reason| Fault::object(format!("{kind}/{name}"), Some("status".to_owned()), reason));
        let changed = told.as_ref().is_ok_and(|changed| *changed);
        let object = told.and(object);
        entry.refused = match &object {
            Ok(_) => None,
            Err(_) => Some(Box::new(status.unwrap_or_default())),
        };
        self.changed |= changed;
        match object {
            Ok(object) => {
                self.changed |= self.faults.remove(&key).is_some();
                match object {
                    Object::BGPPeer(peer) => drop(self.peers.insert(key.1, peer)),
                    Object::Secret(secret) => drop(self.secrets.insert(key.1, secret)),
                    object => self.changed |= put(&mut self.declared, key.1, object),
                }
            }
            Err(fault) => self.changed |= self.faults.insert(key, fault.clone()) != Some(fault),
        }
    }

    fn delete(&mut self, kind: Kind, name: &str) {
        if self.entries.entry(kind).or_default().remove(name).is_none() {
            return;
        }
        self.changed = true;
        self.faults.remove(&(kind, name.to_owned()));
        match kind {
            Kind::BGPPeer => drop(self.peers.remove(name)),
            Kind::Secret => drop(self.secrets.remove(name)),
            _ => {}
        }
        // A key in use stays: see `settle_keys`.
        if kind != Kind::Secret {
            remove(&mut self.declared, kind, name);
        }
        if self.keeps_orphans && has_status(&self.declared.statuses, kind, name) {
            self.orphans.insert((kind, name.to_owned()));
        } else {
            remove_status(&mut self.declared.statuses, kind, name);
        }
    }

    /// Puts peers and their keys in force. A peer whose key cannot be used would have an unsigned session: it stays as it
    /// was, with the key that it had, or out.
    fn settle_keys(&mut self) {
        let Declared { peers, secrets, .. } = &mut self.declared;
        let is_gone = |name: &String| !self.peers.contains_key(name);
        let gone: Vec<_> = peers.keys().filter(|name| is_gone(name)).cloned().collect();
        gone.iter().for_each(|name| drop(peers.remove(name)));
        self.key_faults.retain(|name, _| self.peers.contains_key(name));
        let mut unusable = BTreeSet::new();
        for (name, peer) in &self.peers {
            let usable = match key_of(peer).filter(|_| self.has_keys) {
                None => Ok(()),
                Some((secret, key)) => match self.secrets.get(secret) {
                    None => Err(format!("there is no Secret/{secret}")),
                    Some(found) => {
                        md5_key(found, key).map(drop).map_err(|reason| format!("Secret/{secret}: {reason}"))
                    }
                },
            };
            match usable {
                Ok(()) => {
                    self.changed |= self.key_faults.remove(name).is_some();
                    self.changed |= replace(peers, name.clone(), Arc::clone(peer));
                }
                Err(reason) => {
                    unusable.extend(key_of(peer).map(|(secret, _)| secret.to_owned()));
                    let field = Some("spec.auth.md5SecretRef".to_owned());
                    let fault = Fault::object(format!("{}/{name}", Kind::BGPPeer), field, reason);
                    self.changed |= self.key_faults.insert(name.clone(), fault.clone()) != Some(fault);
                }
            }
        }
        let named: BTreeSet<_> = peers.values().filter_map(|peer| Some(key_of(peer)?.0)).collect();
        secrets.retain(|name, _| named.contains(name));
        for name in named.into_iter().filter(|name| !unusable.contains(*name)) {
            if let Some(secret) = self.secrets.get(name) {
                self.changed |= replace(secrets, name.to_owned(), Arc::clone(secret));
            }
        }
    }

    fn forget_orphans(&mut self, is_settled: impl Fn(Kind, &str) -> bool) {
        let statuses = &mut self.declared.statuses;
        let settled = self.orphans.extract_if(.., |(kind, name)| is_settled(*kind, name));
        for (kind, name) in settled {
            remove_status(statuses, kind, &name);
            self.changed = true;
        }
    }
}

/// Whether a version is before another one. They are numbers (KEP-5504); what is no number is not older.
pub(in crate::store) fn is_older(version: &str, than: &str) -> bool {
    let number = |text: &str| text.parse::<u64>().ok();
    matches!((number(version), number(than)), (Some(version), Some(than)) if version < than)
}

/// Name of the Secret that a peer's key is in, and of the key.
fn key_of(peer: &BGPPeer) -> Option<(&str, &str)> {
    let reference = &peer.spec.auth.as_ref()?.md5_secret_ref;
    Some((&reference.name, &reference.key))
}

/// Whether the value is another one than before.
fn replace<T: PartialEq>(map: &mut ByName<T>, name: String, value: Arc<T>) -> bool {
    if map.get(&name).is_some_and(|before| *before == value) {
        return false;
    }
    map.insert(name, value);
    true
}

fn put(declared: &mut Declared, name: String, object: Object) -> bool {
    match object {
        Object::AddressPool(object) => replace(&mut declared.pools, name, object),
        Object::LoadBalancer(object) => replace(&mut declared.load_balancers, name, object),
        Object::BGPRouter(object) => replace(&mut declared.routers, name, object),
        Object::BGPPeer(object) => replace(&mut declared.peers, name, object),
        Object::BGPAdvertisement(object) => replace(&mut declared.advertisements, name, object),
        Object::PacketFilter(object) => replace(&mut declared.packet_filters, name, object),
        Object::ClusterLink(object) => replace(&mut declared.cluster_links, name, object),
        Object::ServicePolicy(object) => replace(&mut declared.policies, name, object),
        Object::Service(object) => replace(&mut declared.services, name, object),
        Object::EndpointSlice(object) => replace(&mut declared.endpoint_slices, name, object),
        Object::Namespace(object) => replace(&mut declared.namespaces, name, object),
        Object::Node(object) => replace(&mut declared.nodes, name, object),
        Object::Secret(object) => replace(&mut declared.secrets, name, object),
    }
}

fn remove(declared: &mut Declared, kind: Kind, name: &str) {
    match kind {
        Kind::AddressPool => drop(declared.pools.remove(name)),
        Kind::LoadBalancer => drop(declared.load_balancers.remove(name)),
        Kind::BGPRouter => drop(declared.routers.remove(name)),
        Kind::BGPPeer => drop(declared.peers.remove(name)),
        Kind::BGPAdvertisement => drop(declared.advertisements.remove(name)),
        Kind::PacketFilter => drop(declared.packet_filters.remove(name)),
        Kind::ClusterLink => drop(declared.cluster_links.remove(name)),
        Kind::ServicePolicy => drop(declared.policies.remove(name)),
        Kind::Service => drop(declared.services.remove(name)),
        Kind::EndpointSlice => drop(declared.endpoint_slices.remove(name)),
        Kind::Namespace => drop(declared.namespaces.remove(name)),
        Kind::Node => drop(declared.nodes.remove(name)),
        Kind::Secret => drop(declared.secrets.remove(name)),
        Kind::NodeState => {}
    }
}

fn is_in_force(declared: &Declared, kind: Kind, name: &str) -> bool {
    match kind {
        Kind::AddressPool => declared.pools.contains_key(name),
        Kind::LoadBalancer => declared.load_balancers.contains_key(name),
        Kind::BGPRouter => declared.routers.contains_key(name),
        Kind::BGPPeer => declared.peers.contains_key(name),
        Kind::BGPAdvertisement => declared.advertisements.contains_key(name),
        Kind::PacketFilter => declared.packet_filters.contains_key(name),
        Kind::ClusterLink => declared.cluster_links.contains_key(name),
        Kind::ServicePolicy => declared.policies.contains_key(name),
        Kind::Service => declared.services.contains_key(name),
        Kind::EndpointSlice => declared.endpoint_slices.contains_key(name),
        Kind::Namespace => declared.namespaces.contains_key(name),
        Kind::Node => declared.nodes.contains_key(name),
        Kind::Secret => declared.secrets.contains_key(name),
        Kind::NodeState => false,
    }
}

/// Whether the status is another one than before.
fn set_status(set: &mut StatusSet, kind: Kind, name: &str, status: Option<Value>) -> Result<bool, String> {
    match kind {
        Kind::AddressPool => read_status(&mut set.pools, name, status),
        Kind::LoadBalancer => read_status(&mut set.load_balancers, name, status),
        Kind::BGPRouter => read_status(&mut set.routers, name, status),
        Kind::BGPPeer => read_status(&mut set.peers, name, status),
        Kind::BGPAdvertisement => read_status(&mut set.advertisements, name, status),
        Kind::PacketFilter => read_status(&mut set.packet_filters, name, status),
        Kind::ClusterLink => read_status(&mut set.cluster_links, name, status),
        Kind::ServicePolicy => read_status(&mut set.policies, name, status),
        // Its status is Kubernetes' own: see `api::service`.
        Kind::Service => read_status(&mut set.services, name, status),
        Kind::Node => read_status(&mut set.nodes, name, status),
        _ => Ok(false),
    }
}

fn read_status<T: DeserializeOwned + PartialEq>(
    statuses: &mut Statuses<T>,
    name: &str,
    status: Option<Value>,
) -> Result<bool, String> {
    match status {
        None => Ok(statuses.remove(name).is_some()),
        Some(value) => {
            let status: T = serde_path_to_error::deserialize(value).map_err(|error| error.to_string())?;
            Ok(replace(statuses, name.to_owned(), Arc::new(status)))
        }
    }
}

fn remove_status(set: &mut StatusSet, kind: Kind, name: &str) {
    // No status can always be set.
    let _ = set_status(set, kind, name, None);
}

fn has_status(set: &StatusSet, kind: Kind, name: &str) -> bool {
    match kind {
        Kind::AddressPool => set.pools.contains_key(name),
        Kind::LoadBalancer => set.load_balancers.contains_key(name),
        Kind::BGPRouter => set.routers.contains_key(name),
        Kind::BGPPeer => set.peers.contains_key(name),
        Kind::BGPAdvertisement => set.advertisements.contains_key(name),
        Kind::PacketFilter => set.packet_filters.contains_key(name),
        Kind::ClusterLink => set.cluster_links.contains_key(name),
        Kind::ServicePolicy => set.policies.contains_key(name),
        Kind::Service => set.services.contains_key(name),
        Kind::Node => set.nodes.contains_key(name),
        _ => false,
    }
}

#[cfg(test)]
pub(in crate::store) mod tests;
