//! From the text of a file to typed objects: any number of YAML documents (JSON is YAML), in any order.
//!
//! A document is first read into a plain tree within a budget (an alias in YAML can make a small file huge),
//! then into the type that its `kind` names, so that a fault knows its field.
use crate::{
    api::{
        API_VERSION, AddressPool, BGPAdvertisement, BGPPeer, BGPRouter, ClusterLink, EndpointSlice, Kind,
        LoadBalancer, PacketFilter, Secret, ServicePolicy,
        scalar::quoted,
        selector::{is_dns_label, is_subdomain, key_fault, value_fault},
    },
    fault::Fault,
    validate::limits,
};
use k8s_openapi::{
    api::core::v1::{Namespace, Node, Service},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::core::object::HasSpec;
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, DeserializeSeed},
};
use serde_json::{Map, Value};
use std::{cell::Cell, fmt, path::Path, sync::Arc};

mod kubernetes;

/// Largest file that is read, bytes.
pub const MAX_FILE_BYTES: usize = 4 << 20;

/// Most opening brackets and braces of one document, wherever they stand. The YAML reader's time is quadratic in
/// the depth of nested flow collections; in block style, and with the largest lists that we take, there are fewer.
pub const MAX_BRACKETS: usize = 25_000;

/// One object; it is cheap to clone.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the kinds are documented where they are defined")]
pub enum Object {
    AddressPool(Arc<AddressPool>),
    LoadBalancer(Arc<LoadBalancer>),
    ServicePolicy(Arc<ServicePolicy>),
    BGPRouter(Arc<BGPRouter>),
    BGPPeer(Arc<BGPPeer>),
    BGPAdvertisement(Arc<BGPAdvertisement>),
    PacketFilter(Arc<PacketFilter>),
    ClusterLink(Arc<ClusterLink>),
    Service(Arc<Service>),
    EndpointSlice(Arc<EndpointSlice>),
    Namespace(Arc<Namespace>),
    Node(Arc<Node>),
    Secret(Arc<Secret>),
}

/// An object and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// Number of the document in its file, from 1.
    pub document: usize,
    /// Name of the object: `NAMESPACE/NAME` where the kind has namespaces.
    pub name: String,
    /// The object.
    pub object: Object,
}

impl Object {
    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Object::AddressPool(_) => Kind::AddressPool,
            Object::LoadBalancer(_) => Kind::LoadBalancer,
            Object::ServicePolicy(_) => Kind::ServicePolicy,
            Object::BGPRouter(_) => Kind::BGPRouter,
            Object::BGPPeer(_) => Kind::BGPPeer,
            Object::BGPAdvertisement(_) => Kind::BGPAdvertisement,
            Object::PacketFilter(_) => Kind::PacketFilter,
            Object::ClusterLink(_) => Kind::ClusterLink,
            Object::Service(_) => Kind::Service,
            Object::EndpointSlice(_) => Kind::EndpointSlice,
            Object::Namespace(_) => Kind::Namespace,
            Object::Node(_) => Kind::Node,
            Object::Secret(_) => Kind::Secret,
        }
    }
}

