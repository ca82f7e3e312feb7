//! Two clusters, each with its own API server and controller, share a pool over links that only read: each address is given once,
//! also while neither sees the other, and one VIP is given in both for the same service.
use super::{
    clusters::{condition, export, link, object, planes, reader, secret, wait_condition},
    store::{NAMESPACE, Process},
};
use lab::{
    Error,
    control_plane::{ControlPlane, Fault},
    wait_until,
};
use serde_json::Value;
use std::{collections::BTreeSet, fs};

const POOL: &str = "---\napiVersion: fairlead.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: vips}\n\
    spec: {blocks: [{cidr: 192.0.2.0/28}], clusters: [east, west]}\n";

fn service(name: &str, annotations: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop, annotations: {{{annotations}}}}}\n\
         spec: {{type: LoadBalancer, loadBalancerClass: fairlead.dev/lb, ports: [{{port: 80}}], allocateLoadBalancerNodePorts: false}}\n"
    )
}

fn services(plane: &ControlPlane, names: &[String]) -> Result<(), Error> {
    let all: String = names.iter().map(|name| service(name, "")).collect();
    plane.apply(&all).map(drop)
}

fn address(plane: &ControlPlane, service: &str) -> Result<Option<String>, Error> {
    let service = object(plane, "service", service)?;
    Ok(service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().map(str::to_owned))
}

/// Waits until all have an address.
fn addresses(plane: &ControlPlane, services: &[String]) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    let given = wait_until(&format!("{services:?} have addresses"), || {
        found = services.iter().map(|name| address(plane, name)).collect::<Result<Vec<_>, _>>()?;
        Ok(found.iter().all(Option::is_some))
    });
    given.map_err(|error| {
        format!("{error}; {found:?}; {:#}", object(plane, "addresspool", "vips").unwrap()["status"])
    })?;
    Ok(found.into_iter().flatten().collect())
}

fn named(prefix: &str, numbers: std::ops::Range<u8>) -> Vec<String> {
    numbers.map(|number| format!("{prefix}{number}")).collect()
}

/// West says of what it exports how it forwards packets to it, and east writes that where its nodes look for the ways to pods there.
fn the_mode_in_one_cluster_is_known_in_the_other(
    east: &ControlPlane,
    west: &ControlPlane,
) -> Result<(), Error> {
    west.apply(
        "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, \
          metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}, \
          endpoints: [{addresses: [10.2.0.1], nodeName: w1}], ports: [{port: 80, protocol: TCP}]}",
    )?;
    let slices = ["get", "endpointslices", "-n", "shop", "-o", "json", "-l"];
    let slices = [&slices[..], &["multicluster.kubernetes.io/source-cluster=west"]].concat();
    let wait_mode = |mode: &str| {
        wait_condition(west, "serviceexport", "web", ["fairlead.dev/Forwarding", "True", mode])?;
        let mut last = Value::Null;
        let known = wait_until(&format!("east knows that west has {mode}"), || {
            let list: Value = serde_json::from_str(&east.kubectl(&slices)?)?;
            let said = &list["items"][0]["metadata"]["annotations"]["fairlead.dev/delivery"];
            last = said.as_str().map_or(Ok(Value::Null), serde_json::from_str)?;
            Ok(last["mode"] == mode)
        });
        known.map_err(|error| Error::from(format!("{error}, but {last}")))
    };
    wait_mode("NAT")?;
    for mode in ["GUE", "L2"] {
        west.apply(&format!(
            "{{apiVersion: fairlead.dev/v1alpha1, kind: ServicePolicy, metadata: {{name: all}}, \
              spec: {{policy: {{forwarding: {{mode: {mode}}}}}}}}}"
        ))?;
        wait_mode(mode)?;
    }
    west.kubectl(&["delete", "servicepolicy", "all"])?;
    wait_mode("NAT")?;
    // What nobody balances is exported all the same, and says so.
    west.apply(
        &(service("plain", "").replace(", loadBalancerClass: fairlead.dev/lb", "") + &export("plain")),
    )?;
    let not_ours = ["fairlead.dev/Forwarding", "False", "NotBalanced"];
    wait_condition(west, "serviceexport", "plain", not_ours).map(drop)
}

