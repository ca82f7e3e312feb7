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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{collections::BTreeSet, net::IpAddr};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    fn check(method: Method, rise: u8, fall: u8) -> Check {
        Check { method, interval_millis: 20, timeout_millis: 500, rise, fall }
    }

    fn http(path: &str) -> Method {
        Method::Http { path: path.to_owned() }
    }

    proptest! {
        /// Against the definition, told naively from the whole history.
        #[test]
        fn standing_is_rise_and_fall(rise in 1..5u8, fall in 1..5u8, results in prop::collection::vec(any::<bool>(), 0..60)) {
            let check = check(Method::Tcp, rise, fall);
            let mut standing = Standing::default();
            let mut healthy: Option<bool> = None;
            for end in 1..=results.len() {
                let last = results[end - 1];
                let streak = results[..end].iter().rev().take_while(|result| **result == last).count();
                let turns = healthy != Some(last) && streak >= usize::from(if last { rise } else { fall });
                let result = if last { Ok(()) } else { Err(Failure::TimedOut) };
                let expected = turns.then_some(if last { Health::Healthy } else { Health::Unhealthy(Failure::TimedOut) });
                prop_assert_eq!(standing.take(&check, result), expected);
                if turns {
                    healthy = Some(last);
                }
            }
        }

        #[test]
        fn jitter_is_within_the_spread(port in 1u16.., millis in 0..10_000u64) {
            let endpoint = Endpoint { address: [127, 0, 0, 1].into(), port };
            let spread = Duration::from_millis(millis);
            prop_assert!(jitter(&check(Method::Tcp, 1, 1), &endpoint, spread) <= spread);
        }
    }

    /// Answers every connection with these bytes and closes it; without any it holds it open.
    async fn server(answer: &'static [u8]) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let _: io::Result<usize> = stream.read(&mut request).await;
                if answer.is_empty() {
                    held.push(stream);
                } else {
                    let _: io::Result<()> = stream.write_all(answer).await;
                }
            }
        });
        Endpoint { address: address.ip(), port: address.port() }
    }

    async fn verdict(method: Method, endpoint: Endpoint) -> Result<(), Failure> {
        let check = Check { timeout_millis: 200, ..check(method, 1, 1) };
        match probe(&check, endpoint).await {
            Ok(()) => Ok(()),
            Err(Error::Failed(failure)) => Err(failure),
            Err(Error::Own(error)) => panic!("{error}"),
        }
    }

    #[tokio::test]
    async fn an_answer_is_judged() {
        let cases: [(&[u8], Result<(), Failure>); 8] = [
            (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", Ok(())),
            (b"HTTP/1.0 204 No Content\r\n\r\n", Ok(())),
            (b"HTTP/1.1 302 Found\r\nlocation: /\r\n\r\n", Ok(())),
            // Broken off in the body: the status has decided.
            (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nok", Ok(())),
            (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", Err(Failure::Status(404))),
            (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", Err(Failure::Status(503))),
            (b"SSH-2.0-OpenSSH_9.2\r\n", Err(Failure::NotHttp)),
            (b"", Err(Failure::TimedOut)),
        ];
        for (answer, expected) in cases {
            let endpoint = server(answer).await;
            assert_eq!(verdict(http("/healthz?x=1"), endpoint).await, expected, "{}", answer.escape_ascii());
        }
    }

    #[tokio::test]
    async fn an_endless_answer_is_read_in_part() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let flood = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut sent = 0;
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            while let Ok(count) = stream.write(&[b'x'; 4096]).await {
                sent += count;
            }
            sent
        });
        let endpoint = Endpoint { address: address.ip(), port: address.port() };
        assert_eq!(verdict(http("/"), endpoint).await, Ok(()));
        // What the kernel buffers comes on top of what was read.
        assert!(flood.await.unwrap() < 64 << 20);
    }

    #[tokio::test]
    async fn nobody_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let endpoint = Endpoint { address: address.ip(), port: address.port() };
        assert_eq!(verdict(Method::Tcp, endpoint).await, Ok(()));
        drop(listener);
        assert_eq!(verdict(Method::Tcp, endpoint).await, Err(Failure::Io(io::ErrorKind::ConnectionRefused)));
    }

    async fn next(checks: &mut Checks) -> Vec<CheckResult> {
        timeout(Duration::from_secs(60), checks.results()).await.expect("a result within a minute")
    }

    #[tokio::test]
    async fn targets_are_replaced_as_a_whole_and_those_that_stay_keep_their_state() {
        let good = server(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let other = Endpoint { address: IpAddr::from([127, 0, 0, 1]), port: 1 };
        let (first, second) = (check(http("/"), 2, 1), check(Method::Tcp, 1, 1));
        let mut checks = Checks::default();
        let stays = (first.clone(), BTreeSet::from([good]));
        checks.set_targets(&Targets::from([stays.clone()]));
        let healthy = CheckResult { check: first, endpoint: good, health: Health::Healthy };
        assert_eq!(next(&mut checks).await, [healthy]);

        // Were the first check begun anew, then it would tell its result again.
        checks.set_targets(&Targets::from([stays, (second.clone(), BTreeSet::from([other]))]));
        let refused = Health::Unhealthy(Failure::Io(io::ErrorKind::ConnectionRefused));
        let refused = CheckResult { check: second, endpoint: other, health: refused };
        assert_eq!(next(&mut checks).await, [refused]);
        assert!(timeout(Duration::from_millis(200), checks.results()).await.is_err(), "nothing else changed");

        checks.set_targets(&Targets::new());
        assert!(checks.running.is_empty());
    }

    #[tokio::test]
    async fn a_backend_that_dies_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let endpoint = Endpoint { address: address.ip(), port: address.port() };
        let mut checks = Checks::default();
        checks.set_targets(&Targets::from([(check(Method::Tcp, 1, 3), BTreeSet::from([endpoint]))]));
        assert_eq!(next(&mut checks).await[0].health, Health::Healthy);
        drop(listener);
        assert!(matches!(next(&mut checks).await[0].health, Health::Unhealthy(Failure::Io(_))));
    }
}
