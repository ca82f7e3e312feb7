//! What became of packets, as the API says it: what is seen within a moment, or line by line as it happens.
use super::{
    Endless,
    families::action,
    rows::{FlowLine, FlowRow, FlowRows},
};
use crate::flows::{Follower, Seen};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use k8s_openapi::jiff::Timestamp;
use lb_bpf::FlowEvent;
use nix::time::{ClockId, clock_gettime};
use std::{convert::Infallible, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;

/// How long a moment is.
const MOMENT: Duration = Duration::from_secs(1);
/// Most packets of a moment.
const MOST: usize = 1000;
/// Parts of an answer that wait for the reader.
const WAITING: usize = 4;
/// A reader who takes nothing for so long is given up: for it packets would be sampled for ever.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is seen from now on, for a moment.
pub(super) async fn moment(mut follower: Follower) -> FlowRows {
    let (clock, end) = (Clock::new(), Instant::now() + MOMENT);
    let mut rows = FlowRows::default();
    while let Ok(seen) = timeout_at(end, follower.next()).await {
        if seen.is_empty() {
            break;
        }
        for seen in seen {
            match clock.line(seen) {
                FlowLine::Flow(row) if rows.flows.len() < MOST => rows.flows.push(*row),
                FlowLine::Flow(_) => rows.lost += 1,
                FlowLine::Lost { lost } => rows.lost += lost,
            }
        }
    }
    rows
}

/// What is seen from now on, as lines of JSON, until the reader goes away or takes nothing any more.
pub(super) fn lines(
    mut follower: Follower,
    endless: Endless,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        // From the end of this on, the connection is like any other.
        let _endless = endless;
        let clock = Clock::new();
        loop {
            let seen = tokio::select! {
                seen = follower.next() => seen,
                () = sender.closed() => return,
            };
            if seen.is_empty() {
                return;
            }
            let mut text = Vec::new();
            for line in seen.into_iter().map(|seen| clock.line(seen)) {
                if serde_json::to_writer(&mut text, &line).is_err() {
                    return;
                }
                text.push(b'\n');
            }
            match timeout(PATIENCE, sender.send(Bytes::from(text))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => return tracing::debug!(limit = ?PATIENCE, "who follows the flows takes none"),
            }
        }
    });
    ReceiverStream::new(receiver).map(Ok)
}

/// Between the clock of events and that of people.
struct Clock {
    /// Milliseconds since the epoch when CLOCK_MONOTONIC was 0.
    origin: i64,
}

impl Clock {
    fn new() -> Self {
        let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        let monotonic = i64::try_from(monotonic.as_millis()).unwrap_or(i64::MAX);
        Clock { origin: Timestamp::now().as_millisecond().saturating_sub(monotonic) }
    }

    fn line(&self, seen: Seen) -> FlowLine {
        match seen {
            Seen::Flow(event) => FlowLine::Flow(self.row(&event).into()),
            Seen::Lost(lost) => FlowLine::Lost { lost },
        }
    }

    fn row(&self, event: &FlowEvent) -> FlowRow {
        let at = i64::try_from(event.at_millis).unwrap_or(i64::MAX).saturating_add(self.origin);
        let time = Timestamp::from_millisecond(at).unwrap_or(Timestamp::MAX);
        FlowRow {
            time: format!("{time:.3}"),
            action: action(&event.verdict).to_owned(),
            event: event.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{appliers::Events, flows::Flows};
    use lb_bpf::service::ServiceKey;
    use std::io;

    /// As many as are asked for, without an end.
    struct Flood;

    impl Events for Flood {
        type Error = io::Error;

        async fn next(&mut self) -> Result<Vec<FlowEvent>, io::Error> {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok(vec![event()])
        }
    }

    fn event() -> FlowEvent {
        FlowEvent {
            at_millis: 1_500,
            protocol: 17,
            source: "192.0.2.7:40000".parse().unwrap(),
            destination: "203.0.113.10:53".parse().unwrap(),
            verdict: "no_backend".to_owned(),
            service: Some(ServiceKey("LoadBalancer/dns/53/ipv4".into())),
            backend: None,
            filter: None,
            interface: Some("eth0".to_owned()),
            bytes: 90,
            new: true,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_given_up_and_who_goes_is_forgotten() {
        let flows = Flows::default();
        let relay = tokio::spawn(flows.clone().relay(Flood));
        let mut count = flows.followers();
        let (stuck, start) = (lines(flows.follow().unwrap(), Endless::default()), Instant::now());
        count.wait_for(|count| *count == 0).await.unwrap();
        assert!((PATIENCE..PATIENCE + Duration::from_secs(1)).contains(&start.elapsed()));
        drop(stuck);

        let mut reading = lines(flows.follow().unwrap(), Endless::default());
        for _ in 0..10_000 {
            let line = reading.next().await.unwrap().unwrap();
            assert!(matches!(serde_json::from_slice(&line).unwrap(), FlowLine::Flow(_)));
        }
        relay.abort();
        drop(reading);
        count.wait_for(|count| *count == 0).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_moment_is_a_second_and_bounded() {
        let flows = Flows::default();
        let relay = tokio::spawn(flows.clone().relay(Flood));
        let rows = moment(flows.follow().unwrap()).await;
        assert!((99..=100).contains(&rows.flows.len()), "{}", rows.flows.len());
        assert_eq!(rows.lost, 0);
        relay.abort();
        let flood = flows.follow().unwrap();
        for _ in 0..1500 {
            flows.clone().send(event());
        }
        let rows = moment(flood).await;
        assert_eq!((rows.flows.len(), rows.lost), (1000, 500));
    }

    #[test]
    fn a_row_has_the_time_of_people_and_the_names_of_objects() {
        let line = Clock { origin: 1_700_000_000_000 }.line(Seen::Flow(event().into()));
        assert_eq!(
            serde_json::to_value(&line).unwrap(),
            serde_json::json!({
                "time": "2023-11-14T22:13:21.500Z", "action": "drop", "atMillis": 1500, "protocol": 17,
                "source": "192.0.2.7:40000", "destination": "203.0.113.10:53", "verdict": "no_backend",
                "service": "LoadBalancer/dns/53/ipv4", "backend": null, "filter": null, "interface": "eth0", "bytes": 90, "new": true,
            })
        );
        assert_eq!(serde_json::from_str::<FlowLine>(&serde_json::to_string(&line).unwrap()).unwrap(), line);
    }

    #[test]
    fn the_clocks_are_of_this_machine() {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap();
        let shown = Clock::new().origin + i64::try_from(now.as_millis()).unwrap();
        assert!((Timestamp::now().as_millisecond() - shown).abs() < 60_000);
    }
}
