//! The thread: brings what is wanted and what the kernel holds together, again whenever something else changes there.
use super::{
    Order,
    netlink::{Monitor, Routes},
};
use crate::{
    fib::{Fib, Operation},
    net::driver::Event,
    speaker::Installation,
};
use std::{future::pending, io, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

/// The kernel is read again after so long at the latest: somebody may have removed a route of ours.
const PASS: Duration = Duration::from_secs(60);
/// Changes of links, addresses and routes of others come in bursts: they are looked at so long after the first one.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Between two passes is at least so many times the time that the last one took.
const SHARE: u32 = 10;
/// What failed is tried again after this, then after twice as long, up to [`PASS`].
const RETRY: Duration = Duration::from_secs(1);
/// Routes of a life before go so long after all should have been told again: some routers say End-of-RIB too early.
const SETTLE: Duration = Duration::from_secs(10);
/// Failures of a batch that are logged one by one.
const LOGGED: usize = 10;

pub(super) struct Worker {
    fib: Fib,
    routes: Option<Routes>,
    monitor: Option<Monitor>,
    /// When the kernel is read next.
    pass: Instant,
    /// Not before this.
    rested: Instant,
    retry: Duration,
    /// When routes of a life before go.
    settle: Option<Instant>,
}

impl Worker {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        let monitor = Monitor::open().inspect_err(|error| {
            tracing::warn!(%error, "changes of links and routes are seen late");
        });
        Worker {
            fib: Fib::new(),
            routes: None,
            monitor: monitor.ok(),
            pass: now,
            rested: now,
            retry: RETRY,
            settle: None,
        }
    }

    /// Runs until the driver leaves, or is gone.
    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<Order>, events: mpsc::Sender<Event>) {
        self.read();
        loop {
            let due = self.settle.into_iter().chain([self.pass]).min().unwrap_or(self.pass);
            let changed = async {
                match &mut self.monitor {
                    Some(monitor) => monitor.changed().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Order::Install(installation)) => {
                        self.install(installation);
                        // The driver may have ended.
                        let _: Result<_, _> = events.send(Event::Installed).await;
                    }
                    Some(Order::Leave(last)) => {
                        let all = last.settled;
                        self.install(last);
                        if all {
                            self.fib.settle();
                            self.read();
                        }
                        return;
                    }
                    None => return,
                },
                result = changed => {
                    if let Err(error) = result {
                        tracing::warn!(%error, "changes of links and routes are seen late");
                        self.monitor = None;
                    }
                    self.pass = self.pass.min(self.rested.max(Instant::now() + DEBOUNCE));
                }
                () = sleep_until(due) => {
                    if self.settle.is_some_and(|at| at <= Instant::now()) {
                        self.settle = None;
                        self.fib.settle();
                    }
                    self.read();
                }
            }
        }
    }

    fn install(&mut self, installation: Installation) {
        let Installation { changes, settled } = installation;
        let operations = self.fib.want(changes);
        self.perform(operations);
        if settled {
            self.settle = Some(Instant::now() + SETTLE);
        }
    }

    /// Reads what the kernel holds, and does what is missing.
    fn read(&mut self) {
        let start = Instant::now();
        self.pass = start + PASS;
        match self.with_routes(Routes::read) {
            Ok(snapshot) => {
                let operations = self.fib.read(snapshot);
                self.perform(operations);
            }
            Err(error) => {
                tracing::warn!(%error, "the kernel's routes cannot be read");
                self.try_again();
            }
        }
        self.rested = Instant::now() + start.elapsed() * SHARE;
    }

    fn perform(&mut self, operations: Vec<Operation>) {
        if operations.is_empty() {
            if !self.fib.has_failed() {
                self.retry = RETRY;
            }
            return;
        }
        let start = Instant::now();
        let results = match self.with_routes(|routes| routes.perform(&operations)) {
            Ok(results) => results,
            Err(error) => {
                // What was done shows when the kernel is read.
                tracing::warn!(%error, "routes not installed");
                return self.try_again();
            }
        };
        let count = operations.len();
        let news: Vec<_> = operations
            .into_iter()
            .zip(results)
            .filter_map(|(operation, result)| self.fib.done(operation, result.err().map(|e| e.to_string())))
            .collect();
        for (prefix, reason) in news.iter().take(LOGGED) {
            tracing::warn!(%prefix, reason, "route not installed");
        }
        if news.len() > LOGGED {
            tracing::warn!(count = news.len() - LOGGED, "more routes not installed");
        }
        tracing::debug!(count, held = self.fib.held(), elapsed = ?start.elapsed(), "routes changed");
        if self.fib.has_failed() {
            self.try_again();
        } else {
            self.retry = RETRY;
        }
    }

    fn try_again(&mut self) {
        self.pass = self.pass.min(Instant::now() + self.retry);
        self.retry = (self.retry * 2).min(PASS);
    }

    /// A socket that failed is another one the next time.
    fn with_routes<T>(&mut self, act: impl FnOnce(&mut Routes) -> io::Result<T>) -> io::Result<T> {
        let mut routes = match self.routes.take() {
            Some(routes) => routes,
            None => Routes::open()?,
        };
        let result = act(&mut routes)?;
        self.routes = Some(routes);
        Ok(result)
    }
}
