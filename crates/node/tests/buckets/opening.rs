//! Credentials from each place, and buckets that cannot be opened: errors name the setting and no secret.

use std::fs;

use object_store::path::Path;
use object_store::{Error, ObjectStoreExt as _};
use rekindle_bucket::{BucketAccess, BucketUrl, Environment};
use rekindle_testkit::s3::{KEY_ID, S3Server, SECRET};

use crate::bucket::Bucket;
use crate::runtime;

fn variables<const N: usize>(pairs: [(&str, &str); N]) -> Environment {
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

#[test]
fn keys_come_from_a_named_file_a_profile_the_usual_file_and_variables() {
    let (server, place) = (S3Server::start().expect("a server"), tempfile::tempdir().expect("a directory"));
    let keys = format!("aws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n");
    let file = place.path().join("keys");
    fs::write(&file, format!("[default]\n{keys}[wrong]\naws_access_key_id = A\naws_secret_access_key = B\n"))
        .expect("there is room");
    fs::create_dir(place.path().join(".aws")).expect("a directory");
    fs::write(place.path().join(".aws/credentials"), format!("[other]\n{keys}")).expect("there is room");
    let home = place.path().display().to_string();
    let named = BucketAccess { credentials_file: Some(file), ..server.access() };
    let profile = BucketAccess { profile: Some("other".to_owned()), ..server.access() };
    let wrong = BucketAccess { profile: Some("wrong".to_owned()), ..named.clone() };
    for (access, environment, is_taken) in [
        (&named, variables([]), true),
        (&named, variables([("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "B")]), true),
        (&profile, variables([("HOME", &home)]), true),
        (&server.access(), variables([("HOME", &home), ("AWS_PROFILE", "other")]), true),
        (&server.access(), server.environment(), true),
        (&wrong, server.environment(), false),
    ] {
        let objects =
            rekindle_bucket::open(&server.url(""), access, &environment, &std::sync::Arc::default());
        let asked = runtime().block_on(objects.expect("it is opened").objects.head(&Path::from("nothing")));
        match asked {
            Err(Error::NotFound { .. }) if is_taken => {}
            Err(error @ Error::PermissionDenied { .. }) if !is_taken => {
                let told = error.to_string();
                assert!(!told.contains("Signature=") && !told.contains("StringToSign"), "{told}");
            }
            other => unreachable!("{environment:?}: {other:?}"),
        }
    }
}

#[test]
fn what_is_missing_or_does_not_fit_together_is_told_with_its_setting_and_without_secrets() {
    let (server, place) = (S3Server::start().expect("a server"), tempfile::tempdir().expect("a directory"));
    let file = |text: &str| {
        let path = place.path().join(if text.is_empty() { "empty" } else { &text[..2] });
        fs::write(&path, text).expect("there is room");
        Some(path)
    };
    let missing = Some(place.path().join("missing"));
    let plain = server.access();
    let with_file = |credentials_file| BucketAccess { credentials_file, ..server.access() };
    let half = "[default]\naws_access_key_id = hidden-key\n";
    for (access, environment, says) in [
        (
            plain.clone(),
            variables([("AWS_ACCESS_KEY_ID", "hidden-key")]),
            "AWS_SECRET_ACCESS_KEY is not: set both",
        ),
        (
            plain.clone(),
            variables([("AWS_SECRET_ACCESS_KEY", "hidden")]),
            "AWS_ACCESS_KEY_ID is not: set both",
        ),
        (
            with_file(missing.clone()),
            variables([]),
            "set bucket.credentials_file to a file that this user can read",
        ),
        (with_file(file(half)), variables([]), "has aws_access_key_id and no aws_secret_access_key: add it"),
        (
            BucketAccess { profile: Some("mine".to_owned()), ..with_file(file(half)) },
            variables([]),
            "is not there: add it, or set bucket.profile to one that is",
        ),
        (
            BucketAccess { authorities_file: missing, ..server.access() },
            server.environment(),
            "set bucket.authorities_file to a file that this user can read",
        ),
        (
            BucketAccess { authorities_file: file("no certificate"), ..server.access() },
            server.environment(),
            "has no certificate: set bucket.authorities_file",
        ),
    ] {
        let refusal = match rekindle_bucket::open(&server.url(""), &access, &environment, &Default::default())
        {
            Ok(opened) => unreachable!("{opened:?}"),
            Err(refusal) => refusal,
        };
        assert!(refusal.contains(says) && !refusal.contains("hidden"), "{says}: {refusal}");
    }
}

#[test]
fn a_container_of_azure_needs_an_account_and_one_of_google_a_readable_key() {
    let azure = BucketUrl::parse("az", "container/p").expect("a URL");
    let open = |url: &BucketUrl, access: &BucketAccess, environment: &Environment| {
        rekindle_bucket::open(url, access, environment, &std::sync::Arc::default())
            .map(|opened| opened.objects.to_string())
    };
    let refusal = open(&azure, &BucketAccess::default(), &variables([])).expect_err("it is refused");
    assert!(refusal.ends_with("set bucket.account"), "{refusal}");
    let key = variables([("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")]);
    let access = BucketAccess { account: Some("account".to_owned()), ..BucketAccess::default() };
    assert!(open(&azure, &access, &key).is_ok());
    let google = BucketUrl::parse("gs", "bucket").expect("a URL");
    let place = tempfile::tempdir().expect("a directory");
    let file = place.path().join("key.json");
    fs::write(&file, "{ \"private_key\": \"hidden\" }").expect("there is room");
    let access = BucketAccess { credentials_file: Some(file), ..BucketAccess::default() };
    let refusal = open(&google, &access, &variables([])).expect_err("it is refused");
    assert!(refusal.contains("gs://bucket cannot be opened") && !refusal.contains("hidden"), "{refusal}");
}

#[test]
fn an_opened_bucket_shows_its_name_and_no_secret() {
    let server = S3Server::start().expect("a server");
    let (objects, _) = Bucket::of(&server, "p").opened();
    let shown = format!("{objects} {objects:?}");
    assert!(shown.contains("s3://snapshots/p") && !shown.contains(SECRET), "{shown}");
}
