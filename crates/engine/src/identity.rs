//! Names: of snapshots, layers, frames, volumes, and of the domains that layers belong to.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::limits::NAME_BYTES_MAX;

/// The name of a snapshot: a UUID version 7, so names sort by the time of their pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(Uuid);

impl SnapshotId {
    /// A new name.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a default that differs each time surprises")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// The name with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// The name's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The UUID it is.
    #[must_use]
    pub const fn uuid(&self) -> Uuid {
        self.0
    }
}

impl From<Uuid> for SnapshotId {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for SnapshotId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let id = Uuid::try_parse(text).map_err(|_| NameError::NotAnId)?;
        let mut name = Uuid::encode_buffer();
        (id.hyphenated().encode_lower(&mut name) == text).then_some(Self(id)).ok_or(NameError::NotAnId)
    }
}

/// The name of a layer: the keyed hash of its canonical index, which commits to every byte of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId([u8; 32]);

/// The BLAKE3 hash of one frame's uncompressed bytes, keyed by the layer's domain.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameDigest([u8; 32]);

macro_rules! digest {
    ($digest:ident) => {
        impl $digest {
            /// The digest with these bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The digest's bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $digest {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
            }
        }

        impl fmt::Debug for $digest {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($digest), "({})"), self)
            }
        }

        impl FromStr for $digest {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                let digest = blake3::Hash::from_hex(text).map_err(|_| NameError::NotADigest)?;
                (digest.to_hex().as_str() == text).then_some(Self(digest.into())).ok_or(NameError::NotADigest)
            }
        }
    };
}

digest!(LayerId);
digest!(FrameDigest);

impl FrameDigest {
    /// The digest of a frame's bytes without a key, as layers had it before there were key rings.
    #[must_use]
    pub fn without_key(frame: &[u8]) -> Self {
        Self(blake3::hash(frame).into())
    }
}

/// The name of a domain: 1 to 64 bytes of `a-z`, `0-9` and `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainName(Arc<str>);

