//! The addresses of ServiceImports: each is that of a derived Service, which real API servers give their ClusterIPs, which comes and
//! goes with its import, and which is nobody else's business.
use super::{
    clusters::{export, link, object, planes, reader, secret, wait_condition},
    store::{NAMESPACE, Process},
};
use controller::{mcs::derived_name, store::kubernetes::Role};
use lab::{
    Error,
    control_plane::{ControlPlane, Fault},
    wait_until,
};
use serde_json::{Value, json};
use std::fs;

/// A Service of both families, with this port.
fn service(name: &str, port: u16) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{ipFamilyPolicy: PreferDualStack, ports: [{{name: http, port: {port}}}]}}\n"
    )
}

fn slice(service: &str, address: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: {service}-1, namespace: shop, labels: {{kubernetes.io/service-name: {service}}}}}\n\
         endpoints: [{{addresses: [{address}], conditions: {{ready: true}}}}]\nports: [{{name: http, port: 8080, protocol: TCP}}]\n"
    )
}

/// The derived Service; `Null`: there is none.
fn derived(plane: &ControlPlane, name: &str) -> Result<Value, Error> {
    object(plane, "service", &derived_name("shop", name))
}

/// Waits until an import has addresses, which are those of its derived Service in the order of its families.
fn addresses(plane: &ControlPlane, name: &str, families: &[&str]) -> Result<Value, Error> {
    wait_condition(plane, "serviceimport", name, ["Ready", "True", "Ready"])?;
    let (import, service) = (object(plane, "serviceimport", name)?, derived(plane, name)?);
    let ips = &import["spec"]["ips"];
    let mut wanted = service["spec"]["clusterIPs"].as_array().cloned().unwrap_or_default();
    wanted.sort_by_key(|ip| {
        let family = if ip.as_str().is_some_and(|ip| ip.contains(':')) { "IPv6" } else { "IPv4" };
        families.iter().position(|wanted| *wanted == family)
    });
    assert_eq!(ips.as_array(), Some(&wanted), "{service:#}");
    assert_eq!(wanted.len(), families.len());
    assert_eq!(import["spec"]["ipFamilies"], json!(families));
    assert_eq!(
        import["metadata"]["annotations"]["multicluster.kubernetes.io/derived-service"],
        service["metadata"]["name"]
    );
    Ok(ips.clone())
}

/// The imported slices of a service: the cluster of each, and the Service that it is bound to.
fn bound(plane: &ControlPlane, name: &str) -> Result<Vec<(String, Option<String>)>, Error> {
    let selector = format!("multicluster.kubernetes.io/service-name={name}");
    let list = plane.kubectl(&["get", "endpointslices", "-n", "shop", "-l", &selector, "-o", "json"])?;
    let list: Value = serde_json::from_str(&list)?;
    let label = |slice: &Value, name: &str| slice["metadata"]["labels"][name].as_str().map(str::to_owned);
    let slices = list["items"].as_array().into_iter().flatten();
    let mut found: Vec<_> = slices
        .map(|slice| {
            let cluster = label(slice, "multicluster.kubernetes.io/source-cluster").unwrap_or_default();
            (cluster, label(slice, "kubernetes.io/service-name"))
        })
        .collect();
    found.sort();
    Ok(found)
}

fn wait_bound(plane: &ControlPlane, name: &str, want: &[(&str, Option<&str>)]) -> Result<(), Error> {
    let owned = |text: &str| text.to_owned();
    let want: Vec<_> = want.iter().map(|(cluster, to)| (owned(cluster), to.map(owned))).collect();
    let mut last = Vec::new();
    let found = wait_until(&format!("slices of {name} are {want:?}"), || {
        last = bound(plane, name)?;
        Ok(last == want)
    });
    found.map_err(|error| format!("{error}; they are {last:?}").into())
}

