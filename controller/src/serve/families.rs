//! The page of metrics, from what the instance knows at the moment of the scrape: nothing is counted in two places,
//! and what is gone from the instance is gone from the page.
use super::rows::{BackendRow, InstanceStatus, ServiceRow};
use crate::desired::peer_of;
use bgp_speaker::PeerId;
use bgp_speaker::config::{BfdStatus, GracefulRestartStatus, MessageCounts, PeerStatus, PrefixCounts};
use lb_bpf::{
    Counter, Counters,
    abi::{Action, Verdict},
};
use prometheus::{
    Histogram, IntCounterVec, IntGaugeVec, Opts, Registry, Result, TextEncoder, core::Collector,
};
use std::{collections::BTreeMap, net::SocketAddr};

/// Verdicts that have no counter of their own: the kernel program counts these packets with the backend, or not at
/// all. A constant 0 would be a lie.
const NOT_COUNTED: [Verdict; 4] =
    [Verdict::NotOurs, Verdict::Encapsulated, Verdict::Translated, Verdict::Forwarded];

/// Everything that the page tells.
pub(super) struct Facts<'a> {
    pub(super) status: &'a InstanceStatus,
    pub(super) services: &'a [ServiceRow],
    pub(super) counters: &'a Counters,
    pub(super) peers: &'a [PeerStatus],
    /// Names of the BGPPeer objects, by address or interface.
    pub(super) peer_names: &'a BTreeMap<PeerId, String>,
    pub(super) conditions: &'a [ConditionRow],
    pub(super) pass_seconds: &'a Histogram,
    /// What the store counts.
    pub(super) store: &'a [Box<dyn Collector>],
}

/// A condition of an object.
#[derive(Debug)]
pub(super) struct ConditionRow {
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) condition: String,
    pub(super) status: String,
    pub(super) reason: String,
}

