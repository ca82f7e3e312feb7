//! Path attributes from the wire, each by its rules: flags, length, value, and what an error in it leads to
//! (RFC 4271 section 6.3 as revised by RFC 7606 sections 3, 4 and 7).
use super::{
    Aggregator, AsPath, Attributes, Community, Context, ExtendedCommunity, LargeCommunity, NextHop, Nlri,
    Notification, Origin, Reach, Reason, Segment, Severity, Unknown, UpdateError,
    capability::AfiSafi,
    nlri,
    open::AS_TRANS,
    parse::{Malformed, Parsed, ipv4, ipv6, long_block, repeat, short_block, whole},
};
use crate::config::{Asn, Family};
use nom::{
    Parser,
    combinator::rest,
    multi::count,
    number::complete::{be_u8, be_u16, be_u32},
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
};

pub(super) const ORIGIN: u8 = 1;
pub(super) const AS_PATH: u8 = 2;
pub(super) const NEXT_HOP: u8 = 3;
pub(super) const MED: u8 = 4;
pub(super) const LOCAL_PREF: u8 = 5;
pub(super) const ATOMIC_AGGREGATE: u8 = 6;
pub(super) const AGGREGATOR: u8 = 7;
pub(super) const COMMUNITIES: u8 = 8;
pub(super) const ORIGINATOR_ID: u8 = 9;
pub(super) const CLUSTER_LIST: u8 = 10;
pub(super) const MP_REACH: u8 = 14;
pub(super) const MP_UNREACH: u8 = 15;
pub(super) const EXTENDED_COMMUNITIES: u8 = 16;
pub(super) const AS4_PATH: u8 = 17;
pub(super) const AS4_AGGREGATOR: u8 = 18;
pub(super) const LARGE_COMMUNITIES: u8 = 32;
pub(super) const OTC: u8 = 35;

pub(super) const OPTIONAL: u8 = 0x80;
pub(super) const TRANSITIVE: u8 = 0x40;
pub(super) const EXTENDED_LENGTH: u8 = 0x10;
/// The flags that mean something (RFC 4271 section 4.3); the lower four bits are ignored.
const MEANT: u8 = OPTIONAL | TRANSITIVE | Unknown::PARTIAL;

/// Optional and Transitive of the attributes that this speaker knows.
pub(super) fn flags_of(code: u8) -> Option<u8> {
    match code {
        ORIGIN | AS_PATH | NEXT_HOP | LOCAL_PREF | ATOMIC_AGGREGATE => Some(TRANSITIVE),
        MED | ORIGINATOR_ID | CLUSTER_LIST | MP_REACH | MP_UNREACH => Some(OPTIONAL),
        AGGREGATOR | COMMUNITIES | EXTENDED_COMMUNITIES | AS4_PATH | AS4_AGGREGATOR | LARGE_COMMUNITIES
        | OTC => Some(OPTIONAL | TRANSITIVE),
        _ => None,
    }
}

/// All that the attributes of a message say.
#[derive(Default)]
pub(super) struct PathAttributes {
    /// The attributes of the announced routes.
    pub(super) attributes: Attributes,
    /// NEXT_HOP: for the prefixes of the NLRI field.
    pub(super) next_hop: Option<NextHop>,
    /// Routes of MP_REACH_NLRI, if their family was negotiated.
    pub(super) reach: Option<Reach>,
    /// Routes of MP_UNREACH_NLRI, if their family was negotiated.
    pub(super) unreach: Option<(Family, Vec<Nlri>)>,
    /// Whether MP_REACH_NLRI has prefixes, of whatever family.
    pub(super) reaches: bool,
    /// Types that are there.
    pub(super) seen: BTreeSet<u8>,
    /// The last attribute is cut short.
    pub(super) cut: bool,
    /// Errors that do not end the session.
    pub(super) errors: Vec<UpdateError>,
    as4_path: Option<AsPath>,
    as4_aggregator: Option<Aggregator>,
}

