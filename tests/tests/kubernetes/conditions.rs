//! Conditions of a cluster: what agents tell of their nodes comes out in the statuses of objects, and nobody else's words are
//! lost. The agents are the test: it writes NodeStates as they do.
use super::store::{Process, apply, balancer, get, plane, pool, service};
use controller::{
    api::{
        NodeState, NodeStateSpec, NodeStateStatus,
        node_state::{ObjectFault, SessionState},
    },
    declared::Declared,
    desired::{Report, desired},
    observed::{NodeInfo, Observed},
    status::time,
    store::{SharedStore, kubernetes::Role},
};
use lab::{Error, control_plane::ControlPlane, wait_until};
use lb_bpf::{Installed, InstalledService};
use serde_json::{Value, json};
use std::sync::Arc;

/// What an agent would say whose datapath has all that it wants.
fn state(declared: &Declared, name: &str, established: bool, heartbeat: u64) -> NodeStateStatus {
    let node = NodeInfo {
        name: name.to_owned(),
        addresses: ["10.0.0.9".parse().unwrap()].into(),
        ..NodeInfo::default()
    };
    let mut observed = Observed { node, now: heartbeat, ..Observed::default() };
    let datapath = desired(declared, &observed).datapath;
    let held = datapath.services.iter().map(|(key, service)| {
        let held =
            InstalledService { frontends: service.frontends.clone(), resolved: true, ..Default::default() };
        (key.clone(), Arc::new(held))
    });
    observed.installed = Arc::new(Installed { services: held.collect(), ..Installed::default() });
    if established {
        observed.established.insert("10.0.0.1".parse().unwrap());
    }
    let session = json!({"peer": "10.0.0.1", "name": "tor", "state": if established { "Established" } else { "Active" },
        "restartState": "Disabled", "flapCount": 0, "prefixesReceived": 0, "prefixesSent": 0});
    let mut state = NodeStateStatus {
        sessions: vec![serde_json::from_value::<SessionState>(session).unwrap()],
        heartbeat_time: Some(time(heartbeat)),
        ..NodeStateStatus::default()
    };
    Report::new(declared, &desired(declared, &observed).status, &[]).tell(&mut state);
    state
}

/// Status, reason and message of a condition.
fn said(plane: &ControlPlane, kind: &str, name: &str, type_: &str) -> Result<String, Error> {
    let objects = get(plane, kind)?;
    let object = objects.iter().find(|object| object["metadata"]["name"] == name).ok_or("it is gone")?;
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let text = |condition: &Value, field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    let said = conditions.iter().find(|condition| condition["type"] == type_);
    Ok(said.map_or_else(String::new, |said| {
        format!("{} {}: {}", text(said, "status"), text(said, "reason"), text(said, "message"))
    }))
}

#[test]
fn what_agents_tell_comes_out_in_conditions() -> Result<(), Error> {
    let plane = plane()?;
    let bgp = "apiVersion: fairlead.dev/v1alpha1\nkind: BGPRouter\nmetadata: {name: all}\nspec: {asn: 65010}\n---\n\
               apiVersion: fairlead.dev/v1alpha1\nkind: BGPPeer\nmetadata: {name: tor}\n\
               spec: {address: 10.0.0.1, asn: 65000}\n---\n\
               apiVersion: fairlead.dev/v1alpha1\nkind: BGPAdvertisement\nmetadata: {name: vips}\nspec: {}\n---\n\
               apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: n2}\n";
    apply(&plane, &[pool("192.0.2.0/28"), balancer("web"), service("shop", ""), bgp.to_owned()])?;
    // Others have conditions in the status of a Service, too.
    let other = json!({"status": {"conditions": [{"type": "example.com/Ready", "status": "True", "reason": "Other",
        "message": "of another controller", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    let patch = other.to_string();
    plane.kubectl(&["patch", "service", "shop", "--subresource=status", "--type=merge", "-p", &patch])?;
    let controller = Process::start(&plane.kubeconfig(), Role::Controller, "one", None)?;
    let agent = Process::start(&plane.kubeconfig(), Role::Agent, "n1", None)?;
    let mut heartbeat = 1;
    let mut tell = |wrong: Option<&str>| -> Result<(), Error> {
        heartbeat += 1;
        let declared = agent.last().ok_or("no snapshot")?;
        for node in ["n1", "n2"] {
            let mut object = NodeState::new(node, NodeStateSpec {});
            let mut state = state(&declared, node, wrong != Some(node), heartbeat);
            if wrong == Some(node) {
                let fault = |text: &str| text.to_owned();
                state.faults.push(ObjectFault {
                    object: fault("BGPPeer/tor"),
                    condition: fault("Accepted"),
                    reason: fault("Invalid"),
                    message: fault("there is no Secret/tor"),
                });
            }
            object.status = Some(state);
            let owner = declared.nodes.get(node).cloned();
            agent.block_on(agent.store.publish_node(&object, owner.as_deref()))?;
        }
        Ok(())
    };
    agent.wait("addresses are in effect", |declared| {
        let statuses = &declared.statuses;
        let given = [statuses.load_balancers.get("web"), statuses.services.get("default/shop")];
        given.into_iter().all(|status| status.is_some_and(|s| s.addresses.len() == 1))
    })?;
    // It listens first; the pages of the agents are of what they have by then.
    wait_until("services are programmed on both nodes", || {
        tell(None)?;
        let good = "True Installed: programmed on 2 of 2 nodes";
        Ok(said(&plane, "loadbalancers", "web", "Programmed")? == good
            && said(&plane, "services", "shop", "fairlead.dev/Programmed")? == good)
    })?;
    assert_eq!(
        said(&plane, "loadbalancers", "web", "Announced")?,
        "True Announced: announced from 2 of 2 nodes"
    );
    assert_eq!(
        said(&plane, "bgppeers", "tor", "Established")?,
        "True Established: 2 of 2 sessions established"
    );
    let router = get(&plane, "bgprouters")?;
    assert_eq!(router[0]["status"]["establishedSessions"], 2, "{router:?}");
    // NodeStates go with their Nodes.
    for (state, node) in get(&plane, "nodestates")?.iter().zip(get(&plane, "nodes")?) {
        assert_eq!(state["metadata"]["ownerReferences"][0]["uid"], node["metadata"]["uid"], "{state}");
    }
    // Every heartbeat is heard, and nothing is written that is as it was.
    let writes = controller.faults.writes();
    for _ in 0..3 {
        tell(None)?;
    }
    tell(Some("n2"))?;
    wait_until("one session is not there", || {
        let established = said(&plane, "bgppeers", "tor", "Established")?;
        Ok(established == "False NotEstablished: 1 of 2 sessions established; not on n2: Active")
    })?;
    assert!(controller.faults.writes() - writes < 8, "{} writes", controller.faults.writes() - writes);
    assert_eq!(said(&plane, "services", "shop", "example.com/Ready")?, "True Other: of another controller");
    Ok(())
}