impl Facts<'_> {
    /// The page in Prometheus' text format 0.0.4.
    pub(super) fn page(&self) -> Result<String> {
        let registry = Registry::new();
        self.instance(&registry)?;
        self.datapath(&registry)?;
        self.bgp(&registry)?;
        let mut families = registry.gather();
        families.extend(self.store.iter().flat_map(|collector| collector.collect()));
        TextEncoder::new().encode_to_string(&families)
    }

    fn instance(&self, registry: &Registry) -> Result<()> {
        let status = self.status;
        let one = |value: u64| [([], value)];
        gauges(
            registry,
            "fairlead_build_info",
            "1; the labels say what runs here.",
            ["version", "node"],
            [([status.version.clone(), status.node.clone()], 1)],
        )?;
        gauges(
            registry,
            "fairlead_ready",
            "Whether the instance is ready, as /readyz says.",
            [],
            one(status.ready.into()),
        )?;
        gauges(
            registry,
            "fairlead_store_generation",
            "Number of the snapshot in force; statuses that come back make a new one, too.",
            [],
            one(status.generation),
        )?;
        gauges(
            registry,
            "fairlead_store_faults",
            "Faults of the newest generation when it was refused; 0 when it is in force.",
            [],
            one(status.faults.len() as u64),
        )?;
        counters(registry, "fairlead_passes_total", "Passes of the reconcile loop.", [], one(status.passes))?;
        counters(
            registry,
            "fairlead_pass_errors_total",
            "Passes of the reconcile loop that ended with an error.",
            [],
            one(status.pass_errors),
        )?;
        registry.register(Box::new(self.pass_seconds.clone()))?;
        gauges(
            registry,
            "fairlead_interface_xdp_mode",
            "1; the label says where the kernel runs the program on the interface.",
            ["interface", "mode"],
            status.interfaces.iter().map(|i| ([i.name.clone(), i.mode.clone()], 1)),
        )?;
        gauges(
            registry,
            "fairlead_condition",
            "1; a condition of an object, as its status says.",
            ["kind", "name", "condition", "status", "reason"],
            self.conditions.iter().map(|c| {
                let ConditionRow { kind, name, condition, status, reason } = c;
                ([kind, name, condition, status, reason].map(String::clone), 1)
            }),
        )
    }

    fn datapath(&self, registry: &Registry) -> Result<()> {
        gauges(
            registry,
            "fairlead_service_programmed",
            "Whether the kernel has all frontends of the service.",
            ["service"],
            self.services.iter().map(|s| ([s.name.clone()], s.programmed.into())),
        )?;
        gauges(
            registry,
            "fairlead_service_slots",
            "Size of the service's Maglev table.",
            ["service"],
            self.services.iter().map(|s| ([s.name.clone()], s.table_size.into())),
        )?;
        gauges(
            registry,
            "fairlead_service_dirty_slots",
            "Slots that moved from one live backend to another: learning, or settled (only known flows go elsewhere).",
            ["service", "state"],
            self.services.iter().flat_map(|s| {
                let states = [("learning", s.learning_slots), ("settled", s.settled_slots)];
                states.map(|(state, slots)| ([s.name.clone(), state.to_owned()], slots.into()))
            }),
        )?;
        let backends = || self.services.iter().flat_map(|s| s.backends.iter().map(move |b| (s, b)));
        let sample = |value: fn(&BackendRow) -> u64| {
            backends().map(move |(s, b)| {
                ([s.name.clone(), SocketAddr::new(b.address, b.port).to_string()], value(b))
            })
        };
        const BACKEND: [&str; 2] = ["service", "backend"];
        counters(
            registry,
            "fairlead_backend_packets_total",
            "Packets sent to the backend.",
            BACKEND,
            sample(|b| b.packets),
        )?;
        counters(
            registry,
            "fairlead_backend_bytes_total",
            "Bytes of the packets sent to the backend, as received, Ethernet header included.",
            BACKEND,
            sample(|b| b.bytes),
        )?;
        counters(
            registry,
            "fairlead_backend_flows_total",
            "Flows begun with the backend: TCP SYNs, and first packets of tracked UDP flows.",
            BACKEND,
            sample(|b| b.flows),
        )?;
        gauges(
            registry,
            "fairlead_backend_slots",
            "Slots of the service's Maglev table that point to the backend.",
            BACKEND,
            sample(|b| b.slots.into()),
        )?;
        gauges(
            registry,
            "fairlead_backend_weight",
            "Weight of the backend as declared; 0 drains it.",
            BACKEND,
            sample(|b| b.weight.unwrap_or(0).into()),
        )?;
        gauges(
            registry,
            "fairlead_backend_health",
            "1; the label says what the health check says.",
            ["service", "backend", "health"],
            backends().map(|(s, b)| {
                let address = SocketAddr::new(b.address, b.port).to_string();
                ([s.name.clone(), address, b.health.clone()], 1)
            }),
        )?;
        let verdicts = |value: fn(&Counter) -> u64| {
            let is_counted = |verdict: &str| NOT_COUNTED.iter().all(|other| other.label() != verdict);
            self.counters.verdicts.iter().filter(move |(verdict, _)| is_counted(verdict)).map(
                move |(verdict, counter)| {
                    ([(*verdict).to_owned(), action(verdict).to_owned()], value(counter))
                },
            )
        };
        const VERDICT: [&str; 2] = ["verdict", "action"];
        counters(
            registry,
            "fairlead_packets_total",
            "Packets by what the datapath decided; those sent to a backend count there, those of others nowhere.",
            VERDICT,
            verdicts(|c| c.packets),
        )?;
        counters(
            registry,
            "fairlead_packet_bytes_total",
            "Bytes of the packets of fairlead_packets_total, Ethernet header included.",
            VERDICT,
            verdicts(|c| c.bytes),
        )?;
        let drops = |value: fn(&Counter) -> u64| {
            self.counters.drops.iter().flat_map(move |(service, verdicts)| {
                verdicts
                    .iter()
                    .map(move |(verdict, c)| ([service.to_string(), (*verdict).to_owned()], value(c)))
            })
        };
        const DROP: [&str; 2] = ["service", "verdict"];
        counters(
            registry,
            "fairlead_service_drops_total",
            "Packets to the service that were not sent on, by what the datapath decided.",
            DROP,
            drops(|c| c.packets),
        )?;
        counters(
            registry,
            "fairlead_service_drop_bytes_total",
            "Bytes of the packets of fairlead_service_drops_total, Ethernet header included.",
            DROP,
            drops(|c| c.bytes),
        )?;
        let filters = |value: fn(&Counter) -> u64| {
            self.counters.filters.iter().filter_map(move |(key, c)| {
                let (filter, rule) = key.strip_prefix("PacketFilter/")?.split_once('/')?;
                Some(([filter.to_owned(), rule.to_owned()], value(c)))
            })
        };
        const FILTER: [&str; 2] = ["filter", "rule"];
        counters(
            registry,
            "fairlead_filter_packets_total",
            "Packets that the rule of the PacketFilter matched.",
            FILTER,
            filters(|c| c.packets),
        )?;
        counters(
            registry,
            "fairlead_filter_bytes_total",
            "Bytes of the packets of fairlead_filter_packets_total, Ethernet header included.",
            FILTER,
            filters(|c| c.bytes),
        )
    }

    fn bgp(&self, registry: &Registry) -> Result<()> {
        let sample = |value: fn(&PeerStatus) -> u64| {
            self.peers.iter().map(move |p| ([self.peer_name(p.id()), p.id().to_string()], value(p)))
        };
        const PEER: [&str; 2] = ["name", "peer"];
        gauges(
            registry,
            "fairlead_bgp_peer_state",
            "1; the label is the state of the session (RFC 4271 section 8.2.2).",
            ["name", "peer", "state"],
            self.peers.iter().map(|p| ([self.peer_name(p.id()), p.id().to_string(), p.state.clone()], 1)),
        )?;
        gauges(
            registry,
            "fairlead_bgp_peer_up",
            "Whether the session is established.",
            PEER,
            sample(|p| (p.state == "Established").into()),
        )?;
        gauges(
            registry,
            "fairlead_bgp_peer_state_seconds",
            "Time in the present state, in seconds.",
            PEER,
            sample(|p| p.since_seconds),
        )?;
        counters(
            registry,
            "fairlead_bgp_peer_establishments_total",
            "How often the session was established.",
            PEER,
            sample(|p| p.established_count),
        )?;
        let prefixes = |value: fn(&PrefixCounts) -> u64| {
            self.peers.iter().flat_map(move |p| {
                p.prefixes.iter().map(move |(family, counts)| {
                    ([self.peer_name(p.id()), p.id().to_string(), family.to_string()], value(counts))
                })
            })
        };
        const FAMILY: [&str; 3] = ["name", "peer", "family"];
        gauges(
            registry,
            "fairlead_bgp_peer_prefixes_accepted",
            "Prefixes accepted from the peer.",
            FAMILY,
            prefixes(|counts| counts.accepted),
        )?;
        gauges(
            registry,
            "fairlead_bgp_peer_prefixes_sent",
            "Prefixes announced to the peer.",
            FAMILY,
            prefixes(|counts| counts.sent),
        )?;
        let messages = |value: fn(&PeerStatus) -> MessageCounts| {
            self.peers.iter().flat_map(move |p| {
                value(p).by_type().into_iter().map(move |(kind, count)| {
                    ([self.peer_name(p.id()), p.id().to_string(), kind.to_owned()], count)
                })
            })
        };
        const TYPE: [&str; 3] = ["name", "peer", "type"];
        counters(
            registry,
            "fairlead_bgp_peer_messages_received_total",
            "Messages received from the peer.",
            TYPE,
            messages(|p| p.received_by_type),
        )?;
        counters(
            registry,
            "fairlead_bgp_peer_messages_sent_total",
            "Messages sent to the peer.",
            TYPE,
            messages(|p| p.sent_by_type),
        )?;
        gauges(
            registry,
            "fairlead_bgp_peer_restart_state",
            "1; the label says where graceful restart stands (RFC 4724): Disabled, Ready, Helping, Restarting.",
            ["name", "peer", "state"],
            self.peers
                .iter()
                .map(|p| ([self.peer_name(p.id()), p.id().to_string(), p.restart_state.clone()], 1)),
        )?;
        let kept = |value: fn(&GracefulRestartStatus) -> u64| {
            self.peers.iter().filter_map(move |p| {
                let restart = p.graceful_restart.as_ref()?;
                Some(([self.peer_name(p.id()), p.id().to_string()], value(restart)))
            })
        };
        gauges(
            registry,
            "fairlead_bgp_peer_stale_prefixes",
            "Prefixes that are kept of a session that is gone, until the peer confirms them.",
            PEER,
            kept(|restart| restart.stale_prefixes),
        )?;
        gauges(
            registry,
            "fairlead_bgp_peer_long_lived_prefixes",
            "Those of them that are the last choice by now (RFC 9494).",
            PEER,
            kept(|restart| restart.long_lived_prefixes),
        )?;
        gauges(
            registry,
            "fairlead_bgp_peer_long_lived_seconds",
            "Time for which prefixes of the family are kept as the last choice, in seconds.",
            FAMILY,
            self.peers.iter().flat_map(|p| {
                let restart = p.graceful_restart.iter();
                restart.flat_map(|restart| &restart.long_lived).map(|(family, seconds)| {
                    ([self.peer_name(p.id()), p.id().to_string(), family.to_string()], u64::from(*seconds))
                })
            }),
        )?;
        gauges(
            registry,
            "fairlead_bgp_peer_stale_seconds",
            "Time until the stale prefixes are withdrawn, in seconds; 0 where there are none.",
            PEER,
            kept(|restart| restart.stale_seconds.unwrap_or(0)),
        )?;
        counters(
            registry,
            "fairlead_bgp_peer_flaps_total",
            "How often an established session ended.",
            PEER,
            sample(|p| p.flap_count),
        )?;
        let watched = |value: fn(&BfdStatus) -> u64| {
            let of = move |p: &PeerStatus| {
                Some(([self.peer_name(p.id()), p.id().to_string()], value(p.bfd.as_ref()?)))
            };
            self.peers.iter().filter_map(of)
        };
        gauges(
            registry,
            "fairlead_bgp_peer_bfd_up",
            "Whether BFD says that the path to the peer is alive (RFC 5880).",
            PEER,
            watched(|bfd| (bfd.state == "Up").into()),
        )?;
        counters(
            registry,
            "fairlead_bgp_peer_bfd_failures_total",
            "How often the path to the peer failed.",
            PEER,
            watched(|bfd| bfd.failure_count),
        )
    }

    fn peer_name(&self, id: PeerId) -> String {
        peer_of(self.peer_names, id).map(|(_, name)| name.clone()).unwrap_or_default()
    }
}

