//! Random histories of declarations, health, failures and restarts, against fakes that watch the order of things:
//! no route is ever known to a peer for which the datapath holds no VIP.
use super::*;
use crate::{
    appliers::Events,
    observed::{Failure, Health, NodeInfo},
    status::StatusSet,
    store::{FileStore, StoreError, files::tests::Scratch},
    validate::parse_directory,
};
use bgp_speaker::PeerId;
use bgp_speaker::config::{BmpStation, Global, PeerConfig, PeerRange, Route};
use futures::{future::BoxFuture, stream};
use ipnet::IpNet;
use lb_bpf::{
    Counter, FlowEvent, InstalledService,
    service::{self, Endpoint, Frontend, ServiceKey},
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::Mutex,
};

/// The steps of a pass that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fail {
    /// Nothing was changed.
    Install,
    /// The first half of the services was installed.
    InstallHalf,
    Global,
    Peers,
    Routes,
    Prune,
    Publish,
    /// Not a step of a pass.
    Sampling,
}

const FAILURES: [Fail; 7] =
    [Fail::Install, Fail::InstallHalf, Fail::Global, Fail::Peers, Fail::Routes, Fail::Prune, Fail::Publish];

#[derive(Debug, thiserror::Error)]
#[error("made to fail")]
struct Failed;

/// What the kernel, the peers and the disk hold.
#[derive(Default)]
struct World {
    fails: BTreeSet<Fail>,
    held: BTreeMap<ServiceKey, InstalledService>,
    named: BTreeMap<ServiceKey, BTreeSet<Frontend>>,
    unresolved: bool,
    filters: BTreeSet<String>,
    sampled: Option<NonZeroU32>,
    routes: Arc<Vec<Route>>,
    /// Peers may forget what the process before announced.
    complete: bool,
    /// What peers may have been told and not been told otherwise.
    known: BTreeSet<IpNet>,
    statuses: StatusSet,
    violations: Vec<String>,
}

impl World {
    fn fail(&self, fail: Fail) -> Result<(), Failed> {
        if self.fails.contains(&fail) { Err(Failed) } else { Ok(()) }
    }

    fn vips(&self) -> BTreeSet<IpAddr> {
        self.held.values().flat_map(|held| &held.frontends).map(|frontend| frontend.address).collect()
    }

    /// To be called after every change of either side.
    fn check(&mut self, step: &str) {
        let vips = self.vips();
        for prefix in self.known.iter().filter(|prefix| !vips.iter().any(|vip| prefix.contains(vip))) {
            self.violations
                .push(format!("after {step}: {prefix} is announced, and the datapath holds no such VIP"));
        }
    }
}

type Shared = Arc<Mutex<World>>;

struct FakeDatapath(Shared);

impl Datapath for FakeDatapath {
    type Error = Failed;
    type Events = NoEvents;

    fn installed(&self) -> Arc<Installed> {
        let world = self.0.lock().unwrap();
        let held = world.held.iter().map(|(key, held)| (key.clone(), Arc::new(held.clone())));
        let (services, filters) = (held.collect(), world.filters.clone());
        Arc::new(Installed { services, filters, ..Installed::default() })
    }

    async fn install(&mut self, desired: &service::Desired) -> Result<Arc<Installed>, Failed> {
        let mut world = self.0.lock().unwrap();
        world.fail(Fail::Install)?;
        let half = world.fail(Fail::InstallHalf).is_err();
        let count = if half { desired.services.len() / 2 } else { desired.services.len() };
        let mut installed = Installed::default();
        for (key, service) in desired.services.iter().take(count) {
            // A frontend belongs to one service; it moves, and never is gone.
            for (_, other) in world.held.iter_mut().filter(|(other, _)| *other != key) {
                other.frontends.retain(|frontend| !service.frontends.contains(frontend));
            }
            let resolved = !world.unresolved;
            let held = world.held.entry(key.clone()).or_default();
            held.frontends.extend(service.frontends.iter().copied());
            held.slots = service
                .backends
                .iter()
                .map(|(endpoint, target)| (*endpoint, if target.up { target.weight.into() } else { 0 }))
                .collect();
            held.resolved = resolved && held.slots.values().any(|slots| *slots > 0);
            // What else it holds goes when it is pruned.
            let held = InstalledService { frontends: service.frontends.clone(), ..held.clone() };
            installed.services.insert(key.clone(), Arc::new(held));
        }
        world.filters = desired.filters.keys().cloned().collect();
        installed.filters = world.filters.clone();
        world.check("install");
        if half {
            return Err(Failed);
        }
        world.named = desired.services.iter().map(|(key, s)| (key.clone(), s.frontends.clone())).collect();
        Ok(Arc::new(installed))
    }

