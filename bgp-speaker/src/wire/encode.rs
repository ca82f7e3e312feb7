//! UPDATE to the wire: as many prefixes in a message as fit. A message has one of the four: withdrawn routes,
//! NLRI, MP_REACH_NLRI or MP_UNREACH_NLRI; the latter two come first among the attributes (RFC 7606 section
//! 5.1), the others by type code (RFC 4271 section 5).
use super::{
    AsPath, Attributes, Context, EncodeError, HEADER_LENGTH, NextHop, Nlri, Partial, Segment, Unknown,
    Update,
    capability::AfiSafi,
    frame::{self, Kind},
    nlri,
    open::AS_TRANS,
    rules::{self, EXTENDED_LENGTH, OPTIONAL, flags_of},
};
use crate::config::{Asn, Family};
use std::{
    collections::btree_map,
    iter::Peekable,
    net::{IpAddr, Ipv4Addr},
};

/// Appends UPDATE messages that announce the prefixes, in their order, each message as long as it can be.
/// Returns the number of messages; no prefix: none. LOCAL_PREF, ORIGINATOR_ID and CLUSTER_LIST are for
/// internal peers only and left out for others.
///
/// # Errors
/// [`EncodeError`] if the attributes leave no room for a prefix, or if the next hop is not of the family of
/// every prefix (one of IPv6 may be for IPv4 where that was negotiated, RFC 8950); nothing is appended then.
pub fn announce(
    attributes: &Attributes,
    next_hop: NextHop,
    prefixes: &[impl Into<Nlri> + Copy],
    context: &Context,
    out: &mut Vec<u8>,
) -> Result<usize, EncodeError> {
    announce_packed(attributes, next_hop, prefixes, Last::Written, context, out).map(|packed| packed.messages)
}

/// What becomes of a last message that has room for more prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Last {
    /// It is written.
    Written,
    /// It is left out if there are others: its prefixes can share a message with those that follow.
    LeftOut,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Packed {
    pub(crate) messages: usize,
    /// How many of the prefixes are in them, of the first ones.
    pub(crate) prefixes: usize,
}

/// [`announce`], but for what `last` leaves out.
pub(crate) fn announce_packed(
    attributes: &Attributes,
    next_hop: NextHop,
    prefixes: &[impl Into<Nlri> + Copy],
    last: Last,
    context: &Context,
    out: &mut Vec<u8>,
) -> Result<Packed, EncodeError> {
    let prefixes = prefixes.iter().map(|nlri| (*nlri).into());
    let own_family = match next_hop.address {
        IpAddr::V4(_) => Family::Ipv4Unicast,
        IpAddr::V6(_) => Family::Ipv6Unicast,
    };
    let family = prefixes.clone().next().map_or(own_family, |first| nlri::family(&first.prefix));
    let extended = context.extended_next_hop && family == Family::Ipv4Unicast;
    let mixed = prefixes.clone().any(|other| nlri::family(&other.prefix) != family);
    if mixed || (family != own_family && !extended) {
        return Err(EncodeError::NextHop(next_hop.address));
    }
    match next_hop {
        NextHop { address: IpAddr::V4(address), .. } => {
            let attributes = path_attributes(attributes, Some(address), context);
            let frame = Frame { family, fixed: attributes.len() + 4, what: "path attributes" };
            pack(frame, prefixes, last, context, out, |nlri, out| {
                out.extend_from_slice(&[0, 0]);
                block(out, |out| out.extend_from_slice(&attributes));
                out.extend_from_slice(nlri);
            })
        }
        NextHop { address: IpAddr::V6(address), link_local } => {
            let attributes = path_attributes(attributes, None, context);
            let addresses: Vec<u8> =
                [Some(address), link_local].iter().flatten().flat_map(|a| a.octets()).collect();
            let fixed = attributes.len() + 4 + 4 + 3 + 1 + addresses.len() + 1;
            pack(
                Frame { family, fixed, what: "path attributes" },
                prefixes,
                last,
                context,
                out,
                |nlri, out| {
                    out.extend_from_slice(&[0, 0]);
                    block(out, |out| {
                        multiprotocol(out, rules::MP_REACH, family, |out| {
                            out.push(if link_local.is_some() { 32 } else { 16 });
                            out.extend_from_slice(&addresses);
                            out.push(0);
                            out.extend_from_slice(nlri);
                        });
                        out.extend_from_slice(&attributes);
                    });
                },
            )
        }
    }
}

