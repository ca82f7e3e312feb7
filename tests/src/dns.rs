//! A DNS client (RFC 1035): what a name stands for, asked over UDP.
use crate::Error;
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Types of records: A and AAAA.
const RECORDS: [u16; 2] = [1, 28];

/// The addresses of both families behind a name, in order, as the server at an IPv4 address says; none: it says that there is no
/// such name. An error: it says neither, or nothing.
pub fn resolve(server: SocketAddr, name: &str) -> Result<Vec<IpAddr>, Error> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.connect(server)?;
    let mut found = Vec::new();
    for record in RECORDS {
        socket.send(&question(name, record))?;
        let mut answer = [0; 1232];
        let length = socket.recv(&mut answer)?;
        let addresses = addresses(&answer[..length], record);
        found.extend(addresses.ok_or_else(|| format!("no answer for {name}: {:?}", &answer[..length]))?);
    }
    found.sort_unstable();
    Ok(found)
}

/// A query for the records of one type; its id is the type.
fn question(name: &str, record: u16) -> Vec<u8> {
    let [high, low] = record.to_be_bytes();
    let mut message = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, high, low, 0, 1]);
    message
}

/// The addresses in an answer to such a query, or none if there is no such name (NXDOMAIN); `None`: it is nothing of that kind.
fn addresses(message: &[u8], record: u16) -> Option<Vec<IpAddr>> {
    let number = |at: usize| Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?));
    let name_end = |mut at: usize| loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length >= 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    };
    let (id, code, answers) = (number(0)?, number(2)? & 0xf, number(6)?);
    let mut at = name_end(12)? + 4;
    let mut found = Vec::new();
    for _ in 0..answers {
        at = name_end(at)?;
        let end = at + 10 + usize::from(number(at + 8)?);
        let data = message.get(at + 10..end)?;
        found.extend(match number(at)? {
            1 => Some(IpAddr::from(<[u8; 4]>::try_from(data).ok()?)),
            28 => Some(IpAddr::from(<[u8; 16]>::try_from(data).ok()?)),
            _ => None,
        });
        at = end;
    }
    let is_final = matches!((code, found.is_empty()), (0, false) | (3, true));
    (id == record && is_final).then_some(found)
}
