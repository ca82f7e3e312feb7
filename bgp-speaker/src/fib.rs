//! Accepted routes and the kernel's routing table (its FIB): what is to change there so that the table holds what is
//! wanted. Pure: what is wanted and what the kernel says that it holds come in, [`Operation`]s go out.
//!
//! Ours are the routes of the main table with our [`PROTOCOL`] and [`METRIC`]. Those of others are looked at to find
//! the way to a next hop, and are never touched. A route goes by those of its next hops that can be reached; one of which
//! none can be is not there.
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// Protocol number of our routes (`rtm_protocol` of rtnetlink(7)): BGP's port. Not RTPROT_BGP (186), for whoever uses
/// that, as FRR does, takes all routes with it for its own: it removes ours when it starts, and we would remove its.
pub const PROTOCOL: u8 = 179;

/// Metric of our routes. The routes of the node's own networks count before it (0 for IPv4, 256 for IPv6), so that no
/// neighbour takes those over; a default route of a router advertisement (1024) counts after it.
pub const METRIC: u32 = 512;

/// Equal ways of a prefix that are used at most.
pub const MAX_HOPS: usize = 64;

/// A way out of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hop {
    /// Address of the next router; for an IPv4 prefix it may be of IPv6 (RFC 8950).
    pub gateway: IpAddr,
    /// Index of the interface; 0, of a gateway that is not link-local: wherever its address is routed.
    pub interface: u32,
}

/// Equal ways, in ascending order, each once.
pub type Hops = Arc<[Hop]>;

/// What is wanted for a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The destination.
    pub prefix: IpNet,
    /// Empty: no route.
    pub hops: Hops,
}

/// A step for the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The destination of a route of ours.
    pub prefix: IpNet,
    /// What is to be done.
    pub kind: Kind,
}

/// What is to be done with a prefix. All hops have their interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// There is no route of ours: one of somebody else in its place is an error.
    Add(Hops),
    /// There is one of ours.
    Replace(Hops),
    /// There is one of ours.
    Remove,
}

/// A route of somebody else, as far as it tells where an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The lowest one counts.
    pub metric: u32,
    /// None: a packet to there goes nowhere.
    pub out: Option<Out>,
}

/// Where a route of somebody else leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Out {
    /// The next router; none: the address is on the link.
    pub gateway: Option<IpAddr>,
    /// Index of the interface.
    pub interface: u32,
}

/// What the kernel says that it holds.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Our routes.
    pub ours: BTreeMap<IpNet, Hops>,
    /// Those of others.
    pub others: BTreeMap<IpNet, Vec<Way>>,
}

/// What is wanted, what is held, and what is in the way.
#[derive(Debug, Default)]
pub struct Fib {
    wanted: BTreeMap<IpNet, Hops>,
    held: BTreeMap<IpNet, Hops>,
    others: BTreeMap<IpNet, Vec<Way>>,
    /// Where wanted hops lead.
    resolved: BTreeMap<Hop, Option<Hop>>,
    /// Wanted hops that lead nowhere, as far as that was said.
    lost: BTreeSet<Hop>,
    /// What failed last, in words.
    failed: BTreeMap<IpNet, String>,
    /// Prefixes of routes of a life before that are still forwarded by, as they are; none: the kernel was not asked yet.
    kept: Option<BTreeSet<IpNet>>,
}

impl Fib {
    /// Nothing is wanted. What the kernel holds of a life before stays as it is until [`settle`](Self::settle): not all
    /// of the ways may have been told again.
    pub fn new() -> Self {
        Fib::default()
    }

    /// All that was wanted before is wanted again: the rest may go, at the next [`read`](Self::read).
    pub fn settle(&mut self) {
        self.kept = Some(BTreeSet::new());
    }

    /// What the kernel holds is this. Returns the steps to what is wanted.
    pub fn read(&mut self, snapshot: Snapshot) -> Vec<Operation> {
        (self.held, self.others) = (snapshot.ours, snapshot.others);
        let kept = self.kept.get_or_insert_with(|| self.held.keys().copied().collect());
        kept.retain(|prefix| self.held.contains_key(prefix));
        self.resolved.clear();
        let mut used = BTreeMap::new();
        let all: BTreeSet<IpNet> = self.held.keys().chain(self.wanted.keys()).copied().collect();
        let operations = all.into_iter().filter_map(|prefix| self.step(prefix)).collect();
        // What nobody wants any more need not be known.
        for hop in self.wanted.values().flat_map(|hops| hops.iter()) {
            used.extend(self.resolved.get(hop).map(|to| (*hop, *to)));
        }
        self.lost.retain(|hop| used.get(hop) == Some(&None));
        self.resolved = used;
        operations
    }

