//! What one cluster exports under one name: of the ServiceExport, the Service and its EndpointSlices what counts.
use super::{derived::derived_name, hash};
use crate::{
    api::{
        EndpointSlice,
        endpoint_slice::{Endpoint, ImportedFrom, Place, SliceMetadata},
    },
    by_name::ByName,
    shared::Shared,
};
use k8s_openapi::api::core::v1::{Service, ServicePort, SessionAffinityConfig};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

/// The exports of a cluster, by `NAMESPACE/NAME`.
pub type Exports = ByName<Export>;

/// An exported service.
#[derive(Clone, Debug, PartialEq)]
pub struct Export {
    /// When the ServiceExport was made, in seconds since the epoch: the oldest wins.
    pub created: u64,
    /// Labels of the ServiceImport that it asks for.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the ServiceImport that it asks for.
    pub annotations: BTreeMap<String, String>,
    /// The Service, or why it cannot be exported.
    pub service: Result<Arc<Facts>, Invalid>,
    /// Its endpoints, as slices of the importing cluster, by their names there.
    pub slices: Box<[Arc<EndpointSlice>]>,
}

/// What counts of a Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Facts {
    /// Whether it has no address of its own.
    #[serde(skip)]
    pub is_headless: bool,
    /// Its ports.
    pub ports: Vec<ImportPort>,
    /// `None` or `ClientIP`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_affinity: Option<String>,
    /// How long a client is bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_affinity_config: Option<SessionAffinityConfig>,
    /// Its address families, the first first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_families: Vec<String>,
    /// Where traffic from within a cluster goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internal_traffic_policy: Option<String>,
    /// Whether near endpoints come first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_distribution: Option<String>,
}

impl Eq for Facts {}

/// Without what Kubernetes' types have no hash of.
impl Hash for Facts {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.is_headless, &self.ports, &self.session_affinity, &self.ip_families).hash(state);
        (&self.internal_traffic_policy, &self.traffic_distribution).hash(state);
    }
}

/// A port of an imported service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImportPort {
    /// Its name; empty: it has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    #[serde(default = "tcp")]
    pub protocol: String,
    /// What is spoken over it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
    /// Its number.
    pub port: i32,
}

/// Why a Service cannot be exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// It is not there.
    NoService,
    /// It is the name of something else.
    ExternalName,
}

impl Facts {
    /// The same, kept once for all services that say so.
    pub fn shared(self) -> Arc<Self> {
        static SHARED: Shared<Facts> = Shared::new();
        SHARED.one(self)
    }

    /// Of a Service.
    ///
    /// # Errors
    /// It cannot be exported.
    pub fn of(service: &Service) -> Result<Self, Invalid> {
        let spec = service.spec.as_ref().ok_or(Invalid::NoService)?;
        if spec.type_.as_deref() == Some("ExternalName") {
            return Err(Invalid::ExternalName);
        }
        Ok(Facts {
            is_headless: spec.cluster_ip.as_deref() == Some("None"),
            // As many as there are: rooms for four each would be most of what is kept of a Service.
            ports: spec.ports.as_deref().unwrap_or_default().iter().map(ImportPort::of).collect(),
            session_affinity: spec.session_affinity.clone(),
            session_affinity_config: spec.session_affinity_config.clone(),
            ip_families: spec.ip_families.clone().unwrap_or_default(),
            internal_traffic_policy: spec.internal_traffic_policy.clone(),
            traffic_distribution: spec.traffic_distribution.clone(),
        })
    }
}

impl ImportPort {
    fn of(port: &ServicePort) -> Self {
        ImportPort {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(tcp),
            app_protocol: port.app_protocol.clone(),
            port: port.port,
        }
    }
}

fn tcp() -> String {
    "TCP".to_owned()
}

impl Invalid {
    /// The reason as KEP-1645 has it.
    pub const fn reason(self) -> &'static str {
        match self {
            Invalid::NoService => "NoService",
            Invalid::ExternalName => "InvalidServiceType",
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Invalid::NoService => "there is no Service of this name",
            Invalid::ExternalName => "a Service of type ExternalName cannot be exported",
        })
    }
}

impl Export {
    /// The age of an export that is only remembered: it wins over nobody, and contradicts nobody.
    pub const REMEMBERED: u64 = u64::MAX;

    /// A slice as it becomes one of the importing cluster, bound to the derived Service. `is_local`: it is of the same cluster, so its nodes and zones are known
    /// there.
    pub fn imported(service: &str, cluster: &str, slice: &EndpointSlice, is_local: bool) -> EndpointSlice {
        let endpoint = |endpoint: &Endpoint| match is_local {
            true => endpoint.clone(),
            false => Endpoint {
                address: endpoint.address,
                conditions: endpoint.conditions.clone(),
                place: endpoint
                    .place
                    .as_ref()
                    .and_then(|place| Place { hostname: place.hostname.clone(), ..Place::default() }.boxed()),
            },
        };
        let namespace = slice.metadata.namespace.clone();
        EndpointSlice {
            metadata: SliceMetadata {
                name: slice_name(service, cluster, &slice.metadata.name).into(),
                service: None,
                import: Some(Arc::new(ImportedFrom {
                    service: service.into(),
                    cluster: cluster.into(),
                    derived: Some(derived_name(namespace.as_deref().unwrap_or_default(), service).into()),
                    delivery: None,
                })),
                namespace,
            },
            address_type: slice.address_type,
            endpoints: slice.endpoints.iter().map(endpoint).collect(),
            ports: slice.ports.clone(),
        }
    }
}

/// Name of the imported slice of a cluster's slice.
pub fn slice_name(service: &str, cluster: &str, slice: &str) -> String {
    format!("{service}-{:016x}", hash(&[cluster.as_bytes(), slice.as_bytes()]))
}
