//! Which interfaces take frames that XDP sends, asked of the kernel: generic netlink, family `netdev` (since Linux 6.3;
//! Documentation/netlink/specs/netdev.yaml). It changes at run time: a veth takes them while its peer polls, some drivers while
//! they have a program themselves.
use crate::lock::lock;
use futures::{StreamExt, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    Error,
    packet_core::{
        DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
        NetlinkMessage, NetlinkPayload, NetlinkSerializable,
    },
    proto::{self, ConnectionHandle},
    sys::{AsyncSocket, SocketAddr, protocols::NETLINK_GENERIC},
};
use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Mutex},
};
use tokio::{sync::Notify, task::AbortHandle};

/// The family that tells of families, its question, and attributes (linux/genetlink.h).
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const GROUPS: u16 = 7;
const GROUP_NAME: u16 = 1;
const GROUP_ID: u16 = 2;
/// Question, messages, attributes and a bit of the features (linux/netdev.h).
const DEV_GET: u8 = 1;
const DEV_ADDED: u8 = 2;
const DEV_CHANGED: u8 = 4;
const IFINDEX: u16 = 1;
const XDP_FEATURES: u16 = 3;
const NDO_XMIT: u64 = 4;

/// What the kernel says of interfaces, kept up to date by a task of its own.
pub(crate) struct Netdev {
    handle: ConnectionHandle<Message>,
    /// Number of the family; none: the kernel has no such family.
    family: Option<u16>,
    known: Arc<Mutex<Known>>,
    changed: Arc<Notify>,
    tasks: Vec<AbortHandle>,
}

/// What is known of the interfaces.
#[derive(Default)]
enum Known {
    /// To be read.
    #[default]
    Nothing,
    /// They are being read, and nothing has changed since.
    Asked,
    /// Those that take frames.
    Takers(BTreeSet<u32>),
}

impl Netdev {
    /// Opens the sockets, in the network namespace of the calling thread.
    pub(crate) async fn open() -> Result<Self, Error> {
        let (connection, handle, _) =
            proto::new_connection::<Message>(NETLINK_GENERIC).map_err(|_| Error::RequestFailed)?;
        let mut netdev = Netdev {
            handle,
            family: None,
            known: Arc::default(),
            changed: Arc::default(),
            tasks: vec![tokio::spawn(connection).abort_handle()],
        };
        match netdev.family().await? {
            Some((family, group)) => {
                netdev.follow(group).map_err(|_| Error::RequestFailed)?;
                netdev.family = Some(family);
            }
            None => tracing::warn!(
                "the kernel does not say which interfaces take frames from XDP (Linux 6.3 does): what goes to another \
                 interface than it came from goes through TC"
            ),
        }
        Ok(netdev)
    }

    /// The indexes of the interfaces that take frames; none as long as the kernel does not say.
    pub(crate) async fn takers(&self) -> Result<BTreeSet<u32>, Error> {
        let Some(family) = self.family else { return Ok(BTreeSet::new()) };
        match &mut *lock(&self.known) {
            Known::Takers(takers) => return Ok(takers.clone()),
            known => *known = Known::Asked,
        }
        // The kernel does not flag the answers as parts of many (NLM_F_MULTI). Who expects an acknowledgement does not stop
        // at the first one; the message that ends the dump stands for it.
        let question = Message { family, command: DEV_GET, attributes: Vec::new() };
        let answers = self.ask(question, NLM_F_DUMP | NLM_F_ACK).await?;
        let features = answers.iter().filter_map(|answer| features(&answer.attributes));
        let takers: BTreeSet<u32> = features.filter(|(_, takes)| *takes).map(|(index, _)| index).collect();
        // Else something has changed meanwhile, which may be newer than what was read: they are read again.
        if let known @ Known::Asked = &mut *lock(&self.known) {
            *known = Known::Takers(takers.clone());
        }
        Ok(takers)
    }

    /// Has all interfaces read again by the next [`Netdev::takers`].
    pub(crate) fn forget(&self) {
        *lock(&self.known) = Known::Nothing;
    }

    /// Returns when [`Netdev::takers`] may give something else. A change is told once, and not lost when the call is
    /// cancelled.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Number of the family, and of the multicast group that tells of changes.
    async fn family(&self) -> Result<Option<(u16, u32)>, Error> {
        let question =
            Message { family: CONTROL, command: GET_FAMILY, attributes: text(FAMILY_NAME, b"netdev\0") };
        let answers = match self.ask(question, 0).await {
            Err(Error::NetlinkError(error)) if error.raw_code() == -libc::ENOENT => return Ok(None),
            answers => answers?,
        };
        Ok(answers.first().and_then(|answer| read_family(&answer.attributes)))
    }

    async fn ask(&self, question: Message, flags: u16) -> Result<Vec<Message>, Error> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(question));
        let answers =
            self.handle.request(message, SocketAddr::new(0, 0)).map_err(|_| Error::RequestFailed)?;
        let mut answers = std::pin::pin!(answers);
        let mut all = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(answer) => all.push(answer),
                NetlinkPayload::Error(error) => return Err(Error::NetlinkError(error)),
                _ => {}
            }
        }
        Ok(all)
    }

    /// Follows a multicast group.
    fn follow(&mut self, group: u32) -> io::Result<()> {
        let (mut connection, _, messages) = proto::new_connection::<Message>(NETLINK_GENERIC)?;
        let socket = connection.socket_mut().socket_mut();
        // A socket without a number of its own would count as the sender, which is the kernel, and hear nothing.
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.add_membership(group)?;
        self.tasks.push(tokio::spawn(connection).abort_handle());
        let reader = read(messages, self.known.clone(), self.changed.clone());
        self.tasks.push(tokio::spawn(reader).abort_handle());
        Ok(())
    }
}

