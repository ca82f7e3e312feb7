//! Objects of one kind in another cluster: listed page by page, then watched. A watch that was cut goes on from where it was, also in
//! the next session: a way that is lost and found costs neither cluster a list. What the other one does not know any more is listed
//! anew.
use super::{
    super::{
        lock,
        raw::Raw,
        watching::{PAGE, WATCH_SECONDS},
    },
    link::{Ended, failed, refused},
};
use crate::store::objects::snapshot::is_older;
use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use kube::{
    Api,
    api::{ListParams, WatchEvent, WatchParams},
    runtime::watcher::Event,
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
    vec,
};
use tokio::time::{Instant, timeout};

/// A watch that says nothing for so long has died in silence: the server ends it before.
const SILENCE: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 5);
/// A watch that the server ends sooner is not tried again at once.
const SOON: Duration = Duration::from_secs(1);
/// The code of what is not known any more.
const GONE: u16 = 410;

/// Up to where the objects of a kind are known: the `resourceVersion` of what was heard last; none: they are not listed. Cheap to clone;
/// clones are one.
#[derive(Clone, Debug, Default)]
pub(super) struct Place(Arc<Mutex<Option<String>>>);

impl Place {
    fn version(&self) -> Option<String> {
        lock(&self.0).clone()
    }

    fn reach(&self, version: Option<String>) {
        if let Some(version) = version.filter(|version| !version.is_empty()) {
            *lock(&self.0) = Some(version);
        }
    }

    fn forget(&self) {
        *lock(&self.0) = None;
    }
}

/// What is said of the objects with these labels (empty: of all), from `place` on, until something fails. An event counts as heard
/// when it is given out.
pub(super) fn follow(
    api: Api<Raw>,
    labels: &str,
    place: &Place,
) -> impl Stream<Item = Result<Event<Raw>, Ended>> + use<> {
    let source = Source {
        api,
        labels: labels.to_owned(),
        place: place.clone(),
        has_listed: false,
        step: Step::Return,
    };
    stream::try_unfold(source, |mut source| async move { Ok(Some((source.next().await?, source))) })
}

struct Source {
    api: Api<Raw>,
    labels: String,
    place: Place,
    /// In this session.
    has_listed: bool,
    step: Step,
}

