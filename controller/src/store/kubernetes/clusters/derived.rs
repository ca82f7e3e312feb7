//! Derived Services: which have to be written so that each ServiceImport has its addresses, and what that comes to for the
//! ServiceImport. Pure. What has not our label is not touched.
use super::kept::{Kept, ServiceImport};
use crate::{
    by_name::{ByName, changed},
    mcs::{Derived, Facts, Import, Merged, derived_name},
};
use serde_json::Value;
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// What was refused is tried again after this.
pub(super) const AGAIN: Duration = Duration::from_secs(15);

/// A write. Names are `NAMESPACE/NAME` of the imported service.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Write {
    /// A Service that is not there.
    Create(String, Arc<Import>),
    /// A Service that is another one: a merge patch.
    Patch(String, Arc<Import>, Value),
    /// A Service of nobody, as it is in this version.
    Delete(String, Box<str>),
}

/// Why there is no Service as it should be.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Refusal {
    /// One of its name is not ours.
    Taken,
    /// What the API server says.
    Refused(String),
    /// The API server has taken it, and keeps something else, in this version.
    NotKept(Box<str>),
}

/// What was refused: for which facts, when (by the monotonic clock), and why.
pub(super) type Refused = BTreeMap<String, (Arc<Facts>, Duration, Refusal)>;

/// What is there for the addresses of ServiceImports, by `NAMESPACE/NAME` of these.
#[derive(Clone, Debug, Default)]
pub(super) struct Addresses {
    /// The derived Services.
    pub(super) known: ByName<Derived>,
    /// Those that are not as they should be.
    pub(super) refused: ByName<Refusal>,
}

/// What needed no write, as in [`super::plan::Settled`].
#[derive(Debug, Default)]
pub(super) struct Settled {
    merged: ByName<Import>,
    known: ByName<Derived>,
    imports: ByName<Kept<ServiceImport>>,
}

/// The writes; what needs none is `settled`. What was refused is left alone for a while. `now`: by the monotonic clock.
pub(super) fn plan(
    merged: &Merged,
    imports: &ByName<Kept<ServiceImport>>,
    known: &ByName<Derived>,
    refused: &Refused,
    settled: &mut Settled,
    now: Duration,
) -> Vec<Write> {
    let is_due = |name: &str, (_, at, refusal): &(Arc<Facts>, Duration, Refusal)| match refusal {
        Refusal::NotKept(version) => known.get(name).is_none_or(|service| service.version != *version),
        Refusal::Taken | Refusal::Refused(_) => now >= *at + AGAIN,
    };
    let waits = |name: &str, import: &Import| {
        refused.get(name).is_some_and(|refused| refused.0 == import.facts && !is_due(name, refused))
    };
    let write = |name: &str| {
        let existing = imports.get(name);
        let is_foreign = existing.is_some_and(|import| !import.rest.is_ours);
        let wanted = merged.imports.get(name).filter(|import| !import.facts.is_headless && !is_foreign);
        match (wanted, known.get(name)) {
            (Some(import), _) if waits(name, import) => None,
            (Some(import), None) => Some(Write::Create(name.to_owned(), Arc::clone(import))),
            (Some(import), Some(service)) => {
                let patch = service.patch(import)?;
                Some(Write::Patch(name.to_owned(), Arc::clone(import), patch))
            }
            // First nobody may be led to its addresses any more.
            (None, Some(_))
                if !is_foreign && existing.is_some_and(|import| !import.rest.import.ips.is_empty()) =>
            {
                None
            }
            (None, Some(service)) => Some(Write::Delete(name.to_owned(), service.version.clone())),
            (None, None) => None,
        }
    };
    let mut names = changed((&settled.merged, &merged.imports), (&settled.known, known));
    names.extend(settled.imports.changes(imports).map(|(name, ..)| name));
    names.extend(
        refused.iter().filter(|(name, refused)| is_due(name, refused)).map(|(name, _)| name.as_str()),
    );
    let writes: Vec<_> = names.into_iter().filter_map(write).collect();
    if writes.is_empty() {
        *settled = Settled { merged: merged.imports.clone(), known: known.clone(), imports: imports.clone() };
    }
    writes
}

