//! Guards the use of the store: it must be there, and be the one that this node's snapshots are in.
//!
//! A store carries its identity in the object `store`, made once. The catalog remembers it. A store that is not there, or
//! is another one, is *away*: nothing is written to it or believed of it, and it is tried again.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use uuid::Uuid;

use crate::catalog::{Catalog, CatalogError, Change, Kind, WriteError};
use crate::catalog_file::value_in;
use crate::identity::SnapshotId;
use crate::limits;
use crate::sync::{Mutex, lock};
use crate::threads;

/// Opens a store. It may block, also for ever.
pub trait StoreOpener: fmt::Debug + Send + Sync {
    /// Opens it; the error is for people. If `holds` says that snapshots are in it, nothing is made in its place.
    fn open(&self, holds: Holds) -> Result<Arc<dyn ObjectStore>, String>;
}

/// The catalog's knowledge of a store before it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// This node never used one.
    Nothing,
    /// This node used one, which may have its snapshots.
    Snapshots,
}

/// Identity of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreIdentity {
    version: u32,
    /// Made once.
    pub id: Uuid,
    /// Grows when a person accepts an earlier state of the store, and never falls.
    pub epoch: u64,
}

/// Treatment of a store that is not the one the catalog remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherStore {
    /// It is away.
    Refused,
    /// A person said that it takes the other one's place.
    Accepted,
}

/// Reason that a store is away, for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the store is away: {0}")]
pub struct Away(pub String);

/// A store that is opened, looked at and looked at again.
#[derive(Debug)]
pub struct StoreGate {
    opener: Arc<dyn StoreOpener>,
    catalog: Catalog,
    /// The newest snapshot that the catalog calls published, at the start.
    published: Option<SnapshotId>,
    accepts_another: AtomicBool,
    standing: Mutex<Standing>,
    /// The identity that the catalog remembers, as it was when the store was opened last or remembered since.
    known: Mutex<Option<StoreIdentity>>,
    /// Held by the task that opens it; has the attempt that has not come back yet.
    opening: tokio::sync::Mutex<Option<Opening>>,
    answer_within: Duration,
    identity_again: Duration,
}

/// The answer of the thread that opens the store: the identity that the catalog remembers, and the objects.
type Opening = oneshot::Receiver<Result<(Option<StoreIdentity>, Arc<dyn ObjectStore>), String>>;

#[derive(Debug)]
struct Standing {
    objects: Option<Arc<dyn ObjectStore>>,
    /// Reason that it is away; none before it was first tried.
    away: Option<Away>,
    again: Instant,
    pause: Duration,
}

/// The version of the identity that is written, and the newest one that is read.
const VERSION: u32 = 1;
/// The object that says who a store is.
const OBJECT: &str = "store";
/// Key of the remembered identity in the catalog.
const REMEMBERED: &[u8] = b"store";

impl StoreGate {
    /// A gate to the store that `opener` opens; nothing is opened yet. `published` is the newest snapshot that the catalog
    /// calls published.
    pub fn new(
        opener: Box<dyn StoreOpener>,
        catalog: Catalog,
        published: Option<SnapshotId>,
        other: OtherStore,
    ) -> Self {
        let standing =
            Standing { objects: None, away: None, again: Instant::now(), pause: limits::STORE_RETRY_FIRST };
        Self {
            opener: opener.into(),
            catalog,
            published,
            accepts_another: AtomicBool::new(other == OtherStore::Accepted),
            standing: Mutex::new(standing),
            known: Mutex::new(None),
            opening: tokio::sync::Mutex::default(),
            answer_within: limits::STORE_ANSWER_WITHIN,
            identity_again: limits::STORE_IDENTITY_AGAIN,
        }
    }

