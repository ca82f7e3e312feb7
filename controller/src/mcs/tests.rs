//! What holds whatever is exported, and in whatever order it comes.
use super::*;
use crate::api::endpoint_slice::{AddressType, Endpoint, EndpointSlice, Place, SliceMetadata};
use k8s_openapi::api::core::v1::Service;
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

fn facts(spec: &str) -> Result<Arc<Facts>, Invalid> {
    let service: Service = serde_yaml_ng::from_str(&format!("spec: {spec}")).unwrap();
    Facts::of(&service).map(Arc::new)
}

fn export(created: u64, spec: &str) -> Export {
    Export {
        created,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        service: facts(spec),
        slices: Box::default(),
    }
}

/// An export of `default/web` with endpoints that have these addresses.
fn with_endpoints(mut export: Export, cluster: &str, addresses: &[&str]) -> Export {
    let endpoint = |address: &&str| Endpoint {
        address: address.parse().unwrap(),
        conditions: None,
        place: Place { node_name: Some("n1".into()), zone: None, hostname: Some("web-0".into()) }.boxed(),
    };
    let slice = EndpointSlice {
        metadata: SliceMetadata {
            namespace: Some("default".into()),
            name: "web-x".into(),
            service: Some("web".into()),
            import: None,
        },
        address_type: AddressType::IPv4,
        endpoints: addresses.iter().map(endpoint).collect(),
        ports: Box::default(),
    };
    let imported = Export::imported("web", cluster, &slice, false);
    export.slices = [Arc::new(imported)].into();
    export
}

fn of(exports: &[(&str, Export)]) -> BTreeMap<String, Exports> {
    let one = |(cluster, export): &(&str, Export)| {
        ((*cluster).to_owned(), Exports::from([("default/web".to_owned(), Arc::new(export.clone()))]))
    };
    exports.iter().map(one).collect()
}

fn merged(clusters: &BTreeMap<String, Exports>, left: u16) -> Merged {
    let clusters =
        clusters.iter().map(|(name, exports)| (name.as_str(), Cluster { exports, left })).collect();
    merge("home", &clusters, |namespace| namespace == "default")
}

fn reasons(merged: &Merged) -> Vec<&'static str> {
    merged.verdicts["default/web"].conflicts.iter().map(|conflict| conflict.reason).collect()
}

#[test]
fn the_oldest_export_wins_and_ports_are_united() {
    let clusters = of(&[
        (
            "home",
            export(
                200,
                "{ports: [{name: http, port: 81}, {name: web, port: 443}], sessionAffinity: ClientIP}",
            ),
        ),
        ("west", export(100, "{ports: [{name: http, port: 80}]}")),
    ]);
    let merged = merged(&clusters, 0);
    let import = &merged.imports["default/web"];
    let ports: Vec<_> = import.facts.ports.iter().map(|port| (port.name.as_str(), port.port)).collect();
    assert_eq!(ports, [("http", 80), ("web", 443)]);
    assert_eq!(import.facts.session_affinity, None);
    assert_eq!(*import.clusters, ["home", "west"].map(str::to_owned).into());
    assert_eq!(reasons(&merged), ["PortConflict", "SessionAffinityConflict"]);
    let message = &merged.verdicts["default/web"].conflicts[1].message;
    assert_eq!(
        message,
        "session affinities of home differ from those of west, whose export is the oldest and counts"
    );
    assert_eq!(merged.counts["west"].conflicts, ["default/web".to_owned()].into());
}

#[test]
fn of_equally_old_exports_the_first_cluster_wins() {
    let headless = "{clusterIP: None, ports: [{port: 80}]}";
    let clusters = of(&[("home", export(100, "{ports: [{port: 80}]}")), ("east", export(100, headless))]);
    let merged = merged(&clusters, 0);
    assert!(merged.imports["default/web"].facts.is_headless);
    assert_eq!(reasons(&merged), ["TypeConflict"]);
    assert_eq!(merged.imports["default/web"].object("default/web")["spec"]["type"], "Headless");
}

