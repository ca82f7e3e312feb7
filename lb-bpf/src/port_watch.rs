//! What the kernel says of interfaces as ports for XDP: which take frames ([`Netdev`]), and which are veths (rtnetlink). A veth
//! that takes none does not even take what XDP sends back through it; all other drivers with XDP do.
use crate::{netdev::Netdev, ports::Ports};
use futures::TryStreamExt;
use nix::net::if_::if_nametoindex;
use rtnetlink::{
    Error, Handle,
    packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// All is read again after this, whatever the kernel has told.
const AGE: Duration = Duration::from_secs(20);

/// Watches interfaces.
pub(crate) struct PortWatch {
    netdev: Netdev,
    /// Whether the interfaces that XDP is for are veths, by index.
    veths: BTreeMap<u32, bool>,
    /// What the maps say, and since when.
    kept: Option<(Ports, Instant)>,
}

impl PortWatch {
    /// Opens the sockets, in the network namespace of the calling thread.
    pub(crate) async fn open() -> Result<Self, Error> {
        Ok(PortWatch { netdev: Netdev::open().await?, veths: BTreeMap::new(), kept: None })
    }

    /// What the maps are to say where XDP is for the interfaces with these names; none: what they say, as far as is known.
    pub(crate) async fn look(
        &mut self,
        handle: &Handle,
        balanced: &[String],
    ) -> Result<Option<Ports>, Error> {
        let is_old = self.kept.as_ref().is_none_or(|(_, since)| since.elapsed() > AGE);
        if is_old {
            self.netdev.forget();
        }
        let takers = self.netdev.takers().await?;
        let mut veths = BTreeMap::new();
        for index in balanced.iter().filter_map(|name| if_nametoindex(name.as_str()).ok()) {
            let is_veth = match self.veths.get(&index) {
                Some(is_veth) => *is_veth,
                None => is_veth(handle, index).await?,
            };
            veths.insert(index, is_veth);
        }
        let wary = veths.iter().any(|(index, is_veth)| *is_veth && !takers.contains(index));
        self.veths = veths;
        let ports = Ports { takers, wary };
        let is_kept = !is_old && self.kept.as_ref().is_some_and(|(kept, _)| *kept == ports);
        Ok((!is_kept).then_some(ports))
    }

    /// Notes that the maps say so.
    pub(crate) fn keep(&mut self, ports: Ports) {
        self.kept = Some((ports, Instant::now()));
    }

    /// Returns when [`PortWatch::look`] may find something else. A change is told once, and not lost when the call is
    /// cancelled.
    pub(crate) async fn changed(&self) {
        self.netdev.changed().await;
    }
}

/// Whether an interface is a veth. One that is gone is none.
async fn is_veth(handle: &Handle, index: u32) -> Result<bool, Error> {
    match handle.link().get().match_index(index).execute().try_next().await {
        Ok(link) => Ok(link.as_ref().is_some_and(|link| kind(link) == Some(&InfoKind::Veth))),
        Err(Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(false),
        Err(error) => Err(error),
    }
}

fn kind(link: &LinkMessage) -> Option<&InfoKind> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind),
            _ => None,
        }),
        _ => None,
    })
}
