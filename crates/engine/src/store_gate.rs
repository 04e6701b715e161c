//! Guards the use of the store: it must be there, and be the one with this node's snapshots.
//!
//! A store has an identity in the object `store`, which is made once, and this node's last [`Sign`]. The catalog
//! remembers both. It also has the keys of each domain ([`store_domain`]). A store that is missing, is another one, or is
//! an earlier state of itself, is *away*: nothing is written to it, nothing in it is trusted, and it is tried again.

mod signing;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use object_store::{ObjectStore, PutMode};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use uuid::Uuid;

use crate::catalog::{Catalog, CatalogError, Change, Kind, WriteError};
use crate::identity::SnapshotId;
use crate::key_ring::{DomainKey, KeyRing};
use crate::limits;
use crate::manifest_objects;
use crate::sign::{Evidence, Sign, Signs};
use crate::store_domain;
use crate::store_identity::OBJECT;
use crate::store_opener::FailedRequests;
use crate::sync::{Mutex, lock};
use crate::threads;

pub(crate) use signing::NewSign;

pub use crate::store_identity::StoreIdentity;
pub use crate::store_opener::{Holds, OpenedStore, StoreOpener};

/// Treatment of a store other than the one that the catalog remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherStore {
    /// It counts as away.
    Refused,
    /// A person accepted it in place of the other.
    Accepted,
}

/// Reason that a store is away, for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the store is away: {0}")]
pub struct Away(pub String);

/// The gate to a store, which opens it and checks it again and again.
#[derive(Debug)]
pub struct StoreGate {
    opener: Arc<dyn StoreOpener>,
    catalog: Catalog,
    /// The newest published snapshot of the catalog at the start.
    published: Option<SnapshotId>,
    /// The keys of this node, that of its own domain among them.
    keys: KeyRing,
    accepts_another: AtomicBool,
    standing: Mutex<Standing>,
    known: Mutex<Known>,
    /// Locked from the put of a sign until the catalog remembers it, so that the last one remembered is the last one
    /// put.
    signing: Arc<tokio::sync::Mutex<()>>,
    /// Locked by the task that opens the store; has the attempt that has not returned yet.
    opening: tokio::sync::Mutex<Option<Opening>>,
    answer_within: Duration,
    identity_again: Duration,
}

/// The catalog's memory of the store, from when the store was last opened or remembered.
#[derive(Debug)]
struct Known {
    identity: Option<StoreIdentity>,
    sign: Option<Sign>,
    /// True from when a store was accepted in place of another until published snapshots were looked for in it.
    is_accepted: bool,
    /// The signs found at the last check.
    found: Signs,
}

/// Receives the result of the thread that opens the store: the catalog's memory of it, and the objects.
type Opening = oneshot::Receiver<Result<(Known, OpenedStore), String>>;

#[derive(Debug)]
struct Standing {
    store: Option<OpenedStore>,
    /// Reason that it is away; none before the first try.
    away: Option<Away>,
    again: Instant,
    pause: Duration,
}

/// Reason that a store without the remembered sign is away.
const EARLIER_STATE: &str = "it is an earlier state of the store, such as an old back-up: it does not have the sign \
    that this node left with the last snapshot it published; bring the newer one back, or accept this one: `rekindle \
    serve --accept-store`";
/// Key that is in the catalog as long as published snapshots must be looked for in an accepted store.
const ACCEPTED: &[u8] = b"store-accepted";

impl StoreGate {
    /// A gate to the store that `opener` opens; nothing is opened yet. `published` is the newest published snapshot of
    /// the catalog.
    pub fn new(
        opener: Box<dyn StoreOpener>,
        catalog: Catalog,
        published: Option<SnapshotId>,
        other: OtherStore,
        keys: KeyRing,
    ) -> Self {
        let standing =
            Standing { store: None, away: None, again: Instant::now(), pause: limits::STORE_RETRY_FIRST };
        Self {
            opener: opener.into(),
            catalog,
            published,
            keys,
            accepts_another: AtomicBool::new(other == OtherStore::Accepted),
            standing: Mutex::new(standing),
            known: Mutex::new(Known::nothing()),
            signing: Arc::default(),
            opening: tokio::sync::Mutex::default(),
            answer_within: limits::STORE_ANSWER_WITHIN,
            identity_again: limits::STORE_IDENTITY_AGAIN,
        }
    }

