//! Keys of domains: the secrets that name a domain's layers, digest their frames and tag its manifests; and the ring of
//! those that a node has.

use std::fmt;
use std::sync::Arc;

use crate::identity::{Domain, DomainName, FrameDigest, KeyId, LayerId};
use crate::page_tree::PageTree;

/// Bytes of a domain's secret.
pub const SECRET_BYTES: usize = 32;

/// Context of the hash of a domain's name, from which keys followed before there were key rings.
const KEYED_BY_NAME: &str = "rekindle 2026-01 layer domain key";
/// Contexts of the keys that follow from a secret, so that each of them is used for one thing.
const LAYER_NAMES: &str = "rekindle 2026-11 layer names";
const FRAME_DIGESTS: &str = "rekindle 2026-11 frame digests";
const TAGS: &str = "rekindle 2026-11 tags";
const KEY_ID: &str = "rekindle 2026-11 key id";

/// A domain with its key. The key cannot be printed: what is shown of it is the domain, and the key's id.
///
/// A clone is a pointer.
#[derive(Clone)]
pub struct DomainKey(Arc<Keys>);

struct Keys {
    domain: Domain,
    replaced: Option<KeyId>,
    layer_names: [u8; SECRET_BYTES],
    frame_digests: [u8; SECRET_BYTES],
    tags: [u8; SECRET_BYTES],
}

impl DomainKey {
    /// The key of the domain `name` that follows from a secret.
    #[must_use]
    pub fn new(name: DomainName, secret: &[u8; SECRET_BYTES]) -> Self {
        Self::of(name, None, secret, blake3::derive_key(LAYER_NAMES, secret))
    }

    /// The same, of a key that came in the place of the domain's key `replaced`.
    #[must_use]
    pub fn replacing(name: DomainName, replaced: KeyId, secret: &[u8; SECRET_BYTES]) -> Self {
        Self::of(name, Some(replaced), secret, blake3::derive_key(LAYER_NAMES, secret))
    }

    /// The key that a domain had before there were key rings: it follows from the name, and is no secret.
    #[must_use]
    pub fn of_name(name: DomainName) -> Self {
        let key = blake3::derive_key(KEYED_BY_NAME, name.as_str().as_bytes());
        Self::of(name, None, &key, key)
    }

    fn of(
        name: DomainName,
        replaced: Option<KeyId>,
        secret: &[u8; SECRET_BYTES],
        layer_names: [u8; SECRET_BYTES],
    ) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = blake3::derive_key(KEY_ID, secret);
        let domain = Domain::new(name, KeyId::from_bytes([a, b, c, d, e, f, g, h]));
        let [frame_digests, tags] = [FRAME_DIGESTS, TAGS].map(|context| blake3::derive_key(context, secret));
        Self(Arc::new(Keys { domain, replaced, layer_names, frame_digests, tags }))
    }

    /// The domain whose key it is.
    #[must_use]
    pub fn domain(&self) -> &Domain {
        &self.0.domain
    }

    /// The id of the key in whose place this one came, if the ring says one.
    #[must_use]
    pub fn replaced(&self) -> Option<KeyId> {
        self.0.replaced
    }

    /// The name in this domain of the layer whose encoded index this is.
    #[must_use]
    pub fn layer_id(&self, encoded_index: &[u8]) -> LayerId {
        LayerId::from_bytes(blake3::keyed_hash(&self.0.layer_names, encoded_index).into())
    }

    /// The digest of a frame's uncompressed bytes in this domain.
    #[must_use]
    pub fn frame_digest(&self, frame: &[u8]) -> FrameDigest {
        FrameDigest::from_bytes(blake3::keyed_hash(&self.0.frame_digests, frame).into())
    }

    /// The tree whose root is that digest.
    pub(crate) fn frame_tree(&self) -> PageTree<'_> {
        PageTree::with_key(&self.0.frame_digests)
    }

    /// The tag of these bytes. It is compared in constant time.
    pub(crate) fn tag(&self, bytes: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.0.tags, bytes)
    }
}

