//! Network namespaces, and everything that lives and dies with them: a [`Sandbox`] is a set of namespaces with a
//! directory in `/run/fairlead-demo`. Used by the demo and by the lab in `tests/`.
//!
//! Whatever a sandbox makes carries its name: namespaces `NAME-HOST`, pinned maps under
//! `/sys/fs/bpf/fairlead/NAME-HOST`, files in `/run/fairlead-demo/NAME`. So one small script, which lies in that
//! directory from the first moment, removes all of it: when the sandbox is dropped (also by a panic or a signal
//! that ends `run`), by hand after `--keep`, or at the next start when the process was killed (its lock on the
//! directory is free then).
//!
//! Processes and threads enter a namespace by setns(2) on a thread of their own, never by `ip netns exec`: that
//! mounts a new `/sys`, and the bpf filesystem with the pinned maps would be out of sight.
use super::DemoError;
use nix::{
    fcntl::{Flock, FlockArg},
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Where sandboxes keep their files, one directory each.
const ROOT: &str = "/run/fairlead-demo";
/// File in the directory of a sandbox that is no leftover although its process has ended.
const KEPT: &str = "kept";
/// Where iproute2 keeps named namespaces.
const NETNS: &str = "/run/netns";
/// Where the datapath pins its maps.
const BPFFS: &str = "/sys/fs/bpf";

/// A set of network namespaces with a directory. Dropping it removes everything, unless it was told to
/// [`keep`](Sandbox::keep).
#[derive(Debug)]
pub struct Sandbox {
    name: String,
    dir: PathBuf,
    keep: bool,
    /// Held while this process lives: says that the directory is not a leftover.
    _lock: Flock<File>,
}

impl Sandbox {
    /// An empty sandbox whose name begins with `prefix` (at most six letters) and is unique on this machine.
    /// First removes what earlier processes left behind.
    pub fn create(prefix: &str) -> Result<Self, DemoError> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        for tool in [Tool::IP, Tool::ETHTOOL] {
            tool.check()?;
        }
        let root = Path::new(ROOT);
        fs::create_dir_all(root).map_err(|e| DemoError::io("creating", root, e))?;
        // One at a time: a directory without a lock is a leftover, also between its making and its locking.
        let _turn = lock(root, FlockArg::LockExclusive)?;
        mount_bpffs()?;
        remove_leftovers(root)?;
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{prefix}{}-{count}", std::process::id());
        let dir = root.join(&name);
        fs::create_dir(&dir).map_err(|e| DemoError::io("creating", &dir, e))?;
        let lock = lock(&dir, FlockArg::LockExclusiveNonblock)?
            .ok_or_else(|| DemoError::io("locking", &dir, io::ErrorKind::WouldBlock.into()))?;
        let sandbox = Sandbox { name, dir, keep: false, _lock: lock };
        let script = sandbox.script();
        fs::write(&script, removal(&sandbox.name)).map_err(|e| DemoError::io("writing", &script, e))?;
        Ok(sandbox)
    }

    /// Name of the sandbox, and prefix of all that belongs to it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Directory of the sandbox, removed with it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The script that removes everything.
    pub fn script(&self) -> PathBuf {
        self.dir.join("remove.sh")
    }

    /// A new namespace `NAME-HOST`, with loopback up and no IPv6 duplicate address detection, which would delay
    /// every address by a second.
    pub fn namespace(&self, host: &str) -> Result<Namespace, DemoError> {
        let namespace = Namespace { name: format!("{}-{host}", self.name) };
        ip(&["netns", "add", &namespace.name])?;
        namespace.sysctl(&[
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/all/accept_ra", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ])?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Lets everything live on when the sandbox is dropped, and until somebody runs its script.
    pub fn keep(&mut self) -> Result<(), DemoError> {
        let mark = self.dir.join(KEPT);
        fs::write(&mark, []).map_err(|e| DemoError::io("writing", &mark, e))?;
        self.keep = true;
        Ok(())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = remove(&self.dir) {
            tracing::error!(%error, sandbox = self.name, "not removed");
        }
    }
}

/// A named network namespace. It belongs to its [`Sandbox`], which removes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Name for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs lines of `ip` commands (without the word `ip`) inside, as one batch; the first that fails ends it.
    pub fn ip(&self, lines: &str) -> Result<(), DemoError> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| DemoError::command("ip -batch", e))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A batch that ended early has said why on stderr.
            let _ = stdin.write_all(lines.as_bytes());
        }
        let output = child.wait_with_output().map_err(|e| DemoError::command("ip -batch", e))?;
        if output.status.success() {
            return Ok(());
        }
        Err(DemoError::command(
            format!("ip -n {} -batch", self.name),
            String::from_utf8_lossy(&output.stderr).trim(),
        ))
    }

    /// What `ip -json …` says inside.
    pub fn ip_json(&self, arguments: &[&str]) -> Result<serde_json::Value, DemoError> {
        let text = ip(&[&["-n", &self.name, "-json"], arguments].concat())?;
        if text.trim().is_empty() {
            return Ok(serde_json::Value::Array(Vec::new()));
        }
        serde_json::from_str(&text)
            .map_err(|e| DemoError::command(format!("ip -json {}", arguments.join(" ")), e))
    }

    /// Writes kernel parameters, named by their path below `/proc/sys`.
    pub fn sysctl(&self, values: &[(&str, &str)]) -> Result<(), DemoError> {
        self.enter(|| {
            for (key, value) in values {
                let path = Path::new("/proc/sys").join(key);
                fs::write(&path, value).map_err(|e| DemoError::io("writing", &path, e))?;
            }
            Ok(())
        })?
    }

    /// Turns features of an interface on or off: `[("tx", false)]`.
    pub fn ethtool(&self, interface: &str, features: &[(&str, bool)]) -> Result<(), DemoError> {
        let mut command = Command::new("ethtool");
        command.args(["-K", interface]);
        for (feature, on) in features {
            command.arg(feature).arg(if *on { "on" } else { "off" });
        }
        self.output(command).map(drop)
    }

    /// Runs `body` on a thread inside and waits for it. Processes that it starts are inside, too.
    pub fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T, DemoError> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| self.join().map(|()| body()));
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a thread inside. Dropping what it waits for is the caller's way to end it.
    pub fn thread<T: Send + 'static>(
        &self,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<Result<T, DemoError>> {
        let namespace = self.clone();
        thread::spawn(move || namespace.join().map(|()| body()))
    }

    /// Runs a command inside to its end and gives what it printed; an exit code other than 0 is an error with
    /// its stderr.
    pub fn output(&self, mut command: Command) -> Result<String, DemoError> {
        self.enter(|| finish(command.stdin(Stdio::null())))?
    }

    /// Starts a process inside, in a process group of its own so that Ctrl-C at the terminal does not reach it,
    /// with its output in the file `log`. It is killed when dropped, unless [`Process::leave`] is called.
    pub fn spawn(&self, mut command: Command, log: &Path) -> Result<Process, DemoError> {
        let file = || {
            File::options().create(true).append(true).open(log).map_err(|e| DemoError::io("opening", log, e))
        };
        command.stdin(Stdio::null()).stdout(file()?).stderr(file()?).process_group(0);
        let name = command.get_program().to_string_lossy().into_owned();
        let child = self.enter(|| command.spawn())?.map_err(|e| DemoError::command(name, e))?;
        Ok(Process { child: Some(child), log: log.to_owned() })
    }

    /// Moves the calling thread inside.
    fn join(&self) -> Result<(), DemoError> {
        let path = Path::new(NETNS).join(&self.name);
        let file = File::open(&path).map_err(|e| DemoError::io("opening", &path, e))?;
        setns(&file, CloneFlags::CLONE_NEWNET).map_err(|e| DemoError::io("entering", &path, e.into()))
    }
}

