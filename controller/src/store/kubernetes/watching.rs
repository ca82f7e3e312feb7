//! Lists and watches one source, for ever: what it says goes to the store. After an error it is tried again, later and
//! later ([`pauses`]); after a gap (410) everything is listed again.
use super::{Cluster, api, patch::POD_CIDRS, raw::Raw};
use crate::{
    api::{API_VERSION, Kind, service},
    mcs,
    store::objects::snapshot::{Change, Seen, Source},
    trouble::{Trouble, jittered},
    validate,
};
use futures::TryStreamExt;
use k8s_openapi::{
    api::core::v1::{Service, ServiceSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::runtime::{
    WatchStreamExt,
    utils::{Backoff, ResetTimerBackoff},
    watcher::{self, Event, watcher},
};
use serde_json::{Value, json};
use std::{pin::pin, time::Duration};

/// Seconds after which a watch is made anew: a connection that has died in silence is found out a little later.
pub(super) const WATCH_SECONDS: u32 = 120;
/// Objects of one page of a list. What is read of a page is garbage soon after, and what is kept lies in between: what a process holds
/// grows by about a page for each list at once.
pub(super) const PAGE: u32 = 200;

/// A watch that fails is tried again after this, then after twice as long, up to [`SLOWEST`].
const FIRST: Duration = Duration::from_millis(800);
/// What an API server that is back has to tell is heard by then. A thousand agents that watch a dozen kinds each ask it a thousand
/// times a second for what they have missed, no more.
const SLOWEST: Duration = Duration::from_secs(10);
/// A watch that fails after so long without a failure is tried again soon.
const CALM: Duration = Duration::from_secs(120);

/// How long a watch rests after each failure.
pub(super) fn pauses() -> impl Backoff {
    ResetTimerBackoff::new(Pauses::default(), CALM)
}

#[derive(Default)]
struct Pauses(Trouble);

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(jittered(self.0.again(FIRST, SLOWEST)))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.0 = Trouble::default();
    }
}

/// Tells the store what a source says. Ends never.
pub(super) async fn follow(source: Source, cluster: Cluster) {
    let shared = &cluster.shared;
    let kind = source.kind();
    let mut config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
    if let Source::Secret(name) = &source {
        config = config.fields(&format!("metadata.name={name}"));
    }
    if kind == Kind::Service {
        config = config.labels(&mcs::declared_services());
    }
    let mut epochs = shared.epochs.subscribe();
    let mut trouble = Trouble::default();
    loop {
        let epoch = *epochs.borrow_and_update();
        let namespace = (kind == Kind::Secret).then_some(&*cluster.namespace);
        let api = api(cluster.client.clone(), kind, namespace);
        let mut events = pin!(watcher(api, config.clone()).backoff(pauses()));
        loop {
            let event = tokio::select! {
                event = events.try_next() => event,
                Ok(()) = epochs.changed() => break,
            };
            match event {
                // That a list begins says nothing yet of whether it will come.
                Ok(Some(event)) => {
                    if !matches!(event, Event::Init) {
                        trouble.over(&format!("{kind}: watched again"));
                        shared.metrics.watches(kind);
                    }
                    shared.change(epoch, &source, change(kind, event, cluster.is_default_class));
                }
                // It ends never.
                Ok(None) => break,
                Err(error) => {
                    shared.metrics.watch_failed(kind);
                    // When to try again the watcher knows.
                    trouble.again(Duration::ZERO, Duration::ZERO);
                    trouble.say(&format!("{kind}: watching failed; what was known stays in force"), &error);
                    // What we may not read is as good as not there; others may be served.
                    if matches!(source, Source::Secret(_)) && is_forbidden(&error) {
                        shared.change(epoch, &source, Change::Listing);
                        shared.change(epoch, &source, Change::ListDone);
                    }
                }
            }
        }
    }
}

fn is_forbidden(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 403)
}

fn change(kind: Kind, event: Event<Raw>, is_default_class: bool) -> Change {
    match event {
        Event::Init => Change::Listing,
        Event::InitApply(object) => Change::Listed(seen(kind, object, is_default_class)),
        Event::InitDone => Change::ListDone,
        Event::Apply(object) => Change::Applied(seen(kind, object, is_default_class)),
        Event::Delete(object) => Change::Deleted(name(kind, &object.metadata)),
    }
}

/// What is kept of an object. `is_default_class`: Services that name no class are ours.
pub(in crate::store) fn seen(kind: Kind, object: Raw, is_default_class: bool) -> Seen {
    let Raw { mut metadata, data: mut tree } = object;
    let name = name(kind, &metadata);
    let version = metadata.resource_version.take().unwrap_or_default();
    if let Some(annotations) = &mut metadata.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    let blocks = metadata.annotations.as_mut().and_then(|annotations| annotations.remove(POD_CIDRS));
    let status = tree.remove("status");
    tree.retain(|field, _| is_read(kind, field));
    tree.insert("apiVersion".to_owned(), kind.api_version().into());
    tree.insert("kind".to_owned(), kind.name().into());
    tree.insert("metadata".to_owned(), json!(metadata));
    // Of what a kubelet tells, which is a lot and often something new.
    if let Some(addresses) =
        status.as_ref().and_then(|status| status.get("addresses")).filter(|_| kind == Kind::Node)
    {
        tree.insert("status".to_owned(), json!({"addresses": addresses}));
    }
    let mut tree = Value::Object(tree);
    if kind == Kind::Service && is_default_class {
        service::adopt(&mut tree);
    }
    let object = validate::check_object(&tree);
    let status = match kind {
        // Also of one that is refused: what it has it keeps.
        Kind::Service => is_ours(&tree).then(|| {
            let status = status.and_then(|status| serde_json::from_value(status).ok());
            json!(service::status_of(&Service { status, ..Service::default() }))
        }),
        // What is no JSON is refused like any other status that cannot be read.
        Kind::Node => blocks.map(|text| serde_json::from_str(&text).unwrap_or(Value::String(text))),
        _ => status.filter(|_| kind.api_version() == API_VERSION),
    };
    Seen { name, version, object, status }
}

/// Whether a Service is of our class, whatever else is wrong with it.
fn is_ours(tree: &Value) -> bool {
    let text = |field: &str| tree["spec"][field].as_str().map(ToOwned::to_owned);
    let spec = ServiceSpec {
        type_: text("type"),
        load_balancer_class: text("loadBalancerClass"),
        ..ServiceSpec::default()
    };
    service::is_ours(&Service { spec: Some(spec), ..Service::default() })
}

/// Kubernetes may have fields that we do not know.
fn is_read(kind: Kind, field: &str) -> bool {
    match kind {
        Kind::Node | Kind::Service => field == "spec",
        Kind::Namespace => false,
        Kind::EndpointSlice => ["addressType", "endpoints", "ports"].contains(&field),
        Kind::Secret => field == "data",
        _ => true,
    }
}

fn name(kind: Kind, metadata: &ObjectMeta) -> String {
    let name = metadata.name.clone().unwrap_or_default();
    match &metadata.namespace {
        Some(namespace) if kind.is_namespaced() => format!("{namespace}/{name}"),
        _ => name,
    }
}
