//! The NodeState of a running instance.
use super::{instance::Instance, rows::InstanceStatus};
use crate::{
    api::{
        NodeState,
        node_state::{InterfaceState, MapState, NodeStateSpec, NodeStateStatus, SessionState},
    },
    desired::peer_of,
    host,
    status::{Conditions, time},
    store::SharedStore,
    trouble::{Trouble, jittered},
};
use bgp_speaker::{PeerId, config::PeerStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use lb_bpf::{Installed, Sizes};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// How often it is looked whether there is something new to tell.
const PERIOD: Duration = Duration::from_secs(5);
/// It is written at least so often: see [`Nodes`](crate::store::objects::nodes::Nodes).
const HEARTBEAT: Duration = Duration::from_secs(30);
/// Longest time from a try that failed to the next; the first comes after [`PERIOD`], then each after twice as long.
const SLOWEST: Duration = Duration::from_secs(20);

/// Keeps the NodeState in the store as the node is, for ever.
pub(crate) async fn tell(instance: Instance, store: Arc<dyn SharedStore>) {
    let mut told: Option<(NodeState, Instant)> = None;
    let mut trouble = Trouble::default();
    loop {
        let mut state = instance.node_state().await;
        let is_told =
            |(before, at): &(NodeState, Instant)| *before == state && at.elapsed() + PERIOD < HEARTBEAT;
        let mut pause = PERIOD;
        if !told.as_ref().is_some_and(is_told) {
            let bare = state.clone();
            if let Some(status) = &mut state.status {
                status.heartbeat_time = Some(time(host::now()));
            }
            let owner = instance.view.borrow().declared.nodes.get(&instance.node).cloned();
            match store.publish_node(&state, owner.as_deref()).await {
                Ok(()) => {
                    told = Some((bare, Instant::now()));
                    trouble.over("the NodeState is written again");
                }
                Err(error) => {
                    pause = trouble.again(PERIOD, SLOWEST);
                    trouble.say("the NodeState is not written; it is tried again", &error);
                }
            }
        }
        sleep(jittered(pause)).await;
    }
}

/// What the instance says of itself. `before`: its conditions when it was asked last; `now`: seconds since 1970.
pub(super) fn node_state(
    status: &InstanceStatus,
    installed: Option<&Installed>,
    sizes: &Sizes,
    peers: &[PeerStatus],
    names: &BTreeMap<PeerId, String>,
    before: &[Condition],
    now: u64,
) -> NodeState {
    let mut conditions = Conditions::new(before, None, now);
    match &status.faults[..] {
        [] => conditions.set("Accepted", true, "Accepted", "the newest generation is in force"),
        [first, ..] => conditions.set("Accepted", false, "Invalid", first.clone()),
    }
    match &status.reasons[..] {
        [] if status.ready => conditions.set("Ready", true, "Ready", "a pass was complete"),
        reasons => conditions.set("Ready", false, "NotReady", reasons.join("; ")),
    }
    let interface = |interface: &super::rows::InterfaceRow| InterfaceState {
        name: interface.name.clone(),
        mode: interface.mode.clone(),
    };
    let session = |peer: &PeerStatus| SessionState {
        peer: peer.id().to_string(),
        name: peer_of(names, peer.id()).map(|(_, name)| name.clone()).unwrap_or_default(),
        state: peer.state.clone(),
        restart_state: peer.restart_state.clone(),
        bfd: peer.bfd.as_ref().map(|bfd| bfd.state.clone()),
        flap_count: number(peer.flap_count),
        prefixes_received: number(peer.prefixes_received),
        prefixes_sent: number(peer.prefixes_sent),
        last_error: peer.last_error.clone(),
    };
    let mut state = NodeState::new(&status.node, NodeStateSpec {});
    state.status = Some(NodeStateStatus {
        conditions: conditions.finish(),
        version: status.version.clone(),
        generation: number(status.generation),
        interfaces: status.interfaces.iter().map(interface).collect(),
        maps: installed.map(|installed| maps(installed, sizes)).unwrap_or_default(),
        sessions: peers.iter().map(session).collect(),
        ..NodeStateStatus::default()
    });
    state
}

fn maps(installed: &Installed, sizes: &Sizes) -> Vec<MapState> {
    let services = || installed.services.values();
    let map = |name: &str, used: usize, size: u32| MapState {
        name: name.to_owned(),
        used: number(used as u64),
        size: size.into(),
    };
    vec![
        map("backends", services().map(|service| service.slots.len()).sum(), sizes.backends),
        map("slots", services().map(|service| service.table_size as usize).sum(), sizes.slots),
        map("vips", services().map(|service| service.frontends.len()).sum(), sizes.vips),
    ]
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::rows::InterfaceRow;
    use imbl::OrdMap;
    use lb_bpf::{InstalledService, service::ServiceKey};

    #[test]
    fn a_node_says_how_it_is() {
        let status = InstanceStatus {
            node: "lb1".to_owned(),
            version: "0.1.0".to_owned(),
            ready: true,
            reasons: vec![],
            generation: 3,
            faults: vec!["bgp.yaml: document 1: spec.asn: is 0".to_owned()],
            passes: 7,
            pass_errors: 0,
            last_error: None,
            interfaces: vec![InterfaceRow { name: "eth0".to_owned(), mode: "Native".to_owned() }],
        };
        let peers: Vec<PeerStatus> =
            serde_json::from_str(include_str!("../../tests/cli/peers.json")).unwrap();
        let names = BTreeMap::from([("198.51.100.1".parse().unwrap(), "tor".to_owned())]);
        let service = InstalledService { table_size: 307, ..InstalledService::default() };
        let installed = Installed {
            services: OrdMap::unit(ServiceKey("LoadBalancer/web/http/ipv4".into()), service.into()),
            ..Installed::default()
        };
        let ask = |before: &[Condition], now| {
            node_state(&status, Some(&installed), &Sizes::DEFAULT, &peers, &names, before, now)
        };
        let state = ask(&[], 1_000);
        assert_eq!(state.metadata.name.as_deref(), Some("lb1"));
        let said = state.status.unwrap();
        let conditions: Vec<_> = said
            .conditions
            .iter()
            .map(|c| (c.type_.as_str(), c.status.as_str(), c.message.as_str()))
            .collect();
        assert_eq!(
            conditions,
            [
                ("Accepted", "False", "bgp.yaml: document 1: spec.asn: is 0"),
                ("Ready", "True", "a pass was complete")
            ]
        );
        assert_eq!((said.generation, said.interfaces[0].mode.as_str()), (3, "Native"));
        let slots = said.maps.iter().find(|map| map.name == "slots").unwrap();
        assert_eq!((slots.used, slots.size), (307, Sizes::DEFAULT.slots.into()));
        let session = &said.sessions[0];
        assert_eq!((session.name.as_str(), session.state.as_str()), ("tor", "Established"));
        assert_eq!((session.restart_state.as_str(), session.bfd.as_deref()), ("Helping", Some("Up")));
        assert_eq!((session.flap_count, session.prefixes_sent), (1, 2));
        // Asked again: the conditions are as old as they are.
        assert_eq!(ask(&said.conditions, 2_000).status.unwrap().conditions, said.conditions);
    }
}