/// A reason, and a sentence for it.
type Reason = (&'static str, String);

impl Addresses {
    /// An import with its addresses, and whether it can be used; else why not, as reason and sentence.
    pub(super) fn give<'a>(
        &self,
        name: &str,
        import: &'a Arc<Import>,
    ) -> (Cow<'a, Arc<Import>>, Result<(), Reason>) {
        if import.facts.is_headless {
            return (Cow::Borrowed(import), Ok(()));
        }
        let known = self.known.get(name);
        let given = known.and_then(|service| service.give(import));
        let service = || {
            name.split_once('/').map_or_else(String::new, |(namespace, name)| derived_name(namespace, name))
        };
        let state = match (self.refused.get(name).map(|refusal| &**refusal), &given, known) {
            (Some(Refusal::Taken), ..) => {
                Err(("Failed", format!("it has no address: Service/{} is not Fairlead's", service())))
            }
            (Some(Refusal::Refused(why)), ..) => {
                Err(("Failed", format!("Service/{} cannot be as it should: {why}", service())))
            }
            (_, Some(_), _) => Ok(()),
            (_, None, Some(_)) => {
                let families = import.facts.ip_families.join(" and ");
                Err((
                    "IPFamilyNotSupported",
                    format!("this cluster gives Services no addresses of {families}"),
                ))
            }
            (_, None, None) => Err((
                "Pending",
                format!("Service/{}, which gives it its addresses, is not there yet", service()),
            )),
        };
        (given.map_or(Cow::Borrowed(import), |import| Cow::Owned(Arc::new(import))), state)
    }

    /// Services whose derived Service belongs to somebody else: slices are bound to none.
    pub(super) fn taken(&self) -> BTreeSet<String> {
        let taken = self.refused.iter().filter(|(_, refusal)| ***refusal == Refusal::Taken);
        taken.map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::raw::Raw, *};
    use crate::mcs::ImportPort;
    use serde_json::json;

    const NAME: &str = "n/web";

    fn import(port: i32) -> Import {
        let port = ImportPort { name: String::new(), protocol: "TCP".into(), app_protocol: None, port };
        Import { facts: Facts { ports: vec![port], ..Facts::default() }.shared(), ..Import::default() }
    }

    fn merged(import: &Import) -> Merged {
        let mut merged = Merged::default();
        merged.imports.insert(NAME.to_owned(), Arc::new(import.clone()));
        merged
    }

    fn service(import: &Import) -> Derived {
        let mut object = Derived::object(NAME, import);
        object["metadata"]["resourceVersion"] = "7".into();
        object["spec"]["clusterIPs"] = json!(["10.96.0.5"]);
        Derived::of(&serde_json::from_value(object).unwrap()).unwrap().1
    }

    fn object(import: &Import) -> Kept<ServiceImport> {
        Kept::from(&serde_json::from_value::<Raw>(import.object(NAME)).unwrap())
    }

    /// What is planned at the second 100, twice: nothing that needs a write is settled.
    fn planned(
        merged: &Merged,
        import: Option<Kept<ServiceImport>>,
        known: Option<Derived>,
        refused: &Refused,
    ) -> Vec<Write> {
        let imports = import.map(|import| (NAME.to_owned(), Arc::new(import))).into_iter().collect();
        let known = known.map(|known| (NAME.to_owned(), Arc::new(known))).into_iter().collect();
        let mut settled = Settled::default();
        let mut again = || plan(merged, &imports, &known, refused, &mut settled, Duration::from_secs(100));
        let writes = again();
        assert_eq!(again(), writes);
        writes
    }

    fn refused(import: &Import, at: u64) -> Refused {
        let refusal = (import.facts.clone(), Duration::from_secs(at), Refusal::Taken);
        Refused::from([(NAME.to_owned(), refusal)])
    }

    #[test]
    fn a_service_is_made_then_left_alone_then_changed() {
        let (http, none) = (import(80), Refused::new());
        let create = Write::Create(NAME.to_owned(), Arc::new(http.clone()));
        assert_eq!(planned(&merged(&http), None, None, &none), [create]);
        assert_eq!(planned(&merged(&http), None, Some(service(&http)), &none), []);
        let writes = planned(&merged(&import(81)), None, Some(service(&http)), &none);
        assert!(matches!(&writes[..], [Write::Patch(..)]), "{writes:?}");
    }

    #[test]
    fn what_is_refused_waits_unless_it_is_something_else() {
        let http = import(80);
        assert_eq!(planned(&merged(&http), None, None, &refused(&http, 86)), []);
        assert_eq!(planned(&merged(&http), None, None, &refused(&http, 85)).len(), 1);
        assert_eq!(planned(&merged(&http), None, None, &refused(&import(81), 100)).len(), 1);
        // What is not kept as it was written is left alone as it is, until somebody changes it.
        let kept = |version: &str| {
            let refusal = (import(81).facts, Duration::ZERO, Refusal::NotKept(version.into()));
            let refused = Refused::from([(NAME.to_owned(), refusal)]);
            planned(&merged(&import(81)), None, Some(service(&http)), &refused).len()
        };
        assert_eq!([kept("7"), kept("6")], [0, 1]);
        // It is tried again although nothing else has changed.
        let (merged, mut settled) = (merged(&http), Settled::default());
        let (imports, known, refused) = (ByName::new(), ByName::new(), refused(&http, 86));
        let mut at = |second| {
            plan(&merged, &imports, &known, &refused, &mut settled, Duration::from_secs(second)).len()
        };
        assert_eq!([at(100), at(100), at(101)], [0, 0, 1]);
    }

    #[test]
    fn a_service_goes_after_its_import() {
        let (http, none) = (import(80), Refused::new());
        let known = service(&http);
        let given = object(&known.give(&http).unwrap());
        let delete = [Write::Delete(NAME.to_owned(), "7".into())];
        let gone = |import| planned(&Merged::default(), import, Some(known.clone()), &none);
        assert_eq!(gone(Some(given.clone())), []);
        assert_eq!(gone(Some(object(&http))), delete);
        assert_eq!(gone(None), delete);
        // It is somebody else's by now, or headless.
        let theirs = Kept { rest: ServiceImport::default(), ..given };
        assert_eq!(planned(&merged(&http), Some(theirs), Some(known.clone()), &none), delete);
        let facts = Facts { is_headless: true, ..(*http.facts).clone() }.shared();
        let headless = Import { facts, ..http };
        assert_eq!(planned(&merged(&headless), Some(object(&headless)), Some(known), &none), delete);
    }

    #[test]
    fn an_import_says_why_it_has_no_address() {
        let said = |import: Import, known: Option<Derived>, refusal: Option<Refusal>| {
            let addresses = Addresses {
                known: known.map(|known| (NAME.to_owned(), Arc::new(known))).into_iter().collect(),
                refused: refusal.map(|why| (NAME.to_owned(), Arc::new(why))).into_iter().collect(),
            };
            let import = Arc::new(import);
            let (given, state) = addresses.give(NAME, &import);
            (given.ips.len(), state.err())
        };
        let http = import(80);
        let name = derived_name("n", "web");
        assert_eq!(said(http.clone(), Some(service(&http)), None), (1, None));
        let headless = Facts { is_headless: true, ..(*http.facts).clone() }.shared();
        assert_eq!(said(Import { facts: headless, ..http.clone() }, Some(service(&http)), None), (0, None));
        let (none, why) = said(http.clone(), None, None);
        assert_eq!((none, why.unwrap().0), (0, "Pending"));
        let taken = format!("it has no address: Service/{name} is not Fairlead's");
        assert_eq!(said(http.clone(), None, Some(Refusal::Taken)), (0, Some(("Failed", taken))));
        // What it has it keeps.
        let refused = Some(Refusal::Refused("no port".to_owned()));
        let (one, why) = said(http.clone(), Some(service(&http)), refused);
        assert_eq!((one, why.unwrap().1), (1, format!("Service/{name} cannot be as it should: no port")));
        let six = Import {
            facts: Facts { ip_families: vec!["IPv6".into()], ..(*http.facts).clone() }.shared(),
            ..http.clone()
        };
        let why = ("IPFamilyNotSupported", "this cluster gives Services no addresses of IPv6".to_owned());
        assert_eq!(said(six, Some(service(&http)), None), (0, Some(why)));
    }
}
