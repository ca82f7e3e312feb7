//! What all clusters export makes what this one imports, as a whole or for what has changed. Where exports of one service contradict each other, the oldest wins, of
//! equally old ones that of the first cluster by name (KEP-1645, "Constraints and Conflict Resolution").
use super::{
    API_VERSION, IMPORT_MANAGED_BY, MANAGER,
    derived::{DERIVED_SERVICE, derived_name},
    export::{Export, Exports, Facts, ImportPort, Invalid},
    leave::{PERMILLE, thinned},
    ports::agreed,
};
use crate::{
    api::{EndpointSlice, endpoint_slice::Endpoint},
    by_name::ByName,
    shared::Shared,
};
use k8s_openapi::{api::core::v1::Namespace, apimachinery::pkg::apis::meta::v1::Condition};
use serde_json::{Value, json};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// A cluster and what it exports.
#[derive(Clone, Copy, Debug)]
pub struct Cluster<'a> {
    /// Its exports.
    pub exports: &'a Exports,
    /// How much of it has left, in thousandths; of one that has left altogether nothing counts.
    pub left: u16,
}

/// What this cluster should have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Merged {
    /// ServiceImports, by `NAMESPACE/NAME`.
    pub imports: ByName<Import>,
    /// EndpointSlices, by `NAMESPACE/NAME`.
    pub slices: ByName<EndpointSlice>,
    /// What is to be said of the exports of this cluster, by `NAMESPACE/NAME`.
    pub verdicts: ByName<Verdict>,
    /// What came of each cluster.
    pub counts: BTreeMap<String, Counts>,
}

/// Merges again and again; only services of which something has changed are looked at.
#[derive(Debug, Default)]
pub struct Merger {
    local: String,
    clusters: BTreeMap<String, (Exports, u16)>,
    namespaces: ByName<Namespace>,
    merged: Merged,
}

/// A ServiceImport.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Import {
    /// What the exports agree on, or what the oldest says.
    pub facts: Arc<Facts>,
    /// Labels that exports ask for.
    pub labels: BTreeMap<String, String>,
    /// Annotations that exports ask for.
    pub annotations: BTreeMap<String, String>,
    /// Clusters that export it.
    pub clusters: Clusters,
    /// Its addresses in this cluster; none: they are not known, or it has none.
    pub ips: Vec<IpAddr>,
}

/// Names of clusters, kept once for all services that come from these.
pub type Clusters = Arc<BTreeSet<String>>;

/// See [`Clusters`].
pub fn shared_clusters(names: impl Iterator<Item = String>) -> Clusters {
    static SHARED: Shared<BTreeSet<String>> = Shared::new();
    SHARED.one(names.collect())
}

/// What is to be said of an export of this cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Whether there is something to export.
    pub valid: Result<(), Invalid>,
    /// Where the exports of the service contradict each other.
    pub conflicts: Vec<Conflict>,
}

/// A contradiction between the exports of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// As KEP-1645 has it.
    pub reason: &'static str,
    /// What differs, who wins, and why.
    pub message: String,
}

/// What came of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Services that it exports.
    pub exported: usize,
    /// Those that are imported.
    pub imported: usize,
    /// Their endpoints, without those that have left.
    pub endpoints: usize,
    /// Those of the imported services whose exports contradict each other.
    pub conflicts: BTreeSet<String>,
}

impl Merger {
    /// The same as [`merge()`] of these, with the namespaces of this cluster.
    pub fn merge(
        &mut self,
        local: &str,
        clusters: &BTreeMap<&str, Cluster<'_>>,
        namespaces: &ByName<Namespace>,
    ) -> &Merged {
        let has_namespace = |name: &str| namespaces.contains_key(name);
        let is_known = |(name, cluster): (&&str, &Cluster<'_>)| {
            self.clusters.get(*name).is_some_and(|(_, left)| *left == cluster.left)
        };
        let is_same = self.local == local
            && self.clusters.len() == clusters.len()
            && clusters.iter().all(is_known)
            && self.namespaces.is_same(namespaces);
        if is_same {
            let changed = clusters.iter().flat_map(|(name, cluster)| {
                self.clusters[*name].0.changes(cluster.exports).map(|(service, ..)| service)
            });
            for name in changed.collect::<BTreeSet<_>>() {
                let present = self.clusters.iter().filter(|(_, (_, left))| *left < PERMILLE);
                let before = present
                    .filter_map(|(cluster, (exports, _))| Some((cluster.as_str(), &**exports.get(name)?)));
                self.merged.forget(name, before);
                self.merged.add(local, name, clusters, has_namespace);
            }
            self.merged.count(clusters);
        } else {
            self.merged = merge(local, clusters, has_namespace);
        }
        let cluster = |(name, cluster): (&&str, &Cluster<'_>)| {
            ((*name).to_owned(), (cluster.exports.clone(), cluster.left))
        };
        self.clusters = clusters.iter().map(cluster).collect();
        (self.local, self.namespaces) = (local.to_owned(), namespaces.clone());
        &self.merged
    }
}

