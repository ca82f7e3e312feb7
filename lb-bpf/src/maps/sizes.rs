//! Sizes of maps as users write them: `slots=8388608,flows=1000000`.
use super::Sizes;
use std::{ops::RangeInclusive, str::FromStr};

/// Why a text does not say sizes of maps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizesError {
    /// A part is not a name and a number with `=` between.
    #[error("{0:?}: expected NAME=NUMBER")]
    NoPair(String),
    /// No map has this name.
    #[error("{name}: no such map; expected one of {}", names())]
    NoMap {
        /// The name.
        name: String,
    },
    /// A map is named twice.
    #[error("{0}: named twice")]
    Twice(&'static str),
    /// Not a number, or not one that the map can have.
    #[error("{map}={number}: expected a number from {} to {}", range.start(), range.end())]
    Number {
        /// Name of the map.
        map: &'static str,
        /// What stands in the place of the number.
        number: String,
        /// What can.
        range: RangeInclusive<u32>,
    },
}

type Field = fn(&mut Sizes) -> &mut u32;

/// Name, least and greatest size of each map. The kernel allocates arrays at once and a hash map's buckets, too, so the
/// limits are what a large machine has memory for; a slot's index of a backend has 31 bits.
const FIELDS: [(&str, RangeInclusive<u32>, Field); 7] = [
    ("vips", 4..=1 << 22, |sizes| &mut sizes.vips),
    ("slots", 1 << 10..=1 << 30, |sizes| &mut sizes.slots),
    ("backends", 2..=1 << 24, |sizes| &mut sizes.backends),
    ("flows", 1..=1 << 28, |sizes| &mut sizes.flows),
    ("decap", 1..=1 << 22, |sizes| &mut sizes.decap),
    ("ranges", 1..=1 << 24, |sizes| &mut sizes.ranges),
    ("filters", 1..=1 << 16, |sizes| &mut sizes.filters),
];

/// Names and numbers of entries, in any order, with `,` between them; what is not named has its default.
impl FromStr for Sizes {
    type Err = SizesError;

    fn from_str(text: &str) -> Result<Self, SizesError> {
        let (mut sizes, mut named) = (Sizes::DEFAULT, Vec::new());
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let pair = part.split_once('=').ok_or_else(|| SizesError::NoPair(part.to_owned()))?;
            let (name, number) = (pair.0.trim(), pair.1.trim());
            let field = FIELDS.into_iter().find(|(map, ..)| *map == name);
            let (map, range, field) = field.ok_or_else(|| SizesError::NoMap { name: name.to_owned() })?;
            if named.contains(&map) {
                return Err(SizesError::Twice(map));
            }
            named.push(map);
            let size = number.parse().ok().filter(|size| range.contains(size));
            *field(&mut sizes) =
                size.ok_or_else(|| SizesError::Number { map, number: number.to_owned(), range })?;
        }
        Ok(sizes)
    }
}

fn names() -> String {
    FIELDS.map(|(name, ..)| name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_has_its_default() {
        assert_eq!("".parse(), Ok(Sizes::DEFAULT));
        let sizes = Sizes { slots: 1 << 23, flows: 1_000_000, ..Sizes::DEFAULT };
        assert_eq!("slots=8388608, flows = 1000000,".parse(), Ok(sizes));
    }

    #[test]
    fn every_map_has_a_size_of_its_own_and_the_defaults_are_allowed() {
        for (name, range, field) in FIELDS {
            let default = *field(&mut Sizes::default());
            assert!(range.contains(&default), "{name}");
            let mut sizes: Sizes = format!("{name}={}", default + 1).parse().unwrap();
            assert_eq!(*field(&mut sizes), default + 1, "{name}");
            *field(&mut sizes) = default;
            assert_eq!(sizes, Sizes::DEFAULT, "{name} changes nothing else");
        }
    }

    #[test]
    fn errors_say_what_is_expected() {
        let error = |text: &str| text.parse::<Sizes>().unwrap_err().to_string();
        assert_eq!(error("slots"), "\"slots\": expected NAME=NUMBER");
        assert_eq!(
            error("vip=1"),
            "vip: no such map; expected one of vips, slots, backends, flows, decap, ranges, filters"
        );
        assert_eq!(error("vips=1,vips=2"), "vips: named twice");
        for number in ["0", "-1", "4194305", "many", "99999999999", ""] {
            assert_eq!(
                error(&format!("vips={number}")),
                format!("vips={number}: expected a number from 4 to 4194304")
            );
        }
    }
}
