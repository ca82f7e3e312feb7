//! BFD with its sockets, on a thread of its own: the driver of BGP may be busy, its sessions are not lost for that.
//!
//! ```text
//!  driver ── wanted paths ──> worker (Engine) <──> UDP
//!     ^                          │
//!     └──────── reports ─────────┘
//! ```
//! Both arrows hold the newest set only: nobody waits for the other, and nothing piles up.
mod socket;
mod worker;

use crate::{
    PeerId,
    bfd::{BfdStatus, Path},
};
use std::{collections::BTreeMap, io, thread};
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

/// The running thread. When this is dropped it tells all peers that their sessions are turned off, and ends.
#[derive(Debug)]
pub(super) struct Bfd {
    wanted: watch::Sender<BTreeMap<PeerId, Path>>,
    reports: watch::Receiver<Reports>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Bfd {
    /// Starts the thread; `seed` makes discriminators, ports and jitter.
    pub(super) fn start(seed: u64) -> io::Result<Self> {
        let (wanted, paths) = watch::channel(BTreeMap::new());
        let (reporter, reports) = watch::channel(Reports::new());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let run = move || {
            worker::hurry();
            runtime.block_on(Worker::new(seed, reporter).run(paths));
        };
        let thread = thread::Builder::new().name("bfd".to_owned()).spawn(run)?;
        Ok(Bfd { wanted, reports, thread: Some(thread) })
    }

    /// Watches the path to a peer; none: no more.
    pub(super) fn watch(&self, peer: PeerId, path: Option<Path>) {
        self.wanted.send_modify(|wanted| {
            match path {
                Some(path) => wanted.insert(peer, path),
                None => wanted.remove(&peer),
            };
        });
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
        self.wanted = watch::channel(BTreeMap::new()).0;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of BFD has panicked");
        }
    }
}
