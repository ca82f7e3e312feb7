//! MetalLB (metallb.io): its pools, peers, advertisements, BFD profiles and communities.
//! <https://metallb.io/apis/>
use super::{Fields, Source, block, by_name, foreign, object};
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

/// What other objects name.
#[derive(Default)]
struct Named {
    bfd: BTreeMap<String, Value>,
    communities: BTreeMap<String, String>,
}

pub(super) fn translate(sources: Vec<Source>, left_out: &mut Vec<String>) -> Vec<Value> {
    let (mut named, mut rest, mut objects) = (Named::default(), Vec::new(), Vec::new());
    for mut source in sources {
        match source.kind.as_str() {
            "BFDProfile" => named.bfd(&mut source, left_out),
            "Community" => named.communities(&mut source, left_out),
            _ => rest.push(source),
        }
    }
    let mut routers = Routers::default();
    for mut source in rest {
        let label = source.label();
        let fields = Fields::new(&label, "spec", source.spec(), left_out);
        match source.kind.as_str() {
            "IPAddressPool" => objects.push(pool(&source, fields)),
            "BGPPeer" => objects.extend(peer(&source, fields, &named, &mut routers)),
            "BGPAdvertisement" => objects.push(advertisement(&source, fields, &named)),
            "Secret" => {
                drop(fields);
                source.tree.retain(|field, _| {
                    ["apiVersion", "kind", "type", "data", "stringData"].contains(&field.as_str())
                });
                source.tree.insert("metadata".into(), json!({"name": source.name}));
                objects.push(Value::Object(source.tree));
            }
            kind => {
                let reason = match kind {
                    "L2Advertisement" => "Fairlead announces by BGP only",
                    kind => foreign(kind),
                };
                fields.dismiss(reason);
            }
        }
    }
    objects.extend(routers.objects(left_out));
    objects
}

impl Named {
    fn bfd(&mut self, source: &mut Source, left_out: &mut Vec<String>) {
        let label = source.label();
        let mut fields = Fields::new(&label, "spec", source.spec(), left_out);
        fields.ignore("echoMode", false);
        fields.ignore("passiveMode", false);
        let bfd = json!({
            "minTxMillis": fields.number("transmitInterval").unwrap_or(300),
            "minRxMillis": fields.number("receiveInterval").unwrap_or(300),
            "multiplier": fields.number("detectMultiplier").unwrap_or(3),
        });
        self.bfd.insert(source.name.clone(), bfd);
    }

    fn communities(&mut self, source: &mut Source, left_out: &mut Vec<String>) {
        let label = source.label();
        let mut fields = Fields::new(&label, "spec", source.spec(), left_out);
        fields.each("communities", |mut alias| {
            if let (Some(name), Some(value)) = (alias.text("name"), alias.text("value")) {
                self.communities.insert(name, value);
            }
        });
    }
}

fn pool(source: &Source, mut fields: Fields<'_>) -> Value {
    let addresses = fields.texts("addresses");
    let mut reserved = Vec::new();
    if fields.take("avoidBuggyIPs") == json!(true) {
        reserved = buggy(&addresses);
    }
    let auto_assign = fields.take("autoAssign");
    let mut allocation = fields.below("serviceAllocation");
    // MetalLB takes the least number first, and those without one last.
    let priority =
        allocation.number("priority").filter(|p| *p > 0).map(|p| 1000_u64.saturating_sub(p).max(1));
    let mut namespaces = allocation.only("namespaceSelectors");
    let names = allocation.texts("namespaces");
    if !names.is_empty() && namespaces.is_null() {
        namespaces = json!({"matchExpressions": [
            {"key": "kubernetes.io/metadata.name", "operator": "In", "values": names}]});
    } else if !names.is_empty() {
        allocation.tell("namespaces", "has no counterpart beside namespaceSelectors");
    }
    let services = allocation.only("serviceSelectors");
    drop(allocation);
    let spec = json!({
        "blocks": addresses.iter().map(|text| block(text)).collect::<Vec<_>>(),
        "reserved": if reserved.is_empty() { Value::Null } else { json!(reserved) },
        "autoAssign": auto_assign,
        "priority": priority,
        "namespaceSelector": namespaces,
        "serviceSelector": services,
    });
    object("AddressPool", &source.name, source.labels.clone(), spec)
}

/// The addresses that end with .0 or .255, as prefixes, up to what a pool takes; the rest is refused there, and told.
fn buggy(addresses: &[String]) -> Vec<String> {
    const MOST: usize = 257;
    let mut found = BTreeSet::new();
    for text in addresses {
        let bounds = match text.split_once('-') {
            Some((start, stop)) => {
                start.trim().parse::<Ipv4Addr>().ok().zip(stop.trim().parse::<Ipv4Addr>().ok())
            }
            None => text.trim().parse::<Ipv4Net>().ok().map(|net| (net.network(), net.broadcast())),
        };
        let Some((first, last)) = bounds else { continue };
        let (first, last) = (u32::from(first), u32::from(last));
        let blocks = (first >> 8..=last >> 8).flat_map(|block| [block << 8, block << 8 | 255]);
        found.extend(blocks.filter(|address| (first..=last).contains(address)).take(MOST));
    }
    found.into_iter().take(MOST).map(|address| format!("{}/32", Ipv4Addr::from(address))).collect()
}

/// Speakers: MetalLB says at each peer which AS and which nodes.
#[derive(Default)]
struct Routers(BTreeMap<String, (Value, Vec<String>)>);