    /// Something else is wanted. Returns the steps to that.
    pub fn want(&mut self, changes: Vec<Change>) -> Vec<Operation> {
        let mut operations = Vec::new();
        for Change { prefix, hops } in changes {
            if hops.is_empty() {
                self.wanted.remove(&prefix);
            } else {
                self.wanted.insert(prefix, hops);
            }
            operations.extend(self.step(prefix));
        }
        operations
    }

    /// A step was done, or why it was not. Returns a failure that is news.
    pub fn done(&mut self, operation: Operation, failure: Option<String>) -> Option<(IpNet, String)> {
        let Operation { prefix, kind } = operation;
        if let Some(reason) = failure {
            let known = self.failed.insert(prefix, reason.clone());
            return (known.as_ref() != Some(&reason)).then_some((prefix, reason));
        }
        self.failed.remove(&prefix);
        match kind {
            Kind::Add(hops) | Kind::Replace(hops) => self.held.insert(prefix, hops),
            Kind::Remove => self.held.remove(&prefix),
        };
        None
    }

    /// Whether something failed, and is to be tried again: by another [`read`](Self::read).
    pub fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Routes that the kernel holds of ours.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// The step that is missing for a prefix.
    fn step(&mut self, prefix: IpNet) -> Option<Operation> {
        if self.kept.as_ref().is_none_or(|kept| kept.contains(&prefix)) {
            return None;
        }
        let target =
            self.wanted.get(&prefix).cloned().map(|wanted| self.resolve(&wanted)).unwrap_or_default();
        let kind = match self.held.get(&prefix) {
            None if target.is_empty() => None,
            None => Some(Kind::Add(target)),
            Some(_) if target.is_empty() => Some(Kind::Remove),
            Some(held) if *held == target => None,
            Some(_) => Some(Kind::Replace(target)),
        };
        if kind.is_none() {
            self.failed.remove(&prefix);
        }
        kind.map(|kind| Operation { prefix, kind })
    }

    /// Those of the ways that can be reached, with their interfaces.
    fn resolve(&mut self, wanted: &Hops) -> Hops {
        let others = &self.others;
        let mut answer = |hop: &Hop| {
            *self.resolved.entry(*hop).or_insert_with(|| {
                let found = resolve(others, *hop);
                if found.is_none() && self.lost.insert(*hop) {
                    tracing::warn!(next_hop = %hop.gateway, "not reachable: routes do without it");
                }
                found
            })
        };
        let found: BTreeSet<Hop> = wanted.iter().filter_map(&mut answer).collect();
        if found.iter().eq(wanted.iter()) { Arc::clone(wanted) } else { found.into_iter().collect() }
    }
}

/// Where the routes of others say that a gateway is.
fn resolve(others: &BTreeMap<IpNet, Vec<Way>>, hop: Hop) -> Option<Hop> {
    let host = IpNet::from(hop.gateway);
    let link_local = is_link_local(hop.gateway);
    let ways = |length| Some(others.get(&IpNet::new(hop.gateway, length).ok()?.trunc())?.iter());
    let found = (0..=host.max_prefix_len()).rev().filter_map(ways).find_map(|mut ways| {
        if link_local {
            // Every interface has the same network.
            ways.find_map(|way| way.out.filter(|out| out.interface == hop.interface && out.gateway.is_none()))
                .map(Some)
        } else {
            // The longest prefix decides, also if it leads nowhere.
            ways.min_by_key(|way| way.metric).map(|way| way.out)
        }
    });
    let out = found.flatten()?;
    Some(Hop { gateway: out.gateway.unwrap_or(hop.gateway), interface: out.interface })
}

