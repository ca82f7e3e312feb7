//! The daemon beside other routers: the same raw BGP over TCP, between network namespaces, to each of them in turn.
//! Needs root, and the routers from Debian; one that is missing is named and left out.
//!
//! `cargo bench -p bgp-speaker --bench peers [-- [PREFIXES [ROUNDS]] [NAME…]]`, by default 100000 prefixes, 3 rounds, all
//! routers.
//!
//! A measure is done when what is to come has come or, where nothing comes, when the router has read everything and
//! uses no processor any more. Its own cost is in `processor`, which a busy machine disturbs least. Compare ratios of one
//! run, never two runs.
#![expect(clippy::unwrap_used, reason = "what a measurement cannot go on without")]
#[path = "../tests/lab/harness.rs"]
#[expect(dead_code, reason = "shared with the tests")]
mod harness;
#[path = "peers/load.rs"]
mod load;
#[path = "peers/process.rs"]
mod process;
#[path = "peers/report.rs"]
mod report;
#[path = "peers/routers.rs"]
mod routers;

use harness::{Cable, ROUTER, enter, run};
use load::{Listener, Session, Table};
use process::Running;
use report::{Found, Report};
use routers::{Contender, Side};
use std::{error::Error, thread, time::Instant};

/// The peers of the router: the first one tells, the others are told.
const PEERS: [&str; 3] = [ROUTER, "198.18.0.3", "198.18.0.4"];
/// Routes, one after the other, of which each has to come out before the next goes in; and for how long at most.
const SINGLES: usize = 500;
const SINGLES_SECONDS: u64 = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let (names, numbers): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| routers::all().iter().any(|one| one.name == argument));
    let mut numbers = numbers.iter().filter_map(|argument| argument.parse::<u32>().ok());
    let (count, rounds) = (numbers.next().unwrap_or(100_000), numbers.next().unwrap_or(3));
    let cable = Cable::new();
    for address in &PEERS[1..] {
        run("ip", &["-n", &cable.router, "address", "add", &format!("{address}/24"), "dev", "router0"]);
    }
    enter(&cable.router);
    let table = Table::new(count)?;
    let mut report = Report::new(count, rounds);
    let wanted = |one: &Contender| names.is_empty() || names.iter().any(|name| name == one.name);
    let contenders = routers::all().into_iter().filter(wanted);
    let (here, missing): (Vec<_>, Vec<_>) = contenders.partition(Contender::is_there);
    for contender in missing {
        println!("{}: {} is missing", contender.name, contender.program);
    }
    for round in 1..=rounds {
        for contender in &here {
            eprintln!("round {round}: {}", contender.name);
            match measure(contender, &cable, &table) {
                Ok(found) => report.add(contender.name, found),
                Err(error) => println!("{}, round {round}: {error}", contender.name),
            }
        }
    }
    print!("{report}");
    Ok(())
}

fn measure(contender: &Contender, cable: &Cable, table: &Table) -> Result<Found, Box<dyn Error>> {
    let mut found = Found::default();
    {
        load::wait_for_nobody()?;
        let listener = Listener::new(PEERS[0])?;
        let start = Instant::now();
        let _router = contender.start(cable, Side::Dials, &PEERS[..1]);
        let _session = listener.accept()?;
        found.add("start → Established, it dials", "ms", start.elapsed().as_secs_f64() * 1e3);
    }
    load::wait_for_nobody()?;
    let start = Instant::now();
    let router = contender.start(cable, Side::Listens, &PEERS);
    let mut from = Session::dial(PEERS[0])?;
    found.add("start → Established, is dialled", "ms", start.elapsed().as_secs_f64() * 1e3);
    let running = Running::new(&router);

    let mut to = Session::dial(PEERS[1])?;
    let mut singles = load::singles(&mut from, &mut to, SINGLES, SINGLES_SECONDS)?;
    singles.sort_unstable();
    found.add("a route in → out", "ms", singles[singles.len() / 2].as_secs_f64() * 1e3);
    to.close()?;
    running.wait_idle(&mut from, Instant::now())?;

    let before = running.usage()?;
    let (start, octets) = (Instant::now(), table.announcements());
    from.write(octets)?;
    let received = running.wait_idle(&mut from, start)?;
    let after = running.usage()?;
    found.add("receive", "s", received.as_secs_f64());
    found.add("receive, processor", "s", after.seconds - before.seconds);
    let octets = after.octets as f64 - before.octets as f64;
    found.add("memory (RSS)", "octets/prefix", octets / f64::from(table.count()));

    let sent = send_to_two(&running, &mut from, table.count())?;
    let end = running.usage()?;
    found.add("send to each of two", "s", sent.seconds);
    found.add("send to both, processor", "s", end.seconds - after.seconds);
    found.add("octets in a message", "", sent.octets_per_message);
    running.wait_idle(&mut from, Instant::now())?;

    let (before, start) = (running.usage()?, Instant::now());
    from.write(table.withdrawals())?;
    let withdrawn = running.wait_idle(&mut from, start)?;
    found.add("withdraw", "s", withdrawn.as_secs_f64());
    found.add("withdraw, processor", "s", running.usage()?.seconds - before.seconds);
    Ok(found)
}

/// What two peers saw that came up together, the slower of them.
struct Sent {
    seconds: f64,
    octets_per_message: f64,
}

fn send_to_two(running: &Running, from: &mut Session, count: u32) -> Result<Sent, Box<dyn Error>> {
    let peers: Vec<_> = PEERS[1..]
        .iter()
        .map(|&peer| thread::spawn(move || Session::dial(peer)?.receive_table(count)))
        .collect();
    while !peers.iter().all(thread::JoinHandle::is_finished) {
        from.keep_alive()?;
        running.pause();
    }
    let mut sent = Sent { seconds: 0.0, octets_per_message: f64::MAX };
    for peer in peers {
        let received = peer.join().map_err(|_| "a peer panicked")??;
        sent.seconds = sent.seconds.max(received.time.as_secs_f64());
        sent.octets_per_message = sent.octets_per_message.min(received.octets_per_message);
    }
    Ok(sent)
}
