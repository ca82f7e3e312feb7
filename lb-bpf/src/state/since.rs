//! Since when the slots of a table have their backends. Of a table that has not changed it is one moment for all, and no list is
//! kept: ten thousand tables of a thousand slots would take 40 MB.

/// By slot, the second in which its current backend took it; 0: not known, long ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Since {
    /// The same for all.
    All(u32),
    /// One for each.
    Each(Box<[u32]>),
}

impl Since {
    /// What is not known.
    pub(super) const UNKNOWN: Since = Since::All(0);

    pub(super) fn of(&self, slot: u32) -> u32 {
        match self {
            Since::All(second) => *second,
            Since::Each(seconds) => seconds.get(slot as usize).copied().unwrap_or(0),
        }
    }
}

impl From<Vec<u32>> for Since {
    fn from(seconds: Vec<u32>) -> Self {
        let first = seconds.first().copied().unwrap_or(0);
        match seconds.iter().all(|second| *second == first) {
            true => Since::All(first),
            false => Since::Each(seconds.into_boxed_slice()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_kept_only_of_what_differs() {
        assert_eq!(Since::from(Vec::new()), Since::UNKNOWN);
        assert_eq!(Since::from(vec![7, 7]), Since::All(7));
        let since = Since::from(vec![7, 8]);
        assert_eq!([0, 1, 2].map(|slot| since.of(slot)), [7, 8, 0]);
    }
}
