//! The decision process, RFC 4271 section 9.1.2.2, and why it decided so.
//!
//! It is the RFC's elimination on the whole set of paths: each rule in turn strikes out the paths that are worse
//! than another one that is left. MED is compared only among paths of the same neighbour AS, so pairwise
//! comparison would depend on the order of arrival; elimination does not ("deterministic MED" in the words of
//! router vendors). A missing MED is 0, the best (section 9.1.2.2 c). There is no rule for the age of a path, for it
//! would make the outcome depend on history.
//!
//! Routes of our own win against all learned ones: who is told to announce a prefix has it.
use crate::{
    rib::{Chooser, Interner, Path, PathAttributes, Source},
    wire::{Community, Origin, PathId},
};
use std::{
    cmp::Reverse,
    fmt,
    net::{IpAddr, Ipv4Addr},
};

/// LOCAL_PREF of a route that has none.
pub(crate) const DEFAULT_LOCAL_PREF: u32 = 100;

/// The rule that decided about a path: for the best one, the rule that struck out its last rival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Rule {
    /// There is no other path.
    Only,
    /// Not to be used: import policy, or the route came through us before.
    Refused,
    /// A route of our own.
    Own,
    /// Its peer is not long away (RFC 9494 section 4.4).
    LongLived,
    /// Higher LOCAL_PREF.
    LocalPref,
    /// Shorter AS_PATH.
    AsPathLength,
    /// Lower ORIGIN.
    Origin,
    /// Lower MULTI_EXIT_DISC among routes of the same neighbour AS.
    Med,
    /// External rather than internal.
    External,
    /// Lower BGP identifier, or ORIGINATOR_ID (RFC 4456 section 9).
    RouterId,
    /// Shorter CLUSTER_LIST (RFC 4456 section 9).
    ClusterList,
    /// Lower address of the peer.
    PeerAddress,
    /// Lower path identifier, among paths of one peer.
    PathId,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rule::Only => "only path",
            Rule::Refused => "refused by import policy or as a loop",
            Rule::Own => "own route",
            Rule::LongLived => "peer not long away",
            Rule::LocalPref => "local preference",
            Rule::AsPathLength => "AS path length",
            Rule::Origin => "origin",
            Rule::Med => "MED",
            Rule::External => "external over internal",
            Rule::RouterId => "router id",
            Rule::ClusterList => "cluster list length",
            Rule::PeerAddress => "peer address",
            Rule::PathId => "path identifier",
        })
    }
}

/// What the decision needs to know of a peer with a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Neighbour {
    pub(crate) internal: bool,
    pub(crate) router_id: Ipv4Addr,
    pub(crate) address: IpAddr,
}

/// The decision process with what it looks things up in.
pub(crate) struct Decision<'a> {
    pub(crate) attributes: &'a Interner<PathAttributes>,
    /// By number of the source; none: no session.
    pub(crate) neighbours: &'a [Option<Neighbour>],
}

struct Candidate<'a> {
    at: usize,
    id: PathId,
    route: &'a PathAttributes,
    /// None: our own.
    from: Option<&'a Neighbour>,
}

impl Chooser for Decision<'_> {
    fn best(&self, paths: &[Path]) -> Option<usize> {
        self.eliminate(paths, |_, _| ()).first().map(|best| best.at)
    }
}

