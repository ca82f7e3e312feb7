//! Properties of the codec: what is written is read back as it was; no bytes make it panic, hang or lie.
#![expect(clippy::unwrap_used, reason = "what a test cannot go on without")]
use bgp_speaker::{
    config::{Asn, Family},
    wire::{
        AddPath, AfiSafi, Aggregator, Announcement, AsPath, Attributes, Capability, Community, Context,
        ExtendedCommunity, GracefulRestart, LargeCommunity, LongLived, MAX_LONG_LIVED_SECONDS,
        MAX_RESTART_SECONDS, Message, NextHop, Nlri, Notification, Open, Origin, Partial, PathId, Reach,
        Reason, RefreshKind, RouteRefresh, Segment, Unknown, Update, announce, decode, frame,
    },
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::{
    collection::{btree_map, btree_set, vec},
    option,
    prelude::*,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

fn context() -> impl Strategy<Value = Context> {
    let add_path = btree_set(prop::sample::select(Family::ALL.to_vec()), 0..=2);
    (any::<[bool; 3]>(), add_path).prop_map(|([four_octet_as, internal, extended_next_hop], add_path)| {
        Context {
            four_octet_as,
            internal,
            extended_next_hop,
            // What is written is read again.
            add_path_send: add_path.clone(),
            add_path_receive: add_path,
            families: Family::ALL.into(),
            ..Context::default()
        }
    })
}

fn asn() -> impl Strategy<Value = Asn> {
    prop_oneof![1..=65535u32, 65536..=u32::MAX].prop_map(Asn)
}

fn ipv4_prefix() -> impl Strategy<Value = Nlri> {
    (0..0xE000_0000u32, 0..=32u8, any::<u32>()).prop_map(|(bits, length, path)| {
        let prefix = Ipv4Net::new(Ipv4Addr::from_bits(bits), length).unwrap().trunc().into();
        Nlri { prefix, path: PathId(path) }
    })
}

fn ipv6_prefix() -> impl Strategy<Value = Nlri> {
    // Global unicast: 2000::/3.
    (any::<u128>(), 3..=128u8, any::<u32>()).prop_map(|(bits, length, path)| {
        let address = Ipv6Addr::from_bits(bits >> 3 | 1 << 125);
        let prefix = Ipv6Net::new(address, length).unwrap().trunc().into();
        Nlri { prefix, path: PathId(path) }
    })
}

/// What of prefixes reaches the other side.
fn named(prefixes: Vec<Nlri>, context: &Context) -> Vec<Nlri> {
    let has_path = |prefix: &IpNet| {
        let ipv4 = matches!(prefix, IpNet::V4(_));
        context.add_path_send.contains(if ipv4 { &Family::Ipv4Unicast } else { &Family::Ipv6Unicast })
    };
    let named = |nlri: Nlri| if has_path(&nlri.prefix) { nlri } else { nlri.prefix.into() };
    prefixes.into_iter().map(named).collect()
}

fn as_path() -> impl Strategy<Value = AsPath> {
    let sets = vec(vec(asn(), 1..5).prop_map(Segment::Set), 0..3);
    (vec(asn(), 0..300), sets, vec(asn(), 0..4)).prop_map(|(first, sets, last)| {
        let sequence = |asns: Vec<Asn>| (!asns.is_empty()).then_some(Segment::Sequence(asns));
        // Without a set in between the two sequences would be one.
        let last = sequence(last).filter(|_| !sets.is_empty());
        AsPath(sequence(first).into_iter().chain(sets).chain(last).collect())
    })
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let origin = prop_oneof![Just(Origin::Igp), Just(Origin::Egp), Just(Origin::Incomplete)];
    let aggregator = (asn(), any::<Ipv4Addr>()).prop_map(|(asn, address)| Aggregator { asn, address });
    let unknown = (prop_oneof![Just(0xC0u8), Just(0xE0u8)], vec(any::<u8>(), 0..300))
        .prop_map(|(flags, value)| Unknown { flags, value: value.into() });
    let large = any::<(u32, u32, u32)>().prop_map(|(global, local1, local2)| LargeCommunity {
        global,
        local1,
        local2,
    });
    let classic =
        (origin, as_path(), any::<Option<u32>>(), any::<u32>(), any::<bool>(), option::of(aggregator));
    let others = (
        btree_set(any::<u32>().prop_map(Community), 0..70),
        btree_set(any::<[u8; 8]>().prop_map(ExtendedCommunity), 0..4),
        btree_set(large, 0..4),
        any::<Option<Ipv4Addr>>(),
        vec(any::<Ipv4Addr>(), 0..3),
        btree_map(36..=255u8, unknown, 0..3),
        any::<bool>(),
        option::of(asn()),
    );
    (classic, others).prop_map(
        |(
            (origin, as_path, med, local_pref, atomic_aggregate, aggregator),
            (
                communities,
                extended_communities,
                large_communities,
                originator_id,
                cluster_list,
                unknown,
                partial,
                otc,
            ),
        )| Attributes {
            partial: partial_of(partial, aggregator.is_some(), !communities.is_empty()),
            origin,
            as_path,
            med,
            local_pref: Some(local_pref),
            atomic_aggregate,
            aggregator,
            communities,
            originator_id,
            cluster_list,
            extended_communities,
            large_communities,
            otc,
            unknown,
        },
    )
}

/// AGGREGATOR and COMMUNITIES with the flag, where they are there.
fn partial_of(partial: bool, aggregator: bool, communities: bool) -> Partial {
    let mut all = Partial::default();
    [(7, aggregator), (8, communities)]
        .into_iter()
        .filter(|(_, there)| partial && *there)
        .for_each(|(code, _)| all.insert(code));
    all
}

/// What reaches the other side: a peer of another AS does not hear of our AS's own attributes.
fn fit(mut attributes: Attributes, context: &Context) -> Attributes {
    if !context.internal {
        (attributes.local_pref, attributes.originator_id, attributes.cluster_list) = (None, None, Vec::new());
    }
    attributes
}

fn reach() -> impl Strategy<Value = Reach> {
    let v4 = (0x0100_0000..0x7F00_0000u32, vec(ipv4_prefix(), 1..40)).prop_map(|(bits, prefixes)| Reach {
        next_hop: IpAddr::V4(Ipv4Addr::from_bits(bits)).into(),
        prefixes,
    });
    let v6 =
        (any::<u64>(), any::<Option<u64>>(), vec(ipv6_prefix(), 1..40)).prop_map(|(host, link, prefixes)| {
            let address = Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(host)).into();
            let link_local = link.map(|link| Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(link)));
            Reach { next_hop: NextHop { address, link_local }, prefixes }
        });
    prop_oneof![v4, v6]
}

