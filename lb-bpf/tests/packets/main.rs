//! The datapath, packet by packet: a table of worlds, packets and what must become of them, run by the kernel
//! (BPF_PROG_TEST_RUN), with tshark's opinion on what leaves. Needs root and tshark.
#![expect(clippy::unwrap_used, reason = "a test: what fails is told by the panic")]

mod decap;
mod dirty;
mod frame;
mod handover;
mod icmp;
mod ipip;
mod local;
mod model;
mod modes;
mod nat;
mod others;
mod parts;
mod quic;
mod recent;
mod rig;
mod rules;
mod scene;
mod trace;
mod tshark;

use rig::Rig;
use scene::Case;
use std::collections::{BTreeMap, BTreeSet};

fn run(cases: Vec<Case>) {
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len(), "names are unique");
    // One load for each pair of map sizes: the kernel fixes these at load.
    let mut rigs = BTreeMap::new();
    for case in &cases {
        let or_16 = |size| if size == 0 { 16 } else { size };
        let sizes = (or_16(case.world.max_flows), or_16(case.world.max_reverse));
        case.run(rigs.entry(sizes).or_insert_with(|| Rig::load(sizes.0, sizes.1)));
    }
    println!("{} cases", cases.len());
    tshark::approves(&cases);
}

#[test]
fn ipip() {
    run(ipip::cases());
}

#[test]
fn dirty_slots() {
    run(dirty::cases());
}

#[test]
fn nat() {
    run(nat::cases());
}

#[test]
fn modes_that_return_directly_or_keep_the_source() {
    run(modes::cases());
}

#[test]
fn fragments_extension_headers_and_vlans() {
    run(parts::cases());
}

#[test]
fn rules_of_services_and_filters() {
    run(rules::cases());
}

#[test]
fn quic() {
    run(quic::cases());
}

#[test]
fn backends_of_this_host() {
    run(local::cases());
}

#[test]
fn decapsulation() {
    run(decap::cases());
}

#[test]
fn icmp() {
    run(icmp::cases());
}

#[test]
fn packets_that_are_not_ours_or_not_whole() {
    run(others::cases());
}
