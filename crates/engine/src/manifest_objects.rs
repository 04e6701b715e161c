//! The objects of manifests in a store: `manifests/<snapshot>/<edition>`, of which the newest counts.
//!
//! Older programs put `manifests/<snapshot>`, which is read as long as no edition is in the store.

use std::sync::Arc;

use futures_util::stream::TryStreamExt;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::identity::SnapshotId;
use crate::manifest::Edition;
use crate::withdrawal::Signs;

/// Place of all manifests.
pub(crate) const MANIFESTS: &str = "manifests";

/// The object of an edition.
pub(crate) fn path_of(snapshot: SnapshotId, edition: Edition) -> ObjectPath {
    ObjectPath::from(format!("{MANIFESTS}/{snapshot}/{}", edition.number()))
}

/// The object that an older program put, which has no edition in its name. It is also the folder of all editions: in a
/// directory, only one of the two can be.
pub(crate) fn older_path(snapshot: SnapshotId) -> ObjectPath {
    ObjectPath::from(format!("{MANIFESTS}/{snapshot}"))
}

/// All editions of a snapshot's manifest in a store.
pub(crate) async fn editions(
    objects: &Arc<dyn ObjectStore>,
    snapshot: SnapshotId,
) -> object_store::Result<Vec<Edition>> {
    editions_and_signs(objects, snapshot).await.map(|(editions, _)| editions)
}

/// The same, with the signs of deletions that lie beside them.
pub(crate) async fn editions_and_signs(
    objects: &Arc<dyn ObjectStore>,
    snapshot: SnapshotId,
) -> object_store::Result<(Vec<Edition>, Signs)> {
    let under = older_path(snapshot);
    let mut listed = objects.list(Some(&under));
    let (mut editions, mut signs) = (Vec::new(), Signs::default());
    while let Some(object) = listed.try_next().await? {
        match edition_of(&object.location) {
            Some(edition) => editions.push(edition),
            None => drop(signs.note(object.location.filename().unwrap_or_default())),
        }
    }
    Ok((editions, signs))
}

/// The newest edition in a store; the first one where an older program put the manifest.
pub(crate) async fn newest(
    objects: &Arc<dyn ObjectStore>,
    snapshot: SnapshotId,
) -> object_store::Result<Option<Edition>> {
    if let Some(newest) = editions(objects, snapshot).await?.into_iter().max() {
        return Ok(Some(newest));
    }
    is_there(objects, &older_path(snapshot)).await.map(|is_there| is_there.then_some(Edition::FIRST))
}

/// True if an object is there.
pub(crate) async fn is_there(
    objects: &Arc<dyn ObjectStore>,
    path: &ObjectPath,
) -> object_store::Result<bool> {
    match objects.head(path).await {
        Ok(_) => Ok(true),
        Err(object_store::Error::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The edition in the name of an object; none if it is no edition's.
fn edition_of(path: &ObjectPath) -> Option<Edition> {
    let name = path.parts().nth(2)?;
    let edition = Edition::of(name.as_ref().parse().ok()?)?;
    (path.parts().count() == 3 && edition.number().to_string() == name.as_ref()).then_some(edition)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edition_has_one_name() {
        let snapshot = SnapshotId::new();
        let edition = Edition::of(12).expect("it is one");
        assert_eq!(edition_of(&path_of(snapshot, edition)), Some(edition));
        for other in ["", "/0", "/012", "/+12", "/x", "/12/1", "/18446744073709551616"] {
            let path = ObjectPath::from(format!("{MANIFESTS}/{snapshot}{other}"));
            assert_eq!(edition_of(&path), None, "{path}");
        }
    }
}
