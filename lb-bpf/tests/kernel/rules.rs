//! What a filter, a source range and sampling do to packets, and what is told of them.
use super::{DEADLINE, install_resolved, options};
use crate::{network, stream};
use lb_bpf::{
    Datapath, DatapathError, Events, FlowEvent,
    filter::{Filter, FilterAction},
    service::{Desired, Endpoint, ServiceKey},
};
use std::{collections::BTreeSet, net::UdpSocket, num::NonZeroU32, sync::Arc, time::Instant};

/// The next event with this verdict.
async fn event(events: &mut Events, verdict: &str) -> FlowEvent {
    let find = async {
        loop {
            let found = events.next().await.unwrap().into_iter().find(|event| event.verdict == verdict);
            if let Some(found) = found {
                return found;
            }
        }
    };
    tokio::time::timeout(DEADLINE, find).await.unwrap_or_else(|_| panic!("an event {verdict}"))
}

fn wait_until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "too late");
        std::thread::yield_now();
    }
}

#[test]
fn rules_are_in_force_and_packets_are_told() {
    network::test(async |network| {
        let _pass = stream::serve(network);
        let (key, desired) = (ServiceKey("datagrams".into()), stream::desired());
        let mut datapath = Datapath::open(options(network)).await.unwrap();
        install_resolved(&mut datapath, &desired).await;
        datapath.set_sampling(NonZeroU32::new(1)).unwrap();
        let mut events = datapath.events().unwrap();
        assert!(matches!(datapath.events(), Err(DatapathError::EventsTaken)));
        let client = network.inside_peer(|| UdpSocket::bind("10.0.0.2:0").unwrap());
        client.connect("203.0.113.10:9000").unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        let answered = || {
            client.send(b"?").unwrap();
            client.recv(&mut [0; 8]).unwrap();
        };

        answered();
        let sent = event(&mut events, "translated").await;
        assert_eq!(
            (sent.source, sent.destination),
            (client.local_addr().unwrap(), client.peer_addr().unwrap())
        );
        assert_eq!(sent.service.as_ref(), Some(&key));
        let endpoint = Endpoint { address: super::ip("10.0.0.3"), port: 9000 };
        assert_eq!((sent.backend, sent.interface.as_deref(), sent.new), (Some(endpoint), Some("lb0"), true));

        let filter = Filter {
            protocol: Some(17),
            destination: Some("203.0.113.10/32".parse().unwrap()),
            destination_ports: Some((9000, 9000)),
            ..Filter::new(FilterAction::Drop)
        };
        let filtered = Desired { filters: [("death".to_owned(), filter)].into(), ..desired.clone() };
        let start = Instant::now();
        datapath.install(&filtered).await.unwrap();
        println!("a filter was installed in {:?}", start.elapsed());
        let installed = datapath.installed();
        assert_eq!(installed.filters, BTreeSet::from(["death".to_owned()]));
        client.send(b"?").unwrap();
        let count = || datapath.counters().unwrap().filters["death"].packets;
        wait_until(|| count() > 0);
        assert_eq!(count(), 1);
        let told = event(&mut events, "filtered").await;
        assert_eq!((told.filter.as_deref(), told.backend, told.service), (Some("death"), None, None));

        let mut denied = desired.clone();
        let service = Arc::make_mut(denied.services.get_mut(&key).unwrap());
        service.rules.deny.insert("10.0.0.0/8".parse().unwrap());
        datapath.install(&denied).await.unwrap();
        datapath.prune().await.unwrap();
        client.send(b"?").unwrap();
        assert_eq!(event(&mut events, "source_denied").await.service.as_ref(), Some(&key));
        let counters = datapath.counters().unwrap();
        assert_eq!(counters.drops[&key]["source_denied"].packets, 1);
        assert!(counters.filters.is_empty());

        // The process before is gone, and with it whoever read events.
        drop((datapath, events));
        let mut datapath = Datapath::open(options(network)).await.unwrap();
        assert!(datapath.dump().unwrap().contains("sampleMask=0"));
        datapath.install(&denied).await.unwrap();
        assert_eq!(datapath.operations(), 0);
        datapath.install(&desired).await.unwrap();
        answered();
        datapath.detach().await.unwrap();
    });
}
