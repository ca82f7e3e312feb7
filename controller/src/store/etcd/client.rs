//! A client of etcd's JSON gateway over HTTP/1. One member is asked for as long as it answers, then the next.
//!
//! Every request says that it wants a member with a leader: one that is cut off from the others refuses at once, and ends
//! its watches. Answers are bounded in size and time.
use super::{
    access::read_password,
    wire::{Header, KeyValue, Lease, Message, Range, Refusal, Token, Txn, Watch, end, text},
};
use crate::store::{directory::MAX_DIRECTORY_BYTES, objects::REQUEST};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, Response, Uri,
    body::{Bytes, Incoming},
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::ClientConfig;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::timeout;

/// How long a connection may take to be there, so that the next member has its time, too.
const CONNECT: Duration = Duration::from_secs(1);
/// A connection that is not used for so long is closed.
const IDLE: Duration = Duration::from_secs(60);
/// Largest answer, and largest line of a stream, bytes.
const LARGEST: usize = 64 << 20;
/// Keys of one page of a list.
const PAGE: usize = 500;
/// Largest list, bytes: twice what a directory may hold, for statuses and what hosts tell.
const LARGEST_LIST: usize = 2 * MAX_DIRECTORY_BYTES;

/// Cheap to clone; clones are one.
#[derive(Clone)]
pub(super) struct Client(Arc<Inner>);

struct Inner {
    http: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    endpoints: Vec<Uri>,
    /// Which one is asked, modulo their number.
    at: AtomicUsize,
    user: Option<(String, PathBuf)>,
    /// What says who we are, as etcd has given it.
    token: Mutex<Option<Arc<str>>>,
}

/// Why there is no answer, or no good one.
#[derive(Clone, Debug)]
pub struct EtcdError {
    /// As in google/rpc/code.proto; none: no answer.
    code: Option<u32>,
    message: String,
    /// Nothing was sent.
    is_unsent: bool,
}

impl fmt::Display for EtcdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for EtcdError {}

impl EtcdError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        EtcdError { code: None, message: message.into(), is_unsent: false }
    }

    /// Whether etcd has said it.
    pub(super) fn is_answer(&self) -> bool {
        self.code.is_some()
    }

    /// Whether what was asked for is not done, and will not be.
    pub(super) fn is_refused(&self) -> bool {
        /// Cancelled, Unknown, DeadlineExceeded, Aborted, Internal, Unavailable, DataLoss.
        const UNKNOWN: [u32; 7] = [1, 2, 4, 10, 13, 14, 15];
        self.is_unsent || self.code.is_some_and(|code| !UNKNOWN.contains(&code))
    }

    /// Whether what was asked for is more than etcd takes at once: in its own words, or in those of gRPC before it.
    pub(super) fn is_too_large(&self) -> bool {
        let words = ["request is too large", "received message larger than max"];
        self.is_answer() && words.iter().any(|words| self.message.contains(words))
    }

    /// Whether etcd does not know any more who we are: the token is too old, or rights have changed since.
    fn is_unauthenticated(&self) -> bool {
        const UNAUTHENTICATED: u32 = 16;
        self.code == Some(UNAUTHENTICATED)
            || self.message.contains("revision of auth store is old")
            || self.message.contains("user name is empty")
    }
}

/// All keys of a prefix at one revision.
pub(super) struct List {
    pub(super) kvs: Vec<KeyValue>,
    pub(super) revision: i64,
}

impl Client {
    /// Nothing is sent yet. `user`: who we are, and the file with the password.
    pub(super) fn new(endpoints: Vec<Uri>, tls: ClientConfig, user: Option<(String, PathBuf)>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            // Whether something was sent must be known.
            .retry_canceled_requests(false)
            .build(connector);
        // Not all hosts ask the same member.
        let chance = RandomState::new().hash_one(0) as usize;
        let at = AtomicUsize::new(chance % endpoints.len().max(1));
        Client(Arc::new(Inner { http, endpoints, at, user, token: Mutex::default() }))
    }

    /// Asks, and takes the whole answer, within [`REQUEST`].
    pub(super) async fn call<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, EtcdError> {
        let at = self.at();
        let answer = async {
            let response = self.exchange(path, body).await?;
            let body = Limited::new(response.into_body(), LARGEST).collect().await;
            Ok(body.map_err(|error| EtcdError::new(error.to_string()))?.to_bytes())
        };
        let late = || EtcdError::new(format!("no answer within {} s", REQUEST.as_secs()));
        let answer = timeout(REQUEST, answer).await.unwrap_or_else(|_| Err(late()));
        if answer.as_ref().is_err_and(|error| !error.is_refused()) {
            self.leave(at);
        }
        serde_json::from_slice(&answer?)
            .map_err(|error| EtcdError::new(format!("an answer that is none of etcd: {error}")))
    }

