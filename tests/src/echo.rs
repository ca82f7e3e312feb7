//! Long-lived TCP connections: a server that sends back what it gets, and clients that send random bytes for
//! as long as they live and compare every byte that comes back.
use crate::Error;
use controller::demo::{DemoError, netns::Namespace};
use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Builder,
    task::LocalSet,
    time::{sleep, timeout},
};

/// An echo that takes longer is a broken connection, even if it might still recover.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Echo on `port` of every address of a namespace, until the process ends.
pub fn serve(namespace: &Namespace, port: u16) {
    namespace.thread(move || {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await?;
            loop {
                let (mut stream, _) = listener.accept().await?;
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
            #[expect(unreachable_code, reason = "gives the block its type")]
            Ok::<(), io::Error>(())
        })
    });
}

/// How much a connection says.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Bytes of a round, at most.
    pub most: u64,
    /// Pause between two rounds.
    pub pause: Duration,
}

impl Pace {
    /// A few bytes now and then.
    pub const TRICKLE: Pace = Pace { most: 4096, pause: Duration::from_millis(20) };
    /// Windows are full all the time.
    pub const BULK: Pace = Pace { most: 1 << 19, pause: Duration::ZERO };
}

/// Of each connection: how many rounds it made, or how it broke.
pub type Rounds = Vec<Result<u64, String>>;

/// Connections at work, on one thread in the client's namespace.
#[derive(Debug)]
pub struct Connections {
    ends: Vec<[SocketAddr; 2]>,
    stop: Arc<AtomicBool>,
    echoed: Arc<AtomicU64>,
    thread: JoinHandle<Result<io::Result<Rounds>, DemoError>>,
}

impl Connections {
    /// Opens `count` connections to each address and returns when every one of them has had an answer.
    pub fn open(client: &Namespace, addresses: &[SocketAddr], count: usize) -> Result<Self, Error> {
        Self::open_with(client, addresses, count, Pace::TRICKLE)
    }

    /// The same at another pace.
    pub fn open_with(
        client: &Namespace,
        addresses: &[SocketAddr],
        count: usize,
        pace: Pace,
    ) -> Result<Self, Error> {
        let stop = Arc::new(AtomicBool::new(false));
        let echoed = Arc::new(AtomicU64::new(0));
        let (stopped, counter) = (Arc::clone(&stop), Arc::clone(&echoed));
        let targets: Vec<_> = addresses.iter().flat_map(|a| std::iter::repeat_n(*a, count)).collect();
        let mut ends: Vec<_> = targets.iter().map(|target| [*target; 2]).collect();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = client.thread(move || {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            Ok(LocalSet::new().block_on(&runtime, async move {
                let talks = targets.into_iter().zip(0..).map(|(address, number)| {
                    talk(number, address, pace, ready.clone(), Arc::clone(&stopped), Arc::clone(&counter))
                });
                let tasks: Vec<_> = talks.map(tokio::task::spawn_local).collect();
                // What is left of it is in the tasks: when they have ended, nobody waits for them in vain.
                drop(ready);
                let mut results = Vec::new();
                for task in tasks {
                    results.push(task.await.unwrap_or_else(|e| Err(e.to_string())));
                }
                results
            }))
        });
        let all_open = (0..ends.len()).all(|_| {
            let opened = is_ready.recv_timeout(TIMEOUT);
            opened.map(|(number, source): (usize, _)| ends[number][0] = source).is_ok()
        });
        let connections = Connections { ends, stop, echoed, thread };
        if all_open {
            return Ok(connections);
        }
        Err(format!("not every connection was answered: {:?}", connections.close()).into())
    }

    /// Rounds of all connections so far.
    pub fn echoed(&self) -> u64 {
        self.echoed.load(Ordering::Relaxed)
    }

    /// Source and destination of each connection.
    pub fn ends(&self) -> &[[SocketAddr; 2]] {
        &self.ends
    }

