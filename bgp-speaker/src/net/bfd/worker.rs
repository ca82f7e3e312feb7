//! The thread: gives the pure engine what happens, does what it says.
use super::{
    HandedPaths, Report, Reports,
    handover::HandedPath,
    socket::{Inlet, Receiver, Sender, inlet},
};
use crate::{
    PeerId, Time,
    bfd::{Destination, Engine, Hops, Output, Path, patient},
    config::Bfd,
    net::addresses,
    random::Random,
};
use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    future::{pending, poll_fn},
    net::IpAddr,
    task::Poll,
    time::Duration,
};
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

/// Datagrams that are taken from a socket in one go.
const BATCH: usize = 256;
/// Pause when there were more: whoever floods us does not get the whole processor.
const PACE: Duration = Duration::from_millis(1);

/// How long peers have to agree to wait for a successor: two polls, the second after the answer to the first has settled.
const AGREEMENT: Duration = Duration::from_millis(2500);

pub(super) struct Worker {
    engine: Engine,
    epoch: Instant,
    random: Random,
    wanted: BTreeMap<Destination, Wanted>,
    receivers: BTreeMap<Inlet, Receiver>,
    senders: BTreeMap<Destination, Sender>,
    /// Why nothing is sent or received, if it is so.
    errors: BTreeMap<Destination, String>,
    /// Failures of all paths.
    failures: u64,
    reports: watch::Sender<Reports>,
    changed: BTreeSet<Destination>,
}

/// What the driver says of a destination.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Wanted {
    peer: PeerId,
    local: Option<IpAddr>,
    config: Bfd,
    failure: u64,
}

/// Puts this thread before all that have no deadline: it does little, but that in time. Where it may not, the
/// scheduler's fairness has to do.
pub(super) fn hurry() {
    let result = ThreadPriorityValue::try_from(1_u8).map_err(|error| error.to_string()).and_then(|lowest| {
        let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
        set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Crossplatform(lowest), policy)
            .map_err(|error| format!("{error:?}"))
    });
    if let Err(error) = result {
        tracing::warn!(%error, "BFD runs without real-time priority: detection may be late on a busy machine");
    }
}

impl Worker {
    /// Within a runtime.
    pub(super) fn new(seed: u64, reports: watch::Sender<Reports>, handed: HandedPaths) -> Self {
        let now = Instant::now();
        let age = handed.age();
        let (mut receivers, mut senders) = (BTreeMap::new(), BTreeMap::new());
        for (inlet, socket) in handed.receivers {
            match Receiver::resume(socket, inlet.1) {
                Ok(receiver) => drop(receivers.insert(inlet, receiver)),
                // Another one is opened.
                Err(error) => tracing::warn!(%error, "BFD socket of the program before"),
            }
        }
        let mut sessions = Vec::new();
        for HandedPath { session, sender, .. } in handed.paths {
            senders.insert(session.to, Sender::from(sender));
            sessions.push(session);
        }
        // A session that is older than this process began in the time of this one, too.
        let epoch = now.checked_sub(age).unwrap_or(now);
        let mut engine = Engine::new(seed);
        engine.resume(&sessions, epoch.elapsed());
        Worker {
            engine,
            epoch,
            random: Random::new(!seed),
            wanted: BTreeMap::new(),
            receivers,
            senders,
            errors: BTreeMap::new(),
            failures: 0,
            reports,
            changed: BTreeSet::new(),
        }
    }

