//! What TCP connections are made with, against FRR and BIRD, over IPv4 and IPv6, dialled and accepted: GTSM, MD5 signatures, and
//! peers that only dial us.
use super::{
    harness::{
        Cable, OUR_ASN, ROUTER, ROUTER_ASN, ROUTER6, US, US6, global, peer, run, wait_for, wait_until, within,
    },
    routers::{Bird, Frr},
};
use bgp_speaker::{
    Handle, Md5Key,
    config::{Global, PeerAsn, PeerConfig, PeerRange, PeerStatus},
    spawn,
};
use ipnet::IpNet;

/// We listen on both addresses.
fn both_addresses() -> Global {
    let listen = [format!("{US}:179"), format!("[{US6}]:179")];
    Global { listen: listen.map(|address| address.parse().unwrap()).into(), ..global() }
}

/// The router over IPv4 and over IPv6.
fn both(change: impl Fn(&mut PeerConfig)) -> Vec<PeerConfig> {
    [(ROUTER, US), (ROUTER6, US6)]
        .map(|(address, local)| {
            let (address, local) = (address.parse().unwrap(), local.parse().unwrap());
            let mut config = PeerConfig { address, local_address: Some(local), ..peer() };
            change(&mut config);
            config
        })
        .into()
}

/// FRR with a session over each family; `lines` are for each neighbour, after its address.
fn frr(cable: &Cable, lines: &[&str]) -> Frr {
    let neighbor = |address: &str| -> String {
        let common = [&format!("remote-as {OUR_ASN}")[..], "timers 3 9", "timers connect 1"];
        let lines = common.iter().chain(lines).map(|line| format!(" neighbor {address} {line}\n"));
        lines.collect()
    };
    let sessions = neighbor(US) + &neighbor(US6);
    let config = format!(
        "router bgp {ROUTER_ASN}\n bgp router-id {ROUTER}\n no bgp ebgp-requires-policy\n{sessions} \
         address-family ipv6 unicast\n  neighbor {US6} activate\n exit-address-family\n"
    );
    Frr::launch(cable, &config)
}

fn bird_config(lines: &str) -> String {
    let session = |name: &str, local: &str, remote: &str| {
        format!(
            "protocol bgp {name} {{ local {local} as {ROUTER_ASN}; neighbor {remote} as {OUR_ASN};
  hold time 9; keepalive time 3; connect delay time 1; connect retry time 1; error wait time 1,2; {lines}
  ipv4 {{ import all; export none; }}; ipv6 {{ import all; export none; }}; }}\n"
        )
    };
    let sessions = session("v4", ROUTER, US) + &session("v6", ROUTER6, US6);
    format!("router id {ROUTER};\nprotocol device {{}}\n{sessions}")
}

/// BIRD with a session over each family; `lines` are for each.
fn bird(cable: &Cable, lines: &str) -> Bird {
    Bird::launch(cable, &bird_config(lines))
}

async fn speaker(peers: Vec<PeerConfig>) -> Handle {
    let speaker = spawn();
    speaker.set_global(both_addresses()).await.unwrap();
    speaker.set_peers(peers).await.unwrap();
    speaker
}

async fn wait_for_all(speaker: &Handle, what: &str, is_so: impl Fn(&PeerStatus) -> bool) {
    wait_for(what, || async { speaker.peers().await.iter().all(&is_so) }).await;
}

fn is_established(peer: &PeerStatus) -> bool {
    peer.state == "Established"
}

/// We dial, or the router does: what the other one needs is refused where it dials.
const NOBODY_LISTENS: u16 = 1;

#[test]
fn gtsm() {
    let secure = |config: &mut PeerConfig| config.ttl_security_hops = Some(1);
    let waits = |config: &mut PeerConfig| (config.ttl_security_hops, config.port) = (Some(1), NOBODY_LISTENS);
    for (passive, peers) in [(true, both(secure)), (false, both(waits))] {
        let cable = Cable::new();
        within(&cable.us, async {
            let lines = ["ttl-security hops 1", "passive"];
            let _router = frr(&cable, &lines[..1 + usize::from(passive)]);
            let speaker = speaker(peers.clone()).await;
            wait_for_all(&speaker, "FRR with GTSM", is_established).await;
        });
        let cable = Cable::new();
        within(&cable.us, async {
            let _router =
                bird(&cable, if passive { "ttl security on; passive;" } else { "ttl security on;" });
            let speaker = speaker(peers).await;
            wait_for_all(&speaker, "BIRD with GTSM", is_established).await;
        });
    }
}

/// A router without it sends with a TTL of 1, and is not heard.
#[test]
fn gtsm_on_one_side_alone() {
    let cable = Cable::new();
    within(&cable.us, async {
        let _router = bird(&cable, "passive;");
        let peers = both(|config| config.ttl_security_hops = Some(1));
        let speaker = speaker(peers).await;
        wait_until("BIRD repeats itself on both sessions", || {
            let shown = run("ip", &["netns", "exec", &cable.router, "ss", "-Htino", "sport", "=", ":179"]);
            shown.lines().filter(|line| line.contains("retrans:")).count() >= 2
        });
        assert!(speaker.peers().await.iter().all(|peer| peer.established_count == 0));
        // Without it on our side all is well: the change makes another session.
        speaker.set_peers(both(|_| ())).await.unwrap();
        wait_for_all(&speaker, "sessions without GTSM", is_established).await;
    });
}