impl PathAttributes {
    /// Parses the attributes of a message. `has_nlri`: the message has prefixes in the NLRI field.
    pub(super) fn parse(mut input: &[u8], has_nlri: bool, context: &Context) -> Result<Self, Notification> {
        let mut all = PathAttributes::default();
        while let Some(code) = input.get(1).or(input.first()).copied() {
            let Ok((rest, raw)) = Raw::parse(input) else {
                // An attribute ends after the end of all attributes. Where the NLRI begin is known none the
                // less (RFC 7606 section 4).
                let fault =
                    Fault { severity: Severity::TreatAsWithdraw, reason: Reason::ATTRIBUTE_LENGTH_ERROR };
                all.errors.push(fault.error(code, input));
                all.cut = true;
                break;
            };
            if let Err(fault) = all.add(&raw, has_nlri, context) {
                let error = fault.error(raw.code, raw.bytes);
                if fault.severity == Severity::SessionReset {
                    return Err(error.notification);
                }
                all.errors.push(error);
            }
            input = rest;
        }
        all.merge_four_octet();
        all.check_mandatory(has_nlri, context);
        Ok(all)
    }

    fn add(&mut self, raw: &Raw<'_>, has_nlri: bool, context: &Context) -> Result<(), Fault> {
        if !self.seen.insert(raw.code) {
            // RFC 7606 section 3 g
            let severity = match raw.code {
                MP_REACH | MP_UNREACH => Severity::SessionReset,
                _ => Severity::AttributeDiscard,
            };
            return Err(Fault { severity, reason: Reason::MALFORMED_ATTRIBUTE_LIST });
        }
        match raw.code {
            // Never from external peers (RFC 7606 sections 7.5, 7.9, 7.10), whatever is in it.
            LOCAL_PREF | ORIGINATOR_ID | CLUSTER_LIST if !context.internal => {
                return Err(discard(Reason::UPDATE_UNSPECIFIC));
            }
            // Never from a speaker of four-octet AS numbers (RFC 6793 section 4.1).
            AS4_PATH | AS4_AGGREGATOR if context.four_octet_as => {
                return Err(discard(Reason::UPDATE_UNSPECIFIC));
            }
            // Without prefixes that it is for it is ignored (RFC 4760 section 3).
            NEXT_HOP if !has_nlri => return Ok(()),
            _ => (),
        }
        // The prefixes are wanted even if the flags are wrong: then they are withdrawn.
        let flags = match flags_of(raw.code) {
            Some(flags) if flags != raw.flags & (OPTIONAL | TRANSITIVE) => {
                Err(withdraw(Reason::ATTRIBUTE_FLAGS_ERROR)) // RFC 7606 section 3 c
            }
            _ => Ok(()),
        };
        match self.value(raw, context) {
            Err(fault) if fault.severity == Severity::SessionReset => Err(fault),
            value => {
                if value.is_ok() && raw.flags & Unknown::PARTIAL != 0 {
                    self.attributes.partial.insert(raw.code);
                }
                flags.and(value)
            }
        }
    }

