//! What one peer was told of one family (its Adj-RIB-Out), and what it is to be told.
//!
//! The queue holds numbers of prefixes, each once, and no routes: when the socket has room the prefix is looked
//! up, so that the last state wins however often it changed meanwhile, and a slow peer costs at most 4 bytes and a
//! bit for each prefix. A prefix whose export is what the peer was told already is not sent.
//!
//! The first dump of the table, and one that the peer asks for (RFC 2918), is a walk over all prefix numbers
//! beside the queue; at its end stands End-of-RIB (RFC 4724 section 2), or the end of the refresh (RFC 7313). After a
//! restart End-of-RIB is held back until [`release_end`](AdjRibOut::release_end).
//!
//! A peer is told the best path of a prefix, or all that may be used if it takes several (RFC 7911).
//!
//! Messages are full: what would be in a last message with room for more waits for what is looked at next, if there is
//! something, and if there were other messages, so that it never waits in vain.
use crate::{
    config::Family,
    policy::Provenance,
    rib::{AttributesId, Interner, Path, PathAttributes, PathKey, PrefixId, Table},
    sent::Sent,
    wire::{self, Context, EncodeError, Last, Message, Nlri, Packed, PathId, RefreshKind, RouteRefresh},
};
use ipnet::IpNet;
use std::collections::{BTreeMap, VecDeque};

/// So many prefixes are looked at together, to be grouped by attributes: more while the groups fit into what may be
/// written, up to a prefix for every two octets of a message.
const BATCH: usize = 8192;

/// The peer was told something that does not matter any more: it is to be told again (or of the end).
const STALE: AttributesId = AttributesId(u32::MAX - 1);

/// Adj-RIB-Out and queue of a peer and family.
#[derive(Debug)]
pub(crate) struct AdjRibOut {
    family: Family,
    sent: Sent,
    announced: u64,
    queue: VecDeque<PrefixId>,
    queued: Vec<u64>,
    /// So many prefixes are looked at together next.
    batch: usize,
    dump: Option<Dump>,
    end: End,
}

/// Where End-of-RIB stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It follows the first dump.
    Follows,
    /// It is held back.
    Held,
    /// The dump is over, and it is held back.
    Owed,
    /// It is to be sent, after what is queued.
    Due,
}

#[derive(Debug)]
struct Dump {
    next: PrefixId,
    /// The first one of the session: End-of-RIB follows.
    first: bool,
    /// A refresh that the peer asked for and whose bounds it understands.
    bounds: bool,
}

/// How an export is looked up.
pub(crate) trait Exporter {
    /// Where the path comes from, as far as this peer is concerned; none: it is not told.
    fn provenance(&self, path: &Path) -> Option<Provenance>;
    /// Attributes of an own route, where they depend on the peer.
    fn own(&self, prefix: &IpNet, path: &Path) -> Option<AttributesId>;
    /// What the peer is told.
    fn export(&self, family: Family, from: Provenance, route: &PathAttributes) -> Option<PathAttributes>;
}

/// What a call of [`AdjRibOut::fill`] did.
#[derive(Debug, Default)]
pub(crate) struct Filled {
    /// UPDATEs written.
    pub(crate) messages: u64,
    /// ROUTE-REFRESHs written.
    pub(crate) refreshes: u64,
    /// Prefixes that are gone from the table and that this peer has no more use for.
    pub(crate) unused: Vec<PrefixId>,
    /// Why a route could not be written.
    pub(crate) error: Option<EncodeError>,
}

/// What UPDATEs are made of, and where they go.
struct Work<'a> {
    table: &'a Table,
    attributes: &'a mut Interner<PathAttributes>,
    context: &'a Context,
    /// What becomes of messages that are not full.
    last: Last,
    out: &'a mut Vec<u8>,
    filled: Filled,
}

impl Work<'_> {
    fn written(&mut self, result: Result<Packed, EncodeError>) {
        match result {
            Ok(packed) => self.filled.messages += packed.messages as u64,
            Err(error) => self.filled.error = Some(error),
        }
    }
}

