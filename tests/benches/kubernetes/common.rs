//! What benches against a real API server have in common.
use lab::Error;
use serde_json::Value;
use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr},
    os::unix::net::UnixStream,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

/// Requests at once while an API server is filled.
const WRITERS: usize = 16;

/// Between two questions: to be asked all the time would take an agent more than what is measured.
pub(crate) const PAUSE: Duration = Duration::from_millis(2);

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

/// Where the kernel's tables of the agent behind `socket` send a new connection of the client from this port to port 80 of a VIP.
pub(crate) fn backend(socket: &Path, client: Ipv4Addr, vip: IpAddr, port: u16) -> Result<IpAddr, Error> {
    let mut stream = UnixStream::connect(socket)?;
    let path = format!("/v1/trace?proto=tcp&src={client}:{port}&dst={vip}:80&syn=true");
    let trace: Value = serde_json::from_str(&http(&mut stream, &path)?)?;
    let backend = trace["backend"]["endpoint"]["address"].as_str();
    Ok(backend.ok_or_else(|| format!("no backend: {trace}"))?.parse()?)
}

/// The body of an answer with the status 200.
pub(crate) fn http(stream: &mut (impl Read + Write), path: &str) -> Result<String, Error> {
    // HTTP/1.0: the answer is not chunked and ends with the connection.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("an answer without a head")?;
    if !head.contains(" 200 ") {
        return Err(format!("{path}: {answer}").into());
    }
    Ok(body.to_owned())
}
