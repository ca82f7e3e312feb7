//! Unnumbered peers: whoever is at the other end of an interface. The driver says what is there ([`Input::Link`]): the
//! interface comes and goes, and a router on the link says its link-local address. From then on the peer is as any other
//! with that address on that link. While a session is up no other address takes its place.
//!
//! [`Input::Link`]: super::Input::Link
use super::{Output, Speaker};
use crate::{InterfaceName, PeerId, Time, config::PeerConfig, rib::Source, wire::Reason};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
};

/// An interface that is there and up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Link-local address of the router that was heard last on it; none: none was.
    pub neighbour: Option<Ipv6Addr>,
}

impl Speaker {
    /// The interfaces of unnumbered peers: the driver is to watch these.
    pub fn interfaces(&self) -> BTreeSet<InterfaceName> {
        self.slots().filter_map(|(_, slot)| slot.peer.config.interface).collect()
    }

    pub(super) fn link_changed(
        &mut self,
        interface: InterfaceName,
        link: Option<Link>,
        now: Time,
        outputs: &mut Vec<Output>,
    ) {
        let Some(&source) = self.by_id.get(&PeerId::Interface(interface)) else { return };
        let before = match link {
            Some(link) => self.links.insert(interface, link),
            None => self.links.remove(&interface),
        };
        if before.is_some_and(|before| link.is_none_or(|link| link.index != before.index)) {
            self.meet(source, Ipv6Addr::UNSPECIFIED, now, outputs);
        }
        self.follow_link(source, now, outputs);
    }

    /// Turns to the router that was heard on the link, unless a session is up.
    pub(super) fn follow_link(&mut self, source: Source, now: Time, outputs: &mut Vec<Output>) {
        let Some(neighbour) = self.link(source).and_then(|link| link.neighbour) else { return };
        let Some(slot) = self.slot(source) else { return };
        if slot.peer.config.address != neighbour && slot.peer.session().is_none() {
            self.meet(source, neighbour, now, outputs);
        }
    }

    /// The peer has another address; `::`: it is gone.
    fn meet(&mut self, source: Source, address: Ipv6Addr, now: Time, outputs: &mut Vec<Output>) {
        let Some(slot) = self.slot_mut(source) else { return };
        slot.peer.config.address = address.into();
        self.with_peer(source, now, outputs, |peer, tools| {
            peer.lose("the interface is gone", tools);
            peer.stop(&Reason::OTHER_CONFIGURATION_CHANGE.into(), tools);
            peer.start(tools);
        });
        self.watch(source, outputs);
    }

    /// The configuration of an unnumbered peer with the address that is known.
    pub(super) fn with_known_address(&self, config: PeerConfig) -> PeerConfig {
        let Some(interface) = config.interface else { return config };
        let known = self.by_id.get(&config.id()).and_then(|source| self.slot(*source));
        let heard = || self.links.get(&interface).and_then(|link| link.neighbour).map(IpAddr::V6);
        let address = known.map(|slot| slot.peer.config.address).or_else(heard);
        PeerConfig { address: address.unwrap_or(config.address), ..config }
    }

    /// The interface of an unnumbered peer.
    pub(super) fn link(&self, source: Source) -> Option<Link> {
        self.links.get(&self.slot(source)?.peer.config.interface?).copied()
    }

    /// Where a peer is dialled.
    pub(super) fn remote(&self, config: &PeerConfig) -> SocketAddr {
        let scope =
            config.interface.and_then(|interface| self.links.get(&interface)).map_or(0, |link| link.index);
        match config.address {
            IpAddr::V4(address) => SocketAddr::from((address, config.port)),
            IpAddr::V6(address) => SocketAddrV6::new(address, config.port, 0, scope).into(),
        }
    }

    /// The unnumbered peer at this end: of the link, and with its address or before that is known.
    pub(super) fn unnumbered(&self, remote: SocketAddr) -> Option<Source> {
        let SocketAddr::V6(end) = remote else { return None };
        if !end.ip().is_unicast_link_local() {
            return None;
        }
        let (interface, _) = self.links.iter().find(|(_, link)| link.index == end.scope_id())?;
        let source = *self.by_id.get(&PeerId::Interface(*interface))?;
        let address = self.slot(source)?.peer.config.address;
        (address == IpAddr::V6(*end.ip()) || address.is_unspecified()).then_some(source)
    }

    /// A peer that dials has the address from which it does, if it was not heard before.
    pub(super) fn adopt(&mut self, source: Source, remote: SocketAddr) {
        if let Some(slot) = self.slot_mut(source)
            && slot.peer.config.address.is_unspecified()
        {
            slot.peer.config.address = remote.ip();
        }
    }
}
