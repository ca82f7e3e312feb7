//! Packet filters: how fast they come from a file into the kernel, what is said of them, and that they end by themselves.
use controller::serve::rows::FlowRows;
use lab::{Error, Lab, Routing, wait_until};
use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Where the packets go.
const PORT: u16 = 7777;
/// Between two packets.
const PACE: Duration = Duration::from_millis(1);
/// Nothing has come for so long: nothing comes any more.
const QUIET: Duration = Duration::from_millis(250);
/// How often the time is taken.
const TRIES: usize = 6;

/// Prints the time from the rename of a file to the last packet that it lets through. The figure depends on the machine
/// and is not judged; that packets end is.
#[test]
fn a_filter_in_a_file_is_in_the_kernel_soon() -> Result<(), Error> {
    let lab = Lab::start(Routing::Static)?;
    let packets = Packets::start(&lab)?;
    let mut took = Vec::new();
    for _ in 0..TRIES {
        packets.come()?;
        let written = Instant::now();
        lab.instances[0].write("filter.yaml", &filter(""))?;
        took.push(packets.last()? - written);
        lab.instances[0].delete("filter.yaml")?;
    }
    took.sort();
    println!("file written → last packet, of {TRIES}: {took:.1?}");
    Ok(())
}

#[test]
fn a_filter_is_counted_told_and_ends_by_itself() -> Result<(), Error> {
    let lab = Lab::start(Routing::Static)?;
    let packets = Packets::start(&lab)?;
    packets.come()?;
    lab.instances[0].write("filter.yaml", &filter(""))?;
    // A packet every millisecond, and every one that is dropped is told.
    wait_until("the drops are told", || {
        let (text, code) = lab.ask(0, &["flows", "-o", "json"])?;
        assert_eq!(code, 0, "{text}");
        let FlowRows { flows, .. } = serde_json::from_str(&text)?;
        let dropped = flows.iter().filter(|flow| flow.event.destination.port() == PORT);
        let verdicts: Vec<_> =
            dropped.map(|flow| (flow.action.as_str(), flow.event.verdict.as_str())).collect();
        assert!(verdicts.iter().all(|verdict| *verdict == ("drop", "filtered")), "{text}");
        Ok(verdicts.len() > 100)
    })?;
    wait_until("the packets are counted", || {
        let (text, code) = lab.ask(0, &["get", "pf", "stop", "-o", "json"])?;
        assert_eq!(code, 0, "{text}");
        let status: controller::api::PacketFilterStatus =
            serde_json::from_value(serde_json::from_str::<serde_json::Value>(&text)?["status"].take())?;
        Ok(status.rules[0].packets > 100)
    })?;
    packets.last()?;
    let expiry = now()? + 3;
    let time = serde_json::to_string(&controller::status::time(expiry))?;
    lab.instances[0].write("filter.yaml", &filter(&format!(", expiresAt: {time}")))?;
    packets.come()?;
    assert!(now()? >= expiry, "it expires at {expiry}, and now it is {}", now()?);
    Ok(())
}

fn filter(more: &str) -> String {
    format!(
        "kind: PacketFilter\nmetadata: {{name: stop}}\n\
         spec: {{rules: [{{action: Drop, protocol: UDP, destinationPorts: {PORT}}}]{more}}}\n"
    )
}

/// Seconds since the epoch.
fn now() -> Result<u64, Error> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// Datagrams from the client to the first load balancer, as long as this lives.
struct Packets {
    sink: UdpSocket,
    stop: Arc<AtomicBool>,
    sender: Option<JoinHandle<()>>,
}

impl Packets {
    fn start(lab: &Lab) -> Result<Self, Error> {
        let any = Ipv4Addr::UNSPECIFIED;
        let balancer = lab.balancer(0);
        let sink = balancer.namespace.enter(|| UdpSocket::bind((any, PORT)))??;
        sink.set_read_timeout(Some(QUIET))?;
        let source = lab.topology.client.namespace.enter(|| UdpSocket::bind((any, 0)))??;
        let (stop, to) = (Arc::new(AtomicBool::new(false)), (balancer.ipv4, PORT));
        let stopped = stop.clone();
        let sender = thread::spawn(move || {
            while !stopped.load(Relaxed) {
                // One that is lost is lost.
                let _ = source.send_to(b"lab", to);
                thread::sleep(PACE);
            }
        });
        Ok(Packets { sink, stop, sender: Some(sender) })
    }

    /// Waits until packets come.
    fn come(&self) -> Result<(), Error> {
        wait_until("packets come", || Ok(self.sink.recv(&mut [0; 8]).is_ok()))
    }

    /// Waits until no more packets come; when the last one came.
    fn last(&self) -> Result<Instant, Error> {
        let mut last = Instant::now();
        wait_until("no packets come any more", || {
            let comes = self.sink.recv(&mut [0; 8]).is_ok();
            last = if comes { Instant::now() } else { last };
            Ok(!comes)
        })?;
        Ok(last)
    }
}

impl Drop for Packets {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        // It says nothing, and does not panic.
        let _ = self.sender.take().map(JoinHandle::join);
    }
}
