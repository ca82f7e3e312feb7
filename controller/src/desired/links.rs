//! Statuses of links to other clusters. The controller that leads says how they are; here they are passed on.
use super::{Draft, conditions};
use crate::{
    api::ClusterLinkStatus,
    status::{Statuses, Verdict},
};
use std::sync::Arc;

pub(super) fn statuses(draft: &Draft<'_>) -> Statuses<ClusterLinkStatus> {
    let published = &draft.declared.statuses.cluster_links;
    let links = draft.declared.cluster_links.iter().map(|(name, link)| {
        let status = published.get(name).filter(|status| !status.conditions.is_empty()).cloned();
        let not_opened = || {
            let before = draft.observed.said.cluster_links.get(name).map(|said| &said.conditions);
            let mut conditions = conditions(draft, before, link.metadata.generation);
            conditions.set("Connected", Verdict::Unknown, "NotOpened", "no controller has opened the link");
            Arc::new(ClusterLinkStatus { conditions: conditions.finish(), ..ClusterLinkStatus::default() })
        };
        (name.clone(), status.unwrap_or_else(not_opened))
    });
    links.collect()
}
