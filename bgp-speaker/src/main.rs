//! The command: a BGP speaker from one file, and what its operator asks it.
mod daemon;

use clap::{Parser, Subcommand, ValueEnum};
use std::{path::PathBuf, process::ExitCode};

/// A small, correct BGP speaker.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 done, 1 the answer is no, 2 usage, 3 could not reach the \
running instance. Log lines go to the standard error; BGP_SPEAKER_LOG filters them, as in `debug` or \
`info,bgp_speaker=debug`."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run in the foreground until SIGTERM or SIGINT, then take leave of all peers: without a word of those with
    /// gracefulRestart, which keep our routes for that time. At SIGHUP the file is read again. At SIGUSR2 the program is started anew from its path, with
    /// the file as it is then, and goes on with the sessions: the peers see nothing.
    Run {
        /// YAML: asn, routerID, listen, peers, routes, bmp.
        #[arg(long)]
        config: PathBuf,
        #[command(flatten)]
        api: Api,
    },
    /// Show the peers of the running instance.
    Peers {
        #[command(flatten)]
        api: Api,
        #[command(flatten)]
        output: Output,
    },
    /// Show the routes of the running instance: adj-in, loc, adj-out.
    Routes {
        #[command(flatten)]
        api: Api,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(clap::Args)]
struct Api {
    /// Unix socket of the running instance.
    #[arg(long = "api-socket", default_value = "/run/bgp-speaker/api.sock")]
    path: PathBuf,
}

#[derive(clap::Args)]
struct Output {
    /// How to show it.
    #[arg(short = 'o', long = "output", default_value = "table")]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Table,
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Run { config, api } => daemon::run(&config, &api.path),
        Command::Peers { api, output } => daemon::show::peers(&api.path, output.format),
        Command::Routes { api, output } => daemon::show::routes(&api.path, output.format),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bgp-speaker: {failure}");
            failure.exit_code()
        }
    }
}
