//! Does what was planned, many writes at a time, for as long as this process leads. A write that fails is planned again.
use super::{
    super::{Shared, raw::Raw},
    kept::{Kept, ServiceExport, ServiceImport},
    link::resource,
    objects::Objects,
    plan::{Existing, Write, Written},
};
use crate::{
    api::{ClusterLink, EndpointSlice},
    store::objects::REQUEST,
};
use futures::{StreamExt, stream};
use k8s_openapi::api::discovery::v1::EndpointSlice as KubernetesSlice;
use kube::{
    Api, Client, Error,
    api::{ApiResource, DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};

/// Writes on their way at once.
pub(super) const AT_ONCE: usize = 16;
/// What was written to a slice comes back in a snapshot within this; until then it is not written again.
const COMES_BACK: Duration = Duration::from_secs(2);

/// Writes to the API server of this cluster.
pub(super) struct Writer {
    client: Client,
    shared: Arc<Shared>,
    exports: Objects<ServiceExport>,
    imports: Objects<ServiceImport>,
    /// What was written to ServiceImports and not kept so.
    pub(super) written: Written,
    /// Slices that were written a moment ago; none: deleted.
    recent: BTreeMap<String, (Instant, Option<Arc<EndpointSlice>>)>,
}

impl Writer {
    pub(super) fn new(
        client: Client,
        shared: Arc<Shared>,
        exports: Objects<ServiceExport>,
        imports: Objects<ServiceImport>,
    ) -> Self {
        Writer { client, shared, exports, imports, written: Written::new(), recent: BTreeMap::new() }
    }

    /// Does the writes; the first error.
    ///
    /// # Errors
    /// What the API server said to one of them; the others are done.
    pub(super) async fn write(
        &mut self,
        mut writes: Vec<Write>,
        existing: Existing<'_>,
    ) -> Result<(), String> {
        let now = Instant::now();
        let known = |name: &String| existing.slices.get(name);
        self.recent.retain(|name, (at, slice)| now - *at < COMES_BACK && known(name) != slice.as_ref());
        writes.retain(|write| match (write, slice_name(write)) {
            (Write::DeleteSlice(_), Some(name)) => !matches!(self.recent.get(&name), Some((_, None))),
            (Write::CreateSlice(slice) | Write::ReplaceSlice(slice), Some(name)) => {
                self.recent.get(&name).is_none_or(|(_, recent)| recent.as_ref() != Some(slice))
            }
            _ => true,
        });
        let mut first = Ok(());
        let this = &*self;
        let one = |write: Write| async move {
            if this.shared.leads_for().is_none() {
                return (write, Err("this process leads no more".to_owned()));
            }
            let done = match timeout(REQUEST, this.send(&write)).await {
                Ok(Ok(written)) => Ok(written),
                // It is so already, or another one by now: a watch tells.
                Ok(Err(Error::Api(status))) if matches!(status.code, 404 | 409) => Ok(None),
                Ok(Err(error)) => Err(error.to_string()),
                Err(late) => Err(late.to_string()),
            };
            this.shared.metrics.wrote(done.is_ok());
            (write, done)
        };
        let results: Vec<_> = stream::iter(writes).map(one).buffer_unordered(AT_ONCE).collect().await;
        for (write, done) in results {
            match done {
                Ok(written) => self.note(write, written, now),
                Err(error) => first = first.and(Err(error)),
            }
        }
        first
    }

    /// Remembers what was written.
    fn note(&mut self, write: Write, written: Option<Raw>, now: Instant) {
        match (write, written) {
            (Write::CreateImport(name, wanted) | Write::ReplaceImport(name, wanted, _), Some(object)) => {
                let made = Kept::<ServiceImport>::from(&object);
                match made.rest.import.is_like(&wanted) {
                    true => drop(self.written.remove(&name)),
                    false => drop(self.written.insert(name, (made.version, wanted))),
                }
                self.imports.wrote(&object);
            }
            (Write::ImportStatus(name, _), Some(object)) => {
                // A status is a new version of the same object.
                if let Some((version, _)) = self.written.get_mut(&name) {
                    *version = object.metadata.resource_version.as_deref().unwrap_or_default().into();
                }
                self.imports.wrote(&object);
            }
            (Write::DeleteImport(name), _) => drop(self.written.remove(&name)),
            (Write::ExportStatus(..), Some(object)) => self.exports.wrote(&object),
            (Write::CreateSlice(slice) | Write::ReplaceSlice(slice), _) => {
                let name = slice_name(&Write::CreateSlice(Arc::clone(&slice))).unwrap_or_default();
                self.recent.insert(name, (now, Some(slice)));
            }
            (Write::DeleteSlice(name), _) => drop(self.recent.insert(name, (now, None))),
            _ => {}
        }
    }

    async fn send(&self, write: &Write) -> Result<Option<Raw>, Error> {
        let (create, delete) = (PostParams::default(), DeleteParams::default());
        match write {
            Write::CreateImport(name, import) => {
                let (namespace, _) = split(name);
                let object = dynamic(&import.object(name))?;
                self.mcs("ServiceImport", namespace).create(&create, &object).await.map(Some)
            }
            Write::ReplaceImport(full, import, version) => {
                let (namespace, name) = split(full);
                let mut object = dynamic(&import.object(full))?;
                object.metadata.resource_version = Some(version.to_string());
                self.mcs("ServiceImport", namespace).replace(name, &create, &object).await.map(Some)
            }
            Write::DeleteImport(name) => {
                let (namespace, name) = split(name);
                self.mcs("ServiceImport", namespace).delete(name, &delete).await.map(|_| None)
            }
            Write::ImportStatus(name, status) => self.status("ServiceImport", name, status).await.map(Some),
            Write::ExportStatus(name, status) => self.status("ServiceExport", name, status).await.map(Some),
            Write::CreateSlice(slice) => {
                self.slices(slice).create(&create, &dynamic(&json!(**slice))?).await.map(|_| None)
            }
            Write::ReplaceSlice(slice) => {
                let object = dynamic(&json!(**slice))?;
                self.slices(slice).replace(&slice.metadata.name, &create, &object).await.map(|_| None)
            }
            Write::DeleteSlice(name) => {
                let (namespace, name) = split(name);
                let slices: Api<KubernetesSlice> = Api::namespaced(self.client.clone(), namespace);
                slices.delete(name, &delete).await.map(|_| None)
            }
            Write::LinkStatus(name, patch) => {
                let links: Api<ClusterLink> = Api::all(self.client.clone());
                let patch = Patch::Merge(json!({"status": patch}));
                links.patch_status(name, &PatchParams::default(), &patch).await.map(|_| None)
            }
        }
    }

    async fn status(&self, kind: &str, name: &str, status: &Value) -> Result<Raw, Error> {
        let (namespace, name) = split(name);
        let patch = Patch::Merge(json!({"status": status}));
        self.mcs(kind, namespace).patch_status(name, &PatchParams::default(), &patch).await
    }

    fn mcs(&self, kind: &str, namespace: &str) -> Api<Raw> {
        Api::namespaced_with(self.client.clone(), namespace, &resource(kind))
    }

    fn slices(&self, slice: &EndpointSlice) -> Api<Raw> {
        let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
        Api::namespaced_with(self.client.clone(), namespace, &ApiResource::erase::<KubernetesSlice>(&()))
    }
}

fn dynamic(object: &Value) -> Result<Raw, Error> {
    serde_json::from_value(object.clone()).map_err(Error::SerdeError)
}

fn split(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or(("", name))
}

/// `NAMESPACE/NAME` of the slice that is written.
fn slice_name(write: &Write) -> Option<String> {
    match write {
        Write::CreateSlice(slice) | Write::ReplaceSlice(slice) => {
            let metadata = &slice.metadata;
            Some([metadata.namespace.as_deref().unwrap_or_default(), "/", &*metadata.name].concat())
        }
        Write::DeleteSlice(name) => Some(name.clone()),
        _ => None,
    }
}