/// Appends UPDATE messages that withdraw the prefixes, of whatever families; those of IPv4 go first. Returns the
/// number of messages.
///
/// # Errors
/// [`EncodeError::TooLong`] if `context.max_length` has no room for a prefix.
pub fn withdraw(
    prefixes: &[impl Into<Nlri> + Copy],
    context: &Context,
    out: &mut Vec<u8>,
) -> Result<usize, EncodeError> {
    let mut messages = 0;
    for family in Family::ALL {
        let all = prefixes.iter().map(|nlri| -> Nlri { (*nlri).into() });
        let of: Vec<Nlri> = all.filter(|nlri| nlri::family(&nlri.prefix) == family).collect();
        messages += withdraw_packed(family, &of, Last::Written, context, out)?.messages;
    }
    Ok(messages)
}

/// [`withdraw`] of prefixes of one family, but for what `last` leaves out.
pub(crate) fn withdraw_packed(
    family: Family,
    prefixes: &[Nlri],
    last: Last,
    context: &Context,
    out: &mut Vec<u8>,
) -> Result<Packed, EncodeError> {
    let prefixes = prefixes.iter().copied();
    let frame = |fixed| Frame { family, fixed, what: "an UPDATE" };
    match family {
        Family::Ipv4Unicast => pack(frame(4), prefixes, last, context, out, |nlri, out| {
            block(out, |out| out.extend_from_slice(nlri));
            out.extend_from_slice(&[0, 0]);
        }),
        Family::Ipv6Unicast => pack(frame(4 + 4 + 3), prefixes, last, context, out, |nlri, out| {
            out.extend_from_slice(&[0, 0]);
            block(out, |out| {
                multiprotocol(out, rules::MP_UNREACH, family, |out| out.extend_from_slice(nlri));
            });
        }),
    }
}

/// Appends an UPDATE as as many messages as it takes.
pub(super) fn update(update: &Update, context: &Context, out: &mut Vec<u8>) -> Result<usize, EncodeError> {
    let mut messages = withdraw(&update.withdrawn, context, out)?;
    if let Some(announced) = &update.announced {
        for reach in &announced.reach {
            messages += announce(&announced.attributes, reach.next_hop, &reach.prefixes, context, out)?;
        }
    }
    Ok(messages)
}

/// Appends the End-of-RIB marker of a family (RFC 4724 section 2).
pub(super) fn end_of_rib(family: Family, out: &mut Vec<u8>) {
    frame::write(out, Kind::Update, |out| {
        out.extend_from_slice(&[0, 0]);
        block(out, |out| match family {
            Family::Ipv4Unicast => (),
            family => multiprotocol(out, rules::MP_UNREACH, family, |_| ()),
        });
    });
}

/// What is around the prefixes of a message.
struct Frame {
    /// Family of the prefixes.
    family: Family,
    /// Octets of the body that are no prefixes.
    fixed: usize,
    /// What these are, for errors.
    what: &'static str,
}

