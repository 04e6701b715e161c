//! Checks of the store: whose it is, that this user may do with it all that the daemon does, how fast it is, and how it
//! behaves where stores differ. All that is written is deleted again.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use object_store::ObjectStore;
use rekindle_bucket::Service;
use rekindle_engine::catalog::CatalogError;
use rekindle_engine::store_gate::StoreIdentity;
use rekindle_settings::{Settings, StoreLocation};

use super::Check;
use super::room::room;
use super::trial::{Findings, PART_BYTES, Right, Trial, step};
use crate::commands::shown::{duration, size};

/// First-byte time from which on cold resumes are slow.
const SLOW_FIRST_BYTE: Duration = Duration::from_millis(250);

/// Difference of clocks beyond which services refuse requests before long: S3 does at a quarter of an hour.
const CLOCKS_APART_MAX: u64 = 300;

const NAME: &str = "store";
const SPEED: &str = "store's speed";
const HABITS: &str = "store's habits";

/// Looks at the store: three checks, of which the latter two are left out, with the reason, where the first one fails.
pub(super) fn look(settings: &Settings) -> Vec<Check> {
    let (check, findings) = match place(settings) {
        Place::Fit(check) => match tried(settings) {
            Ok((told, findings)) => (Check { found: format!("{}; {told}", check.found), ..check }, findings),
            Err(error) => {
                let advice = "nothing can be published until the store does this; the daemon tries again until it does";
                let found = format!("{}: {error:#}", settings.store);
                (Check::fail(NAME, found, advice), Err("it does not do what a store must".to_owned()))
            }
        },
        Place::NotMade(check) => (check, Err("it is made when the daemon starts".to_owned())),
        Place::Unfit(check) => (check, Err("it cannot be used".to_owned())),
    };
    match findings {
        Ok(findings) => vec![check, findings.speed(), findings.habits(&settings.store)],
        Err(why) => {
            let left_out = |name| Check::ok(name, format!("not tried: {why}"));
            vec![check, left_out(SPEED), left_out(HABITS)]
        }
    }
}

/// The place of a store before anything is asked of it.
enum Place {
    /// It can be tried.
    Fit(Check),
    /// Its directory is yet to be made.
    NotMade(Check),
    /// It cannot be used.
    Unfit(Check),
}

fn place(settings: &Settings) -> Place {
    let Some(directory) = settings.store.directory() else {
        return Place::Fit(Check::ok(NAME, settings.store.to_string()));
    };
    let room = match room(directory) {
        Ok(room) => room,
        Err(refused) => {
            let advice = "make it writable, or set store to one that is";
            return Place::Unfit(Check::fail(NAME, refused, advice));
        }
    };
    let check = || room.check(NAME, directory, "make room there, or set store to a larger disk");
    if room.exists() {
        return Place::Fit(check());
    }
    let is_own = directory.starts_with(&settings.state_directory);
    if !is_own && !directory.parent().is_some_and(Path::is_dir) {
        return Place::Unfit(Check::fail(
            NAME,
            format!("{} is not there, and neither is the directory above it", directory.display()),
            "mount the store, make its directory, or set store to another; until then nothing is published",
        ));
    }
    Place::NotMade(check())
}

/// Findings of a store that was written to, or the reason that it was not.
type Tried = Result<Findings, String>;

fn tried(settings: &Settings) -> anyhow::Result<(String, Tried)> {
    let objects = settings.store.open(&settings.bucket, &Arc::default()).map_err(anyhow::Error::msg)?.objects;
    try_store(&objects, whose_store(settings))
}

/// Knowledge of the store that this node's snapshots are in.
enum Whose {
    /// Any store may become it.
    Anyones,
    /// It is this one.
    Known(StoreIdentity),
    /// The catalog cannot be read now, for this reason.
    Unknown(String),
}

fn whose_store(settings: &Settings) -> Whose {
    match StoreIdentity::remembered_in(&settings.state_directory.join("catalog.redb")) {
        Ok(None) => Whose::Anyones,
        Ok(Some(known)) => Whose::Known(known),
        Err(CatalogError::Held { .. }) => Whose::Unknown("a daemon uses it".to_owned()),
        Err(error) => Whose::Unknown(error.to_string()),
    }
}

