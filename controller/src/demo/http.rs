//! The two ends of the demo's traffic, both real HTTP over real TCP: the server of a backend, which answers with
//! its name, and clients that open one connection per request and write down how each of them went.
use super::{DemoError, netns::Namespace};
use axum::{Router, extract::ConnectInfo, routing::get};
use http_body_util::{BodyExt, Empty};
use hyper::{Request, StatusCode, body::Bytes, header};
use hyper_util::rt::TokioIo;
use std::{
    fmt, io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    time::{sleep, timeout},
};

/// A request that has taken this long has failed.
pub const TIMEOUT: Duration = Duration::from_secs(4);

/// Serves HTTP on `port` of every address of the namespace, IPv4 and IPv6: `/healthz` says `ok`, everything else
/// `NAME answers CLIENT`. Returns only when the port cannot be had.
pub fn serve(name: &str, port: u16) -> io::Result<()> {
    let name: Arc<str> = name.into();
    let answer = move |ConnectInfo(client): ConnectInfo<SocketAddr>| async move {
        let address = client.ip().to_canonical();
        format!("{name} answers {}\n", SocketAddr::new(address, client.port()))
    };
    let app = Router::new().route("/healthz", get(|| async { "ok\n" })).fallback(answer);
    runtime()?.block_on(async {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await?;
        axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await
    })
}

/// One GET on a connection of its own; gives the status and the body.
pub async fn fetch(address: SocketAddr, path: &str) -> Result<(StatusCode, Bytes), FetchError> {
    let stream = TcpStream::connect(address).await.map_err(FetchError::Connect)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header(header::HOST, address.to_string())
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let exchange = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    };
    // The connection is driven beside the exchange. What it has to say, the exchange says, too.
    let (done, _closed) = tokio::join!(exchange, connection);
    done
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// There was no connection.
    #[error("connect: {0}")]
    Connect(io::Error),
    /// The connection broke, or what came was not HTTP.
    #[error("exchange: {0}")]
    Http(#[from] hyper::Error),
    /// The request could not be made.
    #[error("request: {0}")]
    Request(#[from] hyper::http::Error),
}

/// Where requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name for people: `web ipv4`.
    pub name: String,
    /// The VIP and its port.
    pub address: SocketAddr,
}

impl Target {
    /// `NAME ipv4` or `NAME ipv6`.
    pub fn new(name: &str, address: IpAddr, port: u16) -> Self {
        let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
        Target { name: format!("{name} {family}"), address: SocketAddr::new(address, port) }
    }
}

/// How one request went.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Index of the [`Target`].
    pub target: usize,
    /// When the connection was begun.
    pub started: Instant,
    /// When the answer was complete, or the failure known.
    pub ended: Instant,
    /// Name of the backend that answered, or what went wrong.
    pub answer: Result<String, String>,
    /// Index of the client: each asks again after a pause, whatever became of the request before.
    pub worker: usize,
}

#[cfg(test)]
impl Sample {
    /// A sample for tests, begun and ended now.
    pub(super) fn new(target: usize, answer: Result<&str, &str>) -> Self {
        let (now, answer) = (Instant::now(), answer.map(str::to_owned).map_err(str::to_owned));
        Sample { target, started: now, ended: now, answer, worker: 0 }
    }
}

/// How much traffic there is.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Clients per target, each with one request at a time.
    pub clients: usize,
    /// Pause of a client between two requests.
    pub pause: Duration,
}

/// Clients at work in a namespace, on one thread, until it is dropped.
pub struct Traffic {
    samples: mpsc::Receiver<Sample>,
    /// Taken from `samples`, but begun after the last [`Traffic::until`].
    later: Vec<Sample>,
    workers: usize,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<io::Result<()>, DemoError>>>,
}

impl fmt::Debug for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traffic").field("workers", &self.workers).finish_non_exhaustive()
    }
}

impl Traffic {
    /// Starts clients towards all targets.
    pub fn start(client: &Namespace, targets: &[Target], load: Load) -> Self {
        let (sender, samples) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let workers = targets.len() * load.clients;
        let (stopped, targets) = (Arc::clone(&stop), targets.to_vec());
        let thread = client.thread(move || {
            let work = (0..workers).map(|worker| {
                let target = worker % targets.len();
                let client = Client { worker, target, address: targets[target].address, pause: load.pause };
                client.run(sender.clone(), Arc::clone(&stopped))
            });
            runtime()?.block_on(futures::future::join_all(work));
            Ok(())
        });
        Traffic { samples, later: Vec::new(), workers, stop, thread: Some(thread) }
    }

