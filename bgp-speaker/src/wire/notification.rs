//! NOTIFICATION (RFC 4271 section 4.5): the reasons by name, and the text of a shutdown (RFC 9003).
use super::{
    Context,
    frame::{self, Kind},
    parse::whole,
};
use nom::{combinator::rest, number::complete::be_u8};
use std::fmt;

/// Why a session ends: error code and subcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reason {
    /// Error code.
    pub code: u8,
    /// Error subcode; 0 is `Unspecific`.
    pub subcode: u8,
}

/// Makes the constants and the table of names from one list.
macro_rules! reasons {
    ($($constant:ident = $code:literal / $subcode:literal, $group:literal, $name:literal;)*) => {
        impl Reason {
            $(#[doc = concat!($group, "/", $name)]
              pub const $constant: Reason = Reason { code: $code, subcode: $subcode };)*

            /// Names of the code and of the subcode, as in IANA's registry.
            fn names(self) -> Option<(&'static str, &'static str)> {
                match (self.code, self.subcode) {
                    $(($code, $subcode) => Some(($group, $name)),)*
                    _ => None,
                }
            }
        }
    };
}

// RFC 4271 section 4.5, RFC 4486, RFC 5492, RFC 6608, RFC 7313, RFC 8538, RFC 9234, RFC 9384, RFC 9687.
reasons! {
    HEADER_UNSPECIFIC = 1/0, "Message Header Error", "Unspecific";
    CONNECTION_NOT_SYNCHRONIZED = 1/1, "Message Header Error", "Connection Not Synchronized";
    BAD_MESSAGE_LENGTH = 1/2, "Message Header Error", "Bad Message Length";
    BAD_MESSAGE_TYPE = 1/3, "Message Header Error", "Bad Message Type";
    OPEN_UNSPECIFIC = 2/0, "OPEN Message Error", "Unspecific";
    UNSUPPORTED_VERSION = 2/1, "OPEN Message Error", "Unsupported Version Number";
    BAD_PEER_AS = 2/2, "OPEN Message Error", "Bad Peer AS";
    BAD_BGP_IDENTIFIER = 2/3, "OPEN Message Error", "Bad BGP Identifier";
    UNSUPPORTED_OPTIONAL_PARAMETER = 2/4, "OPEN Message Error", "Unsupported Optional Parameter";
    UNACCEPTABLE_HOLD_TIME = 2/6, "OPEN Message Error", "Unacceptable Hold Time";
    UNSUPPORTED_CAPABILITY = 2/7, "OPEN Message Error", "Unsupported Capability";
    ROLE_MISMATCH = 2/11, "OPEN Message Error", "Role Mismatch";
    UPDATE_UNSPECIFIC = 3/0, "UPDATE Message Error", "Unspecific";
    MALFORMED_ATTRIBUTE_LIST = 3/1, "UPDATE Message Error", "Malformed Attribute List";
    UNRECOGNIZED_WELL_KNOWN_ATTRIBUTE = 3/2, "UPDATE Message Error", "Unrecognized Well-known Attribute";
    MISSING_WELL_KNOWN_ATTRIBUTE = 3/3, "UPDATE Message Error", "Missing Well-known Attribute";
    ATTRIBUTE_FLAGS_ERROR = 3/4, "UPDATE Message Error", "Attribute Flags Error";
    ATTRIBUTE_LENGTH_ERROR = 3/5, "UPDATE Message Error", "Attribute Length Error";
    INVALID_ORIGIN = 3/6, "UPDATE Message Error", "Invalid ORIGIN Attribute";
    INVALID_NEXT_HOP = 3/8, "UPDATE Message Error", "Invalid NEXT_HOP Attribute";
    OPTIONAL_ATTRIBUTE_ERROR = 3/9, "UPDATE Message Error", "Optional Attribute Error";
    INVALID_NETWORK_FIELD = 3/10, "UPDATE Message Error", "Invalid Network Field";
    MALFORMED_AS_PATH = 3/11, "UPDATE Message Error", "Malformed AS_PATH";
    HOLD_TIMER_EXPIRED = 4/0, "Hold Timer Expired", "Unspecific";
    FSM_UNSPECIFIC = 5/0, "Finite State Machine Error", "Unspecific";
    UNEXPECTED_IN_OPEN_SENT = 5/1, "Finite State Machine Error", "Receive Unexpected Message in OpenSent State";
    UNEXPECTED_IN_OPEN_CONFIRM = 5/2, "Finite State Machine Error", "Receive Unexpected Message in OpenConfirm State";
    UNEXPECTED_IN_ESTABLISHED = 5/3, "Finite State Machine Error", "Receive Unexpected Message in Established State";
    CEASE_UNSPECIFIC = 6/0, "Cease", "Unspecific";
    MAX_PREFIXES_REACHED = 6/1, "Cease", "Maximum Number of Prefixes Reached";
    ADMINISTRATIVE_SHUTDOWN = 6/2, "Cease", "Administrative Shutdown";
    PEER_DECONFIGURED = 6/3, "Cease", "Peer De-configured";
    ADMINISTRATIVE_RESET = 6/4, "Cease", "Administrative Reset";
    CONNECTION_REJECTED = 6/5, "Cease", "Connection Rejected";
    OTHER_CONFIGURATION_CHANGE = 6/6, "Cease", "Other Configuration Change";
    CONNECTION_COLLISION_RESOLUTION = 6/7, "Cease", "Connection Collision Resolution";
    OUT_OF_RESOURCES = 6/8, "Cease", "Out of Resources";
    HARD_RESET = 6/9, "Cease", "Hard Reset";
    BFD_DOWN = 6/10, "Cease", "BFD Down";
    ROUTE_REFRESH_UNSPECIFIC = 7/0, "ROUTE-REFRESH Message Error", "Unspecific";
    ROUTE_REFRESH_INVALID_LENGTH = 7/1, "ROUTE-REFRESH Message Error", "Invalid Message Length";
    SEND_HOLD_TIMER_EXPIRED = 8/0, "Send Hold Timer Expired", "Unspecific";
}