/// A process that was started in a [`Namespace`].
#[derive(Debug)]
pub struct Process {
    child: Option<Child>,
    log: PathBuf,
}

impl Process {
    /// Process id; none after [`Process::leave`].
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(mut self) {
        self.end();
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<(), DemoError> {
        let gone = || DemoError::command(signal.as_str(), "there is no process any more");
        let id = self.id().and_then(|id| i32::try_from(id).ok()).ok_or_else(gone)?;
        kill(Pid::from_raw(id), signal).map_err(|e| DemoError::command(signal.as_str(), e))
    }

    /// SIGTERM, and waits until it has ended, ten seconds at most.
    pub fn terminate(mut self) -> Result<ExitStatus, DemoError> {
        const PATIENCE: Duration = Duration::from_secs(10);
        self.signal(Signal::SIGTERM)?;
        let gone = || DemoError::command("SIGTERM", "there is no process any more");
        let child = self.child.as_mut().ok_or_else(gone)?;
        let asked = Instant::now();
        loop {
            if let Some(status) =
                child.try_wait().map_err(|e| DemoError::command("waiting for the end", e))?
            {
                return Ok(status);
            }
            if asked.elapsed() > PATIENCE {
                let what = format!("{} ends after SIGTERM", self.log.display());
                return Err(DemoError::Timeout { what, seconds: PATIENCE.as_secs() });
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it has ended by itself, with the last lines of its log.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.child.as_mut()?.try_wait().ok()??;
        Some(format!("{status}; {} ends with:\n{}", self.log.display(), tail(&self.log)))
    }

    /// Lets it live on.
    pub fn leave(mut self) {
        self.child = None;
    }

    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Only fails when it has ended already; either way it is reaped.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// A program that must be installed.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    program: &'static str,
    package: &'static str,
}

impl Tool {
    const IP: Tool = Tool::new("ip", "iproute2");
    const ETHTOOL: Tool = Tool::new("ethtool", "ethtool");

    /// `program` (a name to look up in PATH, or a path) comes with the Debian package `package`.
    pub const fn new(program: &'static str, package: &'static str) -> Self {
        Tool { program, package }
    }

    /// The program, for [`Command::new`].
    pub const fn program(self) -> &'static str {
        self.program
    }

    /// An error that names the package when the program is not there.
    pub fn check(self) -> Result<(), DemoError> {
        let found = if self.program.starts_with('/') {
            Path::new(self.program).exists()
        } else {
            // Debian keeps some of these in sbin, which the PATH of a login with `su` may lack.
            std::env::var_os("PATH")
                .is_some_and(|p| std::env::split_paths(&p).any(|d| d.join(self.program).exists()))
        };
        if found { Ok(()) } else { Err(DemoError::Missing { program: self.program, package: self.package }) }
    }
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = fs::read(log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// Runs `ip` in the namespace of this process.
fn ip(arguments: &[&str]) -> Result<String, DemoError> {
    finish(Command::new("ip").args(arguments))
}

fn finish(command: &mut Command) -> Result<String, DemoError> {
    let text = format!("{command:?}").replace('"', "");
    let output = command.output().map_err(|e| DemoError::command(text.clone(), e))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = [output.stderr, output.stdout].concat();
    Err(DemoError::command(text, format!("{}: {}", output.status, String::from_utf8_lossy(&said).trim())))
}

/// The script that removes the sandbox `name`.
fn removal(name: &str) -> String {
    format!(
        "#!/bin/sh\n\
         # Removes all of {name}: processes, namespaces, pinned maps and programs, files.\n\
         for n in $(ip netns list | awk '$1 ~ /^{name}-/ {{ print $1 }}'); do\n\
         \x20 pids=$(ip netns pids \"$n\")\n\
         \x20 [ -z \"$pids\" ] || kill -KILL $pids 2>/dev/null\n\
         \x20 ip netns del \"$n\"\n\
         done\n\
         rm -rf {BPFFS}/fairlead/{name}-*\n\
         rm -rf {ROOT}/{name}\n"
    )
}

fn remove(dir: &Path) -> Result<(), DemoError> {
    let script = dir.join("remove.sh");
    if !script.exists() {
        // Killed before the script was written: there is nothing but the directory.
        return fs::remove_dir_all(dir).map_err(|e| DemoError::io("removing", dir, e));
    }
    finish(Command::new("sh").arg(script).stdin(Stdio::null())).map(drop)
}

/// Removes the sandboxes whose process has ended.
fn remove_leftovers(root: &Path) -> Result<(), DemoError> {
    for entry in fs::read_dir(root).map_err(|e| DemoError::io("reading", root, e))? {
        let dir = entry.map_err(|e| DemoError::io("reading", root, e))?.path();
        if dir.join(KEPT).exists() {
            continue;
        }
        // A directory that cannot be opened any more has been removed by its owner.
        if let Ok(Some(_lock)) = lock(&dir, FlockArg::LockExclusiveNonblock) {
            tracing::warn!(sandbox = %dir.display(), "removing what an earlier run left");
            remove(&dir)?;
        }
    }
    Ok(())
}

/// Locks a directory; `None` when somebody else holds it.
fn lock(dir: &Path, how: FlockArg) -> Result<Option<Flock<File>>, DemoError> {
    let file = File::open(dir).map_err(|e| DemoError::io("opening", dir, e))?;
    match Flock::lock(file, how) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(DemoError::io("locking", dir, error.into())),
    }
}

/// Mounts the bpf filesystem where it is not there yet (systemd does so at boot).
fn mount_bpffs() -> Result<(), DemoError> {
    let path = Path::new(BPFFS);
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    if mounts.lines().any(|l| l.split(' ').nth(1) == Some(BPFFS)) {
        return Ok(());
    }
    nix::mount::mount(Some("bpf"), path, Some("bpf"), nix::mount::MsFlags::empty(), None::<&str>)
        .map_err(|e| DemoError::io("mounting the bpf filesystem on", path, e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exists(name: &str) -> bool {
        Path::new(NETNS).join(name).exists()
    }

    #[test]
    fn a_sandbox_removes_itself_and_its_processes() {
        let sandbox = Sandbox::create("flt").unwrap();
        let (dir, host) = (sandbox.dir().to_owned(), sandbox.namespace("a").unwrap());
        assert!(exists(host.name()));
        let mut sleep = Command::new("sleep");
        sleep.arg("600");
        let process = host.spawn(sleep, &dir.join("log")).unwrap();
        let pid = process.id().unwrap();
        process.leave();
        drop(sandbox);
        assert!(!exists(host.name()) && !dir.exists());
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
    }

    #[test]
    fn a_sandbox_is_removed_by_a_panic() {
        let mut name = String::new();
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let sandbox = Sandbox::create("flt").unwrap();
            name = sandbox.namespace("a").unwrap().name().to_owned();
            panic!("on purpose");
        }));
        assert!(panic.is_err() && !name.is_empty() && !exists(&name));
    }

    #[test]
    fn the_next_sandbox_removes_what_a_dead_process_left() {
        let mut dead = Sandbox::create("flt").unwrap();
        let (dir, host) = (dead.dir().to_owned(), dead.namespace("a").unwrap());
        dead.keep().unwrap();
        drop(dead);
        drop(Sandbox::create("flt").unwrap());
        assert!(exists(host.name()), "what is kept stays");
        fs::remove_file(dir.join(KEPT)).unwrap();
        let _next = Sandbox::create("flt").unwrap();
        assert!(!exists(host.name()) && !dir.exists());
    }

    #[test]
    fn commands_and_threads_run_inside_and_faults_say_what_failed() {
        let sandbox = Sandbox::create("flt").unwrap();
        let a = sandbox.namespace("a").unwrap();
        a.ip("link add br0 type bridge\nlink set br0 up").unwrap();
        let links = a.ip_json(&["link", "show"]).unwrap();
        let names: Vec<_> = links.as_array().unwrap().iter().map(|l| l["ifname"].clone()).collect();
        assert!(names.contains(&"br0".into()), "{names:?}");
        let error = a.ip("link set nosuch up").unwrap_err().to_string();
        assert!(error.contains("nosuch"), "{error}");
        let devices =
            a.thread(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap()).join().unwrap().unwrap();
        assert!(devices.contains("br0"), "{devices}");
    }

    #[test]
    fn a_missing_tool_is_named_with_its_package() {
        let error = Tool::new("/nonexistent/zebra", "frr").check().unwrap_err().to_string();
        assert!(error.contains("/nonexistent/zebra") && error.contains("apt-get install frr"), "{error}");
    }
}
