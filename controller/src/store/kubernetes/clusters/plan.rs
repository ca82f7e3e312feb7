//! What has to be written so that this cluster has what was merged. Pure. What has not our label is not touched.
use crate::{
    api::{EndpointSlice, cluster_link::ClusterLinkStatus},
    by_name::ByName,
    mcs::{Facts, IMPORT_MANAGED_BY, Import, MANAGER, Merged, Verdict},
    status::Conditions,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::api::DynamicObject;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A write. Names are `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Write {
    /// A ServiceImport that is not there.
    CreateImport(Value),
    /// A ServiceImport that is another one, with `resourceVersion`.
    ReplaceImport(String, Value),
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
    pub(super) imports: &'a BTreeMap<String, DynamicObject>,
    pub(super) exports: &'a BTreeMap<String, DynamicObject>,
    pub(super) slices: &'a ByName<EndpointSlice>,
}

/// What we wrote last, for API servers that do not give it back as it was: by name, its `resourceVersion` then.
pub(super) type Written = BTreeMap<String, (String, Import)>;

/// ServiceImports that need no write: by name, their `resourceVersion`, and what was merged. As long as both are the same there is
/// nothing to do: to read them again would be most of what a pass costs.
pub(super) type Settled = BTreeMap<String, (String, Import)>;

/// ServiceImports of others: their services are theirs.
pub(super) fn foreign(imports: &BTreeMap<String, DynamicObject>) -> BTreeSet<&str> {
    imports.iter().filter(|(_, import)| !is_ours(&import.metadata)).map(|(name, _)| name.as_str()).collect()
}

/// The writes, ServiceImports first, and what needs none is added to `settled`. `kept`: clusters that were not listed yet, whose slices stay as they are. `now`: seconds since
/// the epoch.
pub(super) fn plan(
    merged: &Merged,
    existing: Existing<'_>,
    written: &Written,
    settled: &mut Settled,
    kept: &BTreeSet<&str>,
    now: u64,
) -> Vec<Write> {
    let foreign = foreign(existing.imports);
    let mut writes = imports(merged, existing.imports, written, settled, &foreign, now);
    let is_foreign = |slice: &EndpointSlice| {
        let import = slice.metadata.import.as_ref().zip(slice.metadata.namespace.as_ref());
        import.is_some_and(|(import, namespace)| {
            !foreign.is_empty() && foreign.contains([namespace, "/", &*import.service].concat().as_str())
        })
    };
    for (name, slice) in merged.slices.iter().filter(|(_, slice)| !is_foreign(slice)) {
        match existing.slices.get(name) {
            Some(known) if Arc::ptr_eq(known, slice) || known == slice => {}
            // A slice's type of addresses cannot be changed.
            Some(known) if known.metadata.import.is_some() && known.address_type == slice.address_type => {
                writes.push(Write::ReplaceSlice(Arc::clone(slice)));
            }
            Some(known) if known.metadata.import.is_some() => writes.push(Write::DeleteSlice(name.clone())),
            Some(_) => {}
            None => writes.push(Write::CreateSlice(Arc::clone(slice))),
        }
    }
    for (name, slice) in existing.slices {
        let Some(import) = &slice.metadata.import else { continue };
        let stays = kept.contains(&*import.cluster) && !is_foreign(slice);
        if !stays && (!merged.slices.contains_key(name) || is_foreign(slice)) {
            writes.push(Write::DeleteSlice(name.clone()));
        }
    }
    for (name, export) in existing.exports {
        let status = merged.verdicts.get(name).map(|verdict| {
            export_conditions(
                verdict,
                foreign.contains(name.as_str()),
                &export.metadata,
                &conditions(export),
                now,
            )
        });
        if let Some(status) = status.filter(|status| *status != conditions(export)) {
            writes.push(Write::ExportStatus(name.clone(), json!({"conditions": status})));
        }
    }
    writes
}

fn imports(
    merged: &Merged,
    existing: &BTreeMap<String, DynamicObject>,
    written: &Written,
    settled: &mut Settled,
    foreign: &BTreeSet<&str>,
    now: u64,
) -> Vec<Write> {
    let mut writes = Vec::new();
    settled.retain(|name, _| merged.imports.contains_key(name));
    for (name, import) in merged.imports.iter().filter(|(name, _)| !foreign.contains(name.as_str())) {
        let Some(known) = existing.get(name) else {
            writes.push(Write::CreateImport(import.object(name)));
            continue;
        };
        let version = known.metadata.resource_version.clone().unwrap_or_default();
        if settled.get(name).is_some_and(|(at, last)| *at == version && last == import) {
            continue;
        }
        let is_written = written.get(name).is_some_and(|(at, last)| *at == version && last.is_like(import));
        if !is_written && !read(known).is_some_and(|known| known.is_like(import)) {
            let mut object = import.object(name);
            object["metadata"]["resourceVersion"] = version.into();
            writes.push(Write::ReplaceImport(name.clone(), object));
            continue;
        }
        let before = conditions(known);
        let mut conditions = Conditions::new(&before, known.metadata.generation, now);
        conditions.set("Ready", true, "Ready", "its endpoints are imported");
        let status = import.status(&conditions.finish());
        if known.data.get("status").is_none_or(|before| !contains(before, &status)) {
            writes.push(Write::ImportStatus(name.clone(), status));
        } else {
            settled.insert(name.clone(), (version, import.clone()));
        }
    }
    let gone = existing
        .iter()
        .filter(|(name, known)| is_ours(&known.metadata) && !merged.imports.contains_key(*name));
    writes.extend(gone.map(|(name, _)| Write::DeleteImport(name.clone())));
    writes
}

/// Whether an object has all fields that the other one has.
fn contains(object: &Value, fields: &Value) -> bool {
    match (object, fields) {
        (Value::Object(object), Value::Object(fields)) => {
            fields.iter().all(|(key, value)| object.get(key).is_some_and(|own| own == value))
        }
        _ => object == fields,
    }
}

fn is_ours(metadata: &ObjectMeta) -> bool {
    metadata.labels.as_ref().and_then(|labels| labels.get(IMPORT_MANAGED_BY)).is_some_and(|by| by == MANAGER)
}

/// A ServiceImport of ours as it was merged.
pub(super) fn read(object: &DynamicObject) -> Option<Import> {
    let spec = object.data.get("spec")?;
    let facts: Facts = serde_json::from_value(spec.clone()).ok()?;
    let is_headless = spec["type"] == "Headless";
    let mut labels = object.metadata.labels.clone().unwrap_or_default();
    labels.remove(IMPORT_MANAGED_BY);
    let clusters = object.data["status"]["clusters"].as_array().into_iter().flatten();
    Some(Import {
        facts: Facts { is_headless, ..facts },
        labels,
        annotations: object.metadata.annotations.clone().unwrap_or_default(),
        clusters: clusters.filter_map(|entry| entry["cluster"].as_str().map(str::to_owned)).collect(),
    })
}

/// The conditions of an object; those that cannot be read are not there.
fn conditions(object: &DynamicObject) -> Vec<Condition> {
    let conditions = object.data.get("status").and_then(|status| status.get("conditions"));
    conditions.and_then(|all| serde_json::from_value(all.clone()).ok()).unwrap_or_default()
}

/// The conditions of a ServiceExport, those of others among them.
fn export_conditions(
    verdict: &Verdict,
    is_foreign: bool,
    metadata: &ObjectMeta,
    before: &[Condition],
    now: u64,
) -> Vec<Condition> {
    let mut conditions = Conditions::new(before, metadata.generation, now);
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
    use super::*;
    use crate::mcs::{Conflict, ImportPort, Invalid};

    fn import(port: i32) -> Import {
        let port = ImportPort { name: "http".into(), protocol: "TCP".into(), app_protocol: None, port };
        Import {
            facts: Facts { ports: vec![port], ..Facts::default() },
            clusters: BTreeSet::from(["west".to_owned()]),
            ..Import::default()
        }
    }

    fn merged(import: Import) -> Merged {
        Merged { imports: BTreeMap::from([("n/web".to_owned(), import)]), ..Merged::default() }
    }

    fn object(mut value: Value, version: &str) -> DynamicObject {
        value["metadata"]["resourceVersion"] = version.into();
        serde_json::from_value(value).unwrap()
    }

    fn planned(merged: &Merged, imports: &[DynamicObject], written: &Written) -> Vec<Write> {
        let imports =
            imports.iter().map(|import| (super::super::known::name(&import.metadata), import.clone()));
        let (imports, exports, slices) = (imports.collect(), BTreeMap::new(), ByName::new());
        let existing = Existing { imports: &imports, exports: &exports, slices: &slices };
        let mut settled = Settled::new();
        let writes = plan(merged, existing, written, &mut settled, &BTreeSet::new(), 1);
        assert_eq!(plan(merged, existing, written, &mut settled, &BTreeSet::new(), 1), writes);
        writes
    }

    #[test]
    fn an_import_is_made_then_said_to_be_ready_then_left_alone() {
        let merged = merged(import(80));
        let none = Written::new();
        assert_eq!(planned(&merged, &[], &none), [Write::CreateImport(import(80).object("n/web"))]);
        let made = object(import(80).object("n/web"), "1");
        let writes = planned(&merged, std::slice::from_ref(&made), &none);
        let [Write::ImportStatus(_, status)] = &writes[..] else { panic!("{writes:?}") };
        let mut ready = made;
        ready.data["status"] = status.clone();
        assert_eq!(planned(&merged, std::slice::from_ref(&ready), &none), []);
        assert_eq!(planned(&Merged::default(), &[ready], &none), [Write::DeleteImport("n/web".into())]);
    }

    #[test]
    fn what_an_api_server_does_not_keep_is_written_once() {
        let wanted = import(81);
        let pruned = object(import(80).object("n/web"), "7");
        let writes =
            |written: &Written| planned(&merged(wanted.clone()), std::slice::from_ref(&pruned), written);
        assert!(
            matches!(&writes(&Written::new())[..], [Write::ReplaceImport(_, object)] if object["metadata"]["resourceVersion"] == "7")
        );
        let written = Written::from([("n/web".to_owned(), ("7".to_owned(), wanted.clone()))]);
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
    fn conditions_have_the_reasons_of_the_api() {
        let of = |valid, conflicts: &[&'static str], before: &[Condition]| -> Vec<(String, String, String)> {
            let conflict = |reason: &&'static str| Conflict { reason, message: "m".into() };
            let verdict = Verdict { valid, conflicts: conflicts.iter().map(conflict).collect() };
            let all = export_conditions(&verdict, false, &ObjectMeta::default(), before, 1);
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
                ("Valid", "True", "Valid")
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
                ("Valid", "False", "NoService")
            ])
        );
    }
}
