//! Other clusters, while this process leads: each link has a task of its own, which tells what its cluster exports; a pass merges
//! that with what this one exports ([`crate::mcs`]) and writes what differs.
//!
//! ```text
//! ClusterLink ─> task ─> exports of the cluster ─┐
//! snapshot, ServiceExports, ServiceImports ──────┼─> merge (pure) ─> plan (pure) ─> derived Services ─┐
//! timer: who is out of reach leaves by and by ───┘       └─────────> plan (pure) <─── their addresses ┘
//!                                                                        └─> all other writes
//! ```
//! A cluster that does not answer delays nobody: what it exported stays, then leaves endpoint by endpoint. One that was not listed
//! yet since this process leads keeps what is there of it for as long.
use super::{Cluster as Home, raw::Raw};
use crate::{
    api::{ClusterLink, bgp_peer::SecretReference, cluster_link::ClusterLinkStatus, selector::is_dns_label},
    by_name::ByName,
    declared::Declared,
    host,
    mcs::{Cluster, Counts, Export, Exports, Merged, Merger, PERMILLE, leaving},
    neighbours::{Neighbour, Neighbours},
    status::{Conditions, Verdict, seconds, time},
    store::objects::{REQUEST, lock, now},
    trouble::{Trouble, jittered},
};
use credentials::Credentials;
use kept::{Kept, ServiceExport, ServiceImport};
use kube::{Api, Client, api::ApiResource};
use link::Report;
use objects::Objects;
use overlap::Overlaps;
use own::Own;
use plan::{Existing, Write};
use services::Services;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use write::Writer;

#[cfg(test)]
mod anycast;
mod credentials;
mod derived;
mod kept;
mod known;
mod link;
mod nodes;
mod objects;
mod overlap;
mod own;
mod plan;
mod sent;
mod services;
mod source;
mod write;

/// What this cluster is called where nothing says so.
pub const DEFAULT_NAME: &str = "local";

/// Changes are at rest when nothing happens for so long.
const QUIET: Duration = Duration::from_millis(5);
/// Changes that never rest make a pass after so long.
const PATIENCE: Duration = Duration::from_millis(50);
/// A pass is made at least so often.
const SLOWEST: Duration = Duration::from_secs(30);
/// While a cluster is out of reach, a pass is made so often.
const STEP: Duration = Duration::from_secs(1);
/// Writes that failed are tried again after this, then after twice as long, up to [`STEP`].
const AGAIN: Duration = Duration::from_millis(50);

/// Follows the clusters that are linked, for ever. `name`: what this one is called, where no ClusterProperty says so.
pub(super) async fn follow(home: Home, name: Option<String>) {
    let mut leader = home.shared.leader.subscribe();
    loop {
        if leader.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        tokio::select! {
            () = lead(&home, name.as_deref()) => {}
            _ = leader.wait_for(|leads| !leads) => {}
        }
    }
}

