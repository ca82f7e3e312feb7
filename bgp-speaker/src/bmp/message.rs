//! BMP messages (RFC 7854 section 4), each appended to a buffer. Numbers are big-endian.
use crate::{
    config::{Asn, Family},
    fsm,
    wire::{AfiSafi, Context, HEADER_LENGTH, Message, Notification},
};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

const VERSION: u8 = 3;
/// Flag V of a peer: its address is of IPv6.
const IPV6: u8 = 0x80;
/// FSM event 2, ManualStop (RFC 4271 section 8.1.2).
const MANUAL_STOP: u16 = 2;

/// Type of a message (section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    RouteMonitoring = 0,
    Statistics = 1,
    PeerDown = 2,
    PeerUp = 3,
    Initiation = 4,
    Termination = 5,
}

/// A peer as stations know it: the fields of the per-peer header (section 4.2) that do not change in a session. It is of
/// the global instance, its routes are those before our policy, with four octets for each AS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    pub(crate) asn: Asn,
    pub(crate) router_id: Ipv4Addr,
}

/// Why a session ended (section 4.9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Down {
    /// We said so.
    Sent(Notification),
    /// We left without a word.
    Left,
    /// The peer said so.
    Received(Notification),
    /// TCP ended.
    Lost,
}

/// Counts and gauges of a peer (section 4.8).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Statistics {
    /// Prefixes that the import policy refused.
    pub(crate) refused: u32,
    /// Routes in the Adj-RIB-In, by family.
    pub(crate) adj_rib_in: Vec<(Family, u64)>,
    /// Routes in the Adj-RIB-Out after policy, by family (RFC 8671).
    pub(crate) adj_rib_out: Vec<(Family, u64)>,
    /// UPDATEs whose routes were taken for withdrawn (RFC 7606).
    pub(crate) treated_as_withdraw: u32,
}

/// Who we are (section 4.3): the first message.
pub(crate) fn initiation(description: &str, name: &str, out: &mut Vec<u8>) {
    write(out, Kind::Initiation, |out| {
        text(out, 1, description);
        text(out, 2, name);
    });
}

/// The last message (section 4.5): the session with the station ends because we do.
pub(crate) fn termination(out: &mut Vec<u8>) {
    // Administratively closed.
    write(out, Kind::Termination, |out| tlv(out, 1, |out| out.extend([0, 0])));
}

/// A session is up (section 4.10): its ends, and both OPENs as they were sent.
pub(crate) fn peer_up(
    peer: &Peer,
    time: Duration,
    (local, remote): (SocketAddr, SocketAddr),
    sent: &[u8],
    received: &[u8],
    out: &mut Vec<u8>,
) {
    write(out, Kind::PeerUp, |out| {
        header(out, peer, time);
        address(out, local.ip().to_canonical());
        out.extend(local.port().to_be_bytes());
        out.extend(remote.port().to_be_bytes());
        out.extend_from_slice(sent);
        out.extend_from_slice(received);
    });
}

/// It is down (section 4.9), and all its routes are gone.
pub(crate) fn peer_down(peer: &Peer, time: Duration, down: &Down, out: &mut Vec<u8>) {
    write(out, Kind::PeerDown, |out| {
        header(out, peer, time);
        let (code, said) = match down {
            Down::Sent(notification) => (1, Some(notification)),
            Down::Left => (2, None),
            Down::Received(notification) => (3, Some(notification)),
            Down::Lost => (4, None),
        };
        out.push(code);
        match said {
            Some(said) => {
                let start = out.len();
                // A NOTIFICATION always fits: its data are cut.
                if Message::Notification(said.clone()).encode(&Context::default(), out).is_err() {
                    out.truncate(start);
                }
            }
            None if code == 2 => out.extend(MANUAL_STOP.to_be_bytes()),
            None => {}
        }
    });
}

