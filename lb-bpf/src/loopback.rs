//! VIPs on the loopback interface of a backend: what was decapsulated is for an address of this host then. They
//! carry a mark (IFA_PROTO, kernel 5.18), so that only addresses that this program added are ever removed.
use futures::TryStreamExt;
use rtnetlink::{
    Error, Handle, LinkUnspec,
    packet_route::{
        address::{AddressAttribute, AddressMessage, AddressProtocol, CacheInfo},
        link::LinkFlags,
    },
};
use std::{collections::BTreeSet, net::IpAddr};

/// The loopback interface has this index in every network namespace.
const LOOPBACK: u32 = 1;
/// The mark: a number that neither the kernel nor iproute2 uses.
const OURS: AddressProtocol = AddressProtocol::Other(0xfa);
/// What a kernel without IFA_PROTO would answer is not an error for us: it ignores the attribute.
const FOREVER: u32 = u32::MAX;

/// Adds these addresses to the loopback interface, as far as they are not there.
pub(crate) async fn add(handle: &Handle, vips: &BTreeSet<IpAddr>) -> Result<(), Error> {
    if vips.is_empty() {
        return Ok(());
    }
    bring_up(handle).await?;
    let present: BTreeSet<IpAddr> = addresses(handle).await?.iter().filter_map(local).collect();
    for vip in vips.difference(&present) {
        let length = if vip.is_ipv4() { 32 } else { 128 };
        let mut request = handle.address().add(LOOPBACK, *vip, length);
        let attributes = &mut request.message_mut().attributes;
        attributes.push(AddressAttribute::Protocol(OURS));
        if vip.is_ipv6() {
            // Deprecated (RFC 4862, section 5.5.4): not chosen as the source of connections of this host's own.
            let mut lifetime = CacheInfo::default();
            (lifetime.ifa_preferred, lifetime.ifa_valid) = (0, FOREVER);
            attributes.push(AddressAttribute::CacheInfo(lifetime));
        }
        match request.execute().await {
            Err(Error::NetlinkError(error)) if error.raw_code() == -libc::EEXIST => {}
            result => result?,
        }
        tracing::info!(%vip, "added to the loopback interface");
    }
    Ok(())
}

/// Removes the addresses that [`add`] added at any time, but for those in `keep`.
pub(crate) async fn retain(handle: &Handle, keep: &BTreeSet<IpAddr>) -> Result<(), Error> {
    for address in addresses(handle).await? {
        let is_ours = address.attributes.contains(&AddressAttribute::Protocol(OURS));
        let Some(vip) = local(&address).filter(|vip| is_ours && !keep.contains(vip)) else { continue };
        match handle.address().del(address).execute().await {
            Err(Error::NetlinkError(error)) if error.raw_code() == -libc::EADDRNOTAVAIL => {}
            result => result?,
        }
        tracing::info!(%vip, "removed from the loopback interface");
    }
    Ok(())
}

async fn bring_up(handle: &Handle) -> Result<(), Error> {
    let link = handle.link().get().match_index(LOOPBACK).execute().try_next().await?;
    if link.is_some_and(|link| !link.header.flags.contains(LinkFlags::Up)) {
        handle.link().set(LinkUnspec::new_with_index(LOOPBACK).up().build()).execute().await?;
    }
    Ok(())
}

async fn addresses(handle: &Handle) -> Result<Vec<AddressMessage>, Error> {
    let all = handle.address().get().set_link_index_filter(LOOPBACK).execute();
    all.try_filter(|address| futures::future::ready(address.header.index == LOOPBACK)).try_collect().await
}

fn local(message: &AddressMessage) -> Option<IpAddr> {
    // IPv6 addresses come without IFA_LOCAL unless they have a peer.
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    find(|attribute| match attribute {
        AddressAttribute::Local(local) => Some(*local),
        _ => None,
    })
    .or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}
