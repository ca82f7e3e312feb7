//! How a node tells of each object in one digit, and how the controller knows of which versions of which objects it tells.
//!
//! Objects are spread over [`PAGES`] pages by their names. A page begins with a digest of its objects: kind, name, `uid`,
//! generation and the addresses that are published. Who finds the same digest knows that the node had the same objects when
//! it wrote, down to the addresses in effect; its digits are in the order of their names then. A page of another digest says
//! nothing yet. So ten thousand services are some twelve kilobytes, and a new one leaves all other pages as they are.
//!
//! Objects of which the newest version is invalid are in no page: which version is in force may differ from process to
//! process.
use crate::{
    api::Kind,
    declared::Declared,
    fault::Fault,
    fnv::{self, fnv},
    status::Statuses,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

/// How many pages there are.
pub(crate) const PAGES: usize = 64;
/// Hexadecimal digits of a digest.
const DIGEST: usize = 16;

/// Kind and name of an object.
pub(crate) type Key<'a> = (Kind, &'a str);

/// The objects that nodes tell of.
#[derive(Debug)]
pub(crate) struct Pages<'a>(Vec<Page<'a>>);

/// Objects that are told of together, sorted by kind and name.
#[derive(Clone, Debug, Default)]
struct Page<'a> {
    digest: u64,
    objects: Vec<Key<'a>>,
}

/// How an object stands on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) health: Sight,
    pub(crate) is_programmed: bool,
    pub(crate) is_announced: bool,
}

/// What a node sees of backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sight {
    /// It does not know yet.
    #[default]
    Unknown,
    /// Some backend is healthy.
    Healthy,
    /// None is.
    Unhealthy,
    /// There is nothing to be seen: no backends for this node, or the object is not for it.
    Nothing,
}

impl<'a> Pages<'a> {
    /// Those of a snapshot, without what is at fault.
    pub(crate) fn new(declared: &'a Declared, faults: &[Fault]) -> Self {
        let at_fault: BTreeSet<_> = faults.iter().filter_map(|fault| fault.object.as_deref()).collect();
        let statuses = &declared.statuses;
        let addresses = |statuses: &Statuses<crate::api::LoadBalancerStatus>, name: &str| {
            let status = statuses.get(name);
            let addresses =
                status.into_iter().flat_map(|status| status.addresses.iter().map(|a| a.address.0));
            addresses.map(|address| address.to_string() + ",").collect::<String>()
        };
        let mut pages = Pages(vec![Page::default(); PAGES]);
        let mut add = |kind: Kind, name: &'a str, metadata: &ObjectMeta, addresses: String| {
            if at_fault.is_empty() || !at_fault.contains(format!("{kind}/{name}").as_str()) {
                pages.add((kind, name), metadata, &addresses);
            }
        };
        for (name, object) in &declared.load_balancers {
            add(Kind::LoadBalancer, name, &object.metadata, addresses(&statuses.load_balancers, name));
        }
        for (name, object) in &declared.routers {
            add(Kind::BGPRouter, name, &object.metadata, String::new());
        }
        for (name, object) in &declared.packet_filters {
            add(Kind::PacketFilter, name, &object.metadata, String::new());
        }
        for (name, object) in
            declared.services.iter().filter(|(_, object)| crate::api::service::is_ours(object))
        {
            add(Kind::Service, name, &object.metadata, addresses(&statuses.services, name));
        }
        pages
    }

    /// As a node writes them.
    pub(crate) fn written(&self, standings: &BTreeMap<Key<'_>, Standing>) -> Vec<String> {
        let page = |page: &Page<'_>| {
            let mut text = format!("{:0DIGEST$x}", page.digest);
            for object in &page.objects {
                let standing = standings.get(object).copied().unwrap_or_default();
                // Writing to a String does not fail.
                let _ = write!(text, "{:x}", standing.digit());
            }
            text
        };
        self.0.iter().map(page).collect()
    }

    /// The number of the page of an object, and its place there.
    pub(crate) fn find(&self, object: Key<'_>) -> Option<(usize, usize)> {
        let page = page_of(object);
        Some((page, self.0[page].objects.binary_search(&object).ok()?))
    }

    /// The digits of a page, if the node knew these objects when it wrote.
    pub(crate) fn read<'b>(&self, page: usize, written: &'b [String]) -> Option<&'b [u8]> {
        let Page { digest, objects } = &self.0[page];
        let (told, digits) = written.get(page)?.split_at_checked(DIGEST)?;
        let is_same = u64::from_str_radix(told, 16) == Ok(*digest) && digits.len() == objects.len();
        is_same.then_some(digits.as_bytes())
    }

    fn add(&mut self, object: Key<'a>, metadata: &ObjectMeta, addresses: &str) {
        let page = &mut self.0[page_of(object)];
        let uid = metadata.uid.as_deref().unwrap_or_default();
        let generation = metadata.generation.unwrap_or(0).to_string();
        let parts = [&object.0.name(), object.1, uid, &generation, addresses];
        let digest =
            parts.iter().fold(page.digest ^ fnv::OFFSET, |digest, part| fnv(digest, part.as_bytes()));
        page.digest = digest;
        // Kinds are added in their order, and names in theirs.
        page.objects.push(object);
    }
}

