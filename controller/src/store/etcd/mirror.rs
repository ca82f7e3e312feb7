//! From keys to objects: an object is what its keys say together. Pure.
//!
//! A Node may have been applied, and its agent says what it is, too: labels and annotations are those of both, and what was
//! applied counts before what the agent says. A status is nothing without its object.
use super::{
    keys::{Keys, Part},
    wire::{Event, KeyValue, What},
};
use crate::{
    api::Kind,
    fault::Fault,
    object::Object,
    store::objects::snapshot::{Assembly, Change, Seen, Source},
    validate,
};
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};
use std::{collections::BTreeMap, mem, sync::Arc};

/// The keys as they are known. Who writes one takes it in at once; the watch tells of it later.
#[derive(Debug)]
pub(super) struct Mirror {
    keys: Keys,
    /// Kinds that are read.
    kinds: Vec<Kind>,
    entries: BTreeMap<(Kind, String), Entry>,
}

/// Revisions are those of the last write of a key.
#[derive(Debug, Default)]
struct Entry {
    declared: Option<(i64, Result<Object, Fault>)>,
    registered: Option<(i64, Result<Object, Fault>)>,
    status: Option<(i64, Box<[u8]>)>,
    /// The largest of all, also of keys that are gone.
    revision: i64,
}

/// What the keys of an object have to be for a write that was planned to be right still.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Revisions {
    /// Keys that make the object.
    pub(super) object: Vec<(Part, i64)>,
    /// 0: there is no status.
    pub(super) status: i64,
}

impl Mirror {
    /// Nothing known yet; only these kinds are looked at.
    pub(super) fn new(keys: Keys, kinds: Vec<Kind>) -> Self {
        Mirror { keys, kinds, entries: BTreeMap::new() }
    }

    /// Takes in all keys of objects as they were at that revision, and tells.
    pub(super) fn list(&mut self, kvs: Vec<KeyValue>, revision: i64, assembly: &mut Assembly) {
        let before = mem::take(&mut self.entries);
        for kv in kvs {
            self.put(kv);
        }
        for (key, entry) in before {
            // A write of our own that is newer than the list.
            let newer = entry.status.filter(|(written, _)| *written > revision);
            match self.entries.get_mut(&key) {
                Some(known) => {
                    known.revision = known.revision.max(entry.revision);
                    if newer.is_some() {
                        known.status = newer;
                    }
                }
                None if key.0 == Kind::Secret => {
                    assembly.change(&Source::Secret(key.1.clone()), Change::Deleted(key.1));
                }
                None => {}
            }
        }
        for kind in self.kinds.iter().filter(|kind| **kind != Kind::Secret) {
            let source = Source::All(*kind);
            assembly.change(&source, Change::Listing);
            for (name, entry) in self.of(*kind) {
                if let Some(seen) = entry.seen(name) {
                    assembly.change(&source, Change::Listed(seen));
                }
            }
            assembly.change(&source, Change::ListDone);
        }
        for (name, entry) in self.of(Kind::Secret) {
            if let Some(seen) = entry.seen(name) {
                assembly.change(&Source::Secret(name.clone()), Change::Applied(seen));
            }
        }
        self.tell_of_secrets(assembly);
    }

    /// Takes in changes, and tells.
    pub(super) fn change(&mut self, events: Vec<Event>, assembly: &mut Assembly) {
        for Event { what, kv } in events {
            let changed = match what {
                What::Put => self.put(kv),
                What::Delete => self.delete(&kv),
            };
            let Some((kind, name)) = changed else { continue };
            let source = match kind {
                Kind::Secret => Source::Secret(name.clone()),
                kind => Source::All(kind),
            };
            let seen = self.entries.get(&(kind, name.clone())).and_then(|entry| entry.seen(&name));
            assembly.change(&source, seen.map_or(Change::Deleted(name), Change::Applied));
        }
        self.tell_of_secrets(assembly);
    }

    /// Takes in keys that were read or written on their own; how the object is then, if it is there.
    pub(super) fn learn(
        &mut self,
        kind: Kind,
        name: &str,
        kvs: impl IntoIterator<Item = KeyValue>,
    ) -> Option<Seen> {
        kvs.into_iter().for_each(|kv| drop(self.put(kv)));
        self.seen(kind, name)
    }

    /// How an object is, if it is there.
    pub(super) fn seen(&self, kind: Kind, name: &str) -> Option<Seen> {
        self.entries.get(&(kind, name.to_owned()))?.seen(name)
    }