impl fmt::Display for Reason {
    /// `Cease/Administrative Shutdown`; what has no name, by its numbers: `Cease/77`, `9/1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let group = Reason { code: self.code, subcode: 0 }.names();
        match (self.names(), group) {
            (Some((group, "Unspecific")), _) => f.write_str(group),
            (Some((group, name)), _) => write!(f, "{group}/{name}"),
            (None, Some((group, _))) => write!(f, "{group}/{}", self.subcode),
            (None, None) => write!(f, "{}/{}", self.code, self.subcode),
        }
    }
}

/// A NOTIFICATION message: sent, received, or what a decoder says should be sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{reason}{}", self.text())]
pub struct Notification {
    /// Code and subcode.
    pub reason: Reason,
    /// Data as the reason demands, at most what fits into a message.
    pub data: Vec<u8>,
}

impl From<Reason> for Notification {
    fn from(reason: Reason) -> Self {
        Notification { reason, data: Vec::new() }
    }
}

impl Notification {
    /// With data.
    pub fn new(reason: Reason, data: impl Into<Vec<u8>>) -> Self {
        Notification { reason, data: data.into() }
    }

    /// Cease with a text for the other operator (RFC 9003): cut to 255 octets at a character.
    pub fn with_communication(reason: Reason, text: &str) -> Self {
        let text = &text[..text.floor_char_boundary(usize::from(u8::MAX))];
        let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
        Notification { reason, data: [&[length], text.as_bytes()].concat() }
    }

    /// The text of the other operator (RFC 9003 section 2): of an Administrative Shutdown or Reset only, valid
    /// UTF-8 only. It was written elsewhere: control characters are escaped.
    pub fn communication(&self) -> Option<String> {
        if ![Reason::ADMINISTRATIVE_SHUTDOWN, Reason::ADMINISTRATIVE_RESET].contains(&self.reason) {
            return None;
        }
        let (length, rest) = self.data.split_first()?;
        let text = str::from_utf8(rest.get(..usize::from(*length))?).ok()?;
        (!text.is_empty()).then(|| text.chars().flat_map(escape).collect())
    }

    /// Whether the session is to end for good even if both sides keep routes over a NOTIFICATION (RFC 8538 section 3):
    /// whoever says this does not mean to come back soon, or not with these routes.
    pub fn is_hard(&self) -> bool {
        matches!(
            self.reason,
            Reason::HARD_RESET
                | Reason::MAX_PREFIXES_REACHED
                | Reason::ADMINISTRATIVE_SHUTDOWN
                | Reason::PEER_DECONFIGURED
                | Reason::BFD_DOWN
        )
    }

