//! The API of a running instance: `GET /v1/objects/KIND[/NAME]`, `/v1/services`, `/v1/bgp/peers`, `/v1/bgp/routes` and
//! `/v1/status`. Answers are JSON; an error is a [`Refusal`]. The client is [`crate::client`].
use super::{
    instance::Instance,
    rows::{InstanceStatus, ServiceRow},
};
use crate::{api::kind::Kind, client::Refusal};
use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use bgp_speaker::config::{PeerStatus, RouteStatus};
use serde_json::Value;

type Answer<T> = Result<Json<T>, (StatusCode, Json<Refusal>)>;

/// The routes of the API.
pub fn router(instance: Instance) -> Router {
    Router::new()
        .route("/v1/objects/{kind}", get(objects))
        .route("/v1/objects/{kind}/{name}", get(object))
        .route("/v1/services", get(services))
        .route("/v1/bgp/peers", get(peers))
        .route("/v1/bgp/routes", get(routes))
        .route("/v1/status", get(status))
        .fallback(|| async { refusal(StatusCode::NOT_FOUND, "there is nothing at this path") })
        .method_not_allowed_fallback(|| async {
            refusal(StatusCode::METHOD_NOT_ALLOWED, "only GET is understood")
        })
        .with_state(instance)
}

async fn objects(State(instance): State<Instance>, Path(kind): Path<String>) -> Answer<Vec<Value>> {
    Ok(Json(instance.objects(parse(&kind)?).into_values().collect()))
}

async fn object(
    State(instance): State<Instance>,
    Path((kind, name)): Path<(String, String)>,
) -> Answer<Value> {
    let kind = parse(&kind)?;
    match instance.objects(kind).remove(&name) {
        Some(object) => Ok(Json(object)),
        None => Err(refusal(StatusCode::NOT_FOUND, format!("{kind} {name:?} not found"))),
    }
}

async fn services(State(instance): State<Instance>) -> Json<Vec<ServiceRow>> {
    Json(instance.services())
}

async fn peers(State(instance): State<Instance>) -> Json<Vec<PeerStatus>> {
    Json(instance.speaker.peers().await)
}

async fn routes(State(instance): State<Instance>) -> Json<Vec<RouteStatus>> {
    Json(instance.speaker.routes().await)
}

async fn status(State(instance): State<Instance>) -> Json<InstanceStatus> {
    Json(instance.status())
}

fn parse(kind: &str) -> Result<Kind, (StatusCode, Json<Refusal>)> {
    kind.parse().map_err(|error: String| refusal(StatusCode::NOT_FOUND, error))
}

fn refusal(status: StatusCode, error: impl Into<String>) -> (StatusCode, Json<Refusal>) {
    (status, Json(Refusal { error: error.into() }))
}
