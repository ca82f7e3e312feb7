//! `fairlead flows`: what becomes of packets, as it happens.
use super::{
    Failure, Question,
    output::{Format, json, or_dash, print, row, table},
    say,
};
use crate::{
    api::packet::IpProtocol,
    serve::rows::{FlowLine, FlowRow, FlowRows},
};
use std::{mem, net::SocketAddr, ops::ControlFlow};

/// Shows what becomes of packets: all that are dropped or begin a flow, and a sample of the others
///
/// Listens for a second, or with --follow until it is stopped. Packets are sampled (one in 256) only while somebody
/// listens. TIME is in UTC. NEW packets begin a flow. VERDICT of what a PacketFilter drops names the rule. Packets that came too fast to be shown are counted on stderr; in JSON
/// a line says how many were `lost`. With --follow, JSON is one object a line.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Go on until stopped.
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    question: Question,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self.follow {
            true => self.follow(),
            false => self.moment(),
        }
    }

    fn moment(&self) -> Result<(), Failure> {
        let rows: FlowRows = self.question.instance.ask("/v1/flows")?;
        match self.question.output {
            Format::Json => print(&json(&rows)?),
            Format::Table => {
                print(&table(&HEADER, rows.flows.iter().map(|flow| cells(flow).into())))?;
                say_lost(rows.lost);
                Ok(())
            }
        }
    }

    fn follow(&self) -> Result<(), Failure> {
        let mut header = row(&HEADER.map(str::to_owned), &WIDTHS);
        let ended = self.question.instance.follow("/v1/flows?follow=true", |line: FlowLine| {
            let text = match (self.question.output, &line) {
                (Format::Json, line) => json_line(line),
                // The header once, when it is clear that there is an instance.
                (Format::Table, FlowLine::Flow(flow)) => {
                    Ok(mem::take(&mut header) + &row(&cells(flow), &WIDTHS))
                }
                (Format::Table, FlowLine::Lost { lost }) => {
                    say_lost(*lost);
                    Ok(String::new())
                }
            };
            text.and_then(|text| print(&text)).map_or_else(ControlFlow::Break, ControlFlow::Continue)
        })?;
        Err(ended.unwrap_or_else(|| Failure::Unreachable("the instance has ended".to_owned())))
    }
}

const HEADER: [&str; 10] =
    ["TIME", "PROTO", "SOURCE", "DESTINATION", "VERDICT", "SERVICE", "BACKEND", "INTERFACE", "BYTES", "NEW"];

/// Of each column but the last: room for what is usual there.
const WIDTHS: [usize; 9] = [12, 6, 21, 21, 14, 32, 21, 9, 5];

fn cells(flow: &FlowRow) -> [String; 10] {
    let FlowRow { time, event, .. } = flow;
    [
        // The day is known to whom looks at it.
        time.get(11..23).unwrap_or(time).to_owned(),
        IpProtocol(event.protocol).to_string(),
        event.source.to_string(),
        event.destination.to_string(),
        match &event.filter {
            Some(rule) => format!("{} ({rule})", event.verdict),
            None => event.verdict.clone(),
        },
        or_dash(event.service.as_ref()),
        or_dash(event.backend.map(|backend| SocketAddr::new(backend.address, backend.port))),
        or_dash(event.interface.as_ref()),
        event.bytes.to_string(),
        if event.new { "yes" } else { "no" }.to_owned(),
    ]
}

fn json_line(line: &FlowLine) -> Result<String, Failure> {
    // Through `Value`, whose maps are sorted.
    let text = serde_json::to_value(line).map(|value| format!("{value}\n"));
    text.map_err(|e| Failure::No(format!("writing JSON: {e}")))
}

fn say_lost(lost: u64) {
    if lost > 0 {
        say(&format!("{lost} more packets came too fast to be shown"));
    }
}
