//! What all parsers of this module share: their error, and the few shapes that BGP is made of.
use super::{Notification, Reason};
use nom::{
    IResult, Parser,
    bytes::complete::take,
    error::{ErrorKind, ParseError},
    number::complete::{be_u8, be_u16, be_u32},
};
use std::net::Ipv4Addr;

/// The input ends too early or has a value that cannot be. What that means for the session depends on where it
/// happens: the caller knows the [`Reason`], unless the parser names one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) Option<Reason>);

impl ParseError<&[u8]> for Malformed {
    fn from_error_kind(_: &[u8], _: ErrorKind) -> Self {
        Malformed(None)
    }
    fn append(_: &[u8], _: ErrorKind, other: Self) -> Self {
        other
    }
}

impl Malformed {
    /// The NOTIFICATION, without data.
    pub(super) fn or(self, reason: Reason) -> Notification {
        self.0.unwrap_or(reason).into()
    }
}

/// Result of a parser.
pub(super) type Parsed<'a, T> = IResult<&'a [u8], T, Malformed>;

/// Fails with a reason.
pub(super) fn refuse<T>(reason: Reason) -> Parsed<'static, T> {
    Err(nom::Err::Failure(Malformed(Some(reason))))
}

/// What is wrong.
pub(super) fn cause(error: nom::Err<Malformed>) -> Malformed {
    match error {
        nom::Err::Error(malformed) | nom::Err::Failure(malformed) => malformed,
        nom::Err::Incomplete(_) => Malformed(None),
    }
}

/// Runs a parser over the whole of the input.
pub(super) fn whole<'a, T>(
    mut parser: impl Parser<&'a [u8], Output = T, Error = Malformed>,
    input: &'a [u8],
) -> Result<T, Malformed> {
    match parser.parse(input) {
        Ok(([], value)) => Ok(value),
        Ok(_) | Err(nom::Err::Incomplete(_)) => Err(Malformed(None)),
        Err(nom::Err::Error(malformed) | nom::Err::Failure(malformed)) => Err(malformed),
    }
}

/// Runs a parser until the input is used up.
pub(super) fn repeat<'a, T>(
    mut parser: impl Parser<&'a [u8], Output = T, Error = Malformed>,
    mut input: &'a [u8],
    mut each: impl FnMut(T),
) -> Result<(), Malformed> {
    while !input.is_empty() {
        let (rest, value) = parser.parse(input).map_err(cause)?;
        // A parser that takes nothing would go on for ever.
        if rest.len() == input.len() {
            return Err(Malformed(None));
        }
        each(value);
        input = rest;
    }
    Ok(())
}

/// Octets preceded by their number in one octet.
pub(super) fn short_block(input: &[u8]) -> Parsed<'_, &[u8]> {
    let (input, length) = be_u8(input)?;
    take(length)(input)
}

/// Octets preceded by their number in two octets.
pub(super) fn long_block(input: &[u8]) -> Parsed<'_, &[u8]> {
    let (input, length) = be_u16(input)?;
    take(length)(input)
}

/// An IPv4 address.
pub(super) fn ipv4(input: &[u8]) -> Parsed<'_, Ipv4Addr> {
    be_u32.map(Ipv4Addr::from_bits).parse(input)
}

/// An IPv6 address.
pub(super) fn ipv6(input: &[u8]) -> Parsed<'_, std::net::Ipv6Addr> {
    nom::number::complete::be_u128.map(std::net::Ipv6Addr::from_bits).parse(input)
}