    /// The name of this node in the store, if it has left a sign.
    pub(crate) fn node(&self) -> Option<Uuid> {
        lock(&self.known).sign.map(|sign| sign.lineage())
    }

    /// Requests to the store that failed so far.
    pub(crate) fn failed_requests(&self) -> FailedRequests {
        self.opener.failed_requests()
    }

    /// The store; it is opened and checked first if that was not done, or if it was away and it is time to try again.
    pub async fn opened(&self) -> Result<OpenedStore, Away> {
        if let Some(store) = self.open_now() {
            return Ok(store);
        }
        let mut opening = match (self.opening.try_lock(), self.away()) {
            (Ok(opening), _) => opening,
            // Another task tries again: until that has a result, the store stays away.
            (Err(_), Some(away)) => return Err(away),
            (Err(_), None) => self.opening.lock().await,
        };
        if let Some(store) = self.open_now() {
            return Ok(store);
        }
        if let Some(away) = self.away_until_later() {
            return Err(away);
        }
        let opened = self.open(&mut opening).await;
        self.stand(opened)
    }

    /// The store, after checking now that it is still the one that the catalog remembers.
    pub async fn checked(&self) -> Result<OpenedStore, Away> {
        let store = self.opened().await?;
        let identified = self.in_time(self.identify(&store.objects)).await;
        identified.map(|()| store).or_else(|reason| self.stand(Err(reason)))
    }

    /// The reason that the store is away, if it is.
    pub fn away(&self) -> Option<Away> {
        lock(&self.standing).away.clone()
    }

    fn open_now(&self) -> Option<OpenedStore> {
        lock(&self.standing).store.clone()
    }

    fn away_until_later(&self) -> Option<Away> {
        let standing = lock(&self.standing);
        standing.away.clone().filter(|_| Instant::now() < standing.again)
    }

