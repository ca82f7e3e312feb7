//! etcd's v3 API as its JSON gateway speaks it (etcd `api/etcdserverpb/rpc.proto`): bytes are base64, 64-bit numbers are
//! texts, and what has the value zero is left out. Pure.
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::{Value, json};
use std::fmt;

/// A key as it is now, or was when it was listed.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct KeyValue {
    #[serde(deserialize_with = "bytes")]
    pub(super) key: Vec<u8>,
    #[serde(deserialize_with = "bytes")]
    pub(super) value: Vec<u8>,
    /// Revision of the write that made it.
    #[serde(deserialize_with = "number")]
    pub(super) create_revision: i64,
    /// Revision of the last write; of one that is gone, of its deletion.
    #[serde(deserialize_with = "number")]
    pub(super) mod_revision: i64,
    /// Writes since it was made, from 1.
    #[serde(deserialize_with = "number")]
    pub(super) version: i64,
}

/// Without the value: it may be a secret.
impl fmt::Debug for KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = String::from_utf8_lossy(&self.key);
        write!(f, "{key} of revision {}", self.mod_revision)
    }
}

/// What an answer says of the store.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Header {
    #[serde(deserialize_with = "number")]
    pub(super) revision: i64,
}

/// Answer to a range.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Range {
    pub(super) header: Header,
    pub(super) kvs: Vec<KeyValue>,
    pub(super) more: bool,
}

/// Answer to a transaction.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Txn {
    pub(super) header: Header,
    /// Whether all comparisons held.
    pub(super) succeeded: bool,
    responses: Vec<Response>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Response {
    response_range: Range,
}

impl Txn {
    /// The keys that were read, of all ranges one after the other.
    pub(super) fn kvs(self) -> impl Iterator<Item = KeyValue> {
        self.responses.into_iter().flat_map(|response| response.response_range.kvs)
    }
}

/// Answer to a grant, a renewal or a revocation of a lease.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Lease {
    #[serde(rename = "ID", deserialize_with = "number")]
    pub(super) id: i64,
    /// Seconds that are left; 0: there is no such lease any more.
    #[serde(rename = "TTL", deserialize_with = "number")]
    pub(super) ttl: i64,
}

/// Answer to an authentication.
#[derive(Deserialize)]
pub(super) struct Token {
    pub(super) token: String,
}

/// A message of a stream.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Message<T> {
    Result(T),
    Error(Refusal),
}

/// What a watch says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Watch {
    pub(super) created: bool,
    pub(super) canceled: bool,
    pub(super) cancel_reason: String,
    /// The watch wants what was compacted; this is what is there still. 0: that is not the reason.
    #[serde(deserialize_with = "number")]
    pub(super) compact_revision: i64,
    /// More events of the same revision follow.
    pub(super) fragment: bool,
    pub(super) events: Vec<Event>,
}

/// A change of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Event {
    #[serde(rename = "type")]
    pub(super) what: What,
    pub(super) kv: KeyValue,
}

/// What became of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum What {
    #[default]
    Put,
    Delete,
}

/// An error as the gateway says it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Refusal {
    /// See google/rpc/code.proto.
    pub(super) code: u32,
    pub(super) message: String,
}

/// How keys are compared in a transaction.
pub(super) enum Compare<'a> {
    /// The key was made at this revision; 0: it is not there.
    Created(&'a str, i64),
    /// The key was written last at this revision; 0: it is not there.
    Modified(&'a str, i64),
    /// Of the keys that begin so, none was written after this revision.
    Unchanged(&'a str, i64),
    /// The key has this value.
    Holds(&'a str, &'a str),
    /// The key goes with this lease.
    Leased(&'a str, i64),
}

impl Compare<'_> {
    pub(super) fn json(&self) -> Value {
        match self {
            Compare::Created(key, revision) => {
                json!({"key": text(key), "target": "CREATE", "create_revision": revision.to_string()})
            }
            Compare::Modified(key, revision) => {
                json!({"key": text(key), "target": "MOD", "mod_revision": revision.to_string()})
            }
            Compare::Unchanged(prefix, revision) => json!({
                "key": text(prefix), "range_end": end(prefix),
                "target": "MOD", "result": "LESS", "mod_revision": (revision + 1).to_string(),
            }),
            Compare::Holds(key, value) => {
                json!({"key": text(key), "target": "VALUE", "value": text(value)})
            }
            Compare::Leased(key, lease) => {
                json!({"key": text(key), "target": "LEASE", "lease": lease.to_string()})
            }
        }
    }
}

/// A put, as part of a transaction. `lease`: the key goes with it.
pub(super) fn put(key: &str, value: &str, lease: Option<i64>) -> Value {
    let lease = lease.unwrap_or(0).to_string();
    json!({"request_put": {"key": text(key), "value": text(value), "lease": lease}})
}

/// A deletion, as part of a transaction.
pub(super) fn delete(key: &str) -> Value {
    json!({"request_delete_range": {"key": text(key)}})
}

/// A range of one key, as part of a transaction.
pub(super) fn get(key: &str) -> Value {
    json!({"request_range": {"key": text(key)}})
}

/// A transaction: what to do if all comparisons hold, and what else.
pub(super) fn txn(compare: &[Compare<'_>], success: &[Value], failure: &[Value]) -> Value {
    let compare: Vec<_> = compare.iter().map(Compare::json).collect();
    json!({"compare": compare, "success": success, "failure": failure})
}

/// The same as part of another one.
pub(super) fn nested(txn: Value) -> Value {
    json!({"request_txn": txn})
}

/// A text as the gateway wants it.
pub(super) fn text(text: &str) -> String {
    STANDARD.encode(text)
}

/// The end of the range of all keys that begin with this, which ends with a slash.
pub(super) fn end(prefix: &str) -> String {
    // '0' is what comes after '/'.
    text(&format!("{}0", prefix.trim_end_matches('/')))
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Text(String),
        Plain(i64),
    }
    match Number::deserialize(deserializer)? {
        Number::Text(text) => text.parse().map_err(D::Error::custom),
        Number::Plain(number) => Ok(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_etcd_says() {
        let line = r#"{"result":{"header":{"cluster_id":"10144879847569953045","revision":"3","raft_term":"2"},
            "events":[{"kv":{"key":"L2EveQ==","create_revision":"3","mod_revision":"3","version":"1","value":"eg=="}},
            {"type":"DELETE","kv":{"key":"L2EveA==","mod_revision":"3"}}]}}"#;
        let Message::Result(Watch { events, .. }) = serde_json::from_str(line).unwrap() else { panic!() };
        let keys: Vec<_> = events.iter().map(|e| (e.what, &*e.kv.key, &*e.kv.value)).collect();
        assert_eq!(keys, [(What::Put, &b"/a/y"[..], &b"z"[..]), (What::Delete, b"/a/x", b"")]);
        let line = r#"{"error":{"code":14,"message":"etcdserver: no leader"}}"#;
        let Message::Error(refusal) = serde_json::from_str::<Message<Watch>>(line).unwrap() else { panic!() };
        assert_eq!((refusal.code, &*refusal.message), (14, "etcdserver: no leader"));
        assert!(serde_json::from_str::<Range>(r#"{"kvs":[{"key":"%"}]}"#).is_err());
    }

    #[test]
    fn a_prefix_ends_before_what_is_beside_it() {
        assert_eq!(end("/fairlead/"), text("/fairlead0"));
        let all = Compare::Unchanged("/a/", 7).json();
        assert_eq!((&all["mod_revision"], &all["result"]), (&json!("8"), &json!("LESS")));
    }
}
