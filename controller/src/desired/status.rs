//! Statuses: how every declared object stands on this node. Conditions are of positive polarity, reasons are one
//! CamelCase word, messages have numbers.
use super::{
    Draft, NotAnnounced, addresses, conditions,
    filters::{Filtering, ROOM, Standing},
    in_use, labels, leases, links,
    memory::{Said, Told, same},
    peer_id, pod_cidrs,
    routes::{Announced, Announcements},
    services::{Backends, Balanced, Held},
    sources::Wish,
};
use crate::{
    api::{
        AddressPoolStatus, BGPAdvertisementStatus, BGPPeerStatus, BGPRouterStatus, Kind, LoadBalancerStatus,
        PacketFilterStatus, ServicePolicy, ServicePolicyStatus, address_pool::AddressPool,
        packet_filter::RuleStatus,
    },
    status::{Conditions, StatusSet, Statuses, Verdict},
};
use bgp_speaker::PeerId;
use ipam::{Assignment, Overlap, Remark, Unassigned};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// What is to be published, and what the next pass has to know of it. `known`: what became of the pass before, and the sources
/// that are to be looked at, while nothing else is another; none: all are.
pub(super) fn status(
    draft: &Draft<'_>,
    held: &Held,
    filters: &BTreeSet<String>,
    announcements: &Announcements,
    memory: &mut [Option<Said>],
    known: Option<(Told, &BTreeSet<usize>)>,
) -> (StatusSet, Told) {
    let faults = Faults::new(draft);
    let said = &draft.observed.said;
    let open = known.as_ref().and_then(|(told, changed)| Some((told, told.open(said)?, *changed)));
    let (mut fresh, of_kinds) = (BTreeSet::new(), [Kind::LoadBalancer, Kind::Service]);
    let mut status_of = |at: usize, said: Option<&Arc<LoadBalancerStatus>>| {
        let (balanced, outcomes) = (&draft.services.all[at], &*announcements.voices[at].outcomes);
        let status = Standpoint { balanced, said, held, outcomes }.status(draft, &faults, &mut memory[at]);
        if !said.is_some_and(|said| Arc::ptr_eq(said, &status)) {
            fresh.insert(at);
        }
        status
    };
    let [load_balancers, services] = of_kinds.map(|kind| {
        let (said, before) = match kind {
            Kind::Service => (&said.services, open.map(|(told, ..)| &told.services)),
            _ => (&said.load_balancers, open.map(|(told, ..)| &told.load_balancers)),
        };
        if let (Some((_, open, changed)), Some(before)) = (open, before) {
            let mut statuses = before.clone();
            for at in open.union(changed) {
                let source = &draft.services.all[*at].source;
                if source.kind() == kind {
                    let status = status_of(*at, said.get(&*source.name));
                    if !same(statuses.get(&*source.name), Some(&status)) {
                        statuses.insert(source.name.to_string(), status);
                    }
                }
            }
            return statuses;
        }
        // All in the order of the names.
        let (mut others, mut statuses) = (said.iter().peekable(), Vec::new());
        let all = draft.services.all.iter().enumerate();
        for (at, balanced) in all.filter(|(_, balanced)| balanced.source.kind() == kind) {
            let name = &*balanced.source.name;
            while others.next_if(|(other, _)| other.as_str() < name).is_some() {}
            let said = others.next_if(|(other, _)| *other == name).map(|(_, status)| status);
            statuses.push((name, status_of(at, said), said));
        }
        // Mostly there is nothing new to say.
        let is_same = |(_, status, said): &(_, Arc<_>, Option<&_>)| same(Some(status), *said);
        match statuses.len() == said.len() && statuses.iter().all(is_same) {
            true => said.clone(),
            false => statuses.into_iter().map(|(name, status, _)| (name.to_owned(), status)).collect(),
        }
    });
    let told = Told {
        said: Arc::clone(said),
        load_balancers: load_balancers.clone(),
        services: services.clone(),
        fresh,
    };
    let set = StatusSet {
        pools: pools(draft, &faults),
        load_balancers,
        services,
        policies: policies(draft, &faults),
        routers: routers(draft, &faults),
        peers: peers(draft, &faults),
        advertisements: advertisements(draft, &faults, announcements),
        nodes: pod_cidrs::statuses(draft),
        packet_filters: packet_filters(draft, &faults, filters),
        cluster_links: links::statuses(draft),
    };
    (set, told)
}

