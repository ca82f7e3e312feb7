//! Other parsers of BGP, bgpkit-parser and NetGauze, against ours: what we write they understand as we meant it, and what
//! we take without an error of an UPDATE that was changed anywhere they read likewise. Where they read something else the
//! RFC decides; see [`bgpkit_differs`] and [`netgauze_differs`].
#![expect(clippy::unwrap_used, reason = "what a test cannot go on without")]
#[path = "oracles/bgpkit.rs"]
mod bgpkit;
#[path = "oracles/netgauze.rs"]
mod netgauze;

use bgp_speaker::{
    config::{Asn, Family},
    wire::{
        AfiSafi, Aggregator, Announcement, AsPath, Attributes, Capability, Community, Context, Decoded,
        ExtendedCommunity, GracefulRestart, LargeCommunity, Message, NextHop, Nlri, Notification, Open,
        Origin, Partial, Reach, Reason, RefreshKind, RouteRefresh, Segment, Unknown, Update, decode,
    },
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::{
    collection::{btree_map, btree_set, vec},
    option,
    prelude::*,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

/// Types of attributes that nobody has a meaning for.
const UNKNOWN: RangeInclusive<u8> = 200..=250;

/// What an UPDATE says, however it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    withdrawn: Vec<IpNet>,
    announced: Vec<(NextHop, IpNet)>,
    /// Of UPDATEs that announce something.
    attributes: Attributes,
}

impl Said {
    fn new(update: Update) -> Self {
        let prefixes = |all: Vec<Nlri>| all.into_iter().map(|nlri| nlri.prefix);
        let mut said = Said { withdrawn: prefixes(update.withdrawn).collect(), ..Said::default() };
        if let Some(Announcement { attributes, reach }) = update.announced {
            // The oracles do not tell it of all of them.
            said.attributes = Attributes { partial: Partial::default(), ..attributes };
            for Reach { next_hop, prefixes } in reach {
                said.announced.extend(prefixes.into_iter().map(|nlri| (next_hop, nlri.prefix)));
            }
        }
        said.settled()
    }

    /// The order of prefixes says nothing, nor do attributes without prefixes. The oracles tell any second next hop; it means
    /// something if it is a link-local one (RFC 2545 section 3), and then also without a global one.
    fn settled(mut self) -> Self {
        for (next_hop, _) in &mut self.announced {
            next_hop.link_local = next_hop.link_local.filter(Ipv6Addr::is_unicast_link_local);
            if let Some(only) = next_hop.link_local.filter(|_| next_hop.address.is_unspecified()) {
                *next_hop = IpAddr::V6(only).into();
            }
        }
        // Sequences that follow each other are one, however the wire cut it.
        for segment in std::mem::take(&mut self.attributes.as_path.0) {
            match (self.attributes.as_path.0.last_mut(), segment) {
                (Some(Segment::Sequence(last)), Segment::Sequence(more)) => last.extend(more),
                (_, segment) => self.attributes.as_path.0.push(segment),
            }
        }
        // Quietly ignored if they are not transitive (RFC 4271 section 5).
        self.attributes.unknown.retain(|_, unknown| unknown.flags & 0x40 != 0);
        self.withdrawn.sort_unstable();
        self.announced.sort_unstable();
        if self.announced.is_empty() {
            self.attributes = Attributes::default();
        }
        self
    }
}

/// A session on which everything is said.
fn context(four_octet_as: bool) -> Context {
    Context {
        four_octet_as,
        internal: true,
        extended_next_hop: true,
        families: Family::ALL.into(),
        ..Context::default()
    }
}

fn encoded(message: &Message, context: &Context) -> Vec<u8> {
    let mut bytes = Vec::new();
    assert_eq!(message.encode(context, &mut bytes), Ok(1));
    bytes
}

fn asn() -> impl Strategy<Value = Asn> {
    prop_oneof![1..=65535u32, 65536..=u32::MAX].prop_map(Asn)
}

fn ipv4_prefix() -> impl Strategy<Value = Nlri> {
    (0..0xE000_0000u32, 0..=32u8).prop_map(|(bits, length)| {
        IpNet::from(Ipv4Net::new(Ipv4Addr::from_bits(bits), length).unwrap().trunc()).into()
    })
}

fn ipv6_prefix() -> impl Strategy<Value = Nlri> {
    // Global unicast: 2000::/3.
    (any::<u128>(), 3..=128u8).prop_map(|(bits, length)| {
        let address = Ipv6Addr::from_bits(bits >> 3 | 1 << 125);
        IpNet::from(Ipv6Net::new(address, length).unwrap().trunc()).into()
    })
}

/// Sets and sequences by turns.
fn as_path() -> impl Strategy<Value = AsPath> {
    (vec(vec(asn(), 1..6), 0..4), any::<bool>()).prop_map(|(segments, set_first)| {
        let segment = |(at, asns)| {
            if (at % 2 == 0) == set_first { Segment::Set(asns) } else { Segment::Sequence(asns) }
        };
        AsPath(segments.into_iter().enumerate().map(segment).collect())
    })
}

/// The types of RFC 4360 and RFC 5668, transitive and not, and link bandwidth.
fn extended_community() -> impl Strategy<Value = ExtendedCommunity> {
    let kind = prop_oneof![0..=3u8, 0x40..=0x43u8];
    (kind, 2..=4u8, any::<[u8; 6]>())
        .prop_map(|(kind, subtype, [a, b, c, d, e, f])| ExtendedCommunity([kind, subtype, a, b, c, d, e, f]))
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let origin = prop_oneof![Just(Origin::Igp), Just(Origin::Egp), Just(Origin::Incomplete)];
    let aggregator = (asn(), any::<Ipv4Addr>()).prop_map(|(asn, address)| Aggregator { asn, address });
    let large =
        any::<[u32; 3]>().prop_map(|[global, local1, local2]| LargeCommunity { global, local1, local2 });
    let well_known = prop_oneof![any::<u32>(), 0xFFFF_FF01..=0xFFFF_FF04u32, Just(0xFFFF_0000)];
    let unknown = (
        prop_oneof![Just(0xC0u8), Just(0xE0u8)],
        prop_oneof![vec(any::<u8>(), 0..5), vec(any::<u8>(), 256..260)],
    )
        .prop_map(|(flags, value)| Unknown { flags, value: value.into() });
    let classic =
        (origin, as_path(), any::<Option<u32>>(), any::<u32>(), any::<bool>(), option::of(aggregator));
    let others = (
        btree_set(well_known.prop_map(Community), 0..8),
        btree_set(extended_community(), 0..4),
        btree_set(large, 0..4),
        any::<Option<Ipv4Addr>>(),
        vec(any::<Ipv4Addr>(), 0..3),
        btree_map(UNKNOWN, unknown, 0..2),
        option::of(asn()),
    );
    (classic, others).prop_map(
        |(
            (origin, as_path, med, local_pref, atomic_aggregate, aggregator),
            (communities, extended_communities, large_communities, originator_id, cluster_list, unknown, otc),
        )| Attributes {
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
            partial: Partial::default(),
        },
    )
}

/// Prefixes of both families, those of IPv4 with next hops of both (RFC 8950).
fn reach() -> impl Strategy<Value = Reach> {
    let ipv4 = (0x0100_0000..0x7F00_0000u32).prop_map(|bits| NextHop::from(IpAddr::V4(bits.into())));
    let ipv6 = || {
        any::<(u64, Option<u64>)>().prop_map(|(host, link)| NextHop {
            address: Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(host)).into(),
            link_local: link.map(|link| Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(link))),
        })
    };
    prop_oneof![
        (ipv4, vec(ipv4_prefix(), 1..20)),
        (ipv6(), vec(ipv4_prefix(), 1..20)),
        (ipv6(), vec(ipv6_prefix(), 1..20)),
    ]
    .prop_map(|(next_hop, prefixes)| Reach { next_hop, prefixes })
}

