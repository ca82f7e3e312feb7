//! The tables of services: what they hold, where a new one goes, and when the place of an old one is free.
use super::{
    Now, Programmed, State,
    dirt::{self, Dirt},
    plan::PlanError,
    since::Since,
};
use crate::{
    maglev,
    maps::{Maps, Op, Slots},
    service::{Endpoint, Service},
    status::InstalledService,
};
use lb_bpf_common::{Backend, Slot, Vip, slot_of};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// How long, in milliseconds, a range of slots rests before it is used again: much longer than any packet is in the
/// program, so that none reads a table that is written over.
pub(crate) const GRACE: u64 = 250;

/// A service's table before the plan.
pub(super) struct Old {
    /// What the frontends point to; the one to go by first.
    candidates: Vec<(Vip, Vec<Slot>)>,
    since: Since,
    dirty: BTreeMap<u32, Dirt>,
    away: BTreeMap<u32, u32>,
}

/// A service's table as it should be.
pub(super) struct Table {
    pub(super) size: u32,
    pub(super) members: Vec<(Endpoint, u16, u32)>,
    pub(super) entries: BTreeMap<Endpoint, u32>,
}

impl State {
    /// The tables, each once, that the frontends of a service point to: more than one when a process died between
    /// two updates.
    pub(super) fn tables_of(&self, id: u32) -> BTreeSet<Vip> {
        self.by_service.get(&id).into_iter().flatten().map(|key| self.vips[key]).collect()
    }

    /// What the service's slots hold now, and since when.
    pub(super) fn old_table(
        &self,
        maps: &impl Maps,
        installed: &BTreeSet<Vip>,
        before: Option<Programmed>,
        drain_seconds: u32,
        now: Now,
    ) -> Result<Old, PlanError> {
        if let Some(before) = before.filter(|before| installed.contains(&before.vip)) {
            let slots = maps.slots(before.vip.base, before.vip.size)?;
            let candidates = vec![(before.vip, slots)];
            return Ok(Old { candidates, since: before.since, dirty: before.dirty, away: before.away });
        }
        let mut candidates = Vec::new();
        for vip in installed {
            candidates.push((*vip, maps.slots(vip.base, vip.size)?));
        }
        // The newest first: it has the dirt of the one before and its own.
        let dirt = |slots: &[Slot]| slots.iter().filter(|slot| slot.previous != 0).count();
        candidates.sort_by_key(|(vip, slots)| std::cmp::Reverse((dirt(slots), vip.size)));
        let slots = candidates.first().map_or(&[][..], |(_, slots)| slots);
        let until = candidates.first().and_then(|(vip, _)| self.learns_until(vip));
        let dirty = found(slots, drain_seconds, until, now);
        Ok(Old { candidates, since: Since::UNKNOWN, dirty, away: BTreeMap::new() })
    }

    /// Second at which a table in use learns no more, if all its frontends say it.
    fn learns_until(&self, vip: &Vip) -> Option<u32> {
        let keys = self.by_service.get(&vip.service)?.iter().filter(|key| self.vips.get(*key) == Some(vip));
        keys.map(|key| self.learning.get(key).copied()).try_fold(0, |last, until| Some(last.max(until?)))
    }

