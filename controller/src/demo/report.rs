//! What the demo says: its progress, line by line, and at the end the report, as tables or as JSON.
use crate::cli::output::table;
use serde::Serialize;
use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

/// All that was found. JSON keys are camelCase and stable.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Whether nothing was lost that must not be lost, and every effect came.
    pub ok: bool,
    /// The router's software.
    pub router: String,
    /// How long it all took.
    pub seconds: f64,
    /// One after the other.
    pub phases: Vec<Phase>,
    /// Who answered while nothing was wrong.
    pub backends: Vec<Share>,
}

/// A phase: something happens, has its effects, and traffic goes on meanwhile.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Phase {
    /// Short name.
    pub name: String,
    /// What was done.
    pub event: String,
    /// What came of it.
    pub effects: Vec<Effect>,
    /// Requests begun in this phase.
    pub requests: usize,
    /// Those of them that failed.
    pub failed: usize,
    /// Those that failed while it cannot be avoided: on the backend that was killed until it was found out; NAT
    /// connections that were open while the router moved them to another balancer.
    pub excused: usize,
    /// All others that failed: none may.
    pub lost: usize,
    /// The longest that a request took which did not fail, milliseconds.
    pub slowest_millis: f64,
    /// What was not as it should be, losses among it.
    pub faults: Vec<String>,
}

/// An effect and the time that it took.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Effect {
    /// What was seen.
    pub what: String,
    /// Time from the event until it was seen, milliseconds.
    pub millis: f64,
}

impl Effect {
    /// `what` took `time`.
    pub fn new(what: impl Into<String>, time: Duration) -> Self {
        Effect { what: what.into(), millis: millis(time) }
    }
}

/// A backend's part of the requests to a service.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// The service: `web ipv4`.
    pub service: String,
    /// `IPIP` or `NAT`.
    pub mode: String,
    /// The backend: `b1`.
    pub backend: String,
    /// Weight as declared.
    pub weight: u16,
    /// Requests that it answered.
    pub requests: usize,
    /// Its part of the service's requests, 0 to 1.
    pub share: f64,
    /// Its part of the service's weights, 0 to 1.
    pub expected: f64,
}

impl Report {
    /// As tables.
    pub fn text(&self) -> String {
        let phases = self.phases.iter().map(|p| {
            let effects: Vec<_> =
                p.effects.iter().map(|e| format!("{} {:.0} ms", e.what, e.millis)).collect();
            vec![
                p.name.clone(),
                p.requests.to_string(),
                p.failed.to_string(),
                p.excused.to_string(),
                p.lost.to_string(),
                format!("{:.0} ms", p.slowest_millis),
                effects.join(", "),
            ]
        });
        let header = ["PHASE", "REQUESTS", "FAILED", "EXCUSED", "LOST", "SLOWEST", "FROM EVENT TO EFFECT"];
        let mut text = table(&header, phases);
        let shares = self.backends.iter().map(|s| {
            let part = |p: f64| format!("{:.1} %", p * 100.0);
            vec![
                s.service.clone(),
                s.mode.clone(),
                s.backend.clone(),
                s.weight.to_string(),
                s.requests.to_string(),
                part(s.share),
                part(s.expected),
            ]
        });
        text.push('\n');
        text += &table(&["SERVICE", "MODE", "BACKEND", "WEIGHT", "REQUESTS", "SHARE", "EXPECTED"], shares);
        text.push('\n');
        for phase in &self.phases {
            for fault in &phase.faults {
                text += &format!("FAULT in {}: {fault}\n", phase.name);
            }
        }
        let requests: usize = self.phases.iter().map(|p| p.requests).sum();
        let lost: usize = self.phases.iter().map(|p| p.lost).sum();
        let verdict = match (self.ok, self.phases.iter().any(|p| !p.faults.is_empty())) {
            (true, _) => "as it should be",
            (false, true) => "NOT as it should be",
            (false, false) => "it did not come to its end",
        };
        text += &format!("{requests} requests in {:.0} s, {lost} lost: {verdict}\n", self.seconds);
        text
    }
}

/// Lines for those who watch.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    started: Instant,
    to_stderr: bool,
}

impl Progress {
    /// The clock starts now. With `to_stderr` stdout is left to the report.
    pub fn start(to_stderr: bool) -> Self {
        Progress { started: Instant::now(), to_stderr }
    }

    /// Prints a line with the time since the start and the phase.
    pub fn say(&self, phase: &str, text: &str) {
        self.print(&format!("{:6.1} s  {phase:<9} {text}\n", self.started.elapsed().as_secs_f64()));
    }

    /// Prints text as it is. Whether anybody reads it does not matter to the demo.
    pub fn print(&self, text: &str) {
        let _ = if self.to_stderr {
            io::stderr().write_all(text.as_bytes())
        } else {
            io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush())
        };
    }

    /// Since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Milliseconds with fractions.
pub fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lost: usize) -> Report {
        let phase = Phase {
            name: "steady".to_owned(),
            requests: 1000,
            failed: lost,
            lost,
            effects: vec![Effect::new("in the tables", Duration::from_micros(12_345))],
            faults: (0..lost).map(|n| format!("request {n}: connect: refused")).collect(),
            ..Phase::default()
        };
        let share = Share {
            service: "web ipv4".to_owned(),
            mode: "IPIP".to_owned(),
            backend: "b1".to_owned(),
            weight: 2,
            requests: 501,
            share: 0.501,
            expected: 0.5,
        };
        Report {
            ok: lost == 0,
            router: "FRR 8".to_owned(),
            seconds: 2.0,
            phases: vec![phase],
            backends: vec![share],
        }
    }

    #[test]
    fn the_tables_show_losses_and_times() {
        let text = report(0).text();
        assert!(text.contains("in the tables 12 ms") && text.contains("50.1 %"), "{text}");
        assert!(text.ends_with("1000 requests in 2 s, 0 lost: as it should be\n"), "{text}");
        let text = report(1).text();
        assert!(text.contains("FAULT in steady: request 0: connect: refused"), "{text}");
        assert!(text.ends_with("1 lost: NOT as it should be\n"), "{text}");
    }

    #[test]
    fn the_keys_are_camel_case() {
        let value = serde_json::to_value(report(0)).unwrap();
        assert_eq!(value["phases"][0]["effects"][0]["millis"], 12.3);
        assert!(value["phases"][0].get("slowestMillis").is_some());
    }
}