/// Whether a file of this name holds objects: `.yaml`, `.yml` or `.json`, not hidden. What editors leave
/// behind (`.a.yaml.swp`, `a.yaml~`, `#a.yaml#`) does not.
pub fn holds_objects(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// Reads all objects of a file. Faults do not hide the good objects beside them; after text that is not YAML the
/// rest of the file is not read.
pub fn parse_file(file: &Path, text: &str) -> (Vec<Parsed>, Vec<Fault>) {
    let (mut objects, mut faults) = (Vec::new(), Vec::new());
    if text.len() > MAX_FILE_BYTES {
        faults.push(Fault::file(file, format!("{} bytes are more than {MAX_FILE_BYTES}", text.len())));
        return (objects, faults);
    }
    if let Some(document) = document_with_too_many_brackets(text) {
        let reason = format!("has more than {MAX_BRACKETS} opening brackets and braces");
        faults.push(Fault { document: Some(document), ..Fault::file(file, reason) });
        return (objects, faults);
    }
    let budget = Budget::default();
    for (index, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let fault = |object, field, reason| Fault {
            file: file.into(),
            document: Some(index + 1),
            object,
            field,
            reason,
        };
        let tree = match Tree(&budget).deserialize(document) {
            Ok(tree) => tree,
            Err(error) => {
                faults.push(fault(None, None, error.to_string()));
                break;
            }
        };
        match parse_document(&tree) {
            Ok(None) => {}
            Ok(Some((name, object))) => objects.push(Parsed { document: index + 1, name, object }),
            Err(BadDocument { object, field, reason }) => faults.push(fault(object, field, reason)),
        }
    }
    (objects, faults)
}

/// Reads one object from a tree: its name and itself.
///
/// # Errors
/// What is wrong with it; the fault names no file.
pub(crate) fn parse_object(tree: &Value) -> Result<(String, Object), Fault> {
    let fault = |bad: BadDocument| Fault {
        field: bad.field,
        ..Fault::object(bad.object.unwrap_or_default(), None, bad.reason)
    };
    parse_document(tree).map_err(fault)?.ok_or_else(|| Fault::object("", None, "is empty"))
}

/// The objects of a file that is valid, with their names and as they are written; what is not valid is left out.
pub fn documents(text: &str) -> Vec<(String, Object, Value)> {
    let budget = Budget::default();
    let trees = serde_yaml_ng::Deserializer::from_str(text)
        .map_while(|document| Tree(&budget).deserialize(document).ok());
    let objects = trees.filter_map(|tree| {
        let (name, object) = parse_document(&tree).ok()??;
        Some((name, object, tree))
    });
    objects.collect()
}

/// The first document, from 1, with more than [`MAX_BRACKETS`]. A line `---` starts a document, or is an error
/// that ends the reading.
fn document_with_too_many_brackets(text: &str) -> Option<usize> {
    let (mut document, mut brackets, mut empty) = (1, 0, true);
    for line in text.lines() {
        let marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']));
        if marker && !empty {
            (document, brackets) = (document + 1, 0);
        }
        empty &= line.is_empty() || line.starts_with('#');
        brackets += line.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count();
        if brackets > MAX_BRACKETS {
            return Some(document);
        }
    }
    None
}

/// Why a document is not an object.
struct BadDocument {
    object: Option<String>,
    field: Option<String>,
    reason: String,
}

impl BadDocument {
    fn new(field: &str, reason: impl Into<String>) -> Self {
        BadDocument { object: None, field: Some(field.into()), reason: reason.into() }
    }
}

/// Nothing for an empty document, else the name and the object.
fn parse_document(tree: &Value) -> Result<Option<(String, Object)>, BadDocument> {
    let map = match tree {
        Value::Null => return Ok(None),
        Value::Object(map) => map,
        _ => return Err(BadDocument { object: None, field: None, reason: "is not an object".into() }),
    };
    let kind = kind(map)?;
    let name = map.get("metadata").and_then(|metadata| metadata.get("name")).and_then(Value::as_str);
    let namespace = kind.is_namespaced().then(|| namespace(map));
    let full_name =
        |name: &str| namespace.map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"));
    let object = || Some(format!("{kind}/{}", full_name(name.filter(|name| is_subdomain(name))?)));
    let typed = || {
        let metadata = metadata(map, kind)?;
        let name = full_name(metadata.name.as_deref().unwrap_or_default());
        let object = match kind {
            Kind::AddressPool => Object::AddressPool(custom(kind, map, metadata, AddressPool::new)?),
            Kind::LoadBalancer => Object::LoadBalancer(custom(kind, map, metadata, LoadBalancer::new)?),
            Kind::ServicePolicy => Object::ServicePolicy(custom(kind, map, metadata, ServicePolicy::new)?),
            Kind::BGPRouter => Object::BGPRouter(custom(kind, map, metadata, BGPRouter::new)?),
            Kind::BGPPeer => Object::BGPPeer(custom(kind, map, metadata, BGPPeer::new)?),
            Kind::BGPAdvertisement => {
                Object::BGPAdvertisement(custom(kind, map, metadata, BGPAdvertisement::new)?)
            }
            Kind::PacketFilter => Object::PacketFilter(custom(kind, map, metadata, PacketFilter::new)?),
            Kind::ClusterLink => Object::ClusterLink(custom(kind, map, metadata, ClusterLink::new)?),
            Kind::NodeState => {
                return Err(BadDocument::new("kind", "NodeState is written by fairlead, not declared"));
            }
            Kind::Service => Object::Service(kubernetes::service(metadata, map)?),
            Kind::EndpointSlice => Object::EndpointSlice(kubernetes::endpoint_slice(metadata, map)?),
            Kind::Namespace => Object::Namespace(kubernetes::namespace(metadata)),
            Kind::Node => Object::Node(kubernetes::node(metadata, map)?),
            Kind::Secret => Secret::read(metadata, map)
                .map(|secret| Object::Secret(Arc::new(secret)))
                .map_err(|(field, reason)| BadDocument::new(&field, reason))?,
        };
        Ok(Some((name, object)))
    };
    typed().map_err(|bad: BadDocument| BadDocument {
        object: object().or_else(|| Some(kind.to_string())),
        ..bad
    })
}

/// Kinds that the design knows and this version does not read.
const NOT_YET: [&str; 2] = ["ServiceExport", "ServiceImport"];

fn kind(map: &Map<String, Value>) -> Result<Kind, BadDocument> {
    let text = match map.get("kind") {
        Some(Value::String(text)) => text,
        Some(_) => return Err(BadDocument::new("kind", "is not a text")),
        None => return Err(BadDocument::new("kind", "is missing")),
    };
    if NOT_YET.contains(&text.as_str()) {
        return Err(BadDocument::new("kind", format!("{text} is not supported yet")));
    }
    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == *text).ok_or_else(|| {
        let declared = Kind::ALL.into_iter().filter(|kind| kind.is_declared());
        let names: Vec<_> = declared.map(|kind| kind.to_string()).collect();
        BadDocument::new("kind", format!("{} is none of {}", quoted(text), names.join(", ")))
    })?;
    match map.get("apiVersion") {
        None => Ok(kind),
        Some(Value::String(version)) if version == kind.api_version() => Ok(kind),
        Some(Value::String(version)) => Err(BadDocument::new(
            "apiVersion",
            format!("{} is not {}, which {kind} is of", quoted(version), kind.api_version()),
        )),
        Some(_) => Err(BadDocument::new("apiVersion", format!("is not a text, such as {API_VERSION}"))),
    }
}

