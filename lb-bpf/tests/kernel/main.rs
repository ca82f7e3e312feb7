//! The datapath in the real kernel: loaded, attached, pinned, adopted, in network namespaces made for the purpose.
//! Needs root, and `ip`, `ethtool`, `nsenter` and `unshare`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod fallback;
mod flood;
mod network;
mod redirect;
mod rules;
mod stream;
mod tc;
mod traffic;
mod upgrade;
mod v1;

use lb_bpf::{
    Datapath, DatapathError, Installed, Options, Sizes, TunnelSources, XdpMode,
    abi::Mode,
    service::{Decap, Desired, Endpoint, Frontend, Protocol, Rules, Scope, Service, ServiceKey, Target},
};
use network::{Network, run};
use std::{net::IpAddr, sync::Arc, time::Duration};

/// Much longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);

/// Room for all connections that a test makes, however long it takes: nothing sweeps.
const SIZES: Sizes =
    Sizes { vips: 64, slots: 1 << 16, backends: 256, flows: 1 << 16, decap: 64, ..Sizes::DEFAULT };

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn options(network: &Network) -> Options {
    Options {
        pin_dir: network.pin_dir.clone(),
        interfaces: vec!["lb0".into()],
        sizes: SIZES,
        tc_interfaces: vec![],
        tunnel_sources: TunnelSources::default(),
    }
}

fn service(vip: &str, port: u16, mode: Mode, backends: &[&str]) -> Service {
    let frontend = Frontend { address: ip(vip), protocol: Protocol::Tcp, port, scope: Scope::All };
    let target = Target { weight: 1, up: true, here: false };
    Service {
        frontends: [frontend].into(),
        mode,
        backends: backends.iter().map(|b| (Endpoint { address: ip(b), port }, target)).collect(),
        drain_seconds: 300,
        rules: Rules::default(),
    }
}

fn desired(services: &[(&str, Service)]) -> Desired {
    let services =
        services.iter().map(|(name, service)| (ServiceKey((*name).into()), Arc::new(service.clone())));
    Desired { services: services.collect(), ..Desired::default() }
}

/// Two services, one in each mode and family, with backends behind the peer.
fn both() -> Desired {
    desired(&[
        ("web/v4", service("203.0.113.10", 80, Mode::Ipip, &["10.0.0.2", "10.0.0.3"])),
        ("dns/v6", service("2001:db8:ffff::10", 53, Mode::Nat, &["2001:db8::2", "2001:db8::3"])),
    ])
}

/// The dump without what packets change: neighbour discovery goes on while the tests run, and the last packets of
/// connections that were closed come when they like.
fn held(datapath: &Datapath) -> String {
    let dump = datapath.dump().unwrap();
    let lines = dump.lines().filter(|line| !line.starts_with("verdict "));
    let lasting = |line: &str| [" state=", " seen="].iter().filter_map(|field| line.find(field)).min();
    lines.map(|line| format!("{}\n", &line[..lasting(line).unwrap_or(line.len())])).collect()
}

/// Installs, and again at every change, until all services have next hops.
async fn install_resolved(datapath: &mut Datapath, desired: &Desired) -> Arc<Installed> {
    let resolve = async {
        loop {
            let installed = datapath.install(desired).await.unwrap();
            let dump = held(datapath);
            if !dump.lines().any(|line| line.starts_with("backend ") && line.contains("unresolved")) {
                return installed;
            }
            datapath.changed().await;
        }
    };
    tokio::time::timeout(DEADLINE, resolve).await.expect("all next hops are resolved")
}

#[test]
fn a_process_that_comes_back_changes_nothing() {
    network::test(async |network| {
        let mut datapath = Datapath::open(options(network)).await.unwrap();
        let installed = install_resolved(&mut datapath, &both()).await;
        datapath.prune().await.unwrap();
        assert!(datapath.operations() > 0);
        assert_eq!(installed.interfaces[0].mode, XdpMode::Native);
        for (key, service) in &installed.services {
            assert_eq!(service.table_size, 1021, "{key}");
            assert_eq!(service.slots.values().sum::<u32>(), 1021, "{key}");
        }
        let before = held(&datapath);
        // No detaching: this is what a killed process leaves.
        drop(datapath);
        assert!(run("ip", &["-d", "link", "show", "lb0"]).contains("xdp"), "still attached");

        let mut datapath = Datapath::open(options(network)).await.unwrap();
        assert_eq!(datapath.installed(), installed, "found again, by name, before anything is asked for");
        assert_eq!(datapath.install(&both()).await.unwrap(), installed);
        datapath.prune().await.unwrap();
        assert_eq!(datapath.operations(), 0);
        assert_eq!(held(&datapath), before);
        datapath.detach().await.unwrap();
    });
}

