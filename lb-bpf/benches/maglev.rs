//! Time to build a Maglev table of 65537 slots, against the floor of writing an array of that size.
//! `cargo bench -p lb-bpf --bench maglev`
use lb_bpf::{maglev, service::Endpoint};
use std::{hint::black_box, net::Ipv4Addr, time::Instant};

const SIZE: u32 = 65537;
const RUNS: usize = 41;

fn main() {
    let mut floor = Vec::new();
    let cases = [("equal", 100), ("equal", 1000), ("equal", 10_000), ("weighted", 1000), ("one heavy", 1000)];
    let mut times = vec![Vec::new(); cases.len()];
    // Interleaved, so that a slow moment of the machine hits all of them.
    for _ in 0..RUNS {
        floor.push(time(|| drop(black_box((0..SIZE).map(black_box).collect::<Vec<u32>>()))));
        for ((kind, backends), times) in cases.iter().zip(&mut times) {
            let members = members(kind, *backends);
            times.push(time(|| drop(black_box(maglev::build(SIZE, black_box(&members))))));
        }
    }
    let (floor_min, floor_median) = min_and_median(&mut floor);
    println!("{:<28} {:>9} {:>9} {:>9}", "65537 slots", "min µs", "median µs", "x floor");
    println!("{:<28} {floor_min:>9.0} {floor_median:>9.0} {:>9.1}", "floor: write the array", 1.0);
    for ((kind, backends), times) in cases.iter().zip(&mut times) {
        let (min, median) = min_and_median(times);
        let name = format!("{backends} backends, {kind}");
        println!("{name:<28} {min:>9.0} {median:>9.0} {:>9.1}", median / floor_median);
    }
}

fn members(kind: &str, backends: u32) -> Vec<(Endpoint, u16)> {
    let weight = |n: u32| match kind {
        "equal" => 1,
        "weighted" => (n % 10 + 1) as u16,
        _ if n == 0 => 1000,
        _ => 1,
    };
    (0..backends)
        .map(|n| (Endpoint { address: Ipv4Addr::from(0x0a00_0000 + n).into(), port: 80 }, weight(n)))
        .collect()
}

/// Microseconds.
fn time(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1e6
}

fn min_and_median(times: &mut [f64]) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[0], times[times.len() / 2])
}
