//! BGP on the wire: bytes to messages and back. The parsers are nom's, and nom stays in here.
//!
//! [`frame()`] cuts a stream into messages, [`decode`] makes a [`Message`] of one. What cannot be decoded comes
//! back as the [`Notification`] to send (RFC 4271 section 6). An UPDATE with errors that need not end the session
//! (RFC 7606) comes back with the errors handled: attributes left out, or announced routes turned into
//! withdrawn ones. [`Message::encode`] writes messages, in as few octets as they need.
//!
//! Nothing here panics on any input, nor takes memory out of proportion to it.
mod as_path;
mod attribute;
mod capability;
mod community;
mod encode;
mod frame;
mod nlri;
mod notification;
mod open;
mod parse;
mod refresh;
mod rules;
mod update;

pub use as_path::{AsPath, Segment};
pub use attribute::{Aggregator, Attributes, NextHop, Origin, Partial, Unknown};
pub use capability::{
    AddPath, AfiSafi, Capability, GracefulRestart, LongLived, MAX_LONG_LIVED_SECONDS, MAX_RESTART_SECONDS,
};
pub use community::{Community, ExtendedCommunity, LargeCommunity, ParseCommunityError};
pub(crate) use encode::{Last, Packed, announce_packed, withdraw_packed};
pub use encode::{announce, withdraw};
pub use frame::frame;
pub use nlri::{Nlri, PathId};
pub use notification::{Notification, Reason};
pub use open::Open;
pub use refresh::{RefreshKind, RouteRefresh};
pub use update::{Announcement, Reach, Severity, Update, UpdateError};

use crate::config::Family;
use frame::Kind;
use std::collections::BTreeSet;

/// Length of the header in octets (RFC 4271 section 4.1).
pub const HEADER_LENGTH: usize = 19;
/// Length of the longest message in octets (RFC 4271 section 4.1).
pub const MAX_LENGTH: usize = 4096;
/// The same where both sides have the capability, but for OPEN and KEEPALIVE (RFC 8654 section 4).
pub const MAX_EXTENDED_LENGTH: usize = 65535;

/// What both sides agreed on: it decides how an UPDATE is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// Both sent the four-octet AS capability (RFC 6793).
    pub four_octet_as: bool,
    /// The peer is internal: same AS.
    pub internal: bool,
    /// Families that both sides support; routes of others are ignored.
    pub families: BTreeSet<Family>,
    /// Routes of IPv4 may have next hops of IPv6 (RFC 8950).
    pub extended_next_hop: bool,
    /// Families of which we tell several paths of a prefix (RFC 7911): what is written has path identifiers.
    pub add_path_send: BTreeSet<Family>,
    /// Families of which the peer does: what is read has them.
    pub add_path_receive: BTreeSet<Family>,
    /// Longest UPDATE, NOTIFICATION or ROUTE-REFRESH in octets: [`MAX_LENGTH`] or [`MAX_EXTENDED_LENGTH`].
    pub max_length: usize,
}

impl Context {
    /// As the other end has it: who reads what one has written, or writes down what one has read, needs this.
    pub fn reversed(&self) -> Context {
        Context {
            add_path_send: self.add_path_receive.clone(),
            add_path_receive: self.add_path_send.clone(),
            ..self.clone()
        }
    }
}

impl Default for Context {
    /// Before OPEN messages were exchanged.
    fn default() -> Self {
        Context {
            four_octet_as: false,
            internal: false,
            families: BTreeSet::new(),
            extended_next_hop: false,
            add_path_send: BTreeSet::new(),
            add_path_receive: BTreeSet::new(),
            max_length: MAX_LENGTH,
        }
    }
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the RFC's")]
pub enum Message {
    Open(Open),
    Update(Update),
    /// An UPDATE that says that the first set of routes is complete (RFC 4724 section 2).
    EndOfRib(Family),
    Notification(Notification),
    Keepalive,
    RouteRefresh(RouteRefresh),
}

/// What [`decode`] makes of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The message, its errors handled.
    pub message: Message,
    /// Errors of an UPDATE that did not end the session, for the log and the counters.
    pub errors: Vec<UpdateError>,
}

/// Decodes one message, its header included, as [`frame()`] gives it.
///
/// # Errors
/// The NOTIFICATION to send (RFC 4271 sections 6.1 to 6.3, RFC 7313 section 5) before the session is closed.
/// Errors in a NOTIFICATION are not to be answered (RFC 4271 section 6.4): there the session just ends.
pub fn decode(message: &[u8], context: &Context) -> Result<Decoded, Notification> {
    let (kind, body) = match frame::header(message, context)? {
        Some((kind, length)) if length == message.len() => (kind, &message[HEADER_LENGTH..]),
        _ => return Err(Reason::HEADER_UNSPECIFIC.into()),
    };
    let message = match kind {
        Kind::Open => Message::Open(Open::parse(body)?),
        Kind::Update => return update::parse(body, context),
        Kind::Notification => Message::Notification(Notification::parse(body)?),
        Kind::Keepalive => Message::Keepalive,
        Kind::RouteRefresh => Message::RouteRefresh(RouteRefresh::parse(message)?),
    };
    Ok(Decoded { message, errors: Vec::new() })
}

impl Message {
    /// Appends the message; an UPDATE as as many messages as it takes (see [`announce`] and [`withdraw`]): none
    /// if it says nothing. Returns their number.
    ///
    /// # Errors
    /// [`EncodeError`]; nothing is appended then.
    pub fn encode(&self, context: &Context, out: &mut Vec<u8>) -> Result<usize, EncodeError> {
        let start = out.len();
        let result = match self {
            Message::Open(open) => open.write(out).map(|()| 1),
            Message::Update(update) => encode::update(update, context, out),
            Message::EndOfRib(family) => {
                encode::end_of_rib(*family, out);
                Ok(1)
            }
            Message::Notification(notification) => {
                notification.write(context, out);
                Ok(1)
            }
            Message::Keepalive => {
                frame::write(out, Kind::Keepalive, |_| ());
                Ok(1)
            }
            Message::RouteRefresh(refresh) => {
                refresh.write(out);
                Ok(1)
            }
        };
        result.inspect_err(|_| out.truncate(start))
    }
}

/// A message that cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The attributes leave no room for a single prefix, or the data or parameters are too long.
    #[error("{what} of {length} octets does not fit into a message of {max}")]
    TooLong {
        /// What was to be written.
        what: &'static str,
        /// Its length, octets.
        length: usize,
        /// Longest message, octets.
        max: usize,
    },
    /// The next hop is of a family that cannot be sent for the prefixes.
    #[error("next hop {0} does not fit the family of the prefixes")]
    NextHop(std::net::IpAddr),
}
