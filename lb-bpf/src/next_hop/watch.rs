//! Follows the kernel's multicast groups: which neighbours and links there are, and which of the watched addresses a
//! change concerns. Messages about anything else are dropped where they arrive, so nothing piles up.
use super::{covers, ip};
use crate::{interfaces::Interfaces, lock::lock};
use futures::{StreamExt, TryStreamExt, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        link::{InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, VlanProtocol},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::{RouteAttribute, RouteMessage},
    },
    sys::SocketAddr,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
};
use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{Duration, Instant, timeout_at},
};

/// Changes come in bursts: this long after the first one they are told at once.
const DEBOUNCE: Duration = Duration::from_millis(10);

/// Interface and address of a neighbour.
pub(super) type NeighbourKey = (u32, IpAddr);

/// What is known of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Neighbour {
    /// Nothing yet.
    Unknown,
    /// It did not answer.
    Failed,
    /// It is here.
    At([u8; 6]),
    /// It is here because somebody wrote so (NUD_PERMANENT, NUD_NOARP). Not to be asked for: that would take the
    /// permanence away.
    Fixed([u8; 6]),
}

/// What matters of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) mac: [u8; 6],
    pub(super) mtu: u32,
    /// Of a VLAN (IEEE 802.1Q): the interface below it, and its id.
    pub(super) lower: Option<(u32, u16)>,
    /// Administratively up, and with a carrier. The kernel does not say which IPv4 routes it drops when an interface
    /// goes down, so this tells.
    up: (bool, bool),
}

#[derive(Default)]
struct Known {
    /// The watched addresses, and the neighbours on the way there.
    gateways: BTreeMap<IpAddr, Option<NeighbourKey>>,
    /// The same neighbours, each once.
    wanted: BTreeSet<NeighbourKey>,
    /// Watched addresses whose route may have changed.
    stale: BTreeSet<IpAddr>,
    neighbours: BTreeMap<NeighbourKey, Neighbour>,
    links: BTreeMap<u32, Link>,
    interfaces: Interfaces,
    /// Of those that come and go, by index, what has come: the name.
    come: BTreeMap<u32, String>,
}

/// The view of the kernel, kept up to date by a task of its own.
pub(super) struct Watch {
    known: Arc<Mutex<Known>>,
    changed: Arc<Notify>,
    tasks: [AbortHandle; 2],
}

impl Watch {
    pub(super) fn open(interfaces: Interfaces) -> io::Result<Self> {
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ])?;
        let (known, changed) = (Known { interfaces, ..Known::default() }, Arc::<Notify>::default());
        let known = Arc::new(Mutex::new(known));
        let connection = tokio::spawn(connection).abort_handle();
        let reader = tokio::spawn(read(messages, known.clone(), changed.clone())).abort_handle();
        Ok(Watch { known, changed, tasks: [connection, reader] })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    /// The addresses whose route has to be asked for again.
    pub(super) fn take_stale(&self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.known().stale)
    }

    /// Watches these addresses, each with the neighbour on the way there, and no others; returns the neighbours.
    pub(super) fn follow(
        &self,
        gateways: impl Iterator<Item = (IpAddr, Option<NeighbourKey>)> + Clone,
    ) -> BTreeSet<NeighbourKey> {
        let mut known = self.known();
        let followed = known.gateways.iter().map(|(address, neighbour)| (*address, *neighbour));
        if !followed.eq(gateways.clone()) {
            known.gateways = gateways.collect();
            known.wanted = known.gateways.values().flatten().copied().collect();
        }
        known.wanted.clone()
    }

    pub(super) fn neighbour(&self, key: &NeighbourKey) -> Neighbour {
        self.view().neighbour(key)
    }

    /// What is known at a moment; nothing more comes to be known meanwhile.
    pub(super) fn view(&self) -> View<'_> {
        View(self.known())
    }

    /// Reads all neighbours and links as they are now.
    pub(super) async fn read_all(&self, handle: &Handle) -> Result<(), rtnetlink::Error> {
        let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
        let neighbours: Vec<NeighbourMessage> = handle.neighbours().get().execute().try_collect().await?;
        let mut known = self.known();
        known.links = links.iter().filter_map(read_link).collect();
        let Known { neighbours: before, wanted, .. } = &mut *known;
        before.retain(|key, _| wanted.contains(key));
        for message in &neighbours {
            known.note_neighbour(message);
        }
        Ok(())
    }

    /// Takes hints that the route to an address may have changed.
    pub(super) fn touch(&self) -> impl Fn(IpAddr) + Send + use<> {
        let (known, changed) = (self.known.clone(), self.changed.clone());
        move |address| {
            let mut known = lock(&known);
            if known.gateways.contains_key(&address) && known.stale.insert(address) {
                changed.notify_one();
            }
        }
    }

    /// Returns when something has changed that matters. A change is told once, and not lost when the call is
    /// cancelled.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// What a [`Watch`] knows.
