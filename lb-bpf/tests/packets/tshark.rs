//! A second opinion: whatever the table expects to leave this host is put before tshark, which knows none of our code.
//! It must find every checksum right and nothing malformed, whatever the mode; but a fault that came in may go out.
use crate::scene::{Case, Expect};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

/// Asks for its opinion on all frames that `cases` expect to be sent. Panics with the names of those that it finds
/// fault with.
pub(crate) fn approves(cases: &[Case]) {
    let (mut names, mut came, mut sent) = (Vec::new(), Vec::new(), Vec::new());
    for case in cases {
        for ((packet, expect), step) in case.steps.iter().zip(1..) {
            if let Expect::Sent { bytes, .. }
            | Expect::Returned(bytes)
            | Expect::Answered(_, bytes)
            | Expect::Passed(_, bytes)
            | Expect::Delivered { bytes, .. } = expect
            {
                names.push(format!("{}, packet {step}", case.name));
                came.push(packet.clone());
                sent.push(bytes.clone());
            }
        }
    }
    let count = sent.len();
    sent.append(&mut came);
    let faults = faults(&sent);
    let none = BTreeSet::new();
    let made = |(index, found): (&usize, &BTreeSet<String>)| {
        let name = names.get(*index)?;
        let made: Vec<_> = found.difference(faults.get(&(index + count)).unwrap_or(&none)).cloned().collect();
        (!made.is_empty()).then_some((name, made))
    };
    let made: Vec<_> = faults.iter().filter_map(made).collect();
    assert!(made.is_empty(), "of {count} frames tshark finds fault with {made:#?}");
    println!("{count} frames approved by tshark");
}

/// What is wrong with a frame by its dissection. That the checksum of a transport header is wrong, of which an ICMP
/// error quotes a part, tshark says without knowing.
fn faulty() -> String {
    let cut =
        "((icmp && ip.len#[-1] + 28 > ip.len#[-2]) || (icmpv6 && ipv6.plen#[-1] + 48 > ipv6.plen#[-2]))";
    let error = format!("(_ws.expert.severity == \"Error\" && !({cut} && _ws.expert.group == \"Checksum\"))");
    let bad = |layer| format!("{layer}.checksum.status == \"Bad\"");
    ["_ws.malformed".to_owned(), error, bad("ip"), bad("icmp"), bad("icmpv6")].join(" || ")
}

/// By index of the frames that have a fault, what is wrong.
fn faults(frames: &[Vec<u8>]) -> BTreeMap<usize, BTreeSet<String>> {
    let capture = Capture::write(frames);
    let mut tshark = Command::new("tshark");
    tshark.arg("-n").arg("-r").arg(&capture.0).stdin(Stdio::null());
    for layer in ["ip", "tcp", "udp"] {
        tshark.args(["-o", &format!("{layer}.check_checksum:TRUE")]);
    }
    // Each frame stands for itself: fragments and streams are not put together across frames.
    for layer in
        ["ip.defragment", "ipv6.defragment", "tcp.desegment_tcp_streams", "tcp.analyze_sequence_numbers"]
    {
        tshark.args(["-o", &format!("{layer}:FALSE")]);
    }
    // GUE version 1: an IP packet of either family follows.
    tshark.args(["-d", "udp.port==6080,ip"]);
    tshark.args(["-Y", &faulty(), "-T", "fields", "-E", "aggregator=|"]);
    let fields = ["frame.number", "_ws.malformed", "_ws.expert.message", "udp.dstport", "udp.checksum"];
    tshark.args(fields.iter().flat_map(|field| ["-e", field]));
    let output = tshark.output().expect("tshark runs (apt-get install tshark)");
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{tshark:?}: {errors}");
    text.lines().filter_map(fault).collect()
}

/// A line of tshark: the index of the frame and what is wrong with it.
fn fault(line: &str) -> Option<(usize, BTreeSet<String>)> {
    let mut fields = line.split('\t').map(|field| field.split('|').filter(|value| !value.is_empty()));
    let mut next = || fields.next().into_iter().flatten();
    let number: usize = next().next().and_then(|number| number.parse().ok()).expect("a frame's number");
    let malformed: Vec<_> = next().collect();
    // What a checksum should be depends on what was translated.
    let messages: Vec<_> = next().map(|text| text.split(" [should be").next().unwrap_or(text)).collect();
    let is_gue = next().next() == Some("6080");
    let sums: Vec<_> = next().collect();
    let mut found: BTreeSet<_> = malformed.iter().chain(&messages).map(|text| (*text).to_owned()).collect();
    // A tunnel over IPv6 may do without a checksum when what is inside does, too (RFC 6935).
    if is_gue && sums == ["0x0000"; 2] {
        found.remove("Illegal checksum value (0)");
    }
    (!found.is_empty()).then_some((number - 1, found))
}

