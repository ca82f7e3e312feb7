//! What an operator sees of a session beside its state: counts, the last error, restarts. JSON keys are camelCase and
//! stable.
use crate::{
    Time,
    config::{Family, GracefulRestartStatus},
    fsm::Down,
    wire::{EncodeError, Message, Notification, UpdateError},
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt};

/// Messages by type (RFC 4271 section 4, RFC 2918).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names are the RFC's")]
pub struct MessageCounts {
    pub open: u64,
    pub update: u64,
    pub notification: u64,
    pub keepalive: u64,
    pub route_refresh: u64,
}

impl MessageCounts {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.by_type().iter().map(|(_, count)| count).sum()
    }

    /// Each type by its JSON key.
    pub fn by_type(&self) -> [(&'static str, u64); 5] {
        let MessageCounts { open, update, notification, keepalive, route_refresh } = *self;
        [
            ("open", open),
            ("update", update),
            ("notification", notification),
            ("keepalive", keepalive),
            ("routeRefresh", route_refresh),
        ]
    }

    /// `count` more messages of this type.
    pub(crate) fn add(&mut self, message: &Message, count: u64) {
        *match message {
            Message::Open(_) => &mut self.open,
            Message::Update(_) | Message::EndOfRib(_) => &mut self.update,
            Message::Notification(_) => &mut self.notification,
            Message::Keepalive => &mut self.keepalive,
            Message::RouteRefresh(_) => &mut self.route_refresh,
        } += count;
    }
}

impl std::ops::AddAssign for MessageCounts {
    fn add_assign(&mut self, other: Self) {
        self.open += other.open;
        self.update += other.update;
        self.notification += other.notification;
        self.keepalive += other.keepalive;
        self.route_refresh += other.route_refresh;
    }
}

/// Prefixes of one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrefixCounts {
    /// In the UPDATEs of this session: announced, each time counted.
    pub received: u64,
    /// Of these, not taken in: by the import policy, or for they lead through ourselves.
    pub refused: u64,
    /// In the UPDATEs of this session: withdrawn, each time counted.
    pub withdrawn: u64,
    /// Accepted ones that are there now, stale ones of a session before included.
    pub accepted: u64,
    /// Refused ones that are kept now, for the peer cannot be asked for them again or a station wants to know.
    pub kept: u64,
    /// Announced to the peer now.
    pub sent: u64,
}

impl PrefixCounts {
    /// Another session: its UPDATEs count from now on.
    pub(crate) fn restart(&mut self) {
        *self = PrefixCounts { accepted: self.accepted, kept: self.kept, ..PrefixCounts::default() };
    }
}

/// The last error of a peer in its parts; [`PeerStatus::last_error`](crate::config::PeerStatus::last_error) is the same
/// in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorStatus {
    /// `sent` or `received`: who said it in a NOTIFICATION. `connection`: TCP failed. `handled`: an UPDATE had errors that
    /// did not end the session (RFC 7606). `unsendable`: a route of ours does not fit into a message.
    pub direction: String,
    /// Error code of the NOTIFICATION; of `handled`, of that which it might have been.
    pub code: Option<u8>,
    /// Its error subcode.
    pub subcode: Option<u8>,
    /// Both by name, `Cease/Administrative Shutdown`; else what is wrong, in words.
    pub reason: String,
    /// What the operator of the other side wrote (RFC 9003), or ours; control characters are escaped.
    pub communication: Option<String>,
    /// Seconds since then; none: nobody looked at the clock.
    pub since_seconds: Option<u64>,
}

/// Graceful restart, our side of it (RFC 4724 section 4.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalRestartStatus {
    /// How long the peer shall keep our routes while we are away, seconds.
    pub restart_seconds: u16,
    /// Families whose routes the peer shall keep.
    pub families: BTreeSet<Family>,
    /// Our OPEN of this session said that we have just restarted (R).
    pub restarting: bool,
    /// After our start: what peers told is not passed on and End-of-RIB not said yet.
    pub deferring: bool,
    /// Seconds until that ends at the latest; none: it has ended.
    pub deferral_seconds: Option<u64>,
}

/// Where graceful restart with a peer stands, in a word: `Disabled` (one side does not offer it), `Ready`, `Helping` (routes of
/// a session that is gone are kept for it), `Restarting` (we were, and are not done).
pub(crate) fn restart_state(
    local: Option<&LocalRestartStatus>,
    remote: Option<&GracefulRestartStatus>,
) -> &'static str {
    match (local, remote) {
        (Some(_), Some(remote)) if remote.stale_prefixes > 0 => "Helping",
        (Some(local), _) if local.deferring => "Restarting",
        (Some(_), Some(_)) => "Ready",
        _ => "Disabled",
    }
}

