//! `fairlead` is replaced by another one in its place, and nobody notices: not the router, and not the clients.
use super::restart::{add_echo, ipip, nat};
use controller::demo::{instance::Instance, netns::Process};
use lab::{API, Error, Lab, Routing, WEB, echo, failures, fairlead, wait_until, watch};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// How lb1 speaks to the router.
const LB1: &str = "10.0.0.2";

/// A lab whose lb1 runs from a file of its own.
fn prepare(routing: Routing) -> Result<(Lab, PathBuf), Error> {
    let mut lab = Lab::prepare(routing)?;
    let program = lab.topology.sandbox.dir().join("fairlead");
    fs::copy(fairlead(), &program)?;
    let host = lab.balancer(0).clone();
    lab.instances[0] = Instance::new(&lab.topology.sandbox, &host, &program)?;
    Ok((lab, program))
}

/// Another file at its path, as a package manager does it.
fn upgrade(program: &Path) -> Result<(), Error> {
    let beside = program.with_extension("new");
    fs::copy(fairlead(), &beside)?;
    Ok(fs::rename(&beside, program)?)
}

/// BGP at lb1's interface, until it is dropped.
fn capture(lab: &Lab) -> Result<(Process, PathBuf), Error> {
    let dir = lab.topology.sandbox.dir();
    let (file, log) = (dir.join("bgp.pcap"), dir.join("tcpdump.log"));
    let mut tcpdump = Command::new("tcpdump");
    // At once into the file; it keeps its rights, to write there.
    tcpdump.args(["-U", "-Z", "root", "-i", "eth0", "-w"]).arg(&file).args(["tcp", "port", "179"]);
    let process = lab.balancer(0).namespace.spawn(tcpdump, &log)?;
    wait_until("tcpdump captures", || Ok(fs::read_to_string(&log)?.contains("listening on")))?;
    Ok((process, file))
}

