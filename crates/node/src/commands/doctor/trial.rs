//! One trial of a store: each thing that the daemon does with it, done with two objects that are deleted again.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use uuid::Uuid;

/// Longest time of each step that is tried on the store.
const STEP_LIMIT: Duration = Duration::from_secs(30);

/// Bytes of the two parts of a large object: the smallest that every service accepts, and a rest.
pub(super) const PART_BYTES: [usize; 2] = [5 << 20, 1 << 20];

/// Small reads of which the middle one counts.
const READS: usize = 5;

/// Facts about a store that was tried.
#[derive(Clone)]
pub(super) struct Findings {
    pub(super) write_time: Duration,
    pub(super) first_byte: Duration,
    /// For all of [`PART_BYTES`].
    pub(super) upload: Duration,
    pub(super) download: Duration,
    /// True if a put that must not replace an object is refused.
    pub(super) creates_once: Result<bool, String>,
    pub(super) is_versioned: bool,
    /// Seconds that the store's clock is before this one's; negative if it is behind.
    pub(super) clock_ahead: i64,
}

/// Objects of one trial of a store.
pub(super) struct Trial<'a> {
    objects: &'a Arc<dyn ObjectStore>,
    small: ObjectPath,
    large: ObjectPath,
}

impl<'a> Trial<'a> {
    pub(super) fn new(objects: &'a Arc<dyn ObjectStore>) -> Self {
        let small = ObjectPath::from(format!("{BEFORE_TRIALS}-{}", Uuid::now_v7()));
        let large = ObjectPath::from(format!("{small}-parts"));
        Self { objects, small, large }
    }

    pub(super) async fn run(self) -> anyhow::Result<Findings> {
        let found = self.try_all().await;
        // Also what a failed step left, and both of them before either failure is told.
        let deleted = [self.delete(&self.small).await, self.delete(&self.large).await];
        let found = found?;
        deleted.into_iter().collect::<anyhow::Result<()>>()?;
        Ok(found)
    }

    async fn try_all(&self) -> anyhow::Result<Findings> {
        let (write_time, is_versioned, clock_ahead) = step(Right::Write, self.write()).await?;
        let first_byte = step(Right::Read, self.read()).await?;
        step(Right::List, self.find_listed()).await?;
        let creates_once = step(Right::Write, async { Ok(self.create_again().await) }).await?;
        let upload = step(Right::Parts, self.write_parts()).await?;
        let download = step(Right::Read, self.read_parts()).await?;
        Ok(Findings { write_time, first_byte, upload, download, creates_once, is_versioned, clock_ahead })
    }

    async fn write(&self) -> anyhow::Result<(Duration, bool, i64)> {
        let begun = Instant::now();
        let put = self.objects.put(&self.small, PutPayload::from_static(CONTENT)).await?;
        let write_time = begun.elapsed();
        let there = self.objects.head(&self.small).await?.last_modified.timestamp();
        let here = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let here = i64::try_from(here.as_secs()).unwrap_or(i64::MAX);
        // The request itself, and a resolution of a second.
        let apart = there.saturating_sub(here);
        let slack = i64::try_from(begun.elapsed().as_secs()).unwrap_or(0) + 1;
        let is_versioned = match put.version {
            Some(version) => self.keeps(version).await?,
            None => false,
        };
        Ok((write_time, is_versioned, if apart.abs() <= slack { 0 } else { apart }))
    }

    /// True if a version of the small object is still there once the object is written again: some services name versions
    /// that they do not keep.
    async fn keeps(&self, version: String) -> anyhow::Result<bool> {
        self.objects.put(&self.small, PutPayload::from_static(CONTENT)).await?;
        let options = GetOptions { version: Some(version.clone()), head: true, ..GetOptions::default() };
        let found = self.objects.get_opts(&self.small, options).await;
        Ok(found.is_ok_and(|found| found.meta.version == Some(version)))
    }

    async fn read(&self) -> anyhow::Result<Duration> {
        let all = self.objects.get(&self.small).await?.bytes().await?;
        anyhow::ensure!(all == CONTENT, "other bytes than were written");
        let mut times = Vec::with_capacity(READS);
        for _ in 0..READS {
            let begun = Instant::now();
            let part = self.objects.get_range(&self.small, 8..18).await?;
            times.push(begun.elapsed());
            anyhow::ensure!(part == CONTENT[8..18], "a range has other bytes than were written");
        }
        times.sort_unstable();
        Ok(times[READS / 2])
    }

