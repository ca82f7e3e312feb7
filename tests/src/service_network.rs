//! What makes Services reachable in a cluster of a test: a node with kube-proxy (`tests/control-plane`), and CoreDNS (`tests/coredns`),
//! both with the rights that clusters give them, against its real API server.
use crate::{
    Error,
    control_plane::{ControlPlane, programs},
    dns::resolve,
    wait_until,
};
use controller::demo::netns::{Namespace, Process};
use serde_json::json;
use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

/// The node's name.
const NODE: &str = "n1";

/// kube-proxy and CoreDNS at work on a node.
#[derive(Debug)]
pub struct ServiceNetwork {
    proxy: Process,
    dns: Process,
    server: SocketAddr,
}

impl ServiceNetwork {
    /// Starts both in the namespace of a node that has these addresses, IPv4 first. Rules for Services are nftables', and names are
    /// served at the first address.
    pub fn start(
        dir: &Path,
        node: &Namespace,
        addresses: [IpAddr; 2],
        plane: &ControlPlane,
    ) -> Result<Self, Error> {
        plane.apply(&objects())?;
        may_read_imports(plane)?;
        let server = addresses[0];
        let addresses = addresses.map(|address| json!({"type": "InternalIP", "address": address}));
        let status = json!({"status": {"addresses": addresses}}).to_string();
        plane.kubectl(&["patch", "node", NODE, "--subresource=status", "--type=merge", "-p", &status])?;

        let mut command = Command::new(programs()?.join("kube-proxy"));
        command.arg("--kubeconfig").arg(plane.kubeconfig_of("kube-system", "kube-proxy")?);
        command.args(["--hostname-override", NODE, "--proxy-mode", "nftables"]);
        // These settings are the kernel's, not the namespace's.
        command.args(["--conntrack-max-per-core", "0", "--conntrack-tcp-timeout-established", "0s"]);
        command.args(["--conntrack-tcp-timeout-close-wait", "0s"]);
        let proxy = node.spawn(command, &dir.join("kube-proxy.log"))?;

        let config = plane.kubeconfig_of("kube-system", "coredns")?;
        let corefile = dir.join("Corefile");
        let text = format!(
            ".:53 {{\n bind {server}\n errors\n kubernetes cluster.local clusterset.local in-addr.arpa ip6.arpa {{\n  \
             multicluster clusterset.local\n  kubeconfig {}\n }}\n}}\n",
            config.display()
        );
        fs::write(&corefile, text)?;
        let mut command = Command::new(coredns()?);
        command.arg("-conf").arg(&corefile);
        let dns = node.spawn(command, &dir.join("coredns.log"))?;
        Ok(ServiceNetwork { proxy, dns, server: SocketAddr::new(server, 53) })
    }

    /// Waits until a name stands for these addresses, which are in order, and no others, as a client in a namespace sees it; without
    /// any: until there is no such name.
    pub fn wait_name(&mut self, client: &Namespace, name: &str, want: &[IpAddr]) -> Result<(), Error> {
        let mut last = String::new();
        let found = wait_until(&format!("{name} is {want:?}"), || {
            if let Some(how) = self.dns.ended().or_else(|| self.proxy.ended()) {
                return Err(how.into());
            }
            let found = client.enter(|| resolve(self.server, name))?;
            last = format!("{found:?}");
            Ok(found.is_ok_and(|found| found == want))
        });
        found.map_err(|error| format!("{error}; it is {last}").into())
    }
}

/// What `tests/coredns/build.sh` has built.
fn coredns() -> Result<PathBuf, Error> {
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/coredns/build.sh")).output()?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout)?.trim().into()),
        false => Err(String::from_utf8_lossy(&output.stderr).into()),
    }
}

/// The node, and accounts: that of kube-proxy has the role that each API server has for it, that of CoreDNS what installers give it.
fn objects() -> String {
    let account = |name: &str, role: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: {name}, namespace: kube-system}}}}\n---\n\
             {{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {{name: {name}}}, \
             roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: \"{role}\"}}, \
             subjects: [{{kind: ServiceAccount, name: {name}, namespace: kube-system}}]}}\n"
        )
    };
    format!(
        "{{apiVersion: v1, kind: Node, metadata: {{name: {NODE}}}}}\n---\n\
         {{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {{name: \"system:coredns\"}}, rules: [\
         {{apiGroups: [\"\"], resources: [endpoints, services, pods, namespaces], verbs: [list, watch]}}, \
         {{apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}}]}}\n{}{}",
        account("kube-proxy", "system:node-proxier"),
        account("coredns", "system:coredns"),
    )
}

/// What README says that CoreDNS needs beside that.
fn may_read_imports(plane: &ControlPlane) -> Result<(), Error> {
    let role = "coredns-multicluster";
    let imports = "--resource=serviceimports.multicluster.x-k8s.io";
    plane.kubectl(&["create", "clusterrole", role, "--verb=list,watch", imports])?;
    let (role_of, account) = (format!("--clusterrole={role}"), "--serviceaccount=kube-system:coredns");
    plane.kubectl(&["create", "clusterrolebinding", role, &role_of, account]).map(drop)
}
