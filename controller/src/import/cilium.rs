//! Cilium (cilium.io): LB-IPAM and the BGP control plane of version 2.
//! <https://docs.cilium.io/en/stable/network/lb-ipam/>,
//! <https://docs.cilium.io/en/stable/network/bgp-control-plane/bgp-control-plane-configuration/>
use super::{Fields, Source, by_name, foreign, object};
use ipnet::IpNet;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What a CiliumBGPPeerConfig says: fields of a peer, and the labels of advertisements.
#[derive(Clone, Default)]
struct PeerConfig {
    spec: Value,
    advertisements: Vec<BTreeMap<String, String>>,
}

pub(super) fn translate(sources: Vec<Source>, left_out: &mut Vec<String>) -> Vec<Value> {
    let (mut configs, mut rest, mut objects) = (BTreeMap::new(), Vec::new(), Vec::new());
    for mut source in sources {
        if source.kind == "CiliumBGPPeerConfig" {
            let label = source.label();
            let config = peer_config(Fields::new(&label, "spec", source.spec(), left_out));
            configs.insert(source.name, config);
        } else {
            rest.push(source);
        }
    }
    // Peers before advertisements, which are told to those whose configuration selects them.
    rest.sort_by_key(|source| source.kind == "CiliumBGPAdvertisement");
    let mut hearers: Vec<(String, PeerConfig)> = Vec::new();
    for mut source in rest {
        let label = source.label();
        let fields = Fields::new(&label, "spec", source.spec(), left_out);
        match source.kind.as_str() {
            "CiliumLoadBalancerIPPool" => objects.push(pool(&source, fields)),
            "CiliumBGPClusterConfig" => objects.extend(cluster(&source, fields, &configs, &mut hearers)),
            "CiliumBGPAdvertisement" => objects.extend(advertisements(&source, fields, &hearers)),
            kind => fields.dismiss(foreign(kind)),
        }
    }
    objects
}

fn pool(source: &Source, mut fields: Fields<'_>) -> Value {
    let (mut blocks, mut reserved) = (Vec::new(), Vec::new());
    let ends_are_given = fields.text("allowFirstLastIPs").is_none_or(|word| word != "No");
    for list in ["blocks", "cidrs"] {
        fields.each(list, |mut block| {
            let (cidr, start, stop) = (block.text("cidr"), block.text("start"), block.text("stop"));
            let net = cidr.as_deref().and_then(|cidr| cidr.parse::<IpNet>().ok()).filter(|_| !ends_are_given);
            reserved.extend(
                net.into_iter()
                    .flat_map(|net| [net.network(), net.broadcast()])
                    .map(|a| IpNet::from(a).to_string()),
            );
            // One address is written as its start.
            let stop = stop.or_else(|| start.clone());
            blocks.push(json!({"cidr": cidr, "start": start, "stop": stop}));
        });
    }
    let spec = json!({
        "blocks": blocks,
        "reserved": if reserved.is_empty() { Value::Null } else { json!(reserved) },
        "serviceSelector": fields.take("serviceSelector"),
        "disabled": fields.take("disabled"),
    });
    object("AddressPool", &source.name, source.labels.clone(), spec)
}

fn peer_config(mut fields: Fields<'_>) -> PeerConfig {
    let mut transport = fields.below("transport");
    let port = transport.number("peerPort");
    drop(transport);
    let mut timers = fields.below("timers");
    let seconds = json!({
        "connectRetrySeconds": timers.number("connectRetryTimeSeconds"),
        "holdSeconds": timers.number("holdTimeSeconds"),
        "keepaliveSeconds": timers.number("keepAliveTimeSeconds"),
    });
    drop(timers);
    let mut restart = fields.below("gracefulRestart");
    let enabled = restart.take("enabled") == json!(true);
    let restart_seconds = restart.number("restartTimeSeconds").unwrap_or(120);
    drop(restart);
    let (mut families, mut advertisements) = (Vec::new(), Vec::new());
    fields.each("families", |mut family| {
        let (afi, safi) = (family.text("afi").unwrap_or_default(), family.text("safi").unwrap_or_default());
        families.push(format!("{afi}-{safi}"));
        let mut selector = family.below("advertisements");
        if let Value::Object(labels) = selector.take("matchLabels") {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            advertisements.push(labels.iter().map(|(key, value)| (key.clone(), text(value))).collect());
        }
    });
    let secret = fields.text("authSecretRef");
    let spec = json!({
        "port": port,
        "timers": seconds,
        "families": if families.is_empty() { Value::Null } else { json!(families) },
        "auth": secret.map(|name| json!({"md5SecretRef": {"name": name, "key": "password"}})),
        "ebgpMultihop": fields.number("ebgpMultihop").filter(|ttl| *ttl > 1).map(|ttl| json!({"ttl": ttl})),
        "gracefulRestart": enabled.then(|| json!({"seconds": restart_seconds})),
    });
    PeerConfig { spec, advertisements }
}

