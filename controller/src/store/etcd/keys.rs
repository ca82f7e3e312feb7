//! Where everything is in etcd. Pure.
//!
//! ```text
//! PREFIX/v1alpha1/objects/declared/KIND/[NAMESPACE/]NAME   an object as it was applied, JSON
//! PREFIX/v1alpha1/objects/declared/generation              written by each `fairlead apply` and `delete`
//! PREFIX/v1alpha1/objects/registered/Node/NAME             a Node as its agent says it is, JSON
//! PREFIX/v1alpha1/objects/status/KIND/[NAMESPACE/]NAME     the status of an object, JSON; written by who leads
//! PREFIX/v1alpha1/nodes/state/NAME                         the NodeState of a node, JSON; written by its agent
//! PREFIX/v1alpha1/nodes/lease/NAME                         that the agent is there: goes with its lease
//! PREFIX/v1alpha1/leader/LEASE                             one that stands for the lead; the oldest key leads
//! ```
use crate::api::Kind;
use std::sync::Arc;

/// Where keys begin where nothing else is said.
pub const DEFAULT_PREFIX: &str = "/fairlead";

/// Who writes a key of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// `fairlead apply`.
    Declared,
    /// The agent of a node.
    Registered,
    /// The controller that leads.
    Status,
}

impl Part {
    pub(super) const ALL: [Part; 3] = [Part::Declared, Part::Registered, Part::Status];

    const fn folder(self) -> &'static str {
        match self {
            Part::Declared => "declared",
            Part::Registered => "registered",
            Part::Status => "status",
        }
    }
}

/// The keys below a prefix. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Keys(Arc<str>);

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Keys(format!("{}/v1alpha1", prefix.trim_end_matches('/')).into())
    }

    /// All objects.
    pub(super) fn objects(&self) -> String {
        format!("{}/objects/", self.0)
    }

    /// All that was applied.
    pub(super) fn declared(&self) -> String {
        format!("{}declared/", self.objects())
    }

    /// Written whenever something below [`declared`](Self::declared) is written or deleted.
    pub(super) fn generation(&self) -> String {
        format!("{}generation", self.declared())
    }

    pub(super) fn object(&self, part: Part, kind: Kind, name: &str) -> String {
        format!("{}{}/{kind}/{name}", self.objects(), part.folder())
    }

    /// Of which object a key is; none: it is none of an object.
    pub(super) fn read(&self, key: &[u8]) -> Option<(Part, Kind, String)> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(&self.objects())?;
        let (folder, rest) = rest.split_once('/')?;
        let (kind, name) = rest.split_once('/')?;
        let part = Part::ALL.into_iter().find(|part| part.folder() == folder)?;
        let kind = Kind::ALL.into_iter().find(|known| known.name() == kind)?;
        (name.contains('/') == kind.is_namespaced() && kind.is_declared())
            .then(|| (part, kind, name.to_owned()))
    }

    /// What agents tell.
    pub(super) fn nodes(&self) -> String {
        format!("{}/nodes/", self.0)
    }

    pub(super) fn node_state(&self, name: &str) -> String {
        format!("{}state/{name}", self.nodes())
    }

    pub(super) fn node_lease(&self, name: &str) -> String {
        format!("{}lease/{name}", self.nodes())
    }

    /// Of which node a key is, and whether it is its state; else that it is there.
    pub(super) fn read_node(&self, key: &[u8]) -> Option<(String, bool)> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(&self.nodes())?;
        match rest.split_once('/')? {
            ("state", name) => Some((name.to_owned(), true)),
            ("lease", name) => Some((name.to_owned(), false)),
            _ => None,
        }
    }

    /// Those that stand for the lead.
    pub(super) fn leader(&self) -> String {
        format!("{}/leader/", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_made() {
        let keys = Keys::new("/fairlead/");
        let service = keys.object(Part::Declared, Kind::Service, "default/web");
        assert_eq!(service, "/fairlead/v1alpha1/objects/declared/Service/default/web");
        let read = |key: &str| keys.read(key.as_bytes());
        assert_eq!(read(&service), Some((Part::Declared, Kind::Service, "default/web".to_owned())));
        for part in Part::ALL {
            let key = keys.object(part, Kind::Node, "n1.example");
            assert_eq!(read(&key), Some((part, Kind::Node, "n1.example".to_owned())));
        }
        assert_eq!(read(&keys.generation()), None);
        assert_eq!(read(&keys.object(Part::Status, Kind::Service, "web")), None, "of no namespace");
        assert_eq!(read(&keys.object(Part::Declared, Kind::NodeState, "n1")), None, "not declared");
        assert_eq!(read("/fairlead/v1alpha1/objects/declared/Pod/a"), None);
        assert_eq!(keys.read(&[0xff]), None);
    }
}
