//! A host with one interface, `lb0`, and a peer behind it, each in a network namespace of its own; and more hosts behind
//! interfaces of their own, where a test wants them. All of it goes with the test, however that ends.
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
    peer: Namespace,
}

/// A network namespace, which a process holds.
pub(crate) struct Namespace(Child);

impl Namespace {
    /// A new one, in which `lo` is up.
    pub(crate) fn new() -> Self {
        // It says when it is in its namespace, and ends when its input does.
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo; read end"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("run unshare");
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(holder.stdout.as_mut().unwrap()), &mut line)
            .unwrap();
        let namespace = Namespace(holder);
        namespace.run("ip", &["link", "set", "lo", "up"]);
        namespace
    }

    /// Makes a veth between the calling thread's namespace and this one, as containers have it: no program and no GRO, all
    /// offloads of a veth. `here` and `there` are addresses with their lengths.
    pub(crate) fn plug(&self, (near, here): (&str, &[&str]), (far, there): (&str, &[&str])) {
        let holder = self.0.id().to_string();
        run("ip", &["link", "add", near, "type", "veth", "peer", "name", far, "netns", &holder]);
        here.iter().for_each(|address| drop(run("ip", &address_of(near, address))));
        run("ip", &["link", "set", near, "up"]);
        there.iter().for_each(|address| drop(self.run("ip", &address_of(far, address))));
        self.run("ip", &["link", "set", far, "up"]);
    }

    /// Runs a command; returns its output.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        let namespace = format!("--net=/proc/{}/ns/net", self.0.id());
        run("nsenter", &[&[namespace.as_str(), program], arguments].concat())
    }

    /// Does something in a thread that is inside.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = self.file();
        let inside = || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// The namespace itself.
    pub(crate) fn file(&self) -> File {
        File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The Ethernet address in what `ip link show` prints.
fn mac_of(link: &str) -> String {
    let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether");
    words.nth(1).expect("an Ethernet address").to_owned()
}

fn address_of<'a>(interface: &'a str, address: &'a str) -> Vec<&'a str> {
    let nodad = if address.contains(':') { &["nodad"][..] } else { &[] };
    [&["address", "add", address, "dev", interface], nodad].concat()
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
        run("ip", &["link", "set", "lo", "up"]);
        let network = Network { pin_dir, peer: Namespace::new() };
        network.make_link();
        network
    }

    /// Makes `lb0` and its peer, with addresses.
    pub(crate) fn make_link(&self) {
        let there = ["10.0.0.2/24", "10.0.0.3/24", "2001:db8::2/64", "2001:db8::3/64"];
        self.peer.plug(("lb0", &["10.0.0.1/24", "2001:db8::1/64"]), ("peer0", &there));
    }

    /// Runs a command in the peer's namespace; returns its output.
    pub(crate) fn in_peer(&self, program: &str, arguments: &[&str]) -> String {
        self.peer.run(program, arguments)
    }

    /// Does something in a thread that is in the peer's namespace.
    pub(crate) fn inside_peer<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.peer.inside(work)
    }

    /// The peer's namespace.
    pub(crate) fn peer_namespace(&self) -> File {
        self.peer.file()
    }

    /// Ethernet address of the peer.
    pub(crate) fn peer_mac(&self) -> String {
        mac_of(&self.in_peer("ip", &["link", "show", "peer0"]))
    }

    /// Ethernet address of `lb0`.
    pub(crate) fn own_mac(&self) -> String {
        mac_of(&run("ip", &["link", "show", "lb0"]))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
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