    /// Notes the result of an attempt.
    fn stand(&self, opened: Result<OpenedStore, String>) -> Result<OpenedStore, Away> {
        let mut standing = lock(&self.standing);
        match opened {
            Ok(store) => {
                standing.store = Some(store.clone());
                standing.pause = limits::STORE_RETRY_FIRST;
                let was_away = standing.away.take().is_some();
                drop(standing);
                if was_away {
                    tracing::info!("the store is back");
                }
                Ok(store)
            }
            Err(reason) => {
                let away = Away(reason);
                standing.store = None;
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

    /// Waits until the store is open, for a bounded time. The next try waits for an attempt that hangs, instead of a
    /// new one.
    async fn open(&self, opening: &mut Option<Opening>) -> Result<OpenedStore, String> {
        if opening.is_none() {
            *opening = Some(self.begin_to_open()?);
        }
        // The attempt is kept until it has answered, even if the caller no longer waits.
        let attempt = opening.as_mut().expect("it was begun");
        let Ok(opened) = timeout(self.answer_within, attempt).await else { return Err(self.no_answer()) };
        *opening = None;
        let (known, store) = opened.map_err(|_| "opening it panicked".to_owned())??;
        *lock(&self.known) = known;
        self.in_time(self.identify(&store.objects)).await?;
        self.agree(self.keys.own(), &store.objects).await?;
        Ok(store)
    }

    /// Opens it on a thread that is never joined: a mount can hang for ever, and the daemon's end must not.
    fn begin_to_open(&self) -> Result<Opening, String> {
        let (tell, opening) = oneshot::channel();
        let (opener, catalog) = (Arc::clone(&self.opener), self.catalog.clone());
        let (published, accepts_another) = (self.published, self.accepts_another());
        let open = move || {
            let known = Known::remembered(&catalog)?;
            let holds = match (known.identity, published) {
                (Some(_), _) | (_, Some(_)) if !accepts_another => Holds::Snapshots,
                (Some(_) | None, Some(_) | None) => Holds::Nothing,
            };
            Ok((known, opener.open(holds)?))
        };
        // An error means that nobody waits any more.
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

    /// The answer of the store to a check, in a bounded time.
    async fn in_time(&self, check: impl Future<Output = Result<(), String>>) -> Result<(), String> {
        timeout(self.answer_within, check).await.unwrap_or_else(|_| Err(self.no_answer()))
    }

    /// Asks a store a second time if the first request fails: the failure may pass, or the store is just being copied
    /// into its place.
    async fn twice<T, E, F: Future<Output = Result<T, E>>>(&self, ask: impl Fn() -> F) -> Result<T, E> {
        if let Ok(found) = ask().await {
            return Ok(found);
        }
        tokio::time::sleep(self.identity_again).await;
        ask().await
    }

    /// The signs of this node in a store.
    async fn signs(&self, objects: &Arc<dyn ObjectStore>) -> Result<Signs, String> {
        let mut signs = Signs::none();
        let mut remembered = lock(&self.known).sign;
        while let Some(sign) = remembered {
            let found = self.twice(|| sign.look(objects)).await;
            signs = found.map_err(|error| format!("this node's signs in it cannot be listed: {error}"))?;
            // Another sign may have replaced it meanwhile.
            remembered =
                lock(&self.known).sign.filter(|now| signs.evidence == Evidence::Gone && *now != sign);
        }
        let mut known = lock(&self.known);
        let before = std::mem::replace(&mut known.found, signs.clone());
        known.found.keep_left_over(before);
        Ok(signs)
    }

    /// Checks that a store is the remembered one; remembers the first store that this node uses.
    async fn identify(&self, objects: &Arc<dyn ObjectStore>) -> Result<(), String> {
        let known = lock(&self.known).identity;
        let found = self.twice(|| StoreIdentity::read(objects)).await?;
        let evidence = self.signs(objects).await?.evidence;
        match (known, found) {
            (Some(known), Some(found)) if found == known && evidence == Evidence::There => {
                self.accepts_another.store(false, Ordering::Relaxed);
                Ok(())
            }
            (Some(known), Some(found)) if found.id == known.id && found.epoch > known.epoch => {
                self.take(objects, found, Place::OfAnother).await
            }
            (Some(known), Some(found)) if found == known && evidence == Evidence::NotAsked => {
                if let Err(error) = self.take(objects, found, Place::Own).await {
                    tracing::warn!(%error, "an earlier state of the store would not be noticed now");
                }
                Ok(())
            }
            (Some(known), Some(found)) if self.accepts_another() => {
                let accepted = if found.id == known.id { found.after(known)? } else { found };
                if accepted != found {
                    accepted.write(objects, PutMode::Overwrite).await?;
                }
                self.take(objects, accepted, Place::OfAnother).await
            }
            (Some(known), Some(found)) if found == known => Err(EARLIER_STATE.to_owned()),
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

    /// For a node that published before stores had identities: checks that its last published snapshot is there.
    async fn see_published(&self, objects: &Arc<dyn ObjectStore>) -> Result<(), String> {
        let Some(snapshot) = self.published.filter(|_| !self.accepts_another()) else { return Ok(()) };
        let newest = manifest_objects::newest(objects, snapshot).await.map_err(|error| error.to_string())?;
        newest.map(drop).ok_or_else(|| {
            format!(
                "snapshot {snapshot} is published and not in it; mount the store that has it, or accept this one: \
                 `rekindle serve --accept-store`"
            )
        })
    }

    /// Remembers the first store that this node uses, after giving it an identity if it has none.
    async fn begin(
        &self,
        objects: &Arc<dyn ObjectStore>,
        found: Option<StoreIdentity>,
    ) -> Result<(), String> {
        let place = if self.accepts_another() { Place::OfAnother } else { Place::Own };
        if let Some(found) = found {
            return self.take(objects, found, place).await;
        }
        StoreIdentity::new().write(objects, PutMode::Create).await?;
        // Another node may have done so first.
        let found =
            StoreIdentity::read(objects).await?.ok_or("its identity is gone right after it was written")?;
        self.take(objects, found, place).await
    }

    fn accepts_another(&self) -> bool {
        self.accepts_another.load(Ordering::Relaxed)
    }

    /// Remembers a store, after leaving a sign in it unless this node's last one is there.
    async fn take(
        &self,
        objects: &Arc<dyn ObjectStore>,
        identity: StoreIdentity,
        place: Place,
    ) -> Result<(), String> {
        let mut changes = vec![identity.change()];
        let mut left = None;
        if lock(&self.known).found.evidence != Evidence::There {
            let sign = self.next_sign();
            sign.put(objects).await.map_err(|error| format!("no sign can be left in it: {error}"))?;
            changes.push(sign.change());
            left = Some(sign);
        }
        let is_accepted = left.is_some() && place == Place::OfAnother;
        if is_accepted {
            changes.push(Change::Put { kind: Kind::Meta, key: ACCEPTED.to_vec(), value: Vec::new() });
        }
        self.write(changes).await?;
        let mut known = lock(&self.known);
        known.identity = Some(identity);
        known.sign = left.or(known.sign);
        known.is_accepted |= is_accepted;
        drop(known);
        self.accepts_another.store(false, Ordering::Relaxed);
        tracing::info!(store = %identity.id, epoch = identity.epoch, "this node's snapshots go to this store");
        Ok(())
    }

    async fn write(&self, changes: Vec<Change>) -> Result<(), String> {
        let catalog = self.catalog.clone();
        let noted = |error: WriteError| format!("the catalog cannot note which one it is: {error}");
        // After a crash each of them is right, made or not: the store has what they record.
        let written = spawn_blocking(move || catalog.write(&changes).map_err(noted));
        written.await.map_err(|error| error.to_string())?
    }

    /// Checks that the store has this key of a domain. That of the node's own domain was checked when it was opened; those
    /// of others are asked for each time.
    pub(crate) async fn agree_on(&self, key: &DomainKey) -> Result<(), Away> {
        let store = self.opened().await?;
        if key.domain() == self.keys.own().domain() {
            return Ok(());
        }
        // The store is there: only this domain's snapshots wait.
        self.agree(key, &store.objects).await.map_err(Away)
    }

    async fn agree(&self, key: &DomainKey, objects: &Arc<dyn ObjectStore>) -> Result<(), String> {
        let replaced = self.keys.replaced_by(key);
        self.in_time(self.twice(|| store_domain::agree(key, &replaced, objects))).await
    }

    /// True if the store was accepted in place of another, and published snapshots were not yet looked for in it; none
    /// while it is not open.
    pub(crate) fn is_accepted(&self) -> Option<bool> {
        self.open_now().map(|_| lock(&self.known).is_accepted)
    }

    /// Notes that published snapshots were looked for in the store. Writes to the disk.
    pub(crate) fn note_looked_for(&self) -> Result<(), CatalogError> {
        let done = Change::Remove { kind: Kind::Meta, key: ACCEPTED.to_vec() };
        // If a crash loses this, they are looked for again.
        self.catalog.write(&[done]).map_err(WriteError::either_way)?;
        lock(&self.known).is_accepted = false;
        Ok(())
    }
}

/// The store to which this node has published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// This one.
    Own,
    /// Another store, or a later state of this one.
    OfAnother,
}

impl Known {
    fn nothing() -> Self {
        Self { identity: None, sign: None, is_accepted: false, found: Signs::none() }
    }

    /// Reads the disk.
    fn remembered(catalog: &Catalog) -> Result<Self, String> {
        let identity = StoreIdentity::remembered(catalog)?;
        let accepted = catalog.get(Kind::Meta, ACCEPTED).map_err(|error| error.to_string())?;
        let sign = Sign::remembered(catalog)?;
        Ok(Self { identity, sign, is_accepted: accepted.is_some(), found: Signs::none() })
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests;