/// Does with a store what the daemon does with it, and takes away what it wrote. One that may be another than the one with
/// this node's snapshots is only read.
fn try_store(objects: &Arc<dyn ObjectStore>, whose: Whose) -> anyhow::Result<(String, Tried)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let found = async { StoreIdentity::read(objects).await.map_err(anyhow::Error::msg) };
    let found = runtime.block_on(step(Right::Read, found))?;
    match (whose, found) {
        (Whose::Known(known), Some(found)) if found == known => {}
        (Whose::Anyones, _) => {}
        (Whose::Known(known), found) => {
            let found = found.map_or_else(
                || "it is none, or has lost its object `store`".to_owned(),
                |found| format!("it is store {} (epoch {})", found.id, found.epoch),
            );
            anyhow::bail!(
                "{found}, and this node's snapshots are in store {} (epoch {}): nothing was written to it; mount that \
                 one, or accept this one with `rekindle serve --accept-store`",
                known.id,
                known.epoch
            );
        }
        (Whose::Unknown(why), _) => {
            runtime.block_on(step(Right::List, async { Ok(objects.list(None).try_next().await?) }))?;
            let told = format!("reading and listing work; nothing was written to try it, as {why}");
            return Ok((told, Err(format!("nothing was written to it, as {why}"))));
        }
    }
    let findings = runtime.block_on(Trial::new(objects).run())?;
    let write_time = duration(findings.write_time);
    let told = format!("writing (in {write_time}), parts, reading, ranges, listing and deleting work");
    Ok((told, Ok(findings)))
}

impl Findings {
    fn speed(&self) -> Check {
        let bytes = PART_BYTES.iter().sum::<usize>();
        let rate = |time: Duration| {
            let nanos = time.as_nanos().max(1);
            let a_second = u64::try_from(bytes).map_or(0, u128::from) * 1_000_000_000 / nanos;
            format!("{}/s", size(u64::try_from(a_second).unwrap_or(u64::MAX)))
        };
        let found = format!(
            "first byte after {}, {} up and {} down on one connection",
            duration(self.first_byte),
            rate(self.upload),
            rate(self.download)
        );
        if self.first_byte < SLOW_FIRST_BYTE {
            return Check::ok(SPEED, found);
        }
        let advice =
            "a cold resume waits this long for each page that it misses: use a store nearer to this node";
        Check::warn(SPEED, found, advice)
    }

    fn habits(&self, store: &StoreLocation) -> Check {
        let creates = match &self.creates_once {
            Ok(true) => "conditional puts are obeyed".to_owned(),
            Ok(false) => "conditional puts are ignored, which rekindle does not mind".to_owned(),
            Err(error) => format!("conditional puts are refused ({error}), which rekindle does not mind"),
        };
        let clock = match self.clock_ahead {
            0 => "its clock is this node's".to_owned(),
            ahead @ 1.. => format!("its clock is {ahead} s ahead"),
            behind => format!("its clock is {} s behind", behind.unsigned_abs()),
        };
        let found = format!("what is written is listed at once; {creates}; {clock}{}", self.kept_for(store));
        if self.clock_ahead.unsigned_abs() > CLOCKS_APART_MAX {
            return Check::warn(
                HABITS,
                found,
                "set this node's clock: services refuse requests of another time",
            );
        }
        if self.is_versioned && is_s3(store) {
            let advice = "let a lifecycle rule of the bucket remove old versions, or what rekindle deletes stays paid for";
            return Check::warn(HABITS, found, advice);
        }
        Check::ok(HABITS, found)
    }

    /// The bytes that a service keeps and charges for although no list shows them, as far as that can be seen, and the
    /// question to an administrator about the rest: it takes rights that the daemon has no other use for.
    fn kept_for(&self, store: &StoreLocation) -> String {
        let StoreLocation::Bucket(url) = store else { return String::new() };
        let bucket = url.bucket();
        match url.service() {
            Service::S3 => {
                let (versions, and_versions) = if self.is_versioned {
                    ("versioning is on, so deleted objects are kept", ", and NoncurrentVersionExpiration")
                } else {
                    ("versioning is off", "")
                };
                format!(
                    "; {versions}; its lifecycle rules cannot be read here: an administrator sees with `aws s3api \
                     get-bucket-lifecycle-configuration --bucket {bucket}` whether one has \
                     AbortIncompleteMultipartUpload{and_versions}"
                )
            }
            Service::Gcs => format!(
                "; its rules cannot be read here: an administrator sees with `gcloud storage buckets describe \
                 gs://{bucket}` whether one has AbortIncompleteMultipartUpload, and whether versioning or a soft delete \
                 policy keeps deleted objects"
            ),
            Service::Azure => format!(
                "; unfinished uploads go by themselves within a week; whether deleted blobs of container {bucket} are \
                 kept cannot be read here: an administrator sees with `az storage account blob-service-properties \
                 show` whether versioning or a delete retention policy is on"
            ),
        }
    }
}