/// Fields that every object may have. A status is ignored, but for the addresses of a Node: users do not declare it.
const FIELDS: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];

/// Fields of Kubernetes' ObjectMeta, which is lenient where a misspelt `labels` would go unnoticed.
const METADATA_FIELDS: [&str; 15] = [
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

fn metadata(map: &Map<String, Value>, kind: Kind) -> Result<ObjectMeta, BadDocument> {
    let more = match kind {
        Kind::Secret => &Secret::FIELDS[..],
        Kind::EndpointSlice => &kubernetes::SLICE_FIELDS[..],
        _ => &[],
    };
    let fields: Vec<&str> = FIELDS.iter().chain(more).copied().collect();
    if let Some(unknown) = map.keys().find(|key| !fields.contains(&key.as_str())) {
        return Err(BadDocument::new(
            unknown,
            format!("unknown field, expected one of {}", fields.join(", ")),
        ));
    }
    let Some(value) = map.get("metadata") else {
        return Err(BadDocument::new("metadata.name", "is missing"));
    };
    let fields = value.as_object().into_iter().flat_map(Map::keys);
    if let Some(unknown) = fields.into_iter().find(|key| !METADATA_FIELDS.contains(&key.as_str())) {
        return Err(BadDocument::new(&format!("metadata.{unknown}"), "unknown field"));
    }
    let metadata: ObjectMeta = typed(value, "metadata")?;
    match &metadata.name {
        None => return Err(BadDocument::new("metadata.name", "is missing")),
        Some(name) if !is_subdomain(name) => {
            let reason =
                format!("{} is not a name: lower case letters, digits, - and . (RFC 1123)", quoted(name));
            return Err(BadDocument::new("metadata.name", reason));
        }
        Some(_) => {}
    }
    let has_namespace = kind.is_namespaced() || kind == Kind::Secret;
    match metadata.namespace.as_deref() {
        Some(_) if !has_namespace => {
            return Err(BadDocument::new("metadata.namespace", format!("{kind} has no namespace")));
        }
        Some(namespace) if !is_dns_label(namespace) => {
            let reason = format!(
                "{} is not a name of a namespace: lower case letters, digits and -",
                quoted(namespace)
            );
            return Err(BadDocument::new("metadata.namespace", reason));
        }
        _ => {}
    }
    for (key, value) in metadata.labels.iter().flatten() {
        if let Some(reason) = key_fault(key).or_else(|| value_fault(value)) {
            return Err(BadDocument::new(&format!("metadata.labels.{key}"), reason));
        }
    }
    Ok(metadata)
}

/// The namespace of an object, as Kubernetes' clients have it: `default` if it names none.
fn namespace(map: &Map<String, Value>) -> &str {
    let named = map.get("metadata").and_then(|metadata| metadata.get("namespace")).and_then(Value::as_str);
    named.filter(|namespace| is_dns_label(namespace)).unwrap_or("default")
}

/// An object of ours from its `spec`.
fn custom<K>(
    kind: Kind,
    map: &Map<String, Value>,
    metadata: ObjectMeta,
    new: fn(&str, K::Spec) -> K,
) -> Result<Arc<K>, BadDocument>
where
    K: HasSpec + kube::Resource,
    K::Spec: DeserializeOwned,
{
    let spec = map.get("spec").ok_or_else(|| BadDocument::new("spec", "is missing"))?;
    let mut object = new("", typed(spec, "spec")?);
    if let Some((field, reason)) = limits::fault(kind, spec) {
        return Err(BadDocument::new(&field, reason));
    }
    *object.meta_mut() = metadata;
    Ok(Arc::new(object))
}

/// A value of the type, or the path of the field that is wrong, below `root`.
fn typed<T: DeserializeOwned>(value: &Value, root: &str) -> Result<T, BadDocument> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let field = match path.as_str() {
            "." => root.to_owned(),
            path if path.starts_with('[') => format!("{root}{path}"),
            path => format!("{root}.{path}"),
        };
        let reason = error.into_inner().to_string();
        // Serde names the object that lacks the field; a user looks for the field.
        let missing = reason.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'));
        match missing {
            Some(name) => BadDocument::new(&format!("{field}.{name}"), "is missing"),
            None => BadDocument::new(&field, reason),
        }
    })
}

