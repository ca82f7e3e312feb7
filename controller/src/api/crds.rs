//! The custom resource definitions, generated from the types. `crds/` at the top of the repository holds the
//! same; to rewrite it after a change of the types: `FAIRLEAD_REWRITE=1 cargo test -p controller crds`.
use super::{
    AddressPool, BGPAdvertisement, BGPPeer, BGPRouter, ClusterLink, LoadBalancer, NodeState, PacketFilter,
    ServicePolicy,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Value, json};

/// All definitions, in the order in which users meet the kinds.
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut crds = vec![
        AddressPool::crd(),
        LoadBalancer::crd(),
        ServicePolicy::crd(),
        BGPRouter::crd(),
        BGPPeer::crd(),
        BGPAdvertisement::crd(),
        PacketFilter::crd(),
        ClusterLink::crd(),
        NodeState::crd(),
    ];
    for version in crds.iter_mut().flat_map(|crd| &mut crd.spec.versions) {
        if let Some(schema) = &mut version.schema
            && let Some(root) = &schema.open_api_v3_schema
        {
            let mut tree = json!(root);
            forbid_null(&mut tree);
            if let Some(status) = tree.pointer_mut("/properties/status") {
                without_rules(status);
            }
            schema.open_api_v3_schema = serde_json::from_value(tree).ok();
        }
    }
    crds
}

/// The definition as a YAML document that ends with a newline.
pub fn yaml(crd: &CustomResourceDefinition) -> String {
    let mut tree = json!(crd);
    whole_numbers(&mut tree);
    serde_yaml_ng::to_string(&tree).unwrap_or_else(|error| unreachable!("a tree of JSON is YAML: {error}"))
}

/// The extension `x-kubernetes-validations` of a schema: CEL rules and what is said when one does not hold.
pub(super) fn rules(rules: &[(&str, &str)]) -> Value {
    rules.iter().map(|(rule, message)| json!({"rule": rule, "message": message})).collect()
}

/// Removes `nullable`: a field that may be left out need not be null, and to CEL's `has()` a null is there.
fn forbid_null(tree: &mut Value) {
    match tree {
        Value::Object(map) => {
            map.retain(|key, value| key != "nullable" || !value.is_boolean());
            map.values_mut().for_each(forbid_null);
        }
        Value::Array(list) => list.iter_mut().for_each(forbid_null),
        _ => {}
    }
}

/// Removes CEL rules: a status is written by fairlead alone, and over its lists, which have no end, rules would cost more than an
/// API server grants.
fn without_rules(tree: &mut Value) {
    match tree {
        Value::Object(map) => {
            map.remove("x-kubernetes-validations");
            map.values_mut().for_each(without_rules);
        }
        Value::Array(list) => list.iter_mut().for_each(without_rules),
        _ => {}
    }
}

