//! UPDATE (RFC 4271 section 4.3) with multiprotocol routes (RFC 4760) and its handling of errors (RFC 7606).
use super::{Attributes, NextHop, Notification};
use ipnet::IpNet;

/// An UPDATE message. Which part of a message the prefixes were in (the fields of RFC 4271 or the attributes of
/// RFC 4760) does not matter to anybody: a prefix has its family in itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// Routes that are no more. They come before the announced ones: a prefix in both is announced.
    pub withdrawn: Vec<IpNet>,
    /// Routes that are.
    pub announced: Option<Announcement>,
}

/// Routes that share their attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The attributes.
    pub attributes: Attributes,
    /// Next hops with their prefixes; decoded: one or two, never empty.
    pub reach: Vec<Reach>,
}

/// Prefixes of one family that share a next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The next hop.
    pub next_hop: NextHop,
    /// The prefixes, without host bits; decoded: not empty.
    pub prefixes: Vec<IpNet>,
}

/// What an error in an UPDATE leads to (RFC 7606 section 2), the mildest first: of several errors the severest
/// counts. Where the RFC allows to disable the address family instead of a reset this speaker resets: a session
/// that is up and silently carries less is harder to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The attribute is left out.
    AttributeDiscard,
    /// The announced routes of the message are withdrawn.
    TreatAsWithdraw,
    /// The session ends with the NOTIFICATION.
    SessionReset,
}

/// An error in an UPDATE.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("attribute {attribute}: {notification}")]
pub struct UpdateError {
    /// What it led to.
    pub severity: Severity,
    /// Type code of the attribute.
    pub attribute: u8,
    /// The NOTIFICATION that says what is wrong.
    pub notification: Notification,
}
