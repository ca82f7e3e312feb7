//! What the store counts. It is on the page of metrics of the process.
use crate::{api::Kind, host};
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Result, core::Collector};

/// Cheap to clone; clones are one.
#[derive(Clone, Debug)]
pub(in crate::store) struct Metrics {
    snapshot: IntGauge,
    watch_errors: IntCounterVec,
    failing: IntGaugeVec,
    writes: IntCounter,
    write_errors: IntCounter,
    leader: IntGauge,
}

impl Metrics {
    pub(in crate::store) fn new() -> Result<Self> {
        let watch_errors = Opts::new(
            "fairlead_store_watch_errors_total",
            "Lists and watches that failed; they are tried again, and what was known stays in force.",
        );
        let failing = Opts::new(
            "fairlead_store_watch_failing",
            "1: the last list or watch of the kind failed, and what was known before is in force.",
        );
        Ok(Metrics {
            snapshot: IntGauge::new(
                "fairlead_store_snapshot_timestamp_seconds",
                "When the last snapshot was given out, in seconds since 1970; 0: there was none.",
            )?,
            watch_errors: IntCounterVec::new(watch_errors, &["kind"])?,
            failing: IntGaugeVec::new(failing, &["kind"])?,
            writes: IntCounter::new("fairlead_store_writes_total", "Statuses that were written.")?,
            write_errors: IntCounter::new(
                "fairlead_store_write_errors_total",
                "Writes of statuses that were refused or came to no answer.",
            )?,
            leader: IntGauge::new(
                "fairlead_store_leader",
                "1: this process leads, gives addresses and writes statuses.",
            )?,
        })
    }

    pub(in crate::store) fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![
            Box::new(self.snapshot.clone()),
            Box::new(self.watch_errors.clone()),
            Box::new(self.failing.clone()),
            Box::new(self.writes.clone()),
            Box::new(self.write_errors.clone()),
            Box::new(self.leader.clone()),
        ]
    }

    pub(in crate::store) fn gave_out(&self) {
        let now = host::now();
        self.snapshot.set(i64::try_from(now).unwrap_or(i64::MAX));
    }

    pub(in crate::store) fn watch_failed(&self, kind: Kind) {
        self.watch_errors.with_label_values(&[&kind.name()]).inc();
        self.failing.with_label_values(&[&kind.name()]).set(1);
    }

    pub(in crate::store) fn watches(&self, kind: Kind) {
        self.failing.with_label_values(&[&kind.name()]).set(0);
    }

    pub(in crate::store) fn wrote(&self, done: bool) {
        if done { self.writes.inc() } else { self.write_errors.inc() }
    }

    pub(in crate::store) fn lead(&self, leads: bool) {
        self.leader.set(leads.into());
    }
}