#[test]
fn what_cannot_be_exported_says_why() {
    let external = of(&[("home", export(1, "{type: ExternalName, externalName: example.com}"))]);
    let merged_external = merged(&external, 0);
    assert!(merged_external.imports.is_empty());
    assert_eq!(merged_external.verdicts["default/web"].valid, Err(Invalid::ExternalName));
    let mut missing = of(&[("home", export(1, "{}")), ("west", export(2, "{ports: [{port: 80}]}"))]);
    let own = missing.get_mut("home").unwrap().get_mut("default/web").unwrap();
    Arc::make_mut(own).service = Err(Invalid::NoService);
    let merged_missing = merged(&missing, 0);
    assert_eq!(merged_missing.verdicts["default/web"].valid, Err(Invalid::NoService));
    assert_eq!(*merged_missing.imports["default/web"].clusters, ["west".to_owned()].into());
}

#[test]
fn only_namespaces_that_are_here_count() {
    let exports = Exports::from([("elsewhere/web".to_owned(), Arc::new(export(1, "{ports: [{port: 80}]}")))]);
    let merged = merged(&BTreeMap::from([("west".to_owned(), exports)]), 0);
    assert!(merged.imports.is_empty() && merged.slices.is_empty());
    assert_eq!((merged.counts["west"].exported, merged.counts["west"].imported), (1, 0));
}

#[test]
fn slices_say_whose_they_are_and_name_pods_but_no_foreign_nodes() {
    let web = with_endpoints(export(1, "{ports: [{port: 80}]}"), "west", &["10.1.0.1"]);
    let merged = merged(&of(&[("west", web)]), 0);
    let (name, slice) = merged.slices.iter().next().unwrap();
    assert_eq!(*name, format!("default/{}", slice_name("web", "west", "web-x")));
    let import = slice.metadata.import.as_ref().unwrap();
    assert_eq!((&*import.service, &*import.cluster), ("web", "west"));
    assert_eq!((slice.metadata.service.as_ref(), slice.endpoints[0].node_name()), (None, None));
    assert_eq!(serde_json::json!(**slice)["endpoints"][0]["hostname"], "web-0");
}

#[test]
fn a_cluster_out_of_reach_leaves_by_and_by() {
    assert_eq!(
        [0, 59, 60, 90, 119, 120, 9_999].map(|silent| leaving(silent, 60)),
        [0, 0, 0, 500, 983, 1000, 1000]
    );
    let addresses: Vec<_> = (0..250).map(|n| format!("10.1.0.{n}")).collect();
    let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
    let web = with_endpoints(export(1, "{ports: [{port: 80}]}"), "west", &addresses);
    let clusters = of(&[("west", web)]);
    let mut before = BTreeSet::new();
    for left in (0..1000).step_by(50) {
        let merged = merged(&clusters, left);
        let draining: BTreeSet<_> = merged
            .slices
            .values()
            .flat_map(|slice| &slice.endpoints)
            .filter(|endpoint| endpoint.conditions.as_ref().is_some_and(|c| c.terminating == Some(true)))
            .map(|endpoint| endpoint.address)
            .collect();
        assert!(before.is_subset(&draining), "who has left comes not back");
        let expected = 250 * usize::from(left) / 1000;
        assert!(draining.len().abs_diff(expected) < 40, "{} at {left}", draining.len());
        assert_eq!(merged.counts["west"].endpoints, 250 - draining.len());
        before = draining;
    }
    assert!(merged(&clusters, PERMILLE).imports.is_empty());
}

fn any_export() -> impl Strategy<Value = Export> {
    let port = (prop::sample::select(vec!["", "a", "b"]), 80..83);
    let ports = prop::collection::vec(port, 0..3);
    (0..3u64, ports, any::<bool>(), prop::option::of(Just("ClientIP"))).prop_map(
        |(created, ports, is_headless, affinity)| {
            let ports: Vec<_> =
                ports.iter().map(|(name, port)| format!("{{name: '{name}', port: {port}}}")).collect();
            let ip = if is_headless { "None" } else { "10.96.0.1" };
            let affinity =
                affinity.map(|affinity| format!(", sessionAffinity: {affinity}")).unwrap_or_default();
            export(created, &format!("{{clusterIP: {ip}, ports: [{}]{affinity}}}", ports.join(", ")))
        },
    )
}

