//! Health checks: one task per endpoint and way of checking, however many services ask for it.
//!
//! [`Standing`] is the pure part: it turns single results into health. The rest opens connections.
use crate::{
    appliers::CheckResult,
    observed::{Check, Failure, Health, Method, Targets},
};
use http_body_util::{BodyExt, Empty};
use hyper::{Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use lb_bpf::service::Endpoint;
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::TcpStream,
    sync::{Semaphore, mpsc},
    task::AbortHandle,
    time::{Instant, timeout},
};

/// Checks that may be under way at once; others wait for their turn, which does not count as time of theirs. Each
/// holds a file descriptor, and a process has 1024 unless told otherwise.
const CONCURRENT: usize = 512;
/// Changes of health that are not taken yet; then checks wait.
const QUEUED: usize = 1024;
/// Most changes that are given out at once.
const BATCH: usize = 1024;
/// The first checks of many targets are spread over so much time for each.
const SPREAD: Duration = Duration::from_millis(1);
/// Largest head of an HTTP answer, bytes.
const MAX_HEAD: usize = 16 * 1024;
/// Of the body of an HTTP answer so much is read, bytes, so that a short one ends in order.
const MAX_BODY: usize = 64 * 1024;

/// The checks that run.
#[derive(Debug)]
pub struct Checks {
    running: BTreeMap<Check, BTreeMap<Endpoint, Task>>,
    turns: Arc<Semaphore>,
    sender: mpsc::Sender<CheckResult>,
    receiver: mpsc::Receiver<CheckResult>,
}

impl Default for Checks {
    /// None.
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(QUEUED);
        Checks { running: BTreeMap::new(), turns: Arc::new(Semaphore::new(CONCURRENT)), sender, receiver }
    }
}

impl Checks {
    /// Makes exactly these checks run. Those that run already go on undisturbed. To be called in a tokio runtime.
    pub fn set_targets(&mut self, targets: &Targets) {
        self.running.retain(|check, _| targets.contains_key(check));
        let all: usize = targets.values().map(|endpoints| endpoints.len()).sum();
        for (check, endpoints) in targets {
            let spread = Duration::from_millis(check.interval_millis.into())
                .min(SPREAD.saturating_mul(u32::try_from(all).unwrap_or(u32::MAX)));
            let running = self.running.entry(check.clone()).or_default();
            running.retain(|endpoint, _| endpoints.contains(endpoint));
            if running.len() == endpoints.len() {
                continue;
            }
            let check = Arc::new(check.clone());
            for endpoint in endpoints {
                running.entry(*endpoint).or_insert_with(|| {
                    let (turns, sender) = (self.turns.clone(), self.sender.clone());
                    let run = run(check.clone(), *endpoint, jitter(&check, endpoint, spread), turns, sender);
                    Task(tokio::spawn(run).abort_handle())
                });
            }
        }
    }

    /// Waits for changes of health and gives out those that are there. Can be cancelled.
    pub async fn results(&mut self) -> Vec<CheckResult> {
        let mut results = Vec::new();
        self.receiver.recv_many(&mut results, BATCH).await;
        results
    }
}

/// A task that ends when it is dropped.
#[derive(Debug)]
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What single results make of an endpoint: `rise` successes in a row make it healthy, `fall` failures in a row
/// unhealthy, and before either it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    healthy: Option<bool>,
    /// Results in a row that speak against `healthy`, or for something if it is not known.
    streak: u8,
    streak_healthy: bool,
}

impl Standing {
    /// Takes in a result; the new health if it is another now.
    pub fn take(&mut self, check: &Check, result: Result<(), Failure>) -> Option<Health> {
        let success = result.is_ok();
        if self.healthy == Some(success) {
            self.streak = 0;
            return None;
        }
        self.streak = if self.streak_healthy == success { self.streak.saturating_add(1) } else { 1 };
        self.streak_healthy = success;
        if self.streak < if success { check.rise } else { check.fall } {
            return None;
        }
        self.streak = 0;
        self.healthy = Some(success);
        Some(result.map_or_else(Health::Unhealthy, |()| Health::Healthy))
    }
}

