//! The definitions in `crds/` and an API server: it takes them, fills in defaults, shows columns, and refuses what
//! `fairlead validate` refuses, with the same sentence. The cases are those of `controller/src/validate/testdata`.
use controller::{
    api::{API_VERSION, Kind},
    object::{Object, parse_file},
};
use lab::{
    control_plane::{Answer, Api, ControlPlane},
    wait_until,
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// What `validate` says and an API server cannot: parts of the sentences, and why.
const NOT_OF_ONE_OBJECT: [(&str, &str); 6] = [
    ("not supported yet", "the API server keeps what later versions read"),
    ("is declared already", "is of files"),
    ("there is no ", "another object"),
    ("selects both", "another object"),
    ("overlaps blocks", "another object, or arithmetic on addresses"),
    ("Secret/", "another object"),
];

/// The same within one object: what CEL has no means for, or none within its budget. A condition says it.
const BEYOND_CEL: [&str; 15] = [
    " is a multicast address",
    " is not an address of a host",
    " is after stop ",
    " is not within one of the blocks",
    "is nothing that can be dialled",
    " is an address of the service",
    "none is of the address family",
    " have one QUIC server ID",
    "must be at most 4: ",
    " stands in backends",
    " stands in addresses",
    "value has bits that mask has not",
    " of a label",
    " is smaller than a block of nodeMask",
    "needs nodeMask.",
];

/// An API server that knows the definitions. Its watchdogs end it with this process.
fn plane() -> &'static (ControlPlane, Api) {
    static PLANE: OnceLock<(ControlPlane, Api)> = OnceLock::new();
    PLANE.get_or_init(|| {
        let plane = ControlPlane::start().unwrap();
        let crds = root().join("crds");
        plane.kubectl(&["create", "-f", crds.to_str().unwrap()]).unwrap();
        let api = plane.api().unwrap();
        for crd in definitions(&api) {
            let plural = crd["spec"]["names"]["plural"].as_str().unwrap();
            wait_until(&format!("the API server serves {plural}"), || {
                Ok(api.get(&format!("/apis/fairlead.dev/v1alpha1/{plural}"))?.code == 200)
            })
            .unwrap();
        }
        (plane, api)
    })
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn definitions(api: &Api) -> Vec<Value> {
    let list = api.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").unwrap().object().unwrap();
    list["items"].as_array().unwrap().clone()
}

fn condition(object: &Value, kind: &str) -> Option<String> {
    let conditions = object["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|condition| condition["type"] == kind)?;
    Some(found["status"].as_str()?.to_owned())
}

/// A document of a case, and what `validate` says about it: field and reason.
struct Document {
    place: String,
    kind: Kind,
    object: Value,
    parsed: Option<Object>,
    faults: Vec<(String, String)>,
}

/// All documents of all cases that are objects of ours.
fn documents() -> Vec<Document> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join("controller/src/validate/testdata")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        for case in text.split("== ").skip(1) {
            let (name, body) = case.split_once('\n').unwrap();
            let mut sections: Vec<_> =
                body.split("-- ").skip(1).filter_map(|s| s.split_once(" --\n")).collect();
            let (_, faults) = sections.pop().unwrap();
            for (file, text) in sections {
                let parsed = parse_file(Path::new(file), text).0;
                let mut by_number: BTreeMap<_, _> =
                    parsed.into_iter().map(|p| (p.document, p.object)).collect();
                for (index, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
                    // After text that is no YAML there is nothing more.
                    let Ok(mut object) = Value::deserialize(document) else { break };
                    let Some(kind) = object["kind"].as_str().and_then(|kind| kind.parse::<Kind>().ok())
                    else {
                        continue;
                    };
                    if !kind.is_declared()
                        || kind.api_version() != API_VERSION
                        || kind.name() != object["kind"]
                    {
                        continue;
                    }
                    // Users do not write it.
                    object.as_object_mut().unwrap().remove("status");
                    if object.get("apiVersion").is_none() {
                        object["apiVersion"] = json!(kind.api_version());
                    }
                    let prefix = format!("{file}: document {}: ", index + 1);
                    let lines = faults.lines().filter_map(|line| line.strip_prefix(&prefix));
                    let faults = lines.filter_map(|line| line.split_once(": ")?.1.split_once(": "));
                    found.push(Document {
                        place: format!("{}: {name}: {prefix}", path.file_name().unwrap().display()),
                        kind,
                        object,
                        parsed: by_number.remove(&(index + 1)),
                        faults: faults.map(|(field, reason)| (field.into(), reason.into())).collect(),
                    });
                }
            }
        }
    }
    found
}

