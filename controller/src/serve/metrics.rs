//! Metrics and health over HTTP: `/metrics` for Prometheus, `/healthz` (the process answers), `/readyz` (it does all
//! that it should; if not, the body says why).
use super::instance::Instance;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Where they are served when nothing else is said: to this machine only.
pub const DEFAULT_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9617);

/// The routes.
pub fn router(instance: Instance) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(instance)
}

async fn metrics(State(instance): State<Instance>) -> impl IntoResponse {
    match instance.metrics().await {
        Ok(page) => Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], page)),
        Err(error) => {
            tracing::error!(%error, "making the page of metrics");
            Err((StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")))
        }
    }
}

async fn ready(State(instance): State<Instance>) -> (StatusCode, String) {
    let status = instance.status();
    if status.ready {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let reasons = status.reasons.iter().chain(&status.faults);
    (StatusCode::SERVICE_UNAVAILABLE, reasons.map(|reason| format!("{reason}\n")).collect())
}
