//! Routing information bases: the [`table`] of each family holds what peers told us and what is best of it,
//! [`intern`] the attributes, each set once.
mod index;
mod intern;
mod table;

pub(crate) use intern::{AttributesId, Interner};
pub(crate) use table::{Change, Chooser, Path, PrefixId, Source, Table};

use crate::{
    config::Family,
    decision::{Decision, Neighbour},
    wire::{Attributes, NextHop, Nlri, PathId},
};
use ipnet::IpNet;

/// A path of a known source: its prefix, and the identifier that the source gave it.
pub(crate) type PathKey = (PrefixId, PathId);

/// What a path carries: its attributes and its next hop.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PathAttributes {
    /// The next hop; none (of our own routes only): the address of whoever announces it.
    pub(crate) next_hop: Option<NextHop>,
    /// The attributes.
    pub(crate) attributes: Attributes,
}

/// The tables of all families and what their paths refer to.
#[derive(Debug)]
pub(crate) struct Rib {
    pub(crate) ipv4: Table,
    pub(crate) ipv6: Table,
    pub(crate) attributes: Interner<PathAttributes>,
    /// By number of the source.
    pub(crate) neighbours: Vec<Option<Neighbour>>,
}

impl Rib {
    pub(crate) fn new(seed: u64) -> Self {
        Rib {
            ipv4: Table::new(seed),
            ipv6: Table::new(seed),
            attributes: Interner::new(seed),
            neighbours: Vec::new(),
        }
    }

    pub(crate) fn table(&self, family: Family) -> &Table {
        match family {
            Family::Ipv4Unicast => &self.ipv4,
            Family::Ipv6Unicast => &self.ipv6,
        }
    }

    /// Prefixes that are about to be looked for, together: see [`Table::touch`].
    pub(crate) fn touch(&self, prefixes: &[Nlri]) {
        let all = || prefixes.iter().map(|nlri| &nlri.prefix);
        self.ipv4.touch(all().filter(|prefix| matches!(prefix, IpNet::V4(_))));
        self.ipv6.touch(all().filter(|prefix| matches!(prefix, IpNet::V6(_))));
    }

    pub(crate) fn decision(&self) -> Decision<'_> {
        Decision { attributes: &self.attributes, neighbours: &self.neighbours }
    }

    /// The paths of a source, by number of the prefix.
    pub(crate) fn paths_of(&self, family: Family, source: Source) -> impl Iterator<Item = PathKey> + '_ {
        self.table(family).paths_of(source).map(|(id, path)| (id, path.id))
    }

    /// Sets a path; holds its attributes for as long as it stays.
    pub(crate) fn set(&mut self, family: Family, prefix: IpNet, path: Path) -> Change {
        self.attributes.retain(path.attributes);
        let (table, decision) = self.split(family);
        let change = table.set(prefix, path, &decision);
        if let Some(old) = change.old {
            self.attributes.release(old.attributes);
        }
        change
    }

    /// Removes a path of a source.
    pub(crate) fn remove(
        &mut self,
        family: Family,
        id: PrefixId,
        source: Source,
        path: PathId,
    ) -> Option<Change> {
        let (table, decision) = self.split(family);
        let change = table.remove(id, source, path, &decision)?;
        if let Some(old) = change.old {
            self.attributes.release(old.attributes);
        }
        Some(change)
    }

    /// The number of a prefix, which may have no path.
    pub(crate) fn reserve(&mut self, family: Family, prefix: IpNet) -> PrefixId {
        self.split(family).0.number(prefix)
    }

    /// Forgets a prefix that has no path.
    pub(crate) fn release(&mut self, family: Family, id: PrefixId) {
        self.split(family).0.release(id);
    }

    /// What an update queue needs: a table to read, and the attributes to write.
    pub(crate) fn export(&mut self, family: Family) -> (&Table, &mut Interner<PathAttributes>) {
        match family {
            Family::Ipv4Unicast => (&self.ipv4, &mut self.attributes),
            Family::Ipv6Unicast => (&self.ipv6, &mut self.attributes),
        }
    }

    fn split(&mut self, family: Family) -> (&mut Table, Decision<'_>) {
        let decision = Decision { attributes: &self.attributes, neighbours: &self.neighbours };
        match family {
            Family::Ipv4Unicast => (&mut self.ipv4, decision),
            Family::Ipv6Unicast => (&mut self.ipv6, decision),
        }
    }
}
