//! The connection to a BMP station: dials, writes what the driver gives, dials again when it ends. A station says nothing
//! (RFC 7854 section 3.2): what it sends is thrown away.
use super::driver::Event;
use std::{io, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::{sleep, timeout},
};

/// How long a station has to answer a dial, and to take at least something of what is written; then it is dialled anew,
/// and hears everything from the beginning.
const PATIENCE: Duration = Duration::from_secs(30);
/// First pause between attempts; doubled while they fail,
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// up to this one.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long a station has to take the last messages.
const LINGER: Duration = Duration::from_secs(2);

/// What happens to a station.
pub(super) enum StationEvent {
    /// It is connected and knows nothing; messages go here, one batch at a time.
    Up(mpsc::Sender<Vec<u8>>),
    /// The kernel has taken the batch.
    Written,
    /// The connection ended.
    Down,
}

/// Serves a station until the driver drops its end of a connection.
pub(super) async fn run(station: SocketAddr, events: mpsc::Sender<Event>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let failed = match timeout(PATIENCE, TcpStream::connect(station)).await {
            Ok(Ok(stream)) => {
                // As many as the driver has in hand: a batch, and the last words.
                let (sender, batches) = mpsc::channel(2);
                if events.send(Event::Station(station, StationEvent::Up(sender))).await.is_err() {
                    return;
                }
                tracing::info!(%station, "BMP station connected");
                match serve(station, stream, batches, &events).await {
                    Ok(Ended::Driver) => return,
                    Ok(Ended::Station { written }) => {
                        if written {
                            pause = FIRST_PAUSE;
                        }
                        "it closed the connection".to_owned()
                    }
                    Err(error) => error.to_string(),
                }
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        tracing::info!(%station, failed, ?pause, "BMP station");
        if events.send(Event::Station(station, StationEvent::Down)).await.is_err() {
            return;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Who ended a connection.
enum Ended {
    Driver,
    /// `written`: it had taken something.
    Station {
        written: bool,
    },
}

async fn serve(
    station: SocketAddr,
    stream: TcpStream,
    mut batches: mpsc::Receiver<Vec<u8>>,
    events: &mpsc::Sender<Event>,
) -> io::Result<Ended> {
    let (mut reader, mut writer) = stream.into_split();
    let mut discarded = [0; 512];
    let mut written = false;
    loop {
        tokio::select! {
            batch = batches.recv() => {
                let Some(batch) = batch else {
                    // A station that does not take the last words has heard enough.
                    let _: Result<_, _> = timeout(LINGER, writer.shutdown()).await;
                    return Ok(Ended::Driver);
                };
                let mut rest = &batch[..];
                while !rest.is_empty() {
                    match timeout(PATIENCE, writer.write(rest)).await? {
                        Ok(0) => return Ok(Ended::Station { written }),
                        Ok(octets) => rest = &rest[octets..],
                        Err(error) => return Err(error),
                    }
                }
                written = true;
                // The driver may have ended.
                let _: Result<_, _> = events.send(Event::Station(station, StationEvent::Written)).await;
            }
            read = reader.read(&mut discarded) => {
                if read? == 0 {
                    return Ok(Ended::Station { written });
                }
            }
        }
    }
}
