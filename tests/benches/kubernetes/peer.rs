//! A router made of a socket: it takes what a node announces, and notes when.
use bgp_speaker::{
    config::{Asn, Family},
    wire::{Capability, Context, Message, Nlri, Open, decode, frame},
};
use lab::Error;
use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// Seconds.
const HOLD: u16 = 90;

/// A prefix of an UPDATE, as it was read from the socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct News {
    pub(crate) at: Instant,
    /// The address of the prefix.
    pub(crate) address: IpAddr,
    pub(crate) is_announced: bool,
}

/// Waits for one speaker at `address`, in the namespace of the calling thread, and tells what it says until it leaves.
pub(crate) fn listen(address: SocketAddr, asn: u32, news: mpsc::Sender<News>) -> Result<(), Error> {
    let (mut stream, _) = TcpListener::bind(address)?.accept()?;
    let context = Context {
        four_octet_as: true,
        families: BTreeSet::from([Family::Ipv4Unicast]),
        ..Context::default()
    };
    let open = Message::Open(Open {
        asn: Asn(asn),
        hold_seconds: HOLD,
        router_id: Ipv4Addr::new(192, 0, 2, 1),
        capabilities: vec![
            Capability::MultiProtocol(Family::Ipv4Unicast.into()),
            Capability::FourOctetAs(Asn(asn)),
        ],
    });
    send(&mut stream, &open, &context)?;
    keep_alive(stream.try_clone()?, context.clone());
    let (mut buffer, mut chunk) = (Vec::new(), vec![0; 1 << 16]);
    loop {
        let length = stream.read(&mut chunk)?;
        if length == 0 {
            return Ok(());
        }
        let at = Instant::now();
        buffer.extend_from_slice(&chunk[..length]);
        let mut used = 0;
        while let Some(bytes) = frame(&buffer[used..], &context).map_err(refused)? {
            used += bytes.len();
            let Message::Update(update) = decode(bytes, &context).map_err(refused)?.message else { continue };
            let tell =
                |nlri: &Nlri, is_announced| news.send(News { at, address: nlri.prefix.addr(), is_announced });
            update.withdrawn.iter().try_for_each(|nlri| tell(nlri, false))?;
            let reach = update.announced.iter().flat_map(|announced| &announced.reach);
            reach.flat_map(|reach| &reach.prefixes).try_for_each(|nlri| tell(nlri, true))?;
        }
        buffer.drain(..used);
    }
}

/// Until the connection ends.
fn keep_alive(mut stream: TcpStream, context: Context) {
    thread::spawn(move || {
        while send(&mut stream, &Message::Keepalive, &context).is_ok() {
            thread::sleep(Duration::from_secs(u64::from(HOLD / 3)));
        }
    });
}

fn send(stream: &mut TcpStream, message: &Message, context: &Context) -> Result<(), Error> {
    let mut bytes = Vec::new();
    message.encode(context, &mut bytes).map_err(refused)?;
    Ok(stream.write_all(&bytes)?)
}

fn refused(error: impl std::fmt::Debug) -> Error {
    format!("{error:?}").into()
}
