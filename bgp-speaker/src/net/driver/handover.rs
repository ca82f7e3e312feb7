//! The end of a driver that has a successor.
use super::{Connection, Driver, Event};
use crate::net::{connection::Order, handover::HandOver};
use std::{collections::BTreeMap, mem, os::fd::AsFd, time::Duration};
use tokio::time::{Instant, sleep_until};

/// How long connections have to give back their sockets; those that do not end.
const DETACH_TIMEOUT: Duration = Duration::from_secs(2);

impl Driver {
    /// Takes the connections back from their tasks. What comes meanwhile still counts; what is to be written waits in the
    /// speaker.
    pub(super) async fn hand_over(&mut self) -> HandOver {
        self.detached = Some(BTreeMap::new());
        // Who is not up need not be kept.
        self.held.clear();
        for connection in self.connections.values() {
            match connection {
                Connection::Dialling(task) => task.abort(),
                Connection::Open { orders, .. } => {
                    let _: Result<_, _> = orders.try_send(Order::Detach);
                }
            }
        }
        let deadline = Instant::now() + DETACH_TIMEOUT;
        let is_open = |connection: &Connection| matches!(connection, Connection::Open { .. });
        while self.connections.values().any(is_open) {
            tokio::select! {
                Some(event) = self.events.recv() => match event {
                    Event::Accepted(_) => (),
                    event => self.event(event),
                },
                () = sleep_until(deadline) => break,
            }
        }
        let mut handed = HandOver { keys: self.keys.keys().copied().collect(), ..HandOver::default() };
        for (address, listener) in mem::take(&mut self.listeners) {
            match listener.socket.as_fd().try_clone_to_owned() {
                Ok(socket) => handed.listeners.push((address, socket)),
                Err(error) => tracing::warn!(%address, %error, "listener not handed over"),
            }
        }
        let mut detached = self.detached.take().unwrap_or_default();
        for (id, mut session) in self.speaker.hand_over(self.now()) {
            if let Some((stream, mut unsent)) = detached.remove(&id) {
                unsent.append(&mut session.unsent);
                session.unsent = unsent;
                handed.sessions.push((stream.into(), session));
            }
        }
        for station in self.stations.keys().copied().collect::<Vec<_>>() {
            self.end_station(station);
        }
        self.bfd = None;
        handed
    }
}
