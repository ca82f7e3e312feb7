//! Kubernetes' EndpointSlice (discovery.k8s.io/v1) as we keep it. A cluster may have hundreds of thousands of endpoints: what
//! does not count here is left out, and addresses are read once.
use super::{
    delivery::{DELIVERY, Delivery},
    kind::Kind,
    scalar::Address,
};
use crate::mcs;
use k8s_openapi::{
    api::discovery::v1::{EndpointConditions, EndpointPort},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer, de,
    ser::{self, SerializeMap, SerializeStruct},
};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

/// Label with the name of the Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Endpoints of a Service, which have the same ports.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointSlice {
    /// Which it is, and of which Service.
    pub metadata: SliceMetadata,
    /// What the addresses are.
    pub address_type: AddressType,
    /// The endpoints; of a slice of names none are kept.
    pub endpoints: Box<[Endpoint]>,
    /// The ports of each.
    pub ports: Box<[EndpointPort]>,
}

/// What is kept of a slice's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceMetadata {
    /// Its namespace, if it names one.
    pub namespace: Option<Box<str>>,
    /// Its name.
    pub name: Box<str>,
    /// The Service, of the same namespace, by the label `kubernetes.io/service-name`; none of a slice that we imported.
    pub service: Option<Box<str>>,
    /// Of a slice that we imported: what it is of.
    pub import: Option<Arc<ImportedFrom>>,
}

/// What an imported slice is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedFrom {
    /// The service, of the same namespace.
    pub service: Box<str>,
    /// The cluster whose endpoints it has.
    pub cluster: Box<str>,
    /// The derived Service that it is bound to, of the same namespace, by the label `kubernetes.io/service-name`; none: to none.
    pub derived: Option<Box<str>>,
    /// How its pods are reached in a tunnel; none: the service has no address there.
    pub delivery: Option<Box<Delivery>>,
}

/// What the addresses of a slice are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "Kubernetes' own words")]
pub enum AddressType {
    IPv4,
    IPv6,
    /// Names: they cannot be balanced.
    FQDN,
}

/// Who serves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct Endpoint {
    /// Where. Several addresses mean the same: the first counts.
    pub address: IpAddr,
    /// How it stands; none: it is ready.
    pub conditions: Option<EndpointConditions>,
    /// What else is said of it; none: nothing, as of most endpoints of other clusters.
    pub place: Option<Box<Place>>,
}

/// Where an endpoint is within its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The node that it is on.
    pub node_name: Option<Arc<str>>,
    /// The zone that it is in.
    pub zone: Option<Box<str>>,
    /// Its own name in the DNS below that of a headless Service: where the slice is imported, `HOSTNAME.CLUSTER.SERVICE` (KEP-1645).
    pub hostname: Option<Box<str>>,
}

/// An endpoint as Kubernetes has it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    #[serde(rename = "addresses", serialize_with = "write_address", deserialize_with = "read_address")]
    address: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    conditions: Option<EndpointConditions>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "write_shared",
        deserialize_with = "read_shared"
    )]
    node_name: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zone: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hostname: Option<Box<str>>,
}

impl From<Written> for Endpoint {
    fn from(written: Written) -> Self {
        let Written { address, conditions, node_name, zone, hostname } = written;
        Endpoint { address, conditions, place: Place { node_name, zone, hostname }.boxed() }
    }
}

impl From<Endpoint> for Written {
    fn from(endpoint: Endpoint) -> Self {
        let Endpoint { address, conditions, place } = endpoint;
        let Place { node_name, zone, hostname } = place.map_or_else(Place::default, |place| *place);
        Written { address, conditions, node_name, zone, hostname }
    }
}

impl Place {
    /// None if nothing is said.
    pub fn boxed(self) -> Option<Box<Self>> {
        (self != Place::default()).then(|| Box::new(self))
    }
}