impl fmt::Debug for DomainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DomainKey").field(&self.0.domain).finish()
    }
}

/// The keys that a node has, of its own domain and of others. Clones share them.
#[derive(Clone, Debug)]
pub struct KeyRing {
    own: DomainKey,
    others: Arc<[DomainKey]>,
}

/// A domain of which the ring has no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the key ring has no key of domain {domain}: add one (`key_ring`) on every node that has to read what is stored, \
     and restart the daemons"
)]
pub struct NoKeyOfDomain {
    /// The domain.
    pub domain: DomainName,
}

/// A key that the ring does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the key ring has no key {} of domain {}: copy that key from the key ring of a node that has it, and restart this \
     daemon",
    domain.key_id(), domain.name()
)]
pub struct MissingKey {
    /// The domain, which says the id of the key.
    pub domain: Domain,
}

impl KeyRing {
    /// A ring: the key of the node's own domain, and others. Of those of one domain, the first names what is packed in
    /// it, and all read.
    #[must_use]
    pub fn new(own: DomainKey, others: Vec<DomainKey>) -> Self {
        Self { own, others: others.into() }
    }

    /// A ring whose one key follows from the domain's name, for tests and measurements: everybody can make it.
    #[must_use]
    pub fn of_name(domain: &str) -> Self {
        Self::new(DomainKey::of_name(domain.parse().expect("a legal name")), Vec::new())
    }

    /// The key of the node's own domain, that of everything for which no other domain is asked.
    #[must_use]
    pub fn own(&self) -> &DomainKey {
        &self.own
    }

    /// The key that names what is packed in a domain: the first one of it in the ring.
    pub fn of_domain(&self, domain: &DomainName) -> Result<&DomainKey, NoKeyOfDomain> {
        let mut of_domain = self.all().filter(|key| key.domain().name() == domain);
        of_domain.next().ok_or_else(|| NoKeyOfDomain { domain: domain.clone() })
    }

    /// The key that names a domain's layers. One that follows from the domain's name need not be in the ring.
    pub fn key(&self, domain: &Domain) -> Result<DomainKey, MissingKey> {
        self.secret(domain).or_else(|missing| {
            let of_name = DomainKey::of_name(domain.name().clone());
            if of_name.domain() == domain { Ok(of_name) } else { Err(missing) }
        })
    }

    /// The key of a domain that is in the ring: nobody outside of it can have made a tag.
    pub(crate) fn secret(&self, domain: &Domain) -> Result<DomainKey, MissingKey> {
        let key = self.all().find(|key| key.domain() == domain);
        key.cloned().ok_or_else(|| MissingKey { domain: domain.clone() })
    }

    /// The keys in whose place this one came, one after the other; the nearest first.
    #[must_use]
    pub fn replaced_by(&self, key: &DomainKey) -> Vec<KeyId> {
        let (name, mut replaced) = (key.domain().name(), Vec::new());
        let mut next = key.replaced();
        while let Some(id) = next.filter(|id| !replaced.contains(id)) {
            replaced.push(id);
            let key = self.all().find(|key| key.domain().name() == name && key.domain().key_id() == id);
            next = key.and_then(DomainKey::replaced);
        }
        replaced
    }