impl AdjRibOut {
    /// Everything is to be sent; `add_path`: all paths of each prefix; `holds_end`: but for End-of-RIB.
    pub(crate) fn new(family: Family, add_path: bool, holds_end: bool) -> Self {
        AdjRibOut {
            family,
            sent: Sent::new(add_path),
            announced: 0,
            queue: VecDeque::new(),
            queued: Vec::new(),
            batch: BATCH,
            dump: Some(Dump { next: 0, first: true, bounds: false }),
            end: if holds_end { End::Held } else { End::Follows },
        }
    }

    /// Whether there is something to send.
    pub(crate) fn is_pending(&self) -> bool {
        self.dump.is_some() || !self.queue.is_empty() || self.end == End::Due
    }

    /// End-of-RIB is not held back any more.
    pub(crate) fn release_end(&mut self) {
        self.end = match self.end {
            End::Held | End::Follows => End::Follows,
            End::Owed | End::Due => End::Due,
        };
    }

    /// Whether End-of-RIB was sent.
    pub(crate) fn has_ended(&self) -> bool {
        self.end == End::Follows && !self.dump.as_ref().is_some_and(|dump| dump.first)
    }

    /// The peer has been told of End-of-RIB in this session, by another process.
    pub(crate) fn restore_end(&mut self) {
        self.dump.iter_mut().for_each(|dump| dump.first = false);
        self.end = End::Follows;
    }

    /// Whether a path matters though it is not the best.
    pub(crate) fn takes_all(&self) -> bool {
        self.sent.is_all()
    }

    /// How many prefixes the peer knows; of several paths each counts.
    pub(crate) fn announced(&self) -> u64 {
        self.announced
    }

