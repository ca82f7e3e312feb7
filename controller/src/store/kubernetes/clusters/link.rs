//! One link: opens the other cluster with the rights that its kubeconfig gives, lists what counts there, watches it, and asks once
//! a second whether it still answers. What ends is begun anew, a little later and not by all links at the same moment; what was
//! known before stays meanwhile, and is watched from there on.
use super::{
    super::{raw::Raw, watching},
    credentials::{self, Credentials},
    known::Known,
    overlap::Networks,
    source::{self, Place},
};
use crate::{
    api::{AddressPool, AddressPoolStatus, Kind},
    mcs::{self, Exports},
    neighbours::NeighbourPool,
    object::Object,
    store::objects::now,
    trouble::{Trouble, jittered},
};
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    api::ApiResource,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use serde::Deserialize;
use std::{collections::BTreeMap, future, net::IpAddr, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

/// How long an answer to the question whether the cluster is there may take, and the way to it.
pub(super) const TRY: Duration = Duration::from_secs(2);
/// It is asked so often.
const ASK: Duration = Duration::from_secs(1);
/// After the first failure it is tried again after this, then after twice as long, up to [`LATEST`].
const SOON: Duration = Duration::from_millis(250);
/// Out of reach, a cluster is tried at least so often.
const LATEST: Duration = Duration::from_millis(500);
/// Most objects of a cluster that are kept; of one that has more nothing new is taken in.
const MOST: usize = 400_000;
/// A cluster that has more is tried again after this.
const LATER: Duration = Duration::from_secs(60);
/// Changes are at rest when nothing happens for so long.
const QUIET: Duration = Duration::from_millis(5);
/// Changes that never rest are told after so long.
const PATIENCE: Duration = Duration::from_millis(50);

/// The reason of a cluster that is too large.
const TOO_LARGE: &str = "TooLarge";
/// Most characters of what a cluster says that are passed on.
const LONGEST: usize = 300;

/// How a link is.
#[derive(Clone, Debug)]
pub(super) struct Report {
    /// Whether all is listed and the cluster answers; else why not, as reason and sentence; none: that is not known yet.
    pub(super) connected: Option<Result<(), (&'static str, String)>>,
    /// When it answered last, or when it was first tried, by the monotonic clock.
    pub(super) contact: Duration,
    /// What it exports; none: it was never listed.
    pub(super) exports: Option<Exports>,
    /// Its pools as they were last seen; none: never.
    pub(super) pools: Option<Arc<BTreeMap<String, NeighbourPool>>>,
    /// Whether its pools are known as they are, while it is connected.
    pub(super) pools_are_listed: bool,
    /// Addresses of what it exports.
    pub(super) addresses: Arc<BTreeMap<String, Vec<IpAddr>>>,
    /// What its nodes have.
    pub(super) networks: Arc<Networks>,
}

impl Report {
    pub(super) fn new() -> Self {
        Report {
            connected: None,
            contact: now(),
            exports: None,
            pools: None,
            pools_are_listed: false,
            addresses: Arc::default(),
            networks: Arc::default(),
        }
    }
}

/// What is known of a cluster from one session to the next.
struct Memory {
    known: Known,
    /// Of ServiceExports, Services and EndpointSlices.
    places: [Place; 3],
    /// ServiceExports, Services, EndpointSlices, Nodes.
    listed: [bool; 4],
    pools_are_listed: bool,
}

impl Memory {
    /// Nothing.
    fn new(cluster: &str) -> Self {
        Memory {
            known: Known::new(cluster),
            places: Default::default(),
            listed: [false; 4],
            pools_are_listed: false,
        }
    }
}

/// Follows another cluster for ever.
pub(super) async fn follow(
    cluster: String,
    mut credentials: watch::Receiver<Credentials>,
    report: watch::Sender<Report>,
) {
    let mut trouble = Trouble::default();
    loop {
        let known = credentials.borrow_and_update().clone();
        tokio::select! {
            never = sessions(&cluster, &known, &report, &mut trouble) => match never {},
            // It may be another cluster.
            Ok(()) = credentials.changed() => {}
        }
    }
}

/// One session after the other.
async fn sessions(
    cluster: &str,
    credentials: &Credentials,
    report: &watch::Sender<Report>,
    trouble: &mut Trouble,
) -> Never {
    let mut memory = Memory::new(cluster);
    loop {
        let ended = match credentials {
            Credentials::Unknown => future::pending().await,
            Credentials::Missing(reason) => Err(("SecretNotUsable", reason.clone())),
            Credentials::Kubeconfig(kubeconfig) => session(kubeconfig, &mut memory, report, trouble).await,
        };
        let Err((reason, message)): Result<Never, Ended> = ended;
        report.send_modify(|report| report.connected = Some(Err((reason, message.clone()))));
        let pause = match reason {
            TOO_LARGE => {
                memory = Memory::new(cluster);
                LATER
            }
            _ => trouble.again(SOON, LATEST),
        };
        trouble.say(
            &format!("ClusterLink/{cluster}: out of reach; what is known of it stays for a while"),
            &message,
        );
        match credentials {
            Credentials::Kubeconfig(_) => sleep(jittered(pause)).await,
            _ => future::pending().await,
        }
    }
}

/// What has no value.
enum Never {}

pub(super) type Ended = (&'static str, String);

/// What is watched says.
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
enum News {
    Export(Event<Raw>),
    Service(Event<Raw>),
    Slice(Event<Raw>),
    /// None: the rights do not go so far.
    Node(Option<Event<Node>>),
    /// None: pools cannot be watched, whatever else can.
    Pool(Option<Event<Raw>>),
}

/// From the opening of a cluster until it does not answer.
async fn session(
    kubeconfig: &[u8],
    memory: &mut Memory,
    report: &watch::Sender<Report>,
    trouble: &mut Trouble,
) -> Result<Never, Ended> {
    let client = credentials::client(kubeconfig).await;
    let client = client.map_err(|reason| ("SecretNotUsable", format!("the Secret's value {reason}")))?;
    ask(&client).await?;
    let mut news = watches(&client, &memory.places);
    let Memory { known, listed, pools_are_listed, .. } = memory;
    // Of these there are few: they are listed anew.
    (listed[3], *pools_are_listed) = (false, false);
    // Whether more than pools has changed, and whether nodes have.
    let (mut is_more, mut is_of_nodes) = (false, false);
    let mut questions = interval(ASK);
    questions.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut answer = Box::pin(ask(&client));
    let mut is_asked = true;
    // When what has changed is told; none: nothing has.
    let mut tell: Option<(Instant, Instant)> = None;
    loop {
        let due = tell.map_or_else(Instant::now, |(quiet, latest)| quiet.min(latest));
        tokio::select! {
            event = news.try_next() => match event {
                Ok(Some(News::Pool(event))) => {
                    take_pool(known, pools_are_listed, event);
                    let now = Instant::now();
                    tell = Some((now + QUIET, tell.map_or(now + PATIENCE, |(_, latest)| latest)));
                }
                Ok(Some(event)) => {
                    let is_of_node = matches!(event, News::Node(_));
                    if !take(known, listed, event) {
                        continue;
                    }
                    (is_more, is_of_nodes) = (true, is_of_nodes || is_of_node);
                    if known.len() > MOST {
                        return Err((TOO_LARGE, format!("it has more than {MOST} Services, ServiceExports, EndpointSlices and Nodes")));
                    }
                    let now = Instant::now();
                    tell = Some((now + QUIET, tell.map_or(now + PATIENCE, |(_, latest)| latest)));
                }
                Ok(None) => return Err(("Unreachable", "the watches have ended".to_owned())),
                Err(ended) => return Err(ended),
            },
            () = tokio::time::sleep_until(due), if tell.is_some() && *listed == [true; 4] => {
                tell = None;
                trouble.over(&format!("ClusterLink/{}: connected", known.cluster()));
                // A list anew is told when it is done: what is free meanwhile is not known.
                let pools = pools_are_listed.then(|| Arc::new(known.pools().clone()));
                let more = std::mem::take(&mut is_more)
                    .then(|| (known.exports(), Arc::new(known.addresses())));
                let networks = std::mem::take(&mut is_of_nodes).then(|| Arc::new(known.networks()));
                report.send_modify(|report| {
                    report.connected = Some(Ok(()));
                    report.contact = now();
                    report.pools_are_listed = *pools_are_listed;
                    report.pools = pools.or_else(|| report.pools.take());
                    if let Some((exports, addresses)) = more {
                        (report.exports, report.addresses) = (Some(exports), addresses);
                    }
                    if let Some(networks) = networks {
                        report.networks = networks;
                    }
                });
            }
            answered = &mut answer, if is_asked => {
                answered?;
                is_asked = false;
                // Nobody needs to look because of that.
                report.send_if_modified(|report| {
                    report.contact = now();
                    false
                });
            }
            _ = questions.tick(), if !is_asked => {
                answer = Box::pin(ask(&client));
                is_asked = true;
            }
        }
    }
}

/// Whether the cluster answers at all.
async fn ask(client: &Client) -> Result<(), Ended> {
    match timeout(TRY, client.apiserver_version()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(kube::Error::Api(status))) if status.code == 401 => Err(refused(&status)),
        // It has answered.
        Ok(Err(kube::Error::Api(status))) if status.code < 500 => Ok(()),
        Ok(Err(error)) => Err(failed(&error)),
        Err(_) => Err(("Unreachable", format!("no answer within {} s", TRY.as_secs()))),
    }
}

fn watches(
    client: &Client,
    [exports, services, slices]: &[Place; 3],
) -> BoxStream<'static, Result<News, Ended>> {
    let all = |resource: &ApiResource| Api::<Raw>::all_with(client.clone(), resource);
    let exports = source::follow(all(&resource("ServiceExport")), "", exports);
    let services =
        source::follow(all(&ApiResource::erase::<Service>(&())), &mcs::declared_services(), services);
    let slices = source::follow(all(&ApiResource::erase::<EndpointSlice>(&())), "", slices);
    let config = || watcher::Config::default().timeout(watching::WATCH_SECONDS).page_size(watching::PAGE);
    // A cluster may have none, or not let us read them: all else goes on.
    let pools = watcher(all(&ApiResource::erase::<AddressPool>(&())), config()).backoff(watching::pauses());
    let pools = pools.map(|event| Ok(News::Pool(event.ok())));
    // Without them there are no ways into tunnels; all else goes on. Any other error ends the session: to forget the ways would be worse.
    let nodes = watcher(Api::<Node>::all(client.clone()), config()).backoff(watching::pauses());
    let nodes = nodes.map(|event| match event {
        Ok(event) => Ok(News::Node(Some(event))),
        Err(error) if is_forbidden(&error) => Ok(News::Node(None)),
        Err(error) => Err(watch_failed(&error)),
    });
    stream::select_all([
        exports.map_ok(News::Export).boxed(),
        services.map_ok(News::Service).boxed(),
        slices.map_ok(News::Slice).boxed(),
        nodes.boxed(),
        pools.boxed(),
    ])
    .boxed()
}

fn is_forbidden(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => status.code == 403,
        watcher::Error::WatchError(status) => status.code == 403,
        _ => false,
    }
}