/// What the documents of one file may still cost, with aliases expanded.
struct Budget(Cell<usize>);

impl Default for Budget {
    /// Enough for the largest file without aliases, at [`NODE_COST`] for each of its shortest lines.
    fn default() -> Self {
        Budget(Cell::new(8 * MAX_FILE_BYTES))
    }
}

/// What a node of the tree costs beyond its text, in bytes of budget.
const NODE_COST: usize = 16;

impl Budget {
    fn take<E: de::Error>(&self, bytes: usize) -> Result<(), E> {
        let left = self.0.get().checked_sub(bytes + NODE_COST);
        self.0.set(left.ok_or_else(|| E::custom("is too large with its aliases expanded"))?);
        Ok(())
    }
}

/// Reads a tree within a budget; refuses duplicate keys.
#[derive(Clone, Copy)]
struct Tree<'a>(&'a Budget);

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> de::Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping, a sequence or a scalar")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        self.0.take(0).map(|()| Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        self.0.take(0).map(|()| value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        self.0.take(0).map(|()| value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        self.0.take(0).map(|()| value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        self.0.take(0)?;
        serde_json::Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom(format_args!("{value} is not a finite number")))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        self.0.take(text.len()).map(|()| text.into())
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.0.take(0)?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.0.take(0)?;
        let mut map = Map::new();
        while let Some(Key(key)) = entries.next_key()? {
            self.0.take(key.len())?;
            let value = entries.next_value_seed(self)?;
            if map.contains_key(&key) {
                return Err(de::Error::custom(format_args!("the key {} stands twice", quoted(&key))));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }

    fn visit_enum<A: de::EnumAccess<'de>>(self, _: A) -> Result<Value, A::Error> {
        Err(de::Error::custom("a YAML tag has no meaning here"))
    }
}