impl Decision<'_> {
    /// For each path whether it is the best one, and the rule that said so.
    pub(crate) fn explain(&self, paths: &[Path]) -> Vec<(bool, Rule)> {
        let mut verdicts = vec![(false, Rule::Refused); paths.len()];
        let mut last = Rule::Only;
        let left = self.eliminate(paths, |at, rule| {
            verdicts[at].1 = rule;
            last = rule;
        });
        if let Some(best) = left.first() {
            verdicts[best.at] = (true, last);
        }
        verdicts
    }

    /// Indices of the paths that are as good as the best one: only the rules that merely break a tie (RFC 4271 section
    /// 9.1.2.2 f and g) tell them apart.
    pub(crate) fn multipath(&self, paths: &[Path]) -> Vec<usize> {
        self.equal(paths, &mut |_, _| ()).into_iter().map(|path| path.at).collect()
    }

    /// What is left when all rules have struck out what they can: one path, if there was a usable one.
    fn eliminate<'a>(&'a self, paths: &[Path], mut struck: impl FnMut(usize, Rule)) -> Vec<Candidate<'a>> {
        let mut left = self.equal(paths, &mut struck);
        lowest(&mut left, Rule::RouterId, &mut struck, |path| {
            path.from.map(|from| path.route.attributes.originator_id.unwrap_or(from.router_id))
        });
        lowest(&mut left, Rule::ClusterList, &mut struck, |path| path.route.attributes.cluster_list.len());
        lowest(&mut left, Rule::PeerAddress, &mut struck, |path| path.from.map(|from| from.address));
        lowest(&mut left, Rule::PathId, &mut struck, |path| path.id);
        left
    }

    /// What is left when the rules have struck out what they can that say something about the path.
    fn equal<'a>(&'a self, paths: &[Path], struck: &mut impl FnMut(usize, Rule)) -> Vec<Candidate<'a>> {
        let mut left: Vec<_> = paths
            .iter()
            .enumerate()
            .filter(|(_, path)| !path.refused)
            .map(|(at, path)| Candidate {
                at,
                id: path.id,
                route: self.attributes.get(path.attributes),
                from: self.source(path.source),
            })
            .collect();
        lowest(&mut left, Rule::Own, struck, |path| path.from.is_some());
        lowest(&mut left, Rule::LongLived, struck, |path| {
            path.route.attributes.communities.contains(&Community::LLGR_STALE)
        });
        lowest(&mut left, Rule::LocalPref, struck, |path| {
            Reverse(path.route.attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF))
        });
        lowest(&mut left, Rule::AsPathLength, struck, |path| path.route.attributes.as_path.length());
        lowest(&mut left, Rule::Origin, struck, |path| -> Origin { path.route.attributes.origin });
        lowest_med(&mut left, struck);
        lowest(&mut left, Rule::External, struck, |path| path.from.is_some_and(|from| from.internal));
        left
    }

    fn source(&self, source: Source) -> Option<&Neighbour> {
        self.neighbours.get(usize::from(source.0)).and_then(Option::as_ref)
    }
}