/// Clusters with some of three services in two namespaces, how much of them has left, and whether the second namespace is here.
type Step = (usize, usize, Option<(Export, u8)>, u16, bool);

fn step() -> impl Strategy<Value = Step> {
    let export = prop::option::of((any_export(), 0..4_u8));
    (0..3_usize, 0..4_usize, export, prop::sample::select(vec![0, 0, 0, 500, 1000]), any::<bool>())
}

proptest! {
    /// Change by change it comes to the same as from nothing.
    #[test]
    fn a_change_is_merged_as_all_is(steps in prop::collection::vec(step(), 1..30)) {
        const SERVICES: [&str; 4] = ["default/web", "default/api", "other/web", "nowhere/web"];
        let mut merger = Merger::default();
        let mut clusters: BTreeMap<String, Exports> =
            ["home", "west"].map(|name| (name.to_owned(), Exports::new())).into();
        for (cluster, service, export, left, has_other) in steps {
            let cluster = ["home", "west", "north"][cluster];
            let exports = clusters.entry(cluster.to_owned()).or_default();
            match export {
                Some((export, endpoints)) => {
                    let addresses: Vec<_> = (0..endpoints).map(|n| format!("10.1.{service}.{n}")).collect();
                    let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
                    let export = with_endpoints(export, &format!("{cluster}-{service}"), &addresses);
                    exports.insert(SERVICES[service].to_owned(), Arc::new(export));
                }
                None => drop(exports.remove(SERVICES[service])),
            }
            let left = |name: &str| if name == "north" { left } else { 0 };
            let views: BTreeMap<_, _> = clusters
                .iter()
                .map(|(name, exports)| (name.as_str(), Cluster { exports, left: left(name) }))
                .collect();
            let names = ["default", "other"].into_iter().take(1 + usize::from(has_other));
            let namespaces = names.map(|name| (name.to_owned(), Arc::default())).collect();
            let expected = merge("home", &views, |name| name == "default" || has_other && name == "other");
            prop_assert_eq!(merger.merge("home", &views, &namespaces), &expected);
            // Only what has changed.
            prop_assert_eq!(merger.merge("home", &views, &namespaces), &expected);
        }
    }

    /// Every cluster comes to the same: who is local and who is told of first makes no difference.
    #[test]
    fn clusters_agree(exports in prop::collection::vec(any_export(), 1..5)) {
        let names = ["a", "b", "c", "d"];
        let clusters = of(&names.into_iter().zip(exports).collect::<Vec<_>>());
        let views: BTreeMap<_, _> =
            clusters.iter().map(|(name, exports)| (name.as_str(), Cluster { exports, left: 0 })).collect();
        let all: Vec<_> = views.keys().map(|local| merge(local, &views, |_| true)).collect();
        for merged in &all {
            prop_assert_eq!(&merged.imports, &all[0].imports);
            prop_assert_eq!(merged.verdicts.values().next(), all[0].verdicts.values().next());
        }
        let (winner, oldest) = clusters
            .iter()
            .map(|(name, exports)| (name, &exports["default/web"]))
            .min_by_key(|(name, export)| (export.created, *name))
            .unwrap();
        let (import, facts) = (&all[0].imports["default/web"], oldest.service.as_ref().unwrap());
        prop_assert_eq!(import.facts.is_headless, facts.is_headless, "{}", winner);
        prop_assert_eq!(&import.facts.session_affinity, &facts.session_affinity);
        // A legal list of ports, in which the oldest has its first one.
        let names: BTreeSet<_> = import.facts.ports.iter().map(|port| &port.name).collect();
        let numbers: BTreeSet<_> = import.facts.ports.iter().map(|port| (&port.protocol, port.port)).collect();
        prop_assert_eq!((names.len(), numbers.len()), (import.facts.ports.len(), import.facts.ports.len()));
        prop_assert_eq!(import.facts.ports.first().filter(|_| !facts.ports.is_empty()), facts.ports.first());
    }
}