/// UPDATEs of a peer (section 4.6): whole BGP messages, each in a message of its own.
pub(crate) fn route_monitoring(peer: &Peer, time: Duration, updates: &[u8], out: &mut Vec<u8>) {
    let mut rest = updates;
    while let Some(length) = rest.get(HEADER_LENGTH - 3..HEADER_LENGTH - 1) {
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let Some((update, after)) = rest.split_at_checked(length.max(HEADER_LENGTH)) else { return };
        write(out, Kind::RouteMonitoring, |out| {
            header(out, peer, time);
            out.extend_from_slice(update);
        });
        rest = after;
    }
}

/// Statistics of a peer (section 4.8).
pub(crate) fn statistics(peer: &Peer, time: Duration, counts: &Statistics, out: &mut Vec<u8>) {
    let Statistics { refused, adj_rib_in, adj_rib_out, treated_as_withdraw } = counts;
    write(out, Kind::Statistics, |out| {
        header(out, peer, time);
        let total = |gauges: &[(Family, u64)]| gauges.iter().map(|(_, count)| count).sum::<u64>();
        let number = 4 + adj_rib_in.len() + adj_rib_out.len();
        out.extend((number as u32).to_be_bytes());
        tlv(out, 0, |out| out.extend(refused.to_be_bytes()));
        tlv(out, 7, |out| out.extend(total(adj_rib_in).to_be_bytes()));
        tlv(out, 11, |out| out.extend(treated_as_withdraw.to_be_bytes()));
        tlv(out, 15, |out| out.extend(total(adj_rib_out).to_be_bytes()));
        for (kind, gauges) in [(9, adj_rib_in), (17, adj_rib_out)] {
            for (family, count) in gauges {
                tlv(out, kind, |out| {
                    let AfiSafi { afi, safi } = (*family).into();
                    out.extend(afi.to_be_bytes());
                    out.push(safi);
                    out.extend(count.to_be_bytes());
                });
            }
        }
    });
}

/// Appends a message: the common header (section 4.1), and what `body` writes.
fn write(out: &mut Vec<u8>, kind: Kind, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[VERSION, 0, 0, 0, 0, kind as u8]);
    body(out);
    let length = (out.len() - start) as u32;
    out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
}

/// The per-peer header (section 4.2); `time`: since 1970.
fn header(out: &mut Vec<u8>, peer: &Peer, time: Duration) {
    let flags = if peer.address.is_ipv6() { IPV6 } else { 0 };
    out.extend([0, flags]);
    out.extend([0; 8]);
    address(out, peer.address);
    out.extend(peer.asn.0.to_be_bytes());
    out.extend(peer.router_id.octets());
    out.extend((time.as_secs() as u32).to_be_bytes());
    out.extend(time.subsec_micros().to_be_bytes());
}

/// 16 octets; an address of IPv4 is in the last four.
fn address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            out.extend([0; 12]);
            out.extend(address.octets());
        }
        IpAddr::V6(address) => out.extend(address.octets()),
    }
}

fn text(out: &mut Vec<u8>, kind: u16, text: &str) {
    tlv(out, kind, |out| out.extend_from_slice(text.as_bytes()));
}

/// Type, length and what `value` writes, at most 65535 octets.
fn tlv(out: &mut Vec<u8>, kind: u16, value: impl FnOnce(&mut Vec<u8>)) {
    out.extend(kind.to_be_bytes());
    let start = out.len();
    out.extend([0, 0]);
    value(out);
    let length = u16::try_from(out.len() - start - 2).unwrap_or(u16::MAX);
    out[start..start + 2].copy_from_slice(&length.to_be_bytes());
}

