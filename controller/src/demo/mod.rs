//! Placeholder.

/// What `fairlead demo` was told.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Leave the topology when done.
    pub keep: bool,
    /// Print the report as JSON.
    pub json: bool,
}

/// Runs the demonstration; the error is the sentence to say, with the exit code 1.
pub fn run(_options: &Options) -> Result<(), String> {
    Err("the demonstration is not written yet".to_owned())
}