/// Writes 65535.0 as 65535: limits are floating point in the definition's type.
fn whole_numbers(tree: &mut Value) {
    match tree {
        Value::Object(map) => map.values_mut().for_each(whole_numbers),
        Value::Array(list) => list.iter_mut().for_each(whole_numbers),
        Value::Number(number) => {
            if let Some(whole) = number.as_f64().filter(|float| number.is_f64() && float.fract() == 0.0) {
                // Exact: the limits are integers far below 2^53.
                *tree = json!(whole as i64);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeMap, env, fs, path::Path};

    #[test]
    fn crds_are_those_of_the_repository() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds");
        let generated: BTreeMap<_, _> =
            crds().iter().map(|crd| (format!("{}.yaml", crd.spec.names.plural), yaml(crd))).collect();
        if env::var_os("FAIRLEAD_REWRITE").is_some() {
            fs::create_dir_all(&directory).unwrap();
            for (name, text) in &generated {
                fs::write(directory.join(name), text).unwrap();
            }
        }
        let committed: BTreeMap<_, _> = fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "yaml"))
            .map(|entry| {
                (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap())
            })
            .collect();
        assert_eq!(generated.keys().collect::<Vec<_>>(), committed.keys().collect::<Vec<_>>());
        for (name, text) in &generated {
            assert!(
                *text == committed[name],
                "crds/{name} differs from the types: FAIRLEAD_REWRITE=1 cargo test -p controller crds"
            );
        }
    }

    /// What a kube-apiserver asks of a structural schema, and what we ask beyond (no union keywords at all).
    /// <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema>
    fn unstructural(schema: &Value, path: &str, found: &mut Vec<String>) {
        const KEYWORDS: [&str; 20] = [
            "additionalProperties",
            "default",
            "description",
            "enum",
            "format",
            "items",
            "maxItems",
            "maxLength",
            "maximum",
            "minItems",
            "minLength",
            "minimum",
            "pattern",
            "properties",
            "required",
            "title",
            "type",
            "x-kubernetes-int-or-string",
            "x-kubernetes-map-type",
            "x-kubernetes-validations",
        ];
        let map = schema.as_object().unwrap();
        let mut wrong = |what: String| found.push(format!("{path}: {what}"));
        for key in map.keys() {
            let of_list = ["x-kubernetes-list-type", "x-kubernetes-list-map-keys"].contains(&key.as_str());
            let known = KEYWORDS.contains(&key.as_str()) || (of_list && map["type"] == "array");
            if !known {
                wrong(format!("has {key}"));
            }
        }
        let kind = map.get("type").and_then(Value::as_str);
        if kind.is_some() == map.contains_key("x-kubernetes-int-or-string") {
            wrong("needs a type".into());
        }
        if map.contains_key("properties") && map.contains_key("additionalProperties") {
            wrong("has properties and additionalProperties".into());
        }
        let format = map.get("format").and_then(Value::as_str);
        if !matches!(
            (kind, format),
            (_, None) | (Some("integer"), Some("int32" | "int64")) | (Some("string"), Some("date-time"))
        ) {
            wrong(format!("has the format {format:?}"));
        }
        let properties: Vec<_> =
            map.get("properties").and_then(Value::as_object).into_iter().flatten().collect();
        for required in map.get("required").and_then(Value::as_array).into_iter().flatten() {
            if !properties.iter().any(|(name, _)| *name == required.as_str().unwrap()) {
                wrong(format!("requires {required}, which it does not have"));
            }
        }
        if let Some(default) = map.get("default") {
            let fits = match kind {
                Some("object") => default.is_object(),
                Some("array") => default.is_array(),
                Some("string") => default.is_string(),
                Some("boolean") => default.is_boolean(),
                Some("integer") => default.is_i64(),
                _ => false,
            };
            if !fits {
                wrong(format!("has the default {default}"));
            }
        }
        for (name, property) in properties {
            unstructural(property, &format!("{path}.{name}"), found);
        }
        if kind == Some("array") {
            unstructural(&map["items"], &format!("{path}[]"), found);
        }
        if let Some(values) = map.get("additionalProperties") {
            unstructural(values, &format!("{path}{{}}"), found);
        }
    }

    #[test]
    fn crds_are_structural() {
        let mut found = Vec::new();
        for crd in crds() {
            let schema =
                crd.spec.versions[0].schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref());
            let mut tree = json!(schema.unwrap());
            whole_numbers(&mut tree);
            unstructural(&tree, &crd.spec.names.kind, &mut found);
        }
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn the_check_finds_what_is_not_structural() {
        let mut found = Vec::new();
        let schema = json!({"type": "object", "required": ["b"], "properties": {
            "a": {"anyOf": [{"type": "string"}]}, "c": {"type": "integer", "format": "uint8", "default": "x"}}});
        unstructural(&schema, "T", &mut found);
        assert_eq!(found.len(), 5, "{found:?}");
    }

    #[test]
    fn crds_say_what_the_design_says() {
        for crd in crds() {
            let version = &crd.spec.versions[0];
            assert_eq!(
                (crd.spec.group.as_str(), version.name.as_str()),
                (super::super::GROUP, super::super::VERSION)
            );
            assert_eq!(crd.spec.scope, "Cluster");
            assert!(crd.spec.names.short_names.as_ref().is_some_and(|names| names.len() == 1));
            assert_eq!(crd.spec.names.categories.as_deref(), Some(&["fairlead".to_owned()][..]));
            assert!(version.subresources.as_ref().is_some_and(|subresources| subresources.status.is_some()));
            assert!(version.additional_printer_columns.as_ref().is_some_and(|columns| columns.len() >= 3));
        }
    }
}