/// While this process leads.
async fn lead(home: &Home, name: Option<&str>) {
    let Home { client, namespace, shared, .. } = home;
    // What was known when this process led before is old.
    shared.neighbours.send_replace(Arc::default());
    let changed = Arc::new(Notify::new());
    let (exports, imports) = (Objects::default(), Objects::default());
    let mut tasks = JoinSet::new();
    let all = |kind| Api::all_with(client.clone(), &link::resource(kind));
    tasks.spawn(exports.clone().follow("ServiceExports", all("ServiceExport"), "", Arc::clone(&changed)));
    tasks.spawn(imports.clone().follow("ServiceImports", all("ServiceImport"), "", Arc::clone(&changed)));
    let (mut services, following) = Services::new(client.clone(), Arc::clone(shared), Arc::clone(&changed));
    tasks.spawn(following);
    let own = watch::Sender::new(None);
    let mut own_name = own.subscribe();
    tasks.spawn(tell_name(client.clone(), name.map(str::to_owned), own));
    let mut writer = Writer::new(client.clone(), Arc::clone(shared), exports.clone(), imports.clone());
    let mut links = Links {
        client: client.clone(),
        namespace: Arc::clone(namespace),
        changed: Arc::clone(&changed),
        open: BTreeMap::new(),
    };
    let (mut snapshots, mut faults) = (shared.snapshots.subscribe(), shared.faults.subscribe());
    let (mut trouble, mut settled) = (Trouble::default(), plan::Settled::default());
    let (mut own, mut merger, mut overlaps) = (Own::default(), Merger::default(), Overlaps::default());
    let mut next = Instant::now();
    loop {
        tokio::select! {
            Ok(()) = snapshots.changed() => {}
            Ok(()) = faults.changed() => {}
            Ok(()) = own_name.changed() => {}
            () = changed.notified() => {}
            () = sleep_until(next) => {}
        }
        let latest = Instant::now() + PATIENCE;
        while timeout(QUIET, changed.notified()).await.is_ok() && Instant::now() < latest {}
        next = Instant::now() + SLOWEST;
        let Some(declared) = snapshots.borrow_and_update().clone() else { continue };
        let Some(name) = own_name.borrow_and_update().clone() else { continue };
        links.set(&declared.cluster_links, &name);
        let reports = links.reports();
        let listed = exports.known().zip(imports.known()).filter(|_| services.are_listed());
        let is_undefined = exports.is_undefined() || imports.is_undefined();
        let none = (ByName::new(), ByName::new());
        // Without the definitions there is nothing to merge, but there are links to speak of.
        let Some((exports, imports)) = listed.or(is_undefined.then_some(none)) else { continue };
        let neighbours = neighbours(&name, &exports, &reports);
        shared.neighbours.send_if_modified(|before| {
            let is_changed = **before != neighbours;
            if is_changed {
                *before = Arc::new(neighbours);
            }
            is_changed
        });
        let pass =
            Pass { name: &name, declared: &declared, imports: &imports, reports: &reports, is_undefined };
        let merged = pass.merge(own.exports(&name, &exports, &declared), &mut merger);
        // First the Services: what the API server answers has the addresses.
        let mut done = match is_undefined {
            true => Ok(()),
            false => services.keep(merged, &imports).await,
        };
        let existing = Existing {
            imports: &imports,
            exports: &exports,
            slices: &declared.endpoint_slices,
            addresses: &services.addresses(),
            modes: own.modes(),
        };
        for (name, slice) in plan::kept_twice(merged, existing.slices, &settled) {
            lock(&shared.assembly).share(name, slice);
        }
        let mut writes = pass.link_statuses(merged, &faults.borrow_and_update(), &mut overlaps);
        if !is_undefined {
            let (written, kept) = (writer.written(), pass.kept());
            writes.extend(plan::plan(merged, existing, written, &mut settled, &kept, host::now()));
        }
        done = writer.write(writes, existing).await.and(done);
        match done {
            Ok(()) => trouble.over("other clusters: what is imported is written again"),
            Err(error) => {
                next = Instant::now() + jittered(trouble.again(AGAIN, STEP));
                trouble.say(
                    "other clusters: not all that is imported could be written; it is tried again",
                    &error,
                );
            }
        }
        let more = writer.has_more().then_some(Duration::ZERO);
        if let Some(again) = services.again().into_iter().chain(more).min() {
            next = next.min(Instant::now() + again);
        }
        if reports.values().any(|report| !matches!(report.connected, Some(Ok(())))) {
            next = next.min(Instant::now() + STEP);
        }
    }
}

/// What addresses go by.
fn neighbours(
    name: &str,
    exports: &ByName<Kept<ServiceExport>>,
    reports: &BTreeMap<String, Report>,
) -> Neighbours {
    let neighbour = |(name, report): (&String, &Report)| {
        let neighbour = Neighbour {
            is_connected: matches!(report.connected, Some(Ok(()))) && report.pools_are_listed,
            pools: report.pools.clone(),
            addresses: Arc::clone(&report.addresses),
        };
        (name.clone(), Arc::new(neighbour))
    };
    Neighbours {
        name: Some(name.to_owned()),
        exports: exports.keys().cloned().collect(),
        clusters: reports.iter().map(neighbour).collect(),
    }
}

/// Says what this cluster is called: its ClusterProperty `cluster.clusterset.k8s.io` (KEP-2149), else `name`.
async fn tell_name(client: Client, name: Option<String>, said: watch::Sender<Option<String>>) {
    const AGAIN: Duration = Duration::from_secs(60);
    let resource = ApiResource {
        group: "about.k8s.io".to_owned(),
        version: "v1alpha1".to_owned(),
        api_version: "about.k8s.io/v1alpha1".to_owned(),
        kind: "ClusterProperty".to_owned(),
        plural: "clusterproperties".to_owned(),
    };
    let properties: Api<Raw> = Api::all_with(client, &resource);
    loop {
        let property = match timeout(REQUEST, properties.get("cluster.clusterset.k8s.io")).await {
            Ok(Ok(property)) => Some(property),
            // There is none, or there are none at all.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 403 | 404) => None,
            // What was said stays.
            _ => {
                sleep(STEP).await;
                continue;
            }
        };
        let value = property.and_then(|property| Some(property.at(&["spec", "value"]).as_str()?.to_owned()));
        let told = value.filter(|value| is_dns_label(value)).or_else(|| name.clone());
        let told = Some(told.unwrap_or_else(|| DEFAULT_NAME.to_owned()));
        said.send_if_modified(|before| std::mem::replace(before, told.clone()) != told);
        sleep(AGAIN).await;
    }
}

