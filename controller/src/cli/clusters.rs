//! `fairlead clusters`: links to other clusters, what came over them, and the pools that are shared over them.
use super::{
    Failure, Question,
    output::{or_dash, print, table},
};
use crate::serve::rows::{LinkRow, SharedPoolRow};
use std::collections::BTreeMap;

/// Shows links to other clusters: how they are, how old is what is known, what is exported there and imported here
///
/// Any agent can tell: the controller that leads writes it into the statuses of ClusterLinks. STATE is Imported while the cluster
/// answers, then Kept, Leaving and Stale: its endpoints stay until staleAfterSeconds are over, and leave one after the other within
/// as long again. LAG is how long ago it answered last. CONFLICTS are services whose exports contradict each other. Below stand the
/// pools that are shared with these clusters, and how many of their chunks are leased to whom.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    question: Question,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let links: Vec<LinkRow> = self.question.instance.ask("/v1/clusters")?;
        self.question.instance.warn_of_faults();
        print(&self.question.shown(&links[..], links_table)?)
    }
}

fn links_table(links: &[LinkRow]) -> String {
    let header = [
        "CLUSTER",
        "PRIORITY",
        "WEIGHT",
        "CONNECTED",
        "STATE",
        "LAG",
        "EXPORTED",
        "IMPORTED",
        "ENDPOINTS",
        "CONFLICTS",
        "REASON",
    ];
    let row = |link: &LinkRow| {
        vec![
            link.name.clone(),
            link.priority.to_string(),
            match link.weight {
                0 => "0 (drain)".to_owned(),
                weight => weight.to_string(),
            },
            link.connected.clone(),
            link.state.clone(),
            or_dash(link.lag_seconds.map(|seconds| format!("{seconds} s"))),
            link.exported_services.to_string(),
            link.imported_services.to_string(),
            link.imported_endpoints.to_string(),
            match link.conflicting_services.is_empty() {
                true => "-".to_owned(),
                false => link.conflicting_services.join(","),
            },
            or_dash(link.reason.clone()),
        ]
    };
    let links_and = table(&header, links.iter().map(row));
    // A pool that is shared with several of them is one.
    let pools: BTreeMap<_, _> =
        links.iter().flat_map(|link| &link.shared_pools).map(|pool| (&pool.name, pool)).collect();
    if pools.is_empty() {
        return links_and;
    }
    let row = |pool: &SharedPoolRow| {
        let reason = Some(pool.reason.clone()).filter(|reason| !reason.is_empty());
        let chunks = Some(pool.chunks.clone()).filter(|chunks| !chunks.is_empty());
        vec![pool.name.clone(), pool.leased.clone(), or_dash(reason), or_dash(chunks)]
    };
    let pools = table(&["POOL", "LEASED", "REASON", "CHUNKS"], pools.into_values().map(row));
    format!("{links_and}\n{pools}")
}
