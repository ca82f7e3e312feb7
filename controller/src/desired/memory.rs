//! What the pass before came to, source by source, so that what has not changed is not worked out again: with thousands of
//! services mostly one of them has. Nothing that comes out depends on it, as a property test says.
use super::{
    delivery::Nodes,
    endpoints::service_of,
    joined, labels,
    routes::{Announced, NotAnnounced},
    services::Plan,
    sources::Terms,
    spill::Links,
};
use crate::{
    api::{
        AddressPool, EndpointSlice, Kind, LoadBalancer, LoadBalancerStatus, ServicePolicy,
        load_balancer::AssignedAddress,
    },
    by_name::ByName,
    declared::Declared,
    fault::Fault,
    observed::{Health, Observed},
    status::StatusSet,
};
use bgp_speaker::config::Route;
use ipam::{Assignment, Assignments};
use k8s_openapi::{
    api::core::v1::{Namespace, Service},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
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
    /// In the order of the sources.
    pub(super) sources: Vec<Remembered>,
    given: Option<Arc<Given>>,
    asked: Vec<Asked>,
    pub(super) routes: Option<Arc<Vec<Route>>>,
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

/// What is declared of a source.
#[derive(Clone, Copy, Debug)]
pub(super) enum Object<'a> {
    LoadBalancer(&'a Arc<LoadBalancer>),
    Service(&'a Arc<Service>),
}

impl<'a> Object<'a> {
    pub(super) const fn kind(self) -> Kind {
        match self {
            Object::LoadBalancer(_) => Kind::LoadBalancer,
            Object::Service(_) => Kind::Service,
        }
    }

    pub(super) fn metadata(self) -> &'a ObjectMeta {
        match self {
            Object::LoadBalancer(object) => &object.metadata,
            Object::Service(object) => &object.metadata,
        }
    }

    /// Namespace and name of the Services whose endpoints it uses; `name` is its own.
    pub(super) fn services(self, name: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let (own, backends) = match self {
            Object::Service(_) => (name.split_once('/'), &[][..]),
            Object::LoadBalancer(object) => (None, &*object.spec.backends),
        };
        let services = backends.iter().filter_map(|backend| backend.service.as_ref());
        own.into_iter().chain(services.map(|service| (&*service.namespace, &*service.name)))
    }

    fn held(self) -> Held {
        match self {
            Object::LoadBalancer(object) => Held::LoadBalancer(Arc::clone(object)),
            Object::Service(object) => Held::Service(Arc::clone(object)),
        }
    }
}

/// What was declared of a source.
#[derive(Clone, Debug)]
enum Held {
    LoadBalancer(Arc<LoadBalancer>),
    Service(Arc<Service>),
}

impl Held {
    fn is(&self, object: Object<'_>) -> bool {
        match (self, object) {
            (Held::LoadBalancer(one), Object::LoadBalancer(other)) => Arc::ptr_eq(one, other),
            (Held::Service(one), Object::Service(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    fn metadata(&self) -> &ObjectMeta {
        match self {
            Held::LoadBalancer(object) => &object.metadata,
            Held::Service(object) => &object.metadata,
        }
    }
}

/// A source and its status as last published.
pub(super) type Declaration<'a> = (Object<'a>, &'a str, Option<&'a Arc<LoadBalancerStatus>>);

/// What is remembered of a source.
#[derive(Debug)]
pub(super) struct Remembered {
    object: Held,
    name: Box<str>,
    before: Option<Arc<LoadBalancerStatus>>,
    pub(super) terms: Arc<Terms>,
    plan: Option<Planned>,
    said: Option<Said>,
}

/// What a plan was made of, and the plan.
#[derive(Debug)]
struct Planned {
    addresses: Vec<IpAddr>,
    healths: Box<[Option<Health>]>,
    plan: Arc<Plan>,
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

impl Remembered {
    pub(super) fn new((object, name, before): Declaration<'_>, terms: Terms) -> Self {
        Remembered {
            object: object.held(),
            name: name.into(),
            before: before.cloned(),
            terms: Arc::new(terms),
            plan: None,
            said: None,
        }
    }

    /// The plan for these addresses and results of checks, if nothing else counts for it: what is not known yet is as it
    /// was installed.
    pub(super) fn plan(
        &mut self,
        addresses: &[IpAddr],
        healths: &[Option<Health>],
        make: impl FnOnce() -> Plan,
    ) -> Arc<Plan> {
        if healths.contains(&None) {
            self.plan = None;
            return Arc::new(make());
        }
        match &self.plan {
            Some(known) if known.addresses == addresses && *known.healths == *healths => {}
            _ => {
                let (addresses, healths) = (addresses.to_vec(), healths.into());
                self.plan = Some(Planned { addresses, healths, plan: Arc::new(make()) });
            }
        }
        self.plan.as_ref().map_or_else(Arc::default, |known| Arc::clone(&known.plan))
    }

    /// The status that was made of the same after the same.
    pub(super) fn said(
        &self,
        before: Option<&Arc<LoadBalancerStatus>>,
        is_same: impl FnOnce(&Said) -> bool,
    ) -> Option<Arc<LoadBalancerStatus>> {
        let said = self.said.as_ref().filter(|said| same(said.before.as_ref(), before) && is_same(said))?;
        Some(Arc::clone(&said.status))
    }

    pub(super) fn say(&mut self, said: Said) {
        self.said = Some(said);
    }
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
    pub(super) fn new(mut assignments: Assignments) -> Self {
        let claims = mem::take(&mut assignments.claims);
        Given { assignments, claims: claims.into_values().map(Arc::new).collect() }
    }
}

/// What a source asked of the pools.
#[derive(Debug)]
struct Asked {
    object: Held,
    before: Option<Arc<LoadBalancerStatus>>,
    terms: Arc<Terms>,
}

impl Asked {
    fn new(source: &Remembered) -> Self {
        let Remembered { object, before, terms, .. } = source;
        Asked { object: object.clone(), before: before.clone(), terms: Arc::clone(terms) }
    }

    /// Whether it is made of just these.
    fn is_of(&self, source: &Remembered) -> bool {
        std::ptr::eq(self.object.metadata(), source.object.metadata())
            && Arc::ptr_eq(&self.terms, &source.terms)
            && same(self.before.as_ref(), source.before.as_ref())
    }

    /// Whether it asks for the same, and has the same.
    fn is(&self, source: &Remembered) -> bool {
        if self.is_of(source) {
            return true;
        }
        let (before, after) = (self.object.metadata(), source.object.metadata());
        let is_of_same_kind = mem::discriminant(&self.object) == mem::discriminant(&source.object);
        is_of_same_kind
            && (&before.name, &before.namespace) == (&after.name, &after.namespace)
            && labels(before) == labels(after)
            && before.creation_timestamp == after.creation_timestamp
            && self.terms.asks_the_same(&source.terms)
            && addresses(self.before.as_ref()).eq(addresses(source.before.as_ref()))
    }
}

fn addresses(status: Option<&Arc<LoadBalancerStatus>>) -> impl Iterator<Item = &AssignedAddress> {
    status.into_iter().flat_map(|status| &status.addresses)
}

impl Memory {
    /// Forgets everything if this is another context than before.
    pub(super) fn enter(&mut self, context: Context) {
        if self.snapshot.is_none() || self.context != context {
            *self = Memory { context, ..Memory::default() };
        }
    }

    /// What is remembered of these, which are in the order of the sources.
    pub(super) fn recall(&mut self, declared: &Declared, all: &[Declaration<'_>]) -> Vec<Option<Remembered>> {
        let known = mem::take(&mut self.sources);
        let Some(snapshot) = self.snapshot.as_deref() else {
            return all.iter().map(|_| None).collect();
        };
        let changed = changed_slices(&snapshot.endpoint_slices, &declared.endpoint_slices);
        let has_other_slices = |(object, name, _): &Declaration<'_>| {
            !changed.is_empty() && object.services(name).any(|service| changed.contains(&service))
        };
        if known.len() == all.len() && has_same_sources(snapshot, declared) {
            let known = known.into_iter().zip(all);
            return known.map(|(known, of)| (!has_other_slices(of)).then_some(known)).collect();
        }
        let mut known = known.into_iter().peekable();
        let is_service_same = |(namespace, name): (&str, &str)| {
            let name = [namespace, "/", name].concat();
            same(snapshot.services.get(&name), declared.services.get(&name))
        };
        let recall = |declaration: &Declaration<'_>| {
            let (object, name, before) = declaration;
            let order = |kind: Kind| kind == Kind::Service;
            let key = (order(object.kind()), *name);
            let of = |known: &Remembered| matches!(known.object, Held::Service(_));
            while known.next_if(|known| (of(known), &*known.name) < key).is_some() {}
            let known = known.next_if(|known| (of(known), &*known.name) == key)?;
            let is_same = known.object.is(*object)
                && same(known.before.as_ref(), *before)
                && !has_other_slices(declaration)
                && (object.kind() == Kind::Service || object.services(name).all(is_service_same));
            is_same.then_some(known)
        };
        all.iter().map(recall).collect()
    }

    /// What pools give, if they are asked for the same by the same. While something rests, time counts, and of what clusters share,
    /// the others.
    pub(super) fn give(
        &mut self,
        declared: &Declared,
        observed: &Observed,
        give: impl FnOnce() -> Assignments,
    ) -> Arc<Given> {
        // Others that hold addresses are looked at each time.
        let StatusSet { load_balancers, services, pools, .. } = &declared.statuses;
        let holders = self.sources.iter().filter(|source| source.before.is_some()).count();
        let is_plain = holders == load_balancers.len() + services.len();
        let shares = declared.pools.values().any(|pool| !pool.spec.clusters.is_empty());
        let rests = shares || observed.takes_over || pools.values().any(|status| !status.released.is_empty());
        let known = self.given.take().filter(|given| {
            is_plain
                && !rests
                && given.assignments.released.is_empty()
                && self.snapshot.as_ref().is_some_and(|before| has_same_pools(before, declared))
                && self.asked.len() == self.sources.len()
                && self.asked.iter().zip(&self.sources).all(|(asked, source)| asked.is(source))
        });
        let is_known = known.is_some();
        let given = known.unwrap_or_else(|| Arc::new(Given::new(give())));
        if is_known {
            let renewed = self.asked.iter_mut().zip(&self.sources).filter(|(asked, of)| !asked.is_of(of));
            renewed.for_each(|(asked, source)| *asked = Asked::new(source));
        } else if is_plain {
            self.asked = self.sources.iter().map(Asked::new).collect();
        }
        self.given = is_plain.then(|| Arc::clone(&given));
        given
    }
}

/// Whether nothing of what sources are made of is another, but for slices. No means that something may be.
fn has_same_sources(one: &Declared, other: &Declared) -> bool {
    one.load_balancers.is_same(&other.load_balancers)
        && one.services.is_same(&other.services)
        && one.statuses.load_balancers.is_same(&other.statuses.load_balancers)
        && one.statuses.services.is_same(&other.statuses.services)
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
    let mut changed = HashSet::new();
    if before.is_same(after) {
        return changed;
    }
    let mut others = after.iter().peekable();
    for one in before.iter() {
        while let Some((name, slice)) = others.next_if(|other| other.0 < one.0) {
            changed.extend(service_of(name, slice));
        }
        let other = others.next_if(|other| other.0 == one.0);
        if !other.is_some_and(|(_, other)| Arc::ptr_eq(one.1, other)) {
            changed
                .extend([Some(one), other].into_iter().flatten().filter_map(|(name, s)| service_of(name, s)));
        }
    }
    changed.extend(others.filter_map(|(name, slice)| service_of(name, slice)));
    changed
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
        observed::{Failure, NodeInfo},
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
            if *now == *before {
                *now = before.clone();
                return;
            }
            for (name, now) in now {
                if let Some(before) = before.get(name).filter(|before| *before == now) {
                    *now = Arc::clone(before);
                }
            }
        }
        all(&mut now.pools, &before.pools);
        all(&mut now.load_balancers, &before.load_balancers);
        all(&mut now.policies, &before.policies);
        all(&mut now.services, &before.services);
        all(&mut now.endpoint_slices, &before.endpoint_slices);
        all(&mut now.nodes, &before.nodes);
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