    /// The store, opened and looked at if that was not done, or if it was away and it is time to try again.
    pub async fn objects(&self) -> Result<Arc<dyn ObjectStore>, Away> {
        if let Some(objects) = self.open_now() {
            return Ok(objects);
        }
        let mut opening = match (self.opening.try_lock(), self.away()) {
            (Ok(opening), _) => opening,
            // Somebody tries again: until that comes out it is as it was.
            (Err(_), Some(away)) => return Err(away),
            (Err(_), None) => self.opening.lock().await,
        };
        if let Some(objects) = self.open_now() {
            return Ok(objects);
        }
        if let Some(away) = self.away_until_later() {
            return Err(away);
        }
        let opened = self.open(&mut opening).await;
        self.stand(opened)
    }

    /// The store, looked at now: it is still the one that the catalog remembers.
    pub async fn checked(&self) -> Result<Arc<dyn ObjectStore>, Away> {
        let objects = self.objects().await?;
        match self.identify_in_time(&objects).await {
            Ok(()) => Ok(objects),
            Err(reason) => self.stand(Err(reason)),
        }
    }

    /// The reason that the store is away, if it is.
    pub fn away(&self) -> Option<Away> {
        lock(&self.standing).away.clone()
    }

    fn open_now(&self) -> Option<Arc<dyn ObjectStore>> {
        lock(&self.standing).objects.clone()
    }

    fn away_until_later(&self) -> Option<Away> {
        let standing = lock(&self.standing);
        standing.away.clone().filter(|_| Instant::now() < standing.again)
    }

    /// Notes how an attempt came out.
    fn stand(&self, opened: Result<Arc<dyn ObjectStore>, String>) -> Result<Arc<dyn ObjectStore>, Away> {
        let mut standing = lock(&self.standing);
        match opened {
            Ok(objects) => {
                standing.objects = Some(Arc::clone(&objects));
                standing.pause = limits::STORE_RETRY_FIRST;
                let was_away = standing.away.take().is_some();
                drop(standing);
                if was_away {
                    tracing::info!("the store is back");
                }
                Ok(objects)
            }
            Err(reason) => {
                let away = Away(reason);
                standing.objects = None;
                standing.again = Instant::now() + standing.pause;
                standing.pause = (standing.pause * 2).min(limits::STORE_RETRY_LAST);
                let is_news = standing.away.replace(away.clone()).as_ref() != Some(&away);
                drop(standing);
                if is_news {
                    tracing::error!("{away}; what is published waits for it");
                }
                Err(away)
            }
        }
    }

    /// Waits until the store is open, for a bounded time. An attempt that hangs is waited for again at the next try.
    async fn open(&self, opening: &mut Option<Opening>) -> Result<Arc<dyn ObjectStore>, String> {
        if opening.is_none() {
            *opening = Some(self.begin_to_open()?);
        }
        // It stays in its place until it has answered, also where the caller waits no longer.
        let attempt = opening.as_mut().expect("it was begun");
        let Ok(opened) = timeout(self.answer_within, attempt).await else { return Err(self.no_answer()) };
        *opening = None;
        let (known, objects) = opened.map_err(|_| "opening it panicked".to_owned())??;
        *lock(&self.known) = known;
        self.identify_in_time(&objects).await?;
        Ok(objects)
    }

    /// Opens it on a thread that nobody has to wait for: a mount can hang for ever, and the daemon's end with it.
    fn begin_to_open(&self) -> Result<Opening, String> {
        let (tell, opening) = oneshot::channel();
        let (opener, catalog) = (Arc::clone(&self.opener), self.catalog.clone());
        let (published, accepts_another) = (self.published, self.accepts_another());
        let open = move || {
            let known = remembered(&catalog)?;
            let holds = match (known, published) {
                (Some(_), _) | (_, Some(_)) if !accepts_another => Holds::Snapshots,
                (Some(_) | None, Some(_) | None) => Holds::Nothing,
            };
            Ok((known, opener.open(holds)?))
        };
        // An error says that nobody waits any more.
        let begun = threads::begin("store-open", tell, move |tell| drop(tell.send(open())));
        begun.map_err(|(_, error)| format!("no thread can be had to open it: {error}"))?;
        Ok(opening)
    }

