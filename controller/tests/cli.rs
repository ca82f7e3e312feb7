//! The command as a program: exit codes and outputs, against a server on a unix socket in a directory of its own.
//! What is expected stands in `tests/cli/`; `FAIRLEAD_REWRITE=1 cargo test -p controller --test cli` writes it anew, for review.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails the test")]
use axum::{Json, Router, body::Body, extract::RawQuery, http::StatusCode, routing::get};
use controller::{
    client::Refusal,
    serve::{serve, socket::ApiSocket},
};
use std::{
    convert::Infallible,
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::Duration,
};

/// A directory of one test, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("fairlead-cli-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// An instance that answers with the files of `tests/cli/`.
struct Canned {
    scratch: Scratch,
    _runtime: tokio::runtime::Runtime,
}

impl Canned {
    fn start() -> Self {
        Self::with(Router::new())
    }

    /// One with more routes.
    fn with(router: Router) -> Self {
        let scratch = Scratch::new();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let refusal = Refusal { error: "LoadBalancer \"db\" not found".to_owned() };
        let router = router
            .route("/v1/services", answer("services.json"))
            .route("/v1/clusters", answer("clusters.json"))
            .route("/v1/bgp/peers", answer("peers.json"))
            .route("/v1/bgp/routes", answer("routes.json"))
            .route("/v1/flows", get(|query: RawQuery| async move { flows(query.0.as_deref()) }))
            .route("/v1/trace", get(|query: RawQuery| async move { traced(query.0.as_deref()) }))
            .route("/v1/objects/loadbalancers/db", get((StatusCode::NOT_FOUND, Json(refusal))));
        let socket = runtime.block_on(ApiSocket::bind(&scratch.0.join("api.sock"))).unwrap();
        runtime.spawn(serve(socket, router));
        Canned { scratch, _runtime: runtime }
    }

    /// Runs the command with this instance's socket.
    fn run(&self, args: &[&str]) -> Output {
        fairlead().args(args).arg("--api-socket").arg(self.scratch.0.join("api.sock")).output().unwrap()
    }
}

/// What is asked for in `traces`, and the file of the answer.
fn traced(query: Option<&str>) -> Json<serde_json::Value> {
    let (.., file) = TRACES.iter().find(|(_, asked, _)| query == Some(asked)).unwrap();
    Json(serde_json::from_str(&golden(&format!("{file}.json"))).unwrap())
}

/// What is seen in a moment, or what is followed and ends.
fn flows(query: Option<&str>) -> Body {
    match query {
        None => golden("flows.json").into(),
        Some(query) => {
            assert_eq!(query, "follow=true");
            // In parts that are no lines.
            let text = golden("flows-follow.json");
            let (head, tail) = text.split_at(text.len() / 2);
            let parts = [head.to_owned(), tail.to_owned()].map(Ok::<_, Infallible>);
            Body::from_stream(futures::stream::iter(parts))
        }
    }
}

/// Arguments of `fairlead trace`, what they ask the instance for, and the name of the answer's files.
const TRACES: [(&[&str], &str, &str); 4] = [
    (
        &["--proto", "tcp", "--src", "198.51.100.7:40007", "--dst", "203.0.113.10:80"],
        "proto=tcp&src=198.51.100.7:40007&dst=203.0.113.10:80&syn=false",
        "trace-nat",
    ),
    (
        &["--proto", "tcp", "--src", "[2001:db8:7::7]:40007", "--dst", "[2001:db8:1::10]:80", "--syn"],
        "proto=tcp&src=%5B2001:db8:7::7%5D:40007&dst=%5B2001:db8:1::10%5D:80&syn=true",
        "trace-ipip",
    ),
    (
        &["--proto", "udp", "--src", "198.51.100.7:40007", "--dst", "203.0.113.11:53"],
        "proto=udp&src=198.51.100.7:40007&dst=203.0.113.11:53&syn=false",
        "trace-none",
    ),
    (
        &["--proto", "tcp", "--src", "198.51.100.7:40007", "--dst", "203.0.113.12:80"],
        "proto=tcp&src=198.51.100.7:40007&dst=203.0.113.12:80&syn=false",
        "trace-empty",
    ),
];

