//! What the pass before came to, source by source, so that what has not changed is not worked out again: with thousands of
//! services mostly one of them has. Nothing that comes out depends on it, as a property test says.
//!
//! If nothing is another but what some sources are made of, a slice for example, and they want the same addresses, which is what
//! happens most, only these are looked at. Otherwise all are, and those that are made of the same are as they were.
use super::{
    Node, addresses,
    delivery::Nodes,
    endpoints::service_of,
    joined,
    routes::{Announced, Announcements, NotAnnounced},
    services::{Balanced, Held, Plan, Scene, Services},
    sources::{Declaration, Maker, Object, Source, declarations},
    spill::Links,
};
use crate::{
    api::{AddressPool, EndpointSlice, Kind, LoadBalancerStatus, ServicePolicy, service::is_ours},
    by_name::ByName,
    declared::Declared,
    fault::Fault,
    observed::{Healths, NodeInfo, Observed},
    status::{StatusSet, Statuses},
};
use bgp_speaker::PeerId;
use ipam::{Assignment, Assignments};
use k8s_openapi::api::core::v1::Namespace;
use lb_bpf::InstalledService;
use std::{
    collections::{BTreeSet, HashSet},
    mem,
    net::IpAddr,
    sync::Arc,
};

/// What a [`Draft`](super::Draft) takes from the one before it. Without any, everything is worked out.
#[derive(Debug, Default)]
pub struct Memory {
    /// The snapshot of before; none: nothing is remembered.
    pub(super) snapshot: Option<Arc<Declared>>,
    pub(super) context: Context,
    given: Option<Arc<Given>>,
    /// Who asked for that.
    asked: Vec<Arc<Source>>,
    pub(super) services: Option<Services>,
    /// Of which results of checks they were made.
    health: Arc<Healths>,
    /// In the order of the sources.
    pub(super) said: Vec<Option<Said>>,
    pub(super) outcome: Option<Outcome>,
}

/// What counts for every source. With another one nothing is remembered.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Context {
    pub(super) policies: ByName<ServicePolicy>,
    pub(super) nodes: Nodes,
    pub(super) zone: Option<String>,
    pub(super) balances: bool,
    pub(super) addresses: BTreeSet<IpAddr>,
    pub(super) faults: Vec<Fault>,
    pub(super) links: Links,
}

/// What the second step came to.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) ground: Ground,
    pub(super) held: Held,
    pub(super) announcements: Announcements,
    pub(super) told: Told,
}

/// What counts for all announcements and statuses, beside what is declared and what counts for every source.
#[derive(Debug, PartialEq)]
pub(super) struct Ground {
    pub(super) node: NodeInfo,
    pub(super) established: BTreeSet<PeerId>,
    pub(super) speaks: bool,
}

/// Statuses of sources that were published, and after which.
#[derive(Debug)]
pub(super) struct Told {
    /// What had been said before.
    pub(super) said: Arc<StatusSet>,
    pub(super) load_balancers: Statuses<LoadBalancerStatus>,
    pub(super) services: Statuses<LoadBalancerStatus>,
    /// The sources whose status is another one than that which had been said.
    pub(super) fresh: BTreeSet<usize>,
}

impl Told {
    /// The sources whose status may be another one for what was said before; none: all may be.
    pub(super) fn open(&self, said: &StatusSet) -> Option<&BTreeSet<usize>> {
        const NONE: &BTreeSet<usize> = &BTreeSet::new();
        let is_same = |load_balancers: &Statuses<_>, services: &Statuses<_>| {
            said.load_balancers.is_same(load_balancers) && said.services.is_same(services)
        };
        if is_same(&self.said.load_balancers, &self.said.services) {
            return Some(NONE);
        }
        is_same(&self.load_balancers, &self.services).then_some(&self.fresh)
    }
}

/// What a status was made of, and the status.
#[derive(Debug)]
pub(super) struct Said {
    /// The one before it.
    pub(super) before: Option<Arc<LoadBalancerStatus>>,
    pub(super) plan: Arc<Plan>,
    pub(super) assignment: Arc<Assignment>,
    /// By service of the plan.
    pub(super) installed: Vec<Option<Arc<InstalledService>>>,
    pub(super) outcomes: Vec<Result<Announced, NotAnnounced>>,
    pub(super) status: Arc<LoadBalancerStatus>,
}

