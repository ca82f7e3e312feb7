//! Asks a running instance, over its unix socket: HTTP/1, JSON. The server is [`crate::serve::api`].
use http_body_util::{BodyExt, Empty};
use hyper::{Request, StatusCode, body::Bytes, header};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::net::UnixStream;

/// How long an answer may take in all.
const TIMEOUT: Duration = Duration::from_secs(30);

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
    /// What listens there did not answer, or not like an instance of this version.
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
    let exchange = tokio::time::timeout(TIMEOUT, exchange(socket, path));
    let (status, body) =
        exchange.await.map_err(|_| answer(format!("nothing within {} s", TIMEOUT.as_secs())))??;
    if status.is_success() {
        return serde_json::from_slice(&body).map_err(|e| answer(e.to_string()));
    }
    match serde_json::from_slice::<Refusal>(&body) {
        Ok(refusal) => Err(ClientError::Refused(refusal.error)),
        Err(_) => Err(answer(format!("HTTP status {status}"))),
    }
}

async fn exchange(socket: &Path, path: &str) -> Result<(StatusCode, Bytes), ClientError> {
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
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        Ok::<_, hyper::Error>((status, body))
    };
    // The connection is driven here, beside the exchange: nothing outlives this function.
    let (done, _closed) = tokio::join!(exchange, async {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to the running instance");
        }
    });
    done.map_err(|e| answer(e.to_string()))
}

/// What to do about it.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "run this as root",
        _ => "start one with `fairlead standalone`, or name its socket with --api-socket",
    }
}
