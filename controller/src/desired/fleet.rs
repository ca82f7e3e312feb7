//! How objects stand in the cluster: what its nodes tell, summed up in conditions and numbers.
//!
//! A node counts while its agent writes its NodeState; one that is silent is not known, which is not good. A node that does
//! not know the newest version of an object yet says nothing of it: for a while what was said before stays.
use super::{
    labels,
    pages::{Key, PAGES, Pages, Sight, Standing},
    report::KEY_USABLE,
};
use crate::{
    api::{
        BGPPeerStatus, BGPRouter, BGPRouterStatus, Kind, LoadBalancerStatus, PacketFilterStatus,
        node_state::{NodeStateStatus, ObjectFault, SessionState},
    },
    declared::Declared,
    observed::Observed,
    status::{Conditions, StatusSet, Verdict},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use std::{collections::BTreeMap, sync::Arc};

/// Conditions that come from nodes.
pub(super) const OF_NODES: [&str; 5] = ["Announced", "Established", "Healthy", KEY_USABLE, "Programmed"];
/// A node that does not know the newest version of an object for so long is as silent, in seconds.
const PATIENCE: u64 = 90;
/// Statuses of services that change for the sake of nodes in one go: a node that comes or goes changes them all.
const MOST_CHANGES: usize = 200;
/// Nodes that a message names.
const NAMED: usize = 3;

/// What is known of the nodes, by name.
pub type NodeReports = BTreeMap<String, NodeReport>;

/// What is known of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeReport {
    /// Its NodeState.
    pub state: Arc<NodeStateStatus>,
    /// Whether its agent is there.
    pub is_fresh: bool,
}

/// Sums up, again and again.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    /// By node and page: since when it does not know the objects there, in seconds since the epoch; 0: it does.
    behind: BTreeMap<String, [u64; PAGES]>,
    /// The service whose turn is next.
    next: Option<(Kind, String)>,
}

impl Fleet {
    /// Puts into the statuses of the cluster what the nodes tell. Of `observed` faults and time count. At most 200 statuses of
    /// services change; the others have their turn the next time.
    pub fn sum_up(
        &mut self,
        declared: &Declared,
        observed: &Observed,
        reports: &NodeReports,
        set: &mut StatusSet,
    ) {
        let pages = Pages::new(declared, &observed.faults);
        self.behind.retain(|name, _| reports.contains_key(name));
        let members: Vec<_> = reports
            .iter()
            // Its Node is gone, and so is it.
            .filter(|(name, report)| report.is_fresh || declared.nodes.contains_key(*name))
            .map(|(name, report)| self.member(declared, observed.now, &pages, name, report))
            .collect();
        let sum = Sum { declared, pages: &pages, members: &members, now: observed.now };
        self.services(&sum, set);
        set.routers.change_each(|name, status| sum.router(name, status));
        set.peers.change_each(|name, status| sum.peer(name, status));
        set.packet_filters.change_each(|name, status| sum.packet_filter(name, status));
        set.advertisements.change_each(|name, status| {
            let states = members.iter().flat_map(|member| &member.report.state.advertisements);
            let own = states.filter(|state| state.name == *name);
            let (announced, withheld) = own.fold((0_i64, 0_i64), |(announced, withheld), state| {
                let more = |sum: i64, more: i64| sum.saturating_add(more.max(0));
                (more(announced, state.announced_routes), more(withheld, state.withheld_routes))
            });
            if (status.announced_routes, status.withheld_routes) != (announced, withheld) {
                let status = Arc::make_mut(status);
                (status.announced_routes, status.withheld_routes) = (announced, withheld);
            }
        });
    }

    /// Whether the next sum of the same would be the same.
    pub fn is_settled(&self) -> bool {
        self.next.is_none() && self.behind.values().flatten().all(|since| *since == 0)
    }