#[test]
fn imports_have_the_addresses_of_services_that_come_and_go_with_them() -> Result<(), Error> {
    let [home, west] = planes()?;
    let way = reader(&west)?;
    secret(&home, "west", &fs::read_to_string(way.kubeconfig())?)?;
    home.apply(&link("west", 600))?;
    let six = "---\napiVersion: v1\nkind: Service\nmetadata: {name: six, namespace: shop}\n\
               spec: {ipFamilies: [IPv6, IPv4], ipFamilyPolicy: RequireDualStack, ports: [{port: 53, protocol: UDP}]}\n";
    let all = [
        &service("web", 80),
        &slice("web", "10.2.0.1"),
        &export("web"),
        six,
        &export("six"),
        &service("taken", 80),
    ];
    west.apply(&[all.concat(), slice("taken", "10.2.0.2"), export("taken")].concat())?;
    // A Service of somebody else that is called like ours would be.
    let taken = derived_name("shop", "taken");
    home.apply(&service(&taken, 99))?;
    let theirs = object(&home, "service", &taken)?;
    // Somebody exports what is derived.
    let web = derived_name("shop", "web");
    home.apply(&export(&web))?;

    let rights = home.kubeconfig_of(NAMESPACE, "fairlead-controller")?;
    let here = home.proxy(&rights)?;
    let refuse = |request: &lab::control_plane::Request| {
        request.method == "POST" && request.path.contains("/services")
    };
    here.set(move |request| if refuse(request) { Fault::Answer(403, None) } else { Fault::None });
    let controller = Process::start(here.kubeconfig(), Role::Controller, "one", None)?;
    // Without the right to make Services all else is imported, and why there is no address is said; with it there is one.
    wait_condition(&home, "serviceimport", "web", ["Ready", "False", "Failed"])?;
    wait_bound(&home, "web", &[("west", Some(&web))])?;
    assert!(object(&home, "serviceimport", "web")?["spec"]["ips"].is_null());
    here.set(|_| Fault::None);
    let given = addresses(&home, "web", &["IPv4", "IPv6"])?;
    addresses(&home, "six", &["IPv6", "IPv4"])?;

    // What is not ours stays as it is, and is bound to nothing of ours.
    let said = wait_condition(&home, "serviceimport", "taken", ["Ready", "False", "Failed"])?;
    assert_eq!(said, format!("it has no address: Service/{taken} is not Fairlead's"));
    wait_bound(&home, "taken", &[("west", None)])?;
    assert_eq!(object(&home, "service", &taken)?, theirs);
    assert!(object(&home, "serviceimport", "taken")?["spec"]["ips"].is_null());

    // What is ours nobody takes for a Service that was declared.
    wait_condition(&home, "serviceexport", &web, ["Valid", "False", "NoService"])?;
    let declared = controller.wait("what is declared is known", |declared| {
        declared.services.contains_key(&format!("shop/{taken}"))
    })?;
    assert!(!declared.services.contains_key(&format!("shop/{web}")));

    // Ports follow, also those of a second export, and so do endpoints of this cluster. The address stays.
    west.apply(&service("web", 8080))?;
    home.apply(&[service("web", 8080), slice("web", "10.1.0.1"), export("web")].concat())?;
    home.apply("{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {ports: [{name: http, port: 8080}, {name: more, port: 443}]}}")?;
    let mut ports = Value::Null;
    let followed = wait_until("the ports follow", || {
        let service = derived(&home, "web")?;
        let all = service["spec"]["ports"].as_array().into_iter().flatten();
        ports = all.map(|port| port["port"].clone()).collect();
        Ok(ports == json!([8080, 443]))
    });
    followed.map_err(|error| format!("{error}; they are {ports}"))?;
    wait_bound(&home, "web", &[("local", Some(&web)), ("west", Some(&web))])?;
    assert_eq!(addresses(&home, "web", &["IPv4", "IPv6"])?, given);

    // The next controller finds all as it should be.
    let before = derived(&home, "web")?;
    drop(controller);
    let next = Process::start(here.kubeconfig(), Role::Controller, "two", None)?;
    wait_until("another one leads", || Ok(next.leads()))?;
    west.apply(&slice("six", "10.2.0.3"))?;
    wait_bound(&home, "six", &[("west", Some(&derived_name("shop", "six")))])?;
    assert_eq!(addresses(&home, "web", &["IPv4", "IPv6"])?, given);
    assert_eq!(derived(&home, "web")?, before, "it was written again");

    // One that somebody deletes is made anew; its import has the new address.
    home.kubectl(&["delete", "service", &derived_name("shop", "six"), "-n", "shop"])?;
    wait_until("it is there again", || Ok(!derived(&home, "six")?.is_null()))?;
    wait_until("and its import says so", || {
        let (import, service) = (object(&home, "serviceimport", "six")?, derived(&home, "six")?);
        Ok(import["spec"]["ips"][0] == service["spec"]["clusterIPs"][1])
    })?;
    // The name is free: there is an address at last.
    home.kubectl(&["delete", "service", &taken, "-n", "shop"])?;
    addresses(&home, "taken", &["IPv4", "IPv6"])?;
    wait_bound(&home, "taken", &[("west", Some(&taken))])?;

    // With the exports all of it goes.
    west.kubectl(&["delete", "serviceexport", "--all", "-n", "shop"])?;
    home.kubectl(&["delete", "serviceexport", "--all", "-n", "shop"])?;
    for name in ["web", "six", "taken"] {
        wait_until(&format!("nothing is left of {name}"), || {
            let import = object(&home, "serviceimport", name)?;
            Ok(import.is_null() && derived(&home, name)?.is_null() && bound(&home, name)?.is_empty())
        })?;
    }
    assert!(!object(&home, "service", "web")?.is_null());
    Ok(())
}
