//! The keys of a domain in a store, by which nodes agree on them before they publish.
//!
//! The first node of the domain makes the object `domains/<name>`, which has the id of its key. A key that comes in the place
//! of another is an object of its own, `keys/<domain>/<key>`, with a proof by that key. Neither ever changes. A node with a
//! key that is in no such object would publish data that the others cannot read, and could not read theirs.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::identity::{Domain, DomainName, KeyId};
use crate::key_ring::DomainKey;
use crate::limits;
use crate::wire::{UnknownVersion, Versioned};

/// The version of both objects that is written, and the newest one that is read.
const VERSION: u32 = 1;

/// The first key of a domain.
#[derive(Serialize, Deserialize)]
struct First {
    version: u32,
    domain: String,
    key: String,
}

/// A key that came in the place of another.
#[derive(Serialize, Deserialize)]
struct Further {
    version: u32,
    domain: String,
    key: String,
    replaces: String,
    /// The key's own tag of all that.
    proof: String,
}

/// Checks that the store has this key of its domain. If it has none yet, this one becomes the first; if it has one of
/// those in whose place this one came, `replaced`, this one is put beside it.
pub(crate) async fn agree(
    key: &DomainKey,
    replaced: &[KeyId],
    objects: &Arc<dyn ObjectStore>,
) -> Result<(), String> {
    let (name, id) = (key.domain().name(), key.domain().key_id());
    let first = match first_key(name, objects).await? {
        Some(first) => first,
        None => {
            put(&path_of_first(name), &First::of(key.domain()), objects).await?;
            // Another node may have done so first.
            first_key(name, objects)
                .await?
                .ok_or("the key of its domain is gone right after it was written")?
        }
    };
    if first == id || has_further(key, objects).await? {
        return Ok(());
    }
    if !has_one_of(replaced, name, first, objects).await? {
        return Err(disagreement(key.domain(), first));
    }
    let replaced = key.replaced().expect("only a key that replaces another has such a line");
    put(&path_of_further(key.domain()), &Further::of(key, replaced), objects).await?;
    // Another node may have put it first, or another thing is in its place.
    has_further(key, objects).await?.then_some(()).ok_or_else(|| {
        format!("its object `{}` is gone right after it was written", path_of_further(key.domain()))
    })
}

/// The advice for a node whose key is not one that a store has for its domain.
pub fn disagreement(own: &Domain, found: KeyId) -> String {
    let (domain, own) = (own.name(), own.key_id());
    format!(
        "domain {domain} has key {found} in it, and this node's key ring has key {own}: copy key {found} from the key \
         ring of another node of this store to the front of this node's (`key_ring`), or set `domain` to a name that \
         no other node uses; nothing was published"
    )
}

/// The keys of a domain that a store has, the first one in front. The error is for people.
pub async fn keys_in(domain: &DomainName, objects: &Arc<dyn ObjectStore>) -> Result<Vec<KeyId>, String> {
    let Some(first) = first_key(domain, objects).await? else { return Ok(Vec::new()) };
    let prefix = ObjectPath::from(format!("keys/{domain}"));
    let unlisted = |error: object_store::Error| format!("its objects `{prefix}` cannot be listed: {error}");
    let found: Vec<_> = objects.list(Some(&prefix)).try_collect().await.map_err(unlisted)?;
    let further = found.iter().filter_map(|object| object.location.filename()?.parse().ok());
    Ok(std::iter::once(first).chain(further).collect())
}