    fn value(&mut self, raw: &Raw<'_>, context: &Context) -> Result<(), Fault> {
        let (attributes, value) = (&mut self.attributes, raw.value);
        match raw.code {
            ORIGIN => {
                attributes.origin = match exact(be_u8, value, withdraw)? {
                    0 => Origin::Igp,
                    1 => Origin::Egp,
                    2 => Origin::Incomplete,
                    _ => return Err(withdraw(Reason::INVALID_ORIGIN)),
                }
            }
            AS_PATH => {
                let (path, confederation) =
                    as_path(value, context.four_octet_as).map_err(|_| withdraw(Reason::MALFORMED_AS_PATH))?;
                if confederation {
                    return Err(withdraw(Reason::MALFORMED_AS_PATH)); // RFC 5065 section 5
                }
                attributes.as_path = path;
            }
            NEXT_HOP => {
                let address = IpAddr::V4(exact(ipv4, value, withdraw)?);
                if !is_host(address) {
                    return Err(withdraw(Reason::INVALID_NEXT_HOP));
                }
                self.next_hop = Some(address.into());
            }
            MED => attributes.med = Some(exact(be_u32, value, withdraw)?),
            LOCAL_PREF => attributes.local_pref = Some(exact(be_u32, value, withdraw)?),
            ATOMIC_AGGREGATE if value.is_empty() => attributes.atomic_aggregate = true,
            ATOMIC_AGGREGATE => return Err(discard(Reason::ATTRIBUTE_LENGTH_ERROR)),
            AGGREGATOR => attributes.aggregator = Some(aggregator(value, context.four_octet_as)?),
            COMMUNITIES => attributes.communities = list(be_u32.map(Community), value)?,
            ORIGINATOR_ID => attributes.originator_id = Some(exact(ipv4, value, withdraw)?),
            CLUSTER_LIST => attributes.cluster_list = list(ipv4, value)?,
            MP_REACH => {
                let (reach, reaches) = mp_reach(value, context)?;
                self.reaches = reaches;
                if let Some(reach) = reach {
                    // RFC 4271 section 6.3 for NEXT_HOP. The prefixes are there to be withdrawn.
                    let valid = is_host(reach.next_hop.address);
                    self.reach = Some(reach);
                    if !valid {
                        return Err(withdraw(Reason::OPTIONAL_ATTRIBUTE_ERROR));
                    }
                }
            }
            MP_UNREACH => self.unreach = mp_unreach(value, context)?,
            EXTENDED_COMMUNITIES => attributes.extended_communities = list(extended_community, value)?,
            // RFC 6793 section 6: an error costs the attribute alone.
            AS4_PATH => {
                let (path, _) = as_path(value, true).map_err(|_| discard(Reason::MALFORMED_AS_PATH))?;
                self.as4_path = Some(path);
            }
            AS4_AGGREGATOR => self.as4_aggregator = Some(aggregator(value, true)?),
            LARGE_COMMUNITIES => attributes.large_communities = list(large_community, value)?,
            OTC => attributes.otc = Some(Asn(exact(be_u32, value, withdraw)?)), // RFC 9234 section 5
            _ if raw.flags & OPTIONAL == 0 => {
                let reason = Reason::UNRECOGNIZED_WELL_KNOWN_ATTRIBUTE;
                return Err(Fault { severity: Severity::SessionReset, reason });
            }
            // Quietly ignored (RFC 4271 section 5).
            _ if raw.flags & TRANSITIVE == 0 => (),
            code => {
                attributes.unknown.insert(code, Unknown { flags: raw.flags & MEANT, value: value.into() });
            }
        }
        Ok(())
    }

    /// RFC 6793 section 4.2.3: a speaker of two-octet AS numbers passes on what it does not understand.
    fn merge_four_octet(&mut self) {
        let as4_path = self.as4_path.take();
        if let (Some(aggregator), Some(as4)) = (&mut self.attributes.aggregator, self.as4_aggregator.take()) {
            if aggregator.asn != Asn(AS_TRANS.into()) {
                // Somebody on the way aggregated without knowing of the attributes: both are old.
                return;
            }
            *aggregator = as4;
        }
        if let Some(as4_path) = as4_path {
            let path = &mut self.attributes.as_path;
            if let Some(missing) = path.length().checked_sub(as4_path.length()) {
                *path = path.leading(missing);
                as4_path.0.into_iter().for_each(|segment| path.push(segment));
            }
        }
    }

    /// RFC 7606 section 3 d. LOCAL_PREF is required from internal peers (RFC 4271 section 5.1.5).
    fn check_mandatory(&mut self, has_nlri: bool, context: &Context) {
        let reaches = has_nlri || self.reaches;
        for (code, required) in [
            (ORIGIN, reaches),
            (AS_PATH, reaches),
            (NEXT_HOP, has_nlri),
            (LOCAL_PREF, reaches && context.internal),
        ] {
            if required && !self.seen.contains(&code) {
                self.errors.push(UpdateError {
                    severity: Severity::TreatAsWithdraw,
                    attribute: Some(code),
                    notification: Notification::new(Reason::MISSING_WELL_KNOWN_ATTRIBUTE, [code]),
                });
            }
        }
    }
}

