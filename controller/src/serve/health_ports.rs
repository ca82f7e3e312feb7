//! The health check node ports of Services with `externalTrafficPolicy: Local`: a load balancer in front asks each node there
//! whether it has endpoints. Answers have kube-proxy's form: 200 if there are any, else 503, with the count in the body and
//! in `X-Load-Balancing-Endpoint-Weight`.
use super::serve;
use crate::{desired::HealthPort, reconcile::View};
use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::json;
use std::{collections::BTreeMap, net::Ipv6Addr, time::Duration};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{AbortHandle, JoinSet},
};

/// How often it is tried to have a port that somebody else has.
const RETRY: Duration = Duration::from_secs(30);

/// Serves the ports that are desired until dropped. A port that somebody else has, as kube-proxy does where it runs, is
/// left to him.
pub async fn serve_health_ports(mut view: watch::Receiver<View>) {
    let mut servers = JoinSet::new();
    let mut known: BTreeMap<u16, Server> = BTreeMap::new();
    loop {
        let desired = view.borrow_and_update().desired.clone();
        known.retain(|port, server| {
            let stays = desired.health_ports.contains_key(port);
            if !stays {
                server.task.abort();
            }
            stays
        });
        for (port, health) in &desired.health_ports {
            match known.get(port) {
                Some(server) => drop(server.health.send_replace(health.clone())),
                None => {
                    let (sender, receiver) = watch::channel(health.clone());
                    let task = servers.spawn(serve_port(*port, receiver));
                    known.insert(*port, Server { health: sender, task });
                }
            }
        }
        // Those that have ended are of no more interest.
        while servers.try_join_next().is_some() {}
        if view.changed().await.is_err() {
            // The loop that desires has ended; what it said last holds.
            std::future::pending::<()>().await;
        }
    }
}

/// A port that is served, unless somebody else has it.
struct Server {
    health: watch::Sender<HealthPort>,
    task: AbortHandle,
}

/// Tries again from time to time: who has the port may leave it.
async fn serve_port(port: u16, health: watch::Receiver<HealthPort>) {
    loop {
        match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
            Ok(listener) => return serve(listener, router(health)).await,
            Err(error) => tracing::warn!(port, %error, "health check node port not served"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Whatever the path: kube-proxy does not look at it either.
fn router(health: watch::Receiver<HealthPort>) -> Router {
    Router::new().fallback(answer).with_state(health)
}

async fn answer(State(health): State<watch::Receiver<HealthPort>>) -> Response {
    let HealthPort { namespace, name, local_endpoints } = &*health.borrow();
    let status = if *local_endpoints > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [
        ("x-content-type-options", "nosniff".to_owned()),
        ("x-load-balancing-endpoint-weight", local_endpoints.to_string()),
    ];
    let body = json!({
        "service": {"namespace": namespace, "name": name},
        "localEndpoints": local_endpoints,
        "serviceProxyHealthy": true,
    });
    (status, headers, Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::connection;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn asked(health: watch::Receiver<HealthPort>) -> String {
        let (mut client, server) = tokio::io::duplex(4096);
        let server = tokio::spawn(connection(server, router(health)));
        client.write_all(b"GET /healthz HTTP/1.1\r\nhost: node\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        server.await.unwrap();
        answer
    }

    #[tokio::test]
    async fn answers_as_kube_proxy_does() {
        let port =
            |local_endpoints| HealthPort { namespace: "shop".into(), name: "web".into(), local_endpoints };
        let (sender, health) = watch::channel(port(2));
        let answer = asked(health.clone()).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("\r\nx-load-balancing-endpoint-weight: 2\r\n"), "{answer}");
        let body =
            r#"{"localEndpoints":2,"service":{"name":"web","namespace":"shop"},"serviceProxyHealthy":true}"#;
        assert!(answer.ends_with(body), "{answer}");
        sender.send_replace(port(0));
        let answer = asked(health).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("\"localEndpoints\":0"), "{answer}");
    }
}
