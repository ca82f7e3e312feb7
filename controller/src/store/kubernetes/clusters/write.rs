//! Does what was planned, many writes at a time, for as long as this process leads. A write that fails is planned again.
use super::{
    super::{Shared, raw::Raw},
    kept::{Kept, ServiceExport, ServiceImport},
    link::resource,
    objects::Objects,
    plan::{Existing, Write, Written},
    sent::{self, Sent, portion, sent, split},
};
use crate::api::{ClusterLink, EndpointSlice};
use futures::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice as KubernetesSlice;
use kube::{
    Api, Client, Error, Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    core::request::{self, Request},
};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use std::{collections::BTreeMap, pin::pin, sync::Arc, time::Duration};
use tokio::time::Instant;

/// What was written to a slice comes back in a snapshot within this; until then it is not written again.
const COMES_BACK: Duration = Duration::from_secs(2);

/// Writes to the API server of this cluster, and what has come of that.
pub(super) struct Writer {
    client: Client,
    shared: Arc<Shared>,
    notes: Notes,
    /// How the last pass ended.
    last: Last,
}

/// How a pass ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Last {
    /// All was written.
    #[default]
    Done,
    /// There are more writes.
    More,
    /// Some writes have failed.
    Failed,
}

/// What was written.
struct Notes {
    exports: Objects<Kept<ServiceExport>>,
    imports: Objects<Kept<ServiceImport>>,
    /// What was written to ServiceImports and not kept so.
    written: Written,
    /// Slices that were written a moment ago; none: deleted.
    recent: BTreeMap<String, (Instant, Option<Arc<EndpointSlice>>)>,
}

impl Writer {
    pub(super) fn new(
        client: Client,
        shared: Arc<Shared>,
        exports: Objects<Kept<ServiceExport>>,
        imports: Objects<Kept<ServiceImport>>,
    ) -> Self {
        let notes = Notes { exports, imports, written: Written::new(), recent: BTreeMap::new() };
        Writer { client, shared, notes, last: Last::default() }
    }

    /// What was written to ServiceImports and not kept so.
    pub(super) fn written(&self) -> &Written {
        &self.notes.written
    }

    /// Whether there is more to write, although nothing has changed.
    pub(super) fn has_more(&self) -> bool {
        self.last == Last::More
    }

    /// Does the first of the writes; the first error.
    ///
    /// # Errors
    /// What the API server said to one of them; the others are done.
    pub(super) async fn write(
        &mut self,
        mut writes: Vec<Write>,
        existing: Existing<'_>,
    ) -> Result<(), String> {
        let Writer { client, shared, notes, last } = self;
        let now = Instant::now();
        let known = |name: &String| existing.slices.get(name);
        notes.recent.retain(|name, (at, slice)| now - *at < COMES_BACK && known(name) != slice.as_ref());
        writes.retain(|write| match (write, slice_name(write)) {
            (Write::DeleteSlice(_), Some(name)) => !matches!(notes.recent.get(&name), Some((_, None))),
            (Write::CreateSlice(slice) | Write::ReplaceSlice(slice), Some(name)) => {
                notes.recent.get(&name).is_none_or(|(_, recent)| recent.as_ref() != Some(slice))
            }
            _ => true,
        });
        // What fails again and again must not keep back the rest.
        let has_more = *last != Last::Failed && portion(&mut writes);
        let mut results = pin!(sent(client, shared, writes));
        let mut first = Ok(());
        while let Some((write, done)) = results.next().await {
            match done {
                Ok(written) => notes.note(write, written, now),
                // What is so already is as good as written.
                Err(failure) => match failure.into_trouble() {
                    Ok(()) => notes.note(write, None, now),
                    trouble => first = first.and(trouble),
                },
            }
        }
        *last = match (&first, has_more) {
            (Err(_), _) => Last::Failed,
            (Ok(()), true) => Last::More,
            (Ok(()), false) => Last::Done,
        };
        first
    }
}

