//! The way to etcd: which members, with which certificates, as which user.
use super::{
    client::Client,
    keys::{DEFAULT_PREFIX, Keys},
};
use crate::store::StoreError;
use hyper::Uri;
use hyper_rustls::ConfigBuilderExt;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What was said of etcd. Passwords and keys are in files.
#[derive(Clone, Debug)]
pub struct Options {
    /// URLs of members: `http://HOST:PORT` or `https://HOST:PORT`.
    pub endpoints: Vec<String>,
    /// Authorities that members' certificates are to be of, PEM; none: those that the system trusts.
    pub ca: Option<PathBuf>,
    /// Our certificate and those that lead to its authority, PEM.
    pub cert: Option<PathBuf>,
    /// Its key, PEM.
    pub key: Option<PathBuf>,
    /// Who we are; none: nobody is asked for.
    pub user: Option<String>,
    /// The password of `user`: the first line. It is read at each authentication.
    pub password_file: Option<PathBuf>,
    /// Where keys begin.
    pub prefix: String,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            endpoints: Vec::new(),
            ca: None,
            cert: None,
            key: None,
            user: None,
            password_file: None,
            prefix: DEFAULT_PREFIX.to_owned(),
        }
    }
}

/// Who we are to which etcd. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    pub(super) client: Client,
    pub(super) keys: Keys,
}

impl Access {
    /// Reads the files. Nothing is sent yet.
    ///
    /// # Errors
    /// [`StoreError::EtcdAccess`]: what is wrong with which option.
    pub fn new(options: &Options) -> Result<Self, StoreError> {
        let refused =
            |option: &str, reason: String| StoreError::EtcdAccess { option: option.to_owned(), reason };
        if options.endpoints.is_empty() {
            return Err(refused("--etcd-endpoints", "is missing".to_owned()));
        }
        let endpoint = |text: &String| {
            endpoint(text).map_err(|reason| refused(&format!("--etcd-endpoints {text}"), reason))
        };
        let endpoints = options.endpoints.iter().map(endpoint).collect::<Result<Vec<_>, _>>()?;
        let prefix = &options.prefix;
        if !prefix.starts_with('/') || prefix.contains("//") || prefix.chars().any(char::is_control) {
            let reason = "begins with a slash, and has no empty part".to_owned();
            return Err(refused(&format!("--etcd-prefix {prefix:?}"), reason));
        }
        let has_tls = options.ca.is_some() || options.cert.is_some() || options.key.is_some();
        if has_tls && endpoints.iter().any(|uri| uri.scheme_str() == Some("http")) {
            let reason = "certificates are for https:// only".to_owned();
            return Err(refused("--etcd-endpoints", reason));
        }
        let user = match (&options.user, &options.password_file) {
            (None, None) => None,
            (Some(user), Some(file)) => {
                read_password(file)
                    .map_err(|error| refused(&named("--etcd-password-file", file), error.to_string()))?;
                Some((user.clone(), file.clone()))
            }
            (Some(_), None) => return Err(refused("--etcd-user", "wants --etcd-password-file".to_owned())),
            (None, Some(_)) => return Err(refused("--etcd-password-file", "wants --etcd-user".to_owned())),
        };
        if user.is_some() && endpoints.iter().any(|uri| uri.scheme_str() == Some("http")) {
            tracing::warn!("the password goes to etcd in plain text: not all endpoints are https://");
        }
        let tls = tls(options, refused)?;
        Ok(Access { client: Client::new(endpoints, tls, user), keys: Keys::new(prefix) })
    }
}

/// The first line of a file.
pub(super) fn read_password(file: &Path) -> io::Result<String> {
    let text = fs::read_to_string(file)?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "its first line is empty")),
    }
}

fn endpoint(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.trim_end_matches('/').parse().map_err(|error| format!("is no URL: {error}"))?;
    match uri.scheme_str() {
        Some("http" | "https") if matches!(uri.path(), "" | "/") && uri.query().is_none() => Ok(uri),
        _ => Err("is not http://HOST:PORT or https://HOST:PORT".to_owned()),
    }
}

fn tls(options: &Options, refused: impl Fn(&str, String) -> StoreError) -> Result<ClientConfig, StoreError> {
    let versions = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions();
    let builder = versions.map_err(|error| refused("TLS", error.to_string()))?;
    let builder = match &options.ca {
        Some(file) => {
            let name = named("--etcd-ca", file);
            let mut roots = RootCertStore::empty();
            for certificate in certificates(file).map_err(|reason| refused(&name, reason))? {
                roots.add(certificate).map_err(|error| refused(&name, error.to_string()))?;
            }
            builder.with_root_certificates(roots)
        }
        // A machine need not have any where nobody says https.
        None => builder
            .clone()
            .with_native_roots()
            .unwrap_or_else(|_| builder.with_root_certificates(RootCertStore::empty())),
    };
    match (&options.cert, &options.key) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(cert), Some(key)) => {
            let chain = certificates(cert).map_err(|reason| refused(&named("--etcd-cert", cert), reason))?;
            let name = named("--etcd-key", key);
            let private =
                PrivateKeyDer::from_pem_file(key).map_err(|error| refused(&name, error.to_string()))?;
            builder.with_client_auth_cert(chain, private).map_err(|error| refused(&name, error.to_string()))
        }
        (Some(_), None) => Err(refused("--etcd-cert", "wants --etcd-key".to_owned())),
        (None, Some(_)) => Err(refused("--etcd-key", "wants --etcd-cert".to_owned())),
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_file_iter(file).map_err(|error| error.to_string())?;
    let all = all.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    if all.is_empty() { Err("has no certificate".to_owned()) } else { Ok(all) }
}

fn named(option: &str, file: &Path) -> String {
    format!("{option} {}", file.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(options: Options) -> String {
        Access::new(&options).err().map(|error| error.to_string()).unwrap_or_default()
    }

    fn options(endpoint: &str) -> Options {
        Options { endpoints: vec![endpoint.to_owned()], ..Options::default() }
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        assert_eq!(refusal(options("http://127.0.0.1:2379/")), "");
        assert_eq!(refusal(options("https://[::1]:2379")), "");
        assert_eq!(refusal(Options::default()), "--etcd-endpoints: is missing");
        let no_url = "--etcd-endpoints 127.0.0.1:2379: is not http://HOST:PORT or https://HOST:PORT";
        assert_eq!(refusal(options("127.0.0.1:2379")), no_url);
        let plain = Options { ca: Some("/ca.pem".into()), ..options("http://127.0.0.1:2379") };
        assert_eq!(refusal(plain), "--etcd-endpoints: certificates are for https:// only");
        let missing = Options { ca: Some("/nowhere/ca.pem".into()), ..options("https://127.0.0.1:2379") };
        assert!(refusal(missing).starts_with("--etcd-ca /nowhere/ca.pem: "));
        let alone = Options { user: Some("root".to_owned()), ..options("http://127.0.0.1:2379") };
        assert_eq!(refusal(alone), "--etcd-user: wants --etcd-password-file");
        let prefix = Options { prefix: "fairlead".to_owned(), ..options("http://127.0.0.1:2379") };
        assert!(refusal(prefix).starts_with("--etcd-prefix \"fairlead\": "));
    }
}
