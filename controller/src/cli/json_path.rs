//! The part of JSONPath that printer columns of CRDs use: `.spec.asn`, `.spec.ports[0].port`, `.status.addresses[*]`,
//! `.status.conditions[?(@.type=="Ready")].status`, `.metadata.labels.a\.b`.
use serde_json::Value;

/// A parsed path.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct JsonPath(Vec<Step>);

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Field(String),
    Index(usize),
    All,
    /// Elements of an array whose field has this value.
    Where {
        field: String,
        value: String,
    },
}

impl JsonPath {
    /// None: the path uses what this does not know.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut steps = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            if let Some(inner) = rest.strip_prefix('[') {
                let (inside, after) = inner.split_once(']')?;
                steps.push(bracket(inside)?);
                rest = after;
            } else {
                let (name, after) = field(rest.strip_prefix('.')?);
                if name.is_empty() {
                    return None;
                }
                steps.push(Step::Field(name));
                rest = after;
            }
        }
        Some(JsonPath(steps))
    }

    /// What the path leads to, joined by commas; empty: nothing.
    pub(super) fn text(&self, object: &Value) -> String {
        let mut found = vec![object];
        for step in &self.0 {
            found = found.into_iter().flat_map(|value| step.apply(value)).collect();
        }
        found.into_iter().map(text).filter(|t| !t.is_empty()).collect::<Vec<_>>().join(",")
    }
}

impl Step {
    fn apply<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let elements = || value.as_array().into_iter().flatten();
        match self {
            Step::Field(name) => value.get(name).into_iter().collect(),
            Step::Index(index) => elements().nth(*index).into_iter().collect(),
            Step::All => elements().collect(),
            Step::Where { field, value } => {
                elements().filter(|e| e.get(field).is_some_and(|v| text(v) == *value)).collect()
            }
        }
    }
}

/// The name of a field up to the next `.` or `[`, and what follows. `\.` is a dot in the name.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '.' | '[' => return (name, &text[at..]),
            '\\' => name.extend(chars.next().map(|(_, escaped)| escaped)),
            _ => name.push(c),
        }
    }
    (name, "")
}

fn bracket(inside: &str) -> Option<Step> {
    if inside == "*" {
        return Some(Step::All);
    }
    if let Ok(index) = inside.parse() {
        return Some(Step::Index(index));
    }
    let condition = inside.strip_prefix("?(@.")?.strip_suffix(')')?;
    let (field, value) = condition.split_once("==")?;
    let value = value.trim().trim_matches(['"', '\'']);
    Some(Step::Where { field: field.trim().to_owned(), value: value.to_owned() })
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join(","),
        Value::Object(map) => {
            map.iter().map(|(k, v)| format!("{k}={}", text(v))).collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn at(path: &str, object: &Value) -> String {
        JsonPath::parse(path).unwrap().text(object)
    }

    #[test]
    fn follows_what_printer_columns_use() {
        let object = json!({
            "metadata": {"labels": {"a.b/c": "x"}},
            "spec": {"asn": 65000, "on": true, "ports": [{"port": 80}, {"port": 443}], "addresses": ["a", "b"]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Accepted", "status": "False"}]},
        });
        assert_eq!(at(".spec.asn", &object), "65000");
        assert_eq!(at(".spec.on", &object), "true");
        assert_eq!(at(".spec.ports[1].port", &object), "443");
        assert_eq!(at(".spec.ports[*].port", &object), "80,443");
        assert_eq!(at(".spec.addresses", &object), "a,b");
        assert_eq!(at(r#".status.conditions[?(@.type=="Accepted")].status"#, &object), "False");
        assert_eq!(at(".status.conditions[?(@.type=='Ready')].status", &object), "True");
        assert_eq!(at(r".metadata.labels.a\.b/c", &object), "x");
        assert_eq!(at(".spec.none.at.all", &object), "");
        assert_eq!(at(".spec.ports[7].port", &object), "");
    }

    #[test]
    fn says_so_when_it_does_not_know() {
        for path in ["spec", ".", "..a", ".a[", ".a[b]", ".a[?(x)]", ".a[?(@.b)]"] {
            assert_eq!(JsonPath::parse(path), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_path_panics(path in ".{0,40}") {
            if let Some(path) = JsonPath::parse(&path) {
                path.text(&json!({"a": [{"b": 1}]}));
            }
        }
    }
}