/// The links that are open.
struct Links {
    client: Client,
    namespace: Arc<str>,
    changed: Arc<Notify>,
    open: BTreeMap<String, Open>,
}

/// A link that is open. Its tasks end when it is dropped.
struct Open {
    secret: SecretReference,
    report: watch::Receiver<Report>,
    _tasks: JoinSet<()>,
}

impl Links {
    /// Opens what is declared, and closes what is not. Those that stay go on undisturbed.
    fn set(&mut self, declared: &ByName<ClusterLink>, own: &str) {
        let wanted = |name: &String| declared.get(name).filter(|_| name != own);
        self.open.retain(|name, open| {
            wanted(name).is_some_and(|link| link.spec.kubeconfig_secret_ref == open.secret)
        });
        for (name, link) in declared.iter().filter(|(name, _)| *name != own) {
            if self.open.contains_key(name) {
                continue;
            }
            let secret = link.spec.kubeconfig_secret_ref.clone();
            let (credentials, known) = watch::channel(Credentials::default());
            let (report, reported) = watch::channel(Report::new());
            let mut tasks = JoinSet::new();
            tasks.spawn(credentials::follow(
                self.client.clone(),
                self.namespace.to_string(),
                secret.clone(),
                credentials,
            ));
            tasks.spawn(link::follow(name.clone(), known, report));
            let (mut told, changed) = (reported.clone(), Arc::clone(&self.changed));
            tasks.spawn(async move {
                while told.changed().await.is_ok() {
                    changed.notify_one();
                }
            });
            self.open.insert(name.clone(), Open { secret, report: reported, _tasks: tasks });
        }
    }

    fn reports(&self) -> BTreeMap<String, Report> {
        self.open.iter().map(|(name, open)| (name.clone(), open.report.borrow().clone())).collect()
    }
}

/// What a pass goes by.
struct Pass<'a> {
    name: &'a str,
    declared: &'a Declared,
    imports: &'a ByName<Kept<ServiceImport>>,
    reports: &'a BTreeMap<String, Report>,
    is_undefined: bool,
}

