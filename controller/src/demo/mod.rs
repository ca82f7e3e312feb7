//! `fairlead demo`: everything at work on one machine. A client, a router, two load balancers and three backends
//! in network namespaces ([`netns`], [`topology`]), a real router on it ([`router`]), real HTTP traffic ([`http`]),
//! failures and repairs one after the other (`phases`) and what they cost ([`report`]).
//!
//! The load balancers and the backends run this very binary, `fairlead standalone`, from the files in
//! `deploy/examples`.
use self::{
    phases::Demo,
    report::{Progress, Report},
    router::{Frr, RouterConfig},
    topology::{BALANCER_ASN, ROUTER_ASN, Topology},
};
use std::{
    fmt::Display,
    io::{self, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};
use tokio::signal::unix::{SignalKind, signal};

pub mod http;
pub mod instance;
pub mod netns;
mod phases;
pub mod report;
pub mod router;
pub mod topology;

/// What the demo is asked to do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Leave everything in place at the end.
    pub keep: bool,
    /// Report as JSON on stdout, progress on stderr.
    pub json: bool,
}

/// Runs the demo and prints its report. An error is a sentence; an empty one when the report has said it all.
pub fn run(options: &Options) -> Result<(), String> {
    show(options).map_err(|e| e.to_string()).and_then(|ok| if ok { Ok(()) } else { Err(String::new()) })
}

/// The whole demo; gives whether all was as it should be.
fn show(options: &Options) -> Result<bool, DemoError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(DemoError::NotRoot);
    }
    let binary = std::env::current_exe().map_err(|e| DemoError::command("finding this program", e))?;
    let stop = stop_on_signal()?;
    let progress = Progress::start(options.json);
    progress.say("topology", "client, router, lb1, lb2, b1, b2 and b3 in network namespaces");
    let mut topology = Topology::build("fld")?;
    let neighbors = topology.balancers.iter().map(|h| (h.ipv4.into(), BALANCER_ASN)).collect();
    let config = RouterConfig { asn: ROUTER_ASN, router_id: topology.router.ipv4, neighbors };
    let frr = Frr::start(&topology.router.namespace, &topology.sandbox.dir().join("frr"), &config)?;
    let router = format!("FRR {}", frr.version()?);
    progress.say("topology", &format!("the router runs {router}"));

    let mut demo = Demo::new(&topology, &frr, &binary, progress, &stop)?;
    let done = demo.run();
    let (phases, backends) = demo.found();
    let ok = done.is_ok() && phases.iter().all(|p| p.faults.is_empty());
    let report = Report { ok, router, seconds: progress.elapsed().as_secs_f64(), phases, backends };
    if options.json {
        let text =
            serde_json::to_string_pretty(&report).map_err(|e| DemoError::command("writing JSON", e))?;
        // Whether anybody reads it does not matter to the demo.
        let _ = writeln!(io::stdout(), "{text}");
    } else {
        progress.print(&format!("\n{}", report.text()));
    }
    if options.keep {
        progress.print(&demo.guide());
        demo.leave();
    }
    drop(demo);
    if options.keep {
        topology.sandbox.keep()?;
    }
    done.map(|()| ok)
}

/// A flag that becomes true when SIGINT, SIGTERM or SIGHUP arrives, so that what was made is removed.
fn stop_on_signal() -> Result<Arc<AtomicBool>, DemoError> {
    let error = |e: io::Error| DemoError::command("listening for signals", e);
    let runtime = http::runtime().map_err(error)?;
    let mut signals = {
        let _context = runtime.enter();
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
            .into_iter()
            .map(signal)
            .collect::<io::Result<Vec<_>>>()
            .map_err(error)?
    };
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    // Ends with the process.
    thread::spawn(move || {
        let any = futures::future::select_all(signals.iter_mut().map(|s| Box::pin(s.recv())));
        runtime.block_on(any);
        flag.store(true, Ordering::Relaxed);
    });
    Ok(stop)
}

/// Why the demo, or a lab that is built from its parts, could not go on.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Namespaces, XDP and BGP's port are for root.
    #[error(
        "the demo makes network namespaces and loads XDP programs: run it as root, for example with sudo"
    )]
    NotRoot,
    /// A program is not installed.
    #[error("{program} is not installed: apt-get install {package}")]
    Missing {
        /// The program.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// A command failed.
    #[error("{command}: {reason}")]
    Command {
        /// The command.
        command: String,
        /// What it said.
        reason: String,
    },
    /// The kernel refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried on what.
        what: String,
        /// The reason.
        source: io::Error,
    },
    /// Something did not come to pass in time.
    #[error("waited {seconds} s in vain: {what}")]
    Timeout {
        /// What was waited for, and what was there instead.
        what: String,
        /// How long.
        seconds: u64,
    },
    /// A signal asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl DemoError {
    fn command(command: impl Into<String>, reason: impl Display) -> Self {
        DemoError::Command { command: command.into(), reason: reason.to_string() }
    }

    fn io(doing: &str, path: &Path, source: io::Error) -> Self {
        DemoError::Io { what: format!("{doing} {}", path.display()), source }
    }
}
