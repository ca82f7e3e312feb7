//! An upgrade that nobody sees: another `fairlead`, from the same path and with the same arguments, takes the place of this
//! one by `exec` and goes on with its BGP sessions (see [`bgp_speaker::Succession`]). The datapath is pinned anyway.
use bgp_speaker::{HandOver, Succession};
use std::{ffi::OsStr, io, process::Stdio, time::Duration};
use tokio::{process::Command, runtime, time::timeout};

/// How long the new program has to judge the files.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long what still works in the background may take to end.
const GRACE: Duration = Duration::from_secs(1);

/// Runs an instance, given what its predecessor left, and hands over what it leaves itself; returns when one leaves nothing.
///
/// # Errors
/// That of the instance, or why there is no runtime.
pub fn run<E: From<io::Error>>(
    instance: impl AsyncFn(&Succession, Option<HandOver>) -> Result<Option<HandOver>, E>,
) -> Result<(), E> {
    let (succession, mut handed) = Succession::begin();
    loop {
        let runtime = runtime::Builder::new_multi_thread().enable_all().build()?;
        let next = runtime.block_on(instance(&succession, handed))?;
        // Sockets and locks are free then, also for this program, should the other one not start.
        runtime.shutdown_timeout(GRACE);
        let Some(next) = next else { return Ok(()) };
        handed = succession.replace(next);
    }
}

/// Whether a successor would start: the program that lies at our path now does what it is asked with `arguments`.
///
/// # Errors
/// What it says, or why it says nothing.
pub async fn probe(succession: &Succession, arguments: &[&OsStr]) -> Result<(), String> {
    let program = succession.program().map_err(ToString::to_string)?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let failed = |reason: String| format!("{}: {reason}", program.display());
    let output = timeout(PATIENCE, command.output()).await;
    let output = output.map_err(|_| failed(format!("no answer within {PATIENCE:?}")))?;
    let output = output.map_err(|error| failed(error.to_string()))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    if output.status.success() { Ok(()) } else { Err(failed(said.trim_end().replace('\n', "; "))) }
}
