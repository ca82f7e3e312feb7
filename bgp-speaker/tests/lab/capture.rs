//! What went over the cable, as Wireshark sees it: nothing that we sent is malformed.
use super::harness::{Cable, Process, US, run, wait_until};
use nix::sys::signal::Signal;
use std::{collections::BTreeSet, fs, path::PathBuf};

/// What Wireshark cannot make sense of, or calls an error.
const WRONG: &str = "_ws.malformed || _ws.expert.severity == 0x800000";

/// Runs until it is checked.
pub(crate) struct Capture {
    dumpcap: Process,
    file: PathBuf,
}

impl Capture {
    pub(crate) fn start(cable: &Cable) -> Self {
        let (file, log) = (cable.directory.join("capture.pcapng"), cable.directory.join("dumpcap.log"));
        let name = file.display().to_string();
        let arguments = ["-q", "-i", "us0", "-f", "tcp port 179", "-w", &name];
        let dumpcap = Process::start(&cable.us, "/usr/bin/dumpcap", &arguments, &log);
        wait_until("dumpcap captures", || fs::read_to_string(&log).is_ok_and(|log| log.contains("File:")));
        Capture { dumpcap, file }
    }

    /// Ends it. We must have sent messages of all these types (RFC 4271 section 4.1) to a peer that is external, one hop away,
    /// and none that is wrong.
    pub(crate) fn check(mut self, types: &[u8]) {
        self.dumpcap.signal(Signal::SIGINT);
        wait_until("dumpcap ends", || self.dumpcap.0.try_wait().unwrap().is_some());
        let file = self.file.display().to_string();
        let ours = format!("ip.src == {US} && bgp");
        let sent = tshark(&file, &ours, &["-T", "fields", "-e", "bgp.type"]);
        let sent: BTreeSet<u8> = sent.split([',', '\n']).filter_map(|kind| kind.parse().ok()).collect();
        assert!(types.iter().all(|kind| sent.contains(kind)), "sent: {sent:?}");
        assert_eq!(tshark(&file, WRONG, &["-V"]), "");
        assert_eq!(tshark(&file, &format!("{ours} && ip.ttl != 1"), &[]), "");
    }
}

fn tshark(file: &str, filter: &str, more: &[&str]) -> String {
    run("tshark", &[&["-r", file, "-Y", filter], more].concat())
}

/// Wireshark does find what is wrong.
#[test]
fn a_malformed_update_is_found() {
    let cable = Cable::new();
    // ORIGIN of two octets, behind the header of an UPDATE.
    let message = [&[0xFF; 16][..], &[0, 28, 2, 0, 0, 0, 5, 0x40, 1, 2, 0, 0]].concat();
    let octets: String = message.iter().map(|octet| format!(" {octet:02x}")).collect();
    let text = cable.file("message.txt", &format!("000000{octets}\n")).display().to_string();
    let file = cable.directory.join("message.pcap").display().to_string();
    run("text2pcap", &["-q", "-T", "179,179", &text, &file]);
    assert_ne!(tshark(&file, WRONG, &[]), "");
}
