//! The frontends in two arrays that packets read at any time: `vips` holds them, and `vip_index` finds them (see
//! [`VipWord`]). Both are words of 8 bytes, each written by one store. Whatever a packet reads between two stores, it
//! finds for every key the value from before a change or the one from after it.
use super::MapError;
use lb_bpf_common::{Addr, Frontend, Vip, VipKey, VipWord, vip_hash};
use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::atomic::{AtomicU64, Ordering},
};

/// Words of 8 bytes in an entry of `vips`.
pub(super) const WORDS: usize = size_of::<Frontend>() / 8;
/// Words of the key, reserved bytes included; what the frontend has follows.
const KEY_WORDS: usize = std::mem::offset_of!(Frontend, vip) / 8;
/// Words of a [`Vip`]: service with flags, base with size.
const VIP_WORDS: usize = size_of::<Vip>() / 8;
/// Which word holds the edition, and beside it the second at which the table's slots stop learning.
const EDITION: usize = KEY_WORDS + VIP_WORDS;

/// Entries of a map `vips` that no frontend can have: index 0, and the one that replaces another.
pub(crate) const RESERVED: u32 = 2;

/// How many words `vip_index` has for a map `vips` of this many entries: a power of two, and never more than half of
/// what is possible.
pub(crate) const fn words(vips: u32) -> u32 {
    const MOST: u32 = 1 << 30;
    if vips >= MOST / 4 { MOST } else { (vips * 4).next_power_of_two() }
}

/// Memory that packets read while it is written.
pub(super) trait Memory {
    /// Number of words.
    fn length(&self) -> usize;
    /// The word at `at`, which is less than the length.
    fn load(&self, at: usize) -> u64;
    /// Replaces the word at `at`, after all stores before.
    fn store(&self, at: usize, word: u64);
}

impl Memory for [AtomicU64] {
    fn length(&self) -> usize {
        self.len()
    }

    fn load(&self, at: usize) -> u64 {
        self[at].load(Ordering::Acquire)
    }

    fn store(&self, at: usize, word: u64) {
        self[at].store(word, Ordering::Release);
    }
}

/// The entries of `vips` that are free, the one that has been free for longest first: a packet may have read the word of
/// an entry just before the entry became free.
#[derive(Debug)]
pub(super) struct Unused(VecDeque<u32>);

/// The two arrays.
pub(super) struct VipIndex<'a, M: ?Sized> {
    /// `vip_index`; its length is a power of two.
    pub(super) index: &'a M,
    /// `vips`.
    pub(super) vips: &'a M,
}