    async fn prune(&mut self) -> Result<(), Failed> {
        let mut world = self.0.lock().unwrap();
        world.fail(Fail::Prune)?;
        let named = world.named.clone();
        world.held.retain(|key, held| {
            held.frontends.retain(|frontend| named.get(key).is_some_and(|named| named.contains(frontend)));
            !held.frontends.is_empty()
        });
        world.check("prune");
        Ok(())
    }

    async fn changed(&mut self) {
        std::future::pending().await
    }

    fn sweep(&mut self) -> Result<(), Failed> {
        Ok(())
    }

    fn filter_counters(&self) -> Result<FilterCounters, Failed> {
        let counter = Counter { packets: 7, bytes: 420, flows: 0 };
        Ok(self.0.lock().unwrap().filters.iter().map(|rule| (rule.clone(), counter)).collect())
    }

    fn dirty_slots(&self) -> Result<BTreeMap<ServiceKey, DirtySlots>, Failed> {
        Ok(BTreeMap::new())
    }

    fn events(&self) -> Result<NoEvents, Failed> {
        Ok(NoEvents)
    }

    fn set_sampling(&mut self, one_in: Option<NonZeroU32>) -> Result<(), Failed> {
        let mut world = self.0.lock().unwrap();
        world.fail(Fail::Sampling)?;
        world.sampled = one_in;
        Ok(())
    }
}

struct NoEvents;

impl Events for NoEvents {
    type Error = Failed;

    async fn next(&mut self) -> Result<Vec<FlowEvent>, Failed> {
        std::future::pending().await
    }
}

struct FakeSpeaker(Shared);

impl Speaker for FakeSpeaker {
    type Error = Failed;

    async fn set_global(&self, _: Global) -> Result<(), Failed> {
        self.0.lock().unwrap().fail(Fail::Global)
    }

    async fn set_peers(&self, _: Vec<PeerConfig>) -> Result<(), Failed> {
        self.0.lock().unwrap().fail(Fail::Peers)
    }

    async fn set_ranges(&self, _: Vec<PeerRange>) -> Result<(), Failed> {
        Ok(())
    }

    async fn set_stations(&self, _: Vec<BmpStation>) -> Result<(), Failed> {
        Ok(())
    }

    async fn set_routes(&self, routes: Arc<Vec<Route>>) -> Result<(), Failed> {
        let mut world = self.0.lock().unwrap();
        world.fail(Fail::Routes)?;
        world.known.extend(routes.iter().map(|route| route.prefix));
        world.routes = routes;
        world.check("set_routes");
        Ok(())
    }

    async fn routes_complete(&self) {
        self.0.lock().unwrap().complete = true;
    }

    async fn flushed(&self) {
        let mut world = self.0.lock().unwrap();
        world.known = world.routes.iter().map(|route| route.prefix).collect();
    }

    async fn established(&self) -> BTreeSet<PeerId> {
        BTreeSet::from(["10.0.0.1".parse().unwrap()])
    }

    fn changes(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }
}

struct FakeStore(Shared);

impl Store for FakeStore {
    fn watch(&self) -> BoxStream<'static, Arc<Declared>> {
        stream::pending().boxed()
    }

    fn publish<'a>(&'a self, status: &'a StatusSet) -> BoxFuture<'a, Result<(), StoreError>> {
        let mut world = self.0.lock().unwrap();
        let result = world.fail(Fail::Publish).map_err(|Failed| StoreError::NotStatus {
            path: PathBuf::from("status.json"),
            reason: "made to fail".to_owned(),
        });
        if result.is_ok() {
            world.statuses = status.clone();
        }
        Box::pin(async { result })
    }

    fn leader(&self) -> watch::Receiver<bool> {
        watch::channel(true).1
    }

    fn faults(&self) -> watch::Receiver<Vec<crate::fault::Fault>> {
        watch::channel(Vec::new()).1
    }
}

struct NoChecks;

impl Checker for NoChecks {
    fn set_targets(&mut self, _: &Targets) {}

    async fn results(&mut self) -> Vec<CheckResult> {
        std::future::pending().await
    }
}

