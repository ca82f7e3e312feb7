//! Messages that real routers sent (`tests/golden/*.hex`; the first line of each file names the router), against
//! what they mean; and what the encoder makes of that.
#![expect(clippy::unwrap_used, reason = "what a test cannot go on without")]
use bgp_speaker::{
    config::{Asn, Family},
    wire::{
        AddPath, AfiSafi, Aggregator, Announcement, AsPath, Attributes, Capability, Context, Decoded,
        ExtendedCommunity, GracefulRestart, LongLived, Message, NextHop, Nlri, Notification, Open, Origin,
        Reach, Reason, RefreshKind, RouteRefresh, Segment, Update, decode, frame,
    },
};
use ipnet::IpNet;
use std::{collections::BTreeSet, fs, net::IpAddr, path::PathBuf};

/// eBGP, four-octet AS.
fn external() -> Context {
    let families = Family::ALL.into();
    Context { four_octet_as: true, families, ..Context::default() }
}

fn extended_next_hop() -> Context {
    Context { extended_next_hop: true, ..external() }
}

fn two_octet() -> Context {
    Context { four_octet_as: false, ..external() }
}

fn internal() -> Context {
    Context { internal: true, ..external() }
}

fn directory() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden"].iter().collect()
}

fn golden(name: &str) -> Vec<u8> {
    let path = directory().join(name).with_extension("hex");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let digits: String = text.lines().filter(|line| !line.starts_with('#')).collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

fn other(code: u8, value: &[u8]) -> Capability {
    Capability::Other { code, value: value.into() }
}

fn open(asn: u32, host: u8, capabilities: Vec<Capability>) -> Message {
    Message::Open(Open { asn: Asn(asn), hold_seconds: 9, router_id: [198, 18, 0, host].into(), capabilities })
}

fn nlri(prefixes: &[&str]) -> Vec<Nlri> {
    prefixes.iter().map(|text| text.parse::<IpNet>().unwrap().into()).collect()
}

fn withdrawn(prefixes: &[&str]) -> Message {
    let withdrawn = nlri(prefixes);
    Message::Update(Update { withdrawn, announced: None })
}

fn announced(next_hop: &str, prefixes: &[&str], attributes: Attributes) -> Message {
    let (address, link_local) = next_hop.split_once(' ').unwrap_or((next_hop, ""));
    let next_hop =
        NextHop { address: address.parse::<IpAddr>().unwrap(), link_local: link_local.parse().ok() };
    let prefixes = nlri(prefixes);
    let announced = Some(Announcement { attributes, reach: vec![Reach { next_hop, prefixes }] });
    Message::Update(Update { withdrawn: Vec::new(), announced })
}

fn path(asns: impl IntoIterator<Item = u32>) -> Attributes {
    Attributes { as_path: AsPath::sequence(asns), ..Attributes::default() }
}

fn refresh(family: Family, kind: RefreshKind) -> Message {
    Message::RouteRefresh(RouteRefresh { family: AfiSafi::from(family), kind })
}

fn route_target(asn: u16, value: u32) -> ExtendedCommunity {
    let ([a, b], [c, d, e, f]) = (asn.to_be_bytes(), value.to_be_bytes());
    ExtendedCommunity([0, 2, a, b, c, d, e, f])
}

/// How the router wrote it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As this speaker does, octet for octet.
    Same,
    /// Otherwise: FRR gives AS_PATH the extended length, puts attributes in another order, and each capability
    /// into its own parameter.
    Other,
}
use Form::{Other, Same};

