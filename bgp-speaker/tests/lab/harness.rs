//! Two namespaces with a cable between them, processes in them, and waiting with a deadline. All of it goes when it
//! is dropped.
use bgp_speaker::config::{Asn, Family, Global, PeerAsn, PeerConfig, Timers};
use nix::sched::{CloneFlags, setns};
use std::{
    fs::{self, File},
    future::Future,
    net::Ipv4Addr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

/// The speaker's end of the cable.
pub(crate) const US: &str = "198.18.0.2";
pub(crate) const US6: &str = "fd00:18::2";
/// The router's end.
pub(crate) const ROUTER: &str = "198.18.0.1";
pub(crate) const ROUTER6: &str = "fd00:18::1";
pub(crate) const OUR_ASN: u32 = 65002;
pub(crate) const ROUTER_ASN: u32 = 65001;

const PATIENCE: Duration = Duration::from_secs(60);

/// A namespace for the speaker and one for the router, and a directory for files.
pub(crate) struct Cable {
    pub(crate) us: String,
    pub(crate) router: String,
    pub(crate) directory: PathBuf,
}

impl Cable {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("bgl{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(&name);
        let cable = Cable { us: format!("{name}u"), router: format!("{name}r"), directory };
        fs::create_dir_all(&cable.directory).unwrap();
        for namespace in [&cable.us, &cable.router] {
            run("ip", &["netns", "add", namespace]);
        }
        let veth = ["-n", &cable.us, "link", "add", "name", "us0", "type", "veth"];
        run("ip", &[&veth[..], &["peer", "name", "router0", "netns", &cable.router]].concat());
        for (namespace, link, address, address6) in
            [(&cable.us, "us0", US, US6), (&cable.router, "router0", ROUTER, ROUTER6)]
        {
            let dad = format!("net.ipv6.conf.{link}.accept_dad=0");
            run("ip", &["netns", "exec", namespace, "sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", &dad]);
            for link in ["lo", link] {
                run("ip", &["-n", namespace, "link", "set", link, "up"]);
            }
            run("ip", &["-n", namespace, "address", "add", &format!("{address}/24"), "dev", link]);
            run("ip", &["-n", namespace, "address", "add", &format!("{address6}/64"), "dev", link, "nodad"]);
        }
        cable
    }

    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for namespace in [&self.us, &self.router] {
            // The other one went with the cable, or was never made.
            let _: Result<_, _> = Command::new("ip").args(["netns", "delete", namespace]).status();
        }
        let _: Result<_, _> = fs::remove_dir_all(&self.directory);
    }
}

/// Runs to the end; what it printed.
#[track_caller]
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is missing or does not start: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// A process in a namespace, killed when dropped.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn start(namespace: &str, program: &str, arguments: &[&str], log: &Path) -> Self {
        assert!(Path::new(program).exists(), "{program} is missing");
        let log = File::create(log).unwrap();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, program]).args(arguments);
        let command = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Process(command.spawn().unwrap())
    }

    /// Kills it as a crash would: nothing is said to anybody.
    pub(crate) fn crash(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = i32::try_from(self.0.id()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _: Result<_, _> = self.0.kill();
        let _: Result<_, _> = self.0.wait();
    }
}

/// Whether somebody accepts connections on a unix socket; the file is there before that.
pub(crate) fn listens(socket: impl AsRef<Path>) -> bool {
    UnixStream::connect(socket).is_ok()
}

/// Moves this thread into a namespace: the sockets that it makes from now on are there.
pub(crate) fn enter(namespace: &str) {
    let file = File::open(Path::new("/run/netns").join(namespace)).unwrap();
    setns(file, CloneFlags::CLONE_NEWNET).unwrap();
}

/// Runs a test's part in a namespace, on this thread, with a runtime that stays on it.
pub(crate) fn within<T>(namespace: &str, part: impl Future<Output = T>) -> T {
    enter(namespace);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(part)
}

#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// The same, for what runs on the runtime of this thread.
pub(crate) async fn wait_for<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) fn global() -> Global {
    Global {
        asn: Asn(OUR_ASN),
        router_id: US.parse::<Ipv4Addr>().unwrap(),
        listen: [format!("{US}:179").parse().unwrap()].into(),
    }
}

/// The router as a peer that may tell us anything.
pub(crate) fn peer() -> PeerConfig {
    PeerConfig {
        local_address: Some(US.parse().unwrap()),
        timers: Timers { hold_seconds: 9, keepalive_seconds: 3, connect_retry_seconds: 1 },
        families: Family::ALL.into(),
        max_prefixes_restart_seconds: 60,
        accept: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
        ..PeerConfig::new(ROUTER.parse().unwrap(), PeerAsn::Is(Asn(ROUTER_ASN)))
    }
}
