//! The daemon: reads its file, runs the speaker, answers on a unix socket.
mod api;
mod file;
pub(crate) mod show;

use std::{io, path::Path, process::ExitCode};
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

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(config: &Path, socket: &Path) -> Result<(), Failure> {
    let filter = match std::env::var(LOG) {
        Ok(text) => EnvFilter::try_new(&text).map_err(|error| {
            Failure::Refused(format!("{LOG}={text:?} is not a filter of log lines: {error}"))
        })?,
        Err(_) => EnvFilter::new("info"),
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    let file =
        file::read(config).map_err(|reason| Failure::Refused(format!("{}: {reason}", config.display())))?;
    let runtime =
        tokio::runtime::Runtime::new().map_err(|error| Failure::Refused(format!("cannot start: {error}")))?;
    runtime.block_on(serve(file, config, socket))
}

async fn serve(file: file::Config, config: &Path, socket: &Path) -> Result<(), Failure> {
    let refused =
        |error: bgp_speaker::config::ConfigError| Failure::Refused(format!("{}: {error}", config.display()));
    let signals = || io::Result::Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?));
    let (mut terminate, mut interrupt) =
        signals().map_err(|error| Failure::Refused(format!("cannot wait for signals: {error}")))?;
    let api = api::Server::bind(socket)
        .map_err(|error| Failure::Refused(format!("api socket {}: {error}", socket.display())))?;
    // What the routes lead to is not of this process, and outlives it.
    let speaker = bgp_speaker::spawn_restarted();
    // Who we are comes last, for with it we listen: whoever connects then is known.
    speaker.set_routes(file.routes).await.map_err(refused)?;
    speaker.set_ranges(file.ranges).await.map_err(refused)?;
    speaker.set_peers(file.peers).await.map_err(refused)?;
    speaker.set_stations(file.stations).await.map_err(refused)?;
    speaker.set_global(file.global).await.map_err(refused)?;
    speaker.routes_complete().await;
    tracing::info!(config = %config.display(), api = %socket.display(), "running");
    tokio::select! {
        _ = terminate.recv() => (),
        _ = interrupt.recv() => (),
        () = api.serve(&speaker) => (),
    }
    speaker.shutdown().await;
    tracing::info!("stopped");
    Ok(())
}
