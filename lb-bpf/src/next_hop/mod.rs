//! How packets reach the backends: asked of the kernel over rtnetlink(7), once for each address, and again when
//! something changes that matters. The packet path never looks at routes or neighbours.
mod path_mtu;
mod watch;

use crate::{
    interfaces::Interfaces,
    state::{Hop, NextHop, NextHops},
    tunnel_source::TunnelSources,
};
use futures::TryStreamExt;
use path_mtu::PathErrors;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        neighbour::{NeighbourFlags, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};
use watch::{Neighbour, NeighbourKey, Sight, View, Watch};

/// How long the first packets wait for neighbours that nobody has asked for before.
const FIRST_ANSWER: Duration = Duration::from_millis(200);
/// A route is asked for again after this, at most [`ROUTES_AGAIN`] in one call: some changes (of rules, of nexthop
/// objects) come without a message about the route.
const ROUTE_AGE: Duration = Duration::from_secs(20);
/// See [`ROUTE_AGE`]; some 10 ms.
const ROUTES_AGAIN: usize = 256;
/// Ages are looked at so often at most: with 100,000 backends a look takes a millisecond.
const LOOK: Duration = Duration::from_secs(1);
/// A neighbour that does not answer is asked again after this, and one that has not been heard of is confirmed.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Finds next hops.
pub(crate) struct Resolver {
    handle: Handle,
    watch: Watch,
    errors: PathErrors,
    /// Answers, and when they were given.
    routes: BTreeMap<IpAddr, (Instant, Option<Route>)>,
    /// Addresses whose route has to be asked for again.
    stale: BTreeSet<IpAddr>,
    /// When it was last looked for old answers.
    looked: Instant,
    /// The neighbours on the way.
    wanted: BTreeSet<NeighbourKey>,
    asked: BTreeMap<NeighbourKey, Instant>,
    tunnel_sources: TunnelSources,
    /// What came of it last, and what was seen then; none: the last call came to no end.
    found: Option<(Arc<NextHops>, Sight)>,
}

/// What the kernel answers for one address, but for the neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Route {
    source: IpAddr,
    neighbour: NeighbourKey,
    mtu: Option<u32>,
}

