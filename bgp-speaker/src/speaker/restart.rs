//! Graceful restart (RFC 4724, RFC 8538), both roles.
//!
//! **The peer restarts.** When its session ends, but not for good, its routes stay as they are and are noted as
//! *stale*. What it tells again is not stale any more. The rest goes at the earliest of these:
//! - its End-of-RIB, in the session after;
//! - its OPEN, if that does not say that it still forwards (flag F);
//! - the end of the restart time that it gave, if it does not come back; [`STALE`] after it did;
//! - another loss of the session.
//!
//! **We restart.** Our OPENs say so (flag R) to each peer until a session with it was up, for [`DEFERRAL`] at most.
//! Routes of our own are announced at once, for they cannot be better known. What peers told is passed on, and
//! End-of-RIB said, which ends what peers keep of our last life, only when all is there to decide on: the program has
//! set its routes, and all peers have told theirs.
use super::{Slot, Speaker};
use crate::{
    Time,
    config::{Family, GracefulRestartStatus, LocalRestartStatus, PeerConfig},
    negotiate::Start,
    rib::{PrefixId, Source},
    wire::GracefulRestart,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// How long we wait for the routes of the program and of all peers after our start (Selection_Deferral_Timer, RFC 4724
/// section 4.1): the restart time that is usual.
pub(super) const DEFERRAL: Duration = Duration::from_secs(120);
/// How long a peer that came back has to tell all its routes (RFC 4724 section 4.2: "an upper bound").
pub(super) const STALE: Duration = Duration::from_secs(360);

/// Our own start.
#[derive(Debug, Default)]
pub(super) struct Own {
    pub(super) start: Start,
    /// When the speaker learned who it is.
    since: Option<Time>,
    /// The program has set all the routes that it has.
    complete: bool,
    /// Learned routes and End-of-RIB are held back.
    pub(super) deferring: bool,
}

impl Own {
    /// There was no end of the life before: nobody noticed one.
    pub(super) fn go_on(&mut self) {
        *self = Own { start: Start::Running, complete: true, ..Own::default() };
    }

    /// What an operator sees. `sent`: what our OPEN of the session said; else what is configured counts.
    pub(super) fn status(
        &self,
        config: &PeerConfig,
        sent: Option<&GracefulRestart>,
        now: Time,
    ) -> Option<LocalRestartStatus> {
        let end = self.deadline().filter(|_| self.deferring);
        Some(LocalRestartStatus {
            restart_seconds: sent.map(|sent| sent.seconds).or(config.graceful_restart)?,
            families: sent.map_or_else(|| config.families.clone(), |sent| families(sent).collect()),
            restarting: sent.is_some_and(|sent| sent.restarting),
            deferring: self.deferring,
            deferral_seconds: end.map(|end| end.saturating_sub(now).as_secs()),
        })
    }

    fn deadline(&self) -> Option<Time> {
        self.since.filter(|_| self.start == Start::Restarted).map(|since| since + DEFERRAL)
    }
}

/// The restart of a peer.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// What the peer said in the OPEN of the session that is up, or was while some of it is stale.
    terms: Option<GracefulRestart>,
    /// Prefixes of a session that is gone, and that the peer has not told again.
    stale: BTreeMap<Family, BTreeSet<PrefixId>>,
    /// When they go; there is a time exactly if there is a family.
    until: Option<Time>,
    /// Families of which the peer has told everything, in this session.
    ended: BTreeSet<Family>,
}

impl Kept {
    /// The peer told the prefix anew, or of its end.
    pub(super) fn confirm(&mut self, family: Family, id: PrefixId) {
        if let Some(stale) = self.stale.get_mut(&family) {
            stale.remove(&id);
        }
    }

    /// Whether routes of a session that is gone are kept.
    pub(super) fn is_needed(&self) -> bool {
        !self.stale.is_empty()
    }

    pub(super) fn is_stale(&self, family: Family) -> bool {
        self.stale.contains_key(&family)
    }

    /// What an operator sees.
    pub(super) fn status(&self, now: Time) -> Option<GracefulRestartStatus> {
        let terms = self.terms.as_ref()?;
        Some(GracefulRestartStatus {
            restart_seconds: terms.seconds,
            restarting: terms.restarting,
            notification: terms.notification,
            families: families(terms).collect(),
            stale_prefixes: self.stale.values().map(|stale| stale.len() as u64).sum(),
            stale_seconds: self.until.map(|until| until.saturating_sub(now).as_secs()),
            end_of_rib: self.ended.clone(),
        })
    }
}

impl Speaker {
    /// The speaker takes the place of one that ran before, and what that one announced is still forwarded: peers
    /// that keep routes are told so (RFC 4724). End-of-RIB is held back until [`routes_complete`](Self::routes_complete).
    pub fn restarted(mut self) -> Self {
        self.own_start = Own { start: Start::Restarted, deferring: true, ..Own::default() };
        self
    }

    /// After a restart: all routes that the program has to announce are set. What peers still keep of the life before,
    /// and were not told again, may go.
    pub fn routes_complete(&mut self) -> Vec<super::Output> {
        self.own_start.complete = true;
        self.end_deferral();
        self.finish(Vec::new())
    }

    /// The speaker knows who it is.
    pub(super) fn started(&mut self, now: Time) {
        self.own_start.since.get_or_insert(now);
    }