impl Standing {
    /// One hexadecimal digit.
    fn digit(self) -> u8 {
        let health = match self.health {
            Sight::Unknown => 0,
            Sight::Healthy => 1,
            Sight::Unhealthy => 2,
            Sight::Nothing => 3,
        };
        health | u8::from(self.is_programmed) << 2 | u8::from(self.is_announced) << 3
    }

    /// Read from a digit as it is written; what is none counts as 0.
    pub(crate) fn of(digit: u8) -> Self {
        let bits = char::from(digit).to_digit(16).unwrap_or(0);
        let health = match bits & 3 {
            1 => Sight::Healthy,
            2 => Sight::Unhealthy,
            3 => Sight::Nothing,
            _ => Sight::Unknown,
        };
        Standing { health, is_programmed: bits & 4 != 0, is_announced: bits & 8 != 0 }
    }
}

fn page_of((kind, name): Key<'_>) -> usize {
    (fnv(fnv(fnv::OFFSET, kind.name().as_bytes()), name.as_bytes()) % PAGES as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::LoadBalancerStatus, validate::parse_directory};
    use std::sync::Arc;

    fn declared(balancers: std::ops::Range<u32>) -> Declared {
        let balancers = balancers.map(|n| {
            format!(
                "---\nkind: LoadBalancer\nmetadata: {{name: s-{n}, uid: u-{n}}}\nspec: {{ports: [{{port: 80}}]}}\n"
            )
        });
        let text = "kind: BGPRouter\nmetadata: {name: all}\nspec: {asn: 65010}\n".to_owned()
            + &balancers.collect::<String>();
        parse_directory(&BTreeMap::from([("a.yaml".into(), text)])).unwrap()
    }

    fn standing(n: u8) -> Standing {
        Standing::of(b"0123456789abcdef"[usize::from(n % 16)])
    }

    #[test]
    fn what_is_written_is_read() {
        let declared = declared(0..500);
        let pages = Pages::new(&declared, &[]);
        let names = declared.load_balancers.keys().enumerate();
        let standings: BTreeMap<_, _> =
            names.map(|(n, name)| ((Kind::LoadBalancer, name.as_str()), standing(n as u8))).collect();
        let written = pages.written(&standings);
        assert_eq!(written.len(), PAGES);
        assert_eq!(written.iter().map(String::len).sum::<usize>(), PAGES * DIGEST + 501);
        for (object, standing) in standings {
            let (page, at) = pages.find(object).unwrap();
            assert_eq!(Standing::of(pages.read(page, &written).unwrap()[at]), standing, "{object:?}");
        }
        assert_eq!(pages.find((Kind::LoadBalancer, "other")), None);
        for bad in [vec![], vec![String::new(); PAGES], vec!["ü".repeat(20); PAGES]] {
            assert!((0..PAGES).all(|page| pages.read(page, &bad).is_none()), "{bad:?}");
        }
    }

    #[test]
    fn a_page_is_of_certain_versions() {
        let declared = declared(0..500);
        let written = Pages::new(&declared, &[]).written(&BTreeMap::new());
        let differing = |other: &Declared, faults: &[Fault]| -> usize {
            let pages = Pages::new(other, faults);
            (0..PAGES).filter(|page| pages.read(*page, &written).is_none()).count()
        };
        assert_eq!(differing(&declared, &[]), 0);
        assert_eq!(differing(&self::declared(0..501), &[]), 1, "one more");
        assert_eq!(differing(&declared, &[Fault::object("LoadBalancer/s-7", None, "bad")]), 1);
        let mut given = declared.clone();
        let status = serde_json::from_str::<LoadBalancerStatus>(
            r#"{"addresses": [{"address": "192.0.2.1", "assignedAt": "2026-01-01T00:00:00Z"}]}"#,
        );
        given.statuses.load_balancers.insert("s-7".to_owned(), Arc::new(status.unwrap()));
        assert_eq!(differing(&given, &[]), 1, "an address came into effect");
    }
}
