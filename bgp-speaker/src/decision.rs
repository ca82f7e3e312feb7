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
    wire::Origin,
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
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rule::Only => "only path",
            Rule::Refused => "refused by import policy or as a loop",
            Rule::Own => "own route",
            Rule::LocalPref => "local preference",
            Rule::AsPathLength => "AS path length",
            Rule::Origin => "origin",
            Rule::Med => "MED",
            Rule::External => "external over internal",
            Rule::RouterId => "router id",
            Rule::ClusterList => "cluster list length",
            Rule::PeerAddress => "peer address",
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

    /// What is left when all rules have struck out what they can: one path, if there was a usable one.
    fn eliminate<'a>(&'a self, paths: &[Path], mut struck: impl FnMut(usize, Rule)) -> Vec<Candidate<'a>> {
        let mut left: Vec<_> = paths
            .iter()
            .enumerate()
            .filter(|(_, path)| !path.refused)
            .map(|(at, path)| Candidate {
                at,
                route: self.attributes.get(path.attributes),
                from: self.source(path.source),
            })
            .collect();
        lowest(&mut left, Rule::Own, &mut struck, |path| path.from.is_some());
        lowest(&mut left, Rule::LocalPref, &mut struck, |path| {
            Reverse(path.route.attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF))
        });
        lowest(&mut left, Rule::AsPathLength, &mut struck, |path| path.route.attributes.as_path.length());
        lowest(&mut left, Rule::Origin, &mut struck, |path| -> Origin { path.route.attributes.origin });
        lowest_med(&mut left, &mut struck);
        lowest(&mut left, Rule::External, &mut struck, |path| path.from.is_some_and(|from| from.internal));
        lowest(&mut left, Rule::RouterId, &mut struck, |path| {
            path.from.map(|from| path.route.attributes.originator_id.unwrap_or(from.router_id))
        });
        lowest(&mut left, Rule::ClusterList, &mut struck, |path| path.route.attributes.cluster_list.len());
        lowest(&mut left, Rule::PeerAddress, &mut struck, |path| path.from.map(|from| from.address));
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
