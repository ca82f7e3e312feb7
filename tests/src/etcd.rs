//! An etcd cluster for a test: real members on loopback, each with a port of its own, in plain text or with TLS. Members can
//! be killed and started again with their data. An [`Etcd`] ends its processes and removes its files when it is dropped.
use crate::{
    Error,
    control_plane::{
        directory, reserve,
        server::{Server, inside, programs},
    },
    wait_until,
};
use controller::demo::netns::Namespace;
use serde_json::Value;
use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// A cluster at work.
#[derive(Debug)]
pub struct Etcd {
    dir: PathBuf,
    members: Vec<Member>,
    namespace: Option<Namespace>,
    has_tls: bool,
}

#[derive(Debug)]
struct Member {
    address: SocketAddr,
    /// Where it talks to the others.
    peer: SocketAddr,
    server: Option<Server>,
    /// Hold the ports, also while the member is down.
    _ports: [OwnedFd; 2],
}

impl Etcd {
    /// So many members in plain text; waits until they are ready.
    pub fn start(members: usize) -> Result<Self, Error> {
        Etcd::start_with(members, None, Ipv4Addr::LOCALHOST.into(), false)
    }

    /// The same in a network namespace, where they listen on `address`.
    pub fn start_in(namespace: &Namespace, address: IpAddr, members: usize) -> Result<Self, Error> {
        Etcd::start_with(members, Some(namespace.clone()), address, false)
    }

    /// One member that speaks TLS and wants a certificate of the same authority from clients: see
    /// [`certificate`](Self::certificate).
    pub fn start_tls() -> Result<Self, Error> {
        Etcd::start_with(1, None, Ipv4Addr::LOCALHOST.into(), true)
    }

    fn start_with(
        count: usize,
        namespace: Option<Namespace>,
        address: IpAddr,
        has_tls: bool,
    ) -> Result<Self, Error> {
        programs()?;
        let dir = directory()?;
        let mut etcd = Etcd { dir, members: Vec::new(), namespace, has_tls };
        if has_tls {
            etcd.make_certificates()?;
        }
        for number in 0..count {
            let reserve = || inside(etcd.namespace.as_ref(), || reserve(address))?;
            let ((client, address), (other, peer)) = (reserve()?, reserve()?);
            fs::create_dir(etcd.member_dir(number))?;
            etcd.members.push(Member { address, peer, server: None, _ports: [client, other] });
        }
        (0..count).try_for_each(|number| etcd.spawn(number))?;
        etcd.wait_ready()?;
        Ok(etcd)
    }

    /// URL of a member.
    pub fn endpoint(&self, member: usize) -> String {
        let scheme = if self.has_tls { "https" } else { "http" };
        format!("{scheme}://{}", self.members[member].address)
    }

    /// URLs of all members.
    pub fn endpoints(&self) -> Vec<String> {
        (0..self.members.len()).map(|number| self.endpoint(number)).collect()
    }

    /// Ends a member by SIGKILL.
    pub fn kill(&mut self, member: usize) {
        self.members[member].server = None;
    }

    /// Starts members that were killed, with the data from before, and waits until all are ready.
    pub fn restore(&mut self) -> Result<(), Error> {
        for number in 0..self.members.len() {
            if self.members[number].server.is_none() {
                self.spawn(number)?;
            }
        }
        self.wait_ready()
    }

    /// Starts one that was killed, and does not wait.
    pub fn start_again(&mut self, member: usize) -> Result<(), Error> {
        self.spawn(member)
    }

    /// What a member in plain text answers through its JSON gateway.
    pub fn post(&self, member: usize, path: &str, body: &Value) -> Result<Value, Error> {
        let mut stream = self.connect(member)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let body = body.to_string();
        write!(stream, "POST {path} HTTP/1.0\r\nHost: etcd\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").ok_or("an answer without a head")?;
        match head.contains(" 200 ") {
            true => Ok(serde_json::from_str(body)?),
            false => Err(format!("{path}: {body}").into()),
        }
    }

    /// Authority of all certificates, PEM.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// Certificate and key of a client, PEM.
    pub fn certificate(&self) -> (PathBuf, PathBuf) {
        (self.dir.join("client.pem"), self.dir.join("client.key"))
    }

    /// A file in the cluster's directory.
    pub fn file(&self, name: &str, text: &str) -> Result<PathBuf, Error> {
        let path = self.dir.join(name);
        fs::write(&path, text)?;
        Ok(path)
    }

