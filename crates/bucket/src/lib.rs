//! A store in a bucket: at S3 or a service that speaks its protocol, at Google Cloud Storage, or at Azure.

#[cfg(not(feature = "buckets"))]
mod absent;
#[cfg(feature = "buckets")]
mod clients;
#[cfg(feature = "buckets")]
mod credentials;
#[cfg(feature = "buckets")]
mod files;
#[cfg(feature = "buckets")]
mod requests;
#[cfg(feature = "buckets")]
mod services;
#[cfg(feature = "buckets")]
mod slow_down;
mod url;

use std::collections::BTreeMap;
use std::path::PathBuf;

#[cfg(not(feature = "buckets"))]
pub use absent::{RequestWatch, open};
#[cfg(feature = "buckets")]
pub use services::open;
#[cfg(feature = "buckets")]
pub use slow_down::RequestWatch;
pub use url::{BucketUrl, Service, shown_without_secrets};

/// Options of reaching a bucket. Secrets are never among them: those are read where [`open`] says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BucketAccess {
    /// Address of the service, where it is not the one of its maker.
    pub endpoint: Option<String>,
    /// Region of the bucket, for S3.
    pub region: Option<String>,
    /// True if the bucket's name is in the path of a request, false if it is in the name of the host, for S3. Where it is
    /// `None`, it is in the path with an endpoint, and in the host without.
    pub path_style: Option<bool>,
    /// The storage account, for Azure.
    pub account: Option<String>,
    /// The profile in the file of credentials, for S3.
    pub profile: Option<String>,
    /// The file of credentials.
    pub credentials_file: Option<PathBuf>,
    /// Certificates of further authorities that the service's certificate may be signed by, as PEM.
    pub authorities_file: Option<PathBuf>,
    /// True if the service may be spoken to without TLS.
    pub allow_http: bool,
}

/// The variables of a process by name.
pub type Environment = BTreeMap<String, String>;

/// The variables of this process that are text.
pub fn environment() -> Environment {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}
