//! Checks that the store has the objects of a published snapshot, by their keys and sizes.

use futures_util::stream::{self, StreamExt};

use crate::identity::{LayerId, SnapshotId};
use crate::limits;
use crate::manifest::{Edition, StoredLayer};
use crate::sources::{Class, SourceError, Sources};
use crate::store::Store;

/// Result of looking for one snapshot's objects in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreFindings {
    /// It is not published, so nothing of it has to be in the store.
    NotPublished,
    /// Unknown: the store gave no answer.
    NotAsked {
        /// The reason.
        reason: String,
    },
    /// The store was asked for each of its objects.
    Asked {
        /// Objects asked for: its manifest, and one for each layer.
        objects: u64,
        /// The objects that are missing or wrong.
        wrong_objects: u64,
        /// The fault of the first of them.
        first: Option<String>,
    },
}

/// Asks for the manifest of a published snapshot, which must not be older than the edition `seen`, and for each object
/// that it names. It reads only the manifest.
pub(crate) async fn look_for_objects(
    snapshot: SnapshotId,
    seen: Option<Edition>,
    sources: &Sources,
) -> StoreFindings {
    let mut faults = Faults::default();
    let done = faults.look(snapshot, seen, sources).await;
    if let Err(error) = done {
        return StoreFindings::NotAsked { reason: error.to_string() };
    }
    let Faults { objects, wrong_objects, first } = faults;
    StoreFindings::Asked { objects, wrong_objects, first }
}

#[derive(Debug, Default)]
struct Faults {
    objects: u64,
    wrong_objects: u64,
    first: Option<String>,
}

impl Faults {
    async fn look(
        &mut self,
        snapshot: SnapshotId,
        seen: Option<Edition>,
        sources: &Sources,
    ) -> Result<(), SourceError> {
        let publication = match sources.manifest(snapshot, Class::Background).await {
            Ok(stored) => {
                stored.publication(snapshot, seen, sources.keys()).map_err(|error| error.to_string())
            }
            Err(error) => Err(fault(error)?),
        };
        let publication = match publication {
            Ok((publication, _)) => publication,
            Err(reason) => {
                self.note(Some(format!("the manifest of snapshot {snapshot}: {reason}")));
                return Ok(());
            }
        };
        self.note(None);
        let layers = publication.manifest().layers().iter().zip(publication.stored());
        let asked = layers.map(|(layer, stored)| fault_of_layer(sources.store(), layer.id, stored));
        let mut answers = stream::iter(asked).buffered(limits::OBJECTS_LOOKED_FOR_AT_ONCE);
        while let Some(fault) = answers.next().await {
            self.note(fault?);
        }
        Ok(())
    }

    fn note(&mut self, fault: Option<String>) {
        self.objects += 1;
        if let Some(fault) = fault {
            self.wrong_objects += 1;
            self.first.get_or_insert(fault);
        }
    }
}

/// The fault of a layer's object, if it is missing or its size is wrong.
async fn fault_of_layer(
    store: &Store,
    layer: LayerId,
    stored: &StoredLayer,
) -> Result<Option<String>, SourceError> {
    match store.layer_bytes(layer, &stored.object).await {
        Ok(bytes) if bytes == stored.object_bytes => Ok(None),
        Ok(bytes) => Ok(Some(format!(
            "the object of layer {layer} has {bytes} bytes in the store instead of {}",
            stored.object_bytes
        ))),
        Err(error) => fault(error.into()).map(Some),
    }
}

/// The fault of an object, if the error is about it; any other error is returned.
fn fault(error: SourceError) -> Result<String, SourceError> {
    match error {
        SourceError::Gone(_) | SourceError::WrongBytes(_) => Ok(error.to_string()),
        SourceError::Away(_) | SourceError::Silent { .. } | SourceError::Refused(_) => Err(error),
    }
}
