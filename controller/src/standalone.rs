//! `fairlead standalone` and `fairlead agent`: one node from a directory of files, or of a cluster or fleet. Checks what it was told,
//! wires the store, the datapath, the speaker and the reconcile loop, serves, and waits for a signal.
//!
//! Until the directory has been valid once, or the shared store has told everything, there is no snapshot, and so no pass:
//! what the process before left in the kernel goes on as it is.
use crate::{
    appliers::ThisHost,
    capabilities::{self, Missing},
    flows::Flows,
    health::Checks,
    host,
    reconcile::Reconciler,
    serve::{
        api,
        health_ports::serve_health_ports,
        instance::Instance,
        metrics, node_state, serve,
        socket::{ApiSocket, SocketError, bind_tcp},
    },
    store::{
        EtcdStore, FileStore, KubernetesStore, SharedStore, Store, StoreError, etcd,
        kubernetes::{Access, Role},
    },
    succession,
};
use bgp_speaker::{HandOver, Succession};
use lb_bpf::{Datapath, DatapathError, Sizes, TunnelSources};
use nix::{
    net::if_::{if_nameindex, if_nametoindex},
    unistd::geteuid,
};
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
    time::timeout,
};

/// Where the datapath of each node of this machine is pinned, by its name.
const PIN_DIR: &str = "/sys/fs/bpf/fairlead";
/// How long the peers may take to hear the Cease.
const FAREWELL: Duration = Duration::from_secs(5);

/// Where objects come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// `fairlead standalone`: from files.
    Files {
        /// Directory of the YAML files.
        config_dir: PathBuf,
        /// Directory for what must survive a restart.
        state_dir: PathBuf,
    },
    /// `fairlead agent`: from an API server. See [`Access::new`].
    Kubernetes {
        /// How to reach it.
        kubeconfig: Option<PathBuf>,
        /// Where the Secrets are that peers name.
        namespace: Option<String>,
        /// Services that name no class are ours.
        default_class: bool,
    },
    /// `fairlead agent --store etcd`.
    Etcd {
        /// How to reach it.
        options: etcd::Options,
        /// Labels of this node.
        labels: BTreeMap<String, String>,
    },
}

/// What `fairlead standalone` or `fairlead agent` was told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where objects come from.
    pub source: Source,
    /// Interfaces where the datapath is attached; empty: that of the default route.
    pub interfaces: Vec<String>,
    /// Interfaces of pods: names, or with a `*` at the end how names begin.
    pub pod_interfaces: Vec<String>,
    /// Sizes of the maps when they are made.
    pub map_sizes: Sizes,
    /// Where the outer sources of IPIP are taken from.
    pub tunnel_sources: TunnelSources,
    /// Unix socket of the API.
    pub api_socket: PathBuf,
    /// Where metrics and health are served.
    pub metrics: SocketAddr,
    /// Name of this node; none: the host name.
    pub node_name: Option<String>,
}