    /// How the keys of an object have to be, if it is there and has not changed since that version.
    pub(super) fn revisions(&self, kind: Kind, name: &str, version: &str) -> Option<Revisions> {
        let entry = self.entries.get(&(kind, name.to_owned()))?;
        let parts = [(Part::Declared, &entry.declared), (Part::Registered, &entry.registered)];
        let object: Vec<_> =
            parts.into_iter().filter_map(|(part, kept)| Some((part, kept.as_ref()?.0))).collect();
        let status = entry.status.as_ref().map_or(0, |(revision, _)| *revision);
        (!object.is_empty() && entry.revision.to_string() == version).then_some(Revisions { object, status })
    }

    fn of(&self, kind: Kind) -> impl Iterator<Item = (&String, &Entry)> {
        let all = self.entries.range((kind, String::new())..).take_while(move |((of, _), _)| *of == kind);
        all.map(|((_, name), entry)| (name, entry))
    }

    /// Secrets that are not there are listed, too.
    fn tell_of_secrets(&self, assembly: &mut Assembly) {
        for name in assembly.named_secrets() {
            let source = Source::Secret(name.clone());
            assembly.change(&source, Change::Listing);
            if let Some(seen) = self.seen(Kind::Secret, &name) {
                assembly.change(&source, Change::Listed(seen));
            }
            assembly.change(&source, Change::ListDone);
        }
    }

    /// The object whose key it is, if that is news.
    fn put(&mut self, kv: KeyValue) -> Option<(Kind, String)> {
        let (part, kind, name) = self.key(&kv)?;
        let entry = self.entries.entry((kind, name.clone())).or_default();
        if entry.revision_of(part).is_some_and(|known| known >= kv.mod_revision) {
            return None;
        }
        entry.revision = entry.revision.max(kv.mod_revision);
        match part {
            Part::Declared => entry.declared = Some((kv.mod_revision, object(kind, &name, &kv))),
            Part::Registered => entry.registered = Some((kv.mod_revision, object(kind, &name, &kv))),
            Part::Status => entry.status = Some((kv.mod_revision, kv.value.into())),
        }
        Some((kind, name))
    }

    fn delete(&mut self, kv: &KeyValue) -> Option<(Kind, String)> {
        let key @ (kind, _) = {
            let (part, kind, name) = self.key(kv)?;
            let entry = self.entries.get_mut(&(kind, name.clone()))?;
            if entry.revision_of(part)? >= kv.mod_revision {
                return None;
            }
            entry.revision = entry.revision.max(kv.mod_revision);
            match part {
                Part::Declared => entry.declared = None,
                Part::Registered => entry.registered = None,
                Part::Status => entry.status = None,
            }
            (kind, name)
        };
        debug_assert!(self.kinds.contains(&kind));
        let is_gone = self
            .entries
            .get(&key)
            .is_some_and(|e| e.declared.is_none() && e.registered.is_none() && e.status.is_none());
        if is_gone {
            self.entries.remove(&key);
        }
        Some(key)
    }

    fn key(&self, kv: &KeyValue) -> Option<(Part, Kind, String)> {
        let key @ (part, kind, _) = self.keys.read(&kv.key)?;
        (self.kinds.contains(&kind) && (part != Part::Registered || kind == Kind::Node)).then_some(key)
    }
}

impl Entry {
    fn revision_of(&self, part: Part) -> Option<i64> {
        match part {
            Part::Declared => self.declared.as_ref().map(|(revision, _)| *revision),
            Part::Registered => self.registered.as_ref().map(|(revision, _)| *revision),
            Part::Status => self.status.as_ref().map(|(revision, _)| *revision),
        }
    }

    fn seen(&self, name: &str) -> Option<Seen> {
        let registered = self.registered.as_ref().map(|(_, object)| object);
        let object = match (self.declared.as_ref().map(|(_, object)| object), registered) {
            (Some(Ok(Object::Node(node))), Some(Ok(Object::Node(own)))) => {
                Ok(Object::Node(Arc::new(merged(node, own))))
            }
            (declared, registered) => declared.or(registered)?.clone(),
        };
        // What is no JSON is refused like any other status that cannot be read.
        let status = self.status.as_ref().map(|(_, text)| {
            serde_json::from_slice(text)
                .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(text).into_owned()))
        });
        Some(Seen { name: name.to_owned(), version: self.revision.to_string(), object, status })
    }
}

/// What a key says of an object. Its `uid` and `generation` are those of the key.
fn object(kind: Kind, name: &str, kv: &KeyValue) -> Result<Object, Fault> {
    let fault = |field: Option<&str>, reason: String| {
        Fault::object(format!("{kind}/{name}"), field.map(str::to_owned), reason)
    };
    let mut tree: Value =
        serde_json::from_slice(&kv.value).map_err(|error| fault(None, format!("is no JSON: {error}")))?;
    if let Some(metadata) = tree.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("uid".to_owned(), kv.create_revision.to_string().into());
        metadata.insert("generation".to_owned(), kv.version.into());
    }
    let text = |field: &str| tree["metadata"][field].as_str().unwrap_or_default().to_owned();
    let full_name = match kind.is_namespaced() {
        true => format!("{}/{}", text("namespace"), text("name")),
        false => text("name"),
    };
    if tree["kind"] != json!(kind.name()) {
        return Err(fault(Some("kind"), format!("is not {kind}, as its key says")));
    }
    if full_name != name {
        return Err(fault(Some("metadata.name"), format!("is not {name}, as its key says")));
    }
    validate::check_object(&tree)
}