/// What the API server would answer to a creation; nothing is created.
fn create(api: &Api, document: &Document) -> Answer {
    let plural = document.kind.plural();
    let path = format!("/apis/fairlead.dev/v1alpha1/{plural}?dryRun=All&fieldValidation=Strict");
    api.post(&path, &document.object).unwrap()
}

/// Whether an answer says of a field what `validate` says. Types, enumerations, missing and unknown fields, lengths and
/// duplicates are the business of the schema, whose words are the API server's own.
fn says(answer: &Answer, field: &str, reason: &str) -> bool {
    let message = answer.body["message"].as_str().unwrap_or_default();
    if reason.contains("unknown field") {
        return answer.code == 400 && message.contains(&format!("unknown field \"{field}\""));
    }
    let causes = answer.body["details"]["causes"].as_array().map(Vec::as_slice).unwrap_or_default();
    causes.iter().any(|cause| {
        let (its_field, why) = (cause["field"].as_str().unwrap_or_default(), cause["reason"].as_str());
        let message = cause["message"].as_str().unwrap_or_default();
        let parent = field.strip_prefix(its_field).is_some_and(|rest| rest.starts_with(['.', '[']));
        // Of a rule about the object as a whole no field is told.
        let at = its_field == field || parent || its_field == "<nil>" && field.starts_with("metadata.");
        match why {
            // Of several duplicates one is told, and each by its own path.
            Some("FieldValueDuplicate") => DUPLICATES.iter().any(|part| reason.contains(part)),
            Some("FieldValueRequired") => at && (reason == "is missing" || reason == "is empty"),
            Some("FieldValueNotSupported") => at && reason.starts_with("unknown variant"),
            // "failed to parse" a time.
            Some("FieldValueTypeInvalid") => {
                at && (reason.starts_with("invalid type") || reason.starts_with("failed to "))
            }
            Some("FieldValueTooMany" | "FieldValueTooLong") => at,
            _ if reason.starts_with("invalid value: integer") => message.contains("of type integer"),
            _ if reason.contains(", needs at least ") => {
                at && message.ends_with("should have at least 1 items")
            }
            _ if reason == "is empty" => at && message.ends_with("should be at least 1 chars long"),
            _ => at && sentences(reason).iter().any(|sentence| message.ends_with(&format!(": {sentence}"))),
        }
    })
}

/// How `validate` says that something stands in a list twice.
const DUPLICATES: [&str; 3] = [" already", "stands twice", "more than once"];

/// A reason, without the value that it may begin with (the API server says the value first, too), and without
/// particulars that it may end with, behind a colon.
fn sentences(reason: &str) -> Vec<&str> {
    let mut sentences = vec![reason];
    let value_end = match reason.strip_prefix('"') {
        Some(rest) => rest.find("\" ").map(|end| end + 3),
        None => reason.find(' ').map(|end| end + 1),
    };
    sentences.extend(value_end.map(|end| &reason[end..]));
    let whole = sentences.clone();
    sentences.extend(whole.iter().filter_map(|sentence| Some(sentence.split_once(": ")?.0)));
    sentences
}

/// Whether everything in `ours` is in `theirs`.
fn contains(theirs: &Value, ours: &Value) -> bool {
    match (theirs, ours) {
        // A time comes back as it was written.
        (Value::Object(theirs), Value::Object(ours)) => ours.iter().all(|(key, value)| {
            theirs.get(key).is_some_and(|their| key == "expiresAt" || contains(their, value))
        }),
        (Value::Array(theirs), Value::Array(ours)) => {
            theirs.len() == ours.len() && theirs.iter().zip(ours).all(|(theirs, ours)| contains(theirs, ours))
        }
        _ => theirs == ours,
    }
}

