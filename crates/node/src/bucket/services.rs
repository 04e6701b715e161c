//! Clients of each service, made from a URL and the options of reaching it.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::prefix::PrefixStore;
use object_store::{Certificate, ClientOptions, ObjectStore};

use super::clients::{Clients, retries};
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
) -> Result<Arc<dyn ObjectStore>, String> {
    let certificates = authorities(access)?;
    let client = |class| {
        let options = options(access, &certificates, class);
        let connector = WatchedConnector { class, watch: Arc::clone(watch) };
        match url.service() {
            Service::S3 => s3(url, access, environment, options, connector, class),
            Service::Gcs => gcs(url, access, environment, options, connector, class),
            Service::Azure => azure(url, access, environment, options, connector, class),
        }
    };
    let clients = Clients::new(url.to_string(), client)?;
    if url.prefix().is_root() {
        return Ok(Arc::new(clients));
    }
    Ok(Arc::new(PrefixStore::new(clients, url.prefix().clone())))
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

/// The limits on all of a request are those of its class and of its caller; the library's own is the same for a page and
/// a part.
fn options(access: &BucketAccess, certificates: &[Certificate], class: Class) -> ClientOptions {
    let options = ClientOptions::new()
        .with_allow_http(access.allow_http)
        .with_connect_timeout(CONNECT_WAIT)
        .with_timeout_disabled();
    let options = match class {
        Class::Reading => options.with_read_timeout(READING_WAIT),
        Class::Publishing => options,
    };
    certificates.iter().cloned().fold(options, ClientOptions::with_root_certificate)
}

fn s3(
    url: &BucketUrl,
    access: &BucketAccess,
    environment: &Environment,
    options: ClientOptions,
    connector: WatchedConnector,
    class: Class,
) -> Result<Arc<dyn ObjectStore>, String> {
    let mut builder = of_s3(access, environment, AmazonS3Builder::new())?
        .with_bucket_name(url.bucket())
        .with_client_options(options)
        .with_retry(retries(class))
        .with_http_connector(connector)
        // One object is deleted at a time, and not every service can delete several.
        .with_disable_bulk_delete(true);
    if let Some(region) = &access.region {
        builder = builder.with_region(region);
    }
    let in_path = access.path_style.unwrap_or(access.endpoint.is_some());
    builder = builder.with_virtual_hosted_style_request(!in_path);
    if let Some(endpoint) = &access.endpoint {
        builder = builder.with_endpoint(if in_path {
            endpoint.clone()
        } else {
            endpoint.replacen("://", &format!("://{}.", url.bucket()), 1)
        });
    }
    built(url, builder.build())
}

fn gcs(
    url: &BucketUrl,
    access: &BucketAccess,
    environment: &Environment,
    options: ClientOptions,
    connector: WatchedConnector,
    class: Class,
) -> Result<Arc<dyn ObjectStore>, String> {
    let mut builder = of_gcs(access, environment, GoogleCloudStorageBuilder::new())?
        .with_bucket_name(url.bucket())
        .with_client_options(options)
        .with_retry(retries(class))
        .with_http_connector(connector);
    if let Some(endpoint) = &access.endpoint {
        builder = builder.with_base_url(endpoint);
    }
    built(url, builder.build())
}

fn azure(
    url: &BucketUrl,
    access: &BucketAccess,
    environment: &Environment,
    options: ClientOptions,
    connector: WatchedConnector,
    class: Class,
) -> Result<Arc<dyn ObjectStore>, String> {
    let mut builder = of_azure(access, environment, MicrosoftAzureBuilder::new())?
        .with_container_name(url.bucket())
        .with_client_options(options)
        .with_retry(retries(class))
        .with_http_connector(connector);
    if let Some(endpoint) = &access.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    built(url, builder.build())
}

fn built<T: ObjectStore>(
    url: &BucketUrl,
    built: object_store::Result<T>,
) -> Result<Arc<dyn ObjectStore>, String> {
    match built {
        Ok(store) => Ok(Arc::new(store)),
        Err(error) => {
            Err(format!("{url} cannot be opened: {error}; see the settings that begin with `bucket.`"))
        }
    }
}
