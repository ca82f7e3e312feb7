//! BGP Monitoring Protocol, version 3 (RFC 7854): what peers tell, passed on to a station.
//!
//! [`message`] writes the messages. [`feed`] is what one station is still to hear: as for a peer (see
//! [`update_queue`](crate::update_queue)) it holds numbers of prefixes and no routes, so that a slow station costs some bytes
//! for each prefix at most and delays nobody; between two of its reads the last state wins (RFC 7854 section 5).
pub(crate) mod feed;
pub(crate) mod message;