    /// Leaves an installed table where it is if it is right, else writes a new one.
    #[expect(clippy::too_many_arguments, reason = "all of them are one call's context")]
    pub(super) fn switch(
        &mut self,
        maps: &impl Maps,
        id: u32,
        service: &Arc<Service>,
        old: Old,
        table: Table,
        now: Now,
        ops: &mut Vec<Op>,
    ) -> Result<Programmed, PlanError> {
        let is_live = |index: u32| {
            let backend = if index == 0 { None } else { self.backends.get(&index) };
            backend.is_some_and(|backend| backend.flags & Backend::DOWN == 0)
        };
        let no_slots = (Vip { service: id, base: 0, size: 0, flags: 0 }, Vec::new());
        let (old_vip, old_slots) = old.candidates.first().unwrap_or(&no_slots);
        // When no backend is declared any more the table stays: those that were may drain.
        let size = if service.backends.is_empty() { old_vip.size } else { table.size };
        let (owners, shares) = table.owners(size);
        let is_right = |slots: &[Slot]| slots.iter().map(|slot| slot.current).eq(owners.iter().copied());
        let right = old.candidates.iter().find(|(_, slots)| is_right(slots)).map(|(vip, _)| *vip);
        let mut programmed = Programmed {
            id,
            desired: service.clone(),
            report: Arc::new(InstalledService { slots: shares, ..InstalledService::default() }),
            vip: Vip { service: id, base: 0, size, flags: 0 },
            members: table.members,
            entries: table.entries,
            since: old.since,
            dirty: old.dirty,
            away: old.away,
            server_ids: BTreeMap::new(),
        };
        if let Some(vip) = right.filter(|_| size > 0) {
            if vip != *old_vip {
                let slots = maps.slots(vip.base, vip.size)?;
                programmed.dirty = found(&slots, service.drain_seconds, self.learns_until(&vip), now);
                programmed.since = Since::UNKNOWN;
            }
            programmed.vip = vip;
            return Ok(programmed);
        }
        if size == 0 {
            (programmed.since, programmed.dirty) = (Since::UNKNOWN, BTreeMap::new());
            return Ok(programmed);
        }
        let mut slots = Slots::with_capacity(size as usize);
        let (mut since, mut dirty) = (Vec::with_capacity(size as usize), BTreeMap::new());
        for (slot, &owner) in (0..).zip(&owners) {
            let from = if old_vip.size == size { slot } else { same_place(slot, size, old_vip.size) };
            let held = old_slots.get(from as usize).copied().unwrap_or_default();
            let held_since = programmed.since.of(from);
            if held == (Slot { current: owner, previous: 0 }) {
                since.push(held_since);
                slots.push(held);
                continue;
            }
            let new = dirt::moved(held, owner, is_live);
            let goes_on = new.previous == held.previous;
            let known = programmed.dirty.get(&from).filter(|_| goes_on).copied();
            let begins = dirt::waiting(&new).map(|_| Dirt::learning(service.drain_seconds, held_since, now));
            if let Some(dirt) = known.or(begins).or_else(|| Dirt::found(&new, 0, None, now)) {
                dirty.insert(slot, dirt);
            }
            since.push(if held.current == owner { held_since } else { now.seconds() });
            slots.push(new);
        }
        let full = PlanError::Full { map: "slots", needed: size, available: self.ranges.longest() };
        let base = self.ranges.take(size).ok_or(full)?;
        self.tables.insert(base, size);
        programmed.vip.base = base;
        (programmed.since, programmed.dirty) = (since.into(), dirty);
        ops.push(Op::WriteTable(base, slots));
        Ok(programmed)
    }

    /// Lets tables rest that no frontend points to any more.
    pub(super) fn retire_tables(&mut self, now: Now) {
        for (id, base) in std::mem::take(&mut self.left) {
            let is_used = self.tables_of(id).iter().any(|vip| vip.size > 0 && vip.base == base);
            if !is_used && self.tables.contains_key(&base) {
                self.limbo.entry(base).or_insert(Now(now.0 + GRACE));
            }
        }
    }

    /// Gives back the ranges that have rested long enough.
    pub(super) fn release(&mut self, now: Now) {
        let rested: Vec<u32> =
            self.limbo.iter().filter(|(_, until)| **until <= now).map(|(base, _)| *base).collect();
        for base in rested {
            self.limbo.remove(&base);
            if let Some(size) = self.tables.remove(&base) {
                self.ranges.give(base, size);
            }
        }
    }
}

impl Table {
    /// The index of the owner of each of `size` slots, 0 without members; and how many slots each member owns.
    fn owners(&self, size: u32) -> (Vec<u32>, BTreeMap<Endpoint, u32>) {
        let weights: Vec<_> = self.members.iter().map(|(endpoint, weight, _)| (*endpoint, *weight)).collect();
        if size == 0 || weights.is_empty() {
            return (vec![0; size as usize], BTreeMap::new());
        }
        let mut owners = maglev::build(size, &weights);
        let mut shares = vec![0; weights.len()];
        for owner in &mut owners {
            let member = *owner as usize;
            shares[member] += 1;
            *owner = self.members[member].2;
        }
        (owners, weights.into_iter().map(|(endpoint, _)| endpoint).zip(shares).collect())
    }
}

fn found(slots: &[Slot], drain_seconds: u32, learns_until: Option<u32>, now: Now) -> BTreeMap<u32, Dirt> {
    let dirt = |held| Dirt::found(held, drain_seconds, learns_until, now);
    (0..).zip(slots).filter_map(|(slot, held)| Some((slot, dirt(held)?))).collect()
}

/// The slot in a table of `old_size` slots that has the flows in the middle of this one. When a size changes, the few
/// flows that a new slot has from another old one are not asked for.
fn same_place(slot: u32, size: u32, old_size: u32) -> u32 {
    let middle = ((u64::from(slot) * 2 + 1) << 31) / u64::from(size);
    slot_of(middle as u32, old_size)
}
