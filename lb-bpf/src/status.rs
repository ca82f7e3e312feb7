//! What the datapath reports: what is installed, how it is attached, what it counted.
use crate::{
    maps::{MapError, Maps},
    service::{Endpoint, Frontend, ServiceKey, shared},
};
use imbl::OrdMap;
use lb_bpf_common::Verdict;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    ops::AddAssign,
    sync::Arc,
};

/// What the kernel holds for the last desired set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Installed {
    /// The services that are programmed and can forward.
    #[serde(serialize_with = "shared")]
    pub services: OrdMap<ServiceKey, Arc<InstalledService>>,
    /// The interfaces that the programs are attached to; none while another version forwards still.
    pub interfaces: Vec<InterfaceStatus>,
    /// Names of the filters that are in force. If there are more than the map holds, the first by name are.
    pub filters: BTreeSet<String>,
}

/// One service as it is programmed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InstalledService {
    /// Its frontends in the map `vips`.
    pub frontends: BTreeSet<Frontend>,
    /// Number of slots of its Maglev table; 0 while it has no backend.
    pub table_size: u32,
    /// How many slots each backend owns. Backends that own none are there with 0.
    pub slots: BTreeMap<Endpoint, u32>,
    /// Whether the next hop of at least one backend that owns slots is known.
    pub resolved: bool,
}

/// How packets that come in through one interface meet the datapath.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceStatus {
    /// Name of the interface.
    pub name: String,
    /// Mode of the attachment.
    pub mode: XdpMode,
}

/// Where the kernel runs the program for packets that come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum XdpMode {
    /// In the driver, before the packet becomes a socket buffer.
    Native,
    /// In the stack: works with every driver and costs more.
    Generic,
    /// Not XDP: in traffic control, when the packet comes in.
    #[serde(rename = "TC")]
    TcIngress,
}

/// What was counted since the maps were made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Packets sent to each backend of each service.
    pub services: BTreeMap<ServiceKey, BTreeMap<Endpoint, Counter>>,
    /// Packets by verdict; the key is [`Verdict::label`](lb_bpf_common::Verdict::label).
    pub verdicts: BTreeMap<&'static str, Counter>,
    /// Packets of each service that were not sent on, by verdict; they are in `verdicts`, too.
    pub drops: BTreeMap<ServiceKey, BTreeMap<&'static str, Counter>>,
    /// Packets that matched each filter, by name; `flows` is 0.
    pub filters: BTreeMap<String, Counter>,
}

impl Counters {
    /// Reads them. Those of a backend that drains belong to its service as long as its entry is there. With 100,000 backends
    /// it takes some 50 ms.
    pub fn read(maps: &impl Maps) -> Result<Self, MapError> {
        let (names, backends) = (maps.names()?, maps.backends()?);
        let counted = maps.backend_counters(backends.last_key_value().map_or(0, |(last, _)| last + 1))?;
        let mut counters = Counters { filters: Self::of_filters(maps)?, ..Counters::default() };
        let mut of_services: BTreeMap<u32, BTreeMap<Endpoint, Counter>> = BTreeMap::new();
        for ((_, backend), counter) in joined(&backends, &counted) {
            let endpoint = Endpoint { address: backend.addr.into(), port: u16::from_be(backend.port) };
            *of_services.entry(backend.service).or_default().entry(endpoint).or_default() += *counter;
        }
        let named =
            of_services.into_iter().filter_map(|(id, counted)| Some((names.get(&id)?.clone(), counted)));
        counters.services = named.collect();
        for (verdict, counter) in Verdict::ALL.iter().zip(maps.verdict_counters()?) {
            *counters.verdicts.entry(verdict.label()).or_default() += counter;
        }
        for (key, counter) in maps.service_drops()? {
            let verdict = Verdict::ALL.get(key.verdict as usize);
            if let (Some(name), Some(verdict)) = (names.get(&key.service), verdict) {
                let drops = counters.drops.entry(name.clone()).or_default();
                *drops.entry(verdict.label()).or_default() += counter;
            }
        }
        Ok(counters)
    }

    /// [`Counters::filters`] alone.
    pub fn of_filters(maps: &impl Maps) -> Result<BTreeMap<String, Counter>, MapError> {
        let (filters, names) = (maps.filters()?, maps.filter_names()?);
        let counted = maps.filter_counters(filters.last_key_value().map_or(0, |(last, _)| last + 1))?;
        let named = joined(&filters, &counted).filter_map(|((index, _), counter)| {
            let mut sum = Counter::default();
            sum += *counter;
            Some((names.get(index)?.clone(), sum))
        });
        Ok(named.collect())
    }
}

/// The entries that are in use of an array, each with what stands at its index in another one.
fn joined<'a, V, W>(
    entries: &'a BTreeMap<u32, V>,
    others: &'a [W],
) -> impl Iterator<Item = ((&'a u32, &'a V), &'a W)> {
    entries.iter().filter_map(|(index, entry)| Some(((index, entry), others.get(*index as usize)?)))
}

/// Slots of one service that have moved from one live backend to another, and whose flows are tracked for that reason. A host
/// that has none answers for every flow as all others do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DirtySlots {
    /// Whose flows are being learned: one that is not known goes to the backend before, unless it begins.
    pub learning: u32,
    /// Where only known flows go elsewhere than the table says.
    pub settled: u32,
}

/// The sum of one counter over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes of the packets as received, Ethernet header included.
    pub bytes: u64,
    /// New flows (see [`lb_bpf_common::Counter::flows`]).
    pub flows: u64,
}

impl AddAssign<lb_bpf_common::Counter> for Counter {
    fn add_assign(&mut self, cpu: lb_bpf_common::Counter) {
        self.packets += cpu.packets;
        self.bytes += cpu.bytes;
        self.flows += cpu.flows;
    }
}

/// What the datapath reports about one packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowEvent {
    /// When: milliseconds of CLOCK_MONOTONIC.
    pub at_millis: u64,
    /// IANA protocol number.
    pub protocol: u8,
    /// Source; the port is 0 where the packet has none.
    pub source: SocketAddr,
    /// Destination, likewise.
    pub destination: SocketAddr,
    /// What was decided: [`Verdict::label`](lb_bpf_common::Verdict::label).
    pub verdict: String,
    /// The service; none: it is for none, or that is gone.
    pub service: Option<ServiceKey>,
    /// The backend that it was sent to; none: to nobody.
    pub backend: Option<Endpoint>,
    /// The rule of a packet filter that dropped it, by its name in [`Desired::filters`](crate::service::Desired::filters);
    /// none: none did, or that is gone.
    #[serde(default)]
    pub filter: Option<String>,
    /// Name of the interface where it came in; none: that is gone.
    pub interface: Option<String>,
    /// Length of the frame, bytes.
    pub bytes: u32,
    /// Whether it begins a flow.
    pub new: bool,
}

/// What one call of the sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SweepReport {
    /// Flow entries looked at.
    pub flows_seen: usize,
    /// Flow entries removed: idle, cut, or needless because the table gives the same answer.
    pub flows_removed: usize,
    /// Slots whose learning window ended.
    pub slots_settled: usize,
    /// Slots that became clean.
    pub slots_cleaned: usize,
    /// Slots that are dirty still.
    pub slots_dirty: usize,
    /// Backend entries given back.
    pub backends_freed: usize,
    /// Whether this call ended a pass over all flows; if not, the next call goes on where it stopped.
    pub complete: bool,
}
