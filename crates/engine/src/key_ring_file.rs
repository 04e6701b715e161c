//! The file of a key ring: JSON, with a version, and a list of domains and their secrets.
//!
//! `{"version": 2, "keys": [{"domain": "default", "secret": "<64 hexadecimal digits>"}]}`. The first key of a domain
//! names what is packed from now on; the others only read. A key that came in the place of another says the id of that one
//! in `replaces`, which version 1 does not have.

use serde::{Deserialize, Serialize};

use crate::identity::{DomainName, KeyId, NameError};
use crate::key_ring::{DomainKey, KeyRing, SECRET_BYTES};
use crate::wire::{UnknownVersion, Versioned};

/// The version that is written, and the newest one that is read.
const VERSION: u32 = 2;
/// Most keys of a ring.
const KEYS_MAX: usize = 1024;

/// The keys in a file. They cannot be printed.
#[derive(Default)]
pub struct KeyRingFile {
    keys: Vec<FileKey>,
}

struct FileKey {
    domain: DomainName,
    secret: [u8; SECRET_BYTES],
    replaces: Option<KeyId>,
}

/// A key that came in the place of another one of its domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// The key that names what is packed from now on.
    pub key: KeyId,
    /// The one before it, which reads.
    pub replaced: KeyId,
}

/// Reason that bytes are no key ring. It never shows what stands in the file: that may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyRingError {
    /// It is not JSON, or a field is missing, unknown, or of another kind.
    #[error(
        "line {line}, column {column}: this is not `{{\"version\": 2, \"keys\": [{{\"domain\": …, \"secret\": …}}]}}`"
    )]
    Form {
        /// Line of the fault.
        line: usize,
        /// Column of the fault.
        column: usize,
    },
    /// It is of a version that this program does not read.
    #[error(transparent)]
    Version(#[from] UnknownVersion),
    /// The value of a field of a key is none.
    #[error("keys[{position}].{field}: {expected}")]
    Field {
        /// Position of the key in the list.
        position: usize,
        /// The field.
        field: &'static str,
        /// The form that it must have.
        expected: String,
    },
    /// It has more keys than a ring can have.
    #[error("it has more than {KEYS_MAX} keys")]
    TooMany,
}

/// Reason that a ring gets no key in the place of another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RotationError {
    /// There is no key to replace.
    #[error("it has no key of domain {domain} that could be replaced")]
    NoKey {
        /// The domain.
        domain: DomainName,
    },
    /// It is full.
    #[error("it has {KEYS_MAX} keys, the most there can be; remove some that name nothing any more")]
    Full,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    keys: Vec<WrittenKey>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenKey {
    domain: String,
    secret: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replaces: Option<String>,
}

impl KeyRingFile {
    /// Reads a file's content.
    pub fn decode(bytes: &[u8]) -> Result<Self, KeyRingError> {
        let form =
            |error: serde_json::Error| KeyRingError::Form { line: error.line(), column: error.column() };
        // The version by itself first: all else of another one may have another form.
        let Versioned { version } = serde_json::from_slice(bytes).map_err(form)?;
        UnknownVersion::check(version, VERSION)?;
        let Written { version: _, keys } = serde_json::from_slice(bytes).map_err(form)?;
        if keys.len() > KEYS_MAX {
            return Err(KeyRingError::TooMany);
        }
        let mut file = Self::default();
        for (position, WrittenKey { domain, secret, replaces }) in keys.into_iter().enumerate() {
            let wrong = |field, expected: String| KeyRingError::Field { position, field, expected };
            let domain: DomainName =
                domain.parse().map_err(|error: NameError| wrong("domain", error.to_string()))?;
            let secret = secret_of(&secret)
                .ok_or_else(|| wrong("secret", "it must be 64 lower-case hexadecimal digits".to_owned()))?;
            let is_same = |key: &FileKey| key.domain == domain && key.secret == secret;
            if let Some(first) = file.keys.iter().position(is_same) {
                return Err(wrong("secret", format!("it is that of keys[{first}]; remove one of them")));
            }
            let replaces = replaces.map(|id| id.parse()).transpose();
            let replaces = replaces.map_err(|error: NameError| wrong("replaces", error.to_string()))?;
            file.keys.push(FileKey { domain, secret, replaces });
        }
        Ok(file)
    }

    /// The file's content.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let keys = self.keys.iter().map(|key| WrittenKey {
            domain: key.domain.to_string(),
            secret: blake3::Hash::from_bytes(key.secret).to_hex().to_string(),
            replaces: key.replaces.map(|id| id.to_string()),
        });
        let written = Written { version: VERSION, keys: keys.collect() };
        let mut bytes = serde_json::to_vec_pretty(&written).expect("it is plain data");
        bytes.push(b'\n');
        bytes
    }

    /// Adds a key after those that are there.
    pub fn add(&mut self, domain: DomainName, secret: [u8; SECRET_BYTES]) {
        self.keys.push(FileKey { domain, secret, replaces: None });
    }

    /// Puts a new key of a domain in the place of the one that names what is packed in it, which stays behind it.
    pub fn rotate(
        &mut self,
        domain: &DomainName,
        secret: [u8; SECRET_BYTES],
    ) -> Result<Rotation, RotationError> {
        let at = self.keys.iter().position(|key| key.domain == *domain);
        let at = at.ok_or_else(|| RotationError::NoKey { domain: domain.clone() })?;
        if self.keys.len() >= KEYS_MAX {
            return Err(RotationError::Full);
        }
        let replaced = self.keys[at].key().domain().key_id();
        let new = FileKey { domain: domain.clone(), secret, replaces: Some(replaced) };
        let key = new.key().domain().key_id();
        self.keys.insert(at, new);
        Ok(Rotation { key, replaced })
    }

    /// All keys, in their order.
    #[must_use]
    pub fn keys(&self) -> Vec<DomainKey> {
        self.keys.iter().map(FileKey::key).collect()
    }

    /// The ring of a node that packs in the domain `own`; none if the file has no key of it.
    #[must_use]
    pub fn ring(&self, own: &DomainName) -> Option<KeyRing> {
        let mut keys = self.keys();
        let at = keys.iter().position(|key| key.domain().name() == own)?;
        let own = keys.remove(at);
        Some(KeyRing::new(own, keys))
    }
}

