//! NetGauze: what it reads, in our words; and for the messages without routes what it writes of what it has read.
use super::Said;
use bgp_speaker::{
    config::Asn,
    wire::{
        Aggregator, AsPath, Attributes, Community, Context, ExtendedCommunity, LargeCommunity, Message,
        NextHop, Origin, Segment, Unknown, decode,
    },
};
use ipnet::IpNet;
use netgauze_bgp_pkt::{
    BgpMessage,
    path_attribute::{
        self, As4PathSegment, AsPathSegmentType, MpReach, MpUnreach, PathAttribute, PathAttributeValue,
    },
    update::BgpUpdateMessage,
    wire::deserializer::BgpParsingContext,
};
use netgauze_parse_utils::{WritablePdu, reader::SliceReader, traits::ParseFromWithOneInput};
use std::net::IpAddr;

fn parse(bytes: &[u8]) -> Result<BgpMessage, String> {
    let mut context = BgpParsingContext::asn2_default();
    context.set_asn4(true);
    BgpMessage::parse(&mut SliceReader::new(bytes), &mut context).map_err(|error| format!("{error:?}"))
}

/// Our reading of what it writes for the same message.
pub(crate) fn again(bytes: &[u8]) -> Result<Message, String> {
    let mut again = Vec::new();
    parse(bytes)?.write(&mut again).map_err(|error| format!("{error:?}"))?;
    let decoded = decode(&again, &super::context(true)).map_err(|error| error.to_string())?;
    if decoded.errors.is_empty() { Ok(decoded.message) } else { Err(format!("{:?}", decoded.errors)) }
}

/// Of a session with four-octet AS numbers.
pub(crate) fn update(bytes: &[u8], context: &Context) -> Result<Said, String> {
    assert!(context.four_octet_as);
    match parse(bytes)? {
        BgpMessage::Update(update) => said(&update),
        other => Err(format!("{other:?}")),
    }
}

fn said(update: &BgpUpdateMessage) -> Result<Said, String> {
    let mut said = Said::default();
    said.withdrawn
        .extend(update.withdraw_routes().iter().map(|one| IpNet::from(one.network().address().trunc())));
    for attribute in update.path_attributes() {
        match attribute.value() {
            PathAttributeValue::NextHop(it) => {
                let next_hop = NextHop::from(IpAddr::V4(it.next_hop()));
                let nlri = update.nlri().iter();
                said.announced
                    .extend(nlri.map(|one| (next_hop, IpNet::from(one.network().address().trunc()))));
            }
            PathAttributeValue::MpReach(MpReach::Ipv4Unicast { next_hop, next_hop_local, nlri }) => {
                let next_hop = NextHop { address: *next_hop, link_local: *next_hop_local };
                said.announced
                    .extend(nlri.iter().map(|one| (next_hop, IpNet::from(one.network().address().trunc()))));
            }
            PathAttributeValue::MpReach(MpReach::Ipv6Unicast { next_hop_global, next_hop_local, nlri }) => {
                let next_hop = NextHop { address: (*next_hop_global).into(), link_local: *next_hop_local };
                said.announced
                    .extend(nlri.iter().map(|one| (next_hop, IpNet::from(one.network().address().trunc()))));
            }
            PathAttributeValue::MpUnreach(MpUnreach::Ipv4Unicast { nlri }) => {
                said.withdrawn.extend(nlri.iter().map(|one| IpNet::from(one.network().address().trunc())));
            }
            PathAttributeValue::MpUnreach(MpUnreach::Ipv6Unicast { nlri }) => {
                said.withdrawn.extend(nlri.iter().map(|one| IpNet::from(one.network().address().trunc())));
            }
            _ => set(&mut said.attributes, attribute)?,
        }
    }
    Ok(said.settled())
}

fn set(attributes: &mut Attributes, attribute: &PathAttribute) -> Result<(), String> {
    match attribute.value() {
        PathAttributeValue::Origin(origin) => {
            attributes.origin = match origin {
                path_attribute::Origin::IGP => Origin::Igp,
                path_attribute::Origin::EGP => Origin::Egp,
                path_attribute::Origin::Incomplete => Origin::Incomplete,
            }
        }
        PathAttributeValue::AsPath(path_attribute::AsPath::As4PathSegments(segments)) => {
            attributes.as_path = AsPath(segments.iter().map(segment).collect());
        }
        PathAttributeValue::MultiExitDiscriminator(it) => attributes.med = Some(it.metric()),
        PathAttributeValue::LocalPreference(it) => attributes.local_pref = Some(it.metric()),
        PathAttributeValue::AtomicAggregate(_) => attributes.atomic_aggregate = true,
        PathAttributeValue::Aggregator(path_attribute::Aggregator::As4Aggregator(it)) => {
            attributes.aggregator = Some(Aggregator { asn: Asn(*it.asn()), address: it.origin() });
        }
        PathAttributeValue::Communities(it) => {
            attributes.communities = it.communities().iter().map(|one| Community(one.value())).collect();
        }
        PathAttributeValue::ExtendedCommunities(it) => {
            for community in it.communities() {
                let mut octets = Vec::new();
                community.write(&mut octets).map_err(|error| format!("{error:?}"))?;
                let octets = <[u8; 8]>::try_from(octets).map_err(|octets| format!("{octets:?}"))?;
                attributes.extended_communities.insert(ExtendedCommunity(octets));
            }
        }
        PathAttributeValue::LargeCommunities(it) => {
            let one = |one: &netgauze_bgp_pkt::community::LargeCommunity| LargeCommunity {
                global: one.global_admin(),
                local1: one.local_data1(),
                local2: one.local_data2(),
            };
            attributes.large_communities = it.communities().iter().map(one).collect();
        }
        PathAttributeValue::Originator(it) => attributes.originator_id = Some(it.id()),
        PathAttributeValue::ClusterList(it) => {
            attributes.cluster_list = it.cluster_list().iter().map(|one| one.id()).collect();
        }
        PathAttributeValue::OnlyToCustomer(it) => attributes.otc = Some(Asn(it.asn())),
        PathAttributeValue::UnknownAttribute(it) => {
            let flags =
                [(attribute.optional(), 0x80), (attribute.transitive(), 0x40), (attribute.partial(), 0x20)];
            let flags = flags.into_iter().map(|(set, bit)| if set { bit } else { 0 }).sum();
            attributes.unknown.insert(it.code(), Unknown { flags, value: it.value().into() });
        }
        // It knows more of them: ignored where they are not known.
        _ if !attribute.transitive() => (),
        other => return Err(format!("not expected: {other:?}")),
    }
    Ok(())
}

fn segment(segment: &As4PathSegment) -> Segment {
    let asns = segment.as_numbers().iter().copied().map(Asn).collect();
    match segment.segment_type() {
        AsPathSegmentType::AsSet => Segment::Set(asns),
        AsPathSegmentType::AsSequence => Segment::Sequence(asns),
    }
}
