//! Derived Services in the API server of this cluster: what it has, what it answers to our own writes, and the writes themselves.
use super::{
    super::{
        Shared, lock,
        watching::{PAGE, WATCH_SECONDS},
    },
    derived::{AGAIN, Addresses, Refusal, Refused, Settled, Write, plan},
    kept::{Kept, ServiceImport},
    write::AT_ONCE,
};
use crate::{
    by_name::ByName,
    mcs::{Derived, IMPORT_MANAGED_BY, Import, MANAGER, Merged, derived_name},
    store::objects::{REQUEST, now, snapshot::is_older},
    trouble::Trouble,
};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client, Error,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use std::{
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{sync::Notify, time::timeout};

/// What is known, by `NAMESPACE/NAME` of the imported service; none: they were not listed yet.
type Known = Arc<Mutex<Option<ByName<Derived>>>>;

/// The derived Services of this cluster.
pub(super) struct Services {
    client: Client,
    shared: Arc<Shared>,
    known: Known,
    refused: Refused,
    settled: Settled,
}

impl Services {
    /// None is known yet. Besides, what follows them for ever.
    pub(super) fn new(
        client: Client,
        shared: Arc<Shared>,
        changed: Arc<Notify>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let known = Known::default();
        let following = follow(client.clone(), Arc::clone(&known), changed);
        let (refused, settled) = (Refused::new(), Settled::default());
        (Services { client, shared, known, refused, settled }, following)
    }

    /// Whether all are known.
    pub(super) fn are_listed(&self) -> bool {
        lock(&self.known).is_some()
    }

    /// After how long there is something to try again, although nothing has changed.
    pub(super) fn again(&self) -> Option<Duration> {
        let mut refusals = self.refused.values().map(|(.., refusal)| refusal);
        refusals.any(|refusal| !matches!(refusal, Refusal::NotKept(_))).then_some(AGAIN)
    }

    /// What is there for the addresses of ServiceImports.
    pub(super) fn addresses(&self) -> Addresses {
        let known = lock(&self.known).clone().unwrap_or_default();
        let refused =
            self.refused.iter().filter(|(_, (.., refusal))| !matches!(refusal, Refusal::NotKept(_)));
        let refused = refused.map(|(name, (.., refusal))| (name.clone(), Arc::new(refusal.clone())));
        Addresses { known, refused: refused.collect() }
    }

    /// Makes those that `merged` needs, where `imports` are the ServiceImports that there are.
    ///
    /// # Errors
    /// What the API server said to one of the writes, if it may say something else next time; the others are done.
    pub(super) async fn keep(
        &mut self,
        merged: &Merged,
        imports: &ByName<Kept<ServiceImport>>,
    ) -> Result<(), String> {
        let known = lock(&self.known).clone().unwrap_or_default();
        let is_so = |name: &String, import: &Import| {
            known.get(name).is_some_and(|service| service.patch(import).is_none())
        };
        self.refused.retain(|name, _| merged.imports.get(name).is_some_and(|import| !is_so(name, import)));
        let writes = plan(merged, imports, &known, &self.refused, &mut self.settled, now());
        let this = &*self;
        let one = |write: Write| async move {
            if this.shared.leads_for().is_none() {
                return (write, Err(Failure::Trouble("this process leads no more".to_owned())));
            }
            let done = match timeout(REQUEST, this.send(&write)).await {
                Ok(done) => done.map_err(|error| Failure::of(&write, error)),
                Err(late) => Err(Failure::Trouble(late.to_string())),
            };
            this.shared.metrics.wrote(done.is_ok());
            (write, done)
        };
        let results: Vec<_> = stream::iter(writes).map(one).buffer_unordered(AT_ONCE).collect().await;
        let mut first = Ok(());
        for (write, done) in results {
            first = first.and(self.note(write, done));
        }
        first
    }

    /// Takes in what came of a write.
    fn note(&mut self, write: Write, done: Result<Option<Service>, Failure>) -> Result<(), String> {
        let (name, import) = match write {
            Write::Create(name, import) | Write::Patch(name, import, _) => (name, import),
            Write::Delete(name, _) => {
                if done.is_ok() {
                    change(&self.known, |known| drop(known.remove(&name)));
                }
                return done.map(drop).or_else(Failure::into_trouble);
            }
        };
        match done {
            Ok(service) => {
                self.refused.remove(&name);
                if let Some((name, service)) = service.as_ref().and_then(Derived::of) {
                    if service.patch(&import).is_some() {
                        let refusal = Refusal::NotKept(service.version.clone());
                        self.refuse(name.clone(), &import, refusal);
                    }
                    change(&self.known, |known| put(known, name, service));
                }
                Ok(())
            }
            Err(Failure::Refused(refusal)) => {
                self.refuse(name, &import, refusal);
                Ok(())
            }
            Err(failure) => failure.into_trouble(),
        }
    }

    fn refuse(&mut self, name: String, import: &Import, refusal: Refusal) {
        self.refused.insert(name, (import.facts.clone(), now(), refusal));
    }

    async fn send(&self, write: &Write) -> Result<Option<Service>, Error> {
        let api = |name: &str| {
            let (namespace, service) = name.split_once('/').unwrap_or(("", name));
            let api: Api<Service> = Api::namespaced(self.client.clone(), namespace);
            (api, derived_name(namespace, service))
        };
        match write {
            Write::Create(name, import) => {
                let service = serde_json::from_value(Derived::object(name, import));
                let service: Service = service.map_err(Error::SerdeError)?;
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

/// Why a write was not done.
enum Failure {
    /// Whoever asks again is told the same, for now.
    Refused(Refusal),
    /// It is another one by now: a watch tells.
    Late,
    /// It may be tried again.
    Trouble(String),
}

impl Failure {
    fn of(write: &Write, error: Error) -> Self {
        match (write, error) {
            (Write::Create(..), Error::Api(status)) if status.code == 409 => Failure::Refused(Refusal::Taken),
            (_, Error::Api(status)) if matches!(status.code, 404 | 409) => Failure::Late,
            (Write::Create(..) | Write::Patch(..), Error::Api(status))
                if matches!(status.code, 400 | 403 | 422) =>
            {
                Failure::Refused(Refusal::Refused(status.message.clone()))
            }
            (_, error) => Failure::Trouble(error.to_string()),
        }
    }

    fn into_trouble(self) -> Result<(), String> {
        match self {
            Failure::Trouble(why) => Err(why),
            Failure::Refused(_) | Failure::Late => Ok(()),
        }
    }
}

fn change(known: &Known, change: impl FnOnce(&mut ByName<Derived>)) {
    if let Some(known) = &mut *lock(known) {
        change(known);
    }
}

/// Takes in a Service, unless a newer one is known.
fn put(known: &mut ByName<Derived>, name: String, service: Derived) {
    if !is_newer(known, &name, &service) {
        known.insert(name, Arc::new(service));
    }
}

/// Takes out a Service, unless it has been made anew.
fn remove(known: &mut ByName<Derived>, name: &str, service: &Derived) {
    if !is_newer(known, name, service) {
        known.remove(name);
    }
}

/// Whether what is known is newer.
fn is_newer(known: &ByName<Derived>, name: &str, service: &Derived) -> bool {
    known.get(name).is_some_and(|known| is_older(&service.version, &known.version))
}

/// Follows the Services for ever.
async fn follow(client: Client, all: Known, changed: Arc<Notify>) {
    let labels = format!("{IMPORT_MANAGED_BY}={MANAGER}");
    let config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE).labels(&labels);
    let mut events = pin!(watcher(Api::<Service>::all(client), config).default_backoff());
    let mut listed = ByName::new();
    let mut trouble = Trouble::default();
    loop {
        match events.try_next().await {
            Ok(Some(Event::Init)) => listed = ByName::new(),
            Ok(Some(Event::InitApply(service))) => {
                if let Some((name, service)) = Derived::of(&service) {
                    put(&mut listed, name, service);
                }
            }
            Ok(Some(Event::InitDone)) => {
                trouble.over("derived Services: watched again");
                *lock(&all) = Some(std::mem::take(&mut listed));
            }
            Ok(Some(Event::Apply(service))) => {
                if let Some((name, service)) = Derived::of(&service) {
                    change(&all, |known| put(known, name, service));
                }
            }
            Ok(Some(Event::Delete(service))) => {
                if let Some((name, service)) = Derived::of(&service) {
                    change(&all, |known| remove(known, &name, &service));
                }
            }
            // It ends never.
            Ok(None) => return,
            Err(error) => {
                trouble.again(Duration::ZERO, Duration::ZERO);
                tracing::debug!(%error, "watching derived Services failed; what was known stays in force");
            }
        }
        changed.notify_one();
    }
}
