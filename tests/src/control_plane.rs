//! A Kubernetes control plane for a test: etcd and kube-apiserver as they are released, on a port of their own, with
//! RBAC and without anything else (no controllers, no scheduler, no kubelet: what these would write, a test writes).
//! Several run at once. A [`ControlPlane`] ends its processes and removes its files when it is dropped; if the test is
//! killed, a watchdog beside each process does both.
//!
//! Data lies in `/tmp` and is not synced. etcd listens on a Unix socket, so it needs no port; the API server
//! shares its port with a socket that was bound before (`--permit-port-sharing`), so nobody else can take it.
use crate::{Error, wait_until};
use controller::demo::netns::Namespace;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, getsockname, setsockopt, socket, sockopt,
};
use serde_json::json;
use std::{
    fs::{self, DirBuilder, File},
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

mod api;
mod clusters;
mod proxy;
pub(crate) mod server;

pub use api::{Answer, Api};
pub use proxy::{Fault, Proxy, Request};
pub use server::programs;
use server::{Server, inside};

/// An API server at work, and its etcd.
#[derive(Debug)]
pub struct ControlPlane {
    dir: PathBuf,
    address: SocketAddr,
    namespace: Option<Namespace>,
    api_server: Option<Server>,
    etcd: Server,
    /// Holds the port, also while the API server is stopped.
    _port: OwnedFd,
}

impl ControlPlane {
    /// Starts one on loopback, and waits until it is ready.
    pub fn start() -> Result<Self, Error> {
        Self::start_on(None, Ipv4Addr::LOCALHOST.into())
    }

    /// Starts one in a network namespace, where it listens on `address`.
    pub fn start_in(namespace: &Namespace, address: IpAddr) -> Result<Self, Error> {
        Self::start_on(Some(namespace), address)
    }

    /// Applies the manifests of `deploy/kubernetes`, and waits until their kinds are served.
    pub fn install(&self) -> Result<(), Error> {
        let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes");
        let manifests = manifests.to_str().ok_or("a path that is no text")?;
        // Objects of a kind that was defined a moment ago: the second time they are taken.
        wait_until("the manifests are taken", || {
            Ok(self.kubectl(&["apply", "--server-side", "-k", manifests]).is_ok())
        })?;
        self.kubectl(&["wait", "--for=condition=Established", "--timeout=120s", "crd", "--all"]).map(drop)
    }

    fn start_on(namespace: Option<&Namespace>, address: IpAddr) -> Result<Self, Error> {
        programs()?;
        let dir = directory()?;
        let started = Self::start_with(&dir, namespace, address);
        if started.is_err() {
            // The error that led here is the one to tell.
            let _ = fs::remove_dir_all(&dir);
        }
        started
    }

    fn start_with(dir: &Path, namespace: Option<&Namespace>, address: IpAddr) -> Result<Self, Error> {
        let (port, address) = inside(namespace, || reserve(address))??;
        let token = token()?;
        fs::write(dir.join("tokens.csv"), format!("{token},admin,admin,system:masters\n"))?;
        let etcd = Server::start("etcd", dir, None, &etcd_arguments(dir))?;
        let mut plane = ControlPlane {
            dir: dir.to_owned(),
            address,
            namespace: namespace.cloned(),
            api_server: None,
            etcd,
            _port: port,
        };
        fs::write(plane.kubeconfig(), plane.kubeconfig_text(&token))?;
        plane.start_api_server()?;
        Ok(plane)
    }

    /// Starts the API server after it was stopped, with the data from before, and waits until it is ready.
    pub fn start_api_server(&mut self) -> Result<(), Error> {
        let arguments = api_server_arguments(&self.dir, self.address);
        let server = Server::start("kube-apiserver", &self.dir, self.namespace.as_ref(), &arguments)?;
        self.api_server = Some(server);
        let mut said = String::new();
        let ready = wait_until("the API server is ready", || {
            self.etcd.check()?;
            self.api_server.as_mut().map_or(Ok(()), Server::check)?;
            if inside(self.namespace.as_ref(), || TcpStream::connect(self.address))?.is_err() {
                return Ok(false);
            }
            // The namespace is made by the API server itself, soon after it is ready.
            for question in [&["get", "--raw", "/readyz"][..], &["get", "namespace", "default"]] {
                if let Err(error) = self.kubectl(question) {
                    said = error.to_string();
                    return Ok(false);
                }
            }
            Ok(true)
        });
        ready.map_err(|e| format!("{e}: {said}").into())
    }

    /// Ends the API server at once, by SIGKILL. Who has a connection sees it break; new ones are refused.
    pub fn stop_api_server(&mut self) {
        self.api_server = None;
    }

    /// A kubeconfig that may do everything (group `system:masters`).
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// A kubeconfig with the rights of a ServiceAccount that exists, by a token that lasts an hour.
    pub fn kubeconfig_of(&self, namespace: &str, account: &str) -> Result<PathBuf, Error> {
        let token = self.kubectl(&["create", "token", account, "-n", namespace, "--duration", "1h"])?;
        let path = self.dir.join(format!("kubeconfig-{namespace}-{account}"));
        fs::write(&path, self.kubeconfig_text(token.trim()))?;
        Ok(path)
    }

    /// Address and port of the API server.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What `kubectl` prints; an exit code other than 0 is an error with its stderr.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String, Error> {
        self.kubectl_with(arguments, "")
    }

    /// The same with text on stdin: `kubectl_with(&["apply", "-f", "-"], yaml)`.
    pub fn kubectl_with(&self, arguments: &[&str], stdin: &str) -> Result<String, Error> {
        let mut command = Command::new(programs()?.join("kubectl"));
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", &self.dir).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = inside(self.namespace.as_ref(), || command.spawn())??;
        if let Some(mut pipe) = child.stdin.take() {
            // kubectl may end before it has read all; then it says why.
            let _ = pipe.write_all(stdin.as_bytes());
        }
        let Output { status, stdout, stderr } = child.wait_with_output()?;
        if status.success() {
            return Ok(String::from_utf8(stdout)?);
        }
        let reason = String::from_utf8_lossy(&stderr);
        Err(format!("kubectl {}: {status}: {}", arguments.join(" "), reason.trim()).into())
    }

    /// Its API as JSON.
    pub fn api(&self) -> Result<Api, Error> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        Api::start(self, self.dir.join(format!("proxy{}.sock", COUNTER.fetch_add(1, Ordering::Relaxed))))
    }

    /// A proxy in front of it that can fail in many ways, for one process that has the rights of this kubeconfig.
    pub fn proxy(&self, kubeconfig: &Path) -> Result<Proxy, Error> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        Proxy::start(self, kubeconfig, COUNTER.fetch_add(1, Ordering::Relaxed))
    }

    /// Creates or changes objects: YAML, several documents.
    pub fn apply(&self, yaml: &str) -> Result<String, Error> {
        self.kubectl_with(&["apply", "--server-side", "--force-conflicts", "-f", "-"], yaml)
    }

    fn kubeconfig_text(&self, token: &str) -> String {
        let server = format!("https://{}", self.address);
        let authority = self.dir.join("apiserver.crt");
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority": authority}}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        })
        .to_string()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.stop_api_server();
        self.etcd.end();
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("{} is not removed: {error}", self.dir.display());
        }
    }
}

