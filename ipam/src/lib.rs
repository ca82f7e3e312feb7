//! Deterministic, sticky, dual-stack allocation of addresses to services ([`allocate`]) and of blocks to nodes
//! ([`pod_cidr`]); leases of the pools that clusters share ([`lease`]). Pure: what pools, claims and held addresses there are comes in; assignments and reasons go out.
//!
//! The rules, in the order in which [`allocate`] applies them:
//! 1. What a claim holds it keeps, whatever became of the pool: an address never moves because a pool was
//!    edited, disabled or removed. Only an edit of the claim itself gives an address back.
//! 2. Claims for specific addresses come next, older claims first.
//! 3. The others take the lowest free address of the first pool that has one.
//!
//! The result is itself the next state ([`Assignments::held`]): calling again with it changes nothing.
mod allocate;
mod assignment;
pub mod lease;
pub mod pod_cidr;
mod pool;

pub use allocate::{Claim, Port, Request, Sharing, allocate};
pub use assignment::{Addresses, Assignment, Assignments, Given, Held, Released, Remark, Unassigned};
pub use pool::{Counters, Family, Overlap, Pool, Range, RangeError, Usage};

/// Name of a claim or a pool; cheap to clone.
pub type Name = std::sync::Arc<str>;
