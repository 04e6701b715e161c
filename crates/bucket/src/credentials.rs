//! Credentials of a bucket, from the usual places. They stay in the clients; errors name places, never values.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::StaticCredentialProvider;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredential};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use rekindle_input::regular_file::read_text;

use super::files::{Profile, profile_in};
use super::{BucketAccess, Environment};

/// Variables of S3 that say who this is, and where the bucket is. All others are left to the settings.
const OF_S3: [(&str, AmazonS3ConfigKey); 14] = [
    ("AWS_ACCESS_KEY_ID", AmazonS3ConfigKey::AccessKeyId),
    ("AWS_SECRET_ACCESS_KEY", AmazonS3ConfigKey::SecretAccessKey),
    ("AWS_SESSION_TOKEN", AmazonS3ConfigKey::Token),
    ("AWS_REGION", AmazonS3ConfigKey::Region),
    ("AWS_DEFAULT_REGION", AmazonS3ConfigKey::DefaultRegion),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", AmazonS3ConfigKey::WebIdentityTokenFile),
    ("AWS_ROLE_ARN", AmazonS3ConfigKey::RoleArn),
    ("AWS_ROLE_SESSION_NAME", AmazonS3ConfigKey::RoleSessionName),
    ("AWS_ENDPOINT_URL_STS", AmazonS3ConfigKey::StsEndpoint),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", AmazonS3ConfigKey::ContainerCredentialsRelativeUri),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", AmazonS3ConfigKey::ContainerCredentialsFullUri),
    ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", AmazonS3ConfigKey::ContainerAuthorizationTokenFile),
    ("AWS_METADATA_ENDPOINT", AmazonS3ConfigKey::MetadataEndpoint),
    ("AWS_IMDSV1_FALLBACK", AmazonS3ConfigKey::ImdsV1Fallback),
];

/// Variables of Google that say who this is.
const OF_GCS: [(&str, GoogleConfigKey); 4] = [
    ("GOOGLE_SERVICE_ACCOUNT", GoogleConfigKey::ServiceAccount),
    ("GOOGLE_SERVICE_ACCOUNT_PATH", GoogleConfigKey::ServiceAccount),
    ("GOOGLE_SERVICE_ACCOUNT_KEY", GoogleConfigKey::ServiceAccountKey),
    ("GOOGLE_APPLICATION_CREDENTIALS", GoogleConfigKey::ApplicationCredentials),
];

/// Names of Azure's values that say who this is, in variables and files.
const OF_AZURE: [&str; 15] = [
    "azure_storage_account_name",
    "azure_storage_account_key",
    "azure_storage_access_key",
    "azure_storage_sas_key",
    "azure_storage_sas_token",
    "azure_storage_token",
    "azure_client_id",
    "azure_client_secret",
    "azure_tenant_id",
    "azure_authority_id",
    "azure_authority_host",
    "azure_federated_token_file",
    "azure_identity_endpoint",
    "azure_object_id",
    "azure_msi_resource_id",
];

/// The builder with the credentials and the region of S3 that are given.
pub(super) fn of_s3(
    access: &BucketAccess,
    environment: &Environment,
    mut builder: AmazonS3Builder,
) -> Result<AmazonS3Builder, String> {
    for (name, key) in OF_S3 {
        if let Some(value) = given(environment, name) {
            builder = builder.with_config(key, value);
        }
    }
    let named = access.profile.as_deref().or_else(|| given(environment, "AWS_PROFILE"));
    let name = named.unwrap_or("default");
    if access.region.is_none()
        && given(environment, "AWS_REGION").or_else(|| given(environment, "AWS_DEFAULT_REGION")).is_none()
        && let Some(region) = region_of_profile(environment, name)
    {
        builder = builder.with_region(region);
    }
    let is_named = access.credentials_file.is_some() || access.profile.is_some();
    if !is_named && says_who_this_is(environment)? {
        return Ok(builder);
    }
    Ok(match profile_of_s3(access, environment, name)? {
        Some(credential) => builder.with_credentials(Arc::new(StaticCredentialProvider::new(credential))),
        None => builder,
    })
}

