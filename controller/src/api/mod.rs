//! What users write: one file per kind, group `fairlead.dev`, version `v1alpha1`, cluster-scoped. Of Kubernetes' own kinds
//! (Service, Namespace, Node) the types are Kubernetes' own, too; of EndpointSlice and Secret we keep less.
//!
//! The types are the single source of the custom resource definitions in `crds/` (see [`crds`]), of what the
//! files of a configuration directory may say ([`crate::object`]), and of what a Kubernetes API server accepts.
//! A number or a text with rules is a type of its own ([`scalar`]), so that a value of these types is well
//! formed; what spans several fields or objects is checked in [`crate::validate`] and, as far as CEL can say
//! it, by the API server with the same sentence.
#![expect(clippy::duplicated_attributes, reason = "printer columns are alike but for their names")]

pub mod address_pool;
pub mod bgp_advertisement;
pub mod bgp_peer;
pub mod bgp_router;
pub mod cluster_link;
pub mod community;
pub mod crds;
pub mod delivery;
pub mod endpoint_slice;
pub mod kind;
pub mod load_balancer;
pub mod node;
pub mod node_state;
pub mod packet;
pub mod packet_filter;
pub mod policy;
pub mod scalar;
pub mod secret;
pub mod selector;
pub mod service;
pub mod service_policy;

pub use address_pool::{AddressPool, AddressPoolSpec, AddressPoolStatus, Block, PoolUse};
pub use bgp_advertisement::{BGPAdvertisement, BGPAdvertisementSpec, BGPAdvertisementStatus};
pub use bgp_peer::{BGPPeer, BGPPeerSpec, BGPPeerStatus, PeerAsn};
pub use bgp_router::{BGPRouter, BGPRouterSpec, BGPRouterStatus};
pub use cluster_link::{ClusterLink, ClusterLinkSpec, ClusterLinkStatus};
pub use community::Community;
pub use endpoint_slice::EndpointSlice;
pub use kind::Kind;
pub use load_balancer::{Backend, LoadBalancer, LoadBalancerSpec, LoadBalancerStatus, ServicePort};
pub use node_state::{NodeState, NodeStateSpec, NodeStateStatus};
pub use packet_filter::{PacketFilter, PacketFilterSpec, PacketFilterStatus};
pub use policy::{ForwardingMode, HealthCheck, Policy};
pub use scalar::{Address, Asn, Cidr, Port, Prefix, Weight};
pub use secret::Secret;
pub use selector::Selector;
pub use service_policy::{ServicePolicy, ServicePolicySpec, ServicePolicyStatus};

/// API group of all kinds.
pub const GROUP: &str = "fairlead.dev";
/// Version of all kinds.
pub const VERSION: &str = "v1alpha1";
/// `apiVersion` of all kinds: [`GROUP`]`/`[`VERSION`].
pub const API_VERSION: &str = "fairlead.dev/v1alpha1";
