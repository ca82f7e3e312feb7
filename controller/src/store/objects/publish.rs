//! Writes statuses: step by step as [`plan`](super::plan) says, many at a time within a step, each under the condition
//! that the object is still as we know it.
//!
//! A write whose answer is lost may have gone through. Until that is known nothing else is written: a later snapshot that
//! does not know of an address would give it again. It is sent once more, as it was: either it is taken, or it is refused
//! because the object is another one by now, and we are told which.
use super::{
    Shared, lock,
    plan::{self, Settled, Step, Write},
    snapshot::Seen,
};
use crate::{host, status::StatusSet, store::StoreError};
use futures::{StreamExt, stream};
use std::{
    future::Future,
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::Mutex;

/// Writes on their way at once.
const AT_ONCE: usize = 16;

/// Where statuses are written to.
pub(in crate::store) trait Target: Send + Sync + 'static {
    /// Sends a write, within [`REQUEST`](super::REQUEST).
    fn send(&self, write: &Write) -> impl Future<Output = Outcome> + Send;

    /// How the status of a Service stands there.
    const SERVICE: plan::ServiceForm;
}

/// What became of a write.
pub(in crate::store) enum Outcome {
    /// The object is so now.
    Done(Box<Seen>),
    /// It was not the object that we thought: it is so, or the watch will say what it is.
    Changed(Option<Box<Seen>>),
    /// It was not taken.
    Refused(StoreError),
    /// Nobody knows.
    Unknown(StoreError),
}

/// Writes for one process, one set after the other.
pub(in crate::store) struct Publisher<T> {
    target: T,
    shared: Arc<Shared>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Writes that may have gone through.
    unknown: Vec<Write>,
    settled: Settled,
}

impl<T: Target> Publisher<T> {
    pub(in crate::store) fn new(target: T, shared: Arc<Shared>) -> Self {
        Publisher { target, shared, state: Mutex::default() }
    }

    /// Writes what differs. What was written has come back in a snapshot when this returns.
    pub(in crate::store) async fn publish(&self, statuses: &StatusSet) -> Result<(), StoreError> {
        let mut state = self.state.lock().await;
        let State { unknown, settled } = &mut *state;
        if !unknown.is_empty() {
            // What was computed without knowing what became of them is not written.
            let written = self.write_all(mem::take(unknown), unknown).await;
            self.shared.give_out();
            return written;
        }
        // What the store has while nothing has to be written.
        let mut rest = Some(lock(&self.shared.assembly).statuses().clone());
        for step in Step::ALL {
            let plan = {
                let assembly = lock(&self.shared.assembly);
                let plan = plan::plan(step, &assembly, settled, statuses, host::now(), &T::SERVICE);
                let is_at_rest = plan.writes.is_empty() && plan.is_whole;
                rest = rest.filter(|rest| is_at_rest && rest.is_same(assembly.statuses()));
                plan
            };
            if plan.writes.is_empty() {
                continue;
            }
            let written = self.write_all(plan.writes, unknown).await;
            self.shared.give_out();
            written?;
        }
        if let Some(before) = rest {
            *settled = Settled { before, after: statuses.clone() };
        }
        lock(&self.shared.assembly).published(statuses);
        self.shared.give_out();
        Ok(())
    }

    /// Writes; after the first failure nothing more is begun. Those of which nobody knows are added to `unknown`.
    async fn write_all(&self, writes: Vec<Write>, unknown: &mut Vec<Write>) -> Result<(), StoreError> {
        let failed = AtomicBool::new(false);
        let one = |write: Write| {
            let failed = &failed;
            async move {
                if failed.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                let result = self.write(write).await;
                failed.fetch_or(!matches!(result, Ok(None)), Ordering::Relaxed);
                result
            }
        };
        let mut first = Ok(());
        let mut results = stream::iter(writes).map(one).buffer_unordered(AT_ONCE);
        while let Some(result) = results.next().await {
            let error = match result {
                Ok(None) => continue,
                Ok(Some((write, error))) => {
                    unknown.push(write);
                    error
                }
                Err(error) => error,
            };
            first = first.and(Err(error));
        }
        first
    }

    /// Writes one; if nobody knows what became of it, gives it back.
    async fn write(&self, write: Write) -> Result<Option<(Write, StoreError)>, StoreError> {
        if self.shared.leads_for().is_none() {
            return Err(StoreError::NotLeader);
        }
        let outcome = self.target.send(&write).await;
        self.shared.metrics.wrote(matches!(outcome, Outcome::Done(_)));
        match outcome {
            Outcome::Done(seen) => {
                lock(&self.shared.assembly).wrote(write.kind, *seen);
                Ok(None)
            }
            Outcome::Changed(seen) => {
                if let Some(seen) = seen {
                    lock(&self.shared.assembly).wrote(write.kind, *seen);
                }
                Err(StoreError::Changed { object: write.object() })
            }
            Outcome::Refused(error) => Err(error),
            Outcome::Unknown(error) => Ok(Some((write, error))),
        }
    }
}