fn capability() -> impl Strategy<Value = Capability> {
    let other = prop_oneof![3..5u8, 7..9u8, 10..64u8, 72..=255u8];
    let family = || any::<(u16, u8)>().prop_map(|(afi, safi)| AfiSafi { afi, safi });
    prop_oneof![
        family().prop_map(Capability::MultiProtocol),
        vec((family(), any::<u16>()), 0..4).prop_map(Capability::ExtendedNextHop),
        Just(Capability::RouteRefresh),
        Just(Capability::EnhancedRouteRefresh),
        Just(Capability::ExtendedMessage),
        any::<u8>().prop_map(Capability::Role),
        graceful_restart(),
        vec(long_lived(), 0..30).prop_map(Capability::LongLivedGracefulRestart),
        vec((family(), add_path()), 0..4).prop_map(Capability::AddPath),
        (other, vec(any::<u8>(), 0..=255))
            .prop_map(|(code, value)| Capability::Other { code, value: value.into() }),
    ]
}

fn long_lived() -> impl Strategy<Value = LongLived> {
    (any::<(u16, u8, bool)>(), 0..=MAX_LONG_LIVED_SECONDS).prop_map(|((afi, safi, forwarding), seconds)| {
        LongLived { family: AfiSafi { afi, safi }, forwarding, seconds }
    })
}

fn add_path() -> impl Strategy<Value = AddPath> {
    let directions = vec![(true, false), (false, true), (true, true)];
    prop::sample::select(directions).prop_map(|(send, receive)| AddPath { send, receive })
}

