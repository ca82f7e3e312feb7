//! How long a client is without an answer: new connections at a steady pace, whatever became of those before.
use crate::Error;
use controller::demo::netns::Namespace;
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::{
    net::TcpStream,
    runtime::Builder,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

/// Between two connections that are begun.
const PACE: Duration = Duration::from_millis(5);
/// Who was not answered by then is not waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// A client that opens connections until it is told to stop.
#[derive(Debug)]
pub struct Probe {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<io::Result<Vec<Instant>>, controller::demo::DemoError>>,
}

impl Probe {
    /// Begins.
    pub fn start(client: &Namespace, target: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = client.thread(move || {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(connect(target, &stopped))
        });
        Probe { stop, thread }
    }

    /// Stops; the longest time between two connections that were answered one after the other, and how many were.
    pub fn stop(self) -> Result<(Duration, usize), Error> {
        self.stop.store(true, Ordering::Relaxed);
        let mut answered = self.thread.join().map_err(|_| "the probe panicked")???;
        answered.sort_unstable();
        let longest = answered.windows(2).map(|pair| pair[1] - pair[0]).max();
        Ok((longest.ok_or("the probe had no answers")?, answered.len()))
    }
}

/// When connections were answered.
async fn connect(target: SocketAddr, stop: &AtomicBool) -> io::Result<Vec<Instant>> {
    let mut clock = interval(PACE);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut open, mut answered) = (JoinSet::new(), Vec::new());
    while !stop.load(Ordering::Relaxed) {
        tokio::select! {
            _ = clock.tick() => {
                open.spawn(async move {
                    let stream = timeout(PATIENCE, TcpStream::connect(target)).await;
                    stream.is_ok_and(|stream| stream.is_ok()).then(Instant::now)
                });
            }
            Some(done) = open.join_next() => answered.extend(done.map_err(io::Error::other)?),
        }
    }
    Ok(answered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use controller::demo::netns::Sandbox;
    use std::net::TcpListener;

    #[test]
    fn a_time_without_an_answer_is_seen() {
        let sandbox = Sandbox::create("fll").unwrap();
        let host = sandbox.namespace("a").unwrap();
        let listen = || host.enter(|| TcpListener::bind("127.0.0.1:80").unwrap()).unwrap();
        let accept = |listener: &TcpListener| {
            for _ in 0..20 {
                listener.accept().unwrap();
            }
        };
        let listener = listen();
        let probe = Probe::start(&host, "127.0.0.1:80".parse().unwrap());
        accept(&listener);
        let gone = Instant::now();
        drop(listener);
        crate::wait_until("a while has passed", || Ok(gone.elapsed() > Duration::from_millis(200))).unwrap();
        accept(&listen());
        let (longest, answered) = probe.stop().unwrap();
        assert!(longest > Duration::from_millis(190) && answered >= 40, "{longest:?}, {answered}");
    }
}
