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

/// How long the running instance has to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// `peers`
pub(crate) fn peers(socket: &Path, format: Format) -> Result<(), Failure> {
    show(socket, Question::Peers, format, |peers: Vec<PeerStatus>| {
        let head = ["PEER", "AS", "STATE", "SINCE", "RECEIVED", "SENT", "LAST ERROR"];
        table(
            head,
            peers.into_iter().map(|peer| {
                [
                    peer.address.to_string(),
                    peer.asn.0.to_string(),
                    peer.state,
                    format!("{}s", peer.since_seconds),
                    peer.prefixes_received.to_string(),
                    peer.prefixes_sent.to_string(),
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
    let answer = ask(socket, question).map_err(|error| unreachable(error.to_string()))?;
    let shown = match format {
        Format::Json => answer,
        Format::Table => {
            table(serde_json::from_str(&answer).map_err(|error| unreachable(error.to_string()))?)
        }
    };
    // A reader that has had enough is no failure.
    let _: Result<_, _> = std::io::stdout().write_all(shown.as_bytes());
    Ok(())
}

fn ask(socket: &Path, question: Question) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{}\n", serde_json::to_string(&question)?).as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.is_empty() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer)
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