impl Endpoint {
    /// The node that it is on.
    pub fn node_name(&self) -> Option<&Arc<str>> {
        self.place.as_ref()?.node_name.as_ref()
    }

    /// Whether it is on this node.
    pub fn is_on(&self, node: &str) -> bool {
        self.node_name().is_some_and(|own| **own == *node)
    }

    /// The zone that it is in.
    pub fn zone(&self) -> Option<&str> {
        self.place.as_ref()?.zone.as_deref()
    }
}

impl From<ObjectMeta> for SliceMetadata {
    fn from(mut metadata: ObjectMeta) -> Self {
        let mut label = |name: &str| metadata.labels.as_mut()?.remove(name).map(String::into_boxed_str);
        let mut service = label(SERVICE_NAME);
        let is_ours = label(mcs::SLICE_MANAGED_BY).is_some_and(|by| &*by == mcs::MANAGER);
        let of = is_ours.then(|| label(mcs::SERVICE_NAME).zip(label(mcs::SOURCE_CLUSTER))).flatten();
        let import = of.map(|(name, cluster)| {
            let delivery = metadata.annotations.as_ref().and_then(|all| Delivery::read(all.get(DELIVERY)?));
            let delivery = delivery.map(Box::new);
            Arc::new(ImportedFrom { service: name, cluster, derived: service.take(), delivery })
        });
        SliceMetadata {
            namespace: metadata.namespace.map(String::into_boxed_str),
            name: metadata.name.unwrap_or_default().into(),
            service,
            import,
        }
    }
}

impl SliceMetadata {
    /// The labels that are kept of it.
    fn labels(&self) -> BTreeMap<&str, &str> {
        let derived = self.import.as_ref().and_then(|import| import.derived.as_ref());
        let service = self.service.iter().chain(derived).map(|service| (SERVICE_NAME, &**service));
        let import = self.import.iter().flat_map(|import| {
            [
                (mcs::SERVICE_NAME, &*import.service),
                (mcs::SOURCE_CLUSTER, &*import.cluster),
                (mcs::SLICE_MANAGED_BY, mcs::MANAGER),
            ]
        });
        service.chain(import).collect()
    }
}

/// For who asks: as Kubernetes has it.
impl Serialize for EndpointSlice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("EndpointSlice", 6)?;
        object.serialize_field("apiVersion", Kind::EndpointSlice.api_version())?;
        object.serialize_field("kind", &Kind::EndpointSlice.name())?;
        object.serialize_field("metadata", &self.metadata)?;
        object.serialize_field("addressType", &self.address_type)?;
        object.serialize_field("endpoints", &self.endpoints)?;
        object.serialize_field("ports", &self.ports)?;
        object.end()
    }
}

impl Serialize for SliceMetadata {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(namespace) = &self.namespace {
            map.serialize_entry("namespace", namespace)?;
        }
        map.serialize_entry("name", &self.name)?;
        let labels = self.labels();
        if !labels.is_empty() {
            map.serialize_entry("labels", &labels)?;
        }
        if let Some(delivery) = self.import.as_ref().and_then(|import| import.delivery.as_ref()) {
            let text = serde_json::to_string(delivery).map_err(ser::Error::custom)?;
            map.serialize_entry("annotations", &BTreeMap::from([(DELIVERY, text)]))?;
        }
        map.end()
    }
}

fn write_shared<S: Serializer>(text: &Option<Arc<str>>, serializer: S) -> Result<S::Ok, S::Error> {
    text.as_deref().serialize(serializer)
}

fn read_shared<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Arc<str>>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(Into::into))
}

fn write_address<S: Serializer>(address: &IpAddr, serializer: S) -> Result<S::Ok, S::Error> {
    [Address(*address)].serialize(serializer)
}

fn read_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpAddr, D::Error> {
    let addresses = Vec::<Address>::deserialize(deserializer)?;
    addresses.first().map(|address| address.0).ok_or_else(|| de::Error::custom("is empty"))
}
