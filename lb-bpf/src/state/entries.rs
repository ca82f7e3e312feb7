//! The entries of backends: which one a backend has, and its next hop.
use super::{Hop, NextHop, NextHops, State, TargetKey, endpoint_of, plan::PlanError};
use crate::{
    maps::Op,
    service::{Endpoint, ServiceKey},
};
use lb_bpf_common::{Addr, Backend, Mode, outer_header_sum};
use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

impl State {
    /// Makes the entry of one backend what it should be; returns its index.
    #[expect(clippy::too_many_arguments, reason = "all of them describe the one entry")]
    pub(super) fn set_backend(
        &mut self,
        id: u32,
        mode: Mode,
        endpoint: &Endpoint,
        up: bool,
        hop: &NextHop,
        last: Option<u32>,
        ops: &mut Vec<Op>,
    ) -> Result<u32, PlanError> {
        let hop = &reach(mode as u8, hop);
        let target: TargetKey = (id, endpoint.address.into(), endpoint.port.to_be(), mode as u8);
        let source = match hop {
            NextHop::Known(hop) => Some(Addr::from(hop.source)),
            NextHop::Pending | NextHop::Unreachable => None,
        };
        // Packets read entries while they are written, so an entry keeps its source address for life; one
        // that never had a next hop has none.
        let fits = |index: &u32| {
            source.is_none_or(|source| [source, Addr::NONE].contains(&self.backends[index].source))
        };
        let same = self.by_target.range((target, 0)..=(target, u32::MAX)).map(|(_, index)| *index);
        let fitting = same.filter(fits);
        let found = fitting.clone().find(|index| Some(*index) == last).or_else(|| fitting.clone().next());
        let (index, is_new) = match found {
            Some(index) => (index, false),
            None => {
                let full = PlanError::Full { map: "backends", needed: 1, available: 0 };
                (self.indexes.take().ok_or(full)?, true)
            }
        };
        let flags = if up { 0 } else { Backend::DOWN };
        let old = self.backends.get(&index).copied().filter(|_| !is_new);
        let bare =
            Backend { addr: target.1, port: target.2, mode: target.3, service: id, ..Backend::default() };
        let wanted = match hop {
            NextHop::Known(hop) => with_hop(Backend { flags, ..bare }, hop, mode),
            NextHop::Pending => Backend { flags, ..old.unwrap_or(bare) },
            NextHop::Unreachable => Backend { flags, ifindex: 0, ..old.unwrap_or(bare) },
        };
        if is_new {
            self.push(Op::ResetCounters(index), ops);
        }
        if old != Some(wanted) {
            self.push(Op::SetBackend(index, wanted), ops);
        }
        if let Some(pass) = &mut self.pass {
            pass.keep(index);
        }
        Ok(index)
    }

    /// Brings the next hops of backends up to date that are not declared any more but may have flows.
    pub(super) fn refresh_absent(&mut self, moved: &BTreeSet<IpAddr>, hops: &NextHops, ops: &mut Vec<Op>) {
        let absent = self.entries_at(moved).filter(|index| self.declaring(*index).is_none());
        let fresh = |backend: &Backend| match reach(backend.mode, hops.get(&backend.addr.into())?) {
            NextHop::Known(hop) if Addr::from(hop.source) == backend.source => Some(through(*backend, &hop)),
            _ => None,
        };
        let changed: Vec<_> = absent
            .filter_map(|index| {
                let backend = &self.backends[&index];
                Some((index, fresh(backend).filter(|fresh| fresh != backend)?))
            })
            .collect();
        for (index, backend) in changed {
            self.push(Op::SetBackend(index, backend), ops);
        }
    }

    /// The entries of `backends` with these addresses.
    pub(super) fn entries_at<'a>(
        &'a self,
        addresses: &'a BTreeSet<IpAddr>,
    ) -> impl Iterator<Item = u32> + 'a {
        let at = |address: &IpAddr| self.by_address.range((*address, 0)..=(*address, u32::MAX));
        addresses.iter().flat_map(at).map(|(_, index)| *index)
    }

    /// The service that declares an entry of `backends`.
    pub(super) fn declaring(&self, index: u32) -> Option<&ServiceKey> {
        let backend = self.backends.get(&index)?;
        let (key, its) = self.services.get_key_value(self.names.get(&backend.service)?)?;
        (its.entries.get(&endpoint_of(backend)) == Some(&index)).then_some(key)
    }
}

/// The addresses whose next hops differ.
pub(super) fn moved(before: &Arc<NextHops>, after: &Arc<NextHops>) -> BTreeSet<IpAddr> {
    if Arc::ptr_eq(before, after) || before == after {
        return BTreeSet::new();
    }
    let other = |hops: &NextHops, (address, hop): &(&IpAddr, &NextHop)| hops.get(address) != Some(hop);
    let new = after.iter().filter(|hop| other(before, hop));
    let old = before.iter().filter(|hop| other(after, hop));
    new.chain(old).map(|(address, _)| *address).collect()
}

fn with_hop(bare: Backend, hop: &Hop, mode: Mode) -> Backend {
    let source = Addr::from(hop.source);
    let is_outer_v4 = mode.is_tunnel() && source.is_v4() && bare.addr.is_v4();
    let header_sum = if is_outer_v4 { outer_header_sum(&source, &bare.addr) } else { 0 };
    through(Backend { source, header_sum, ..bare }, hop)
}

/// The backend with what may change in place. The next hop is that of its mode: [`reach`].
fn through(backend: Backend, hop: &Hop) -> Backend {
    let varying = hop.tunnel_source.map_or(0, |prefix| prefix.bits);
    Backend {
        flags: backend.flags & Backend::DOWN | varying << Backend::VARYING_SHIFT,
        next_hop: hop.mac,
        source_mac: hop.source_mac,
        ifindex: hop.ifindex,
        mtu: u16::try_from(hop.mtu).unwrap_or(0),
        vlan: hop.vlan.unwrap_or(0),
        ..backend
    }
}

/// The next hop as far as it leads to a backend of this mode, with the source that its packets have: in L2 mode, none but the backend
/// itself may get its packets.
fn reach(mode: u8, hop: &NextHop) -> NextHop {
    match hop {
        _ if mode == Mode::Here as u8 => NextHop::Unreachable,
        NextHop::Known(hop) if hop.gateway && mode == Mode::L2 as u8 => NextHop::Unreachable,
        NextHop::Known(hop) if mode == Mode::Ipip as u8 => {
            let source = hop.tunnel_source.map_or(hop.source, |prefix| prefix.first);
            NextHop::Known(Hop { source, ..*hop })
        }
        NextHop::Known(hop) => NextHop::Known(Hop { tunnel_source: None, ..*hop }),
        hop => *hop,
    }
}
