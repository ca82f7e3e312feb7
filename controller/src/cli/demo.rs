//! `fairlead demo`: see [`crate::demo`].
use super::{Failure, output::Format};

/// Shows everything at work in network namespaces of this machine: real traffic, real failures, and a report
///
/// Makes a client, a router, two load balancers and three backends, and removes them afterwards. Needs root. Exits with 1 when a phase lost requests that it should not lose.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Leave the topology when done, and print how to look around.
    #[arg(long)]
    keep: bool,
    /// Form of the report.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    /// Be the HTTP server of a backend of this name: what the demo starts in the backends' namespaces.
    #[arg(long, hide = true, value_name = "NAME", exclusive = true)]
    serve: Option<String>,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        if let Some(name) = self.serve {
            let served = crate::demo::http::serve(&name, 80);
            return served.map_err(|e| Failure::No(format!("serving HTTP on port 80: {e}")));
        }
        let options = crate::demo::Options { keep: self.keep, json: self.output == Format::Json };
        crate::demo::run(&options).map_err(Failure::No)
    }
}