impl DomainName {
    /// The name of the domain that every tenant may name layers of.
    #[must_use]
    pub fn shared() -> Self {
        Self("shared".into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DomainName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        check_name(text)?;
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for DomainName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<DomainName> for String {
    fn from(name: DomainName) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The public id of a domain's key: it follows from the secret, and tells nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; 8]);

impl KeyId {
    /// The id with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    /// The id's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl FromStr for KeyId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let id = u64::from_str_radix(text, 16).map_err(|_| NameError::NotAKeyId)?;
        let id = Self(id.to_be_bytes());
        (id.to_string() == text).then_some(id).ok_or(NameError::NotAKeyId)
    }
}

/// Holders of a layer's name: one tenant, or everybody.
///
/// The domain's key enters every layer id, so equal bytes of two domains have different names. A domain with another
/// key is another domain. The secret itself is in the key ring, and nowhere else.
///
/// A clone is a pointer: each layer of each manifest has one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain(Arc<Keyed>);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Keyed {
    name: DomainName,
    key: KeyId,
}

impl Domain {
    /// The domain of this name whose key has this id.
    #[must_use]
    pub fn new(name: DomainName, key: KeyId) -> Self {
        Self(Arc::new(Keyed { name, key }))
    }

    /// The domain's name.
    #[must_use]
    pub fn name(&self) -> &DomainName {
        &self.0.name
    }

    /// The id of the key that layer ids of this domain are hashed with.
    #[must_use]
    pub fn key_id(&self) -> KeyId {
        self.0.key
    }
}

/// The name of a volume of a snapshot, like `memory`: 1 to 64 bytes of `a-z`, `0-9` and `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeName(Arc<str>);

impl VolumeName {
    /// The name of a guest's memory.
    #[must_use]
    pub fn memory() -> Self {
        Self("memory".into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VolumeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        check_name(text)?;
        Ok(Self(text.into()))
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Text that names nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A snapshot's name is a lower-case hyphenated UUID.
    #[error("a snapshot's name is a lower-case UUID with hyphens")]
    NotAnId,
    /// A digest is 64 lower-case hexadecimal digits.
    #[error("a digest is 64 lower-case hexadecimal digits")]
    NotADigest,
    /// A key's id is 16 lower-case hexadecimal digits.
    #[error("a key's id is 16 lower-case hexadecimal digits")]
    NotAKeyId,
    /// A name has at least one byte.
    #[error("a name must not be empty")]
    Empty,
    /// A name has at most 64 bytes.
    #[error("a name of {bytes} bytes is longer than {NAME_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// A name is of lower-case letters, digits and hyphens.
    #[error("byte {at} of the name is none of a-z, 0-9 and '-'")]
    Character {
        /// Position of the byte.
        at: usize,
    },
}

/// True if `name` may name a domain, a volume or a blob.
pub(crate) fn check_name(name: &str) -> Result<(), NameError> {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    match name.bytes().position(|byte| !allowed(byte)) {
        _ if name.is_empty() => Err(NameError::Empty),
        _ if name.len() > NAME_BYTES_MAX => Err(NameError::TooLong { bytes: name.len() }),
        Some(at) => Err(NameError::Character { at }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_from_what_they_display() {
        let snapshot = SnapshotId::new();
        assert_eq!(snapshot.to_string().parse(), Ok(snapshot));
        assert_eq!(SnapshotId::from_bytes(*snapshot.as_bytes()), snapshot);
        let layer = LayerId::from_bytes([0xa7; 32]);
        assert_eq!(layer.to_string().parse(), Ok(layer));
        assert_eq!(format!("{layer:?}"), format!("LayerId({layer})"));
    }

    #[test]
    fn later_snapshots_sort_after_earlier_ones() {
        let ids: Vec<_> = (0..100).map(|_| SnapshotId::new()).collect();
        assert!(ids.is_sorted());
    }

    #[test]
    fn one_thing_has_one_spelling() {
        let snapshot = SnapshotId::from_bytes([0xab; 16]).to_string();
        assert_eq!(snapshot.to_uppercase().parse::<SnapshotId>(), Err(NameError::NotAnId));
        assert_eq!(snapshot.replace('-', "").parse::<SnapshotId>(), Err(NameError::NotAnId));
        let layer = LayerId::from_bytes([0xab; 32]).to_string();
        assert_eq!(layer.to_uppercase().parse::<LayerId>(), Err(NameError::NotADigest));
        assert_eq!(layer[1..].parse::<LayerId>(), Err(NameError::NotADigest));
    }

    #[test]
    fn a_name_that_could_leave_its_directory_is_refused() {
        assert_eq!("a/b".parse::<VolumeName>(), Err(NameError::Character { at: 1 }));
        assert_eq!("..".parse::<VolumeName>(), Err(NameError::Character { at: 0 }));
        assert_eq!("Memory".parse::<VolumeName>(), Err(NameError::Character { at: 0 }));
        assert_eq!("".parse::<VolumeName>(), Err(NameError::Empty));
        assert_eq!("a".repeat(65).parse::<VolumeName>(), Err(NameError::TooLong { bytes: 65 }));
        assert!("a".repeat(64).parse::<VolumeName>().is_ok());
        assert_eq!("memory".parse(), Ok(VolumeName::memory()));
    }

    #[test]
    fn a_keys_id_has_one_spelling() {
        let id = KeyId::from_bytes([0, 0xab, 1, 2, 3, 4, 5, 6]);
        assert_eq!(id.to_string(), "00ab010203040506");
        assert_eq!(id.to_string().parse(), Ok(id));
        for other in ["0AB010203040506", "+0ab010203040506", "ab010203040506", ""] {
            assert_eq!(other.parse::<KeyId>(), Err(NameError::NotAKeyId), "{other}");
        }
    }
}
