//! The program `helm`, which `tests/helm/build.sh` builds once, and the chart of the repository.
use crate::{Error, control_plane::ControlPlane};
use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// The chart: `deploy/helm/fairlead`.
pub fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/fairlead")
}

/// What `helm` prints, with all rights in a cluster; an exit code other than 0 is an error with its stderr.
pub fn helm(plane: &ControlPlane, arguments: &[&str]) -> Result<String, Error> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("helm/build.sh");
    let program = succeeded(&script.display().to_string(), Command::new(&script).output()?)?;
    let kubeconfig = plane.kubeconfig();
    let mut command = Command::new(program.trim());
    command.args(arguments).env("KUBECONFIG", &kubeconfig);
    // Its caches go with the control plane.
    command.envs(kubeconfig.parent().map(|dir| ("HOME", dir)));
    succeeded(&format!("helm {}", arguments.join(" ")), command.output()?)
}

fn succeeded(what: &str, output: Output) -> Result<String, Error> {
    let Output { status, stdout, stderr } = output;
    match status.success() {
        true => Ok(String::from_utf8(stdout)?),
        false => Err(format!("{what}: {status}: {}", String::from_utf8_lossy(&stderr).trim()).into()),
    }
}