fn fairlead() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fairlead"));
    command.env_remove("FAIRLEAD_LOG").env_remove("RUST_LOG").env_remove("FAIRLEAD_LOG_FORMAT");
    command
}

/// Answers with a file of `tests/cli/`.
fn answer(file: &str) -> axum::routing::MethodRouter {
    let value: serde_json::Value = serde_json::from_str(&golden(file)).unwrap();
    get(Json(value))
}

fn golden_path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli").join(file)
}

fn golden(file: &str) -> String {
    fs::read_to_string(golden_path(file)).unwrap()
}

/// Compares with the file, or writes it.
fn assert_golden(file: &str, actual: &str) {
    if std::env::var_os("FAIRLEAD_REWRITE").is_some() {
        fs::write(golden_path(file), actual).unwrap();
    }
    assert_eq!(actual, golden(file), "{file}");
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("exit, not a signal")
}

#[test]
fn tables() {
    let instance = Canned::start();
    for (args, file) in [
        (&["services"] as &[_], "services.txt"),
        (&["clusters"], "clusters.txt"),
        (&["bgp", "peers"], "peers.txt"),
        (&["bgp", "routes"], "routes.txt"),
    ] {
        let output = instance.run(args);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        assert_golden(file, stdout(&output));
    }
}

#[test]
fn files_that_are_refused_are_said_beside_the_output() {
    let instance = Canned::with(Router::new().route("/v1/status", answer("status.json")));
    let output = instance.run(&["services"]);
    assert_eq!((code(&output), stdout(&output)), (0, golden("services.txt").as_str()));
    assert_golden("refused.txt", stderr(&output));
    assert_eq!(stderr(&instance.run(&["bgp", "peers"])), "", "sessions are what they are");
}

#[test]
fn json_is_what_the_instance_says_with_sorted_keys() {
    let instance = Canned::start();
    for (args, file) in [
        (&["services"] as &[_], "services.json"),
        (&["clusters"], "clusters.json"),
        (&["bgp", "peers"], "peers.json"),
        (&["bgp", "routes"], "routes.json"),
    ] {
        let output = instance.run(&[args, &["-o", "json"]].concat());
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        let expected: serde_json::Value = serde_json::from_str(&golden(file)).unwrap();
        assert_eq!(stdout(&output), format!("{expected:#}\n"));
    }
}

#[test]
fn traces() {
    let instance = Canned::start();
    for (args, _, file) in TRACES {
        let expected: serde_json::Value = serde_json::from_str(&golden(&format!("{file}.json"))).unwrap();
        let sent = !expected["sent"].is_null();
        let table = instance.run(&[&["trace"], args].concat());
        assert_eq!((code(&table), stderr(&table)), (i32::from(!sent), ""), "{file}");
        assert_golden(&format!("{file}.txt"), stdout(&table));
        let json = instance.run(&[&["trace", "-o", "json"], args].concat());
        assert_eq!((code(&json), stderr(&json)), (i32::from(!sent), ""), "{file}");
        assert_eq!(stdout(&json), format!("{expected:#}\n"), "{file}");
    }
}

#[test]
fn flows_of_a_moment() {
    let instance = Canned::start();
    let table = instance.run(&["flows"]);
    assert_eq!(code(&table), 0);
    assert_golden("flows.txt", stdout(&table));
    assert_eq!(stderr(&table), "fairlead: 3 more packets came too fast to be shown\n");
    let json = instance.run(&["flows", "-o", "json"]);
    let expected: serde_json::Value = serde_json::from_str(&golden("flows.json")).unwrap();
    assert_eq!((code(&json), stderr(&json)), (0, ""));
    assert_eq!(stdout(&json), format!("{expected:#}\n"));
}