/// The key of a mapping. A label such as `"1": …` is written with quotes, else YAML says it is a number.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        parse_file(Path::new("a.yaml"), text).1.iter().map(Fault::to_string).collect()
    }

    /// Each line has ten times the one before: 10^9 strings from 600 bytes.
    #[test]
    fn aliases_cannot_explode() {
        let mut text = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
        for level in 1..9 {
            let before = format!("*a{},", level - 1).repeat(10);
            text += &format!("a{level}: &a{level} [{before}]\n");
        }
        assert!(faults(&text)[0].contains("repetition limit exceeded"), "{:?}", faults(&text));
        // Within the limit of the YAML reader, which grows with the file, and beyond ours.
        let text = format!("a: &a {}\nb: [{}]\n", "x".repeat(100_000), "*a,".repeat(1000));
        assert_eq!(
            faults(&text),
            ["a.yaml: document 1: b[334]: is too large with its aliases expanded at line 1 column 4"]
        );
    }

    #[test]
    fn depth_is_bounded() {
        for open in ["[", "{a: ", "- ", "? ", "- a: ", "\"]\",["] {
            let text = open.repeat(MAX_FILE_BYTES / open.len());
            assert_eq!(faults(&text).len(), 1, "{open}");
        }
        assert!(faults(&"[".repeat(MAX_BRACKETS))[0].contains("recursion limit"));
        let brackets = format!("kind: Node\nmetadata: {{name: a}}\n---\n{}", "[".repeat(MAX_BRACKETS + 1));
        assert_eq!(
            faults(&brackets),
            ["a.yaml: document 2: has more than 25000 opening brackets and braces"]
        );
    }

    #[test]
    fn the_largest_file_without_aliases_is_within_the_budget() {
        let object = "---\nkind: Node\nmetadata: {name: a, labels: {a: b, c: d, e: f}}\n";
        let text = object.repeat(MAX_FILE_BYTES / object.len());
        let (objects, faults) = parse_file(Path::new("a.yaml"), &text);
        assert_eq!((objects.len(), faults.len()), (MAX_FILE_BYTES / object.len(), 0));
        assert!(
            parse_file(Path::new("a.yaml"), &" ".repeat(MAX_FILE_BYTES + 1)).1[0]
                .reason
                .contains("more than")
        );
    }

    #[test]
    fn json_is_read_as_well() {
        let (objects, faults) =
            parse_file(Path::new("a.json"), r#"{"kind": "Node", "metadata": {"name": "a"}}"#);
        assert_eq!((objects.len(), faults.len()), (1, 0));
        assert_eq!(objects[0].object.kind(), Kind::Node);
    }

    #[test]
    fn a_good_object_beside_a_bad_one_is_read() {
        let text = "kind: Node\nmetadata: {name: a}\n---\nkind: Node\n---\nkind: Node\nmetadata: {name: c}\n";
        let (objects, faults) = parse_file(Path::new("a.yaml"), text);
        assert_eq!(
            objects.iter().map(|parsed| (parsed.document, &*parsed.name)).collect::<Vec<_>>(),
            [(1, "a"), (3, "c")]
        );
        assert_eq!(faults.len(), 1);
    }
}