/// Why the instance could not start: one sentence for people.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// XDP, namespaces and port 179 need root.
    #[error("`fairlead {command}` needs root: run it with sudo, or as a systemd service")]
    NotRoot {
        /// `standalone` or `agent`.
        command: &'static str,
    },
    /// Root may not do all that is to be done.
    #[error("`fairlead {command}` lacks {missing}: give it in the unit or manifest that starts it")]
    Capabilities {
        /// `standalone` or `agent`.
        command: &'static str,
        /// What it lacks.
        missing: Missing,
    },
    /// The directory of the files cannot be read.
    #[error("--config-dir {}: {source}", .path.display())]
    ConfigDir {
        /// The directory.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// There is no such interface.
    #[error("--interface {name}: there is no such interface; this machine has {present}")]
    Interface {
        /// The name.
        name: String,
        /// Those that there are.
        present: String,
    },
    /// No interface of pods can be meant.
    #[error("--pod-interface {name}: {reason}")]
    PodInterface {
        /// What was given.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing says which interface is meant.
    #[error("there is no default route to take the interface from: name it with --interface")]
    NoInterface,
    /// The name of the node cannot be used.
    #[error("{name:?} is no name for a node ({reason}): choose one with --node-name")]
    NodeName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Metrics and health cannot be served there.
    #[error("--metrics {address}: {source}")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// The reason.
        source: io::Error,
    },
    /// The API cannot be served there.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The state directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kernel does not take the datapath.
    #[error("the datapath: {0}")]
    Datapath(#[from] DatapathError),
    /// Something that should never end did: a defect. The datapath stays as it is.
    #[error("a part of the process has died ({0}); the datapath stays as it is")]
    Died(String),
    /// The metrics make no sense: a defect.
    #[error("metrics: {0}")]
    MetricsDefinition(#[from] prometheus::Error),
    /// There is no runtime to run in.
    #[error("starting the runtime: {0}")]
    Runtime(#[from] io::Error),
    /// The system does not say what it is asked.
    #[error("{what}: {source}")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
}

/// Runs until SIGTERM or SIGINT: then the peers are told, but for those that keep our routes over a restart, and the
/// datapath stays in the kernel. At SIGUSR2 a successor takes the place of this program, and the peers see nothing.
pub fn run(options: &Options) -> Result<(), StartError> {
    succession::run(async |succession, handed| instance(options, succession, handed).await)
}

/// Some: a successor is to go on with this.
async fn instance(
    options: &Options,
    succession: &Succession,
    handed: Option<HandOver>,
) -> Result<Option<HandOver>, StartError> {
    let mut signals =
        Signals::new().map_err(|source| StartError::Host { what: "catching signals", source })?;
    let sessions = handed.as_ref().map(HandOver::sessions);
    // At once: what is inherited wants to be looked after.
    let successor = handed.map(bgp_speaker::spawn_successor);
    let Checked { node, interfaces } = check(options)?;
    let api_socket = ApiSocket::bind(&options.api_socket).await?;
    let metrics_socket = bind_tcp(options.metrics)
        .await
        .map_err(|source| StartError::Metrics { address: options.metrics, source })?;
    let (store, shared) = open(&options.source, &node, &interfaces).await?;
    let pin_dir = Path::new(PIN_DIR).join(&node);
    let datapath = Datapath::open(lb_bpf::datapath::Options {
        pin_dir,
        interfaces: interfaces.clone(),
        tc_interfaces: options.pod_interfaces.clone(),
        sizes: options.map_sizes,
        tunnel_sources: options.tunnel_sources,
    })
    .await?;
    // What was announced before and is still forwarded shall stay with the peers that keep it.
    let forwards = !datapath.installed().services.is_empty();
    let start = || if forwards { bgp_speaker::spawn_restarted() } else { bgp_speaker::spawn() };
    let speaker = successor.unwrap_or_else(start);

    let (faults, observer) = (store.faults(), datapath.observer()?);
    let (flows, events) = (Flows::default(), datapath.events()?);
    let (reconciler, view) = Reconciler::new(
        Arc::clone(&store),
        datapath,
        speaker.clone(),
        Checks::default(),
        ThisHost::new(node.clone()),
        flows.followers(),
    );
    let pass_seconds = Instance::pass_histogram()?;
    let instance = Instance {
        node: node.clone(),
        view,
        faults,
        store,
        pass_seconds: pass_seconds.clone(),
        speaker: speaker.clone(),
        map_sizes: options.map_sizes,
        conditions: Arc::default(),
        observer,
        counting: Arc::default(),
        flows: flows.clone(),
    };
    let mut parts = JoinSet::new();
    if let Some(shared) = shared {
        parts.spawn(node_state::tell(instance.clone(), shared));
    }
    parts.spawn(serve_health_ports(instance.view.clone()));
    parts.spawn(serve(api_socket, api::router(instance.clone())));
    parts.spawn(serve(metrics_socket, metrics::router(instance)));
    parts.spawn(reconciler.run(pass_seconds));
    parts.spawn(flows.relay(events));
    tracing::info!(
        node,
        ?interfaces,
        source = ?options.source,
        api_socket = %options.api_socket.display(),
        metrics = %options.metrics,
        sessions,
        version = env!("CARGO_PKG_VERSION"),
        "started"
    );

    // Not before: the kernel lets go of a program that it is to load when a signal comes.
    succession.ready();
    let outcome = loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Wanted::End(signal) => {
                    tracing::info!(signal, "stopping; the datapath stays in the kernel");
                    break Ok(false);
                }
                Wanted::Successor => {
                    tracing::info!("a successor is wanted");
                    match probe(options, succession).await {
                        Ok(()) => break Ok(true),
                        Err(reason) => tracing::error!(reason, "not handed over: a successor would not start"),
                    }
                }
            },
            // None of them ends by itself.
            Some(ended) = parts.join_next() => {
                let how = ended.err().map_or_else(|| "it returned".to_owned(), |error| error.to_string());
                break Err(StartError::Died(how));
            }
        }
    };
    // The loop first: it must not set anything while the speaker goes.
    parts.shutdown().await;
    if outcome.as_ref().is_ok_and(|hands_over| *hands_over) {
        let handed = speaker.hand_over().await;
        tracing::info!(sessions = handed.as_ref().map(HandOver::sessions), "handing over");
        return Ok(handed);
    }
    if timeout(FAREWELL, speaker.shutdown()).await.is_err() {
        tracing::warn!(limit = ?FAREWELL, "the peers did not take our leave");
    }
    outcome.map(|_| None)
}

