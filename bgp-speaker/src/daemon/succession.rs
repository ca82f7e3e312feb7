//! How one program takes the place of another: by `exec`, so that the process stays what it is for whoever watches it.
use bgp_speaker::HandOver;
use std::{env, io, os::unix::process::CommandExt, path::PathBuf, process::Command};

/// Number of the descriptor from which the successor reads what it is to go on with.
const SESSIONS: &str = "BGP_SPEAKER_SESSIONS";

/// What the program before handed over; none: there was none, or it cannot be understood, and peers that keep routes over a
/// restart do that.
pub(super) fn inherited() -> Option<HandOver> {
    let number = env::var(SESSIONS).ok()?;
    let number = number.parse().map_err(io::Error::other);
    number
        .and_then(HandOver::take)
        .inspect_err(|error| tracing::error!(%error, "sessions of the program before are lost"))
        .ok()
}

/// Starts the successor in the place of this program. Where that fails: what this program is to go on with itself.
pub(super) fn replace(program: &io::Result<PathBuf>, handed: HandOver) -> Option<HandOver> {
    let (program, number) = match (program, handed.keep()) {
        (Ok(program), Ok(number)) => (program, number),
        (Err(error), _) => {
            tracing::error!(%error, "own program unknown");
            return None;
        }
        (_, Err(error)) => {
            tracing::error!(%error, "sessions cannot be handed over");
            return None;
        }
    };
    let error = Command::new(program).args(env::args_os().skip(1)).env(SESSIONS, number.to_string()).exec();
    tracing::error!(%error, program = %program.display(), "successor does not start: going on");
    HandOver::take(number).inspect_err(|error| tracing::error!(%error, "sessions are lost")).ok()
}