/// Whether an address is known on its link only (RFC 4291 section 2.5.6).
pub(crate) fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn hop(gateway: &str, interface: u32) -> Hop {
        Hop { gateway: gateway.parse().unwrap(), interface }
    }

    fn way(metric: u32, gateway: Option<&str>, interface: u32) -> Way {
        let gateway = gateway.map(|text| text.parse().unwrap());
        Way { metric, out: Some(Out { gateway, interface }) }
    }

    fn change(prefix: &str, hops: &[Hop]) -> Change {
        Change { prefix: net(prefix), hops: hops.into() }
    }

    /// Two links, a static route over a router on the second, a blackhole, a default route.
    fn others() -> BTreeMap<IpNet, Vec<Way>> {
        [
            ("10.0.1.0/24", vec![way(0, None, 1)]),
            ("10.0.2.0/24", vec![way(0, None, 2)]),
            ("10.9.0.0/16", vec![way(100, Some("10.0.1.9"), 1), way(0, Some("10.0.2.9"), 2)]),
            ("10.9.9.0/24", vec![Way { metric: 0, out: None }]),
            ("fe80::/64", vec![way(256, None, 1), way(256, None, 2)]),
            ("::/0", vec![way(1024, Some("fe80::9"), 2)]),
        ]
        .map(|(prefix, ways)| (net(prefix), ways))
        .into()
    }

    fn fib() -> Fib {
        let mut fib = Fib::new();
        assert_eq!(fib.read(Snapshot { others: others(), ..Snapshot::default() }), []);
        fib
    }

    /// Does all steps; what was wanted and is not there has to be said.
    fn perform(fib: &mut Fib, operations: Vec<Operation>) -> usize {
        let count = operations.len();
        for operation in operations {
            assert_eq!(fib.done(operation, None), None);
        }
        count
    }

    #[test]
    fn next_hops_are_where_the_routes_of_others_say() {
        for (asked, found) in [
            (hop("10.0.1.7", 0), Some(hop("10.0.1.7", 1))),
            (hop("10.9.1.1", 0), Some(hop("10.0.2.9", 2))),
            (hop("10.9.9.1", 0), None),
            (hop("192.0.2.1", 0), None),
            (hop("fe80::1", 2), Some(hop("fe80::1", 2))),
            (hop("fe80::1", 3), None),
            (hop("2001:db8::1", 0), Some(hop("fe80::9", 2))),
        ] {
            assert_eq!(resolve(&others(), asked), found, "{asked:?}");
        }
    }

    #[test]
    fn a_hop_that_cannot_be_reached_stops_no_other() {
        let mut fib = fib();
        let [near, far, lost] = [hop("10.0.1.7", 0), hop("10.9.1.1", 0), hop("192.0.2.1", 0)];
        let steps = fib.want(vec![change("10.1.0.0/16", &[near, far, lost]), change("10.2.0.0/16", &[lost])]);
        let hops = [hop("10.0.1.7", 1), hop("10.0.2.9", 2)][..].into();
        let add = Operation { prefix: net("10.1.0.0/16"), kind: Kind::Add(hops) };
        assert_eq!(steps, std::slice::from_ref(&add));
        perform(&mut fib, steps);
        // The same again is nothing; a way less is a replacement; none is the end.
        assert_eq!(fib.want(vec![change("10.1.0.0/16", &[near, far])]), []);
        let steps = fib.want(vec![change("10.1.0.0/16", &[near])]);
        let hops = [hop("10.0.1.7", 1)][..].into();
        assert_eq!(steps, [Operation { kind: Kind::Replace(hops), ..add.clone() }]);
        perform(&mut fib, steps);
        let steps = fib.want(vec![change("10.1.0.0/16", &[])]);
        assert_eq!(steps, [Operation { kind: Kind::Remove, ..add }]);
    }

    #[test]
    fn a_route_of_somebody_else_that_changes_changes_ours() {
        let mut fib = fib();
        let steps = fib.want(vec![change("10.1.0.0/16", &[hop("10.9.1.1", 0)])]);
        perform(&mut fib, steps);
        let ours = fib.held.clone();
        let without = |gone: &str| {
            let mut others = others();
            others.remove(&net(gone));
            Snapshot { ours: ours.clone(), others }
        };
        assert_eq!(fib.read(without("10.0.1.0/24")), []);
        let steps = fib.read(without("10.9.0.0/16"));
        assert_eq!(steps, [Operation { prefix: net("10.1.0.0/16"), kind: Kind::Remove }]);
        perform(&mut fib, steps);
        let back = fib.read(Snapshot { others: others(), ..Snapshot::default() });
        assert!(matches!(&back[..], [Operation { kind: Kind::Add(_), .. }]), "{back:?}");
    }

    #[test]
    fn what_was_there_before_stays_until_all_is_told() {
        let mut fib = Fib::new();
        let new = change("10.4.0.0/16", &[hop("10.0.1.7", 0)]);
        assert_eq!(fib.want(vec![new]), [], "the kernel was not asked yet");
        let old = |prefix: &str| (net(prefix), Hops::from([hop("10.0.1.7", 1), hop("10.0.2.7", 2)]));
        let mut ours: BTreeMap<_, _> = ["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"].map(old).into();
        let snapshot = |ours: &BTreeMap<IpNet, Hops>| Snapshot { ours: ours.clone(), others: others() };
        let steps = fib.read(snapshot(&ours));
        assert_eq!(steps.iter().map(|step| step.prefix).collect::<Vec<_>>(), [net("10.4.0.0/16")]);
        perform(&mut fib, steps);
        ours.insert(net("10.4.0.0/16"), [hop("10.0.1.7", 1)][..].into());
        // The first is told again by one of two, the second and the new one are taken back.
        assert_eq!(fib.want(vec![change("10.1.0.0/16", &[hop("10.0.1.7", 0)])]), []);
        assert_eq!(fib.want(vec![change("10.2.0.0/16", &[])]), []);
        let remove = |prefix: &str| Operation { prefix: net(prefix), kind: Kind::Remove };
        assert_eq!(fib.want(vec![change("10.4.0.0/16", &[])]), [remove("10.4.0.0/16")]);
        ours.remove(&net("10.4.0.0/16"));
        assert_eq!(fib.read(snapshot(&ours)), []);
        fib.settle();
        let hops = [hop("10.0.1.7", 1)][..].into();
        let less = Operation { prefix: net("10.1.0.0/16"), kind: Kind::Replace(hops) };
        assert_eq!(fib.read(snapshot(&ours)), [less, remove("10.2.0.0/16"), remove("10.3.0.0/16")]);
    }

    #[test]
    fn failures_are_told_once_and_tried_again() {
        let mut fib = fib();
        let steps = fib.want(vec![change("10.1.0.0/16", &[hop("10.0.1.7", 0)])]);
        let reason = || Some("File exists".to_owned());
        assert_eq!(
            fib.done(steps[0].clone(), reason()),
            Some((net("10.1.0.0/16"), "File exists".to_owned()))
        );
        assert_eq!(fib.read(Snapshot { others: others(), ..Snapshot::default() }), steps);
        assert_eq!(fib.done(steps[0].clone(), reason()), None);
        assert!(fib.has_failed());
        perform(&mut fib, steps);
        assert!(!fib.has_failed() && fib.held() == 1);
        // What is not wanted any more is not tried.
        let steps = fib.want(vec![change("10.2.0.0/16", &[hop("10.0.1.7", 0)])]);
        fib.done(steps[0].clone(), reason());
        assert_eq!(fib.want(vec![change("10.2.0.0/16", &[])]), []);
        assert!(!fib.has_failed());
    }

    proptest! {
        /// Whatever happened, a pass leads to what is wanted, and the one after it does nothing.
        #[test]
        fn a_pass_ends_in_what_is_wanted(
            before in prop::collection::btree_map(0u8..6, 1u8..4, 0..6),
            steps in prop::collection::vec((0u8..6, prop::collection::btree_set(0u8..4, 0..3), any::<bool>()), 0..20),
        ) {
            let prefix = |number: u8| net(&format!("10.{}.0.0/16", 100 + number));
            let gateway = |number: u8, interface| hop(&format!("10.0.1.{number}"), interface);
            let ours = before.iter().map(|(at, to)| (prefix(*at), Hops::from([gateway(*to, 1)]))).collect();
            let mut fib = Fib::new();
            fib.settle();
            let all = fib.read(Snapshot { ours, others: others() });
            perform(&mut fib, all);
            let mut wanted = BTreeMap::new();
            for (at, hops, fails) in steps {
                let asked: Hops = hops.iter().map(|to| gateway(*to, 0)).collect();
                for operation in fib.want(vec![Change { prefix: prefix(at), hops: asked }]) {
                    fib.done(operation, fails.then(|| "no".to_owned()));
                }
                wanted.insert(prefix(at), hops.iter().map(|to| gateway(*to, 1)).collect::<Hops>());
            }
            wanted.retain(|_, hops| !hops.is_empty());
            let held = fib.held.clone();
            let all = fib.read(Snapshot { ours: held, others: others() });
            perform(&mut fib, all);
            prop_assert_eq!(&fib.held, &wanted);
            let held = fib.held.clone();
            prop_assert_eq!(fib.read(Snapshot { ours: held, others: others() }), []);
        }
    }
}
