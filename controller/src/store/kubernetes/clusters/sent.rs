//! Writes to the API server of this cluster, many on their way at once, for as long as this process leads.
use super::super::Shared;
use crate::store::objects::REQUEST;
use futures::{Stream, StreamExt, stream};
use kube::Error;
use tokio::time::timeout;

/// Writes on their way at once.
const AT_ONCE: usize = 16;

/// Who does writes.
pub(super) trait Server: Sync {
    /// A write.
    type Write: Send + Sync;
    /// What the API server answers.
    type Answer: Send;

    /// Does a write.
    ///
    /// # Errors
    /// What the API server says, or why it cannot be asked.
    fn send(&self, write: &Self::Write) -> impl Future<Output = Result<Self::Answer, Error>> + Send;
}

/// Why a write was not done.
#[derive(Debug)]
pub(super) enum Failure {
    /// It is there already, or is another one by now: a watch tells.
    Exists,
    /// It is gone: a watch tells.
    Gone,
    /// Whoever asks again is told the same, for now: what the API server says.
    Refused(String),
    /// It may be tried again.
    Trouble(String),
}

impl Failure {
    fn of(error: Error) -> Self {
        match error {
            Error::Api(status) => match status.code {
                404 => Failure::Gone,
                409 => Failure::Exists,
                400 | 403 | 422 => Failure::Refused(status.message.clone()),
                _ => Failure::Trouble(status.to_string()),
            },
            error => Failure::Trouble(error.to_string()),
        }
    }

    /// What is wrong, if somebody has to hear of it.
    pub(super) fn into_trouble(self) -> Result<(), String> {
        match self {
            Failure::Exists | Failure::Gone => Ok(()),
            Failure::Refused(why) | Failure::Trouble(why) => Err(why),
        }
    }
}

/// Does the writes; what comes of each, as soon as it has come: the answers to thousands are too much to hold at once.
pub(super) fn sent<S: Server>(
    server: &S,
    shared: &Shared,
    writes: Vec<S::Write>,
) -> impl Stream<Item = (S::Write, Result<S::Answer, Failure>)> {
    let one = move |write: S::Write| async move {
        if shared.leads_for().is_none() {
            return (write, Err(Failure::Trouble("this process leads no more".to_owned())));
        }
        let done = match timeout(REQUEST, server.send(&write)).await {
            Ok(done) => done.map_err(Failure::of),
            Err(late) => Err(Failure::Trouble(late.to_string())),
        };
        shared.metrics.wrote(!matches!(done, Err(Failure::Refused(_) | Failure::Trouble(_))));
        (write, done)
    };
    stream::iter(writes).map(one).buffer_unordered(AT_ONCE)
}
