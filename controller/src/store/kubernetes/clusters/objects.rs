//! Objects of one kind that this cluster has: what the API server has, and what it answers to our own writes.
use super::{
    super::{
        lock,
        raw::Raw,
        watching::{PAGE, WATCH_SECONDS, pauses},
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
    /// What of a list has come so far.
    listed: ByName<T>,
    /// The newest `resourceVersion` that the watch has told of; 0: none yet.
    told: u64,
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
        Objects(Arc::new(Mutex::new(Inner::new())))
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

    /// The API server has answered that the object of this name is so.
    pub(super) fn wrote(&self, name: String, object: T) {
        lock(&self.0).wrote(name, object);
    }

    /// The API server has answered that an object is gone.
    pub(super) fn deleted(&self, name: &str) {
        if let Some(known) = &mut lock(&self.0).known {
            known.remove(name);
        }
    }

    /// Follows the objects that have these labels for ever.
    pub(super) async fn follow(self, what: &'static str, api: Api<Raw>, labels: &str, changed: Arc<Notify>) {
        let config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE).labels(labels);
        let mut events = pin!(watcher(api, config).backoff(pauses()));
        let mut trouble = Trouble::default();
        loop {
            match events.try_next().await {
                Ok(Some(event)) => {
                    if matches!(event, Event::InitDone) {
                        trouble.over(&format!("{what}: watched again"));
                    }
                    lock(&self.0).take(event);
                }
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

impl<T> Inner<T> {
    /// Nothing is known yet.
    fn new() -> Self {
        Inner { known: None, listed: ByName::new(), told: 0, is_undefined: false }
    }
}

impl<T: Watched> Inner<T> {
    /// Takes in what the watch tells.
    fn take(&mut self, event: Event<Raw>) {
        if let Event::InitApply(object) | Event::Apply(object) | Event::Delete(object) = &event {
            let version = object.metadata.resource_version.as_deref().and_then(number);
            self.told = self.told.max(version.unwrap_or_default());
        }
        match (event, &mut self.known) {
            (Event::Init, _) => self.listed = ByName::new(),
            (Event::InitApply(object), _) => take(&mut self.listed, &object),
            (Event::InitDone, _) => {
                (self.known, self.is_undefined) = (Some(mem::take(&mut self.listed)), false);
            }
            (Event::Apply(object), Some(known)) => take(known, &object),
            (Event::Delete(object), Some(known)) => remove(known, &object),
            (Event::Apply(_) | Event::Delete(_), None) => {}
        }
    }

    /// Takes in an answer. If the watch is further than that, and does not know the object, it has gone since.
    fn wrote(&mut self, name: String, object: T) {
        let Some(known) = &mut self.known else { return };
        let is_newer = number(object.version()).is_none_or(|version| version > self.told);
        if is_newer || known.contains_key(&name) {
            put(known, name, object);
        }
    }
}

/// A `resourceVersion`, if it is a number (KEP-5504).
fn number(version: &str) -> Option<u64> {
    version.parse().ok()
}

/// Takes in what is kept of an object, unless a newer one is known.
fn put<T: Watched>(known: &mut ByName<T>, name: String, object: T) {
    if !is_newer(known, &name, &object) {
        known.insert(name, Arc::new(object));
    }
}

/// Takes in an object that the watch tells of.
fn take<T: Watched>(known: &mut ByName<T>, object: &Raw) {
    if let Some((name, object)) = T::of(object) {
        put(known, name, object);
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

#[cfg(test)]
mod tests {
    use super::{super::kept::ServiceExport, *};
    use serde_json::json;

    /// Answers and what the watch tells come in any order.
    #[test]
    fn what_is_gone_does_not_come_back_with_a_late_answer() {
        let object = |version: &str| -> Raw {
            let metadata = json!({"namespace": "n", "name": "web", "resourceVersion": version});
            serde_json::from_value(json!({"metadata": metadata})).unwrap()
        };
        let mut all = Inner::<Kept<ServiceExport>>::new();
        for event in [Event::Init, Event::InitApply(object("9")), Event::InitDone] {
            all.take(event);
        }
        let version =
            |all: &Inner<Kept<ServiceExport>>| all.known.as_ref()?.get("n/web").map(|o| o.version.clone());
        let wrote = |all: &mut Inner<_>, version: &str| {
            let (name, object) = Kept::of(&object(version)).unwrap();
            all.wrote(name, object);
        };
        wrote(&mut all, "11");
        assert_eq!(version(&all).as_deref(), Some("11"));
        all.take(Event::Apply(object("10")));
        assert_eq!(version(&all).as_deref(), Some("11"), "an older one");
        // Somebody deletes it while a write is on its way.
        all.take(Event::Delete(object("13")));
        wrote(&mut all, "12");
        assert_eq!(version(&all), None);
        // One that we make is there before the watch tells of it.
        wrote(&mut all, "14");
        assert_eq!(version(&all).as_deref(), Some("14"));
    }
}