    /// Runs until nobody is left who wants something, or who does wants a successor: then that gets what is returned.
    pub(super) async fn run(mut self, mut wanted: watch::Receiver<super::Wanted>) -> HandedPaths {
        // When peers that have not said that they are patient are not waited for any more.
        let mut leaves: Option<Instant> = None;
        loop {
            let due = self.engine.next_deadline().map(|at| self.epoch + at);
            let wake = async {
                match due.into_iter().chain(leaves).min() {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = wake => (),
                () = readable(&self.receivers) => (),
                changed = wanted.changed() => {
                    let super::Wanted { mut paths, leaves: ends } = match changed {
                        Ok(()) => wanted.borrow_and_update().clone(),
                        Err(_) => break,
                    };
                    if ends {
                        paths.values_mut().for_each(|path| path.config = patient(path.config));
                        leaves.get_or_insert(Instant::now() + AGREEMENT);
                    }
                    self.set(&paths);
                }
            }
            // What came counts before the time that has passed: a peer that spoke in time is not to be lost because
            // this thread was late.
            let more = self.receive();
            let mut outputs = Vec::new();
            self.engine.tick(self.now(), &mut outputs);
            self.perform(outputs);
            self.report();
            if leaves.is_some_and(|until| self.engine.is_settled() || until <= Instant::now()) {
                return self.leave();
            }
            if more {
                sleep(PACE).await;
            }
        }
        self.set(&BTreeMap::new());
        HandedPaths::default()
    }

    fn leave(self) -> HandedPaths {
        if !self.engine.is_settled() {
            tracing::warn!("a peer has not agreed to wait for the successor: its BFD may fail");
        }
        let wanted = self.wanted;
        let peer = |to: &Destination| wanted.get(to).map(|wanted| wanted.peer);
        HandedPaths::of(&self.engine, self.epoch.elapsed(), self.receivers, self.senders, peer)
    }

    fn now(&self) -> Time {
        self.epoch.elapsed()
    }

    fn set(&mut self, paths: &BTreeMap<PeerId, Path>) {
        let before = std::mem::take(&mut self.wanted);
        for (&peer, path) in paths {
            let single = || path.hops.is_none() && addresses::on_link(path.address);
            let hops = path.hops.unwrap_or_else(|| if single() { Hops::Single } else { Hops::Multi });
            let to = Destination { address: path.address, scope: path.scope, hops };
            let failure = before.get(&to).map_or(0, |wanted| wanted.failure);
            // Another address of ours needs another socket.
            let fits = |sender: &Sender| {
                path.local.is_none_or(|local| sender.local().is_ok_and(|address| address == local))
            };
            if self.senders.get(&to).is_some_and(|sender| !fits(sender)) {
                self.senders.remove(&to);
            }
            self.wanted.insert(to, Wanted { peer, local: path.local, config: path.config, failure });
        }
        let configs = self.wanted.iter().map(|(to, wanted)| (*to, wanted.config)).collect();
        let outputs = self.engine.set(&configs, self.now());
        self.perform(outputs);
        self.changed.extend(before.into_keys());
    }

    /// Takes what has come; true: there may be more.
    fn receive(&mut self) -> bool {
        let mut more = false;
        let mut all = Vec::new();
        let (now, engine) = (self.now(), &mut self.engine);
        for receiver in self.receivers.values() {
            for left in (0..BATCH).rev() {
                let received = receiver.receive(|datagram| match engine.receive(datagram, now) {
                    Ok(mut outputs) => all.append(&mut outputs),
                    Err(reason) => {
                        tracing::debug!(from = %datagram.from.address, %reason, "BFD packet discarded")
                    }
                });
                match received {
                    Ok(true) => more |= left == 0,
                    Ok(false) => break,
                    Err(error) => {
                        tracing::debug!(%error, "BFD socket");
                        break;
                    }
                }
            }
        }
        self.perform(all);
        more
    }

    fn perform(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Send { to, bytes } => {
                    let error = self.send(to, &bytes).err().map(|error| error.to_string());
                    if self.errors.get(&to) != error.as_ref() {
                        match error {
                            Some(error) => self.errors.insert(to, error),
                            None => self.errors.remove(&to),
                        };
                        self.changed.insert(to);
                    }
                }
                Output::Changed(to) => {
                    self.changed.insert(to);
                }
                Output::Failed(to) => {
                    self.failures += 1;
                    if let Some(wanted) = self.wanted.get_mut(&to) {
                        wanted.failure = self.failures;
                    }
                    self.changed.insert(to);
                }
                Output::Gone(to) => {
                    self.senders.remove(&to);
                    self.errors.remove(&to);
                    self.changed.insert(to);
                    let used = self.senders.keys().any(|other| inlet(*other) == inlet(to));
                    if !used {
                        self.receivers.remove(&inlet(to));
                    }
                }
            }
        }
    }

    /// Opens what is missing and sends. What fails is tried again with the next packet.
    fn send(&mut self, to: Destination, bytes: &[u8]) -> std::io::Result<()> {
        if let Entry::Vacant(receiver) = self.receivers.entry(inlet(to)) {
            receiver.insert(Receiver::bind(inlet(to))?);
        }
        let mut sender = match self.senders.entry(to) {
            Entry::Occupied(sender) => sender,
            Entry::Vacant(sender) => {
                let local = self.wanted.get(&to).and_then(|wanted| wanted.local);
                sender.insert_entry(Sender::open(to, local, || self.random.draw())?)
            }
        };
        let result = sender.get_mut().send(bytes);
        if result.is_err() {
            // Its address may be gone.
            sender.remove();
        }
        result
    }

    /// Tells the driver what is another thing now.
    fn report(&mut self) {
        if self.changed.is_empty() {
            return;
        }
        let changed = std::mem::take(&mut self.changed);
        let now = self.now();
        let rows: Vec<(PeerId, Report)> = changed
            .iter()
            .filter_map(|to| {
                let wanted = self.wanted.get(to)?;
                let mut status = self.engine.status(*to, now)?;
                status.error = self.errors.get(to).cloned();
                let since = self.epoch + self.engine.since(*to)?;
                Some((wanted.peer, Report { status, since, failure: wanted.failure }))
            })
            .collect();
        let peers: BTreeSet<PeerId> = self.wanted.values().map(|wanted| wanted.peer).collect();
        self.reports.send_modify(|reports| {
            reports.retain(|peer, _| peers.contains(peer));
            reports.extend(rows);
        });
    }
}

/// Returns when a socket has something.
async fn readable(receivers: &BTreeMap<Inlet, Receiver>) {
    poll_fn(|context| {
        let ready = receivers.values().any(|receiver| receiver.socket().poll_recv_ready(context).is_ready());
        if ready { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}
