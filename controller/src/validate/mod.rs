//! Checks of a whole directory: everything that is wrong, at once, or a [`Declared`].
//!
//! What a field may hold is a matter of its type ([`crate::api`]), how long it may be of the schema
//! ([`limits`]); here are the rules between fields ([`object`]) and between objects ([`across`]).
use crate::{
    declared::Declared,
    object::{Object, parse_file},
};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::{Path, PathBuf},
};

mod across;
pub(crate) mod limits;
mod object;

#[cfg(test)]
mod tests;

pub use crate::fault::Fault;

/// Most objects that a directory may hold.
pub const MAX_OBJECTS: usize = 100_000;

/// Reads and checks all files of a directory as one generation: everything, or all faults, sorted by place.
/// Statuses and generation of the result are empty.
pub fn parse_directory(files: &BTreeMap<PathBuf, String>) -> Result<Declared, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut objects = Objects::new();
    for (file, text) in files {
        let (parsed, bad) = parse_file(file, text);
        faults.extend(bad);
        for parsed in parsed {
            if objects.len() == MAX_OBJECTS {
                faults.push(Fault::file(file, format!("there are more than {MAX_OBJECTS} objects")));
                return Err(faults);
            }
            let place = Place { file, document: parsed.document };
            match objects.entry((parsed.object.kind(), parsed.name)) {
                Entry::Vacant(entry) => drop(entry.insert((place, parsed.object))),
                Entry::Occupied(entry) => {
                    let ((kind, name), (first, _)) = (entry.key(), entry.get());
                    let reason = format!(
                        "is declared already in {}, document {}",
                        first.file.display(),
                        first.document
                    );
                    faults.push(place.fault(format!("{kind}/{name}"), None, reason));
                }
            }
        }
    }
    for ((kind, name), (place, object)) in &objects {
        let found = object::faults(object);
        faults.extend(
            found
                .into_iter()
                .map(|(field, reason)| place.fault(format!("{kind}/{name}"), Some(field), reason)),
        );
    }
    // With objects missing, references to them would seem to dangle.
    if faults.is_empty() {
        faults = across::faults(&objects);
    }
    if faults.is_empty() {
        return Ok(declared(objects));
    }
    faults.sort();
    faults.dedup();
    Err(faults)
}

/// All objects by kind and name, and where they stand.
type Objects<'a> = BTreeMap<(crate::api::Kind, String), (Place<'a>, Object)>;

/// Where an object stands.
#[derive(Clone, Copy, Debug)]
struct Place<'a> {
    file: &'a Path,
    document: usize,
}

impl Place<'_> {
    fn fault(self, object: String, field: Option<String>, reason: String) -> Fault {
        Fault { file: self.file.into(), document: Some(self.document), object: Some(object), field, reason }
    }
}

fn declared(objects: Objects<'_>) -> Declared {
    let mut declared = Declared::default();
    for ((_, name), (_, object)) in objects {
        match object {
            Object::AddressPool(object) => drop(declared.pools.insert(name, *object)),
            Object::LoadBalancer(object) => drop(declared.load_balancers.insert(name, *object)),
            Object::BGPRouter(object) => drop(declared.routers.insert(name, *object)),
            Object::BGPPeer(object) => drop(declared.peers.insert(name, *object)),
            Object::BGPAdvertisement(object) => drop(declared.advertisements.insert(name, *object)),
            Object::Node(object) => drop(declared.nodes.insert(name, *object)),
        }
    }
    declared
}
