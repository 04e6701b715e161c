//! The way of a daemon to a store in a bucket.

use std::io;
use std::path::Path;

use rekindle_bucket::{BucketAccess, BucketUrl, Environment};

/// Words of a command line that name a store in a bucket; the credentials among the variables are written to a file.
pub fn bucket_words(
    url: &BucketUrl,
    access: &BucketAccess,
    environment: &Environment,
    credentials_file: &Path,
) -> io::Result<Vec<String>> {
    let is_of_service = |name: &str| name.starts_with("AWS_") || name.starts_with("AZURE_");
    let credentials = environment.iter().filter(|(name, _)| is_of_service(name));
    let lines = credentials.map(|(name, value)| format!("{} = {value}\n", name.to_ascii_lowercase()));
    std::fs::write(credentials_file, lines.collect::<String>())?;
    let BucketAccess { endpoint, path_style, account, allow_http, .. } = access;
    let named = [
        ("--store", Some(url.to_string())),
        ("--bucket-endpoint", endpoint.clone()),
        ("--bucket-path-style", path_style.map(|is_in_path| is_in_path.to_string())),
        ("--bucket-account", account.clone()),
        ("--bucket-allow-http", Some(allow_http.to_string())),
        ("--bucket-credentials-file", Some(credentials_file.display().to_string())),
    ];
    let given = named.into_iter().filter_map(|(name, value)| Some([name.to_owned(), value?]));
    Ok(given.flatten().collect())
}