impl Resolver {
    /// Opens the sockets, in the network namespace of the calling thread. Of `interfaces`, those matter that come and go.
    pub(crate) fn open(interfaces: Interfaces, tunnel_sources: TunnelSources) -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let watch = Watch::open(interfaces)?;
        Ok(Resolver {
            handle,
            watch,
            errors: PathErrors::default(),
            routes: BTreeMap::new(),
            stale: BTreeSet::new(),
            looked: Instant::now(),
            wanted: BTreeSet::new(),
            asked: BTreeMap::new(),
            tunnel_sources,
            found: None,
        })
    }

    /// The socket, for other questions to the kernel.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Heeds what routers say about tunnel packets of these IANA protocols from now on, and of no others.
    pub(crate) fn heed(&mut self, protocols: &BTreeSet<u8>) {
        self.errors.follow(protocols, &self.watch);
    }

    /// Finds the next hops of these addresses, and watches them from now on instead of those before; none: the same as
    /// before. When nothing is another, what was found before is given again.
    pub(crate) async fn resolve(
        &mut self,
        addresses: Option<&BTreeSet<IpAddr>>,
    ) -> Result<Arc<NextHops>, rtnetlink::Error> {
        let found = self.found.take();
        let mut is_same = found.is_some();
        // Changes from here on are seen by the next call, whatever is read below.
        self.stale.extend(self.watch.take_stale());
        let now = Instant::now();
        let mut questions = self.old(now);
        questions.extend(&self.stale);
        if let Some(addresses) = addresses.filter(|addresses| !self.routes.keys().eq(*addresses)) {
            is_same = false;
            self.routes.retain(|address, _| addresses.contains(address));
            questions.extend(addresses.iter().filter(|address| !self.routes.contains_key(address)));
            questions.retain(|address| addresses.contains(address));
        } else {
            questions.retain(|address| self.routes.contains_key(address));
        }
        for address in questions {
            let route = self.route(address).await?;
            let before = self.routes.insert(address, (now, route));
            self.stale.remove(&address);
            is_same &= before.is_some_and(|(_, before)| before == route);
        }
        self.stale.clear();
        if !is_same {
            let neighbour = |route: &Option<Route>| route.map(|route| route.neighbour);
            let gateways = self.routes.iter().map(|(address, (_, route))| (*address, neighbour(route)));
            self.wanted = self.watch.follow(gateways);
        }
        self.watch.read_all(&self.handle).await?;
        self.asked.retain(|neighbour, _| self.wanted.contains(neighbour));
        let news = self.ask().await;
        if !news.is_empty() {
            let answered = async {
                while news.iter().any(|neighbour| self.watch.neighbour(neighbour) == Neighbour::Unknown) {
                    sleep(Duration::from_millis(1)).await;
                }
            };
            // If there is no answer now, there will be a change when there is one.
            let _ = timeout(FIRST_ANSWER, answered).await;
        }
        let view = self.watch.view();
        let known = found.filter(|(_, sight)| is_same && view.is(sight));
        let (hops, sight) = known.unwrap_or_else(|| {
            let hop = |(address, (_, route)): (&IpAddr, &(Instant, Option<Route>))| {
                (*address, self.next_hop(&view, *address, route.as_ref()))
            };
            (Arc::new(self.routes.iter().map(hop).collect()), view.sight())
        });
        drop(view);
        self.found = Some((Arc::clone(&hops), sight));
        Ok(hops)
    }

    /// The oldest answers, if it is time to look for them.
    fn old(&mut self, now: Instant) -> BTreeSet<IpAddr> {
        if now.duration_since(self.looked) < LOOK {
            return BTreeSet::new();
        }
        self.looked = now;
        let old = self.routes.iter().filter(|(_, (asked, _))| now.duration_since(*asked) > ROUTE_AGE);
        let mut old: Vec<_> = old.map(|(address, (asked, _))| (*asked, *address)).collect();
        old.sort_unstable();
        old.into_iter().take(ROUTES_AGAIN).map(|(_, address)| address).collect()
    }

    /// Returns when something has changed that matters.
    pub(crate) async fn changed(&self) {
        self.watch.changed().await;
    }

    fn next_hop(&self, view: &View<'_>, address: IpAddr, route: Option<&Route>) -> NextHop {
        let Some(route) = route else { return NextHop::Unreachable };
        let Some(link) = view.link(route.neighbour.0) else { return NextHop::Unreachable };
        let below = link.lower.and_then(|(parent, _)| view.link(parent));
        if link.lower.is_some() && below.is_none_or(|below| below.lower.is_some()) {
            // A VLAN in a VLAN would need two tags.
            return NextHop::Unreachable;
        }
        match view.neighbour(&route.neighbour) {
            Neighbour::Unknown => NextHop::Pending,
            Neighbour::Failed => NextHop::Unreachable,
            Neighbour::At(mac) | Neighbour::Fixed(mac) => NextHop::Known(Hop {
                source: route.source,
                tunnel_source: self.tunnel_sources.towards(address),
                mac,
                source_mac: link.mac,
                ifindex: link.lower.map_or(route.neighbour.0, |(parent, _)| parent),
                mtu: route.mtu.unwrap_or(link.mtu),
                vlan: link.lower.map(|(_, vlan)| vlan),
                gateway: route.neighbour.1 != address,
            }),
        }
    }

    /// What the kernel would do with a packet to this address; nothing when XDP cannot do it.
    async fn route(&self, address: IpAddr) -> Result<Option<Route>, rtnetlink::Error> {
        let question = match address {
            IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(v4, 32).build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(v6, 128).build(),
        };
        match self.handle.route().get(question).execute().try_next().await {
            Ok(answer) => Ok(answer.and_then(|answer| read_route(&answer, address))),
            // Unreachable, prohibited, no such route: that is an answer.
            Err(rtnetlink::Error::NetlinkError(error)) => {
                tracing::debug!(%address, %error, "no route to a backend");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes the kernel resolve or confirm those neighbours whose time it is; returns those that were never asked for
    /// and are not known.
    async fn ask(&mut self) -> Vec<NeighbourKey> {
        let now = Instant::now();
        let mut news = Vec::new();
        for neighbour in &self.wanted {
            let last = self.asked.get(neighbour);
            let known = self.watch.neighbour(neighbour);
            let is_unknown = known == Neighbour::Unknown;
            if matches!(known, Neighbour::Fixed(_)) {
                continue;
            }
            if !is_unknown && last.is_some_and(|last| now.duration_since(*last) < ASK_AGAIN) {
                continue;
            }
            let (ifindex, address) = *neighbour;
            if last.is_none() && is_unknown {
                news.push(*neighbour);
            }
            self.asked.insert(*neighbour, now);
            // "Use" it (NTF_USE): as if a packet went there. Packets that the program sends do not count for the kernel,
            // so that without this a neighbour is never confirmed.
            let request = self.handle.neighbours().add(ifindex, address);
            let request = request.flags(NeighbourFlags::Use).state(NeighbourState::None).replace();
            if let Err(error) = request.execute().await {
                tracing::debug!(ifindex, %address, %error, "cannot ask for a neighbour");
            }
        }
        news
    }
}

fn read_route(answer: &RouteMessage, address: IpAddr) -> Option<Route> {
    // Local, blackhole, multicast: not for us.
    if answer.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut gateway, mut source, mut ifindex, mut mtu) = (address, None, None, None);
    for attribute in &answer.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(via) => gateway = ip(via)?,
            // An IPv4 route through an IPv6 neighbour (RFC 8950).
            RouteAttribute::Via(RouteVia::Inet(via)) => gateway = (*via).into(),
            RouteAttribute::Via(RouteVia::Inet6(via)) => gateway = (*via).into(),
            RouteAttribute::PrefSource(from) => source = ip(from),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(Route { source: source?, neighbour: (ifindex?, gateway), mtu: mtu.filter(|mtu| *mtu > 0) })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

/// Whether a route's destination says something about this address.
fn covers(family: AddressFamily, prefix: Option<IpAddr>, length: u8, address: IpAddr) -> bool {
    match (family, address) {
        (AddressFamily::Inet, IpAddr::V4(_)) | (AddressFamily::Inet6, IpAddr::V6(_)) => prefix
            .is_none_or(|prefix| ipnet::IpNet::new(prefix, length).is_ok_and(|net| net.contains(&address))),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_routes_that_cover_a_backend_matter() {
        let v4 = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(covers(AddressFamily::Inet, None, 0, v4("10.0.0.1")));
        assert!(covers(AddressFamily::Inet, Some(v4("10.0.0.0")), 24, v4("10.0.0.1")));
        assert!(!covers(AddressFamily::Inet, Some(v4("10.0.1.0")), 24, v4("10.0.0.1")));
        assert!(!covers(AddressFamily::Inet6, None, 0, v4("10.0.0.1")));
    }
}
