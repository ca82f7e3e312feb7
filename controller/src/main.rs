//! The command `fairlead`. Everything is in the library: see `controller::cli`.
use std::process::ExitCode;

fn main() -> ExitCode {
    controller::cli::main()
}