    /// What the peer was told of a prefix, by our identifiers of the paths.
    pub(crate) fn sent(&self, id: PrefixId) -> impl Iterator<Item = (PathId, AttributesId)> + '_ {
        self.sent.of(id).filter(|(_, sent)| *sent != STALE)
    }

    /// Whether the number of the prefix is in use here.
    pub(crate) fn uses(&self, id: PrefixId) -> bool {
        self.knows(id) || self.is_queued(id)
    }

    /// Whether the peer knows the prefix.
    pub(crate) fn knows(&self, id: PrefixId) -> bool {
        self.sent.of(id).next().is_some()
    }

    /// What the peer knows; none: it is to be told again.
    pub(crate) fn known(&self) -> impl Iterator<Item = (PathKey, Option<AttributesId>)> + '_ {
        self.sent.iter().map(|(path, sent)| (path, Some(sent).filter(|sent| *sent != STALE)))
    }

    /// The peer knows this of a session that another process began; none: it is to be told again.
    pub(crate) fn restore(
        &mut self,
        (id, path): PathKey,
        told: Option<AttributesId>,
        attributes: &mut Interner<PathAttributes>,
    ) {
        match told {
            Some(told) => self.set(id, path, told, attributes),
            None if self.sent.get(id, path) != AttributesId::NONE => {}
            None => {
                self.sent.set(id, path, STALE);
                self.announced += 1;
            }
        }
    }

    /// The route of a prefix may have changed.
    pub(crate) fn mark(&mut self, id: PrefixId) {
        if self.note(id) {
            self.queue.push_back(id);
        }
    }

    /// These were looked at and are the next ones again.
    fn put_back(&mut self, ids: impl DoubleEndedIterator<Item = PrefixId>) {
        for id in ids.rev() {
            if self.note(id) {
                self.queue.push_front(id);
            }
        }
    }

    /// Whether the prefix was not in the queue.
    fn note(&mut self, id: PrefixId) -> bool {
        let (word, bit) = (id as usize / 64, 1 << (id % 64));
        if word >= self.queued.len() {
            self.queued.resize(word + 1, 0);
        }
        let is_new = self.queued[word] & bit == 0;
        self.queued[word] |= bit;
        is_new
    }

    /// Everything is to be sent again (RFC 2918); `bounds`: with its beginning and end marked (RFC 7313).
    pub(crate) fn refresh(
        &mut self,
        bounds: bool,
        attributes: &mut Interner<PathAttributes>,
        out: &mut Vec<u8>,
    ) -> u64 {
        // A dump that has not begun is the answer already, however often the peer asks.
        if matches!(self.dump, Some(Dump { next: 0, .. })) {
            return 0;
        }
        self.forget_sent(attributes);
        let first = self.dump.as_ref().is_some_and(|dump| dump.first);
        self.dump = Some(Dump { next: 0, first, bounds });
        if bounds { self.bound(RefreshKind::Begin, out) } else { 0 }
    }

    /// What the peer was told counts no more: it is told again, or of the end.
    fn forget_sent(&mut self, attributes: &mut Interner<PathAttributes>) {
        for (_, sent) in self.sent.iter_mut() {
            if *sent != STALE {
                attributes.release(*sent);
                *sent = STALE;
            }
        }
    }

    /// Forgets everything; returns the numbers of the prefixes that were in use.
    pub(crate) fn clear(&mut self, attributes: &mut Interner<PathAttributes>) -> Vec<PrefixId> {
        let mut used: Vec<PrefixId> = self.queue.drain(..).collect();
        for (id, sent) in self.sent.iter_mut() {
            used.push(id);
            if *sent != STALE {
                attributes.release(*sent);
            }
        }
        *self = AdjRibOut { dump: None, ..AdjRibOut::new(self.family, self.takes_all(), false) };
        used
    }

    /// Appends UPDATEs until `out` is `limit` octets long (a batch more at most) or there is nothing to send.
    pub(crate) fn fill(
        &mut self,
        table: &Table,
        attributes: &mut Interner<PathAttributes>,
        exporter: &impl Exporter,
        context: &Context,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Filled {
        let (last, filled) = (Last::Written, Filled::default());
        let mut work = Work { table, attributes, context, last, out, filled };
        let mut exports = BTreeMap::new();
        while work.out.len() < limit && self.is_pending() {
            let mut batch = Vec::new();
            let mut withdrawn = Vec::new();
            let ids = self.next_batch(table);
            work.last = if self.is_pending_but_dump_end(table) { Last::LeftOut } else { Last::Written };
            for id in ids {
                let mut export = |path: &Path| {
                    let from = exporter.provenance(path)?;
                    let source = exporter.own(&table.prefix(id), path)?;
                    *exports.entry((source, from)).or_insert_with(|| {
                        let export = exporter.export(self.family, from, work.attributes.get(source));
                        export.map(|export| work.attributes.intern(export))
                    })
                };
                if self.takes_all() {
                    let paths = table.identified(id).filter_map(|(name, path)| Some((name, export(&path)?)));
                    let targets: BTreeMap<PathId, AttributesId> = paths.collect();
                    let told = self.sent.of(id).map(|(path, _)| path);
                    withdrawn.extend(told.filter(|path| !targets.contains_key(path)).map(|path| (id, path)));
                    let news =
                        targets.into_iter().filter(|(path, target)| self.sent.get(id, *path) != *target);
                    batch.extend(news.map(|(path, target)| (target, id, path)));
                } else {
                    let path = PathId::default();
                    let target = table.best(id).and_then(|best| export(&best));
                    match (target, self.sent.get(id, path)) {
                        (Some(target), told) if told != target => batch.push((target, id, path)),
                        (None, told) if told != AttributesId::NONE => withdrawn.push((id, path)),
                        _ => {}
                    }
                }
                if table.paths(id).is_empty() && !self.knows(id) {
                    work.filled.unused.push(id);
                }
            }
            let gone = self.withdraw(&withdrawn, &mut work);
            work.filled.unused.extend(gone.iter().map(|(id, _)| *id));
            self.batch = (self.batch * 2).min(context.max_length / 2).max(BATCH);
            batch.sort_unstable();
            for group in batch.chunk_by(|a, b| a.0 == b.0) {
                if work.out.len() >= limit {
                    self.batch = BATCH;
                    group.iter().for_each(|(_, id, _)| self.mark(*id));
                    continue;
                }
                self.announce(group, &mut work);
            }
            if !self.is_pending_but_dump_end(table) {
                self.end_dump(work.out, &mut work.filled);
            }
        }
        for export in exports.into_values().flatten() {
            work.attributes.release(export);
        }
        work.filled
    }

    /// Withdraws what the peer knows; returns what it knows no more, the others wait.
    fn withdraw<'a>(
        &mut self,
        told: &'a [(PrefixId, PathId)],
        work: &mut Work<'_>,
    ) -> &'a [(PrefixId, PathId)] {
        let prefixes: Vec<Nlri> = told.iter().map(|told| nlri(work.table, *told)).collect();
        let result = wire::withdraw_packed(self.family, &prefixes, work.last, work.context, work.out);
        // What fits into no message was never told.
        let written = result.as_ref().map_or(told.len(), |packed| packed.prefixes);
        let (gone, waiting) = told.split_at(written);
        gone.iter().for_each(|(id, path)| self.set(*id, *path, AttributesId::NONE, work.attributes));
        self.put_back(waiting.iter().map(|(id, _)| *id));
        work.written(result);
        gone
    }

    fn announce(&mut self, group: &[(AttributesId, PrefixId, PathId)], work: &mut Work<'_>) {
        let Some(&(target, ..)) = group.first() else { return };
        let prefixes: Vec<Nlri> = group.iter().map(|(_, id, path)| nlri(work.table, (*id, *path))).collect();
        let route = work.attributes.get(target);
        let Some(next_hop) = route.next_hop else { return };
        let result =
            wire::announce_packed(&route.attributes, next_hop, &prefixes, work.last, work.context, work.out);
        if let Ok(packed) = &result {
            let (told, waiting) = group.split_at(packed.prefixes);
            told.iter().for_each(|(_, id, path)| self.set(*id, *path, target, work.attributes));
            self.put_back(waiting.iter().map(|(_, id, _)| *id));
        } else {
            // What cannot be said is withdrawn: what the peer knows would be wrong.
            let all = group.iter().map(|(_, id, path)| (*id, *path));
            let known: Vec<(PrefixId, PathId)> =
                all.filter(|(id, path)| self.sent.get(*id, *path) != AttributesId::NONE).collect();
            self.withdraw(&known, work);
        }
        work.written(result);
    }

    /// Numbers to look at next: what changed, then what the dump has not seen.
    fn next_batch(&mut self, table: &Table) -> Vec<PrefixId> {
        let count = self.queue.len().min(self.batch);
        let mut batch: Vec<PrefixId> = self.queue.drain(..count).collect();
        for &id in &batch {
            self.queued[id as usize / 64] &= !(1 << (id % 64));
        }
        if let Some(dump) = &mut self.dump {
            let room = (self.batch - batch.len()) as PrefixId;
            let end = dump.next.saturating_add(room).min(table.bound());
            batch.extend(dump.next..end);
            dump.next = end;
            batch.sort_unstable();
            batch.dedup();
        }
        batch
    }

    fn is_pending_but_dump_end(&self, table: &Table) -> bool {
        !self.queue.is_empty() || self.dump.as_ref().is_some_and(|dump| dump.next < table.bound())
    }

    fn end_dump(&mut self, out: &mut Vec<u8>, filled: &mut Filled) {
        let dump = self.dump.take();
        if dump.as_ref().is_some_and(|dump| dump.bounds) {
            filled.refreshes += self.bound(RefreshKind::End, out);
        }
        if dump.is_some_and(|dump| dump.first) {
            self.end = if self.end == End::Held { End::Owed } else { End::Due };
        }
        if self.end == End::Due {
            self.end = End::Follows;
            let end = Message::EndOfRib(self.family).encode(&Context::default(), out);
            filled.messages += end.unwrap_or_default() as u64;
        }
    }

    fn bound(&self, kind: RefreshKind, out: &mut Vec<u8>) -> u64 {
        let message = Message::RouteRefresh(RouteRefresh { family: self.family.into(), kind });
        message.encode(&Context::default(), out).unwrap_or_default() as u64
    }

    fn is_queued(&self, id: PrefixId) -> bool {
        self.queued.get(id as usize / 64).is_some_and(|word| word & (1 << (id % 64)) != 0)
    }

    fn set(
        &mut self,
        id: PrefixId,
        path: PathId,
        target: AttributesId,
        attributes: &mut Interner<PathAttributes>,
    ) {
        let old = self.sent.set(id, path, target);
        if target != AttributesId::NONE {
            attributes.retain(target);
        }
        match (old == AttributesId::NONE, target == AttributesId::NONE) {
            (true, false) => self.announced += 1,
            (false, true) => self.announced -= 1,
            _ => {}
        }
        if old != AttributesId::NONE && old != STALE {
            attributes.release(old);
        }
    }
}

fn nlri(table: &Table, (id, path): (PrefixId, PathId)) -> Nlri {
    Nlri { prefix: table.prefix(id), path }
}