    pub(super) async fn txn(&self, txn: &Value) -> Result<Txn, EtcdError> {
        self.call("/v3/kv/txn", txn).await
    }

    /// Takes a lease that ends when it is not renewed for this time, whole seconds.
    pub(super) async fn grant(&self, ttl: Duration) -> Result<i64, EtcdError> {
        let grant = json!({"TTL": ttl.as_secs().to_string()});
        let Lease { id, .. } = self.call("/v3/lease/grant", &grant).await?;
        Ok(id)
    }

    /// Renews a lease: whether it is there still.
    pub(super) async fn renew(&self, lease: i64) -> Result<bool, EtcdError> {
        let answer = self.call("/v3/lease/keepalive", &json!({"ID": lease.to_string()})).await?;
        match answer {
            Message::Result(Lease { ttl, .. }) => Ok(ttl > 0),
            Message::Error(refusal) => Err(EtcdError::new(refusal.message)),
        }
    }

    /// All keys that begin so, in pages of one revision.
    pub(super) async fn list(&self, prefix: &str) -> Result<List, EtcdError> {
        let (mut list, mut bytes) = (List { kvs: Vec::new(), revision: 0 }, 0);
        let mut from = text(prefix);
        loop {
            let body = json!({"key": from, "range_end": end(prefix), "limit": PAGE.to_string(),
                "revision": list.revision.to_string()});
            let Range { header: Header { revision }, kvs, more } = self.call("/v3/kv/range", &body).await?;
            if list.revision == 0 {
                list.revision = revision;
            }
            bytes += kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum::<usize>();
            if bytes > LARGEST_LIST {
                return Err(EtcdError::new(format!("below {prefix} are more than {LARGEST_LIST} bytes")));
            }
            list.kvs.extend(kvs);
            match list.kvs.last().filter(|_| more) {
                // The next key is that with a zero behind it.
                Some(last) => from = text(&format!("{}\0", String::from_utf8_lossy(&last.key))),
                None => return Ok(list),
            }
        }
    }

    /// Watches all keys that begin so, from that revision on. The beginning has to come within [`REQUEST`].
    pub(super) async fn watch(&self, prefix: &str, revision: i64) -> Result<Lines, EtcdError> {
        let at = self.at();
        let body = json!({"create_request": {"key": text(prefix), "range_end": end(prefix),
            "start_revision": revision.to_string(), "fragment": true}});
        let late = || EtcdError::new(format!("no answer within {} s", REQUEST.as_secs()));
        let response = timeout(REQUEST, self.exchange("/v3/watch", &body)).await;
        match response.unwrap_or_else(|_| Err(late())) {
            Ok(response) => Ok(Lines {
                body: response.into_body(),
                text: Vec::new(),
                searched: 0,
                client: self.clone(),
                at,
            }),
            Err(error) => {
                self.leave(at);
                Err(error)
            }
        }
    }

    /// The answer of the first member that can be reached; of an error its words. Who is not known any more says once more who
    /// it is.
    async fn exchange(&self, path: &str, body: &Value) -> Result<Response<Incoming>, EtcdError> {
        let body = Bytes::from(body.to_string());
        let mut last = EtcdError::new("there is no endpoint");
        for _ in &self.0.endpoints {
            let at = self.at();
            let mut answer = self.authenticated(at, path, body.clone()).await;
            if answer.as_ref().is_err_and(EtcdError::is_unauthenticated) && self.0.user.is_some() {
                self.forget_token();
                answer = self.authenticated(at, path, body.clone()).await;
            }
            match answer {
                Err(error) if error.is_unsent => {
                    self.leave(at);
                    last = error;
                }
                answer => return answer,
            }
        }
        Err(last)
    }

