//! Links to other clusters, as the controller that leads says in their statuses.
use super::rows::{LinkRow, SharedPoolRow};
use crate::{
    api::{ClusterLink, ClusterLinkStatus},
    declared::Declared,
    status::{Statuses, seconds},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use std::sync::Arc;

/// One row for each link, by name. `now`: seconds since the epoch.
pub(super) fn link_rows(
    declared: &Declared,
    statuses: &Statuses<ClusterLinkStatus>,
    now: u64,
) -> Vec<LinkRow> {
    let row = |(name, link): (&String, &Arc<ClusterLink>)| {
        let status = statuses.get(name).map(|status| (**status).clone()).unwrap_or_default();
        let condition =
            |type_: &str| -> Option<&Condition> { status.conditions.iter().find(|c| c.type_ == type_) };
        let connected = condition("Connected");
        let lag = status.last_contact_time.as_ref().map(|last| now.saturating_sub(seconds(last)));
        let is_connected = connected.is_some_and(|condition| condition.status == "True");
        LinkRow {
            name: name.clone(),
            priority: link.spec.priority,
            weight: link.spec.weight.get(),
            connected: connected.map_or_else(|| "Unknown".to_owned(), |condition| condition.status.clone()),
            state: condition("Ready")
                .or(connected)
                .map(|condition| condition.reason.clone())
                .unwrap_or_default(),
            reason: connected.filter(|_| !is_connected).map(|c| format!("{}: {}", c.reason, c.message)),
            lag_seconds: if is_connected { Some(0) } else { lag },
            exported_services: status.exported_services,
            imported_services: status.imported_services,
            imported_endpoints: status.imported_endpoints,
            conflicting_services: status.conflicting_services,
            shared_pools: shared_pools(declared, name),
        }
    };
    declared.cluster_links.iter().map(row).collect()
}

/// The pools that are shared with a cluster.
fn shared_pools(declared: &Declared, cluster: &str) -> Vec<SharedPoolRow> {
    let pools = declared.pools.iter().filter(|(_, pool)| pool.spec.clusters.iter().any(|c| c == cluster));
    let row = |(name, _): (&String, _)| {
        let status = declared.statuses.pools.get(name);
        let condition = status.and_then(|status| status.conditions.iter().find(|c| c.type_ == "Leased"));
        SharedPoolRow {
            name: name.clone(),
            leased: condition.map_or_else(|| "Unknown".to_owned(), |condition| condition.status.clone()),
            reason: condition.map(|condition| condition.reason.clone()).unwrap_or_default(),
            chunks: condition.map(|condition| condition.message.clone()).unwrap_or_default(),
        }
    };
    pools.map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::AddressPoolStatus,
        status::{Conditions, time},
        validate::parse_directory,
    };
    use std::collections::BTreeMap;

    #[test]
    fn a_link_shows_the_pools_that_are_shared_over_it() {
        let text = "kind: ClusterLink\nmetadata: {name: west}\nspec: {kubeconfigSecretRef: {name: a, key: b}}\n---\n\
                    kind: AddressPool\nmetadata: {name: vips}\nspec: {blocks: [{cidr: 192.0.2.0/24}], clusters: [east, west]}\n---\n\
                    kind: AddressPool\nmetadata: {name: own}\nspec: {blocks: [{cidr: 198.51.100.0/24}]}\n";
        let mut declared = parse_directory(&BTreeMap::from([("a.yaml".into(), text.to_owned())])).unwrap();
        let pools = |declared: &Declared| link_rows(declared, &Statuses::new(), 0).remove(0).shared_pools;
        let said = pools(&declared);
        assert_eq!((said.len(), said[0].name.as_str(), said[0].leased.as_str()), (1, "vips", "Unknown"));
        let mut conditions = Conditions::new(&[], None, 1_000);
        conditions.set("Leased", true, "Leased", "3 of 64 chunks held, 0 asked for");
        let status = AddressPoolStatus { conditions: conditions.finish(), ..Default::default() };
        declared.statuses.pools.insert("vips".to_owned(), Arc::new(status));
        let said = pools(&declared);
        assert_eq!((said[0].leased.as_str(), said[0].reason.as_str()), ("True", "Leased"));
        assert_eq!(said[0].chunks, "3 of 64 chunks held, 0 asked for");
    }

    #[test]
    fn a_link_out_of_reach_lags() {
        let text = "kind: ClusterLink\nmetadata: {name: west}\nspec: {kubeconfigSecretRef: {name: a, key: b}, weight: 3}\n";
        let declared = parse_directory(&BTreeMap::from([("a.yaml".into(), text.to_owned())])).unwrap();
        let row = |statuses: &Statuses<ClusterLinkStatus>| link_rows(&declared, statuses, 1_042).remove(0);
        assert_eq!(
            (row(&Statuses::new()).connected.as_str(), row(&Statuses::new()).lag_seconds),
            ("Unknown", None)
        );
        let status = |connected: bool| {
            let mut conditions = Conditions::new(&[], None, 1_000);
            conditions.set("Connected", connected, if connected { "Connected" } else { "Unreachable" }, "m");
            conditions.set("Ready", true, "Kept", "");
            let last_contact_time = (!connected).then(|| time(1_000));
            let status = ClusterLinkStatus {
                conditions: conditions.finish(),
                last_contact_time,
                ..Default::default()
            };
            Statuses::from([("west".to_owned(), Arc::new(status))])
        };
        let lost = row(&status(false));
        assert_eq!(
            (lost.lag_seconds, lost.reason.as_deref(), lost.state.as_str()),
            (Some(42), Some("Unreachable: m"), "Kept")
        );
        let good = row(&status(true));
        assert_eq!((good.lag_seconds, good.reason, good.weight), (Some(0), None, 3));
    }
}