/// The store; one that is shared as such, too.
async fn open(
    source: &Source,
    node: &str,
    interfaces: &[String],
) -> Result<(Arc<dyn Store>, Option<Arc<dyn SharedStore>>), StartError> {
    match source {
        Source::Files { config_dir, state_dir } => {
            Ok((Arc::new(FileStore::open(config_dir, state_dir)?), None))
        }
        Source::Kubernetes { kubeconfig, namespace, default_class } => {
            let access = Access::new(kubeconfig.as_deref(), namespace.clone()).await?;
            let access = access.with_default_class(*default_class);
            let store = Arc::new(KubernetesStore::start(&access, Role::Agent, node)?);
            Ok((Arc::clone(&store) as Arc<dyn Store>, Some(store)))
        }
        Source::Etcd { options, labels } => {
            let access = etcd::Access::new(options)?;
            let registration = etcd::Registration { labels: labels.clone(), interfaces: interfaces.to_vec() };
            let store = Arc::new(EtcdStore::start(&access, Role::Agent, node, registration)?);
            Ok((Arc::clone(&store) as Arc<dyn Store>, Some(store)))
        }
    }
}

/// The program that is there now starts, and the files are valid for it.
async fn probe(options: &Options, succession: &Succession) -> Result<(), String> {
    match &options.source {
        Source::Files { config_dir, .. } => {
            succession::probe(succession, &[OsStr::new("validate"), config_dir.as_os_str()]).await
        }
        Source::Kubernetes { .. } | Source::Etcd { .. } => {
            succession::probe(succession, &[OsStr::new("--version")]).await
        }
    }
}

/// The signals that end the process, or its part in it.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    replace: Signal,
}