impl Pass<'_> {
    fn merge<'m>(&self, own: &Exports, merger: &'m mut Merger) -> &'m Merged {
        // What is there of clusters that were not listed yet. Their slices stay as they are.
        let unlisted: BTreeMap<&str, Exports> =
            self.unlisted().map(|cluster| (cluster, self.remembered(cluster))).collect();
        let mut clusters = BTreeMap::from([(self.name, Cluster { exports: own, left: 0 })]);
        for (name, report) in self.reports {
            let exports = report.exports.as_ref().or_else(|| unlisted.get(name.as_str()));
            if let Some(exports) = exports {
                clusters.insert(name, Cluster { exports, left: self.left(name, report) });
            }
        }
        merger.merge(self.name, &clusters, &self.declared.namespaces)
    }

    /// Clusters that were not listed since this process leads, and have not left.
    fn unlisted(&self) -> impl Iterator<Item = &str> {
        let reports = self
            .reports
            .iter()
            .filter(|(name, report)| report.exports.is_none() && self.left(name, report) < PERMILLE);
        reports.map(|(name, _)| name.as_str())
    }

    fn kept(&self) -> BTreeSet<&str> {
        self.unlisted().collect()
    }

    /// What a cluster exported, as the ServiceImports say: it wins over nobody.
    fn remembered(&self, cluster: &str) -> Exports {
        let export = |(name, object): (&String, &Arc<Kept<ServiceImport>>)| {
            let import = Some(&object.rest.import).filter(|import| import.clusters.contains(cluster))?;
            let export = Export {
                created: Export::REMEMBERED,
                labels: import.labels.clone(),
                annotations: import.annotations.clone(),
                service: Ok(Arc::clone(&import.facts)),
                slices: Box::default(),
            };
            Some((name.clone(), Arc::new(export)))
        };
        self.imports.iter().filter_map(export).collect()
    }

    /// For how many seconds a cluster has not answered.
    fn silent(&self, name: &str, report: &Report) -> u64 {
        if matches!(report.connected, Some(Ok(()))) {
            return 0;
        }
        let own = now().saturating_sub(report.contact).as_secs();
        if report.exports.is_some() {
            return own;
        }
        // The one that led before has seen it last.
        let before = self.declared.statuses.cluster_links.get(name);
        let before = before.and_then(|status| status.last_contact_time.as_ref()).map(seconds);
        before.map_or(own, |last| own.max(host::now().saturating_sub(last)))
    }

    /// How much of a cluster has left, in thousandths.
    fn left(&self, name: &str, report: &Report) -> u16 {
        let stale_after =
            self.declared.cluster_links.get(name).map(|link| link.spec.stale_after_seconds.get());
        stale_after.map_or(PERMILLE, |stale_after| leaving(self.silent(name, report), stale_after))
    }

    /// How the links are, where that has changed.
    fn link_statuses(
        &self,
        merged: &Merged,
        faults: &[crate::fault::Fault],
        overlaps: &mut Overlaps,
    ) -> Vec<Write> {
        let statuses = &self.declared.statuses.cluster_links;
        let networks = self.reports.iter().map(|(name, report)| (name.clone(), Arc::clone(&report.networks)));
        let overlaps = overlaps.of(&self.declared.nodes, networks.collect());
        let write = |(name, link): (&String, &Arc<ClusterLink>)| {
            let before = statuses.get(name);
            let status = self.link_status(name, link, before, merged, faults, overlaps.get(name));
            plan::link_status(name, before, &status)
        };
        self.declared.cluster_links.iter().filter_map(write).collect()
    }

    fn link_status(
        &self,
        name: &str,
        link: &ClusterLink,
        before: Option<&Arc<ClusterLinkStatus>>,
        merged: &Merged,
        faults: &[crate::fault::Fault],
        overlap: Option<&String>,
    ) -> ClusterLinkStatus {
        const MOST: usize = 100;
        let generation = link.metadata.generation;
        let known = before.map_or(&[][..], |before| &before.conditions);
        let mut conditions = Conditions::new(known, generation, host::now());
        let object = format!("ClusterLink/{name}");
        match faults.iter().find(|fault| fault.object.as_deref() == Some(&*object)) {
            None => conditions.set("Accepted", true, "Valid", "in force"),
            Some(fault) => {
                let message = format!("the version before is in force: {fault}");
                conditions.set("Accepted", false, "Invalid", message);
            }
        }
        let report = self.reports.get(name);
        match report.map(|report| &report.connected) {
            None => conditions.set("Connected", false, "OwnName", "this cluster itself is called so"),
            Some(None) => conditions.set("Connected", Verdict::Unknown, "Opening", "it is being listed"),
            Some(Some(Ok(()))) => {
                conditions.set("Connected", true, "Connected", "it answers, and all of its exports are known")
            }
            Some(Some(Err((reason, message)))) => conditions.set("Connected", false, reason, message.clone()),
        }
        // As long as its nodes are known.
        if report.is_some_and(|report| !report.networks.is_empty()) {
            match overlap {
                None => conditions.set(
                    "Disjoint",
                    true,
                    "Disjoint",
                    "no pod CIDR and no address of its nodes is one of ours, or of another linked cluster",
                ),
                Some(message) => {
                    conditions.set("Disjoint", false, "OverlapAcrossClusters", message.clone());
                }
            }
        }
        let left = report.map_or(PERMILLE, |report| self.left(name, report));
        let is_connected = report.is_some_and(|report| matches!(report.connected, Some(Ok(()))));
        let after = link.spec.stale_after_seconds.get();
        match left {
            _ if self.is_undefined => conditions.set("Ready", false, "NotDefined", "this cluster does not know ServiceExport and ServiceImport: kubectl apply --server-side -k deploy/mcs-api"),
            _ if report.is_none() => conditions.set("Ready", false, "OwnName", "a cluster imports nothing from itself"),
            0 if is_connected => conditions.set("Ready", true, "Imported", "what it exports is imported"),
            0 => conditions.set("Ready", true, "Kept", format!("what is known of it stays for {after} s from when it answered last")),
            PERMILLE => conditions.set("Ready", false, "Stale", format!("it has not answered for {} s or more: its endpoints have left", 2 * u64::from(after))),
            _ => conditions.set("Ready", false, "Leaving", format!("it has not answered for {after} s or more: its endpoints leave one after the other")),
        }
        let Counts { exported, imported, endpoints, conflicts } =
            merged.counts.get(name).cloned().unwrap_or_default();
        let last_contact_time = report.filter(|_| !is_connected).and_then(|report| {
            let kept = before.and_then(|before| before.last_contact_time.clone());
            let since = || time(host::now().saturating_sub(self.silent(name, report)));
            kept.or_else(|| report.exports.is_some().then(since))
        });
        // Of one that was not listed yet the endpoints are as they were.
        let remembered = report.is_some_and(|report| report.exports.is_none() && left < PERMILLE);
        let endpoints = match before.filter(|_| remembered) {
            Some(before) => before.imported_endpoints,
            None => count(endpoints),
        };
        ClusterLinkStatus {
            observed_generation: generation,
            conditions: conditions.finish(),
            last_contact_time,
            exported_services: count(exported),
            imported_services: count(imported),
            imported_endpoints: endpoints,
            conflicting_services: conflicts.into_iter().take(MOST).collect(),
        }
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
