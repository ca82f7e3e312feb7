//! The fields of a foreign object. What is taken is translated; what is left over when the value is dropped was not,
//! and is told.
use serde_json::{Map, Value, json};

/// A mapping at a path of an object.
pub(super) struct Fields<'a> {
    object: &'a str,
    path: String,
    map: Map<String, Value>,
    left_out: &'a mut Vec<String>,
}

impl<'a> Fields<'a> {
    /// The mapping at `path` of `object` (`KIND/NAME`).
    pub(super) fn new(
        object: &'a str,
        path: impl Into<String>,
        map: Map<String, Value>,
        left_out: &'a mut Vec<String>,
    ) -> Self {
        Fields { object, path: path.into(), map, left_out }
    }

    /// A field, null if it is not there.
    pub(super) fn take(&mut self, field: &str) -> Value {
        self.map.remove(field).unwrap_or_default()
    }

    /// A text, if it is there.
    pub(super) fn text(&mut self, field: &str) -> Option<String> {
        match self.take(field) {
            Value::String(text) => Some(text),
            Value::Null => None,
            _ => {
                self.tell(field, "is not a text");
                None
            }
        }
    }

    /// A number that is not negative, if it is there.
    pub(super) fn number(&mut self, field: &str) -> Option<u64> {
        let value = self.take(field);
        if !value.is_null() && !value.is_u64() {
            self.tell(field, "is not a number from 0 on");
        }
        value.as_u64()
    }

    /// The items of a list; a single text counts as a list.
    pub(super) fn list(&mut self, field: &str) -> Vec<Value> {
        match self.take(field) {
            Value::Array(items) => items,
            Value::Null => Vec::new(),
            other => vec![other],
        }
    }

    /// The texts of a list.
    pub(super) fn texts(&mut self, field: &str) -> Vec<String> {
        let items = self.list(field).into_iter();
        items.map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned)).collect()
    }

    /// Of a list of selectors, of which one has a counterpart, and several only if they differ by the value of one label: that one,
    /// or null.
    pub(super) fn only(&mut self, field: &str) -> Value {
        let mut items = self.list(field);
        if items.len() > 1 {
            if let Some(selector) = one_label(&items) {
                return selector;
            }
            self.tell(field, "several have no counterpart, of which one would do: write an object for each");
        }
        if items.len() == 1 { items.remove(0) } else { Value::Null }
    }

    /// The mapping below a field, with what is told of it; empty if it is not there.
    pub(super) fn below(&mut self, field: &str) -> Fields<'_> {
        let map = match self.take(field) {
            Value::Object(map) => map,
            Value::Null => Map::new(),
            _ => {
                self.tell(field, "is not a mapping");
                Map::new()
            }
        };
        Fields::new(self.object, format!("{}.{field}", self.path), map, self.left_out)
    }

    /// Mappings of a list.
    pub(super) fn each(&mut self, field: &str, mut body: impl FnMut(Fields<'_>)) {
        for (index, item) in self.list(field).into_iter().enumerate() {
            let path = format!("{}.{field}[{index}]", self.path);
            match item {
                Value::Object(map) => body(Fields::new(self.object, path, map, self.left_out)),
                _ => self.tell(&format!("{field}[{index}]"), "is not a mapping"),
            }
        }
    }

    /// Ignores a field: what it asks for is so anyway.
    pub(super) fn ignore(&mut self, field: &str, value: impl Into<Value>) {
        if self.map.get(field) == Some(&value.into()) {
            self.map.remove(field);
        }
    }

    /// Tells of the whole object, and not of its fields.
    pub(super) fn dismiss(mut self, reason: &str) {
        self.map.clear();
        self.left_out.push(format!("{}: {reason}", self.object));
    }

    /// Tells of this mapping, and not of its fields.
    pub(super) fn dismiss_part(mut self, reason: &str) {
        self.map.clear();
        self.left_out.push(format!("{}: {}: {reason}", self.object, self.path));
    }

    /// Tells of a field.
    pub(super) fn tell(&mut self, field: &str, reason: &str) {
        self.left_out.push(format!("{}: {}.{field}: {reason}", self.object, self.path));
    }
}

impl Drop for Fields<'_> {
    fn drop(&mut self) {
        for field in std::mem::take(&mut self.map).keys() {
            self.tell(field, "has no counterpart");
        }
    }
}

/// The selector of what one of these selects, if each asks for one value of the same label (nodes by their names).
fn one_label(selectors: &[Value]) -> Option<Value> {
    let (mut key, mut values) = (None, Vec::new());
    for selector in selectors {
        let labels = selector.as_object().filter(|map| map.len() == 1)?.get("matchLabels")?.as_object()?;
        let (label, value) = labels.iter().next().filter(|_| labels.len() == 1)?;
        if *key.get_or_insert(label) != label {
            return None;
        }
        values.push(value);
    }
    Some(json!({"matchExpressions": [{"key": key?, "operator": "In", "values": values}]}))
}
