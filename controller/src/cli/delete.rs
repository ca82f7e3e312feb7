//! `fairlead delete`: an object of a fleet on etcd goes.
use super::{Failure, etcd::Etcd, output::print, runtime};
use crate::api::Kind;

/// Deletes an object from etcd, with its status, for `--store etcd`
///
/// Its addresses rest in their pool, as when a file is deleted. `fairlead delete node NAME` is for a host that is gone: its
/// pod CIDRs go back to their pool, and its NodeState goes. (A host whose agent runs registers anew.)
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Kind of the object: its name, its plural or its short name, in any case.
    kind: Kind,
    /// Name of the object: `NAMESPACE/NAME` of a Service or an EndpointSlice.
    name: String,
    #[command(flatten)]
    etcd: Etcd,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Args { kind, name, etcd } = self;
        if !kind.is_declared() {
            return Err(Failure::Usage(format!(
                "a {kind} goes with its Node: `fairlead delete node {name}`"
            )));
        }
        let access = etcd.access()?;
        match runtime()?.block_on(access.delete(kind, &name)) {
            Ok(true) => print(&format!("{kind}/{name} deleted\n")),
            Ok(false) => Err(Failure::No(format!("{kind}/{name} not found"))),
            Err(error) => Err(Failure::No(error.to_string())),
        }
    }
}
