//! The ServiceExports or the ServiceImports of this cluster: what the API server has, and what it answers to our own writes.
use super::{
    super::{
        lock,
        raw::Raw,
        watching::{PAGE, WATCH_SECONDS},
    },
    kept::Kept,
    known::name,
    link::resource,
};
use crate::{by_name::ByName, store::objects::snapshot::is_older, trouble::Trouble};
use futures::TryStreamExt;
use kube::{
    Api, Client,
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
#[derive(Debug)]
pub(super) struct Objects<T>(Arc<Mutex<Inner<T>>>);

#[derive(Debug)]
struct Inner<T> {
    /// By `NAMESPACE/NAME`; none: they were not listed yet.
    known: Option<ByName<Kept<T>>>,
    /// Whether the API server does not know the kind.
    is_undefined: bool,
}

impl<T> Clone for Objects<T> {
    fn clone(&self) -> Self {
        Objects(Arc::clone(&self.0))
    }
}

impl<T> Default for Objects<T> {
    fn default() -> Self {
        Objects(Arc::new(Mutex::new(Inner { known: None, is_undefined: false })))
    }
}

impl<T: for<'a> From<&'a Raw>> Objects<T> {
    /// All objects; none: they were not listed yet.
    pub(super) fn known(&self) -> Option<ByName<Kept<T>>> {
        lock(&self.0).known.clone()
    }

    /// Whether the API server does not know the kind.
    pub(super) fn is_undefined(&self) -> bool {
        lock(&self.0).is_undefined
    }

    /// The API server has answered that an object is so.
    pub(super) fn wrote(&self, object: &Raw) {
        self.change(|known| put(known, object));
    }

    fn change(&self, change: impl FnOnce(&mut ByName<Kept<T>>)) {
        if let Some(known) = &mut lock(&self.0).known {
            change(known);
        }
    }

    /// Follows the objects for ever.
    pub(super) async fn follow(self, kind: &'static str, client: Client, changed: Arc<Notify>) {
        let api: Api<Raw> = Api::all_with(client, &resource(kind));
        let config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
        let mut events = pin!(watcher(api, config).default_backoff());
        let mut listed = ByName::new();
        let mut trouble = Trouble::default();
        loop {
            match events.try_next().await {
                Ok(Some(Event::Init)) => listed = ByName::new(),
                Ok(Some(Event::InitApply(object))) => put(&mut listed, &object),
                Ok(Some(Event::InitDone)) => {
                    trouble.over(&format!("{kind}: watched again"));
                    let known = Some(mem::take(&mut listed));
                    *lock(&self.0) = Inner { known, is_undefined: false };
                }
                Ok(Some(Event::Apply(object))) => self.change(|known| put(known, &object)),
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
fn put<T: for<'a> From<&'a Raw>>(known: &mut ByName<Kept<T>>, object: &Raw) {
    let (name, object) = (name(&object.metadata), Kept::from(object));
    if known.get(&name).is_none_or(|before| !is_older(&object.version, &before.version)) {
        known.insert(name, Arc::new(object));
    }
}