/// Cuts prefixes into messages; `write` makes a body around them.
fn pack(
    Frame { family, fixed, what }: Frame,
    prefixes: impl Iterator<Item = Nlri>,
    last: Last,
    context: &Context,
    out: &mut Vec<u8>,
    write: impl Fn(&[u8], &mut Vec<u8>),
) -> Result<Packed, EncodeError> {
    let max = context.max_length;
    let (start, room) = (out.len(), max.saturating_sub(HEADER_LENGTH + fixed));
    let add_path = context.add_path_send.contains(&family);
    let (mut packed, mut field, mut count) = (Packed::default(), Vec::new(), 0);
    let mut flush = |field: &mut Vec<u8>, count: usize, out: &mut Vec<u8>| {
        frame::write(out, Kind::Update, |out| write(field, out));
        field.clear();
        packed.messages += 1;
        packed.prefixes = count;
    };
    for prefix in prefixes {
        let before = field.len();
        nlri::write(&mut field, &prefix, add_path);
        if field.len() > room && before > 0 {
            field.truncate(before);
            flush(&mut field, count, out);
            nlri::write(&mut field, &prefix, add_path);
        }
        if field.len() > room {
            out.truncate(start);
            return Err(EncodeError::TooLong { what, length: fixed, max });
        }
        count += 1;
    }
    if !field.is_empty() && (last == Last::Written || out.len() == start) {
        flush(&mut field, count, out);
    }
    Ok(packed)
}

/// Appends what `content` writes, preceded by its length in two octets.
fn block(out: &mut Vec<u8>, content: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0, 0]);
    content(out);
    let length = u16::try_from(out.len() - start - 2).unwrap_or(u16::MAX);
    out[start..start + 2].copy_from_slice(&length.to_be_bytes());
}

/// Appends MP_REACH_NLRI or MP_UNREACH_NLRI.
fn multiprotocol(out: &mut Vec<u8>, code: u8, family: Family, content: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(&[OPTIONAL | EXTENDED_LENGTH, code]);
    block(out, |out| {
        let AfiSafi { afi, safi } = family.into();
        out.extend_from_slice(&afi.to_be_bytes());
        out.push(safi);
        content(out);
    });
}

/// All attributes but the multiprotocol ones.
fn path_attributes(attributes: &Attributes, next_hop: Option<Ipv4Addr>, context: &Context) -> Vec<u8> {
    let Attributes { origin, as_path, med, local_pref, aggregator, communities, cluster_list, .. } =
        attributes;
    let mut writer = Writer {
        out: Vec::with_capacity(64),
        unknown: attributes.unknown.iter().peekable(),
        partial: attributes.partial,
    };
    let wide = context.four_octet_as;
    writer.attribute(rules::ORIGIN, |out| out.push(*origin as u8));
    writer.attribute(rules::AS_PATH, |out| write_path(out, as_path, wide));
    if let Some(next_hop) = next_hop {
        writer.attribute(rules::NEXT_HOP, |out| out.extend_from_slice(&next_hop.octets()));
    }
    if let Some(med) = med {
        writer.attribute(rules::MED, |out| out.extend_from_slice(&med.to_be_bytes()));
    }
    if let Some(local_pref) = local_pref.filter(|_| context.internal) {
        writer.attribute(rules::LOCAL_PREF, |out| out.extend_from_slice(&local_pref.to_be_bytes()));
    }
    if attributes.atomic_aggregate {
        writer.attribute(rules::ATOMIC_AGGREGATE, |_| ());
    }
    if let Some(aggregator) = aggregator {
        writer.attribute(rules::AGGREGATOR, |out| {
            write_asn(out, aggregator.asn, wide);
            out.extend_from_slice(&aggregator.address.octets());
        });
    }
    writer.list(rules::COMMUNITIES, communities, |out, community| {
        out.extend_from_slice(&community.0.to_be_bytes())
    });
    if let Some(originator) = attributes.originator_id.filter(|_| context.internal) {
        writer.attribute(rules::ORIGINATOR_ID, |out| out.extend_from_slice(&originator.octets()));
    }
    if context.internal {
        writer.list(rules::CLUSTER_LIST, cluster_list, |out, id| out.extend_from_slice(&id.octets()));
    }
    writer.list(rules::EXTENDED_COMMUNITIES, &attributes.extended_communities, |out, community| {
        out.extend_from_slice(&community.0);
    });
    // RFC 6793 section 4.2.2: only where the two-octet form loses something.
    if !wide && as_path.0.iter().any(|segment| segment.asns().iter().any(|asn| !is_narrow(*asn))) {
        writer.attribute(rules::AS4_PATH, |out| write_path(out, as_path, true));
    }
    if let Some(aggregator) = aggregator.filter(|aggregator| !wide && !is_narrow(aggregator.asn)) {
        writer.attribute(rules::AS4_AGGREGATOR, |out| {
            write_asn(out, aggregator.asn, true);
            out.extend_from_slice(&aggregator.address.octets());
        });
    }
    writer.list(rules::LARGE_COMMUNITIES, &attributes.large_communities, |out, community| {
        for part in [community.global, community.local1, community.local2] {
            out.extend_from_slice(&part.to_be_bytes());
        }
    });
    if let Some(asn) = attributes.otc {
        writer.attribute(rules::OTC, |out| write_asn(out, asn, true));
    }
    writer.finish()
}