    fn member<'a>(
        &mut self,
        declared: &'a Declared,
        now: u64,
        pages: &Pages<'_>,
        name: &'a str,
        report: &'a NodeReport,
    ) -> Member<'a> {
        let mut own = declared.nodes.get(name).map_or_else(BTreeMap::new, |n| labels(&n.metadata).clone());
        own.insert("kubernetes.io/hostname".to_owned(), name.to_owned());
        let router = declared.routers.iter().find(|(_, router)| router.spec.node_selector.matches(&own));
        let router = router.map(|(name, router)| (name.as_str(), &**router));
        let behind = self.behind.entry(name.to_owned()).or_insert([0; PAGES]);
        let page = |(page, since): (usize, &mut u64)| {
            let read = pages.read(page, &report.state.pages).filter(|_| report.is_fresh);
            match read {
                Some(digits) => {
                    *since = 0;
                    PageView::Read(digits)
                }
                None if !report.is_fresh => PageView::Silent,
                None => {
                    if *since == 0 {
                        *since = now;
                    }
                    if now.saturating_sub(*since) > PATIENCE { PageView::Silent } else { PageView::Behind }
                }
            }
        };
        let pages = behind.iter_mut().enumerate().map(page).collect();
        let balances = router.is_some() || declared.routers.is_empty();
        Member { name, report, router, balances, pages }
    }

    fn services(&mut self, sum: &Sum<'_>, set: &mut StatusSet) {
        let start = self.next.take();
        let balancers = set.load_balancers.iter().map(|(name, status)| ((Kind::LoadBalancer, name), status));
        let services = set.services.iter().map(|(name, status)| ((Kind::Service, name), status));
        let mut all: Vec<_> = balancers.chain(services).collect();
        // From where it stopped to the end, then from the begin to there.
        let first =
            start.map_or(0, |(kind, name)| all.partition_point(|(object, _)| *object < (kind, &name)));
        all.rotate_left(first);
        let mut changes = Vec::new();
        for ((kind, name), status) in all {
            let Some(changed) = sum.service((kind, name), status) else { continue };
            if changes.len() == MOST_CHANGES {
                self.next = Some((kind, name.clone()));
                break;
            }
            changes.push((kind, name.clone(), changed));
        }
        for (kind, name, changed) in changes {
            match kind {
                Kind::Service => set.services.insert(name, changed),
                _ => set.load_balancers.insert(name, changed),
            };
        }
    }
}

/// A node that counts.
struct Member<'a> {
    name: &'a str,
    report: &'a NodeReport,
    /// The router that selects it, with its name.
    router: Option<(&'a str, &'a BGPRouter)>,
    balances: bool,
    pages: Vec<PageView<'a>>,
}

/// What a node has told of the objects of a page.
#[derive(Clone, Copy)]
enum PageView<'a> {
    /// How they stand.
    Read(&'a [u8]),
    /// Of other versions, a moment ago.
    Behind,
    /// Nothing.
    Silent,
}

impl Member<'_> {
    /// Why it cannot use the key of a peer.
    fn key_fault(&self, peer: &str) -> Option<&ObjectFault> {
        let faults = self.report.state.faults.iter();
        faults.filter(|fault| fault.condition == KEY_USABLE).find(|fault| fault.object == peer)
    }

    /// What it says is wrong with an object.
    fn fault(&self, object: &str) -> Option<&ObjectFault> {
        self.report.state.faults.iter().find(|fault| fault.object == object)
    }
}

struct Sum<'a> {
    declared: &'a Declared,
    pages: &'a Pages<'a>,
    members: &'a [Member<'a>],
    now: u64,
}

/// Some nodes: how many, and the names of the first.
#[derive(Default)]
struct Several<'a> {
    first: Vec<&'a Member<'a>>,
    count: usize,
}

impl<'a> Several<'a> {
    fn add(&mut self, member: &'a Member<'a>) {
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push(member);
        }
    }

    fn names(&self) -> String {
        let names: Vec<_> = self.first.iter().map(|member| member.name).collect();
        let names = names.join(", ");
        match self.count - self.first.len() {
            0 => names,
            more => format!("{names} and {more} more"),
        }
    }

    /// `; not on n1, n2: why the first says`, if there are any.
    fn but_not(&self, preposition: &str, object: &str) -> String {
        let Some(first) = self.first.first() else { return String::new() };
        let why = first.fault(object).map(|fault| format!(": {}", fault.message)).unwrap_or_default();
        format!("; not {preposition} {}{why}", self.names())
    }
}

/// What the nodes say of an object.
#[derive(Default)]
struct Tally<'a> {
    nodes: usize,
    programmed: usize,
    announced: usize,
    /// Nodes that see backends.
    seeing: usize,
    healthy: usize,
    not_programmed: Several<'a>,
    not_announced: Several<'a>,
    not_healthy: Several<'a>,
    not_checked: Several<'a>,
    silent: Several<'a>,
    /// Whether a node does not know its newest version yet.
    is_behind: bool,
}

