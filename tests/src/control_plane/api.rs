//! The API of a control plane as JSON over HTTP, through `kubectl proxy` on a Unix socket: for tests that look at
//! what the API server answers in full, a refusal too.
use super::{ControlPlane, server::Server};
use crate::{Error, wait_until};
use serde_json::Value;
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
};

/// Speaks to the API server, with all rights. Ends with its control plane at the latest.
#[derive(Debug)]
pub struct Api {
    socket: PathBuf,
    _proxy: Server,
}

/// What the API server answers.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code of HTTP.
    pub code: u16,
    /// The object, or a `Status` that says what is wrong; a text where it was no JSON.
    pub body: Value,
}

impl Answer {
    /// The object; an error if it was refused.
    pub fn object(self) -> Result<Value, Error> {
        if self.code < 300 { Ok(self.body) } else { Err(format!("{}: {}", self.code, self.body).into()) }
    }
}

impl Api {
    /// Starts the proxy, and waits until it answers.
    pub(super) fn start(plane: &ControlPlane, socket: PathBuf) -> Result<Self, Error> {
        let arguments = [
            "proxy".to_owned(),
            format!("--kubeconfig={}", plane.kubeconfig().display()),
            format!("--unix-socket={}", socket.display()),
        ];
        let proxy = Server::start("kubectl", &plane.dir, plane.namespace.as_ref(), &arguments)?;
        let mut api = Api { socket, _proxy: proxy };
        wait_until("kubectl proxy answers", || {
            api._proxy.check()?;
            Ok(api.get("/readyz").is_ok_and(|answer| answer.code == 200))
        })?;
        Ok(api)
    }

    /// GET of a path, which may have a query.
    pub fn get(&self, path: &str) -> Result<Answer, Error> {
        self.send("GET", path, &[], &Value::Null)
    }

    /// GET of a list or object as a table: the columns that users see.
    pub fn table(&self, path: &str) -> Result<Value, Error> {
        let accept = ("Accept", "application/json;as=Table;g=meta.k8s.io;v=v1");
        self.send("GET", path, &[accept], &Value::Null)?.object()
    }

    /// POST of an object.
    pub fn post(&self, path: &str, object: &Value) -> Result<Answer, Error> {
        self.send("POST", path, &[("Content-Type", "application/json")], object)
    }

    /// PUT of an object: what was there before is replaced.
    pub fn put(&self, path: &str, object: &Value) -> Result<Answer, Error> {
        self.send("PUT", path, &[("Content-Type", "application/json")], object)
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Result<Answer, Error> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        // HTTP/1.0: the answer is not chunked and ends with the connection.
        let mut request =
            format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.write_all(format!("{request}\r\n{body}").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("an answer without a head")?;
        let code = head.split(' ').nth(1).ok_or("an answer without a code")?.parse()?;
        Ok(Answer { code, body: serde_json::from_str(body).unwrap_or_else(|_| body.into()) })
    }
}
