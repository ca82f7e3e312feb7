//! `fairlead get`: the objects of a running instance with their status. Which columns a kind has stands in its CRD.
use super::{
    Failure, Instance,
    json_path::JsonPath,
    output::{ObjectFormat, json, print, table, yaml},
};
use crate::api::{crds::crds, kind::Kind};
use serde_json::Value;

/// Shows objects with their status, from a running instance
///
/// With json and yaml the objects are shown whole, as Kubernetes would: one object when NAME is given, else a List.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Kind of the objects: its name, its plural or its short name, in any case, such as `AddressPool`,
    /// `loadbalancers` or `bgpp`.
    kind: Kind,
    /// Name of one object: `NAMESPACE/NAME` of a Service or an EndpointSlice.
    name: Option<String>,
    #[command(flatten)]
    instance: Instance,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "table")]
    output: ObjectFormat,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let plural = self.kind.plural();
        let objects: Vec<Value> = match &self.name {
            Some(name) if !is_plain(name) => {
                return Err(Failure::No(format!("{} {name:?} not found", self.kind)));
            }
            Some(name) => vec![self.instance.ask(&format!("/v1/objects/{plural}/{name}"))?],
            None => self.instance.ask(&format!("/v1/objects/{plural}"))?,
        };
        self.instance.warn_of_faults();
        print(&match self.output {
            ObjectFormat::Table => objects_table(self.kind, &objects),
            ObjectFormat::Json => json(&document(self.name.is_some(), objects))?,
            ObjectFormat::Yaml => yaml(&document(self.name.is_some(), objects))?,
        })
    }
}

/// Whether an object can have this name, as far as it matters here: others would have to be escaped in the path.
fn is_plain(name: &str) -> bool {
    name.split('/').all(|part| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
    })
}

/// One object as it is, several as a List, as kubectl prints them.
fn document(single: bool, mut objects: Vec<Value>) -> Value {
    match objects.pop() {
        Some(object) if single => object,
        last => {
            objects.extend(last);
            serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects})
        }
    }
}

fn objects_table(kind: Kind, objects: &[Value]) -> String {
    let columns = columns(kind);
    let mut header = vec!["NAME"];
    header.extend(columns.iter().map(|(name, _)| name.as_str()));
    table(
        &header,
        objects.iter().map(|object| {
            let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
            let cells = columns.iter().map(|(_, path)| path.text(object));
            [name.to_owned()].into_iter().chain(cells).collect()
        }),
    )
}

/// The printer columns of the kind, without those that only wide views have (priority above 0) and without ages:
/// files do not say when an object was made.
fn columns(kind: Kind) -> Vec<(String, JsonPath)> {
    // Kubernetes' own kinds, as far as they matter here; of a Secret nobody sees more than the keys.
    let own: &[(&str, &str)] = match kind {
        Kind::Service => &[
            ("NAMESPACE", ".metadata.namespace"),
            ("ADDRESSES", ".status.addresses[*].address"),
            ("PORTS", ".spec.ports[*].port"),
            ("BACKENDS", ".status.backends"),
            ("HEALTHY", ".status.healthyBackends"),
            ("ANNOUNCED", ".status.conditions[?(@.type==\"Announced\")].status"),
        ],
        Kind::EndpointSlice => {
            &[("NAMESPACE", ".metadata.namespace"), ("ENDPOINTS", ".endpoints[*].addresses")]
        }
        Kind::Namespace => &[("LABELS", ".metadata.labels")],
        Kind::Node => &[("LABELS", ".metadata.labels"), ("POD-CIDRS", ".status.podCIDRs[*].cidr")],
        Kind::Secret => &[("KEYS", ".keys")],
        _ => &[],
    };
    if !own.is_empty() {
        let column = |(name, path): &(&str, &str)| Some(((*name).to_owned(), JsonPath::parse(path)?));
        return own.iter().filter_map(column).collect();
    }
    let crd = crds().into_iter().find(|crd| crd.spec.names.kind == kind.name());
    let versions = crd.into_iter().flat_map(|crd| crd.spec.versions).filter(|version| version.storage);
    versions
        .flat_map(|version| version.additional_printer_columns.unwrap_or_default())
        .filter(|column| column.priority.unwrap_or(0) == 0 && column.type_ != "date")
        .filter_map(|column| Some((column.name.to_uppercase(), JsonPath::parse(&column.json_path)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_printer_column_can_be_followed() {
        for crd in crds() {
            let kind: Kind = crd.spec.names.kind.parse().unwrap();
            assert!(!columns(kind).is_empty(), "{kind}");
            for version in crd.spec.versions {
                for column in version.additional_printer_columns.unwrap_or_default() {
                    assert!(JsonPath::parse(&column.json_path).is_some(), "{kind}: {}", column.json_path);
                }
            }
        }
    }

    #[test]
    fn conditions_are_columns() {
        let pool = serde_json::json!({
            "metadata": {"name": "vips"},
            "spec": {"use": "LoadBalancer"},
            "status": {"conditions": [{"type": "Accepted", "status": "True"}], "ipv4": {"assigned": 2}},
        });
        let text = objects_table(Kind::AddressPool, &[pool]);
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines.len(), 2);
        let cell = |name: &str| lines[1][lines[0].iter().position(|h| *h == name).unwrap()];
        assert_eq!((cell("NAME"), cell("IPV4-ASSIGNED"), cell("ACCEPTED")), ("vips", "2", "True"));
    }
}