#[test]
fn flows_that_are_followed_until_the_instance_ends() {
    let instance = Canned::start();
    let table = instance.run(&["flows", "--follow"]);
    assert_eq!(code(&table), 3);
    assert_golden("flows-follow.txt", stdout(&table));
    assert_eq!(
        stderr(&table),
        "fairlead: 12 more packets came too fast to be shown\nfairlead: the instance has ended\n"
    );
    let json = instance.run(&["flows", "--follow", "-o", "json"]);
    assert_eq!((code(&json), stdout(&json)), (3, golden("flows-follow.json").as_str()));
}

/// Says when it goes.
struct Goes(mpsc::Sender<()>);

impl Drop for Goes {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// The reader of the command's output goes, the command goes, and the instance notices.
#[test]
fn who_has_seen_enough_flows_ends_them() {
    let (sender, gone) = mpsc::channel();
    let endless = move || {
        let goes = Goes(sender.clone());
        let line = golden("flows-follow.json").lines().next().unwrap().to_owned() + "\n";
        let lines = futures::stream::repeat_with(move || {
            let Goes(_) = &goes;
            Ok::<_, Infallible>(line.clone())
        });
        std::future::ready(Body::from_stream(lines))
    };
    let scratch = Scratch::new();
    let socket = scratch.0.join("api.sock");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(ApiSocket::bind(&socket)).unwrap();
    runtime.spawn(serve(listener, Router::new().route("/v1/flows", get(endless))));
    let mut command = fairlead();
    command.args(["flows", "-f", "-o", "json", "--api-socket"]).arg(&socket);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 1];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!((child.wait().unwrap().code(), &first), (Some(0), b"{"));
    gone.recv_timeout(Duration::from_secs(60)).expect("the answer ends");
}