/// Addresses that were given, by source.
#[derive(Debug)]
pub(super) struct Given {
    /// Without the claims.
    pub(super) assignments: Assignments,
    /// In the order of the sources.
    pub(super) claims: Vec<Arc<Assignment>>,
}

impl Given {
    fn new(mut assignments: Assignments) -> Self {
        let claims = mem::take(&mut assignments.claims);
        Given { assignments, claims: claims.into_values().map(Arc::new).collect() }
    }
}

/// What the first step came to.
pub(super) struct Balance {
    pub(super) services: Services,
    pub(super) given: Arc<Given>,
    /// The sources that are others than before, while all else is the same; none: all may be.
    pub(super) changed: Option<BTreeSet<usize>>,
}

impl Memory {
    /// Forgets everything if this is another context than before.
    pub(super) fn enter(&mut self, context: Context) {
        if self.snapshot.is_none() || self.context != context {
            *self = Memory { context, ..Memory::default() };
        }
    }

    /// What the node has to do for all sources.
    pub(super) fn balance(&mut self, declared: &Declared, observed: &Observed, node: &Node<'_>) -> Balance {
        let changed = self.renew(declared, observed, node);
        self.health = Arc::clone(&observed.health);
        if changed.is_some()
            && let (Some(services), Some(given)) = (self.services.take(), &self.given)
        {
            return Balance { services, given: Arc::clone(given), changed };
        }
        let all = declarations(declared);
        let known = self.recall(declared, &all);
        let stale = all.iter().zip(&known).filter(|(_, known)| known.is_none());
        let wanted: BTreeSet<_> = stale.flat_map(|((object, name, _), _)| object.services(name)).collect();
        let maker = Maker::new(declared, node, &self.context.links, &wanted);
        let mut sources = Vec::with_capacity(all.len());
        for (declaration, known) in all.iter().zip(known) {
            let (balanced, said) = known.unzip();
            let known = balanced.as_ref().map(|balanced: &Balanced| Arc::clone(&balanced.source));
            let Some(source) = known.or_else(|| maker.make(declaration.clone()).map(Arc::new)) else {
                continue;
            };
            sources.push((source, balanced));
            self.said.push(said.flatten());
        }
        let given = self.give(declared, observed, &sources);
        let scene = scene(&self.context, observed);
        let services = Services::new(sources, &given.claims, &scene, &observed.health);
        Balance { services, given, changed: None }
    }

    /// Makes the sources anew of which something has changed, if nothing else has; which they are. None: something else has, too,
    /// or has to by what has become of them.
    fn renew(
        &mut self,
        declared: &Declared,
        observed: &Observed,
        node: &Node<'_>,
    ) -> Option<BTreeSet<usize>> {
        let (before, given) = (self.snapshot.as_deref()?, self.given.as_deref()?);
        let services = self.services.as_mut()?;
        let is_all = given.assignments.released.is_empty()
            && !rests(declared, observed)
            && self.health == observed.health
            && differ_in_sources_only(before, declared);
        if !is_all {
            return None;
        }
        let places =
            services.places(&changed_balancers(before, declared)?, &changed_services(before, declared)?);
        let of = |at: &usize| declaration(&services.all[*at].source, declared);
        let all = places.iter().map(of).collect::<Option<Vec<_>>>()?;
        let wanted = all.iter().flat_map(|(object, name, _)| object.services(name)).collect();
        let maker = Maker::new(declared, node, &self.context.links, &wanted);
        let renewed = places.iter().zip(&all).map(|(at, declaration)| {
            let source = maker.make(declaration.clone())?;
            services.all[*at].source.asks_the_same(&source).then(|| (*at, Arc::new(source)))
        });
        let renewed = renewed.collect::<Option<Vec<_>>>()?;
        if !services.renew(&renewed, &scene(&self.context, observed)) {
            return None;
        }
        renewed.into_iter().for_each(|(at, source)| self.asked[at] = source);
        Some(places)
    }