async fn run(
    check: Arc<Check>,
    endpoint: Endpoint,
    delay: Duration,
    turns: Arc<Semaphore>,
    sender: mpsc::Sender<CheckResult>,
) {
    let mut standing = Standing::default();
    let mut start = Instant::now() + delay;
    loop {
        tokio::time::sleep_until(start).await;
        let Ok(turn) = turns.acquire().await else { return };
        start = Instant::now() + Duration::from_millis(check.interval_millis.into());
        let result = probe(&check, endpoint).await;
        drop(turn);
        let result = match result {
            // We are short of something: that says nothing about the endpoint.
            Err(Error::Own(error)) => {
                tracing::warn!(address = %endpoint.address, port = endpoint.port, %error, "cannot check");
                continue;
            }
            Err(Error::Failed(failure)) => Err(failure),
            Ok(()) => Ok(()),
        };
        if let Some(health) = standing.take(&check, result) {
            let result = CheckResult { check: check.as_ref().clone(), endpoint, health };
            if sender.send(result).await.is_err() {
                return;
            }
        }
    }
}

/// Why a check gave no success.
#[derive(Debug)]
enum Error {
    /// The endpoint failed.
    Failed(Failure),
    /// This machine is short of descriptors, ports or memory.
    Own(io::Error),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        const OWN: [i32; 5] = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL];
        match error.raw_os_error() {
            Some(code) if OWN.contains(&code) => Error::Own(error),
            _ => Error::Failed(Failure::Io(error.kind())),
        }
    }
}

impl From<hyper::Error> for Error {
    fn from(error: hyper::Error) -> Self {
        let broken = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
        Error::Failed(broken.map_or(Failure::NotHttp, |error| Failure::Io(error.kind())))
    }
}

async fn probe(check: &Check, endpoint: Endpoint) -> Result<(), Error> {
    let address = SocketAddr::new(endpoint.address, endpoint.port);
    let exchange = async {
        let stream = TcpStream::connect(address).await?;
        match &check.method {
            Method::Tcp => Ok(()),
            Method::Http { path } => get(stream, address, path).await,
        }
    };
    match timeout(Duration::from_millis(check.timeout_millis.into()), exchange).await {
        Ok(result) => result,
        Err(_) => Err(Error::Failed(Failure::TimedOut)),
    }
}

async fn get(stream: TcpStream, address: SocketAddr, path: &str) -> Result<(), Error> {
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header(header::HOST, address.to_string())
        .header(header::USER_AGENT, concat!("fairlead/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        // Validation has refused paths with other than visible ASCII.
        .map_err(|_| Error::Failed(Failure::NotHttp))?;
    let exchange = async {
        let mut response = sender.send_request(request).await?;
        let status = response.status();
        if !(status.is_success() || status.is_redirection()) {
            return Err(Error::Failed(Failure::Status(status.as_u16())));
        }
        let mut read = 0;
        // The status has decided; an error in the body changes nothing.
        while let Some(Ok(frame)) = response.body_mut().frame().await {
            read += frame.data_ref().map_or(0, Bytes::len);
            if read > MAX_BODY {
                break;
            }
        }
        Ok(())
    };
    // The exchange goes on only while the connection is driven. Its errors come out of the exchange, too.
    tokio::pin!(connection);
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        result = &mut exchange => result,
        _ = &mut connection => exchange.await,
    }
}

/// The delay of the first check: so that many do not come at once, always the same for one target.
fn jitter(check: &Check, endpoint: &Endpoint, spread: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    (check, endpoint).hash(&mut hasher);
    spread.mul_f64((hasher.finish() >> 11) as f64 / (1u64 << 53) as f64)
}
