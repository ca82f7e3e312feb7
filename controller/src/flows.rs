//! What became of packets, from the datapath to whoever follows it. Buffers are bounded: who is too slow loses
//! events, and is told how many. Packets are sampled only while somebody follows.
use crate::appliers::Events;
use lb_bpf::FlowEvent;
use std::{sync::Arc, time::Duration};
use tokio::sync::{
    broadcast::{self, error::RecvError, error::TryRecvError},
    watch,
};

/// Events that are kept for a follower that does not come to take them.
const KEPT: usize = 4096;
/// Most followers at a time.
const MAX_FOLLOWERS: usize = 16;
/// Most events that a follower takes at a time.
const BATCH: usize = 256;
/// When the events cannot be read: until the next try.
const PAUSE: Duration = Duration::from_secs(1);

/// The followers, and the way to them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Flows {
    events: broadcast::Sender<Arc<FlowEvent>>,
    followers: watch::Sender<usize>,
}

impl Default for Flows {
    fn default() -> Self {
        Flows { events: broadcast::Sender::new(KEPT), followers: watch::Sender::new(0) }
    }
}

impl Flows {
    /// How many there are that follow.
    pub fn followers(&self) -> watch::Receiver<usize> {
        self.followers.subscribe()
    }

    /// Follows from now on; none: too many do already.
    pub fn follow(&self) -> Option<Follower> {
        let is_one_more = self.followers.send_if_modified(|followers| {
            let has_room = *followers < MAX_FOLLOWERS;
            *followers += usize::from(has_room);
            has_room
        });
        is_one_more.then(|| Follower { events: self.events.subscribe(), followers: self.followers.clone() })
    }

    /// Hands on what the datapath reports, for ever.
    pub async fn relay(self, mut events: impl Events) {
        loop {
            match events.next().await {
                Ok(events) => events.into_iter().for_each(|event| self.send(event)),
                Err(error) => {
                    tracing::warn!(%error, "reading events of packets");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    pub(crate) fn send(&self, event: FlowEvent) {
        // Without followers there is nobody to miss it.
        let _ = self.events.send(Arc::new(event));
    }
}

/// One who follows, until dropped.
#[derive(Debug)]
pub struct Follower {
    events: broadcast::Receiver<Arc<FlowEvent>>,
    followers: watch::Sender<usize>,
}

/// What a follower sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// What became of a packet.
    Flow(Arc<FlowEvent>),
    /// So many events were lost, for they were not taken in time.
    Lost(u64),
}

impl Follower {
    /// What has happened since, at least one thing and a few hundred at most; nothing: the end. Can be cancelled.
    pub async fn next(&mut self) -> Vec<Seen> {
        let mut seen = match self.events.recv().await {
            Ok(event) => vec![Seen::Flow(event)],
            Err(RecvError::Lagged(count)) => vec![Seen::Lost(count)],
            Err(RecvError::Closed) => return Vec::new(),
        };
        while seen.len() < BATCH {
            seen.push(match self.events.try_recv() {
                Ok(event) => Seen::Flow(event),
                Err(TryRecvError::Lagged(count)) => Seen::Lost(count),
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            });
        }
        seen
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.followers.send_modify(|followers| *followers -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::io;

    fn event(at_millis: u64) -> FlowEvent {
        FlowEvent {
            at_millis,
            protocol: 6,
            source: "192.0.2.7:40000".parse().unwrap(),
            destination: "203.0.113.10:80".parse().unwrap(),
            verdict: "no_backend".to_owned(),
            service: None,
            backend: None,
            filter: None,
            interface: None,
            bytes: 60,
            new: true,
        }
    }

    /// Fails once, reports what it has, and then nothing more.
    struct Reported(Vec<Result<Vec<FlowEvent>, io::Error>>);

    impl Events for Reported {
        type Error = io::Error;

        async fn next(&mut self) -> Result<Vec<FlowEvent>, io::Error> {
            match self.0.pop() {
                Some(result) => result,
                None => std::future::pending().await,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn everybody_who_follows_sees_what_is_reported_and_errors_are_outlived() {
        let flows = Flows::default();
        let (mut one, mut other) = (flows.follow().unwrap(), flows.follow().unwrap());
        let error = io::Error::other("made to fail");
        let relay = flows.clone().relay(Reported(vec![Ok(vec![event(1), event(2)]), Err(error)]));
        let followers = async { (one.next().await, other.next().await) };
        let (seen, also_seen) = tokio::select! {
            seen = followers => seen,
            () = relay => unreachable!("it has no end"),
        };
        assert_eq!(seen, [Seen::Flow(Arc::new(event(1))), Seen::Flow(Arc::new(event(2)))]);
        assert_eq!(also_seen, seen);
    }

    #[tokio::test]
    async fn who_is_too_slow_is_told_what_was_lost() {
        let flows = Flows::default();
        let mut follower = flows.follow().unwrap();
        for at in 0..(KEPT as u64 + 3) {
            flows.send(event(at));
        }
        let seen = follower.next().await;
        assert_eq!(seen[..2], [Seen::Lost(3), Seen::Flow(Arc::new(event(3)))]);
        assert_eq!(seen.len(), BATCH);
    }

    #[test]
    fn followers_are_counted_and_bounded() {
        let flows = Flows::default();
        let count = flows.followers();
        let mut followers: Vec<_> = (0..MAX_FOLLOWERS).map(|_| flows.follow().unwrap()).collect();
        assert!(flows.follow().is_none());
        assert_eq!(*count.borrow(), MAX_FOLLOWERS);
        followers.pop();
        assert!(flows.follow().is_some(), "there is room again");
        drop(followers);
        assert_eq!(*count.borrow(), 0);
        assert!(flows.follow().unwrap().next().now_or_never().is_none(), "nothing of before");
    }
}
