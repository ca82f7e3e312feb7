//! A proxy between one process and the API server that fails as it is told: it refuses, answers with errors, says nothing, cuts
//! answers short, and lets watches die in silence. What was asked it keeps, so a test can see who wrote what and when.
//!
//! Plain HTTP/1.1, one request for each connection; `kubectl proxy` behind it speaks TLS and has the rights of the kubeconfig.
use super::{
    ControlPlane,
    server::{Server, inside},
};
use crate::{Error, wait_until};
use serde_json::json;
use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Bytes of a head or a body at most.
const LONGEST: usize = 1 << 22;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// It goes through.
    #[default]
    None,
    /// The connection is closed.
    Close,
    /// It is answered with this status, and with `Retry-After` if there are seconds.
    Answer(u16, Option<u32>),
    /// It is taken, and never answered.
    Silence,
    /// It goes through after so long.
    Delay(Duration),
    /// Of the answer so many bytes come; then the connection ends.
    Truncate(usize),
}

/// What was asked.
#[derive(Clone, Debug)]
pub struct Request {
    /// Method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// When it was there.
    pub at: Instant,
    /// What became of it.
    pub fault: Fault,
}

impl Request {
    /// Whether it is a watch.
    pub fn is_watch(&self) -> bool {
        self.path.contains("watch=1") || self.path.contains("watch=true")
    }

    /// Whether it would change something.
    pub fn is_write(&self) -> bool {
        self.method != "GET"
    }

    /// Whether it is about the Lease.
    pub fn is_lease(&self) -> bool {
        self.path.contains("/leases")
    }
}

type Judge = Box<dyn Fn(&Request) -> Fault + Send>;

/// A proxy at work. Ends with its control plane at the latest.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    kubeconfig: PathBuf,
    _behind: Server,
}

struct Shared {
    behind: PathBuf,
    judge: Mutex<Judge>,
    requests: Mutex<Vec<Request>>,
    /// Connections of a lower number are dead: nothing more comes through them, and they are not closed.
    alive_from: AtomicU64,
    /// Connections of a lower number are closed.
    open_from: AtomicU64,
    connections: AtomicU64,
    has_ended: AtomicBool,
}

impl Proxy {
    pub(super) fn start(plane: &ControlPlane, rights: &Path, number: u32) -> Result<Self, Error> {
        let behind = plane.dir.join(format!("behind{number}.sock"));
        let arguments = [
            "proxy".to_owned(),
            format!("--kubeconfig={}", rights.display()),
            format!("--unix-socket={}", behind.display()),
            "--accept-hosts=.*".to_owned(),
        ];
        let mut server = Server::start("kubectl", &plane.dir, plane.namespace.as_ref(), &arguments)?;
        wait_until("kubectl proxy is there", || {
            server.check()?;
            Ok(UnixStream::connect(&behind).is_ok())
        })?;
        let place = SocketAddr::new(plane.address.ip(), 0);
        let listener = inside(plane.namespace.as_ref(), || TcpListener::bind(place))??;
        let address = listener.local_addr()?;
        let kubeconfig = plane.dir.join(format!("kubeconfig-proxy{number}"));
        let text = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        });
        fs::write(&kubeconfig, text.to_string())?;
        let shared = Arc::new(Shared {
            behind,
            judge: Mutex::new(Box::new(|_| Fault::None)),
            requests: Mutex::default(),
            alive_from: AtomicU64::new(0),
            open_from: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            has_ended: AtomicBool::new(false),
        });
        let acceptor = Arc::clone(&shared);
        thread::spawn(move || {
            for connection in listener.incoming() {
                if acceptor.has_ended.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(connection), shared) = (connection, Arc::clone(&acceptor)) else { continue };
                let number = shared.connections.fetch_add(1, Ordering::SeqCst);
                // An error is the end of a connection, which the client sees, too.
                thread::spawn(move || drop(shared.serve(connection, number)));
            }
        });
        Ok(Proxy { shared, address, kubeconfig, _behind: server })
    }

    /// A kubeconfig that leads here.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// From now on requests fare so.
    pub fn set(&self, judge: impl Fn(&Request) -> Fault + Send + 'static) {
        *lock(&self.shared.judge) = Box::new(judge);
    }

    /// Connections that are open, watches above all, say nothing any more. They are not closed.
    pub fn mute(&self) {
        let all = self.shared.connections.load(Ordering::SeqCst);
        self.shared.alive_from.store(all, Ordering::SeqCst);
    }

    /// Connections that are open are closed.
    pub fn cut(&self) {
        let all = self.shared.connections.load(Ordering::SeqCst);
        self.shared.open_from.store(all, Ordering::SeqCst);
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.has_ended.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the acceptor, if it is where we are; else it ends with the process.
        drop(TcpStream::connect(self.address));
    }
}

