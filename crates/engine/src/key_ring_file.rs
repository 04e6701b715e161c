//! The file of a key ring: JSON, with a version, and a list of domains and their secrets.
//!
//! `{"version": 1, "keys": [{"domain": "default", "secret": "<64 hexadecimal digits>"}]}`. The first key of a domain
//! names what is packed from now on; the others only read.

use serde::{Deserialize, Serialize};

use crate::identity::{DomainName, NameError};
use crate::key_ring::{DomainKey, KeyRing, SECRET_BYTES};
use crate::wire::{UnknownVersion, Versioned};

/// The version that is written, and the newest one that is read.
const VERSION: u32 = 1;
/// Most keys of a ring.
const KEYS_MAX: usize = 1024;

/// The keys in a file. They cannot be printed.
#[derive(Default)]
pub struct KeyRingFile {
    keys: Vec<(DomainName, [u8; SECRET_BYTES])>,
}

/// Reason that bytes are no key ring. It never shows what stands in the file: that may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyRingError {
    /// It is not JSON, or a field is missing, unknown, or of another kind.
    #[error(
        "line {line}, column {column}: this is not `{{\"version\": 1, \"keys\": [{{\"domain\": …, \"secret\": …}}]}}`"
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
        for (position, WrittenKey { domain, secret }) in keys.into_iter().enumerate() {
            let wrong = |field, expected: String| KeyRingError::Field { position, field, expected };
            let domain: DomainName =
                domain.parse().map_err(|error: NameError| wrong("domain", error.to_string()))?;
            let secret = secret_of(&secret)
                .ok_or_else(|| wrong("secret", "it must be 64 lower-case hexadecimal digits".to_owned()))?;
            if let Some(first) = file.keys.iter().position(|key| *key == (domain.clone(), secret)) {
                return Err(wrong("secret", format!("it is that of keys[{first}]; remove one of them")));
            }
            file.keys.push((domain, secret));
        }
        Ok(file)
    }

    /// The file's content.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let keys = self.keys.iter().map(|(domain, secret)| WrittenKey {
            domain: domain.to_string(),
            secret: blake3::Hash::from_bytes(*secret).to_hex().to_string(),
        });
        let written = Written { version: VERSION, keys: keys.collect() };
        let mut bytes = serde_json::to_vec_pretty(&written).expect("it is plain data");
        bytes.push(b'\n');
        bytes
    }

    /// Adds a key after those that are there.
    pub fn add(&mut self, domain: DomainName, secret: [u8; SECRET_BYTES]) {
        self.keys.push((domain, secret));
    }

    /// The ring of a node that packs in the domain `own`; none if the file has no key of it.
    #[must_use]
    pub fn ring(&self, own: &DomainName) -> Option<KeyRing> {
        let keys = self.keys.iter().map(|(domain, secret)| DomainKey::new(domain.clone(), secret));
        let mut keys: Vec<_> = keys.collect();
        let at = keys.iter().position(|key| key.domain().name() == own)?;
        let own = keys.remove(at);
        Some(KeyRing::new(own, keys))
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
    }

    #[test]
    fn an_unknown_version_is_refused_by_name_whatever_else_is_in_it() {
        let refused = refused("{\"version\":2,\"rings\":{}}");
        assert!(
            refused.starts_with("version 2 is unknown to this rekindle, which reads version 1"),
            "{refused}"
        );
    }
}
