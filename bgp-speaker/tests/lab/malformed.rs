//! Messages that are malformed, over a real connection: the NOTIFICATION of RFC 4271 section 6, or what RFC 7606 makes of an
//! UPDATE while the session goes on.
use super::{
    harness::{Cable, enter, global, wait_for, within},
    raw::{Raw, against, message, peer},
};
use bgp_speaker::{
    config::RouteStatus,
    spawn,
    wire::{Message, Notification, Reason},
};
use std::{io::Write, sync::mpsc, thread};

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn malformed_before_the_session() {
    let mut marker = message(4, &[]);
    marker[3] = 0;
    let version = [5, 0xfd, 0xe9, 0, 90, 198, 18, 0, 1, 0];
    let with = |change: fn(&mut [u8; 10])| {
        let mut body = [4, 0xfd, 0xe9, 0, 90, 198, 18, 0, 1, 0];
        change(&mut body);
        message(1, &body)
    };
    let cases = [
        (marker, Notification::from(Reason::CONNECTION_NOT_SYNCHRONIZED)),
        (
            message(4, &[])[..18].iter().chain(&[99]).copied().collect(),
            Notification::new(Reason::BAD_MESSAGE_TYPE, [99]),
        ),
        (message(1, &[4; 5]), Notification::new(Reason::BAD_MESSAGE_LENGTH, [0, 24])),
        (message(2, &[0; 4090])[..19].to_vec(), Notification::new(Reason::BAD_MESSAGE_LENGTH, [0x10, 0x0d])),
        (message(1, &version), Notification::new(Reason::UNSUPPORTED_VERSION, [0, 4])),
        (with(|body| body[1] = 0xfc), Reason::BAD_PEER_AS.into()),
        (with(|body| body[4] = 1), Reason::UNACCEPTABLE_HOLD_TIME.into()),
        (with(|body| body[5..9].fill(0)), Reason::BAD_BGP_IDENTIFIER.into()),
        (
            message(1, &[4, 0xfd, 0xe9, 0, 90, 198, 18, 0, 1, 2, 1, 0]),
            Reason::UNSUPPORTED_OPTIONAL_PARAMETER.into(),
        ),
        (message(4, &[]), Reason::UNEXPECTED_IN_OPEN_SENT.into()),
        (message(2, &[0; 4]), Reason::UNEXPECTED_IN_OPEN_SENT.into()),
    ];
    against(vec![peer()], Vec::new(), move || {
        for (bytes, expected) in cases {
            let mut raw = Raw::dial();
            raw.stream.write_all(&bytes).unwrap();
            assert_eq!(raw.last_words(), Some(expected), "{bytes:02x?}");
        }
    });
}

#[test]
fn malformed_within_the_session() {
    let cases = [
        (message(2, &hex("00030000")), Notification::from(Reason::MALFORMED_ATTRIBUTE_LIST)),
        (message(2, &hex("0002210a0000")), Reason::INVALID_NETWORK_FIELD.into()),
        (
            message(2, &hex("0000000450630001")),
            Notification::new(Reason::ATTRIBUTE_LENGTH_ERROR, hex("50630001")),
        ),
        (
            message(2, &hex("00000003 406300")),
            Notification::new(Reason::UNRECOGNIZED_WELL_KNOWN_ATTRIBUTE, hex("406300")),
        ),
        (
            message(2, &hex("00000006800e03000201")),
            Notification::new(Reason::OPTIONAL_ATTRIBUTE_ERROR, hex("800e03000201")),
        ),
        (message(4, &[0]), Notification::new(Reason::BAD_MESSAGE_LENGTH, [0, 20])),
        (message(7, &[]), Notification::new(Reason::BAD_MESSAGE_TYPE, [7])),
        (message(1, &[4, 0xfd, 0xe9, 0, 90, 198, 18, 0, 1, 0]), Reason::UNEXPECTED_IN_ESTABLISHED.into()),
    ];
    against(vec![peer()], Vec::new(), move || {
        for (bytes, expected) in cases {
            let mut raw = Raw::dial().establish();
            raw.stream.write_all(&bytes).unwrap();
            assert_eq!(raw.last_words(), Some(expected), "{bytes:02x?}");
        }
    });
}

const ORIGIN: &str = "400101 00";
const AS_PATH: &str = "400206 0201 0000fde9";
const NEXT_HOP: &str = "400304 c6120001";

/// 203.0.113.0/24 with these attributes.
fn update(attributes: &[&str]) -> Vec<u8> {
    let attributes = hex(&attributes.concat());
    let length = u16::try_from(attributes.len()).unwrap().to_be_bytes();
    message(2, &[&[0, 0], &length[..], &attributes, &[24, 203, 0, 113]].concat())
}