    fn no_answer(&self) -> String {
        format!(
            "it does not answer within {} s; see whether its mount or its network is there",
            self.answer_within.as_secs()
        )
    }

    /// Sees whose store it is, in a bounded time.
    async fn identify_in_time(&self, objects: &Arc<dyn ObjectStore>) -> Result<(), String> {
        timeout(self.answer_within, self.identify(objects)).await.unwrap_or_else(|_| Err(self.no_answer()))
    }

    /// The identity of a store. One that cannot be read is read once more: a request may fail, and somebody may be
    /// copying the store into its place.
    async fn found(&self, objects: &Arc<dyn ObjectStore>) -> Result<Option<StoreIdentity>, String> {
        if let Ok(found) = read(objects).await {
            return Ok(found);
        }
        tokio::time::sleep(self.identity_again).await;
        read(objects).await
    }

    /// Sees that a store is the one that is remembered; one that this node uses for the first time is remembered.
    async fn identify(&self, objects: &Arc<dyn ObjectStore>) -> Result<(), String> {
        let known = *lock(&self.known);
        let found = self.found(objects).await?;
        match (known, found) {
            (Some(known), Some(found)) if found.id == known.id && found.epoch == known.epoch => Ok(()),
            (Some(known), Some(found)) if found.id == known.id && found.epoch > known.epoch => {
                self.remember(found).await
            }
            (Some(known), Some(found)) if self.accepts_another() => {
                let epoch = if found.id == known.id { epoch_after(known)? } else { found.epoch };
                let accepted = StoreIdentity { epoch, ..found };
                if accepted != found {
                    write(objects, accepted, PutMode::Overwrite).await?;
                }
                self.remember(accepted).await
            }
            (Some(known), Some(found)) if found.id == known.id => Err(format!(
                "it is an earlier state of the store (epoch {} instead of {}), such as an old back-up; bring the \
                 newer one back, or accept this one: `rekindle serve --accept-store`",
                found.epoch, known.epoch
            )),
            (Some(known), Some(found)) => Err(format!(
                "it is another store ({}) than the one that has this node's snapshots ({}); set `store` to that one, \
                 or accept this one: `rekindle serve --accept-store`",
                found.id, known.id
            )),
            (Some(known), None) if !self.accepts_another() => Err(format!(
                "there is no store in its place (it has no object `{OBJECT}`), and this node's snapshots are in store \
                 {}; mount that one, or accept the new place: `rekindle serve --accept-store`",
                known.id
            )),
            (None, found) => {
                self.see_published(objects).await?;
                self.begin(objects, found).await
            }
            (Some(_), None) => self.begin(objects, found).await,
        }
    }

    /// A node that published before stores had identities finds what it published last.
    async fn see_published(&self, objects: &Arc<dyn ObjectStore>) -> Result<(), String> {
        let Some(snapshot) = self.published.filter(|_| !self.accepts_another()) else { return Ok(()) };
        match objects.head(&ObjectPath::from(format!("manifests/{snapshot}"))).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::NotFound { .. }) => Err(format!(
                "snapshot {snapshot} is published and not in it; mount the store that has it, or accept this one: \
                 `rekindle serve --accept-store`"
            )),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Remembers a store that this node uses for the first time, which gets an identity if it has none.
    async fn begin(
        &self,
        objects: &Arc<dyn ObjectStore>,
        found: Option<StoreIdentity>,
    ) -> Result<(), String> {
        if let Some(found) = found {
            return self.remember(found).await;
        }
        let made = StoreIdentity { version: VERSION, id: Uuid::now_v7(), epoch: 1 };
        write(objects, made, PutMode::Create).await?;
        // Another node may have been first.
        let found = read(objects).await?;
        self.remember(found.ok_or("its identity is gone right after it was written")?).await
    }

    fn accepts_another(&self) -> bool {
        self.accepts_another.load(Ordering::Relaxed)
    }

