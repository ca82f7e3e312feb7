//! Sessions that outlive the process. Between the last packet of one program and the first of the next there is more time than
//! a peer would wait, so it is asked to be patient first, by a poll sequence as for any other interval; the successor, which
//! goes on with the same discriminators, takes that back the same way. Neither flaps.
use super::{
    Destination, Engine, Entry, Hops,
    packet::{LENGTH, Packet},
    session::{Handed, Session},
};
use crate::{Time, config::Bfd};
use std::{net::IpAddr, time::Duration};

/// So long a silence of ours a peer is to bear: for a program to start in.
const PATIENCE: Duration = Duration::from_secs(12);

/// A session that is Up, and what it is with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandedSession {
    /// Where it goes to.
    pub to: Destination,
    /// How often it failed.
    pub failures: u64,
    /// The session.
    pub session: Handed,
}

/// The parameters by which the peer is patient.
pub fn patient(config: Bfd) -> Bfd {
    let least = PATIENCE.as_millis().div_ceil(u128::from(config.multiplier.max(1)));
    let least = u32::try_from(least).unwrap_or(u32::MAX);
    Bfd { min_tx_millis: config.min_tx_millis.max(least), ..config }
}

impl HandedSession {
    /// Appends it, to be read by [`HandedSession::read`].
    pub fn write(&self, out: &mut Vec<u8>) {
        let Handed { config, age, ups, ours, theirs } = &self.session;
        let address = match self.to.address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        out.extend(address.octets());
        let hops = u32::from(self.to.hops == Hops::Multi);
        let multiplier = config.multiplier.into();
        for number in [self.to.scope, hops, config.min_tx_millis, config.min_rx_millis, multiplier] {
            out.extend(number.to_be_bytes());
        }
        for number in [self.failures, *ups, age.as_secs()] {
            out.extend(number.to_be_bytes());
        }
        out.extend(ours.encode());
        out.extend(theirs.encode());
    }

    /// Takes one from the front; none: this is not one.
    pub fn read(from: &mut &[u8]) -> Option<Self> {
        let address = IpAddr::from(take::<16>(from)?).to_canonical();
        let mut small = || take(from).map(u32::from_be_bytes);
        let (scope, hops, min_tx_millis, min_rx_millis) = (small()?, small()?, small()?, small()?);
        let multiplier = u8::try_from(small()?).ok().filter(|multiplier| *multiplier > 0)?;
        let mut large = || take(from).map(u64::from_be_bytes);
        let (failures, ups, age) = (large()?, large()?, Duration::from_secs(large()?));
        let mut packet = || Packet::parse(&take::<LENGTH>(from)?).ok();
        let (ours, theirs) = (packet()?, packet()?);
        let to = Destination { address, scope, hops: if hops == 1 { Hops::Multi } else { Hops::Single } };
        let config = Bfd { min_tx_millis, min_rx_millis, multiplier };
        Some(HandedSession { to, failures, session: Handed { config, age, ups, ours, theirs } })
    }
}

fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (octets, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(*octets)
}

impl Engine {
    /// Goes on with sessions of another one; what it has itself stays.
    pub fn resume(&mut self, handed: &[HandedSession], now: Time) {
        for HandedSession { to, failures, session } in handed {
            let discriminator = session.ours.my_discriminator;
            if self.sessions.contains_key(to) || self.by_discriminator.contains_key(&discriminator) {
                continue;
            }
            let session = Session::resume(session, now);
            self.by_discriminator.insert(discriminator, *to);
            self.sessions.insert(*to, Entry { session, failures: *failures, due: None, leaves: None });
            self.schedule(*to);
        }
    }

    /// The sessions that are Up, for a successor.
    pub fn handed(&self, now: Time) -> Vec<HandedSession> {
        let wanted = self.sessions.iter().filter(|(_, entry)| entry.leaves.is_none());
        let handed = wanted.filter_map(|(to, entry)| {
            let session = entry.session.handed(now)?;
            Some(HandedSession { to: *to, failures: entry.failures, session })
        });
        handed.collect()
    }

    /// Whether the peers of all sessions that are Up know the parameters that these have.
    pub fn is_settled(&self) -> bool {
        self.sessions.values().all(|entry| entry.session.is_settled())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_patient_whatever_the_multiplier() {
        let config = |min_tx_millis, multiplier| Bfd { min_tx_millis, min_rx_millis: 50, multiplier };
        assert_eq!(patient(config(50, 3)), config(4000, 3));
        assert_eq!(patient(config(50, 1)), config(12_000, 1));
        assert_eq!(patient(config(10, 255)), config(48, 255));
        assert_eq!(patient(config(60_000, 3)), config(60_000, 3));
    }
}