/// Faults of the newest generation, when it was refused, by object.
struct Faults<'a>(BTreeMap<&'a str, Vec<String>>);

impl<'a> Faults<'a> {
    fn new(draft: &Draft<'a>) -> Self {
        let mut faults: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for fault in &draft.observed.faults {
            if let Some(object) = &fault.object {
                faults.entry(object).or_default().push(fault.to_string());
            }
        }
        Faults(faults)
    }

    /// Says whether the newest version of the object is in force.
    fn accepted(&self, kind: Kind, name: &str, conditions: &mut Conditions<'_>) {
        let faults = match self.0.is_empty() {
            true => None,
            false => self.0.get(format!("{kind}/{name}").as_str()),
        };
        match faults {
            None => conditions.set("Accepted", true, "Valid", "in force"),
            Some(faults) => {
                let message = format!("the version before is in force: {}", faults.join("; "));
                conditions.set("Accepted", false, "Invalid", message);
            }
        }
    }
}

/// How a source stands.
struct Standpoint<'a> {
    balanced: &'a Balanced,
    /// What was said of it last.
    said: Option<&'a Arc<LoadBalancerStatus>>,
    held: &'a Held,
    outcomes: &'a [Result<Announced, NotAnnounced>],
}

impl Standpoint<'_> {
    fn status(
        &self,
        draft: &Draft<'_>,
        faults: &Faults<'_>,
        memory: &mut Option<Said>,
    ) -> Arc<LoadBalancerStatus> {
        let Standpoint { balanced, outcomes, .. } = *self;
        let before = self.said.or(balanced.source.before.as_ref());
        let installed = || balanced.services(self.held).map(|(_, held)| held);
        let is_same = |said: &Said| {
            same(said.before.as_ref(), before)
                && Arc::ptr_eq(&said.plan, &balanced.plan)
                && said.assignment == balanced.assignment
                && said.installed.iter().zip(installed()).all(|(one, other)| same(one.as_ref(), other))
                && said.outcomes == outcomes
        };
        if let Some(known) = memory.as_ref().filter(|said| is_same(said)) {
            return Arc::clone(&known.status);
        }
        let status = self.work_out(draft, faults, before);
        *memory = Some(Said {
            before: before.cloned(),
            plan: Arc::clone(&balanced.plan),
            assignment: Arc::clone(&balanced.assignment),
            installed: installed().map(Option::<&_>::cloned).collect(),
            outcomes: outcomes.to_vec(),
            status: Arc::clone(&status),
        });
        status
    }

    fn work_out(
        &self,
        draft: &Draft<'_>,
        faults: &Faults<'_>,
        before: Option<&Arc<LoadBalancerStatus>>,
    ) -> Arc<LoadBalancerStatus> {
        let Standpoint { balanced, held, outcomes, .. } = *self;
        let source = &balanced.source;
        let generation = source.metadata().generation;
        let mut conditions = conditions(draft, before.map(|b| &b.conditions), generation);
        faults.accepted(source.kind(), &source.name, &mut conditions);
        address_assigned(&balanced.assignment, &source.wish, &mut conditions);
        if source.kind() == Kind::Service {
            policy_applied(&source.policies, &mut conditions);
        }
        programmed(draft, balanced, held, &mut conditions);
        healthy(draft, balanced, &mut conditions);
        announced(balanced, outcomes, &mut conditions);
        let Backends { declared, healthy, .. } = balanced.plan.backends;
        let (backends, healthy_backends) = (declared.into(), Some(healthy.into()));
        // Mostly nothing has changed. Compared, the status need not be built.
        if let Some(before) = before
            && before.observed_generation == generation
            && (before.backends, before.healthy_backends) == (backends, healthy_backends)
            && addresses::are_listed(&balanced.assignment, before)
            && conditions.are_unchanged()
        {
            return Arc::clone(before);
        }
        Arc::new(LoadBalancerStatus {
            observed_generation: generation,
            conditions: conditions.finish(),
            addresses: addresses::assigned(
                &balanced.assignment,
                source.before.as_deref(),
                draft.observed.now,
            ),
            backends,
            healthy_backends,
            ..LoadBalancerStatus::default()
        })
    }
}

