//! Routes in the kernel, on a thread of its own: the kernel takes its time, and BGP does not wait for it.
//!
//! ```text
//!  driver ── a batch of changes ──> worker (crate::fib::Fib) <── netlink ──> kernel
//!     ^                               │
//!     └────────── it is done ─────────┘
//! ```
//! There is one batch in hand; what changes meanwhile waits in the speaker, each prefix once.
mod netlink;
mod worker;

use super::driver::Event;
use crate::speaker::Installation;
use std::{io, thread};
use tokio::sync::mpsc;
use worker::Worker;

/// Changes in a batch, about: some 10 ms of the kernel's time.
pub(super) const BATCH: usize = 4096;

/// What the thread is to do.
#[derive(Debug)]
enum Order {
    /// Install these, and say so.
    Install(Installation),
    /// These are the last ones.
    Leave(Installation),
}

/// The running thread. Without [`leave`](Fib::leave) the kernel keeps all routes.
#[derive(Debug)]
pub(super) struct Fib {
    orders: mpsc::Sender<Order>,
    busy: bool,
}

impl Fib {
    /// Starts the thread, in the network namespace of the calling one; it tells [`Event::Installed`].
    pub(super) fn start(events: mpsc::Sender<Event>) -> io::Result<Self> {
        // One batch in hand, and the last one.
        let (orders, receiver) = mpsc::channel(2);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let run = move || runtime.block_on(async { Worker::new().run(receiver, events).await });
        thread::Builder::new().name("fib".to_owned()).spawn(run)?;
        Ok(Fib { orders, busy: false })
    }

    /// Whether a batch is in hand.
    pub(super) fn is_busy(&self) -> bool {
        self.busy
    }

    /// Takes a batch in hand; not while there is one.
    pub(super) fn install(&mut self, installation: Installation) {
        self.busy = self.orders.try_send(Order::Install(installation)).is_ok();
    }

    /// The batch is done.
    pub(super) fn installed(&mut self) {
        self.busy = false;
    }

    /// Does the last changes, and ends. What was installed stays.
    pub(super) async fn leave(self, last: Installation) {
        if self.orders.send(Order::Leave(last)).await.is_ok() {
            self.orders.closed().await;
        }
    }
}
