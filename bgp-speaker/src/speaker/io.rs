//! What goes into the speaker, and what comes out of it.
use super::Link;
use crate::{
    InterfaceName, PeerId,
    bfd::Path as WatchedPath,
    config::State,
    connection::{ConnectionId, Endpoints},
    transport::Transport,
};
use std::net::{IpAddr, SocketAddr};

/// What happens to the speaker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input<'a> {
    /// The connection of an [`Output::Connect`] is there.
    Connected {
        /// Its name.
        connection: ConnectionId,
        /// Its ends.
        endpoints: Endpoints,
    },
    /// It could not be made.
    ConnectFailed {
        /// Its name.
        connection: ConnectionId,
        /// Why, in words.
        reason: String,
    },
    /// A connection came in; its name is from [`Speaker::accept_id`](super::Speaker::accept_id).
    Accepted {
        /// Its name.
        connection: ConnectionId,
        /// Its ends; the peer is known by the remote address.
        endpoints: Endpoints,
    },
    /// Bytes came.
    Received {
        /// On which connection.
        connection: ConnectionId,
        /// Any part of the stream.
        bytes: &'a [u8],
    },
    /// The peer closed the connection, or TCP gave it up.
    Closed {
        /// Which connection.
        connection: ConnectionId,
        /// Why, in words.
        reason: String,
    },
    /// The path to a peer failed: its BFD session was up and is down (see [`Output::Watch`]).
    PathFailed {
        /// The neighbour.
        peer: PeerId,
        /// Whether the peer's BFD does not share the fate of its control plane (the C bit, RFC 5882 section 4.3).
        control_plane_independent: bool,
    },
    /// What is known of an interface of [`Speaker::interfaces`](super::Speaker::interfaces).
    Link {
        /// Its name.
        interface: InterfaceName,
        /// How it is; none: it is not there, or down.
        link: Option<Link>,
    },
    /// The time of [`Speaker::next_deadline`](super::Speaker::next_deadline) has come.
    Tick,
}

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Dial, and answer with [`Input::Connected`] or [`Input::ConnectFailed`].
    Connect {
        /// Name of the connection to be.
        connection: ConnectionId,
        /// Where to.
        remote: SocketAddr,
        /// Address to dial from; none: any.
        local: Option<IpAddr>,
        /// What to make it with.
        transport: Transport,
    },
    /// Write `last` (after what was taken from [`Speaker::transmit`](super::Speaker::transmit) before), then close; or stop dialing. The name
    /// means nothing to the speaker any more.
    Close {
        /// Which connection.
        connection: ConnectionId,
        /// Last messages; may be empty.
        last: Vec<u8>,
    },
    /// [`Speaker::transmit`](super::Speaker::transmit) has something for this connection.
    Transmit {
        /// Which connection.
        connection: ConnectionId,
    },
    /// Watch the path to a peer in this way from now on, and tell [`Input::PathFailed`].
    Watch {
        /// The neighbour.
        peer: PeerId,
        /// The path; none: it is not to be watched any more.
        path: Option<WatchedPath>,
    },
    /// The kernel's routing table is to change: see [`Speaker::install`](super::Speaker::install).
    Install,
    /// [`Speaker::report`](super::Speaker::report) has something for this station.
    Report {
        /// Which station.
        station: SocketAddr,
    },
    /// The state of a peer is another one now.
    StateChanged {
        /// The neighbour.
        peer: PeerId,
        /// Its state.
        state: State,
        /// The last error of the peer, in words.
        last_error: Option<String>,
    },
}
