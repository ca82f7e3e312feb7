//! Checks of a whole directory: everything that is wrong, at once, or a [`Declared`].
//!
//! What a field may hold is a matter of its type ([`crate::api`]), how long it may be of the schema
//! (`limits`); here are the rules between fields (`object`) and between objects (`across`).
use crate::{
    api::Kind,
    declared::Declared,
    object::{Object, Parsed, parse_file, parse_object},
};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::{Path, PathBuf},
};

mod across;
mod kubernetes;
pub(crate) mod limits;
mod object;

#[cfg(test)]
mod tests;

pub use crate::fault::Fault;

/// Most objects that a directory may hold.
pub const MAX_OBJECTS: usize = 100_000;

/// The objects of one file, and what is wrong with each by itself. Keep it for as long as the text is the same:
/// reading is what takes the time.
#[derive(Debug)]
pub struct CheckedFile {
    objects: Vec<Parsed>,
    faults: Vec<Fault>,
}

impl CheckedFile {
    /// Reads a file and checks its objects one by one.
    pub fn new(file: &Path, text: &str) -> Self {
        let (objects, mut faults) = parse_file(file, text);
        for parsed in &objects {
            let place = Place { file, document: parsed.document };
            let name = format!("{}/{}", parsed.object.kind(), parsed.name);
            let found = object::faults(&parsed.object).into_iter();
            faults.extend(found.map(|(field, reason)| place.fault(name.clone(), Some(field), reason)));
        }
        CheckedFile { objects, faults }
    }
}

/// Reads and checks one object by itself, as an API server has it. What spans several objects is left to who uses them.
///
/// # Errors
/// The first fault; it names no file.
pub fn check_object(tree: &serde_json::Value) -> Result<Object, Fault> {
    let (name, object) = parse_object(tree)?;
    match object::faults(&object).into_iter().next() {
        None => Ok(object),
        Some((field, reason)) => Err(Fault::object(format!("{}/{name}", object.kind()), Some(field), reason)),
    }
}

/// Reads and checks all files of a directory as one generation: everything, or all faults, sorted by place.
/// Statuses and generation of the result are empty.
pub fn parse_directory(files: &BTreeMap<PathBuf, String>) -> Result<Declared, Vec<Fault>> {
    let checked: Vec<_> =
        files.iter().map(|(file, text)| (file.as_path(), CheckedFile::new(file, text))).collect();
    check_directory(checked.iter().map(|(file, checked)| (*file, checked)))
}

/// The same for files that were read already.
pub fn check_directory<'a>(
    files: impl IntoIterator<Item = (&'a Path, &'a CheckedFile)>,
) -> Result<Declared, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut objects = Objects::new();
    for (file, checked) in files {
        faults.extend_from_slice(&checked.faults);
        for Parsed { document, name, object } in &checked.objects {
            if objects.len() == MAX_OBJECTS {
                faults.push(Fault::file(file, format!("there are more than {MAX_OBJECTS} objects")));
                return Err(faults);
            }
            let (kind, place) = (object.kind(), Place { file, document: *document });
            match objects.entry((kind, name.as_str())) {
                Entry::Vacant(entry) => drop(entry.insert((place, object))),
                Entry::Occupied(entry) => {
                    let (first, _) = entry.get();
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
type Objects<'a> = BTreeMap<(Kind, &'a str), (Place<'a>, &'a Object)>;

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
        let name = name.to_owned();
        match object.clone() {
            Object::AddressPool(object) => drop(declared.pools.insert(name, object)),
            Object::LoadBalancer(object) => drop(declared.load_balancers.insert(name, object)),
            Object::ServicePolicy(object) => drop(declared.policies.insert(name, object)),
            Object::Service(object) => drop(declared.services.insert(name, object)),
            Object::EndpointSlice(object) => drop(declared.endpoint_slices.insert(name, object)),
            Object::Namespace(object) => drop(declared.namespaces.insert(name, object)),
            Object::BGPRouter(object) => drop(declared.routers.insert(name, object)),
            Object::BGPPeer(object) => drop(declared.peers.insert(name, object)),
            Object::BGPAdvertisement(object) => drop(declared.advertisements.insert(name, object)),
            Object::ClusterLink(object) => drop(declared.cluster_links.insert(name, object)),
            Object::PacketFilter(object) => drop(declared.packet_filters.insert(name, object)),
            Object::Node(object) => drop(declared.nodes.insert(name, object)),
            Object::Secret(object) => drop(declared.secrets.insert(name, object)),
        }
    }
    declared
}
