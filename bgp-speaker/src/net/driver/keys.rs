//! Keys of TCP MD5 signatures: on the listeners, and on the connections that there are.
use super::{Connection, Driver};
use crate::{
    Md5Key,
    config::{ConfigError, PeerConfig, PeerRange},
    net::options,
};
use ipnet::IpNet;
use std::{collections::BTreeMap, mem};

impl Driver {
    pub(super) fn change_session_keys(&self) {
        for connection in self.connections.values() {
            if let Connection::Open { remote, key, .. } = connection {
                let wanted = self.speaker.transport(*remote).and_then(|transport| transport.md5);
                key.send_if_modified(|key| mem::replace(key, wanted.clone()) != wanted);
            }
        }
    }

    /// Changes the keys of the listeners. After an error they have those of before.
    pub(super) fn set_keys(&mut self, wanted: BTreeMap<IpNet, Md5Key>) -> Result<(), ConfigError> {
        let before = mem::replace(&mut self.keys, wanted);
        let result = self.change_keys(&before, &self.keys);
        if result.is_err() {
            let failed = mem::replace(&mut self.keys, before);
            if let Err(error) = self.change_keys(&failed, &self.keys) {
                tracing::warn!(%error, "keys of the listeners");
            }
        }
        result
    }

    fn change_keys(
        &self,
        from: &BTreeMap<IpNet, Md5Key>,
        to: &BTreeMap<IpNet, Md5Key>,
    ) -> Result<(), ConfigError> {
        let gone = from.keys().filter(|remote| !to.contains_key(remote)).map(|remote| (remote, None));
        let new =
            to.iter().filter(|(remote, key)| from.get(remote) != Some(key)).map(|(r, key)| (r, Some(key)));
        for (remote, key) in gone.chain(new) {
            for (local, listener) in &self.listeners {
                if local.is_ipv4() == remote.addr().is_ipv4() {
                    options::set_md5(&*listener.socket, *remote, key).map_err(|error| {
                        ConfigError::new(format!("peer {}", remote.addr()), "auth", error.to_string())
                    })?;
                }
            }
        }
        Ok(())
    }
}

/// Keys of those who sign, by their addresses.
pub(super) fn md5_keys<'a>(
    peers: impl IntoIterator<Item = &'a PeerConfig>,
    ranges: &'a [PeerRange],
) -> BTreeMap<IpNet, Md5Key> {
    let peers = peers.into_iter().map(|peer| (IpNet::from(peer.address), peer));
    let all = peers.chain(ranges.iter().map(|range| (range.prefix, &range.peer)));
    all.filter_map(|(remote, peer)| Some((remote, peer.md5.clone()?))).collect()
}
