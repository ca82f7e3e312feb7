//! Fairlead on a real etcd cluster (`tests/control-plane` builds it). Needs no root, but Go.
#![expect(clippy::unwrap_used, reason = "tests")]
mod declare;
mod fleet;
mod lease;
mod outage;
mod process;
mod rights;
mod store;
