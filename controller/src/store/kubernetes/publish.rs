//! Writes statuses: step by step as [`plan`](super::plan) says, many at a time within a step, each under the condition
//! that the object is still as we know it.
//!
//! A write whose answer is lost may have gone through. Until that is known nothing else is written: a later snapshot that
//! does not know of an address would give it again. It is sent once more, as it was: either the API server takes it, or it
//! refuses it because the object is another one by now, and tells which.
use super::{
    Shared, api, lock,
    plan::{self, News, Step, Write},
    watching::seen,
};
use crate::{api::Kind, host, status::StatusSet, store::StoreError};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    api::{DynamicObject, Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
    time::timeout,
};

/// Writes on their way at once.
const AT_ONCE: usize = 16;
/// How long a write may take; see [`lease`](super::lease).
const WRITE: Duration = super::lease::REQUEST;
/// Events that wait to be written; more are dropped.
const EVENTS: usize = 1024;
/// Who says what events say.
const REPORTER: &str = "fairlead.dev/controller";

/// Writes for one process, one set after the other.
pub(super) struct Publisher {
    client: Client,
    shared: Arc<Shared>,
    /// Writes that may have gone through.
    unknown: Mutex<Vec<Write>>,
    events: mpsc::Sender<(ObjectReference, News)>,
    /// Ends with the publisher.
    _tasks: JoinSet<()>,
}

/// What became of a write.
enum Outcome {
    /// The object is so now.
    Done(Box<DynamicObject>),
    /// The API server has said no.
    Refused(kube::Error),
    /// Nobody knows.
    Unknown(kube::Error),
}

