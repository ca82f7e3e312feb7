//! What is wrong with a declared object, and where: one line for a person.
use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf};

/// Something that is wrong in a file. JSON keys are camelCase and stable.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    /// The file, or the directory.
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
}

/// `FILE: document N: KIND/NAME: FIELD: REASON`, on one line whatever was written.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = self.file.display().to_string();
        if let Some(document) = self.document {
            line += &format!(": document {document}");
        }
        for part in [self.object.as_ref(), self.field.as_ref(), Some(&self.reason)].into_iter().flatten() {
            line += ": ";
            line += part;
        }
        let is_control = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
        line.chars().try_for_each(|c| {
            if is_control(c) { write!(f, "{}", c.escape_default()) } else { write!(f, "{c}") }
        })
    }
}
