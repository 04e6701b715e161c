//! The objects that a manifest names, as a collector reads them.

use super::*;

#[test]
fn the_objects_that_a_manifest_names_are_read_without_its_key_and_not_of_a_damaged_one() {
    let publication = published(small());
    let mut bytes = publication.encode(&DomainKey::new(tenant().name().clone(), &[8; 32]));
    let layers = publication.manifest().layers().iter().zip(publication.stored());
    let named: Vec<_> = layers.map(|(layer, stored)| (layer.id, stored.object)).collect();
    assert_eq!(Publication::named_objects(&bytes), Ok((small().snapshot(), named)));
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    assert!(Publication::named_objects(&bytes).is_err());
}
