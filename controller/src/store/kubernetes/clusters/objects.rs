//! The ServiceExports or the ServiceImports of this cluster: what the API server has, and what it answers to our own writes.
use super::{
    super::{lock, watching::WATCH_SECONDS},
    known::name,
    link::resource,
};
use crate::{by_name::ByName, trouble::Trouble};
use futures::TryStreamExt;
use kube::{
    Api, Client,
    api::DynamicObject,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use std::{
    mem,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::Notify;

/// Objects of one kind. Cheap to clone; clones are one.
#[derive(Clone, Debug, Default)]
pub(super) struct Objects(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// By `NAMESPACE/NAME`; none: they were not listed yet.
    known: Option<ByName<DynamicObject>>,
    /// Whether the API server does not know the kind.
    is_undefined: bool,
}

impl Objects {
    /// All objects; none: they were not listed yet.
    pub(super) fn known(&self) -> Option<ByName<DynamicObject>> {
        lock(&self.0).known.clone()
    }

    /// Whether the API server does not know the kind.
    pub(super) fn is_undefined(&self) -> bool {
        lock(&self.0).is_undefined
    }

    /// The API server has answered that an object is so.
    pub(super) fn wrote(&self, object: DynamicObject) {
        self.change(|known| put(known, object));
    }

    fn change(&self, change: impl FnOnce(&mut ByName<DynamicObject>)) {
        if let Some(known) = &mut lock(&self.0).known {
            change(known);
        }
    }

    /// Follows the objects for ever.
    pub(super) async fn follow(self, kind: &'static str, client: Client, changed: Arc<Notify>) {
        let api: Api<DynamicObject> = Api::all_with(client, &resource(kind));
        let config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(500);
        let mut events = pin!(watcher(api, config).default_backoff());
        let mut listed = ByName::new();
        let mut trouble = Trouble::default();
        loop {
            match events.try_next().await {
                Ok(Some(Event::Init)) => listed = ByName::new(),
                Ok(Some(Event::InitApply(object))) => put(&mut listed, object),
                Ok(Some(Event::InitDone)) => {
                    trouble.over(&format!("{kind}: watched again"));
                    let known = Some(mem::take(&mut listed));
                    *lock(&self.0) = Inner { known, is_undefined: false };
                }
                Ok(Some(Event::Apply(object))) => self.change(|known| put(known, object)),
                Ok(Some(Event::Delete(object))) => {
                    self.change(|known| drop(known.remove(&name(&object.metadata))));
                }
                // It ends never.
                Ok(None) => return,
                Err(error) => {
                    if let watcher::Error::InitialListFailed(kube::Error::Api(status)) = &error {
                        lock(&self.0).is_undefined = status.code == 404;
                    }
                    trouble.again(Duration::ZERO, Duration::ZERO);
                    tracing::debug!(%error, kind, "watching failed; what was known stays in force");
                }
            }
            changed.notify_one();
        }
    }
}

/// Takes in an object, unless a newer one is known.
fn put(known: &mut ByName<DynamicObject>, mut object: DynamicObject) {
    object.metadata.managed_fields = None;
    let version = |object: &DynamicObject| object.metadata.resource_version.as_ref()?.parse::<u64>().ok();
    let name = name(&object.metadata);
    if known.get(&name).is_none_or(|before| version(before) <= version(&object)) {
        known.insert(name, Arc::new(object));
    }
}