impl<M: Memory + ?Sized> VipIndex<'_, M> {
    /// The entries that no word names.
    pub(super) fn unused(&self) -> Unused {
        let mut is_free = vec![true; self.vips.length() / WORDS];
        for (_, index) in self.named() {
            is_free[index as usize] = false;
        }
        Unused((0..).zip(is_free).skip(1).filter(|(_, is_free)| *is_free).map(|(index, _)| index).collect())
    }

    /// What a frontend has, as a packet finds it.
    pub(super) fn get(&self, key: &VipKey) -> Option<Vip> {
        self.find(key).map(|(_, index)| self.frontend(index).vip)
    }

    /// The frontends with tables whose slots stop learning at a second that is known.
    pub(super) fn learning(&self) -> BTreeMap<VipKey, u32> {
        let known = self.found().filter(|found| found.learns_until != 0);
        known.map(|found| (found.key, found.learns_until)).collect()
    }

    /// Notes when the slots of a frontend's table stop learning.
    pub(super) fn set_learning(&self, key: &VipKey, until: u32) {
        if let Some((_, index)) = self.find(key) {
            let edition = self.frontend(index).edition;
            self.vips.store(index as usize * WORDS + EDITION, pair(edition, until));
        }
    }

    /// All frontends that packets find. Nothing else counts: not what a process wrote that died before it was in the
    /// index.
    pub(super) fn list(&self) -> BTreeMap<VipKey, Vip> {
        self.found().map(|found| (found.key, found.vip)).collect()
    }

    /// Adds or replaces a frontend; until when its slots learn is not known then. `edition` is a number that the frontend has not had lately.
    pub(super) fn set(
        &self,
        key: &VipKey,
        vip: Vip,
        edition: u32,
        unused: &mut Unused,
    ) -> Result<(), MapError> {
        let (place, before) = match self.find(key) {
            Some((place, index)) => (place, Some(index)),
            None => (self.place(key)?, None),
        };
        if let Some(index) = before {
            let old = self.frontend(index).vip;
            let (from, to) = (words_of(old), words_of(vip));
            let mut changes = (0..VIP_WORDS).filter(|word| from[*word] != to[*word]);
            match (changes.next(), changes.next()) {
                (None, _) => return Ok(()),
                (Some(word), None) if old.service == vip.service => {
                    let at = index as usize * WORDS + KEY_WORDS;
                    self.vips.store(at + EDITION - KEY_WORDS, edition.into());
                    self.vips.store(at + word, to[word]);
                    return Ok(());
                }
                // Two stores would show packets half of one and half of the other.
                _ => {}
            }
        }
        let needed = if before.is_some() { 1 } else { RESERVED as usize };
        if unused.0.len() < needed {
            return Err(full("vips"));
        }
        let Some(index) = unused.0.pop_front() else { return Err(full("vips")) };
        self.write(index, key, vip, edition);
        self.index.store(place, VipWord::new(vip_hash(key), index).0);
        unused.0.extend(before);
        Ok(())
    }

    /// Removes a frontend, if it is there.
    pub(super) fn remove(&self, key: &VipKey, unused: &mut Unused) {
        let Some((mut place, index)) = self.find(key) else { return };
        let is_free = |place| VipWord(self.index.load(place)) == VipWord::FREE;
        if is_free(self.after(place, 1)) {
            // A search that comes to here ends at the next word anyway, so it may end here; and so on, backwards.
            loop {
                self.index.store(place, VipWord::FREE.0);
                place = self.after(place, self.mask() as usize);
                if VipWord(self.index.load(place)) != VipWord::GONE {
                    break;
                }
            }
        } else {
            self.index.store(place, VipWord::GONE.0);
        }
        unused.0.push_back(index);
    }

    fn found(&self) -> impl Iterator<Item = Frontend> {
        self.named().filter_map(|(place, index)| {
            let found = self.frontend(index);
            (self.find(&found.key) == Some((place, index))).then_some(found)
        })
    }

    /// The words that name an entry, and the entry's index.
    fn named(&self) -> impl Iterator<Item = (usize, u32)> {
        let entries = self.vips.length() / WORDS;
        let words = (0..self.index.length()).map(|place| (place, VipWord(self.index.load(place)).index()));
        words.filter(move |(_, index)| *index != 0 && (*index as usize) < entries)
    }

    /// Searches as packets do; the place of the word and the index of the entry.
    fn find(&self, key: &VipKey) -> Option<(usize, u32)> {
        let hash = vip_hash(key);
        for place in self.places(hash) {
            let word = VipWord(self.index.load(place));
            if word == VipWord::FREE {
                return None;
            }
            let index = word.index();
            let is_inside = index != 0 && (index as usize) < self.vips.length() / WORDS;
            if word.may_be(hash) && is_inside && self.frontend(index).key == *key {
                return Some((place, index));
            }
        }
        None
    }

    /// Where the word of a key goes that is not there.
    fn place(&self, key: &VipKey) -> Result<usize, MapError> {
        let is_available = |place: &usize| VipWord(self.index.load(*place)).index() == 0;
        self.places(vip_hash(key)).find(is_available).ok_or_else(|| full("vip_index"))
    }

    fn places(&self, hash: u64) -> impl Iterator<Item = usize> {
        let first = VipWord::place(hash, self.mask()) as usize;
        (0..(VipWord::PROBES as usize).min(self.index.length())).map(move |step| self.after(first, step))
    }

    fn after(&self, place: usize, step: usize) -> usize {
        (place + step) & self.mask() as usize
    }

    fn mask(&self) -> u32 {
        (self.index.length() - 1) as u32
    }

    fn frontend(&self, index: u32) -> Frontend {
        let at = index as usize * WORDS;
        let word = |number: usize| self.vips.load(at + number);
        let halves = |number: usize| [word(number) as u32, (word(number) >> 32) as u32];
        let ([a, b], [c, d], [last, _]) = (halves(0), halves(1), halves(2));
        let key = VipKey {
            addr: Addr([a, b, c, d]),
            port: last as u16,
            proto: (last >> 16) as u8,
            scope: (last >> 24) as u8,
        };
        let ([service, flags], [base, size]) = (halves(KEY_WORDS), halves(KEY_WORDS + 1));
        let (vip, [edition, learns_until]) = (Vip { service, flags, base, size }, halves(EDITION));
        Frontend { key, zero: 0, vip, edition, learns_until, rest: [0; 4] }
    }

    fn write(&self, index: u32, key: &VipKey, vip: Vip, edition: u32) {
        let [a, b, c, d] = key.addr.0;
        let last = u32::from(key.port) | u32::from(key.proto) << 16 | u32::from(key.scope) << 24;
        let [first, second] = words_of(vip);
        let at = index as usize * WORDS;
        let words = [pair(a, b), pair(c, d), last.into(), first, second, edition.into()];
        for (word, value) in words.into_iter().enumerate() {
            self.vips.store(at + word, value);
        }
    }
}

