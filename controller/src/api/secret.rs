//! Kubernetes' Secret (v1): values that nobody else is to read, such as the keys of BGP sessions. They are never shown:
//! neither by `Debug`, nor to who asks for the object, nor in a fault.
use super::scalar::quoted;
use k8s_openapi::{ByteString, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::{Deserialize, Serialize, Serializer, ser::SerializeStruct};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, fmt};

/// A Secret of a file.
#[derive(Clone, PartialEq)]
pub struct Secret {
    /// Its name and labels; no annotations: what wrote the object may have left a copy of it there.
    pub metadata: ObjectMeta,
    values: BTreeMap<String, Vec<u8>>,
}

impl Secret {
    /// Fields of a Secret beside those of every object.
    pub(crate) const FIELDS: [&str; 4] = ["type", "immutable", "data", "stringData"];

    /// From `data`, which is base64, and `stringData`, which is text and has precedence.
    ///
    /// # Errors
    /// Field and reason.
    pub(crate) fn read(metadata: ObjectMeta, map: &Map<String, Value>) -> Result<Self, (String, String)> {
        let mut values = BTreeMap::new();
        for field in ["data", "stringData"] {
            let entries = match map.get(field) {
                None | Some(Value::Null) => continue,
                Some(Value::Object(entries)) => entries,
                Some(_) => return Err((field.to_owned(), "is not a mapping".to_owned())),
            };
            for (key, value) in entries {
                let fault = |reason: &str| (format!("{field}.{key}"), reason.to_owned());
                let octets = match value {
                    Value::String(text) if field == "stringData" => text.clone().into_bytes(),
                    Value::String(_) => ByteString::deserialize(value).map_err(|_| fault("is not base64"))?.0,
                    _ => return Err(fault("is not a text: put it in quotes")),
                };
                values.insert(key.clone(), octets);
            }
        }
        Ok(Secret { metadata: ObjectMeta { annotations: None, ..metadata }, values })
    }

    /// The value of a key.
    ///
    /// # Errors
    /// There is none; the reason names the keys that there are.
    pub fn get(&self, key: &str) -> Result<&[u8], String> {
        self.values.get(key).map(Vec::as_slice).ok_or_else(|| {
            let keys: Vec<_> = self.values.keys().map(String::as_str).collect();
            format!("has no key {}, but [{}]", quoted(key), keys.join(", "))
        })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<_> = self.values.keys().collect();
        f.debug_struct("Secret").field("name", &self.metadata.name).field("keys", &keys).finish()
    }
}

/// For who asks: names, and no values.
impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Secret", 4)?;
        object.serialize_field("apiVersion", "v1")?;
        object.serialize_field("kind", "Secret")?;
        object.serialize_field("metadata", &self.metadata)?;
        object.serialize_field("keys", &self.values.keys().collect::<Vec<_>>())?;
        object.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(object: Value) -> Result<Secret, String> {
        let secret = Secret::read(ObjectMeta::default(), object.as_object().unwrap());
        secret.map_err(|(field, reason)| format!("{field}: {reason}"))
    }

    #[test]
    fn values_of_both_forms() {
        let secret =
            read(json!({"data": {"a": "czNjcmV0", "b": ""}, "stringData": {"c": "s3cret"}})).unwrap();
        assert_eq!((secret.get("a"), secret.get("c")), (Ok(&b"s3cret"[..]), Ok(&b"s3cret"[..])));
        assert_eq!(secret.get("b"), Ok(&b""[..]));
        assert_eq!(secret.get("d").unwrap_err(), "has no key \"d\", but [a, b, c]");
        for (object, fault) in [
            (json!({"data": {"a": "czNjcmV0!"}}), "data.a: is not base64"),
            (json!({"data": []}), "data: is not a mapping"),
            (json!({"stringData": {"a": 12345}}), "stringData.a: is not a text: put it in quotes"),
        ] {
            assert_eq!(read(object).unwrap_err(), fault);
        }
    }

    #[test]
    fn values_are_not_shown() {
        let secret = read(json!({"stringData": {"password": "s3cret"}})).unwrap();
        for shown in [format!("{secret:?}"), serde_json::to_string(&secret).unwrap()] {
            assert!(shown.contains("password") && !shown.contains("s3cret"), "{shown}");
        }
    }
}
