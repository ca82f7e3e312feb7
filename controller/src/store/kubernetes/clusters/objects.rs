//! Objects of one kind that this cluster has: what the API server has, and what it answers to our own writes.
use super::{
    super::{
        lock,
        raw::Raw,
        watching::{PAGE, WATCH_SECONDS},
    },
    kept::Kept,
    known::name,
};
use crate::{by_name::ByName, mcs::Derived, store::objects::snapshot::is_older, trouble::Trouble};
use futures::TryStreamExt;
use kube::{
    Api,
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

/// What is kept of an object.
pub(super) trait Watched: Sized {
    /// What it goes by, and what is kept of it; none: it is none of ours.
    fn of(object: &Raw) -> Option<(String, Self)>;

    /// `resourceVersion`.
    fn version(&self) -> &str;
}

impl<T: for<'a> From<&'a Raw>> Watched for Kept<T> {
    fn of(object: &Raw) -> Option<(String, Self)> {
        Some((name(&object.metadata), Kept::from(object)))
    }

    fn version(&self) -> &str {
        &self.version
    }
}

/// By the imported service.
impl Watched for Derived {
    fn of(object: &Raw) -> Option<(String, Self)> {
        Derived::of(&object.read()?)
    }

    fn version(&self) -> &str {
        &self.version
    }
}

/// Objects of one kind. Cheap to clone; clones are one.
#[derive(Debug)]
pub(super) struct Objects<T>(Arc<Mutex<Inner<T>>>);

#[derive(Debug)]
struct Inner<T> {
    /// By `NAMESPACE/NAME`; none: they were not listed yet.
    known: Option<ByName<T>>,
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

impl<T: Watched> Objects<T> {
    /// All objects; none: they were not listed yet.
    pub(super) fn known(&self) -> Option<ByName<T>> {
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

    /// The API server has answered that an object is gone.
    pub(super) fn deleted(&self, name: &str) {
        self.change(|known| drop(known.remove(name)));
    }

    fn change(&self, change: impl FnOnce(&mut ByName<T>)) {
        if let Some(known) = &mut lock(&self.0).known {
            change(known);
        }
    }

    /// Follows the objects that have these labels for ever.
    pub(super) async fn follow(self, what: &'static str, api: Api<Raw>, labels: &str, changed: Arc<Notify>) {
        let config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE).labels(labels);
        let mut events = pin!(watcher(api, config).default_backoff());
        let mut listed = ByName::new();
        let mut trouble = Trouble::default();
        loop {
            match events.try_next().await {
                Ok(Some(Event::Init)) => listed = ByName::new(),
                Ok(Some(Event::InitApply(object))) => put(&mut listed, &object),
                Ok(Some(Event::InitDone)) => {
                    trouble.over(&format!("{what}: watched again"));
                    let known = Some(mem::take(&mut listed));
                    *lock(&self.0) = Inner { known, is_undefined: false };
                }
                Ok(Some(Event::Apply(object))) => self.change(|known| put(known, &object)),
                Ok(Some(Event::Delete(object))) => self.change(|known| remove(known, &object)),
                // It ends never.
                Ok(None) => return,
                Err(error) => {
                    if let watcher::Error::InitialListFailed(kube::Error::Api(status)) = &error {
                        lock(&self.0).is_undefined = status.code == 404;
                    }
                    trouble.again(Duration::ZERO, Duration::ZERO);
                    tracing::debug!(%error, what, "watching failed; what was known stays in force");
                }
            }
            changed.notify_one();
        }
    }
}

/// Takes in an object, unless a newer one is known.
fn put<T: Watched>(known: &mut ByName<T>, object: &Raw) {
    if let Some((name, object)) = T::of(object).filter(|(name, object)| !is_newer(known, name, object)) {
        known.insert(name, Arc::new(object));
    }
}

/// Takes out an object, unless it has been made anew.
fn remove<T: Watched>(known: &mut ByName<T>, object: &Raw) {
    if let Some((name, _)) = T::of(object).filter(|(name, object)| !is_newer(known, name, object)) {
        known.remove(&name);
    }
}

/// Whether what is known is newer.
fn is_newer<T: Watched>(known: &ByName<T>, name: &str, object: &T) -> bool {
    known.get(name).is_some_and(|known| is_older(object.version(), known.version()))
}
