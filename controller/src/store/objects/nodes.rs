//! Which agents are there: what their NodeStates say, and whether they go on writing them. Pure.
//!
//! Clocks are not compared. An agent is there if it has a lease (etcd), or if its NodeState was seen to change (its `heartbeatTime` does, at least every
//! 30 seconds) within [`FRESH`], by the monotonic clock of who looks. Who has just begun to look, or could not look for a
//! while, listens first: for [`LISTEN`] nothing is said of anybody. Nor while no heartbeat at all is heard: it may be our own
//! connection that is dead, which is found out within [`DEAF`].
use crate::{
    api::NodeStateStatus,
    desired::{NodeReport, NodeReports},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// An agent that has written within this is there, or has renewed its lease: two of its heartbeats may be late.
pub const FRESH: Duration = Duration::from_secs(90);
/// How long to listen before anybody is said to be silent.
pub const LISTEN: Duration = Duration::from_secs(45);
/// A connection on which nothing has come for so long is not the reason any more.
pub const DEAF: Duration = Duration::from_secs(180);

/// What is known of the agents. Times are of one monotonic clock.
#[derive(Debug, Default)]
pub struct Nodes {
    known: BTreeMap<String, Known>,
    /// Since when it is listened without a gap; none: not yet.
    listens_since: Option<Duration>,
    /// When a NodeState was last seen to change.
    heard: Option<Duration>,
}

#[derive(Debug)]
struct Known {
    /// Without the heartbeat: one that says nothing else is nothing new.
    state: Arc<NodeStateStatus>,
    life: Life,
}

/// What says that an agent is there.
#[derive(Debug)]
enum Life {
    /// A heartbeat, as it was last, and when it was last seen to change; none: it was there when the listening began, and has not
    /// changed since.
    Heartbeat(Option<Time>, Option<Duration>),
    /// Whether it has a lease.
    Lease(bool),
}

impl Nodes {
    /// A NodeState is so. `is_listed`: it was listed, and may be so for long.
    pub fn word(&mut self, name: &str, mut state: NodeStateStatus, is_listed: bool, now: Duration) {
        let heartbeat = state.heartbeat_time.take();
        let changed = match self.known.get(name).map(|known| &known.life) {
            Some(Life::Heartbeat(last, changed)) if *last == heartbeat => *changed,
            // One that was listed for the first time may be of long ago.
            None if is_listed => None,
            _ => Some(now),
        };
        if changed == Some(now) {
            self.heard = self.heard.max(Some(now));
        }
        self.set(name, state, Life::Heartbeat(heartbeat, changed));
    }

    /// A NodeState is so, and its agent has a lease, or has none.
    pub fn leased(&mut self, name: &str, state: &NodeStateStatus, is_there: bool) {
        self.set(name, state.clone(), Life::Lease(is_there));
    }

    fn set(&mut self, name: &str, state: NodeStateStatus, life: Life) {
        let state = match self.known.get(name) {
            Some(known) if *known.state == state => Arc::clone(&known.state),
            _ => Arc::new(state),
        };
        self.known.insert(name.to_owned(), Known { state, life });
    }

    /// A NodeState is gone.
    pub fn gone(&mut self, name: &str) {
        self.known.remove(name);
    }

    /// It is listened from now on; what is not among these is gone.
    pub fn listed(&mut self, names: &BTreeSet<String>, now: Duration) {
        self.known.retain(|name, _| names.contains(name));
        self.listens_since = Some(now);
    }

    /// Something may have been missed.
    pub fn disturbed(&mut self, now: Duration) {
        if self.listens_since.is_some() {
            self.listens_since = Some(now);
        }
    }

    /// Who is there and who is silent; none: nobody can say yet.
    pub fn reports(&self, now: Duration) -> Option<NodeReports> {
        let since = self.listens_since.filter(|since| now.saturating_sub(*since) >= LISTEN)?;
        let quiet = now.saturating_sub(self.heard.unwrap_or(since).max(since));
        let has_heartbeats = self.known.values().any(|known| matches!(known.life, Life::Heartbeat(..)));
        if has_heartbeats && (LISTEN..DEAF).contains(&quiet) {
            return None;
        }
        let report = |(name, known): (&String, &Known)| {
            let is_fresh = match known.life {
                Life::Heartbeat(_, changed) => {
                    changed.is_some_and(|changed| now.saturating_sub(changed) <= FRESH)
                }
                Life::Lease(is_there) => is_there,
            };
            (name.clone(), NodeReport { state: Arc::clone(&known.state), is_fresh })
        };
        Some(self.known.iter().map(report).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn state(heartbeat: u64) -> NodeStateStatus {
        NodeStateStatus { heartbeat_time: Some(crate::status::time(heartbeat)), ..NodeStateStatus::default() }
    }

    /// `a` has these heartbeats (its clock is of another century), `b` is of long ago.
    fn nodes(heard: impl IntoIterator<Item = u64>) -> Nodes {
        let mut nodes = Nodes::default();
        for name in ["a", "b"] {
            nodes.word(name, state(7), true, seconds(0));
        }
        nodes.listed(&["a", "b"].map(str::to_owned).into(), seconds(0));
        heard.into_iter().for_each(|at| nodes.word("a", state(at), false, seconds(at)));
        nodes
    }

    fn fresh(nodes: &Nodes, at: u64) -> Option<Vec<(String, bool)>> {
        Some(nodes.reports(seconds(at))?.into_iter().map(|(name, report)| (name, report.is_fresh)).collect())
    }

    fn both(a: bool, b: bool) -> Option<Vec<(String, bool)>> {
        Some(vec![("a".to_owned(), a), ("b".to_owned(), b)])
    }

    #[test]
    fn who_writes_is_there() {
        assert_eq!(fresh(&Nodes::default(), 1_000), None, "nothing was listed");
        assert_eq!(fresh(&nodes([]), 44), None, "it is listened");
        assert_eq!(fresh(&nodes([30]), 45), both(true, false), "b has not changed since");
        let mut two = nodes([30, 60, 90, 120]);
        two.word("b", state(8), false, seconds(31));
        assert_eq!(fresh(&two, 121), both(true, true));
        assert_eq!(fresh(&two, 122), both(true, false), "90 s are over");
        two.word("b", state(8), false, seconds(123));
        assert_eq!(fresh(&two, 124), both(true, false), "nothing new: no heartbeat");
        two.gone("b");
        assert_eq!(fresh(&two, 124), Some(vec![("a".to_owned(), true)]));
    }

    #[test]
    fn who_hears_nothing_may_be_deaf() {
        let nodes = nodes([30, 60]);
        assert_eq!(fresh(&nodes, 104), both(true, false));
        for at in [105, 151, 239] {
            assert_eq!(fresh(&nodes, at), None, "at {at}");
        }
        assert_eq!(fresh(&nodes, 240), both(false, false));
    }

    #[test]
    fn after_a_gap_it_is_listened_again() {
        let mut nodes = nodes([30, 60]);
        nodes.disturbed(seconds(200));
        assert_eq!(fresh(&nodes, 244), None);
        nodes.word("a", state(9), true, seconds(210));
        nodes.listed(&["a".to_owned()].into(), seconds(210));
        nodes.word("a", state(10), false, seconds(240));
        assert_eq!(fresh(&nodes, 254), None);
        assert_eq!(fresh(&nodes, 255), Some(vec![("a".to_owned(), true)]), "it wrote meanwhile");
    }
}
