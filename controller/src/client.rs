//! Asks a running instance, over its unix socket: HTTP/1, JSON. The server is [`crate::serve::api`].
use http_body_util::{BodyExt, Collected, Empty};
use hyper::{
    Request,
    body::{Bytes, Incoming},
    header,
};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::net::UnixStream;

/// How long an answer may take in all.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Longest line of what is followed, bytes.
const LONGEST_LINE: usize = 64 << 10;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("could not reach a running instance at {}: {source}; {}", .socket.display(), advice(.source))]
    Connect {
        /// Where it was tried.
        socket: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Nobody answered in time: the instance is starting still, or it hangs.
    #[error("no answer from {} within {} s; is it starting?", .socket.display(), TIMEOUT.as_secs())]
    Late {
        /// Where it was tried.
        socket: PathBuf,
    },
    /// What listens there did not answer like an instance of this version.
    #[error("no usable answer from {}: {reason}; is it a running fairlead of this version?", .socket.display())]
    Answer {
        /// Where it was tried.
        socket: PathBuf,
        /// What was wrong.
        reason: String,
    },
    /// The instance answers that it cannot.
    #[error("{0}")]
    Refused(String),
}

/// The body of an answer that is an error.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// One sentence for people.
    pub error: String,
}

/// Asks for what is at `path` (percent-encoded where it must be).
pub async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, ClientError> {
    let answer = |reason: String| ClientError::Answer { socket: socket.to_owned(), reason };
    let exchange = tokio::time::timeout(TIMEOUT, exchange(socket, path, whole));
    let body = exchange.await.map_err(|_| ClientError::Late { socket: socket.to_owned() })??;
    serde_json::from_slice(&body).map_err(|e| answer(e.to_string()))
}

/// Asks for what is at `path` and takes it line by line, each as JSON, for as long as it comes and `take` agrees. Returns
/// what `take` broke with; nothing: the instance has ended it.
pub async fn follow<T: DeserializeOwned, B>(
    socket: &Path,
    path: &str,
    mut take: impl FnMut(T) -> ControlFlow<B>,
) -> Result<Option<B>, ClientError> {
    let read = async |mut body: Incoming| {
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|e| e.to_string())?.into_data() else { continue };
            text.extend_from_slice(&data);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line = serde_json::from_slice(&text[..end]).map_err(|e| e.to_string())?;
                text.drain(..=end);
                if let ControlFlow::Break(value) = take(line) {
                    return Ok(Some(value));
                }
            }
            if text.len() > LONGEST_LINE {
                return Err(format!("a line of more than {LONGEST_LINE} bytes"));
            }
        }
        Ok(None)
    };
    exchange(socket, path, read).await
}

async fn whole(body: Incoming) -> Result<Bytes, String> {
    body.collect().await.map(Collected::to_bytes).map_err(|e| e.to_string())
}

/// Asks for what is at `path` and lets `read` read the answer, unless it is a refusal.
async fn exchange<T>(
    socket: &Path,
    path: &str,
    read: impl AsyncFnOnce(Incoming) -> Result<T, String>,
) -> Result<T, ClientError> {
    let answer = |reason: String| ClientError::Answer { socket: socket.to_owned(), reason };
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| ClientError::Connect { socket: socket.to_owned(), source })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| answer(e.to_string()))?;
    let request = Request::get(path)
        .header(header::HOST, "fairlead")
        .body(Empty::<Bytes>::new())
        .map_err(|e| answer(e.to_string()))?;
    // Takes the sender with it, so that the connection ends after the answer.
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(|e| answer(e.to_string()))?;
        let (status, body) = (response.status(), response.into_body());
        if status.is_success() {
            return read(body).await.map_err(answer);
        }
        match serde_json::from_slice::<Refusal>(&whole(body).await.map_err(answer)?) {
            Ok(refusal) => Err(ClientError::Refused(refusal.error)),
            Err(_) => Err(answer(format!("HTTP status {status}"))),
        }
    };
    // The connection is driven here, beside the exchange: nothing outlives this function.
    let (done, _closed) = tokio::join!(exchange, async {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to the running instance");
        }
    });
    done
}

/// What to do about it.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "run this as root",
        _ => "start one with `fairlead standalone`, or name its socket with --api-socket",
    }
}