    fn connect(&self, member: usize) -> Result<TcpStream, Error> {
        Ok(inside(self.namespace.as_ref(), || TcpStream::connect(self.members[member].address))??)
    }

    fn member_dir(&self, number: usize) -> PathBuf {
        self.dir.join(format!("m{number}"))
    }

    fn spawn(&mut self, number: usize) -> Result<(), Error> {
        let peer = |number: usize| format!("http://{}", self.members[number].peer);
        let client = self.endpoint(number);
        let all: Vec<_> = (0..self.members.len()).map(|n| format!("m{n}={}", peer(n))).collect();
        let mut arguments = vec![
            format!("--name=m{number}"),
            format!("--data-dir={}", self.member_dir(number).join("data").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={}", peer(number)),
            format!("--initial-advertise-peer-urls={}", peer(number)),
            format!("--initial-cluster={}", all.join(",")),
            "--socket-reuse-port".to_owned(),
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
            // Of the test, not of what is tested: passwords are hashed quickly.
            "--bcrypt-cost=4".to_owned(),
        ];
        if self.has_tls {
            let file = |name: &str| self.dir.join(name).display().to_string();
            arguments.extend([
                format!("--cert-file={}", file("server.pem")),
                format!("--key-file={}", file("server.key")),
                format!("--trusted-ca-file={}", file("ca.pem")),
                "--client-cert-auth".to_owned(),
            ]);
        }
        let server = Server::start("etcd", &self.member_dir(number), self.namespace.as_ref(), &arguments)?;
        self.members[number].server = Some(server);
        Ok(())
    }

    fn wait_ready(&mut self) -> Result<(), Error> {
        for number in 0..self.members.len() {
            wait_until("a member of etcd is ready", || {
                for member in &mut self.members {
                    member.server.as_mut().map_or(Ok(()), Server::check)?;
                }
                match self.has_tls {
                    // That it serves says the client of the test.
                    true => Ok(self.connect(number).is_ok()),
                    false => {
                        Ok(self.post(number, "/v3/kv/range", &serde_json::json!({"key": "AA=="})).is_ok())
                    }
                }
            })?;
        }
        Ok(())
    }

    fn make_certificates(&self) -> Result<(), Error> {
        let openssl = |arguments: &str| {
            let mut command = Command::new("openssl");
            command.current_dir(&self.dir).args(arguments.split(' '));
            let output = command.output().map_err(|error| format!("openssl: {error}"))?;
            match output.status.success() {
                true => Ok::<_, Error>(()),
                false => Err(String::from_utf8_lossy(&output.stderr).into_owned().into()),
            }
        };
        let new = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        openssl(&format!(
            "req -x509 {new} -keyout ca.key -out ca.pem -subj /CN=test -days 2 -addext keyUsage=critical,keyCertSign"
        ))?;
        for (name, usage) in [("server", "serverAuth,clientAuth"), ("client", "clientAuth")] {
            let extensions = format!("subjectAltName=IP:127.0.0.1\nextendedKeyUsage={usage}\n");
            self.file("extensions", &extensions)?;
            openssl(&format!("req {new} -keyout {name}.key -out {name}.csr -subj /O=test"))?;
            openssl(&format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out {name}.pem"
            ))?;
        }
        Ok(())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.members.clear();
        remove(&self.dir);
    }
}

fn remove(dir: &Path) {
    if let Err(error) = fs::remove_dir_all(dir) {
        eprintln!("{} is not removed: {error}", dir.display());
    }
}

/// A way to a member that can be cut: connections end, and new ones with them.
#[derive(Debug)]
pub struct Wire {
    address: SocketAddr,
    is_cut: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl Wire {
    /// A way to a member in plain text.
    pub fn new(etcd: &Etcd, member: usize) -> Result<Self, Error> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let wire =
            Wire { address: listener.local_addr()?, is_cut: Arc::default(), connections: Arc::default() };
        let (target, is_cut) = (etcd.members[member].address, Arc::clone(&wire.is_cut));
        let connections = Arc::clone(&wire.connections);
        // It ends with the process, like the sockets.
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(target) else { continue };
                if is_cut.load(Ordering::SeqCst) {
                    continue;
                }
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else { continue };
                    thread::spawn(move || {
                        // Either end may end it.
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                connections.lock().unwrap_or_else(PoisonError::into_inner).extend([near, far]);
            }
        });
        Ok(wire)
    }

    /// URL of the near end.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Nothing gets through from now on, or does again.
    pub fn cut(&self, is_cut: bool) {
        self.is_cut.store(is_cut, Ordering::SeqCst);
        for stream in self.connections.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // It may have ended already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
