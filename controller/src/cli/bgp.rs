//! `fairlead bgp peers|routes`: sessions and routes of the BGP speaker.
use super::{
    Failure, Question,
    output::{age, or_dash, print, table},
};
use bgp_speaker::{
    PeerId,
    config::{PeerStatus, RouteStatus},
};
use clap::Subcommand;

/// Shows the sessions and routes of the BGP speaker
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// One line per peer: state, time in it, negotiated families, prefixes and messages
    ///
    /// UP is the time in the present state. RECEIVED and SENT count prefixes; IN and OUT count messages.
    /// FLAPS is how often an established session ended, RESTART where graceful restart stands: Disabled, Ready, Helping
    /// (routes of a session that is gone are kept), Restarting. BFD is the state of the path, if it is watched. `-o json`
    /// has everything.
    Peers {
        #[command(flatten)]
        question: Question,
    },
    /// One line per route and table: adj-in (what a peer told us), loc (what we use), adj-out (what we tell a peer)
    Routes {
        #[command(flatten)]
        question: Question,
        /// Only routes of this peer.
        #[arg(long, value_name = "ADDR|INTERFACE")]
        peer: Option<PeerId>,
    },
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        print(&match self.what {
            What::Peers { question } => {
                let peers: Vec<PeerStatus> = question.instance.ask("/v1/bgp/peers")?;
                question.shown(&peers[..], peers_table)?
            }
            What::Routes { question, peer } => {
                let mut routes: Vec<RouteStatus> = question.instance.ask("/v1/bgp/routes")?;
                routes.retain(|r| peer.is_none() || r.peer == peer);
                question.shown(&routes[..], routes_table)?
            }
        })
    }
}

fn peers_table(peers: &[PeerStatus]) -> String {
    let header = [
        "PEER",
        "ASN",
        "ROUTER-ID",
        "STATE",
        "UP",
        "FAMILIES",
        "RECEIVED",
        "SENT",
        "IN",
        "OUT",
        "FLAPS",
        "RESTART",
        "BFD",
        "LAST ERROR",
    ];
    table(
        &header,
        peers.iter().map(|p| {
            vec![
                p.id().to_string(),
                p.asn.0.to_string(),
                or_dash(p.router_id),
                p.state.clone(),
                age(p.since_seconds),
                p.families.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
                p.prefixes_received.to_string(),
                p.prefixes_sent.to_string(),
                p.messages_received.to_string(),
                p.messages_sent.to_string(),
                p.flap_count.to_string(),
                p.restart_state.clone(),
                or_dash(p.bfd.as_ref().map(|bfd| &bfd.state)),
                or_dash(p.last_error.as_ref()),
            ]
        }),
    )
}

fn routes_table(routes: &[RouteStatus]) -> String {
    let header = [
        "TABLE",
        "PEER",
        "PREFIX",
        "NEXT HOP",
        "AS PATH",
        "ORIGIN",
        "LOCAL-PREF",
        "MED",
        "COMMUNITIES",
        "BEST",
        "REASON",
    ];
    table(
        &header,
        routes.iter().map(|r| {
            vec![
                r.table.clone(),
                or_dash(r.peer),
                r.prefix.to_string(),
                or_dash(r.next_hop),
                r.as_path.clone(),
                r.origin.clone(),
                or_dash(r.local_pref),
                or_dash(r.med),
                r.communities.join(" "),
                if r.best { "yes" } else { "no" }.to_owned(),
                or_dash(r.reason.as_ref()),
            ]
        }),
    )
}