const _: () = assert!(KEY_WORDS == 3 && VIP_WORDS == 2 && std::mem::offset_of!(VipKey, port) == 16);
const _: () = assert!(std::mem::offset_of!(Frontend, edition) == EDITION * 8);

fn words_of(vip: Vip) -> [u64; VIP_WORDS] {
    [pair(vip.service, vip.flags), pair(vip.base, vip.size)]
}

/// Two fields of 4 bytes as the word in which they lie, the first one in the low half (the ABI asserts that).
fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn full(map: &'static str) -> MapError {
    MapError::new(map, "insert", io::Error::new(io::ErrorKind::StorageFull, "the map is full"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::{Cell, RefCell};

    const ENTRIES: u32 = 12;

    /// Which array, where, and what.
    type Store = (bool, usize, u64);

    /// An array that notes what is stored.
    struct Logged<'a> {
        is_index: bool,
        words: Vec<Cell<u64>>,
        log: &'a RefCell<Vec<Store>>,
    }

    impl<'a> Logged<'a> {
        fn new(is_index: bool, length: u32, log: &'a RefCell<Vec<Store>>) -> Self {
            Logged { is_index, words: vec![Cell::new(0); length as usize], log }
        }

        fn copy(&self) -> Vec<u64> {
            self.words.iter().map(Cell::get).collect()
        }
    }

    impl Memory for Logged<'_> {
        fn length(&self) -> usize {
            self.words.len()
        }

        fn load(&self, at: usize) -> u64 {
            self.words[at].get()
        }

        fn store(&self, at: usize, word: u64) {
            self.words[at].set(word);
            self.log.borrow_mut().push((self.is_index, at, word));
        }
    }

    /// What the kernel program does, from the words of both arrays, by the layout of the ABI.
    fn packet_finds(index: &[u64], vips: &[u64], key: &VipKey) -> Option<Vip> {
        let hash = vip_hash(key);
        let mask = index.len() as u32 - 1;
        for step in 0..VipWord::PROBES {
            let word = VipWord(index[(VipWord::place(hash, mask).wrapping_add(step) & mask) as usize]);
            if word == VipWord::FREE {
                return None;
            }
            if word.may_be(hash) && word.index() != 0 {
                let words: [u64; WORDS] = vips[word.index() as usize * WORDS..][..WORDS].try_into().unwrap();
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
                let number = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
                let found = VipKey {
                    addr: Addr([number(0), number(4), number(8), number(12)]),
                    port: u16::from_ne_bytes([bytes[16], bytes[17]]),
                    proto: bytes[18],
                    scope: bytes[19],
                };
                if found == *key {
                    let [service, flags, base, size] = [24, 28, 32, 36].map(number);
                    return Some(Vip { service, flags, base, size });
                }
            }
        }
        None
    }

    fn key(n: u32) -> VipKey {
        VipKey {
            addr: Addr::v4((0xcb00_7100 + n / 3).to_be()),
            port: (80 + n as u16 % 3).to_be(),
            proto: 6,
            scope: 0,
        }
    }

    fn step() -> impl Strategy<Value = (u32, Option<Vip>)> {
        let vip = (1..3_u32, 0..3_u32, 0..3_u32, 0..3_u32).prop_map(|(service, flags, base, size)| Vip {
            service,
            flags,
            base,
            size,
        });
        (0..14_u32, prop::option::weighted(0.7, vip))
    }

    /// Ends of histories: an index that is nearly full, too, so that searches are long and wrap.
    fn words_of_index() -> impl Strategy<Value = u32> {
        prop_oneof![Just(16_u32), Just(32), Just(words(ENTRIES))]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

        #[test]
        fn packets_see_the_old_or_the_new_after_every_store(
            length in words_of_index(),
            steps in prop::collection::vec(step(), 1..80),
        ) {
            let log = RefCell::new(Vec::new());
            let index = Logged::new(true, length, &log);
            let vips = Logged::new(false, ENTRIES * WORDS as u32, &log);
            let both = VipIndex { index: &index, vips: &vips };
            let (mut unused, mut model) = (both.unused(), BTreeMap::new());
            for (n, vip) in steps {
                let (changed, before) = (key(n), model.clone());
                let (mut old_index, mut old_vips) = (index.copy(), vips.copy());
                log.borrow_mut().clear();
                match vip {
                    Some(vip) => match both.set(&changed, vip, 1, &mut unused) {
                        Ok(()) => drop(model.insert(changed, vip)),
                        Err(_) => prop_assert!(!model.contains_key(&changed) && model.len() >= (ENTRIES - RESERVED) as usize),
                    },
                    None => {
                        both.remove(&changed, &mut unused);
                        model.remove(&changed);
                    }
                }
                for &(is_index, at, word) in log.borrow().iter() {
                    (if is_index { &mut old_index } else { &mut old_vips })[at] = word;
                    for key in (0..14).map(key) {
                        let found = packet_finds(&old_index, &old_vips, &key);
                        prop_assert!([before.get(&key), model.get(&key)].contains(&found.as_ref()), "{key:?}: {found:?}");
                        prop_assert!(key == changed || found.as_ref() == before.get(&key));
                    }
                }
                prop_assert_eq!(&both.list(), &model);
                for key in (0..14).map(key) {
                    prop_assert_eq!(both.get(&key), model.get(&key).copied());
                    prop_assert_eq!(packet_finds(&index.copy(), &vips.copy(), &key), model.get(&key).copied());
                }
                // What is free now is what a process finds free that starts now.
                let mut free: Vec<u32> = unused.0.iter().copied().collect();
                free.sort_unstable();
                prop_assert_eq!(free, Vec::from(both.unused().0));
            }
            // When all are gone, searches are short again.
            for n in 0..14 {
                both.remove(&key(n), &mut unused);
            }
            prop_assert!(index.words.iter().all(|word| [VipWord::FREE.0, VipWord::GONE.0].contains(&word.get())));
            prop_assert!(length < words(ENTRIES) || index.words.iter().all(|word| word.get() == VipWord::FREE.0));
        }
    }

    #[test]
    fn entries_are_used_again_oldest_first() {
        let log = RefCell::new(Vec::new());
        let index = Logged::new(true, 64, &log);
        let vips = Logged::new(false, 5 * WORDS as u32, &log);
        let both = VipIndex { index: &index, vips: &vips };
        let mut unused = both.unused();
        let vip = |service| Vip { service, ..Vip::default() };
        both.set(&key(0), vip(1), 1, &mut unused).unwrap();
        both.set(&key(1), vip(1), 1, &mut unused).unwrap();
        both.remove(&key(0), &mut unused);
        assert_eq!(unused.0, [3, 4, 1]);
        both.set(&key(1), vip(2), 1, &mut unused).unwrap();
        assert_eq!(unused.0, [4, 1, 2], "another service has another entry");
        both.set(&key(1), Vip { base: 7, ..vip(2) }, 1, &mut unused).unwrap();
        assert_eq!(unused.0, [4, 1, 2], "another table of the same service has not");
    }

    #[test]
    fn until_when_a_table_learns_is_said_of_that_table_only() {
        let log = RefCell::new(Vec::new());
        let index = Logged::new(true, 64, &log);
        let vips = Logged::new(false, 8 * WORDS as u32, &log);
        let both = VipIndex { index: &index, vips: &vips };
        let mut unused = both.unused();
        let vip = |base| Vip { service: 1, flags: 0, base, size: 7 };
        both.set(&key(0), vip(0), 5, &mut unused).unwrap();
        both.set(&key(1), vip(0), 5, &mut unused).unwrap();
        both.set_learning(&key(0), 100);
        both.set_learning(&key(2), 100);
        assert_eq!(both.learning(), [(key(0), 100)].into(), "one that is not there says nothing");
        both.set(&key(0), vip(0), 6, &mut unused).unwrap();
        assert_eq!(both.learning(), [(key(0), 100)].into(), "the same table");
        let (_, entry) = both.find(&key(0)).unwrap();
        assert_eq!(both.frontend(entry).edition, 5, "what is remembered about flows holds");
        both.set(&key(0), vip(7), 7, &mut unused).unwrap();
        assert_eq!(both.learning(), [].into(), "another table");
        both.set_learning(&key(0), 200);
        both.remove(&key(0), &mut unused);
        assert_eq!(both.learning(), [].into());
    }

    #[test]
    fn a_search_is_never_longer_than_packets_look() {
        let log = RefCell::new(Vec::new());
        let index = Logged::new(true, 64, &log);
        let vips = Logged::new(false, 100 * WORDS as u32, &log);
        let both = VipIndex { index: &index, vips: &vips };
        let mut unused = both.unused();
        // Keys with the same place.
        let mut same = (0..).map(key).filter(|key| VipWord::place(vip_hash(key), 63) == 60);
        let vip = Vip { service: 1, ..Vip::default() };
        let keys: Vec<_> = same.by_ref().take(VipWord::PROBES as usize).collect();
        for key in &keys {
            both.set(key, vip, 1, &mut unused).unwrap();
        }
        let error = both.set(&same.next().unwrap(), vip, 1, &mut unused).unwrap_err();
        assert_eq!(error.to_string(), "map vip_index: insert: the map is full");
        assert_eq!(both.list().len(), keys.len());
        both.remove(&keys[3], &mut unused);
        both.set(&same.next().unwrap(), vip, 1, &mut unused).unwrap();
        assert_eq!(both.list().len(), keys.len());
    }

    #[test]
    fn words_that_make_no_sense_are_not_followed() {
        let log = RefCell::new(Vec::new());
        let index = Logged::new(true, 16, &log);
        let vips = Logged::new(false, 4 * WORDS as u32, &log);
        for place in 0..16 {
            index.store(place, VipWord::new(vip_hash(&key(1)), 900).0);
        }
        let both = VipIndex { index: &index, vips: &vips };
        assert_eq!(both.get(&key(1)), None);
        assert_eq!(both.list(), BTreeMap::new());
        assert_eq!(both.unused().0, [1, 2, 3]);
    }

    #[test]
    fn the_index_is_at_most_a_quarter_full() {
        assert_eq!([1, 2, 3, 8192].map(words), [4, 8, 16, 32_768]);
        assert_eq!(words(u32::MAX), 1 << 30);
    }
}
