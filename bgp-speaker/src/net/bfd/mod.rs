//! BFD with its sockets, on a thread of its own: the driver of BGP may be busy, its sessions are not lost for that.
//!
//! ```text
//!  driver ── wanted paths ──> worker (Engine) <──> UDP
//!     ^                          │
//!     └──────── reports ─────────┘
//! ```
//! Both arrows hold the newest set only: nobody waits for the other, and nothing piles up.
mod handover;
mod socket;
mod worker;

pub(crate) use handover::HandedPaths;

use crate::{
    PeerId,
    bfd::{BfdStatus, Path},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io, mem, thread,
};
use tokio::{sync::watch, time::Instant};
use worker::Worker;

/// How a path is, by peer.
pub(super) type Reports = BTreeMap<PeerId, Report>;

/// How a path is.
#[derive(Clone, Debug)]
pub(super) struct Report {
    /// As of the last change; the seconds are counted by the reader.
    pub(super) status: BfdStatus,
    /// When the state changed last.
    pub(super) since: Instant,
    /// Number of its last failure among those of all paths; 0: there was none.
    pub(super) failure: u64,
}

impl Report {
    /// What an operator sees now.
    pub(super) fn status(&self) -> BfdStatus {
        BfdStatus { since_seconds: self.since.elapsed().as_secs(), ..self.status.clone() }
    }
}

/// What the thread is to do.
#[derive(Clone, Debug, Default)]
struct Wanted {
    paths: BTreeMap<PeerId, Path>,
    /// To end, for a successor.
    leaves: bool,
}

/// The running thread. When this is dropped it tells all peers that their sessions are turned off, and ends.
#[derive(Debug)]
pub(super) struct Bfd {
    wanted: watch::Sender<Wanted>,
    reports: watch::Receiver<Reports>,
    thread: Option<thread::JoinHandle<HandedPaths>>,
    /// Whose paths another program has watched, and nobody has asked for since.
    inherited: BTreeSet<PeerId>,
}

impl Bfd {
    /// Starts the thread, which goes on with these; `seed` makes discriminators, ports and jitter.
    pub(super) fn start(seed: u64, handed: HandedPaths) -> io::Result<Self> {
        let inherited = handed.peers().collect();
        let (wanted, mut paths) = watch::channel(Wanted { paths: handed.wanted(), leaves: false });
        paths.mark_changed();
        let (reporter, reports) = watch::channel(Reports::new());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let run = move || {
            worker::hurry();
            runtime.block_on(async { Worker::new(seed, reporter, handed).run(paths).await })
        };
        let thread = thread::Builder::new().name("bfd".to_owned()).spawn(run)?;
        Ok(Bfd { wanted, reports, thread: Some(thread), inherited })
    }

    /// Watches the path to a peer; none: no more.
    pub(super) fn watch(&mut self, peer: PeerId, path: Option<Path>) {
        self.inherited.remove(&peer);
        self.wanted.send_modify(|Wanted { paths, .. }| {
            match path {
                Some(path) => paths.insert(peer, path),
                None => paths.remove(&peer),
            };
        });
    }

    /// Watches no path of another program that nobody has asked for.
    pub(super) fn forget_inherited(&mut self) {
        for peer in mem::take(&mut self.inherited) {
            self.watch(peer, None);
        }
    }

    /// Ends when the peers are patient enough for a successor, or do not say so in time: [`Self::reports`] closes then.
    pub(super) fn leave(&self) {
        self.wanted.send_modify(|wanted| wanted.leaves = true);
    }

    /// Whether the thread has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.reports.has_changed().is_err()
    }

    /// What is left after [`Self::leave`].
    pub(super) fn into_handed(mut self) -> HandedPaths {
        self.join()
    }

    fn join(&mut self) -> HandedPaths {
        let Some(Ok(handed)) = self.thread.take().map(thread::JoinHandle::join) else {
            tracing::error!("the thread of BFD has panicked");
            return HandedPaths::default();
        };
        handed
    }

    /// How the paths are, and when that changes.
    pub(super) fn reports(&self) -> &watch::Receiver<Reports> {
        &self.reports
    }

    pub(super) fn reports_mut(&mut self) -> &mut watch::Receiver<Reports> {
        &mut self.reports
    }
}

impl Drop for Bfd {
    fn drop(&mut self) {
        // The end of the wanted set is the sign to go; what is left to do is a datagram for each session.
        self.wanted = watch::channel(Wanted::default()).0;
        if self.thread.is_some() {
            self.join();
        }
    }
}