/// A file in the format of libpcap, removed when dropped.
struct Capture(PathBuf);

impl Capture {
    fn write(frames: &[Vec<u8>]) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        const ETHERNET: u32 = 1;
        let mut bytes = Vec::new();
        // Magic, version 2.4, no time zone, largest frame.
        for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, 1 << 18, ETHERNET] {
            bytes.extend(u32::to_ne_bytes(word));
        }
        for frame in frames {
            let length = frame.len() as u32;
            for word in [0, 0, length, length] {
                bytes.extend(u32::to_ne_bytes(word));
            }
            bytes.extend(frame);
        }
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("fairlead-packets-{}-{count}.pcap", std::process::id()));
        fs::write(&path, bytes).unwrap();
        Capture(path)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // A file in the directory for temporary files is no reason to fail.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        frame::{ACK, Header4, Transport, Tunnel, checksum, ethernet, header6, pseudo_header},
        scene::{Family, V4, V6, request, tunnel, tunnelled},
    };
    use std::net::IpAddr;

    /// `inner` in UDP to the port of GUE, between the ends of the tunnel of `family`.
    fn in_gue(family: Family, inner: &[u8]) -> Vec<u8> {
        let Tunnel { eth_dst, eth_src, src, dst, .. } =
            tunnel(family, &request(family, Transport::Tcp(ACK)), 1);
        let length = 8 + inner.len() as u16;
        let mut udp = [50_000, 6080, length, 0].map(u16::to_be_bytes).concat();
        udp.extend(inner);
        let sum = checksum(&[&pseudo_header(src, dst, 17, udp.len()), &udp]);
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        let header = match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let header = Header4 { class: 0, fragment: 0, ttl: 64, proto: 17 };
                header.bytes(src.octets(), dst.octets(), udp.len(), &[])
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => header6(0, 0, 64, 17, src, dst, udp.len()),
            other => panic!("mixed families: {other:?}"),
        };
        [ethernet(eth_dst, eth_src, src), header, udp].concat()
    }

    fn ping() -> Vec<u8> {
        let mut icmp = [&[8, 0, 0, 0, 0, 1, 0, 1][..], b"0123456789"].concat();
        let sum = checksum(&[&icmp]);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        let (src, dst) = ([192, 0, 2, 1], [192, 0, 2, 2]);
        let header = Header4 { class: 0, fragment: 0, ttl: 9, proto: 1 };
        let header = header.bytes(src, dst, icmp.len(), &[]);
        [ethernet([2; 6], [4; 6], IpAddr::from(src)), header, icmp].concat()
    }

    #[test]
    fn every_layer_is_looked_at() {
        // Frames, and the offsets of their checksums. One of IP is in the middle of a header without options.
        let mut good = vec![(ping(), vec![14 + 10, 14 + 20 + 2])];
        for family in [V4, V6] {
            let header = family.header();
            let [tcp, udp] = [Transport::Tcp(ACK), Transport::Udp].map(|kind| request(family, kind));
            let mut add = |frame: Vec<u8>, mut sums: Vec<usize>| {
                if family == V4 {
                    sums.push(14 + 10);
                }
                good.push((frame, sums));
            };
            add(tcp.bytes(), vec![14 + header + 16]);
            add(udp.bytes(), vec![14 + header + 6]);
            add(tunnelled(family, &tcp, 1), vec![14 + 2 * header + 16]);
            add(tunnelled(family, &udp, 1), vec![14 + 2 * header + 6]);
            add(in_gue(family, &tcp.ip()), vec![14 + header + 6, 14 + header + 8 + header + 16]);
        }
        let frames: Vec<_> = good.iter().map(|(frame, _)| frame.clone()).collect();
        assert_eq!(faults(&frames), BTreeMap::new());
        let mut bad = Vec::new();
        for (frame, sums) in &good {
            // The last byte is payload of the innermost layer.
            for &at in sums.iter().chain([&(frame.len() - 1)]) {
                let mut wrong = frame.clone();
                wrong[at] ^= 0x40;
                bad.push(wrong);
            }
            bad.push(frame[..14 + 12].to_vec());
        }
        let found: Vec<usize> = faults(&bad).into_keys().collect();
        assert_eq!(found, (0..bad.len()).collect::<Vec<_>>());
    }
}