    async fn remember(&self, identity: StoreIdentity) -> Result<(), String> {
        let value = serde_json::to_vec(&identity).expect("it is plain data");
        let put = Change::Put { kind: Kind::Meta, key: REMEMBERED.to_vec(), value };
        let catalog = self.catalog.clone();
        let noted = |error: WriteError| format!("the catalog cannot note which one it is: {error}");
        let written = spawn_blocking(move || catalog.write(&[put]).map_err(noted));
        written.await.map_err(|error| error.to_string())??;
        *lock(&self.known) = Some(identity);
        self.accepts_another.store(false, Ordering::Relaxed);
        tracing::info!(store = %identity.id, epoch = identity.epoch, "this node's snapshots go to this store");
        Ok(())
    }
}

/// The identity that the catalog remembers; reads the disk.
fn remembered(catalog: &Catalog) -> Result<Option<StoreIdentity>, String> {
    let value = catalog.get(Kind::Meta, REMEMBERED).map_err(|error| error.to_string())?;
    value.map(|value| decode(&value, "the catalog's record of it")).transpose()
}

/// The identity that the catalog in a file remembers; none where there is no catalog, or it has used no store yet. The file
/// is only read: where a daemon has it, or had it and did not end in order, that is an error.
pub fn remembered_in(catalog: &Path) -> Result<Option<StoreIdentity>, CatalogError> {
    let damaged = |reason| CatalogError::Damaged { path: catalog.to_owned(), reason };
    let value = value_in(catalog, Kind::Meta, REMEMBERED)?;
    value.map(|value| decode(&value, "its record of the store").map_err(damaged)).transpose()
}

/// The identity of a store, which is only read; none where it has none. The error is for people.
pub async fn identity_of(objects: &Arc<dyn ObjectStore>) -> Result<Option<StoreIdentity>, String> {
    read(objects).await
}

/// The epoch of a state of a store that a person takes for the newest.
fn epoch_after(known: StoreIdentity) -> Result<u64, String> {
    known.epoch.checked_add(1).ok_or_else(|| {
        format!(
            "store {} has epoch {}, after which there is none, so no earlier state of it can be accepted; bring the \
             newer one back, or set `store` to another one",
            known.id, known.epoch
        )
    })
}

async fn read(objects: &Arc<dyn ObjectStore>) -> Result<Option<StoreIdentity>, String> {
    let unreadable = |error: object_store::Error| format!("its object `{OBJECT}` cannot be read: {error}");
    let answer = match objects.get(&ObjectPath::from(OBJECT)).await {
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        answer => answer.map_err(unreadable)?,
    };
    if answer.meta.size > limits::STORE_IDENTITY_BYTES_MAX {
        return Err(format!("its object `{OBJECT}` has {} bytes, and is no identity", answer.meta.size));
    }
    let bytes = answer.bytes().await.map_err(unreadable)?;
    decode(&bytes, "its object `store`").map(Some)
}

fn decode(bytes: &[u8], what: &str) -> Result<StoreIdentity, String> {
    let identity: StoreIdentity =
        serde_json::from_slice(bytes).map_err(|error| format!("{what} cannot be understood: {error}"))?;
    if identity.version > VERSION {
        let version = identity.version;
        return Err(format!(
            "{what} is of version {version}, this program knows up to {VERSION}: run a newer one"
        ));
    }
    Ok(identity)
}

/// One that is there already is left as it is where it was to be made.
async fn write(objects: &Arc<dyn ObjectStore>, identity: StoreIdentity, mode: PutMode) -> Result<(), String> {
    let value = serde_json::to_vec(&identity).expect("it is plain data");
    let (path, payload) = (ObjectPath::from(OBJECT), PutPayload::from(value));
    let put = objects.put_opts(&path, payload, PutOptions::from(mode));
    match put.await {
        Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
        Err(error) => Err(format!(
            "its object `{OBJECT}` cannot be written: {error}; have this user write there, or set `store` to another \
             place"
        )),
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests;
