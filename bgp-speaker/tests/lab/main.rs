//! The speaker against real routers (FRR, BIRD, GoBGP, OpenBGPD) and against hand-made bytes, in network namespaces. Needs root.
#![expect(clippy::unwrap_used, reason = "what a test cannot go on without")]
mod add_path;
mod bfd;
mod bmp;
mod capture;
mod command;
mod fib;
mod handover;
mod harness;
mod long_lived;
mod malformed;
mod next_hop;
mod others;
mod policy;
mod raw;
mod restart;
mod routers;
mod sessions;
mod succession;
mod transport;
mod unnumbered;
