//! The codec: prefixes/s written and read, each cost as a ratio to the floor of the same run, a copy of the same
//! octets.
//!
//! `cargo bench -p bgp-speaker --bench wire [-- PREFIXES]`
use bgp_speaker::{
    config::Family,
    wire::{AsPath, Attributes, Community, Context, Message, NextHop, announce, decode, frame, withdraw},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

/// The best of so many runs: what the machine does besides only adds.
const RUNS: usize = 5;

fn main() {
    let count = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1_000_000u32);
    let ipv4: Vec<IpNet> = (0..count)
        .filter_map(|index| Ipv4Net::new(Ipv4Addr::from_bits(0x0100_0000 + (index << 8)), 24).ok())
        .map(IpNet::V4)
        .collect();
    let ipv6: Vec<IpNet> = (0..count)
        .filter_map(|index| {
            Ipv6Net::new(Ipv6Addr::from_bits(0x2001 << 112 | u128::from(index) << 80), 48).ok()
        })
        .map(IpNet::V6)
        .collect();
    println!("{count} prefixes of each kind; the best of {RUNS} runs on one core");
    println!("{:24} {:>9} {:>12} {:>14} {:>10}", "", "messages", "ns/prefix", "prefixes/s", "of floor");
    measure("IPv4, full messages", "192.0.2.1", &ipv4, ipv4.len());
    measure("IPv6, full messages", "2001:db8::1", &ipv6, ipv6.len());
    // As when every few routes have attributes of their own.
    measure("IPv4, 10 in a message", "192.0.2.1", &ipv4, 10);
}

/// Announces and withdraws the prefixes, so many to a call.
fn measure(name: &str, next_hop: &str, prefixes: &[IpNet], together: usize) {
    let families = Family::ALL.into();
    let context = Context { four_octet_as: true, families, ..Context::default() };
    let attributes = Attributes {
        as_path: AsPath::sequence([65001, 65002, 4_200_000_001]),
        med: Some(10),
        communities: [Community(65001 << 16 | 1), Community(65001 << 16 | 2)].into(),
        ..Attributes::default()
    };
    let Ok(address) = next_hop.parse::<IpAddr>() else { return };
    let next_hop = NextHop::from(address);
    println!("{name}");

    let (announced, time) = best(|| {
        write(prefixes, together, |chunk, out| {
            announce(&attributes, next_hop, chunk, &context, out).unwrap_or(0)
        })
    });
    let floor = floor(&announced.0);
    row("copy (floor)", announced.1, prefixes.len(), floor, floor);
    row("announce: encode", announced.1, prefixes.len(), time, floor);
    let (read, time) = best(|| read(&announced.0, &context));
    assert_eq!(read, prefixes.len());
    row("announce: decode", announced.1, prefixes.len(), time, floor);

    let (withdrawn, time) =
        best(|| write(prefixes, together, |chunk, out| withdraw(chunk, &context, out).unwrap_or(0)));
    let floor = self::floor(&withdrawn.0);
    row("withdraw: encode", withdrawn.1, prefixes.len(), time, floor);
    let (read, time) = best(|| self::read(&withdrawn.0, &context));
    assert_eq!(read, prefixes.len());
    row("withdraw: decode", withdrawn.1, prefixes.len(), time, floor);
}

/// Messages, and their number.
fn write(
    prefixes: &[IpNet],
    together: usize,
    encode: impl Fn(&[IpNet], &mut Vec<u8>) -> usize,
) -> (Vec<u8>, usize) {
    let mut out = Vec::with_capacity(prefixes.len() * 24);
    let messages = prefixes.chunks(together).map(|chunk| encode(chunk, &mut out)).sum();
    (out, messages)
}

/// Prefixes that were read.
fn read(mut bytes: &[u8], context: &Context) -> usize {
    let mut count = 0;
    while let Ok(Some(message)) = frame(bytes, context) {
        if let Ok(Message::Update(update)) = decode(message, context).map(|decoded| decoded.message) {
            let announced = update.announced.iter().flat_map(|announced| &announced.reach);
            count += update.withdrawn.len() + announced.map(|reach| reach.prefixes.len()).sum::<usize>();
        }
        bytes = &bytes[message.len()..];
    }
    count
}

fn floor(bytes: &[u8]) -> Duration {
    let mut copy = vec![0; bytes.len()];
    best(|| {
        copy.copy_from_slice(black_box(bytes));
        black_box(&copy);
    })
    .1
}

fn best<T>(mut run: impl FnMut() -> T) -> (T, Duration) {
    let mut once = || {
        let start = Instant::now();
        let result = black_box(run());
        (result, start.elapsed())
    };
    let mut all: Vec<_> = (0..RUNS).map(|_| once()).collect();
    all.sort_by_key(|(_, time)| *time);
    all.swap_remove(0)
}

fn row(name: &str, messages: usize, prefixes: usize, time: Duration, floor: Duration) {
    let (time, floor) = (time.as_secs_f64(), floor.as_secs_f64());
    println!(
        "  {name:22} {messages:>9} {:>12.2} {:>14.0} {:>9.1}x",
        time / prefixes as f64 * 1e9,
        prefixes as f64 / time,
        time / floor
    );
}
