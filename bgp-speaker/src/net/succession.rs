//! How one program takes the place of another: by `exec`, so that the process stays what it is for whoever watches it.
//!
//! ```text
//!  begin ─> Handle (spawn_successor) ─> ready ─ SIGUSR2 ─> Handle::hand_over ─> replace ─ exec ─> begin …
//! ```
//! SIGUSR2 waits from before the `exec` until [`Succession::ready`]: one that comes meanwhile would end the program.
use super::handover::HandOver;
use nix::{
    errno::Errno,
    sys::signal::{SigSet, Signal},
};
use std::{env, io, os::unix::process::CommandExt, path::PathBuf, process::Command};

/// Variable with the number of the descriptor from which the successor reads what it is to go on with.
const SESSIONS: &str = "BGP_SPEAKER_SESSIONS";

/// This program, and what it will start in its own place.
#[derive(Debug)]
pub struct Succession {
    /// A new one may lie there when it is needed.
    program: io::Result<PathBuf>,
}

impl Succession {
    /// To be called first of all, before there are other threads. With it comes what the program before handed over;
    /// none: there was none, or it cannot be understood, and peers that keep routes over a restart do that.
    pub fn begin() -> (Self, Option<HandOver>) {
        hold(true);
        let inherited = env::var(SESSIONS).ok().and_then(|number| {
            let number = number.parse().map_err(io::Error::other);
            let lost = |error: &io::Error| tracing::error!(%error, "sessions of the program before are lost");
            number.and_then(HandOver::take).inspect_err(lost).ok()
        });
        (Succession { program: env::current_exe() }, inherited)
    }

    /// A handler of SIGUSR2 stands. To be called on the thread of [`begin`](Self::begin).
    pub fn ready(&self) {
        hold(false);
    }

    /// The path of the program, as it was at the start.
    ///
    /// # Errors
    /// The system did not tell it.
    pub fn program(&self) -> Result<&PathBuf, &io::Error> {
        self.program.as_ref()
    }

    /// Starts the successor in the place of this program, with its arguments. Where that fails: what this program is to
    /// go on with itself. To be called on the thread of [`begin`](Self::begin).
    pub fn replace(&self, handed: HandOver) -> Option<HandOver> {
        hold(true);
        let program = match &self.program {
            Ok(program) => program,
            Err(error) => {
                tracing::error!(%error, "own program unknown: going on");
                return Some(handed);
            }
        };
        let number = handed.keep();
        let number =
            number.inspect_err(|error| tracing::error!(%error, "sessions cannot be handed over")).ok()?;
        let error =
            Command::new(program).args(env::args_os().skip(1)).env(SESSIONS, number.to_string()).exec();
        tracing::error!(%error, program = %program.display(), "successor does not start: going on");
        HandOver::take(number).inspect_err(|error| tracing::error!(%error, "sessions are lost")).ok()
    }
}

/// Whether SIGUSR2 waits; threads that are started meanwhile leave it to this one. The next program has it so, too.
fn hold(waits: bool) {
    let signals = SigSet::from(Signal::SIGUSR2);
    let done: Result<(), Errno> = if waits { signals.thread_block() } else { signals.thread_unblock() };
    if let Err(error) = done {
        tracing::warn!(%error, "SIGUSR2");
    }
}