    /// What is remembered of these, which are in the order of the sources.
    fn recall(
        &mut self,
        declared: &Declared,
        all: &[Declaration<'_>],
    ) -> Vec<Option<(Balanced, Option<Said>)>> {
        let said = mem::take(&mut self.said);
        let (Some(services), Some(snapshot)) = (self.services.take(), self.snapshot.as_deref()) else {
            return all.iter().map(|_| None).collect();
        };
        let changed = changed_slices(&snapshot.endpoint_slices, &declared.endpoint_slices);
        let has_other_slices = |object: &Object, name: &str| {
            !changed.is_empty() && object.services(name).any(|service| changed.contains(&service))
        };
        let is_service_same = |(namespace, name): (&str, &str)| {
            let name = [namespace, "/", name].concat();
            same(snapshot.services.get(&name), declared.services.get(&name))
        };
        let mut known = services.all.into_iter().zip(said).peekable();
        let recall = |(object, name, before): &Declaration<'_>| {
            let key = (object.kind() == Kind::Service, *name);
            let of = |known: &Balanced| known.source.kind() == Kind::Service;
            while known.next_if(|(known, _)| (of(known), &*known.source.name) < key).is_some() {}
            let known = known.next_if(|(known, _)| (of(known), &*known.source.name) == key)?;
            let source = &known.0.source;
            let is_same = source.object.is(object)
                && same(source.before.as_ref(), *before)
                && !has_other_slices(object, name)
                && (object.kind() == Kind::Service || object.services(name).all(is_service_same));
            is_same.then_some(known)
        };
        all.iter().map(recall).collect()
    }

    /// What pools give, if they are asked for the same by the same. While something rests, time counts, and of what clusters share,
    /// the others.
    fn give(
        &mut self,
        declared: &Declared,
        observed: &Observed,
        sources: &[(Arc<Source>, Option<Balanced>)],
    ) -> Arc<Given> {
        // Others that hold addresses are looked at each time.
        let StatusSet { load_balancers, services, .. } = &declared.statuses;
        let holders = sources.iter().filter(|(source, _)| source.before.is_some()).count();
        let is_plain = holders == load_balancers.len() + services.len();
        let known = self.given.take().filter(|given| {
            let is_asked =
                |(asked, (source, _)): (&Arc<Source>, &(Arc<Source>, _))| source.asks_the_same(asked);
            is_plain
                && !rests(declared, observed)
                && given.assignments.released.is_empty()
                && self.snapshot.as_ref().is_some_and(|before| has_same_pools(before, declared))
                && self.asked.len() == sources.len()
                && self.asked.iter().zip(sources).all(is_asked)
        });
        let sources = sources.iter().map(|(source, _)| source);
        let given = known.unwrap_or_else(|| {
            Arc::new(Given::new(addresses::assign(declared, sources.clone().map(|s| &**s), observed)))
        });
        if is_plain {
            self.asked = sources.cloned().collect();
        }
        self.given = is_plain.then(|| Arc::clone(&given));
        given
    }
}

fn scene<'a>(context: &'a Context, observed: &'a Observed) -> Scene<'a> {
    let Context { nodes, balances, addresses, .. } = context;
    Scene { balances: *balances, nodes, local: addresses, installed: &observed.installed }
}

/// Whether what pools give depends on the time, or on other clusters.
fn rests(declared: &Declared, observed: &Observed) -> bool {
    declared.pools.values().any(|pool| !pool.spec.clusters.is_empty())
        || observed.takes_over
        || declared.statuses.pools.values().any(|status| !status.released.is_empty())
}

/// Whether nothing is another but what sources are made of, one by one, and statuses. No means that something may be.
fn differ_in_sources_only(one: &Declared, other: &Declared) -> bool {
    one.pools.is_same(&other.pools)
        && one.policies.is_same(&other.policies)
        && one.namespaces.is_same(&other.namespaces)
        && one.routers.is_same(&other.routers)
        && one.peers.is_same(&other.peers)
        && one.advertisements.is_same(&other.advertisements)
        && one.packet_filters.is_same(&other.packet_filters)
        && one.cluster_links.is_same(&other.cluster_links)
        && one.nodes.is_same(&other.nodes)
        && one.secrets.is_same(&other.secrets)
        && one.refused == other.refused
}

