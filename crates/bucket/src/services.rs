//! Clients of each service, made from a URL and the options of reaching it.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::prefix::PrefixStore;
use object_store::{Certificate, ClientOptions, ObjectStore};
use rekindle_engine::store_opener::OpenedStore;

use super::clients::{Client, Clients, retries};
use super::credentials::{of_azure, of_gcs, of_s3, read_file};
use super::requests::{READING_WAIT, WatchedConnector};
use super::slow_down::{Class, RequestWatch};
use super::{BucketAccess, BucketUrl, Environment, Service};

/// Time in which a connection must be made.
const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// Opens a bucket; nothing is asked of the service yet. `watch` counts its requests. The error is for people.
///
/// Credentials come from the file or the profile that `access` names, else from the variables of the service, else from
/// its usual file, else from the metadata service of the machine. Files are read anew at each opening.
pub fn open(
    url: &BucketUrl,
    access: &BucketAccess,
    environment: &Environment,
    watch: &Arc<RequestWatch>,
) -> Result<OpenedStore, String> {
    let certificates = authorities(access)?;
    let way = |class| Way { url, access, environment, certificates: &certificates, watch, class };
    let clients = Clients::new(url.to_string(), |class| way(class).client())?;
    if url.prefix().is_root() {
        return Ok(opened(clients));
    }
    Ok(opened(PrefixStore::new(clients, url.prefix().clone())))
}

fn opened(client: impl Client) -> OpenedStore {
    let client = Arc::new(client);
    let objects: Arc<dyn ObjectStore> = client.clone();
    OpenedStore { objects, uploads: Some(client) }
}

fn authorities(access: &BucketAccess) -> Result<Vec<Certificate>, String> {
    let Some(path) = &access.authorities_file else { return Ok(Vec::new()) };
    let text = read_file("bucket.authorities_file", path)?;
    let certificates = Certificate::from_pem_bundle(text.as_bytes()).unwrap_or_default();
    if certificates.is_empty() {
        return Err(format!(
            "{} has no certificate: set bucket.authorities_file to a file with PEM certificates",
            path.display()
        ));
    }
    Ok(certificates)
}

/// The way to a bucket for the requests of one class.
struct Way<'a> {
    url: &'a BucketUrl,
    access: &'a BucketAccess,
    environment: &'a Environment,
    certificates: &'a [Certificate],
    watch: &'a Arc<RequestWatch>,
    class: Class,
}

impl Way<'_> {
    fn client(&self) -> Result<Arc<dyn Client>, String> {
        match self.url.service() {
            Service::S3 => self.built(self.s3()?.build()),
            Service::Gcs => self.built(self.gcs()?.build()),
            Service::Azure => self.built(self.azure()?.build()),
        }
    }

    fn s3(&self) -> Result<AmazonS3Builder, String> {
        let mut builder = of_s3(self.access, self.environment, AmazonS3Builder::new())?
            .with_bucket_name(self.url.bucket())
            .with_client_options(self.options())
            .with_retry(retries(self.class))
            .with_http_connector(self.connector())
            // One object is deleted at a time, and not every service can delete several.
            .with_disable_bulk_delete(true);
        if let Some(region) = &self.access.region {
            builder = builder.with_region(region);
        }
        let in_path = self.access.path_style.unwrap_or(self.access.endpoint.is_some());
        builder = builder.with_virtual_hosted_style_request(!in_path);
        if let Some(endpoint) = &self.access.endpoint {
            builder = builder.with_endpoint(if in_path {
                endpoint.clone()
            } else {
                endpoint.replacen("://", &format!("://{}.", self.url.bucket()), 1)
            });
        }
        Ok(builder)
    }

    fn gcs(&self) -> Result<GoogleCloudStorageBuilder, String> {
        let builder = of_gcs(self.access, self.environment, GoogleCloudStorageBuilder::new())?
            .with_bucket_name(self.url.bucket())
            .with_client_options(self.options())
            .with_retry(retries(self.class))
            .with_http_connector(self.connector());
        Ok(match &self.access.endpoint {
            Some(endpoint) => builder.with_base_url(endpoint),
            None => builder,
        })
    }

    fn azure(&self) -> Result<MicrosoftAzureBuilder, String> {
        let builder = of_azure(self.access, self.environment, MicrosoftAzureBuilder::new())?
            .with_container_name(self.url.bucket())
            .with_client_options(self.options())
            .with_retry(retries(self.class))
            .with_http_connector(self.connector());
        Ok(match &self.access.endpoint {
            Some(endpoint) => builder.with_endpoint(endpoint.clone()),
            None => builder,
        })
    }

    /// The limits on all of a request are those of its class and of its caller; the library's own is the same for a page
    /// and a part.
    fn options(&self) -> ClientOptions {
        let options = ClientOptions::new()
            .with_allow_http(self.access.allow_http)
            .with_connect_timeout(CONNECT_WAIT)
            .with_timeout_disabled();
        let options = match self.class {
            Class::Reading => options.with_read_timeout(READING_WAIT),
            Class::Publishing => options,
        };
        self.certificates.iter().cloned().fold(options, ClientOptions::with_root_certificate)
    }

    fn connector(&self) -> WatchedConnector {
        WatchedConnector { class: self.class, watch: Arc::clone(self.watch) }
    }

    fn built<T: Client>(&self, built: object_store::Result<T>) -> Result<Arc<dyn Client>, String> {
        match built {
            Ok(store) => Ok(Arc::new(store)),
            Err(error) => Err(format!(
                "{} cannot be opened: {error}; see the settings that begin with `bucket.`",
                self.url
            )),
        }
    }
}