    /// All requests begun before `end` that were not given out yet. Waits until they have ended: every client has
    /// then shown one that began later.
    pub fn until(&mut self, end: Instant) -> Result<Vec<Sample>, DemoError> {
        let mut past = vec![false; self.workers];
        let mut seen = std::mem::take(&mut self.later);
        for sample in &seen {
            past[sample.worker] |= sample.started >= end;
        }
        let deadline = Instant::now().max(end) + 2 * TIMEOUT;
        while past.contains(&false) {
            let sample = self.samples.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            let sample = sample.map_err(|_| self.broken())?;
            past[sample.worker] |= sample.started >= end;
            seen.push(sample);
        }
        let (earlier, later) = seen.into_iter().partition(|s| s.started < end);
        self.later = later;
        Ok(earlier)
    }

    fn broken(&mut self) -> DemoError {
        self.stop.store(true, Ordering::Relaxed);
        let reason = match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Ok(Err(error)))) => error.to_string(),
            Some(Ok(Err(error))) => error.to_string(),
            Some(Err(_)) => "its thread panicked".to_owned(),
            Some(Ok(Ok(Ok(())))) | None => "some clients do not end their requests".to_owned(),
        };
        DemoError::command("the traffic", reason)
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed by its hook.
            let _ = thread.join();
        }
    }
}

struct Client {
    worker: usize,
    target: usize,
    address: SocketAddr,
    pause: Duration,
}

impl Client {
    async fn run(self, samples: mpsc::Sender<Sample>, stop: Arc<AtomicBool>) {
        // Clients that begin together would go on together.
        sleep(self.pause / 16 * (self.worker % 16) as u32).await;
        while !stop.load(Ordering::Relaxed) {
            let started = Instant::now();
            let answer = match timeout(TIMEOUT, fetch(self.address, "/")).await {
                Ok(Ok((StatusCode::OK, body))) => {
                    let text = String::from_utf8_lossy(&body);
                    text.split_whitespace()
                        .next()
                        .map(str::to_owned)
                        .ok_or_else(|| "an empty answer".to_owned())
                }
                Ok(Ok((status, _))) => Err(format!("HTTP status {status}")),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("nothing within {} s", TIMEOUT.as_secs())),
            };
            let sample =
                Sample { worker: self.worker, target: self.target, started, ended: Instant::now(), answer };
            if samples.send(sample).is_err() {
                return;
            }
            sleep(self.pause).await;
        }
    }
}

/// A runtime on the calling thread alone, so that its sockets are in the thread's namespace.
pub(super) fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::netns::Sandbox;

    #[test]
    fn clients_count_answers_and_failures() {
        let sandbox = Sandbox::create("flt").unwrap();
        let host = sandbox.namespace("a").unwrap();
        // Ends with the test process: nothing else ends a server.
        let _server = host.thread(|| serve("b1", 8080));
        let targets = [
            Target::new("up", "127.0.0.1".parse().unwrap(), 8080),
            Target::new("up", "::1".parse().unwrap(), 8080),
            Target::new("down", "127.0.0.1".parse().unwrap(), 9),
        ];
        assert_eq!(targets[1].name, "up ipv6");
        let mut traffic =
            Traffic::start(&host, &targets, Load { clients: 2, pause: Duration::from_millis(1) });
        let mut samples = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(60);
        let answered = |samples: &[Sample], target| {
            samples.iter().any(|s: &Sample| s.target == target && s.answer.as_deref() == Ok("b1"))
        };
        while !(answered(&samples, 0) && answered(&samples, 1)) && Instant::now() < deadline {
            let end = Instant::now();
            samples.extend(traffic.until(end).unwrap());
            assert!(samples.iter().all(|s| s.started < end && s.started <= s.ended));
        }
        assert!(answered(&samples, 0) && answered(&samples, 1));
        let down: Vec<_> = samples.iter().filter(|s| s.target == 2).collect();
        assert!(!down.is_empty());
        assert!(down.iter().all(|s| s.answer.as_ref().unwrap_err().contains("connect")), "{down:?}");
    }
}
