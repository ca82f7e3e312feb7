//! A program of the control plane as a process that cannot outlive the test.
use crate::Error;
use controller::demo::netns::Namespace;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

/// A process with a watchdog: a shell in its process group that outlives this process, should it be killed, by
/// just the time that it takes to end the other and to remove its files.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    pub(crate) fn start(
        program: &str,
        dir: &Path,
        namespace: Option<&Namespace>,
        arguments: &[String],
    ) -> Result<Self, Error> {
        // The end of stdin is the end of this process. $$ is the program, once it has taken the shell's place.
        const WATCHED: &str = r#"exec 3<&0 </dev/null
            (read -r _ <&3; kill -KILL $$; rm -rf "$0") &
            exec "$@" 3<&-"#;
        let log = dir.join(format!("{program}.log"));
        let file = || File::options().create(true).append(true).open(&log);
        let mut command = Command::new("sh");
        command.args(["-c", WATCHED]).arg(dir).arg(programs()?.join(program)).args(arguments);
        command.env("GOMAXPROCS", "2").env("HOME", dir).process_group(0);
        command.stdin(Stdio::piped()).stdout(file()?).stderr(file()?);
        let child = inside(namespace, || command.spawn())??;
        Ok(Server { child, log })
    }

    /// An error when it has ended by itself, with the end of its log.
    pub(crate) fn check(&mut self) -> Result<(), Error> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        let log = fs::read_to_string(&self.log)?;
        let lines: Vec<_> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(10)..].join("\n");
        Err(format!("{} ends with {status}:\n{end}", self.log.display()).into())
    }

    /// Ends the whole group, first of all the watchdog's chance to act.
    pub(super) fn end(&mut self) {
        if let Ok(group) = i32::try_from(self.child.id()) {
            // Fails when all of it has ended already.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// The directory with kube-apiserver, kubectl and etcd, which are built when they are not there yet; see
/// `tests/control-plane/build.sh`.
pub fn programs() -> Result<&'static Path, Error> {
    static PROGRAMS: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = PROGRAMS.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("control-plane/build.sh");
        let output = Command::new(&script).output().map_err(|e| format!("{}: {e}", script.display()))?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).trim().into()),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().into()),
        }
    });
    found.as_deref().map_err(|e| e.clone().into())
}

/// Runs `body` in a namespace, if there is one.
pub(crate) fn inside<T: Send>(
    namespace: Option<&Namespace>,
    body: impl FnOnce() -> T + Send,
) -> Result<T, Error> {
    Ok(match namespace {
        Some(namespace) => namespace.enter(body)?,
        None => body(),
    })
}
