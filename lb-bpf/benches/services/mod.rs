//! What the benches ask the datapath for.
use lb_bpf::{
    Sizes,
    abi::Mode,
    service::{Desired, Endpoint, Frontend, Protocol, Rules, Scope, Service, ServiceKey, Target},
};
use std::{net::Ipv4Addr, sync::Arc};

/// How many services.
pub(crate) const SERVICES: u32 = 10_000;
/// How many backends each has.
pub(crate) const BACKENDS: u32 = 10;
/// Room for them, and for two larger ones.
pub(crate) const SIZES: Sizes =
    Sizes { vips: 32_768, slots: 1 << 24, backends: 1 << 17, flows: 1024, decap: 16, ..Sizes::DEFAULT };

/// All services.
pub(crate) fn desired() -> Desired {
    Desired { services: (0..SERVICES).map(|n| service(n, BACKENDS)).collect(), ..Desired::default() }
}

/// The same, and none of it shared.
pub(crate) fn anew(desired: &Desired) -> Desired {
    let services = desired.services.iter();
    let services = services.map(|(key, service)| (key.clone(), Arc::new(Service::clone(service))));
    Desired { services: services.collect(), ..desired.clone() }
}

/// One service, by its number; the backends of all are among 5000 addresses.
pub(crate) fn service(n: u32, backends: u32) -> (ServiceKey, Arc<Service>) {
    let address = Ipv4Addr::from(0xcb00_0000 + n).into();
    let endpoint =
        |b| Endpoint { address: Ipv4Addr::from(0x0a00_0000 + (n * 7 + b) % 5000).into(), port: 80 };
    let service = Service {
        frontends: [Frontend { address, protocol: Protocol::Tcp, port: 80, scope: Scope::All }].into(),
        mode: Mode::Ipip,
        backends: (0..backends).map(|b| (endpoint(b), Target { weight: 1, up: true, here: false })).collect(),
        drain_seconds: 300,
        rules: Rules::default(),
    };
    (ServiceKey(format!("LoadBalancer/service-{n}/http/ipv4").into()), Arc::new(service))
}