impl Publisher {
    pub(super) fn new(client: Client, identity: &str, shared: Arc<Shared>) -> Self {
        let (events, mut waiting) = mpsc::channel::<(ObjectReference, News)>(EVENTS);
        let reporter = Reporter { controller: REPORTER.to_owned(), instance: Some(identity.to_owned()) };
        let recorder = Recorder::new(client.clone(), reporter);
        let mut tasks = JoinSet::new();
        let leads = Arc::clone(&shared);
        tasks.spawn(async move {
            while let Some((object, news)) = waiting.recv().await {
                // Others may have other news by now.
                if leads.leads_for().is_none() {
                    continue;
                }
                let event = Event {
                    type_: if news.is_warning { EventType::Warning } else { EventType::Normal },
                    reason: news.reason,
                    note: Some(news.message),
                    action: "Reconcile".to_owned(),
                    secondary: None,
                };
                match timeout(WRITE, recorder.publish(&event, &object)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "an event was not taken"),
                    Err(_) => tracing::debug!("an event took too long"),
                }
            }
        });
        Publisher { client, shared, unknown: Mutex::default(), events, _tasks: tasks }
    }

    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Writes what differs. What was written has come back in a snapshot when this returns.
    pub(super) async fn publish(&self, statuses: &StatusSet) -> Result<(), StoreError> {
        let mut unknown = self.unknown.lock().await;
        if !unknown.is_empty() {
            // What was computed without knowing what became of them is not written.
            let settled = self.write_all(std::mem::take(&mut *unknown), &mut unknown).await;
            self.shared.give_out();
            return settled;
        }
        for step in Step::ALL {
            let now = host::now();
            let writes = plan::plan(step, &lock(&self.shared.assembly), statuses, now);
            if writes.is_empty() {
                continue;
            }
            let written = self.write_all(writes, &mut unknown).await;
            self.shared.give_out();
            written?;
        }
        lock(&self.shared.assembly).published(statuses);
        self.shared.give_out();
        Ok(())
    }

    /// Writes; after the first failure nothing more is begun. Those of which nobody knows are added to `unknown`.
    async fn write_all(&self, writes: Vec<Write>, unknown: &mut Vec<Write>) -> Result<(), StoreError> {
        let failed = AtomicBool::new(false);
        let one = |write: Write| {
            let failed = &failed;
            async move {
                if failed.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                let result = self.write(write).await;
                failed.fetch_or(!matches!(result, Ok(None)), Ordering::Relaxed);
                result
            }
        };
        let mut first = Ok(());
        let mut results = stream::iter(writes).map(one).buffer_unordered(AT_ONCE);
        while let Some(result) = results.next().await {
            let error = match result {
                Ok(None) => continue,
                Ok(Some((write, error))) => {
                    unknown.push(write);
                    error
                }
                Err(error) => error,
            };
            first = first.and(Err(error));
        }
        first
    }

    /// Writes one; if nobody knows what became of it, gives it back.
    async fn write(&self, write: Write) -> Result<Option<(Write, StoreError)>, StoreError> {
        if self.shared.leads_for().is_none() {
            return Err(StoreError::NotLeader);
        }
        let object = format!("{}/{}", write.kind, write.name);
        let outcome = self.send(&write).await;
        self.shared.metrics.wrote(matches!(outcome, Outcome::Done(_)));
        match outcome {
            Outcome::Done(written) => {
                self.tell(&write, &written);
                lock(&self.shared.assembly)
                    .wrote(write.kind, seen(write.kind, *written, self.shared.is_default_class));
                Ok(None)
            }
            Outcome::Refused(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                self.refresh(&write).await?;
                Err(StoreError::Changed { object })
            }
            Outcome::Refused(source) => Err(StoreError::Api { object, source: Box::new(source) }),
            Outcome::Unknown(source) => {
                Ok(Some((write, StoreError::Api { object, source: Box::new(source) })))
            }
        }
    }

    async fn send(&self, write: &Write) -> Outcome {
        let (api, name) = self.place(write);
        let parameters = PatchParams::default();
        let patch = match write.kind {
            // Others have conditions there: they are merged by type.
            Kind::Service => Patch::Strategic(&write.patch),
            _ => Patch::Merge(&write.patch),
        };
        let written = async {
            match write.kind {
                Kind::Node => api.patch(name, &parameters, &patch).await,
                _ => api.patch_status(name, &parameters, &patch).await,
            }
        };
        match timeout(WRITE, written).await {
            Ok(Ok(object)) => Outcome::Done(Box::new(object)),
            // 5xx may come from a proxy, or after the write itself.
            Ok(Err(kube::Error::Api(status))) if status.code < 500 => {
                Outcome::Refused(kube::Error::Api(status))
            }
            Ok(Err(error)) => Outcome::Unknown(error),
            Err(late) => Outcome::Unknown(kube::Error::Service(late.into())),
        }
    }

    /// Reads an object that is not as we thought.
    async fn refresh(&self, write: &Write) -> Result<(), StoreError> {
        let (api, name) = self.place(write);
        let failed = |source| StoreError::Api {
            object: format!("{}/{}", write.kind, write.name),
            source: Box::new(source),
        };
        let read = timeout(WRITE, api.get_opt(name)).await;
        let read = read.map_err(|late| failed(kube::Error::Service(late.into())))?;
        // That it is gone the watch will say.
        if let Some(object) = read.map_err(failed)? {
            lock(&self.shared.assembly)
                .wrote(write.kind, seen(write.kind, object, self.shared.is_default_class));
        }
        Ok(())
    }

    fn place<'a>(&self, write: &'a Write) -> (kube::Api<DynamicObject>, &'a str) {
        let (namespace, name) = split(write.kind, &write.name);
        (api(self.client.clone(), write.kind, namespace), name)
    }

    /// Says what has changed to who looks at the object's events.
    fn tell(&self, write: &Write, object: &DynamicObject) {
        let (namespace, name) = split(write.kind, &write.name);
        for news in &write.news {
            let reference = ObjectReference {
                api_version: Some(write.kind.api_version().to_owned()),
                kind: Some(write.kind.name()),
                name: Some(name.to_owned()),
                namespace: namespace.map(ToOwned::to_owned),
                uid: object.metadata.uid.clone(),
                ..ObjectReference::default()
            };
            if self.events.try_send((reference, news.clone())).is_err() {
                tracing::debug!("an event was dropped: too many wait");
            }
        }
    }
}

fn split(kind: Kind, name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((namespace, name)) if kind.is_namespaced() => (Some(namespace), name),
        _ => (None, name),
    }
}
