//! The first version of manifests, which is read and no longer written.
//!
//! Its body: the snapshot and its place in its line; of each layer the id, the name of its domain and the number of its
//! pages; the volumes with their maps; the blobs; and last the places of the layers, in their order.

use std::collections::HashSet;

use super::layer_list::{read_id, read_named_domain};
use super::line::Line;
use super::{LayerName, Manifest};
use crate::identity::SnapshotId;
use crate::limits::{MANIFEST_LAYERS_MAX, MANIFEST_PAGES_MAX};
use crate::page_map::RunToken;
use crate::wire::{Reader, WireError};

/// Reads a manifest of the first version, and the places of its layers as `read_place` reads them.
pub(super) fn read_version_1<P>(
    reader: &mut Reader<'_>,
    read_place: impl Fn(&mut Reader<'_>) -> Result<P, WireError>,
) -> Result<(Manifest, Vec<P>), WireError> {
    let snapshot = SnapshotId::from_bytes(reader.array("snapshot")?);
    let line = Line::read(reader, snapshot)?;
    let layers = read_layers(reader)?;
    let manifest = line.manifest(reader, layers, |_| RunToken::FIRST)?;
    let places = manifest.layers().iter().map(|_| read_place(reader)).collect::<Result<_, _>>()?;
    Ok((manifest, places))
}

fn read_layers(reader: &mut Reader<'_>) -> Result<Vec<LayerName>, WireError> {
    let count = reader.varint_usize("layers", MANIFEST_LAYERS_MAX)?;
    let (mut layers, mut names) = (Vec::with_capacity(count), HashSet::with_capacity(count));
    for _ in 0..count {
        let (id, domain) = (read_id(reader, &mut names)?, read_named_domain(reader)?);
        layers.push(LayerName { id, domain, pages: reader.varint_u32("layer pages", MANIFEST_PAGES_MAX)? });
    }
    Ok(layers)
}
