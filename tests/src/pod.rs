//! A pod, as a network plugin makes it: a namespace behind a veth of its node. Nobody but the node knows the way to it.
use crate::Error;
use controller::demo::{
    netns::{Namespace, Sandbox},
    topology::Host,
};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Plugs a pod into a node. The interface there has the pod's name. Its gateway is the first address of its /24 and /64.
pub fn plug(
    sandbox: &Sandbox,
    node: &Namespace,
    name: &str,
    (ipv4, ipv6): (Ipv4Addr, Ipv6Addr),
) -> Result<Host, Error> {
    let namespace = sandbox.namespace(name)?;
    let (gateway4, gateway6) =
        (Ipv4Addr::from((u32::from(ipv4) & !0xff) + 1), Ipv6Addr::from(u128::from(ipv6) >> 64 << 64 | 1));
    node.ip(&format!(
        "link add {name} type veth peer name eth0 netns {}\n\
         addr add {gateway4}/32 dev {name}\n\
         addr add {gateway6}/128 dev {name} nodad\n\
         link set {name} up\n\
         route add {ipv4}/32 dev {name}\n\
         route add {ipv6}/128 dev {name}\n",
        namespace.name()
    ))?;
    namespace.ip(&format!(
        "link set lo up\n\
         addr add {ipv4}/32 dev eth0\n\
         addr add {ipv6}/128 dev eth0 nodad\n\
         link set eth0 up\n\
         route add {gateway4}/32 dev eth0\n\
         route add {gateway6}/128 dev eth0\n\
         route add default via {gateway4}\n\
         route add default via {gateway6}\n"
    ))?;
    Ok(Host { name: name.to_owned(), namespace, ipv4, ipv6 })
}