/// Where ServiceExports or ServiceImports are.
pub(super) fn resource(kind: &str) -> ApiResource {
    ApiResource {
        group: mcs::GROUP.to_owned(),
        version: mcs::VERSION.to_owned(),
        api_version: mcs::API_VERSION.to_owned(),
        kind: kind.to_owned(),
        plural: format!("{}s", kind.to_lowercase()),
    }
}

/// Takes in what is said; whether that makes a difference. While a list is under way, `listed` says so: less is known than there is.
fn take(known: &mut Known, listed: &mut [bool; 4], news: News) -> bool {
    match news {
        News::Export(Event::Init) => {
            listed[0] = false;
            known.forget_exports();
        }
        News::Export(Event::InitApply(object) | Event::Apply(object)) => known.export(&object),
        News::Export(Event::Delete(object)) => known.forget_export(&object.metadata),
        News::Export(Event::InitDone) => listed[0] = true,
        News::Service(Event::Init) => {
            listed[1] = false;
            known.forget_services();
        }
        News::Service(Event::InitApply(object) | Event::Apply(object)) => match object.read() {
            Some(service) => known.service(&service),
            None => known.forget_service(&object.metadata),
        },
        News::Service(Event::Delete(object)) => known.forget_service(&object.metadata),
        News::Service(Event::InitDone) => listed[1] = true,
        News::Slice(Event::Init) => {
            listed[2] = false;
            known.forget_slices();
        }
        News::Slice(Event::InitApply(object) | Event::Apply(object)) => {
            let metadata = object.metadata.clone();
            match watching::seen(Kind::EndpointSlice, object, false).object {
                Ok(Object::EndpointSlice(slice)) => known.slice(&metadata, Some(&slice)),
                _ => known.slice(&metadata, None),
            }
        }
        News::Slice(Event::Delete(object)) => known.forget_slice(&object.metadata),
        News::Slice(Event::InitDone) => listed[2] = true,
        // Where they may not be read it is tried again and again.
        News::Node(Some(Event::Init)) => {
            listed[3] &= !known.forget_nodes();
            return false;
        }
        News::Node(Some(Event::InitApply(node) | Event::Apply(node))) => return known.node(&node),
        News::Node(Some(Event::Delete(node))) => known.forget_node(&node.metadata),
        News::Node(Some(Event::InitDone)) => listed[3] = true,
        News::Node(None) => return !std::mem::replace(&mut listed[3], true),
        News::Pool(_) => {}
    }
    true
}

