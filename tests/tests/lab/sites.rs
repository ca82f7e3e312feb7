//! Two sites stand in for each other: pods, nodes, API servers, the link and a whole site fail, while a client at each site has
//! requests. None fails for which a healthy backend was within reach and known to be so.
use controller::demo::http::{Sample, TIMEOUT, Traffic};
use lab::{
    Error, WEB, address, failures,
    probe::Probe,
    sites::{Loss, NODES, Sites},
    wait_until, watch,
};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

const EAST: usize = 0;
const WEST: usize = 1;
/// So many requests tell a share.
const ENOUGH: usize = 120;
const SECOND: Duration = Duration::from_secs(1);
/// So long a client asks again and again: five times a request that nobody answers.
const PERSISTENCE: Duration = Duration::from_secs(5 * TIMEOUT.as_secs());
/// What a link of a cluster watches of the other one.
const WATCHED: [&str; 5] = ["serviceexports", "services", "endpointslices", "nodes", "addresspools"];

/// The clients of both sites at work.
struct Clients([Traffic; 2]);

impl Clients {
    fn start(sites: &Sites) -> Self {
        Clients(sites.sites.each_ref().map(|site| site.traffic()))
    }

    /// What they have asked since the last look, and ask for a while from now on: none of it fails. Gives the shares of the
    /// requests that the other site has answered.
    fn watch(&mut self, time: Duration) -> Result<[f64; 2], Error> {
        for traffic in &mut self.0 {
            assert_eq!(failures(&watch(traffic, Duration::ZERO)?), [""; 0]);
        }
        let [east, west] = &mut self.0;
        let mut samples = [watch(east, time)?, west.until(Instant::now())?];
        wait_until("there are enough requests", || {
            for (traffic, samples) in [&mut *east, &mut *west].into_iter().zip(&mut samples) {
                samples.extend(watch(traffic, Duration::from_millis(50))?);
                assert_eq!(failures(samples), [""; 0], "of {}", samples.len());
            }
            Ok(samples.iter().all(|samples| samples.len() > ENOUGH))
        })?;
        let [in_east, in_west] = &samples;
        Ok([share(in_east, "west"), share(in_west, "east")])
    }

    /// The way to the other site loses part of the packets: what the client of the east asks for in this time may have to be sent
    /// again by TCP, which may take longer than a request waits ([`TIMEOUT`]), or the backend that has it may be given up. Who got
    /// no answer asks again; nobody is without one for longer than [`PERSISTENCE`]. The client of the west, which needs nothing
    /// from there, notices nothing.
    fn persist(&mut self, time: Duration) -> Result<(), Error> {
        let [east, west] = &mut self.0;
        let mut samples = watch(east, time)?;
        assert_eq!(failures(&watch(west, Duration::ZERO)?), [""; 0]);
        // By client: since when it has had no answer.
        let (mut failing, mut longest) = (BTreeMap::new(), Duration::ZERO);
        let (mut all, mut failed) = (0, 0);
        wait_until("all who had no answer have asked again and got one", || {
            for sample in samples.drain(..) {
                all += 1;
                if sample.answer.is_err() {
                    failed += 1;
                    failing.entry(sample.worker).or_insert(sample.started);
                } else if let Some(since) = failing.remove(&sample.worker) {
                    longest = longest.max(sample.ended - since);
                }
            }
            samples.extend(watch(east, Duration::from_millis(50))?);
            Ok(failing.is_empty() && all > ENOUGH)
        })?;
        println!("{failed} of {all} requests were tried again, for {longest:.1?} at most");
        assert!(longest < PERSISTENCE, "{longest:?} without an answer, of {all} requests");
        Ok(())
    }