    async fn find_listed(&self) -> anyhow::Result<()> {
        // Services list in order, so what comes before it is not asked for.
        let mut listing = self.objects.list_with_offset(None, &ObjectPath::from(BEFORE_TRIALS));
        while let Some(entry) = listing.try_next().await? {
            if entry.location == self.small {
                return Ok(());
            }
        }
        anyhow::bail!("the object that was written is not in it")
    }

    /// True if the store refuses to create an object that is there.
    async fn create_again(&self) -> Result<bool, String> {
        let options = PutOptions::from(PutMode::Create);
        match self.objects.put_opts(&self.small, PutPayload::from_static(CONTENT), options).await {
            Ok(_) => Ok(false),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Ok(true)
            }
            Err(error) => Err(error.to_string()),
        }
    }

    async fn write_parts(&self) -> anyhow::Result<Duration> {
        let content = large_content();
        // One that is given up, as after a failure; then one that is finished.
        self.objects.put_multipart(&self.large).await?.abort().await.context("giving up an upload")?;
        let begun = Instant::now();
        let mut upload = self.objects.put_multipart(&self.large).await?;
        let written = async {
            upload.put_part(content.slice(..PART_BYTES[0]).into()).await?;
            upload.put_part(content.slice(PART_BYTES[0]..).into()).await?;
            upload.complete().await
        };
        if let Err(error) = written.await {
            // The error of the upload is the one to tell.
            upload.abort().await.ok();
            return Err(error.into());
        }
        Ok(begun.elapsed())
    }

    async fn read_parts(&self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let read = self.objects.get(&self.large).await?.bytes().await?;
        let time = begun.elapsed();
        anyhow::ensure!(read == large_content(), "an object in parts has other bytes than were written");
        Ok(time)
    }

    /// Deletes an object, if it is there, and sees that it is gone.
    async fn delete(&self, path: &ObjectPath) -> anyhow::Result<()> {
        let deleted = async {
            match self.objects.delete(path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            match self.objects.head(path).await {
                Err(object_store::Error::NotFound { .. }) => Ok(()),
                Ok(_) => anyhow::bail!("the object is still there"),
                Err(error) => Err(anyhow::Error::from(error).context("asking for what is not there")),
            }
        };
        step(Right::Delete, deleted).await
    }
}

/// Beginning of the names of all objects of trials.
const BEFORE_TRIALS: &str = "rekindle-doctor";

/// Content of the small object.
const CONTENT: &[u8] = b"written by rekindle doctor to see whether this store works; it can be deleted";

/// Content of the large object, which no line compresses.
fn large_content() -> Bytes {
    let mut content = vec![0; PART_BYTES.iter().sum()];
    blake3::Hasher::new().update(CONTENT).finalize_xof().fill(&mut content);
    Bytes::from(content)
}

/// A right that the daemon needs.
#[derive(Clone, Copy)]
pub(super) enum Right {
    Read,
    Write,
    Parts,
    List,
    Delete,
}

impl Right {
    /// Its work, and the names of the right at each service.
    fn told(self) -> (&'static str, &'static str) {
        match self {
            Self::Read => ("reading", "s3:GetObject; storage.objects.get"),
            Self::Write => ("writing", "s3:PutObject; storage.objects.create and storage.objects.delete"),
            Self::Parts => (
                "writing in parts",
                "s3:PutObject and s3:AbortMultipartUpload; storage.multipartUploads.create and .abort",
            ),
            Self::List => ("listing", "s3:ListBucket; storage.objects.list"),
            Self::Delete => ("deleting", "s3:DeleteObject; storage.objects.delete"),
        }
    }
}

/// One step within its time; its error says which right it needs.
pub(super) async fn step<T>(
    right: Right,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let (doing, needed) = right.told();
    match tokio::time::timeout(STEP_LIMIT, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) if is_refused(&error) => Err(error)
            .context(format!("{doing} is refused, and needs {needed}; or a role of Azure with that right")),
        Ok(Err(error)) => Err(error).context(doing),
        Err(_) => anyhow::bail!("{doing}: it does not answer within {STEP_LIMIT:?}"),
    }
}

fn is_refused(error: &anyhow::Error) -> bool {
    let of_store = error.chain().find_map(|source| source.downcast_ref::<object_store::Error>());
    matches!(
        of_store,
        Some(object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. })
    )
}