fn address_assigned(assignment: &Assignment, wish: &Wish, conditions: &mut Conditions<'_>) {
    const TYPE: &str = "AddressAssigned";
    let given = assignment.addresses.len();
    if let Some(fault) = &wish.fault {
        return conditions.set(TYPE, false, "InvalidRequest", format!("{given} assigned; {fault}"));
    }
    // A service that has an address of one family is not at fault when no pool has the other.
    let is_missing =
        |reason: &&Unassigned| given == 0 || wish.needs_all || !matches!(reason, Unassigned::NoPool { .. });
    let missing: Vec<_> = assignment.unassigned.iter().filter(is_missing).collect();
    if let Some(first) = missing.first() {
        let reasons: Vec<_> = missing.iter().map(ToString::to_string).collect();
        let message = match given {
            0 => reasons.join("; "),
            _ => format!("{given} assigned; {}", reasons.join("; ")),
        };
        return conditions.set(TYPE, false, first.reason(), message);
    }
    let mut message = match given {
        1 => Cow::Borrowed("1 address assigned"),
        _ => Cow::Owned(format!("{given} addresses assigned")),
    };
    let mut reason = "Assigned";
    for (address, given) in assignment.addresses.iter() {
        let pool = given.pool.as_deref();
        match (given.remark, pool) {
            (Some(Remark::Outside), Some(pool)) => {
                reason = "OutsidePool";
                *message.to_mut() += &format!("; {address} is kept although pool {pool} does not have it");
            }
            (Some(Remark::Reserved), Some(pool)) => {
                reason = "OutsidePool";
                *message.to_mut() += &format!("; {address} is kept although pool {pool} reserves it");
            }
            // Asked for by address, and in no pool: as declared.
            (_, None) | (None, _) => {}
        }
    }
    conditions.set(TYPE, true, reason, message);
}

/// Which ServicePolicy counts for a Service.
fn policy_applied(policies: &[String], conditions: &mut Conditions<'_>) {
    const TYPE: &str = "PolicyApplied";
    match policies {
        [] => conditions.set(TYPE, true, "Default", "no ServicePolicy selects it: the defaults hold"),
        [policy] => conditions.set(TYPE, true, "Selected", format!("ServicePolicy {policy}")),
        [policy, others @ ..] => {
            let message = format!(
                "ServicePolicy {policy}, as the oldest or the first; {} select it, too",
                others.join(", ")
            );
            conditions.set(TYPE, true, "SeveralSelect", message);
        }
    }
}

fn programmed(draft: &Draft<'_>, balanced: &Balanced, held: &Held, conditions: &mut Conditions<'_>) {
    const TYPE: &str = "Programmed";
    if !draft.node.balances {
        return conditions.set(TYPE, false, "NodeNotSelected", "no BGPRouter selects this node");
    }
    if balanced.addresses.is_empty() {
        return conditions.set(TYPE, false, "NoAddress", "no address is in effect");
    }
    let (mut installed, mut of) = (0, 0);
    for (port, held) in balanced.services(held) {
        of += 1;
        installed += u32::from(held.is_some_and(|h| h.frontends.is_superset(&port.service().frontends)));
    }
    let mut message = format!("{installed} of {of} services installed");
    let refused = balanced.source.refused.iter().chain(&balanced.plan.refused);
    for refused in refused.clone() {
        message += &format!("; {refused}");
    }
    match installed == of {
        _ if refused.count() > 0 => conditions.set(TYPE, false, "Refused", message),
        true => conditions.set(TYPE, true, "Installed", message),
        false => conditions.set(TYPE, false, "NotInstalled", message),
    }
}