#[test]
fn what_is_not_named_is_pruned_and_detaching_leaves_nothing() {
    network::test(async |network| {
        let mut datapath = Datapath::open(options(network)).await.unwrap();
        datapath.install(&both()).await.unwrap();
        let web = desired(&[("web/v4", Service::clone(&both().services[&ServiceKey("web/v4".into())]))]);
        datapath.install(&web).await.unwrap();
        assert!(held(&datapath).contains("2001:db8:ffff::10"), "make before break");
        datapath.prune().await.unwrap();
        assert!(!held(&datapath).contains("2001:db8:ffff::10"));
        assert!(held(&datapath).contains("203.0.113.10"));
        datapath.detach().await.unwrap();
        assert!(!network.pin_dir.exists(), "no pins");
        // The kernel lets go of a link some time after its last pin is gone.
        let detached = async {
            while run("ip", &["-d", "link", "show", "lb0"]).contains("xdp") {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, detached).await.expect("detached");
    });
}

#[test]
fn the_next_hop_follows_the_neighbour() {
    network::test(async |network| {
        let mut datapath = Datapath::open(options(network)).await.unwrap();
        install_resolved(&mut datapath, &both()).await;
        let old = network.peer_mac();
        assert!(held(&datapath).contains(&old));
        network.in_peer("ip", &["link", "set", "peer0", "address", "02:00:00:00:00:77"]);
        // The backend says something, so the host learns where it is now.
        network.in_peer("ping", &["-c", "1", "-W", "5", "10.0.0.1"]);
        network.in_peer("ping", &["-c", "1", "-W", "5", "2001:db8::1"]);
        let follow = async {
            while !held(&datapath).contains("02:00:00:00:00:77") {
                datapath.changed().await;
                datapath.install(&both()).await.unwrap();
            }
        };
        tokio::time::timeout(DEADLINE, follow).await.expect("the new address is installed");
        datapath.detach().await.unwrap();
    });
}

#[test]
fn a_neighbour_that_somebody_deletes_stays_the_next_hop() {
    network::test(async |network| {
        let mut datapath = Datapath::open(options(network)).await.unwrap();
        install_resolved(&mut datapath, &both()).await;
        run("ip", &["neigh", "flush", "all"]);
        let changed = tokio::time::timeout(DEADLINE, datapath.changed());
        changed.await.expect("it is noticed, to be asked for again");
        let installed = datapath.install(&both()).await.unwrap();
        assert!(installed.services.values().all(|service| service.resolved));
        assert!(held(&datapath).contains(&network.peer_mac()));
        datapath.detach().await.unwrap();
    });
}

#[test]
fn a_neighbour_that_somebody_wrote_down_is_left_alone() {
    network::test(async |network| {
        let mac = network.peer_mac();
        run("ip", &["neigh", "replace", "10.0.0.3", "lladdr", &mac, "nud", "permanent", "dev", "lb0"]);
        let mut datapath = Datapath::open(options(network)).await.unwrap();
        install_resolved(&mut datapath, &both()).await;
        assert!(run("ip", &["neigh", "show", "10.0.0.3", "dev", "lb0"]).contains("PERMANENT"));
        // Without its entry it is a neighbour like others, which has to be found.
        run("ip", &["neigh", "del", "10.0.0.3", "dev", "lb0"]);
        let changed = tokio::time::timeout(DEADLINE, datapath.changed());
        changed.await.expect("it is noticed, to be asked for");
        install_resolved(&mut datapath, &both()).await;
        let found = async {
            while !run("ip", &["neigh", "show", "10.0.0.3", "dev", "lb0"]).contains(&mac) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DEADLINE, found).await.expect("it is asked for");
        datapath.detach().await.unwrap();
    });
}

#[test]
fn a_backend_without_a_route_is_resolved_when_there_is_one() {
    network::test(async |network| {
        let mut datapath = Datapath::open(options(network)).await.unwrap();
        let far = desired(&[("far", service("203.0.113.20", 80, Mode::Nat, &["198.51.100.7"]))]);
        let installed = datapath.install(&far).await.unwrap();
        assert!(!installed.services[&ServiceKey("far".into())].resolved);
        run("ip", &["route", "add", "198.51.100.0/24", "via", "10.0.0.2"]);
        install_resolved(&mut datapath, &far).await;
        assert!(held(&datapath).contains(&network.peer_mac()));
        datapath.detach().await.unwrap();
    });
}

#[test]
fn an_interface_that_goes_down_takes_the_next_hops_with_it() {
    network::test(async |network| {
        let mut datapath = Datapath::open(options(network)).await.unwrap();
        let web = desired(&[("web", service("203.0.113.10", 80, Mode::Ipip, &["10.0.0.2", "10.0.0.3"]))]);
        install_resolved(&mut datapath, &web).await;
        run("ip", &["link", "set", "lb0", "down"]);
        let down = async {
            loop {
                datapath.changed().await;
                if !datapath.install(&web).await.unwrap().services[&ServiceKey("web".into())].resolved {
                    break;
                }
            }
        };
        tokio::time::timeout(DEADLINE, down).await.expect("no next hop is left");
        run("ip", &["link", "set", "lb0", "up"]);
        install_resolved(&mut datapath, &web).await;
        datapath.detach().await.unwrap();
    });
}

#[test]
fn vips_of_tunnel_ends_are_on_the_loopback_interface() {
    network::test(async |network| {
        run("ip", &["address", "add", "203.0.113.99/32", "dev", "lo"]);
        let mut datapath = Datapath::open(options(network)).await.unwrap();
        let ends = ["203.0.113.10", "2001:db8:ffff::10"].map(|vip| {
            let local = if vip.contains(':') { "2001:db8::1" } else { "10.0.0.1" };
            Decap { local: ip(local), vip: ip(vip), deliver: false }
        });
        let desired = Desired { decap: ends.into(), ..Desired::default() };
        for _ in 0..2 {
            datapath.install(&desired).await.unwrap();
            datapath.prune().await.unwrap();
            let addresses = run("ip", &["address", "show", "dev", "lo"]);
            assert!(addresses.contains("203.0.113.10/32") && addresses.contains("2001:db8:ffff::10/128"));
        }
        assert_eq!(held(&datapath).lines().filter(|line| line.starts_with("decap ")).count(), 2);
        datapath.install(&Desired::default()).await.unwrap();
        datapath.prune().await.unwrap();
        let addresses = run("ip", &["address", "show", "dev", "lo"]);
        assert!(!addresses.contains("203.0.113.10") && !addresses.contains("2001:db8:ffff::10"));
        assert!(addresses.contains("203.0.113.99"), "not ours, not removed");
        assert!(!held(&datapath).contains("decap "));
        datapath.detach().await.unwrap();
    });
}

#[test]
fn interfaces_without_native_xdp_are_attached_in_generic_mode() {
    network::test(async |network| {
        let options = Options { interfaces: vec!["lo".into()], ..options(network) };
        let datapath = Datapath::open(options).await.unwrap();
        assert_eq!(datapath.installed().interfaces[0].mode, XdpMode::Generic);
        datapath.detach().await.unwrap();
    });
}

#[test]
fn what_cannot_be_is_refused_with_a_reason() {
    network::test(async |network| {
        let no_such = Options { interfaces: vec!["nosuch0".into()], ..options(network) };
        let error = Datapath::open(no_such).await.err().unwrap();
        assert!(matches!(&error, DatapathError::NoInterface(name) if name == "nosuch0"), "{error}");

        let datapath = Datapath::open(options(network)).await.unwrap();
        let error = Datapath::open(options(network)).await.err().unwrap();
        assert!(matches!(error, DatapathError::InUse(_)), "{error}");
        let other = Options { pin_dir: network.pin_dir.join("other"), ..options(network) };
        let error = Datapath::open(other).await.err().unwrap();
        assert!(matches!(&error, DatapathError::InterfaceBusy(name) if name == "lb0"), "{error}");
        datapath.detach().await.ok();
    });
}

#[test]
fn an_interface_that_went_and_came_back_is_attached_again() {
    network::test(async |network| {
        drop(Datapath::open(options(network)).await.unwrap());
        run("ip", &["link", "delete", "lb0"]);
        network.make_link();
        let mut datapath = Datapath::open(options(network)).await.unwrap();
        assert_eq!(datapath.installed().interfaces[0].mode, XdpMode::Native);
        assert!(run("ip", &["-d", "link", "show", "lb0"]).contains("xdp"), "found dead by the next process");
        run("ip", &["link", "delete", "lb0"]);
        datapath.install(&both()).await.expect("nothing to attach to now");
        network.make_link();
        datapath.install(&both()).await.unwrap();
        assert!(run("ip", &["-d", "link", "show", "lb0"]).contains("xdp"), "found by the same process");
        datapath.detach().await.unwrap();
    });
}