/// Adds a family of values that only grow.
fn counters<const N: usize>(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: [&str; N],
    samples: impl IntoIterator<Item = ([String; N], u64)>,
) -> Result<()> {
    let family = IntCounterVec::new(Opts::new(name, help), &labels)?;
    for (values, value) in samples {
        family.get_metric_with_label_values(&values)?.inc_by(value);
    }
    registry.register(Box::new(family))
}

/// Adds a family of values that go up and down.
fn gauges<const N: usize>(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: [&str; N],
    samples: impl IntoIterator<Item = ([String; N], u64)>,
) -> Result<()> {
    let family = IntGaugeVec::new(Opts::new(name, help), &labels)?;
    for (values, value) in samples {
        family.get_metric_with_label_values(&values)?.set(i64::try_from(value).unwrap_or(i64::MAX));
    }
    registry.register(Box::new(family))
}

/// What becomes of packets with this verdict.
pub(super) fn action(label: &str) -> &'static str {
    match Verdict::ALL.iter().find(|verdict| verdict.label() == label).map(|verdict| verdict.action()) {
        Some(Action::Pass) => "pass",
        Some(Action::Transmit) => "transmit",
        Some(Action::Drop) => "drop",
        None => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_bpf::service::ServiceKey;

    fn page(counters: &Counters, status: &InstanceStatus) -> String {
        let facts = Facts {
            status,
            services: &serde_json::from_str::<Vec<ServiceRow>>(include_str!("../../tests/cli/services.json"))
                .unwrap(),
            counters,
            peers: &serde_json::from_str::<Vec<PeerStatus>>(include_str!("../../tests/cli/peers.json"))
                .unwrap(),
            peer_names: &BTreeMap::from([("198.51.100.1".parse().unwrap(), "tor".to_owned())]),
            conditions: &[ConditionRow {
                kind: "LoadBalancer".to_owned(),
                name: "web".to_owned(),
                condition: "Announced".to_owned(),
                status: "True".to_owned(),
                reason: "Announced".to_owned(),
            }],
            pass_seconds: &crate::serve::instance::Instance::pass_histogram().unwrap(),
            store: &[],
        };
        facts.page().unwrap()
    }

    #[test]
    fn the_page_says_what_is_known_and_nothing_else() {
        let status = InstanceStatus {
            node: "lb1".to_owned(),
            version: "0".to_owned(),
            ready: true,
            reasons: vec![],
            generation: 3,
            faults: vec!["one".to_owned()],
            passes: 7,
            pass_errors: 1,
            last_error: None,
            interfaces: vec![],
        };
        let counter = Counter { packets: 5, bytes: 300, flows: 0 };
        let counters = Counters {
            verdicts: Verdict::ALL.iter().map(|verdict| (verdict.label(), counter)).collect(),
            drops: [(ServiceKey("LoadBalancer/web/http/ipv4".into()), [("no_backend", counter)].into())]
                .into(),
            filters: [("PacketFilter/teardrop/0".to_owned(), counter)].into(),
            ..Counters::default()
        };
        let page = page(&counters, &status);
        let web = r#"backend="10.0.0.1:8080",service="LoadBalancer/web/http/ipv4""#;
        for line in [
            &format!("fairlead_backend_packets_total{{{web}}} 700"),
            &format!("fairlead_backend_slots{{{web}}} 230"),
            r#"fairlead_service_dirty_slots{service="LoadBalancer/web/http/ipv4",state="learning"} 12"#,
            r#"fairlead_service_dirty_slots{service="LoadBalancer/web/http/ipv4",state="settled"} 3"#,
            r#"fairlead_packets_total{action="drop",verdict="no_backend"} 5"#,
            r#"fairlead_packet_bytes_total{action="pass",verdict="decapsulated"} 300"#,
            r#"fairlead_service_drops_total{service="LoadBalancer/web/http/ipv4",verdict="no_backend"} 5"#,
            r#"fairlead_service_drop_bytes_total{service="LoadBalancer/web/http/ipv4",verdict="no_backend"} 300"#,
            r#"fairlead_filter_packets_total{filter="teardrop",rule="0"} 5"#,
            r#"fairlead_filter_bytes_total{filter="teardrop",rule="0"} 300"#,
            r#"fairlead_bgp_peer_up{name="tor",peer="198.51.100.1"} 1"#,
            r#"fairlead_bgp_peer_flaps_total{name="tor",peer="198.51.100.1"} 1"#,
            r#"fairlead_bgp_peer_bfd_up{name="tor",peer="198.51.100.1"} 1"#,
            r#"fairlead_bgp_peer_bfd_failures_total{name="tor",peer="198.51.100.1"} 1"#,
            r#"fairlead_bgp_peer_prefixes_sent{family="ipv4-unicast",name="tor",peer="198.51.100.1"} 2"#,
            r#"fairlead_bgp_peer_messages_sent_total{name="tor",peer="198.51.100.1",type="keepalive"} 38"#,
            r#"fairlead_bgp_peer_restart_state{name="tor",peer="198.51.100.1",state="Helping"} 1"#,
            r#"fairlead_bgp_peer_stale_prefixes{name="tor",peer="198.51.100.1"} 3"#,
            r#"fairlead_bgp_peer_stale_seconds{name="tor",peer="198.51.100.1"} 110"#,
            r#"fairlead_bgp_peer_long_lived_prefixes{name="tor",peer="198.51.100.1"} 1"#,
            r#"fairlead_bgp_peer_long_lived_seconds{family="ipv4-unicast",name="tor",peer="198.51.100.1"} 3600"#,
            r#"fairlead_bgp_peer_state{name="",peer="2001:db8::1",state="Active"} 1"#,
            r#"fairlead_condition{condition="Announced",kind="LoadBalancer",name="web",reason="Announced",status="True"} 1"#,
            r#"fairlead_build_info{node="lb1",version="0"} 1"#,
            "fairlead_ready 1",
            "fairlead_store_faults 1",
            "fairlead_pass_errors_total 1",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} is missing in\n{page}");
        }
        for verdict in Verdict::ALL {
            let line = format!("verdict=\"{}\"", verdict.label());
            let is_counted = !verdict.is_to_backend() && *verdict != Verdict::NotOurs;
            assert_eq!(page.contains(&line), is_counted, "{verdict:?}");
        }
    }
}