/// Packets of a capture that a filter of Wireshark lets through, a line each.
fn packets(file: &Path, filter: &str) -> Result<String, Error> {
    let output = Command::new("tshark").arg("-r").arg(file).args(["-Y", filter]).output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// How often lb1's program has begun its work.
fn starts(lab: &Lab) -> Result<usize, Error> {
    Ok(lab.log(0)?.matches("api_socket=").count())
}

/// lb1's session as it says itself: seconds, and how often it came up.
fn session(lab: &Lab) -> Result<(u64, u64), Error> {
    let (peers, code) = lab.ask(0, &["bgp", "peers", "-o", "json"])?;
    assert_eq!(code, 0, "{peers}");
    let peers: serde_json::Value = serde_json::from_str(&peers)?;
    let number = |field: &str| peers[0][field].as_u64().ok_or(format!("{field}: {peers}"));
    assert_eq!(peers[0]["state"], "Established", "{peers}");
    Ok((number("sinceSeconds")?, number("establishedCount")?))
}

/// Since when the router's session with lb1 is up, seconds of the router's clock; none: it is not.
fn up_since(lab: &Lab) -> Result<Option<f64>, Error> {
    match (&lab.frr, &lab.bird) {
        (Some(frr), _) => {
            let shown: serde_json::Value =
                serde_json::from_str(&frr.vtysh(&format!("show bgp neighbors {LB1} json"))?)?;
            let session = &shown[LB1];
            let is_up = session["bgpState"] == "Established";
            Ok(session["bgpTimerUpEstablishedEpoch"].as_f64().filter(|_| is_up))
        }
        (None, Some(bird)) => {
            // `n0 BGP --- up 14:26:24.344 Established`
            let shown = bird.birdc("show protocols n0")?;
            let words: Vec<&str> = shown.split_whitespace().collect();
            let [.., "up", since, "Established"] = words[..] else { return Ok(None) };
            let parts: Result<Vec<f64>, _> = since.split(':').map(str::parse).collect();
            Ok(Some(parts?.iter().fold(0.0, |sum, part| sum * 60.0 + part)))
        }
        (None, None) => Err("no router".into()),
    }
}

/// The router has seen no end of the session. Both routers reckon from its age, and may be off by one.
fn goes_on(lab: &Lab, before: Option<f64>) -> Result<(), Error> {
    let now = up_since(lab)?;
    let same = now.zip(before).is_some_and(|(now, before)| (now - before).abs() <= 1.0);
    assert!(same, "up since {now:?}, before {before:?}");
    Ok(())
}

/// Waits for lb1's next program, the `count`th.
fn wait_for_start(lab: &mut Lab, count: usize) -> Result<(), Error> {
    wait_until("lb1's successor is ready", || {
        lab.instances[0].check()?;
        Ok(starts(lab)? >= count && lab.instances[0].status()?.is_some_and(|status| status.ready))
    })
}

/// Replaced twice under traffic, by another file each time: no request fails, no connection breaks, and the session goes on
/// without a word that has to do with it.
fn nobody_notices(routing: Routing) -> Result<(), Error> {
    let (mut lab, program) = prepare(routing)?;
    add_echo(&lab)?;
    lab.start_fairlead()?;
    let client = lab.topology.client.namespace.clone();
    let connections = echo::Connections::open(&client, &[ipip(), nat()].concat(), 8)?;
    let mut traffic = lab.traffic();
    let mut samples = watch(&mut traffic, Duration::from_secs(1))?;
    let (_tcpdump, file) = capture(&lab)?;
    let (before, router) = (session(&lab)?, up_since(&lab)?);
    for count in [2, 3] {
        upgrade(&program)?;
        lab.instances[0].replace()?;
        wait_for_start(&mut lab, count)?;
        samples.extend(watch(&mut traffic, Duration::from_secs(1))?);
    }
    // Longer than the hold time.
    wait_until("the session goes on", || Ok(session(&lab)?.0 > before.0 + 12))?;
    samples.extend(watch(&mut traffic, Duration::from_secs(1))?);
    assert_eq!(session(&lab)?.1, 1);
    goes_on(&lab, router)?;
    lab.wait_next_hops(&[WEB, API].concat(), &[0, 1])?;

    let id = lab.instances[0].id().ok_or("it does not run")?;
    assert_eq!(fs::read_link(format!("/proc/{id}/exe"))?, program, "it runs the new file");
    let seen =
        "bgp.type == 1 || bgp.type == 3 || tcp.flags.syn == 1 || tcp.flags.fin == 1 || tcp.flags.reset == 1";
    assert_eq!(packets(&file, seen)?, "", "the session is seen to end or to begin");
    assert_eq!(packets(&file, &format!("bgp.type == 2 && ip.src == {LB1}"))?, "", "a route is told again");
    assert!(packets(&file, "bgp.type == 4")?.lines().count() > 4, "the capture has seen the session");
    assert_eq!(failures(&samples), [""; 0], "of {}", samples.len());
    assert!(samples.len() > 200, "{} requests", samples.len());
    assert!(connections.close()? > 20);
    Ok(())
}

#[test]
fn frr_notices_no_upgrade() -> Result<(), Error> {
    nobody_notices(Routing::Frr)
}

#[test]
fn bird_notices_no_upgrade() -> Result<(), Error> {
    nobody_notices(Routing::Bird)
}

/// Signals without a pause end nothing; files that are not valid and a program that is none are not gone on with; a
/// successor that fails later leaves the routes to graceful restart.
#[test]
fn what_does_not_start_takes_nothing_down() -> Result<(), Error> {
    let (mut lab, program) = prepare(Routing::Frr)?;
    let peers = include_str!("../../../deploy/examples/bgp.yaml");
    let graceful = peers.replace("  asn: 65000\n", "  asn: 65000\n  gracefulRestart: {seconds: 60}\n");
    for instance in &lab.instances {
        instance.write("bgp.yaml", &graceful)?;
    }
    lab.start_fairlead()?;
    let router = up_since(&lab)?;
    let mut traffic = lab.traffic();
    let mut samples = watch(&mut traffic, Duration::from_secs(1))?;

    wait_until("signals without a pause", || {
        lab.instances[0].check()?;
        (0..1000).try_for_each(|_| lab.instances[0].replace())?;
        Ok(starts(&lab)? > 3)
    })?;
    let mut count = 0;
    wait_until("the last of them has come to rest", || {
        samples.extend(watch(&mut traffic, Duration::from_secs(1))?);
        lab.instances[0].check()?;
        let before = std::mem::replace(&mut count, starts(&lab)?);
        let is_ready = lab.instances[0].status()?.is_some_and(|status| status.ready);
        Ok(is_ready && before == count && lab.log(0)?.matches("a successor is wanted").count() + 1 == count)
    })?;
    goes_on(&lab, router)?;

    lab.instances[0].write("wrong.yaml", "kind: Nonsense\n")?;
    lab.instances[0].replace()?;
    wait_until("it says why", || Ok(lab.log(0)?.matches("not handed over").count() == 1))?;
    assert!(lab.log(0)?.contains("Nonsense"));
    lab.instances[0].delete("wrong.yaml")?;
    fs::rename(&program, program.with_extension("right"))?;
    fs::write(&program, "no program")?;
    lab.instances[0].replace()?;
    wait_until("it says why", || Ok(lab.log(0)?.matches("not handed over").count() == 2))?;
    fs::rename(program.with_extension("right"), &program)?;
    assert_eq!(starts(&lab)?, count, "nothing has happened");
    goes_on(&lab, router)?;

    let status = lab.topology.sandbox.dir().join(&lab.balancer(0).name).join("state/status.json");
    let right = fs::read(&status)?;
    fs::write(&status, "nonsense")?;
    lab.instances[0].replace()?;
    wait_until("it has ended", || Ok(lab.instances[0].check().is_err()))?;
    assert!(lab.log(0)?.contains("is not a status file"), "{}", lab.log(0)?);
    // It is waited for.
    lab.instances[0].kill();
    wait_until("the session is lost", || Ok(up_since(&lab)?.is_none()))?;
    samples.extend(watch(&mut traffic, Duration::from_secs(1))?);
    lab.wait_next_hops(&[WEB, API].concat(), &[0, 1])?;
    fs::write(&status, right)?;
    lab.instances[0].start()?;
    wait_until("the session is back", || Ok(up_since(&lab)?.is_some()))?;
    samples.extend(watch(&mut traffic, Duration::from_secs(1))?);
    assert_eq!(failures(&samples), [""; 0], "of {}", samples.len());
    Ok(())
}