fn healthy(draft: &Draft<'_>, balanced: &Balanced, conditions: &mut Conditions<'_>) {
    const TYPE: &str = "Healthy";
    let Backends { declared, healthy, unknown, failed } = balanced.plan.backends;
    if !draft.node.balances {
        return conditions.set(TYPE, Verdict::Unknown, "NodeNotSelected", "this node checks nothing");
    }
    if declared == 0 {
        return conditions.set(TYPE, false, "NoBackends", "no backends are declared");
    }
    if balanced.source.policy.health_check.is_none() {
        return conditions.set(
            TYPE,
            true,
            "NotChecked",
            format!("backends: {declared}, no check is declared"),
        );
    }
    let mut message = format!("{healthy} of {declared} backends healthy");
    if unknown > 0 {
        message += &format!(", {unknown} not checked yet");
    }
    if let Some((endpoint, failure)) = failed {
        message += &format!("; {} port {}: {failure}", endpoint.address, endpoint.port);
    }
    match healthy {
        0 if unknown > 0 => conditions.set(TYPE, Verdict::Unknown, "NotCheckedYet", message),
        0 => conditions.set(TYPE, false, "NoHealthyBackend", message),
        _ if healthy == declared => conditions.set(TYPE, true, "AllHealthy", message),
        _ => conditions.set(TYPE, true, "SomeHealthy", message),
    }
}

fn announced(
    balanced: &Balanced,
    outcomes: &[Result<Announced, NotAnnounced>],
    conditions: &mut Conditions<'_>,
) {
    const TYPE: &str = "Announced";
    let of = outcomes.len();
    if of == 0 {
        return conditions.set(TYPE, false, "NoAddress", "no address is in effect");
    }
    let refused = balanced.addresses.iter().zip(outcomes).find_map(|(address, outcome)| match outcome {
        Err(reason) => Some((address, reason)),
        Ok(_) => None,
    });
    if let Some((address, reason)) = refused {
        let count = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        let message = format!("{count} of {of} addresses announced; {address}: {reason}");
        return conditions.set(TYPE, false, reason.reason(), message);
    }
    let fewest = outcomes.iter().filter_map(|o| o.as_ref().ok()).min_by_key(|a| (a.established, a.peers));
    let Some(Announced { peers, established }) = fewest else { return };
    let message = format!("{of} of {of} addresses announced, to {established} of {peers} peers");
    match established {
        0 => conditions.set(TYPE, false, "NoEstablishedPeer", message),
        _ => conditions.set(TYPE, true, "Announced", message),
    }
}

fn pools(draft: &Draft<'_>, faults: &Faults<'_>) -> Statuses<AddressPoolStatus> {
    let pool = |(name, object): (&String, &Arc<AddressPool>)| {
        let before = draft.declared.statuses.pools.get(name);
        let generation = object.metadata.generation;
        let mut conditions = conditions(draft, before.map(|b| &b.conditions), generation);
        faults.accepted(Kind::AddressPool, name, &mut conditions);
        let mut status = AddressPoolStatus { observed_generation: generation, ..Default::default() };
        if let Some(usage) = draft.given.assignments.pools.get(name.as_str()) {
            status.ipv4 = addresses::counts(&usage.ipv4);
            status.ipv6 = addresses::counts(&usage.ipv6);
            status.released = addresses::released(&draft.given.assignments, object);
            status.in_use = in_use::ranges(object, in_effect(draft).map(|address| (address, address)));
            available(object, "addresses", &status, &mut conditions);
            disjoint(draft, name, &draft.given.assignments.overlaps, &mut conditions);
        }
        if let Some(usage) = draft.blocks.pools.get(name.as_str()) {
            status.ipv4 = addresses::counts(&usage.ipv4);
            status.ipv6 = addresses::counts(&usage.ipv6);
            status.released_blocks = pod_cidrs::released(&draft.blocks, object);
            let blocks = pod_cidrs::all_effective(draft.declared, &draft.blocks);
            status.in_use = in_use::ranges(object, blocks.map(|net| (net.network(), net.broadcast())));
            available(object, "blocks", &status, &mut conditions);
            if !draft.observed.neighbours.clusters.is_empty() {
                disjoint(draft, name, &[], &mut conditions);
            }
        }
        if let Some(leased) = leases::Leased::new(draft, name, object) {
            leased.say(&mut conditions);
            status.leases = Some(leased.leases());
        }
        status.conditions = conditions.finish();
        (name.clone(), Arc::new(status))
    };
    draft.declared.pools.iter().map(pool).collect()
}

