//! What `desired()` costs at 10,000 services with 10 backends each, beside a floor: copying its input. Wall-clock time
//! is that of the fastest and of the median run; processor time, which other load on the machine hardly touches, is
//! the mean. Run with
//! `cargo bench -p controller --no-default-features --bench desired`.
#![expect(clippy::unwrap_used, reason = "a bench may stop")]
use controller::{
    declared::Declared,
    desired::{Desired, Draft, desired},
    observed::{Health, NodeInfo, Observed},
    validate::parse_directory,
};
use lb_bpf::{Installed, InstalledService, service::Endpoint};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
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
    for (name, check) in [("no checks", ""), ("HTTP checks", CHECK)] {
        let (declared, observed) = settled(check);
        println!("{SERVICES} services × {BACKENDS} backends, {name}");
        let floor = time(|| (), |()| black_box(copy(&declared, &observed)));
        floor.report("floor: copy the input", &floor);
        time(|| (), |()| black_box(desired(&declared, &observed))).report("desired()", &floor);
        // The first step can be kept while only what is installed changes: the second one alone.
        let finish = |draft: Draft<'_>| black_box(draft.finish(&observed.installed));
        time(|| Draft::new(&declared, &observed), finish).report("  of it routes and statuses", &floor);
        // What a change of one file costs beyond reading it.
        time(|| (), |()| black_box(declared.clone())).report("clone of Declared", &floor);
    }
}

/// All objects, statuses and results of checks, shared or not.
fn copy(declared: &Declared, observed: &Observed) -> impl Sized {
    let objects: Vec<_> = declared.load_balancers.iter().map(|(n, o)| (n.clone(), (**o).clone())).collect();
    let statuses = &declared.statuses.load_balancers;
    let statuses: Vec<_> = statuses.iter().map(|(n, s)| (n.clone(), (**s).clone())).collect();
    (objects, statuses, (*observed.health).clone())
}

const CHECK: &str = ", policy: {healthCheck: {http: {path: /healthz}}}";

/// Everything declared, given, healthy, installed and announced.
fn settled(check: &str) -> (Declared, Observed) {
    let mut objects = String::from(
        "kind: AddressPool\nmetadata: {name: vips}\nspec: {blocks: [{cidr: 10.64.0.0/16}]}\n---\n\
         kind: BGPRouter\nmetadata: {name: tor}\nspec: {asn: 65010}\n---\n\
         kind: BGPPeer\nmetadata: {name: tor}\nspec: {address: 10.0.0.1, asn: 65000}\n---\n\
         kind: BGPAdvertisement\nmetadata: {name: all}\nspec: {attributes: {communities: [\"65010:100\"]}}\n",
    );
    for service in 0..SERVICES {
        let backends: Vec<_> = (0..BACKENDS)
            .map(|backend| {
                let host = service * BACKENDS + backend;
                format!("{{address: 10.{}.{}.{}}}", 128 + (host >> 16), (host >> 8) & 255, host & 255)
            })
            .collect();
        let backends = backends.join(", ");
        write!(
            objects,
            "---\nkind: LoadBalancer\nmetadata: {{name: service-{service}, labels: {{app: app-{service}}}}}\n\
             spec: {{ports: [{{name: http, port: 80, targetPort: 8080}}], backends: [{backends}]{check}}}\n"
        )
        .unwrap();
    }
    // Files are limited in size.
    let files = objects.split_inclusive("---\n").collect::<Vec<_>>();
    let files = files.chunks(1000).enumerate();
    let files = files.map(|(index, chunk)| (PathBuf::from(format!("{index}.yaml")), chunk.concat()));
    let mut declared = parse_directory(&files.collect()).unwrap_or_else(|faults| panic!("{}", faults[0]));
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
        declared.statuses = next.status.clone();
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
