//! Writes a status to etcd: in one transaction, if we still lead and the keys of the object are still as they were.
use super::{
    EtcdError,
    client::Client,
    keys::{Keys, Part},
    leader::Standing,
    mirror::{Mirror, Revisions},
    wire::{Compare, KeyValue, get, put, txn},
};
use crate::store::{
    StoreError,
    objects::{
        lock,
        plan::{ServiceForm, Write},
        publish::{Outcome, Target},
    },
};
use std::sync::{Arc, Mutex};

/// etcd as what statuses are written to.
pub(super) struct Etcd {
    pub(super) client: Client,
    pub(super) keys: Keys,
    pub(super) mirror: Arc<Mutex<Mirror>>,
    pub(super) standing: Standing,
}

impl Target for Etcd {
    const SERVICE: ServiceForm = ServiceForm::PLAIN;

    async fn send(&self, write: &Write) -> Outcome {
        let Some(term) = self.standing.term() else { return Outcome::Refused(StoreError::NotLeader) };
        let Write { kind, name, version, after, .. } = write;
        let (revisions, seen) = {
            let mirror = lock(&self.mirror);
            (mirror.revisions(*kind, name, version), mirror.seen(*kind, name))
        };
        let Some(Revisions { object, status: revision }) = revisions else {
            return Outcome::Changed(seen.map(Box::new));
        };
        let key = |part| self.keys.object(part, *kind, name);
        let (status, text) = (key(Part::Status), after.to_string());
        let object: Vec<_> = object.into_iter().map(|(part, revision)| (key(part), revision)).collect();
        let mut compare = vec![term.fence(), Compare::Modified(&status, revision)];
        compare.extend(object.iter().map(|(key, revision)| Compare::Modified(key, *revision)));
        let read = Part::ALL.map(|part| get(&key(part)));
        let answer = self.client.txn(&txn(&compare, &[put(&status, &text, None)], &read)).await;
        let failed = |source| StoreError::Etcd { object: write.object(), source };
        match answer {
            Ok(answer) if answer.succeeded => {
                for news in &write.news {
                    let object = write.object();
                    match news.is_warning {
                        true => tracing::warn!(object, reason = news.reason, message = news.message),
                        false => tracing::info!(object, reason = news.reason, message = news.message),
                    }
                }
                let written = KeyValue {
                    key: status.into(),
                    value: text.into(),
                    mod_revision: answer.header.revision,
                    ..KeyValue::default()
                };
                match lock(&self.mirror).learn(*kind, name, [written]) {
                    Some(seen) => Outcome::Done(Box::new(seen)),
                    // It has gone since, and the watch has said so.
                    None => Outcome::Changed(None),
                }
            }
            Ok(answer) => Outcome::Changed(lock(&self.mirror).learn(*kind, name, answer.kvs()).map(Box::new)),
            Err(error) if EtcdError::is_refused(&error) => Outcome::Refused(failed(error)),
            Err(error) => Outcome::Unknown(failed(error)),
        }
    }
}