impl Drop for Netdev {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

async fn read(
    mut messages: UnboundedReceiver<(NetlinkMessage<Message>, SocketAddr)>,
    known: Arc<Mutex<Known>>,
    changed: Arc<Notify>,
) {
    while let Some((message, _)) = messages.next().await {
        let mut known = lock(&known);
        let is_as_known = match (&*known, &message.payload) {
            (Known::Takers(takers), NetlinkPayload::InnerMessage(message)) => is_as_known(takers, message),
            // Messages were lost (ENOBUFS), or this may be newer than what is being read.
            _ => false,
        };
        if !is_as_known {
            *known = Known::Nothing;
            changed.notify_one();
        }
    }
}

/// Whether a message tells nothing new. Of an interface that is gone nothing has to be known: the kernel takes it out of all
/// maps itself.
fn is_as_known(takers: &BTreeSet<u32>, message: &Message) -> bool {
    match (message.command, features(&message.attributes)) {
        (DEV_ADDED | DEV_CHANGED, Some((index, takes))) => takers.contains(&index) == takes,
        _ => true,
    }
}

/// A message of generic netlink.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    family: u16,
    command: u8,
    attributes: Vec<u8>,
}

/// Length of `struct genlmsghdr`: command, version, two bytes that are reserved.
const HEADER: usize = 4;

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        HEADER + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let bytes = [self.command, 1, 0, 0].into_iter().chain(self.attributes.iter().copied());
        buffer.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        match payload.split_at_checked(HEADER) {
            Some((head, rest)) => {
                Ok(Message { family: header.message_type, command: head[0], attributes: rest.to_vec() })
            }
            None => Err(DecodeError::from("a message of generic netlink is cut short")),
        }
    }
}

/// Index of an interface, and whether it takes frames.
fn features(bytes: &[u8]) -> Option<(u32, bool)> {
    let index = u32::from_ne_bytes(attribute(bytes, IFINDEX)?.try_into().ok()?);
    let features = u64::from_ne_bytes(attribute(bytes, XDP_FEATURES)?.try_into().ok()?);
    Some((index, features & NDO_XMIT != 0))
}

/// Number of a family, and of its group `mgmt`.
fn read_family(bytes: &[u8]) -> Option<(u16, u32)> {
    let family = u16::from_ne_bytes(attribute(bytes, FAMILY_ID)?.try_into().ok()?);
    let mut groups = attributes(attribute(bytes, GROUPS)?);
    let (_, group) = groups.find(|(_, group)| attribute(group, GROUP_NAME) == Some(b"mgmt\0"))?;
    Some((family, u32::from_ne_bytes(attribute(group, GROUP_ID)?.try_into().ok()?)))
}

fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(other, _)| *other == kind).map(|(_, value)| value)
}

/// Kind and value of each attribute (netlink(7), `struct nlattr`).
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// The upper bits of the kind say something about the value.
    const KIND: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let (head, _) = rest.split_at_checked(4)?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([head[2], head[3]]) & KIND, value))
    })
}

/// An attribute whose value fills whole words in the end.
fn text(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::from((value.len() as u16 + 4).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(command: u8, index: u32, features: u64) -> Message {
        let attributes = [text(IFINDEX, &index.to_ne_bytes()), text(XDP_FEATURES, &features.to_ne_bytes())];
        Message { family: 33, command, attributes: attributes.concat() }
    }

    #[test]
    fn what_is_told_of_an_interface_is_compared() {
        let takers = BTreeSet::from([7]);
        for (index, features, is_known) in [(7, 0x27, true), (7, 0x23, false), (8, 0x23, true), (8, 4, false)]
        {
            assert_eq!(
                is_as_known(&takers, &told(DEV_CHANGED, index, features)),
                is_known,
                "{index} {features}"
            );
        }
        assert!(is_as_known(&takers, &told(3, 7, 0)), "it is gone");
        assert!(!is_as_known(&takers, &told(DEV_ADDED, 9, 4)));
    }

    #[test]
    fn attributes_end_where_the_bytes_do() {
        let message = told(DEV_CHANGED, 7, NDO_XMIT);
        assert_eq!(features(&message.attributes), Some((7, true)));
        for length in 0..message.attributes.len() {
            assert_eq!(features(&message.attributes[..length]), None, "{length}");
        }
        assert_eq!(attributes(&[3, 0, 1, 0, 0, 0, 0, 0]).count(), 0, "shorter than its own head");
    }

    #[test]
    fn a_family_has_a_number_and_a_group() {
        let group =
            |name: &[u8], id: u32| [text(GROUP_NAME, name), text(GROUP_ID, &id.to_ne_bytes())].concat();
        let groups = [text(1, &group(b"page-pool\0", 5)), text(2, &group(b"mgmt\0", 6))].concat();
        let family =
            [text(FAMILY_NAME, b"netdev\0"), text(FAMILY_ID, &33_u16.to_ne_bytes()), text(GROUPS, &groups)];
        assert_eq!(read_family(&family.concat()), Some((33, 6)));
        assert_eq!(read_family(&family[..2].concat()), None);
    }
}
