//! Lists what begins with a prefix and watches it from that revision on, for ever. A watch that ends is taken up where it
//! was; only if etcd has compacted that revision meanwhile, everything is listed anew.
use super::{
    EtcdError,
    client::{Client, Lines, List},
    wire::Event,
};
use crate::trouble::{Trouble, jittered};
use std::{mem, time::Duration};
use tokio::time::{sleep, timeout};

/// A watch that has been silent for so long is made anew: its connection may have died in silence.
const SILENCE: Duration = Duration::from_secs(30);
/// A failed list or watch is tried again after this, then after twice as long, up to [`SLOWEST`].
const FIRST: Duration = Duration::from_millis(250);
const SLOWEST: Duration = Duration::from_secs(2);
/// Most events of one revision: etcd takes no larger writes.
const MOST: usize = 200_000;

/// One prefix that is followed.
pub(super) struct Following {
    client: Client,
    prefix: String,
    /// What is known is of this revision; none: nothing is.
    revision: Option<i64>,
    lines: Option<Lines>,
    trouble: Trouble,
}

/// What is heard of a prefix.
pub(super) enum News {
    /// All keys as they are.
    Listed(List),
    /// Changes of whole revisions; none: it is watched again.
    Changed(Vec<Event>),
    /// It cannot be followed for now: it is tried again when it is asked for the next time.
    Failed,
}

impl Following {
    pub(super) fn new(client: Client, prefix: String) -> Self {
        Following { client, prefix, revision: None, lines: None, trouble: Trouble::default() }
    }

    /// The next news, after a pause if the last ones were none. `what`: what is followed, for the log.
    pub(super) async fn next(&mut self, what: &str) -> News {
        match self.step().await {
            Ok(news) => {
                self.trouble.over(&format!("etcd: {what} watched again"));
                news
            }
            Err(error) => {
                self.lines = None;
                let pause = self.trouble.again(FIRST, SLOWEST);
                self.trouble
                    .say(&format!("etcd: watching {what} failed; what was known stays in force"), &error);
                sleep(jittered(pause)).await;
                News::Failed
            }
        }
    }

    async fn step(&mut self) -> Result<News, EtcdError> {
        let Some(known) = self.revision else {
            let list = self.client.list(&self.prefix).await?;
            self.revision = Some(list.revision);
            return Ok(News::Listed(list));
        };
        let mut events = Vec::new();
        loop {
            let lines = match &mut self.lines {
                Some(lines) => lines,
                None => {
                    events.clear();
                    self.lines.insert(self.client.watch(&self.prefix, known + 1).await?)
                }
            };
            let Ok(message) = timeout(SILENCE, lines.next()).await else {
                self.lines = None;
                continue;
            };
            let message = message?;
            if message.compact_revision > 0 {
                tracing::info!(
                    prefix = self.prefix,
                    "etcd has compacted what was missed; all is listed anew"
                );
                (self.revision, self.lines) = (None, None);
                return Ok(News::Changed(Vec::new()));
            }
            if message.canceled {
                return Err(EtcdError::new(message.cancel_reason));
            }
            if message.created {
                return Ok(News::Changed(Vec::new()));
            }
            events.extend(message.events);
            if events.len() > MOST {
                return Err(EtcdError::new(format!("more than {MOST} changes at once")));
            }
            if !message.fragment && !events.is_empty() {
                self.revision = events.iter().map(|event| event.kv.mod_revision).max().max(self.revision);
                return Ok(News::Changed(mem::take(&mut events)));
            }
        }
    }
}