/// Its clock is that of tokio, which tests may wind.
struct FakeHost(tokio::time::Instant);

impl Host for FakeHost {
    fn node(&mut self) -> NodeInfo {
        let addresses = BTreeSet::from(["10.0.0.2".parse().unwrap()]);
        NodeInfo { name: "lb1".to_owned(), addresses, gateway: None }
    }

    fn now(&self) -> u64 {
        1_000_000 + self.0.elapsed().as_secs()
    }
}

type Fake = Reconciler<FakeStore, FakeDatapath, FakeSpeaker, NoChecks, FakeHost>;

fn start(world: &Shared) -> Fake {
    start_with(world, watch::channel(0).1)
}

fn start_with(world: &Shared, followers: watch::Receiver<usize>) -> Fake {
    let store = Arc::new(FakeStore(world.clone()));
    let (datapath, speaker) = (FakeDatapath(world.clone()), FakeSpeaker(world.clone()));
    Reconciler::new(store, datapath, speaker, NoChecks, FakeHost(tokio::time::Instant::now()), followers).0
}

/// What users may have written: each of these is there or not.
const OBJECTS: [&str; 11] = [
    "kind: AddressPool\nmetadata: {name: vips}\nspec: {blocks: [{cidr: 203.0.113.0/30}], reuseDelaySeconds: 60}",
    "kind: LoadBalancer\nmetadata: {name: a}\nspec: {ports: [{port: 80}], backends: [{address: 10.1.0.1}, {address: 10.1.0.2}], policy: {healthCheck: {tcp: {}}}}",
    "kind: LoadBalancer\nmetadata: {name: b}\nspec: {addresses: [203.0.113.1], ports: [{port: 80}, {port: 443}], backends: [{address: 10.1.0.1}]}",
    "kind: LoadBalancer\nmetadata: {name: c}\nspec: {addresses: [203.0.113.1], ports: [{port: 8080}], backends: [{address: 10.1.0.2}], policy: {healthCheck: {tcp: {port: 80}}}}",
    "kind: LoadBalancer\nmetadata: {name: d, labels: {app: d}}\nspec: {addresses: [203.0.113.2, '2001:db8::1'], ports: [{port: 80}], backends: [{address: 10.1.0.1}, {address: '2001:db8:1::1'}], policy: {forwarding: {mode: IPIP}}}",
    "kind: BGPAdvertisement\nmetadata: {name: all}\nspec: {}",
    "kind: BGPAdvertisement\nmetadata: {name: two}\nspec: {minHealthy: 2, aggregate: {ipv4: 24}}",
    "kind: BGPAdvertisement\nmetadata: {name: dead-or-alive}\nspec: {minHealthy: 0, serviceSelector: {matchLabels: {app: d}}}",
    "kind: BGPRouter\nmetadata: {name: r}\nspec: {asn: 65010}",
    "kind: BGPRouter\nmetadata: {name: r}\nspec: {asn: 65010, nodeSelector: {matchLabels: {role: lb}}}",
    "kind: LoadBalancer\nmetadata: {name: b}\nspec: {addresses: [203.0.113.1, 203.0.113.3], ports: [{port: 80}, {port: 443}], backends: [{address: 10.1.0.1}]}",
];

const PEER: &str = "kind: BGPPeer\nmetadata: {name: tor}\nspec: {address: 10.0.0.1, asn: 65000}";

fn declared(present: &BTreeSet<usize>, statuses: StatusSet) -> Arc<Declared> {
    let mut present = present.clone();
    // Of two with the same name the first counts.
    for (first, second) in [(8, 9), (2, 10)] {
        if present.contains(&first) {
            present.remove(&second);
        }
    }
    let objects = present.iter().map(|index| OBJECTS[*index]).chain([PEER]).collect::<Vec<_>>();
    let files = BTreeMap::from([(PathBuf::from("all.yaml"), objects.join("\n---\n"))]);
    Arc::new(Declared { statuses, ..parse_directory(&files).unwrap() })
}

#[derive(Clone, Debug)]
enum Step {
    /// One object appears or disappears.
    Toggle(usize),
    /// The checks say something of one of two backends.
    Health(u8, bool),
    /// Next hops are lost or found.
    Unresolved(bool),
    /// The process is killed and comes back.
    Restart,
    Nothing,
}

