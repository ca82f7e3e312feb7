//! Scenarios as text: what users wrote and what the node observes go in; services, routes and statuses come out.
//!
//! A file is a sequence of steps. A section `-- NAME.yaml --` writes that file of the configuration directory (an
//! empty one removes it), `-- observed --` says what the node observes from then on, and `-- expected --` lets the
//! node settle and compares. `FAIRLEAD_REWRITE=1 cargo test -p controller --test scenarios` writes what comes out
//! into the files, for a person to judge.
#![expect(clippy::unwrap_used, reason = "a test may stop")]
use bgp_speaker::PeerId;
use bgp_speaker::config::{ExportPolicy, ImportFilter, PeerAsn, Route};
use controller::{
    api::Community,
    declared::Declared,
    desired::{Desired, Draft, HealthPort},
    observed::{Failure, Health, NodeInfo, Observed},
    status::StatusSet,
    validate::parse_directory,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use lb_bpf::{
    Counter, Installed, InstalledService,
    filter::Filter,
    service::{self, Endpoint, Rules, Scope, ServiceKey},
};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

#[test]
fn all_scenarios() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let rewrite = std::env::var_os("FAIRLEAD_REWRITE").is_some();
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 22, "{} scenarios only", files.len());
    let mut wrong = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let played = play(&name, &text);
        if played == text {
            continue;
        }
        if rewrite {
            fs::write(&file, played).unwrap();
        } else {
            wrong.push(format!("{name}:\n{}", difference(&text, &played)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Facts that a scenario states. What it does not state stays as it was.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Facts {
    node: Option<String>,
    addresses: Option<BTreeSet<IpAddr>>,
    gateway: Option<IpAddr>,
    /// Health by endpoint: `healthy`, `refused` or `timeout`. What is not named was not checked yet.
    health: Option<BTreeMap<SocketAddr, String>>,
    established: Option<BTreeSet<PeerId>>,
    /// Services that the datapath cannot install.
    refused: Option<BTreeSet<String>>,
    /// Services whose backends have no next hop.
    unresolved: Option<BTreeSet<String>>,
    /// Packets of 100 bytes that rules of packet filters matched.
    matched: Option<BTreeMap<String, u64>>,
    now: Option<u64>,
}

#[derive(Default)]
struct World {
    files: BTreeMap<PathBuf, String>,
    health: BTreeMap<SocketAddr, String>,
    refused: BTreeSet<String>,
    unresolved: BTreeSet<String>,
    matched: BTreeMap<String, u64>,
    statuses: StatusSet,
    observed: Observed,
}

/// Plays all steps; the text with what came out in place of what is expected.
fn play(name: &str, text: &str) -> String {
    let mut world = World {
        observed: Observed {
            node: NodeInfo {
                name: "lb1".into(),
                addresses: BTreeSet::from(["10.0.0.2".parse().unwrap()]),
                gateway: None,
            },
            established: BTreeSet::from(["10.0.0.1".parse().unwrap()]),
            now: 1_000_000,
            ..Observed::default()
        },
        ..World::default()
    };
    let mut out = String::new();
    let mut checks = 0;
    for section in sections(text) {
        match section.name {
            None => out += section.text,
            Some("observed") => {
                world
                    .observe(serde_yaml_ng::from_str(section.text).unwrap_or_else(|e| panic!("{name}: {e}")));
                write!(out, "-- observed --\n{}", section.text).unwrap();
            }
            Some("expected") => {
                checks += 1;
                // A comment may follow, after an empty line.
                let end = if section.text.starts_with('\n') {
                    0
                } else {
                    section.text.find("\n\n").map_or(usize::MAX, |at| at + 1)
                };
                let comment = section.text.get(end..).unwrap_or_default();
                write!(out, "-- expected --\n{}{comment}", world.settle(name)).unwrap();
            }
            Some(file) => {
                assert!(file.ends_with(".yaml"), "{name}: {file} is no section");
                world.files.insert(file.into(), section.text.to_owned());
                write!(out, "-- {file} --\n{}", section.text).unwrap();
            }
        }
    }
    assert!(checks > 0, "{name} expects nothing");
    out
}

struct Section<'a> {
    name: Option<&'a str>,
    text: &'a str,
}

fn sections(text: &str) -> Vec<Section<'_>> {
    let mut sections = Vec::new();
    let (mut name, mut start, mut offset) = (None, 0, 0);
    for line in text.split_inclusive('\n') {
        let header = line.trim_end().strip_prefix("-- ").and_then(|rest| rest.strip_suffix(" --"));
        if header.is_some() {
            sections.push(Section { name, text: &text[start..offset] });
            (name, start) = (header, offset + line.len());
        }
        offset += line.len();
    }
    sections.push(Section { name, text: &text[start..] });
    sections
}

impl World {
    fn observe(&mut self, facts: Facts) {
        let Facts { node, addresses, gateway, health, established, refused, unresolved, matched, now } =
            facts;
        let observed = &mut self.observed;
        observed.node.name = node.unwrap_or(std::mem::take(&mut observed.node.name));
        observed.node.gateway = gateway.or(observed.node.gateway);
        observed.node.addresses = addresses.unwrap_or(std::mem::take(&mut observed.node.addresses));
        observed.established = established.unwrap_or(std::mem::take(&mut observed.established));
        observed.now = now.unwrap_or(observed.now);
        self.health = health.unwrap_or(std::mem::take(&mut self.health));
        self.refused = refused.unwrap_or(std::mem::take(&mut self.refused));
        self.unresolved = unresolved.unwrap_or(std::mem::take(&mut self.unresolved));
        self.matched = matched.unwrap_or(std::mem::take(&mut self.matched));
    }

    /// Makes passes until nothing changes.
    fn settle(&mut self, name: &str) -> String {
        self.files.retain(|_, text| !text.trim().is_empty());
        let declared = match parse_directory(&self.files) {
            Ok(declared) => declared,
            Err(faults) => {
                panic!("{name}: {}", faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
            }
        };
        let mut before: Option<Desired> = None;
        for _ in 0..10 {
            let declared = Declared { statuses: self.statuses.clone(), ..declared.clone() };
            let observed = self.observed.clone();
            let draft = Draft::new(&declared, &observed);
            self.check(draft.targets());
            self.install(draft.datapath());
            let desired = draft.finish(&self.observed.installed);
            self.statuses = (*desired.status).clone();
            if before.as_ref() == Some(&desired) {
                return dump(&desired);
            }
            before = Some(desired);
        }
        panic!("{name}: does not settle");
    }

    fn check(&mut self, targets: &controller::observed::Targets) {
        let health = |endpoint: &Endpoint| {
            let health = self.health.get(&SocketAddr::new(endpoint.address, endpoint.port))?;
            Some(match health.as_str() {
                "healthy" => Health::Healthy,
                "refused" => Health::Unhealthy(Failure::Io(io::ErrorKind::ConnectionRefused)),
                "timeout" => Health::Unhealthy(Failure::TimedOut),
                other => panic!("{other} is no health"),
            })
        };
        let of_check = |endpoints: &BTreeSet<Endpoint>| {
            endpoints.iter().filter_map(|endpoint| Some((*endpoint, health(endpoint)?))).collect()
        };
        let healths = targets.iter().map(|(check, endpoints)| (check.clone(), of_check(endpoints)));
        self.observed.health = Arc::new(healths.collect());
    }

    /// A datapath that gives every backend that is up as many slots as its weight.
    fn install(&mut self, desired: &service::Desired) {
        let before = self.observed.installed.clone();
        let mut installed = Installed::default();
        for (key, service) in &desired.services {
            if self.refused.contains(&*key.0) {
                if let Some(held) = before.services.get(key) {
                    installed.services.insert(key.clone(), held.clone());
                }
                continue;
            }
            let slots = service.backends.iter().map(|(e, t)| (*e, if t.up { t.weight.into() } else { 0 }));
            let slots: BTreeMap<Endpoint, u32> = slots.collect();
            let held = InstalledService {
                frontends: service.frontends.clone(),
                table_size: slots.values().sum(),
                resolved: slots.values().any(|slots| *slots > 0) && !self.unresolved.contains(&*key.0),
                slots,
            };
            installed.services.insert(key.clone(), Arc::new(held));
        }
        let held = desired.filters.keys().filter(|rule| !self.refused.contains(*rule));
        installed.filters = held.cloned().collect();
        let counter = |rule: &String| {
            let packets = self.matched.get(rule).copied().unwrap_or(0);
            Counter { packets, bytes: packets * 100, flows: 0 }
        };
        let counters = installed.filters.iter().map(|rule| (rule.clone(), counter(rule)));
        self.observed.filters = Arc::new(counters.collect());
        self.observed.installed = Arc::new(installed);
    }
}

fn dump(desired: &Desired) -> String {
    let mut out = String::from("services\n");
    for (ServiceKey(key), service) in &desired.datapath.services {
        let frontends: Vec<_> = service
            .frontends
            .iter()
            .map(|f| {
                let local = if f.scope == Scope::Local { " local" } else { "" };
                format!("{}/{:?}", SocketAddr::new(f.address, f.port), f.protocol).to_uppercase() + local
            })
            .collect();
        let mode = lb_bpf::service::mode_label(service.mode);
        let drain = service.drain_seconds;
        writeln!(out, "  {key}: {} {mode}, drain {drain} s", frontends.join(" ")).unwrap();
        write_rules(&service.rules, &mut out);
        for (endpoint, target) in &service.backends {
            let up = if target.up { "up" } else { "down" };
            let here = if target.here { " here" } else { "" };
            let address = SocketAddr::new(endpoint.address, endpoint.port);
            writeln!(out, "    {address} weight {} {up}{here}", target.weight).unwrap();
        }
    }
    for decap in &desired.datapath.decap {
        let pods = if decap.deliver { " and its pods" } else { "" };
        writeln!(out, "  decap at {} for {}{pods}", decap.local, decap.vip).unwrap();
    }
    for vip in &desired.datapath.local_vips {
        writeln!(out, "  {vip} is local").unwrap();
    }
    write_filters(&desired.datapath.filters, &mut out);
    if let Some(expiry) = desired.next_expiry {
        writeln!(out, "  next expiry {expiry}").unwrap();
    }
    for (port, HealthPort { namespace, name, local_endpoints }) in &desired.health_ports {
        writeln!(out, "  port {port}: {local_endpoints} local endpoints of {namespace}/{name}").unwrap();
    }
    out += "routes\n";
    for route in desired.routes.iter() {
        writeln!(out, "  {}", route_line(route)).unwrap();
    }
    if let Some(speaker) = &desired.speaker {
        writeln!(out, "speaker: AS {} ID {}", speaker.global.asn.0, speaker.global.router_id).unwrap();
        for station in &speaker.stations {
            writeln!(out, "  station {} every {} s", station.station, station.stats_seconds).unwrap();
        }
        let ranges =
            speaker.ranges.iter().map(|r| (format!("range {} at most {}", r.prefix, r.limit), &r.peer));
        let peers = speaker.peers.iter().map(|peer| (format!("peer {}", peer.address), peer));
        for (who, peer) in peers.chain(ranges) {
            let asn = match peer.asn {
                PeerAsn::Is(asn) => asn.0.to_string(),
                PeerAsn::External => "external".to_owned(),
            };
            write!(out, "  {who} AS {asn} port {}", peer.port).unwrap();
            if let Some(local) = peer.local_address {
                write!(out, " from {local}").unwrap();
            }
            if let Some(text) = &peer.shutdown {
                write!(out, " down {text:?}").unwrap();
            }
            for (word, _) in
                [(" signed", peer.md5.is_some()), (" passive", peer.passive)].iter().filter(|w| w.1)
            {
                out += word;
            }
            if let Some(hops) = peer.ttl_security_hops {
                write!(out, " hops {hops}").unwrap();
            }
            if peer.import != ImportFilter::default() {
                let ImportFilter { deny, communities, large_communities } = &peer.import;
                write!(out, " but {deny:?} with {communities:?} {large_communities:?}").unwrap();
            }
            if peer.export.values().any(|policy| policy.graceful_shutdown) {
                write!(out, " graceful-shutdown {:?}", peer.export.keys()).unwrap();
            }
            for (family, policy) in &peer.export {
                let ExportPolicy { next_hop_self, prepend, med, local_pref, .. } = policy;
                let ExportPolicy { communities, large_communities, .. } = policy;
                let graceful_shutdown = policy.graceful_shutdown;
                if *policy != (ExportPolicy { graceful_shutdown, ..ExportPolicy::default() }) {
                    write!(out, "\n    {family}: self {next_hop_self} prepend {prepend} med {med:?} ")
                        .unwrap();
                    write!(out, "local-pref {local_pref:?} {communities:?} {large_communities:?}").unwrap();
                }
            }
            let kept = peer.long_lived_seconds.iter().filter(|(_, seconds)| **seconds > 0);
            kept.for_each(|(family, seconds)| write!(out, "\n    {family}: long-lived {seconds} s").unwrap());
            out.push('\n');
        }
    }
    status(&desired.status, &mut out);
    out
}

fn write_rules(rules: &Rules, out: &mut String) {
    if rules.client_affinity {
        *out += "    a client has one backend\n";
    }
    for (what, ranges) in [("allow", &rules.allow), ("deny", &rules.deny)] {
        if !ranges.is_empty() {
            let ranges: Vec<_> = ranges.iter().map(ToString::to_string).collect();
            writeln!(out, "    {what} {}", ranges.join(" ")).unwrap();
        }
    }
    if rules.pass_without_backend {
        *out += "    up the stack without a backend\n";
    }
    if rules.server_id_bytes > 0 {
        writeln!(out, "    QUIC server IDs of {} bytes", rules.server_id_bytes).unwrap();
    }
}

/// A line for each rule, or for each packet filter that has many.
fn write_filters(filters: &BTreeMap<String, Filter>, out: &mut String) {
    const MANY: usize = 10;
    let object = |name: &str| name.rsplit_once('/').unwrap().0.to_owned();
    let all: Vec<_> = filters.iter().collect();
    for rules in all.chunk_by(|(one, _), (other, _)| object(one) == object(other)) {
        if rules.len() > MANY {
            writeln!(out, "  {}: {} rules", object(rules[0].0), rules.len()).unwrap();
            continue;
        }
        for (name, filter) in rules {
            writeln!(out, "  {name}: {}", filter_line(filter)).unwrap();
        }
    }
}

/// The action, and the fields that are set as JSON has them.
fn filter_line(filter: &Filter) -> String {
    let fields = serde_json::to_value(filter).unwrap();
    let set =
        fields.as_object().unwrap().iter().filter(|(name, value)| *name != "action" && !value.is_null());
    let set: Vec<_> = set.map(|(name, value)| format!("{name} {value}")).collect();
    format!("{:?} {}", filter.action, set.join(", ")).trim_end().to_owned()
}

fn route_line(route: &Route) -> String {
    let mut line = route.prefix.to_string();
    let attributes = &route.attributes;
    let standard = attributes.communities.iter().map(|c| Community::Standard(*c));
    let large = attributes.large_communities.iter().map(|(a, b, c)| Community::Large(*a, *b, *c));
    for community in standard.chain(large) {
        write!(line, " {community}").unwrap();
    }
    for (name, value) in [("local-pref", attributes.local_pref), ("med", attributes.med)] {
        if let Some(value) = value {
            write!(line, " {name} {value}").unwrap();
        }
    }
    if attributes.prepend > 0 {
        write!(line, " prepend {}", attributes.prepend).unwrap();
    }
    if let Some(bandwidth) = attributes.link_bandwidth {
        write!(line, " link-bandwidth {bandwidth}").unwrap();
    }
    match &route.peers {
        None => line += " to all peers",
        Some(peers) => {
            line += " to";
            peers.iter().for_each(|peer| write!(line, " {peer}").unwrap());
        }
    }
    line
}

fn status(status: &StatusSet, out: &mut String) {
    let balancers = status.load_balancers.iter().map(|named| ("LoadBalancer", named));
    let services = status.services.iter().map(|named| ("Service", named));
    for (kind, (name, s)) in balancers.chain(services) {
        write!(out, "{kind} {name}:").unwrap();
        for assigned in &s.addresses {
            let pool = assigned.pool.as_ref().map_or_else(String::new, |pool| format!(" of {pool}"));
            write!(out, " {}{pool},", assigned.address).unwrap();
        }
        writeln!(out, " {} of {} backends healthy", s.healthy_backends.unwrap_or(0), s.backends).unwrap();
        conditions(&s.conditions, out);
    }
    for (name, s) in &status.policies {
        writeln!(out, "ServicePolicy {name}: {} services", s.services).unwrap();
        conditions(&s.conditions, out);
    }
    for (name, s) in &status.pools {
        writeln!(out, "AddressPool {name}").unwrap();
        for (family, c) in [("IPv4", s.ipv4), ("IPv6", s.ipv6)] {
            let (total, assigned, released, available) = (c.total, c.assigned, c.released, c.available);
            if total > 0 {
                writeln!(
                    out,
                    "  {family}: {assigned} of {total} assigned, {released} released, {available} available"
                )
                .unwrap();
            }
        }
        for released in &s.released {
            writeln!(out, "  released {} by {}", released.address, released.owner).unwrap();
        }
        for released in &s.released_blocks {
            writeln!(out, "  released {} by {}", released.cidr, released.owner).unwrap();
        }
        conditions(&s.conditions, out);
    }
    for (name, s) in &status.nodes {
        write!(out, "Node {name}:").unwrap();
        for block in &s.pod_cidrs {
            write!(out, " {} of {},", block.cidr, block.pool.as_deref().unwrap_or("no pool")).unwrap();
        }
        out.push('\n');
        conditions(&s.conditions, out);
    }
    for (name, s) in &status.routers {
        let (nodes, sessions, established) = (s.nodes, s.sessions, s.established_sessions);
        writeln!(out, "BGPRouter {name}: {nodes} nodes, {established} of {sessions} sessions established")
            .unwrap();
        conditions(&s.conditions, out);
    }
    for (name, s) in &status.peers {
        writeln!(out, "BGPPeer {name}").unwrap();
        conditions(&s.conditions, out);
    }
    for (name, s) in &status.advertisements {
        let (announced, withheld) = (s.announced_routes, s.withheld_routes);
        writeln!(out, "BGPAdvertisement {name}: {announced} announced, {withheld} withheld").unwrap();
        conditions(&s.conditions, out);
    }
    for (name, s) in &status.packet_filters {
        writeln!(out, "PacketFilter {name}").unwrap();
        for rule in &s.rules {
            if rule.packets > 0 {
                writeln!(out, "  {}: {} packets, {} bytes", rule.name, rule.packets, rule.bytes).unwrap();
            }
        }
        conditions(&s.conditions, out);
    }
}

/// The conditions that say something: what is accepted like everything else is left out.
fn conditions(conditions: &[Condition], out: &mut String) {
    for c in conditions.iter().filter(|c| (c.type_.as_str(), c.status.as_str()) != ("Accepted", "True")) {
        writeln!(out, "  {}={} {}: {}", c.type_, c.status, c.reason, c.message).unwrap();
    }
}

fn difference(expected: &str, found: &str) -> String {
    let (expected, found): (Vec<_>, Vec<_>) = (expected.lines().collect(), found.lines().collect());
    let same = expected.iter().zip(&found).take_while(|(a, b)| a == b).count();
    let rest = |lines: &[&str], sign| {
        lines.iter().skip(same).take(12).map(|line| format!("  {sign} {line}\n")).collect::<String>()
    };
    format!("line {}\n{}{}", same + 1, rest(&expected, '-'), rest(&found, '+'))
}