/// True if the variables of S3 name a key, or a place that gives one.
fn says_who_this_is(environment: &Environment) -> Result<bool, String> {
    let has = |name| given(environment, name).is_some();
    match (has("AWS_ACCESS_KEY_ID"), has("AWS_SECRET_ACCESS_KEY")) {
        (true, true) => return Ok(true),
        (true, false) => return Err(without("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")),
        (false, true) => return Err(without("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")),
        (false, false) => {}
    }
    Ok(has("AWS_WEB_IDENTITY_TOKEN_FILE")
        || has("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        || has("AWS_CONTAINER_CREDENTIALS_FULL_URI"))
}

fn without(there: &str, missing: &str) -> String {
    format!(
        "{there} is set and {missing} is not: set both, or neither and name a file in bucket.credentials_file"
    )
}

/// The key of a profile; none if no file is named and the usual one is not there.
fn profile_of_s3(
    access: &BucketAccess,
    environment: &Environment,
    name: &str,
) -> Result<Option<AwsCredential>, String> {
    let usual = given(environment, "AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
    let usual = usual.or_else(|| in_home(environment, ".aws/credentials"));
    let is_wanted = access.credentials_file.is_some() || access.profile.is_some();
    let Some(path) = access.credentials_file.clone().or(usual) else {
        return if is_wanted { Err(no_home(name)) } else { Ok(None) };
    };
    if !is_wanted && !path.exists() {
        return Ok(None);
    }
    let text = read_file("bucket.credentials_file", &path)?;
    let place = format!("profile `{name}` in {}", path.display());
    let Some(profile) = profile_in(&text, name) else {
        return if is_wanted {
            Err(format!("{place} is not there: add it, or set bucket.profile to one that is"))
        } else {
            Ok(None)
        };
    };
    key_of(&profile, &place).map(Some)
}

fn key_of(profile: &Profile, place: &str) -> Result<AwsCredential, String> {
    let value = |name: &str| profile.get(name).filter(|value| !value.is_empty()).cloned();
    match (value("aws_access_key_id"), value("aws_secret_access_key")) {
        (Some(key_id), Some(secret_key)) => {
            Ok(AwsCredential { key_id, secret_key, token: value("aws_session_token") })
        }
        (Some(_), None) => Err(format!("{place} has aws_access_key_id and no aws_secret_access_key: add it")),
        (None, Some(_)) => Err(format!("{place} has aws_secret_access_key and no aws_access_key_id: add it")),
        (None, None) => Err(format!(
            "{place} has no aws_access_key_id and aws_secret_access_key: add them; profiles that sign in, run a program \
             or take a role are not followed"
        )),
    }
}

fn no_home(name: &str) -> String {
    format!(
        "bucket.profile is {name}, and there is no file to look for it in, as HOME is not set: name one in \
         bucket.credentials_file"
    )
}

/// The region that the user's file of configuration has for a profile.
fn region_of_profile(environment: &Environment, name: &str) -> Option<String> {
    let path = given(environment, "AWS_CONFIG_FILE").map(PathBuf::from);
    let path = path.or_else(|| in_home(environment, ".aws/config"))?;
    let region = profile_in(&read_text(&path).ok()?, name)?.remove("region")?;
    (!region.is_empty()).then_some(region)
}

/// The builder with the credentials of Google that are given.
pub(super) fn of_gcs(
    access: &BucketAccess,
    environment: &Environment,
    mut builder: GoogleCloudStorageBuilder,
) -> Result<GoogleCloudStorageBuilder, String> {
    if let Some(path) = &access.credentials_file {
        return Ok(builder.with_service_account_key(read_file("bucket.credentials_file", path)?));
    }
    for (name, key) in OF_GCS {
        if let Some(value) = given(environment, name) {
            builder = builder.with_config(key, value);
        }
    }
    Ok(builder)
}

/// The builder with the account and the credentials of Azure that are given.
pub(super) fn of_azure(
    access: &BucketAccess,
    environment: &Environment,
    builder: MicrosoftAzureBuilder,
) -> Result<MicrosoftAzureBuilder, String> {
    let values = match &access.credentials_file {
        Some(path) => {
            let text = read_file("bucket.credentials_file", path)?;
            let profile = profile_in(&text, "default").unwrap_or_default();
            let known = |name: &&String| OF_AZURE.contains(&name.as_str());
            if !profile.keys().any(|name| known(&name)) {
                return Err(format!(
                    "{} has no line such as `azure_storage_account_key = ...`: add one, or take bucket.credentials_file \
                     away",
                    path.display()
                ));
            }
            profile
        }
        None => {
            let variables = environment.iter().filter(|(_, value)| !value.is_empty());
            variables.map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect()
        }
    };
    let mut builder = builder;
    let mut has_account = false;
    for (name, value) in values.iter().filter(|(name, _)| OF_AZURE.contains(&name.as_str())) {
        has_account |= name == "azure_storage_account_name";
        let key: AzureConfigKey = name.parse().expect("the names are the library's");
        builder = builder.with_config(key, value);
    }
    match &access.account {
        Some(account) => Ok(builder.with_account(account)),
        None if has_account => Ok(builder),
        None => Err("store is a container of Azure without a storage account: set bucket.account".to_owned()),
    }
}

/// Text of a file that `setting` names.
pub(super) fn read_file(setting: &str, path: &Path) -> Result<String, String> {
    read_text(path).map_err(|error| {
        format!("{} cannot be read: {error}; set {setting} to a file that this user can read", path.display())
    })
}

fn given<'a>(environment: &'a Environment, name: &str) -> Option<&'a str> {
    environment.get(name).map(String::as_str).filter(|value| !value.is_empty())
}

fn in_home(environment: &Environment, file: &str) -> Option<PathBuf> {
    given(environment, "HOME").map(|home| Path::new(home).join(file))
}
