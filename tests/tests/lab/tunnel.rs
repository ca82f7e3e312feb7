//! Tunnels whose outer source is the flow's.
use crate::restart::{add_echo, ipip};
use lab::{Error, Lab, Routing, wait_until};
use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

/// Whether an echo answers on a new connection of the client.
fn echo_answers(lab: &Lab, target: SocketAddr) -> bool {
    let exchange = move || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"echo")?;
        let mut back = [0; 4];
        stream.read_exact(&mut back)?;
        Ok(back == *b"echo")
    };
    matches!(lab.topology.client.namespace.enter(exchange), Ok(Ok(true)))
}

/// The router sees the sources of many flows, all of them of the prefixes.
#[test]
fn outer_sources_are_of_the_prefix_and_vary_with_the_flow() -> Result<(), Error> {
    const PREFIXES: [(&str, &str); 2] =
        [("198.18.7.0/24", "198.18.7."), ("2001:db8:7::/112", "2001:db8:7::")];
    let mut lab = Lab::prepare(Routing::Static)?;
    lab.instances[0].arguments = PREFIXES
        .iter()
        .flat_map(|(prefix, _)| ["--tunnel-source".to_owned(), (*prefix).to_owned()])
        .collect();
    add_echo(&lab)?;
    lab.start_fairlead()?;
    let path = lab.topology.sandbox.dir().join("tunnel.txt");
    let mut tcpdump = Command::new("tcpdump");
    tcpdump.args(["-n", "-l", "-i", "any", "ip proto 4 or ip6 proto 41"]);
    let _capture = lab.topology.router.namespace.spawn(tcpdump, &path)?;
    for target in ipip() {
        wait_until("the echo answers", || Ok(echo_answers(&lab, target)))?;
    }
    let targets = ipip();
    for (target, (_, begin)) in targets.iter().zip(PREFIXES) {
        wait_until("many sources are seen", || {
            assert!(echo_answers(&lab, *target), "{target}");
            let text = std::fs::read_to_string(&path)?;
            let is_from = |word: &&str| word.starts_with(begin);
            let sources: BTreeSet<&str> =
                text.lines().filter_map(|line| line.split_whitespace().find(is_from)).collect();
            Ok(sources.len() >= 8)
        })?;
    }
    Ok(())
}