fn graceful_restart() -> impl Strategy<Value = Capability> {
    let families = vec(any::<(u16, u8, bool)>(), 0..60);
    (any::<bool>(), any::<bool>(), 0..=MAX_RESTART_SECONDS, families).prop_map(
        |(restarting, notification, seconds, families)| {
            let family = |(afi, safi, forwarding)| (AfiSafi { afi, safi }, forwarding);
            let families = families.into_iter().map(family).collect();
            Capability::GracefulRestart(GracefulRestart { restarting, notification, seconds, families })
        },
    )
}

fn open() -> impl Strategy<Value = Open> {
    let hold = prop_oneof![Just(0u16), 3..=65535u16];
    (asn(), hold, 1..=u32::MAX, vec(capability(), 0..12)).prop_map(
        |(asn, hold_seconds, id, mut capabilities)| {
            capabilities.push(Capability::FourOctetAs(asn));
            Open { asn, hold_seconds, router_id: Ipv4Addr::from_bits(id), capabilities }
        },
    )
}

fn message() -> impl Strategy<Value = Message> {
    let family = prop_oneof![Just(Family::Ipv4Unicast), Just(Family::Ipv6Unicast)];
    let kind = prop_oneof![
        Just(RefreshKind::Request),
        Just(RefreshKind::Begin),
        Just(RefreshKind::End),
        (3..=255u8).prop_map(RefreshKind::Other)
    ];
    let announced = (attributes(), reach())
        .prop_map(|(attributes, reach)| Some(Announcement { attributes, reach: vec![reach] }));
    let withdrawn = prop_oneof![vec(ipv4_prefix(), 1..200), vec(ipv6_prefix(), 1..200)];
    prop_oneof![
        open().prop_map(Message::Open),
        announced.prop_map(|announced| Message::Update(Update { withdrawn: Vec::new(), announced })),
        withdrawn.prop_map(|withdrawn| Message::Update(Update { withdrawn, announced: None })),
        family.prop_map(Message::EndOfRib),
        (any::<u8>(), any::<u8>(), vec(any::<u8>(), 0..100)).prop_map(|(code, subcode, data)| {
            Message::Notification(Notification { reason: Reason { code, subcode }, data })
        }),
        Just(Message::Keepalive),
        (any::<(u16, u8)>(), kind).prop_map(|((afi, safi), kind)| {
            Message::RouteRefresh(RouteRefresh { family: AfiSafi { afi, safi }, kind })
        }),
    ]
}