enum Step {
    /// The session has begun.
    Return,
    /// All is to be listed.
    List,
    /// What there is of a page, which page is next, and of which version the list is; the last page says that.
    Page(vec::IntoIter<Raw>, Option<String>, Option<String>),
    /// All up to its place is known.
    Watch,
    /// It is watched since then.
    Watching(BoxStream<'static, kube::Result<WatchEvent<Raw>>>, Instant),
}

impl Source {
    async fn next(&mut self) -> Result<Event<Raw>, Ended> {
        loop {
            match &mut self.step {
                Step::Return => self.step = self.go_on().await?,
                Step::List => {
                    self.place.forget();
                    self.has_listed = true;
                    self.step = Step::Page(Vec::new().into_iter(), None, None);
                    return Ok(Event::Init);
                }
                Step::Page(objects, next, version) => {
                    if let Some(object) = objects.next() {
                        return Ok(Event::InitApply(object));
                    }
                    if next.is_none() && version.is_some() {
                        self.place.reach(version.take());
                        self.step = Step::Watch;
                        return Ok(Event::InitDone);
                    }
                    let next = next.take();
                    self.step = self.page(next).await?;
                }
                Step::Watch => self.step = self.watch().await?,
                Step::Watching(events, since) => match timeout(SILENCE, events.next()).await {
                    Ok(Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)))) => {
                        self.place.reach(object.metadata.resource_version.clone());
                        return Ok(Event::Apply(object));
                    }
                    Ok(Some(Ok(WatchEvent::Deleted(object)))) => {
                        self.place.reach(object.metadata.resource_version.clone());
                        return Ok(Event::Delete(object));
                    }
                    Ok(Some(Ok(WatchEvent::Bookmark(mark)))) => {
                        self.place.reach(Some(mark.metadata.resource_version));
                    }
                    Ok(Some(Ok(WatchEvent::Error(status)))) if status.code == GONE => {
                        self.step = self.missed()?;
                    }
                    Ok(Some(Ok(WatchEvent::Error(status)))) => return Err(refused(&status)),
                    Ok(Some(Err(error))) => return Err(failed(&error)),
                    Ok(None) if since.elapsed() < SOON => {
                        return Err(("Unreachable", "a watch has ended at once".to_owned()));
                    }
                    Ok(None) | Err(_) => self.step = Step::Watch,
                },
            }
        }
    }

    /// Whether what is known still counts. A server whose data has been restored from an older copy is behind that, and would keep
    /// silent until it is as far again.
    async fn go_on(&mut self) -> Result<Step, Ended> {
        let Some(version) = self.place.version() else { return Ok(Step::List) };
        let list = self.api.list(&ListParams::default().labels(&self.labels).limit(1)).await;
        let now = list.map_err(|error| failed(&error))?.metadata.resource_version.unwrap_or_default();
        Ok(if is_older(&now, &version) { Step::List } else { Step::Watch })
    }

    /// The server does not know any more what has changed. When all was just listed, a new session waits a little before it tries that.
    fn missed(&mut self) -> Result<Step, Ended> {
        self.place.forget();
        match self.has_listed {
            false => Ok(Step::List),
            true => Err(("Unreachable", "it knows only the latest changes".to_owned())),
        }
    }

    async fn page(&mut self, next: Option<String>) -> Result<Step, Ended> {
        let mut page = ListParams::default().labels(&self.labels).limit(PAGE);
        page.continue_token = next;
        let list = self.api.list(&page).await.map_err(|error| failed(&error))?;
        let said = |text: Option<String>| text.filter(|text| !text.is_empty());
        let (next, version) = (said(list.metadata.continue_), said(list.metadata.resource_version));
        match (&next, &version) {
            (None, None) => Err(("Unreachable", "a list has no resourceVersion".to_owned())),
            _ => Ok(Step::Page(list.items.into_iter(), next, version)),
        }
    }

    async fn watch(&mut self) -> Result<Step, Ended> {
        let Some(version) = self.place.version() else { return Ok(Step::List) };
        let watch = WatchParams::default().labels(&self.labels).timeout(WATCH_SECONDS);
        match self.api.watch(&watch, &version).await {
            Ok(events) => Ok(Step::Watching(events.boxed(), Instant::now())),
            Err(kube::Error::Api(status)) if status.code == GONE => self.missed(),
            Err(error) => Err(failed(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Full;
    use hyper::{Request, Response, body::Bytes};
    use k8s_openapi::api::core::v1::Service;
    use kube::{Client, api::ApiResource, client::Body};
    use serde_json::{Value, json};
    use std::convert::Infallible;

    /// What is said from `place` on by a server whose data are of this version, and what it was asked. Its watches say `change`, then
    /// end at once.
    async fn said(place: &Place, version: u64, change: Value) -> (Vec<String>, Vec<&'static str>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let questions = Arc::clone(&asked);
        let server = tower::service_fn(move |request: Request<Body>| {
            let query = request.uri().query().unwrap_or_default();
            let (question, answer) = match query.contains("watch=true") {
                true => ("watch", change.clone()),
                false => (
                    if query.contains("limit=1&") || query.ends_with("limit=1") { "version" } else { "list" },
                    json!({"metadata": {"resourceVersion": version.to_string()}, "items": [object("a", version)]}),
                ),
            };
            lock(&questions).push(question);
            let answer = Response::new(Full::new(Bytes::from(answer.to_string() + "\n")));
            async { Ok::<_, Infallible>(answer) }
        });
        let resource = ApiResource::erase::<Service>(&());
        let api = Api::all_with(Client::new(server, "default"), &resource);
        let events = follow(api, "", place).take_while(|event| std::future::ready(event.is_ok()));
        let name = |object: &Raw| object.metadata.name.clone().unwrap_or_default();
        let events = events.map(|event| match event {
            Ok(Event::InitApply(object)) => format!("listed {}", name(&object)),
            Ok(Event::Apply(object)) => format!("is {}", name(&object)),
            Ok(Event::Delete(object)) => format!("is not {}", name(&object)),
            Ok(event) => format!("{event:?}"),
            Err((_, message)) => message,
        });
        let said = events.collect().await;
        let asked = lock(&asked).clone();
        (said, asked)
    }

    fn object(name: &str, version: u64) -> Value {
        json!({"metadata": {"name": name, "resourceVersion": version.to_string()}})
    }

    fn word(type_: &str, object: &Value) -> Value {
        json!({"type": type_, "object": object})
    }

    #[tokio::test]
    async fn what_is_known_is_not_listed_again() {
        let place = Place::default();
        let change = word("ADDED", &object("b", 8));
        let (events, asked) = said(&place, 7, change).await;
        assert_eq!(
            (events.join(", "), asked),
            ("Init, listed a, InitDone, is b".to_owned(), vec!["list", "watch"])
        );
        let (events, asked) = said(&place, 9, word("DELETED", &object("a", 9))).await;
        assert_eq!((events.join(", "), asked), ("is not a".to_owned(), vec!["version", "watch"]));
        assert_eq!(place.version().as_deref(), Some("9"));
        let (events, _) = said(
            &place,
            12,
            word(
                "BOOKMARK",
                &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"resourceVersion": "12"}}),
            ),
        )
        .await;
        assert_eq!((events, place.version().as_deref()), (Vec::<String>::new(), Some("12")));
    }

    /// The server's data are an older copy, or it does not know what was missed.
    #[tokio::test]
    async fn what_may_have_been_missed_is_listed() {
        let place = Place::default();
        place.reach(Some("9".to_owned()));
        let (events, asked) = said(&place, 8, word("ADDED", &object("b", 9))).await;
        assert_eq!(
            (&events[..2], &asked[..2]),
            (&["Init".to_owned(), "listed a".to_owned()][..], &["version", "list"][..])
        );
        let gone =
            word("ERROR", &json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}));
        let place = Place::default();
        place.reach(Some("9".to_owned()));
        let (events, asked) = said(&place, 10, gone).await;
        assert_eq!(
            (events.join(", "), asked),
            ("Init, listed a, InitDone".to_owned(), vec!["version", "watch", "list", "watch"])
        );
        assert_eq!(place.version(), None);
    }
}
