//! What has to be written so that this cluster has what was merged. Pure. What has not our label is not touched.
use super::{
    derived::Addresses,
    kept::{Kept, ServiceExport, ServiceImport},
    own::Modes,
};
use crate::{
    api::{
        EndpointSlice, cluster_link::ClusterLinkStatus, delivery::FORWARDING, endpoint_slice::ImportedFrom,
        policy::ForwardingMode,
    },
    by_name::{ByName, changed},
    mcs::{Import, Merged, Verdict},
    status::Conditions,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A write. Names are `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Write {
    /// A ServiceImport that is not there.
    CreateImport(String, Arc<Import>),
    /// A ServiceImport that is another one, and its `resourceVersion`.
    ReplaceImport(String, Arc<Import>, Box<str>),
    /// A ServiceImport that nobody exports any more.
    DeleteImport(String),
    /// The status of a ServiceImport.
    ImportStatus(String, Value),
    /// A slice that is not there.
    CreateSlice(Arc<EndpointSlice>),
    /// A slice that is another one.
    ReplaceSlice(Arc<EndpointSlice>),
    /// A slice of nobody.
    DeleteSlice(String),
    /// The status of a ServiceExport.
    ExportStatus(String, Value),
    /// The status of a ClusterLink: a merge patch.
    LinkStatus(String, Value),
}

/// What this cluster has.
#[derive(Clone, Copy)]
pub(super) struct Existing<'a> {
    pub(super) imports: &'a ByName<Kept<ServiceImport>>,
    pub(super) exports: &'a ByName<Kept<ServiceExport>>,
    pub(super) slices: &'a ByName<EndpointSlice>,
    pub(super) addresses: &'a Addresses,
    pub(super) modes: &'a Modes,
}

/// What we wrote and the API server did not give back as it was: by name, with its `resourceVersion` then.
pub(super) type Written = BTreeMap<String, (Box<str>, Arc<Import>)>;

/// What needed no write: of each kind what was merged, and what was there then. Only what is another one since is looked at: to read
/// all objects again would be most of what a pass costs.
#[derive(Debug, Default)]
pub(super) struct Settled {
    imports: (ByName<Import>, ByName<Kept<ServiceImport>>),
    slices: (ByName<EndpointSlice>, ByName<EndpointSlice>),
    exports: (ByName<Verdict>, ByName<Kept<ServiceExport>>),
    addresses: Addresses,
    modes: Modes,
    /// With others of these all is looked at.
    ground: (BTreeSet<String>, BTreeSet<String>, BTreeSet<String>),
}

/// ServiceImports of others: their services are theirs.
pub(super) fn foreign(imports: &ByName<Kept<ServiceImport>>) -> BTreeSet<&str> {
    imports.iter().filter(|(_, import)| !import.rest.is_ours).map(|(name, _)| name.as_str()).collect()
}

/// The writes: first those of slices that are there, then ServiceImports, then all others; what needs none is `settled`. `kept`:
/// clusters that were not listed yet, whose slices stay as they are. `now`: seconds since the epoch.
pub(super) fn plan(
    merged: &Merged,
    existing: Existing<'_>,
    written: &Written,
    settled: &mut Settled,
    kept: &BTreeSet<&str>,
    now: u64,
) -> Vec<Write> {
    let foreign = foreign(existing.imports);
    let owned = |names: &BTreeSet<&str>| names.iter().map(|name| (*name).to_owned()).collect();
    let ground = (owned(&foreign), owned(kept), existing.addresses.taken());
    if settled.ground != ground {
        *settled = Settled { ground, ..Settled::default() };
    }
    // Slices that are there are in use: they do not wait for what is new.
    let slices = slices(merged, existing.slices, settled, &foreign, kept);
    let (new, mut writes) =
        slices.into_iter().partition::<Vec<_>, _>(|write| matches!(write, Write::CreateSlice(_)));
    writes.extend(imports(merged, existing, written, settled, &foreign, now));
    writes.extend(new);
    writes.extend(exports(merged, existing, settled, &foreign, now));
    writes
}

/// Slices that are as they were merged, but are kept twice.
pub(super) fn kept_twice<'a>(
    merged: &'a Merged,
    existing: &'a ByName<EndpointSlice>,
    settled: &'a Settled,
) -> impl Iterator<Item = (&'a str, &'a Arc<EndpointSlice>)> {
    let (before, existing_before) = &settled.slices;
    let names = changed((before, &merged.slices), (existing_before, existing));
    names.into_iter().filter_map(move |name| {
        let (slice, known) = (merged.slices.get(name)?, existing.get(name)?);
        (!Arc::ptr_eq(slice, known) && slice == known).then_some((name, slice))
    })
}

fn slices(
    merged: &Merged,
    existing: &ByName<EndpointSlice>,
    settled: &mut Settled,
    foreign: &BTreeSet<&str>,
    kept: &BTreeSet<&str>,
) -> Vec<Write> {
    let is_foreign = |slice: &EndpointSlice| {
        let import = slice.metadata.import.as_ref().zip(slice.metadata.namespace.as_ref());
        import.is_some_and(|(import, namespace)| {
            !foreign.is_empty() && foreign.contains([namespace, "/", &*import.service].concat().as_str())
        })
    };
    let taken = settled.ground.2.clone();
    let write = |name: &str| {
        let wanted = merged.slices.get(name).filter(|slice| !is_foreign(slice));
        let unbound = wanted.filter(|_| !taken.is_empty()).and_then(|slice| unbound(slice, &taken));
        match (unbound.as_ref().or(wanted), existing.get(name)) {
            (Some(slice), None) => Some(Write::CreateSlice(Arc::clone(slice))),
            (Some(slice), Some(known)) if Arc::ptr_eq(known, slice) || known == slice => None,
            (_, Some(known)) if known.metadata.import.is_none() => None,
            // A slice's type of addresses cannot be changed.
            (Some(slice), Some(known)) if known.address_type == slice.address_type => {
                Some(Write::ReplaceSlice(Arc::clone(slice)))
            }
            (None, Some(known)) if is_kept(known, kept) && !is_foreign(known) => None,
            (_, Some(_)) => Some(Write::DeleteSlice(name.to_owned())),
            (None, None) => None,
        }
    };
    let writes: Vec<_> = changed((&settled.slices.0, &merged.slices), (&settled.slices.1, existing))
        .into_iter()
        .filter_map(write)
        .collect();
    if writes.is_empty() {
        settled.slices = (merged.slices.clone(), existing.clone());
    }
    writes
}

/// The slice, bound to no Service, if its derived Service is one of these.
fn unbound(slice: &EndpointSlice, taken: &BTreeSet<String>) -> Option<Arc<EndpointSlice>> {
    let (import, namespace) = slice.metadata.import.as_ref().zip(slice.metadata.namespace.as_ref())?;
    taken.contains([namespace, "/", &*import.service].concat().as_str()).then(|| {
        let mut slice = slice.clone();
        slice.metadata.import = Some(Arc::new(ImportedFrom { derived: None, ..(**import).clone() }));
        Arc::new(slice)
    })
}

/// Whether a slice is of a cluster whose slices stay as they are.
fn is_kept(slice: &EndpointSlice, kept: &BTreeSet<&str>) -> bool {
    slice.metadata.import.as_ref().is_some_and(|import| kept.contains(&*import.cluster))
}

fn exports(
    merged: &Merged,
    existing: Existing<'_>,
    settled: &mut Settled,
    foreign: &BTreeSet<&str>,
    now: u64,
) -> Vec<Write> {
    let Existing { exports: existing, modes, .. } = existing;
    let write = |name: &str| {
        let (verdict, export) = (merged.verdicts.get(name)?, existing.get(name)?);
        let mode = modes.get(name).and_then(|mode| **mode);
        let status = export_conditions(verdict, foreign.contains(name), mode, export, now);
        (*status != *export.conditions)
            .then(|| Write::ExportStatus(name.to_owned(), json!({"conditions": status})))
    };
    let mut names = changed((&settled.exports.0, &merged.verdicts), (&settled.exports.1, existing));
    names.extend(settled.modes.changes(modes).map(|(name, ..)| name));
    let writes: Vec<_> = names.into_iter().filter_map(write).collect();
    if writes.is_empty() {
        settled.exports = (merged.verdicts.clone(), existing.clone());
        settled.modes = modes.clone();
    }
    writes
}

fn imports(
    merged: &Merged,
    Existing { imports: existing, addresses, .. }: Existing<'_>,
    written: &Written,
    settled: &mut Settled,
    foreign: &BTreeSet<&str>,
    now: u64,
) -> Vec<Write> {
    let write = |name: &str| {
        let known = existing.get(name);
        let Some(import) = merged.imports.get(name).filter(|_| !foreign.contains(name)) else {
            let is_ours = known.is_some_and(|known| known.rest.is_ours);
            return is_ours.then(|| Write::DeleteImport(name.to_owned()));
        };
        let (import, state) = addresses.give(name, import);
        let Some(known) = known else {
            return Some(Write::CreateImport(name.to_owned(), import.into_owned()));
        };
        let is_written =
            written.get(name).is_some_and(|(at, last)| *at == known.version && last.is_like(&import));
        if !is_written && !known.rest.import.is_like(&import) {
            let version = known.version.clone();
            return Some(Write::ReplaceImport(name.to_owned(), import.into_owned(), version));
        }
        let mut conditions = Conditions::new(&known.conditions, known.generation, now);
        match state {
            Ok(()) => conditions.set("Ready", true, "Ready", "its endpoints are imported"),
            Err((reason, message)) => conditions.set("Ready", false, reason, message),
        }
        let conditions = conditions.finish();
        let is_said = known.rest.import.clusters == import.clusters && *known.conditions == *conditions;
        (!is_said).then(|| Write::ImportStatus(name.to_owned(), import.status(&conditions)))
    };
    let mut names = changed((&settled.imports.0, &merged.imports), (&settled.imports.1, existing));
    let before = &settled.addresses;
    names.extend(changed((&before.known, &addresses.known), (&before.refused, &addresses.refused)));
    let mut writes: Vec<_> = names.into_iter().filter_map(write).collect();
    if writes.is_empty() {
        settled.imports = (merged.imports.clone(), existing.clone());
        settled.addresses = addresses.clone();
    }
    // What is gone goes last.
    writes.sort_by_key(|write| matches!(write, Write::DeleteImport(_)));
    writes
}

/// The conditions of a ServiceExport, those of others among them.
fn export_conditions(
    verdict: &Verdict,
    is_foreign: bool,
    mode: Option<ForwardingMode>,
    export: &Kept<ServiceExport>,
    now: u64,
) -> Vec<Condition> {
    let before = &export.conditions;
    let mut conditions = Conditions::new(before, export.generation, now);
    match verdict.valid {
        Ok(()) => conditions.set("Valid", true, "Valid", "the Service can be exported"),
        Err(invalid) => conditions.set("Valid", false, invalid.reason(), invalid.to_string()),
    }
    match verdict.valid {
        Ok(()) if is_foreign => {
            conditions.set("Ready", false, "Failed", "the ServiceImport of this name is not Fairlead's");
        }
        Ok(()) => conditions.set("Ready", true, "Ready", "clusters with a link to this one can read it"),
        Err(_) => conditions.set("Ready", false, "Failed", "there is nothing to export"),
    }
    match verdict.conflicts.first() {
        None => conditions.set("Conflict", false, "NoConflicts", "no other export contradicts it"),
        Some(first) => {
            let messages: Vec<_> =
                verdict.conflicts.iter().map(|conflict| conflict.message.as_str()).collect();
            conditions.set("Conflict", true, first.reason, messages.join("; "));
        }
    }
    match mode {
        Some(mode) => conditions.set(
            FORWARDING,
            true,
            mode.name(),
            format!("packets to the addresses of the Service are forwarded by {}", mode.name()),
        ),
        None => conditions.set(
            FORWARDING,
            false,
            "NotBalanced",
            "there is no Service of type LoadBalancer and class fairlead.dev/lb",
        ),
    }
    let mut all = conditions.finish();
    let others: Vec<_> =
        before.iter().filter(|other| all.iter().all(|own| own.type_ != other.type_)).cloned().collect();
    all.extend(others);
    all.sort_by(|one, other| one.type_.cmp(&other.type_));
    all
}

/// The write that makes the status of a link so; none: it is.
pub(super) fn link_status(
    name: &str,
    before: Option<&Arc<ClusterLinkStatus>>,
    after: &ClusterLinkStatus,
) -> Option<Write> {
    let before = before.map_or_else(|| json!({}), |before| json!(**before));
    super::super::patch::merge_patch(&before, &json!(after))
        .map(|patch| Write::LinkStatus(name.to_owned(), patch))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{super::raw::Raw, derived::Refusal},
        *,
    };
    use crate::{
        mcs::{Conflict, Derived, Export, Facts, ImportPort, Invalid, derived_name, shared_clusters},
        object::Object,
        validate::check_object,
    };

    fn import(port: i32) -> Import {
        let port = ImportPort { name: "http".into(), protocol: "TCP".into(), app_protocol: None, port };
        Import {
            facts: Facts { ports: vec![port], ..Facts::default() }.shared(),
            clusters: shared_clusters(["west".to_owned()].into_iter()),
            ..Import::default()
        }
    }

    fn merged(import: Import) -> Merged {
        let mut merged = Merged::default();
        merged.imports.insert("n/web".to_owned(), Arc::new(import));
        merged
    }

    fn object(mut value: Value, version: &str) -> Raw {
        value["metadata"]["resourceVersion"] = version.into();
        serde_json::from_value(value).unwrap()
    }

    fn planned(merged: &Merged, imports: &[Raw], written: &Written) -> Vec<Write> {
        planned_with(merged, imports, written, &addresses())
    }

    /// The derived Service is there.
    fn addresses() -> Addresses {
        let mut object = Derived::object("n/web", &import(80));
        object["spec"]["clusterIPs"] = json!(["10.96.0.5"]);
        let derived = Derived::of(&serde_json::from_value(object).unwrap()).unwrap();
        let known = ByName::from([(derived.0, Arc::new(derived.1))]);
        Addresses { known, refused: ByName::new() }
    }

    /// The import with its address.
    fn given(port: i32) -> Import {
        let facts = Facts { ip_families: vec!["IPv4".into()], ..(*import(port).facts).clone() };
        Import { facts: facts.shared(), ips: vec![[10, 96, 0, 5].into()], ..import(port) }
    }

    fn planned_with(
        merged: &Merged,
        imports: &[Raw],
        written: &Written,
        addresses: &Addresses,
    ) -> Vec<Write> {
        planned_beside(merged, imports, &ByName::new(), written, addresses)
    }

    /// Where these slices are there.
    fn planned_beside(
        merged: &Merged,
        imports: &[Raw],
        slices: &ByName<EndpointSlice>,
        written: &Written,
        addresses: &Addresses,
    ) -> Vec<Write> {
        let imports = imports
            .iter()
            .map(|import| (super::super::known::name(&import.metadata), Arc::new(Kept::from(import))));
        let (imports, exports) = (imports.collect(), ByName::new());
        let modes = Modes::new();
        let existing = Existing { imports: &imports, exports: &exports, slices, addresses, modes: &modes };
        let mut settled = Settled::default();
        let writes = plan(merged, existing, written, &mut settled, &BTreeSet::new(), 1);
        assert_eq!(plan(merged, existing, written, &mut settled, &BTreeSet::new(), 1), writes);
        writes
    }

    #[test]
    fn an_import_is_made_then_said_to_be_ready_then_left_alone() {
        let merged = merged(import(80));
        let none = Written::new();
        assert_eq!(planned(&merged, &[], &none), [Write::CreateImport("n/web".into(), Arc::new(given(80)))]);
        let made = object(given(80).object("n/web"), "1");
        let writes = planned(&merged, std::slice::from_ref(&made), &none);
        let [Write::ImportStatus(_, status)] = &writes[..] else { panic!("{writes:?}") };
        let mut ready = made;
        ready.data.insert("status".to_owned(), status.clone());
        assert_eq!(planned(&merged, std::slice::from_ref(&ready), &none), []);
        assert_eq!(planned(&Merged::default(), &[ready], &none), [Write::DeleteImport("n/web".into())]);
    }

    #[test]
    fn what_an_api_server_does_not_keep_is_written_once() {
        let wanted = import(81);
        let pruned = object(given(80).object("n/web"), "7");
        let writes =
            |written: &Written| planned(&merged(wanted.clone()), std::slice::from_ref(&pruned), written);
        assert!(
            matches!(&writes(&Written::new())[..], [Write::ReplaceImport(_, import, version)] if **import == given(81) && &**version == "7")
        );
        let written = Written::from([("n/web".to_owned(), ("7".into(), Arc::new(given(81))))]);
        assert!(matches!(&writes(&written)[..], [Write::ImportStatus(..)]));
    }

    #[test]
    fn what_is_not_ours_is_not_touched() {
        let mut theirs = import(80).object("n/web");
        theirs["metadata"]["labels"] = json!({});
        assert_eq!(planned(&merged(import(81)), &[object(theirs.clone(), "1")], &Written::new()), []);
        assert_eq!(planned(&Merged::default(), &[object(theirs, "1")], &Written::new()), []);
    }

    #[test]
    fn an_address_that_comes_later_is_written_and_one_that_goes_is_taken_out() {
        let (merged, none) = (merged(import(80)), Written::new());
        let nothing = Addresses::default();
        let writes = planned_with(&merged, &[], &none, &nothing);
        assert_eq!(writes, [Write::CreateImport("n/web".into(), Arc::new(import(80)))]);
        let made = [object(import(80).object("n/web"), "1")];
        let writes = planned_with(&merged, &made, &none, &nothing);
        let [Write::ImportStatus(_, status)] = &writes[..] else { panic!("{writes:?}") };
        assert_eq!(status["conditions"][0]["reason"], "Pending");
        // Nothing else has changed since.
        let imports = ByName::from([("n/web".to_owned(), Arc::new(Kept::from(&made[0])))]);
        let (exports, slices, given_now) = (ByName::new(), ByName::new(), addresses());
        let modes = Modes::new();
        let existing = |addresses| Existing {
            imports: &imports,
            exports: &exports,
            slices: &slices,
            addresses,
            modes: &modes,
        };
        let mut settled =
            Settled { imports: (merged.imports.clone(), imports.clone()), ..Settled::default() };
        let kept = BTreeSet::new();
        assert_eq!(plan(&merged, existing(&nothing), &none, &mut settled, &kept, 1), []);
        let writes = plan(&merged, existing(&given_now), &none, &mut settled, &kept, 1);
        let [Write::ReplaceImport(_, replaced, _)] = &writes[..] else { panic!("{writes:?}") };
        assert_eq!(replaced.object("n/web")["spec"]["ips"], json!(["10.96.0.5"]));
        let had = [object(given(80).object("n/web"), "1")];
        let writes = planned_with(&merged, &had, &none, &nothing);
        assert!(matches!(&writes[..], [Write::ReplaceImport(_, import, _)] if import.ips.is_empty()));
    }

    /// An imported slice with one endpoint, and what it goes by.
    fn slice(name: &str, address: &str) -> (String, Arc<EndpointSlice>) {
        let slice = json!({"kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [{"addresses": [address]}],
            "metadata": {"namespace": "n", "name": name, "labels": {"kubernetes.io/service-name": "web"}}});
        let Ok(Object::EndpointSlice(slice)) = check_object(&slice) else { panic!("no slice") };
        let slice = Export::imported("web", "west", &slice, false);
        (["n/", &*slice.metadata.name].concat(), Arc::new(slice))
    }

    #[test]
    fn what_is_there_does_not_wait_for_what_is_new() {
        let ((a, there), (_, other), new) =
            (slice("a", "10.0.0.1"), slice("a", "10.0.0.2"), slice("b", "10.0.0.3"));
        let mut merged = merged(import(80));
        merged.slices = ByName::from([(a.clone(), Arc::clone(&other)), new.clone()]);
        let slices = ByName::from([(a, there)]);
        let writes = planned_beside(&merged, &[], &slices, &Written::new(), &addresses());
        let import = Write::CreateImport("n/web".into(), Arc::new(given(80)));
        assert_eq!(writes, [Write::ReplaceSlice(other), import, Write::CreateSlice(new.1)]);
    }

    #[test]
    fn slices_are_bound_to_no_service_of_somebody_else() {
        let mut merged = merged(import(80));
        merged.slices = ByName::from([slice("a", "10.0.0.1")]);
        let bound = |refused: &[Refusal]| {
            let refused = refused.iter().map(|why| ("n/web".to_owned(), Arc::new(why.clone()))).collect();
            let writes = planned_with(&merged, &[], &Written::new(), &Addresses { refused, ..addresses() });
            let label = |write: &Write| match write {
                Write::CreateSlice(slice) => {
                    Some(json!(**slice)["metadata"]["labels"]["kubernetes.io/service-name"].clone())
                }
                _ => None,
            };
            writes.iter().find_map(label).unwrap()
        };
        let derived = json!(derived_name("n", "web"));
        assert_eq!(bound(&[]), derived);
        assert_eq!(bound(&[Refusal::Refused(String::new())]), derived);
        assert_eq!(bound(&[Refusal::Taken]), Value::Null);
    }

    #[test]
    fn conditions_have_the_reasons_of_the_api() {
        let of = |valid, conflicts: &[&'static str], before: &[Condition]| -> Vec<(String, String, String)> {
            let conflict = |reason: &&'static str| Conflict { reason, message: "m".into() };
            let verdict = Verdict { valid, conflicts: conflicts.iter().map(conflict).collect() };
            let export = Kept { conditions: before.into(), ..Kept::default() };
            let mode = valid.ok().map(|()| ForwardingMode::GUE);
            let all = export_conditions(&verdict, false, mode, &export, 1);
            all.into_iter().map(|c| (c.type_, c.status, c.reason)).collect()
        };
        let said = |conditions: &[(&str, &str, &str)]| -> Vec<(String, String, String)> {
            conditions.iter().map(|(t, s, r)| ((*t).into(), (*s).into(), (*r).into())).collect()
        };
        assert_eq!(
            of(Ok(()), &[], &[]),
            said(&[
                ("Conflict", "False", "NoConflicts"),
                ("Ready", "True", "Ready"),
                ("Valid", "True", "Valid"),
                ("fairlead.dev/Forwarding", "True", "GUE")
            ])
        );
        let mut others = Conditions::new(&[], None, 1);
        others.set("Others", true, "Mine", "");
        assert_eq!(
            of(Err(Invalid::NoService), &["PortConflict", "TypeConflict"], &others.finish()),
            said(&[
                ("Conflict", "True", "PortConflict"),
                ("Others", "True", "Mine"),
                ("Ready", "False", "Failed"),
                ("Valid", "False", "NoService"),
                ("fairlead.dev/Forwarding", "False", "NotBalanced")
            ])
        );
    }
}
