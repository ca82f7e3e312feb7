//! bgpkit-parser: what it reads, in our words.
use super::Said;
use bgp_speaker::{
    config::Asn,
    wire::{
        AfiSafi, Aggregator, AsPath, Attributes, Capability, Community, Context, ExtendedCommunity,
        GracefulRestart, LargeCommunity, NextHop, Notification, Open, Origin, Reason, RefreshKind,
        RouteRefresh, Segment, Unknown,
    },
};
use bgpkit_parser::{
    error::BgpValidationWarning,
    models::{
        self, AsPathSegment, AsnLength, AttrType, AttributeValue, BgpMessage, BgpUpdateMessage,
        CapabilityValue, ExtendedCommunity as Extended, NextHopAddress, ParamValue,
        capabilities::BgpCapabilityType,
    },
    parser::bgp::parse_bgp_message,
};
use ipnet::IpNet;

fn parse(bytes: &[u8], four_octet_as: bool) -> Result<BgpMessage, String> {
    let length = if four_octet_as { AsnLength::Bits32 } else { AsnLength::Bits16 };
    parse_bgp_message(&mut bytes.to_vec().into(), false, &length).map_err(|error| error.to_string())
}

pub(crate) fn update(bytes: &[u8], context: &Context) -> Result<Said, String> {
    let BgpMessage::Update(update) = parse(bytes, context.four_octet_as)? else {
        return Err("no UPDATE".into());
    };
    match update.attributes.validation_warnings().iter().find(|warning| !is_tolerated(warning, &update)) {
        Some(warning) => Err(format!("{warning:?}")),
        None => said(update),
    }
}

/// What it warns of, and what is no error for us:
/// - attributes of types that only it knows, and families that nobody does;
/// - of the flags only Optional and Transitive count (RFC 7606 section 3 c);
/// - NEXT_HOP is to be ignored where there is no NLRI field (RFC 4760 section 3).
fn is_tolerated(warning: &BgpValidationWarning, update: &BgpUpdateMessage) -> bool {
    use BgpValidationWarning as W;
    let ignored = |kind: &AttrType| match u8::from(*kind) {
        3 => update.announced_prefixes.is_empty(),
        code => !matches!(code, 1..=10 | 14..=18 | 32 | 35),
    };
    match warning {
        W::AttributeFlagsError { attr_type, expected_flags, actual_flags } => {
            ignored(attr_type) || (expected_flags ^ actual_flags) & 0xC0 == 0
        }
        W::AttributeLengthError { attr_type, .. } => ignored(attr_type),
        W::OptionalAttributeError { attr_type, reason } => {
            ignored(attr_type) || reason.contains("Unknown AFI") || reason.contains("Unknown SAFI")
        }
        W::InvalidNextHopAttribute { .. } => update.announced_prefixes.is_empty(),
        W::PartialAttributeError { .. } => true,
        _ => false,
    }
}

pub(crate) fn is_keepalive(bytes: &[u8]) -> bool {
    parse(bytes, true) == Ok(BgpMessage::KeepAlive)
}

pub(crate) fn is_end_of_rib(bytes: &[u8]) -> bool {
    matches!(parse(bytes, true), Ok(BgpMessage::Update(update)) if update.is_end_of_rib())
}

pub(crate) fn notification(bytes: &[u8]) -> Result<Notification, String> {
    let BgpMessage::Notification(read) = parse(bytes, true)? else { return Err("no NOTIFICATION".into()) };
    let (code, subcode) = read.error.get_codes();
    Ok(Notification { reason: Reason { code, subcode }, data: read.data })
}

pub(crate) fn refresh(bytes: &[u8]) -> Result<RouteRefresh, String> {
    let BgpMessage::RouteRefresh(read) = parse(bytes, true)? else { return Err("no ROUTE-REFRESH".into()) };
    let kind = match read.subtype {
        0 => RefreshKind::Request,
        1 => RefreshKind::Begin,
        2 => RefreshKind::End,
        other => RefreshKind::Other(other),
    };
    Ok(RouteRefresh { family: AfiSafi { afi: read.afi, safi: read.safi }, kind })
}

/// What of an OPEN it can tell: it knows nothing of the flag N (RFC 8538), and tells the AS of the fixed field.
pub(crate) fn known(mut open: Open) -> Open {
    for capability in &mut open.capabilities {
        if let Capability::GracefulRestart(restart) = capability {
            restart.notification = false;
        }
    }
    open.asn = Asn(u16::try_from(open.asn.0).unwrap_or(23456).into());
    open
}