/// The LoadBalancers that are others, or have other statuses; none: one has come or gone.
fn changed_balancers<'a>(before: &'a Declared, after: &'a Declared) -> Option<HashSet<&'a str>> {
    let objects = before.load_balancers.changes(&after.load_balancers);
    let names = objects.map(|(name, before, after)| before.and(after).map(|_| name));
    let statuses = before.statuses.load_balancers.changes(&after.statuses.load_balancers);
    names.chain(statuses.map(|(name, ..)| Some(name))).collect()
}

/// The Services that are others, or have other statuses or slices, by namespace and name; none: there is one more of our class, or one
/// less.
fn changed_services<'a>(before: &'a Declared, after: &'a Declared) -> Option<HashSet<(&'a str, &'a str)>> {
    let is_ours = |service: Option<&Arc<_>>| service.is_some_and(|service| is_ours(service));
    let objects = before.services.changes(&after.services);
    let names = objects.map(|(name, before, after)| (is_ours(before) == is_ours(after)).then_some(name));
    let statuses = before.statuses.services.changes(&after.statuses.services).map(|(name, ..)| Some(name));
    let names = names.chain(statuses).map(|name| name?.split_once('/'));
    let mut changed = names.collect::<Option<HashSet<_>>>()?;
    changed.extend(changed_slices(&before.endpoint_slices, &after.endpoint_slices));
    Some(changed)
}

/// What is declared of a source by now.
fn declaration<'a>(source: &'a Source, declared: &'a Declared) -> Option<Declaration<'a>> {
    let (name, statuses) = (&*source.name, &declared.statuses);
    Some(match source.kind() {
        Kind::Service => {
            let object = Object::Service(Arc::clone(declared.services.get(name)?));
            (object, name, statuses.services.get(name))
        }
        _ => {
            let object = Object::LoadBalancer(Arc::clone(declared.load_balancers.get(name)?));
            (object, name, statuses.load_balancers.get(name))
        }
    })
}

fn has_same_pools(one: &Declared, other: &Declared) -> bool {
    fn all<T>(one: &ByName<T>, other: &ByName<T>) -> bool {
        let is_same = |(_, one, other): (&String, &Arc<T>, Option<&Arc<T>>)| same(Some(one), other);
        one.is_same(other) || one.len() == other.len() && joined(one, other).all(is_same)
    }
    all::<AddressPool>(&one.pools, &other.pools)
        && all::<Namespace>(&one.namespaces, &other.namespaces)
        && one.refused == other.refused
}

/// Namespace and name of the Services whose slices are not the same.
fn changed_slices<'a>(
    before: &'a ByName<EndpointSlice>,
    after: &'a ByName<EndpointSlice>,
) -> HashSet<(&'a str, &'a str)> {
    let both = |(name, before, after): (&'a str, Option<&'a Arc<_>>, Option<&'a Arc<_>>)| {
        before.into_iter().chain(after).filter_map(move |slice| service_of(name, slice))
    };
    before.changes(after).flat_map(both).collect()
}