    /// Ends them and says of each how it went.
    pub fn end(self) -> Result<Rounds, Error> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.thread.join().map_err(|_| "the thread of the connections panicked")???)
    }

    /// Ends them; an error lists those that broke, or got other bytes than they had sent. Gives the number of
    /// rounds of the connection that had the fewest.
    pub fn close(self) -> Result<u64, Error> {
        let results = self.end()?;
        let broken: Vec<_> = results.iter().filter_map(|r| r.as_ref().err()).collect();
        if !broken.is_empty() {
            return Err(format!("{} of {} connections broke: {broken:?}", broken.len(), results.len()).into());
        }
        Ok(results.into_iter().filter_map(Result::ok).min().unwrap_or_default())
    }
}

/// One connection: rounds of random length and content until told to stop.
async fn talk(
    number: usize,
    address: SocketAddr,
    pace: Pace,
    ready: std::sync::mpsc::Sender<(usize, SocketAddr)>,
    stop: Arc<AtomicBool>,
    echoed: Arc<AtomicU64>,
) -> Result<u64, String> {
    let at = |what: &str, round: u64, error: &dyn std::fmt::Display| {
        format!("connection {number} to {address}, round {round}: {what}: {error}")
    };
    let connect = timeout(TIMEOUT, TcpStream::connect(address)).await;
    let mut stream = connect.map_err(|e| at("connect", 0, &e))?.map_err(|e| at("connect", 0, &e))?;
    let source = stream.local_addr().map_err(|e| at("address", 0, &e))?;
    let at = |what: &str, round: u64, error: &dyn std::fmt::Display| {
        at(what, round, &format!("{error} (from {source})"))
    };
    let mut random = number as u64 + 1;
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        let sent = noise(&mut random, pace.most);
        let mut back = vec![0; sent.len()];
        // At once: what is on its way and not read yet is bounded.
        let (mut read, mut write) = stream.split();
        let exchange =
            async { tokio::try_join!(write.write_all(&sent), read.read_exact(&mut back)).map(drop) };
        let done = timeout(TIMEOUT, exchange).await.map_err(|e| at("echo", rounds, &e))?;
        done.map_err(|e| at("echo", rounds, &e))?;
        if back != sent {
            return Err(at("echo", rounds, &"other bytes came back"));
        }
        rounds += 1;
        echoed.fetch_add(1, Ordering::Relaxed);
        if rounds == 1 {
            // Nobody waits any more when another connection failed to open.
            let _ = ready.send((number, source));
        }
        sleep(pace.pause).await;
    }
    Ok(rounds)
}

/// 1 to `most` bytes that depend on all that came before (xorshift64, Marsaglia 2003).
fn noise(state: &mut u64, most: u64) -> Vec<u8> {
    let mut next = || {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    };
    let length = next() % most + 1;
    (0..length).map(|_| next() as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use controller::demo::netns::Sandbox;

    #[test]
    fn connections_echo_until_they_are_closed_and_broken_ones_are_told() {
        let sandbox = Sandbox::create("fll").unwrap();
        let host = sandbox.namespace("a").unwrap();
        serve(&host, 7007);
        let addresses = ["127.0.0.1:7007".parse().unwrap(), "[::1]:7007".parse().unwrap()];
        crate::wait_until("the server listens", || {
            Ok(host.enter(|| std::net::TcpStream::connect(addresses[0]))?.is_ok())
        })
        .unwrap();
        let connections = Connections::open(&host, &addresses, 3).unwrap();
        assert!(connections.ends().iter().all(|[source, target]| source.port() != 0 && source != target));
        let before = connections.echoed();
        crate::wait_until("more rounds", || Ok(connections.echoed() > before + 6)).unwrap();
        assert!(connections.close().unwrap() >= 1);
        let bulk = Connections::open_with(&host, &addresses, 1, Pace::BULK).unwrap();
        assert!(bulk.end().unwrap().iter().all(|rounds| rounds.as_ref().is_ok_and(|rounds| *rounds > 0)));
        let error = Connections::open(&host, &["127.0.0.1:9".parse().unwrap()], 2).unwrap_err().to_string();
        assert!(error.contains("2 of 2 connections broke"), "{error}");
    }
}
