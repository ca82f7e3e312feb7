//! Stands for the lead, as etcd's concurrency package does (`client/v3/concurrency/election.go`): who stands has a key that
//! goes with a lease, and the oldest key leads. A lease that is not renewed for [`TTL`] ends, and the next one leads.
//!
//! Each write of a status has the condition that our key is still there, so nobody writes who leads no more, whatever clocks
//! say; by our clock we lead for [`RENEW_WITHIN`] from when a renewal was *sent*.
use super::{
    EtcdError,
    client::Client,
    keys::Keys,
    wire::{Compare, end, put, text, txn},
};
use crate::{
    store::objects::{Shared, lock, now},
    trouble::Trouble,
};
use serde_json::{Value, json};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

/// After so long without a renewal others lead.
const TTL: Duration = Duration::from_secs(15);
/// We lead for so long after a renewal: what was begun until then has the rest of [`TTL`] to come to its end.
const RENEW_WITHIN: Duration = Duration::from_secs(10);

/// One that stands. Clones are one.
#[derive(Clone)]
pub(super) struct Standing {
    client: Client,
    keys: Keys,
    /// What is written into the key, for people.
    identity: Arc<str>,
    shared: Arc<Shared>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    term: Option<Term>,
    has_resigned: bool,
}

/// That we stand.
#[derive(Clone, Debug)]
pub(super) struct Term {
    lease: i64,
    key: String,
    /// When the key was made.
    revision: i64,
}

impl Term {
    /// That we still stand, and so lead if we did.
    pub(super) fn fence(&self) -> Compare<'_> {
        Compare::Created(&self.key, self.revision)
    }
}

impl Standing {
    pub(super) fn new(client: Client, keys: Keys, identity: &str, shared: Arc<Shared>) -> Self {
        Standing { client, keys, identity: identity.into(), shared, state: Arc::default() }
    }

    /// Our term, if we stand.
    pub(super) fn term(&self) -> Option<Term> {
        lock(&self.state).term.clone()
    }

    /// Stands and renews the lease again and again.
    pub(super) async fn stand(self) {
        let mut trouble = Trouble::default();
        while !self.has_resigned() {
            let turn = self.turn().await;
            self.shared.rest(turn, &mut trouble).await;
        }
    }

    /// Renews the lease, or takes a new one, and looks whose key is the oldest.
    async fn turn(&self) -> Result<(), EtcdError> {
        let sent = now();
        let term = match self.term() {
            Some(term) if self.client.renew(term.lease).await? => term,
            Some(_) => {
                self.is_lost();
                self.enter().await?
            }
            None => self.enter().await?,
        };
        let prefix = self.keys.leader();
        let oldest = json!({"request_range": {"key": text(&prefix), "range_end": end(&prefix),
            "sort_target": "CREATE", "sort_order": "ASCEND", "limit": "1"}});
        let answer = self.client.txn(&txn(&[term.fence()], &[oldest], &[])).await?;
        if !answer.succeeded {
            // Somebody has deleted our key.
            self.is_lost();
            return Ok(());
        }
        let leads = answer.kvs().next().is_some_and(|kv| kv.key == term.key.as_bytes());
        let state = lock(&self.state);
        self.shared.elected_until((leads && !state.has_resigned).then_some(sent + RENEW_WITHIN));
        Ok(())
    }

    /// Takes a lease and makes our key.
    async fn enter(&self) -> Result<Term, EtcdError> {
        let lease = self.client.grant(TTL).await?;
        let key = format!("{}{lease:016x}", self.keys.leader());
        let make = txn(&[Compare::Created(&key, 0)], &[put(&key, &self.identity, Some(lease))], &[]);
        let answer = self.client.txn(&make).await?;
        let term = Term { lease, key, revision: answer.header.revision };
        let mut state = lock(&self.state);
        // Resigned meanwhile: the lease ends by itself.
        if !state.has_resigned {
            state.term = Some(term.clone());
        }
        Ok(term)
    }

    fn has_resigned(&self) -> bool {
        lock(&self.state).has_resigned
    }

    fn is_lost(&self) {
        lock(&self.state).term = None;
        self.shared.elected_until(None);
    }

    /// Gives the lead back. Nothing is published afterwards.
    pub(super) async fn resign(&self) {
        let term = {
            let mut state = lock(&self.state);
            state.has_resigned = true;
            self.shared.elected_until(None);
            state.term.take()
        };
        let Some(term) = term else { return };
        let revoke = json!({"ID": term.lease.to_string()});
        if let Err(error) = self.client.call::<Value>("/v3/lease/revoke", &revoke).await {
            tracing::warn!(%error, "the lease could not be given back; others wait for its end");
        }
    }
}
