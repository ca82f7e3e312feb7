//! How many items a list and how many characters a text may have, as the schema of the kind says it: what an API
//! server would refuse is refused in a file, too.
use crate::api::{Kind, crds::crds};
use serde_json::Value;
use std::{collections::BTreeMap, sync::LazyLock};

/// The schema of `spec` by kind.
static SCHEMAS: LazyLock<BTreeMap<String, Value>> = LazyLock::new(|| {
    let schema = |crd: &k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition| {
        let version = crd.spec.versions.first()?;
        let root = version.schema.as_ref()?.open_api_v3_schema.as_ref()?;
        serde_json::to_value(root.properties.as_ref()?.get("spec")?).ok()
    };
    crds().iter().filter_map(|crd| Some((crd.spec.names.kind.clone(), schema(crd)?))).collect()
});

/// The first field of `spec` that is too long or too short, and why.
pub(crate) fn fault(kind: Kind, spec: &Value) -> Option<(String, String)> {
    SCHEMAS.get(&kind.name()).and_then(|schema| check(schema, spec, "spec"))
}

fn check(schema: &Value, value: &Value, path: &str) -> Option<(String, String)> {
    let limit = |key: &str, unlimited: u64| schema.get(key).and_then(Value::as_u64).unwrap_or(unlimited);
    let fault = |reason| Some((path.to_owned(), reason));
    match value {
        Value::Object(map) => map.iter().find_map(|(key, value)| {
            let schema = schema.get("properties")?.get(key)?;
            check(schema, value, &format!("{path}.{key}"))
        }),
        Value::Array(items) => {
            let (min, max) = (limit("minItems", 0), limit("maxItems", u64::MAX));
            let count = items.len() as u64;
            if count < min {
                return fault(format!("has {count} items, needs at least {min}"));
            }
            if count > max {
                return fault(format!("has {count} items, may have at most {max}"));
            }
            let schema = schema.get("items")?;
            // Without a text or a list in it there is nothing to check.
            items
                .iter()
                .enumerate()
                .find_map(|(index, item)| check(schema, item, &format!("{path}[{index}]")))
        }
        Value::String(text) => {
            let (min, max) = (limit("minLength", 0), limit("maxLength", u64::MAX));
            let count = text.chars().count() as u64;
            if count < min {
                return fault("is empty".to_owned());
            }
            if count > max {
                return fault(format!("has {count} characters, may have at most {max}"));
            }
            None
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_schema_limits_lists_and_texts() {
        let ports = |count: usize| json!({"ports": vec![json!({"port": 80}); count]});
        let found =
            |spec| fault(Kind::LoadBalancer, &spec).map(|(field, reason)| format!("{field}: {reason}"));
        assert_eq!(found(ports(1)), None);
        assert_eq!(found(ports(0)).as_deref(), Some("spec.ports: has 0 items, needs at least 1"));
        assert_eq!(found(ports(101)).as_deref(), Some("spec.ports: has 101 items, may have at most 100"));
        let named = |name: &str| json!({"ports": [{"port": 80, "name": name}]});
        assert_eq!(found(named("")).as_deref(), Some("spec.ports[0].name: is empty"));
        assert_eq!(
            found(named(&"é".repeat(64))).as_deref(),
            Some("spec.ports[0].name: has 64 characters, may have at most 63")
        );
    }
}