pub(crate) fn open(bytes: &[u8]) -> Result<Open, String> {
    let BgpMessage::Open(read) = parse(bytes, true)? else { return Err("no OPEN".into()) };
    let mut capabilities = Vec::new();
    for parameter in read.opt_params {
        match parameter.param_value {
            ParamValue::Capacities(all) => capabilities.extend(all.into_iter().map(capability)),
            ParamValue::Raw(_) => return Err("a parameter that is no capability".into()),
        }
    }
    let asn = Asn(read.asn.to_u32());
    Ok(Open { asn, hold_seconds: read.hold_time, router_id: read.bgp_identifier, capabilities })
}

fn capability(capability: models::Capability) -> Capability {
    let family = |afi: models::Afi, safi: models::Safi| AfiSafi { afi: afi.into(), safi: safi.into() };
    match capability.value {
        CapabilityValue::MultiprotocolExtensions(it) => Capability::MultiProtocol(family(it.afi, it.safi)),
        CapabilityValue::RouteRefresh(_) => Capability::RouteRefresh,
        CapabilityValue::ExtendedNextHop(it) => {
            let entries = it.entries.into_iter();
            Capability::ExtendedNextHop(
                entries
                    .map(|entry| (family(entry.nlri_afi, entry.nlri_safi), entry.nexthop_afi.into()))
                    .collect(),
            )
        }
        CapabilityValue::GracefulRestart(it) => {
            let families = it.address_families.into_iter();
            Capability::GracefulRestart(GracefulRestart {
                restarting: it.restart_state,
                notification: false,
                seconds: it.restart_time,
                families: families.map(|one| (family(one.afi, one.safi), one.forwarding_state)).collect(),
            })
        }
        CapabilityValue::FourOctetAs(it) => Capability::FourOctetAs(Asn(it.asn)),
        CapabilityValue::BgpRole(it) => Capability::Role(it.role as u8),
        CapabilityValue::BgpExtendedMessage(_) => Capability::ExtendedMessage,
        CapabilityValue::Raw(value)
            if capability.ty == BgpCapabilityType::ENHANCED_ROUTE_REFRESH_CAPABILITY =>
        {
            assert_eq!(value, [0; 0]);
            Capability::EnhancedRouteRefresh
        }
        CapabilityValue::Raw(value) => Capability::Other { code: capability.ty.into(), value: value.into() },
        other => panic!("{other:?}"),
    }
}

fn said(update: BgpUpdateMessage) -> Result<Said, String> {
    let networks = |prefixes: &[models::NetworkPrefix]| -> Vec<IpNet> {
        prefixes.iter().map(|prefix| prefix.prefix.trunc()).collect()
    };
    let mut said = Said { withdrawn: networks(&update.withdrawn_prefixes), ..Said::default() };
    if !update.announced_prefixes.is_empty() {
        let next_hop: NextHop = update.attributes.next_hop().ok_or("no next hop")?.into();
        said.announced
            .extend(networks(&update.announced_prefixes).into_iter().map(|prefix| (next_hop, prefix)));
    }
    let attributes = &mut said.attributes;
    attributes.as_path = update.attributes.effective_as_path().map(path).unwrap_or_default();
    attributes.aggregator =
        update.attributes.aggregator().map(|(asn, address)| Aggregator { asn: Asn(asn.to_u32()), address });
    for attribute in update.attributes.into_attributes_iter() {
        match attribute.value {
            // Above.
            AttributeValue::AsPath(_)
            | AttributeValue::As4Path(_)
            | AttributeValue::NextHop(_)
            | AttributeValue::Aggregator { .. }
            | AttributeValue::As4Aggregator { .. } => (),
            AttributeValue::MpReachNlri(nlri) => {
                let next_hop = match nlri.next_hop {
                    Some(NextHopAddress::Ipv4(address)) => std::net::IpAddr::V4(address).into(),
                    Some(NextHopAddress::Ipv6(address)) => std::net::IpAddr::V6(address).into(),
                    Some(NextHopAddress::Ipv6LinkLocal(address, link_local)) => {
                        NextHop { address: address.into(), link_local: Some(link_local) }
                    }
                    other => return Err(format!("next hop {other:?}")),
                };
                said.announced.extend(networks(&nlri.prefixes).into_iter().map(|prefix| (next_hop, prefix)));
            }
            AttributeValue::MpUnreachNlri(nlri) => said.withdrawn.extend(networks(&nlri.prefixes)),
            value => set(&mut said.attributes, value, attribute.flag.bits())?,
        }
    }
    Ok(said.settled())
}