impl Notes {
    /// Remembers what was written.
    fn note(&mut self, write: Write, written: Option<Raw>, now: Instant) {
        match (write, written) {
            (Write::CreateImport(name, wanted) | Write::ReplaceImport(name, wanted, _), Some(object)) => {
                let made = Kept::<ServiceImport>::from(&object);
                match made.rest.import.is_like(&wanted) {
                    true => drop(self.written.remove(&name)),
                    false => drop(self.written.insert(name.clone(), (made.version.clone(), wanted))),
                }
                self.imports.wrote(name, made);
            }
            (Write::ImportStatus(name, _), Some(object)) => {
                // A status is a new version of the same object.
                let made = Kept::from(&object);
                if let Some((version, _)) = self.written.get_mut(&name) {
                    version.clone_from(&made.version);
                }
                self.imports.wrote(name, made);
            }
            (Write::DeleteImport(name), _) => drop(self.written.remove(&name)),
            (Write::ExportStatus(name, _), Some(object)) => self.exports.wrote(name, Kept::from(&object)),
            (Write::CreateSlice(slice) | Write::ReplaceSlice(slice), _) => {
                let name = slice_name(&Write::CreateSlice(Arc::clone(&slice))).unwrap_or_default();
                self.recent.insert(name, (now, Some(slice)));
            }
            (Write::DeleteSlice(name), _) => drop(self.recent.insert(name, (now, None))),
            _ => {}
        }
    }
}

impl Sent for Write {
    async fn send(&self, client: &Client) -> Result<Option<Raw>, Error> {
        let (create, delete) = (PostParams::default(), DeleteParams::default());
        match self {
            Write::CreateImport(name, import) => {
                let (namespace, _) = split(name);
                let object = sent::object(import.object(name))?;
                mcs(client, "ServiceImport", namespace).create(&create, &object).await.map(Some)
            }
            Write::ReplaceImport(full, import, version) => {
                let (namespace, name) = split(full);
                let mut object = sent::object(import.object(full))?;
                object.metadata.resource_version = Some(version.to_string());
                mcs(client, "ServiceImport", namespace).replace(name, &create, &object).await.map(Some)
            }
            Write::DeleteImport(name) => {
                let (namespace, name) = split(name);
                mcs(client, "ServiceImport", namespace).delete(name, &delete).await.map(|_| None)
            }
            Write::ImportStatus(name, status) => {
                patch_status(client, "ServiceImport", name, status).await.map(Some)
            }
            Write::ExportStatus(name, status) => {
                patch_status(client, "ServiceExport", name, status).await.map(Some)
            }
            Write::CreateSlice(slice) => ask(client, slices(slice).create(&create, text(slice)?)).await,
            Write::ReplaceSlice(slice) => {
                let name = &slice.metadata.name;
                ask(client, slices(slice).replace(name, &create, text(slice)?)).await
            }
            Write::DeleteSlice(name) => {
                let (namespace, name) = split(name);
                let slices: Api<KubernetesSlice> = Api::namespaced(client.clone(), namespace);
                slices.delete(name, &delete).await.map(|_| None)
            }
            Write::LinkStatus(name, patch) => {
                let links: Api<ClusterLink> = Api::all(client.clone());
                let patch = Patch::Merge(json!({"status": patch}));
                links.patch_status(name, &PatchParams::default(), &patch).await.map(|_| None)
            }
        }
    }
}

async fn patch_status(client: &Client, kind: &str, name: &str, status: &Value) -> Result<Raw, Error> {
    let (namespace, name) = split(name);
    let patch = Patch::Merge(json!({"status": status}));
    mcs(client, kind, namespace).patch_status(name, &PatchParams::default(), &patch).await
}

fn mcs(client: &Client, kind: &str, namespace: &str) -> Api<Raw> {
    Api::namespaced_with(client.clone(), namespace, &resource(kind))
}

/// Sends a request of which nobody reads the answer: of slices there are many, and a watch tells.
async fn ask(
    client: &Client,
    request: Result<hyper::Request<Vec<u8>>, request::Error>,
) -> Result<Option<Raw>, Error> {
    let request = request.map_err(Error::BuildRequest)?;
    client.request::<IgnoredAny>(request).await.map(|_| None)
}

/// Where the slices of a slice's namespace are.
fn slices(slice: &EndpointSlice) -> Request {
    Request::new(KubernetesSlice::url_path(&(), slice.metadata.namespace.as_deref()))
}

fn text(slice: &EndpointSlice) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(slice).map_err(Error::SerdeError)
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
