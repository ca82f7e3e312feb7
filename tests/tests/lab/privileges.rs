//! The privileges of `deploy/kubernetes`: an agent and a controller with exactly the user, capabilities and mounts of their
//! manifests do all that they are for; without one of the capabilities an agent says which one is missing.
use controller::demo::{netns::Process, topology::ROUTER_ASN};
use lab::{Error, Lab, Routing, WEB, control_plane::ControlPlane, fairlead, wait_until};
use serde::Deserialize;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const NAMESPACE: &str = "fairlead-system";

/// What becomes true of a pod's file system: all is read-only, but for its volumes, and only these are at their places. Then
/// it takes the privileges that it is given. `$0` has the volumes; arguments: their paths, `--`, the command.
const POD: &str = r#"set -e
    # A second way to them, for what is mounted hides the first.
    mount --bind "$0" /mnt
    while [ "$1" != -- ]; do
        parent=$(dirname "$1") name=volume-$#
        mkdir -p "/mnt/$name/parent/$(basename "$1")" "/mnt/$name/volume"
        mount --bind "/mnt/$name/parent" "$parent"
        mount -o remount,bind,ro "$parent"
        mount --bind "/mnt/$name/volume" "$1"
        shift
    done
    umount /mnt
    shift
    mount -o remount,bind,ro /
    ! touch /fairlead-must-not-write 2>/dev/null
    exec "$@""#;

/// A container of a manifest, and what its pod says.
struct Manifest {
    pod: Value,
    container: Value,
}

impl Manifest {
    fn read(file: &str) -> Result<Self, Error> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes").join(file);
        let text = fs::read_to_string(path)?;
        let first = serde_yaml_ng::Deserializer::from_str(&text).next().ok_or("an empty manifest")?;
        let mut pod = Value::deserialize(first)?["spec"]["template"]["spec"].take();
        let container = pod["containers"][0].take();
        Ok(Manifest { pod, container })
    }

    /// Names of capabilities as setpriv knows them.
    fn capabilities(&self) -> Vec<String> {
        let added = self.container["securityContext"]["capabilities"]["add"].as_array();
        let names = added.into_iter().flatten().filter_map(Value::as_str);
        names.map(str::to_lowercase).collect()
    }

    /// Paths of its volumes; the BPF file system is there as it is on the host.
    fn volumes(&self) -> Vec<&str> {
        let mounts = self.container["volumeMounts"].as_array();
        let paths = mounts.into_iter().flatten().filter_map(|mount| mount["mountPath"].as_str());
        paths.filter(|path| *path != "/sys/fs/bpf").collect()
    }

    /// Runs `fairlead` as its container would, with these capabilities; `dir` is for its volumes.
    fn command(&self, capabilities: &[String], dir: &Path, arguments: &[&str]) -> Command {
        let context = &self.container["securityContext"];
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]));
        let bounds: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", POD]).arg(dir);
        command.args(self.volumes()).args(["--", "setpriv", "--no-new-privs", "--inh-caps=-all"]);
        command.arg(format!("--bounding-set=-all{bounds}"));
        if let Some(user) = self.pod["securityContext"]["runAsUser"].as_u64() {
            let group = self.pod["securityContext"]["runAsGroup"].as_u64().unwrap_or_default();
            let ids = [format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".to_owned()];
            command.args(ids);
        }
        command.arg(fairlead()).args(arguments);
        command
    }
}

/// Who runs where, and what they say.
struct Cluster {
    lab: Lab,
    plane: ControlPlane,
    agent: Manifest,
}

impl Cluster {
    /// A router with a key for lb1 and a route of its own, and an API server with all that is declared.
    fn prepare() -> Result<Self, Error> {
        let lab = Lab::prepare(Routing::Frr)?;
        let router = lab.topology.router.clone();
        let plane = ControlPlane::start_in(&router.namespace, router.ipv4.into())?;
        let frr = lab.frr.as_ref().ok_or("there is no FRR")?;
        let balancer = lab.topology.balancers[0].ipv4;
        router.namespace.ip("route add blackhole 192.0.2.0/24")?;
        frr.vtysh(&format!(
            "configure terminal\nrouter bgp {ROUTER_ASN}\nneighbor {balancer} password s3cret\n\
             address-family ipv4 unicast\nredistribute kernel\nend"
        ))?;
        plane.install()?;
        let key = ["create", "secret", "generic", "tor", "-n", NAMESPACE, "--from-literal=password=s3cret"];
        plane.kubectl(&key)?;
        for name in ["nodes.yaml", "pool.yaml", "bgp.yaml", "web.yaml"] {
            plane.apply(&lab.instances[0].read(name)?)?;
        }
        let peer = serde_json::json!({"spec": {
            "auth": {"md5SecretRef": {"name": "tor", "key": "password"}},
            "import": {"accept": ["any"], "install": true},
            "bfd": {"minTxMillis": 300, "minRxMillis": 300, "multiplier": 3},
        }});
        plane.kubectl(&["patch", "bgppeer", "router", "--type=merge", "-p", &peer.to_string()])?;
        Ok(Cluster { lab, plane, agent: Manifest::read("agent.yaml")? })
    }