fn set(attributes: &mut Attributes, value: AttributeValue, flags: u8) -> Result<(), String> {
    match value {
        AttributeValue::Origin(origin) => {
            attributes.origin = match origin {
                models::Origin::IGP => Origin::Igp,
                models::Origin::EGP => Origin::Egp,
                models::Origin::INCOMPLETE => Origin::Incomplete,
            }
        }
        AttributeValue::MultiExitDiscriminator(med) => attributes.med = Some(med),
        AttributeValue::LocalPreference(preference) => attributes.local_pref = Some(preference),
        AttributeValue::AtomicAggregate => attributes.atomic_aggregate = true,
        AttributeValue::OnlyToCustomer(asn) => attributes.otc = Some(Asn(asn.to_u32())),
        AttributeValue::Communities(all) => {
            attributes.communities = all.into_iter().map(|one| Community(community(one))).collect()
        }
        AttributeValue::ExtendedCommunities(all) => {
            let all: Option<_> = all.into_iter().map(extended).collect();
            attributes.extended_communities = all.ok_or("an extended community of another kind")?;
        }
        AttributeValue::LargeCommunities(all) => {
            let one = |one: models::LargeCommunity| LargeCommunity {
                global: one.global_admin,
                local1: one.local_data[0],
                local2: one.local_data[1],
            };
            attributes.large_communities = all.into_iter().map(one).collect();
        }
        AttributeValue::OriginatorId(id) => attributes.originator_id = Some(id),
        AttributeValue::Clusters(all) => attributes.cluster_list = all.into_iter().map(Into::into).collect(),
        AttributeValue::Unknown(raw) | AttributeValue::Deprecated(raw) | AttributeValue::Raw(raw) => {
            // Extended Length is a matter of encoding.
            let unknown = Unknown { flags: flags & 0xE0, value: raw.bytes.to_vec().into() };
            attributes.unknown.insert(raw.code, unknown);
        }
        // It knows more of them: ignored where they are not known.
        _ if flags & 0x40 == 0 => (),
        other => return Err(format!("not expected: {other:?}")),
    }
    Ok(())
}

fn path(path: models::AsPath) -> AsPath {
    let asns = |asns: &[models::Asn]| asns.iter().map(|asn| Asn(asn.to_u32())).collect();
    let segment = |segment: &AsPathSegment| match segment {
        AsPathSegment::AsSequence(all) => Segment::Sequence(asns(all)),
        AsPathSegment::AsSet(all) => Segment::Set(asns(all)),
        confederation => panic!("{confederation:?}"),
    };
    AsPath(path.segments.iter().map(segment).collect())
}

fn community(community: models::Community) -> u32 {
    match community {
        models::Community::NoExport => 0xFFFF_FF01,
        models::Community::NoAdvertise => 0xFFFF_FF02,
        models::Community::NoExportSubConfed => 0xFFFF_FF03,
        models::Community::Custom(asn, value) => asn.to_u32() << 16 | u32::from(value),
    }
}

/// None: one that it has parsed into something else.
fn extended(community: Extended) -> Option<ExtendedCommunity> {
    let two = |kind, it: models::TwoOctetAsExtCommunity| {
        let [_, _, a, b] = it.global_admin.to_u32().to_be_bytes();
        let [c, d, e, f] = it.local_admin;
        [kind, it.subtype, a, b, c, d, e, f]
    };
    let four = |kind, subtype, [a, b, c, d]: [u8; 4], [e, f]: [u8; 2]| [kind, subtype, a, b, c, d, e, f];
    let opaque = |kind, it: models::OpaqueExtCommunity| {
        let [a, b, c, d, e, f] = it.value;
        [kind, it.subtype, a, b, c, d, e, f]
    };
    Some(ExtendedCommunity(match community {
        Extended::TransitiveTwoOctetAs(it) => two(0, it),
        Extended::NonTransitiveTwoOctetAs(it) => two(0x40, it),
        Extended::TransitiveIpv4Addr(it) => four(1, it.subtype, it.global_admin.octets(), it.local_admin),
        Extended::NonTransitiveIpv4Addr(it) => {
            four(0x41, it.subtype, it.global_admin.octets(), it.local_admin)
        }
        Extended::TransitiveFourOctetAs(it) => {
            four(2, it.subtype, it.global_admin.to_u32().to_be_bytes(), it.local_admin)
        }
        Extended::NonTransitiveFourOctetAs(it) => {
            four(0x42, it.subtype, it.global_admin.to_u32().to_be_bytes(), it.local_admin)
        }
        Extended::TransitiveOpaque(it) => opaque(3, it),
        Extended::NonTransitiveOpaque(it) => opaque(0x43, it),
        Extended::LinkBandwidth(it) => {
            let ([a, b], [c, d, e, f]) =
                (it.global_admin.to_be_bytes(), it.bandwidth.to_bits().to_be_bytes());
            [if it.transitive { 0 } else { 0x40 }, 4, a, b, c, d, e, f]
        }
        Extended::Raw(octets) => octets,
        _ => return None,
    }))
}