pub(super) struct View<'a>(MutexGuard<'a, Known>);

impl View<'_> {
    pub(super) fn neighbour(&self, key: &NeighbourKey) -> Neighbour {
        self.0.neighbours.get(key).copied().unwrap_or(Neighbour::Unknown)
    }

    pub(super) fn link(&self, index: u32) -> Option<Link> {
        self.0.links.get(&index).copied()
    }

    /// What is seen, to compare with later.
    pub(super) fn sight(&self) -> Sight {
        Sight { neighbours: self.0.neighbours.clone(), links: self.0.links.clone() }
    }

    /// Whether it is what was seen then.
    pub(super) fn is(&self, sight: &Sight) -> bool {
        self.0.neighbours == sight.neighbours && self.0.links == sight.links
    }
}

/// What was seen of neighbours and links.
pub(super) struct Sight {
    neighbours: BTreeMap<NeighbourKey, Neighbour>,
    links: BTreeMap<u32, Link>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

async fn read(
    mut messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    known: Arc<Mutex<Known>>,
    changed: Arc<Notify>,
) {
    let mut due = None;
    loop {
        let message = match due {
            None => messages.next().await,
            Some(at) => match timeout_at(at, messages.next()).await {
                Ok(message) => message,
                Err(_) => {
                    changed.notify_one();
                    due = None;
                    continue;
                }
            },
        };
        let Some((message, _)) = message else { return };
        if lock(&known).note(&message.payload) {
            due = due.or(Some(Instant::now() + DEBOUNCE));
        }
    }
}

impl Known {
    /// Takes in a message; returns whether something changed that matters.
    fn note(&mut self, payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
        let NetlinkPayload::InnerMessage(message) = payload else {
            // Messages were lost (ENOBUFS): anything may have changed.
            let overrun = matches!(payload, NetlinkPayload::Overrun(_));
            if overrun {
                self.stale = self.gateways.keys().copied().collect();
            }
            return overrun;
        };
        match message {
            RouteNetlinkMessage::NewNeighbour(message) => self.note_neighbour(message),
            RouteNetlinkMessage::DelNeighbour(message) => self.forget_neighbour(message),
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                self.note_route(route)
            }
            RouteNetlinkMessage::NewLink(message) => {
                let is_new = self.note_name(message);
                let Some((index, link)) = read_link(message) else { return is_new };
                self.links.insert(index, link) != Some(link) && self.note_interface(index) || is_new
            }
            RouteNetlinkMessage::DelLink(link) => {
                let index = link.header.index;
                let is_gone = self.come.remove(&index).is_some();
                self.links.remove(&index).is_some() && self.note_interface(index) || is_gone
            }
            RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
                self.note_interface(address.header.index)
            }
            _ => false,
        }
    }

    /// Whether an interface has come, or has its name now, that is one of those that come and go.
    fn note_name(&mut self, message: &LinkMessage) -> bool {
        let name = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        });
        let Some(name) = name.filter(|name| self.interfaces.follows(name)) else { return false };
        self.come.insert(message.header.index, name.clone()).as_ref() != Some(name)
    }

    fn note_neighbour(&mut self, message: &NeighbourMessage) -> bool {
        let known = read_neighbour(message).filter(|(key, _)| self.wanted.contains(key));
        let Some((key, state)) = known else { return false };
        // That it is asked for again, or forgotten, says nothing against what was known.
        state != Neighbour::Unknown && self.neighbours.insert(key, state) != Some(state)
    }

    /// The kernel's entry is gone. When somebody deletes it (`ip neigh flush`), the kernel first says that it has failed,
    /// which here means nothing: it did not even ask.
    fn forget_neighbour(&mut self, message: &NeighbourMessage) -> bool {
        let known = read_neighbour(message).filter(|(key, _)| self.wanted.contains(key));
        let Some((key, _)) = known else { return false };
        match self.neighbours.get(&key) {
            Some(Neighbour::Failed) => drop(self.neighbours.remove(&key)),
            Some(Neighbour::Fixed(mac)) => drop(self.neighbours.insert(key, Neighbour::At(*mac))),
            Some(Neighbour::Unknown | Neighbour::At(_)) | None => {}
        }
        true
    }

    fn note_route(&mut self, route: &RouteMessage) -> bool {
        let prefix = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(destination) => Some(ip(destination)),
            _ => None,
        });
        let (family, length) = (route.header.address_family, route.header.destination_prefix_length);
        let touched = |address: &&IpAddr| covers(family, prefix.flatten(), length, **address);
        let stale: Vec<IpAddr> = self.gateways.keys().filter(touched).copied().collect();
        self.stale.extend(&stale);
        !stale.is_empty()
    }

    fn note_interface(&mut self, index: u32) -> bool {
        let over = |(address, gateway): (&IpAddr, &Option<NeighbourKey>)| {
            gateway.is_some_and(|(ifindex, _)| ifindex == index).then_some(*address)
        };
        let stale: Vec<IpAddr> = self.gateways.iter().filter_map(over).collect();
        self.stale.extend(&stale);
        !stale.is_empty()
    }
}