fn key(text: &str) -> Option<Md5Key> {
    Some(Md5Key::new(text.as_bytes()).unwrap())
}

/// What a router is asked to use as its key from now on.
trait Signing {
    fn change_key(&self, cable: &Cable, key: &str);
}

impl Signing for Frr {
    fn change_key(&self, _: &Cable, key: &str) {
        let router = format!("router bgp {ROUTER_ASN}");
        for address in [US, US6] {
            self.show(&["configure terminal", &router, &format!("neighbor {address} password {key}")]);
        }
    }
}

impl Signing for Bird {
    fn change_key(&self, cable: &Cable, key: &str) {
        cable.file("bird.conf", &bird_config(&format!("password \"{key}\";")));
        self.ask("configure");
    }
}

/// Right key, key changed on both sides, key changed here alone, and back.
async fn signed<R: Signing>(cable: &Cable, router: R, port: u16) {
    let with = |text: &str| both(|config| (config.md5, config.port) = (key(text), port));
    let speaker = speaker(with("first")).await;
    wait_for_all(&speaker, "signed sessions", is_established).await;
    // A change ends nothing by itself.
    speaker.set_peers(with("second")).await.unwrap();
    assert!(speaker.peers().await.iter().all(is_established));
    // Whether the router starts anew or goes on: with the same key it is heard.
    router.change_key(cable, "second");
    wait_for_all(&speaker, "sessions with the second key", is_established).await;
    let before: u64 = speaker.peers().await.iter().map(|peer| peer.messages_received).sum();
    wait_for("messages with the second key", || async {
        let peers = speaker.peers().await;
        peers.iter().all(is_established)
            && peers.iter().map(|p| p.messages_received).sum::<u64>() >= before + 4
    })
    .await;
    // A peer that does not follow is lost when its hold time is over, and not heard any more.
    speaker.set_peers(with("third")).await.unwrap();
    wait_for_all(&speaker, "the wrong key", |peer| peer.state != "Established" && peer.last_error.is_some())
        .await;
    if port != NOBODY_LISTENS {
        wait_for_all(&speaker, "the reason", |peer| {
            peer.last_error
                .as_ref()
                .is_some_and(|error| error == "connection: no answer: the MD5 keys may differ")
        })
        .await;
    }
    speaker.set_peers(with("second")).await.unwrap();
    wait_for_all(&speaker, "sessions with the key of the router", is_established).await;
}

#[test]
fn signed_sessions_with_frr_that_we_dial() {
    let cable = Cable::new();
    within(&cable.us, signed(&cable, frr(&cable, &["password first", "passive"]), 179));
}

#[test]
fn signed_sessions_with_frr_that_it_dials() {
    let cable = Cable::new();
    within(&cable.us, signed(&cable, frr(&cable, &["password first"]), NOBODY_LISTENS));
}

#[test]
fn signed_sessions_with_bird() {
    let cable = Cable::new();
    within(&cable.us, signed(&cable, bird(&cable, "password \"first\";"), 179));
}

/// Without a key on one side nobody hears anybody.
#[test]
fn unsigned_peers_of_a_signer_stay_closed() {
    let cable = Cable::new();
    within(&cable.us, async {
        let _router = frr(&cable, &["password first"]);
        let speaker = speaker(both(|_| ())).await;
        wait_for_all(&speaker, "no answer", |peer| {
            peer.last_error.as_ref().is_some_and(|error| error == "connection: no answer")
        })
        .await;
        speaker.set_peers(both(|config| config.md5 = key("first"))).await.unwrap();
        wait_for_all(&speaker, "signed sessions", is_established).await;
    });
}

/// The router is nobody's peer but one of a range, over both families; the range has a key.
#[test]
fn ranges_with_a_key() {
    let ranges = |text: &str| {
        both(|config| config.md5 = key(text)).into_iter().map(|peer| {
            let prefix =
                IpNet::new(peer.address, if peer.address.is_ipv4() { 24 } else { 64 }).unwrap().trunc();
            let peer =
                PeerConfig { address: prefix.network(), asn: PeerAsn::External, local_address: None, ..peer };
            PeerRange { prefix, limit: 2, peer }
        })
    };
    let cable = Cable::new();
    within(&cable.us, async {
        let router = bird(&cable, "password \"first\";");
        let speaker = speaker(Vec::new()).await;
        speaker.set_ranges(ranges("first").collect()).await.unwrap();
        let are_up = |count: usize| {
            let speaker = speaker.clone();
            async move {
                let peers = speaker.peers().await;
                peers.len() == count && peers.iter().all(is_established)
            }
        };
        wait_for("members of both ranges", || are_up(2)).await;
        let established: Vec<_> = speaker.peers().await.iter().map(|peer| peer.address.to_string()).collect();
        assert_eq!(established, [ROUTER, ROUTER6]);
        // Another key: the sessions live until the router follows, and are there after it has.
        speaker.set_ranges(ranges("second").collect()).await.unwrap();
        assert!(are_up(2).await);
        router.change_key(&cable, "second");
        wait_for("members with the second key", || are_up(2)).await;
        drop(router);
        wait_for("members are forgotten", || async { speaker.peers().await.is_empty() }).await;
    });
}