fn update() -> impl Strategy<Value = Update> {
    let announced = (attributes(), reach())
        .prop_map(|(attributes, reach)| Some(Announcement { attributes, reach: vec![reach] }));
    let withdrawn = prop_oneof![vec(ipv4_prefix(), 1..50), vec(ipv6_prefix(), 1..50)];
    prop_oneof![
        3 => announced.prop_map(|announced| Update { withdrawn: Vec::new(), announced }),
        1 => withdrawn.prop_map(|withdrawn| Update { withdrawn, announced: None }),
    ]
}

/// Families that all three know.
fn family() -> impl Strategy<Value = AfiSafi> {
    prop_oneof![Just((1, 1)), Just((1, 2)), Just((2, 1)), Just((2, 2))]
        .prop_map(|(afi, safi)| AfiSafi { afi, safi })
}

fn capability() -> impl Strategy<Value = Capability> {
    let restart = (any::<bool>(), any::<bool>(), 0..4096u16, vec((family(), any::<bool>()), 0..3)).prop_map(
        |(restarting, notification, seconds, families)| GracefulRestart {
            restarting,
            notification,
            seconds,
            families,
        },
    );
    prop_oneof![
        family().prop_map(Capability::MultiProtocol),
        vec((family(), 1..=2u16), 1..3).prop_map(Capability::ExtendedNextHop),
        Just(Capability::RouteRefresh),
        Just(Capability::EnhancedRouteRefresh),
        Just(Capability::ExtendedMessage),
        (0..=4u8).prop_map(Capability::Role),
        restart.prop_map(Capability::GracefulRestart),
        // Private use (RFC 8810).
        (240..=250u8, vec(any::<u8>(), 0..60))
            .prop_map(|(code, value)| Capability::Other { code, value: value.into() }),
    ]
}