#[test]
fn packets_that_cannot_be_are_2_and_said_so() {
    for (args, reason) in [
        (["tcp", "198.51.100.7:1", "[2001:db8::1]:80", ""], "not of one address family"),
        (["tcp", "[2001:db8::7]:1", "203.0.113.10:80", ""], "not of one address family"),
        (["tcp", "[::ffff:198.51.100.7]:1", "203.0.113.10:80", ""], "write the IPv4 address"),
        (["udp", "198.51.100.7:1", "203.0.113.10:53", "--syn"], "UDP has none"),
        (["tcp", "198.51.100.7", "203.0.113.10:80", ""], "an address and a port are needed"),
        (["tcp", "198.51.100.7:1", "web:80", ""], "an address and a port are needed"),
        (["tcp", "198.51.100.7:1", "203.0.113.10:65536", ""], "an address and a port are needed"),
        (["sctp", "198.51.100.7:1", "203.0.113.10:80", ""], "possible values: tcp, udp"),
    ] {
        let [proto, src, dst, syn] = args;
        let mut command = fairlead();
        command.args(["trace", "--proto", proto, "--src", src, "--dst", dst]);
        command.args(Some(syn).filter(|syn| !syn.is_empty()));
        let output = command.output().unwrap();
        assert_eq!((code(&output), stdout(&output)), (2, ""), "{args:?}");
        assert!(stderr(&output).contains(reason), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn routes_of_one_peer() {
    let instance = Canned::start();
    let output = instance.run(&["bgp", "routes", "-o", "json", "--peer", "198.51.100.1"]);
    let routes: Vec<serde_json::Value> = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!(routes.len(), 1);
    assert_eq!(routes[0]["table"], "adj-in");
}

#[test]
fn no_instance_is_3_and_says_where_and_what_to_do() {
    let scratch = Scratch::new();
    let socket = scratch.0.join("nobody.sock");
    for args in [&["services"] as &[_], &["bgp", "peers"], &["flows"], &["flows", "-f"], &["get", "pf"]] {
        let output = fairlead().args(args).arg("--api-socket").arg(&socket).output().unwrap();
        assert_eq!((code(&output), stdout(&output)), (3, ""), "{args:?}");
        assert!(stderr(&output).contains(socket.to_str().unwrap()), "{}", stderr(&output));
        assert!(stderr(&output).contains("fairlead standalone"), "{}", stderr(&output));
    }
}

#[test]
fn no_etcd_is_3_and_says_that_nothing_was_changed() {
    let endpoints = "http://127.0.0.1:1,http://127.0.0.1:2";
    let output = fairlead().args(["delete", "node", "n1", "--etcd-endpoints", endpoints]).output().unwrap();
    let said = stderr(&output);
    assert_eq!((code(&output), stdout(&output)), (3, ""), "{said}");
    assert!(
        said.starts_with("fairlead: nothing was changed: etcd was not reached: http://127.0.0.1:"),
        "{said}"
    );
}

#[test]
fn what_answers_nonsense_is_no_instance() {
    let scratch = Scratch::new();
    let socket = scratch.0.join("api.sock");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(ApiSocket::bind(&socket)).unwrap();
    runtime.spawn(serve(listener, Router::new().route("/v1/services", get(|| async { "no JSON" }))));
    for args in [["bgp", "peers"].as_slice(), &["services"]] {
        let output = fairlead().args(args).arg("--api-socket").arg(&socket).output().unwrap();
        assert_eq!((code(&output), stdout(&output)), (3, ""), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("no usable answer"), "{}", stderr(&output));
    }
}

#[test]
fn an_object_that_is_not_there_is_1() {
    let instance = Canned::start();
    for name in ["db", "../../etc", "a b", "ü", ""] {
        let output = instance.run(&["get", "LoadBalancer", name]);
        assert_eq!((code(&output), stdout(&output)), (1, ""), "{name}");
        assert!(stderr(&output).contains("not found"), "{}", stderr(&output));
    }
}

#[test]
fn usage_is_2() {
    for args in [
        &[] as &[&str],
        &["nonsense"],
        &["get"],
        &["get", "pods"],
        &["bgp"],
        &["bgp", "routes", "--peer", "a/b"],
        &["services", "-o", "yaml"],
        &["trace"],
        &["flows", "-o", "yaml"],
        &["flows", "web"],
        &["trace", "--proto", "tcp", "--src", "198.51.100.7:1"],
        &["get", "apool", "-o", "xml"],
        &["validate"],
        &["validate"],
        &["standalone"],
        &["standalone", "--config-dir", "/", "--metrics", "9617"],
        &["standalone", "--config-dir", "/", "--map-size", "slots"],
        &["agent", "--etcd-endpoints", "http://127.0.0.1:1"],
        &["agent", "--store", "etcd"],
        &["agent", "--node-label", "role=lb"],
        &["agent", "--store", "etcd", "--etcd-endpoints", "http://127.0.0.1:1", "--node-label", "role"],
        &["controller", "--store", "etcd", "--etcd-endpoints", "http://127.0.0.1:1", "--namespace", "a"],
        &["apply", "-f", "/"],
        &["apply", "-f", "/", "--etcd-endpoints", "127.0.0.1:1"],
        &["delete", "nodestate", "n1", "--etcd-endpoints", "http://127.0.0.1:1"],
    ] {
        let output = fairlead().args(args).output().unwrap();
        assert_eq!((code(&output), stdout(&output)), (2, ""), "{args:?}");
        assert!(!stderr(&output).is_empty());
    }
    let sizes = ["standalone", "--config-dir", "/", "--map-size", "slots=4096", "--map-size", "flows=0"];
    let output = fairlead().args(sizes).output().unwrap();
    let expected = "fairlead: --map-size: flows=0: expected a number from 1 to 268435456\n";
    assert_eq!((code(&output), stderr(&output)), (2, expected));
    let sources = ["standalone", "--config-dir", "/", "--tunnel-source", "10.1.2.3"];
    let output = fairlead().args(sources).output().unwrap();
    let expected = "fairlead: --tunnel-source: \"10.1.2.3\" is no prefix such as 198.51.100.0/24\n";
    assert_eq!((code(&output), stderr(&output)), (2, expected));
    let output = fairlead().args(["get", "pods"]).output().unwrap();
    assert!(
        stderr(&output).contains("AddressPool, LoadBalancer"),
        "lists the known ones: {}",
        stderr(&output)
    );
    for (variable, value) in [("FAIRLEAD_LOG", "="), ("FAIRLEAD_LOG_FORMAT", "xml")] {
        let output = fairlead().arg("services").env(variable, value).output().unwrap();
        assert_eq!(code(&output), 2);
        assert!(stderr(&output).contains(variable), "{}", stderr(&output));
    }
}

#[test]
fn help_is_0() {
    for args in
        [&["--help"] as &[&str], &["-V"], &["help", "get"], &["crds", "--help"], &["bgp", "peers", "-h"]]
    {
        let output = fairlead().args(args).output().unwrap();
        assert_eq!((code(&output), stderr(&output)), (0, ""), "{args:?}");
        assert!(!stdout(&output).is_empty());
    }
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let instance = Canned::start();
    for args in [&["services"] as &[&str], &["crds"], &["--help"]] {
        let mut command = fairlead();
        command.args(args);
        if args[0] == "services" {
            command.arg("--api-socket").arg(instance.scratch.0.join("api.sock"));
        }
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output =
            command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        assert_eq!((code(&output), stderr(&output)), (0, ""), "{args:?}");
    }
}

#[test]
fn a_full_disk_is_1() {
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = fairlead().arg("crds").stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("writing the output"), "{}", stderr(&output));
}

#[test]
fn a_valid_directory_is_0_and_counted() {
    let scratch = Scratch::new();
    let validate = || fairlead().arg("validate").arg(&scratch.0).output().unwrap();
    let output = validate();
    assert_eq!((code(&output), stdout(&output)), (0, "valid: no objects\n"));
    fs::write(
        scratch.0.join("a.yaml"),
        "apiVersion: fairlead.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: vips}\n\
         spec: {blocks: [{cidr: 203.0.113.0/24}]}\n---\n\
         apiVersion: fairlead.dev/v1alpha1\nkind: BGPRouter\nmetadata: {name: all}\nspec: {asn: 65010}\n",
    )
    .unwrap();
    let output = validate();
    assert_eq!(
        (code(&output), stdout(&output)),
        (0, "valid: 1 AddressPool, 1 BGPRouter\n"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn faults_are_1_and_one_line_each() {
    let scratch = Scratch::new();
    let file = scratch.0.join("a.yaml");
    fs::write(
        &file,
        "apiVersion: fairlead.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: vips}\n\
         spec: {blocks: [{cidr: 203.0.113.0/99}]}\n---\n\
         apiVersion: fairlead.dev/v1alpha1\nkind: BGPRouter\nmetadata: {name: all}\nspec: {asn: 0}\n",
    )
    .unwrap();
    let output = fairlead().arg("validate").arg(&scratch.0).output().unwrap();
    assert_eq!((code(&output), stderr(&output)), (1, ""));
    let lines: Vec<&str> = stdout(&output).lines().collect();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    let file = file.display();
    assert!(
        lines[0].starts_with(&format!("{file}: document 1: AddressPool/vips: spec.blocks[0].cidr: ")),
        "{lines:#?}"
    );
    assert!(lines[1].starts_with(&format!("{file}: document 2: BGPRouter/all: spec.asn: ")), "{lines:#?}");

    let output = fairlead().arg("validate").arg(scratch.0.join("none")).output().unwrap();
    assert_eq!(code(&output), 1);
    assert!(stdout(&output).contains("none: cannot be read"), "{}", stdout(&output));
}
