//! What `desired()` costs at 10,000 services with 10 backends each, declared as LoadBalancers and as Kubernetes' Services with
//! EndpointSlices, beside a floor: copying its input. Wall-clock time
//! is that of the fastest and of the median run; processor time, which other load on the machine hardly touches, is
//! the mean. Run with
//! `cargo bench -p controller --no-default-features --bench desired`.
#![expect(clippy::unwrap_used, reason = "a bench may stop")]
use controller::{
    by_name::ByName,
    declared::Declared,
    desired::{Desired, Draft, Memory, desired},
    observed::{Health, NodeInfo, Observed},
    validate::parse_directory,
};
use lb_bpf::{Installed, InstalledService, service::Endpoint};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    fs,
    hint::black_box,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

/// As in the command.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SERVICES: usize = 10_000;
const BACKENDS: usize = 10;
/// Runs of each.
const RUNS: usize = 25;

fn main() {
    let balancers = |check| files(|service| load_balancer(service, check));
    let cases = [
        ("LoadBalancers, no checks", balancers("")),
        ("LoadBalancers, HTTP checks", balancers(CHECK)),
        ("Services with EndpointSlices", files(service_and_slice)),
    ];
    for (name, files) in cases {
        let (declared, observed) = settled(&files);
        println!("{SERVICES} {name}, {BACKENDS} backends each");
        let floor = time(|| (), |()| black_box(copy(&declared, &observed)));
        floor.report("floor: copy the input", &floor);
        time(|| (), |()| black_box(desired(&declared, &observed))).report("desired()", &floor);
        // The first step can be kept while only what is installed changes: the second one alone.
        let finish = |draft: Draft<'_>| black_box(draft.finish(&observed.installed));
        time(|| Draft::new(&declared, &observed), finish).report("  of it routes and statuses", &floor);
        // One object is another one, all else is remembered: the first step, which the datapath waits for, and both.
        let (ways, memory) =
            ([changed(&declared, 1), changed(&declared, 2)], RefCell::new(Memory::default()));
        let turn = Cell::new(0);
        let next = || {
            turn.set(1 - turn.get());
            Draft::remembering(&ways[turn.get()], &observed, memory.take())
        };
        let finish = |draft: Draft<'_>| {
            let (desired, after) = draft.finish_and_remember(&observed.installed);
            memory.replace(after);
            black_box(desired)
        };
        finish(next());
        time(|| (), |()| finish(next())).report("one change", &floor);
        time(next, finish).report("  of it routes and statuses", &floor);
        // What a change of one file costs beyond reading it.
        time(|| (), |()| black_box(declared.clone())).report("clone of Declared", &floor);
    }
}

/// The same with one backend less somewhere.
fn changed(declared: &Declared, nth: usize) -> Arc<Declared> {
    fn renew<T: Clone>(objects: &mut ByName<T>, nth: usize, change: impl Fn(&mut T)) {
        if let Some(name) = objects.keys().nth(nth).cloned()
            && let Some(object) = objects.get_mut(&name)
        {
            change(Arc::make_mut(object));
        }
    }
    let mut declared = declared.clone();
    renew(&mut declared.load_balancers, nth, |object| drop(object.spec.backends.pop()));
    renew(&mut declared.endpoint_slices, nth, |object| {
        object.endpoints = object.endpoints.iter().skip(1).cloned().collect();
    });
    Arc::new(declared)
}

/// All objects, statuses and results of checks, shared or not.
fn copy(declared: &Declared, observed: &Observed) -> impl Sized {
    fn all<T: Clone>(objects: &ByName<T>) -> Vec<(String, T)> {
        objects.iter().map(|(name, object)| (name.clone(), (**object).clone())).collect()
    }
    let objects = (all(&declared.load_balancers), all(&declared.services), all(&declared.endpoint_slices));
    let statuses = (all(&declared.statuses.load_balancers), all(&declared.statuses.services));
    (objects, statuses, (*observed.health).clone())
}

const CHECK: &str = ", policy: {healthCheck: {http: {path: /healthz}}}";

/// The objects of all services, and what they need. Files are limited in size.
fn files(objects: impl Fn(usize) -> String) -> BTreeMap<PathBuf, String> {
    let first = String::from(
        "kind: AddressPool\nmetadata: {name: vips}\nspec: {blocks: [{cidr: 10.64.0.0/16}]}\n---\n\
         kind: BGPRouter\nmetadata: {name: tor}\nspec: {asn: 65010}\n---\n\
         kind: BGPPeer\nmetadata: {name: tor}\nspec: {address: 10.0.0.1, asn: 65000}\n---\n\
         kind: BGPAdvertisement\nmetadata: {name: all}\nspec: {attributes: {communities: [\"65010:100\"]}}\n",
    );
    let objects: Vec<_> = (0..SERVICES).map(objects).collect();
    let texts = std::iter::once(first).chain(objects.chunks(1000).map(<[String]>::concat));
    texts.enumerate().map(|(index, text)| (PathBuf::from(format!("{index}.yaml")), text)).collect()
}