/// Keeps the paths with the lowest key.
fn lowest<K: Ord>(
    left: &mut Vec<Candidate<'_>>,
    rule: Rule,
    struck: &mut impl FnMut(usize, Rule),
    key: impl Fn(&Candidate<'_>) -> K,
) {
    if left.len() > 1
        && let Some(lowest) = left.iter().map(&key).min()
    {
        left.retain(|path| {
            let keep = key(path) == lowest;
            if !keep {
                struck(path.at, rule);
            }
            keep
        });
    }
}

/// Section 9.1.2.2 c: a path goes if one of the same neighbour AS has a lower MED.
fn lowest_med(left: &mut Vec<Candidate<'_>>, struck: &mut impl FnMut(usize, Rule)) {
    if left.len() < 2 {
        return;
    }
    let key = |path: &Candidate<'_>| {
        (path.route.attributes.as_path.first(), path.route.attributes.med.unwrap_or(0))
    };
    let all: Vec<_> = left.iter().map(key).collect();
    left.retain(|path| {
        let (neighbour, med) = key(path);
        let keep = !all.iter().any(|(other, lower)| *other == neighbour && *lower < med);
        if !keep {
            struck(path.at, Rule::Med);
        }
        keep
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Family,
        rib::{PathAttributes, Rib},
        wire::{AsPath, Attributes, NextHop},
    };
    use proptest::prelude::*;

    /// A path in words: its source and what is special about it.
    #[derive(Clone, Debug)]
    struct Told {
        source: Source,
        id: PathId,
        refused: bool,
        attributes: Attributes,
    }

    fn told(source: u16, words: &str) -> Told {
        let (id, attributes) = (PathId(0), Attributes::default());
        let mut path = Told { source: Source(source), id, refused: false, attributes };
        path.attributes.as_path = AsPath::sequence([65001, 65009]);
        for word in words.split_whitespace() {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            match name {
                "own" => path.source = Source::LOCAL,
                "refused" => path.refused = true,
                "pref" => path.attributes.local_pref = Some(value.parse().unwrap()),
                "path" => {
                    path.attributes.as_path =
                        AsPath::sequence(value.split(',').map(|asn| asn.parse().unwrap()));
                }
                "stale" => drop(path.attributes.communities.insert(Community::LLGR_STALE)),
                "id" => path.id = PathId(value.parse().unwrap()),
                "egp" => path.attributes.origin = Origin::Egp,
                "med" => path.attributes.med = Some(value.parse().unwrap()),
                "originator" => path.attributes.originator_id = Some(value.parse().unwrap()),
                "clusters" => {
                    path.attributes.cluster_list = vec![Ipv4Addr::LOCALHOST; value.parse().unwrap()];
                }
                other => panic!("no word {other}"),
            }
        }
        path
    }

    /// Sources: 0 to 2 external, 3 and 4 internal; 5 has the identifier of 0 and a higher address.
    fn rib() -> Rib {
        let mut rib = Rib::new(1);
        rib.neighbours = (0..6u8)
            .map(|host| {
                let router_id = Ipv4Addr::new(1, 1, 1, if host == 5 { 0 } else { host });
                let address = IpAddr::from([10, 0, 0, host]);
                Some(Neighbour { internal: matches!(host, 3 | 4), router_id, address })
            })
            .collect();
        rib
    }

    fn add(rib: &mut Rib, path: &Told) {
        let next_hop: NextHop = IpAddr::from([10, 9, 9, 9]).into();
        let route = PathAttributes { next_hop: Some(next_hop), attributes: path.attributes.clone() };
        let attributes = rib.attributes.intern(route);
        let prefix = "10.0.0.0/8".parse().unwrap();
        let Told { source, id, refused, .. } = *path;
        rib.set(Family::Ipv4Unicast, prefix, Path { source, id, refused, attributes });
    }

    /// Source of the best path, and for each source why, by number.
    fn decide(paths: &[Told]) -> (Option<u16>, Vec<(u16, bool, Rule)>) {
        let mut rib = rib();
        paths.iter().for_each(|path| add(&mut rib, path));
        let table = rib.table(Family::Ipv4Unicast);
        let id = table.ids().next().unwrap();
        let verdicts = rib.decision().explain(table.paths(id));
        let mut all: Vec<_> = table
            .paths(id)
            .iter()
            .zip(verdicts)
            .map(|(path, (best, rule))| (path.source.0, best, rule))
            .collect();
        all.sort_unstable();
        (table.best(id).map(|path| path.source.0), all)
    }

    #[test]
    fn each_rule_decides_when_those_before_it_do_not() {
        for (winner, loser, rule) in [
            (told(1, "own path=1,2,3,4"), told(0, "pref=900"), Rule::Own),
            (told(1, "own stale"), told(0, ""), Rule::Own),
            (told(1, "pref=0 path=1,2,3,4"), told(0, "stale pref=900"), Rule::LongLived),
            (told(1, "stale"), told(0, "stale pref=99"), Rule::LocalPref),
            (told(1, "pref=101 path=1,2,3,4"), told(0, ""), Rule::LocalPref),
            (told(1, "pref=100"), told(0, "pref=99"), Rule::LocalPref),
            (told(1, "path=65001 egp"), told(0, ""), Rule::AsPathLength),
            (told(1, "med=7"), told(0, "egp med=3"), Rule::Origin),
            (told(3, "med=3"), told(0, "med=4"), Rule::Med),
            (told(3, ""), told(0, "med=1"), Rule::Med),
            (told(1, "med=9 path=65002,1"), told(3, "med=1"), Rule::External),
            (told(0, ""), told(1, ""), Rule::RouterId),
            (told(4, "originator=1.1.1.2"), told(3, ""), Rule::RouterId),
            (told(4, "originator=1.1.1.3"), told(3, "clusters=1"), Rule::ClusterList),
            (told(0, ""), told(5, ""), Rule::PeerAddress),
            (told(0, "id=7"), told(0, "id=8"), Rule::PathId),
        ] {
            for paths in [[winner.clone(), loser.clone()], [loser.clone(), winner.clone()]] {
                let (best, verdicts) = decide(&paths);
                assert_eq!(best, Some(winner.source.0), "{rule}");
                assert!(verdicts.iter().all(|(_, _, why)| *why == rule), "{rule}: {verdicts:?}");
            }
        }
    }

    #[test]
    fn equal_paths() {
        for (paths, equal) in [
            (vec![told(0, ""), told(1, ""), told(5, "path=65002,1")], vec![0, 1, 5]),
            (vec![told(3, "originator=9.9.9.9"), told(4, "clusters=3")], vec![3, 4]),
            (vec![told(0, ""), told(3, "")], vec![0]),
            (vec![told(0, "med=1"), told(1, "med=2"), told(2, "path=65002,1 med=3")], vec![0, 2]),
            (vec![told(0, ""), told(1, "path=65001"), told(2, "refused path=65001")], vec![1]),
            (vec![told(0, "pref=200"), told(1, "")], vec![0]),
            (vec![told(0, ""), told(1, "egp")], vec![0]),
        ] {
            let mut rib = rib();
            paths.iter().for_each(|path| add(&mut rib, path));
            let table = rib.table(Family::Ipv4Unicast);
            let found = table.paths(table.ids().next().unwrap());
            let mut sources: Vec<u16> =
                rib.decision().multipath(found).into_iter().map(|at| found[at].source.0).collect();
            sources.sort_unstable();
            assert_eq!(sources, equal);
        }
    }

    #[test]
    fn refused_paths_take_no_part() {
        assert_eq!(decide(&[told(0, "refused pref=900"), told(1, "")]).0, Some(1));
        assert_eq!(decide(&[told(0, "refused")]), (None, vec![(0, false, Rule::Refused)]));
        assert_eq!(decide(&[told(0, "refused"), told(1, "refused")]).0, None);
        assert_eq!(decide(&[told(1, "")]), (Some(1), vec![(1, true, Rule::Only)]));
    }

    /// The three paths of RFC 3345 section 3: pairwise comparison has no best of them, or one that depends on
    /// the order.
    #[test]
    fn med_among_three_has_one_answer() {
        let paths =
            [told(2, "path=65001,1 med=0"), told(0, "path=65001,1 med=10"), told(1, "path=65002,1 med=5")];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let (best, verdicts) = decide(&order.map(|at: usize| paths[at].clone()));
            assert_eq!(best, Some(1));
            assert_eq!(verdicts[0], (0, false, Rule::Med));
        }
    }

    fn any_told(source: u16) -> impl Strategy<Value = Told> {
        let words = (
            prop::sample::select(vec!["", "pref=200"]),
            prop::sample::select(vec!["", "path=65001", "path=65002", "path=65002,1", "path=65003,1"]),
            prop::sample::select(vec!["", "egp"]),
            prop::sample::select(vec!["", "med=1", "med=2"]),
            prop::sample::select(vec!["", "", "", "refused"]),
        );
        words.prop_map(move |(a, b, c, d, e)| told(source, &[a, b, c, d, e].join(" ")))
    }

    proptest! {
        #[test]
        fn the_best_path_does_not_depend_on_the_order_of_arrival(
            paths in (0..6u16).map(any_told).collect::<Vec<_>>(),
            before in (0..6u16).map(any_told).collect::<Vec<_>>(),
            count in 1usize..6,
            order in Just((0..6usize).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let chosen: Vec<Told> = paths[..count].to_vec();
            let straight = decide(&chosen);
            // In another order, with other paths of the same sources before: an implicit withdraw.
            let mut history: Vec<Told> = before[..count].to_vec();
            history.extend(order.iter().filter_map(|&at| chosen.get(at).cloned()));
            prop_assert_eq!(decide(&history), straight);
        }
    }
}
