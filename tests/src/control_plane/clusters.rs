//! Several clusters: what a control plane has beside its own manifests, and links from one to another.
use super::ControlPlane;
use crate::Error;
use serde_json::json;
use std::{fs, path::Path};

/// Where the manifests of all installations are.
const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
/// The namespace of those manifests.
const NAMESPACE: &str = "fairlead-system";

impl ControlPlane {
    /// Applies what a cluster of several needs: the manifests ([`install`](Self::install)), the Multi-Cluster Services API, and the
    /// account that others read it with. Waits until the kinds are served.
    pub fn install_multicluster(&self) -> Result<(), Error> {
        self.install()?;
        self.kubectl(&["apply", "--server-side", "-k", &format!("{DEPLOY}/mcs-api")])?;
        self.kubectl(&["wait", "--for=condition=Established", "--timeout=120s", "crd", "--all"])?;
        let reader = Path::new(DEPLOY).join("kubernetes/remote-reader.yaml");
        self.apply(&fs::read_to_string(reader)?).map(drop)
    }

    /// A kubeconfig with the rights of `remote-reader.yaml`, as text: it names no file, since one that does is refused.
    pub fn reader(&self) -> Result<String, Error> {
        let config = self.kubeconfig_of(NAMESPACE, "fairlead-remote")?;
        let config = config.to_str().ok_or("a path that is no text")?;
        self.kubectl(&["config", "view", "--kubeconfig", config, "--flatten", "--raw", "-o", "json"])
    }

    /// Links it to another cluster by this kubeconfig. What is known of that stays for so many seconds when it is out of reach.
    pub fn link(&self, name: &str, kubeconfig: &str, stale_after: u32) -> Result<(), Error> {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NAMESPACE},
            "stringData": {"kubeconfig": kubeconfig},
        });
        let link = json!({
            "apiVersion": "fairlead.dev/v1alpha1", "kind": "ClusterLink", "metadata": {"name": name},
            "spec": {"kubeconfigSecretRef": {"name": name, "key": "kubeconfig"}, "staleAfterSeconds": stale_after},
        });
        self.apply(&format!("{secret}\n---\n{link}")).map(drop)
    }
}
