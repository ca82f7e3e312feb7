//! Router discovery (RFC 4861) as far as neighbours on a link need it to find each other: router solicitations, and
//! router advertisements that make nobody use us as its default router.
use std::net::Ipv6Addr;

/// All nodes of a link (RFC 4291 section 2.7.1): where advertisements go.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// All routers of a link: where solicitations go.
pub const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// Hop limit of all messages: what has another one came over a router (RFC 4861 section 6.1).
pub const HOP_LIMIT: u8 = 255;
/// ICMPv6 type of a router solicitation.
pub const SOLICITATION: u8 = 133;
/// ICMPv6 type of a router advertisement.
pub const ADVERTISEMENT: u8 = 134;

/// A router solicitation (section 4.1), without its checksum.
pub const SOLICIT: [u8; 8] = [SOLICITATION, 0, 0, 0, 0, 0, 0, 0];

/// A router advertisement (section 4.2) without its checksum and without options. Hop limit, reachable time and
/// retransmission timer are unspecified; the router lifetime is 0: this is no default router.
pub const ADVERTISE: [u8; 16] = {
    let mut message = [0; 16];
    message[0] = ADVERTISEMENT;
    message
};

/// What came from a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Somebody wants to be told of routers.
    Solicitation,
    /// A router says that it is there.
    Advertisement,
}

/// A message, from the octets of ICMPv6 and the IPv6 header; its checksum was right. None: it is to be discarded
/// without a word (sections 6.1.1 and 6.1.2), or it is another message.
pub fn parse(octets: &[u8], source: Ipv6Addr, hop_limit: u8) -> Option<Message> {
    let (&[kind, code], _) = octets.split_first_chunk()?;
    let (message, options) = match kind {
        SOLICITATION => (Message::Solicitation, octets.get(8..)?),
        ADVERTISEMENT => (Message::Advertisement, octets.get(16..)?),
        _ => return None,
    };
    let from = source.is_unicast_link_local() || message == Message::Solicitation;
    (hop_limit == HOP_LIMIT && code == 0 && from && are_options(options)).then_some(message)
}

/// Whether options have a length, in units of 8 octets, and end where the message does.
fn are_options(mut octets: &[u8]) -> bool {
    while let Some(length) = octets.get(1).map(|units| usize::from(*units) * 8).filter(|length| *length > 0) {
        let Some(rest) = octets.get(length..) else { return false };
        octets = rest;
    }
    octets.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_say_is_understood() {
        let source = "fe80::1".parse().unwrap();
        assert_eq!(parse(&SOLICIT, source, 255), Some(Message::Solicitation));
        assert_eq!(parse(&SOLICIT, Ipv6Addr::UNSPECIFIED, 255), Some(Message::Solicitation));
        assert_eq!(parse(&ADVERTISE, source, 255), Some(Message::Advertisement));
        // With the link-layer address of the sender.
        let with_option = [&ADVERTISE[..], &[1, 1, 2, 0, 0, 0, 0, 1]].concat();
        assert_eq!(parse(&with_option, source, 255), Some(Message::Advertisement));
    }

    #[test]
    fn what_must_be_discarded() {
        let source = "fe80::1".parse().unwrap();
        let with = |options: &[u8]| [&ADVERTISE[..], options].concat();
        let mut code = ADVERTISE;
        code[1] = 1;
        for (octets, source, hop_limit) in [
            (&ADVERTISE[..], source, 254),
            (&ADVERTISE, "2001:db8::1".parse().unwrap(), 255),
            (&ADVERTISE, Ipv6Addr::UNSPECIFIED, 255),
            (&ADVERTISE[..15], source, 255),
            (&SOLICIT[..7], source, 255),
            (&code, source, 255),
            (&with(&[1, 0, 0, 0, 0, 0, 0, 0]), source, 255),
            (&with(&[1, 2, 0, 0, 0, 0, 0, 0]), source, 255),
            (&with(&[1]), source, 255),
            (&[135, 0, 0, 0, 0, 0, 0, 0], source, 255),
            (&[], source, 255),
        ] {
            assert_eq!(parse(octets, source, hop_limit), None, "{octets:?} {source} {hop_limit}");
        }
    }
}
