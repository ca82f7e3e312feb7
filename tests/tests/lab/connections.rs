//! Long-lived connections: what they survive, and what a rehash of the router breaks.
//!
//! A tunnelled flow of a clean slot is known to nobody, and every load balancer gives the same answer: it can move at
//! any time. A dirty slot, one that has moved to another backend, is a promise of each load balancer to the flows that it
//! has seen; the others do not know of it. So a router that moves flows to another load balancer (because one died, or came
//! back) can break connections, but only those of slots that are dirty, and of these
//! - *while the slot learns* those that began after it moved: the load balancer that does not know them takes them for
//!   older than the change, and sends them to the backend before;
//! - *once the slot is settled* those that began before it moved: who does not know them takes them for new.
//!
//! After a change of one backend in N about 1 of N slots is dirty. Where one of M load balancers dies then, 1 of M flows
//! moves: 1 of N × M flows breaks, of those on one side of the change. The tests below move all flows at once, and count.
use crate::restart::{add_echo, gue, ipip, is_b2, nat, weigh_b2, without_b2};
use controller::serve::rows::TraceRow;
use lab::{
    Error, Lab, Routing, WEB,
    echo::{Connections, Pace},
    wait_until,
};
use lb_bpf::trace::SlotState;
use std::net::{IpAddr, SocketAddr};

/// Connections to each address.
const COUNT: usize = 30;

/// Backends of all modes are reweighed, drained and removed and come back, and the process is killed in the middle of
/// it: no connection breaks, and no byte is wrong, whether windows are full or nearly empty.
#[test]
fn changes_of_backends_break_no_connection() -> Result<(), Error> {
    let mut lab = Lab::prepare(Routing::Static)?;
    add_echo(&lab)?;
    lab.start_fairlead()?;
    survive_changes(&mut lab, &[ipip(), gue(), nat()].concat())
}

/// Changes b2 in all ways, and kills the process of lb1 after each, while connections to these VIPs go on: some with their
/// windows full, some with them nearly empty.
pub(crate) fn survive_changes(lab: &mut Lab, vips: &[SocketAddr]) -> Result<(), Error> {
    let client = lab.topology.client.namespace.clone();
    let trickle = Connections::open(&client, vips, 12)?;
    let bulk = Connections::open_with(&client, vips, 1, Pace::BULK)?;
    let connections = &[&trickle, &bulk];
    let whole = lab.instances[0].read("echo.yaml")?;
    for (text, share) in [
        (weigh_b2(&whole, 7), 7.0 / 9.0),
        (weigh_b2(&whole, 0), 0.0),
        (whole.clone(), 1.0 / 3.0),
        (without_b2(&whole), 0.0),
        (weigh_b2(&whole, 2), 0.5),
    ] {
        set_echo(lab, 0, &text, share)?;
        go_on(connections)?;
        lab.instances[0].kill();
        go_on(connections)?;
        lab.instances[0].start()?;
        wait_until("lb1 is ready", || Ok(lab.instances[0].status()?.is_some_and(|status| status.ready)))?;
        go_on(connections)?;
    }
    trickle.close()?;
    bulk.close()?;
    Ok(())
}

/// The router spreads flows over both load balancers. One of them vanishes, process, kernel and all, and the router
/// sends its flows to the other one: a connection waits until then, and goes on.
#[test]
fn a_lost_host_breaks_no_connection_of_a_tunnel() -> Result<(), Error> {
    let mut lab = Lab::prepare(Routing::Static)?;
    add_echo(&lab)?;
    route(&lab, &[0, 1])?;
    lab.start_fairlead()?;
    let client = lab.topology.client.namespace.clone();
    let connections = Connections::open(&client, &[ipip(), gue()].concat(), COUNT)?;
    let before = forwarded(&lab)?;
    go_on(&[&connections])?;
    wait_until("both have flows", || {
        let now = forwarded(&lab)?;
        Ok((0..2).all(|balancer| now[balancer] > before[balancer]))
    })?;
    lab.topology.router.namespace.ip(&format!("link set {} down", lab.balancer(0).name))?;
    lab.instances[0].kill();
    route(&lab, &[1])?;
    go_on(&[&connections])?;
    connections.close()?;
    Ok(())
}