fn etcd_arguments(dir: &Path) -> Vec<String> {
    let url = |name: &str| format!("unix://{}", dir.join(name).display());
    let (client, peer) = (url("etcd.sock"), url("peer.sock"));
    vec![
        format!("--data-dir={}", dir.join("etcd").display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
    ]
}

fn api_server_arguments(dir: &Path, address: SocketAddr) -> Vec<String> {
    // Its self-signed certificate is for the address that it binds to. Tokens of ServiceAccounts are signed by its key.
    let key = dir.join("apiserver.key");
    vec![
        format!("--etcd-servers=unix://{}", dir.join("etcd.sock").display()),
        format!("--bind-address={}", address.ip()),
        format!("--advertise-address={}", address.ip()),
        format!("--secure-port={}", address.port()),
        "--permit-port-sharing".into(),
        format!("--cert-dir={}", dir.display()),
        format!("--token-auth-file={}", dir.join("tokens.csv").display()),
        "--authorization-mode=RBAC".into(),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", key.display()),
        format!("--service-account-signing-key-file={}", key.display()),
        "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/108".into(),
        // Nobody makes the account `default` that pods would be given.
        "--disable-admission-plugins=ServiceAccount".into(),
        "--allow-privileged".into(),
        "--endpoint-reconciler-type=none".into(),
        "--profiling=false".into(),
    ]
}

/// A port of `address` that is kept by the socket: others can share it only if they run as the same user and ask for it.
pub(crate) fn reserve(address: IpAddr) -> Result<(OwnedFd, SocketAddr), Error> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReusePort, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(address, 0)))?;
    let bound: SockaddrStorage = getsockname(fd.as_raw_fd())?;
    let port = match (bound.as_sockaddr_in(), bound.as_sockaddr_in6()) {
        (Some(v4), _) => v4.port(),
        (_, Some(v6)) => v6.port(),
        _ => return Err("a socket without a port".into()),
    };
    Ok((fd, SocketAddr::new(address, port)))
}

/// A directory that nobody else has, for this user only.
pub(crate) fn directory() -> Result<PathBuf, Error> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("fairlead-plane-{}-{number}", std::process::id()));
    DirBuilder::new().mode(0o700).create(&dir)?;
    Ok(dir)
}

/// 128 random bits.
fn token() -> Result<String, Error> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.map(|b| format!("{b:02x}")).concat())
}
