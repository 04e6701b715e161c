//! The key of a domain in a store: the object `domains/<name>`, by which nodes agree on one key before they publish.
//!
//! The first node of the domain makes it, and it never changes. A node with another key would publish what the others
//! cannot read, and could not read theirs.

use std::sync::Arc;

use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use serde::{Deserialize, Serialize};

use crate::identity::{Domain, DomainName, KeyId};
use crate::limits;
use crate::wire::{UnknownVersion, Versioned};

/// The version that is written, and the newest one that is read.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Written {
    version: u32,
    domain: String,
    key: String,
}

/// Checks that the layers of the domain are named with this key in the store; says so there if none is named yet.
pub(crate) async fn agree(domain: &Domain, objects: &Arc<dyn ObjectStore>) -> Result<(), String> {
    let found = match key_in(domain.name(), objects).await? {
        Some(found) => found,
        None => {
            write(domain, objects).await?;
            // Another node may have done so first.
            key_in(domain.name(), objects)
                .await?
                .ok_or("the key of its domain is gone right after it was written")?
        }
    };
    if found == domain.key_id() { Ok(()) } else { Err(disagreement(domain, found)) }
}

/// The advice for a node whose key is not the one that a store has for its domain.
pub fn disagreement(own: &Domain, found: KeyId) -> String {
    let (domain, own) = (own.name(), own.key_id());
    format!(
        "domain {domain} has key {found} in it, and this node's key ring has key {own}: copy key {found} from the key \
         ring of another node of this store to the front of this node's (`key_ring`), or set `domain` to a name that \
         no other node uses; nothing was published"
    )
}

/// The id of the key that names a domain's layers in a store, if one does. The error is for people.
pub async fn key_in(domain: &DomainName, objects: &Arc<dyn ObjectStore>) -> Result<Option<KeyId>, String> {
    let path = path_of(domain);
    let unreadable = |error: object_store::Error| format!("its object `{path}` cannot be read: {error}");
    let answer = match objects.get(&path).await {
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        answer => answer.map_err(unreadable)?,
    };
    if answer.meta.size > limits::STORE_IDENTITY_BYTES_MAX {
        return Err(format!("its object `{path}` has {} bytes, and names no key", answer.meta.size));
    }
    let bytes = answer.bytes().await.map_err(unreadable)?;
    let not_understood = |reason: String| format!("its object `{path}` cannot be understood: {reason}");
    let Versioned { version } =
        serde_json::from_slice(&bytes).map_err(|error| not_understood(error.to_string()))?;
    UnknownVersion::check(version, VERSION).map_err(|unknown| not_understood(unknown.to_string()))?;
    let written: Written =
        serde_json::from_slice(&bytes).map_err(|error| not_understood(error.to_string()))?;
    if written.domain != domain.as_str() {
        return Err(not_understood(format!("it is of domain {:?}", written.domain)));
    }
    written.key.parse().map(Some).map_err(|error| not_understood(format!("{error}")))
}

async fn write(domain: &Domain, objects: &Arc<dyn ObjectStore>) -> Result<(), String> {
    let path = path_of(domain.name());
    let written =
        Written { version: VERSION, domain: domain.name().to_string(), key: domain.key_id().to_string() };
    let payload = PutPayload::from(serde_json::to_vec(&written).expect("it is plain data"));
    match objects.put_opts(&path, payload, PutOptions::from(PutMode::Create)).await {
        Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
        Err(error) => Err(format!("its object `{path}` cannot be written: {error}")),
    }
}

fn path_of(domain: &DomainName) -> ObjectPath {
    ObjectPath::from(format!("domains/{domain}"))
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    fn domain(key: u8) -> Domain {
        Domain::new("tenant-1".parse().expect("a legal name"), KeyId::from_bytes([key; 8]))
    }

    #[test]
    fn the_first_node_says_the_key_and_one_with_another_key_is_told_so() {
        let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let agree = |domain: &Domain| futures_executor::block_on(agree(domain, &objects));
        assert_eq!(agree(&domain(1)), Ok(()));
        assert_eq!(agree(&domain(1)), Ok(()));
        let told = agree(&domain(2)).expect_err("it has another key");
        assert!(
            told.starts_with("domain tenant-1 has key 0101010101010101 in it, and this node's"),
            "{told}"
        );
        let key = futures_executor::block_on(key_in(domain(1).name(), &objects));
        assert_eq!(key, Ok(Some(domain(1).key_id())));
    }

    #[test]
    fn what_names_no_key_is_refused_and_an_unknown_version_by_name() {
        let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let told = |content: &str| {
            let payload = PutPayload::from(content.as_bytes().to_vec());
            futures_executor::block_on(objects.put(&path_of(domain(1).name()), payload)).expect("RAM");
            futures_executor::block_on(agree(&domain(1), &objects)).expect_err("it names no key")
        };
        assert!(told("{\"version\":2,\"keys\":[]}").contains("version 2 is unknown to this rekindle"));
        assert!(told("{\"version\":1,\"domain\":\"b\",\"key\":\"00\"}").contains("it is of domain \"b\""));
        let no_id = told("{\"version\":1,\"domain\":\"tenant-1\",\"key\":\"00\"}");
        assert!(no_id.contains("a key's id is 16 lower-case"), "{no_id}");
    }
}
