//! `fairlead apply`: the files of a directory become what a fleet on etcd has.
use super::{Failure, etcd::Etcd, output::print, runtime, say};
use crate::{
    store::{directory, etcd::declare::wanted},
    validate::parse_directory,
};
use std::path::PathBuf;

/// Writes the objects of a directory of YAML files to etcd, for `--store etcd`: all of them, or none
///
/// The directory is checked first as `fairlead validate` does it: with a fault nothing is written, and the exit code is 1. What is
/// different is written in one transaction, and hosts take it up as one change. An object that is in etcd and not in the files
/// stays, and is named on stderr; with --prune it is deleted, in the same transaction, and so are addresses that it had.
/// Secrets are written as they are: see to it who may read them in etcd.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory of the YAML files.
    #[arg(short = 'f', long = "filename", value_name = "DIR")]
    dir: PathBuf,
    /// Deletes the objects that are not in the files.
    #[arg(long)]
    prune: bool,
    #[command(flatten)]
    etcd: Etcd,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let access = self.etcd.access()?;
        let read = directory::read(&self.dir).and_then(|files| parse_directory(&files).map(|_| files));
        let files = match read {
            Ok(files) => files,
            Err(faults) => {
                print(&faults.iter().map(|fault| format!("{fault}\n")).collect::<String>())?;
                return Err(Failure::No("nothing was changed: the files are not valid".to_owned()));
            }
        };
        let wanted = wanted(files.values().map(String::as_str));
        let done = runtime()?
            .block_on(access.apply(&wanted, self.prune))
            .map_err(|error| Failure::No(error.to_string()))?;
        let line = |object: &String, what: &str| format!("{object} {what}\n");
        let written = done.written.iter().map(|object| line(object, "written"));
        let lines: String =
            written.chain(done.deleted.iter().map(|object| line(object, "deleted"))).collect();
        print(&format!("{lines}{} unchanged\n", done.unchanged))?;
        if !done.left.is_empty() {
            say(&format!(
                "not in the files, and left as they are (--prune deletes them): {}",
                done.left.join(", ")
            ));
        }
        Ok(())
    }
}