/// What a signal asks for.
enum Wanted {
    End(&'static str),
    Successor,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            replace: signal(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Wanted {
        tokio::select! {
            _ = self.terminate.recv() => Wanted::End("SIGTERM"),
            _ = self.interrupt.recv() => Wanted::End("SIGINT"),
            _ = self.replace.recv() => Wanted::Successor,
        }
    }
}

/// What was asked for, checked and completed.
struct Checked {
    node: String,
    interfaces: Vec<String>,
}

fn check(options: &Options) -> Result<Checked, StartError> {
    let command = match options.source {
        Source::Files { .. } => "standalone",
        Source::Kubernetes { .. } | Source::Etcd { .. } => "agent",
    };
    if !geteuid().is_root() {
        return Err(StartError::NotRoot { command });
    }
    let missing = capabilities::missing()
        .map_err(|source| StartError::Host { what: "reading this process's capabilities", source })?;
    if let Some(missing) = missing {
        return Err(StartError::Capabilities { command, missing });
    }
    if let Source::Files { config_dir: path, .. } = &options.source {
        // Opening it for reading is what the store will do.
        fs::read_dir(path).map_err(|source| StartError::ConfigDir { path: path.clone(), source })?;
    }
    let node = match &options.node_name {
        Some(name) => name.clone(),
        None => host::name()
            .map_err(|source| StartError::Host { what: "reading the host name", source })?
            .to_lowercase(),
    };
    check_node_name(&node)?;
    options.pod_interfaces.iter().try_for_each(|name| check_pod_interface(name))?;
    Ok(Checked { node, interfaces: interfaces(&options.interfaces)? })
}

/// A node's name is a DNS subdomain (RFC 1123), as in Kubernetes. It becomes part of a path.
fn check_node_name(name: &str) -> Result<(), StartError> {
    let bad = |reason| Err(StartError::NodeName { name: name.to_owned(), reason });
    if name.is_empty() || name.len() > 253 {
        return bad("1 to 253 characters are needed");
    }
    let good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    for label in name.split('.') {
        if !label.bytes().all(good) {
            return bad("only a to z, 0 to 9, '-' and '.' may stand in it");
        }
        if label.is_empty() || label.starts_with('-') || label.ends_with('-') {
            return bad("each part between dots starts and ends with a letter or digit");
        }
    }
    Ok(())
}

fn interfaces(asked: &[String]) -> Result<Vec<String>, StartError> {
    let mut names = asked.to_vec();
    if names.is_empty() {
        let default = host::default_interface()
            .map_err(|source| StartError::Host { what: "reading the routes", source })?;
        names.push(default.ok_or(StartError::NoInterface)?);
    }
    names.sort();
    names.dedup();
    if let Some(missing) = names.iter().find(|name| if_nametoindex(name.as_str()).is_err()) {
        return Err(StartError::Interface { name: missing.clone(), present: present() });
    }
    Ok(names)
}

/// Names of the interfaces that there are.
fn present() -> String {
    if_nameindex().map_or_else(
        |_| "none that can be read".to_owned(),
        |all| all.iter().map(|i| i.name().to_string_lossy().into_owned()).collect::<Vec<_>>().join(", "),
    )
}

/// A name is one of an interface that is there; a begin with `*` behind it may wait for its first interface.
fn check_pod_interface(name: &str) -> Result<(), StartError> {
    let bad = |reason: String| Err(StartError::PodInterface { name: name.to_owned(), reason });
    match name.strip_suffix('*') {
        Some("") => bad("something must stand before the *, lest all interfaces are meant".to_owned()),
        Some(begin) if begin.contains('*') => bad("a * may only be the last character".to_owned()),
        Some(_) => Ok(()),
        None if name.contains('*') => bad("a * may only be the last character".to_owned()),
        None if if_nametoindex(name).is_err() => {
            bad(format!("there is no such interface; this machine has {}", present()))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_name_is_a_dns_subdomain() {
        for good in ["a", "lb-1", "lb1.example.com", "0", &"a".repeat(253)] {
            assert!(check_node_name(good).is_ok(), "{good}");
        }
        for bad in ["", "A", "a_b", "../x", "a/b", ".", "a.", "-a", "a-", "a..b", "ü", &"a".repeat(254)] {
            assert!(check_node_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_interface_that_is_not_there_is_named_with_those_that_are() {
        let error = interfaces(&["lo".to_owned(), "no-such-if".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("--interface no-such-if") && error.contains("lo"), "{error}");
        assert_eq!(interfaces(&["lo".to_owned(), "lo".to_owned()]).unwrap(), ["lo"]);
    }

    #[test]
    fn an_interface_of_pods_is_there_or_may_come() {
        for good in ["lo", "cali*", "no-such-if*"] {
            assert!(check_pod_interface(good).is_ok(), "{good}");
        }
        for (bad, reason) in
            [("no-such-if", "has lo"), ("*", "before the *"), ("a*b", "last"), ("a**", "last")]
        {
            let error = check_pod_interface(bad).unwrap_err().to_string();
            assert!(error.starts_with(&format!("--pod-interface {bad}: ")), "{error}");
            assert!(error.contains(reason), "{error}");
        }
    }
}
