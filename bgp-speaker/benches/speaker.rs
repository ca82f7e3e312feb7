//! A million prefixes in and out of the pure speaker: prefixes/s, octets/prefix, and each cost as a ratio to the
//! floor of the same run (framing and decoding alone). Without sockets: what the core itself costs.
//!
//! `cargo bench -p bgp-speaker --bench speaker [-- PREFIXES]`
use bgp_speaker::{
    ConnectionId, Endpoints, Time,
    config::{Asn, Family, Global, PeerAsn, PeerConfig},
    speaker::{Input, Output, Speaker},
    wire::{self, AsPath, Attributes, Capability, Context, MAX_LENGTH, Message, Open},
};
use ipnet::{IpNet, Ipv4Net};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// Counts the octets that are allocated.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed to the system's allocator; the count beside it touches no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LIVE.fetch_add(size, Relaxed);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const NOW: Time = Duration::from_secs(1);
/// What a driver reads and writes at once, octets.
const CHUNK: usize = 64 * 1024;

fn main() {
    let count = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1_000_000);
    println!("{count} IPv4 prefixes; processor time of one run (and what the wall clock said)");
    for (name, per_set) in [("one attribute set", count), ("a set for every 10 prefixes", 10)] {
        println!("\n{name}");
        run(count, per_set);
    }
}

fn run(count: u32, per_set: u32) {
    let prefixes: Vec<IpNet> = (0..count).map(prefix).collect();
    let context = context();
    let (mut announcements, mut withdrawals) = (Vec::new(), Vec::new());
    for (set, group) in prefixes.chunks(per_set as usize).enumerate() {
        let attributes = Attributes {
            as_path: AsPath::sequence([65001, 65100, 100_000 + set as u32]),
            ..Attributes::default()
        };
        let next_hop = IpAddr::from([10, 0, 0, 1]).into();
        wire::announce(&attributes, next_hop, group, &context, &mut announcements).expect("fits");
    }
    wire::withdraw(&prefixes, &context, &mut withdrawals).expect("fits");

    let floor = timed(count, "floor: frame and decode", None, || decode_all(&announcements, &context));

    let mut refusing = with_peers(1, false);
    let before = LIVE.load(Relaxed);
    timed(count, "receive, policy refuses", Some(floor), || feed(&mut refusing, &announcements));
    report_memory(before, count);
    drop(refusing);

    let mut alone = with_peers(1, true);
    let before = LIVE.load(Relaxed);
    timed(count, "receive, no other peer", Some(floor), || feed(&mut alone, &announcements));
    report_memory(before, count);
    timed(count, "withdraw, no other peer", Some(floor), || feed(&mut alone, &withdrawals));
    assert!(alone.0.routes().is_empty());
    drop(alone);

    let mut speaker = with_peers(3, true);
    let before = LIVE.load(Relaxed);
    timed(count, "receive, two others wait", Some(floor), || feed(&mut speaker, &announcements));
    report_memory(before, count);
    assert_eq!(speaker.0.peers(NOW)[0].prefixes_received, u64::from(count));

    let before = LIVE.load(Relaxed);
    for (at, name) in [(1, "send to the first peer"), (2, "send to the second peer")] {
        let mut sizes = Vec::new();
        timed(count, name, Some(floor), || sizes = drain(&mut speaker, at));
        let (octets, messages): (usize, usize) = (sizes.iter().sum(), sizes.len());
        let full = sizes.iter().filter(|size| **size > MAX_LENGTH - 32).count();
        println!("    {messages} messages, {octets} octets, {full} full");
    }
    print!("  both Adj-RIBs-Out:");
    report_memory(before, count);
    assert_eq!(speaker.0.peers(NOW)[1].prefixes_sent, u64::from(count));

    timed(count, "receive the same again", Some(floor), || feed(&mut speaker, &announcements));
    assert!(drain(&mut speaker, 1).is_empty(), "what did not change is not sent");
    timed(count, "receive withdrawals", Some(floor), || feed(&mut speaker, &withdrawals));
    for at in [1, 2] {
        timed(count, "send withdrawals", Some(floor), || drain(&mut speaker, at));
    }
    assert!(speaker.0.routes().is_empty());

    feed(&mut speaker, &announcements);
    let (connection, reason) = (speaker.1[0], "closed".to_owned());
    timed(count, "the session in goes down", Some(floor), || {
        speaker.0.handle(Input::Closed { connection, reason }, NOW);
    });
}

/// The speaker and its connections: the first peer sends, the others receive.
type Bench = (Speaker, Vec<ConnectionId>);

fn timed<T>(count: u32, name: &str, floor: Option<f64>, act: impl FnOnce() -> T) -> f64 {
    let (start, before) = (Instant::now(), processor_time());
    let result = act();
    let (wall, seconds) = (start.elapsed().as_secs_f64(), processor_time() - before);
    drop(result);
    let ratio = floor.map(|floor| format!("  {:.1} × floor", seconds / floor)).unwrap_or_default();
    let rate = f64::from(count) / seconds / 1e6;
    let (seconds_in_ms, wall) = (seconds * 1e3, wall * 1e3);
    println!("  {name:28} {seconds_in_ms:7.1} ms ({wall:7.1})  {rate:6.2} M prefixes/s{ratio}");
    seconds
}

