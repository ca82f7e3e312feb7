//! iperf3 through a load balancer: a second program's view of long-lived connections. Each run has two of them, control and
//! data, that must reach one backend: the services have `affinity: ClientIP`.
use controller::demo::netns::{Process, Tool};
use lab::{API, Error, Lab, Routing, WEB, wait_until};
use std::{process::Command, thread::JoinHandle};

const IPERF: Tool = Tool::new("iperf3", "iperf3");
/// Port of the service in tunnels.
const IPIP: u16 = 7020;
/// Port of the service of NAT.
const NAT: u16 = 7021;
/// A run takes so many seconds.
const SECONDS: u64 = 20;
/// Those of the control connection are far fewer before the data flows.
const ENOUGH_PACKETS: u64 = 200;
/// Fewer changes than this while it runs prove little.
const LEAST_CHANGES: usize = 6;

/// Every backend in turn is drained, removed and comes back, and the process is killed now and then: no connection
/// breaks, and there is no second without data.
#[test]
fn affinity_keeps_the_connections_of_a_client_together_through_changes() -> Result<(), Error> {
    IPERF.check()?;
    let mut lab = Lab::prepare(Routing::Static)?;
    let _servers = serve(&lab)?;
    for instance in &lab.instances {
        instance.write("iperf.yaml", &services(|_| "}"))?;
    }
    lab.start_fairlead()?;
    let targets = WEB.map(|vip| (vip, IPIP)).into_iter().chain(API.map(|vip| (vip, NAT)));
    let clients: Vec<_> = targets.map(|(vip, port)| (vip, run(&lab, vip, port))).collect();
    // Whoever opens a connection after a change may come to another backend than with the one before.
    lab.wait_services(0, |rows| {
        let mut rows = rows.iter().filter(|row| row.name.contains("/iperf-"));
        rows.all(|row| row.backends.iter().map(|backend| backend.packets).sum::<u64>() > ENOUGH_PACKETS)
    })?;
    let mut changes = 0;
    while clients.iter().any(|(_, client)| !client.is_finished()) {
        let number = changes / 3 % 3 + 11;
        let (end, has_slots) = [(", weight: 0}", false), ("", false), ("}", true)][changes % 3];
        let text = services(|backend| if backend == number { end } else { "}" });
        lab.instances[0].write("iperf.yaml", &text)?;
        lab.wait_services(0, |rows| {
            let mut rows = rows.iter().filter(|row| row.name.contains("/iperf-"));
            let slots = |row: &controller::serve::rows::ServiceRow| -> u32 {
                let last = format!("{number}");
                let ours = row.backends.iter().filter(|b| b.address.to_string().ends_with(&last));
                ours.map(|b| b.slots).sum()
            };
            rows.all(|row| row.programmed && (slots(row) > 0) == has_slots)
        })?;
        changes += 1;
        if changes % 4 == 0 {
            lab.instances[0].kill();
            lab.instances[0].start()?;
        }
    }
    for (vip, client) in clients {
        let text = client.join().map_err(|_| "a client panicked")??;
        let report: serde_json::Value = serde_json::from_str(&text)?;
        let intervals = report["server_output_json"]["intervals"].as_array().ok_or_else(|| text.clone())?;
        let whole = intervals
            .iter()
            .map(|interval| &interval["sum"])
            .filter(|sum| sum["seconds"].as_f64() > Some(0.5));
        let bytes: Vec<u64> = whole.filter_map(|sum| sum["bytes"].as_u64()).collect();
        println!("{vip}: {changes} changes, bytes in each second: {bytes:?}");
        assert!(
            bytes.len() as u64 >= SECONDS - 1 && bytes.iter().all(|bytes| *bytes > 0),
            "{vip}: {bytes:?}"
        );
    }
    assert!(changes >= LEAST_CHANGES, "only {changes} changes");
    Ok(())
}

/// One service of each mode; what the entry of a backend (11, 12, 13) ends with, or nothing: it is not there.
fn services(end: impl Fn(usize) -> &'static str) -> String {
    let mut backends = String::new();
    for number in 11..=13 {
        for address in [format!("10.1.0.{number}"), format!("\"fd00:20::{number}\"")] {
            if !end(number).is_empty() {
                backends.push_str(&format!("\n  - {{address: {address}{}", end(number)));
            }
        }
    }
    let service = |name: &str, [v4, v6]: [&str; 2], port: u16, mode: &str| {
        format!(
            "---\nkind: LoadBalancer\nmetadata: {{name: iperf-{name}}}\nspec:\n  addresses: [{v4}, \"{v6}\"]\n  \
             ports: [{{port: {port}}}]\n  policy: {{affinity: ClientIP, forwarding: {{mode: {mode}}}}}\n  \
             backends:{backends}\n"
        )
    };
    service("ipip", WEB, IPIP, "IPIP") + &service("nat", API, NAT, "NAT")
}

/// Servers on the backends; one serves one client at a time.
fn serve(lab: &Lab) -> Result<Vec<Process>, Error> {
    let mut servers = Vec::new();
    for backend in &lab.topology.backends {
        for (family, port) in [("-4", IPIP), ("-6", IPIP), ("-4", NAT), ("-6", NAT)] {
            let mut server = Command::new(IPERF.program());
            server.args(["-s", family, "--json", "-p", &port.to_string()]);
            let log = lab.topology.sandbox.dir().join(format!("{}{family}{port}.log", backend.name));
            servers.push(backend.namespace.spawn(server, &log)?);
            wait_until("iperf3 listens", || {
                let mut listening = Command::new("ss");
                listening.args([family, "-Hltn", &format!("sport = :{port}")]);
                Ok(!backend.namespace.output(listening)?.is_empty())
            })?;
        }
    }
    Ok(servers)
}

/// A client, and what it says in the end.
fn run(lab: &Lab, vip: &str, port: u16) -> JoinHandle<Result<String, Error>> {
    let mut client = Command::new(IPERF.program());
    client.args(["-c", vip, "-p", &port.to_string(), "-t", &SECONDS.to_string()]);
    client.args(["-b", "20M", "--json", "--get-server-output"]);
    let namespace = lab.topology.client.namespace.clone();
    std::thread::spawn(move || Ok(namespace.output(client)?))
}
