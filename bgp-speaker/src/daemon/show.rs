//! What the running instance answers, for people and for programs.
use super::{Failure, api::Question};
use crate::Format;
use bgp_speaker::config::{PeerStatus, RouteStatus};
use serde::de::DeserializeOwned;
use std::{
    fmt::Write as _,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// Octets read at once.
const CHUNK: usize = 64 * 1024;
/// How long the running instance has to answer, or to go on with it.
const PATIENCE: Duration = Duration::from_secs(10);

/// `peers`
pub(crate) fn peers(socket: &Path, format: Format) -> Result<(), Failure> {
    show(socket, Question::Peers, format, |peers: Vec<PeerStatus>| {
        let head =
            ["PEER", "AS", "STATE", "SINCE", "RECEIVED", "SENT", "FLAPS", "RESTART", "BFD", "LAST ERROR"];
        table(
            head,
            peers.into_iter().map(|peer| {
                [
                    match peer.interface {
                        Some(interface) => format!("{interface} {}", peer.address),
                        None => peer.address.to_string(),
                    },
                    peer.asn.0.to_string(),
                    peer.state,
                    format!("{}s", peer.since_seconds),
                    peer.prefixes_received.to_string(),
                    peer.prefixes_sent.to_string(),
                    peer.flap_count.to_string(),
                    peer.restart_state,
                    text(peer.bfd.map(|bfd| bfd.state)),
                    peer.last_error.unwrap_or_default(),
                ]
            }),
        )
    })
}

/// `routes`
pub(crate) fn routes(socket: &Path, format: Format) -> Result<(), Failure> {
    show(socket, Question::Routes, format, |routes: Vec<RouteStatus>| {
        let head = [
            "PREFIX",
            "TABLE",
            "PEER",
            "BEST",
            "NEXT HOP",
            "AS PATH",
            "ORIGIN",
            "PREF",
            "MED",
            "COMMUNITIES",
            "REASON",
        ];
        table(
            head,
            routes.into_iter().map(|route| {
                [
                    route.prefix.to_string(),
                    route.table,
                    text(route.peer),
                    if route.best { "*" } else { "" }.to_owned(),
                    text(route.next_hop),
                    route.as_path,
                    route.origin,
                    text(route.local_pref),
                    text(route.med),
                    route.communities.join(" "),
                    route.reason.unwrap_or_default(),
                ]
            }),
        )
    })
}

fn text(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

fn show<T: DeserializeOwned>(
    socket: &Path,
    question: Question,
    format: Format,
    table: impl FnOnce(T) -> String,
) -> Result<(), Failure> {
    let unreachable =
        |reason: String| Failure::Unreachable(format!("no answer from {}: {reason}", socket.display()));
    match format {
        Format::Json => ask(socket, question, &mut Open(std::io::stdout().lock())),
        Format::Table => {
            let mut answer = Vec::new();
            ask(socket, question, &mut answer).and_then(|()| {
                let shown = table(serde_json::from_slice(&answer)?);
                Open(std::io::stdout().lock()).write_all(shown.as_bytes())
            })
        }
    }
    .map_err(|error| unreachable(error.to_string()))
}

/// Standard output. A reader that has had enough is no failure.
struct Open<W>(W);

impl<W: Write> Write for Open<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(self.0.write(bytes).unwrap_or(bytes.len()))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// Copies the answer as it comes, for that of a whole table is long.
fn ask(socket: &Path, question: Question, out: &mut impl Write) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{}\n", serde_json::to_string(&question)?).as_bytes())?;
    let (mut chunk, mut last) = (vec![0; CHUNK], None);
    loop {
        match stream.read(&mut chunk)? {
            0 if last == Some(b'\n') => return Ok(()),
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            octets => {
                out.write_all(&chunk[..octets])?;
                last = chunk[..octets].last().copied();
            }
        }
    }
}

/// Columns as wide as what is in them, two spaces apart.
fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let widths: Vec<usize> =
        (0..N).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    let mut shown = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a string does not fail.
            let _: Result<_, _> = write!(line, "{cell:width$}  ");
        }
        shown.push_str(line.trim_end());
        shown.push('\n');
    }
    shown
}