/// The addresses in effect, those of refused objects included.
fn in_effect(draft: &Draft<'_>) -> impl Iterator<Item = IpAddr> {
    let in_effect = draft.services.in_effect.iter().copied();
    let StatusSet { load_balancers, services, .. } = &draft.declared.statuses;
    let of_refused = |object: &String| match object.split_once('/')? {
        ("LoadBalancer", name) => load_balancers.get(name),
        ("Service", name) => services.get(name),
        _ => None,
    };
    let refused = draft.declared.refused.iter().filter_map(of_refused);
    in_effect.chain(refused.flat_map(|status| status.addresses.iter().map(|assigned| assigned.address.0)))
}

fn available(object: &AddressPool, what: &str, status: &AddressPoolStatus, conditions: &mut Conditions<'_>) {
    const TYPE: &str = "AddressesAvailable";
    let families = [("IPv4", status.ipv4), ("IPv6", status.ipv6)];
    let of: Vec<_> = families
        .iter()
        .filter(|(_, counts)| counts.total > 0)
        .map(|(family, counts)| {
            let free = format!("{} of {} {family} {what} free", counts.available, counts.total);
            match counts.withheld {
                0 => free,
                withheld => format!("{free} ({withheld} not leased to this cluster)"),
            }
        })
        .collect();
    let exhausted = families.iter().any(|(_, counts)| counts.total > 0 && counts.available == 0);
    match (object.spec.disabled, of.is_empty(), exhausted) {
        (true, ..) => conditions.set(TYPE, false, "Disabled", of.join(", ")),
        (_, true, _) => conditions.set(TYPE, false, "NoAddresses", "all addresses are reserved"),
        (_, _, true) => conditions.set(TYPE, false, "PoolExhausted", of.join(", ")),
        _ => conditions.set(TYPE, true, "Available", of.join(", ")),
    }
}

fn disjoint(draft: &Draft<'_>, name: &str, overlaps: &[Overlap], conditions: &mut Conditions<'_>) {
    const TYPE: &str = "Disjoint";
    let others: Vec<_> = overlaps
        .iter()
        .filter_map(|overlap| match name {
            _ if *overlap.first == *name => Some((&overlap.second, overlap.range)),
            _ if *overlap.second == *name => Some((&overlap.first, overlap.range)),
            _ => None,
        })
        .collect();
    match others.first() {
        None if let Some(message) = leases::overlap(draft, name) => {
            conditions.set(TYPE, false, "OverlapAcrossClusters", message);
        }
        None => conditions.set(TYPE, true, "Disjoint", "no other pool has its addresses"),
        Some((other, range)) => {
            let message = format!("pool {other} has {range}, too ({} overlaps)", others.len());
            conditions.set(TYPE, false, "Overlap", message);
        }
    }
}

fn policies(draft: &Draft<'_>, faults: &Faults<'_>) -> Statuses<ServicePolicyStatus> {
    let services = &draft.services.policies;
    let policy = |(name, object): (&String, &Arc<ServicePolicy>)| {
        let before = draft.declared.statuses.policies.get(name);
        let generation = object.metadata.generation;
        let mut conditions = conditions(draft, before.map(|b| &b.conditions), generation);
        faults.accepted(Kind::ServicePolicy, name, &mut conditions);
        let status = ServicePolicyStatus {
            observed_generation: generation,
            conditions: conditions.finish(),
            services: services.get(name).copied().unwrap_or(0),
        };
        (name.clone(), Arc::new(status))
    };
    draft.declared.policies.iter().map(policy).collect()
}

