//! What XDP cannot take: packets of this host itself, and interfaces that TC is attached to.
use super::{install_resolved, options};
use crate::{
    network::run,
    stream::{self, Tunnel},
};
use lb_bpf::{Datapath, Installed, Options, XdpMode};
use std::{net::UdpSocket, time::Duration};
use tokio::time::timeout;

#[test]
fn packets_of_this_host_are_balanced_where_they_leave() {
    crate::network::test(async |network| {
        let mut datapath = Datapath::open(options(network)).await.unwrap();
        install_resolved(&mut datapath, &stream::desired()).await;
        run("ip", &["route", "add", "203.0.113.0/24", "via", "10.0.0.2"]);
        let client = UdpSocket::bind("10.0.0.1:0").unwrap();
        client.connect("203.0.113.20:9001").unwrap();
        let mut tunnel = Tunnel::from(network, client);
        tunnel.send().unwrap();
        drop(datapath);
        tunnel.send().unwrap();
        let datapath = Datapath::open(options(network)).await.unwrap();
        tunnel.send().unwrap();
        datapath.detach().await.unwrap();
        assert!(!network.pin_dir.exists());
    });
}

#[test]
fn packets_that_tc_takes_are_balanced() {
    crate::network::test(async |network| {
        network.in_peer("ip", &["route", "add", "203.0.113.0/24", "via", "10.0.0.1"]);
        let options = Options { interfaces: vec![], tc_interfaces: vec!["lb0".into()], ..options(network) };
        let mut datapath = Datapath::open(options.clone()).await.unwrap();
        let installed = install_resolved(&mut datapath, &stream::desired()).await;
        assert_eq!(installed.interfaces[0].mode, XdpMode::TcIngress);
        assert!(!run("ip", &["-d", "link", "show", "lb0"]).contains("xdp"));
        let mut tunnel = Tunnel::new(network, "203.0.113.20:9001");
        tunnel.send().unwrap();

        run("ip", &["link", "delete", "lb0"]);
        network.make_link();
        network.in_peer("ip", &["route", "add", "203.0.113.0/24", "via", "10.0.0.1"]);
        install_resolved(&mut datapath, &stream::desired()).await;
        let mut tunnel = Tunnel::new(network, "203.0.113.20:9001");
        tunnel.send().expect("attached again");
        drop(datapath);

        // XDP from now on: TC does not see packets twice.
        let options = Options { interfaces: vec!["lb0".into()], tc_interfaces: vec![], ..options };
        let _pass = super::traffic::pass_in_peer(network);
        let datapath = Datapath::open(options).await.unwrap();
        assert_eq!(datapath.installed().interfaces[0].mode, XdpMode::Native);
        assert!(!network.pin_dir.join("v2/tc-in-lb0").exists());
        tunnel.send().unwrap();
        datapath.detach().await.unwrap();
    });
}

/// The first interface is there when the datapath is opened, the second one comes later, and goes.
#[test]
fn interfaces_of_pods_come_and_go() {
    crate::network::test(async |network| {
        let options = Options { interfaces: vec![], tc_interfaces: vec!["lb*".into()], ..options(network) };
        let mut datapath = Datapath::open(options.clone()).await.unwrap();
        let installed = install_resolved(&mut datapath, &stream::desired()).await;
        let names = |installed: &Installed| -> Vec<String> {
            installed.interfaces.iter().map(|interface| interface.name.clone()).collect()
        };
        assert_eq!(names(&installed), ["lb0"]);
        run("ip", &["link", "add", "lb1", "type", "veth", "peer", "name", "other"]);
        let deadline = Duration::from_secs(30);
        timeout(deadline, datapath.changed()).await.expect("told of the new interface");
        assert_eq!(names(&datapath.install(&stream::desired()).await.unwrap()), ["lb0", "lb1"]);
        network.in_peer("ip", &["route", "add", "203.0.113.0/24", "via", "10.0.0.1"]);
        let mut tunnel = Tunnel::new(network, "203.0.113.20:9001");
        tunnel.send().unwrap();

        run("ip", &["link", "delete", "lb1"]);
        timeout(deadline, datapath.changed()).await.expect("told that it is gone");
        assert_eq!(names(&datapath.install(&stream::desired()).await.unwrap()), ["lb0"]);
        assert!(!network.pin_dir.join("v2/tc-in-lb1").exists());
        drop(datapath);
        let datapath = Datapath::open(options).await.unwrap();
        assert_eq!(names(&datapath.installed()), ["lb0"]);
        tunnel.send().unwrap();
        datapath.detach().await.unwrap();
    });
}