/// Merges the exports of all clusters, by their names, of which `local` is this one. Services of namespaces that this one does not
/// have are not imported.
pub fn merge(
    local: &str,
    clusters: &BTreeMap<&str, Cluster<'_>>,
    has_namespace: impl Fn(&str) -> bool,
) -> Merged {
    let mut merged = Merged::default();
    let present = clusters.values().filter(|cluster| cluster.left < PERMILLE);
    let names: BTreeSet<_> = present.flat_map(|cluster| cluster.exports.keys()).collect();
    for name in names {
        merged.add(local, name, clusters, &has_namespace);
    }
    merged.count(clusters);
    merged
}

impl Merged {
    /// Adds a service, of which nothing is there.
    fn add(
        &mut self,
        local: &str,
        name: &str,
        clusters: &BTreeMap<&str, Cluster<'_>>,
        has_namespace: impl Fn(&str) -> bool,
    ) {
        let Some((namespace, _)) = name.split_once('/').filter(|(namespace, _)| has_namespace(namespace))
        else {
            return;
        };
        let present = clusters.iter().filter(|(_, cluster)| cluster.left < PERMILLE);
        let exports = present.filter_map(|(cluster, Cluster { exports, left })| {
            Some((*cluster, &**exports.get(name)?, *left))
        });
        let exports: Vec<_> = exports.collect();
        if !exports.is_empty() {
            self.service(local, namespace, name, exports);
        }
    }

    /// Takes out what is there of a service that clusters exported so.
    fn forget<'a>(&mut self, name: &str, exports: impl Iterator<Item = (&'a str, &'a Export)>) {
        self.verdicts.remove(name);
        // What is not imported counts nowhere.
        if self.imports.remove(name).is_none() {
            return;
        }
        let namespace = name.split_once('/').map_or("", |(namespace, _)| namespace);
        for (cluster, export) in exports.filter(|(_, export)| export.service.is_ok()) {
            let slices =
                export.slices.iter().filter_map(|slice| self.slices.remove(&full_name(namespace, slice)));
            let endpoints: usize = slices.map(|slice| staying(&slice)).sum();
            let counts = self.counts.entry(cluster.to_owned()).or_default();
            counts.imported -= 1;
            counts.endpoints -= endpoints;
            counts.conflicts.remove(name);
        }
    }

    /// Counts what clusters export.
    fn count(&mut self, clusters: &BTreeMap<&str, Cluster<'_>>) {
        for (name, cluster) in clusters {
            self.counts.entry((*name).to_owned()).or_default().exported = cluster.exports.len();
        }
    }

    fn service(&mut self, local: &str, namespace: &str, name: &str, mut exports: Vec<(&str, &Export, u16)>) {
        // They come in the order of the clusters; the sort is stable.
        exports.sort_by_key(|(_, export, _)| export.created);
        let valid: Vec<Claim<'_>> = exports
            .iter()
            .filter_map(|(cluster, export, _)| Some((*cluster, *export, &**export.service.as_ref().ok()?)))
            .collect();
        let conflicts = conflicts(&valid);
        if let Some((.., own)) =
            exports.iter().find(|(cluster, ..)| *cluster == local).map(|(c, e, _)| (c, e))
        {
            let valid = own.service.as_ref().map(drop).map_err(|invalid| *invalid);
            let verdict = Verdict { valid, conflicts: conflicts.clone() };
            self.verdicts.insert(name.to_owned(), Arc::new(verdict));
        }
        let Some((_, oldest, facts)) = valid.first() else { return };
        let import = Import {
            facts: Facts { ports: ports(&valid), ..(*facts).clone() }.shared(),
            labels: oldest.labels.clone(),
            annotations: oldest.annotations.clone(),
            clusters: shared_clusters(valid.iter().map(|(cluster, ..)| (*cluster).to_owned())),
            ips: Vec::new(),
        };
        for (cluster, export, left) in &exports {
            let Ok(facts) = &export.service else { continue };
            let counts = self.counts.entry((*cluster).to_owned()).or_default();
            counts.imported += 1;
            if !conflicts.is_empty() {
                counts.conflicts.insert(name.to_owned());
            }
            for slice in &export.slices {
                let slice = match agreed(thinned(slice, *left), &facts.ports, &import.facts.ports) {
                    Cow::Borrowed(_) => Arc::clone(slice),
                    Cow::Owned(thinned) => Arc::new(thinned),
                };
                counts.endpoints += staying(&slice);
                self.slices.insert(full_name(namespace, &slice), slice);
            }
        }
        self.imports.insert(name.to_owned(), Arc::new(import));
    }
}

/// `NAMESPACE/NAME` of a slice of the importing cluster.
fn full_name(namespace: &str, slice: &EndpointSlice) -> String {
    [namespace, "/", &*slice.metadata.name].concat()
}

