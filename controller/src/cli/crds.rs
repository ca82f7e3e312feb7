//! `fairlead crds`: the CustomResourceDefinitions, for `kubectl apply -f -`.
use super::{
    Failure,
    output::{print, yaml},
};
use crate::api::crds::crds;

/// Prints the CustomResourceDefinitions as YAML, one document per kind
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut text = String::new();
        for crd in crds() {
            text += "---\n";
            text += &yaml(&crd)?;
        }
        print(&text)
    }
}
