//! `fairlead import`: the objects of other load balancers as ours.
use super::{Failure, output::print};
use crate::import::{Origin, import};
use std::{fs, path::PathBuf};

/// Translates YAML of MetalLB or Cilium into ours, and changes nothing
///
/// Prints YAML. What has no counterpart is told on stderr, one line each (object, field, reason), and then the exit code
/// is 1: read these lines before you apply what was printed. The output is checked as `fairlead validate` does it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Whose objects they are.
    origin: Name,
    /// YAML files, as `kubectl get -o yaml` writes them; objects that name each other belong together.
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Name {
    /// metallb.io: IPAddressPool, BGPPeer, BGPAdvertisement, BFDProfile, Community
    Metallb,
    /// cilium.io: CiliumLoadBalancerIPPool, CiliumBGPClusterConfig, CiliumBGPPeerConfig, CiliumBGPAdvertisement
    Cilium,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let origin = match self.origin {
            Name::Metallb => Origin::MetalLB,
            Name::Cilium => Origin::Cilium,
        };
        let read = |file: PathBuf| match fs::read_to_string(&file) {
            Ok(text) => Ok((file, text)),
            Err(error) => Err(Failure::No(format!("{}: {error}", file.display()))),
        };
        let files = self.files.into_iter().map(read).collect::<Result<_, _>>()?;
        let imported = import(origin, &files).map_err(|fault| Failure::No(fault.to_string()))?;
        print(&imported.yaml)?;
        match imported.left_out.is_empty() {
            true => Ok(()),
            false => Err(Failure::No(format!("left out:\n  {}", imported.left_out.join("\n  ")))),
        }
    }
}
