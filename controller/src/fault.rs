//! What is wrong with a declared object, and where: one line for a person.
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// Something that is wrong in a file. JSON keys are camelCase and stable.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    /// The file, or the directory; empty: the object is one of an API server.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub file: PathBuf,
    /// Number of the document in the file, from 1; none: the file as such.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<usize>,
    /// The object, `KIND/NAME`, as far as it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// The field, such as `spec.ports[0].port`; none: the object as such.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong.
    pub reason: String,
}

impl Fault {
    /// A fault of a file as such.
    pub fn file(file: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Fault { file: file.into(), document: None, object: None, field: None, reason: reason.into() }
    }

    /// A fault of an object that is in no file.
    pub fn object(object: impl Into<String>, field: Option<String>, reason: impl Into<String>) -> Self {
        Fault {
            file: PathBuf::new(),
            document: None,
            object: Some(object.into()),
            field,
            reason: reason.into(),
        }
    }
}

fn is_empty(file: &Path) -> bool {
    file.as_os_str().is_empty()
}

/// `FILE: document N: KIND/NAME: FIELD: REASON`, as far as there is each, on one line whatever was written.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = (!is_empty(&self.file)).then(|| self.file.display().to_string());
        let document = self.document.map(|document| format!("document {document}"));
        let object = [self.object.clone(), self.field.clone(), Some(self.reason.clone())];
        let parts: Vec<_> = [file, document].into_iter().chain(object).flatten().collect();
        let line = parts.join(": ");
        let is_control = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
        line.chars().try_for_each(|c| {
            if is_control(c) { write!(f, "{}", c.escape_default()) } else { write!(f, "{c}") }
        })
    }
}