/// A Node that was applied, with what its agent says where nothing was.
fn merged(node: &Node, own: &Node) -> Node {
    let mut merged = node.clone();
    let both = |first: &Option<BTreeMap<String, String>>, then: &Option<BTreeMap<String, String>>| {
        let all: BTreeMap<_, _> =
            then.iter().chain(first).flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
        (!all.is_empty()).then_some(all)
    };
    merged.metadata.labels = both(&node.metadata.labels, &own.metadata.labels);
    merged.metadata.annotations = both(&node.metadata.annotations, &own.metadata.annotations);
    let generation = |node: &Node| node.metadata.generation.unwrap_or(0);
    merged.metadata.generation = Some(generation(node) + generation(own));
    let has_addresses = |node: &Node| node.status.as_ref().is_some_and(|status| status.addresses.is_some());
    if !has_addresses(node) {
        merged.status = own.status.clone();
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::objects::Role;

    struct Fixture {
        keys: Keys,
        mirror: Mirror,
        assembly: Assembly,
    }

    fn fixture(role: Role) -> Fixture {
        let keys = Keys::new("/fairlead");
        let mut kinds = role.kinds();
        if role == Role::Agent {
            kinds.push(Kind::Secret);
        }
        let mirror = Mirror::new(keys.clone(), kinds);
        Fixture { keys, mirror, assembly: Assembly::new(&role.kinds(), role == Role::Agent) }
    }

    impl Fixture {
        fn kv(&self, part: Part, kind: Kind, name: &str, revision: i64, value: &Value) -> KeyValue {
            KeyValue {
                key: self.keys.object(part, kind, name).into(),
                value: value.to_string().into(),
                create_revision: 1,
                mod_revision: revision,
                version: revision,
            }
        }

        fn tell(&mut self, what: What, kv: KeyValue) {
            self.mirror.change(vec![Event { what, kv }], &mut self.assembly);
        }
    }

    fn balancer(name: &str) -> Value {
        json!({"kind": "LoadBalancer", "metadata": {"name": name},
            "spec": {"ports": [{"port": 80}], "backends": [{"address": "10.0.0.1"}]}})
    }

    fn status() -> Value {
        json!({"addresses": [{"address": "192.0.2.1", "assignedAt": "2026-01-01T00:00:00Z"}], "backends": 1, "healthyBackends": 0})
    }

    #[test]
    fn an_object_is_what_its_keys_say_together() {
        let mut all = fixture(Role::Controller);
        let object = all.kv(Part::Declared, Kind::LoadBalancer, "web", 3, &balancer("web"));
        let given = all.kv(Part::Status, Kind::LoadBalancer, "web", 5, &status());
        let stray = all.kv(Part::Status, Kind::LoadBalancer, "gone", 4, &status());
        all.mirror.list(vec![given.clone(), stray, object], 6, &mut all.assembly);
        let declared = all.assembly.take().unwrap();
        assert_eq!(declared.load_balancers.keys().collect::<Vec<_>>(), ["web"]);
        assert_eq!(declared.statuses.load_balancers.keys().collect::<Vec<_>>(), ["web"]);
        assert_eq!(all.assembly.version(Kind::LoadBalancer, "web"), Some("5"));
        let want = Revisions { object: vec![(Part::Declared, 3)], status: 5 };
        assert_eq!(all.mirror.revisions(Kind::LoadBalancer, "web", "5"), Some(want));
        assert_eq!(all.mirror.revisions(Kind::LoadBalancer, "web", "4"), None, "it has changed since");
        // The watch tells of what is known already, and then of its end.
        all.tell(What::Put, given.clone());
        assert!(all.assembly.take().is_none());
        let object =
            KeyValue { mod_revision: 9, ..all.kv(Part::Declared, Kind::LoadBalancer, "web", 9, &json!(0)) };
        all.tell(What::Delete, object);
        assert!(all.assembly.take().unwrap().load_balancers.is_empty());
        assert_eq!(all.mirror.revisions(Kind::LoadBalancer, "web", "9"), None, "there is no object");
    }

    #[test]
    fn a_list_does_not_undo_a_write_that_is_newer() {
        let mut all = fixture(Role::Controller);
        let object = all.kv(Part::Declared, Kind::LoadBalancer, "web", 3, &balancer("web"));
        all.mirror.list(vec![object.clone()], 3, &mut all.assembly);
        let written = all.kv(Part::Status, Kind::LoadBalancer, "web", 5, &status());
        let seen = all.mirror.learn(Kind::LoadBalancer, "web", [written]).unwrap();
        all.assembly.wrote(Kind::LoadBalancer, seen);
        all.mirror.list(vec![object], 4, &mut all.assembly);
        assert!(all.assembly.take().unwrap().statuses.load_balancers.contains_key("web"));
        // Old news of the status are none.
        let old = all.kv(Part::Status, Kind::LoadBalancer, "web", 4, &json!({}));
        all.tell(What::Put, old);
        assert!(all.assembly.take().is_none());
    }

    #[test]
    fn a_node_is_what_was_applied_and_what_its_agent_says() {
        let mut all = fixture(Role::Agent);
        let own = json!({"kind": "Node", "metadata": {"name": "n1", "labels": {"rack": "a", "role": "lb"}},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.2"}]}});
        let own = all.kv(Part::Registered, Kind::Node, "n1", 2, &own);
        all.mirror.list(vec![own.clone()], 2, &mut all.assembly);
        let node = |all: &mut Fixture| {
            let node = Arc::clone(&all.assembly.take().unwrap().nodes["n1"]);
            let labels = node.metadata.labels.clone().unwrap();
            let addresses = crate::api::node::internal_ips(&node).map(|ip| ip.to_string()).collect();
            (labels.into_values().collect::<Vec<_>>(), addresses)
        };
        let (a, b, lb) = ("a".to_owned(), "b".to_owned(), "lb".to_owned());
        let addresses = vec!["10.0.0.2".to_owned()];
        assert_eq!(node(&mut all), (vec![a.clone(), lb.clone()], addresses.clone()));
        let applied = json!({"kind": "Node", "metadata": {"name": "n1", "labels": {"rack": "b"}}});
        let applied = all.kv(Part::Declared, Kind::Node, "n1", 4, &applied);
        all.tell(What::Put, applied.clone());
        assert_eq!(node(&mut all), (vec![b, lb.clone()], addresses.clone()));
        all.tell(What::Delete, KeyValue { mod_revision: 5, ..applied });
        assert_eq!(node(&mut all), (vec![a, lb], addresses));
        all.tell(What::Delete, KeyValue { mod_revision: 6, ..own });
        assert!(all.assembly.take().unwrap().nodes.is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_a_fault_of_its_object() {
        let mut all = fixture(Role::Controller);
        let good = all.kv(Part::Declared, Kind::LoadBalancer, "web", 2, &balancer("web"));
        let other = all.kv(Part::Declared, Kind::LoadBalancer, "other", 2, &balancer("web"));
        let broken =
            KeyValue { value: b"{".to_vec(), ..all.kv(Part::Declared, Kind::AddressPool, "p", 2, &json!(0)) };
        all.mirror.list(vec![good, other, broken], 2, &mut all.assembly);
        let declared = all.assembly.take().unwrap();
        assert_eq!(declared.load_balancers.keys().collect::<Vec<_>>(), ["web"]);
        let faults: Vec<_> = all.assembly.faults().iter().map(ToString::to_string).collect();
        assert!(faults[0].starts_with("AddressPool/p: is no JSON: "), "{faults:?}");
        assert_eq!(faults[1], "LoadBalancer/other: metadata.name: is not other, as its key says");
    }

    #[test]
    fn a_secret_that_is_not_there_keeps_nobody_waiting() {
        let mut all = fixture(Role::Agent);
        let peer = |name: &str| {
            json!({"kind": "BGPPeer", "metadata": {"name": name}, "spec": {
            "address": "10.0.0.1", "asn": 65000, "auth": {"md5SecretRef": {"name": name, "key": "k"}}}})
        };
        let secret =
            |text: &str| json!({"kind": "Secret", "metadata": {"name": "tor"}, "stringData": {"k": text}});
        let kvs = vec![
            all.kv(Part::Declared, Kind::BGPPeer, "tor", 2, &peer("tor")),
            all.kv(Part::Declared, Kind::BGPPeer, "bare", 2, &peer("bare")),
            all.kv(Part::Declared, Kind::Secret, "tor", 2, &secret("one")),
        ];
        all.mirror.list(kvs, 2, &mut all.assembly);
        let declared = all.assembly.take().unwrap();
        assert_eq!(declared.peers.keys().collect::<Vec<_>>(), ["tor"]);
        assert_eq!(declared.secrets["tor"].get("k"), Ok(&b"one"[..]));
        let next = all.kv(Part::Declared, Kind::Secret, "tor", 3, &secret("two"));
        all.tell(What::Put, next);
        assert_eq!(all.assembly.take().unwrap().secrets["tor"].get("k"), Ok(&b"two"[..]));
        assert!(!format!("{:?}", all.mirror).contains("two"));
    }
}