/// How many endpoints do not leave.
fn staying(slice: &EndpointSlice) -> usize {
    let leaves = |endpoint: &&Endpoint| {
        endpoint.conditions.as_ref().and_then(|conditions| conditions.terminating) == Some(true)
    };
    slice.endpoints.iter().filter(|endpoint| !leaves(endpoint)).count()
}

/// A valid export and its cluster.
type Claim<'a> = (&'a str, &'a Export, &'a Facts);

/// The union; of ports of one name, or of one protocol and number, the first one counts.
fn ports(claims: &[Claim<'_>]) -> Vec<ImportPort> {
    let mut union: Vec<ImportPort> = Vec::new();
    let first = claims.first().map(|(.., facts)| &facts.ports);
    // As mostly: all say the same.
    let others = claims.iter().skip(1).map(|(.., facts)| &facts.ports).filter(|ports| Some(*ports) != first);
    for port in first.into_iter().chain(others).flatten() {
        let clashes = |known: &ImportPort| {
            known.name == port.name || (&known.protocol, known.port) == (&port.protocol, port.port)
        };
        if !union.iter().any(clashes) {
            union.push(port.clone());
        }
    }
    union.shrink_to_fit();
    union
}

/// Where the claims contradict each other, the oldest first.
fn conflicts(claims: &[Claim<'_>]) -> Vec<Conflict> {
    let Some(((winner, oldest, facts), others)) = claims.split_first() else { return Vec::new() };
    let mut others: Vec<_> =
        others.iter().filter(|(_, other, _)| other.created != Export::REMEMBERED).collect();
    others.retain(|(_, other, its)| {
        its != facts || (&other.labels, &other.annotations) != (&oldest.labels, &oldest.annotations)
    });
    if others.is_empty() {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut differ = |reason, what: &str, is_same: &dyn Fn(&Claim<'_>) -> bool| {
        let others: Vec<_> =
            others.iter().filter(|other| !is_same(other)).map(|(cluster, ..)| *cluster).collect();
        if !others.is_empty() {
            let message = format!(
                "{what} of {} differ from those of {winner}, whose export is the oldest and counts",
                others.join(", ")
            );
            found.push(Conflict { reason, message });
        }
    };
    let sorted = |facts: &Facts| {
        let mut ports = facts.ports.clone();
        ports.sort_by(|one, other| (&one.name, one.port).cmp(&(&other.name, other.port)));
        ports
    };
    differ("TypeConflict", "types (headless or not)", &|(.., other)| other.is_headless == facts.is_headless);
    differ("PortConflict", "ports (all are used whose names and numbers are free)", &|(.., other)| {
        sorted(other) == sorted(facts)
    });
    differ("SessionAffinityConflict", "session affinities", &|(.., other)| {
        other.session_affinity == facts.session_affinity
    });
    differ("SessionAffinityConfigConflict", "session affinity configurations", &|(.., other)| {
        other.session_affinity_config == facts.session_affinity_config
    });
    differ("InternalTrafficPolicyConflict", "internal traffic policies", &|(.., other)| {
        other.internal_traffic_policy == facts.internal_traffic_policy
    });
    differ("TrafficDistributionConflict", "traffic distributions", &|(.., other)| {
        other.traffic_distribution == facts.traffic_distribution
    });
    differ("IPFamilyConflict", "address families", &|(.., other)| other.ip_families == facts.ip_families);
    differ("LabelsConflict", "exported labels", &|(_, other, _)| other.labels == oldest.labels);
    differ("AnnotationsConflict", "exported annotations", &|(_, other, _)| {
        other.annotations == oldest.annotations
    });
    found
}

impl Import {
    /// Whether the objects are the same but for their statuses.
    pub fn is_like(&self, other: &Import) -> bool {
        (&self.facts, &self.ips) == (&other.facts, &other.ips)
            && (&self.labels, &self.annotations) == (&other.labels, &other.annotations)
    }

    /// The object but for its status.
    pub fn object(&self, name: &str) -> Value {
        let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
        let mut labels = self.labels.clone();
        labels.insert(IMPORT_MANAGED_BY.to_owned(), MANAGER.to_owned());
        let mut spec = json!(*self.facts);
        let mut annotations = self.annotations.clone();
        if self.facts.is_headless {
            spec["type"] = "Headless".into();
        } else {
            spec["type"] = "ClusterSetIP".into();
            annotations.insert(DERIVED_SERVICE.to_owned(), derived_name(namespace, name));
        }
        if !self.ips.is_empty() {
            spec["ips"] = json!(self.ips);
        }
        json!({
            "apiVersion": API_VERSION,
            "kind": "ServiceImport",
            "metadata": {
                "namespace": namespace, "name": name, "labels": labels, "annotations": annotations,
            },
            "spec": spec,
        })
    }

    /// Its status, with these conditions.
    pub fn status(&self, conditions: &[Condition]) -> Value {
        let clusters: Vec<_> = self.clusters.iter().map(|cluster| json!({"cluster": cluster})).collect();
        json!({"clusters": clusters, "conditions": conditions})
    }
}
