//! The way to the API server: a kubeconfig or the pod's own account, and how long anything may take.
use crate::store::StoreError;
use kube::{
    Client, Config,
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::faulty::Faults;

/// How long a connection may take to be there.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the API server may say nothing: watches end after [`super::watching::WATCH_SECONDS`].
const SILENCE: Duration = Duration::from_secs(super::watching::WATCH_SECONDS as u64 + 30);
/// Our namespace where nothing else is said.
pub const DEFAULT_NAMESPACE: &str = "fairlead-system";

/// Who we are to which API server.
#[derive(Clone)]
pub struct Access {
    client: Client,
    namespace: String,
    is_default: bool,
    cluster_name: Option<String>,
}

impl Access {
    /// From a kubeconfig; without one from `KUBECONFIG`, else from the account of the pod. Our namespace (of Lease and
    /// Secrets) is that of the pod, or [`DEFAULT_NAMESPACE`], if none is named. Nothing is sent yet.
    ///
    /// # Errors
    /// [`StoreError::Access`].
    pub async fn new(kubeconfig: Option<&Path>, namespace: Option<String>) -> Result<Self, StoreError> {
        Access::with_faults(kubeconfig, namespace, &Faults::default()).await
    }

    /// The same, with requests that fail: for tests.
    ///
    /// # Errors
    /// [`StoreError::Access`].
    pub async fn with_faults(
        kubeconfig: Option<&Path>,
        namespace: Option<String>,
        faults: &Faults,
    ) -> Result<Self, StoreError> {
        let named =
            kubeconfig.map(Path::to_owned).or_else(|| std::env::var_os("KUBECONFIG").map(PathBuf::from));
        let refused = |reason: String| StoreError::Access { kubeconfig: named.clone(), reason };
        let mut config = match &named {
            Some(path) => {
                let file = Kubeconfig::read_from(path).map_err(|error| refused(error.to_string()))?;
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                    .await
                    .map_err(|error| refused(error.to_string()))?
            }
            None => Config::incluster().map_err(|error| refused(error.to_string()))?,
        };
        config.connect_timeout = Some(CONNECT);
        config.read_timeout = Some(SILENCE);
        config.write_timeout = Some(SILENCE);
        config.reset_reader_on_write = true;
        // Who asks knows best whether to ask again.
        config.default_retry = false;
        let of_pod = named.is_none().then(|| config.default_namespace.clone());
        let builder = ClientBuilder::try_from(config).map_err(|error| refused(error.to_string()))?;
        let client = builder.with_layer(faults).build();
        let namespace = namespace.or(of_pod).unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
        Ok(Access { client, namespace, is_default: false, cluster_name: None })
    }

    /// The same, where ours is the class of Services that name none, if `is_default`.
    #[must_use]
    pub fn with_default_class(self, is_default: bool) -> Self {
        Access { is_default, ..self }
    }

    /// The same, where this cluster is called so unless its ClusterProperty `cluster.clusterset.k8s.io` says otherwise.
    #[must_use]
    pub fn with_cluster_name(self, cluster_name: Option<String>) -> Self {
        Access { cluster_name, ..self }
    }

    /// The namespace of the Lease and of the Secrets that peers name.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(super) fn is_default_class(&self) -> bool {
        self.is_default
    }

    pub(super) fn cluster_name(&self) -> Option<String> {
        self.cluster_name.clone()
    }

    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }
}
