//! What an instance serves: its [`api`] on a unix socket, [`metrics`] and health over HTTP. Both are HTTP/1 with one
//! request per connection, and bounded in connections, header size and time, whoever connects.
use axum::{Router, serve::Listener};
use hyper::{Request, body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{task::JoinSet, time::timeout};

pub mod api;
mod families;
mod flows;
pub mod health_ports;
pub mod instance;
mod links;
pub mod metrics;
pub(crate) mod node_state;
pub mod rows;
mod services;
pub mod socket;

/// Connections served at once; more wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 64;
/// How long the head of a request may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take in all: also the reader of a long answer has to get on. For an answer without an end
/// see [`Endless`].
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Most bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;

/// Serves `router` until dropped, which ends the connections, too.
pub async fn serve<L: Listener>(mut listener: L, router: Router) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            (stream, _) = listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                connections.spawn(connection(stream, router.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// An extension of every request. While somebody keeps a clone of it, the connection may take as long as it likes; whoever
/// does has to see to it that the reader gets on.
#[derive(Clone, Debug, Default)]
struct Endless(Arc<()>);

impl Endless {
    fn is_kept(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

async fn connection<S>(stream: S, router: Router)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let endless = Endless::default();
    let service = TowerToHyperService::new(router);
    let weak = Arc::downgrade(&endless.0);
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        if let Some(endless) = weak.upgrade() {
            request.extensions_mut().insert(Endless(endless));
        }
        service.call(request)
    });
    let exchange = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut exchange = pin!(exchange);
    loop {
        match timeout(CONNECTION_TIMEOUT, &mut exchange).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => return tracing::debug!(%error, "connection ended early"),
            Err(_) if endless.is_kept() => {}
            Err(_) => return tracing::debug!(limit = ?CONNECTION_TIMEOUT, "connection took too long"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{Extension, routing::get};
    use std::future::pending;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::Instant,
    };

    /// How long the connection lasts whose handler takes `seconds`, and keeps [`Endless`] or not.
    async fn lasts(keeps: bool, seconds: u64) -> Duration {
        let handler = move |Extension(endless): Extension<Endless>| async move {
            let kept = keeps.then_some(endless);
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            drop(kept);
            pending::<()>().await
        };
        let (mut client, server) = tokio::io::duplex(4096);
        let start = Instant::now();
        let server = tokio::spawn(connection(server, Router::new().route("/", get(handler))));
        client.write_all(b"GET / HTTP/1.1\r\nhost: fairlead\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        server.await.unwrap();
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn only_an_answer_without_an_end_may_take_long() {
        assert_eq!(lasts(false, 0).await, CONNECTION_TIMEOUT);
        assert_eq!(lasts(true, 0).await, CONNECTION_TIMEOUT);
        let (long, end) = (10 * CONNECTION_TIMEOUT.as_secs() + 1, 11 * CONNECTION_TIMEOUT);
        assert_eq!(lasts(true, long).await, end);
    }
}