impl Shared {
    fn serve(&self, mut client: TcpStream, number: u64) -> io::Result<()> {
        let mut reader = BufReader::new(client.try_clone()?);
        let mut head = String::new();
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 || head.len() + line.len() > LONGEST {
                return Ok(());
            }
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            let value = line.split_once(':').map_or("", |(_, value)| value.trim());
            match name.as_str() {
                "content-length" => length = value.parse().unwrap_or(0),
                // The answer's end is the end of the connection.
                "connection" => continue,
                _ => {}
            }
            if line == "\r\n" {
                head += "Connection: close\r\n\r\n";
                break;
            }
            head += &line;
        }
        let mut body = vec![0; usize::min(length, LONGEST)];
        reader.read_exact(&mut body)?;
        let mut words = head.split(' ');
        let mut word = || words.next().unwrap_or_default().to_owned();
        let mut request = Request { method: word(), path: word(), at: Instant::now(), fault: Fault::None };
        let fault = (*lock(&self.judge))(&request);
        request.fault = fault;
        lock(&self.requests).push(request);
        let mut left = usize::MAX;
        match fault {
            Fault::None => {}
            Fault::Close => return Ok(()),
            Fault::Answer(code, after) => return client.write_all(answer(code, after).as_bytes()),
            Fault::Silence => return self.hold(&mut reader, number),
            Fault::Delay(time) => thread::sleep(time),
            Fault::Truncate(bytes) => left = bytes,
        }
        let mut behind = UnixStream::connect(&self.behind)?;
        behind.write_all(head.as_bytes())?;
        behind.write_all(&body)?;
        // Now and then it is looked whether the connection is to be closed, or dead.
        behind.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut buffer = [0; 1 << 14];
        loop {
            if number < self.open_from.load(Ordering::SeqCst) {
                return Ok(());
            }
            if number < self.alive_from.load(Ordering::SeqCst) {
                return self.hold(&mut reader, number);
            }
            match behind.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    let count = usize::min(count, left);
                    client.write_all(&buffer[..count])?;
                    left -= count;
                    if left == 0 {
                        return Ok(());
                    }
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if is_gone(&client) {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Says nothing until the client goes or the connection is to be closed.
    fn hold(&self, client: &mut BufReader<TcpStream>, number: u64) -> io::Result<()> {
        while number >= self.open_from.load(Ordering::SeqCst) && !is_gone(client.get_ref()) {
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// Whether the other end has closed the connection.
fn is_gone(client: &TcpStream) -> bool {
    let peeked = client.set_nonblocking(true).and_then(|()| client.peek(&mut [0]));
    let restored = client.set_nonblocking(false);
    matches!(peeked, Ok(0)) || restored.is_err()
}

/// An error as an API server answers it.
fn answer(code: u16, after: Option<u32>) -> String {
    let reason = match code {
        410 => "Expired",
        429 => "TooManyRequests",
        _ => "InternalError",
    };
    let body =
        json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": code,
        "reason": reason, "message": "as the test wants it"})
        .to_string();
    let after = after.map(|seconds| format!("Retry-After: {seconds}\r\n")).unwrap_or_default();
    format!(
        "HTTP/1.1 {code} {reason}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{after}Connection: close\r\n\r\n{body}",
        body.len()
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
