//! From the objects of MetalLB and Cilium to ours. Nothing is dropped in silence: every field that is not understood, or
//! that has no counterpart, is told by object and field.
use crate::{fault::Fault, object::MAX_FILE_BYTES, validate::parse_directory};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, path::PathBuf};

mod cilium;
mod fields;
mod metallb;

#[cfg(test)]
mod tests;

use fields::Fields;

/// Label that imported objects have for selectors that went by name: its value is the name.
const NAME_LABEL: &str = "fairlead.dev/imported-name";

/// Whose objects are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "names of products")]
pub enum Origin {
    MetalLB,
    Cilium,
}

/// What came of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Objects of ours as YAML documents. Those that this version would refuse are among them, and told.
    pub yaml: String,
    /// What was left out or would be refused, one line each: object, field, reason.
    pub left_out: Vec<String>,
}

/// Translates the objects of YAML files (several documents each, `List` objects too). The error names a file that is
/// not YAML or too large.
pub fn import(origin: Origin, files: &BTreeMap<PathBuf, String>) -> Result<Imported, Fault> {
    let mut sources = Vec::new();
    for (file, text) in files {
        if text.len() > MAX_FILE_BYTES {
            return Err(Fault::file(file, format!("{} bytes are more than {MAX_FILE_BYTES}", text.len())));
        }
        for (index, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
            let tree = Value::deserialize(document).map_err(|error| Fault {
                document: Some(index + 1),
                ..Fault::file(file, error.to_string())
            })?;
            collect(tree, &mut sources);
        }
    }
    let mut left_out = Vec::new();
    let objects = match origin {
        Origin::MetalLB => metallb::translate(sources, &mut left_out),
        Origin::Cilium => cilium::translate(sources, &mut left_out),
    };
    let documents = objects.iter().filter_map(|object| serde_yaml_ng::to_string(object).ok());
    let yaml = documents.collect::<Vec<_>>().join("---\n");
    let output = BTreeMap::from([(PathBuf::new(), yaml.clone())]);
    for Fault { object, field, reason, .. } in parse_directory(&output).err().unwrap_or_default() {
        let place: Vec<_> = [object, field, Some(reason)].into_iter().flatten().collect();
        left_out.push(format!("this version refuses {}", place.join(": ")));
    }
    Ok(Imported { yaml, left_out })
}

/// An object of the origin.
struct Source {
    kind: String,
    name: String,
    labels: Value,
    tree: Map<String, Value>,
}

impl Source {
    /// `KIND/NAME`, as it is told.
    fn label(&self) -> String {
        format!("{}/{}", self.kind, self.name)
    }

    /// What is below `spec`.
    fn spec(&mut self) -> Map<String, Value> {
        match self.tree.remove("spec") {
            Some(Value::Object(spec)) => spec,
            _ => Map::new(),
        }
    }
}

/// The objects of a document: one, or those of a list.
fn collect(tree: Value, sources: &mut Vec<Source>) {
    let Value::Object(mut tree) = tree else { return };
    if let Some(Value::Array(items)) = tree.remove("items") {
        return items.into_iter().for_each(|item| collect(item, sources));
    }
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let metadata = tree.get("metadata").cloned().unwrap_or_default();
    sources.push(Source {
        kind: text(tree.get("kind")),
        name: text(metadata.get("name")),
        labels: metadata.get("labels").filter(|labels| labels.is_object()).cloned().unwrap_or(json!({})),
        tree,
    });
}

/// Why an object of a kind is left out that is not translated.
fn foreign(kind: &str) -> &'static str {
    match kind {
        "Service" => "stays as it is, and wants loadBalancerClass fairlead.dev/lb (or --default-class)",
        _ => "this kind has no counterpart",
    }
}

/// An object of ours. Fields that are null are left away.
fn object(kind: &str, name: &str, mut labels: Value, spec: Value) -> Value {
    labels[NAME_LABEL] = name.into();
    let mut object = json!({
        "apiVersion": crate::api::API_VERSION,
        "kind": kind,
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
    });
    without_null(&mut object);
    object
}

fn without_null(tree: &mut Value) {
    match tree {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(without_null);
        }
        Value::Array(list) => list.iter_mut().for_each(without_null),
        _ => {}
    }
}

/// A selector of objects that were imported under these names; none: all.
fn by_name(names: &[String]) -> Value {
    match names {
        [] => Value::Null,
        names => json!({"matchExpressions": [{"key": NAME_LABEL, "operator": "In", "values": names}]}),
    }
}

/// `START-STOP` or a CIDR as a block of ours.
fn block(text: &str) -> Value {
    match text.split_once('-') {
        Some((start, stop)) => json!({"start": start.trim(), "stop": stop.trim()}),
        None => json!({"cidr": text.trim()}),
    }
}
