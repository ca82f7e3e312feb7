//! Graceful restart (RFC 4724, RFC 8538), both roles.
//!
//! **The peer restarts.** When its session ends, but not for good, its routes stay as they are and are noted as
//! *stale*. What it tells again is not stale any more (of several paths of a prefix,
//! what it tells again by the same identifier, RFC 7911). The rest goes at the earliest of these:
//! - its End-of-RIB, in the session after;
//! - its OPEN, if that does not say that it still forwards (flag F);
//! - the end of the restart time that it gave, if it does not come back; [`STALE`] after it did;
//! - another loss of the session.
//!
//! Where both sides offer that, what would go at the end of the restart time stays for longer as the last choice
//! ([`long_lived`](super::long_lived), RFC 9494). Then another loss of the session takes nothing, and that time is
//! not begun anew before an End-of-RIB; an OPEN without flag F for it ends it.
//!
//! **We restart.** Our OPENs say so (flag R) to each peer until a session with it was up, for [`DEFERRAL`] at most.
//! Routes of our own are announced at once, for they cannot be better known. What peers told is passed on, and
//! End-of-RIB said, which ends what peers keep of our last life, only when all is there to decide on: the program has
//! set its routes, and all peers have told theirs.
use super::{Slot, Speaker};
use crate::{
    Time,
    config::{Family, GracefulRestartStatus, LocalRestartStatus, PeerConfig},
    negotiate::{Negotiated, Start},
    rib::{PathKey, Source},
    wire::{GracefulRestart, LongLived},
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
    /// The same about long-lived graceful restart.
    long_lived: BTreeMap<Family, LongLived>,
    /// What is kept of a session that is gone, and that the peer has not told again.
    stale: BTreeMap<Family, Stale>,
    /// Families of which the peer has told everything, in this session.
    ended: BTreeSet<Family>,
}

/// Paths of a family that are kept.
#[derive(Debug)]
pub(super) struct Stale {
    paths: BTreeSet<PathKey>,
    phase: Phase,
    /// When the phase ends if the peer does not come back.
    expires: Time,
    /// The peer is back: when it must have told all.
    told_by: Option<Time>,
}

/// How long the peer is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not longer than its restart time.
    Restart,
    /// Longer: its paths are the last choice.
    LongLived,
}

impl Stale {
    pub(super) fn new(paths: BTreeSet<PathKey>, phase: Phase, expires: Time) -> Self {
        Stale { paths, phase, expires, told_by: None }
    }

    fn deadline(&self) -> Time {
        self.told_by.unwrap_or(self.expires)
    }
}

impl Kept {
    /// Keeps paths.
    pub(super) fn keep(&mut self, family: Family, stale: Stale) {
        self.stale.insert(family, stale);
    }

    fn deadline(&self) -> Option<Time> {
        self.stale.values().map(Stale::deadline).min()
    }

    /// How long the paths of a family are kept beyond the restart time; none: not at all.
    fn long_lived(&self, family: Family) -> Option<Duration> {
        let seconds = self.long_lived.get(&family)?.seconds;
        (seconds > 0).then(|| Duration::from_secs(seconds.into()))
    }

    /// The peer told the path anew, or of its end.
    pub(super) fn confirm(&mut self, family: Family, path: PathKey) {
        if let Some(stale) = self.stale.get_mut(&family) {
            stale.paths.remove(&path);
        }
    }

    /// Whether routes of a session that is gone are kept.
    pub(super) fn is_needed(&self) -> bool {
        !self.stale.is_empty()
    }

    /// Families of which the peer has told everything, in this session.
    pub(super) fn ended(&self) -> &BTreeSet<Family> {
        &self.ended
    }

    pub(super) fn is_stale(&self, family: Family) -> bool {
        self.stale.contains_key(&family)
    }

