//! The decoder, and decode → encode → decode. The first octet is the context (bit 0: four-octet AS, bit 1: internal,
//! bit 2: IPv6 was not negotiated, bit 3: next hops of IPv6 for IPv4, bits 4 and 5: path identifiers of IPv4 and IPv6), the rest a message.
#![no_main]
use bgp_speaker::{
    config::Family,
    wire::{Context, Message, Update, decode, frame},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((flags, message)) = data.split_first() else { return };
    let mut context = Context {
        four_octet_as: flags & 1 != 0,
        internal: flags & 2 != 0,
        extended_next_hop: flags & 8 != 0,
        families: [Family::Ipv4Unicast].into(),
        ..Context::default()
    };
    if flags & 4 == 0 {
        context.families.insert(Family::Ipv6Unicast);
    }
    for (bit, family) in [(16, Family::Ipv4Unicast), (32, Family::Ipv6Unicast)] {
        if flags & bit != 0 {
            context.add_path_send.insert(family);
            context.add_path_receive.insert(family);
        }
    }
    match decode(message, &context) {
        Err(notification) => assert!(notification.data.len() <= message.len()),
        Ok(decoded) => {
            assert_eq!(frame(message, &context), Ok(Some(message)));
            again(&decoded.message, &context);
        }
    }
});

/// What was decoded can be written, unless it does not fit, and is then the same.
fn again(message: &Message, context: &Context) {
    let mut bytes = Vec::new();
    let Ok(count) = message.encode(context, &mut bytes) else { return };
    let mut rest = &bytes[..];
    let mut messages = Vec::new();
    while let Some(bytes) = frame(rest, context).expect("what was encoded has a header") {
        let decoded = decode(bytes, context).expect("what was encoded can be decoded");
        assert_eq!(decoded.errors, []);
        messages.push(decoded.message);
        rest = &rest[bytes.len()..];
    }
    assert_eq!((messages.len(), rest), (count, &[][..]));
    match (message, messages.as_slice()) {
        (Message::Update(update), []) => assert_eq!(*update, Update::default()),
        (message, [one]) => assert_eq!(one, message),
        // An UPDATE with withdrawn and announced routes, of two families: up to four messages.
        (Message::Update(update), several) => {
            let count = |update: &Update| {
                let announced = update.announced.iter().flat_map(|announced| &announced.reach);
                (update.withdrawn.len(), announced.map(|reach| reach.prefixes.len()).sum::<usize>())
            };
            let sum = several.iter().fold((0, 0), |(withdrawn, announced), message| match message {
                Message::Update(update) => (withdrawn + count(update).0, announced + count(update).1),
                other => panic!("{other:?}"),
            });
            assert_eq!(sum, count(update));
        }
        (message, messages) => panic!("{message:?} became {messages:?}"),
    }
}
