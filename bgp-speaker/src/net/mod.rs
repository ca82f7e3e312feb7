//! The speaker with its sockets. One task, the driver, owns the pure [`Speaker`](crate::speaker::Speaker) and
//! tells it what happens; each TCP connection has a task of its own that only moves bytes. [`Handle`] is how the
//! rest of a program talks to the driver.
//!
//! ```text
//!  Handle ── commands ──> driver (Speaker) ── orders ──> connection ──> TCP
//!  listener, dialing ── events ──┘ │ └────────── events ─────┘
//!   stations (BMP), bfd, fib <┘ (these two are threads of their own)
//! ```
//! Memory is bounded at each arrow: a connection has one batch of messages in hand and asks for the next when the
//! kernel has taken it (a peer that does not read gets none, and delays nobody), and hands over what it read
//! before it reads on.
mod addresses;
mod bfd;
mod connection;
mod discovery;
mod driver;
mod fib;
mod handover;
mod options;
mod socket;
mod station;
mod succession;

pub use handover::HandOver;
pub use succession::Succession;

use crate::{
    config::{BmpStation, ConfigError, Global, PeerConfig, PeerRange, PeerStatus, Route, RouteStatus},
    speaker::Speaker,
};
use driver::Driver;
use ipnet::IpNet;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

/// So many prefixes are in a page of routes: milliseconds of work.
const PAGE: usize = 1000;
/// Longest time that [`Handle::flushed`] waits.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// A running speaker. When the last handle is gone the speaker shuts down.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    changes: watch::Receiver<u64>,
}

/// The routes by prefix, some at a time, so that the speaker sees to its sessions in between.
#[derive(Debug)]
pub struct RoutePages {
    speaker: Handle,
    prefixes: std::vec::IntoIter<IpNet>,
}

impl RoutePages {
    /// The next routes (none of them, if their prefixes are gone); none: these were all.
    pub async fn next(&mut self) -> Option<Vec<RouteStatus>> {
        let page: Vec<IpNet> = self.prefixes.by_ref().take(PAGE).collect();
        if page.is_empty() {
            return None;
        }
        self.speaker.ask(|answer| Command::Routes(page, answer)).await
    }
}

/// What a [`Handle`] asks of the driver.
enum Command {
    SetGlobal(Global, oneshot::Sender<Result<(), ConfigError>>),
    SetPeers(Vec<PeerConfig>, oneshot::Sender<Result<(), ConfigError>>),
    SetRanges(Vec<PeerRange>, oneshot::Sender<Result<(), ConfigError>>),
    SetRoutes(Arc<Vec<Route>>, oneshot::Sender<Result<(), ConfigError>>),
    SetStations(Vec<BmpStation>, oneshot::Sender<Result<(), ConfigError>>),
    RoutesComplete(oneshot::Sender<()>),
    Flushed(oneshot::Sender<()>),
    Peers(oneshot::Sender<Vec<PeerStatus>>),
    Prefixes(oneshot::Sender<Vec<IpNet>>),
    Routes(Vec<IpNet>, oneshot::Sender<Vec<RouteStatus>>),
    HandOver(oneshot::Sender<HandOver>),
    Shutdown(oneshot::Sender<()>),
}

/// Starts a speaker, on the tokio runtime of the caller. It is idle until [`Handle::set_global`].
pub fn spawn() -> Handle {
    spawn_with(|speaker| speaker, None)
}

/// The same in the place of one that ran before, whose routes are still forwarded: peers that keep routes over a restart
/// (RFC 4724) are told so. They go on to keep what [`Handle::set_routes`] does not name until
/// [`Handle::routes_complete`].
pub fn spawn_restarted() -> Handle {
    spawn_with(Speaker::restarted, None)
}

/// The same in the place of one that has handed its sessions over ([`Handle::hand_over`]). It goes on with them when it
/// knows who it is, whom it talks to, and all that it announces: [`Handle::set_global`], [`Handle::set_peers`] and
/// [`Handle::set_routes`] have been called, in any order (ranges that have neighbours before the last of them). Until
/// then nothing but KEEPALIVEs is said, for a minute at most: then the connections are closed without a word, and peers
/// that keep routes over a restart do that. Peers whose configuration needs another session get one.
pub fn spawn_successor(handed: HandOver) -> Handle {
    spawn_with(|speaker| speaker, Some(handed))
}

fn spawn_with(start: impl FnOnce(Speaker) -> Speaker, inherited: Option<HandOver>) -> Handle {
    let (commands, receiver) = mpsc::channel(16);
    let (changed, changes) = watch::channel(0);
    tokio::spawn(Driver::new(changed, start, inherited).run(receiver));
    Handle { commands, changes }
}