impl From<Option<&fsm::Down>> for Down {
    /// None: nothing was said.
    fn from(down: Option<&fsm::Down>) -> Self {
        match down {
            Some(fsm::Down::Sent(said)) => Down::Sent(said.clone()),
            Some(fsm::Down::Received(said)) => Down::Received(said.clone()),
            Some(fsm::Down::Tcp(_)) => Down::Lost,
            None => Down::Left,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Reason;

    const PEER: Peer = Peer {
        address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        asn: Asn(4_200_000_001),
        router_id: Ipv4Addr::new(198, 51, 100, 1),
    };
    const TIME: Duration = Duration::new(0x65a0_b0c0, 7000);
    /// The per-peer header of both.
    const HEADER: &str =
        "00 00 0000000000000000 000000000000000000000000c0000201 fa56ea01 c6336401 65a0b0c0 00000007";

    fn hex(text: &str) -> Vec<u8> {
        let digits: String = text.split_whitespace().collect();
        (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
    }

    #[track_caller]
    fn is(write: impl FnOnce(&mut Vec<u8>), expected: &str) {
        // It is appended.
        let mut out = vec![0xEE];
        write(&mut out);
        let found: String = out[1..].iter().map(|octet| format!("{octet:02x}")).collect();
        let wanted: String = hex(expected).iter().map(|octet| format!("{octet:02x}")).collect();
        assert_eq!((out[0], found), (0xEE, wanted));
    }

    /// The layouts of RFC 7854 section 4, by hand.
    #[test]
    fn layouts() {
        is(|out| initiation("ab", "c", out), "03 00000011 04 0001 0002 6162 0002 0001 63");
        is(termination, "03 0000000c 05 0001 0002 0000");
        let keepalive = "ffffffffffffffffffffffffffffffff 0013 04";
        let each = format!("03 00000043 00 {HEADER} {keepalive}");
        let updates = hex(&[keepalive, keepalive, "ff"].concat());
        is(|out| route_monitoring(&PEER, TIME, &updates, out), &[each.clone(), each].concat());
        let ends = ("198.51.100.2:179".parse().unwrap(), "192.0.2.1:50000".parse().unwrap());
        is(
            |out| peer_up(&PEER, TIME, ends, &[1, 2], &[3], out),
            &format!("03 00000047 03 {HEADER} 000000000000000000000000c6336402 00b3 c350 0102 03"),
        );
        let six = Peer { address: "2001:db8::1".parse().unwrap(), ..PEER };
        let header = HEADER.replace("000000000000000000000000c0000201", "20010db8000000000000000000000001");
        let header = header.replacen("00 00", "00 80", 1);
        is(|out| peer_down(&six, TIME, &Down::Lost, out), &format!("03 00000031 02 {header} 04"));
    }

    #[test]
    fn ends_of_a_session() {
        let marker = "ffffffffffffffffffffffffffffffff";
        let bye = Notification::new(Reason::CEASE_UNSPECIFIC, [9]);
        for (down, length, rest) in [
            (Down::Sent(bye.clone()), "47", format!("01 {marker} 0016 03 06 00 09")),
            (Down::Left, "33", "02 0002".to_owned()),
            (Down::Received(bye), "47", format!("03 {marker} 0016 03 06 00 09")),
            (Down::Lost, "31", "04".to_owned()),
        ] {
            is(|out| peer_down(&PEER, TIME, &down, out), &format!("03 000000{length} 02 {HEADER} {rest}"));
        }
    }

    #[test]
    fn counts() {
        let counts = Statistics {
            refused: 1,
            adj_rib_in: vec![(Family::Ipv4Unicast, 2), (Family::Ipv6Unicast, 3)],
            adj_rib_out: vec![(Family::Ipv4Unicast, 4)],
            treated_as_withdraw: 5,
        };
        is(
            |out| statistics(&PEER, TIME, &counts, out),
            &format!(
                "03 00000089 01 {HEADER} 00000007 0000 0004 00000001 0007 0008 0000000000000005 \
                 000b 0004 00000005 000f 0008 0000000000000004 \
                 0009 000b 0001 01 0000000000000002 0009 000b 0002 01 0000000000000003 \
                 0011 000b 0001 01 0000000000000004"
            ),
        );
    }
}
