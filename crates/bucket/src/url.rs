//! The URL of a store in a bucket: `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.

use std::fmt;

use object_store::path::Path as ObjectPath;

/// Service that keeps a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// S3, or one that speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage, where a bucket is called a container.
    Azure,
}

/// A checked URL of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketUrl {
    service: Service,
    bucket: String,
    prefix: ObjectPath,
}

/// Bytes of a bucket's name: the longest that any of the services allows.
const NAME_BYTES_MAX: usize = 222;

impl Service {
    const ALL: [Self; 3] = [Self::S3, Self::Gcs, Self::Azure];

    /// Beginning of its URLs.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gcs => "gs",
            Self::Azure => "az",
        }
    }
}

impl BucketUrl {
    /// The bucket of a URL, given in two parts. A refusal says what a store must be instead.
    pub fn parse(scheme: &str, rest: &str) -> Result<Self, String> {
        let named = |service: &Service| service.scheme().eq_ignore_ascii_case(scheme);
        let Some(service) = Service::ALL.into_iter().find(named) else {
            return Err(format!(
                "a directory, or a URL that begins with s3://, gs://, az:// or file://: there are no {scheme} stores"
            ));
        };
        let scheme = service.scheme();
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.contains('@') {
            return Err(format!(
                "{scheme}://BUCKET/PREFIX without user or password: give credentials in bucket.credentials_file or in \
                 the environment"
            ));
        }
        if rest.contains(['?', '#']) {
            return Err(format!(
                "{scheme}://BUCKET/PREFIX without ? and #: give all else in the settings that begin with `bucket.`"
            ));
        }
        let is_letter = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
        if bucket.is_empty() || bucket.len() > NAME_BYTES_MAX || !bucket.chars().all(is_letter) {
            return Err(format!(
                "{scheme}://BUCKET/PREFIX, where BUCKET is a name of letters, digits, -, _ and .; the address of a \
                 service goes into bucket.endpoint"
            ));
        }
        let prefix = ObjectPath::parse(prefix.strip_suffix('/').unwrap_or(prefix));
        let prefix = prefix.map_err(|error| {
            format!("{scheme}://{bucket}/PREFIX, where PREFIX is names with one / between them ({error})")
        })?;
        Ok(Self { service, bucket: bucket.to_owned(), prefix })
    }

    /// The service that keeps it.
    pub fn service(&self) -> Service {
        self.service
    }

    /// Its name at the service.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The place of the store in it; empty for all of it.
    pub fn prefix(&self) -> &ObjectPath {
        &self.prefix
    }
}

impl fmt::Display for BucketUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.service.scheme(), self.bucket)?;
        if self.prefix.is_root() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

/// A value that was given for a setting, as an error may repeat it: a URL's user and password, and what follows a `?` in
/// it, which may be a signature, are left out.
pub fn shown_without_secrets(given: &str) -> String {
    if let Some(inner) = given.strip_prefix('"').and_then(|given| given.strip_suffix('"')) {
        return format!("\"{}\"", shown_without_secrets(inner));
    }
    let Some((scheme, rest)) = given.split_once("://") else { return given.to_owned() };
    let rest = rest.split_once('?').map_or_else(|| rest.to_owned(), |(before, _)| format!("{before}?..."));
    let host = rest.rsplit_once('@').map_or_else(|| rest.clone(), |(_, host)| format!("...@{host}"));
    format!("{scheme}://{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Result<BucketUrl, String> {
        let (scheme, rest) = url.split_once("://").expect("a URL");
        BucketUrl::parse(scheme, rest)
    }

    #[test]
    fn a_bucket_has_a_service_a_name_and_a_place_in_it() {
        let url = parsed("S3://my-bucket/nodes/one/").unwrap();
        assert_eq!(
            (url.service(), url.bucket(), url.prefix().as_ref()),
            (Service::S3, "my-bucket", "nodes/one")
        );
        assert_eq!(url.to_string(), "s3://my-bucket/nodes/one");
        assert_eq!(parsed("gs://b").unwrap().to_string(), "gs://b");
        assert_eq!(parsed("az://c/").unwrap().service(), Service::Azure);
    }

    #[test]
    fn a_url_that_is_no_buckets_is_refused_with_what_to_write_instead() {
        for (url, says) in [
            ("ftp://b/p", "there are no ftp stores"),
            ("s3:///p", "where BUCKET is a name"),
            ("s3://127.0.0.1:9000/b", "goes into bucket.endpoint"),
            ("s3://KEY:secret@b", "without user or password: give credentials in bucket.credentials_file"),
            ("az://c?sig=abc", "without ? and #"),
            ("gs://b/a//b", "names with one / between them"),
            ("gs://b/../a", "names with one / between them"),
        ] {
            let refusal = parsed(url).unwrap_err();
            assert!(refusal.contains(says) && !refusal.contains("secret"), "{url}: {refusal}");
        }
    }

    #[test]
    fn an_error_repeats_no_password_and_no_signature() {
        assert_eq!(shown_without_secrets("s3://KEY:sec/ret@b/p"), "s3://...@b/p");
        assert_eq!(shown_without_secrets("\"s3://KEY:secret@b\""), "\"s3://...@b\"");
        assert_eq!(shown_without_secrets("az://c/p?sig=abc@d"), "az://c/p?...");
        assert_eq!(shown_without_secrets("/srv/a@b?c"), "/srv/a@b?c");
    }
}
