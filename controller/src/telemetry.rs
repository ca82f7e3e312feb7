//! Log lines, to stderr: which ones (`FAIRLEAD_LOG`, else `RUST_LOG`) and in which form
//! (`FAIRLEAD_LOG_FORMAT`: `text`, `json`).
use std::{
    env,
    io::{self, IsTerminal},
};
use tracing_subscriber::EnvFilter;

/// An environment variable about logs makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TelemetryError {
    /// The filter cannot be parsed.
    #[error(
        "{variable}={value:?} is not a filter of log lines: {reason}; try `info` or `info,bgp_speaker=debug`"
    )]
    Filter {
        /// `FAIRLEAD_LOG` or `RUST_LOG`.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What is wrong.
        reason: String,
    },
    /// The form is unknown.
    #[error("FAIRLEAD_LOG_FORMAT={0:?} is neither `text` nor `json`")]
    Format(String),
}

/// Sends log lines to stderr from now on. `default` is the filter when the environment names none.
pub fn init(default: &str) -> Result<(), TelemetryError> {
    let filter = filter(default, |name| env::var_os(name).map(|v| v.to_string_lossy().into_owned()))?;
    let format = env::var_os("FAIRLEAD_LOG_FORMAT").map(|v| v.to_string_lossy().into_owned());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // An error means that a subscriber is there already: the first one wins.
    let _already = match format.as_deref().unwrap_or("text") {
        "text" | "" => builder.with_ansi(io::stderr().is_terminal()).try_init(),
        "json" => builder.json().flatten_event(true).try_init(),
        other => return Err(TelemetryError::Format(other.to_owned())),
    };
    Ok(())
}

fn filter(default: &str, variable: impl Fn(&str) -> Option<String>) -> Result<EnvFilter, TelemetryError> {
    let named = ["FAIRLEAD_LOG", "RUST_LOG"]
        .into_iter()
        .find_map(|name| variable(name).filter(|v| !v.is_empty()).map(|value| (name, value)));
    let Some((variable, value)) = named else {
        return Ok(EnvFilter::new(default));
    };
    EnvFilter::try_new(&value).map_err(|e| TelemetryError::Filter { variable, value, reason: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_variable_goes_before_the_general_one() {
        let both = |name: &str| Some(if name == "FAIRLEAD_LOG" { "debug" } else { "trace" }.to_owned());
        assert_eq!(filter("info", both).unwrap().to_string(), "debug");
        assert_eq!(filter("info", |_| None).unwrap().to_string(), "info");
        assert_eq!(filter("info", |_| Some(String::new())).unwrap().to_string(), "info");
        let general = |name: &str| (name == "RUST_LOG").then(|| "warn".to_owned());
        assert_eq!(filter("info", general).unwrap().to_string(), "warn");
    }

    #[test]
    fn a_filter_that_makes_no_sense_is_named() {
        let error = filter("info", |_| Some("info,=".to_owned())).unwrap_err().to_string();
        assert!(error.starts_with("FAIRLEAD_LOG=\"info,=\" is not a filter"), "{error}");
    }
}