/// Writes attributes by type code; unknown ones come in between where they belong.
struct Writer<'a> {
    out: Vec<u8>,
    unknown: Peekable<btree_map::Iter<'a, u8, Unknown>>,
    partial: Partial,
}

impl Writer<'_> {
    fn attribute(&mut self, code: u8, value: impl FnOnce(&mut Vec<u8>)) {
        while let Some((code, unknown)) = self.unknown.next_if(|(unknown, _)| **unknown < code) {
            self.write(*code, unknown.flags, |out| out.extend_from_slice(&unknown.value));
        }
        let partial = if self.partial.contains(code) { Unknown::PARTIAL } else { 0 };
        self.write(code, flags_of(code).unwrap_or_default() | partial, value);
    }

    fn list<T>(&mut self, code: u8, items: impl IntoIterator<Item = T>, write: impl Fn(&mut Vec<u8>, T)) {
        let mut items = items.into_iter().peekable();
        if items.peek().is_some() {
            self.attribute(code, |out| items.for_each(|item| write(out, item)));
        }
    }

    fn finish(mut self) -> Vec<u8> {
        while let Some((code, unknown)) = self.unknown.next() {
            self.write(*code, unknown.flags, |out| out.extend_from_slice(&unknown.value));
        }
        self.out
    }

    fn write(&mut self, code: u8, flags: u8, value: impl FnOnce(&mut Vec<u8>)) {
        let start = self.out.len();
        self.out.extend_from_slice(&[flags, code, 0]);
        value(&mut self.out);
        let length = self.out.len() - start - 3;
        match u8::try_from(length) {
            Ok(length) => self.out[start + 2] = length,
            Err(_) => {
                // A value of more than 65535 octets does not fit into any message, which `pack` finds.
                let [high, low] = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
                self.out[start] |= EXTENDED_LENGTH;
                self.out[start + 2] = high;
                self.out.insert(start + 3, low);
            }
        }
    }
}

fn is_narrow(asn: Asn) -> bool {
    u16::try_from(asn.0).is_ok()
}

fn write_asn(out: &mut Vec<u8>, asn: Asn, wide: bool) {
    if wide {
        out.extend_from_slice(&asn.0.to_be_bytes());
    } else {
        out.extend_from_slice(&u16::try_from(asn.0).unwrap_or(AS_TRANS).to_be_bytes());
    }
}

fn write_path(out: &mut Vec<u8>, path: &AsPath, wide: bool) {
    for segment in &path.0 {
        let kind = match segment {
            Segment::Set(_) => 1,
            Segment::Sequence(_) => 2,
        };
        // What was prepended to a full segment is in one of its own (RFC 4271 section 5.1.2 b).
        let (first, full) = segment.asns().split_at(segment.asns().len() % usize::from(u8::MAX));
        for asns in [first].into_iter().filter(|first| !first.is_empty()).chain(full.chunks(u8::MAX.into())) {
            out.extend_from_slice(&[kind, u8::try_from(asns.len()).unwrap_or(u8::MAX)]);
            asns.iter().for_each(|asn| write_asn(out, *asn, wide));
        }
    }
}
