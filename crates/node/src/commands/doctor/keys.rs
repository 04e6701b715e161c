//! Checks of the key ring: it can be used, and it has the keys that the store has of the node's domain.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rekindle_engine::identity::{Domain, KeyId};
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::store_domain::{disagreement, keys_in};
use rekindle_input::regular_file::FileError;
use rekindle_settings::Settings;

use super::Check;
use crate::key_ring::{self, KeyRingFileError};

/// Longest time for the store's answer.
const STORE_LIMIT: Duration = Duration::from_secs(10);

/// Looks at the file, and asks the store.
pub(super) fn look(settings: &Settings) -> Check {
    let (name, path, domain) = ("key ring", settings.key_ring.display(), &settings.domain);
    let file = match key_ring::read(&settings.key_ring) {
        Ok(file) => file,
        Err(KeyRingFileError::Unread { source: FileError::Io(error), .. })
            if error.kind() == io::ErrorKind::PermissionDenied =>
        {
            return Check::ok(name, format!("{path} cannot be looked at by this user: {error}"));
        }
        Err(error) => return Check::fail(name, error.to_string(), "the daemon does not start like this"),
    };
    let ring = file.and_then(|file| file.ring(domain));
    let stored = match in_store(settings) {
        Ok(stored) => stored,
        Err(error) => return Check::warn(name, error, "the daemon asks the store again until it answers"),
    };
    match (ring, stored.first()) {
        (None, None) => {
            Check::ok(name, format!("{path} gets a key of domain {domain} when the daemon starts"))
        }
        (None, Some(key)) => Check::warn(
            name,
            format!("{path} has no key of domain {domain}, and the store has key {key} of it"),
            "copy the key ring of another node of this store there, or set `domain` to a name that no other node uses",
        ),
        (Some(ring), Some(key)) if !is_agreed(&ring, &stored) => Check::fail(
            name,
            format!("the store: {}", disagreement(ring.own().domain(), *key)),
            "nothing is published until they agree",
        ),
        (Some(ring), _) => match stored.iter().find(|key| ring.key(&of_ring(&ring, **key)).is_err()) {
            Some(key) => Check::warn(
                name,
                format!("{path} has no key {key} of domain {domain}, and the store has it"),
                "copy the key ring of a node that has it there, and restart the daemon: snapshots made with that key \
                 cannot be read here",
            ),
            None => {
                Check::ok(name, format!("{path}: key {} of domain {domain}", ring.own().domain().key_id()))
            }
        },
    }
}

/// True if the store has the key of what this node packs, or one in whose place that came.
fn is_agreed(ring: &KeyRing, stored: &[KeyId]) -> bool {
    let own = ring.own();
    let replaced = ring.replaced_by(own);
    stored.iter().any(|key| *key == own.domain().key_id() || replaced.contains(key))
}

/// The node's own domain with this key.
fn of_ring(ring: &KeyRing, key: KeyId) -> Domain {
    Domain::new(ring.own().domain().name().clone(), key)
}

/// The ids of the keys that the store has of the node's domain. A store that is not there has none.
fn in_store(settings: &Settings) -> Result<Vec<KeyId>, String> {
    if settings.store.directory().is_some_and(|directory| !directory.is_dir()) {
        return Ok(Vec::new());
    }
    let objects = settings.store.open(&settings.bucket, &Arc::default())?.objects;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let asked = async { tokio::time::timeout(STORE_LIMIT, keys_in(&settings.domain, &objects)).await };
    let silent = |_elapsed| format!("the store does not answer within {STORE_LIMIT:?}");
    runtime.block_on(asked).map_err(silent)?.map_err(|error| format!("the store: {error}"))
}
