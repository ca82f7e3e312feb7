//! How frames leave XDP: redirected, sent back, or with a marker that has TC send them.
use crate::{
    frame::{ACK, Transport},
    rig::{ELSEWHERE, HANDED_OVER, INGRESS, REDIRECT, Rig, TX, World},
    scene::{V4, V6, request, with_slots, world},
};
use lb_bpf::abi::{Config, Mode, Slot, Verdict, program};
use std::process::Command;

/// What a program of TC returns to have the next one decide.
const NEXT: u32 = -1_i32 as u32;

/// A world whose packets all go to the backend at `index`, through the interface `ifindex`.
fn to(index: u32, ifindex: u32, flags: u32) -> World {
    let mut world = with_slots(world(V4, Mode::Nat), Slot { current: index, previous: 0 });
    world.backends[index as usize - 1].ifindex = ifindex;
    world.config.flags |= flags;
    world
}

/// Runs a test in a network namespace of its own that has a veth; gives its index.
fn with_veth(test: impl FnOnce(u32) + Send + 'static) {
    let inside = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("unshare needs root");
        let made =
            Command::new("ip").args(["link", "add", "out0", "type", "veth", "peer", "name", "in0"]).status();
        assert!(made.unwrap().success());
        test(nix::net::if_::if_nametoindex("out0").unwrap());
    };
    std::thread::spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn what_takes_frames_has_them_from_xdp_and_all_else_from_tc() {
    with_veth(|veth| {
        let mut rig = Rig::load(16, 16);
        let packet = request(V4, Transport::Tcp(ACK));
        rig.fill(&to(2, veth, 0));
        let handed_over = rig.run(&packet.bytes());
        assert_eq!(handed_over.action, HANDED_OVER + veth);
        rig.set_port(veth, true);
        let redirected = rig.run(&packet.bytes());
        assert_eq!((redirected.action, &redirected.bytes), (REDIRECT, &handed_over.bytes));
        rig.fill(&to(2, ELSEWHERE, 0));
        assert_eq!(rig.run(&packet.bytes()).action, HANDED_OVER + ELSEWHERE);
        rig.fill(&to(2, veth, 0));
        rig.set_port(veth, false);
        assert_eq!(rig.run(&packet.bytes()), handed_over);
    });
}

#[test]
fn what_is_sent_back_is_looked_at_only_where_an_interface_may_not_take_it() {
    with_veth(|_| {
        let mut rig = Rig::load(16, 16);
        let packet = request(V4, Transport::Tcp(ACK));
        rig.fill(&to(1, INGRESS, 0));
        let sent = rig.run(&packet.bytes());
        assert_eq!(sent.action, TX);
        rig.fill(&to(1, INGRESS, Config::WARY));
        let handed_over = rig.run(&packet.bytes());
        assert_eq!((handed_over.action, &handed_over.bytes), (HANDED_OVER + INGRESS, &sent.bytes));
        rig.set_port(INGRESS, true);
        assert_eq!(rig.run(&packet.bytes()), sent);
    });
}

/// As on a driver that has no room for metadata.
#[test]
fn without_room_for_a_marker_frames_are_redirected_and_counted() {
    let mut rig = Rig::load(16, 16);
    let packet = request(V4, Transport::Tcp(ACK)).bytes();
    rig.fill(&to(2, ELSEWHERE, 0));
    let marked = rig.run(&packet);
    let result = rig.run_behind(208, &packet);
    assert_eq!((result.action, result.bytes), (REDIRECT, marked.bytes));
    let counted = rig.counted().0;
    let [(verdict, counter)] = counted[..] else { panic!("{counted:?}") };
    assert_eq!((verdict, counter.packets), (Verdict::NotHandedOver, 1));
    assert_eq!(counter.bytes, packet.len() as u64);
}

#[test]
fn tc_lets_packets_by_that_have_no_marker() {
    let mut rig = Rig::load(16, 16);
    for family in [V4, V6] {
        let packet = request(family, Transport::Tcp(ACK)).bytes();
        let result = rig.run_tc(program::HANDOVER, &packet);
        assert_eq!((result.action, result.bytes), (NEXT, packet));
    }
}
