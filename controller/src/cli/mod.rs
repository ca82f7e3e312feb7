//! The command line: one file per command, each a clap `Args` with a `run`. Commands that ask a running
//! instance go through [`crate::client`]; what they print goes through `output`.
//!
//! Exit codes: 0 done, 1 the answer is no, 2 usage, 3 could not reach the running instance, or etcd.
use crate::{
    client::{self, ClientError},
    serve::rows::InstanceStatus,
    telemetry,
};
use clap::{Parser, Subcommand};
use output::Format;
use serde::{Serialize, de::DeserializeOwned};
use std::{fmt, io, ops::ControlFlow, path::PathBuf, process::ExitCode};

mod agent;
mod apply;
mod bgp;
mod clusters;
mod controller;
mod crds;
mod delete;
mod demo;
mod etcd;
mod flows;
mod get;
mod import;
mod json_path;
pub(crate) mod output;
mod services;
mod standalone;
mod trace;
mod validate;

/// Where the running instance listens when nothing else is said.
pub const DEFAULT_API_SOCKET: &str = "/run/fairlead/api.sock";

/// Parses the arguments of the process and runs the command.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Also `--help` and `--version`, which go to stdout and exit with 0.
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            return match error.print() {
                Err(e) if e.kind() != io::ErrorKind::BrokenPipe => ExitCode::from(1),
                _ => ExitCode::from(code),
            };
        }
    };
    let done = telemetry::init(cli.command.log_filter())
        .map_err(|e| Failure::Usage(e.to_string()))
        .and_then(|()| cli.command.run());
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has seen enough (`fairlead get flb | head -1`).
        Err(Failure::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            let text = failure.to_string();
            if !text.is_empty() {
                say(&text);
            }
            ExitCode::from(failure.code())
        }
    }
}

/// Tells people, beside the output.
fn say(text: &str) {
    // Nobody is left to tell when stderr is closed, too.
    let _ = io::Write::write_all(&mut io::stderr(), format!("fairlead: {text}\n").as_bytes());
}

/// Why a command did not do what was asked, by exit code.
#[derive(Debug)]
pub enum Failure {
    /// 1: the answer is no. The text may be empty when stdout has said it all.
    No(String),
    /// 2: the arguments or the environment make no sense.
    Usage(String),
    /// 3: the running instance, or etcd, could not be reached.
    Unreachable(String),
    /// 1, or 0 for a broken pipe: stdout took no more.
    Output(io::Error),
}

impl Failure {
    const fn code(&self) -> u8 {
        match self {
            Failure::No(_) | Failure::Output(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Unreachable(_) => 3,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::No(text) | Failure::Usage(text) | Failure::Unreachable(text) => f.write_str(text),
            Failure::Output(error) => write!(f, "writing the output: {error}"),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(text) => Failure::No(text),
            unreachable => Failure::Unreachable(unreachable.to_string()),
        }
    }
}

/// A BGP-aware load balancer: XDP and Maglev in the kernel, its own BGP speaker, configured by YAML files.
#[derive(Debug, Parser)]
#[command(
    name = "fairlead",
    version,
    after_help = "Exit codes: 0 done, 1 the answer is no, 2 usage, 3 could not reach the running instance, or etcd.\n\
                  Logs go to stderr; FAIRLEAD_LOG (or RUST_LOG) selects them, for example \
                  `FAIRLEAD_LOG=info,bgp_speaker=debug`; FAIRLEAD_LOG_FORMAT is `text` (default) or `json`."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Standalone(standalone::Args),
    Agent(agent::Args),
    Controller(controller::Args),
    Validate(validate::Args),
    Apply(apply::Args),
    Delete(delete::Args),
    Get(get::Args),
    Services(services::Args),
    Clusters(clusters::Args),
    Trace(trace::Args),
    Flows(flows::Args),
    Bgp(bgp::Args),
    Crds(crds::Args),
    Demo(demo::Args),
    Import(import::Args),
}

impl Command {
    /// The filter of log lines when the environment names none.
    const fn log_filter(&self) -> &'static str {
        match self {
            // What fails on the way to the API server is said once, by the store: its client has a line for each request.
            Command::Standalone(_) | Command::Agent(_) | Command::Controller(_) => {
                "info,kube_client::client=off"
            }
            _ => "warn",
        }
    }

    fn run(self) -> Result<(), Failure> {
        match self {
            Command::Standalone(args) => args.run(),
            Command::Agent(args) => args.run(),
            Command::Controller(args) => args.run(),
            Command::Validate(args) => args.run(),
            Command::Apply(args) => args.run(),
            Command::Delete(args) => args.run(),
            Command::Get(args) => args.run(),
            Command::Services(args) => args.run(),
            Command::Clusters(args) => args.run(),
            Command::Trace(args) => args.run(),
            Command::Flows(args) => args.run(),
            Command::Bgp(args) => args.run(),
            Command::Crds(args) => args.run(),
            Command::Demo(args) => args.run(),
            Command::Import(args) => args.run(),
        }
    }
}