    fn all(&self) -> impl Iterator<Item = &DomainKey> {
        std::iter::once(&self.own).chain(&*self.others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DomainName {
        text.parse().expect("a legal name")
    }

    #[test]
    fn a_key_follows_from_its_secret_and_not_from_the_domains_name() {
        let [one, other] = [[1; 32], [2; 32]].map(|secret| DomainKey::new(name("tenant-1"), &secret));
        assert_ne!(one.domain(), other.domain());
        assert_ne!(one.layer_id(b"index"), other.layer_id(b"index"));
        assert_ne!(one.tag(b"bytes"), other.tag(b"bytes"));
        assert_ne!(one.frame_digest(b"frame"), other.frame_digest(b"frame"));
        assert_eq!(one.domain(), DomainKey::new(name("tenant-1"), &[1; 32]).domain());
        assert_ne!(one.domain(), DomainKey::of_name(name("tenant-1")).domain());
    }

    #[test]
    fn a_ring_finds_every_key_it_has_and_says_which_one_it_lacks() {
        let [own, other, foreign] = [1, 2, 3].map(|byte| DomainKey::new(name("a"), &[byte; 32]));
        let ring = KeyRing::new(own.clone(), vec![other.clone()]);
        for known in [&own, &other] {
            assert_eq!(ring.key(known.domain()).map(|key| key.layer_id(b"i")), Ok(known.layer_id(b"i")));
        }
        let missing = ring.key(foreign.domain()).expect_err("it is not there").to_string();
        let said = format!("the key ring has no key {} of domain a: copy", foreign.domain().key_id());
        assert!(missing.starts_with(&said), "{missing}");
    }

    #[test]
    fn the_first_key_of_a_domain_names_what_is_packed_in_it() {
        let [own, old, tenant, older] = [("a", 1), ("a", 2), ("b", 3), ("b", 4)]
            .map(|(domain, byte)| DomainKey::new(name(domain), &[byte; 32]));
        let ring = KeyRing::new(own.clone(), vec![old, tenant.clone(), older]);
        for key in [own, tenant] {
            assert_eq!(ring.of_domain(key.domain().name()).map(DomainKey::domain), Ok(key.domain()));
        }
        let none = ring.of_domain(&name("c")).expect_err("it is in no ring").to_string();
        assert!(none.starts_with("the key ring has no key of domain c: add one"), "{none}");
    }

    #[test]
    fn a_ring_says_in_whose_place_a_key_came_and_ends_also_where_two_say_it_of_each_other() {
        let id = |key: &DomainKey| key.domain().key_id();
        let first = DomainKey::new(name("a"), &[1; 32]);
        let second = DomainKey::replacing(name("a"), id(&first), &[2; 32]);
        let third = DomainKey::replacing(name("a"), id(&second), &[3; 32]);
        let ring = KeyRing::new(third.clone(), vec![second.clone(), first.clone()]);
        assert_eq!(ring.replaced_by(&third), [id(&second), id(&first)]);
        assert_eq!(ring.replaced_by(&first), []);
        let first = DomainKey::replacing(name("a"), id(&third), &[1; 32]);
        let ring = KeyRing::new(third.clone(), vec![second.clone(), first.clone()]);
        assert_eq!(ring.replaced_by(&third), [id(&second), id(&first), id(&third)]);
    }

    #[test]
    fn the_key_that_follows_from_a_name_reads_layers_and_makes_no_tag_that_counts() {
        let ring = KeyRing::new(DomainKey::new(name("a"), &[1; 32]), Vec::new());
        let old = DomainKey::of_name(name("a"));
        assert_eq!(ring.key(old.domain()).map(|key| key.layer_id(b"i")), Ok(old.layer_id(b"i")));
        assert!(ring.secret(old.domain()).is_err());
    }

    #[test]
    fn neither_a_key_nor_its_ring_shows_the_secret() {
        let secret = [0xa7; 32];
        let key = DomainKey::new(name("a"), &secret);
        let shown = format!("{key:?} {:?}", KeyRing::new(key.clone(), vec![key.clone()]));
        let hidden = [format!("{secret:?}"), blake3::Hash::from_bytes(key.0.tags).to_hex().to_string()];
        assert!(hidden.iter().all(|hidden| !shown.contains(hidden.trim_matches(['[', ']']))), "{shown}");
        assert!(!shown.contains("a7a7") && !shown.contains("167, 167"), "{shown}");
    }
}
