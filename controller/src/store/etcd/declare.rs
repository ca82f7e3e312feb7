//! Writes what users declare: `fairlead apply` and `fairlead delete`. Each is one transaction: all of it, or nothing.
use super::{
    Access, EtcdError,
    client::List,
    keys::Part,
    wire::{Compare, delete, nested, put, txn},
};
use crate::{
    api::Kind,
    object::{Object, documents},
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Objects as they are written, by kind and name.
pub type Wanted = BTreeMap<(Kind, String), Value>;

/// Operations of one level of a transaction. etcd takes 128 (`--max-txn-ops`) along each way into nested transactions; three
/// levels of this many are within it.
const LEVEL: usize = 42;
/// Most operations of a transaction.
const MOST: usize = LEVEL * LEVEL * LEVEL;
/// How often it is begun anew when others write at the same time.
const ATTEMPTS: usize = 5;

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Objects that were made or changed, `KIND/NAME`.
    pub written: Vec<String>,
    /// Those that were so already.
    pub unchanged: usize,
    /// Those that were deleted.
    pub deleted: Vec<String>,
    /// Those that are in etcd, and that nobody asked for.
    pub left: Vec<String>,
}

/// Why nothing was done, or nobody knows.
#[derive(Debug, thiserror::Error)]
pub enum DeclareError {
    /// etcd has refused it: nothing was changed.
    #[error("nothing was changed: {0}")]
    Refused(EtcdError),
    /// etcd takes no transactions of this size: nothing was changed.
    #[error(
        "nothing was changed: {error}: {operations} operations with {bytes} bytes of keys and objects; etcd takes what its \
         --max-request-bytes says, 1572864 if nothing is said: raise that, or begin with a part of the files"
    )]
    TooLarge {
        /// What etcd has said.
        error: EtcdError,
        /// Operations of the transaction.
        operations: usize,
        /// Bytes of keys and values in it.
        bytes: usize,
    },
    /// It does not answer.
    #[error("nothing was changed: etcd was not reached: {0}")]
    Unreached(EtcdError),
    /// No answer to the write.
    #[error("it may have been written, or not: {0}; do it again")]
    Unknown(EtcdError),
    /// Others wrote at the same time, each time.
    #[error("nothing was changed: others declare something at the same time; do it again")]
    Busy,
    /// Too much for one transaction.
    #[error(
        "nothing was changed: {0} operations are more than {MOST}, which one transaction takes; begin with a part of the files"
    )]
    TooMany(usize),
}

impl DeclareError {
    /// What was asked before anything was written has come to this.
    fn before(error: EtcdError) -> Self {
        if error.is_answer() { DeclareError::Refused(error) } else { DeclareError::Unreached(error) }
    }
}

/// The objects of valid files, as they are written: without a status, but for the addresses of a Node.
pub fn wanted<'a>(texts: impl IntoIterator<Item = &'a str>) -> Wanted {
    /// What belongs to another store that an object came from.
    const FOREIGN: [&str; 5] = ["uid", "generation", "resourceVersion", "selfLink", "managedFields"];
    let mut wanted = Wanted::new();
    for (name, object, mut tree) in texts.into_iter().flat_map(documents) {
        let kind = object.kind();
        let Some(fields) = tree.as_object_mut() else { continue };
        let status = fields.remove("status");
        if let (Object::Node(_), Some(addresses)) =
            (&object, status.and_then(|s| s.get("addresses").cloned()))
        {
            fields.insert("status".to_owned(), json!({"addresses": addresses}));
        }
        fields.insert("apiVersion".to_owned(), kind.api_version().into());
        if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
            FOREIGN.iter().for_each(|field| drop(metadata.remove(*field)));
            if let (true, Some((namespace, _))) = (kind.is_namespaced(), name.split_once('/')) {
                metadata.insert("namespace".to_owned(), namespace.into());
            }
        }
        wanted.insert((kind, name), tree);
    }
    wanted
}

impl Access {
    /// Makes these objects so. With `prunes`, all others that were applied before are deleted, with their statuses.
    ///
    /// # Errors
    /// Nothing was changed, or ([`DeclareError::Unknown`]) nobody knows.
    pub async fn apply(&self, wanted: &Wanted, prunes: bool) -> Result<Done, DeclareError> {
        self.write(|known| {
            let (mut done, mut writes) = (Done::default(), Vec::new());
            for ((kind, name), tree) in wanted {
                let key = self.keys.object(Part::Declared, *kind, name);
                match known.get(&(*kind, name.clone())) {
                    Some(before) if before == tree => done.unchanged += 1,
                    _ => {
                        done.written.push(format!("{kind}/{name}"));
                        writes.push(put(&key, &tree.to_string(), None));
                    }
                }
            }
            for (kind, name) in known.keys().filter(|key| !wanted.contains_key(*key)) {
                if prunes {
                    done.deleted.push(format!("{kind}/{name}"));
                    writes.extend(self.deletion(*kind, name));
                } else {
                    done.left.push(format!("{kind}/{name}"));
                }
            }
            (done, writes)
        })
        .await
    }

