//! Malformed messages and what becomes of them: the exact NOTIFICATION of RFC 4271 section 6, or what RFC 7606
//! makes of an UPDATE.
#![expect(clippy::unwrap_used, reason = "what a test cannot go on without")]
use bgp_speaker::{
    config::Family,
    wire::{
        Announcement, AsPath, Attributes, Context, Decoded, Message, NextHop, Nlri, Notification, PathId,
        Reach, Reason, RefreshKind, RouteRefresh, Severity, Update, announce, decode,
    },
};
use ipnet::IpNet;
use std::{collections::BTreeSet, net::IpAddr};

fn external() -> Context {
    let families = Family::ALL.into();
    Context { four_octet_as: true, families, ..Context::default() }
}

fn internal() -> Context {
    Context { internal: true, ..external() }
}

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(19 + body.len()).unwrap().to_be_bytes();
    [&[0xFF; 16], &length[..], &[kind], body].concat()
}

fn update(withdrawn: &str, attributes: &str, nlri: &str) -> Vec<u8> {
    let (withdrawn, attributes) = (hex(withdrawn), hex(attributes));
    let length = |field: &[u8]| u16::try_from(field.len()).unwrap().to_be_bytes();
    message(2, &[&length(&withdrawn), &withdrawn[..], &length(&attributes), &attributes, &hex(nlri)].concat())
}

const ORIGIN: &str = "40 01 01 00";
const AS_PATH: &str = "40 02 06 02 01 0000fde9";
const NEXT_HOP: &str = "40 03 04 c6120001";
const LOCAL_PREF: &str = "40 05 04 00000064";
/// 203.0.113.0/24
const PREFIX: &str = "18 cb0071";
/// 2001:db8::1, 2001:db8:1::/48
const MP_REACH: &str = "80 0e 1c 0002 01 10 20010db8000000000000000000000001 00 30 20010db80001";

fn mandatory() -> String {
    [ORIGIN, AS_PATH, NEXT_HOP].concat()
}

