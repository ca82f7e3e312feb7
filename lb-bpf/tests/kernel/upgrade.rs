//! One version of the datapath replaces another under traffic.
use super::{held, options, v1};
use crate::{
    network::{Network, run},
    stream::{self, Traffic},
};
use lb_bpf::{
    Datapath, DatapathError, Options,
    abi::ABI_VERSION,
    service::{Endpoint, ServiceKey},
};
use std::fs;

/// The directories of pins that are there.
fn pinned(network: &Network) -> Vec<String> {
    let names = fs::read_dir(&network.pin_dir).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Id of the XDP program on `lb0`.
fn attached() -> String {
    let link = run("ip", &["-d", "link", "show", "lb0"]);
    let mut words = link.split_whitespace().skip_while(|word| *word != "prog/xdp");
    words.nth(2).expect("an XDP program").to_owned()
}

fn own() -> String {
    format!("v{ABI_VERSION}")
}

#[test]
fn version_1_is_replaced_and_no_packet_is_lost() {
    crate::network::test(async |network| {
        let _pass = stream::serve(network);
        v1::run(network, &stream::desired()).await;
        let traffic = Traffic::start(network);
        traffic.go_on();
        let program = attached();

        let mut datapath = Datapath::open(options(network)).await.unwrap();
        assert_ne!(attached(), program);
        assert_eq!(pinned(network), [own()]);
        traffic.go_on();
        let found = datapath.installed();
        assert_eq!(datapath.install(&stream::desired()).await.unwrap(), found);
        datapath.prune().await.unwrap();
        assert_eq!(datapath.operations(), 0, "all of it was taken over");
        let rounds = traffic.stop();

        let counters = datapath.counters().unwrap();
        let service = &counters.services[&ServiceKey("tunnel".into())];
        let packets = service[&Endpoint { address: super::ip("10.0.0.3"), port: 9001 }].packets;
        assert_eq!(packets, rounds[0], "those that version 1 has counted are there");
        let before = held(&datapath);
        drop(datapath);
        let datapath = Datapath::open(options(network)).await.unwrap();
        assert_eq!(held(&datapath), before);
        datapath.detach().await.unwrap();
        assert!(!network.pin_dir.exists(), "nothing is left");
    });
}

#[test]
fn a_replacement_that_breaks_off_is_finished_by_the_next_process() {
    crate::network::test(async |network| {
        let _pass = stream::serve(network);
        v1::run(network, &stream::desired()).await;
        let traffic = Traffic::start(network);
        traffic.go_on();
        let program = attached();
        let nosuch = Options { interfaces: vec!["lb0".into(), "nosuch0".into()], ..options(network) };
        let error = Datapath::open(nosuch).await.err().unwrap();
        assert!(matches!(&error, DatapathError::NoInterface(name) if name == "nosuch0"), "{error}");
        assert_ne!(attached(), program, "broken off with one interface done");
        assert_eq!(pinned(network), [format!("new-{}", own()), "v1".into()]);
        traffic.go_on();

        let mut datapath = Datapath::open(options(network)).await.unwrap();
        assert_eq!(pinned(network), [own()]);
        datapath.install(&stream::desired()).await.unwrap();
        assert_eq!(datapath.operations(), 0);
        traffic.go_on();
        drop(datapath);

        // Between the two renames, and before what is old was removed.
        for is_renamed in [false, true] {
            let path = |name: &str| network.pin_dir.join(name);
            fs::create_dir(path("old-v1")).unwrap();
            if !is_renamed {
                fs::rename(path(&own()), path(&format!("new-{}", own()))).unwrap();
            }
            let mut datapath = Datapath::open(options(network)).await.unwrap();
            assert_eq!(pinned(network), [own()]);
            datapath.install(&stream::desired()).await.unwrap();
            assert_eq!(datapath.operations(), 0);
            traffic.go_on();
        }
        traffic.stop();
    });
}

#[test]
fn a_version_that_cannot_be_read_forwards_until_it_is_replaced() {
    crate::network::test(async |network| {
        let _pass = stream::serve(network);
        let mut datapath = Datapath::open(options(network)).await.unwrap();
        super::install_resolved(&mut datapath, &stream::desired()).await;
        drop(datapath);
        let newer = format!("v{}", ABI_VERSION + 1);
        fs::rename(network.pin_dir.join(own()), network.pin_dir.join(&newer)).unwrap();
        let program = attached();
        let mut tunnel = stream::Tunnel::new(network, "203.0.113.20:9001");
        tunnel.send().unwrap();

        for _ in 0..2 {
            let datapath = Datapath::open(options(network)).await.unwrap();
            assert_eq!(*datapath.installed(), lb_bpf::Installed::default());
            assert_eq!(attached(), program, "there is nothing to replace it with");
            tunnel.send().unwrap();
        }
        let mut datapath = Datapath::open(options(network)).await.unwrap();
        let installed = datapath.install(&stream::desired()).await.unwrap();
        assert_eq!(installed.interfaces.len(), 1);
        assert_ne!(attached(), program);
        assert_eq!(pinned(network), [own()]);
        tunnel.send().unwrap();
        datapath.detach().await.unwrap();
        assert!(!network.pin_dir.exists(), "nothing is left");
    });
}
