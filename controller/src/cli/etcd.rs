//! How to reach etcd, for all commands that do.
use super::Failure;
use crate::store::etcd::{Access, Options, keys::DEFAULT_PREFIX};
use std::path::PathBuf;

/// How to reach etcd.
#[derive(Debug, clap::Args)]
pub(super) struct Etcd {
    /// URLs of etcd's members (client URLs), http:// or https://, with commas between them.
    #[arg(long, value_name = "URL,…", value_delimiter = ',')]
    etcd_endpoints: Vec<String>,
    /// Authorities that the certificates of members have to be of, PEM [default: those that the system trusts].
    #[arg(long, value_name = "FILE")]
    etcd_ca: Option<PathBuf>,
    /// Certificate that is shown to members, PEM.
    #[arg(long, value_name = "FILE")]
    etcd_cert: Option<PathBuf>,
    /// Key of the certificate, PEM.
    #[arg(long, value_name = "FILE")]
    etcd_key: Option<PathBuf>,
    /// User of etcd, where authentication is on.
    #[arg(long, value_name = "NAME")]
    etcd_user: Option<String>,
    /// File whose first line is the user's password; it is read whenever the password is asked for.
    #[arg(long, value_name = "FILE")]
    etcd_password_file: Option<PathBuf>,
    /// What all keys of the fleet begin with [default: /fairlead].
    #[arg(long, value_name = "PREFIX")]
    etcd_prefix: Option<String>,
}

impl Etcd {
    /// Whether any of it was said.
    pub(super) fn is_said(&self) -> bool {
        let files = [&self.etcd_ca, &self.etcd_cert, &self.etcd_key, &self.etcd_password_file];
        let texts = [&self.etcd_user, &self.etcd_prefix];
        !self.etcd_endpoints.is_empty()
            || files.into_iter().any(Option::is_some)
            || texts.into_iter().any(Option::is_some)
    }

    pub(super) fn options(self) -> Result<Options, Failure> {
        if self.etcd_endpoints.is_empty() {
            return Err(Failure::Usage("--etcd-endpoints is missing".to_owned()));
        }
        Ok(Options {
            endpoints: self.etcd_endpoints,
            ca: self.etcd_ca,
            cert: self.etcd_cert,
            key: self.etcd_key,
            user: self.etcd_user,
            password_file: self.etcd_password_file,
            prefix: self.etcd_prefix.unwrap_or_else(|| DEFAULT_PREFIX.to_owned()),
        })
    }

    pub(super) fn access(self) -> Result<Access, Failure> {
        Access::new(&self.options()?).map_err(|error| Failure::Usage(error.to_string()))
    }
}
