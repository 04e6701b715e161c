//! The tag that ends a stored thing: a hash of all before it, keyed by a domain, so that only its nodes can make it.
//!
//! Layout: a byte 1, the name of the domain, the id of its key, 32 bytes.

use crate::identity::{Domain, KeyId};
use crate::key_ring::{DomainKey, KeyRing, MissingKey};
use crate::limits::NAME_BYTES_MAX;
use crate::wire::{Problem, Reader, WireError, Writer};

/// No tag: what has none is only on this node's disk.
pub(crate) const NONE: u8 = 0;
const KEYED: u8 = 1;

/// Reason that a stored thing with a tag is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TaggedError {
    /// It is damaged, or of another format.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Its tag cannot be checked.
    #[error(transparent)]
    Key(#[from] MissingKey),
    /// Its tag is wrong.
    #[error(
        "its tag is not the one that key {} of domain {} gives it: it was altered, or made by somebody without the key",
        domain.key_id(), domain.name()
    )]
    Forged {
        /// The domain that it says it is of.
        domain: Domain,
    },
}

/// All that was written, ended by its tag.
pub fn write_tag(mut writer: Writer, key: &DomainKey) -> Vec<u8> {
    writer.u8(KEYED);
    write_domain(&mut writer, key.domain());
    let mut bytes = writer.into_bytes();
    let tag = key.tag(&bytes);
    bytes.extend(tag.as_bytes());
    bytes
}

/// Reads the tag that ends `bytes`, of which `reader` has read all before it, and checks it. Returns the domain that it is
/// of.
pub(crate) fn check_tag(
    reader: &mut Reader<'_>,
    bytes: &[u8],
    keys: &KeyRing,
) -> Result<Domain, TaggedError> {
    match reader.u8("tag")? {
        KEYED => {}
        NONE => return Err(reader.invalid("tag", "there is none, and this version has one").into()),
        found => return Err(reader.error("tag", Problem::UnknownCode { found, known: "1 (keyed)" }).into()),
    }
    let domain = read_domain(reader)?;
    let tagged = &bytes[..reader.offset()];
    let tag = blake3::Hash::from_bytes(reader.array("tag")?);
    if keys.secret(&domain)?.tag(tagged) == tag { Ok(domain) } else { Err(TaggedError::Forged { domain }) }
}

/// Reads the name of a domain and the id of its key.
pub(crate) fn read_domain(reader: &mut Reader<'_>) -> Result<Domain, WireError> {
    let name = reader.text("domain", NAME_BYTES_MAX)?;
    let name = name.parse().map_err(|_| reader.invalid("domain", "the text names no domain"))?;
    Ok(Domain::new(name, KeyId::from_bytes(reader.array("key of the domain")?)))
}

/// Writes the name of a domain and the id of its key.
pub(crate) fn write_domain(writer: &mut Writer, domain: &Domain) {
    writer.text(domain.name().as_str());
    writer.bytes(domain.key_id().as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> DomainKey {
        DomainKey::new("tenant-1".parse().expect("a legal name"), &[byte; 32])
    }

    fn tagged(content: &[u8], key: &DomainKey) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.bytes(content);
        write_tag(writer, key)
    }

    fn checked(bytes: &[u8], content: usize, keys: &KeyRing) -> Result<(), TaggedError> {
        let mut reader = Reader::new(bytes);
        reader.bytes("content", content).expect("it is there");
        check_tag(&mut reader, bytes, keys).map(drop)
    }

    #[test]
    fn only_a_holder_of_the_key_makes_a_tag_that_is_accepted() {
        let ring = KeyRing::new(key(1), Vec::new());
        let bytes = tagged(b"manifest", &key(1));
        assert_eq!(checked(&bytes, 8, &ring), Ok(()));
        let missing = MissingKey { domain: key(2).domain().clone() };
        assert_eq!(checked(&tagged(b"manifest", &key(2)), 8, &ring), Err(missing.into()));
        // Somebody without the secret says that it has it.
        let id_at = bytes.len() - 40;
        let mut forged = tagged(b"manifest", &key(2));
        forged[id_at..id_at + 8].copy_from_slice(key(1).domain().key_id().as_bytes());
        let refused = checked(&forged, 8, &ring).expect_err("it has another key");
        assert_eq!(refused, TaggedError::Forged { domain: key(1).domain().clone() });
        assert!(refused.to_string().contains("of domain tenant-1 gives it: it was altered"), "{refused}");
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let ring = KeyRing::new(key(1), Vec::new());
        let bytes = tagged(b"manifest", &key(1));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(checked(&flipped, 8, &ring).is_err(), "bit {bit}");
        }
        for end in 8..bytes.len() {
            assert!(checked(&bytes[..end], 8, &ring).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn a_thing_without_a_tag_is_refused_as_such() {
        let refused = checked(b"manifest\0", 8, &KeyRing::of_name("a")).expect_err("it has none");
        assert_eq!(refused.to_string(), "tag at byte 8: there is none, and this version has one");
    }
}