/// An attribute as on the wire.
struct Raw<'a> {
    flags: u8,
    code: u8,
    value: &'a [u8],
    /// Flags, type, length and value: the data of most errors.
    bytes: &'a [u8],
}

impl<'a> Raw<'a> {
    fn parse(input: &'a [u8]) -> Parsed<'a, Self> {
        let (after, (flags, code)) = (be_u8, be_u8).parse(input)?;
        let (after, value) =
            if flags & EXTENDED_LENGTH == 0 { short_block(after)? } else { long_block(after)? };
        Ok((after, Raw { flags, code, value, bytes: &input[..input.len() - after.len()] }))
    }
}

/// What is wrong with an attribute, and how much that matters.
struct Fault {
    severity: Severity,
    reason: Reason,
}

fn discard(reason: Reason) -> Fault {
    Fault { severity: Severity::AttributeDiscard, reason }
}

fn withdraw(reason: Reason) -> Fault {
    Fault { severity: Severity::TreatAsWithdraw, reason }
}

impl Fault {
    /// The data is the attribute, but for the reasons for which RFC 4271 section 6.3 names none.
    fn error(&self, code: u8, bytes: &[u8]) -> UpdateError {
        let data = match self.reason {
            Reason::MALFORMED_ATTRIBUTE_LIST | Reason::MALFORMED_AS_PATH => &[],
            _ => bytes,
        };
        UpdateError {
            severity: self.severity,
            attribute: Some(code),
            notification: Notification::new(self.reason, data),
        }
    }
}

/// A value of one length.
fn exact<'a, T>(
    parser: impl Parser<&'a [u8], Output = T, Error = Malformed>,
    value: &'a [u8],
    fault: fn(Reason) -> Fault,
) -> Result<T, Fault> {
    whole(parser, value).map_err(|_| fault(Reason::ATTRIBUTE_LENGTH_ERROR))
}

/// Values of one length each, at least one (RFC 7606 sections 7.8, 7.10 and 7.14, RFC 8092 section 6).
fn list<'a, T, C: Default + Extend<T>>(
    parser: impl Parser<&'a [u8], Output = T, Error = Malformed>,
    value: &'a [u8],
) -> Result<C, Fault> {
    let mut all = C::default();
    match repeat(parser, value, |item| all.extend([item])) {
        Ok(()) if !value.is_empty() => Ok(all),
        _ => Err(withdraw(Reason::ATTRIBUTE_LENGTH_ERROR)),
    }
}

fn extended_community(input: &[u8]) -> Parsed<'_, ExtendedCommunity> {
    nom::number::complete::be_u64.map(|value| ExtendedCommunity(value.to_be_bytes())).parse(input)
}

fn large_community(input: &[u8]) -> Parsed<'_, LargeCommunity> {
    let parts = (be_u32, be_u32, be_u32);
    parts.map(|(global, local1, local2)| LargeCommunity { global, local1, local2 }).parse(input)
}

/// An AS number; 0 is malformed wherever it is (RFC 7607).
fn asn(four_octets: bool) -> impl FnMut(&[u8]) -> Parsed<'_, Asn> {
    move |input| {
        let (input, asn) = if four_octets { be_u32(input)? } else { be_u16.map(u32::from).parse(input)? };
        if asn == 0 { Err(nom::Err::Failure(Malformed(None))) } else { Ok((input, Asn(asn))) }
    }
}

/// RFC 7606 section 7.7: an error costs the attribute alone.
fn aggregator(value: &[u8], four_octets: bool) -> Result<Aggregator, Fault> {
    let (asn, address) = exact((asn(four_octets), ipv4), value, discard)?;
    Ok(Aggregator { asn, address })
}

