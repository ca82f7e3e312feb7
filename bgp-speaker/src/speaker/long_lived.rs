//! Long-lived graceful restart (RFC 9494): when the restart time of a peer is over, its routes stay for longer still, as
//! the last choice. They get the community LLGR_STALE, by which the decision knows them, and so do others who hear of
//! them: peers of the same capability, and internal ones. Those with NO_LLGR go.
use super::{
    Speaker,
    restart::{Phase, Stale},
};
use crate::{
    Time,
    config::Family,
    rib::{AttributesId, Path, PathKey, Source},
    wire::Community,
};
use std::collections::{BTreeMap, BTreeSet};

impl Speaker {
    /// The paths of a source become the last choice, until `expires`.
    pub(super) fn begin_long_lived(
        &mut self,
        source: Source,
        family: Family,
        mut paths: BTreeSet<PathKey>,
        expires: Time,
    ) {
        // Numbers of attribute sets and of the same with the community; both are held as long as they are here.
        let mut marked: BTreeMap<AttributesId, Option<AttributesId>> = BTreeMap::new();
        for (id, path_id) in std::mem::take(&mut paths) {
            let table = self.rib.table(family);
            let prefix = table.prefix(id);
            let Some(path) = table.path(id, source, path_id) else { continue };
            let attributes = *marked.entry(path.attributes).or_insert_with(|| {
                self.rib.attributes.retain(path.attributes);
                let mut route = self.rib.attributes.get(path.attributes).clone();
                route.attributes.communities.insert(Community::LLGR_STALE);
                let may_stay = !route.attributes.communities.contains(&Community::NO_LLGR);
                may_stay.then(|| self.rib.attributes.intern(route))
            });
            if let Some(attributes) = attributes {
                let change = self.rib.set(family, prefix, Path { attributes, ..path });
                self.mark(family, &change);
                paths.insert((id, path_id));
            } else {
                self.withdraw(source, family, (id, path_id));
            }
        }
        for (attributes, with_community) in marked {
            self.rib.attributes.release(attributes);
            with_community.into_iter().for_each(|attributes| self.rib.attributes.release(attributes));
        }
        if let Some(slot) = self.slot_mut(source)
            && !paths.is_empty()
        {
            slot.kept.keep(family, Stale::new(paths, Phase::LongLived, expires));
        }
    }
}