/// Whether it is the same one, or none.
pub(super) fn same<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        desired::{Desired, Draft, desired},
        observed::{Failure, Health, NodeInfo},
        validate::parse_directory,
    };
    use lb_bpf::Installed;
    use proptest::prelude::*;
    use std::fmt::Write;

    /// What is declared, in numbers.
    #[derive(Clone, Debug)]
    struct Scene {
        services: Vec<Web>,
        /// The policy of all Services; none: there is none. 0: with a check.
        policy: Option<u8>,
        nodes: u8,
        pool: u8,
        /// The Service that the second LoadBalancer leads to; none: there is no such LoadBalancer.
        reference: Option<u8>,
        speaks: bool,
    }

    /// A Service.
    #[derive(Clone, Debug)]
    struct Web {
        is_there: bool,
        is_local: bool,
        port: u16,
        /// Node (0: none) and state of each endpoint.
        endpoints: Vec<(u8, usize)>,
        /// The address that it asks for.
        address: Option<u8>,
    }

    fn web() -> impl Strategy<Value = Web> {
        let endpoints = prop::collection::vec((0..4_u8, 0..3_usize), 0..4);
        let all = (any::<bool>(), any::<bool>(), 80..82_u16, endpoints, prop::option::of(0..3_u8));
        all.prop_map(|(is_there, is_local, port, endpoints, address)| Web {
            is_there,
            is_local,
            port,
            endpoints,
            address,
        })
    }

    fn scene() -> impl Strategy<Value = Scene> {
        let policy = prop::option::of(0..5_u8);
        let all = (
            prop::collection::vec(web(), 4),
            policy,
            0..4_u8,
            0..3_u8,
            prop::option::of(0..5_u8),
            any::<bool>(),
        );
        all.prop_map(|(services, policy, nodes, pool, reference, speaks)| Scene {
            services,
            policy,
            nodes,
            pool,
            reference,
            speaks,
        })
    }

    /// Mostly one thing of it is another.
    fn changed(scene: &Scene, other: &Scene, what: u8) -> Scene {
        let mut scene = scene.clone();
        match what {
            0..=5 => {
                let at = usize::from(what) % 4;
                scene.services[at] = other.services[at].clone();
            }
            6 => scene.policy = other.policy,
            7 => scene.nodes = other.nodes,
            8 => scene.pool = other.pool,
            9 => scene.reference = other.reference,
            10 => scene.speaks = other.speaks,
            11 => scene = other.clone(),
            _ => {}
        }
        scene
    }

    fn declared(scene: &Scene) -> Declared {
        let block = ["192.0.2.0/29", "192.0.2.0/30", "192.0.2.4/30"][usize::from(scene.pool)];
        let mut text =
            format!("kind: AddressPool\nmetadata: {{name: p}}\nspec: {{blocks: [{{cidr: {block}}}]}}\n");
        for node in 1..=scene.nodes {
            let status = format!("{{addresses: [{{type: InternalIP, address: 10.0.0.{node}}}]}}");
            write!(text, "---\nkind: Node\nmetadata: {{name: n{node}}}\nstatus: {status}\n").unwrap();
        }
        if let Some(policy) = scene.policy {
            let clusters = "clusters: {minLocalPercent: 60}";
            let (check, gue) = ("healthCheck: {tcp: {}}", "forwarding: {mode: GUE}");
            let both = [gue, clusters].join(", ");
            let all = [check, "affinity: ClientIP", gue, clusters, &both];
            let spec = format!("{{policy: {{{}}}}}", all[usize::from(policy)]);
            write!(text, "---\nkind: ServicePolicy\nmetadata: {{name: s}}\nspec: {spec}\n").unwrap();
        }
        if scene.nodes > 0 {
            let ready = scene.nodes > 1;
            write!(
                text,
                "---\nkind: ClusterLink\nmetadata: {{name: west}}\n\
                 spec: {{kubeconfigSecretRef: {{name: a, key: b}}, weight: {}}}\n---\n\
                 kind: EndpointSlice\naddressType: IPv4\nports: [{{port: 80}}]\n\
                 metadata: {{name: west, namespace: a-b, labels: {{multicluster.kubernetes.io/service-name: s0, \
                 multicluster.kubernetes.io/source-cluster: west, \
                 endpointslice.kubernetes.io/managed-by: clusters.fairlead.dev}}, annotations: {{fairlead.dev/delivery: \
                 '{{\"addresses\": [\"198.51.100.0\"], \"ports\": [{{\"protocol\": \"TCP\", \"port\": 80}}], \
                 \"nodes\": [{{\"name\": \"n1\", \"addresses\": [\"10.0.9.1\"], \"endpoints\": [\"10.7.0.1\"]}}]}}'}}}}\n\
                 endpoints: [{{addresses: [10.7.0.1], conditions: {{ready: {ready}}}}}]\n",
                scene.nodes
            )
            .unwrap();
        }
        if scene.speaks {
            text += "---\nkind: BGPRouter\nmetadata: {name: r}\nspec: {asn: 65010, routerID: 10.0.0.1}\n---\n\
                     kind: BGPPeer\nmetadata: {name: tor}\nspec: {address: 10.0.0.9, asn: 65000}\n---\n\
                     kind: BGPAdvertisement\nmetadata: {name: all}\nspec: {}\n";
        }
        let balancer = |name: &str, port: u16, backend: &str, rest: &str| {
            format!(
                "---\nkind: LoadBalancer\nmetadata: {{name: {name}}}\n\
                 spec: {{ports: [{{port: {port}}}], backends: [{{{backend}}}]{rest}}}\n"
            )
        };
        text += &balancer("a", 90, "address: 10.9.0.1", ", policy: {healthCheck: {tcp: {}}}");
        if let Some(reference) = scene.reference {
            text += &balancer("b", 80, &format!("service: {{name: s{reference}, namespace: a-b}}"), "");
        }
        for (number, web) in scene.services.iter().enumerate().filter(|(_, web)| web.is_there) {
            let address = web.address.map_or_else(String::new, |last| {
                format!(", annotations: {{fairlead.dev/addresses: 198.51.100.{last}}}")
            });
            let traffic = if web.is_local { "Local" } else { "Cluster" };
            let port = web.port;
            let endpoints = web.endpoints.iter().enumerate().map(|(at, (node, state))| {
                let node = if *node > 0 { format!(", nodeName: n{node}") } else { String::new() };
                let state =
                    ["ready: true", "ready: false, serving: true, terminating: true", "ready: false"][*state];
                format!("{{addresses: [10.1.{number}.{at}], conditions: {{{state}}}{node}}}")
            });
            let endpoints = endpoints.collect::<Vec<_>>().join(", ");
            write!(
                text,
                "---\nkind: Service\nmetadata: {{name: s{number}, namespace: a-b{address}}}\n\
                 spec: {{type: LoadBalancer, loadBalancerClass: fairlead.dev/lb, \
                 externalTrafficPolicy: {traffic}, ports: [{{port: {port}}}]}}\n---\n\
                 kind: EndpointSlice\n\
                 metadata: {{name: x{number}, namespace: a-b, labels: {{kubernetes.io/service-name: s{number}}}}}\n\
                 addressType: IPv4\nports: [{{port: {port}}}]\nendpoints: [{endpoints}]\n"
            )
            .unwrap();
        }
        parse_directory(&std::collections::BTreeMap::from([("a.yaml".into(), text)])).unwrap()
    }

    /// What is the same is shared, as stores do it.
    fn share(now: &mut Declared, before: &Declared) {
        fn all<T: PartialEq>(now: &mut ByName<T>, before: &ByName<T>) {
            // As a store: from the map before to the one that is now, change by change.
            let mut map = before.clone();
            for (name, _, after) in before.changes(now) {
                match after {
                    Some(after) => drop(map.insert(name.to_owned(), Arc::clone(after))),
                    None => drop(map.remove(name)),
                }
            }
            *now = map;
        }
        all(&mut now.pools, &before.pools);
        all(&mut now.load_balancers, &before.load_balancers);
        all(&mut now.policies, &before.policies);
        all(&mut now.services, &before.services);
        all(&mut now.endpoint_slices, &before.endpoint_slices);
        all(&mut now.nodes, &before.nodes);
        all(&mut now.routers, &before.routers);
        all(&mut now.peers, &before.peers);
        all(&mut now.advertisements, &before.advertisements);
        all(&mut now.cluster_links, &before.cluster_links);
    }

    /// What a datapath holds of it that takes some services only.
    fn installed(desired: &Desired, luck: u64) -> Installed {
        let services = desired.datapath.services.iter().enumerate();
        let services = services.filter(|(at, _)| luck >> (at % 32) & 1 == 0).map(|(at, (key, service))| {
            let slots = service.backends.keys().map(|endpoint| (*endpoint, 7)).collect();
            let resolved = luck >> (32 + at % 32) & 1 == 0;
            let frontends = service.frontends.clone();
            (key.clone(), Arc::new(InstalledService { frontends, slots, resolved, table_size: 7 }))
        });
        Installed { services: services.collect(), ..Installed::default() }
    }

    /// What the world makes of it.
    fn observe(observed: &mut Observed, desired: &Desired, event: u8, luck: u64) {
        observed.now += 7;
        observed.said = Arc::clone(&desired.status);
        match event {
            0 | 1 => observed.installed = Arc::new(installed(desired, luck)),
            2 => {
                let health = if luck.is_multiple_of(3) {
                    Health::Healthy
                } else {
                    Health::Unhealthy(Failure::TimedOut)
                };
                let known = desired.targets.iter();
                let known = known.map(|(check, endpoints)| {
                    (check.clone(), endpoints.iter().map(|endpoint| (*endpoint, health)).collect())
                });
                observed.health = Arc::new(known.collect());
            }
            3 => observed.established = ["10.0.0.9".parse().unwrap()].into(),
            4 => {
                let address = if luck.is_multiple_of(2) { "10.1.1.1" } else { "10.9.0.1" };
                observed.node.addresses = [address.parse().unwrap()].into();
            }
            5 => {
                let object = format!("Service/a-b/s{}", luck % 4);
                observed.faults = vec![Fault::object(object, None, "is wrong".to_owned())];
            }
            _ => {}
        }
    }

    #[test]
    fn only_what_has_changed_is_looked_at() {
        let web = |endpoints: usize| Web {
            is_there: true,
            is_local: false,
            port: 80,
            endpoints: vec![(0, 0); endpoints],
            address: None,
        };
        let scene = |endpoints| Scene {
            services: vec![web(1), web(endpoints), web(1)],
            policy: None,
            nodes: 0,
            pool: 0,
            reference: Some(1),
            speaks: true,
        };
        let mut observed = Observed { now: 1_000, ..Observed::default() };
        let (mut memory, mut before) = (Memory::default(), Declared::default());
        let mut places = |endpoints| {
            let mut now = declared(&scene(endpoints));
            share(&mut now, &before);
            now.statuses = mem::take(&mut before.statuses);
            let mut now = Arc::new(now);
            let draft = Draft::remembering(&now, &observed, mem::take(&mut memory));
            let places = draft.changed.clone();
            let (desired, after) = draft.finish_and_remember(&observed.installed);
            memory = after;
            observed.said = Arc::clone(&desired.status);
            observed.installed = Arc::new(installed(&desired, 0));
            if observed.health.is_empty() {
                observe(&mut observed, &desired, 2, 0);
            }
            Arc::make_mut(&mut now).statuses = StatusSet::clone(&desired.status);
            before = Arc::unwrap_or_clone(now);
            places
        };
        // All that is new, and when its addresses have come back. Then statuses come back that say more than these.
        assert_eq!([1, 1].map(&mut places), [None, None]);
        assert_eq!([1, 1].map(&mut places), [Some((0..5).collect()), Some((0..5).collect())]);
        // LoadBalancer b leads to the Service. Its status is another one, too, when that is published.
        let expected = [vec![], vec![1, 3], vec![1, 3], vec![]];
        assert_eq!([1, 2, 2, 2].map(places), expected.map(|places| Some(places.into_iter().collect())));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        /// With what is remembered all comes out as without.
        #[test]
        fn nothing_depends_on_it(
            first in scene(),
            steps in prop::collection::vec((scene(), 0..14_u8, any::<u64>(), 0..8_u8), 1..12),
        ) {
            let node = NodeInfo { name: "n1".to_owned(), ..NodeInfo::default() };
            let mut observed = Observed { node, now: 1_000, ..Observed::default() };
            let (mut memory, mut scene, mut before) = (Memory::default(), first, Declared::default());
            for (other, what, luck, event) in steps {
                scene = changed(&scene, &other, what);
                let mut now = declared(&scene);
                share(&mut now, &before);
                now.statuses = before.statuses;
                let mut now = Arc::new(now);
                let expected = desired(&now, &observed);
                let draft = Draft::remembering(&now, &observed, memory);
                let (desired, after) = draft.finish_and_remember(&observed.installed);
                prop_assert_eq!(&desired, &expected);
                memory = after;
                observe(&mut observed, &desired, event, luck);
                if luck % 5 > 0 {
                    Arc::make_mut(&mut now).statuses = StatusSet::clone(&desired.status);
                }
                before = Arc::unwrap_or_clone(now);
            }
        }
    }
}