fn open() -> impl Strategy<Value = Open> {
    let hold = prop_oneof![Just(0u16), 3..=65535u16];
    // NetGauze wants an identifier to be the address of a host; RFC 6286 (section 2.1) but that it is not 0.
    (asn(), hold, 0x0100_0000..0x7F00_0000u32, vec(capability(), 0..8)).prop_map(
        |(asn, hold_seconds, id, mut capabilities)| {
            capabilities.push(Capability::FourOctetAs(asn));
            Open { asn, hold_seconds, router_id: Ipv4Addr::from_bits(id), capabilities }
        },
    )
}

fn notification() -> impl Strategy<Value = Notification> {
    let text = prop_oneof![Just(Reason::ADMINISTRATIVE_SHUTDOWN), Just(Reason::ADMINISTRATIVE_RESET)];
    let others = prop::sample::select(vec![
        Reason::BAD_MESSAGE_LENGTH,
        Reason::BAD_PEER_AS,
        Reason::UNACCEPTABLE_HOLD_TIME,
        Reason::ROLE_MISMATCH,
        Reason::MALFORMED_ATTRIBUTE_LIST,
        Reason::INVALID_NETWORK_FIELD,
        Reason::MALFORMED_AS_PATH,
        Reason::HOLD_TIMER_EXPIRED,
        Reason::UNEXPECTED_IN_ESTABLISHED,
        Reason::MAX_PREFIXES_REACHED,
        Reason::CONNECTION_COLLISION_RESOLUTION,
        Reason::HARD_RESET,
        Reason::BFD_DOWN,
        Reason::ROUTE_REFRESH_INVALID_LENGTH,
    ]);
    prop_oneof![
        (text, "[a-zé ]{0,100}").prop_map(|(reason, text)| Notification::with_communication(reason, &text)),
        (others, vec(any::<u8>(), 0..40)).prop_map(|(reason, data)| Notification { reason, data }),
    ]
}

fn refresh() -> impl Strategy<Value = RouteRefresh> {
    let kind = prop_oneof![Just(RefreshKind::Request), Just(RefreshKind::Begin), Just(RefreshKind::End)];
    (family(), kind).prop_map(|(family, kind)| RouteRefresh { family, kind })
}

