//! UPDATE (RFC 4271 section 4.3) with multiprotocol routes (RFC 4760) and its handling of errors (RFC 7606).
use super::{
    Attributes, Context, Decoded, Message, NextHop, Nlri, Notification, Reason, nlri,
    parse::{long_block, whole},
    rules::{MP_UNREACH, PathAttributes},
};
use crate::config::Family;
use ipnet::IpNet;
use nom::combinator::rest;

/// An UPDATE message. Which part of a message the prefixes were in (the fields of RFC 4271 or the attributes of
/// RFC 4760) does not matter to anybody: a prefix has its family in itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// Routes that are no more. They come before the announced ones: a prefix in both is announced.
    pub withdrawn: Vec<Nlri>,
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
    /// The prefixes; decoded: not empty.
    pub prefixes: Vec<Nlri>,
}

/// What an error in an UPDATE leads to (RFC 7606 section 2), the mildest first: of several errors the severest
/// counts. Where the RFC allows to disable the address family instead of a reset this speaker resets: a session
/// that is up and silently carries less is harder to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The attribute, or the prefix that cannot be one of unicast, is left out.
    AttributeDiscard,
    /// The announced routes of the message are withdrawn.
    TreatAsWithdraw,
    /// The session ends with the NOTIFICATION.
    SessionReset,
}

/// An error in an UPDATE.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{severity:?}: {notification}")]
pub struct UpdateError {
    /// What it led to.
    pub severity: Severity,
    /// Type code of the attribute; none: the error is in the NLRI field.
    pub attribute: Option<u8>,
    /// The NOTIFICATION that says what is wrong.
    pub notification: Notification,
}

/// Parses what follows the header. Errors as in RFC 4271 section 6.3 and RFC 7606.
pub(super) fn parse(body: &[u8], context: &Context) -> Result<Decoded, Notification> {
    let (withdrawn, attributes, nlri) = whole((long_block, long_block, rest), body)
        .map_err(|error| error.or(Reason::MALFORMED_ATTRIBUTE_LIST))?;
    // Syntax is checked even where the family was not negotiated.
    let ipv4 = |field| {
        let add_path = context.add_path_receive.contains(&Family::Ipv4Unicast);
        let prefixes = nlri::prefixes(Family::Ipv4Unicast, add_path, field);
        prefixes.map_err(|error| error.or(Reason::INVALID_NETWORK_FIELD))
    };
    let (mut withdrawn, prefixes) = (ipv4(withdrawn)?, ipv4(nlri)?);
    let PathAttributes { attributes, next_hop, reach, unreach, reaches, seen, cut, mut errors, .. } =
        PathAttributes::parse(attributes, !prefixes.is_empty(), context)?;

    let empty = withdrawn.is_empty() && prefixes.is_empty();
    let ipv4 = context.families.contains(&Family::Ipv4Unicast);
    match &unreach {
        _ if !empty || !errors.is_empty() => (),
        Some((family, none)) if none.is_empty() && seen.len() == 1 => return Ok(end_of_rib(*family)),
        None if seen.is_empty() && ipv4 => return Ok(end_of_rib(Family::Ipv4Unicast)),
        _ => (),
    }

    let treat_as_withdraw = errors.iter().find(|error| error.severity == Severity::TreatAsWithdraw);
    if let Some(error) = treat_as_withdraw {
        // Without any NLRI it is not certain that all were found (RFC 7606 section 5.2).
        if prefixes.is_empty() && !reaches && (cut || seen.iter().any(|code| *code != MP_UNREACH)) {
            return Err(error.notification.clone());
        }
    }
    let withdraw = treat_as_withdraw.is_some();

    if !ipv4 {
        withdrawn.clear();
    }
    withdrawn.extend(unreach.into_iter().flat_map(|(_, prefixes)| prefixes));
    if withdraw {
        withdrawn.extend(prefixes.into_iter().filter(|_| ipv4));
        withdrawn.extend(reach.into_iter().flat_map(|reach| reach.prefixes));
        let update = Update { withdrawn, announced: None };
        return Ok(Decoded { message: Message::Update(update), errors });
    }
    let fields = next_hop.map(|next_hop| Reach { next_hop, prefixes }).filter(|_| ipv4);
    let mut reach: Vec<Reach> = fields.into_iter().chain(reach).collect();
    for Reach { prefixes, .. } in &mut reach {
        let before = prefixes.len();
        prefixes.retain(|nlri| is_unicast(&nlri.prefix));
        if prefixes.len() < before {
            // Semantically incorrect: ignored (RFC 4271 section 6.3).
            let notification = Reason::INVALID_NETWORK_FIELD.into();
            errors.push(UpdateError { severity: Severity::AttributeDiscard, attribute: None, notification });
        }
    }
    reach.retain(|reach| !reach.prefixes.is_empty());
    let announced = (!reach.is_empty()).then_some(Announcement { attributes, reach });
    Ok(Decoded { message: Message::Update(Update { withdrawn, announced }), errors })
}

fn end_of_rib(family: Family) -> Decoded {
    Decoded { message: Message::EndOfRib(family), errors: Vec::new() }
}

/// Whether the prefix can be one of unicast routes: not of multicast groups, nor of link-local addresses.
fn is_unicast(prefix: &IpNet) -> bool {
    match prefix {
        IpNet::V4(net) => !(net.network().is_multicast() && net.prefix_len() >= 4),
        IpNet::V6(net) => {
            let network = net.network();
            !(network.is_multicast() && net.prefix_len() >= 8
                || network.is_unicast_link_local() && net.prefix_len() >= 10)
        }
    }
}
