//! Label selectors: the shape and meaning of Kubernetes' `LabelSelector`, but strict. A selector with a
//! misspelt field would select everything, so an unknown field is an error here.
use super::crds::rules;
use super::scalar::quoted;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Selects objects by their labels; all requirements must hold, so the empty selector selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct Selector {
    /// Labels that the object must have with exactly these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Requirements that are more than equality.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub match_expressions: Vec<Requirement>,
}

impl Selector {
    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| requirement.matches(labels))
    }

    /// Whether every object is selected.
    pub fn is_everything(&self) -> bool {
        *self == Selector::default()
    }

    /// What is wrong with it: field below the selector, and reason.
    pub fn faults(&self) -> impl Iterator<Item = (String, String)> + '_ {
        let labels = self.match_labels.iter().flat_map(|(key, value)| {
            let field = format!("matchLabels.{key}");
            let key = key_fault(key).map(|reason| (field.clone(), reason));
            key.into_iter().chain(value_fault(value).map(|reason| (field, reason)))
        });
        let expressions = self.match_expressions.iter().enumerate().flat_map(|(index, requirement)| {
            requirement
                .faults()
                .map(move |(field, reason)| (format!("matchExpressions[{index}].{field}"), reason))
        });
        labels.chain(expressions)
    }
}

/// A requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)", VALUES),
])))]
pub struct Requirement {
    /// Key of the label.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// The relation.
    pub operator: Operator,
    /// Values for `In` and `NotIn`; empty for the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub values: Vec<String>,
}

/// Which operators have values.
const VALUES: &str = "In and NotIn need values, Exists and DoesNotExist have none";

impl Requirement {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|value| self.values.contains(value)),
            // As in Kubernetes: an object without the label is selected.
            Operator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }

    fn faults(&self) -> impl Iterator<Item = (&'static str, String)> + '_ {
        let has_values = !self.values.is_empty();
        let mismatch = matches!(self.operator, Operator::In | Operator::NotIn) != has_values;
        let key = key_fault(&self.key).map(|reason| ("key", reason));
        let values = self.values.iter().filter_map(|value| Some(("values", value_fault(value)?)));
        key.into_iter().chain(mismatch.then(|| ("values", VALUES.to_owned()))).chain(values)
    }
}

/// How a label must relate to the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Operator {
    /// It is one of them.
    In,
    /// It is none of them, or absent.
    NotIn,
    /// It is there, whatever its value.
    Exists,
    /// It is absent.
    DoesNotExist,
}

/// Why a text is not the key of a label: `[prefix/]name`.
pub(crate) fn key_fault(key: &str) -> Option<String> {
    let (prefix, name) = key.rsplit_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let good = !name.is_empty() && is_label_text(name) && prefix.is_none_or(is_subdomain);
    (!good).then(|| format!("{} is not the key of a label", quoted(key)))
}

/// Why a text is not the value of a label: empty, or up to 63 letters, digits, `-`, `_`, `.`.
pub(crate) fn value_fault(value: &str) -> Option<String> {
    let good = value.is_empty() || is_label_text(value);
    (!good).then(|| format!("{} is not the value of a label", quoted(value)))
}

fn is_label_text(text: &str) -> bool {
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// Whether a text is a DNS subdomain (RFC 1123): lower case labels of at most 63 octets, 253 in all.
pub(crate) fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// CEL for a text that is a DNS label (RFC 1123), and what is said if it is none.
pub(super) const DNS_LABEL: (&str, &str) = ("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')", NOT_A_LABEL);
/// What is said of a name that is no DNS label.
pub(crate) const NOT_A_LABEL: &str = "is not a name: lower case letters, digits and -";

/// Whether a text is a DNS label (RFC 1123) in lower case.
pub(crate) fn is_dns_label(text: &str) -> bool {
    let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(|byte| inner(&byte))
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn selects_as_kubernetes_does() {
        let rack = labels(&[("rack", "a"), ("tier", "edge")]);
        let cases = [
            ("{}", true),
            ("matchLabels: {rack: a}", true),
            ("matchLabels: {rack: a, tier: core}", false),
            ("matchExpressions: [{key: rack, operator: In, values: [a, b]}]", true),
            ("matchExpressions: [{key: rack, operator: NotIn, values: [a, b]}]", false),
            ("matchExpressions: [{key: row, operator: NotIn, values: [a]}]", true),
            ("matchExpressions: [{key: row, operator: In, values: [a]}]", false),
            ("matchExpressions: [{key: rack, operator: Exists}]", true),
            ("matchExpressions: [{key: rack, operator: DoesNotExist}]", false),
            (
                "{matchLabels: {rack: a}, matchExpressions: [{key: tier, operator: In, values: [core]}]}",
                false,
            ),
        ];
        for (yaml, expected) in cases {
            let selector: Selector = serde_yaml_ng::from_str(yaml).unwrap();
            assert_eq!(selector.matches(&rack), expected, "{yaml}");
            assert_eq!(selector.faults().count(), 0, "{yaml}");
        }
    }

    #[test]
    fn refuses_what_would_select_everything_by_mistake() {
        assert!(serde_yaml_ng::from_str::<Selector>("matchLabel: {a: b}").is_err());
        let faults =
            |yaml: &str| serde_yaml_ng::from_str::<Selector>(yaml).unwrap().faults().collect::<Vec<_>>();
        assert_eq!(
            faults("matchExpressions: [{key: a, operator: In}]"),
            [("matchExpressions[0].values".to_owned(), VALUES.to_owned())]
        );
        assert_eq!(faults("matchLabels: {'a b': c}")[0].1, "\"a b\" is not the key of a label");
        assert_eq!(faults("matchLabels: {a: 'c d'}")[0].1, "\"c d\" is not the value of a label");
    }
}