proptest! {
    #[test]
    fn updates_are_understood(update in update(), four_octet_as in any::<bool>()) {
        let context = context(four_octet_as);
        let bytes = encoded(&Message::Update(update.clone()), &context);
        let differs = bgpkit_differs(&update);
        let expected = Said::new(update);
        if !differs {
            prop_assert_eq!(bgpkit::update(&bytes, &context), Ok(expected.clone()));
        }
        // It leaves the merging of AS4_PATH to its user.
        if four_octet_as {
            prop_assert_eq!(netgauze::update(&bytes, &context), Ok(expected));
        }
    }

    #[test]
    fn opens_are_understood(open in open()) {
        let bytes = encoded(&Message::Open(open.clone()), &Context::default());
        prop_assert_eq!(bgpkit::open(&bytes), Ok(bgpkit::known(open.clone())));
        prop_assert_eq!(netgauze::again(&bytes), Ok(Message::Open(open)));
    }

    #[test]
    fn notifications_are_understood(notification in notification()) {
        let bytes = encoded(&Message::Notification(notification.clone()), &Context::default());
        prop_assert_eq!(bgpkit::notification(&bytes), Ok(notification.clone()));
        prop_assert_eq!(netgauze::again(&bytes), Ok(Message::Notification(notification)));
    }

    #[test]
    fn refreshes_are_understood(refresh in refresh()) {
        let bytes = encoded(&Message::RouteRefresh(refresh), &Context::default());
        prop_assert_eq!(bgpkit::refresh(&bytes), Ok(refresh));
        prop_assert_eq!(netgauze::again(&bytes), Ok(Message::RouteRefresh(refresh)));
    }

    #[test]
    fn what_we_take_they_read_likewise(
        update in update(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let context = context(true);
        let mut bytes = encoded(&Message::Update(update), &context);
        for (index, value) in changes {
            let index = 19 + index.index(bytes.len() - 19);
            bytes[index] = value;
        }
        let Ok(Decoded { message: Message::Update(update), errors }) = decode(&bytes, &context) else {
            return Ok(());
        };
        // Of families that were not negotiated there is nothing to compare.
        if !errors.is_empty() || update == Update::default() || !is_common(&update) {
            return Ok(());
        }
        if !bgpkit_differs(&update) {
            prop_assert_eq!(bgpkit::update(&bytes, &context), Ok(Said::new(update.clone())), "{:02x?}", bytes);
        }
        match netgauze::update(&bytes, &context) {
            Err(error) if netgauze_differs(&error) => (),
            read => prop_assert_eq!(read, Ok(Said::new(update)), "{:02x?}", bytes),
        }
    }
}

/// Whether all three know the same of it: types of attributes that one of us knows and the other does not, and extended
/// communities of types that the others take apart further than we do, are not to be compared.
fn is_common(update: &Update) -> bool {
    let generic = |community: &ExtendedCommunity| matches!(community.0, [0..=3 | 0x40..=0x43, 2..=4, ..]);
    update.announced.iter().map(|announced| &announced.attributes).all(|attributes| {
        attributes.unknown.keys().all(|code| UNKNOWN.contains(code))
            && attributes.extended_communities.iter().all(generic)
    })
}

/// Where bgpkit-parser reads something else, and why that is not ours to follow: it takes path identifiers (RFC 7911) to
/// be there from a prefix on that begins with 0, without their having been negotiated. A default route begins so.
fn bgpkit_differs(update: &Update) -> bool {
    let reach = update.announced.iter().flat_map(|announced| &announced.reach);
    let announced = reach.flat_map(|reach| &reach.prefixes);
    announced.chain(&update.withdrawn).any(|nlri| nlri.prefix.prefix_len() == 0)
}

/// What NetGauze refuses, and why that is not ours to follow: it looks at the bits beyond the length of a prefix, which are
/// irrelevant (RFC 4271 section 4.3), and refuses the message for a prefix of multicast, which is to be ignored (section 6.3);
/// and it wants the flag Partial to be right, while only Optional and Transitive make an attribute malformed (RFC 7606
/// section 3 c).
fn netgauze_differs(error: &str) -> bool {
    // NEXT_HOP is to be ignored where there is no NLRI field (RFC 4760 section 3), whatever is in it.
    let ours = ["UnicastNetwork", "InvalidPartialFlagValue", "Ok(NextHop)", "NextHopError"];
    // Types of attributes that only it knows, and families that nobody does.
    let its = [
        "SegmentIdentifier",
        "Aigp",
        "BgpLs",
        "UndefinedAddressFamily",
        "UndefinedSubsequentAddressFamily",
        "InvalidAddressType",
    ];
    ours.iter().chain(&its).any(|reason| error.contains(reason))
}

#[test]
fn keepalive_and_end_of_rib_are_understood() {
    let context = context(true);
    let keepalive = encoded(&Message::Keepalive, &context);
    assert!(bgpkit::is_keepalive(&keepalive));
    assert_eq!(netgauze::again(&keepalive), Ok(Message::Keepalive));
    for family in Family::ALL {
        let end = encoded(&Message::EndOfRib(family), &context);
        assert!(bgpkit::is_end_of_rib(&end), "{family:?}");
        assert_eq!(netgauze::again(&end), Ok(Message::EndOfRib(family)));
    }
}
