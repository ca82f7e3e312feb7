//! The directory of files while everything runs: a broken file, and how fast a good one takes effect.
use lab::{Error, Lab, Routing, WEB, failures, wait_until, watch};
use std::{
    process::{Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

#[test]
fn a_broken_file_changes_nothing_and_is_told() -> Result<(), Error> {
    let mut lab = Lab::start(Routing::Frr)?;
    let mut traffic = lab.traffic();
    let before = lab.wait_services(0, |_| true)?;
    // One good change beside a broken one: neither may take effect.
    for balancer in 0..2 {
        let web = lab.instances[balancer].read("web.yaml")?;
        lab.instances[balancer].write("web.yaml", &web.replace("weight: 2", "weight: 9"))?;
        lab.instances[balancer].write(
            "zz-broken.yaml",
            "kind: LoadBalancer\nmetadata: {name: x}\nspec: {ports: [{port: 99999}]}\n",
        )?;
        wait_until("the fault is told", || {
            let status = lab.instances[balancer].status()?;
            Ok(status.is_some_and(|s| s.faults.iter().any(|r| r.contains("zz-broken.yaml"))))
        })?;
        let log = lab.log(balancer)?;
        assert!(log.contains("zz-broken.yaml") && log.contains("port"), "{log}");
    }
    let samples = watch(&mut traffic, Duration::from_secs(2))?;
    assert_eq!(failures(&samples), [""; 0], "of {}", samples.len());
    let after = lab.wait_services(0, |_| true)?;
    let slots = |rows: &[controller::serve::rows::ServiceRow]| -> Vec<Vec<u32>> {
        rows.iter().map(|r| r.backends.iter().map(|b| b.slots).collect()).collect()
    };
    assert_eq!(slots(&before), slots(&after));
    lab.wait_next_hops(&WEB, &[0, 1])?;
    // A restart with a broken directory has nothing to take up, and leaves everything as it is.
    lab.instances[0].delete("zz-broken.yaml")?;
    lab.wait_services(0, |rows| slots(rows) != slots(&before))?;
    let samples = watch(&mut traffic, Duration::from_millis(500))?;
    assert_eq!(failures(&samples), [""; 0], "of {}", samples.len());
    Ok(())
}

/// Prints the time from the rename of a file to the UPDATE as the router's kernel sees it. The figure depends on
/// the machine and is not judged; that the UPDATE comes is.
#[test]
fn a_new_file_is_on_the_wire_soon() -> Result<(), Error> {
    let lab = Lab::start(Routing::Frr)?;
    let mut tshark = Command::new("tshark");
    tshark.args(["-l", "-n", "-i", "front", "-f", "tcp port 179 and src host 10.0.0.2"]);
    tshark.args(["-Y", "bgp.type == 2", "-T", "fields", "-e", "frame.time_epoch", "-e", "bgp.nlri_prefix"]);
    let dir = lab.topology.sandbox.dir();
    let (out, log) = (dir.join("tshark.out"), dir.join("tshark.err"));
    tshark.stdin(Stdio::null());
    let process = lab.topology.router.namespace.spawn(tshark, &out)?;
    let text = || std::fs::read_to_string(&out).unwrap_or_default();
    wait_until("tshark listens", || Ok(text().contains("Capture started")))
        .map_err(|e| format!("{e} (apt-get install tshark): {} {log:?}", text()))?;
    let mut times = Vec::new();
    for number in 30..40 {
        let vip = format!("203.0.113.{number}");
        let yaml = format!(
            "kind: LoadBalancer\nmetadata: {{name: late{number}}}\n\
             spec: {{addresses: [{vip}], ports: [{{port: 80}}], backends: [{{address: 10.1.0.11}}]}}\n"
        );
        let written = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        lab.instances[0].write(&format!("late{number}.yaml"), &yaml)?;
        let mut seen = 0.0;
        wait_until("the UPDATE is on the wire", || {
            let text = text();
            let line =
                text.lines().find(|l| l.split('\t').nth(1).is_some_and(|p| p.split(',').any(|p| p == vip)));
            let Some(line) = line else { return Ok(false) };
            seen = line.split('\t').next().unwrap_or_default().parse()?;
            Ok(true)
        })?;
        times.push((seen - written) * 1e3);
    }
    process.kill();
    times.sort_by(f64::total_cmp);
    println!("file renamed → UPDATE on the wire, ms, of {}: {times:.1?}", times.len());
    Ok(())
}