fn load_balancer(service: usize, check: &str) -> String {
    let backends =
        backends(service).map(|address| format!("{{address: {address}}}")).collect::<Vec<_>>().join(", ");
    format!(
        "---\nkind: LoadBalancer\nmetadata: {{name: service-{service}, labels: {{app: app-{service}}}}}\n\
         spec: {{ports: [{{name: http, port: 80, targetPort: 8080}}], backends: [{backends}]{check}}}\n"
    )
}

fn service_and_slice(service: usize) -> String {
    let metadata = format!("name: service-{service}, namespace: namespace-{}", service % 100);
    let endpoints =
        backends(service).map(|address| format!("{{addresses: [{address}]}}")).collect::<Vec<_>>().join(", ");
    format!(
        "---\nkind: Service\nmetadata: {{{metadata}, labels: {{app: app-{service}}}}}\n\
         spec: {{type: LoadBalancer, loadBalancerClass: fairlead.dev/lb, ports: [{{name: http, port: 80}}]}}\n\
         ---\nkind: EndpointSlice\nmetadata: {{{metadata}, labels: {{kubernetes.io/service-name: service-{service}}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: [{endpoints}]\n"
    )
}

/// Addresses of the backends of a service.
fn backends(service: usize) -> impl Iterator<Item = String> {
    let hosts = (0..BACKENDS).map(move |backend| service * BACKENDS + backend);
    hosts.map(|host| format!("10.{}.{}.{}", 128 + (host >> 16), (host >> 8) & 255, host & 255))
}

/// Everything declared, given, healthy, installed and announced.
fn settled(files: &BTreeMap<PathBuf, String>) -> (Declared, Observed) {
    let mut declared = parse_directory(files).unwrap_or_else(|faults| panic!("{}", faults[0]));
    let mut observed = Observed {
        node: NodeInfo {
            name: "lb1".into(),
            addresses: BTreeSet::from(["10.0.0.2".parse().unwrap()]),
            gateway: None,
        },
        established: BTreeSet::from(["10.0.0.1".parse().unwrap()]),
        now: 1_000_000,
        ..Observed::default()
    };
    let mut last = Desired::default();
    for _ in 0..4 {
        let next = desired(&declared, &observed);
        declared.statuses = (*next.status).clone();
        let healthy =
            |endpoints: &BTreeSet<Endpoint>| endpoints.iter().map(|e| (*e, Health::Healthy)).collect();
        let healths = next.targets.iter().map(|(check, endpoints)| (check.clone(), healthy(endpoints)));
        observed.health = Arc::new(healths.collect());
        observed.installed = Arc::new(installed(&next));
        last = next;
    }
    assert_eq!(last.datapath.services.len(), SERVICES);
    assert_eq!(last.routes.len(), SERVICES, "all are announced");
    assert_eq!(desired(&declared, &observed), last, "settled");
    (declared, observed)
}

fn installed(desired: &Desired) -> Installed {
    let services = desired.datapath.services.iter().map(|(key, service)| {
        let slots: BTreeMap<_, _> = service.backends.keys().map(|endpoint| (*endpoint, 101)).collect();
        let frontends = service.frontends.clone();
        let held = InstalledService { frontends, table_size: 1009, slots, resolved: true };
        (key.clone(), Arc::new(held))
    });
    Installed { services: services.collect(), ..Installed::default() }
}

/// What one run takes.
struct Cost {
    fastest: Duration,
    median: Duration,
    processor: Duration,
}

fn time<A, B>(prepare: impl Fn() -> A, run: impl Fn(A) -> B) -> Cost {
    let mut processor = Duration::ZERO;
    let mut times: Vec<_> = (0..RUNS)
        .map(|_| {
            let input = prepare();
            let (start, busy) = (Instant::now(), processor_time());
            let result = run(input);
            let time = start.elapsed();
            processor += processor_time().saturating_sub(busy);
            drop(result);
            time
        })
        .collect();
    times.sort();
    Cost { fastest: times[0], median: times[RUNS / 2], processor: processor / RUNS as u32 }
}

/// Processor time of this thread, up to the last tick: the first number of `schedstat`, ns (proc_pid_schedstat(5)).
fn processor_time() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

impl Cost {
    fn report(&self, what: &str, floor: &Cost) {
        let ratio = self.processor.as_secs_f64() / floor.processor.as_secs_f64();
        println!(
            "  {what:<28} {:>9.1?} fastest, {:>9.1?} median, {:>9.1?} processor, {ratio:>5.2} × floor",
            self.fastest, self.median, self.processor
        );
    }
}