/// Cuts bytes into messages and decodes them.
fn decode_all(mut bytes: &[u8], context: &Context) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some(message) = frame(bytes, context).unwrap() {
        let decoded = decode(message, context).unwrap();
        assert_eq!(decoded.errors, []);
        messages.push(decoded.message);
        bytes = &bytes[message.len()..];
    }
    assert!(bytes.is_empty(), "{bytes:?}");
    messages
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(message in message(), context in context()) {
        let mut bytes = Vec::new();
        let count = message.encode(&context, &mut bytes).unwrap();
        let expected = match message {
            Message::Update(Update { withdrawn, announced }) => {
                let reach = |Reach { next_hop, prefixes }| {
                    let prefixes = named(prefixes, &context);
                    Reach { next_hop, prefixes }
                };
                let announced = announced.map(|Announcement { attributes, reach: all }| Announcement {
                    attributes: fit(attributes, &context),
                    reach: all.into_iter().map(reach).collect(),
                });
                Message::Update(Update { withdrawn: named(withdrawn, &context), announced })
            }
            other => other,
        };
        prop_assert_eq!(count, 1);
        prop_assert_eq!(decode_all(&bytes, &context), vec![expected]);
    }

    #[test]
    fn prefixes_are_packed(
        attributes in attributes(),
        v4 in vec(ipv4_prefix(), 1..3000),
        v6 in vec(ipv6_prefix(), 1..1000),
        context in context(),
    ) {
        for (next_hop, prefixes) in [("192.0.2.1", v4), ("2001:db8::1", v6)] {
            let next_hop = NextHop::from(next_hop.parse::<IpAddr>().unwrap());
            let mut bytes = Vec::new();
            let count = announce(&attributes, next_hop, &prefixes, &context, &mut bytes).unwrap();
            let (mut rest, mut lengths) = (&bytes[..], Vec::new());
            while let Some(message) = frame(rest, &context).unwrap() {
                lengths.push(message.len());
                rest = &rest[message.len()..];
            }
            prop_assert_eq!(lengths.len(), count);
            // Every message but the last has no room for another prefix.
            prop_assert!(lengths[..count - 1].iter().all(|length| *length > 4096 - 21));
            let mut read = Vec::new();
            for message in decode_all(&bytes, &context) {
                let Message::Update(Update { announced: Some(announced), .. }) = message else { panic!() };
                prop_assert_eq!(&announced.attributes, &fit(attributes.clone(), &context));
                for reach in announced.reach {
                    prop_assert_eq!(reach.next_hop, next_hop);
                    read.extend(reach.prefixes);
                }
            }
            prop_assert_eq!(read, named(prefixes, &context));
        }
    }

    #[test]
    fn random_bytes_do_no_harm(kind in 0..7u8, body in vec(any::<u8>(), 0..200), context in context()) {
        check_any(&with_header(kind, &body), &context);
    }

    #[test]
    fn random_attributes_do_no_harm(
        attributes in vec((any::<u8>(), prop_oneof![1..33u8, any::<u8>()], vec(any::<u8>(), 0..20)), 0..12),
        nlri in vec(0..40u8, 0..10),
        context in context(),
    ) {
        let attributes: Vec<u8> = attributes
            .into_iter()
            .flat_map(|(flags, code, value)| [vec![flags & 0xEF, code, value.len() as u8], value].concat())
            .collect();
        let body = [&[0, 0], &(attributes.len() as u16).to_be_bytes()[..], &attributes, &nlri].concat();
        check_any(&with_header(2, &body), &context);
    }

    #[test]
    fn mutations_do_no_harm(
        message in message(),
        context in context(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        cut in option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = Vec::new();
        message.encode(&context, &mut bytes).unwrap();
        for (index, value) in changes {
            let index = 19 + index.index(bytes.len());
            if let Some(byte) = bytes.get_mut(index) {
                *byte = value;
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(19.max(cut.index(bytes.len())));
            let length = bytes.len() as u16;
            bytes[16..18].copy_from_slice(&length.to_be_bytes());
        }
        check_any(&bytes, &context);
    }
}

fn with_header(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[0xFF; 16], &(19 + body.len() as u16).to_be_bytes()[..], &[kind], body].concat()
}

/// What can be decoded can be encoded and is then the same; what cannot be has an error of its message's code.
fn check_any(bytes: &[u8], context: &Context) {
    match decode(bytes, context) {
        Err(notification) => {
            assert!([1, 2, 3, 7].contains(&notification.reason.code), "{notification:?}");
            assert!(notification.data.len() <= bytes.len());
        }
        Ok(decoded) => {
            let mut again = Vec::new();
            let Ok(count) = decoded.message.encode(context, &mut again) else { return };
            match (count, decode_all(&again, context).as_slice()) {
                (0, []) => assert_eq!(decoded.message, Message::Update(Update::default())),
                (1, [message]) => assert_eq!(*message, decoded.message),
                (_, messages) => assert_eq!(merged(messages), merged(&[decoded.message])),
            }
        }
    }
}

/// All that a row of UPDATEs says, in order.
fn merged(messages: &[Message]) -> (Vec<Nlri>, Vec<(Attributes, NextHop, Nlri)>) {
    let (mut withdrawn, mut announced) = (Vec::new(), Vec::new());
    for message in messages {
        let Message::Update(update) = message else { panic!("{message:?}") };
        withdrawn.extend(update.withdrawn.iter().copied());
        if let Some(Announcement { attributes, reach }) = &update.announced {
            for Reach { next_hop, prefixes } in reach {
                announced.extend(prefixes.iter().map(|nlri| (attributes.clone(), *next_hop, *nlri)));
            }
        }
    }
    withdrawn.sort_by_key(|nlri| matches!(nlri.prefix, IpNet::V6(_)));
    (withdrawn, announced)
}