impl<'a> Sum<'a> {
    /// Of the members of which `counts` says so; those for which the object is not are left out if `skips`.
    fn tally(&self, object: Key<'_>, skips: bool, counts: impl Fn(&Member<'_>) -> bool) -> Tally<'a> {
        let mut tally = Tally::default();
        let place = self.pages.find(object);
        for member in self.members.iter().filter(|member| counts(member)) {
            let view = place.map_or(PageView::Silent, |(page, _)| member.pages[page]);
            let standing = match (view, place) {
                (PageView::Read(digits), Some((_, at))) => Standing::of(digits[at]),
                (view, _) => {
                    tally.is_behind |= matches!(view, PageView::Behind);
                    tally.nodes += 1;
                    tally.silent.add(member);
                    continue;
                }
            };
            if skips && standing.health == Sight::Nothing {
                continue;
            }
            tally.nodes += 1;
            match standing.is_programmed {
                true => tally.programmed += 1,
                false => tally.not_programmed.add(member),
            }
            match standing.is_announced {
                true => tally.announced += 1,
                false => tally.not_announced.add(member),
            }
            tally.seeing += usize::from(standing.health != Sight::Nothing);
            match standing.health {
                Sight::Healthy => tally.healthy += 1,
                Sight::Unhealthy => tally.not_healthy.add(member),
                Sight::Unknown => tally.not_checked.add(member),
                Sight::Nothing => {}
            }
        }
        tally
    }

    /// The status with what nodes say; none: it is as it is.
    fn service(&self, object: Key<'_>, status: &Arc<LoadBalancerStatus>) -> Option<Arc<LoadBalancerStatus>> {
        let (kind, name) = object;
        // Of what is at fault nobody says anything.
        self.pages.find(object)?;
        let tally = self.tally(object, false, |member| member.balances);
        let published = match kind {
            Kind::Service => self.declared.statuses.services.get(name),
            _ => self.declared.statuses.load_balancers.get(name),
        };
        let is_known = status.conditions.iter().any(|condition| condition.type_ == "Programmed");
        if tally.is_behind && is_known && published.is_some_and(|p| p.addresses == status.addresses) {
            return None;
        }
        let text = format!("{kind}/{name}");
        let mut conditions = Conditions::new(&status.conditions, status.observed_generation, self.now);
        tally.programmed(&text, &mut conditions);
        tally.healthy(&text, &mut conditions);
        tally.announced(&text, &mut conditions);
        // The status of a Service has no place for numbers.
        let number = |count: usize| (kind != Kind::Service).then_some(count as i64);
        let (programmed, announcing) = (number(tally.programmed), number(tally.announced));
        let conditions = with(&status.conditions, conditions);
        if conditions.is_none()
            && (status.programmed_nodes, status.announcing_nodes) == (programmed, announcing)
        {
            return None;
        }
        let mut status = (**status).clone();
        status.conditions = conditions.unwrap_or(status.conditions);
        (status.programmed_nodes, status.announcing_nodes) = (programmed, announcing);
        Some(Arc::new(status))
    }

    fn router(&self, name: &str, status: &mut Arc<BGPRouterStatus>) {
        let runs = |member: &Member<'_>| member.router.is_some_and(|(router, _)| router == name);
        let tally = self.tally((Kind::BGPRouter, name), false, runs);
        let sessions = self.members.iter().filter(|member| runs(member) && member.report.is_fresh);
        let sessions = sessions.flat_map(|member| &member.report.state.sessions);
        let counts = (sessions.clone().count() as i64, sessions.filter(|s| is_established(s)).count() as i64);
        let mut conditions = Conditions::new(&status.conditions, status.observed_generation, self.now);
        if !tally.is_behind || status.conditions.iter().all(|condition| condition.type_ != "Programmed") {
            tally.programmed(&format!("BGPRouter/{name}"), &mut conditions);
            if let Some(conditions) = with(&status.conditions, conditions) {
                Arc::make_mut(status).conditions = conditions;
            }
        }
        if (status.sessions, status.established_sessions) != counts {
            let status = Arc::make_mut(status);
            (status.sessions, status.established_sessions) = counts;
        }
    }

    fn packet_filter(&self, name: &str, status: &mut Arc<PacketFilterStatus>) {
        let tally = self.tally((Kind::PacketFilter, name), true, |_| true);
        if tally.is_behind && status.conditions.iter().any(|condition| condition.type_ == "Programmed") {
            return;
        }
        let mut conditions = Conditions::new(&status.conditions, status.observed_generation, self.now);
        match tally.nodes {
            0 => conditions.set("Programmed", false, "NodeNotSelected", "no node applies it"),
            _ => tally.programmed(&format!("PacketFilter/{name}"), &mut conditions),
        }
        if let Some(conditions) = with(&status.conditions, conditions) {
            Arc::make_mut(status).conditions = conditions;
        }
    }

    fn peer(&self, name: &str, status: &mut Arc<BGPPeerStatus>) {
        let Some(peer) = self.declared.peers.get(name) else { return };
        let selects = |member: &&Member<'_>| {
            let router = member.router.map(|(_, router)| &router.spec.peer_selector);
            router.is_some_and(|selector| selector.matches(labels(&peer.metadata)))
        };
        let text = format!("BGPPeer/{name}");
        let (mut silent, mut down, mut keyless) =
            (Several::default(), Several::default(), Several::default());
        let (mut nodes, mut sessions, mut established, mut why) = (0, 0, 0, None);
        for member in self.members.iter().filter(selects) {
            nodes += 1;
            if !member.report.is_fresh {
                silent.add(member);
                continue;
            }
            if member.key_fault(&text).is_some() {
                keyless.add(member);
            }
            let own: Vec<_> = member.report.state.sessions.iter().filter(|s| s.name == name).collect();
            let up = own.iter().filter(|session| is_established(session)).count();
            if up < own.len() {
                down.add(member);
                why = why.or_else(|| own.iter().find(|session| !is_established(session)).copied());
            }
            sessions += own.len();
            established += up;
        }
        let mut conditions = Conditions::new(&status.conditions, status.observed_generation, self.now);
        let mut message = format!("{established} of {sessions} sessions established");
        if let Some(SessionState { state, last_error, .. }) = why {
            let why = last_error.as_ref().unwrap_or(state);
            message += &format!("; not on {}: {why}", down.names());
        }
        if silent.count > 0 {
            message += &format!("; silent: {}", silent.names());
        }
        let (verdict, reason) = match (nodes, &peer.spec.shutdown) {
            (0, _) => {
                message = "no BGPRouter of a node that is there selects it".to_owned();
                (Verdict::False, "NotSelected")
            }
            (_, Some(_)) if established == 0 => (Verdict::False, "Shutdown"),
            _ if down.count > 0 => (Verdict::False, "NotEstablished"),
            _ if silent.count > 0 => (Verdict::Unknown, "NodesSilent"),
            _ if established == 0 => (Verdict::False, "NotEstablished"),
            _ => (Verdict::True, "Established"),
        };
        conditions.set("Established", verdict, reason, message);
        if peer.spec.auth.is_some() && nodes > 0 {
            match keyless.first.first().and_then(|member| member.key_fault(&text)) {
                Some(fault) => {
                    let message = format!("on {}: {}", keyless.names(), fault.message);
                    conditions.set(KEY_USABLE, false, "KeyUnusable", message);
                }
                None if silent.count == nodes => {
                    conditions.set(KEY_USABLE, Verdict::Unknown, "NodesSilent", "all nodes are silent");
                }
                None => conditions.set(
                    "KeyUsable",
                    true,
                    "KeyUsable",
                    format!("on {} nodes", nodes - silent.count),
                ),
            }
        }
        if let Some(conditions) = with(&status.conditions, conditions) {
            Arc::make_mut(status).conditions = conditions;
        }
        let counts = (sessions as i64, established as i64);
        if (status.sessions, status.established_sessions) != counts {
            let status = Arc::make_mut(status);
            (status.sessions, status.established_sessions) = counts;
        }
    }
}

