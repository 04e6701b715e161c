//! The list of layers at a manifest's front, by which a reader knows all objects that the manifest names.
//!
//! Layout: the number of domains, and of each the name and the id of its key, in the order of their first layers; the
//! number of layers, and for each its id, the number of its domain, a byte for the order of its pages, the number of its
//! pages, and its place. In version 2 of manifests no key is named: it follows from the domain's name.

use std::collections::HashSet;

use super::LayerName;
use crate::identity::{Domain, LayerId};
use crate::key_ring::DomainKey;
use crate::limits::{MANIFEST_LAYERS_MAX, MANIFEST_PAGES_MAX, NAME_BYTES_MAX};
use crate::tag::{read_domain, write_domain};
use crate::wire::{Problem, Reader, WireError, Writer};

/// The layer's pages are in the order of the guest's. Another order will have another code.
const GUESTS_ORDER: u8 = 0;

/// The form of a domain in a list.
#[derive(Clone, Copy)]
pub(super) enum DomainForm {
    /// Its name, from which its key follows.
    Named,
    /// Its name, and the id of its key.
    Keyed,
}

/// Writes the list of `layers`, each with its place as `write_place` writes it.
pub(super) fn write_layers<P>(
    writer: &mut Writer,
    layers: &[LayerName],
    places: &[P],
    write_place: impl Fn(&mut Writer, &P),
) {
    let mut domains: Vec<&Domain> = Vec::new();
    for layer in layers {
        if !domains.contains(&&layer.domain) {
            domains.push(&layer.domain);
        }
    }
    writer.varint_usize(domains.len());
    domains.iter().for_each(|domain| write_domain(writer, domain));
    writer.varint_usize(layers.len());
    for (layer, place) in layers.iter().zip(places) {
        writer.bytes(layer.id.as_bytes());
        let domain = domains.iter().position(|domain| **domain == layer.domain);
        writer.varint_usize(domain.expect("the domain of each layer is listed"));
        writer.u8(GUESTS_ORDER);
        writer.varint(layer.pages.into());
        write_place(writer, place);
    }
}

/// Reads a list that [`write_layers`] wrote.
pub(super) fn read_layers<P>(
    reader: &mut Reader<'_>,
    form: DomainForm,
    read_place: impl Fn(&mut Reader<'_>) -> Result<P, WireError>,
) -> Result<(Vec<LayerName>, Vec<P>), WireError> {
    let domains = read_domains(reader, form)?;
    let count = reader.varint_usize("layers", MANIFEST_LAYERS_MAX)?;
    let (mut layers, mut places) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let (mut names, mut domains_seen) = (HashSet::with_capacity(count), 0);
    for _ in 0..count {
        let id = read_id(reader, &mut names)?;
        let number = reader.varint_usize("layer domain", domains_seen)?;
        let listed = domains.get(number).ok_or(reader.invalid("layer domain", "it is not listed"))?;
        domains_seen = domains_seen.max(number + 1);
        let found = reader.u8("layer page order")?;
        if found != GUESTS_ORDER {
            let known = "0 (the guest's order)";
            return Err(reader.error("layer page order", Problem::UnknownCode { found, known }));
        }
        let pages = reader.varint_u32("layer pages", MANIFEST_PAGES_MAX)?;
        layers.push(LayerName { id, domain: listed.clone(), pages });
        places.push(read_place(reader)?);
    }
    if domains_seen < domains.len() {
        return Err(reader.invalid("layer domains", "one of them has no layer"));
    }
    Ok((layers, places))
}

/// Reads a layer's id that none of `names` is.
pub(super) fn read_id(reader: &mut Reader<'_>, names: &mut HashSet<LayerId>) -> Result<LayerId, WireError> {
    let id = LayerId::from_bytes(reader.array("layer id")?);
    if names.insert(id) { Ok(id) } else { Err(reader.invalid("layer id", "two layers have one name")) }
}

/// Reads the name of a domain whose key follows from it.
pub(super) fn read_named_domain(reader: &mut Reader<'_>) -> Result<Domain, WireError> {
    let name = reader.text("layer domain", NAME_BYTES_MAX)?;
    let name = name.parse().map_err(|_| reader.invalid("layer domain", "the text names no domain"))?;
    Ok(DomainKey::of_name(name).domain().clone())
}

fn read_domains(reader: &mut Reader<'_>, form: DomainForm) -> Result<Vec<Domain>, WireError> {
    let count = reader.varint_usize("layer domains", MANIFEST_LAYERS_MAX)?;
    let mut domains = Vec::new();
    for _ in 0..count {
        let domain = match form {
            DomainForm::Named => read_named_domain(reader)?,
            DomainForm::Keyed => read_domain(reader)?,
        };
        if domains.contains(&domain) {
            return Err(reader.invalid("layer domains", "one is listed twice"));
        }
        domains.push(domain);
    }
    Ok(domains)
}