    fn dir(&self, name: &str) -> Result<PathBuf, Error> {
        let dir = self.lab.topology.sandbox.dir().join(name);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// An agent with the arguments of the manifest, for lb1; and its log.
    fn start_agent(&self, name: &str, capabilities: &[String]) -> Result<(Process, PathBuf), Error> {
        let instance = &self.lab.instances[0];
        let config = self.plane.kubeconfig_of(NAMESPACE, "fairlead-agent")?;
        let config = config.to_str().ok_or("a path that is no text")?;
        let mut arguments: Vec<_> = self.agent.container["args"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(|argument| if argument == "$(NODE_NAME)" { instance.node() } else { argument })
            .collect();
        arguments.extend(["--interface", "eth0", "--kubeconfig", config, "--namespace", NAMESPACE]);
        let dir = self.dir(name)?;
        let log = dir.join("log");
        let command = self.agent.command(capabilities, &dir, &arguments);
        Ok((instance.host.namespace.spawn(command, &log)?, log))
    }

    fn start_controller(&self) -> Result<Process, Error> {
        let manifest = Manifest::read("controller.yaml")?;
        assert_eq!(manifest.pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(manifest.capabilities(), [""; 0]);
        let dir = self.dir("controller")?;
        // Where others than root may read.
        let text = fs::read_to_string(self.plane.kubeconfig_of(NAMESPACE, "fairlead-controller")?)?;
        let (authority, config) = (dir.join("ca.crt"), dir.join("kubeconfig"));
        let own = self.plane.kubeconfig().with_file_name("apiserver.crt");
        fs::copy(&own, &authority)?;
        let path = |path: &Path| path.to_str().map(str::to_owned).ok_or("a path that is no text");
        fs::write(&config, text.replace(&path(&own)?, &path(&authority)?))?;
        let config = path(&config)?;
        let arguments = ["controller", "--kubeconfig", &config, "--namespace", NAMESPACE];
        let command = manifest.command(&[], &dir, &arguments);
        Ok(self.lab.topology.router.namespace.spawn(command, &dir.join("log"))?)
    }

    /// Number of the link by which XDP is attached to lb1.
    fn attached(&self) -> Result<Value, Error> {
        let pin = format!("/sys/fs/bpf/fairlead/{}/v2/xdp-eth0", self.lab.instances[0].node());
        let told = Command::new("bpftool").args(["-j", "link", "show", "pinned", &pin]).output()?;
        Ok(serde_json::from_slice::<Value>(&told.stdout)?["id"].take())
    }

    /// What the NodeState says of lb1.
    fn node_state(&self) -> String {
        let node = self.lab.instances[0].node();
        self.plane.kubectl(&["get", "nodestate", node, "-o", "json"]).unwrap_or_default()
    }
}

/// Scheduling policies of the threads of a process (proc(5), field 41 of `stat`): 1 is `SCHED_FIFO`.
fn policies(process: &Process) -> Result<Vec<String>, Error> {
    let id = process.id().ok_or("it has ended")?;
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{id}/task"))? {
        // A thread may have ended meanwhile.
        let stat = fs::read_to_string(task?.path().join("stat")).unwrap_or_default();
        // The name, in parentheses, is the second field.
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        found.extend(rest.split_whitespace().nth(38).map(str::to_owned));
    }
    Ok(found)
}

#[test]
fn agent_and_controller_do_their_work_with_just_what_their_manifests_give() -> Result<(), Error> {
    let mut cluster = Cluster::prepare()?;
    let whole = cluster.agent.capabilities();
    for lacking in whole.iter().filter(|name| *name != "sys_nice") {
        let others: Vec<_> = whole.iter().filter(|name| *name != lacking).cloned().collect();
        let (mut agent, log) = cluster.start_agent(&format!("without-{lacking}"), &others)?;
        wait_until("it ends", || Ok(agent.ended().is_some()))?;
        let said = fs::read_to_string(log)?;
        let want = format!("`fairlead agent` lacks CAP_{}", lacking.to_uppercase());
        assert!(said.contains(&want) && said.matches("CAP_").count() == 1, "{lacking}: {said}");
    }
    let controller = cluster.start_controller()?;

    const LATE: &str = "BFD runs without real-time priority";
    let others: Vec<_> = whole.iter().filter(|name| *name != "sys_nice").cloned().collect();
    let (agent, log) = cluster.start_agent("without-sys_nice", &others)?;
    wait_until("BFD complains", || Ok(fs::read_to_string(&log)?.contains(LATE)))?;
    assert!(!policies(&agent)?.contains(&"1".to_owned()));
    let attached = cluster.attached()?;
    agent.terminate()?;

    let (agent, log) = cluster.start_agent("whole", &whole)?;
    // Programs, maps, port 179, MD5 signatures: the router has the routes.
    cluster.lab.wait_next_hops(&WEB, &[0])?;
    let host = cluster.lab.instances[0].host.clone();
    wait_until("a route of the router is in the kernel", || {
        Ok(!host.namespace.ip_json(&["route", "show", "192.0.2.0/24"])?.as_array().is_none_or(Vec::is_empty))
    })?;
    wait_until("the NodeState tells of the session", || {
        Ok(cluster.node_state().contains("\"Established\""))
    })?;
    assert_eq!(cluster.attached()?, attached, "the next agent takes over what is attached");
    let said = fs::read_to_string(log)?;
    assert!(!said.contains(LATE) && !said.contains("not permitted"), "{said}");
    assert!(policies(&agent)?.contains(&"1".to_owned()), "BFD in time");

    // The controller has done its part: statuses are there.
    wait_until("the pool is counted", || {
        let pool = cluster.plane.kubectl(&["get", "addresspool", "public", "-o", "json"])?;
        let pool: Value = serde_json::from_str(&pool)?;
        Ok(pool["status"]["ipv4"]["assigned"] == 1)
    })?;
    for process in [agent, controller] {
        let status = process.terminate()?;
        assert!(status.success(), "{status}");
    }
    Ok(())
}