impl Handle {
    /// Says who the speaker is, and where it listens.
    ///
    /// # Errors
    /// A field that makes no sense, or an address that cannot be listened on; nothing changes then.
    pub async fn set_global(&self, global: Global) -> Result<(), ConfigError> {
        self.ask(|answer| Command::SetGlobal(global, answer)).await.unwrap_or_else(shut_down)
    }

    /// Sets the neighbours, the whole set.
    ///
    /// # Errors
    /// A field that makes no sense; nothing changes then.
    pub async fn set_peers(&self, peers: Vec<PeerConfig>) -> Result<(), ConfigError> {
        self.ask(|answer| Command::SetPeers(peers, answer)).await.unwrap_or_else(shut_down)
    }

    /// Sets the neighbours that come by themselves, the whole set of ranges.
    ///
    /// # Errors
    /// A field that makes no sense; nothing changes then.
    pub async fn set_ranges(&self, ranges: Vec<PeerRange>) -> Result<(), ConfigError> {
        self.ask(|answer| Command::SetRanges(ranges, answer)).await.unwrap_or_else(shut_down)
    }

    /// Sets the routes to announce, the whole set. What did not change is not sent again, and the very same set as the last
    /// time is not even looked at.
    ///
    /// # Errors
    /// A field that makes no sense; nothing changes then.
    pub async fn set_routes(&self, routes: impl Into<Arc<Vec<Route>>>) -> Result<(), ConfigError> {
        let routes = routes.into();
        self.ask(|answer| Command::SetRoutes(routes, answer)).await.unwrap_or_else(shut_down)
    }

    /// Sets the stations that are told what peers tell (BMP, RFC 7854), the whole set. Each is dialled until it answers,
    /// and hears all from the beginning then. While there are any, routes that the import policy refuses are kept.
    ///
    /// # Errors
    /// A field that makes no sense; nothing changes then.
    pub async fn set_stations(&self, stations: Vec<BmpStation>) -> Result<(), ConfigError> {
        self.ask(|answer| Command::SetStations(stations, answer)).await.unwrap_or_else(shut_down)
    }

    /// After [`spawn_restarted`]: all routes that there are to announce have been set. Peers may forget what was not
    /// announced again. Without this they may after two minutes.
    pub async fn routes_complete(&self) {
        self.ask(Command::RoutesComplete).await;
    }

    /// Returns when the kernel has taken the UPDATEs of the last [`set_routes`](Handle::set_routes) for every
    /// established peer, or after a second.
    pub async fn flushed(&self) {
        // Too late is an answer as well: a peer that does not read must not stop what waits here.
        let _: Result<_, _> = timeout(FLUSH_TIMEOUT, self.ask(Command::Flushed)).await;
    }

    /// All peers, by address.
    pub async fn peers(&self) -> Vec<PeerStatus> {
        self.ask(Command::Peers).await.unwrap_or_default()
    }

    /// All routes: what peers told, what is best, what peers were told.
    pub async fn routes(&self) -> Vec<RouteStatus> {
        let (mut all, mut pages) = (Vec::new(), self.route_pages().await);
        while let Some(mut page) = pages.next().await {
            all.append(&mut page);
        }
        all
    }

    /// The same in pieces, for a table that is not to be in memory twice. Each prefix is shown as it is when its page
    /// is asked for.
    pub async fn route_pages(&self) -> RoutePages {
        let mut prefixes = self.ask(Command::Prefixes).await.unwrap_or_default();
        prefixes.sort_unstable();
        RoutePages { speaker: self.clone(), prefixes: prefixes.into_iter() }
    }

    /// A number that grows with every change of a session's state.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Stops, and gives away its listeners and the sessions that are up, with all that a successor needs to go on with
    /// them unnoticed. Other connections are closed, BFD sessions are taken down by their operator (RFC 5882 section 3.2);
    /// none: it has shut down.
    pub async fn hand_over(&self) -> Option<HandOver> {
        self.ask(Command::HandOver).await
    }

    /// Ends all sessions and closes all sockets; returns when that is done. Peers that keep routes over a restart (RFC
    /// 4724) see the connection close and keep ours, the others get Cease/Administrative Shutdown.
    pub async fn shutdown(&self) {
        self.ask(Command::Shutdown).await;
    }

    /// The answer of the driver; none if it has shut down.
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (answer, receiver) = oneshot::channel();
        self.commands.send(command(answer)).await.ok()?;
        receiver.await.ok()
    }
}

/// Nothing can be set after [`Handle::shutdown`].
fn shut_down() -> Result<(), ConfigError> {
    Err(ConfigError::new("speaker", "state", "has been shut down"))
}
