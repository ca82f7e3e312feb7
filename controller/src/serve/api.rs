//! The API of a running instance: `GET /v1/objects/KIND[/NAME]`, `/v1/services`, `/v1/clusters`, `/v1/bgp/peers`, `/v1/bgp/routes`,
//! `/v1/trace?proto=tcp|udp&src=ADDR:PORT&dst=ADDR:PORT[&syn=true]`, `/v1/flows[?follow=true]` and `/v1/status`. Answers are
//! JSON, one value; what is followed is one value a line, without an end. An error is a [`Refusal`]. The client is
//! [`crate::client`].
use super::{
    Endless, flows,
    instance::Instance,
    rows::{InstanceStatus, LinkRow, ServiceRow, TraceRow},
};
use crate::{api::kind::Kind, client::Refusal};
use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bgp_speaker::config::{PeerStatus, RouteStatus};
use lb_bpf::{service::Protocol, trace::Packet};
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeMap, net::SocketAddr};

type Answer<T> = Result<Json<T>, Refused>;
type Refused = (StatusCode, Json<Refusal>);

/// The routes of the API.
pub fn router(instance: Instance) -> Router {
    Router::new()
        .route("/v1/objects/{kind}", get(objects))
        .route("/v1/objects/{kind}/{*name}", get(object))
        .route("/v1/services", get(services))
        .route("/v1/clusters", get(clusters))
        .route("/v1/bgp/peers", get(peers))
        .route("/v1/bgp/routes", get(routes))
        .route("/v1/trace", get(trace))
        .route("/v1/flows", get(seen))
        .route("/v1/status", get(status))
        .fallback(|| async { refusal(StatusCode::NOT_FOUND, "there is nothing at this path") })
        .method_not_allowed_fallback(|| async {
            refusal(StatusCode::METHOD_NOT_ALLOWED, "only GET is understood")
        })
        .with_state(instance)
}

async fn objects(State(instance): State<Instance>, Path(kind): Path<String>) -> Answer<Vec<Value>> {
    Ok(Json(all(&instance, parse(&kind)?).await?.into_values().collect()))
}

/// The objects of a kind by name. Before any were read it cannot be said that there are none.
async fn all(instance: &Instance, kind: Kind) -> Result<BTreeMap<String, Value>, Refused> {
    if kind == Kind::NodeState {
        let state = instance.node_state().await;
        let value = serde_json::to_value(&state).ok();
        return Ok(state.metadata.name.zip(value).into_iter().collect());
    }
    if instance.awaits_objects() {
        return Err(refusal(StatusCode::SERVICE_UNAVAILABLE, "what is declared is not known yet"));
    }
    Ok(instance.objects(kind))
}

async fn object(
    State(instance): State<Instance>,
    Path((kind, name)): Path<(String, String)>,
) -> Answer<Value> {
    let kind = parse(&kind)?;
    match all(&instance, kind).await?.remove(&name) {
        Some(object) => Ok(Json(object)),
        None => Err(refusal(StatusCode::NOT_FOUND, format!("{kind} {name:?} not found"))),
    }
}

async fn services(State(instance): State<Instance>) -> Answer<Vec<ServiceRow>> {
    instance.services().await.map(Json).map_err(|error| refusal(StatusCode::INTERNAL_SERVER_ERROR, error))
}

async fn clusters(State(instance): State<Instance>) -> Json<Vec<LinkRow>> {
    Json(instance.links())
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

/// A packet, as the query says it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PacketQuery {
    proto: Proto,
    src: SocketAddr,
    dst: SocketAddr,
    #[serde(default)]
    syn: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Proto {
    Tcp,
    Udp,
}

async fn trace(
    State(instance): State<Instance>,
    query: Result<Query<PacketQuery>, QueryRejection>,
) -> Answer<TraceRow> {
    let Query(PacketQuery { proto, src, dst, syn }) =
        query.map_err(|error| refusal(StatusCode::BAD_REQUEST, error.body_text()))?;
    let protocol = match proto {
        Proto::Tcp => Protocol::Tcp,
        Proto::Udp => Protocol::Udp,
    };
    let packet = Packet::new(protocol, src, dst, syn)
        .map_err(|error| refusal(StatusCode::BAD_REQUEST, error.to_string()))?;
    let failed = |error: String| refusal(StatusCode::INTERNAL_SERVER_ERROR, error);
    let traced = tokio::task::spawn_blocking(move || instance.trace(&packet));
    let traced = traced.await.map_err(|error| failed(error.to_string()))?;
    traced.map(Json).map_err(|error| failed(format!("reading the datapath: {error}")))
}

/// Whether to go on.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FlowsQuery {
    #[serde(default)]
    follow: bool,
}

async fn seen(
    State(instance): State<Instance>,
    Extension(endless): Extension<Endless>,
    query: Result<Query<FlowsQuery>, QueryRejection>,
) -> Result<Response, (StatusCode, Json<Refusal>)> {
    let Query(FlowsQuery { follow }) =
        query.map_err(|error| refusal(StatusCode::BAD_REQUEST, error.body_text()))?;
    let follower = instance.flows.follow();
    let follower = follower
        .ok_or_else(|| refusal(StatusCode::SERVICE_UNAVAILABLE, "too many follow the flows already"))?;
    if !follow {
        return Ok(Json(flows::moment(follower).await).into_response());
    }
    let content_type = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((content_type, Body::from_stream(flows::lines(follower, endless))).into_response())
}

fn parse(kind: &str) -> Result<Kind, (StatusCode, Json<Refusal>)> {
    kind.parse().map_err(|error: String| refusal(StatusCode::NOT_FOUND, error))
}

fn refusal(status: StatusCode, error: impl Into<String>) -> Refused {
    (status, Json(Refusal { error: error.into() }))
}
