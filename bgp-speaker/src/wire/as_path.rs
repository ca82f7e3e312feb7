//! AS_PATH (RFC 4271 section 5.1.2), always with four-octet AS numbers: the two-octet form and AS4_PATH
//! (RFC 6793) exist on the wire only.
use crate::config::Asn;
use std::fmt;

/// The autonomous systems that a route came through, the nearest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AsPath(pub Vec<Segment>);

/// A segment of an AS_PATH; not empty. Confederation segments (RFC 5065) are not here: this speaker is in no
/// confederation, so that a path with such a segment is malformed (RFC 5065 section 5).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Segment {
    /// AS_SET: without order, counts as one.
    Set(Vec<Asn>),
    /// AS_SEQUENCE: in order, the nearest first.
    Sequence(Vec<Asn>),
}

impl Segment {
    /// The AS numbers of the segment.
    pub fn asns(&self) -> &[Asn] {
        let (Segment::Set(asns) | Segment::Sequence(asns)) = self;
        asns
    }

    /// How much the segment adds to the length of a path (RFC 4271 section 9.1.2.2 a).
    fn length(&self) -> usize {
        match self {
            Segment::Set(_) => 1,
            Segment::Sequence(asns) => asns.len(),
        }
    }
}

impl AsPath {
    /// A path of one sequence; no AS: the empty path.
    pub fn sequence(asns: impl IntoIterator<Item = u32>) -> Self {
        let asns: Vec<Asn> = asns.into_iter().map(Asn).collect();
        AsPath(if asns.is_empty() { Vec::new() } else { vec![Segment::Sequence(asns)] })
    }

    /// Number of AS for comparison: a set counts as one (RFC 4271 section 9.1.2.2 a).
    pub fn length(&self) -> usize {
        self.0.iter().map(Segment::length).sum()
    }

    /// Whether the AS is anywhere in the path (loop detection, RFC 4271 section 9.1.2).
    pub fn contains(&self, asn: Asn) -> bool {
        self.0.iter().any(|segment| segment.asns().contains(&asn))
    }

    /// The AS of the neighbour that the path came from; none if the path is empty or begins with a set.
    pub fn first(&self) -> Option<Asn> {
        match self.0.first() {
            Some(Segment::Sequence(asns)) => asns.first().copied(),
            _ => None,
        }
    }

    /// The AS that the route comes from; none if the path is empty or ends with a set.
    pub fn origin(&self) -> Option<Asn> {
        match self.0.last() {
            Some(Segment::Sequence(asns)) => asns.last().copied(),
            _ => None,
        }
    }

    /// Puts an AS in front, `times` times (RFC 4271 section 5.1.2 b). A segment has room for 255 on the wire;
    /// the encoder splits longer ones.
    pub fn prepend(&mut self, asn: Asn, times: usize) {
        if times == 0 {
            return;
        }
        let front = std::iter::repeat_n(asn, times);
        match self.0.first_mut() {
            Some(Segment::Sequence(asns)) => drop(asns.splice(0..0, front)),
            _ => self.0.insert(0, Segment::Sequence(front.collect())),
        }
    }

    /// Adds a segment at the end. A sequence after a sequence is joined to it: there is one form of a path,
    /// however the wire cut it.
    pub(super) fn push(&mut self, segment: Segment) {
        match (self.0.last_mut(), segment) {
            (Some(Segment::Sequence(last)), Segment::Sequence(more)) => last.extend(more),
            (_, segment) => self.0.push(segment),
        }
    }

    /// The beginning of the path, as long as said (see [`length`](AsPath::length)).
    pub(super) fn leading(&self, mut length: usize) -> AsPath {
        let mut leading = AsPath::default();
        for segment in &self.0 {
            match segment {
                _ if length == 0 => break,
                Segment::Sequence(asns) if asns.len() > length => {
                    leading.push(Segment::Sequence(asns[..length].to_vec()));
                    length = 0;
                }
                segment => {
                    leading.push(segment.clone());
                    length -= segment.length();
                }
            }
        }
        leading
    }
}

impl fmt::Display for AsPath {
    /// `65001 65002 {65003,65004}`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join =
            |asns: &[Asn], by: &str| asns.iter().map(|asn| asn.0.to_string()).collect::<Vec<_>>().join(by);
        for (index, segment) in self.0.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            match segment {
                Segment::Sequence(asns) => write!(f, "{space}{}", join(asns, " "))?,
                Segment::Set(asns) => write!(f, "{space}{{{}}}", join(asns, ","))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_counts_a_set_as_one() {
        let mut path = AsPath::sequence([65001, 65002]);
        path.push(Segment::Set(vec![Asn(1), Asn(2), Asn(3)]));
        assert_eq!(path.length(), 3);
        assert_eq!(path.to_string(), "65001 65002 {1,2,3}");
        assert_eq!((path.first(), path.origin()), (Some(Asn(65001)), None));
        assert!(path.contains(Asn(2)) && !path.contains(Asn(4)));
    }

    #[test]
    fn prepend_before_a_set_makes_a_sequence() {
        let mut path = AsPath(vec![Segment::Set(vec![Asn(7)])]);
        path.prepend(Asn(1), 0);
        assert_eq!(path.first(), None);
        path.prepend(Asn(1), 2);
        path.prepend(Asn(2), 1);
        assert_eq!(path.to_string(), "2 1 1 {7}");
    }
}
