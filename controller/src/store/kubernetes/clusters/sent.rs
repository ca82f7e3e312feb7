//! Writes to the API server of this cluster, many on their way at once, for as long as this process leads.
use super::super::{Shared, raw::Raw};
use crate::store::objects::REQUEST;
use futures::{Stream, StreamExt, stream};
use kube::{Client, Error};
use serde_json::Value;
use tokio::time::timeout;

/// Writes on their way at once.
const AT_ONCE: usize = 16;
/// Most writes of one pass: what has changed meanwhile does not wait for all that a new cluster brings.
const PORTION: usize = 256;

/// A write.
pub(super) trait Sent {
    /// Does it. The answer: the object as it is now, if somebody needs it.
    ///
    /// # Errors
    /// What the API server says, or why it cannot be asked.
    fn send(&self, client: &Client) -> impl Future<Output = Result<Option<Raw>, Error>> + Send;
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

/// Leaves as many of the writes as one pass does, the first ones. Whether there were more.
pub(super) fn portion<W>(writes: &mut Vec<W>) -> bool {
    let has_more = writes.len() > PORTION;
    writes.truncate(PORTION);
    has_more
}

/// Does the writes; what comes of each, as soon as it has come: the answers to thousands are too much to hold at once.
pub(super) fn sent<W: Sent>(
    client: &Client,
    shared: &Shared,
    writes: Vec<W>,
) -> impl Stream<Item = (W, Result<Option<Raw>, Failure>)> {
    let one = move |write: W| async move {
        if shared.leads_for().is_none() {
            return (write, Err(Failure::Trouble("this process leads no more".to_owned())));
        }
        let done = match timeout(REQUEST, write.send(client)).await {
            Ok(done) => done.map_err(Failure::of),
            Err(late) => Err(Failure::Trouble(late.to_string())),
        };
        shared.metrics.wrote(!matches!(done, Err(Failure::Refused(_) | Failure::Trouble(_))));
        (write, done)
    };
    stream::iter(writes).map(one).buffer_unordered(AT_ONCE)
}

/// The object that is to be written.
///
/// # Errors
/// It is no object.
pub(super) fn object(value: Value) -> Result<Raw, Error> {
    serde_json::from_value(value).map_err(Error::SerdeError)
}

/// The parts of `NAMESPACE/NAME`.
pub(super) fn split(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or(("", name))
}
