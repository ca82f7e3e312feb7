//! Sampled packets: what the kernel program puts into the ring buffer `events`, with the names of what the packets met.
use crate::{
    error::DatapathError,
    maps::{MapError, Maps, kernel::KernelMaps},
    state::endpoint_of,
    status::FlowEvent,
};
use aya::maps::{MapData, RingBuf};
use lb_bpf_common::{Addr, Event, Verdict};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::io::{Interest, unix::AsyncFd};

/// Events of one call, at most.
const LIMIT: usize = 256;

/// The events of a datapath, from the moment on when this was made. There is one of them at a time.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
    maps: KernelMaps,
    _turn: Turn,
}

/// Says whether there are [`Events`]: a ring buffer has one reader.
#[derive(Debug, Default)]
pub(crate) struct Reader(Arc<AtomicBool>);

/// Gives the place of the reader back.
struct Turn(Arc<AtomicBool>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Reader {
    /// Begins to read events; `maps` are the reader's own.
    pub(crate) fn open(&self, maps: KernelMaps) -> Result<Events, DatapathError> {
        if self.0.swap(true, Ordering::AcqRel) {
            return Err(DatapathError::EventsTaken);
        }
        let turn = Turn(self.0.clone());
        let mut ring = maps.events()?;
        // What is there is old.
        while ring.next().is_some() {}
        // SAFETY: the ring owns its descriptor, and keeps it until it is dropped.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        let ring = ring.map_err(|error| DatapathError::Events(error.into()))?;
        Ok(Events { ring, maps, _turn: turn })
    }
}

impl Events {
    /// The next events, at least one and at most 256 of them, in the order of the packets. May be cancelled and called
    /// again: no event is lost by that. The kernel program leaves out what does not fit, if nobody calls this.
    pub async fn next(&mut self) -> Result<Vec<FlowEvent>, DatapathError> {
        loop {
            let mut guard = self.ring.readable_mut().await.map_err(DatapathError::Events)?;
            let events = take(guard.get_inner_mut());
            if events.len() < LIMIT {
                guard.clear_ready();
            }
            if !events.is_empty() {
                let named = events.iter().map(|event| describe(&self.maps, interface, event));
                return Ok(named.collect::<Result<_, _>>()?);
            }
        }
    }
}

/// What is in the ring, up to the limit.
fn take(ring: &mut RingBuf<MapData>) -> Vec<Event> {
    let mut events = Vec::new();
    while events.len() < LIMIT
        && let Some(item) = ring.next()
    {
        events.extend(event_of(&item));
    }
    events
}

fn event_of(bytes: &[u8]) -> Option<Event> {
    let bytes: [u8; size_of::<Event>()] = bytes.try_into().ok()?;
    // SAFETY: same size, no padding (asserted in the ABI), and any bytes are an `Event`: all its fields are numbers.
    Some(unsafe { std::mem::transmute::<[u8; size_of::<Event>()], Event>(bytes) })
}

fn interface(index: u32) -> Option<String> {
    nix::net::if_::if_indextoname(index).ok()?.into_string().ok()
}

fn describe(
    maps: &impl Maps,
    interface: impl Fn(u32) -> Option<String>,
    event: &Event,
) -> Result<FlowEvent, MapError> {
    let endpoint = |addr: Addr, port: u16| SocketAddr::new(addr.into(), u16::from_be(port));
    let flow = &event.flow;
    let verdict = Verdict::ALL.get(event.verdict as usize).map_or("unknown", |verdict| verdict.label());
    let service = if event.service == 0 { None } else { maps.name(event.service)? };
    let is_filtered = event.verdict == Verdict::Filtered as u32;
    let backend = if event.backend == 0 || is_filtered { None } else { maps.backend(event.backend)? };
    let rule = event.backend.checked_sub(1).filter(|_| is_filtered);
    let filter = rule.map(|index| maps.filter_name(index)).transpose()?.flatten();
    Ok(FlowEvent {
        at_millis: event.time / 1_000_000,
        protocol: flow.proto,
        source: endpoint(flow.src, flow.src_port),
        destination: endpoint(flow.dst, flow.dst_port),
        verdict: verdict.to_owned(),
        service,
        backend: backend.as_ref().map(endpoint_of),
        filter,
        interface: interface(event.ifindex),
        bytes: event.bytes,
        new: event.flags & Event::NEW != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        maps::{
            Op, Sizes,
            fake::FakeMaps,
            kernel::tests::{kernel_maps_with, new_ring, put_into_ring},
        },
        service::ServiceKey,
    };
    use futures::FutureExt;
    use lb_bpf_common::{Backend, FlowKey, Mode, proto};
    use std::{iter, net::IpAddr};

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn an_event_has_the_names_of_what_the_packet_met() {
        let mut maps = FakeMaps::new(Sizes { slots: 1, ..Sizes::DEFAULT });
        let backend = Backend {
            addr: addr("2001:db8::5"),
            port: 8080_u16.to_be(),
            mode: Mode::Gue as u8,
            service: 3,
            ..Backend::default()
        };
        maps.apply(&Op::SetName(3, ServiceKey("web".into()))).unwrap();
        maps.apply(&Op::SetBackend(7, backend)).unwrap();
        let flow = FlowKey {
            src: addr("192.0.2.1"),
            dst: addr("203.0.113.1"),
            src_port: 4000_u16.to_be(),
            dst_port: 80_u16.to_be(),
            proto: proto::TCP,
            scope: 0,
            zero: [0; 2],
        };
        let event = Event {
            time: 5_999_999,
            flow,
            service: 3,
            backend: 7,
            verdict: Verdict::Encapsulated as u32,
            ifindex: 2,
            bytes: 74,
            flags: Event::NEW,
        };
        let name = |index: u32| (index == 2).then(|| "eth0".to_owned());
        let text = serde_json::to_value(describe(&maps, name, &event).unwrap()).unwrap();
        let wanted = serde_json::json!({
            "atMillis": 5, "protocol": 6, "source": "192.0.2.1:4000", "destination": "203.0.113.1:80",
            "verdict": "encapsulated", "service": "web", "backend": {"address": "2001:db8::5", "port": 8080},
            "filter": null, "interface": "eth0", "bytes": 74, "new": true,
        });
        assert_eq!(text, wanted);
        let gone = Event { service: 4, backend: 8, ifindex: 9, flags: 0, verdict: 9999, ..event };
        let gone = describe(&maps, name, &gone).unwrap();
        assert_eq!((gone.service, gone.backend, gone.interface, gone.new), (None, None, None, false));
        assert_eq!(gone.verdict, "unknown");
        maps.apply(&Op::SetFilterName(6, "bad-dns/version".into())).unwrap();
        let filtered = |backend| Event { service: 0, backend, verdict: Verdict::Filtered as u32, ..event };
        let rule = |backend| describe(&maps, name, &filtered(backend)).unwrap();
        assert_eq!(rule(7).filter.as_deref(), Some("bad-dns/version"), "the rule at index 6");
        assert_eq!((rule(7).backend, rule(8).filter, rule(0).filter), (None, None, None));
    }

    /// Needs root.
    #[tokio::test]
    async fn every_event_is_told_once_and_in_order() {
        let (ring, reader) = (new_ring(), Reader::default());
        let put = |millis: u32, times| {
            let mut event = [0; size_of::<Event>() / 4];
            event[0] = millis * 1_000_000;
            put_into_ring(&ring, &event, times);
        };
        let millis = |events: Result<Vec<FlowEvent>, DatapathError>| -> Vec<u64> {
            events.unwrap().iter().map(|event| event.at_millis).collect()
        };
        put(1, 3);
        let mut events = reader.open(kernel_maps_with(&ring)).unwrap();
        assert!(matches!(reader.open(kernel_maps_with(&ring)), Err(DatapathError::EventsTaken)));
        assert!(events.next().now_or_never().is_none(), "what was there before is not told");
        put(2, 200);
        put(3, 100);
        let wanted: Vec<u64> = iter::repeat_n(2, 200).chain(iter::repeat_n(3, 100)).collect();
        let first = millis(events.next().await);
        assert_eq!((first.len(), &first[..]), (LIMIT, &wanted[..LIMIT]));
        assert_eq!(millis(events.next().await), wanted[LIMIT..]);
        assert!(events.next().now_or_never().is_none());
        put(4, 1);
        assert_eq!(millis(events.next().await), [4]);
        put(5, 1);
        drop(events);
        let mut events = reader.open(kernel_maps_with(&ring)).unwrap();
        put(6, 1);
        assert_eq!(millis(events.next().await), [6]);
    }

    #[test]
    fn bytes_of_another_length_are_no_event() {
        let mut bytes = [0; size_of::<Event>()];
        bytes[..8].copy_from_slice(&7_u64.to_ne_bytes());
        assert_eq!(event_of(&bytes).unwrap().time, 7);
        assert_eq!(event_of(&bytes[1..]), None);
    }
}
