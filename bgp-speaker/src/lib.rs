//! A small, correct BGP speaker. Without the feature `net` this is the pure core: time, randomness and bytes
//! come in, bytes and facts go out.
pub mod config;
pub mod wire;
