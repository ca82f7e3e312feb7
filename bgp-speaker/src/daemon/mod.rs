//! The daemon: reads its file, runs the speaker, answers on a unix socket, hands its sessions to a successor.
mod api;
mod file;
pub(crate) mod show;

use bgp_speaker::{
    HandOver, Handle, Succession,
    config::{self, ConfigError},
};
use std::{env, io, path::Path, process::ExitCode};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Variable that filters the log lines.
const LOG: &str = "BGP_SPEAKER_LOG";

/// Why the command failed, in words for its user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// It was refused.
    #[error("{0}")]
    Refused(String),
    /// The running instance does not answer.
    #[error("{0}")]
    Unreachable(String),
}

impl Failure {
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Refused(_) => ExitCode::from(1),
            Failure::Unreachable(_) => ExitCode::from(3),
        }
    }
}

/// Runs until SIGTERM or SIGINT. At SIGUSR2 another program, from the same path and with the same arguments, takes the place
/// of this one and goes on with its sessions; at SIGHUP the file is read again.
pub(crate) fn run(config: &Path, socket: &Path) -> Result<(), Failure> {
    let filter = match env::var(LOG) {
        Ok(text) => EnvFilter::try_new(&text).map_err(|error| {
            Failure::Refused(format!("{LOG}={text:?} is not a filter of log lines: {error}"))
        })?,
        Err(_) => EnvFilter::new("info"),
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    let (succession, mut handed) = Succession::begin();
    loop {
        let runtime = tokio::runtime::Runtime::new()
            .map_err(|error| Failure::Refused(format!("cannot start: {error}")))?;
        let Some(next) = runtime.block_on(serve(config, socket, &succession, handed))? else {
            return Ok(());
        };
        drop(runtime);
        handed = succession.replace(next);
    }
}

/// Some: another program is to go on with this.
async fn serve(
    config: &Path,
    socket: &Path,
    succession: &Succession,
    handed: Option<HandOver>,
) -> Result<Option<HandOver>, Failure> {
    let refused = |error: ConfigError| Failure::Refused(format!("{}: {error}", config.display()));
    let signals = || {
        io::Result::Ok((
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::user_defined2())?,
            signal(SignalKind::hangup())?,
        ))
    };
    let (mut terminate, mut interrupt, mut replace, mut reload) =
        signals().map_err(|error| Failure::Refused(format!("cannot wait for signals: {error}")))?;
    succession.ready();
    let sessions = handed.as_ref().map_or(0, HandOver::sessions);
    let speaker = match handed {
        // At once: what is inherited wants to be looked after.
        Some(handed) => bgp_speaker::spawn_successor(handed),
        // What the routes lead to is not of this process, and outlives it.
        None => bgp_speaker::spawn_restarted(),
    };
    let file =
        file::read(config).map_err(|reason| Failure::Refused(format!("{}: {reason}", config.display())))?;
    let api = api::Server::bind(socket)
        .map_err(|error| Failure::Refused(format!("api socket {}: {error}", socket.display())))?;
    check(&file).map_err(refused)?;
    // Who we are comes last, for with it we listen: whoever connects then is known.
    speaker.set_routes(file.routes).await.map_err(refused)?;
    speaker.set_ranges(file.ranges).await.map_err(refused)?;
    speaker.set_peers(file.peers).await.map_err(refused)?;
    speaker.set_stations(file.stations).await.map_err(refused)?;
    speaker.set_global(file.global).await.map_err(refused)?;
    speaker.routes_complete().await;
    tracing::info!(config = %config.display(), api = %socket.display(), sessions, "running");
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = replace.recv() => match read(config) {
                Ok(_) => {
                    tracing::info!("handing over");
                    return Ok(speaker.hand_over().await);
                }
                // The successor would not start.
                Err(reason) => tracing::error!(config = %config.display(), reason, "not handed over"),
            },
            _ = reload.recv() => match reloaded(&speaker, config).await {
                Ok(()) => tracing::info!(config = %config.display(), "reloaded"),
                Err(reason) => tracing::error!(config = %config.display(), reason, "not reloaded"),
            },
            () = api.serve(&speaker) => break,
        }
    }
    speaker.shutdown().await;
    tracing::info!("stopped");
    Ok(None)
}

/// Reads the file; it makes sense.
fn read(config: &Path) -> Result<file::Config, String> {
    let file = file::read(config)?;
    check(&file).map_err(|error| error.to_string())?;
    Ok(file)
}

fn check(file: &file::Config) -> Result<(), ConfigError> {
    config::check(&file.global, &file.peers, &file.ranges, &file.routes, &file.stations)
}

/// What the file says now is in force. What is wrong with it is found before anything changes, but for addresses and keys
/// that the kernel refuses.
async fn reloaded(speaker: &Handle, config: &Path) -> Result<(), String> {
    let file = read(config)?;
    let apply = async {
        // An address that cannot be listened on leaves all as it is.
        speaker.set_global(file.global).await?;
        speaker.set_ranges(file.ranges).await?;
        speaker.set_peers(file.peers).await?;
        speaker.set_routes(file.routes).await?;
        speaker.set_stations(file.stations).await
    };
    apply.await.map_err(|error| error.to_string())
}
