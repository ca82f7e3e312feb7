//! An object as an API server shows it, of whatever kind, read lean: who wrote which field is most of many objects, and is passed
//! over instead of being read and dropped. Where tens of thousands of objects are listed, that is most of the work and of the garbage.
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::{Resource, api::ApiResource, core::DynamicResourceScope};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
    ser::SerializeMap,
};
use serde_json::{Map, Value};
use std::{borrow::Cow, collections::BTreeMap, fmt};

/// An object. Without `managedFields` and with all other fields.
#[derive(Clone, Default, PartialEq)]
pub(in crate::store) struct Raw {
    /// Its metadata.
    pub(in crate::store) metadata: ObjectMeta,
    /// All other fields: an object. `apiVersion` and `kind` are not in objects of a list.
    pub(in crate::store) data: Map<String, Value>,
}

impl Raw {
    /// The value at a path of fields; `Null`: there is none.
    pub(in crate::store) fn at(&self, path: &[&str]) -> &Value {
        let Some((first, rest)) = path.split_first() else { return &Value::Null };
        let first = self.data.get(*first).unwrap_or(&Value::Null);
        rest.iter().fold(first, |value, field| &value[*field])
    }
}

/// Without what is in it: it may be a Secret.
impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ObjectMeta { namespace, name, resource_version, .. } = &self.metadata;
        f.debug_struct("Raw").field("name", &(namespace, name)).field("version", resource_version).finish()
    }
}

impl Resource for Raw {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn api_version(resource: &ApiResource) -> Cow<'_, str> {
        resource.api_version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Serialize for Raw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1 + self.data.len()))?;
        map.serialize_entry("metadata", &self.metadata)?;
        self.data.iter().try_for_each(|(field, value)| map.serialize_entry(field, value))?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Raw, A::Error> {
        let mut raw = Raw::default();
        while let Some(field) = fields.next_key::<String>()? {
            match field.as_str() {
                "metadata" => raw.metadata = fields.next_value::<Metadata>()?.into(),
                _ => drop(raw.data.insert(field, fields.next_value()?)),
            }
        }
        Ok(raw)
    }
}

/// What is read of an object's metadata.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    finalizers: Option<Vec<String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

impl From<Metadata> for ObjectMeta {
    fn from(read: Metadata) -> Self {
        ObjectMeta {
            name: read.name,
            namespace: read.namespace,
            uid: read.uid,
            resource_version: read.resource_version,
            generation: read.generation,
            creation_timestamp: read.creation_timestamp,
            deletion_timestamp: read.deletion_timestamp,
            labels: read.labels,
            annotations: read.annotations,
            finalizers: read.finalizers,
            owner_references: read.owner_references,
            ..ObjectMeta::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::api::DynamicObject;
    use serde_json::json;

    /// The same as a reader that keeps everything, but for what is passed over.
    #[test]
    fn nothing_else_is_passed_over() {
        let object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7", "generation": 3,
                "creationTimestamp": "2026-01-02T03:04:05Z", "deletionTimestamp": "2026-01-02T03:04:06Z",
                "labels": {"a": "b"}, "annotations": {"c": "d"}, "finalizers": ["f"],
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "o"}],
            },
            "spec": {"ports": [{"port": 80}], "type": "LoadBalancer"}, "status": {"loadBalancer": {}},
        });
        let mut written = object.clone();
        written["metadata"]["managedFields"] = json!([{"manager": "m", "fieldsV1": {"f:spec": {}}}]);
        let raw: Raw = serde_json::from_str(&written.to_string()).unwrap();
        assert_eq!(serde_json::to_value(&raw).unwrap(), object);
        let known: DynamicObject = serde_json::from_value(object.clone()).unwrap();
        assert_eq!(raw.metadata, known.metadata);
        assert_eq!(raw.at(&["spec", "type"]), "LoadBalancer");
        assert_eq!(raw.at(&["spec", "none", "either"]), &Value::Null);
        assert!(!format!("{raw:?}").contains("LoadBalancer"));
    }
}
