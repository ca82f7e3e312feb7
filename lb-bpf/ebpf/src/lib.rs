//! Fairlead's XDP programs.
//!
//! [`datapath::run`] is the whole of it, inlined into one program: [`parse`] the packet, look up VIP, slot and
//! backend ([`datapath`]), and flows where they are tracked ([`flow`], [`nat`]), then [`encap`], [`nat`], [`decap`]
//! or [`icmp`] change the packet; what is for a backend of this host itself goes through [`local`] in the end. [`packet`] and [`parse`] call no helper and touch no map: they compile and
//! run on the host as well, like the rules that user space shares ([`lb_bpf_common::decide`]). What XDP cannot send itself goes
//! through [`handover`].
#![no_std]
#![deny(missing_docs)]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key passed by value lies on the stack twice"
)]

pub mod context;
pub mod datapath;
pub mod decap;
pub mod encap;
pub mod event;
pub mod family;
pub mod filter;
pub mod flow;
pub mod fragment;
pub mod global;
pub mod handover;
pub mod icmp;
pub mod local;
pub mod maps;
pub mod nat;
pub mod packet;
pub mod parse;
pub mod quic;
pub mod recent;
pub mod vip;
pub mod vlan;