    async fn authenticated(
        &self,
        at: usize,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, EtcdError> {
        let Some((name, file)) = &self.0.user else { return self.send(at, path, None, body).await };
        let known = self.0.token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let token = match known {
            Some(token) => token,
            None => {
                let unsent = |message: String| EtcdError { is_unsent: true, ..EtcdError::new(message) };
                let password = read_password(file).map_err(|e| unsent(format!("{}: {e}", file.display())))?;
                let ask = Bytes::from(json!({"name": name, "password": password}).to_string());
                let answer = self.send(at, "/v3/auth/authenticate", None, ask).await;
                // What we wanted is not sent yet, whatever became of this.
                let answer = answer.map_err(|error| EtcdError {
                    is_unsent: error.is_unsent || !error.is_refused(),
                    ..error
                })?;
                let answer = Limited::new(answer.into_body(), LARGEST).collect().await;
                let answer = answer.map_err(|error| unsent(error.to_string()))?.to_bytes();
                // Not the reason why it is none: that may have a token in it.
                let token: Token = serde_json::from_slice(&answer)
                    .map_err(|_| unsent("an authentication without a token".to_owned()))?;
                let token = Arc::from(token.token);
                *self.0.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&token));
                token
            }
        };
        self.send(at, path, Some(&token), body).await
    }

    async fn send(
        &self,
        at: usize,
        path: &str,
        token: Option<&str>,
        body: Bytes,
    ) -> Result<Response<Incoming>, EtcdError> {
        let endpoint = &self.0.endpoints[at % self.0.endpoints.len()];
        let uri = format!("{}{path}", endpoint.to_string().trim_end_matches('/'));
        let failed = |error: String| EtcdError::new(format!("{endpoint}: {error}"));
        let mut request = Request::post(uri)
            .header(CONTENT_TYPE, "application/json")
            .header("Grpc-Metadata-hasleader", "true");
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, token);
        }
        let request = request.body(Full::new(body)).map_err(|error| failed(error.to_string()))?;
        let response = self
            .0
            .http
            .request(request)
            .await
            .map_err(|error| EtcdError { is_unsent: error.is_connect(), ..failed(chain(&error)) })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = Limited::new(response.into_body(), LARGEST).collect().await;
        let text = text.map_err(|error| failed(error.to_string()))?.to_bytes();
        // A stream says it in its own way.
        let refusal = match serde_json::from_slice::<Message<Value>>(&text) {
            Ok(Message::Error(refusal)) => Some(refusal),
            _ => serde_json::from_slice::<Refusal>(&text).ok(),
        };
        match refusal.filter(|refusal| !refusal.message.is_empty()) {
            Some(Refusal { code, message }) => Err(EtcdError {
                code: Some(code),
                message: format!("{endpoint}: {message}"),
                is_unsent: false,
            }),
            None => Err(failed(format!("HTTP status {status}: is the JSON gateway of etcd there?"))),
        }
    }

    fn at(&self) -> usize {
        self.0.at.load(Ordering::Relaxed)
    }

    /// Asks the next member from now on, unless somebody does already.
    fn leave(&self, at: usize) {
        // Failed: another one was faster.
        let _ = self.0.at.compare_exchange(at, at.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed);
    }

    fn forget_token(&self) {
        *self.0.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// What a watch says, message by message.
pub(super) struct Lines {
    body: Incoming,
    text: Vec<u8>,
    /// Bytes of `text` in which no line ends.
    searched: usize,
    client: Client,
    at: usize,
}

impl Lines {
    /// The next message. May be dropped and asked for again.
    pub(super) async fn next(&mut self) -> Result<Watch, EtcdError> {
        loop {
            if let Some(end) = self.text[self.searched..].iter().position(|byte| *byte == b'\n') {
                let end = self.searched + end;
                let message = serde_json::from_slice(&self.text[..end]);
                self.text.drain(..=end);
                self.searched = 0;
                return match message {
                    Ok(Message::Result(watch)) => Ok(watch),
                    Ok(Message::Error(Refusal { code, message })) => {
                        self.end();
                        Err(EtcdError { code: Some(code), message, is_unsent: false })
                    }
                    Err(error) => Err(EtcdError::new(format!("a watch says what is none of etcd: {error}"))),
                };
            }
            self.searched = self.text.len();
            if self.text.len() > LARGEST {
                return Err(EtcdError::new(format!("a watch says more than {LARGEST} bytes at once")));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.text.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => {
                    self.end();
                    return Err(EtcdError::new(chain(&error)));
                }
                None => {
                    self.end();
                    return Err(EtcdError::new("the watch was ended"));
                }
            }
        }
    }

    /// The member does not go on: another one may, and perhaps it wants to know who we are.
    fn end(&self) {
        self.client.leave(self.at);
        self.client.forget_token();
    }
}

/// An error with what is behind it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text = format!("{text}: {reason}");
        }
        source = error.source();
    }
    text
}
