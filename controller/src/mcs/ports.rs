//! Ports that exports of one service contradict each other about: the same name, and another number or protocol. The oldest export
//! counts, so what comes for such a port goes to clusters that agree with it, and to no others.
use super::ImportPort;
use crate::api::EndpointSlice;
use std::borrow::Cow;

/// A slice of a cluster whose Service has the ports `own`, without those that are others in `union`, the ports of the import.
pub(super) fn agreed<'a>(
    slice: Cow<'a, EndpointSlice>,
    own: &[ImportPort],
    union: &[ImportPort],
) -> Cow<'a, EndpointSlice> {
    let is_other = |name: &str| {
        let of = |ports: &[ImportPort]| {
            ports.iter().find(|port| port.name == name).map(|port| (port.port, port.protocol.clone()))
        };
        let known = of(union);
        known.is_some() && of(own) != known
    };
    let is_agreed = |name: Option<&str>| !is_other(name.unwrap_or_default());
    if own == union || slice.ports.iter().all(|port| is_agreed(port.name.as_deref())) {
        return slice;
    }
    let mut slice = slice.into_owned();
    slice.ports = slice.ports.into_iter().filter(|port| is_agreed(port.name.as_deref())).collect();
    Cow::Owned(slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{mcs::Export, object::Object, validate};
    use serde_json::json;

    fn ports(ports: &[(&str, i32)]) -> Vec<ImportPort> {
        let port = |(name, port): &(&str, i32)| ImportPort {
            name: (*name).to_owned(),
            protocol: "TCP".to_owned(),
            app_protocol: None,
            port: *port,
        };
        ports.iter().map(port).collect()
    }

    #[test]
    fn a_slice_loses_the_ports_that_the_oldest_export_has_otherwise() {
        let slice = json!({"kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}],
            "ports": [{"name": "http", "port": 8080}, {"name": "own", "port": 9090}, {"port": 7070}],
            "metadata": {"namespace": "n", "name": "a", "labels": {"kubernetes.io/service-name": "a"}}});
        let Ok(Object::EndpointSlice(slice)) = validate::check_object(&slice) else { panic!("no slice") };
        let slice = Export::imported("a", "west", &slice, false);
        let left = |own: &[(&str, i32)], union: &[(&str, i32)]| -> Vec<Option<i32>> {
            let agreed = agreed(Cow::Borrowed(&slice), &ports(own), &ports(union));
            agreed.ports.iter().map(|port| port.port).collect()
        };
        let own = [("http", 80), ("own", 90), ("", 70)];
        assert_eq!(left(&own, &own), [Some(8080), Some(9090), Some(7070)]);
        // Of another number, not there under its name, and the same among others.
        assert_eq!(left(&own, &[("http", 81), ("", 70), ("other", 1)]), [Some(9090), Some(7070)]);
        assert_eq!(left(&own, &[("http", 80), ("own", 91), ("", 71)]), [Some(8080)]);
    }
}
