//! Packet filters: which rules the datapath of this node applies now.
use super::{Node, joined};
use crate::{
    api::{PacketFilter, PacketFilterStatus, packet_filter::FilterRule},
    declared::Declared,
    observed::Observed,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use lb_bpf::{Sizes, filter::Filter};
use std::{collections::BTreeMap, sync::Arc};

/// Rules that the datapath has room for.
pub(super) const ROOM: usize = Sizes::DEFAULT.filters as usize;

/// What the node does with all packet filters.
#[derive(Default)]
pub(super) struct Filters<'a> {
    /// In the order of their names.
    pub(super) all: Vec<Filtering<'a>>,
    /// For the datapath.
    pub(super) rules: BTreeMap<String, Filter>,
    /// When the next one expires, in seconds since the epoch.
    pub(super) next_expiry: Option<u64>,
}

/// A packet filter as this node sees it.
pub(super) struct Filtering<'a> {
    pub(super) name: &'a str,
    pub(super) object: &'a PacketFilter,
    /// Its status as last published.
    pub(super) before: Option<&'a Arc<PacketFilterStatus>>,
    pub(super) standing: Standing,
}

/// What becomes of a packet filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is for the datapath.
    Applied,
    /// Its time is over.
    Expired,
    /// It does not select this node.
    NodeNotSelected,
    /// So many rules of others leave too little room for it.
    TooManyRules(usize),
}

impl<'a> Filters<'a> {
    pub(super) fn new(declared: &'a Declared, observed: &Observed, node: &Node<'_>) -> Self {
        let mut filters = Filters::default();
        for (name, object, before) in joined(&declared.packet_filters, &declared.statuses.packet_filters) {
            let expiry = object.spec.expires_at.as_ref().map(expiry);
            let standing = if expiry.is_some_and(|expiry| expiry <= observed.now) {
                Standing::Expired
            } else if !object.spec.node_selector.matches(&node.labels) {
                Standing::NodeNotSelected
            } else {
                filters.next_expiry = filters.next_expiry.into_iter().chain(expiry).min();
                Standing::Applied
            };
            filters.all.push(Filtering { name, object, before, standing });
        }
        filters.fill();
        filters
    }

    /// Those that are programmed come first: a filter that is new takes nothing from them, whatever its name.
    fn fill(&mut self) {
        let (programmed, new): (Vec<_>, Vec<_>) = (self.all.iter_mut())
            .filter(|filter| filter.standing == Standing::Applied)
            .partition(|filter| filter.was_programmed());
        for filter in programmed.into_iter().chain(new) {
            let used = self.rules.len();
            if used + filter.object.spec.rules.len() > ROOM {
                filter.standing = Standing::TooManyRules(used);
                continue;
            }
            let rules = filter.object.spec.rules.iter().map(FilterRule::datapath_filter);
            self.rules.extend(filter.rules().map(|(_, key)| key).zip(rules));
        }
    }
}

impl Filtering<'_> {
    fn was_programmed(&self) -> bool {
        let conditions = self.before.iter().flat_map(|before| &before.conditions);
        conditions.into_iter().any(|condition| condition.type_ == "Programmed" && condition.status == "True")
    }

    /// Its rules: how each is called, and its name in the datapath.
    pub(super) fn rules(&self) -> impl Iterator<Item = (String, String)> + '_ {
        self.object.spec.rules.iter().enumerate().map(|(number, rule)| {
            let label = rule.label(number);
            let key = rule_key(self.name, &label);
            (label, key)
        })
    }
}

/// Name in the datapath of the rule of a PacketFilter that is called, or numbered, `label`.
pub fn rule_key(filter: &str, label: &str) -> String {
    ["PacketFilter/", filter, "/", label].concat()
}

/// The first second, since the epoch, in which it is past. Never earlier than it is said.
fn expiry(time: &Time) -> u64 {
    let whole = crate::status::seconds(time);
    whole + u64::from(time.0.subsec_nanosecond() > 0)
}