/// What went wrong last with a peer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum LastError {
    Down(Down),
    Handled(UpdateError),
    /// A path that is one too many of its prefix is not taken; so many are.
    TooManyPaths(IpNet, usize),
    Unsendable(EncodeError),
}

impl LastError {
    pub(crate) fn status(&self, since: Option<Time>, now: Time) -> ErrorStatus {
        let (direction, notification, words) = match self {
            LastError::Down(Down::Sent(notification)) => ("sent", Some(notification), None),
            LastError::Down(Down::Received(notification)) => ("received", Some(notification), None),
            LastError::Down(Down::Tcp(reason)) => ("connection", None, Some(reason.clone())),
            LastError::Handled(error) => ("handled", Some(&error.notification), None),
            LastError::TooManyPaths(..) => ("handled", None, Some(self.to_string())),
            LastError::Unsendable(error) => ("unsendable", None, Some(error.to_string())),
        };
        // A Hard Reset is an envelope (RFC 8538 section 3.1): the text is inside.
        let inside = notification.and_then(Notification::softened);
        ErrorStatus {
            direction: direction.to_owned(),
            code: notification.map(|said| said.reason.code),
            subcode: notification.map(|said| said.reason.subcode),
            reason: match (words, notification, &inside) {
                (Some(words), ..) => words,
                (None, Some(said), Some(inside)) => format!("{} ({})", said.reason, inside.reason),
                (None, said, _) => said.map(|said| said.reason.to_string()).unwrap_or_default(),
            },
            communication: inside.as_ref().or(notification).and_then(Notification::communication),
            since_seconds: since.map(|since| now.saturating_sub(since).as_secs()),
        }
    }
}

impl fmt::Display for LastError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LastError::Down(Down::Sent(notification)) => write!(f, "sent {notification}"),
            LastError::Down(Down::Received(notification)) => write!(f, "received {notification}"),
            LastError::Down(Down::Tcp(reason)) => write!(f, "connection: {reason}"),
            LastError::Handled(error) => write!(f, "received UPDATE, handled: {error}"),
            LastError::TooManyPaths(prefix, limit) => {
                write!(f, "more than {limit} paths of {prefix}: not taken")
            }
            LastError::Unsendable(error) => write!(f, "cannot announce: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Reason;
    use std::time::Duration;

    #[test]
    fn an_error_has_its_parts() {
        let shutdown = Notification::with_communication(Reason::ADMINISTRATIVE_SHUTDOWN, "bye");
        let parts = |down| {
            let status = LastError::Down(down).status(Some(Duration::from_secs(3)), Duration::from_secs(10));
            assert_eq!(status.since_seconds, Some(7));
            (status.direction, status.code.zip(status.subcode), status.reason, status.communication)
        };
        let text = |text: &str| text.to_owned();
        assert_eq!(
            parts(Down::Sent(shutdown.clone())),
            (text("sent"), Some((6, 2)), text("Cease/Administrative Shutdown"), Some(text("bye")))
        );
        assert_eq!(
            parts(Down::Received(shutdown.hardened())),
            (
                text("received"),
                Some((6, 9)),
                text("Cease/Hard Reset (Cease/Administrative Shutdown)"),
                Some(text("bye"))
            )
        );
        assert_eq!(parts(Down::Tcp(text("reset"))), (text("connection"), None, text("reset"), None));
    }

    #[test]
    fn the_state_of_a_restart_in_a_word() {
        let local = |deferring| LocalRestartStatus {
            restart_seconds: 120,
            families: BTreeSet::new(),
            restarting: false,
            deferring,
            deferral_seconds: None,
        };
        let remote = |stale_prefixes| GracefulRestartStatus { stale_prefixes, ..Default::default() };
        for (local, remote, state) in [
            (None, Some(remote(0)), "Disabled"),
            (Some(local(false)), None, "Disabled"),
            (Some(local(true)), None, "Restarting"),
            (Some(local(true)), Some(remote(1)), "Helping"),
            (Some(local(false)), Some(remote(0)), "Ready"),
        ] {
            assert_eq!(restart_state(local.as_ref(), remote.as_ref()), state);
        }
    }
}
