//! What `fairlead trace` says, against who answers.
use controller::serve::rows::TraceRow;
use lab::{API, Error, Lab, Routing, WEB, address};
use lb_bpf::trace::Sent;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// Connections to each VIP.
const CONNECTIONS: usize = 12;

#[test]
fn a_trace_names_the_backend_that_answers() -> Result<(), Error> {
    let lab = Lab::start(Routing::Static)?;
    let backends: Vec<_> = lab.topology.backends.iter().map(|b| (b.name.clone(), b.ipv4, b.ipv6)).collect();
    let web = WEB.map(|vip| SocketAddr::new(address(vip), 80));
    let api = API.map(|vip| SocketAddr::new(address(vip), 8080));
    for (vip, verdict) in web.map(|v| (v, "encapsulated")).into_iter().chain(api.map(|v| (v, "translated"))) {
        for _ in 0..CONNECTIONS {
            let mut connection = lab.topology.client.namespace.enter(|| TcpStream::connect(vip))??;
            let source = connection.local_addr()?;
            let row = trace(&lab, source, vip)?;
            let answer = answer(&mut connection)?;
            let (who, asked) = answer.split_once(" answers ").ok_or("not a backend's answer")?;
            let backend = row.trace.backend.as_ref().ok_or("no backend")?;
            let (_, ipv4, ipv6) = backends.iter().find(|(name, ..)| name == who).ok_or("who is that?")?;
            let expected = if vip.is_ipv4() { (*ipv4).into() } else { (*ipv6).into() };
            assert_eq!(
                (backend.endpoint.address, row.trace.verdict.label()),
                (expected, verdict),
                "{row:#?}"
            );
            let seen = match row.trace.sent {
                Some(Sent::Translated { source, .. }) => source,
                _ => source,
            };
            assert_eq!(asked, seen.to_string(), "{row:#?}");
            let hop = row.trace.next_hop.as_ref().ok_or("no next hop")?;
            assert_eq!(hop.interface.as_deref(), Some("eth0"), "{row:#?}");
            let (declared, service) = (row.backend_status.as_ref(), row.trace.vip.as_ref());
            assert_eq!(declared.map(|status| status.health.as_str()), Some("Healthy"), "{row:#?}");
            assert!(declared.is_some_and(|status| status.weight.is_some()), "{row:#?}");
            let service = service.and_then(|vip| vip.service.as_ref()).ok_or("no name")?;
            assert!(service.0.starts_with("LoadBalancer/"), "{service}");
            assert!(row.trace.flow.is_some() || verdict == "encapsulated", "NAT tracks its flows: {row:#?}");
        }
    }
    let no_vip = ["trace", "--proto", "tcp", "--src", "198.51.100.2:1", "--dst", "203.0.113.10:81"];
    let (text, code) = lab.ask(0, &no_vip)?;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("not_ours") && text.contains("no service has this address"), "{text}");
    Ok(())
}

fn trace(lab: &Lab, source: SocketAddr, vip: SocketAddr) -> Result<TraceRow, Error> {
    let (source, vip) = (source.to_string(), vip.to_string());
    let (text, code) =
        lab.ask(0, &["trace", "--proto", "tcp", "--src", &source, "--dst", &vip, "-o", "json"])?;
    assert_eq!(code, 0, "{text}");
    Ok(serde_json::from_str(&text)?)
}

/// What the backend answers: its name, and where it was asked from.
fn answer(connection: &mut TcpStream) -> Result<String, Error> {
    connection.set_read_timeout(Some(Duration::from_secs(30)))?;
    connection.write_all(b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    connection.read_to_string(&mut text)?;
    let body = text.split("\r\n\r\n").nth(1).ok_or_else(|| format!("no answer: {text:?}"))?;
    Ok(body.trim().to_owned())
}
