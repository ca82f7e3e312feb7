//! The command `fairlead`. Everything is in the library: see `controller::cli`.
use std::process::ExitCode;

/// A pass makes and drops hundreds of thousands of small values; glibc's allocator takes more than half of its time. Without huge
/// pages (feature `no_thp`): what is left after a burst lies scattered, and each scattered value would hold two megabytes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    controller::cli::main()
}
