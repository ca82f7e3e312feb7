//! Who of several controllers leads: what one candidate makes of the Lease that it reads and writes
//! (coordination.k8s.io/v1). Pure: reads, writes and time go in.
//!
//! Each candidate measures by its own monotonic clock; the wall-clock times in the object are for people. A holder leads
//! for [`RENEW_WITHIN`] from when it *sent* its last write that went through. Others take the Lease when they have not
//! seen it change for [`DURATION`] from when they *first saw* it as it is, which is later than it was sent. What the
//! holder began while it led has the time between the two to come to its end. Of two that write at once the API server
//! takes one (`resourceVersion`).
use std::time::Duration;

/// After so long without a change others may take the Lease.
pub const DURATION: Duration = Duration::from_secs(15);
/// The holder leads for so long after a write.
pub const RENEW_WITHIN: Duration = Duration::from_secs(10);

/// A Lease as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Who has it; none: it was released.
    pub holder: Option<String>,
    /// `resourceVersion`: another one with every write.
    pub version: String,
    /// How long others have to wait, as its holder wrote.
    pub duration: Duration,
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing: another one has it.
    Wait,
    /// The Lease: it is not there.
    Create,
    /// That we have it from now on, if it is still of this version.
    Take(String),
    /// That we still have it, if it is still of this version.
    Renew(String),
}

/// One candidate. Times are of its own monotonic clock.
#[derive(Clone, Debug)]
pub struct Candidate {
    identity: String,
    /// The Lease as it is, and when it was first seen so.
    seen: Option<(Record, Duration)>,
    leads_until: Option<Duration>,
    /// When it last resigned or saw that another one has the Lease: what it sent until then counts no more.
    lost: Option<Duration>,
}

impl Candidate {
    /// One that has seen nothing yet. No other may have the same identity, not even this one after a restart.
    pub fn new(identity: impl Into<String>) -> Self {
        Candidate { identity: identity.into(), seen: None, leads_until: None, lost: None }
    }

    /// Who it is.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Takes in what was read; says what to write.
    pub fn read(&mut self, lease: Option<Record>, now: Duration) -> Action {
        let Some(record) = lease else {
            self.seen = None;
            self.lose(now);
            return Action::Create;
        };
        let is_new = self.seen.as_ref().is_none_or(|(seen, _)| *seen != record);
        let since = match &self.seen {
            Some((_, since)) if !is_new => *since,
            _ => now,
        };
        let version = record.version.clone();
        let is_own = record.holder.as_deref() == Some(&*self.identity);
        let is_free = match &record.holder {
            None => true,
            Some(_) => now.saturating_sub(since) > record.duration.max(DURATION),
        };
        self.seen = Some((record, since));
        if is_own {
            return Action::Renew(version);
        }
        self.lose(now);
        if is_free { Action::Take(version) } else { Action::Wait }
    }

    /// Takes in that a write which was sent then went through.
    pub fn wrote(&mut self, record: Record, sent: Duration) {
        if self.lost.is_some_and(|lost| sent < lost) {
            return;
        }
        // Not the time of the answer: others may have seen the write long before.
        self.leads_until = Some(sent + RENEW_WITHIN);
        self.seen = Some((record, sent));
    }

    /// Takes in that it is to lead no more. The version to release, if it has the Lease.
    pub fn resign(&mut self, now: Duration) -> Option<String> {
        // Also what it sent at this very moment.
        self.lose(now + Duration::from_nanos(1));
        let (record, _) = self.seen.as_ref()?;
        (record.holder.as_deref() == Some(&*self.identity)).then(|| record.version.clone())
    }

    fn lose(&mut self, now: Duration) {
        (self.leads_until, self.lost) = (None, Some(now));
    }

