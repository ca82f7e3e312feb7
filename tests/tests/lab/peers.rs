//! Peers as a router knows them, FRR: found by the default route, by a range, shut down with a text; and that all who
//! show a session say the same.
use lab::{API, Error, Lab, Routing, WEB, wait_until};
use serde_json::Value;
use std::process::Command;

/// The files of `deploy/examples` with another way to know the router.
fn known_by(lab: &Lab, balancer: usize, how: &str) -> Result<(), Error> {
    let text = lab.instances[balancer].read("bgp.yaml")?;
    let changed = text.replace("  address: 10.0.0.1\n", &format!("  {how}\n"));
    assert_ne!(text, changed);
    Ok(lab.instances[balancer].write("bgp.yaml", &changed)?)
}

fn json(lab: &Lab, balancer: usize, command: &[&str]) -> Result<Value, Error> {
    let (text, code) = lab.ask(balancer, &[command, &["-o", "json"]].concat())?;
    assert_eq!(code, 0, "{text}");
    Ok(serde_json::from_str(&text)?)
}

/// One balancer dials its default gateway, the other one waits for whoever comes out of a range.
#[test]
fn a_router_is_known_by_the_default_route_and_by_a_range() -> Result<(), Error> {
    let mut lab = Lab::prepare(Routing::Frr)?;
    known_by(&lab, 0, "discover: DefaultGateway")?;
    known_by(&lab, 1, "range: {prefix: 10.0.0.0/24, limit: 2}")?;
    lab.start_fairlead()?;
    let vips = [WEB, API].concat();
    lab.wait_next_hops(&vips, &[0, 1])?;
    for balancer in 0..2 {
        let peers = json(&lab, balancer, &["bgp", "peers"])?;
        assert_eq!((peers.as_array().map(Vec::len), &peers[0]["address"]), (Some(1), &"10.0.0.1".into()));
        wait_until("the object says so", || {
            let object = json(&lab, balancer, &["get", "bgpp", "router"])?;
            Ok(object["status"]["establishedSessions"] == 1 && object["status"]["sessions"] == 1)
        })?;
        let state = json(&lab, balancer, &["get", "nodestate"])?;
        assert!(state.to_string().contains(r#""name":"router""#), "{state}");
    }
    // Down by its operator, and back: the router is told why.
    let frr = |lab: &Lab| -> Result<String, Error> {
        Ok(lab.frr.as_ref().expect("it is the router").vtysh("show bgp neighbors 10.0.0.3 json")?)
    };
    let good = lab.instances[1].read("bgp.yaml")?;
    let down = good.replace("  asn: 65000\n", "  asn: 65000\n  shutdown: maintenance until six\n");
    lab.instances[1].write("bgp.yaml", &down)?;
    lab.wait_next_hops(&vips, &[0])?;
    wait_until("FRR shows the text", || Ok(frr(&lab)?.contains("maintenance until six")))?;
    wait_until("the object says so", || {
        Ok(json(&lab, 1, &["get", "bgpp", "router"])?.to_string().contains(r#""reason":"Shutdown""#))
    })?;
    lab.instances[1].write("bgp.yaml", &good)?;
    lab.wait_next_hops(&vips, &[0, 1])
}

/// `fairlead bgp peers`, the NodeState and the metrics of one session, side by side.
#[test]
fn all_who_show_a_session_say_the_same() -> Result<(), Error> {
    let lab = Lab::start(Routing::Frr)?;
    let metrics = || -> Result<String, Error> {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--fail", "http://127.0.0.1:9617/metrics"]);
        Ok(lab.balancer(0).namespace.output(curl)?)
    };
    let value = |page: &str, name: &str, labels: &str| {
        let start = format!("fairlead_bgp_peer_{name}{{{labels}}} ");
        page.lines().find_map(|line| line.strip_prefix(&start)?.parse::<u64>().ok())
    };
    let of = r#"name="router",peer="10.0.0.1""#;
    let mut last = String::new();
    // Between two of the answers something may change.
    wait_until("all three agree", || {
        let before = json(&lab, 0, &["bgp", "peers"])?;
        let state = json(&lab, 0, &["get", "nodestate"])?;
        let page = metrics()?;
        let after = json(&lab, 0, &["bgp", "peers"])?;
        let (peer, again) = (&before[0], &after[0]);
        let session = &state["items"][0]["status"]["sessions"][0];
        last = format!("{peer}\n{session}\n{page}");
        let same = |field: &str, name: &str, labels: &str, of: &Value| {
            let number = peer[field].as_u64();
            number.is_some()
                && peer[field] == again[field]
                && *of == peer[field]
                && value(&page, name, labels) == number
        };
        let word = |field: &str, name: &str| {
            let text = peer[field].as_str().unwrap_or_default();
            session[field] == text && value(&page, name, &format!(r#"{of},state="{text}""#)) == Some(1)
        };
        let counts = |family: &str, field: &str, name: &str| {
            let labels = format!(r#"family="{family}",{of}"#);
            let number = peer["prefixes"][family][field].as_u64();
            number.is_some() && value(&page, name, &labels) == number
        };
        let sum = |field: &str| {
            let all = ["ipv4-unicast", "ipv6-unicast"].map(|family| peer["prefixes"][family][field].as_u64());
            all.into_iter().sum::<Option<u64>>()
        };
        Ok(session["peer"] == peer["address"]
            && session["name"] == "router"
            && word("state", "state")
            && word("restartState", "restart_state")
            && same("flapCount", "flaps_total", of, &session["flapCount"])
            && same("establishedCount", "establishments_total", of, &peer["establishedCount"])
            && session["prefixesReceived"] == peer["prefixesReceived"]
            && session["prefixesSent"] == peer["prefixesSent"]
            && session["lastError"] == peer["lastError"]
            && sum("sent") == peer["prefixesSent"].as_u64()
            && sum("sent").is_some_and(|sent| sent >= 4)
            && ["ipv4-unicast", "ipv6-unicast"].iter().all(|family| {
                counts(family, "sent", "prefixes_sent") && counts(family, "accepted", "prefixes_accepted")
            }))
    })
    .map_err(|error| format!("{error}: {last}").into())
}