fn table() -> Vec<(&'static str, Context, Form, Message)> {
    use Capability as C;
    let (ipv4, ipv6) = (Family::Ipv4Unicast, Family::Ipv6Unicast);
    let families = [C::MultiProtocol(ipv4.into()), C::MultiProtocol(ipv6.into())];
    let with = |more: &[C]| [&families, more].concat();
    let restart = |restarting, notification| {
        let families = vec![(ipv4.into(), false), (ipv6.into(), false)];
        C::GracefulRestart(GracefulRestart { restarting, notification, seconds: 120, families })
    };
    let long_lived = |family: Family| LongLived { family: family.into(), forwarding: true, seconds: 0 };
    let takes = AddPath { send: false, receive: true };
    let frr = [
        C::MultiProtocol(ipv4.into()),
        C::MultiProtocol(ipv6.into()),
        other(128, &[]),
        C::RouteRefresh,
        C::EnhancedRouteRefresh,
        C::FourOctetAs(Asn(65001)),
        C::ExtendedMessage,
        C::AddPath(vec![(ipv4.into(), takes), (ipv6.into(), takes)]),
        other(73, b"\x02vm\x00"),
        restart(true, true),
        C::LongLivedGracefulRestart([ipv4, ipv6].map(long_lived).into()),
    ];
    let aggregate = || Attributes {
        med: Some(0),
        atomic_aggregate: true,
        aggregator: Some(Aggregator { asn: Asn(65001), address: [198, 18, 0, 1].into() }),
        ..path([65001])
    };
    let with_med = |med| Attributes { med: Some(med), ..path([65001]) };
    let bird_communities = |asns: &[u32]| Attributes {
        origin: Origin::Incomplete,
        communities: ["65002:200".parse().unwrap()].into(),
        extended_communities: [route_target(65002, 9)].into(),
        large_communities: ["65002:7:8".parse().unwrap()].into(),
        ..path(asns.iter().copied())
    };
    let preferred = |attributes| Attributes { local_pref: Some(100), ..attributes };
    let rich = Attributes {
        med: Some(10),
        communities: ["65001:100".parse().unwrap(), "no-export".parse().unwrap()].into(),
        extended_communities: [route_target(65001, 5)].into(),
        large_communities: ["65001:1:2".parse().unwrap(), "65001:3:4".parse().unwrap()].into(),
        ..preferred(path([65001, 65001]))
    };
    let reflected = Attributes {
        med: Some(20),
        originator_id: Some([198, 18, 0, 2].into()),
        cluster_list: vec![[9, 9, 9, 9].into()],
        ..preferred(bird_communities(&[4_200_000_001]))
    };
    let shutdown =
        |text| Message::Notification(Notification::with_communication(Reason::ADMINISTRATIVE_SHUTDOWN, text));
    let exabgp_open = [
        C::MultiProtocol(ipv4.into()),
        C::MultiProtocol(ipv6.into()),
        C::FourOctetAs(Asn(65002)),
        C::ExtendedNextHop(vec![(ipv4.into(), 2)]),
        C::GracefulRestart(GracefulRestart {
            restarting: true,
            notification: false,
            seconds: 120,
            families: vec![(ipv4.into(), true), (ipv6.into(), true)],
        }),
        C::RouteRefresh,
        C::EnhancedRouteRefresh,
        C::ExtendedMessage,
    ];
    let exabgp_attributes = Attributes {
        origin: Origin::Incomplete,
        as_path: AsPath(vec![
            Segment::Sequence(vec![Asn(65002), Asn(4_200_000_001)]),
            Segment::Set(vec![Asn(65010), Asn(65011)]),
        ]),
        med: Some(10),
        atomic_aggregate: true,
        aggregator: Some(Aggregator { asn: Asn(4_200_000_001), address: [198, 18, 0, 2].into() }),
        communities: ["65002:200".parse().unwrap(), "no-export".parse().unwrap()].into(),
        extended_communities: [route_target(65002, 9)].into(),
        large_communities: ["65002:7:8".parse().unwrap()].into(),
        ..Attributes::default()
    };
    let exabgp_community = Attributes { communities: ["65002:1".parse().unwrap()].into(), ..path([65002]) };
    vec![
        ("exabgp-open", external(), Other, open(65002, 2, exabgp_open.to_vec())),
        (
            "exabgp-attributes",
            external(),
            Same,
            announced("198.18.0.2", &["192.0.2.0/24"], exabgp_attributes),
        ),
        ("exabgp-ipv6", external(), Other, announced("fd00:18::2", &["2001:db8:b::/48"], exabgp_community)),
        (
            "exabgp-extended-next-hop",
            extended_next_hop(),
            Other,
            announced("fd00:18::2", &["198.51.100.0/24"], path([65002])),
        ),
        ("exabgp-end-of-rib-ipv6", external(), Same, Message::EndOfRib(ipv6)),
        (
            "bird-open",
            external(),
            Same,
            open(
                65002,
                2,
                with(&[
                    C::RouteRefresh,
                    C::ExtendedMessage,
                    restart(false, false),
                    C::FourOctetAs(Asn(65002)),
                    C::EnhancedRouteRefresh,
                    C::LongLivedGracefulRestart(Vec::new()),
                ]),
            ),
        ),
        ("frr-open", external(), Other, open(65001, 1, frr.to_vec())),
        (
            "bird-open-two-octet",
            external(),
            Same,
            open(
                65002,
                2,
                with(&[
                    C::RouteRefresh,
                    restart(false, false),
                    C::EnhancedRouteRefresh,
                    C::LongLivedGracefulRestart(Vec::new()),
                ]),
            ),
        ),
        ("bird-keepalive", external(), Same, Message::Keepalive),
        ("frr-aggregate", external(), Other, announced("198.18.0.1", &["192.0.2.0/24"], aggregate())),
        (
            "frr-ipv6",
            external(),
            Other,
            announced("fd00:18::1 fe80::fcb5:28ff:fe2e:2a9", &["2001:db8:1::/48"], with_med(0)),
        ),
        (
            "frr-ipv4",
            external(),
            Other,
            announced("198.18.0.1", &["192.0.2.0/25", "198.51.100.0/24", "192.0.2.128/25"], with_med(0)),
        ),
        ("frr-end-of-rib-ipv6", external(), Other, Message::EndOfRib(ipv6)),
        ("frr-end-of-rib-ipv4", external(), Same, Message::EndOfRib(ipv4)),
        (
            "bird-communities",
            external(),
            Same,
            announced("198.18.0.2", &["100.64.0.0/10"], bird_communities(&[65002, 4_200_000_001])),
        ),
        (
            "bird-ipv6",
            external(),
            Same,
            announced(
                "fd00:18::2 fe80::b8a5:9eff:fe01:6acc",
                &["2001:db8:b::/48", "2001:db8:b:1::/64"],
                path([65002]),
            ),
        ),
        ("bird-withdraw-ipv6", external(), Same, withdrawn(&["2001:db8:b::/48", "2001:db8:b:1::/64"])),
        ("bird-withdraw-ipv4", external(), Same, withdrawn(&["0.0.0.0/0", "100.65.1.0/24", "100.64.0.0/10"])),
        ("frr-route-refresh", external(), Same, refresh(ipv4, RefreshKind::Request)),
        ("bird-begin-of-refresh", external(), Same, refresh(ipv4, RefreshKind::Begin)),
        ("bird-end-of-refresh", external(), Same, refresh(ipv6, RefreshKind::End)),
        ("bird-shutdown", external(), Same, shutdown("bird goes home")),
        ("frr-shutdown", external(), Same, shutdown("back at noon")),
        (
            "frr-aggregate-two-octet",
            two_octet(),
            Other,
            announced("198.18.0.1", &["192.0.2.0/24"], aggregate()),
        ),
        (
            "bird-as4-path",
            two_octet(),
            Same,
            announced("198.18.0.2", &["100.64.0.0/10"], bird_communities(&[65002, 4_200_000_001])),
        ),
        (
            "frr-as4-path",
            two_octet(),
            Other,
            announced("198.18.0.1", &["100.64.0.0/10"], bird_communities(&[65001, 65002, 4_200_000_001])),
        ),
        (
            "bird-internal",
            internal(),
            Same,
            announced("198.18.0.2", &["0.0.0.0/0", "100.65.1.0/24"], preferred(Attributes::default())),
        ),
        ("frr-reflected", internal(), Other, announced("198.18.0.2", &["100.64.0.0/10"], reflected)),
        (
            "frr-internal-ipv6",
            internal(),
            Other,
            announced("fd00:18::1 fe80::54c9:2aff:fec9:46d1", &["2001:db8:2::/64"], rich),
        ),
    ]
}

#[test]
fn every_message_means_what_it_should() {
    for (name, context, form, message) in table() {
        let bytes = golden(name);
        assert_eq!(frame(&bytes, &context), Ok(Some(&bytes[..])), "{name}");
        let expected = Decoded { message: message.clone(), errors: Vec::new() };
        assert_eq!(decode(&bytes, &context), Ok(expected.clone()), "{name}");
        let mut again = Vec::new();
        assert_eq!(message.encode(&context, &mut again), Ok(1), "{name}");
        assert_eq!(again == bytes, form == Same, "{name}: {again:02x?}");
        assert_eq!(decode(&again, &context), Ok(expected), "{name}");
    }
}

#[test]
fn every_file_is_in_the_table_and_names_its_router() {
    let names: BTreeSet<String> = table().iter().map(|(name, ..)| format!("{name}.hex")).collect();
    let files: BTreeSet<String> = fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(files, names);
    for file in files {
        let text = fs::read_to_string(directory().join(&file)).unwrap();
        let sources = ["# FRR 8.4.4: ", "# BIRD 2.0.12: ", "# ExaBGP 4.2.25: "];
        assert!(sources.iter().any(|source| text.starts_with(source)), "{file}");
    }
}
