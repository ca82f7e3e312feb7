//! One TCP connection: moves bytes between the kernel and the driver, and knows nothing of BGP.
use super::{driver::Event, options};
use crate::{ConnectionId, Md5Key};
use socket2::SockRef;
use std::{
    io::{self, Read},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, watch},
    time::timeout,
};

/// Octets read at once.
const READ: usize = 64 * 1024;
/// So often is read at most to answer [`Order::Drain`]: more than the kernel keeps.
const DRAIN: usize = 128;
/// How long a peer has to take the last messages and to close its side, before the connection is dropped.
const LINGER: Duration = Duration::from_secs(2);

/// What the driver wants of a connection.
pub(super) enum Order {
    /// Write these octets and say so. Only after the last ones were written.
    Write(Vec<u8>),
    /// Write these, too, then close.
    Close(Vec<u8>),
    /// Hand over what has come already, its end included, and say so.
    Drain,
    /// Give the socket back, with what is not written yet.
    Detach,
}

/// Serves a connection until the driver wants it closed.
pub(super) async fn run(
    id: ConnectionId,
    mut stream: TcpStream,
    mut orders: mpsc::Receiver<Order>,
    mut keys: watch::Receiver<Option<Md5Key>>,
    events: mpsc::Sender<Event>,
) {
    if keys.borrow().is_some() {
        // It may be another one since the connection was made.
        keys.mark_changed();
    }
    let (mut writing, mut written) = (Vec::new(), 0);
    let mut alive = true;
    let last = loop {
        let (mut reader, mut writer) = stream.split();
        let mut read = Vec::new();
        let event = tokio::select! {
            order = orders.recv() => match order {
                Some(Order::Write(bytes)) => {
                    (writing, written) = (bytes, 0);
                    continue;
                }
                Some(Order::Drain) => {
                    drain(id, &stream, &mut alive, &events).await;
                    continue;
                }
                Some(Order::Close(last)) => break last,
                Some(Order::Detach) => {
                    let unsent = writing.split_off(written);
                    // Of a connection that has ended nothing can go on.
                    let stream = stream.into_std().ok().filter(|_| alive);
                    let _: Result<_, _> = events.send(Event::Detached(id, stream, unsent)).await;
                    return;
                }
                None => break Vec::new(),
            },
            Ok(()) = keys.changed() => {
                sign(&stream, keys.borrow_and_update().as_ref());
                continue;
            }
            result = writer.write(&writing[written..]), if alive && written < writing.len() => match result {
                Ok(octets) => {
                    written += octets;
                    if written < writing.len() {
                        continue;
                    }
                    Event::Written(id)
                }
                Err(error) => closed(id, &mut alive, &error),
            },
            result = read_some(&mut reader, &mut read), if alive => {
                received(id, result.map(|()| read), &mut alive)
            }
        };
        // A driver that is gone left an order, or dropped its end of the orders.
        let _: Result<_, _> = events.send(event).await;
    };
    // A connection that is closed with octets unread is reset, and the peer may then never see what was written
    // last: wait for its end, within reason.
    let _: Result<_, _> = timeout(LINGER, async {
        stream.write_all(&writing[written..]).await?;
        stream.write_all(&last).await?;
        stream.shutdown().await?;
        let mut discarded = vec![0; READ];
        while stream.read(&mut discarded).await? > 0 {}
        io::Result::Ok(())
    })
    .await;
}

/// Signs with another key from now on. Where that fails the peer will not hear us, and the session ends in time.
fn sign(stream: &TcpStream, key: Option<&Md5Key>) {
    let signed = stream.peer_addr().and_then(|remote| options::set_md5(stream, remote.ip().into(), key));
    if let Err(error) = signed {
        tracing::warn!(%error, "key of a connection not changed");
    }
}

async fn read_some(reader: &mut tokio::net::tcp::ReadHalf<'_>, read: &mut Vec<u8>) -> io::Result<()> {
    reader.readable().await?;
    read.reserve_exact(READ);
    match reader.try_read_buf(read) {
        // Readiness was stale: the caller comes back.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => reader.read_buf(read).await.map(drop),
        result => result.map(drop),
    }
}

/// See [`Order::Drain`]. Asks the kernel: the runtime knows only of what epoll has told it, and may not have asked
/// since the peer closed.
async fn drain(id: ConnectionId, stream: &TcpStream, alive: &mut bool, events: &mpsc::Sender<Event>) {
    let mut read = vec![0; READ];
    for _ in 0..DRAIN {
        if !*alive {
            break;
        }
        let event = match (&*SockRef::from(stream)).read(&mut read) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            result => received(id, result.map(|octets| read[..octets].to_vec()), alive),
        };
        let _: Result<_, _> = events.send(event).await;
    }
    let _: Result<_, _> = events.send(Event::Drained(id)).await;
}

fn received(id: ConnectionId, read: io::Result<Vec<u8>>, alive: &mut bool) -> Event {
    match read {
        Ok(read) if read.is_empty() => {
            *alive = false;
            Event::Closed(id, "the peer closed the connection".to_owned())
        }
        Ok(read) => Event::Received(id, read),
        Err(error) => closed(id, alive, &error),
    }
}

fn closed(id: ConnectionId, alive: &mut bool, error: &io::Error) -> Event {
    *alive = false;
    Event::Closed(id, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Shutdown, TcpListener};

    /// What the kernel has is handed over, also if epoll was not asked since it came: this runtime asks only when it
    /// has nothing else to do.
    #[test]
    fn an_end_that_has_come_is_drained_before_the_runtime_knows_of_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let accepted = listener.accept().unwrap().0;
            peer.shutdown(Shutdown::Write).unwrap();
            assert_eq!(accepted.peek(&mut [0]).unwrap(), 0, "waits until the end has come");
            accepted.set_nonblocking(true).unwrap();
            let stream = TcpStream::from_std(accepted).unwrap();
            let (sender, mut events) = mpsc::channel(2);
            let mut alive = true;
            drain(ConnectionId(1), &stream, &mut alive, &sender).await;
            assert!(!alive);
            assert!(matches!(events.recv().await, Some(Event::Closed(..))));
            assert!(matches!(events.recv().await, Some(Event::Drained(_))));
        });
    }
}