/// A path (RFC 7606 section 7.2), without its confederation segments, and whether it had some.
fn as_path(value: &[u8], four_octets: bool) -> Result<(AsPath, bool), Malformed> {
    let (mut path, mut confederation, mut valid) = (AsPath::default(), false, true);
    let segment = |input| {
        let (input, (kind, length)) = (be_u8, be_u8).parse(input)?;
        let (input, asns) = count(asn(four_octets), length.into()).parse(input)?;
        Ok((input, (kind, asns)))
    };
    repeat(segment, value, |(kind, asns)| match kind {
        _ if asns.is_empty() => valid = false,
        1 => path.push(Segment::Set(asns)),
        2 => path.push(Segment::Sequence(asns)),
        3 | 4 => confederation = true, // RFC 5065 section 3
        _ => valid = false,
    })?;
    if valid { Ok((path, confederation)) } else { Err(Malformed(None)) }
}

/// MP_REACH_NLRI (RFC 4760 section 3): the routes if their family was negotiated, and whether there are any. What
/// cannot be parsed ends the session (RFC 7606 sections 5.3 and 7.11).
fn mp_reach(value: &[u8], context: &Context) -> Result<(Option<Reach>, bool), Fault> {
    let (afi, safi, next_hop, _reserved, nlri) =
        whole((be_u16, be_u8, short_block, be_u8, rest), value).map_err(multiprotocol)?;
    let Some(family) = negotiated(AfiSafi { afi, safi }, context) else {
        return Ok((None, !nlri.is_empty()));
    };
    let next_hop = match (family, next_hop.len()) {
        (Family::Ipv4Unicast, 4) => whole(ipv4, next_hop).map(|address| IpAddr::V4(address).into()),
        // RFC 8950 section 3, where it was negotiated.
        (Family::Ipv4Unicast, 16 | 32) if !context.extended_next_hop => Err(Malformed(None)),
        (_, 16) => whole(ipv6, next_hop).map(|address| IpAddr::V6(address).into()),
        (_, 32) => whole((ipv6, ipv6), next_hop).map(two_next_hops),
        _ => Err(Malformed(None)),
    }
    .map_err(multiprotocol)?;
    let prefixes = prefixes(family, nlri, context)?;
    let reaches = !prefixes.is_empty();
    Ok((reaches.then_some(Reach { next_hop, prefixes }), reaches))
}

/// MP_UNREACH_NLRI (RFC 4760 section 4): the routes if their family was negotiated.
fn mp_unreach(value: &[u8], context: &Context) -> Result<Option<(Family, Vec<Nlri>)>, Fault> {
    let (afi, safi, nlri) = whole((be_u16, be_u8, rest), value).map_err(multiprotocol)?;
    let Some(family) = negotiated(AfiSafi { afi, safi }, context) else { return Ok(None) };
    Ok(Some((family, prefixes(family, nlri, context)?)))
}

fn prefixes(family: Family, nlri: &[u8], context: &Context) -> Result<Vec<Nlri>, Fault> {
    nlri::prefixes(family, context.add_path_receive.contains(&family), nlri).map_err(multiprotocol)
}

fn multiprotocol(_: Malformed) -> Fault {
    Fault { severity: Severity::SessionReset, reason: Reason::OPTIONAL_ATTRIBUTE_ERROR }
}

fn negotiated(family: AfiSafi, context: &Context) -> Option<Family> {
    family.family().filter(|family| context.families.contains(family))
}

/// A global address and a link-local one (RFC 2545 section 3); where there is no global one some speakers write
/// zeros.
fn two_next_hops((address, second): (Ipv6Addr, Ipv6Addr)) -> NextHop {
    let link_local = second.is_unicast_link_local().then_some(second);
    match link_local {
        Some(only) if address.is_unspecified() => IpAddr::V6(only).into(),
        _ => NextHop { address: address.into(), link_local },
    }
}

/// Whether packets can be sent to the address as that of one host (RFC 4271 section 6.3).
fn is_host(address: IpAddr) -> bool {
    match address {
        // 0.0.0.0/8, 127.0.0.0/8, multicast and reserved.
        IpAddr::V4(address) => !matches!(address.octets(), [0 | 127 | 224.., ..]),
        IpAddr::V6(address) => !(address.is_unspecified() || address.is_loopback() || address.is_multicast()),
    }
}