#[test]
fn clusters_that_share_a_pool_give_each_address_once() -> Result<(), Error> {
    let [east, west] = planes()?;
    let (to_east, to_west) = (reader(&east)?, reader(&west)?);
    secret(&east, "west", &fs::read_to_string(to_west.kubeconfig())?)?;
    secret(&west, "east", &fs::read_to_string(to_east.kubeconfig())?)?;
    east.apply(&[POOL, &link("west", 600)].concat())?;
    west.apply(&[POOL, &link("east", 600)].concat())?;
    let rights = |plane: &ControlPlane| plane.kubeconfig_of(NAMESPACE, "fairlead-controller");
    let _controllers =
        [Process::controller_of("east", &rights(&east)?)?, Process::controller_of("west", &rights(&west)?)?];
    wait_condition(&east, "addresspool", "vips", ["Leased", "True", "Leased"])?;
    wait_condition(&west, "addresspool", "vips", ["Leased", "True", "Leased"])?;

    // Both at once.
    services(&east, &named("e", 0..4))?;
    services(&west, &named("w", 0..4))?;
    let mut given = addresses(&east, &named("e", 0..4))?;
    given.extend(addresses(&west, &named("w", 0..4))?);
    assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 8, "{given:?}");

    // The same VIP in both, for the same exported service, and for no other.
    let mut all = (0..16).map(|n| format!("192.0.2.{n}"));
    let vip = all.find(|vip| !given.contains(vip)).ok_or("all is given")?;
    let asks = service("web", &format!("fairlead.dev/addresses: {vip}"));
    for plane in [&east, &west] {
        plane.apply(&(asks.clone() + &export("web")))?;
    }
    for plane in [&east, &west] {
        assert_eq!(addresses(plane, &["web".to_owned()])?, [vip.as_str()]);
    }
    for plane in [&east, &west] {
        plane.apply(&asks.replace("name: web", "name: other"))?;
        wait_condition(plane, "service", "other", ["fairlead.dev/AddressAssigned", "False", "Conflict"])?;
        assert_eq!(address(plane, "other")?, None);
    }

    the_mode_in_one_cluster_is_known_in_the_other(&east, &west)?;

    // Cut off from each other both give what they hold, and then say why there is no more.
    for way in [&to_east, &to_west] {
        way.set(|_| Fault::Close);
        way.cut();
    }
    wait_condition(&east, "addresspool", "vips", ["Leased", "False", "ClusterUnreachable"])?;
    wait_condition(&west, "addresspool", "vips", ["Leased", "False", "ClusterUnreachable"])?;
    services(&east, &named("e", 4..12))?;
    services(&west, &named("w", 4..12))?;
    for (plane, last) in [(&east, "e11"), (&west, "w11")] {
        let said = wait_condition(
            plane,
            "service",
            last,
            ["fairlead.dev/AddressAssigned", "False", "PoolExhausted"],
        )?;
        assert!(said.contains("not leased to this cluster"), "{said}");
    }
    let assigned = |plane: &ControlPlane, names: &[String]| -> Result<Vec<String>, Error> {
        let all = names.iter().map(|name| address(plane, name)).collect::<Result<Vec<_>, _>>()?;
        Ok(all.into_iter().flatten().collect())
    };
    let mut all = assigned(&east, &named("e", 0..12))?;
    let of_east = all.len();
    all.extend(assigned(&west, &named("w", 0..12))?);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "{all:?}");
    assert!(of_east > 4 && all.len() - of_east > 4, "what was in reserve is given: {all:?}");

    // Healed, and with west needing less, east goes on.
    for name in named("w", 2..12) {
        west.kubectl(&["delete", "service", &name, "-n", "shop"])?;
    }
    for way in [&to_east, &to_west] {
        way.set(|_| Fault::None);
    }
    let mut all = addresses(&east, &named("e", 0..12))?;
    all.extend(addresses(&west, &named("w", 0..2))?);
    assert!(!all.contains(&vip));
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 14, "{all:?}");
    wait_condition(&west, "addresspool", "vips", ["Leased", "True", "Leased"])?;

    // A pool of the other cluster that nobody shares.
    let own = POOL.replace("vips", "own").replace(", clusters: [east, west]", "").replace("/28", "/30");
    let other = own.replace("own", "theirs");
    east.apply(&own.replace("192.0.2.0", "198.51.100.0"))?;
    west.apply(&other.replace("192.0.2.0", "198.51.100.2").replace("/30", "/31"))?;
    let said = wait_condition(&east, "addresspool", "own", ["Disjoint", "False", "OverlapAcrossClusters"])?;
    assert_eq!(said, "pool theirs of cluster west has 198.51.100.2-198.51.100.3, too (1 overlaps)");
    wait_condition(&west, "addresspool", "theirs", ["Disjoint", "False", "OverlapAcrossClusters"])?;
    let vips = object(&east, "addresspool", "vips")?;
    assert!(condition(&vips, "Disjoint").is_some_and(|(status, ..)| status == "True"), "{vips:#}");
    for way in [&to_east, &to_west] {
        assert!(!way.requests().iter().any(lab::control_plane::Request::is_write), "a link reads only");
    }
    Ok(())
}