fn is_s3(store: &StoreLocation) -> bool {
    match store {
        StoreLocation::Bucket(url) => url.service() == Service::S3,
        StoreLocation::Directory(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use object_store::memory::InMemory;
    use uuid::Uuid;

    use super::*;

    fn listed(objects: &Arc<dyn ObjectStore>) -> Vec<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let all: Vec<_> = runtime.block_on(objects.list(None).try_collect()).unwrap();
        all.into_iter().map(|entry| entry.location.to_string()).collect()
    }

    #[test]
    fn a_store_that_works_is_left_as_it_was() {
        let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let (told, findings) = try_store(&objects, Whose::Anyones).expect("it works");
        assert!(told.starts_with("writing "), "{told}");
        let findings = findings.expect("it was written to");
        assert_eq!((findings.creates_once.as_ref(), findings.clock_ahead), (Ok(&true), 0));
        assert_eq!(listed(&objects), [""; 0]);
    }

    #[test]
    fn the_speed_and_habits_of_a_store_are_told_and_warned_of() {
        let findings = Findings {
            write_time: Duration::from_millis(3),
            first_byte: Duration::from_millis(20),
            upload: Duration::from_secs(6),
            download: Duration::from_millis(600),
            creates_once: Ok(false),
            is_versioned: true,
            clock_ahead: -400,
        };
        let bucket = |url: &str| {
            let (scheme, rest) = url.split_once("://").unwrap();
            StoreLocation::Bucket(rekindle_bucket::BucketUrl::parse(scheme, rest).unwrap())
        };
        let speed = findings.speed();
        assert_eq!(
            speed.found,
            "first byte after 20.0 ms, 1.0 MiB/s up and 10.0 MiB/s down on one connection"
        );
        assert!(speed.advice.is_none());
        let habits = findings.habits(&bucket("s3://b"));
        assert!(habits.found.contains("its clock is 400 s behind; versioning is on"), "{habits:?}");
        assert!(habits.advice.is_some_and(|advice| advice.contains("clock")));
        let findings = Findings { clock_ahead: 0, first_byte: SLOW_FIRST_BYTE, ..findings };
        assert!(findings.speed().advice.is_some());
        let habits = findings.habits(&bucket("s3://b"));
        assert!(habits.advice.is_some_and(|advice| advice.contains("lifecycle rule")));
        let habits = findings.habits(&bucket("gs://b"));
        assert!(
            habits.advice.is_none() && habits.found.contains("gcloud storage buckets describe gs://b"),
            "{habits:?}"
        );
        let habits = findings.habits(&bucket("az://c"));
        assert!(habits.advice.is_none() && habits.found.contains("delete retention policy"), "{habits:?}");
        for (is_versioned, rules) in
            [(true, "Upload, and NoncurrentVersionExpiration"), (false, "AbortIncompleteMultipartUpload")]
        {
            let habits = Findings { is_versioned, ..findings.clone() }.habits(&bucket("s3://b"));
            assert!(habits.found.contains("--bucket b") && habits.found.ends_with(rules), "{habits:?}");
        }
        let habits = findings.habits(&StoreLocation::Directory("/srv".into()));
        assert!(!habits.found.contains("lifecycle"), "{habits:?}");
    }

    #[test]
    fn nothing_is_written_to_a_store_that_is_not_the_remembered_one() {
        let place = tempfile::tempdir().unwrap();
        let objects: Arc<dyn ObjectStore> =
            Arc::new(object_store::local::LocalFileSystem::new_with_prefix(place.path()).unwrap());
        let directory = std::fs::File::open(place.path()).unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        let try_it = |whose| {
            directory.set_modified(long_ago).unwrap();
            let tried = try_store(&objects, whose).map(|(told, _)| told).map_err(|error| error.to_string());
            let is_untouched = directory.metadata().unwrap().modified().unwrap() == long_ago;
            (tried, is_untouched)
        };
        let identity = |id| -> StoreIdentity {
            serde_json::from_value(serde_json::json!({ "version": 1, "id": Uuid::from_u128(id), "epoch": 1 }))
                .unwrap()
        };
        let (refused, is_untouched) = try_it(Whose::Known(identity(1)));
        assert!(is_untouched && refused.unwrap_err().contains("--accept-store"), "it is no store");
        std::fs::write(place.path().join("store"), serde_json::to_vec(&identity(2)).unwrap()).unwrap();
        let (refused, is_untouched) = try_it(Whose::Known(identity(1)));
        assert!(is_untouched && refused.unwrap_err().contains(&Uuid::from_u128(2).to_string()));
        let (looked, is_untouched) = try_it(Whose::Unknown("a daemon uses it".to_owned()));
        assert!(
            is_untouched && looked.unwrap().contains("nothing was written to try it, as a daemon uses it")
        );
        let (written, is_untouched) = try_it(Whose::Known(identity(2)));
        assert!(!is_untouched && written.unwrap().starts_with("writing "));
        assert_eq!(listed(&objects), ["store"]);
    }
}