/// Each UPDATE comes after a good one with the same prefix: that is replaced by one that lacks the attribute, or is
/// withdrawn; the session goes on, and shows what was wrong.
#[test]
fn errors_that_do_not_end_the_session() {
    const WITHDRAWN: bool = true;
    const STAYS: bool = false;
    // Section of RFC 7606 (or RFC), attributes, what becomes of the route, what is shown.
    let cases: &[(&str, &[&str], bool, &str)] = &[
        ("7.1", &["400102 0000", AS_PATH, NEXT_HOP], WITHDRAWN, "Attribute Length Error"),
        ("7.1", &["400101 03", AS_PATH, NEXT_HOP], WITHDRAWN, "Invalid ORIGIN Attribute"),
        ("3 c", &["c00101 00", AS_PATH, NEXT_HOP], WITHDRAWN, "Attribute Flags Error"),
        ("3 d", &[ORIGIN, NEXT_HOP], WITHDRAWN, "Missing Well-known Attribute"),
        ("7.2", &[ORIGIN, "400202 0200", NEXT_HOP], WITHDRAWN, "Malformed AS_PATH"),
        ("7.2", &[ORIGIN, "400206 0202 0000fde9", NEXT_HOP], WITHDRAWN, "Malformed AS_PATH"),
        ("RFC 5065 5", &[ORIGIN, "400206 0301 0000fde9", NEXT_HOP], WITHDRAWN, "Malformed AS_PATH"),
        ("7.3", &[ORIGIN, AS_PATH, "400305 c612000100"], WITHDRAWN, "Attribute Length Error"),
        ("7.4", &[ORIGIN, AS_PATH, NEXT_HOP, "800403 000000"], WITHDRAWN, "Attribute Length Error"),
        ("7.5", &[ORIGIN, AS_PATH, NEXT_HOP, "400504 00000064"], STAYS, "UPDATE Message Error"),
        ("7.6", &[ORIGIN, AS_PATH, NEXT_HOP, "400601 00"], STAYS, "Attribute Length Error"),
        ("7.7", &[ORIGIN, AS_PATH, NEXT_HOP, "c00706 fde9c6120001"], STAYS, "Attribute Length Error"),
        ("7.8", &[ORIGIN, AS_PATH, NEXT_HOP, "c00803 fde900"], WITHDRAWN, "Attribute Length Error"),
        ("7.9", &[ORIGIN, AS_PATH, NEXT_HOP, "800904 c6120001"], STAYS, "UPDATE Message Error"),
        ("7.10", &[ORIGIN, AS_PATH, NEXT_HOP, "800a03 000000"], STAYS, "UPDATE Message Error"),
        ("7.14", &[ORIGIN, AS_PATH, NEXT_HOP, "c01007 00020000000000"], WITHDRAWN, "Attribute Length Error"),
        (
            "RFC 8092 6",
            &[ORIGIN, AS_PATH, NEXT_HOP, "c0200b 0000fde900000001000000"],
            WITHDRAWN,
            "Length Error",
        ),
        ("RFC 9234 5", &[ORIGIN, AS_PATH, NEXT_HOP, "c02303 00fde9"], WITHDRAWN, "Attribute Length Error"),
        ("RFC 6793 6", &[ORIGIN, AS_PATH, NEXT_HOP, "c01106 020100010000"], STAYS, "UPDATE Message Error"),
        ("3 g", &[ORIGIN, AS_PATH, NEXT_HOP, "400101 02"], STAYS, "Malformed Attribute List"),
        ("4", &[ORIGIN, AS_PATH, NEXT_HOP, "800404 0000"], WITHDRAWN, "Attribute Length Error"),
    ];
    let cable = Cable::new();
    let namespace = cable.router.clone();
    let (go_on, wait) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let part = scope.spawn(move || {
            enter(&namespace);
            let mut raw = Raw::dial().establish();
            for (_, bad, ..) in cases {
                // MULTI_EXIT_DISC tells the good one from what comes after it.
                for bytes in [update(&[ORIGIN, AS_PATH, NEXT_HOP, "800404 00000007"]), update(bad)] {
                    raw.stream.write_all(&bytes).unwrap();
                    wait.recv().unwrap();
                }
            }
            raw.send(&Message::Notification(Reason::ADMINISTRATIVE_SHUTDOWN.into()));
        });
        // With the sender, so that the thread ends if this part does not come to its end.
        within(&cable.us, async move {
            let speaker = spawn();
            speaker.set_peers(vec![peer()]).await.unwrap();
            speaker.set_global(global()).await.unwrap();
            let route = async || -> Option<RouteStatus> {
                speaker.routes().await.into_iter().find(|row| row.table == "adj-in")
            };
            for (section, _, withdrawn, shown) in cases {
                wait_for("the good one", || async {
                    route().await.is_some_and(|route| route.med == Some(7))
                })
                .await;
                go_on.send(()).unwrap();
                wait_for(section, || async {
                    let route = route().await;
                    if *withdrawn { route.is_none() } else { route.is_some_and(|route| route.med.is_none()) }
                })
                .await;
                let status = speaker.peers().await.remove(0);
                assert_eq!(
                    (status.state.as_str(), status.established_count),
                    ("Established", 1),
                    "{section}"
                );
                let error = status.last_error.unwrap();
                assert!(error.contains(shown), "{section}: {error}");
                go_on.send(()).unwrap();
            }
            part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            speaker.shutdown().await;
        });
    });
}
