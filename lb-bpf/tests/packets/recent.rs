//! Memos: what is remembered about flows of dirty slots, so that not every packet is looked up in `flows`. An entry is taken
//! away behind the datapath's back: where the flow goes on to the same backend, that was remembered.
use crate::{
    frame::{ACK, FIN, RST, SYN, Transport},
    rig::Rig,
    scene::{Family, V4, V6, backend, flow_key, request, slot_index, tunnelled, with_slots, world},
};
use lb_bpf::abi::{Backend, FlowEntry, Mode, Slot};

/// Moved from backend 2 to backend 1.
const LEARNING: Slot = Slot { current: 1, previous: 2 };
const SETTLED: Slot = Slot { current: 1, previous: 2 | Slot::SETTLED };

/// One client's flow of a protocol, and the datapath.
struct Client<'a> {
    rig: &'a mut Rig,
    family: Family,
}

impl Client<'_> {
    /// Sends a packet; the backend that gets it.
    fn send(&self, transport: Transport) -> u32 {
        let frame = request(self.family, transport);
        let bytes = self.rig.run(&frame.bytes()).bytes;
        let is_for = |index: &u32| bytes == tunnelled(self.family, &frame, *index);
        (1..=4).find(is_for).expect("it goes to a backend")
    }

    fn tcp(&self, flags: u8) -> u32 {
        self.send(Transport::Tcp(flags))
    }

    /// Takes the entry away, so that only a memo can say where the flow goes.
    fn lose_entry(&mut self, transport: Transport) {
        self.rig.set_flow(&flow_key(&request(self.family, transport)), None);
    }

    fn entry(&mut self, transport: Transport) -> Option<FlowEntry> {
        self.rig.flow(&flow_key(&request(self.family, transport)))
    }

    fn set_slot(&mut self, slot: Slot) {
        let index = slot_index(&request(self.family, Transport::Tcp(ACK)));
        self.rig.set_slot(index, slot);
    }
}

const TCP: Transport = Transport::Tcp(ACK);

fn each(test: impl Fn(&mut Client)) {
    let mut rig = Rig::load(16, 16);
    for family in [V4, V6] {
        rig.fill(&with_slots(world(family, Mode::Ipip), LEARNING));
        test(&mut Client { rig: &mut rig, family });
    }
}

/// Likewise, for what is so unless a period ends in the middle, which cannot happen twice in a row.
fn each_within_a_period(test: impl Fn(&mut Client) -> bool) {
    each(|client| {
        let holds = (0..2).any(|_| {
            client.rig.fill(&with_slots(world(client.family, Mode::Ipip), LEARNING));
            test(client)
        });
        assert!(holds, "{:?}: not remembered", client.family);
    });
}

#[test]
fn a_flow_that_is_remembered_needs_no_entry() {
    each_within_a_period(|client| {
        assert_eq!(client.tcp(ACK), 2, "a running connection belongs to the backend before");
        client.lose_entry(TCP);
        client.set_slot(SETTLED);
        client.tcp(ACK) == 2 && client.entry(TCP).is_none()
    });
}

#[test]
fn another_table_voids_what_is_remembered() {
    each(|client| {
        assert_eq!(client.tcp(ACK), 2);
        client.lose_entry(TCP);
        client.set_slot(SETTLED);
        client.rig.renew();
        assert_eq!(client.tcp(ACK), 1);
    });
}

#[test]
fn a_new_connection_does_not_follow_the_old_one() {
    each(|client| {
        assert_eq!((client.tcp(ACK), client.tcp(ACK)), (2, 2));
        assert_eq!(client.tcp(SYN), 1);
        assert_eq!((client.tcp(ACK), client.tcp(ACK)), (1, 1));
    });
}

#[test]
fn a_connection_that_ends_is_not_remembered() {
    for end in [FIN | ACK, RST] {
        each(|client| {
            assert_eq!((client.tcp(ACK), client.tcp(end)), (2, 2));
            assert!(client.entry(TCP).is_some_and(|entry| entry.state & FlowEntry::ENDING != 0));
            client.lose_entry(TCP);
            client.set_slot(SETTLED);
            assert_eq!(client.tcp(ACK), 1);
        });
    }
}

#[test]
fn datagrams_are_remembered_from_the_second_one_on() {
    each_within_a_period(|client| {
        assert_eq!(client.send(Transport::Udp), 1);
        client.lose_entry(Transport::Udp);
        assert_eq!(client.send(Transport::Udp), 1);
        assert!(client.entry(Transport::Udp).is_some(), "half-open: made again");
        assert_eq!(client.send(Transport::Udp), 1);
        client.lose_entry(Transport::Udp);
        assert_eq!(client.send(Transport::Udp), 1);
        client.entry(Transport::Udp).is_none()
    });
}

#[test]
fn a_backend_that_is_gone_is_not_remembered() {
    let changes: [fn(&mut Backend); 3] =
        [|backend| backend.mode = 0, |backend| backend.flags = Backend::DOWN, |backend| backend.service += 1];
    for change in changes {
        each(|client| {
            assert_eq!(client.tcp(ACK), 2);
            let mut gone = backend(client.family, Mode::Ipip, 2);
            change(&mut gone);
            client.rig.set_backend(2, gone);
            assert_eq!(client.tcp(ACK), 1);
            client.rig.set_backend(2, backend(client.family, Mode::Ipip, 2));
            assert_eq!(client.tcp(ACK), 1, "it has another one now");
        });
    }
}

/// More flows than there are memos: each goes where its entry says, remembered or not.
#[test]
fn flows_that_drive_each_other_out_stay_where_they_are() {
    let mut rig = Rig::load(1024, 16);
    rig.fill(&with_slots(world(V4, Mode::Ipip), LEARNING));
    let frames: Vec<_> = (1000..2000)
        .map(|port| {
            let mut frame = request(V4, TCP);
            frame.src.set_port(port);
            frame
        })
        .collect();
    let goes_to = |rig: &Rig, index| {
        for frame in &frames {
            assert_eq!(rig.run(&frame.bytes()).bytes, tunnelled(V4, frame, index), "{}", frame.src);
        }
    };
    goes_to(&rig, 2);
    for frame in &frames {
        rig.set_slot(slot_index(frame), SETTLED);
    }
    goes_to(&rig, 2);
    goes_to(&rig, 2);
    assert_eq!(rig.flows().len(), frames.len());
}