impl Tally<'_> {
    fn programmed(&self, object: &str, conditions: &mut Conditions<'_>) {
        const TYPE: &str = "Programmed";
        if self.nodes == 0 {
            return conditions.set(TYPE, Verdict::Unknown, "NoNodes", "no node has said anything");
        }
        let mut message = format!("programmed on {} of {} nodes", self.programmed, self.nodes);
        message += &self.not_programmed.but_not("on", object);
        message += &self.silence();
        match (self.not_programmed.count, self.silent.count) {
            (0, 0) => conditions.set(TYPE, true, "Installed", message),
            (0, _) => conditions.set(TYPE, Verdict::Unknown, "NodesSilent", message),
            _ => conditions.set(TYPE, false, "NotInstalled", message),
        }
    }

    fn healthy(&self, object: &str, conditions: &mut Conditions<'_>) {
        const TYPE: &str = "Healthy";
        let mut message = format!("healthy as {} of {} nodes see it", self.healthy, self.seeing);
        message += &self.not_healthy.but_not("on", object);
        if self.not_checked.count > 0 {
            message += &format!("; not checked yet on {}", self.not_checked.names());
        }
        message += &self.silence();
        let unknown = self.silent.count + self.not_checked.count;
        match (self.not_healthy.count, self.healthy) {
            (0, 0) if unknown > 0 || self.nodes == 0 => {
                conditions.set(TYPE, Verdict::Unknown, "NotCheckedYet", message);
            }
            (0, 0) => conditions.set(TYPE, false, "NoBackends", "no node has backends for it"),
            (0, _) if unknown > 0 => conditions.set(TYPE, Verdict::Unknown, "NodesSilent", message),
            (0, _) => conditions.set(TYPE, true, "Healthy", message),
            (_, 0) => conditions.set(TYPE, false, "NoHealthyBackend", message),
            _ => conditions.set(TYPE, false, "NodesDiffer", message),
        }
    }

    /// Announced from anywhere is announced: with externalTrafficPolicy Local it is from some nodes only.
    fn announced(&self, object: &str, conditions: &mut Conditions<'_>) {
        const TYPE: &str = "Announced";
        let mut message = format!("announced from {} of {} nodes", self.announced, self.nodes);
        if self.announced == 0 {
            message += &self.not_announced.but_not("from", object);
        }
        message += &self.silence();
        match (self.announced, self.silent.count) {
            (0, 0) => conditions.set(TYPE, false, "NotAnnounced", message),
            (0, _) => conditions.set(TYPE, Verdict::Unknown, "NodesSilent", message),
            _ => conditions.set(TYPE, true, "Announced", message),
        }
    }

    fn silence(&self) -> String {
        if self.silent.count == 0 { String::new() } else { format!("; silent: {}", self.silent.names()) }
    }
}