fn step() -> impl Strategy<Value = (Step, BTreeSet<Fail>)> {
    let step = prop_oneof![
        6 => (0..OBJECTS.len()).prop_map(Step::Toggle),
        4 => Just(Step::Toggle(2)),
        4 => (1..3u8, any::<bool>()).prop_map(|(backend, healthy)| Step::Health(backend, healthy)),
        1 => any::<bool>().prop_map(Step::Unresolved),
        1 => Just(Step::Restart),
        2 => Just(Step::Nothing),
    ];
    let fails = prop_oneof![
        2 => Just(Vec::new()),
        1 => prop::sample::subsequence(FAILURES.to_vec(), 1..3),
    ];
    (step, fails.prop_map(|fails| fails.into_iter().collect()))
}

/// Makes a pass with what has come back from the store.
async fn pass(fake: &mut Fake, world: &Shared, present: &BTreeSet<usize>) -> bool {
    let statuses = world.lock().unwrap().statuses.clone();
    fake.declared = Some(declared(present, statuses));
    fake.pass().await
}

async fn play(steps: Vec<(Step, BTreeSet<Fail>)>) -> Result<(), TestCaseError> {
    let world = Shared::default();
    let mut fake = start(&world);
    let mut present: BTreeSet<usize> = [0, 1, 5, 8, 10].into();
    for (step, fails) in steps {
        world.lock().unwrap().fails = fails.clone();
        match step {
            Step::Toggle(index) => {
                if !present.remove(&index) {
                    present.insert(index);
                }
            }
            Step::Health(backend, healthy) => {
                let draft_targets = fake.view.borrow().desired.targets.clone();
                let address: IpAddr = [10, 1, 0, backend].into();
                let health = if healthy { Health::Healthy } else { Health::Unhealthy(Failure::TimedOut) };
                let of_backend = draft_targets.iter().flat_map(|(check, endpoints)| {
                    let endpoints =
                        endpoints.iter().copied().filter(move |endpoint| endpoint.address == address);
                    endpoints.map(move |endpoint| CheckResult { check: check.clone(), endpoint, health })
                });
                fake.note(of_backend.collect());
            }
            Step::Unresolved(unresolved) => world.lock().unwrap().unresolved = unresolved,
            Step::Restart => {
                world.lock().unwrap().fails.clear();
                // Until nothing is under way.
                for _ in 0..3 {
                    prop_assert!(pass(&mut fake, &world, &present).await);
                }
                let snapshot = |world: &Shared| {
                    let world = world.lock().unwrap();
                    let slots: Vec<_> =
                        world.held.iter().map(|(key, held)| (key.clone(), held.clone())).collect();
                    (slots, world.routes.clone())
                };
                let before = snapshot(&world);
                world.lock().unwrap().complete = false;
                fake = start(&world);
                prop_assert!(pass(&mut fake, &world, &present).await);
                prop_assert_eq!(snapshot(&world), before, "a restart moved something");
                prop_assert!(world.lock().unwrap().complete);
            }
            Step::Nothing => {}
        }
        let complete = pass(&mut fake, &world, &present).await;
        let violations = std::mem::take(&mut world.lock().unwrap().violations);
        prop_assert!(violations.is_empty(), "{}", violations.join("\n"));
        let is_router_there = present.contains(&8);
        let fatal = fails.iter().any(|fail| *fail != Fail::Global || is_router_there);
        if !matches!(step, Step::Restart) && fatal {
            prop_assert!(!complete, "{:?} went unnoticed", fails);
            prop_assert!(fake.view.borrow().last_error.is_some());
        }
    }
    // Whatever had failed: without failures everything comes right.
    world.lock().unwrap().fails.clear();
    for _ in 0..3 {
        prop_assert!(pass(&mut fake, &world, &present).await);
    }
    let (view, world) = (fake.view.borrow().clone(), world.lock().unwrap());
    prop_assert!(view.ready && view.last_error.is_none());
    let held: BTreeMap<_, _> =
        world.held.iter().map(|(key, held)| (key.clone(), held.frontends.clone())).collect();
    let wanted = view.desired.datapath.services.iter().map(|(key, s)| (key.clone(), s.frontends.clone()));
    prop_assert_eq!(held, wanted.collect::<BTreeMap<_, _>>());
    prop_assert_eq!(&world.routes, &view.desired.routes);
    prop_assert_eq!(&world.statuses, &*view.desired.status);
    Ok(())
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

proptest! {
    #[test]
    fn nothing_is_announced_that_is_not_held(steps in prop::collection::vec(step(), 1..24)) {
        block_on(play(steps))?;
    }
}

#[test]
fn what_was_pruned_does_not_count_as_installed() {
    block_on(async {
        let world = Shared::default();
        let mut fake = start(&world);
        let (two, one): (BTreeSet<usize>, BTreeSet<usize>) = ([5, 8, 10].into(), [2, 5, 8].into());
        for present in [&two, &two, &one] {
            assert!(pass(&mut fake, &world, present).await);
        }
        // The second address is wanted again, and the datapath cannot.
        world.lock().unwrap().fails = BTreeSet::from([Fail::Install]);
        for _ in 0..2 {
            assert!(!pass(&mut fake, &world, &two).await);
        }
        let world = world.lock().unwrap();
        assert_eq!(world.violations, [""; 0]);
        assert_eq!(world.routes.len(), 1);
    });
}

#[test]
fn an_unreachable_store_gives_no_address_and_takes_none() {
    block_on(async {
        let world = Shared::default();
        let mut fake = start(&world);
        let present: BTreeSet<usize> = [0, 2, 5, 8].into();
        world.lock().unwrap().fails = BTreeSet::from([Fail::Publish]);
        for _ in 0..3 {
            assert!(!pass(&mut fake, &world, &present).await);
        }
        assert!(world.lock().unwrap().held.is_empty(), "an address took effect that is written nowhere");
        world.lock().unwrap().fails.clear();
        pass(&mut fake, &world, &present).await;
        pass(&mut fake, &world, &present).await;
        let held = world.lock().unwrap().held.clone();
        assert_eq!(held.len(), 2);
        world.lock().unwrap().fails = BTreeSet::from([Fail::Publish]);
        assert!(!pass(&mut fake, &world, &present).await);
        assert_eq!(world.lock().unwrap().held, held);
        assert_eq!(world.lock().unwrap().routes.len(), 1);
        assert!(fake.view.borrow().last_error.as_ref().unwrap().starts_with("store.publish: "));
    });
}

#[test]
fn what_is_gone_from_the_targets_is_forgotten() {
    block_on(async {
        let world = Shared::default();
        let mut fake = start(&world);
        let mut present: BTreeSet<usize> = [0, 1].into();
        pass(&mut fake, &world, &present).await;
        let targets = fake.view.borrow().desired.targets.clone();
        let (check, endpoints) = targets.first_key_value().unwrap();
        let result =
            |endpoint: Endpoint| CheckResult { check: check.clone(), endpoint, health: Health::Healthy };
        fake.note(endpoints.iter().copied().map(result).collect());
        pass(&mut fake, &world, &present).await;
        assert_eq!(fake.observed.health.values().map(BTreeMap::len).sum::<usize>(), 2);
        present.remove(&1);
        pass(&mut fake, &world, &present).await;
        assert!(fake.observed.health.is_empty());
    });
}

/// A packet filter that expires 40 s after the begin of the fake host's clock, and one that does not.
const FILTERS: &str = "kind: PacketFilter\nmetadata: {name: brief}\nspec: {rules: [{action: Drop, protocol: UDP}], \
                       expiresAt: '1970-01-12T13:47:20Z'}\n---\n\
                       kind: PacketFilter\nmetadata: {name: long}\nspec: {rules: [{name: all, action: Count}]}";

fn filters() -> Arc<Declared> {
    Arc::new(parse_directory(&BTreeMap::from([(PathBuf::from("pf.yaml"), FILTERS.to_owned())])).unwrap())
}

/// Until it is so, in virtual time; seconds since `start`.
async fn seconds_until(start: Instant, is_so: impl Fn() -> bool) -> u64 {
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    let wait = async {
        while !is_so() {
            ticks.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(600), wait).await.expect("in time");
    start.elapsed().as_secs()
}

#[tokio::test(start_paused = true)]
async fn the_loop_wakes_when_a_filter_expires() {
    let (world, start_of_clock) = (Shared::default(), Instant::now());
    let mut fake = start(&world);
    fake.declared = Some(filters());
    let view = fake.view.subscribe();
    let running = tokio::spawn(fake.run(prometheus_histogram()));
    let rules = || world.lock().unwrap().filters.iter().cloned().collect::<Vec<_>>();
    let both = ["PacketFilter/brief/0", "PacketFilter/long/all"];
    // Without any event the first pass is that of the timer.
    assert_eq!(seconds_until(start_of_clock, || rules() == both).await, SLOWEST.as_secs());
    assert_eq!(seconds_until(start_of_clock, || rules() == both[1..]).await, 40);
    let status = |view: &View, name: &str| view.desired.status.packet_filters[name].clone();
    let is_counted = || status(&view.borrow(), "long").rules[0].packets == 7;
    seconds_until(start_of_clock, is_counted).await;
    let brief = status(&view.borrow(), "brief");
    let stands: Vec<_> = brief.conditions.iter().map(|c| (&*c.type_, &*c.status, &*c.reason)).collect();
    assert_eq!(
        stands,
        [("Accepted", "True", "Valid"), ("Active", "False", "Expired"), ("Programmed", "False", "Expired")]
    );
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn packets_are_sampled_while_somebody_follows() {
    let (world, start_of_clock) = (Shared::default(), Instant::now());
    let (followers, count) = watch::channel(0);
    // As the process before left it.
    world.lock().unwrap().sampled = Some(SAMPLED);
    let running = tokio::spawn(start_with(&world, count).run(prometheus_histogram()));
    let sampled = || world.lock().unwrap().sampled;
    assert_eq!(seconds_until(start_of_clock, || sampled().is_none()).await, 0);
    followers.send_replace(1);
    assert_eq!(seconds_until(start_of_clock, || sampled() == Some(SAMPLED)).await, 0);
    followers.send_replace(2);
    world.lock().unwrap().fails.insert(Fail::Sampling);
    followers.send_replace(0);
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(sampled(), Some(SAMPLED), "made to fail");
    world.lock().unwrap().fails.clear();
    let until = seconds_until(start_of_clock, || sampled().is_none()).await;
    assert!(until <= 5 + SWEEP.as_secs(), "tried again with every sweep: {until}");
    running.abort();
}

#[test]
fn a_filter_that_could_not_be_installed_is_not_said_to_be() {
    block_on(async {
        let world = Shared::default();
        let mut fake = start(&world);
        fake.declared = Some(filters());
        let programmed = |fake: &Fake| {
            let status = &fake.view.borrow().desired.status.packet_filters["long"];
            let condition = status.conditions.iter().find(|c| c.type_ == "Programmed").unwrap();
            (condition.status.clone(), condition.reason.clone())
        };
        let said = |status: &str, reason: &str| (status.to_owned(), reason.to_owned());
        world.lock().unwrap().fails = BTreeSet::from([Fail::Install]);
        fake.pass().await;
        assert_eq!(programmed(&fake), said("False", "NotInstalled"));
        world.lock().unwrap().fails.clear();
        fake.pass().await;
        assert_eq!(programmed(&fake), said("True", "Installed"));
        // What is installed stays.
        world.lock().unwrap().fails = BTreeSet::from([Fail::Install]);
        fake.pass().await;
        assert_eq!(programmed(&fake), said("True", "Installed"));
    });
}

/// Prints the time from the rename of the file to the call of the datapath: that of the kernel's maps is not in it. It
/// depends on the machine and is not judged; that the filter comes is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_in_a_file_reaches_the_datapath() {
    let (config, state, world) = (Scratch::new(), Scratch::new(), Shared::default());
    let store = Arc::new(FileStore::open(&config.path(""), &state.path("")).unwrap());
    let (datapath, speaker) = (FakeDatapath(world.clone()), FakeSpeaker(world.clone()));
    let (host, followers) = (FakeHost(Instant::now()), watch::channel(0).1);
    let (reconciler, _view) = Reconciler::new(store, datapath, speaker, NoChecks, host, followers);
    let running = tokio::spawn(reconciler.run(prometheus_histogram()));
    let mut took = Vec::new();
    for number in 0..8 {
        let name = format!("f{number}");
        let text =
            format!("kind: PacketFilter\nmetadata: {{name: {name}}}\nspec: {{rules: [{{action: Count}}]}}\n");
        let start = Instant::now();
        config.put(&format!("{name}.yaml"), &text);
        let key = format!("PacketFilter/{name}/0");
        let mut ticks = tokio::time::interval(Duration::from_millis(1));
        let wait = async {
            while !world.lock().unwrap().filters.contains(&key) {
                ticks.tick().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.expect("in time");
        took.push(start.elapsed());
    }
    running.abort();
    took.sort();
    println!("file written → datapath called: {took:.1?}");
}

fn prometheus_histogram() -> Histogram {
    crate::serve::instance::Instance::pass_histogram().unwrap()
}
