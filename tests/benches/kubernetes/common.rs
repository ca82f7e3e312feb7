//! What benches against a real API server have in common.
use lab::Error;
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

/// Requests at once while an API server is filled.
const WRITERS: usize = 16;

/// Does `write` for each number below `count`, many at once.
pub(crate) fn write_all(
    count: usize,
    write: impl Fn(usize) -> Result<(), Error> + Sync,
) -> Result<(), Error> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<(), Error> {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= count {
                return Ok(());
            }
            write(n)?;
        }
    };
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS).map(|_| scope.spawn(work)).collect();
        writers.into_iter().try_for_each(|writer| writer.join().map_err(|_| "a writer panicked")?)
    })
}

/// Prints what times come to.
pub(crate) fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: usize| times.get((times.len() * share / 100).min(times.len().saturating_sub(1)));
    let [median, most] = [50, 99].map(|share| at(share).copied().unwrap_or_default());
    println!("{what}: {median:.1?} median, {most:.1?} at the 99th percentile of {}", times.len());
}
