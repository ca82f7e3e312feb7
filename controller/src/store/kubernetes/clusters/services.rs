//! Derived Services in the API server of this cluster: what it has, and the writes that make them as they should be.
use super::{
    super::{Shared, raw::Raw},
    derived::{AGAIN, Addresses, Refusal, Refused, Settled, Write, plan},
    kept::{Kept, ServiceImport},
    objects::{Objects, Watched},
    sent::{Failure, Sent, object, portion, sent, split},
};
use crate::{
    by_name::ByName,
    mcs::{Derived, IMPORT_MANAGED_BY, Import, MANAGER, Merged, derived_name},
    store::objects::now,
};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client, Error,
    api::{ApiResource, DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::sync::Notify;

/// The derived Services of this cluster.
pub(super) struct Services {
    client: Client,
    shared: Arc<Shared>,
    /// By `NAMESPACE/NAME` of the imported service.
    known: Objects<Derived>,
    refused: Refused,
    settled: Settled,
    /// Whether there are more writes.
    has_more: bool,
}

impl Services {
    /// None is known yet. Besides, what follows them for ever.
    pub(super) fn new(
        client: Client,
        shared: Arc<Shared>,
        changed: Arc<Notify>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (known, followed) = (Objects::default(), client.clone());
        let following = known.clone();
        let following = async move {
            let api = Api::all_with(followed, &ApiResource::erase::<Service>(&()));
            let labels = format!("{IMPORT_MANAGED_BY}={MANAGER}");
            following.follow("derived Services", api, &labels, changed).await;
        };
        let (refused, settled) = (Refused::new(), Settled::default());
        (Services { client, shared, known, refused, settled, has_more: false }, following)
    }

    /// Whether all are known.
    pub(super) fn are_listed(&self) -> bool {
        self.known.known().is_some()
    }

    /// After how long there is something to write, although nothing has changed.
    pub(super) fn again(&self) -> Option<Duration> {
        if self.has_more {
            return Some(Duration::ZERO);
        }
        let mut refusals = self.refused.values().map(|(.., refusal)| refusal);
        refusals.any(|refusal| !matches!(refusal, Refusal::NotKept(_))).then_some(AGAIN)
    }

    /// What is there for the addresses of ServiceImports.
    pub(super) fn addresses(&self) -> Addresses {
        let known = self.known.known().unwrap_or_default();
        let refused =
            self.refused.iter().filter(|(_, (.., refusal))| !matches!(refusal, Refusal::NotKept(_)));
        let refused = refused.map(|(name, (.., refusal))| (name.clone(), Arc::new(refusal.clone())));
        Addresses { known, refused: refused.collect() }
    }

    /// Makes the first of those that `merged` needs, where `imports` are the ServiceImports that there are.
    ///
    /// # Errors
    /// What the API server said to one of the writes, if it may say something else next time; the others are done.
    pub(super) async fn keep(
        &mut self,
        merged: &Merged,
        imports: &ByName<Kept<ServiceImport>>,
    ) -> Result<(), String> {
        let Services { client, shared, known, refused, settled, has_more } = self;
        let listed = known.known().unwrap_or_default();
        let is_so = |name: &String, import: &Import| {
            listed.get(name).is_some_and(|service| service.patch(import).is_none())
        };
        refused.retain(|name, _| merged.imports.get(name).is_some_and(|import| !is_so(name, import)));
        let mut writes = plan(merged, imports, &listed, refused, settled, now());
        // What is refused again and again is left alone for a while, so it keeps back nothing.
        *has_more = portion(&mut writes);
        let mut results = pin!(sent(client, shared, writes));
        let mut first = Ok(());
        while let Some((write, done)) = results.next().await {
            first = first.and(note(known, refused, write, done));
        }
        first
    }
}

/// Takes in what came of a write.
fn note(
    known: &Objects<Derived>,
    refused: &mut Refused,
    write: Write,
    done: Result<Option<Raw>, Failure>,
) -> Result<(), String> {
    let (name, import) = match &write {
        Write::Create(name, import) | Write::Patch(name, import, _) => (name, import),
        Write::Delete(name, _) => {
            if done.is_ok() {
                known.deleted(name);
            }
            return done.map(drop).or_else(Failure::into_trouble);
        }
    };
    let refusal = match (done, &write) {
        (Ok(service), _) => {
            service.as_ref().and_then(<Derived as Watched>::of).and_then(|(name, service)| {
                let is_other = service.patch(import).is_some();
                let refusal = is_other.then(|| Refusal::NotKept(service.version.clone()));
                known.wrote(name, service);
                refusal
            })
        }
        (Err(Failure::Exists), Write::Create(..)) => Some(Refusal::Taken),
        (Err(Failure::Refused(why)), _) => Some(Refusal::Refused(why)),
        (Err(failure), _) => return failure.into_trouble(),
    };
    match refusal {
        Some(refusal) => drop(refused.insert(name.clone(), (import.facts.clone(), now(), refusal))),
        None => drop(refused.remove(name)),
    }
    Ok(())
}

impl Sent for Write {
    async fn send(&self, client: &Client) -> Result<Option<Raw>, Error> {
        let api = |name: &str| -> (Api<Raw>, String) {
            let (namespace, service) = split(name);
            let resource = ApiResource::erase::<Service>(&());
            (Api::namespaced_with(client.clone(), namespace, &resource), derived_name(namespace, service))
        };
        match self {
            Write::Create(name, import) => {
                let service = object(Derived::object(name, import))?;
                api(name).0.create(&PostParams::default(), &service).await.map(Some)
            }
            Write::Patch(name, _, patch) => {
                let (api, service) = api(name);
                api.patch(&service, &PatchParams::default(), &Patch::Merge(patch)).await.map(Some)
            }
            Write::Delete(name, version) => {
                let (api, service) = api(name);
                let resource_version = Some(version.to_string());
                let preconditions = Some(Preconditions { resource_version, uid: None });
                let delete = DeleteParams { preconditions, ..DeleteParams::default() };
                api.delete(&service, &delete).await.map(|_| None)
            }
        }
    }
}