impl Routers {
    fn add(&mut self, router: Value, peer: &str) {
        self.0.entry(router.to_string()).or_insert((router, Vec::new())).1.push(peer.to_owned());
    }

    fn objects(self, left_out: &mut Vec<String>) -> Vec<Value> {
        let single = self.0.len() == 1;
        let mut nodes = BTreeSet::new();
        let clash = self.0.values().any(|(spec, _)| {
            let selector = &spec["nodeSelector"];
            selector.is_null() || !nodes.insert(selector.to_string())
        });
        if clash && !single {
            left_out.push(
                "BGPPeer: spec: myASN, routerID or nodeSelectors differ between peers of the same nodes: a node \
                 has one BGPRouter, the first by name"
                    .into(),
            );
        }
        let routers = self.0.into_values().enumerate();
        routers
            .map(|(number, (mut spec, peers))| {
                if !single {
                    spec["peerSelector"] = by_name(&peers);
                }
                object("BGPRouter", &format!("metallb-{number}"), json!({}), spec)
            })
            .collect()
    }
}

fn peer(source: &Source, mut fields: Fields<'_>, named: &Named, routers: &mut Routers) -> Vec<Value> {
    let mut objects = Vec::new();
    fields.ignore("disableMP", false);
    fields.ignore("dualStackAddressFamily", false);
    let dynamic = fields.text("dynamicASN").map(Value::from);
    let asn = fields.number("peerASN").filter(|asn| *asn > 0).map(Value::from).or(dynamic);
    let router = json!({
        "asn": fields.number("myASN"),
        "routerID": fields.text("routerID"),
        "nodeSelector": fields.only("nodeSelectors"),
    });
    routers.add(router, &source.name);
    let mut seconds = |field: &str| {
        let text = fields.text(field)?;
        let seconds = duration(&text);
        if seconds.is_none() {
            fields.tell(field, "is not a whole number of seconds");
        }
        seconds
    };
    let timers = json!({
        "holdSeconds": seconds("holdTime"),
        "keepaliveSeconds": seconds("keepaliveTime"),
        "connectRetrySeconds": seconds("connectTime"),
    });
    let mut secret = fields.below("passwordSecret");
    let (mut key, _) = (secret.text("name"), secret.text("namespace"));
    drop(secret);
    if let Some(password) = fields.text("password").filter(|password| !password.is_empty()) {
        let name = format!("{}-md5", source.name);
        objects.push(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"password": password}}));
        key = Some(name);
    }
    let bfd = fields.text("bfdProfile").filter(|profile| !profile.is_empty()).and_then(|profile| {
        let found = named.bfd.get(&profile).cloned();
        if found.is_none() {
            fields.tell("bfdProfile", "the BFDProfile is not in these files");
        }
        found
    });
    let spec = json!({
        "address": fields.text("peerAddress"),
        "interface": fields.text("interface"),
        "asn": asn,
        "port": fields.number("peerPort").filter(|port| *port > 0),
        "timers": timers,
        "auth": key.map(|name| json!({"md5SecretRef": {"name": name, "key": "password"}})),
        // MetalLB leaves the TTL to the kernel: 64.
        "ebgpMultihop": (fields.take("ebgpMultiHop") == json!(true)).then(|| json!({"ttl": 64})),
        // The restart time of FRR, which MetalLB leaves as it is (RFC 4724).
        "gracefulRestart": (fields.take("enableGracefulRestart") == json!(true)).then(|| json!({"seconds": 120})),
        "bfd": bfd,
    });
    objects.push(object("BGPPeer", &source.name, source.labels.clone(), spec));
    objects
}

/// Seconds of a duration as Go writes it, `1m30s`; none if it has other units or parts of seconds.
fn duration(text: &str) -> Option<u64> {
    let (mut total, mut digits) = (0_u64, String::new());
    for character in text.chars() {
        let unit = match character {
            '0'..='9' => {
                digits.push(character);
                continue;
            }
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        total = digits.parse::<u64>().ok()?.checked_mul(unit)?.checked_add(total)?;
        digits.clear();
    }
    digits.is_empty().then_some(total)
}

fn advertisement(source: &Source, mut fields: Fields<'_>, named: &Named) -> Value {
    let mut communities = Vec::new();
    for text in fields.texts("communities") {
        let text = named.communities.get(&text).cloned().unwrap_or(text);
        communities.push(text.strip_prefix("large:").unwrap_or(&text).to_owned());
    }
    let pools = fields.texts("ipAddressPools");
    let mut pool_selector = fields.only("ipAddressPoolSelectors");
    if !pools.is_empty() && !pool_selector.is_null() {
        fields.tell("ipAddressPools", "has no counterpart beside ipAddressPoolSelectors");
    } else if !pools.is_empty() {
        pool_selector = by_name(&pools);
    }
    let aggregate = json!({
        "ipv4": fields.number("aggregationLength").filter(|length| *length != 32),
        "ipv6": fields.number("aggregationLengthV6").filter(|length| *length != 128),
    });
    let spec = json!({
        "source": "LoadBalancer",
        "poolSelector": pool_selector,
        "serviceSelector": fields.only("serviceSelectors"),
        "nodeSelector": fields.only("nodeSelectors"),
        "peerSelector": by_name(&fields.texts("peers")),
        "aggregate": aggregate,
        "attributes": {
            "communities": if communities.is_empty() { Value::Null } else { json!(communities) },
            "localPref": fields.number("localPref").filter(|preference| *preference > 0),
        },
    });
    object("BGPAdvertisement", &source.name, source.labels.clone(), spec)
}