    /// Something went without a word. Who was using it has lost requests until that was noticed, which is by now; the client of
    /// the other site has not.
    fn forgive(&mut self, site: usize, what: &str) -> Result<(), Error> {
        let lost = watch(&mut self.0[site], Duration::ZERO)?;
        println!("{what}: {} of {} requests were lost", failures(&lost).len(), lost.len());
        assert_eq!(failures(&watch(&mut self.0[1 - site], Duration::ZERO)?), [""; 0]);
        Ok(())
    }
}

/// Share of the requests that pods of a site have answered.
fn share(samples: &[Sample], site: &str) -> f64 {
    let by = |sample: &&Sample| sample.answer.as_ref().is_ok_and(|pod| pod.starts_with(site));
    samples.iter().filter(by).count() as f64 / samples.len() as f64
}

/// Shares are right when they differ by no more than chance.
fn assert_shares(shares: [f64; 2], want: [f64; 2]) {
    let is_near = |(share, want): (f64, f64)| match want {
        0.0 | 1.0 => share == want,
        _ => (share - want).abs() < 0.2,
    };
    assert!(
        shares.into_iter().zip(want).all(is_near),
        "{shares:?} of the requests, not {want:?}, went abroad"
    );
}

/// Traffic spills over by degrees and comes back; a cluster is drained; one out of reach leaves by degrees; an API server that is
/// lost moves nothing; and what is lost in one direction only is noticed.
#[test]
fn traffic_spills_over_by_degrees_and_comes_back() -> Result<(), Error> {
    let mut lab = Sites::start()?;
    for site in [EAST, WEST] {
        lab.wait_used(site, |pod| pod.at.0 == site)?;
    }
    let mut clients = Clients::start(&lab);
    assert_shares(clients.watch(SECOND)?, [0.0, 0.0]);

    // The pods of the east fail one after the other, and come back at once.
    for failed in 1..=4 {
        lab.sites[EAST].stop_server(failed - 1);
        lab.wait_used(EAST, |pod| pod.is_up())?;
        clients.forgive(EAST, "a pod failed")?;
        assert_shares(clients.watch(SECOND)?, [failed as f64 / 4.0, 0.0]);
    }
    lab.sites[EAST].start_servers(&lab.sandbox)?;
    lab.wait_used(EAST, |pod| pod.at.0 == EAST)?;
    assert_shares(clients.watch(SECOND)?, [0.0, 0.0]);
    // Two leave in order: they are gone from the slices. What is left is healthy, so nothing spills over.
    lab.sites[EAST].write_slices(|pod| pod >= 2)?;
    lab.wait_used(EAST, |pod| pod.at == (EAST, 1))?;
    assert_shares(clients.watch(SECOND)?, [0.0, 0.0]);
    lab.sites[EAST].write_slices(|_| true)?;
    lab.wait_used(EAST, |pod| pod.at.0 == EAST)?;

    // Half of the traffic goes west. The whole west is drained, and taken back.
    for pod in 0..2 {
        lab.sites[EAST].stop_server(pod);
    }
    lab.wait_used(EAST, |pod| pod.is_up())?;
    clients.forgive(EAST, "two pods failed")?;
    lab.sites[EAST].set_link(&json!({"weight": 0}))?;
    lab.wait_used(EAST, |pod| pod.at.0 == EAST && pod.is_up())?;
    assert_shares(clients.watch(SECOND)?, [0.0, 0.0]);
    lab.sites[EAST].set_link(&json!({"weight": 1}))?;
    lab.wait_used(EAST, |pod| pod.is_up())?;

    // Its API server goes down: that moves nothing.
    lab.sites[WEST].plane.stop_api_server();
    lab.sites[EAST].wait_link("Kept")?;
    assert_shares(clients.watch(2 * SECOND)?, [0.5, 0.0]);
    lab.wait_used(EAST, |pod| pod.is_up())?;
    lab.sites[WEST].plane.start_api_server()?;
    lab.sites[EAST].wait_link("Imported")?;
    // Both clusters go on: one pod of the west goes and comes.
    lab.sites[WEST].write_slices(|pod| pod != 0)?;
    let gone = lab.sites[WEST].pods[0].host.name.clone();
    lab.wait_used(EAST, |pod| pod.is_up() && pod.host.name != gone)?;
    lab.wait_used(WEST, |pod| pod.at.0 == WEST && pod.host.name != gone)?;
    lab.sites[WEST].write_slices(|_| true)?;
    lab.wait_used(WEST, |pod| pod.at.0 == WEST)?;
    lab.wait_used(EAST, |pod| pod.is_up())?;
    assert_shares(clients.watch(SECOND)?, [0.5, 0.0]);

    lab.sites[EAST].start_servers(&lab.sandbox)?;
    lab.wait_used(EAST, |pod| pod.at.0 == EAST)?;
    an_agent_goes_on_without_its_api_server(&mut lab, &mut clients)?;
    part_of_the_packets_is_lost(&mut lab, &mut clients)?;
    a_partition_lasts_a_minute(&mut lab, &mut clients)?;

    // What the west sends is lost: its pods do not answer any more, nor does its API server.
    lab.lose(Loss::FromWest)?;
    lab.wait_used(EAST, |pod| pod.at.0 == EAST && pod.is_up())?;
    clients.forgive(EAST, "the west is heard no more")?;
    lab.sites[EAST].wait_link("Stale")?;
    assert_shares(clients.watch(SECOND)?, [0.0, 0.0]);
    lab.lose_nothing()?;
    lab.wait_used(EAST, |pod| pod.is_up())?;
    lab.sites[EAST].wait_link("Imported")?;
    assert_shares(clients.watch(SECOND)?, [0.5, 0.0]);
    Ok(())
}