/// The same of pools.
fn take_pool(known: &mut Known, listed: &mut bool, event: Option<Event<Raw>>) {
    match event {
        None => *listed = false,
        Some(Event::Init) => {
            *listed = false;
            known.forget_pools();
        }
        Some(Event::InitApply(object) | Event::Apply(object)) => {
            let (metadata, status) = (object.metadata.clone(), object.data.get("status").cloned());
            let status = status.and_then(|status| AddressPoolStatus::deserialize(status).ok());
            let pool = match watching::seen(Kind::AddressPool, object, false).object {
                Ok(Object::AddressPool(pool)) => Some(NeighbourPool::of(&pool, status.as_ref())),
                _ => None,
            };
            known.pool(&metadata, pool);
        }
        Some(Event::Delete(object)) => known.pool(&object.metadata, None),
        Some(Event::InitDone) => *listed = true,
    }
}

fn watch_failed(error: &watcher::Error) -> Ended {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => failed(error),
        watcher::Error::WatchError(status) => refused(status),
        watcher::Error::NoResourceVersion => ("Unreachable", error.to_string()),
    }
}

pub(super) fn failed(error: &kube::Error) -> Ended {
    match error {
        kube::Error::Api(status) => refused(status),
        error => {
            // The innermost cause says it best.
            let mut cause: &dyn std::error::Error = error;
            while let Some(source) = cause.source() {
                cause = source;
            }
            ("Unreachable", cause.to_string())
        }
    }
}

pub(super) fn refused(status: &kube::core::Status) -> Ended {
    let reason = match status.code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotServed",
        _ => "Refused",
    };
    // Who knows how long it is.
    (reason, format!("{}: {}", status.code, status.message.chars().take(LONGEST).collect::<String>()))
}