fn read_neighbour(message: &NeighbourMessage) -> Option<(NeighbourKey, Neighbour)> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some((*v4).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some((*v6).into()),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let state = match (message.header.state, mac) {
        (NeighbourState::Failed, _) => Neighbour::Failed,
        (
            NeighbourState::Reachable | NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe,
            Some(mac),
        ) => Neighbour::At(mac),
        (NeighbourState::Permanent | NeighbourState::Noarp, Some(mac)) => Neighbour::Fixed(mac),
        _ => Neighbour::Unknown,
    };
    Some(((message.header.ifindex, address?), state))
}

fn read_link(message: &LinkMessage) -> Option<(u32, Link)> {
    let (mut mac, mut mtu, mut parent, mut vlan, mut is_elsewhere) = (None, None, None, None, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => mac = bytes.as_slice().try_into().ok(),
            LinkAttribute::Mtu(bytes) => mtu = Some(*bytes),
            LinkAttribute::Link(index) => parent = Some(*index),
            LinkAttribute::LinkNetNsId(_) => is_elsewhere = true,
            LinkAttribute::LinkInfo(info) => vlan = info.iter().find_map(read_vlan),
            _ => {}
        }
    }
    let is = |flag: LinkFlags| message.header.flags.contains(flag);
    let up = (is(LinkFlags::Up), is(LinkFlags::LowerUp));
    let lower = match vlan {
        None => None,
        // What is below must be here, and tags of another protocol are not set.
        Some((VlanProtocol::Ieee8021Q, id)) if !is_elsewhere => Some((parent?, id)),
        Some(_) => return None,
    };
    Some((message.header.index, Link { mac: mac?, mtu: mtu?, lower, up }))
}

/// Protocol and id of a VLAN.
fn read_vlan(info: &LinkInfo) -> Option<(VlanProtocol, u16)> {
    let LinkInfo::Data(InfoData::Vlan(attributes)) = info else { return None };
    let (mut protocol, mut id) = (VlanProtocol::Ieee8021Q, None);
    for attribute in attributes {
        match attribute {
            InfoVlan::Id(number) => id = Some(*number),
            InfoVlan::Protocol(number) => protocol = *number,
            _ => {}
        }
    }
    Some((protocol, id?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_route::link::InfoKind;

    fn link(info: &[LinkInfo], others: &[LinkAttribute]) -> Option<Link> {
        let mut message = LinkMessage::default();
        message.header.index = 9;
        message.header.flags = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 9]),
            LinkAttribute::Mtu(1500),
            LinkAttribute::Link(4),
            LinkAttribute::LinkInfo(info.to_vec()),
        ];
        message.attributes.extend_from_slice(others);
        let (index, link) = read_link(&message)?;
        assert_eq!((index, link.mac, link.mtu, link.up), (9, [2, 0, 0, 0, 0, 9], 1500, (true, false)));
        Some(link)
    }

    fn vlan(protocol: Option<VlanProtocol>) -> [LinkInfo; 2] {
        let mut data = vec![InfoVlan::Id(100)];
        data.extend(protocol.map(InfoVlan::Protocol));
        [LinkInfo::Kind(InfoKind::Vlan), LinkInfo::Data(InfoData::Vlan(data))]
    }

    #[test]
    fn a_vlan_has_an_interface_below_it() {
        let lower = |info: &[LinkInfo]| link(info, &[]).map(|link| link.lower);
        assert_eq!(lower(&vlan(Some(VlanProtocol::Ieee8021Q))), Some(Some((4, 100))));
        assert_eq!(lower(&vlan(None)), Some(Some((4, 100))));
        assert_eq!(lower(&[LinkInfo::Kind(InfoKind::Veth)]), Some(None), "the peer is not below");
    }

    #[test]
    fn a_vlan_that_cannot_be_reached_is_no_link() {
        assert_eq!(link(&vlan(Some(VlanProtocol::Ieee8021Ad)), &[]), None, "another tag");
        assert_eq!(link(&vlan(None), &[LinkAttribute::LinkNetNsId(1)]), None, "below is another namespace");
    }
}