    /// When something of this file is due.
    pub(super) fn restart_deadline(&self) -> Option<Time> {
        self.slots().filter_map(|(_, slot)| slot.kept.until).chain(self.own_start.deadline()).min()
    }

    pub(super) fn restart_tick(&mut self, now: Time, outputs: &mut Vec<super::Output>) {
        for source in self.sources() {
            if self.slot(source).and_then(|slot| slot.kept.until).is_some_and(|until| until <= now) {
                self.forget_stale(source);
                self.let_go(source, outputs);
            }
        }
        if self.own_start.deadline().is_some_and(|deadline| deadline <= now) {
            self.own_start.start = Start::Running;
            self.own_start.complete = true;
            self.undefer();
        }
    }

    /// Ends the deferral if there is nothing to wait for any more.
    pub(super) fn end_deferral(&mut self) {
        let passes_on = self.slots().any(|(_, slot)| slot.peer.config.export_learned);
        let told = self.slots().all(|(_, slot)| slot.has_told_all());
        if self.own_start.complete && (!passes_on || told) {
            self.undefer();
        }
    }

    fn undefer(&mut self) {
        if !std::mem::take(&mut self.own_start.deferring) {
            return;
        }
        for source in self.sources() {
            let Some(slot) = self.slot_mut(source) else { continue };
            slot.out.values_mut().for_each(super::AdjRibOut::release_end);
            if slot.peer.config.export_learned {
                self.export_policy_changed(source);
            }
        }
    }

    /// A session is up: what is stale stays if the peer still forwards.
    pub(super) fn restart_up(&mut self, source: Source, terms: Option<&GracefulRestart>, now: Time) {
        let forwarding: BTreeSet<Family> = terms.into_iter().flat_map(forwarding).collect();
        let Some(slot) = self.slot_mut(source) else { return };
        slot.kept.ended.clear();
        slot.kept.terms = terms.cloned();
        slot.kept.until = slot.kept.until.map(|_| now + STALE);
        let lost: Vec<Family> =
            slot.kept.stale.keys().copied().filter(|family| !forwarding.contains(family)).collect();
        for family in lost {
            self.end_stale(source, family);
        }
    }

    /// A session that was up is gone. `terms`: its routes are kept on these terms; none: they go.
    pub(super) fn restart_down(&mut self, source: Source, terms: Option<&GracefulRestart>, now: Time) {
        // What no session has confirmed since goes (RFC 4724 section 4.2).
        self.forget_stale(source);
        let kept: BTreeSet<Family> = terms.into_iter().flat_map(families).collect();
        let mut stale = BTreeMap::new();
        for family in Family::ALL {
            let told = self.rib.table(family).ids_of(source);
            if kept.contains(&family) {
                let ids: BTreeSet<PrefixId> = told.collect();
                stale.extend((!ids.is_empty()).then_some((family, ids)));
            } else {
                let ids: Vec<PrefixId> = told.collect();
                ids.into_iter().for_each(|id| self.withdraw(source, family, id));
            }
        }
        if let Some(slot) = self.slot_mut(source) {
            let seconds = terms.map_or(0, |terms| terms.seconds);
            slot.kept.terms = terms.filter(|_| !stale.is_empty()).cloned();
            slot.kept.until = (!stale.is_empty()).then(|| now + Duration::from_secs(seconds.into()));
            slot.kept.stale = stale;
        }
    }

    /// The peer has told all its routes of a family.
    pub(super) fn end_of_rib(&mut self, source: Source, family: Family) {
        if let Some(slot) = self.slot_mut(source) {
            slot.kept.ended.insert(family);
        }
        self.end_stale(source, family);
        self.end_deferral();
    }

    /// Withdraws what is stale of all families.
    pub(super) fn forget_stale(&mut self, source: Source) {
        for family in Family::ALL {
            self.end_stale(source, family);
        }
    }

    fn end_stale(&mut self, source: Source, family: Family) {
        let Some(slot) = self.slot_mut(source) else { return };
        let stale = slot.kept.stale.remove(&family).unwrap_or_default();
        if slot.kept.stale.is_empty() {
            slot.kept.until = None;
            if slot.out.is_empty() {
                slot.kept.terms = None;
            }
        }
        for id in stale {
            self.withdraw(source, family, id);
        }
    }
}

impl Slot {
    /// Whether there is no more to wait for from the peer: it is up and has told everything, or it does not say when
    /// it has, or it waits itself.
    fn has_told_all(&self) -> bool {
        if self.peer.config.graceful_restart.is_none() {
            return true;
        }
        let Some(session) = self.peer.session().and_then(|session| session.negotiated.as_ref()) else {
            return false;
        };
        let says_when = session.graceful_restart.as_ref().is_some_and(|terms| !terms.restarting);
        !says_when || session.context.families.is_subset(&self.kept.ended)
    }
}

fn families(terms: &GracefulRestart) -> impl Iterator<Item = Family> {
    let seconds = terms.seconds;
    terms.families.iter().filter(move |_| seconds > 0).filter_map(|(family, _)| family.family())
}

fn forwarding(terms: &GracefulRestart) -> impl Iterator<Item = Family> {
    let forwarding = terms.families.iter().filter(|(_, forwarding)| *forwarding);
    forwarding.filter_map(|(family, _)| family.family())
}