impl FileKey {
    fn key(&self) -> DomainKey {
        match self.replaces {
            Some(replaced) => DomainKey::replacing(self.domain.clone(), replaced, &self.secret),
            None => DomainKey::new(self.domain.clone(), &self.secret),
        }
    }
}

fn secret_of(text: &str) -> Option<[u8; SECRET_BYTES]> {
    let hash = blake3::Hash::from_hex(text).ok()?;
    (hash.to_hex().as_str() == text).then(|| hash.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn refused(text: &str) -> String {
        let Err(error) = KeyRingFile::decode(text.as_bytes()) else { panic!("{text} is a key ring") };
        assert!(!error.to_string().contains("0011"), "an error never shows a secret: {error}");
        error.to_string()
    }

    fn name(text: &str) -> DomainName {
        text.parse().expect("a legal name")
    }

    #[test]
    fn a_ring_is_read_back_and_the_first_key_of_a_domain_names_new_layers() {
        let mut file = KeyRingFile::default();
        for (domain, byte) in [("b", 1), ("a", 2), ("a", 3)] {
            file.add(name(domain), [byte; 32]);
        }
        let bytes = file.encode();
        let read = KeyRingFile::decode(&bytes).expect("just written");
        assert_eq!(read.encode(), bytes);
        let ring = read.ring(&name("a")).expect("it has keys of a");
        assert_eq!(ring.own().domain(), DomainKey::new(name("a"), &[2; 32]).domain());
        for (domain, byte) in [("b", 1), ("a", 3)] {
            assert!(ring.key(DomainKey::new(name(domain), &[byte; 32]).domain()).is_ok());
        }
        assert!(read.ring(&name("c")).is_none());
    }

    #[test]
    fn a_rotated_key_comes_in_front_says_which_one_it_replaces_and_leaves_other_domains() {
        let mut file = KeyRingFile::default();
        for (domain, byte) in [("b", 1), ("a", 2)] {
            file.add(name(domain), [byte; 32]);
        }
        let rotation = file.rotate(&name("a"), [3; 32]).expect("it has a key of a");
        let [old, new] = [2, 3].map(|byte| DomainKey::new(name("a"), &[byte; 32]).domain().key_id());
        assert_eq!(rotation, Rotation { key: new, replaced: old });
        let read = KeyRingFile::decode(&file.encode()).expect("just written");
        let ring = read.ring(&name("a")).expect("it has keys of a");
        assert_eq!((ring.own().domain().key_id(), ring.replaced_by(ring.own())), (new, vec![old]));
        let other = ring.of_domain(&name("b")).expect("it has a key of b");
        assert_eq!(
            (other.domain().key_id(), other.replaced()),
            (DomainKey::new(name("b"), &[1; 32]).domain().key_id(), None)
        );
        let none = file.rotate(&name("c"), [4; 32]).expect_err("it has no key of c");
        assert_eq!(none, RotationError::NoKey { domain: name("c") });
        while file.rotate(&name("a"), secret_number(file.keys.len())).is_ok() {}
        assert_eq!(file.keys.len(), KEYS_MAX);
        assert!(KeyRingFile::decode(&file.encode()).is_ok(), "a full ring can be read");
    }

    /// One secret for each number.
    fn secret_number(number: usize) -> [u8; SECRET_BYTES] {
        blake3::hash(&number.to_le_bytes()).into()
    }

    #[test]
    fn what_is_no_ring_is_refused_with_its_place_and_without_the_secret() {
        assert!(refused("").starts_with("line 1, column 0: "));
        let unknown =
            format!("{{\"version\":1,\n\"keys\":[{{\"domain\":\"a\",\"secret\":\"{SECRET}\",\"x\":1}}]}}");
        assert!(refused(&unknown).starts_with("line 2, column "), "{}", refused(&unknown));
        let of = |keys: &str| format!("{{\"version\":1,\"keys\":[{keys}]}}");
        let key = |domain: &str, secret: &str| format!("{{\"domain\":\"{domain}\",\"secret\":\"{secret}\"}}");
        assert!(refused(&of(&key("A", SECRET))).starts_with("keys[0].domain: byte 0 of the name"));
        let short = refused(&of(&[key("a", SECRET), key("a", &SECRET[1..])].join(",")));
        assert_eq!(short, "keys[1].secret: it must be 64 lower-case hexadecimal digits");
        let twice = refused(&of(&[key("a", SECRET), key("a", SECRET)].join(",")));
        assert_eq!(twice, "keys[1].secret: it is that of keys[0]; remove one of them");
        assert!(refused(&of(&format!("\"{SECRET}\""))).starts_with("line 1, column "));
        let replaces = format!("{{\"domain\":\"a\",\"secret\":\"{SECRET}\",\"replaces\":\"0\"}}");
        assert!(refused(&of(&replaces)).starts_with("keys[0].replaces: a key's id is 16"));
    }

    #[test]
    fn an_unknown_version_is_refused_by_name_whatever_else_is_in_it() {
        let refused = refused("{\"version\":3,\"rings\":{}}");
        assert!(
            refused.starts_with("version 3 is unknown to this rekindle, which reads versions 1 to 2"),
            "{refused}"
        );
    }
}