fn is_established(session: &SessionState) -> bool {
    session.state == "Established"
}

/// The conditions with those of nodes as they are said now; none: nothing has changed.
fn with(before: &[Condition], said: Conditions<'_>) -> Option<Vec<Condition>> {
    let said = said.finish();
    let is_of_nodes = |condition: &&Condition| OF_NODES.contains(&condition.type_.as_str());
    if before.iter().filter(is_of_nodes).eq(&said) {
        return None;
    }
    let mut after: Vec<_> = before.iter().filter(|condition| !is_of_nodes(condition)).cloned().collect();
    after.extend(said);
    after.sort_by(|one, other| one.type_.cmp(&other.type_));
    Some(after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        desired::{Report, cluster, desired},
        observed::NodeInfo,
        validate::parse_directory,
    };
    use lb_bpf::Installed;

    /// A cluster: what is declared, and what its nodes tell.
    struct World {
        declared: Declared,
        reports: NodeReports,
        fleet: Fleet,
        now: u64,
    }

    const OBJECTS: &str = "kind: BGPRouter\nmetadata: {name: all}\nspec: {asn: 65010}\n---\n\
        kind: BGPPeer\nmetadata: {name: tor}\n\
        spec: {address: 10.0.0.1, asn: 65000, auth: {md5SecretRef: {name: tor, key: k}}}\n---\n\
        kind: Secret\nmetadata: {name: tor}\nstringData: {k: s3cret}\n---\n\
        kind: BGPAdvertisement\nmetadata: {name: vips}\nspec: {}\n---\n\
        kind: PacketFilter\nmetadata: {name: pf}\nspec: {rules: [{name: a, action: Drop, protocol: UDP}]}\n---\n\
        kind: Node\nmetadata: {name: n1}\n---\nkind: Node\nmetadata: {name: n2}\n";

    impl World {
        fn new(more: &str) -> Self {
            let text = format!("{OBJECTS}{more}");
            let declared = parse_directory(&BTreeMap::from([("a.yaml".into(), text)])).unwrap();
            let mut world =
                World { declared, reports: NodeReports::new(), fleet: Fleet::default(), now: 1_000 };
            world.publish();
            world
        }

        /// The statuses are as the controller says; whether they changed.
        fn publish(&mut self) -> bool {
            let observed = Observed { now: self.now, ..Observed::default() };
            let mut set = cluster(&self.declared, &observed);
            self.fleet.sum_up(&self.declared, &observed, &self.reports, &mut set);
            let changed = set != self.declared.statuses;
            self.declared.statuses = set;
            changed
        }

        /// A node tells how it is: what it installs, and whether its session is there.
        fn tell(&mut self, name: &str, installs: bool, session: &str, faults: &[crate::fault::Fault]) {
            let node = NodeInfo { name: name.to_owned(), ..NodeInfo::default() };
            let mut observed = Observed { node, now: self.now, ..Observed::default() };
            observed.node.addresses.insert("10.0.0.9".parse().unwrap());
            let first = desired(&self.declared, &observed);
            if installs {
                observed.installed = Arc::new(Installed {
                    filters: first.datapath.filters.keys().cloned().collect(),
                    services: first
                        .datapath
                        .services
                        .iter()
                        .map(|(key, service)| {
                            let held = lb_bpf::InstalledService {
                                frontends: service.frontends.clone(),
                                resolved: true,
                                ..Default::default()
                            };
                            (key.clone(), Arc::new(held))
                        })
                        .collect(),
                    ..Installed::default()
                });
            }
            if session == "Established" {
                observed.established.insert("10.0.0.1".parse().unwrap());
            }
            let status = desired(&self.declared, &observed).status;
            let mut state = NodeStateStatus {
                sessions: vec![SessionState {
                    peer: "10.0.0.1".to_owned(),
                    name: "tor".to_owned(),
                    state: session.to_owned(),
                    restart_state: "Disabled".to_owned(),
                    bfd: None,
                    flap_count: 0,
                    prefixes_received: 0,
                    prefixes_sent: 0,
                    last_error: None,
                }],
                ..NodeStateStatus::default()
            };
            Report::new(&self.declared, &status, faults).tell(&mut state);
            self.reports.insert(name.to_owned(), NodeReport { state: Arc::new(state), is_fresh: true });
        }

        fn said(&self, conditions: &[Condition], type_: &str) -> String {
            let said = conditions.iter().find(|condition| condition.type_ == type_);
            said.map_or_else(String::new, |said| format!("{} {}: {}", said.status, said.reason, said.message))
        }

        fn web(&self, type_: &str) -> String {
            self.said(&self.declared.statuses.load_balancers["web"].conditions, type_)
        }

        fn tor(&self, type_: &str) -> String {
            self.said(&self.declared.statuses.peers["tor"].conditions, type_)
        }
    }

    const WEB: &str = "---\nkind: LoadBalancer\nmetadata: {name: web}\n\
        spec: {addresses: [192.0.2.1], ports: [{port: 80}], backends: [{address: 10.0.0.1}]}\n";

    #[test]
    fn what_nodes_tell_is_summed_up() {
        let mut world = World::new(WEB);
        assert_eq!(world.web("Programmed"), "Unknown NoNodes: no node has said anything");
        for node in ["n1", "n2"] {
            world.tell(node, true, "Established", &[]);
        }
        world.publish();
        assert_eq!(world.web("Programmed"), "True Installed: programmed on 2 of 2 nodes");
        assert_eq!(world.web("Announced"), "True Announced: announced from 2 of 2 nodes");
        assert_eq!(world.web("Healthy"), "True Healthy: healthy as 2 of 2 nodes see it");
        assert_eq!(world.tor("Established"), "True Established: 2 of 2 sessions established");
        assert_eq!(world.tor("KeyUsable"), "True KeyUsable: on 2 nodes");
        let set = &world.declared.statuses;
        assert_eq!(set.load_balancers["web"].announcing_nodes, Some(2));
        let (router, peer) = (&set.routers["all"], &set.peers["tor"]);
        assert_eq!((router.nodes, router.sessions, router.established_sessions), (2, 2, 2));
        assert_eq!((peer.sessions, peer.established_sessions), (2, 2));
        assert_eq!(set.advertisements["vips"].announced_routes, 2);
        let filter = world.said(&set.packet_filters["pf"].conditions, "Programmed");
        assert_eq!(filter, "True Installed: programmed on 2 of 2 nodes");
        assert!(!world.publish(), "at rest nothing is written");

        let field = Some("spec.auth.md5SecretRef".to_owned());
        let missing = crate::fault::Fault::object("BGPPeer/tor", field, "there is no Secret/tor");
        world.tell("n2", false, "Active", &[missing]);
        world.publish();
        assert_eq!(
            world.web("Programmed"),
            "False NotInstalled: programmed on 1 of 2 nodes; not on n2: 0 of 1 services installed"
        );
        assert_eq!(world.web("Announced"), "True Announced: announced from 1 of 2 nodes");
        assert_eq!(
            world.tor("Established"),
            "False NotEstablished: 1 of 2 sessions established; not on n2: Active"
        );
        assert_eq!(
            world.tor("KeyUsable"),
            "False KeyUnusable: on n2: spec.auth.md5SecretRef: there is no Secret/tor"
        );
    }

    #[test]
    fn a_silent_node_is_not_known() {
        let mut world = World::new(WEB);
        for node in ["n1", "n2", "n3"] {
            world.tell(node, true, "Established", &[]);
        }
        world.publish();
        for node in ["n2", "n3"] {
            world.reports.get_mut(node).unwrap().is_fresh = false;
        }
        world.publish();
        // n3 has no Node any more: it does not count.
        assert_eq!(world.web("Programmed"), "Unknown NodesSilent: programmed on 1 of 2 nodes; silent: n2");
        assert_eq!(world.web("Announced"), "True Announced: announced from 1 of 2 nodes; silent: n2");
        assert_eq!(world.tor("Established"), "Unknown NodesSilent: 1 of 1 sessions established; silent: n2");
        world.reports.get_mut("n1").unwrap().is_fresh = false;
        world.publish();
        assert!(world.web("Announced").starts_with("Unknown NodesSilent"), "{}", world.web("Announced"));
        assert!(world.tor("KeyUsable").starts_with("Unknown NodesSilent"), "{}", world.tor("KeyUsable"));
    }

    #[test]
    fn who_does_not_know_the_newest_version_says_nothing() {
        let mut world = World::new(WEB);
        world.tell("n1", true, "Established", &[]);
        world.publish();
        let good = world.web("Programmed");
        assert!(good.starts_with("True"), "{good}");
        // Another version: what was said stays for a while.
        let object = Arc::make_mut(world.declared.load_balancers.get_mut("web").unwrap());
        object.metadata.generation = Some(2);
        world.publish();
        assert_eq!(world.web("Programmed"), good);
        assert!(!world.fleet.is_settled());
        world.now += PATIENCE + 1;
        world.publish();
        assert_eq!(world.web("Programmed"), "Unknown NodesSilent: programmed on 0 of 1 nodes; silent: n1");
        world.tell("n1", true, "Established", &[]);
        world.publish();
        assert_eq!(world.web("Programmed"), good);
        assert!(world.fleet.is_settled());
    }

    #[test]
    fn a_node_changes_services_bit_by_bit() {
        let balancers = (0..500).map(|n| WEB.replace("web", &format!("s-{n}")));
        let balancers = balancers.map(|text| text.replace("addresses: [192.0.2.1], ", ""));
        let mut world = World::new(&balancers.collect::<String>());
        let known = |world: &World| {
            let all = world.declared.statuses.load_balancers.values();
            all.filter(|s| s.conditions.iter().any(|c| c.type_ == "Programmed")).count()
        };
        assert_eq!(known(&world), 200);
        for want in [400, 500, 500] {
            world.publish();
            assert_eq!(known(&world), want);
        }
        world.tell("n1", true, "Established", &[]);
        let of_n1 = |world: &World| {
            let all = world.declared.statuses.load_balancers.values();
            all.filter(|s| world.said(&s.conditions, "Programmed").contains("of 1 nodes")).count()
        };
        for want in [200, 400, 500] {
            world.publish();
            assert_eq!(of_n1(&world), want);
        }
        assert!(!world.publish());
    }

    #[test]
    fn names_are_few() {
        let mut world = World::new(WEB);
        for n in 0..9 {
            world.tell(&format!("n{n}"), false, "Established", &[]);
        }
        world.publish();
        assert_eq!(
            world.web("Programmed"),
            "False NotInstalled: programmed on 0 of 9 nodes; not on n0, n1, n2 and 6 more: 0 of 1 services installed"
        );
    }
}
