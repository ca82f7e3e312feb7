//! Checks of a whole directory.
use crate::{
    declared::Declared,
    fault::Fault,
    object::{Object, parse_file},
};
use std::{collections::BTreeMap, path::PathBuf};

/// Reads and checks all files of a directory as one generation: everything, or all faults at once.
pub fn parse_directory(files: &BTreeMap<PathBuf, String>) -> Result<Declared, Vec<Fault>> {
    let mut declared = Declared::default();
    let mut faults = Vec::new();
    for (file, text) in files {
        let (objects, bad) = parse_file(file, text);
        faults.extend(bad);
        for parsed in objects {
            let name = parsed.name;
            match parsed.object {
                Object::AddressPool(object) => drop(declared.pools.insert(name, *object)),
                Object::LoadBalancer(object) => drop(declared.load_balancers.insert(name, *object)),
                Object::BGPRouter(object) => drop(declared.routers.insert(name, *object)),
                Object::BGPPeer(object) => drop(declared.peers.insert(name, *object)),
                Object::BGPAdvertisement(object) => drop(declared.advertisements.insert(name, *object)),
                Object::Node(object) => drop(declared.nodes.insert(name, *object)),
            }
        }
    }
    if faults.is_empty() { Ok(declared) } else { Err(faults) }
}
