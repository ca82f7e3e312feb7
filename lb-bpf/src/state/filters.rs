//! Rules against packets of death: which index of the map `filters` each has, for as long as it is desired.
use super::State;
use crate::{
    filter::Filter,
    maps::{NAME_LENGTH, Op},
};
use lb_bpf_common::Config;
use std::collections::{BTreeMap, BTreeSet};

impl State {
    /// Names of the rules of the last plan that are in force; before the first one, of all.
    pub fn filters(&self) -> BTreeSet<String> {
        let names = self.filter_names.iter().filter(|(index, _)| self.filters.contains_key(index));
        let is_named = |name: &&String| self.named.as_ref().is_none_or(|named| named.filters.contains(*name));
        names.map(|(_, name)| name).filter(is_named).cloned().collect()
    }

    /// Plans to add and change rules. Those that come last in the order of names do not fit if there are too many; those
    /// that are not desired any more make room then.
    pub(super) fn add_filters(&mut self, desired: &BTreeMap<String, Filter>, ops: &mut Vec<Op>) {
        let fitting = desired.iter().filter(|(name, _)| is_name(name)).take(self.room_for_filters as usize);
        let wanted: BTreeMap<&String, &Filter> = fitting.collect();
        let mut indexes = BTreeMap::<String, u32>::new();
        for (&index, name) in &self.filter_names {
            if wanted.contains_key(name) {
                indexes.entry(name.clone()).or_insert(index);
            }
        }
        let taken: BTreeSet<u32> = indexes.values().copied().collect();
        let mut others: Vec<u32> =
            (0..self.room_for_filters).filter(|index| !taken.contains(index)).collect();
        // The last is taken first: free and low.
        others.sort_by_key(|index| std::cmp::Reverse((self.filters.contains_key(index), *index)));
        for (name, filter) in wanted {
            let index = match indexes.get(name) {
                Some(&index) => index,
                None => {
                    // There are no more names than indexes.
                    let Some(index) = others.pop() else { continue };
                    if self.filters.contains_key(&index) {
                        self.push(Op::FreeFilter(index), ops);
                    }
                    self.push(Op::ResetFilterCounters(index), ops);
                    self.push(Op::SetFilterName(index, name.clone()), ops);
                    index
                }
            };
            let compiled = filter.compile();
            if self.filters.get(&index) != Some(&compiled) {
                self.push(Op::SetFilter(index, compiled), ops);
            }
        }
        self.count_filters(ops);
    }

    /// Plans to remove the rules that the last plan did not name.
    pub(super) fn remove_filters(&mut self, ops: &mut Vec<Op>) {
        let Some(named) = &self.named else { return };
        let mut kept = BTreeSet::new();
        let mut is_stale = |index: &u32| match self.filter_names.get(index) {
            Some(name) => !named.filters.contains(name) || !kept.insert(name),
            None => true,
        };
        let indexes: BTreeSet<u32> = self.filters.keys().chain(self.filter_names.keys()).copied().collect();
        let stale: Vec<u32> = indexes.into_iter().filter(|index| is_stale(index)).collect();
        for index in stale {
            if self.filters.contains_key(&index) {
                self.push(Op::FreeFilter(index), ops);
            }
            if self.filter_names.contains_key(&index) {
                self.push(Op::RemoveFilterName(index), ops);
            }
        }
        self.count_filters(ops);
    }

    /// Tells packets how many entries they have to look at.
    fn count_filters(&mut self, ops: &mut Vec<Op>) {
        let filters = self.filters.last_key_value().map_or(0, |(index, _)| index + 1);
        if self.config.filters != filters {
            self.push(Op::SetConfig(Config { filters, ..self.config }), ops);
        }
    }
}

/// Whether the map `filter_names` can hold it.
pub(super) fn is_name(name: &str) -> bool {
    (1..=NAME_LENGTH).contains(&name.len()) && !name.contains('\0')
}
