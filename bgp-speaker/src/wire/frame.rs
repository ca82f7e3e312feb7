//! Framing: from a stream of bytes to messages (RFC 4271 sections 4.1 and 6.1).
use super::{Context, HEADER_LENGTH, MAX_LENGTH, Notification, Reason};

/// Marker of every message.
pub(super) const MARKER: [u8; 16] = [0xFF; 16];

/// Type of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Open = 1,
    Update = 2,
    Notification = 3,
    Keepalive = 4,
    RouteRefresh = 5,
}

impl Kind {
    fn from_code(code: u8) -> Option<Self> {
        [Kind::Open, Kind::Update, Kind::Notification, Kind::Keepalive, Kind::RouteRefresh]
            .into_iter()
            .find(|kind| *kind as u8 == code)
    }

    /// Whether a message of the type can be so long, header included (RFC 4271 section 6.1, RFC 2918, RFC 8654).
    fn allows(self, length: usize) -> bool {
        match self {
            Kind::Open => (29..=MAX_LENGTH).contains(&length),
            Kind::Update | Kind::RouteRefresh => length >= 23,
            Kind::Notification => length >= 21,
            Kind::Keepalive => length == HEADER_LENGTH,
        }
    }
}

/// The first message of a buffer, its header included; none if it has not come wholly yet. The header is
/// checked as soon as it is there, so that a peer hears of its error without sending the rest. At most
/// `context.max_length` octets need to be buffered.
///
/// # Errors
/// The NOTIFICATION to send: Message Header Error, with the data of RFC 4271 section 6.1.
pub fn frame<'a>(buffer: &'a [u8], context: &Context) -> Result<Option<&'a [u8]>, Notification> {
    match header(buffer, context)? {
        Some((_, length)) => Ok(buffer.get(..length)),
        None => Ok(None),
    }
}

/// Type and length of the first message of a buffer.
pub(super) fn header(buffer: &[u8], context: &Context) -> Result<Option<(Kind, usize)>, Notification> {
    let Some((header, _)) = buffer.split_first_chunk::<HEADER_LENGTH>() else { return Ok(None) };
    let [marker @ .., high, low, code] = header;
    if *marker != MARKER {
        return Err(Reason::CONNECTION_NOT_SYNCHRONIZED.into());
    }
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    let bad_length = || Notification::new(Reason::BAD_MESSAGE_LENGTH, [*high, *low]);
    if !(HEADER_LENGTH..=context.max_length).contains(&length) {
        return Err(bad_length());
    }
    let kind = Kind::from_code(*code).ok_or_else(|| Notification::new(Reason::BAD_MESSAGE_TYPE, [*code]))?;
    if kind.allows(length) { Ok(Some((kind, length))) } else { Err(bad_length()) }
}

/// Appends a message: a header, and what `body` writes. The length is at most `context.max_length`, which the
/// caller has seen to.
pub(super) fn write(out: &mut Vec<u8>, kind: Kind, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&MARKER);
    out.extend_from_slice(&[0, 0, kind as u8]);
    body(out);
    let length = u16::try_from(out.len() - start).unwrap_or(u16::MAX);
    out[start + 16..start + 18].copy_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::{super::MAX_EXTENDED_LENGTH, *};

    fn message(length: u16, kind: u8) -> Vec<u8> {
        let mut bytes = MARKER.to_vec();
        bytes.extend(length.to_be_bytes());
        bytes.push(kind);
        bytes.resize(usize::from(length).max(HEADER_LENGTH), 0);
        bytes
    }

    #[test]
    fn waits_for_the_whole_message() {
        let bytes = [message(23, 2), message(19, 4)].concat();
        for end in 0..23 {
            assert_eq!(frame(&bytes[..end], &Context::default()), Ok(None));
        }
        assert_eq!(frame(&bytes, &Context::default()).unwrap().unwrap().len(), 23);
        assert_eq!(frame(&bytes[23..], &Context::default()).unwrap().unwrap().len(), 19);
    }

    #[test]
    fn extended_messages() {
        let context = Context { max_length: MAX_EXTENDED_LENGTH, ..Context::default() };
        for (length, kind, valid) in [(65535, 2, true), (4097, 3, true), (4097, 1, false), (4096, 1, true)] {
            assert_eq!(frame(&message(length, kind), &context).is_ok(), valid, "{length} {kind}");
        }
    }

    #[test]
    fn header_errors_carry_their_data() {
        let mut unsynchronized = message(19, 4);
        unsynchronized[15] = 0xFE;
        let error = |bytes: &[u8]| frame(bytes, &Context::default()).unwrap_err();
        assert_eq!(error(&unsynchronized), Reason::CONNECTION_NOT_SYNCHRONIZED.into());
        for (length, kind) in
            [(0, 4), (18, 4), (20, 4), (4097, 2), (65535, 2), (28, 1), (22, 2), (20, 3), (22, 5)]
        {
            // The header alone is enough.
            let bytes = &message(length, kind)[..HEADER_LENGTH];
            assert_eq!(error(bytes), Notification::new(Reason::BAD_MESSAGE_LENGTH, length.to_be_bytes()));
        }
        for kind in [0, 6, 255] {
            assert_eq!(error(&message(19, kind)), Notification::new(Reason::BAD_MESSAGE_TYPE, [kind]));
        }
    }
}