/// True if the store has one of these keys, or `first` is one.
async fn has_one_of(
    keys: &[KeyId],
    name: &DomainName,
    first: KeyId,
    objects: &Arc<dyn ObjectStore>,
) -> Result<bool, String> {
    for key in keys {
        let path = path_of_further(&Domain::new(name.clone(), *key));
        if *key == first || read(&path, objects).await?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn first_key(domain: &DomainName, objects: &Arc<dyn ObjectStore>) -> Result<Option<KeyId>, String> {
    let path = path_of_first(domain);
    let Some(bytes) = read(&path, objects).await? else { return Ok(None) };
    let First { version: _, domain: found, key } = decode(&path, &bytes)?;
    if found != domain.as_str() {
        return Err(not_understood(&path, &format!("it is of domain {found:?}")));
    }
    key.parse()
        .map(Some)
        .map_err(|error: crate::identity::NameError| not_understood(&path, &error.to_string()))
}

/// True if the store has this key beside the first one.
async fn has_further(key: &DomainKey, objects: &Arc<dyn ObjectStore>) -> Result<bool, String> {
    let path = path_of_further(key.domain());
    let Some(bytes) = read(&path, objects).await? else { return Ok(false) };
    let found: Further = decode(&path, &bytes)?;
    let proof = proof(key, &found.replaces);
    let is_right = found.domain == key.domain().name().as_str()
        && found.key == key.domain().key_id().to_string()
        && blake3::Hash::from_hex(&found.proof).is_ok_and(|found| found == proof);
    let forged =
        "it was altered, or made by somebody without the key: delete it, and this node puts it again";
    is_right.then_some(true).ok_or_else(|| not_understood(&path, forged))
}

impl First {
    fn of(domain: &Domain) -> Self {
        Self { version: VERSION, domain: domain.name().to_string(), key: domain.key_id().to_string() }
    }
}

impl Further {
    fn of(key: &DomainKey, replaced: KeyId) -> Self {
        let (domain, replaces) = (key.domain().name().to_string(), replaced.to_string());
        let proof = proof(key, &replaces).to_hex().to_string();
        Self { version: VERSION, domain, key: key.domain().key_id().to_string(), replaces, proof }
    }
}

/// The tag of a key's place in its domain. No other tagged thing begins so.
fn proof(key: &DomainKey, replaces: &str) -> blake3::Hash {
    let (domain, id) = (key.domain().name(), key.domain().key_id());
    key.tag(format!("RKKY key {id} of domain {domain} replaces {replaces}").as_bytes())
}

async fn read(path: &ObjectPath, objects: &Arc<dyn ObjectStore>) -> Result<Option<Bytes>, String> {
    let unreadable = |error: object_store::Error| format!("its object `{path}` cannot be read: {error}");
    let answer = match objects.get(path).await {
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        answer => answer.map_err(unreadable)?,
    };
    if answer.meta.size > limits::STORE_IDENTITY_BYTES_MAX {
        return Err(format!("its object `{path}` has {} bytes, and names no key", answer.meta.size));
    }
    answer.bytes().await.map(Some).map_err(unreadable)
}

fn decode<T: DeserializeOwned>(path: &ObjectPath, bytes: &[u8]) -> Result<T, String> {
    let not_json = |error: serde_json::Error| not_understood(path, &error.to_string());
    let Versioned { version } = serde_json::from_slice(bytes).map_err(not_json)?;
    UnknownVersion::check(version, VERSION).map_err(|unknown| not_understood(path, &unknown.to_string()))?;
    serde_json::from_slice(bytes).map_err(not_json)
}

fn not_understood(path: &ObjectPath, reason: &str) -> String {
    format!("its object `{path}` cannot be understood: {reason}")
}

/// Puts an object unless there is one.
async fn put(
    path: &ObjectPath,
    written: &impl Serialize,
    objects: &Arc<dyn ObjectStore>,
) -> Result<(), String> {
    let payload = PutPayload::from(serde_json::to_vec(written).expect("it is plain data"));
    match objects.put_opts(path, payload, PutOptions::from(PutMode::Create)).await {
        Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
        Err(error) => Err(format!("its object `{path}` cannot be written: {error}")),
    }
}

fn path_of_first(domain: &DomainName) -> ObjectPath {
    ObjectPath::from(format!("domains/{domain}"))
}

fn path_of_further(domain: &Domain) -> ObjectPath {
    ObjectPath::from(format!("keys/{}/{}", domain.name(), domain.key_id()))
}

#[cfg(all(test, not(shuttle)))]
mod tests;