/// A node of the east cannot reach its API server: what it has installed goes on, and its checks act. What is declared meanwhile
/// it learns afterwards, and no route is another in all this time.
fn an_agent_goes_on_without_its_api_server(lab: &mut Sites, clients: &mut Clients) -> Result<(), Error> {
    let before = (lab.sites[EAST].route_versions()?, lab.sites[EAST].lost_sessions()?);
    lab.sites[EAST].cut_off(0)?;
    assert_shares(clients.watch(SECOND)?, [0.0, 0.0]);
    for pod in 0..2 {
        lab.sites[EAST].stop_server(pod);
    }
    lab.wait_used(EAST, |pod| pod.is_up())?;
    clients.forgive(EAST, "two pods failed")?;
    assert_shares(clients.watch(SECOND)?, [0.5, 0.0]);
    // The other node learns that a pod of the west goes; this one does not, and the pod answers it all the same.
    let gone = lab.sites[WEST].pods[0].host.addresses();
    lab.sites[WEST].write_slices(|pod| pod != 0)?;
    wait_until("the other node knows better", || {
        Ok(gone.iter().all(|pod| !lab.sites[EAST].used(1).is_ok_and(|used| used.contains(pod))))
    })?;
    let used = lab.sites[EAST].used(0)?;
    assert!(gone.iter().all(|pod| used.contains(pod)), "{used:?}");
    assert_shares(clients.watch(SECOND)?, [0.5, 0.0]);
    lab.sites[EAST].reconnect(0)?;
    let healed = Instant::now();
    lab.wait_used(EAST, |pod| pod.is_up() && !gone.iter().any(|gone| pod.host.addresses().contains(gone)))?;
    println!("an agent has caught up {:.1?} after its API server is back", healed.elapsed());
    lab.sites[WEST].write_slices(|_| true)?;
    lab.wait_used(EAST, |pod| pod.is_up())?;
    lab.wait_used(WEST, |pod| pod.at.0 == WEST)?;
    assert_shares(clients.watch(SECOND)?, [0.5, 0.0]);
    assert_eq!((lab.sites[EAST].route_versions()?, lab.sites[EAST].lost_sessions()?), before);
    lab.sites[EAST].start_servers(&lab.sandbox)?;
    lab.wait_used(EAST, |pod| pod.at.0 == EAST)
}