/// Seconds that this process has run, to about 4 ms: a busy machine makes the wall clock say little
/// (Documentation/scheduler/sched-stats.rst of the kernel).
fn processor_time() -> f64 {
    let text = std::fs::read_to_string("/proc/self/schedstat").expect("procfs is mounted");
    let nanoseconds = text.split(' ').next().and_then(|field| field.parse::<f64>().ok());
    nanoseconds.expect("the first field is a number of nanoseconds") / 1e9
}

fn report_memory(before: usize, count: u32) {
    let octets = LIVE.load(Relaxed).saturating_sub(before) as f64 / f64::from(count);
    println!("    {octets:.1} octets/prefix");
}

/// Distinct unicast /24 networks in an order that no table likes.
fn prefix(index: u32) -> IpNet {
    // 7 × 2^21 networks lie below 224.0.0.0; the factor has no divisor in common with that.
    let network = (u64::from(index) * 0x9e_3779 % (7 << 21)) as u32;
    Ipv4Net::new(Ipv4Addr::from(network << 8), 24).expect("a length of 24 is one").into()
}

fn context() -> Context {
    Context { four_octet_as: true, families: [Family::Ipv4Unicast].into(), ..Context::default() }
}

fn decode_all(bytes: &[u8], context: &Context) -> usize {
    let (mut rest, mut prefixes) = (bytes, 0);
    while let Ok(Some(message)) = wire::frame(rest, context) {
        rest = &rest[message.len()..];
        if let Ok(decoded) = wire::decode(message, context)
            && let Message::Update(update) = decoded.message
        {
            prefixes += update.announced.map_or(0, |announced| announced.reach[0].prefixes.len());
        }
    }
    prefixes
}

fn with_peers(count: u8, accept: bool) -> Bench {
    let mut speaker = Speaker::new(1);
    let global = Global { asn: Asn(65000), router_id: Ipv4Addr::new(10, 0, 0, 9), listen: [].into() };
    speaker.set_global(global, NOW).expect("valid");
    let configs = (1..=count).map(|host| PeerConfig {
        accept: if accept { vec!["0.0.0.0/0".parse().expect("valid")] } else { vec![] },
        export_learned: host > 1,
        ..PeerConfig::new(IpAddr::from([10, 0, 0, host]), PeerAsn::Is(Asn(65000 + u32::from(host))))
    });
    speaker.set_peers(configs.collect(), NOW).expect("valid");
    let connections = (1..=count).map(|host| establish(&mut speaker, host)).collect();
    (speaker, connections)
}

fn establish(speaker: &mut Speaker, host: u8) -> ConnectionId {
    let connection = speaker.accept_id();
    let end = |host: u8| SocketAddr::from(([10, 0, 0, host], 179));
    let next_hops = [(Family::Ipv4Unicast, IpAddr::from([10, 0, 0, 9]).into())].into();
    let endpoints = Endpoints { local: end(9), remote: end(host), next_hops };
    speaker.handle(Input::Accepted { connection, endpoints }, NOW);
    let asn = Asn(65000 + u32::from(host));
    let open = Open {
        asn,
        hold_seconds: 90,
        router_id: Ipv4Addr::new(10, 0, 0, host),
        capabilities: vec![
            Capability::MultiProtocol(Family::Ipv4Unicast.into()),
            Capability::RouteRefresh,
            Capability::FourOctetAs(asn),
        ],
    };
    let mut bytes = Vec::new();
    for message in [Message::Open(open), Message::Keepalive] {
        message.encode(&Context::default(), &mut bytes).expect("fits");
    }
    speaker.handle(Input::Received { connection, bytes: &bytes }, NOW);
    // OPEN, KEEPALIVE, End-of-RIB.
    speaker.transmit(connection, CHUNK, &mut Vec::new());
    connection
}

fn feed((speaker, connections): &mut Bench, bytes: &[u8]) -> Vec<Output> {
    let connection = connections[0];
    bytes.chunks(CHUNK).flat_map(|bytes| speaker.handle(Input::Received { connection, bytes }, NOW)).collect()
}

/// Takes all that a peer is to be told; the sizes of the messages.
fn drain((speaker, connections): &mut Bench, at: usize) -> Vec<usize> {
    let mut sizes = Vec::new();
    let mut out = Vec::new();
    loop {
        out.clear();
        speaker.transmit(connections[at], CHUNK, &mut out);
        let mut rest = &out[..];
        if rest.is_empty() {
            return sizes;
        }
        while let Ok(Some(message)) = wire::frame(rest, &Context::default()) {
            sizes.push(message.len());
            rest = &rest[message.len()..];
        }
    }
}
