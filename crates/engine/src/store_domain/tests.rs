//! Nodes that agree on the keys of a domain, over a store in RAM.

use object_store::memory::InMemory;

use super::*;
use crate::key_ring::KeyRing;

fn name() -> DomainName {
    "tenant-1".parse().expect("a legal name")
}

fn key(byte: u8) -> DomainKey {
    DomainKey::new(name(), &[byte; 32])
}

fn replacing(byte: u8, replaced: &DomainKey) -> DomainKey {
    DomainKey::replacing(name(), replaced.domain().key_id(), &[byte; 32])
}

fn id(key: &DomainKey) -> KeyId {
    key.domain().key_id()
}

struct Place(Arc<dyn ObjectStore>);

impl Place {
    fn new() -> Self {
        Self(Arc::new(InMemory::new()))
    }

    /// A node asks that has these keys, the one in front for what it packs.
    fn agree(&self, keys: &[&DomainKey]) -> Result<(), String> {
        let others = keys[1..].iter().map(|key| (*key).clone()).collect();
        let ring = KeyRing::new(keys[0].clone(), others);
        futures_executor::block_on(agree(ring.own(), &ring.replaced_by(ring.own()), &self.0))
    }

    fn keys(&self) -> Vec<KeyId> {
        futures_executor::block_on(keys_in(&name(), &self.0)).expect("RAM")
    }

    fn put(&self, path: &ObjectPath, content: &str) {
        let payload = PutPayload::from(content.as_bytes().to_vec());
        futures_executor::block_on(self.0.put(path, payload)).expect("RAM");
    }
}

#[test]
fn the_first_node_says_the_key_and_one_with_another_key_is_told_so() {
    let place = Place::new();
    assert_eq!(place.keys(), []);
    assert_eq!(place.agree(&[&key(1)]), Ok(()));
    assert_eq!(place.agree(&[&key(1)]), Ok(()));
    // Also where it has the first one behind its own.
    for keys in [&[&key(2)][..], &[&key(2), &key(1)]] {
        let told = place.agree(keys).expect_err("it has another key");
        let start = format!("domain tenant-1 has key {} in it, and this node's", id(&key(1)));
        assert!(told.starts_with(&start), "{told}");
    }
    assert_eq!(place.keys(), [id(&key(1))]);
}

#[test]
fn a_key_in_the_place_of_one_that_the_store_has_is_put_beside_it_and_both_are_agreed_on() {
    let place = Place::new();
    let first = key(1);
    let second = replacing(2, &first);
    assert_eq!(place.agree(&[&first]), Ok(()));
    for _ in 0..2 {
        assert_eq!(place.agree(&[&second, &first]), Ok(()));
    }
    // Nodes that do not have it yet go on, and those that have dropped the first one, too.
    assert_eq!(place.agree(&[&first]), Ok(()));
    assert_eq!(place.agree(&[&second]), Ok(()));
    assert_eq!(place.keys(), [id(&first), id(&second)]);
    // Two rotations since this node's last start: the one between them was never in the store.
    let third = replacing(3, &second);
    let fourth = replacing(4, &third);
    assert_eq!(place.agree(&[&fourth, &third, &second, &first]), Ok(()));
    assert!(place.keys().contains(&id(&fourth)) && !place.keys().contains(&id(&third)));
    // In the place of a key that the store does not have.
    let of_others = replacing(6, &key(5));
    place.agree(&[&of_others, &key(5), &first]).expect_err("it is in nobody's place");
}

#[test]
fn an_object_without_a_key_is_refused_and_an_unknown_version_by_name() {
    let place = Place::new();
    let told = |content: &str| {
        place.put(&path_of_first(&name()), content);
        place.agree(&[&key(1)]).expect_err("it names no key")
    };
    assert!(told("{\"version\":2,\"keys\":[]}").contains("version 2 is unknown to this rekindle"));
    assert!(told("{\"version\":1,\"domain\":\"b\",\"key\":\"00\"}").contains("it is of domain \"b\""));
    let no_id = told("{\"version\":1,\"domain\":\"tenant-1\",\"key\":\"00\"}");
    assert!(no_id.contains("a key's id is 16 lower-case"), "{no_id}");
}

#[test]
fn a_further_key_that_somebody_without_it_has_put_is_refused_by_name() {
    let (first, place) = (key(1), Place::new());
    let second = replacing(2, &first);
    place.agree(&[&first]).expect("it is the first");
    let forged = Further { key: id(&second).to_string(), ..Further::of(&key(3), id(&first)) };
    let path = path_of_further(second.domain());
    for content in [serde_json::to_string(&forged).expect("plain data"), "{}".to_owned()] {
        place.put(&path, &content);
        let told = place.agree(&[&second, &first]).expect_err("it is not the key's own");
        assert!(told.starts_with(&format!("its object `{path}` cannot be understood: ")), "{told}");
    }
}