    /// What an operator sees.
    pub(super) fn status(&self, now: Time) -> Option<GracefulRestartStatus> {
        let terms = self.terms.as_ref()?;
        let count = |which: &dyn Fn(&&Stale) -> bool| {
            self.stale.values().filter(which).map(|stale| stale.paths.len() as u64).sum()
        };
        let long_lived = self.long_lived.iter().filter(|(_, said)| said.seconds > 0);
        let long_lived: BTreeMap<_, _> = long_lived.map(|(family, said)| (*family, said.seconds)).collect();
        Some(GracefulRestartStatus {
            restart_seconds: terms.seconds,
            restarting: terms.restarting,
            notification: terms.notification,
            families: families(terms).collect(),
            long_lived_seconds: long_lived.values().copied().max().unwrap_or(0),
            long_lived,
            stale_prefixes: count(&|_| true),
            long_lived_prefixes: count(&|stale| stale.phase == Phase::LongLived),
            stale_seconds: self.deadline().map(|until| until.saturating_sub(now).as_secs()),
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
        let kept = self.slots().filter_map(|(_, slot)| slot.kept.deadline());
        kept.chain(self.own_start.deadline()).chain(self.settle_deadline()).min()
    }

    /// When what the kernel holds of a life before is not waited for any more.
    fn settle_deadline(&self) -> Option<Time> {
        self.own_start.since.filter(|_| self.is_settling()).map(|since| since + DEFERRAL)
    }

    pub(super) fn restart_tick(&mut self, now: Time, outputs: &mut Vec<super::Output>) {
        for source in self.sources() {
            if self.slot(source).and_then(|slot| slot.kept.deadline()).is_some_and(|deadline| deadline <= now)
            {
                for family in Family::ALL {
                    self.stale_tick(source, family, now);
                }
                self.let_go(source, outputs);
            }
        }
        if self.own_start.deadline().is_some_and(|deadline| deadline <= now) {
            self.own_start.start = Start::Running;
            self.own_start.complete = true;
            self.undefer();
        }
        if self.settle_deadline().is_some_and(|deadline| deadline <= now) {
            self.settle_installed();
        }
    }

    /// What is kept of a family goes, or becomes the last choice, if it is time.
    fn stale_tick(&mut self, source: Source, family: Family, now: Time) {
        let Some(slot) = self.slot_mut(source) else { return };
        let Some(stale) = slot.kept.stale.get(&family).filter(|stale| stale.deadline() <= now) else {
            return;
        };
        let is_away = stale.phase == Phase::Restart && stale.told_by.is_none();
        match slot.kept.long_lived(family).filter(|_| is_away) {
            Some(longer) => {
                let paths = slot.kept.stale.remove(&family).map(|stale| stale.paths).unwrap_or_default();
                self.begin_long_lived(source, family, paths, now + longer);
            }
            None => self.end_stale(source, family),
        }
    }

    /// Ends the deferral if there is nothing to wait for any more.
    pub(super) fn end_deferral(&mut self) {
        let passes_on = self.slots().any(|(_, slot)| slot.peer.config.export_learned);
        let told = self.slots().all(|(_, slot)| slot.has_told_all());
        if told && (self.own_start.complete || self.own_start.start == Start::Running) {
            self.settle_installed();
        }
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
    pub(super) fn restart_up(&mut self, source: Source, negotiated: &Negotiated, now: Time) {
        let terms = negotiated.graceful_restart.as_ref();
        let forwarding: BTreeSet<Family> = terms.into_iter().flat_map(forwarding).collect();
        let Some(slot) = self.slot_mut(source) else { return };
        slot.kept.ended.clear();
        slot.kept.terms = terms.cloned();
        slot.kept.long_lived = negotiated.long_lived.clone();
        let mut lost = Vec::new();
        for (&family, stale) in &mut slot.kept.stale {
            let stays = match stale.phase {
                Phase::Restart => forwarding.contains(&family),
                Phase::LongLived => negotiated.long_lived.get(&family).is_some_and(|said| said.forwarding),
            };
            stale.told_by = Some(now + STALE);
            lost.extend((!stays).then_some(family));
        }
        for family in lost {
            self.end_stale(source, family);
        }
    }

    /// A session that was up is gone. `terms`: its routes are kept on these terms; none: they go.
    pub(super) fn restart_down(&mut self, source: Source, terms: Option<&GracefulRestart>, now: Time) {
        for family in Family::ALL {
            let restart = terms.and_then(|terms| restart_time(terms, family));
            let Some(slot) = self.slot_mut(source) else { return };
            let longer = slot.kept.long_lived(family).filter(|_| terms.is_some());
            let is_running =
                |stale: &&Stale| longer.is_some() && stale.phase == Phase::LongLived && stale.expires > now;
            let running = slot.kept.stale.get(&family).filter(is_running).map(|stale| stale.expires);
            if running.is_some() {
                slot.kept.stale.remove(&family);
            } else {
                // What no session has confirmed since goes (RFC 4724 section 4.2).
                self.end_stale(source, family);
            }
            let paths: Vec<PathKey> = self.rib.paths_of(family, source).collect();
            if let Some(expires) = running.or(longer.filter(|_| restart.is_none()).map(|longer| now + longer))
            {
                self.begin_long_lived(source, family, paths.into_iter().collect(), expires);
            } else if let Some(restart) = restart {
                if let Some(slot) = self.slot_mut(source)
                    && !paths.is_empty()
                {
                    let paths = paths.into_iter().collect();
                    slot.kept.keep(family, Stale::new(paths, Phase::Restart, now + restart));
                }
            } else {
                paths.into_iter().for_each(|path| self.withdraw(source, family, path));
            }
        }
        if let Some(slot) = self.slot_mut(source) {
            slot.kept.terms = terms.filter(|_| slot.kept.is_needed()).cloned();
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
        let paths = slot.kept.stale.remove(&family).map(|stale| stale.paths).unwrap_or_default();
        if slot.kept.stale.is_empty() && slot.out.is_empty() {
            slot.kept.terms = None;
        }
        for path in paths {
            self.withdraw(source, family, path);
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

/// How long routes of a family are kept for the peer to restart; none: not at all.
fn restart_time(terms: &GracefulRestart, family: Family) -> Option<Duration> {
    families(terms).any(|kept| kept == family).then(|| Duration::from_secs(terms.seconds.into()))
}

fn forwarding(terms: &GracefulRestart) -> impl Iterator<Item = Family> {
    let forwarding = terms.families.iter().filter(|(_, forwarding)| *forwarding);
    forwarding.filter_map(|(family, _)| family.family())
}
