//! Fairlead and a real Kubernetes API server (`tests/control-plane` builds it). Needs no root, but Go.
#![expect(clippy::unwrap_used, reason = "tests")]
mod clusters;
mod clusterset_ips;
mod conditions;
mod conformance;
mod control_plane;
mod crds;
mod helm;
mod import;
mod manifests;
mod nodes;
mod outage;
mod reuse;
mod shared_pools;
mod store;