#[test]
fn the_definitions_are_established_and_structural() {
    let (_, api) = plane();
    let crds = definitions(api);
    let files = fs::read_dir(root().join("crds")).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).count();
    assert_eq!(crds.len(), files);
    for crd in crds {
        let found: Vec<_> = crd["status"]["conditions"].as_array().unwrap().iter().collect();
        assert_eq!(condition(&crd, "Established").as_deref(), Some("True"), "{found:?}");
        assert_eq!(condition(&crd, "NamesAccepted").as_deref(), Some("True"), "{found:?}");
        assert_eq!(condition(&crd, "NonStructuralSchema"), None, "{found:?}");
    }
}

#[test]
fn what_validate_refuses_is_refused_with_the_same_sentence() {
    let (_, api) = plane();
    let (mut said, mut wrong) = (0, String::new());
    for document in documents() {
        let answer = create(api, &document);
        for (field, reason) in &document.faults {
            let mut elsewhere = NOT_OF_ONE_OBJECT.iter().map(|(part, _)| part).chain(&BEYOND_CEL);
            if elsewhere.any(|part| reason.contains(part)) {
                continue;
            }
            match says(&answer, field, reason) {
                true => said += 1,
                false => {
                    let heard = answer
                        .body
                        .get("details")
                        .map_or(&answer.body["message"], |details| &details["causes"]);
                    wrong += &format!("{}{field}: {reason}\n    {}: {heard}\n", document.place, answer.code);
                }
            }
        }
    }
    assert!(wrong.is_empty(), "the API server says something else:\n{wrong}");
    assert!(said > 100, "only {said} faults");
}

#[test]
fn what_validate_accepts_is_accepted_and_gets_the_same_defaults() {
    let (_, api) = plane();
    let (mut count, mut wrong) = (0, String::new());
    for document in documents().iter().filter(|document| document.faults.is_empty()) {
        let answer = create(api, document);
        let ours = match &document.parsed {
            Some(Object::AddressPool(object)) => json!(object.spec),
            Some(Object::LoadBalancer(object)) => json!(object.spec),
            Some(Object::ServicePolicy(object)) => json!(object.spec),
            Some(Object::BGPRouter(object)) => json!(object.spec),
            Some(Object::BGPPeer(object)) => json!(object.spec),
            Some(Object::BGPAdvertisement(object)) => json!(object.spec),
            Some(Object::PacketFilter(object)) => json!(object.spec),
            Some(Object::ClusterLink(object)) => json!(object.spec),
            _ => continue,
        };
        if answer.code >= 300 || !contains(&answer.body["spec"], &ours) {
            wrong += &format!("{}: {}\n    {}\n    ours: {ours}\n", document.place, answer.code, answer.body);
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(count > 25, "only {count} objects");
}

#[test]
fn kubectl_knows_columns_short_names_and_the_category() {
    let (plane, api) = plane();
    plane
        .apply(
            "{apiVersion: fairlead.dev/v1alpha1, kind: AddressPool, metadata: {name: shown}, \
             spec: {blocks: [{cidr: 203.0.113.0/24}], priority: 7}}",
        )
        .unwrap();
    for crd in definitions(api) {
        let names = &crd["spec"]["names"];
        let plural = names["plural"].as_str().unwrap();
        let table = api.table(&format!("/apis/fairlead.dev/v1alpha1/{plural}")).unwrap();
        let shown: Vec<_> =
            table["columnDefinitions"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
        let columns = crd["spec"]["versions"][0]["additionalPrinterColumns"].as_array().unwrap();
        let declared: Vec<_> = columns.iter().map(|column| &column["name"]).collect();
        assert_eq!(shown[0], "Name", "{plural}");
        assert_eq!(shown[1..], declared, "{plural}");
        let short = names["shortNames"][0].as_str().unwrap();
        let path = plane.kubectl(&["get", short, "--ignore-not-found", "-o", "name"]).unwrap();
        assert_eq!(path.contains("shown"), plural == "addresspools", "{short}: {path}");
    }
    let all = plane.kubectl(&["get", "fairlead", "-o", "name"]).unwrap();
    assert_eq!(all.trim(), "addresspool.fairlead.dev/shown");
    let table = api.table("/apis/fairlead.dev/v1alpha1/addresspools/shown").unwrap();
    assert_eq!(
        table["rows"][0]["cells"].as_array().unwrap()[..3],
        [json!("shown"), json!("LoadBalancer"), json!(7)]
    );
}