fn routers(draft: &Draft<'_>, faults: &Faults<'_>) -> Statuses<BGPRouterStatus> {
    let router = |(name, object): (&String, &Arc<crate::api::BGPRouter>)| {
        let before = draft.declared.statuses.routers.get(name);
        let generation = object.metadata.generation;
        let mut conditions = conditions(draft, before.map(|b| &b.conditions), generation);
        faults.accepted(Kind::BGPRouter, name, &mut conditions);
        let runs = draft.node.router.is_some_and(|(running, _)| running == name);
        let (sessions, established) = if runs { sessions(draft) } else { (0, 0) };
        if runs {
            match &draft.speaker {
                Err(_) => conditions.set(
                    "Programmed",
                    false,
                    "NoRouterID",
                    "the node has no IPv4 address: set spec.routerID",
                ),
                Ok(_) => conditions.set("Programmed", true, "Running", format!("sessions: {sessions}")),
            }
        }
        let status = BGPRouterStatus {
            observed_generation: generation,
            conditions: conditions.finish(),
            nodes: nodes(draft, object),
            sessions,
            established_sessions: established,
        };
        (name.clone(), Arc::new(status))
    };
    draft.declared.routers.iter().map(router).collect()
}

/// How many nodes a router selects: this one and those that are declared.
fn nodes(draft: &Draft<'_>, router: &crate::api::BGPRouter) -> i64 {
    let selector = &router.spec.node_selector;
    let own = &draft.observed.node.name;
    let others = draft.declared.nodes.iter().filter(|(name, _)| *name != own);
    let selected = others.filter(|(_, node)| selector.matches(labels(&node.metadata))).count() as i64;
    // The controller is on none.
    selected + i64::from(!own.is_empty() && selector.matches(&draft.node.labels))
}

/// Sessions of this node, and how many of them are established. A range has those that are.
fn sessions(draft: &Draft<'_>) -> (i64, i64) {
    let members = |id: &PeerId| draft.node.established.get(id).copied().unwrap_or_default();
    let of = |id: &PeerId| if matches!(id, PeerId::Range(_)) { members(id) } else { 1 };
    let (ids, established) = (draft.node.peers.keys(), draft.node.established.values());
    (ids.map(of).sum::<usize>() as i64, established.sum::<usize>() as i64)
}

fn peers(draft: &Draft<'_>, faults: &Faults<'_>) -> Statuses<BGPPeerStatus> {
    let peer = |(name, object): (&String, &Arc<crate::api::BGPPeer>)| {
        let before = draft.declared.statuses.peers.get(name);
        let generation = object.metadata.generation;
        let mut conditions = conditions(draft, before.map(|b| &b.conditions), generation);
        faults.accepted(Kind::BGPPeer, name, &mut conditions);
        let id = peer_id(object, &draft.observed.node);
        let owner = id.and_then(|id| draft.node.peers.get(&id)).map(|(owner, _)| *owner);
        let count = id.and_then(|id| draft.node.established.get(&id)).map_or(0, |count| *count as i64);
        let spec = &object.spec;
        let (mut sessions, mut established) = (0, 0);
        match owner {
            None if id.is_none() => {
                conditions.set("Established", false, "NoGateway", "this node has no default gateway")
            }
            None => {
                conditions.set("Established", false, "NotSelected", "no BGPRouter of this node selects it")
            }
            Some(owner) if owner != name => {
                let what = match id {
                    Some(PeerId::Interface(_)) => "interface",
                    Some(PeerId::Range(_)) => "range",
                    _ => "address",
                };
                conditions.set("Established", false, "DuplicateAddress", format!("{owner} has its {what}"));
            }
            Some(_) => {
                (sessions, established) = (if spec.range.is_some() { count } else { 1 }, count);
                let of = match &spec.range {
                    Some(range) => format!("at most {}", range.limit),
                    None => "1".to_owned(),
                };
                let reason = match (count, &spec.shutdown) {
                    (0, Some(_)) => "Shutdown",
                    (0, None) => "NotEstablished",
                    _ => "Established",
                };
                let message = format!("{established} of {of} sessions established");
                conditions.set("Established", count > 0, reason, message);
            }
        }
        let status = BGPPeerStatus {
            observed_generation: generation,
            conditions: conditions.finish(),
            sessions,
            established_sessions: established,
        };
        (name.clone(), Arc::new(status))
    };
    draft.declared.peers.iter().map(peer).collect()
}

