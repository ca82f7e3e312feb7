//! One host's fairlead: the process, its directory of files, and what it says about itself.
use super::{
    DemoError,
    netns::{Process, Sandbox},
    topology::Host,
};
use crate::{
    client,
    serve::rows::{InstanceStatus, ServiceRow},
};
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

/// The files of `deploy/examples`: name and text.
pub const EXAMPLES: [(&str, &str); 5] = [
    ("api.yaml", include_str!("../../../deploy/examples/api.yaml")),
    ("bgp.yaml", include_str!("../../../deploy/examples/bgp.yaml")),
    ("nodes.yaml", include_str!("../../../deploy/examples/nodes.yaml")),
    ("pool.yaml", include_str!("../../../deploy/examples/pool.yaml")),
    ("web.yaml", include_str!("../../../deploy/examples/web.yaml")),
];

/// `fairlead standalone` on a host.
#[derive(Debug)]
pub struct Instance {
    /// Where it runs.
    pub host: Host,
    /// More arguments of the command.
    pub arguments: Vec<String>,
    binary: PathBuf,
    dir: PathBuf,
    process: Option<Process>,
}

impl Instance {
    /// Lays out the files for `host`: a copy of the examples in which the host names are those of the sandbox,
    /// so that two sandboxes on one machine do not share pinned maps.
    pub fn new(sandbox: &Sandbox, host: &Host, binary: &Path) -> Result<Self, DemoError> {
        let dir = sandbox.dir().join(&host.name);
        let instance = Instance {
            host: host.clone(),
            arguments: Vec::new(),
            binary: binary.to_owned(),
            dir,
            process: None,
        };
        let config = instance.config_dir();
        fs::create_dir_all(&config).map_err(|e| DemoError::io("creating", &config, e))?;
        for (name, text) in EXAMPLES {
            let host = |h: &str| format!("metadata: {{name: {}-{h}", sandbox.name());
            let text = match name {
                "nodes.yaml" => {
                    text.replace("metadata: {name: lb", &host("lb")).replace("metadata: {name: b", &host("b"))
                }
                _ => text.to_owned(),
            };
            instance.write(name, &text)?;
        }
        Ok(instance)
    }

    /// Name of the node: that of its namespace.
    pub fn node(&self) -> &str {
        self.host.namespace.name()
    }

    /// The directory of YAML files.
    pub fn config_dir(&self) -> PathBuf {
        self.dir.join("config")
    }

    /// The API socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("api.sock")
    }

    /// Its log.
    pub fn log(&self) -> PathBuf {
        self.dir.join("fairlead.log")
    }

    /// Text of a file of its directory.
    pub fn read(&self, name: &str) -> Result<String, DemoError> {
        let path = self.config_dir().join(name);
        fs::read_to_string(&path).map_err(|e| DemoError::io("reading", &path, e))
    }

    /// Writes a file of its directory, in one step: a reader sees the old text or the new.
    pub fn write(&self, name: &str, text: &str) -> Result<(), DemoError> {
        let path = self.config_dir().join(name);
        let beside = self.dir.join(name);
        fs::write(&beside, text).map_err(|e| DemoError::io("writing", &beside, e))?;
        fs::rename(&beside, &path).map_err(|e| DemoError::io("writing", &path, e))
    }

    /// Deletes a file of its directory.
    pub fn delete(&self, name: &str) -> Result<(), DemoError> {
        let path = self.config_dir().join(name);
        fs::remove_file(&path).map_err(|e| DemoError::io("deleting", &path, e))
    }

    /// Starts the process.
    pub fn start(&mut self) -> Result<(), DemoError> {
        let mut command = Command::new(&self.binary);
        command
            .arg("standalone")
            .args([Path::new("--config-dir"), &self.config_dir()])
            .args([Path::new("--state-dir"), &self.dir.join("state")])
            .args([Path::new("--api-socket"), &self.socket()])
            .args(["--interface", "eth0", "--metrics", "127.0.0.1:9617", "--node-name", self.node()])
            .args(&self.arguments);
        self.process = Some(self.host.namespace.spawn(command, &self.log())?);
        Ok(())
    }

    /// Id of the process; none: it does not run.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().and_then(Process::id)
    }

    /// SIGKILL; what it installed stays.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// SIGTERM; gives the exit status.
    pub fn terminate(&mut self) -> Result<ExitStatus, DemoError> {
        let process = self.process.take();
        process.ok_or_else(|| DemoError::command("SIGTERM", "it does not run"))?.terminate()
    }

    /// SIGUSR2: another program takes the place of this one, in the same process.
    pub fn replace(&self) -> Result<(), DemoError> {
        let process = self.process.as_ref();
        process.ok_or_else(|| DemoError::command("SIGUSR2", "it does not run"))?.signal(Signal::SIGUSR2)
    }

    /// Lets the process live on when this value is dropped.
    pub fn leave(&mut self) {
        if let Some(process) = self.process.take() {
            process.leave();
        }
    }

    /// An error when the process has ended by itself.
    pub fn check(&mut self) -> Result<(), DemoError> {
        match self.process.as_mut().and_then(Process::ended) {
            Some(how) => Err(DemoError::command(format!("fairlead on {}", self.host.name), how)),
            None => Ok(()),
        }
    }

    /// The services of its datapath; `None` while it does not answer.
    pub fn services(&self) -> Result<Option<Vec<ServiceRow>>, DemoError> {
        self.ask("/v1/services")
    }

    /// Whether it is ready; `None` while it does not answer.
    pub fn status(&self) -> Result<Option<InstanceStatus>, DemoError> {
        self.ask("/v1/status")
    }

    /// What the API says at `path`; `None` while nobody listens.
    pub fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, DemoError> {
        let runtime = super::http::runtime().map_err(|e| DemoError::command("starting a runtime", e))?;
        match runtime.block_on(client::get(&self.socket(), path)) {
            Ok(answer) => Ok(Some(answer)),
            Err(client::ClientError::Connect { source, .. }) if starting(&source) => Ok(None),
            // It listens before it loads its programs, which takes long where many do.
            Err(client::ClientError::Late { .. }) => Ok(None),
            Err(error) => Err(DemoError::command(format!("fairlead on {}", self.host.name), error)),
        }
    }
}

/// Starts the HTTP server of a backend, a process of its own: see [`super::http::serve`].
pub fn serve(sandbox: &Sandbox, backend: &Host, binary: &Path) -> Result<Process, DemoError> {
    let mut command = Command::new(binary);
    command.args(["demo", "--serve", &backend.name]);
    let dir = sandbox.dir().join(&backend.name);
    fs::create_dir_all(&dir).map_err(|e| DemoError::io("creating", &dir, e))?;
    backend.namespace.spawn(command, &dir.join("http.log"))
}

/// Whether a connection failed because the process does not listen yet, or has ended.
fn starting(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}