    /// Deletes an object and what is known of it; of a node also what its agent said. Whether it was there.
    ///
    /// # Errors
    /// As of [`apply`](Self::apply).
    pub async fn delete(&self, kind: Kind, name: &str) -> Result<bool, DeclareError> {
        let registered = self.keys.object(Part::Registered, kind, name);
        let object = format!("{kind}/{name}");
        let is_registered = self.client.txn(&txn(&[Compare::Created(&registered, 0)], &[], &[])).await;
        let is_registered = !is_registered.map_err(DeclareError::before)?.succeeded;
        let done = self
            .write(|known| {
                if !known.contains_key(&(kind, name.to_owned())) && !is_registered {
                    return (Done::default(), Vec::new());
                }
                let mut writes = self.deletion(kind, name);
                if kind == Kind::Node {
                    let keys = [registered.clone(), self.keys.node_state(name), self.keys.node_lease(name)];
                    writes.extend(keys.iter().map(|key| delete(key)));
                }
                (Done { deleted: vec![object.clone()], ..Done::default() }, writes)
            })
            .await?;
        Ok(!done.deleted.is_empty())
    }

    /// What was applied, and the status of it. A Node that its agent has registered keeps what it was given.
    fn deletion(&self, kind: Kind, name: &str) -> Vec<Value> {
        let key = |part| self.keys.object(part, kind, name);
        let declared = delete(&key(Part::Declared));
        let status = key(Part::Status);
        let registered = key(Part::Registered);
        let status = nested(txn(&[Compare::Created(&registered, 0)], &[delete(&status)], &[]));
        vec![declared, status]
    }

    /// Reads what was applied, asks what to do, and does it, if nothing has changed meanwhile.
    async fn write(&self, plan: impl Fn(&Wanted) -> (Done, Vec<Value>)) -> Result<Done, DeclareError> {
        let prefix = self.keys.declared();
        for _ in 0..ATTEMPTS {
            let List { kvs, revision } = self.client.list(&prefix).await.map_err(DeclareError::before)?;
            let read = |kv: &super::wire::KeyValue| {
                let (_, kind, name) = self.keys.read(&kv.key)?;
                // What is no JSON is none that was wanted.
                Some(((kind, name), serde_json::from_slice(&kv.value).unwrap_or_default()))
            };
            let (done, writes) = plan(&kvs.iter().filter_map(read).collect());
            if writes.is_empty() {
                return Ok(done);
            }
            let (operations, bytes) = (writes.len(), writes.iter().map(bytes).sum());
            let mut writes = fold(writes).ok_or(DeclareError::TooMany(operations))?;
            // Deletions of others are seen by this.
            writes.push(put(&self.keys.generation(), "", None));
            let written = self.client.txn(&txn(&[Compare::Unchanged(&prefix, revision)], &writes, &[])).await;
            match written {
                Ok(answer) if answer.succeeded => return Ok(done),
                Ok(_) => {}
                Err(error) if error.is_too_large() => {
                    return Err(DeclareError::TooLarge { error, operations, bytes });
                }
                Err(error) if error.is_refused() => return Err(DeclareError::Refused(error)),
                Err(error) => return Err(DeclareError::Unknown(error)),
            }
        }
        Err(DeclareError::Busy)
    }
}

/// Bytes of key and value that an operation puts; they are base64 in it.
fn bytes(operation: &Value) -> usize {
    let put = &operation["request_put"];
    ["key", "value"].iter().filter_map(|field| put[*field].as_str()).map(|text| text.len() / 4 * 3).sum()
}

/// At most [`LEVEL`] operations that do all of these; none: they are too many.
fn fold(mut writes: Vec<Value>) -> Option<Vec<Value>> {
    if writes.len() > MOST {
        return None;
    }
    while writes.len() > LEVEL {
        writes = writes.chunks(LEVEL).map(|chunk| nested(txn(&[], chunk, &[]))).collect();
    }
    Some(writes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_was_declared() {
        let text = "kind: Service\nmetadata: {name: web, uid: x, generation: 7}\nspec: {ports: [{port: 80}]}\nstatus: {loadBalancer: {}}\n---\n\
                    kind: Node\nmetadata: {name: n1}\nstatus: {addresses: [{type: InternalIP, address: 10.0.0.2}], phase: x}\n---\n\
                    kind: Secret\nmetadata: {name: tor}\nstringData: {password: s3cret}\n";
        let wanted = wanted([text]);
        let json = |kind, name: &str| &wanted[&(kind, name.to_owned())];
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
            "spec": {"ports": [{"port": 80}]}});
        assert_eq!(*json(Kind::Service, "default/web"), service);
        let addresses = json!({"addresses": [{"type": "InternalIP", "address": "10.0.0.2"}]});
        assert_eq!(json(Kind::Node, "n1")["status"], addresses);
        assert_eq!(json(Kind::Secret, "tor")["stringData"], json!({"password": "s3cret"}));
    }

    #[test]
    fn many_operations_are_a_tree() {
        let depth = |count: usize| {
            let mut level = fold(vec![delete("/a"); count])?;
            let mut depth = 1;
            while let Some(next) = level[0]["request_txn"]["success"].as_array() {
                assert!(level.len() <= LEVEL);
                (level, depth) = (next.clone(), depth + 1);
            }
            Some(depth)
        };
        let counts = [1, LEVEL, LEVEL + 1, LEVEL * LEVEL, LEVEL * LEVEL + 1, MOST, MOST + 1];
        assert_eq!(counts.map(depth), [Some(1), Some(1), Some(2), Some(2), Some(3), Some(3), None]);
    }
}
