//! Stations of BMP: who they are, what they get, and their end.
use super::{BATCH, Driver, Station};
use crate::{
    config::{BmpStation, ConfigError},
    net::station::{self, StationEvent},
};
use std::{
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

impl Driver {
    pub(super) fn set_stations(&mut self, stations: Vec<BmpStation>) -> Result<(), ConfigError> {
        let outputs = self.speaker.set_stations(&stations)?;
        let gone: Vec<SocketAddr> = (self.stations.iter())
            .filter(|(_, known)| !stations.contains(&known.config))
            .map(|(address, _)| *address)
            .collect();
        for address in gone {
            self.end_station(address);
        }
        self.perform(outputs);
        for config in stations {
            let events = self.sender.clone();
            self.stations.entry(config.station).or_insert_with(|| {
                let task = self.tasks.spawn(station::run(config.station, events));
                Station { config, task, batches: None, writing: false }
            });
        }
        Ok(())
    }

    pub(super) fn station(&mut self, address: SocketAddr, event: StationEvent) {
        let now = self.now();
        let Some(station) = self.stations.get_mut(&address) else { return };
        match event {
            StationEvent::Up(batches) => {
                (station.batches, station.writing) = (Some(batches), false);
                let outputs = self.speaker.monitor(address, now);
                self.perform(outputs);
            }
            StationEvent::Written => {
                station.writing = false;
                self.report(address);
            }
            StationEvent::Down => {
                station.batches = None;
                self.speaker.unmonitor(address);
            }
        }
    }

    /// Gives a station its next batch, unless it has one in hand.
    pub(super) fn report(&mut self, address: SocketAddr) {
        let (epoch, now) = (self.epoch_since_1970(), self.now());
        let Some(Station { batches: Some(batches), writing, .. }) = self.stations.get_mut(&address) else {
            return;
        };
        if *writing {
            return;
        }
        let mut batch = Vec::new();
        self.speaker.report(address, BATCH, epoch, now, &mut batch);
        if !batch.is_empty() {
            // The task may have ended its connection: then an event says so.
            *writing = batches.try_send(batch).is_ok();
        }
    }

    /// A clock that is set meanwhile counts from now on.
    fn epoch_since_1970(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(self.now())
    }

    /// All stations are told that this is all.
    pub(super) fn end_stations(&mut self) {
        for address in self.stations.keys().copied().collect::<Vec<_>>() {
            self.end_station(address);
        }
    }

    /// The station is told that this is all.
    fn end_station(&mut self, address: SocketAddr) {
        let Some(station) = self.stations.remove(&address) else { return };
        let last = self.speaker.last_report(address, self.epoch_since_1970(), self.now());
        // A station that has not taken the batch before would not take this one either.
        match station.batches {
            Some(batches) if batches.try_send(last).is_ok() => {}
            _ => station.task.abort(),
        }
    }
}
