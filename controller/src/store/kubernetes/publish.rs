//! Writes a status to the API server, and says in an event what has changed.
use super::{Cluster, api, lock, patch::patch, raw::Raw, watching::seen};
use crate::{
    api::{
        Kind,
        service::{is_same_in_kubernetes, kubernetes_status},
    },
    store::{
        StoreError,
        objects::{
            REQUEST,
            plan::{News, ServiceForm, Write},
            publish::{Outcome, Target},
            snapshot::Seen,
        },
    },
};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::json;
use std::sync::Arc;
use tokio::{sync::mpsc, task::JoinSet, time::timeout};

/// Events that wait to be written; more are dropped.
const EVENTS: usize = 1024;
/// Who says what events say.
const REPORTER: &str = "fairlead.dev/controller";

/// An API server as what statuses are written to.
pub(super) struct ApiServer {
    cluster: Cluster,
    events: mpsc::Sender<(ObjectReference, News)>,
    /// Ends with it.
    _tasks: JoinSet<()>,
}

impl ApiServer {
    pub(super) fn new(cluster: Cluster, identity: &str) -> Self {
        let (events, mut waiting) = mpsc::channel::<(ObjectReference, News)>(EVENTS);
        let reporter = Reporter { controller: REPORTER.to_owned(), instance: Some(identity.to_owned()) };
        let recorder = Recorder::new(cluster.client.clone(), reporter);
        let mut tasks = JoinSet::new();
        let leads = Arc::clone(&cluster.shared);
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
                match timeout(REQUEST, recorder.publish(&event, &object)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "an event was not taken"),
                    Err(_) => tracing::debug!("an event took too long"),
                }
            }
        });
        ApiServer { cluster, events, _tasks: tasks }
    }

    async fn write(&self, write: &Write) -> Result<Raw, kube::Error> {
        let (api, name) = self.place(write);
        let parameters = PatchParams::default();
        let body = patch(write, lock(&self.cluster.shared.assembly).node(&write.name));
        let patch = match write.kind {
            // Others have conditions there: they are merged by type.
            Kind::Service => Patch::Strategic(&body),
            _ => Patch::Merge(&body),
        };
        let written = async {
            match write.kind {
                Kind::Node => api.patch(name, &parameters, &patch).await,
                _ => api.patch_status(name, &parameters, &patch).await,
            }
        };
        timeout(REQUEST, written).await.unwrap_or_else(|late| Err(kube::Error::Service(late.into())))
    }

    /// Reads an object that is not as we thought; that it is gone the watch will say.
    async fn read(&self, write: &Write) -> Result<Option<Box<Seen>>, kube::Error> {
        let (api, name) = self.place(write);
        let read = timeout(REQUEST, api.get_opt(name)).await;
        let read = read.unwrap_or_else(|late| Err(kube::Error::Service(late.into())))?;
        Ok(read.map(|object| self.seen(write.kind, object)))
    }

    fn seen(&self, kind: Kind, object: Raw) -> Box<Seen> {
        Box::new(seen(kind, object, self.cluster.is_default_class))
    }

    fn place<'a>(&self, write: &'a Write) -> (kube::Api<Raw>, &'a str) {
        let (namespace, name) = split(write.kind, &write.name);
        (api(self.cluster.client.clone(), write.kind, namespace), name)
    }

    /// Says what has changed to who looks at the object's events.
    fn tell(&self, write: &Write, object: &Raw) {
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

impl Target for ApiServer {
    const SERVICE: ServiceForm =
        ServiceForm { written: |status| json!(kubernetes_status(status)), is_same: is_same_in_kubernetes };

    async fn send(&self, write: &Write) -> Outcome {
        let failed = |source| StoreError::Api { object: write.object(), source: Box::new(source) };
        match self.write(write).await {
            Ok(written) => {
                self.tell(write, &written);
                Outcome::Done(self.seen(write.kind, written))
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                self.read(write).await.map_or_else(|error| Outcome::Refused(failed(error)), Outcome::Changed)
            }
            // 5xx may come from a proxy, or after the write itself.
            Err(kube::Error::Api(status)) if status.code < 500 => {
                Outcome::Refused(failed(kube::Error::Api(status)))
            }
            Err(error) => Outcome::Unknown(failed(error)),
        }
    }
}

fn split(kind: Kind, name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((namespace, name)) if kind.is_namespaced() => (Some(namespace), name),
        _ => (None, name),
    }
}