fn advertisements(
    draft: &Draft<'_>,
    faults: &Faults<'_>,
    announcements: &Announcements,
) -> Statuses<BGPAdvertisementStatus> {
    let advertisement = |(name, object): (&String, &Arc<crate::api::BGPAdvertisement>)| {
        let before = draft.declared.statuses.advertisements.get(name);
        let generation = object.metadata.generation;
        let mut conditions = conditions(draft, before.map(|b| &b.conditions), generation);
        faults.accepted(Kind::BGPAdvertisement, name, &mut conditions);
        let advertised = announcements.advertisements.get(name);
        let status = BGPAdvertisementStatus {
            observed_generation: generation,
            conditions: conditions.finish(),
            announced_routes: advertised.map_or(0, |a| a.announced.into()),
            withheld_routes: advertised.map_or(0, |a| a.withheld.into()),
        };
        (name.clone(), Arc::new(status))
    };
    draft.declared.advertisements.iter().map(advertisement).collect()
}

fn packet_filters(
    draft: &Draft<'_>,
    faults: &Faults<'_>,
    held: &BTreeSet<String>,
) -> Statuses<PacketFilterStatus> {
    let counters = &draft.observed.filters;
    let rule = |(label, key): (String, String)| RuleStatus::new(label, counters.get(&key).copied());
    let filter = |filter: &Filtering<'_>| {
        let generation = filter.object.metadata.generation;
        let mut conditions = conditions(draft, filter.before.map(|b| &b.conditions), generation);
        faults.accepted(Kind::PacketFilter, filter.name, &mut conditions);
        active(filter, &mut conditions);
        filter_programmed(filter, held, &mut conditions);
        let status = PacketFilterStatus {
            observed_generation: generation,
            conditions: conditions.finish(),
            rules: filter.rules().map(rule).collect(),
        };
        (filter.name.to_owned(), Arc::new(status))
    };
    draft.filters.all.iter().map(filter).collect()
}

fn active(filter: &Filtering<'_>, conditions: &mut Conditions<'_>) {
    const TYPE: &str = "Active";
    match &filter.object.spec.expires_at {
        None => conditions.set(TYPE, true, "Active", "does not expire"),
        Some(Time(at)) if filter.standing == Standing::Expired => {
            conditions.set(TYPE, false, "Expired", format!("expired at {at}"));
        }
        Some(Time(at)) => conditions.set(TYPE, true, "Active", format!("expires at {at}")),
    }
}

fn filter_programmed(filter: &Filtering<'_>, held: &BTreeSet<String>, conditions: &mut Conditions<'_>) {
    const TYPE: &str = "Programmed";
    let of = filter.object.spec.rules.len();
    match filter.standing {
        Standing::Expired => conditions.set(TYPE, false, "Expired", "its rules are not applied any more"),
        Standing::NodeNotSelected => {
            conditions.set(TYPE, false, "NodeNotSelected", "nodeSelector does not select this node");
        }
        Standing::TooManyRules(used) => {
            let message = format!("its {of} rules are too many: {used} of {ROOM} are taken");
            conditions.set(TYPE, false, "TooManyRules", message);
        }
        Standing::Applied => {
            let held = filter.rules().filter(|(_, key)| held.contains(key)).count();
            let reason = if held == of { "Installed" } else { "NotInstalled" };
            conditions.set(TYPE, held == of, reason, format!("{held} of {of} rules installed"));
        }
    }
}
