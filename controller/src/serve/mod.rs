//! What an instance serves: its API on a unix socket, metrics and health over HTTP.
pub mod rows;
