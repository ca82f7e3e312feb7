//! Neighbours that come by themselves: they are known by the range of their addresses, are there while they have a
//! connection, and are never more than the range admits.
use super::{Output, Speaker};
use crate::{
    PeerId, Time,
    config::{ConfigError, PeerConfig, PeerRange},
    rib::Source,
    validate,
};
use std::net::{IpAddr, SocketAddr};

/// So many neighbours are there at most, whatever the ranges admit together: [`Source`] has 16 bits, and as
/// many as a configuration may name come on top.
const MOST_PEERS: usize = 50_000;

impl Speaker {
    /// Sets the ranges, the whole set. Neighbours whose range is gone, or whose session would be another one, are told
    /// so.
    ///
    /// # Errors
    /// [`ConfigError`]; nothing changes then.
    pub fn set_ranges(&mut self, ranges: Vec<PeerRange>, now: Time) -> Result<Vec<Output>, ConfigError> {
        self.check_ranges(&ranges)?;
        let mut outputs = Vec::new();
        self.ranges = ranges;
        for source in self.sources() {
            let Some((address, prefix)) =
                self.slot(source).and_then(|slot| Some((slot.peer.config.address, slot.range?)))
            else {
                continue;
            };
            match self.ranges.iter().find(|range| range.prefix == prefix) {
                Some(range) => self.change_peer(source, range.member(address), now, &mut outputs),
                None => self.remove_peer(source, now, &mut outputs),
            }
        }
        Ok(self.finish(outputs))
    }

    /// What [`set_ranges`](Speaker::set_ranges) would refuse.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn check_ranges(&self, ranges: &[PeerRange]) -> Result<(), ConfigError> {
        validate::ranges(ranges, self.global.as_ref())
    }

    /// The ranges.
    pub fn ranges(&self) -> &[PeerRange] {
        &self.ranges
    }

    /// The neighbours that were set and did not come by themselves.
    pub fn peer_configs(&self) -> impl Iterator<Item = &PeerConfig> {
        self.slots().filter(|(_, slot)| slot.range.is_none()).map(|(_, slot)| &slot.peer.config)
    }

    /// The range that admits a neighbour who is not there yet.
    pub(super) fn range(&self, address: IpAddr) -> Option<&PeerRange> {
        let fits = self.ranges.iter().filter(|range| range.prefix.contains(&address));
        let range = fits.max_by_key(|range| range.prefix.prefix_len())?;
        let members = self.slots().filter(|(_, slot)| slot.range == Some(range.prefix)).count();
        (members < usize::from(range.limit) && self.by_id.len() < MOST_PEERS).then_some(range)
    }

    /// The neighbour at this end, if it is there.
    pub(super) fn known(&self, remote: SocketAddr) -> Option<Source> {
        self.unnumbered(remote).or_else(|| self.by_id.get(&PeerId::of(remote)).copied())
    }

    /// The neighbour who dials from there; none: a stranger.
    pub(super) fn source_of(
        &mut self,
        remote: SocketAddr,
        now: Time,
        outputs: &mut Vec<Output>,
    ) -> Option<Source> {
        if let Some(source) = self.known(remote) {
            self.adopt(source, remote);
            return Some(source);
        }
        let address = remote.ip().to_canonical();
        let range = self.range(address).filter(|_| self.global.is_some())?;
        let (prefix, member) = (range.prefix, range.member(address));
        self.add_peer(member, now, outputs);
        let source = *self.by_id.get(&PeerId::Address(address))?;
        self.slot_mut(source)?.range = Some(prefix);
        Some(source)
    }

    /// A neighbour of a range that has no connection any more is forgotten, with the last of its routes.
    pub(super) fn let_go(&mut self, source: Source, outputs: &mut Vec<Output>) {
        if self
            .slot(source)
            .is_some_and(|slot| slot.range.is_some() && slot.peer.is_alone() && !slot.kept.is_needed())
        {
            self.forget_peer(source, outputs);
        }
    }
}
