//! The way to another cluster: a kubeconfig in a Secret of our own namespace. What is in it is said nowhere, not even in an error.
use super::super::watching::{WATCH_SECONDS, pauses};
use crate::api::{bgp_peer::SecretReference, scalar::quoted};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, Config,
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::sync::watch;

/// How long the API server may say nothing: watches end after [`WATCH_SECONDS`].
const SILENCE: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 30);

/// What is known of a Secret. It has no `Debug`.
#[derive(Clone, Default)]
pub(super) enum Credentials {
    /// Not yet read.
    #[default]
    Unknown,
    /// There are none, and why.
    Missing(String),
    /// A kubeconfig, or what claims to be one.
    Kubeconfig(Arc<[u8]>),
}

/// Follows the Secret for ever.
pub(super) async fn follow(
    client: Client,
    namespace: String,
    reference: SecretReference,
    said: watch::Sender<Credentials>,
) {
    let SecretReference { name, key } = &reference;
    let config = watcher::Config::default().timeout(WATCH_SECONDS).fields(&format!("metadata.name={name}"));
    let mut events = pin!(watcher(Api::<Secret>::namespaced(client, &namespace), config).backoff(pauses()));
    let missing = || Credentials::Missing(format!("there is no Secret/{name} in the namespace {namespace}"));
    let of = |secret: Secret| match secret.data.unwrap_or_default().remove(key) {
        Some(value) => Credentials::Kubeconfig(value.0.into()),
        None => Credentials::Missing(format!("Secret/{name} has no key {}", quoted(key))),
    };
    let mut listed = None;
    loop {
        let credentials = match events.try_next().await {
            Ok(Some(Event::Init)) => {
                listed = None;
                continue;
            }
            Ok(Some(Event::InitApply(secret))) => {
                listed = Some(of(secret));
                continue;
            }
            Ok(Some(Event::InitDone)) => listed.take().unwrap_or_else(missing),
            Ok(Some(Event::Apply(secret))) => of(secret),
            Ok(Some(Event::Delete(_))) => missing(),
            // It ends never.
            Ok(None) => return,
            // What was known stays.
            Err(error) => {
                tracing::debug!(%error, secret = name, "a Secret could not be watched; it is tried again");
                continue;
            }
        };
        said.send_if_modified(|before| {
            let is_same = match (&*before, &credentials) {
                (Credentials::Missing(before), Credentials::Missing(now)) => before == now,
                (Credentials::Kubeconfig(before), Credentials::Kubeconfig(now)) => before == now,
                _ => false,
            };
            *before = credentials;
            !is_same
        });
    }
}

/// A client with the rights that a kubeconfig gives.
///
/// # Errors
/// Why it cannot be used, without a word of what is in it.
pub(super) async fn client(kubeconfig: &[u8]) -> Result<Client, &'static str> {
    const NOT_ONE: &str = "is no kubeconfig";
    const NOT_USABLE: &str = "is a kubeconfig whose server, certificates or credentials cannot be used";
    let text = std::str::from_utf8(kubeconfig).map_err(|_| NOT_ONE)?;
    let file = Kubeconfig::from_yaml(text).map_err(|_| NOT_ONE)?;
    if is_of_this_host(&file) {
        return Err("names files or commands: certificates and credentials have to stand in it");
    }
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    let mut config = config.map_err(|_| NOT_USABLE)?;
    config.connect_timeout = Some(super::link::TRY);
    config.read_timeout = Some(SILENCE);
    config.write_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    // The link tries again by itself.
    config.default_retry = false;
    Ok(ClientBuilder::try_from(config).map_err(|_| NOT_USABLE)?.build())
}

/// Whether it names what is not in it: who may write the Secret must not read files or run commands here.
fn is_of_this_host(file: &Kubeconfig) -> bool {
    let clusters = file.clusters.iter().filter_map(|named| named.cluster.as_ref());
    let users = file.auth_infos.iter().filter_map(|named| named.auth_info.as_ref());
    clusters.into_iter().any(|cluster| cluster.certificate_authority.is_some())
        || users.into_iter().any(|user| {
            user.exec.is_some()
                || user.auth_provider.is_some()
                || user.token_file.is_some()
                || user.client_certificate.is_some()
                || user.client_key.is_some()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refused(cluster: &str, user: &str) -> Option<&'static str> {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
             contexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n\
             clusters: [{{name: a, cluster: {{server: 'http://192.0.2.1:6443', {cluster}}}}}]\n\
             users: [{{name: a, user: {{{user}}}}}]\n"
        );
        client(text.as_bytes()).await.err()
    }

    #[tokio::test]
    async fn only_what_stands_in_it_is_used() {
        assert_eq!(refused("", "token: s3cret").await, None);
        let host = Some("names files or commands: certificates and credentials have to stand in it");
        for user in [
            "tokenFile: /etc/shadow",
            "exec: {command: /bin/true}",
            "client-key: /etc/key",
            "client-certificate: /c",
        ] {
            assert_eq!(refused("", user).await, host, "{user}");
        }
        assert_eq!(refused("certificate-authority: /etc/ca", "").await, host);
        let unusable = refused("certificate-authority-data: s3cret", "").await;
        assert!(unusable.is_some_and(|reason| !reason.contains("s3cret")));
        assert_eq!(client(b"s3cret").await.err(), Some("is no kubeconfig"));
        assert_eq!(client(&[0xff, 0xfe]).await.err(), Some("is no kubeconfig"));
    }
}