/// A fifth of the packets between the sites is lost, of both directions and of one. While each site has healthy pods of its own,
/// no request notices; where half of them are down, none fails for good. What the sites have of each other is whole afterwards.
fn part_of_the_packets_is_lost(lab: &mut Sites, clients: &mut Clients) -> Result<(), Error> {
    let sessions =
        |lab: &Sites| -> Result<u64, Error> { lab.sites.iter().map(|site| site.lost_sessions()).sum() };
    let before = sessions(lab)?;
    for pods_are_up in [true, false] {
        for loss in [[20, 20], [0, 20]] {
            lab.lose(Loss::Part(loss))?;
            match pods_are_up {
                true => assert_shares(clients.watch(8 * SECOND)?, [0.0, 0.0]),
                false => clients.persist(8 * SECOND)?,
            }
            lab.lose_nothing()?;
        }
        let healed = Instant::now();
        for site in &mut lab.sites {
            site.wait_link("Imported")?;
            site.wait_announced(&[0, 1])?;
        }
        lab.wait_used(EAST, |pod| pod.is_up() && (pod.at.0 == EAST || !pods_are_up))?;
        println!("all is as it was {:.1?} after packets were lost", healed.elapsed());
        for pod in (0..2).filter(|_| pods_are_up) {
            lab.sites[EAST].stop_server(pod);
        }
        lab.wait_used(EAST, |pod| pod.is_up())?;
        clients.forgive(EAST, "two pods have failed, or packets are lost no more")?;
    }
    assert_shares(clients.watch(SECOND)?, [0.5, 0.0]);
    assert_eq!(sessions(lab)?, before, "sessions between routers and nodes were lost");
    Ok(())
}

/// The clusters do not see each other for a minute, and for half of it nothing at all passes between the sites: endpoints leave one
/// after the other, and are back soon after that has ended, without a rush.
fn a_partition_lasts_a_minute(lab: &mut Sites, clients: &mut Clients) -> Result<(), Error> {
    for site in &lab.sites {
        site.set_link(&json!({"staleAfterSeconds": 10}))?;
    }
    let abroad: BTreeSet<_> = lab.sites[WEST].pods.iter().flat_map(|pod| pod.host.addresses()).collect();
    let lists = |lab: &Sites| -> Result<Vec<u64>, Error> {
        WATCHED.iter().map(|resource| lab.sites[WEST].lists(resource)).collect()
    };
    let before = lists(lab)?;
    let end = Instant::now() + Duration::from_secs(60);
    lab.lose(Loss::Planes)?;
    let mut degrees = BTreeSet::new();
    wait_until("the endpoints of the west have left", || {
        degrees.insert(lab.sites[EAST].used(0)?.intersection(&abroad).count());
        Ok(degrees.contains(&0))
    })?;
    assert!(degrees.len() > 2, "they left by degrees: {degrees:?}");
    for site in &lab.sites {
        site.wait_link("Stale")?;
    }
    assert_shares(clients.watch(SECOND)?, [0.0, 0.0]);
    lab.set_cable("down")?;
    let rest = end.saturating_duration_since(Instant::now());
    assert!(rest > 20 * SECOND, "the endpoints took long to leave: {rest:?} are left of the minute");
    assert_shares(clients.watch(rest)?, [0.0, 0.0]);
    for site in &mut lab.sites {
        site.wait_announced(&[0, 1])?;
    }
    lab.lose_nothing()?;
    lab.set_cable("up")?;
    let healed = Instant::now();
    lab.wait_used(EAST, |pod| pod.is_up())?;
    println!("the endpoints of a cluster are back {:.1?} after the way to it", healed.elapsed());
    for site in &lab.sites {
        site.wait_link("Imported")?;
    }
    for ((resource, before), after) in WATCHED.iter().zip(before).zip(lists(lab)?) {
        let lists = after - before;
        assert!((1..=4).contains(&lists), "the west was asked {lists} times for all its {resource}");
    }
    assert_shares(clients.watch(SECOND)?, [0.5, 0.0]);
    Ok(())
}

