//! A million claims for an address each: processor time, which other load on the machine hardly touches, and octets of the assignments for each address, which is what stays from
//! call to call. The floor of the same run is the state that anybody needs: a hash map with the addresses.
//!
//! `cargo bench -p ipam --bench allocate [-- CLAIMS]`
use ipam::{Assignments, Claim, Family, Held, Name, Pool, Range, Request, Sharing, allocate};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

/// Counts the octets that are allocated.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grow(octets: usize) {
    let live = LIVE.fetch_add(octets, Relaxed) + octets;
    PEAK.fetch_max(live, Relaxed);
}

// SAFETY: everything is passed to the system's allocator; the count beside it touches no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grow(size);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() {
    let count = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1_000_000);
    println!("{count} claims for one IPv4 address each");
    let floor =
        measure(count, || (0..count).map(|n| (IpAddr::V4(Ipv4Addr::from(n)), n)).collect::<HashMap<_, _>>());
    floor.1.report("floor: a hash map of addresses");
    drop(floor);
    let pools = pools();
    let claims = claims(&pools, count);
    let (first, cost) = measure(count, || allocate(&pools, &claims, &Held::default(), 1_000));
    assert_eq!(given(&first), count as usize, "everybody has one");
    cost.report("from nothing");
    let held = first.held();
    drop(first);
    let (second, cost) = measure(count, || allocate(&pools, &claims, &held, 2_000));
    assert_eq!(given(&second), count as usize, "everybody keeps it");
    cost.report("again, with all of them held");
}

/// Two pools with room for all claims up to 16 million, and a third that has none left.
fn pools() -> BTreeMap<Name, Pool> {
    let pool = |first: [u8; 4], last: [u8; 4], priority| Pool {
        blocks: vec![Range::new(first.into(), last.into()).expect("a range")],
        auto_assign: true,
        priority,
        ..Pool::default()
    };
    BTreeMap::from([
        ("wide".into(), pool([10, 0, 0, 0], [10, 255, 255, 255], 0)),
        ("first".into(), pool([172, 16, 0, 0], [172, 16, 255, 255], 1)),
        ("small".into(), pool([192, 0, 2, 0], [192, 0, 2, 255], 2)),
    ])
}

fn claims(pools: &BTreeMap<Name, Pool>, count: u32) -> BTreeMap<Name, Claim> {
    let matching: Arc<BTreeSet<Name>> = Arc::new(pools.keys().cloned().collect());
    let claim = |number| Claim {
        request: Request::Families { pool: None, families: BTreeSet::from([Family::Ipv4]) },
        created: u64::from(number % 1000),
        ports: BTreeSet::from([(6, 80)]),
        sharing: Sharing::Never,
        matching: matching.clone(),
    };
    (0..count)
        .map(|number| (format!("Service/namespace-{}/web-{number}", number % 100).into(), claim(number)))
        .collect()
}

fn given(assignments: &Assignments) -> usize {
    assignments.claims.values().map(|assignment| assignment.addresses.len()).sum()
}

/// What a run takes: processor time, and octets for each claim that the result has, and that there were at most.
struct Cost {
    time: Duration,
    kept: f64,
    peak: f64,
}

fn measure<T>(count: u32, run: impl FnOnce() -> T) -> (T, Cost) {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let start = processor_time();
    let result = run();
    let time = processor_time().saturating_sub(start);
    let each = |octets: usize| (octets - before) as f64 / f64::from(count);
    let (kept, peak) = (each(LIVE.load(Relaxed)), each(PEAK.load(Relaxed)));
    (result, Cost { time, kept, peak })
}

/// Processor time of this thread, up to the last tick: the first number of `schedstat`, ns (proc_pid_schedstat(5)).
fn processor_time() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").expect("Linux has it");
    let busy = stat.split(' ').next().and_then(|busy| busy.parse().ok());
    Duration::from_nanos(busy.expect("a number"))
}

impl Cost {
    fn report(&self, what: &str) {
        let Cost { time, kept, peak } = self;
        println!(
            "  {what:<32} {:>5} ms, {kept:>6.1} octets each stay, {peak:>6.1} at most",
            time.as_millis()
        );
    }
}