fn cluster(
    source: &Source,
    mut fields: Fields<'_>,
    configs: &BTreeMap<String, PeerConfig>,
    hearers: &mut Vec<(String, PeerConfig)>,
) -> Vec<Value> {
    let mut objects = Vec::new();
    let nodes = fields.take("nodeSelector");
    let mut number = 0;
    fields.each("bgpInstances", |mut instance| {
        number += 1;
        let name = instance.text("name").unwrap_or_default();
        if number > 1 {
            instance.dismiss_part(&format!(
                "a node has one speaker: of the instances of {} the first counts",
                source.label()
            ));
            return;
        }
        let mut peers = Vec::new();
        instance.each("peers", |mut peer| {
            let peer_name = format!("{}-{}", source.name, peer.text("name").unwrap_or_default());
            let mut reference = peer.below("peerConfigRef");
            // Older versions name group and kind.
            reference.take("group");
            reference.take("kind");
            let config = reference.text("name");
            drop(reference);
            let config = match config.map(|name| (configs.get(&name).cloned(), name)) {
                Some((Some(config), _)) => config,
                Some((None, name)) => {
                    peer.tell("peerConfigRef", &format!("CiliumBGPPeerConfig/{name} is not in these files"));
                    PeerConfig::default()
                }
                None => PeerConfig::default(),
            };
            let mut spec = config.spec.clone();
            spec["address"] = json!(peer.text("peerAddress"));
            spec["discover"] = discover(peer.below("autoDiscovery"));
            spec["asn"] = json!(peer.number("peerASN").filter(|asn| *asn > 0));
            hearers.push((peer_name.clone(), config));
            objects.push(object("BGPPeer", &peer_name, json!({}), spec));
            peers.push(peer_name);
        });
        let spec = json!({
            "asn": instance.number("localASN"),
            "listenPort": instance.number("localPort").unwrap_or(0),
            "nodeSelector": nodes,
            "peerSelector": by_name(&peers),
        });
        objects.push(object("BGPRouter", &format!("{}-{name}", source.name), source.labels.clone(), spec));
    });
    objects
}

/// Where a neighbour is found, if it is looked for.
fn discover(mut fields: Fields<'_>) -> Value {
    let Some(mode) = fields.text("mode") else { return Value::Null };
    // Older versions wrote it in small letters.
    if !["DefaultGateway", "default-gateway"].contains(&mode.as_str()) {
        fields.tell("mode", &format!("{mode} has no counterpart"));
        return Value::Null;
    }
    let mut gateway = fields.below("defaultGateway");
    if gateway.text("addressFamily").is_some_and(|family| family != "ipv4") {
        gateway.tell("addressFamily", "has no counterpart: the gateway of IPv4 comes first");
    }
    drop(gateway);
    json!("DefaultGateway")
}

fn advertisements(source: &Source, mut fields: Fields<'_>, hearers: &[(String, PeerConfig)]) -> Vec<Value> {
    let labels = |wanted: &BTreeMap<String, String>| {
        wanted.iter().all(|(key, value)| source.labels.get(key).and_then(Value::as_str) == Some(value))
    };
    let peers: Vec<_> = hearers
        .iter()
        .filter(|(_, config)| config.advertisements.iter().any(labels))
        .map(|(name, _)| name.clone())
        .collect();
    if peers.is_empty() {
        fields.dismiss("no peer in these files is told of it");
        return Vec::new();
    }
    let (mut objects, mut number) = (Vec::new(), 0);
    fields.each("advertisements", |mut entry| {
        let name = if number == 0 { source.name.clone() } else { format!("{}-{number}", source.name) };
        number += 1;
        let kind = entry.text("advertisementType").unwrap_or_default();
        let source_kind = match kind.as_str() {
            "Service" => "LoadBalancer",
            "PodCIDR" => "PodCIDR",
            _ => return entry.dismiss_part(&format!("advertisementType {kind} has no counterpart")),
        };
        let selector = entry.take("selector");
        if source_kind == "LoadBalancer" && selector.is_null() {
            // To Cilium that is no service, to us all of them.
            return entry.dismiss_part("a selector that is not there selects nothing");
        }
        let mut service = entry.below("service");
        for address in service.texts("addresses") {
            if address != "LoadBalancerIP" {
                service.tell("addresses", &format!("{address} has no counterpart"));
            }
        }
        let aggregate = json!({
            "ipv4": service.number("aggregationLengthIPv4"),
            "ipv6": service.number("aggregationLengthIPv6"),
        });
        drop(service);
        let mut attributes = entry.below("attributes");
        let mut communities = attributes.below("communities");
        let mut all = ["standard", "large", "wellKnown"].map(|field| communities.texts(field)).concat();
        // The name from before RFC 8326.
        all.iter_mut()
            .filter(|name| *name == "planned-shut")
            .for_each(|name| *name = "graceful-shutdown".into());
        drop(communities);
        let preference = attributes.number("localPreference");
        drop(attributes);
        let spec = json!({
            "source": source_kind,
            "serviceSelector": if source_kind == "LoadBalancer" { selector } else { Value::Null },
            "peerSelector": by_name(&peers),
            "aggregate": aggregate,
            "attributes": {
                "communities": if all.is_empty() { Value::Null } else { json!(all) },
                "localPref": preference,
            },
        });
        objects.push(object("BGPAdvertisement", &name, json!({}), spec));
    });
    objects
}
