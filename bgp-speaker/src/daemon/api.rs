//! The unix socket of the running instance: a line with a question, one JSON value back. For the owner of the
//! process alone.
use bgp_speaker::Handle;
use nix::sys::stat::{Mode, umask};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    os::unix::{fs::FileTypeExt, net::UnixStream as StdUnixStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};

/// Longest question, octets.
const QUESTION: u64 = 64;
/// How long a client has to ask, and then to read each piece of the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Clients served at a time.
const CLIENTS: usize = 16;

/// What can be asked; a JSON string on a line.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Question {
    Peers,
    Routes,
}

/// The listening end. The socket's file is removed when this is dropped.
pub(super) struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Listens, with mode 0600. A socket that nobody serves any more is replaced.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "is there and is no socket"));
            }
            Ok(_) if StdUnixStream::connect(path).is_ok() => {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another instance is running"));
            }
            Ok(_) => fs::remove_file(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => return Err(error),
        }
        // The file is made with the mode, so that there is no moment in which others could open it.
        let before = umask(Mode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(path);
        umask(before);
        Ok(Server { listener: listener?, path: path.to_owned() })
    }

    /// Answers, for ever.
    pub(super) async fn serve(&self, speaker: &Handle) {
        let clients = Arc::new(Semaphore::new(CLIENTS));
        loop {
            let Ok(permit) = Arc::clone(&clients).acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let speaker = speaker.clone();
                    tokio::spawn(async move {
                        if let Err(error) = answer(stream, &speaker).await {
                            tracing::debug!(%error, "api client");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "api socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "api socket not removed");
        }
    }
}

/// Answers one question. The newline at the end says that this is all of it.
async fn answer(stream: UnixStream, speaker: &Handle) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    patient((&mut stream).take(QUESTION).read_line(&mut line)).await?;
    match serde_json::from_str(&line)? {
        Question::Peers => {
            patient(stream.write_all(&serde_json::to_vec(&speaker.peers().await)?)).await?;
        }
        Question::Routes => {
            let mut pages = speaker.route_pages().await;
            let mut before = "[";
            while let Some(page) = pages.next().await {
                let mut json = Vec::new();
                for row in page {
                    json.extend_from_slice(before.as_bytes());
                    serde_json::to_writer(&mut json, &row)?;
                    before = ",";
                }
                patient(stream.write_all(&json)).await?;
            }
            let end = if before == "[" { "[]" } else { "]" };
            patient(stream.write_all(end.as_bytes())).await?;
        }
    }
    patient(stream.write_all(b"\n")).await?;
    stream.shutdown().await
}

async fn patient<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, step).await?
}
