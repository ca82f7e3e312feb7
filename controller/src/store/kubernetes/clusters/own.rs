//! What this cluster itself exports, from its ServiceExports, Services and EndpointSlices. Pure.
use super::{
    kept::{Kept, ServiceExport},
    known,
};
use crate::{
    api::{EndpointSlice, ServicePolicy, policy::ForwardingMode},
    by_name::ByName,
    declared::Declared,
    desired::forwarding_mode,
    mcs::{Export, Exports, Facts, Invalid},
};
use k8s_openapi::api::core::v1::Service;
use std::{collections::BTreeSet, sync::Arc};

/// What was exported last, and what that was made of: only what has changed since is made anew.
#[derive(Debug, Default)]
pub(super) struct Own {
    cluster: String,
    objects: ByName<Kept<ServiceExport>>,
    services: ByName<Service>,
    slices: ByName<EndpointSlice>,
    exports: Exports,
    policies: ByName<ServicePolicy>,
    modes: Modes,
}

/// How packets to the Services of ServiceExports are forwarded, by their names; none: we do not balance them.
pub(super) type Modes = ByName<Option<ForwardingMode>>;

impl Own {
    /// What a cluster of this name exports by these ServiceExports.
    pub(super) fn exports(
        &mut self,
        cluster: &str,
        objects: &ByName<Kept<ServiceExport>>,
        declared: &Declared,
    ) -> &Exports {
        if self.cluster != cluster {
            *self = Own { cluster: cluster.to_owned(), ..Own::default() };
        }
        let objects_of = self.objects.changes(objects).map(|(name, ..)| name.to_owned());
        let services = self.services.changes(&declared.services).map(|(name, ..)| name.to_owned());
        let slices = self.slices.changes(&declared.endpoint_slices);
        let slices = slices
            .flat_map(|(_, before, after)| before.into_iter().chain(after).filter_map(|s| service_of(s)));
        // What selects Services may have changed for each of them.
        let is_selected_anew = self.policies.changes(&declared.policies).next().is_some();
        let all = objects.keys().filter(|_| is_selected_anew).cloned();
        for name in objects_of.chain(services).chain(all).chain(slices).collect::<BTreeSet<_>>() {
            match objects.get(&name).and_then(|object| export(cluster, &name, object, declared)) {
                Some(export) => drop(self.exports.insert(name.clone(), Arc::new(export))),
                None => drop(self.exports.remove(&name)),
            }
            match objects.contains_key(&name).then(|| forwarding_mode(declared, &name)) {
                Some(mode) if self.modes.get(&name).is_some_and(|known| **known == mode) => {}
                Some(mode) => drop(self.modes.insert(name, Arc::new(mode))),
                None => drop(self.modes.remove(&name)),
            }
        }
        self.objects = objects.clone();
        self.services = declared.services.clone();
        self.slices = declared.endpoint_slices.clone();
        self.policies = declared.policies.clone();
        &self.exports
    }

    /// How packets to what was exported last are forwarded.
    pub(super) fn modes(&self) -> &Modes {
        &self.modes
    }
}

/// `NAMESPACE/NAME` of the Service that a slice is of; none: of none here.
fn service_of(slice: &EndpointSlice) -> Option<String> {
    let namespace = slice.metadata.namespace.as_deref()?;
    Some([namespace, "/", slice.metadata.service.as_deref()?].concat())
}

fn export(cluster: &str, full: &str, object: &Kept<ServiceExport>, declared: &Declared) -> Option<Export> {
    let (namespace, name) = full.split_once('/')?;
    let service = declared.services.get(full).ok_or(Invalid::NoService);
    let first = [namespace, "/"].concat();
    let all = declared.endpoint_slices.range(first.clone()..);
    let own = all
        .take_while(|(name, _)| name.starts_with(&first))
        .filter(|(_, slice)| slice.metadata.service.as_deref() == Some(name));
    let mut slices: Vec<_> =
        own.map(|(_, slice)| Arc::new(Export::imported(name, cluster, slice, true))).collect();
    slices.sort_by(|one, other| one.metadata.name.cmp(&other.metadata.name));
    let facts = service.and_then(|service| Facts::of(service)).map(Facts::shared);
    Some(known::export(&object.rest, facts, slices.into()))
}