/// Flows begin before and after a change, and then all of them move from lb1 to lb2 while slots learn.
#[test]
fn a_rehash_while_slots_learn_breaks_what_began_since() -> Result<(), Error> {
    let (mut lab, old) = before_b2_comes(300)?;
    b2_comes(&mut lab)?;
    go_on(&[&old])?;
    let client = lab.topology.client.namespace.clone();
    let new = Connections::open(&client, &ipip(), COUNT)?;
    go_on(&[&new])?;
    let moved = Moved::predict(&lab, &[&old, &new])?;
    assert!(moved.learning > 0 && moved.settled == 0, "{moved:?}");
    let broken = moved.happen(&lab, [old, new])?;
    println!(
        "while slots learn: {} of {COUNT}×2 old and {} of {COUNT}×2 new connections broke",
        broken[0], broken[1]
    );
    assert!(broken[0] == 0 && broken[1] > 0, "{broken:?}");
    Ok(())
}

/// The same once the slots are settled.
#[test]
fn a_rehash_when_slots_are_settled_breaks_what_began_before() -> Result<(), Error> {
    let (mut lab, old) = before_b2_comes(2)?;
    b2_comes(&mut lab)?;
    go_on(&[&old])?;
    let client = lab.topology.client.namespace.clone();
    let new = Connections::open(&client, &ipip(), COUNT)?;
    let mut moved = Moved::default();
    wait_until("slots are settled", || {
        moved = Moved::predict(&lab, &[&old, &new])?;
        Ok(moved.learning == 0)
    })?;
    // Those of lb2, which knows no flow, are clean again with the next sweep.
    assert!(moved.settled > 0, "{moved:?}");
    let broken = moved.happen(&lab, [old, new])?;
    println!("settled: {} of {COUNT}×2 old and {} of {COUNT}×2 new connections broke", broken[0], broken[1]);
    assert!(broken[0] > 0 && broken[1] == 0, "{broken:?}");
    Ok(())
}

/// A lab with all packets at lb1 and connections to an echo without b2 that drains for so many seconds.
fn before_b2_comes(drain_seconds: u32) -> Result<(Lab, Connections), Error> {
    let mut lab = Lab::prepare(Routing::Static)?;
    add_echo(&lab)?;
    for instance in &lab.instances {
        let policy = |mode: &str| format!("forwarding: {{mode: {mode}}}");
        let drain = format!("{}, drainSeconds: {drain_seconds}", policy("IPIP"));
        let text = instance.read("echo.yaml")?.replace(&policy("IPIP"), &drain);
        instance.write("echo.yaml", &without_b2(&text))?;
    }
    lab.start_fairlead()?;
    let client = lab.topology.client.namespace.clone();
    let old = Connections::open(&client, &ipip(), COUNT)?;
    Ok((lab, old))
}

fn b2_comes(lab: &mut Lab) -> Result<(), Error> {
    for balancer in 0..2 {
        let text = lab.instances[balancer].read("echo.yaml")?;
        let with = text
            .replace("{address: 10.1.0.11}", "{address: 10.1.0.11}, {address: 10.1.0.12}")
            .replace("{address: \"fd00:20::11\"}", "{address: \"fd00:20::11\"}, {address: \"fd00:20::12\"}");
        set_echo(lab, balancer, &with, 1.0 / 3.0)?;
    }
    Ok(())
}

/// Writes the services of the echo and waits until b2 has this share of the slots of each.
pub(crate) fn set_echo(lab: &mut Lab, balancer: usize, text: &str, share: f64) -> Result<(), Error> {
    lab.instances[balancer].write("echo.yaml", text)?;
    lab.wait_services(balancer, |rows| {
        let mut echo = rows.iter().filter(|row| row.name.contains("/echo-"));
        echo.all(|row| {
            let slots = row.backends.iter().filter(|b| is_b2(b.address)).map(|b| b.slots).sum::<u32>();
            row.programmed && (f64::from(slots) / f64::from(row.table_size) - share).abs() < 0.02
        })
    })?;
    Ok(())
}

