//! OPEN (RFC 4271 section 4.2) with capabilities (RFC 5492) and extended optional parameters (RFC 9072).
use super::{
    Capability, EncodeError, MAX_LENGTH, Notification, Reason, capability,
    frame::{self, Kind},
    parse::{Malformed, Parsed, ipv4, long_block, refuse, repeat, short_block, whole},
};
use crate::config::Asn;
use nom::{
    Parser,
    bytes::complete::take,
    combinator::rest,
    number::complete::{be_u8, be_u16},
};
use std::net::Ipv4Addr;

/// The version of the protocol.
const VERSION: u8 = 4;
/// Stands for an AS number that does not fit into two octets (RFC 6793).
pub(super) const AS_TRANS: u16 = 23456;
/// Type of the optional parameter that holds capabilities (RFC 5492).
const CAPABILITIES: u8 = 2;
/// Type (and length) that announce extended optional parameters (RFC 9072).
const EXTENDED: u8 = 255;

/// An OPEN message, version 4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The sender's AS: of the four-octet AS capability if it is there (RFC 6793), else of My Autonomous
    /// System. Not 0 (RFC 7607).
    pub asn: Asn,
    /// Proposed hold time in seconds: 0, or at least 3.
    pub hold_seconds: u16,
    /// BGP identifier; not 0.0.0.0.
    pub router_id: Ipv4Addr,
    /// Capabilities in the order of the wire. To speak four-octet AS, name
    /// [`FourOctetAs`](Capability::FourOctetAs).
    pub capabilities: Vec<Capability>,
}

impl Open {
    /// Parses what follows the header. Errors as in RFC 4271 section 6.2.
    pub(super) fn parse(body: &[u8]) -> Result<Open, Notification> {
        let (version, my_as, hold_seconds, router_id, parameters) =
            whole((be_u8, be_u16, be_u16, ipv4, rest), body)
                .map_err(|error| error.or(Reason::OPEN_UNSPECIFIC))?;
        if version != VERSION {
            return Err(Notification::new(Reason::UNSUPPORTED_VERSION, [0, VERSION]));
        }
        let mut capabilities = Vec::new();
        parse_parameters(parameters, &mut capabilities).map_err(|error| error.or(Reason::OPEN_UNSPECIFIC))?;
        let four_octet_as = capabilities.iter().find_map(|capability| match capability {
            Capability::FourOctetAs(asn) => Some(*asn),
            _ => None,
        });
        let asn = match four_octet_as {
            // My Autonomous System is the same number, or AS_TRANS (RFC 6793 section 4.2.2).
            Some(asn) if my_as != AS_TRANS && asn.0 != u32::from(my_as) => {
                return Err(Reason::BAD_PEER_AS.into());
            }
            Some(asn) => asn,
            None => Asn(my_as.into()),
        };
        // RFC 7607
        if asn.0 == 0 || my_as == 0 {
            return Err(Reason::BAD_PEER_AS.into());
        }
        if matches!(hold_seconds, 1 | 2) {
            return Err(Reason::UNACCEPTABLE_HOLD_TIME.into());
        }
        if router_id.is_unspecified() {
            return Err(Reason::BAD_BGP_IDENTIFIER.into());
        }
        Ok(Open { asn, hold_seconds, router_id, capabilities })
    }

    /// Appends the message. All capabilities are in one optional parameter, extended (RFC 9072) if it must be.
    pub(super) fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let mut capabilities = Vec::new();
        for capability in &self.capabilities {
            capability::write(&mut capabilities, capability)?;
        }
        let fixed = 29 + 6;
        let too_long = EncodeError::TooLong {
            what: "capabilities",
            length: capabilities.len(),
            max: MAX_LENGTH - fixed,
        };
        let (parameter, extended) =
            (u8::try_from(capabilities.len() + 2), u16::try_from(capabilities.len() + 3));
        let extended = extended.map_err(|_| too_long.clone())?;
        if capabilities.len() + fixed > MAX_LENGTH {
            return Err(too_long);
        }
        frame::write(out, Kind::Open, |out| {
            out.push(VERSION);
            out.extend_from_slice(&u16::try_from(self.asn.0).unwrap_or(AS_TRANS).to_be_bytes());
            out.extend_from_slice(&self.hold_seconds.to_be_bytes());
            out.extend_from_slice(&self.router_id.octets());
            match parameter {
                _ if capabilities.is_empty() => out.push(0),
                // 255 as the length is best not used without the extension (RFC 9072 section 2).
                Ok(length) if length < EXTENDED => out.extend_from_slice(&[length, CAPABILITIES, length - 2]),
                _ => {
                    out.extend_from_slice(&[EXTENDED, EXTENDED]);
                    out.extend_from_slice(&extended.to_be_bytes());
                    out.push(CAPABILITIES);
                    out.extend_from_slice(&(extended - 3).to_be_bytes());
                }
            }
            out.extend_from_slice(&capabilities);
        });
        Ok(())
    }
}

/// Parser of octets that are preceded by their number.
type Block = fn(&[u8]) -> Parsed<'_, &[u8]>;

/// Optional Parameters Length and the parameters, in either format.
fn parse_parameters(input: &[u8], capabilities: &mut Vec<Capability>) -> Result<(), Malformed> {
    let extended = matches!(input, [length, EXTENDED, ..] if *length != 0);
    let (parameters, block): (_, Block) = if extended {
        (whole((take(2usize), long_block).map(|(_, parameters)| parameters), input)?, long_block)
    } else {
        (whole(short_block, input)?, short_block)
    };
    let mut values = Vec::new();
    repeat(|input| parameter(input, block), parameters, |value| values.push(value))?;
    for value in values {
        repeat(capability::parse, value, |capability| capabilities.push(capability))?;
    }
    Ok(())
}

/// One parameter, which must be Capabilities: its value.
fn parameter(input: &[u8], block: Block) -> Parsed<'_, &[u8]> {
    let (input, code) = be_u8(input)?;
    let (input, value) = block(input)?;
    if code == CAPABILITIES { Ok((input, value)) } else { refuse(Reason::UNSUPPORTED_OPTIONAL_PARAMETER) }
}