/// How to reach the running instance.
#[derive(Debug, clap::Args)]
struct Instance {
    /// Unix socket of the running instance.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_API_SOCKET)]
    api_socket: PathBuf,
}

impl Instance {
    /// Asks the running instance for what is at `path`.
    fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        Ok(runtime()?.block_on(client::get(&self.api_socket, path))?)
    }

    /// Takes what comes from `path`, line by line: see [`client::follow`].
    fn follow<T: DeserializeOwned, B>(
        &self,
        path: &str,
        take: impl FnMut(T) -> ControlFlow<B>,
    ) -> Result<Option<B>, Failure> {
        Ok(runtime()?.block_on(client::follow(&self.api_socket, path, take))?)
    }

    /// Says on stderr why the newest files are not in force, if they are not: what is shown is older than they are.
    fn warn_of_faults(&self) {
        // The answer itself has come: without this one it is as good.
        let Ok(InstanceStatus { faults, .. }) = self.ask("/v1/status") else { return };
        if !faults.is_empty() {
            let faults: String = faults.iter().map(|fault| format!("\n  {fault}")).collect();
            say(&format!("the newest files are refused; what was in force before them still is:{faults}"));
        }
    }
}

/// What is asked of the running instance, and shown as a table or for programs.
#[derive(Debug, clap::Args)]
struct Question {
    #[command(flatten)]
    instance: Instance,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

impl Question {
    /// The answer in the form that is asked for.
    fn shown<T: Serialize + ?Sized>(
        &self,
        answer: &T,
        table: impl FnOnce(&T) -> String,
    ) -> Result<String, Failure> {
        match self.output {
            Format::Json => output::json(answer),
            Format::Table => Ok(table(answer)),
        }
    }
}

/// Where a cluster or a fleet has its objects.
#[derive(Debug, clap::Args)]
struct SharedStore {
    /// Where objects and statuses are.
    #[arg(long, value_enum, value_name = "STORE", default_value = "kubernetes")]
    store: StoreKind,
    #[command(flatten)]
    cluster: Cluster,
    #[command(flatten)]
    etcd: etcd::Etcd,
}

/// What has objects for many nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum StoreKind {
    /// A Kubernetes API server.
    Kubernetes,
    /// An etcd cluster: see `fairlead apply`.
    Etcd,
}

/// The store that is meant.
enum ChosenStore {
    Kubernetes(Cluster),
    Etcd(crate::store::etcd::Options),
}

impl SharedStore {
    fn choose(self) -> Result<ChosenStore, Failure> {
        let Cluster { kubeconfig, namespace, default_class } = &self.cluster;
        match self.store {
            StoreKind::Kubernetes if self.etcd.is_said() => {
                Err(Failure::Usage("options of etcd want --store etcd".to_owned()))
            }
            StoreKind::Kubernetes => Ok(ChosenStore::Kubernetes(self.cluster)),
            StoreKind::Etcd if kubeconfig.is_some() || namespace.is_some() || *default_class => {
                let options = "--kubeconfig, --namespace and --default-class";
                Err(Failure::Usage(format!("{options} are for --store kubernetes")))
            }
            StoreKind::Etcd => Ok(ChosenStore::Etcd(self.etcd.options()?)),
        }
    }
}

/// How to reach the API server of the cluster.
#[derive(Debug, clap::Args)]
struct Cluster {
    /// Kubeconfig of the cluster [default: KUBECONFIG, else the account of the pod].
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Namespace of the Lease of controllers and of the Secrets that peers name [default: that of the pod, else
    /// fairlead-system].
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Services of type LoadBalancer that name no loadBalancerClass are ours, too. Say it to controllers and agents alike, and only
    /// where nobody else gives such Services addresses.
    #[arg(long)]
    default_class: bool,
}

/// For processes that stay.
fn server_runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|e| Failure::No(format!("starting the runtime: {e}")))
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| Failure::No(format!("starting the runtime: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_of_the_arguments_is_consistent() {
        Cli::command().debug_assert();
    }
}