    /// Until when it leads, if it does.
    pub fn leads_until(&self, now: Duration) -> Option<Duration> {
        self.leads_until.filter(|until| now < *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn record(holder: Option<&str>, version: u64) -> Record {
        Record { holder: holder.map(Into::into), version: version.to_string(), duration: DURATION }
    }

    #[test]
    fn takes_what_nobody_has() {
        let mut one = Candidate::new("one");
        assert_eq!(one.read(None, seconds(0)), Action::Create);
        assert_eq!(one.leads_until(seconds(0)), None, "not before it is written");
        one.wrote(record(Some("one"), 1), seconds(0));
        assert_eq!(one.leads_until(seconds(9)), Some(seconds(10)));
        assert_eq!(one.leads_until(seconds(10)), None, "not renewed");
        assert_eq!(one.read(Some(record(Some("one"), 1)), seconds(11)), Action::Renew("1".into()));
        assert_eq!(one.resign(seconds(11)), Some("1".into()));
        let mut two = Candidate::new("two");
        assert_eq!(two.read(Some(record(None, 2)), seconds(5)), Action::Take("2".into()));
    }

    #[test]
    fn waits_from_the_last_change() {
        let mut two = Candidate::new("two");
        for (version, at) in [(1, 100), (1, 110), (2, 112), (2, 127)] {
            assert_eq!(two.read(Some(record(Some("one"), version)), seconds(at)), Action::Wait, "at {at}");
        }
        assert_eq!(two.read(Some(record(Some("one"), 2)), seconds(128)), Action::Take("2".into()));
        let patient = Record { duration: seconds(60), ..record(Some("one"), 3) };
        assert_eq!(two.read(Some(patient.clone()), seconds(200)), Action::Wait);
        assert_eq!(two.read(Some(patient), seconds(230)), Action::Wait, "the holder asked for more");
    }

    /// Clocks of two machines, years apart: only what passes on each of them counts.
    #[test]
    fn clocks_are_not_compared() {
        for (ahead, behind) in [(0, 1_000_000_000), (1_000_000_000, 0), (0, 0)] {
            let (one_at, two_at) = (|at| seconds(ahead + at), |at| seconds(behind + at));
            let (mut one, mut two) = (Candidate::new("one"), Candidate::new("two"));
            assert_eq!(one.read(None, one_at(0)), Action::Create);
            one.wrote(record(Some("one"), 1), one_at(0));
            // It renews for an hour, and the other one sees that it does.
            for turn in 0..720 {
                let (at, version) = (5 * turn, turn + 1);
                assert_eq!(two.read(Some(record(Some("one"), version)), two_at(at + 1)), Action::Wait);
                assert_eq!(one.leads_until(one_at(at + 1)), Some(one_at(at + 10)));
                let renewed = Action::Renew(version.to_string());
                assert_eq!(one.read(Some(record(Some("one"), version)), one_at(at + 5)), renewed);
                one.wrote(record(Some("one"), version + 1), one_at(at + 5));
            }
            // Its last write was at 3600; it is first seen at 3601, and taken after 15 seconds more, not before.
            for (at, takes) in [(3601, false), (3616, false), (3617, true)] {
                let action = two.read(Some(record(Some("one"), 721)), two_at(at));
                assert_eq!(action != Action::Wait, takes, "at {at}");
            }
            assert_eq!(one.leads_until(one_at(3610)), None, "it has given up long before");
        }
    }

    #[test]
    fn who_sees_another_one_leads_no_more() {
        let mut one = Candidate::new("one");
        one.read(None, seconds(0));
        one.wrote(record(Some("one"), 1), seconds(0));
        assert_eq!(one.read(Some(record(Some("two"), 2)), seconds(1)), Action::Wait);
        assert_eq!(one.leads_until(seconds(1)), None);
        assert_eq!(one.resign(seconds(1)), None);
    }

    /// What a candidate does next: what the API server hears of it after a delay, and its answer after another.
    #[derive(Clone, Debug)]
    struct Step {
        candidate: usize,
        /// Time from the step before, ms.
        after: u64,
        /// Until the request is there, ms; none: it is lost.
        request: Option<u64>,
        /// Until the answer is there, ms; none: it is lost.
        answer: Option<u64>,
        resigns: bool,
    }

    fn step() -> impl Strategy<Value = Step> {
        let delay = || prop_oneof![8 => (0_u64..500).prop_map(Some), 2 => (0_u64..40_000).prop_map(Some), 1 => Just(None)];
        let after = prop_oneof![4 => 0_u64..1_500, 1 => 0_u64..20_000];
        (0_usize..3, after, delay(), delay(), prop::bool::weighted(0.03)).prop_map(
            |(candidate, after, request, answer, resigns)| Step {
                candidate,
                after,
                request,
                answer,
                resigns,
            },
        )
    }

    /// Something on its way.
    #[derive(Clone, Debug)]
    enum Event {
        /// A candidate writes what it decided, if the version is still this one (none: there is no Lease).
        Write {
            candidate: usize,
            version: Option<String>,
            holder: Option<String>,
            sent: u64,
            answer: Option<u64>,
        },
        /// It hears that this went through.
        Wrote { candidate: usize, record: Record, sent: u64 },
    }

    /// Runs the steps; the most that led at one time, and how often the Lease was taken.
    fn run(steps: &[Step], offsets: [u64; 3]) -> (usize, u64) {
        let mut candidates = ["a", "b", "c"].map(Candidate::new);
        let local = |candidate: usize, at: u64| Duration::from_millis(offsets[candidate] + at);
        let mut lease: Option<Record> = None;
        let mut events: Vec<(u64, Event)> = Vec::new();
        let (mut now, mut most, mut version) = (0, 0, 0_u64);
        let mut steps = steps.iter().peekable();
        let mut next_step = steps.peek().map(|s| s.after);
        loop {
            events.sort_by_key(|(at, _)| *at);
            let event = events.first().map(|(at, _)| *at);
            let at = match (event, next_step) {
                (None, None) => return (most, version),
                (event, step) => event.unwrap_or(u64::MAX).min(step.unwrap_or(u64::MAX)),
            };
            now = at.max(now);
            if event == Some(at) {
                match events.remove(0).1 {
                    Event::Write { candidate, version: expected, holder, sent, answer } => {
                        if expected == lease.as_ref().map(|l| l.version.clone()) {
                            version += 1;
                            let record = Record { holder, version: version.to_string(), duration: DURATION };
                            lease = Some(record.clone());
                            if let (Some(answer), Some(_)) = (answer, &record.holder) {
                                events.push((now + answer, Event::Wrote { candidate, record, sent }));
                            }
                        }
                    }
                    Event::Wrote { candidate, record, sent } => {
                        candidates[candidate].wrote(record, local(candidate, sent));
                    }
                }
            } else if let Some(step) = steps.next() {
                let Step { candidate, request, answer, resigns, .. } = step.clone();
                let own = &mut candidates[candidate];
                let identity = Some(own.identity().to_owned());
                let write = if resigns {
                    own.resign(local(candidate, now)).map(|version| (Some(version), None))
                } else {
                    match own.read(lease.clone(), local(candidate, now)) {
                        Action::Wait => None,
                        Action::Create => Some((None, identity)),
                        Action::Take(version) | Action::Renew(version) => Some((Some(version), identity)),
                    }
                };
                if let (Some((version, holder)), Some(delay)) = (write, request) {
                    events
                        .push((now + delay, Event::Write { candidate, version, holder, sent: now, answer }));
                }
                next_step = steps.peek().map(|s| now + s.after);
            }
            let leading = (0..3).filter(|c| candidates[*c].leads_until(local(*c, now)).is_some()).count();
            most = most.max(leading);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn never_two_lead(
            steps in prop::collection::vec(step(), 1..120),
            offsets in prop::array::uniform3(0_u64..1_000_000_000),
        ) {
            prop_assert!(run(&steps, offsets).0 <= 1);
        }
    }

    #[test]
    fn the_simulation_is_not_idle() {
        let step =
            |candidate, after| Step { candidate, after, request: Some(1), answer: Some(1), resigns: false };
        // The first renews four times and is gone; the second takes over.
        let mut steps: Vec<_> = (0..5).map(|_| step(0, 2_000)).collect();
        steps.extend((0..12).map(|_| step(1, 2_000)));
        let (most, version) = run(&steps, [0, 77, 5]);
        assert_eq!(most, 1);
        assert!(version > 6, "{version}");
    }
}