fn prefix(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn announced(decoded: &Decoded) -> &Announcement {
    match &decoded.message {
        Message::Update(Update { announced: Some(announced), .. }) => announced,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn resets(bytes: &[u8], context: &Context, reason: Reason, data: &str) {
    assert_eq!(decode(bytes, context), Err(Notification::new(reason, hex(data))));
}

/// The routes are withdrawn, all else goes on.
#[track_caller]
fn withdraws(bytes: &[u8], context: &Context, reason: Reason, data: &str, prefixes: &[&str]) {
    let decoded = decode(bytes, context).unwrap();
    let withdrawn = prefixes.iter().map(|text| prefix(text).into()).collect();
    assert_eq!(decoded.message, Message::Update(Update { withdrawn, announced: None }));
    let error = decoded.errors.iter().find(|error| error.severity == Severity::TreatAsWithdraw).unwrap();
    assert_eq!(error.notification, Notification::new(reason, hex(data)));
}

/// The route stays, the attribute goes.
#[track_caller]
fn discards(bytes: &[u8], context: &Context, reason: Reason) -> Decoded {
    let decoded = decode(bytes, context).unwrap();
    assert_eq!(announced(&decoded).reach.len(), 1);
    let [error] = &decoded.errors[..] else { panic!("{:?}", decoded.errors) };
    assert_eq!((error.severity, error.notification.reason), (Severity::AttributeDiscard, reason));
    decoded
}

#[test]
fn header() {
    let mut unsynchronized = message(4, &[]);
    unsynchronized[0] = 0;
    resets(&unsynchronized, &external(), Reason::CONNECTION_NOT_SYNCHRONIZED, "");
    resets(&message(4, &[0]), &external(), Reason::BAD_MESSAGE_LENGTH, "0014");
    resets(&message(1, &[4; 9]), &external(), Reason::BAD_MESSAGE_LENGTH, "001c");
    resets(&message(2, &[0; 3]), &external(), Reason::BAD_MESSAGE_LENGTH, "0016");
    resets(&message(2, &[0; 4078]), &external(), Reason::BAD_MESSAGE_LENGTH, "1001");
    resets(&message(3, &[6]), &external(), Reason::BAD_MESSAGE_LENGTH, "0014");
    resets(&message(5, &[0, 1, 0]), &external(), Reason::BAD_MESSAGE_LENGTH, "0016");
    resets(&message(5, &[0, 1, 0, 1, 0]), &external(), Reason::BAD_MESSAGE_LENGTH, "0018");
    resets(&message(9, &[]), &external(), Reason::BAD_MESSAGE_TYPE, "09");
    let begin = message(5, &[0, 1, 1, 1, 0]);
    assert_eq!(
        decode(&begin, &external()),
        Err(Notification::new(Reason::ROUTE_REFRESH_INVALID_LENGTH, begin.clone()))
    );
}

/// RFC 7313 section 5: who sends a subtype that nobody knows is ignored, not answered.
#[test]
fn route_refresh_of_another_subtype() {
    for (subtype, kind) in [
        (0, RefreshKind::Request),
        (1, RefreshKind::Begin),
        (2, RefreshKind::End),
        (3, RefreshKind::Other(3)),
    ] {
        let decoded = decode(&message(5, &[0, 1, subtype, 1]), &external()).unwrap();
        let refresh = RouteRefresh { family: Family::Ipv4Unicast.into(), kind };
        assert_eq!(decoded.message, Message::RouteRefresh(refresh));
    }
}

#[test]
fn open() {
    for (body, reason, data) in [
        ("03 fde9 005a c6120001 00", Reason::UNSUPPORTED_VERSION, "0004"),
        ("05 fde9 005a c6120001 00", Reason::UNSUPPORTED_VERSION, "0004"),
        ("04 0000 005a c6120001 00", Reason::BAD_PEER_AS, ""),
        ("04 fde9 0001 c6120001 00", Reason::UNACCEPTABLE_HOLD_TIME, ""),
        ("04 fde9 0002 c6120001 00", Reason::UNACCEPTABLE_HOLD_TIME, ""),
        ("04 fde9 005a 00000000 00", Reason::BAD_BGP_IDENTIFIER, ""),
        // Authentication is of the past; so is anything else but capabilities.
        ("04 fde9 005a c6120001 03 01 01 00", Reason::UNSUPPORTED_OPTIONAL_PARAMETER, ""),
        ("04 fde9 005a c6120001 02 09 00", Reason::UNSUPPORTED_OPTIONAL_PARAMETER, ""),
        // Lengths that do not agree.
        ("04 fde9 005a c6120001 01", Reason::OPEN_UNSPECIFIC, ""),
        ("04 fde9 005a c6120001 00 02", Reason::OPEN_UNSPECIFIC, ""),
        ("04 fde9 005a c6120001 02 02 01", Reason::OPEN_UNSPECIFIC, ""),
        ("04 fde9 005a c6120001 04 02 02 02 01", Reason::OPEN_UNSPECIFIC, ""),
        ("04 fde9 005a c6120001 03 02 01 02", Reason::OPEN_UNSPECIFIC, ""),
        // Capabilities of a wrong length: route refresh, multiprotocol, four-octet AS.
        ("04 fde9 005a c6120001 05 02 03 02 01 00", Reason::OPEN_UNSPECIFIC, ""),
        ("04 fde9 005a c6120001 07 02 05 01 03 000100", Reason::OPEN_UNSPECIFIC, ""),
        ("04 fde9 005a c6120001 06 02 04 41 02 fde9", Reason::OPEN_UNSPECIFIC, ""),
        // Enhanced route refresh, extended message, role, graceful restart, ADD-PATH, long-lived, extended next hop.
        ("04 fde9 005a c6120001 05 02 03 46 01 00", Reason::OPEN_UNSPECIFIC, ""),
        ("04 fde9 005a c6120001 05 02 03 06 01 00", Reason::OPEN_UNSPECIFIC, ""),
        ("04 fde9 005a c6120001 04 02 02 09 00", Reason::OPEN_UNSPECIFIC, ""),
        ("04 fde9 005a c6120001 05 02 03 40 01 00", Reason::OPEN_UNSPECIFIC, ""),
        ("04 fde9 005a c6120001 07 02 05 40 03 000001", Reason::OPEN_UNSPECIFIC, ""),
        ("04 fde9 005a c6120001 07 02 05 45 03 000101", Reason::OPEN_UNSPECIFIC, ""),
        ("04 fde9 005a c6120001 08 02 06 47 04 00010180", Reason::OPEN_UNSPECIFIC, ""),
        ("04 fde9 005a c6120001 08 02 06 05 04 00010001", Reason::OPEN_UNSPECIFIC, ""),
        // A capability longer than its parameter, and one without its length.
        ("04 fde9 005a c6120001 06 02 04 02 03 0000", Reason::OPEN_UNSPECIFIC, ""),
        ("04 fde9 005a c6120001 05 02 03 02 00 02", Reason::OPEN_UNSPECIFIC, ""),
        // Four-octet AS 0, and another than My AS.
        ("04 5ba0 005a c6120001 08 02 06 41 04 00000000", Reason::BAD_PEER_AS, ""),
        ("04 fde9 005a c6120001 08 02 06 41 04 0000fdea", Reason::BAD_PEER_AS, ""),
        // Extended parameters (RFC 9072) whose length does not agree.
        ("04 fde9 005a c6120001 ff ff 0004 02 0001 02", Reason::OPEN_UNSPECIFIC, ""),
        ("04 fde9 005a c6120001 ff ff 00", Reason::OPEN_UNSPECIFIC, ""),
    ] {
        resets(&message(1, &hex(body)), &Context::default(), reason, data);
    }
    let accepted = |body: &str| match decode(&message(1, &hex(body)), &Context::default()).unwrap().message {
        Message::Open(open) => (open.asn.0, open.capabilities.len()),
        other => panic!("{other:?}"),
    };
    assert_eq!(accepted("04 fde9 0000 c6120001 00"), (65001, 0));
    // AS_TRANS with a four-octet AS; two parameters; an unknown capability.
    assert_eq!(accepted("04 5ba0 005a c6120001 0e 02 06 41 04 00010000 02 04 f0 02 0102"), (65536, 2));
    // The same capability twice, in one parameter and in two (RFC 5492 section 4).
    assert_eq!(accepted("04 fde9 005a c6120001 0a 02 04 02 00 02 00 02 02 02 00"), (65001, 3));
    // A parameter without any.
    assert_eq!(accepted("04 fde9 005a c6120001 02 02 00"), (65001, 0));
    // Extended parameters, also where the length is not 255 (RFC 9072 section 2).
    assert_eq!(accepted("04 fde9 005a c6120001 ff ff 0005 02 0002 02 00"), (65001, 1));
    assert_eq!(accepted("04 fde9 005a c6120001 08 ff 0005 02 0002 02 00"), (65001, 1));
}

#[test]
fn lengths_of_an_update() {
    // Withdrawn Routes Length, Total Path Attribute Length beyond the message.
    resets(&message(2, &hex("0003 0000")), &external(), Reason::MALFORMED_ATTRIBUTE_LIST, "");
    resets(&message(2, &hex("0000 0001")), &external(), Reason::MALFORMED_ATTRIBUTE_LIST, "");
    // A withdrawn prefix of 33 bits, one cut short; the same in the NLRI.
    for field in ["21 0a00000000", "18 0a00"] {
        resets(&update(field, "", ""), &external(), Reason::INVALID_NETWORK_FIELD, "");
        resets(&update("", &mandatory(), field), &external(), Reason::INVALID_NETWORK_FIELD, "");
    }
    // An attribute longer than all attributes, a header cut short: where the NLRI begins is known.
    for end in ["40 05 04 0000", "80 04", "c0", "d0 08 01"] {
        let bytes = update("", &[&mandatory(), end].concat(), PREFIX);
        withdraws(&bytes, &internal(), Reason::ATTRIBUTE_LENGTH_ERROR, end, &["203.0.113.0/24"]);
        // Without NLRI nobody knows what was meant (RFC 7606 section 5.2).
        for before in [mandatory(), String::new()] {
            let bytes = update("", &[&before, end].concat(), "");
            resets(&bytes, &internal(), Reason::ATTRIBUTE_LENGTH_ERROR, end);
        }
    }
}

#[test]
fn missing_attributes() {
    for (attributes, code) in [
        ([AS_PATH, NEXT_HOP].concat(), "01"),
        ([ORIGIN, NEXT_HOP].concat(), "02"),
        ([ORIGIN, AS_PATH].concat(), "03"),
        (String::new(), "01"),
    ] {
        let bytes = update("", &attributes, PREFIX);
        withdraws(&bytes, &external(), Reason::MISSING_WELL_KNOWN_ATTRIBUTE, code, &["203.0.113.0/24"]);
    }
    let bytes = update("", &mandatory(), PREFIX);
    withdraws(&bytes, &internal(), Reason::MISSING_WELL_KNOWN_ATTRIBUTE, "05", &["203.0.113.0/24"]);
    let bytes = update("", &[MP_REACH, AS_PATH].concat(), "");
    withdraws(&bytes, &external(), Reason::MISSING_WELL_KNOWN_ATTRIBUTE, "01", &["2001:db8:1::/48"]);
    // NEXT_HOP is not for MP_REACH_NLRI.
    let decoded = decode(&update("", &[MP_REACH, ORIGIN, AS_PATH].concat(), ""), &external()).unwrap();
    assert_eq!(decoded.errors, []);
    assert_eq!(announced(&decoded).reach[0].prefixes, [prefix("2001:db8:1::/48").into()]);
    // Withdrawn routes need no attributes.
    let decoded = decode(&update(PREFIX, "", ""), &internal()).unwrap();
    assert_eq!(decoded.errors, []);
}

/// Each attribute with each of its errors, beside attributes without.
#[test]
fn treat_as_withdraw() {
    use Reason as R;
    let without = |code: &str| {
        let all = [ORIGIN, AS_PATH, NEXT_HOP, LOCAL_PREF];
        all.into_iter().filter(|attribute| &attribute[3..5] != code).collect::<String>()
    };
    for (bad, reason) in [
        ("40 01 00", R::ATTRIBUTE_LENGTH_ERROR),
        ("40 01 02 0000", R::ATTRIBUTE_LENGTH_ERROR),
        ("40 01 01 03", R::INVALID_ORIGIN),
        ("80 01 01 00", R::ATTRIBUTE_FLAGS_ERROR),
        ("c0 01 01 00", R::ATTRIBUTE_FLAGS_ERROR),
        ("00 01 01 00", R::ATTRIBUTE_FLAGS_ERROR),
        // AS_PATH: unknown segment, empty segment, overrun, underrun, confederation, AS 0; no segment but its type.
        ("40 02 06 05 01 0000fde9", R::MALFORMED_AS_PATH),
        ("40 02 02 02 00", R::MALFORMED_AS_PATH),
        ("40 02 06 02 02 0000fde9", R::MALFORMED_AS_PATH),
        ("40 02 07 02 01 0000fde9 02", R::MALFORMED_AS_PATH),
        ("40 02 06 03 01 0000fde9", R::MALFORMED_AS_PATH),
        ("40 02 06 04 01 0000fde9", R::MALFORMED_AS_PATH),
        ("40 02 08 02 01 0000fde9 02 00", R::MALFORMED_AS_PATH),
        ("40 02 01 02", R::MALFORMED_AS_PATH),
        ("40 02 06 02 01 00000000", R::MALFORMED_AS_PATH),
        ("c0 02 06 02 01 0000fde9", R::ATTRIBUTE_FLAGS_ERROR),
        ("40 03 03 c61200", R::ATTRIBUTE_LENGTH_ERROR),
        ("40 03 05 c612000100", R::ATTRIBUTE_LENGTH_ERROR),
        ("40 03 04 00000000", R::INVALID_NEXT_HOP),
        ("40 03 04 7f000001", R::INVALID_NEXT_HOP),
        ("40 03 04 e0000001", R::INVALID_NEXT_HOP),
        ("40 03 04 ffffffff", R::INVALID_NEXT_HOP),
        ("80 04 00", R::ATTRIBUTE_LENGTH_ERROR),
        ("80 04 03 000000", R::ATTRIBUTE_LENGTH_ERROR),
        ("c0 04 04 00000001", R::ATTRIBUTE_FLAGS_ERROR),
        ("40 05 03 000000", R::ATTRIBUTE_LENGTH_ERROR),
        ("c0 05 04 00000064", R::ATTRIBUTE_FLAGS_ERROR),
        ("c0 06 00", R::ATTRIBUTE_FLAGS_ERROR),
        ("80 07 08 0000fde9 c6120001", R::ATTRIBUTE_FLAGS_ERROR),
        ("c0 08 00", R::ATTRIBUTE_LENGTH_ERROR),
        ("c0 08 03 fde900", R::ATTRIBUTE_LENGTH_ERROR),
        ("80 08 04 fde90001", R::ATTRIBUTE_FLAGS_ERROR),
        ("80 09 03 c61200", R::ATTRIBUTE_LENGTH_ERROR),
        ("80 0a 00", R::ATTRIBUTE_LENGTH_ERROR),
        ("80 0a 06 c61200010000", R::ATTRIBUTE_LENGTH_ERROR),
        ("c0 10 00", R::ATTRIBUTE_LENGTH_ERROR),
        ("c0 10 07 00020000000000", R::ATTRIBUTE_LENGTH_ERROR),
        ("c0 20 00", R::ATTRIBUTE_LENGTH_ERROR),
        ("c0 20 0b 0000fde9 00000001 000000", R::ATTRIBUTE_LENGTH_ERROR),
        ("40 20 0c 0000fde9 00000001 00000002", R::ATTRIBUTE_FLAGS_ERROR),
        // ORIGINATOR_ID, CLUSTER_LIST and EXTENDED COMMUNITIES with other flags (RFC 7606 section 3 c).
        ("c0 09 04 c6120001", R::ATTRIBUTE_FLAGS_ERROR),
        ("40 0a 04 c6120001", R::ATTRIBUTE_FLAGS_ERROR),
        ("80 10 08 0002fde900000001", R::ATTRIBUTE_FLAGS_ERROR),
        // OTC (RFC 9234 section 5).
        ("c0 23 00", R::ATTRIBUTE_LENGTH_ERROR),
        ("c0 23 03 00fde9", R::ATTRIBUTE_LENGTH_ERROR),
        ("c0 23 08 0000fde9 0000fdea", R::ATTRIBUTE_LENGTH_ERROR),
        ("80 23 04 0000fde9", R::ATTRIBUTE_FLAGS_ERROR),
    ] {
        let data = if reason == R::MALFORMED_AS_PATH { "" } else { bad };
        let attributes = [&without(&bad[3..5]), bad].concat();
        withdraws(&update("", &attributes, PREFIX), &internal(), reason, data, &["203.0.113.0/24"]);
        // Withdrawn routes of the same message, and routes of MP_REACH_NLRI, go the same way.
        let attributes = [MP_REACH, &attributes].concat();
        let all = ["198.51.100.0/24", "203.0.113.0/24", "2001:db8:1::/48"];
        withdraws(&update("18 c63364", &attributes, PREFIX), &internal(), reason, data, &all);
        // Nothing that could be withdrawn: the session ends. NEXT_HOP alone is ignored then.
        if &bad[3..5] != "03" {
            resets(&update("", &[&without(&bad[3..5]), bad].concat(), ""), &internal(), reason, data);
        }
    }
}

#[test]
fn attribute_discard() {
    let with = |attribute: &str| update("", &[&mandatory(), attribute].concat(), PREFIX);
    let decoded = discards(&with("40 06 01 00"), &external(), Reason::ATTRIBUTE_LENGTH_ERROR);
    assert!(!announced(&decoded).attributes.atomic_aggregate);
    for bad in ["c0 07 06 fde9 c6120001", "c0 07 00", "c0 07 08 00000000 c6120001"] {
        let decoded = discards(&with(bad), &external(), Reason::ATTRIBUTE_LENGTH_ERROR);
        assert_eq!(announced(&decoded).attributes.aggregator, None);
    }
    // From an external peer, whatever is in it.
    for internal_only in [LOCAL_PREF, "40 05 01 00", "80 09 04 c6120001", "80 0a 03 000000", "c0 09 00"] {
        let decoded = discards(&with(internal_only), &external(), Reason::UPDATE_UNSPECIFIC);
        let attributes = &announced(&decoded).attributes;
        assert_eq!((attributes.local_pref, attributes.originator_id), (None, None));
    }
    // From a speaker of four-octet AS numbers.
    for as4 in ["c0 11 06 02 01 00010000", "c0 12 08 00010000 c6120001", "c0 11 01 00"] {
        let decoded = discards(&with(as4), &external(), Reason::UPDATE_UNSPECIFIC);
        assert_eq!(announced(&decoded).attributes.as_path.to_string(), "65001");
    }
    // The first of several counts, unknown types included.
    let decoded = discards(&with("40 01 01 02"), &external(), Reason::MALFORMED_ATTRIBUTE_LIST);
    assert_eq!(announced(&decoded).attributes.origin.to_string(), "IGP");
    let decoded = discards(&with("c0 63 01 01 c0 63 01 02"), &external(), Reason::MALFORMED_ATTRIBUTE_LIST);
    assert_eq!(*announced(&decoded).attributes.unknown[&0x63].value, [1]);
}

#[test]
fn session_reset() {
    let with = |attribute: &str, nlri| update("", &[&mandatory(), attribute].concat(), nlri);
    let optional = Reason::OPTIONAL_ATTRIBUTE_ERROR;
    for bad in [
        // MP_REACH_NLRI: too short, next hop of a wrong length, beyond the attribute, malformed NLRI.
        "80 0e 00",
        "80 0e 03 0002 01",
        "80 0e 04 0002 01 00",
        "80 0e 05 0002 01 00 00",
        "80 0e 09 0002 01 04 c6120001 00",
        "80 0e 15 0002 01 11 20010db8000000000000000000000001 00",
        "80 0e 18 0002 01 10 20010db8000000000000000000000001 00 30 2001",
        "80 0e 27 0002 01 10 20010db8000000000000000000000001 00 81 20010db8000000000000000000000000 00",
        "80 0e 15 0001 01 10 20010db8000000000000000000000001 00",
        // As long as those of a VPN, and longer than the attribute.
        "80 0e 1d 0002 01 18 0000000000000000 20010db8000000000000000000000001 00",
        "80 0e 1d 0002 01 30 20010db8000000000000000000000001 00",
        "80 0e 1d 0002 01 ff 20010db8000000000000000000000001 00",
        // No octet between next hop and prefixes.
        "80 0e 14 0002 01 10 20010db8000000000000000000000001",
        // Flags that are wrong do not make it better.
        "40 0e 03 0002 01",
        // MP_UNREACH_NLRI: too short, malformed NLRI.
        "80 0f 00",
        "80 0f 02 0002",
        "80 0f 05 0002 01 30 20",
        "80 0f 04 0002 01 81",
    ] {
        // The length in the table is the author's; make it right where it is to be right.
        let mut bytes = hex(bad);
        bytes[2] = u8::try_from(bytes.len() - 3).unwrap();
        let bad: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        resets(&with(&bad, PREFIX), &external(), optional, &bad);
        resets(&with(&bad, ""), &external(), optional, &bad);
    }
    // Twice.
    let twice = [MP_REACH, MP_REACH].concat();
    resets(&with(&twice, ""), &external(), Reason::MALFORMED_ATTRIBUTE_LIST, "");
    let twice = "80 0f 03 0002 01 80 0f 03 0002 01";
    resets(&with(twice, PREFIX), &external(), Reason::MALFORMED_ATTRIBUTE_LIST, "");
    // Well-known and unknown.
    for unknown in ["40 63 01 00", "00 63 00", "50 63 0001 07"] {
        resets(&with(unknown, PREFIX), &external(), Reason::UNRECOGNIZED_WELL_KNOWN_ATTRIBUTE, unknown);
    }
    // The severest of several errors counts.
    let both = ["40 01 01 09", "40 63 00"].concat();
    resets(&update("", &both, PREFIX), &external(), Reason::UNRECOGNIZED_WELL_KNOWN_ATTRIBUTE, "40 63 00");
}

#[test]
fn next_hops_of_ipv6() {
    let reach = |next_hop: &str, length: &str| {
        let value = ["0002 01", length, next_hop, "00 30 20010db80001"].concat();
        let attribute = format!("80 0e {:02x} {value}", hex(&value).len());
        (update("", &[&attribute, ORIGIN, AS_PATH].concat(), ""), attribute)
    };
    let (global, link, zero) = (
        "20010db8000000000000000000000001",
        "fe800000000000000000000000000001",
        "00000000000000000000000000000000",
    );
    let next_hop = |text: &str, length: &str| {
        announced(&decode(&reach(text, length).0, &external()).unwrap()).reach[0].next_hop
    };
    let both = next_hop(&[global, link].concat(), "20");
    assert_eq!(both.address.to_string(), "2001:db8::1");
    assert_eq!(both.link_local.unwrap().to_string(), "fe80::1");
    // Without a global one some send zeros before the link-local one. A second one that is none is ignored.
    assert_eq!(next_hop(&[zero, link].concat(), "20"), next_hop(link, "10"));
    assert_eq!(next_hop(&[global, global].concat(), "20"), next_hop(global, "10"));
    for bad in [zero, "00000000000000000000000000000001", "ff020000000000000000000000000001"] {
        let (bytes, attribute) = reach(bad, "10");
        withdraws(&bytes, &external(), Reason::OPTIONAL_ATTRIBUTE_ERROR, &attribute, &["2001:db8:1::/48"]);
    }
}

#[test]
fn what_is_fine_though_odd() {
    let clean = |bytes: &[u8], context: &Context| {
        let decoded = decode(bytes, context).unwrap();
        assert_eq!(decoded.errors, []);
        decoded
    };
    // The Extended Length and Partial bits, the unused bits, any order, MP_REACH_NLRI not at the beginning.
    let odd = ["50 03 0004 c6120001", AS_PATH, "4f 01 01 02", "e0 08 04 fde90001", MP_REACH].concat();
    let decoded = clean(&update("", &odd, PREFIX), &external());
    assert_eq!(announced(&decoded).reach.len(), 2);
    assert_eq!(announced(&decoded).attributes.origin.to_string(), "INCOMPLETE");
    // An empty AS_PATH from within the AS.
    let decoded =
        clean(&update("", &[ORIGIN, "40 02 00", NEXT_HOP, LOCAL_PREF].concat(), PREFIX), &internal());
    assert_eq!(announced(&decoded).attributes.as_path.length(), 0);
    // Unknown attributes: the transitive one stays, with its flags; the other goes.
    let decoded = clean(&update("", &[&mandatory(), "e0 63 01 07 80 64 00"].concat(), PREFIX), &external());
    let unknown = &announced(&decoded).attributes.unknown;
    assert_eq!(unknown.len(), 1);
    assert_eq!((unknown[&0x63].flags, &*unknown[&0x63].value), (0xE0, &[7][..]));
    // A family that nobody knows, or that was not negotiated.
    let vpn = "80 0e 11 0001 80 0c 0000000000000000 c6120001 00";
    let nothing = Message::Update(Update::default());
    assert_eq!(clean(&update("", &[vpn, ORIGIN, AS_PATH].concat(), ""), &external()).message, nothing);
    let ipv4_only = Context { families: [Family::Ipv4Unicast].into(), ..external() };
    assert_eq!(clean(&update("", &[MP_REACH, ORIGIN, AS_PATH].concat(), ""), &ipv4_only).message, nothing);
    let ipv6_only = Context { families: [Family::Ipv6Unicast].into(), ..external() };
    assert_eq!(clean(&update(PREFIX, &mandatory(), PREFIX), &ipv6_only).message, nothing);
    // Prefixes that unicast does not have are left out.
    let decoded = decode(&update("", &mandatory(), &["08 e0", PREFIX].concat()), &external()).unwrap();
    assert_eq!(announced(&decoded).reach[0].prefixes, [prefix("203.0.113.0/24").into()]);
    assert_eq!(decoded.errors.len(), 1);
}

/// RFC 7911 section 3: what is wrong concerns the path that is named.
#[test]
fn path_identifiers() {
    let families: BTreeSet<Family> = Family::ALL.into();
    let add_path = Context { add_path_receive: families, ..external() };
    let path = |path, text| Nlri { prefix: prefix(text), path: PathId(path) };
    let second = ["0000 0002", PREFIX].concat();
    let first = ["0000 0001", PREFIX].concat();
    let told = [&*second, "ffff ffff 00"].concat();
    let decoded = decode(&update(&first, &mandatory(), &told), &add_path).unwrap();
    let Message::Update(Update { withdrawn, .. }) = &decoded.message else { panic!() };
    assert_eq!(*withdrawn, [path(1, "203.0.113.0/24")]);
    let told = [path(2, "203.0.113.0/24"), path(u32::MAX, "0.0.0.0/0")];
    assert_eq!(announced(&decoded).reach[0].prefixes, told);
    // Treat-as-withdraw: without AS_PATH.
    let decoded = decode(&update(&first, &[ORIGIN, NEXT_HOP].concat(), &second), &add_path).unwrap();
    let withdrawn = vec![path(1, "203.0.113.0/24"), path(2, "203.0.113.0/24")];
    assert_eq!(decoded.message, Message::Update(Update { withdrawn, announced: None }));
    assert_eq!(decoded.errors.len(), 1);
    // One family has them, the other has not.
    let ipv6 = Context { add_path_receive: [Family::Ipv6Unicast].into(), ..external() };
    let unreach = "80 0f 09 0002 01 00000007 08 20";
    let decoded = decode(&update(PREFIX, unreach, ""), &ipv6).unwrap();
    let withdrawn = vec![prefix("203.0.113.0/24").into(), path(7, "2000::/8")];
    assert_eq!(decoded.message, Message::Update(Update { withdrawn, announced: None }));
    // A prefix without one, one cut short: it is not known where the next one begins.
    for nlri in [PREFIX, "0000 01", "0000 0001", "0000 0001 21 0000000000"] {
        let error = decode(&update("", &mandatory(), nlri), &add_path).unwrap_err();
        assert_eq!(error.reason, Reason::INVALID_NETWORK_FIELD, "{nlri}");
    }
    let reset = decode(&update("", "80 0f 05 0002 01 0820", ""), &add_path).unwrap_err();
    assert_eq!(reset.reason, Reason::OPTIONAL_ATTRIBUTE_ERROR);
    assert_eq!(
        decode(&update("", "80 0f 03 0002 01", ""), &add_path).unwrap().message,
        Message::EndOfRib(Family::Ipv6Unicast)
    );
}

#[test]
fn end_of_rib() {
    let eor = |bytes: &[u8]| decode(bytes, &external()).unwrap().message;
    assert_eq!(eor(&update("", "", "")), Message::EndOfRib(Family::Ipv4Unicast));
    assert_eq!(eor(&update("", "80 0f 03 0002 01", "")), Message::EndOfRib(Family::Ipv6Unicast));
    assert_eq!(eor(&update("", "90 0f 0003 0001 01", "")), Message::EndOfRib(Family::Ipv4Unicast));
    for other in [update("", "80 0f 03 0001 80", ""), update("", ORIGIN, "")] {
        assert_eq!(eor(&other), Message::Update(Update::default()));
    }
}

/// RFC 6793: a path through speakers of two-octet AS numbers.
#[test]
fn four_octet_as_of_old_speakers() {
    let old = Context { four_octet_as: false, ..external() };
    let path = |as_path: &str, rest: &str| {
        let decoded = decode(&update("", &[ORIGIN, as_path, NEXT_HOP, rest].concat(), PREFIX), &old).unwrap();
        let attributes = &announced(&decoded).attributes;
        (attributes.as_path.to_string(), attributes.aggregator.map(|aggregator| aggregator.asn.0))
    };
    let trans = "40 02 08 02 03 fde9 5ba0 5ba0";
    let as4 = "c0 11 0a 02 02 00010001 00010002";
    assert_eq!(path(trans, "").0, "65001 23456 23456");
    assert_eq!(path(trans, as4).0, "65001 65537 65538");
    // Longer than AS_PATH: ignored. So is a malformed one, and a confederation in it.
    assert_eq!(path("40 02 04 02 01 fde9", as4).0, "65001");
    assert_eq!(path(trans, "c0 11 03 02 02 00").0, "65001 23456 23456");
    assert_eq!(path(trans, "c0 11 10 03 01 00010009 02 02 00010001 00010002").0, "65001 65537 65538");
    // An empty segment, AS 0, and a length that is none.
    for bad in ["c0 11 02 02 00", "c0 11 06 02 01 00000000", "c0 11 01 02", "c0 11 07 02 01 00010001 02"] {
        assert_eq!(path(trans, bad).0, "65001 23456 23456", "{bad}");
    }
    // AS4_AGGREGATOR of the length of the old one: that stays (RFC 6793 section 6).
    assert_eq!(path(trans, "c0 07 06 5ba0 c6120001 c0 12 06 0005 c6120001").1, Some(23456));
    // AGGREGATOR: AS_TRANS takes AS4_AGGREGATOR; any other AS says that both AS4 attributes are stale.
    let aggregators = |asn: &str| format!("c0 07 06 {asn} c6120001 {as4} c0 12 08 00010005 c6120001");
    assert_eq!(path(trans, &aggregators("5ba0")), ("65001 65537 65538".to_owned(), Some(65541)));
    assert_eq!(path(trans, &aggregators("fdef")), ("65001 23456 23456".to_owned(), Some(65007)));
}

/// Nobody takes the Partial bit of an attribute away (RFC 4271 section 5), whether they know it or not.
#[test]
fn partial_stays() {
    let partial = "e0 07 08 0000fde9 c6120001 e0 08 04 fde90001 e0 63 01 07";
    let bytes = update("", &[&mandatory(), partial].concat(), PREFIX);
    let decoded = decode(&bytes, &external()).unwrap();
    let mut again = Vec::new();
    decoded.message.encode(&external(), &mut again).unwrap();
    assert_eq!(again, bytes);
}

/// What is prepended to a segment of 255 goes into one of its own (RFC 4271 section 5.1.2).
#[test]
fn a_full_segment_is_prepended_to() {
    let path = |segments: &str| {
        let path = hex(segments);
        let length = u16::try_from(path.len()).unwrap().to_be_bytes();
        let path: String =
            [&[0x50, 2][..], &length, &path].concat().iter().map(|b| format!("{b:02x}")).collect();
        update("", &[ORIGIN, &path, NEXT_HOP].concat(), PREFIX)
    };
    let full = format!("02 ff {}", "0000fde9".repeat(255));
    let mut decoded = decode(&path(&full), &external()).unwrap();
    let Message::Update(Update { announced: Some(announced), .. }) = &mut decoded.message else { panic!() };
    announced.attributes.as_path.prepend(bgp_speaker::config::Asn(65002), 1);
    let mut bytes = Vec::new();
    decoded.message.encode(&external(), &mut bytes).unwrap();
    assert_eq!(bytes, path(&["02 01 0000fdea", &full].concat()));
}

/// RFC 8950: IPv4 routes with a next hop of IPv6, global and link-local, where that was negotiated.
#[test]
fn next_hops_of_the_other_family() {
    let extended = Context { extended_next_hop: true, ..external() };
    let prefix: IpNet = "203.0.113.0/24".parse().unwrap();
    let attributes = Attributes { as_path: AsPath::sequence([65001]), ..Attributes::default() };
    for link_local in [None, Some("fe80::1".parse().unwrap())] {
        let next_hop = NextHop { address: "2001:db8::1".parse().unwrap(), link_local };
        let mut bytes = Vec::new();
        assert_eq!(announce(&attributes, next_hop, &[prefix], &extended, &mut bytes), Ok(1));
        let reach = vec![Reach { next_hop, prefixes: vec![prefix.into()] }];
        let announced = Some(Announcement { attributes: attributes.clone(), reach });
        let update = Message::Update(Update { withdrawn: Vec::new(), announced });
        assert_eq!(decode(&bytes, &extended).unwrap(), Decoded { message: update, errors: Vec::new() });
        // Who did not ask for it cannot read it.
        assert_eq!(decode(&bytes, &external()).unwrap_err().reason, Reason::OPTIONAL_ATTRIBUTE_ERROR);
        assert!(announce(&attributes, next_hop, &[prefix], &external(), &mut bytes).is_err());
    }
    // The other way round there is no such thing.
    let (next_hop, prefix) = (IpAddr::from([10, 0, 0, 1]).into(), "2001:db8::/32".parse::<IpNet>().unwrap());
    assert!(announce(&attributes, next_hop, &[prefix], &extended, &mut Vec::new()).is_err());
}
