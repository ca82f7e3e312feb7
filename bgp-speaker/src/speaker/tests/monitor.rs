//! Stations that listen.
use super::{
    sessions::{NOW, Script, told},
    *,
};
use crate::{
    config::{BmpStation, Family},
    speaker::{Input, Output},
    wire::{Message, Notification, Reason, Update},
};
use std::{net::SocketAddr, time::Duration};

const EPOCH: Duration = Duration::from_secs(1_700_000_000);

fn station() -> SocketAddr {
    "192.0.2.1:11019".parse().unwrap()
}

/// Types of the messages, of Route Monitoring with what the UPDATE has: `+` NLRI, `-` withdrawn routes, `.` neither.
fn types(mut stream: &[u8]) -> String {
    let mut types = String::new();
    while let [3, a, b, c, d, kind, ..] = *stream {
        let (message, rest) = stream.split_at(u32::from_be_bytes([a, b, c, d]) as usize);
        types.push_str(["rm", "stats", "down", "up", "init", "term"][usize::from(kind)]);
        if kind == 0 {
            // Common and per-peer header, header of the UPDATE.
            let body = &message[6 + 42 + 19..];
            let withdrawn = usize::from(u16::from_be_bytes([body[0], body[1]]));
            types.push(match body.len() {
                _ if withdrawn > 0 => '-',
                ..=11 => '.',
                _ => '+',
            });
        }
        types.push(' ');
        stream = rest;
    }
    assert!(stream.is_empty());
    types.trim_end().to_owned()
}

impl Script {
    fn report(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.speaker.report(station(), usize::MAX / 2, EPOCH, NOW, &mut out);
        out
    }
}

/// Accepts 10.0.0.0/8 only.
fn picky() -> PeerConfig {
    PeerConfig { accept: vec!["10.0.0.0/8".parse().unwrap()], ..peer(1, 65001) }
}

fn monitored() -> Script {
    let mut script = Script::new(vec![picky()]);
    script.speaker.set_stations(&[BmpStation { station: station(), stats_seconds: 5 }]).unwrap();
    script.speaker.monitor(station(), NOW);
    script
}

#[test]
fn a_station_hears_of_routes_and_of_their_end() {
    let mut script = monitored();
    assert_eq!(types(&script.report()), "init");
    let connection = script.establish(1);
    assert!(script.outputs.contains(&Output::Report { station: station() }));
    assert_eq!(types(&script.report()), "up rm. rm.");
    // Refused ones, too.
    script.say(connection, &[told(1, &["10.1.0.0/16", "192.0.2.0/24"])]);
    assert_eq!(script.speaker.peers(NOW)[0].prefixes[&Family::Ipv4Unicast].kept, 1);
    assert_eq!(types(&script.report()), "rm+");
    // The same again is nothing new.
    script.say(connection, &[told(1, &["10.1.0.0/16"])]);
    assert_eq!(types(&script.report()), "");
    let gone = |prefix: &str| {
        Message::Update(Update {
            withdrawn: vec![prefix.parse::<ipnet::IpNet>().unwrap().into()],
            announced: None,
        })
    };
    script.say(connection, &[gone("192.0.2.0/24"), gone("198.51.100.0/24")]);
    assert_eq!(types(&script.report()), "rm-");
    let due = NOW + Duration::from_secs(5);
    assert!(script.speaker.next_deadline().unwrap() <= due);
    script.speaker.handle(Input::Tick, due);
    assert_eq!(types(&script.report()), "stats");
    script.say(connection, &[Message::Notification(Reason::CEASE_UNSPECIFIC.into())]);
    let down = script.report();
    assert_eq!(types(&down), "down");
    // Reason 3, and the NOTIFICATION.
    assert_eq!((down[6 + 42], down[6 + 42 + 1 + 18], &down[6 + 42 + 1 + 19..]), (3, 3, &[6, 0][..]));
    assert!(script.speaker.prefixes().is_empty(), "nothing is kept for the station");
    assert_eq!(types(&script.speaker.last_report(station(), EPOCH, NOW)), "term");
}

#[test]
fn one_that_comes_late_hears_everything() {
    let mut script = Script::new(vec![picky()]);
    let connection = script.establish(1);
    script.say(connection, &[told(1, &["10.1.0.0/16", "192.0.2.0/24"])]);
    // What was refused before has to be asked for.
    script.hear(connection);
    let stations = [BmpStation { station: station(), stats_seconds: 0 }];
    script.outputs = script.speaker.set_stations(&stations).unwrap();
    let heard = script.hear(connection);
    assert!(matches!(&heard[..], [Message::RouteRefresh(_), Message::RouteRefresh(_)]), "{heard:?}");
    script.speaker.monitor(station(), NOW);
    assert_eq!(types(&script.report()), "init up rm+ rm. rm.");
    script.say(connection, &[told(1, &["10.1.0.0/16", "192.0.2.0/24"])]);
    assert_eq!(types(&script.report()), "rm+");
}

/// A station that reads nothing meanwhile: a session that came and went is not told, and no route waits for it.
#[test]
fn what_a_slow_station_missed_is_left_out() {
    let mut script = monitored();
    let connection = script.establish(1);
    script.report();
    script.say(connection, &[told(1, &["10.1.0.0/16"])]);
    let bye = || Message::Notification(Notification::from(Reason::CEASE_UNSPECIFIC));
    script.say(connection, &[bye()]);
    let connection = script.establish(1);
    script.say(connection, &[told(1, &["10.2.0.0/16"]), bye()]);
    assert!(script.speaker.prefixes().is_empty());
    let connection = script.establish(1);
    script.say(connection, &[told(1, &["10.3.0.0/16"])]);
    assert_eq!(types(&script.report()), "down up rm+ rm. rm.");
    // A limit is kept to, about.
    let many: Vec<String> = (0..200).map(|net| format!("10.{net}.0.0/16")).collect();
    let each: Vec<Message> = many.iter().map(|prefix| told(1, &[prefix])).collect();
    script.say(connection, &each);
    script.speaker.unmonitor(station());
    script.speaker.monitor(station(), NOW);
    let mut parts = 0;
    loop {
        let mut out = Vec::new();
        script.speaker.report(station(), 1, EPOCH, NOW, &mut out);
        if out.is_empty() {
            break;
        }
        parts += 1;
    }
    assert!(parts > 1, "{parts}");
}
