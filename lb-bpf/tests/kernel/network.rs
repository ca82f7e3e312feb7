//! A host with one interface, `lb0`, and a peer behind it, each in a network namespace of its own. All of it goes
//! with the test, however that ends.
use std::{
    fs::{self, File},
    panic::resume_unwind,
    path::PathBuf,
    process::{self, Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

/// The namespace of the calling thread, and one for the peer.
pub(crate) struct Network {
    /// A directory for pins that no other test has.
    pub(crate) pin_dir: PathBuf,
    /// Holds the peer's namespace.
    peer: Child,
}

/// Runs a test in a thread with a network of its own.
pub(crate) fn test(body: impl AsyncFnOnce(&Network) + Send + 'static) {
    let thread = thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("unshare needs root");
        let network = Network::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(body(&network));
    });
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}

impl Network {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let pin_dir = format!("/sys/fs/bpf/fairlead-test-{}-{number}", process::id()).into();
        // It says when it is in its namespace, and ends when its input does.
        let mut peer = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo; read end"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("run unshare");
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(peer.stdout.as_mut().unwrap()), &mut line)
            .unwrap();
        let network = Network { pin_dir, peer };
        run("ip", &["link", "set", "lo", "up"]);
        network.in_peer("ip", &["link", "set", "lo", "up"]);
        network.make_link();
        network
    }

    /// Makes `lb0` and its peer, with addresses.
    pub(crate) fn make_link(&self) {
        let peer = self.peer.id().to_string();
        run("ip", &["link", "add", "lb0", "type", "veth", "peer", "name", "peer0", "netns", &peer]);
        run("ip", &["address", "add", "10.0.0.1/24", "dev", "lb0"]);
        run("ip", &["address", "add", "2001:db8::1/64", "dev", "lb0", "nodad"]);
        run("ip", &["link", "set", "lb0", "up"]);
        for address in ["10.0.0.2/24", "10.0.0.3/24", "2001:db8::2/64", "2001:db8::3/64"] {
            let nodad = if address.contains(':') { &["nodad"][..] } else { &[] };
            self.in_peer("ip", &[&["address", "add", address, "dev", "peer0"], nodad].concat());
        }
        self.in_peer("ip", &["link", "set", "peer0", "up"]);
    }

    /// Runs a command in the peer's namespace; returns its output.
    pub(crate) fn in_peer(&self, program: &str, arguments: &[&str]) -> String {
        let namespace = format!("--net=/proc/{}/ns/net", self.peer.id());
        run("nsenter", &[&[namespace.as_str(), program], arguments].concat())
    }

    /// Does something in a thread that is in the peer's namespace.
    pub(crate) fn inside_peer<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = self.peer_namespace();
        let inside = || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// The peer's namespace.
    pub(crate) fn peer_namespace(&self) -> File {
        File::open(format!("/proc/{}/ns/net", self.peer.id())).unwrap()
    }

    /// Ethernet address of the peer.
    pub(crate) fn peer_mac(&self) -> String {
        let link = self.in_peer("ip", &["link", "show", "peer0"]);
        let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether");
        words.nth(1).expect("an Ethernet address").to_owned()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.peer.kill();
        let _ = self.peer.wait();
        // Only there when the test has failed. Removing a pinned link detaches.
        let _ = fs::remove_dir_all(&self.pin_dir);
    }
}

/// Runs a command in the namespace of this thread; returns its output.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}