/// The router sends what is for the VIPs of tunnels to these load balancers, whatever was before.
fn route(lab: &Lab, balancers: &[usize]) -> Result<(), Error> {
    for vip in WEB.map(lab::address) {
        let hops =
            balancers.iter().map(|b| format!(" nexthop via {}", lab.balancer(*b).address(vip.is_ipv4())));
        lab.topology.router.namespace.ip(&format!("route replace {vip}{}", hops.collect::<String>()))?;
    }
    Ok(())
}

/// Each connection makes some rounds more.
pub(crate) fn go_on(connections: &[&Connections]) -> Result<(), Error> {
    for connections in connections {
        let rounds = connections.echoed();
        let more = 3 * connections.ends().len() as u64;
        wait_until("the connections go on", || Ok(connections.echoed() > rounds + more))?;
    }
    Ok(())
}

/// Packets of each load balancer for the tunnelled echo.
fn forwarded(lab: &Lab) -> Result<[u64; 2], Error> {
    let mut packets = [0; 2];
    for (balancer, packets) in packets.iter_mut().enumerate() {
        let rows = lab.instances[balancer].services()?.unwrap_or_default();
        let echo = rows.iter().filter(|row| row.name.contains("/echo-ipip/"));
        *packets = echo.flat_map(|row| &row.backends).map(|backend| backend.packets).sum();
    }
    Ok(packets)
}

/// What becomes of connections that move from lb1 to lb2.
#[derive(Debug, Default)]
struct Moved {
    /// Of each connection, in order, whether both would send it to the same backend.
    survives: Vec<Vec<bool>>,
    /// How often one of them found the slot learning, or settled.
    learning: usize,
    settled: usize,
}

impl Moved {
    /// Asks both what they would do.
    fn predict(lab: &Lab, connections: &[&Connections]) -> Result<Self, Error> {
        let mut moved = Moved::default();
        for connections in connections {
            let mut survives = Vec::new();
            for ends in connections.ends() {
                let (one, other) = (trace(lab, 0, ends)?, trace(lab, 1, ends)?);
                survives.push(backend(&one) == backend(&other));
                for slot in [one, other].iter().filter_map(|row| row.trace.slot.as_ref()) {
                    moved.learning += usize::from(slot.state == SlotState::Learning);
                    moved.settled += usize::from(slot.state == SlotState::Settled);
                }
            }
            moved.survives.push(survives);
        }
        Ok(moved)
    }

    /// Moves them. Gives how many broke: exactly those of which it was said.
    fn happen<const N: usize>(self, lab: &Lab, connections: [Connections; N]) -> Result<[usize; N], Error> {
        route(lab, &[1])?;
        let mut broken = [0; N];
        for ((connections, survives), broken) in connections.into_iter().zip(self.survives).zip(&mut broken) {
            let (rounds, alive) =
                (connections.echoed(), survives.iter().filter(|survives| **survives).count());
            wait_until("the others go on", || Ok(connections.echoed() > rounds + 20 * alive as u64))?;
            let ended = connections.end()?;
            let went: Vec<bool> = ended.iter().map(Result::is_ok).collect();
            assert_eq!(went, survives, "{ended:#?}");
            *broken = ended.len() - alive;
        }
        Ok(broken)
    }
}

fn trace(lab: &Lab, balancer: usize, [source, vip]: &[SocketAddr; 2]) -> Result<TraceRow, Error> {
    let path = format!("/v1/trace?proto=tcp&src={source}&dst={vip}");
    Ok(lab.instances[balancer].ask(&path)?.ok_or("nobody listens")?)
}

fn backend(row: &TraceRow) -> Option<IpAddr> {
    row.trace.backend.as_ref().map(|backend| backend.endpoint.address)
}