/// Each site goes on by itself when the link is cut; a node that dies costs its site nothing more than the other one takes over;
/// and a site that dies is answered for by the other.
#[test]
fn a_site_answers_for_the_other() -> Result<(), Error> {
    let mut lab = Sites::start()?;
    lab.sites[EAST].stop_server(0);
    lab.wait_used(EAST, |pod| pod.is_up())?;
    lab.wait_used(WEST, |pod| pod.at.0 == WEST)?;
    let mut clients = Clients::start(&lab);
    assert_shares(clients.watch(SECOND)?, [0.25, 0.0]);

    lab.set_cable("down")?;
    lab.wait_used(EAST, |pod| pod.at.0 == EAST && pod.is_up())?;
    clients.forgive(EAST, "the link is cut")?;
    assert_shares(clients.watch(2 * SECOND)?, [0.0, 0.0]);
    for site in &mut lab.sites {
        site.wait_announced(&[0, 1])?;
    }
    lab.set_cable("up")?;
    lab.wait_used(EAST, |pod| pod.is_up())?;
    lab.sites[EAST].start_servers(&lab.sandbox)?;
    lab.wait_used(EAST, |pod| pod.at.0 == EAST)?;
    assert_shares(clients.watch(SECOND)?, [0.0, 0.0]);

    for site in &mut lab.sites {
        site.watch_nodes()?;
        site.wait_announced(&[0, 1])?;
    }
    clients.watch(SECOND)?;
    // A node of the west dies, and its pods with it.
    let probes = probes(&lab);
    lab.sites[WEST].kill_nodes(&[1])?;
    lab.sites[WEST].wait_announced(&[0])?;
    lab.wait_used(WEST, |pod| pod.at != (WEST, 1))?;
    clients.forgive(WEST, "a node is gone")?;
    assert_shares(clients.watch(SECOND)?, [0.0, 0.5]);
    tell("a node in the west is gone", probes)?;
    lab.sites[WEST].restore_node(1)?;
    lab.sites[WEST].wait_announced(&[0, 1])?;
    lab.wait_used(WEST, |pod| pod.at.0 == WEST)?;
    // Under NAT a connection that the router moves to another node breaks.
    clients.forgive(WEST, "the node is back")?;
    assert_shares(clients.watch(SECOND)?, [0.0, 0.0]);

    // All nodes of the east die at the same moment.
    let probes = self::probes(&lab);
    lab.sites[EAST].kill_nodes(&(0..NODES).collect::<Vec<_>>())?;
    lab.sites[EAST].wait_elsewhere()?;
    clients.forgive(EAST, "the east is gone")?;
    assert_shares(clients.watch(2 * SECOND)?, [1.0, 0.0]);
    tell("the east is gone", probes)?;
    for node in 0..NODES {
        lab.sites[EAST].restore_node(node)?;
    }
    lab.sites[EAST].wait_announced(&[0, 1])?;
    lab.wait_used(EAST, |pod| pod.at.0 == EAST)?;
    clients.forgive(EAST, "the east is back")?;
    assert_shares(clients.watch(SECOND)?, [0.0, 0.0]);
    Ok(())
}

/// A probe of each site's client.
fn probes(sites: &Sites) -> [Probe; 2] {
    let target = SocketAddr::new(address(WEB[0]), 80);
    sites.sites.each_ref().map(|site| Probe::start(&site.client.namespace, target))
}

/// Prints how long each client was without an answer.
fn tell(what: &str, probes: [Probe; 2]) -> Result<(), Error> {
    for (site, probe) in lab::sites::NAMES.into_iter().zip(probes) {
        let (longest, answered) = probe.stop()?;
        println!(
            "{what}: the client in the {site} was without an answer for {longest:.2?}, else had {answered}"
        );
    }
    Ok(())
}
