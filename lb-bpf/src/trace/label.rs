//! A verdict as its label.
use lb_bpf_common::Verdict;
use serde::{Deserialize, Deserializer, Serializer, de::Error};

pub(super) fn serialize<S: Serializer>(verdict: &Verdict, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(verdict.label())
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Verdict, D::Error> {
    let label = String::deserialize(deserializer)?;
    let verdict = Verdict::ALL.iter().find(|verdict| verdict.label() == label);
    verdict.copied().ok_or_else(|| D::Error::custom(format!("no verdict has the label {label:?}")))
}