    /// The same inside a Hard Reset, which says it to a peer that keeps routes over a NOTIFICATION (RFC 8538 section
    /// 3.1).
    pub fn hardened(&self) -> Self {
        if self.reason == Reason::HARD_RESET {
            return self.clone();
        }
        let data = [&[self.reason.code, self.reason.subcode], self.data.as_slice()].concat();
        Notification { reason: Reason::HARD_RESET, data }
    }

    /// What is inside a Hard Reset.
    pub(crate) fn softened(&self) -> Option<Self> {
        match (self.reason, self.data.as_slice()) {
            // One inside another would make no sense, and has no end.
            (Reason::HARD_RESET, &[code, subcode, ref data @ ..])
                if (Reason { code, subcode }) != Reason::HARD_RESET =>
            {
                Some(Notification::new(Reason { code, subcode }, data))
            }
            _ => None,
        }
    }

    /// Parses what follows the header.
    pub(super) fn parse(body: &[u8]) -> Result<Notification, Notification> {
        let (code, subcode, data) =
            whole((be_u8, be_u8, rest), body).map_err(|error| error.or(Reason::HEADER_UNSPECIFIC))?;
        Ok(Notification::new(Reason { code, subcode }, data))
    }

    /// Appends the message, its data cut to what fits.
    pub(super) fn write(&self, context: &Context, out: &mut Vec<u8>) {
        let room = context.max_length.saturating_sub(super::HEADER_LENGTH + 2);
        frame::write(out, Kind::Notification, |out| {
            out.extend_from_slice(&[self.reason.code, self.reason.subcode]);
            out.extend_from_slice(&self.data[..self.data.len().min(room)]);
        });
    }

    fn text(&self) -> String {
        if let Some(inside) = self.softened() {
            return format!(" ({inside})");
        }
        match (self.communication(), self.data.as_slice()) {
            (Some(text), _) => format!(" \"{text}\""),
            (None, []) => String::new(),
            (None, data) => {
                let shown: String = data.iter().take(16).map(|octet| format!("{octet:02x}")).collect();
                format!(" ({shown}{})", if data.len() > 16 { "…" } else { "" })
            }
        }
    }
}

fn escape(character: char) -> impl Iterator<Item = char> {
    let escaped = character.is_control().then(|| character.escape_default());
    let plain = escaped.is_none().then_some(character);
    escaped.into_iter().flatten().chain(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (code, subcode, name) in [
            (6, 2, "Cease/Administrative Shutdown"),
            (4, 0, "Hold Timer Expired"),
            (6, 77, "Cease/77"),
            (3, 11, "UPDATE Message Error/Malformed AS_PATH"),
            (99, 1, "99/1"),
        ] {
            assert_eq!(Reason { code, subcode }.to_string(), name);
        }
    }

    #[test]
    fn a_hard_reset_carries_the_reason() {
        let shutdown = Notification::with_communication(Reason::ADMINISTRATIVE_SHUTDOWN, "bye");
        let hard = shutdown.hardened();
        assert_eq!((hard.reason, hard.data.as_slice()), (Reason::HARD_RESET, &b"\x06\x02\x03bye"[..]));
        assert_eq!(hard.to_string(), "Cease/Hard Reset (Cease/Administrative Shutdown \"bye\")");
        assert_eq!(hard.hardened(), hard);
        assert_eq!(
            Notification::new(Reason::HARD_RESET, [6, 9, 6, 9]).to_string(),
            "Cease/Hard Reset (06090609)"
        );
        assert!(hard.is_hard() && shutdown.is_hard());
        assert!(!Notification::from(Reason::HOLD_TIMER_EXPIRED).is_hard());
    }

    #[test]
    fn communication() {
        let shutdown = |text: &str| Notification::with_communication(Reason::ADMINISTRATIVE_SHUTDOWN, text);
        assert_eq!(shutdown("back at noon").to_string(), "Cease/Administrative Shutdown \"back at noon\"");
        assert_eq!(shutdown("a\x1b[31m\n").communication().unwrap(), "a\\u{1b}[31m\\n");
        assert_eq!(shutdown("").communication(), None);
        let long = shutdown(&"é".repeat(200));
        assert_eq!((long.data.len(), long.communication().unwrap().len()), (255, 254));
        for data in [vec![], vec![3, b'a'], vec![2, 0xff, 0xfe]] {
            assert_eq!(Notification::new(Reason::ADMINISTRATIVE_SHUTDOWN, data).communication(), None);
        }
        assert_eq!(Notification::new(Reason::HARD_RESET, [1, b'a']).communication(), None);
    }
}
